//! Atomics, threads and locks of the types whose steps `tests/interleavings` takes in every order: compiled there, they use loom's.

pub use std::sync::OnceLock;
pub use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence,
};
pub use std::thread::{Thread, current, park_timeout, yield_now};
pub use std::thread_local as per_thread;

pub use parking_lot::Mutex;

/// A static that is made when it is first used, where it has to be.
macro_rules! global {
    ($(#[$about:meta])* static $name:ident: $type:ty = $value:expr;) => {
        $(#[$about])*
        static $name: $type = $value;
    };
}
pub(crate) use global;
