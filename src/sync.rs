//! Atomics, threads and locks of the types whose steps `tests/interleavings` takes in every order: compiled there, they use loom's.

pub use std::sync::OnceLock;
pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
pub use std::thread::{Thread, current, park_timeout, yield_now};
pub use std::thread_local as per_thread;

pub use parking_lot::Mutex;
