//! The two sides of copying: [`Device`] moves bytes, [`CopyWork`] is a transfer as its device sees it.

use std::sync::Arc;

use super::cpu_copy::{Fragment, Way};
use super::pieces::KeySpan;
use crate::arena_lease::ArenaLease;
use crate::error::Result;

/// A place in a device's order of work, which can be waited for as long as a reference to it lives.
pub trait StreamEvent: Send + Sync {
    /// The device's own number for it.
    fn handle(&self) -> u64;
}

/// A point on a caller's stream: pages are touched after the work that was on it by then. None where devices have no streams.
#[derive(Clone, Default)]
pub struct StreamPoint(pub Option<Arc<dyn StreamEvent>>);

/// A part of a transfer, copied in one go.
pub struct CopyPiece {
    /// Which way it goes.
    pub way: Way,
    /// The layer it is of, by its place among the pool's.
    pub layer: usize,
    /// The number of its bytes.
    pub bytes: u64,
    /// The keys that it is of, and those between them that have nothing in its layer.
    pub keys: KeySpan,
    /// The mapping that its side of L1 is in.
    pub arena: ArenaLease,
    /// The transfer is so large that the caches are of no use.
    pub cold: bool,
    /// So many more bytes can be copied now that another thread is worth waking.
    pub more: bool,
}

/// A transfer as its device sees it: pieces, to be asked for until there are none for now.
pub trait CopyWork: Send + Sync {
    /// Which way its pieces go.
    fn way(&self) -> Way;

    /// The next piece and its fragments, which replace what was in `fragments`. May call the cache; not under a lock.
    fn next(&self, fragments: &mut Vec<Fragment>) -> Option<CopyPiece>;

    /// A piece stands in its device's order and will be where it belongs when `event` is reached. Called before it landed, in the
    /// order in which pieces were given, and only by devices with streams. Not under a lock.
    fn queued(&self, piece: &CopyPiece, event: Arc<dyn StreamEvent>);

    /// A piece is where it belongs, or could not be brought there. Once for each; any thread, any order, not under a lock.
    fn landed(&self, piece: CopyPiece, result: Result<()>);

    /// A bug was caught while it was worked on.
    fn broken(&self);
}

/// Moves bytes between L1 and the pages of one kind of device.
pub trait Device: Send + Sync {
    /// Makes it ready, the first time it is asked for.
    fn open(&self) -> Result<()>;

    /// The point that a caller's stream has reached, for a transfer that goes so. A number that names no stream of this device is
    /// refused.
    fn point(&self, stream: u64, way: Way) -> Result<StreamPoint>;

    /// Makes a caller's stream wait for what was queued. False where there are no streams: the caller has to wait itself.
    fn follow(&self, stream: u64, event: Option<&dyn StreamEvent>) -> Result<bool>;

    /// A transfer has something to do, behind `after`. May be called again while it is being worked on.
    fn start(&self, work: Arc<dyn CopyWork>, after: StreamPoint);

    /// Ends its threads. Nothing is in flight any more.
    fn close(&self);
}
