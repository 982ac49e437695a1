//! What every kind of device does for transfers, and what it is told of them.

use std::sync::Arc;

use super::copy::{Fragment, Way};
use crate::error::Result;

/// A point on a caller's stream: pages are touched after the work that was on it by then.
#[derive(Clone, Copy, Debug, Default)]
pub struct Point(pub u64);

/// A part of a transfer, copied in one go.
#[derive(Debug)]
pub struct Piece {
    /// Which way it goes.
    pub way: Way,
    /// The layer it is of, by its place among the pool's.
    pub layer: usize,
    /// How many bytes.
    pub bytes: u64,
    /// The keys that it is of: first and last, by their places in the transfer.
    pub keys: (usize, usize),
    /// So much goes with it that the caches are of no use.
    pub cold: bool,
    /// So much can be had at once that another thread is worth waking.
    pub more: bool,
}

/// A transfer as its device sees it: pieces, to be asked for until there are none for now.
pub trait Work: Send + Sync {
    /// The next piece and its fragments, which replace what was in `fragments`. May call the cache; not under a lock.
    fn next(&self, fragments: &mut Vec<Fragment>) -> Option<Piece>;

    /// A piece is where it belongs, or could not be brought there. Once for each; any thread, any order, not under a lock.
    fn landed(&self, piece: Piece, result: Result<()>);

    /// A bug was caught while it was worked on.
    fn broken(&self);
}

/// What moves bytes between L1 and the pages of one kind of device.
pub trait Device: Send + Sync {
    /// Makes it ready, the first time it is asked for.
    fn open(&self) -> Result<()>;

    /// The point that a caller's stream has reached. A number that names no stream of this device is refused.
    fn point(&self, stream: u64) -> Result<Point>;

    /// A transfer has something to do, behind `after`. May be told again while it is being worked on.
    fn start(&self, work: Arc<dyn Work>, after: Point);

    /// Ends its threads. Nothing is in flight any more.
    fn close(&self);
}
