//! A bell for a thread that sleeps at its socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Any thread rings it; one thread sleeps at it.
pub struct WakeFd(OwnedFd);

impl WakeFd {
    pub fn new() -> io::Result<WakeFd> {
        Ok(WakeFd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the thread, or has it not fall asleep.
    pub fn ring(&self) {
        // Fails only when it has been rung 2^64 times.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Forgets that it was rung.
    pub fn clear(&self) {
        // Fails where it has not been rung.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Sleeps until it rings, at most so many milliseconds.
    pub fn sleep(&self, milliseconds: u64) {
        let time = Timespec { tv_sec: (milliseconds / 1000) as i64, tv_nsec: (milliseconds % 1000 * 1_000_000) as i64 };
        // An interrupted sleep is a short one.
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)], Some(&time));
        self.clear();
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
