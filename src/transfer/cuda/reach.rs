//! L1 as one pool's device reaches it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::gpu::Gpu;
use super::registration::{RegisteredArena, Registrations};
use crate::arena::Arena;

/// The mapping of L1 that is registered for a pool.
pub struct Reach {
    registrations: Arc<Registrations>,
    pub gpu: Arc<Gpu>,
    registered: Mutex<Option<Arc<RegisteredArena>>>,
}

impl Reach {
    /// Begins to register `l1`, if there is one already.
    pub fn new(registrations: Arc<Registrations>, gpu: Arc<Gpu>, l1: Option<Arc<Arena>>) -> Reach {
        let registered = Mutex::new(l1.map(|arena| registrations.register(&gpu, &arena)));
        Reach { registrations, gpu, registered }
    }

    /// The registration of a mapping of L1's, which is the pool's from now on. A client of a daemon that came back has another than
    /// before.
    pub fn of(&self, arena: &Arc<Arena>) -> Arc<RegisteredArena> {
        let mut registered = self.registered.lock();
        match &*registered {
            Some(registered) if registered.is_of(arena) => registered.clone(),
            _ => registered.insert(self.registrations.register(&self.gpu, arena)).clone(),
        }
    }

    /// Lets go of the registration. Called when the pool is closed.
    pub fn forget(&self) {
        self.registered.lock().take();
    }
}
