//! A mapping in use, and what its end tells to whoever says what lies there.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;

use crate::arena::Arena;

/// A mapping of which somebody uses bytes, or may.
#[derive(Clone)]
pub struct ArenaLease {
    arena: Arc<Arena>,
    /// Dropped with the last use: then what was used may become others'.
    _tie: Option<Arc<dyn Any + Send + Sync>>,
}

impl ArenaLease {
    /// A use of `arena`, as long as which `tie` is not dropped.
    pub fn new(arena: Arc<Arena>, tie: Option<Arc<dyn Any + Send + Sync>>) -> ArenaLease {
        ArenaLease { arena, _tie: tie }
    }
}

impl Deref for ArenaLease {
    type Target = Arc<Arena>;

    fn deref(&self) -> &Arc<Arena> {
        &self.arena
    }
}
