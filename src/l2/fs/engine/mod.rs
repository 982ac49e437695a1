//! The two engines that move bytes between L1 and files: io_uring, and a pool of threads where io_uring is refused.

pub mod backlog;
pub mod operation;
pub mod ring;
pub mod thread_pool;
pub mod uring;
