//! The two engines that move bytes between L1 and files: io_uring, and a pool of threads where io_uring is refused.

pub mod backlog;
mod bell;
mod operation;
mod ring;
mod ring_steps;
pub mod start;
mod syncer;
mod thread_pool;
mod uring;

/// Moves bytes between files and buffers on threads of its own, taking its requests from the backlog. Before and after the bytes of an
/// object move it calls the same functions of [`Core`](super::core::Core), whichever engine it is.
pub trait IoEngine: Send + Sync {
    /// The backlog has `count` more requests.
    fn wake(&self, count: usize);
    /// Ends its threads. The caller has emptied and stopped the backlog.
    fn join(&self);
}
