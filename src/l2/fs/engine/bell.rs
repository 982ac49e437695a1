//! The bell of one ring: an eventfd that its thread reads through the ring itself.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes a ring's thread.
pub struct Bell {
    pub fd: OwnedFd,
    /// The thread waits, or is about to, and would take more requests.
    pub waiting: AtomicBool,
    /// The thread is to end.
    pub stopped: AtomicBool,
}

impl Bell {
    /// A bell that no thread waits for yet.
    pub fn new() -> io::Result<Bell> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Bell { fd, waiting: AtomicBool::new(false), stopped: AtomicBool::new(false) })
    }

    /// Wakes the thread, from any other.
    pub fn ring(&self) {
        // Fails only when it has been rung more often than a counter can hold.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}
