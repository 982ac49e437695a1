//! The signal that wakes reservations which wait for memory (`memory_wait.rs`).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Wakes reservations when memory may be had.
#[derive(Default)]
pub(super) struct FreedMemory {
    waiting: AtomicU32,
    turn: Mutex<u64>,
    changed: Condvar,
    closed: AtomicBool,
}

impl FreedMemory {
    /// Wakes all that wait. Called after the state's lock was let go.
    #[inline]
    pub fn notify(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            *self.turn.lock() += 1;
            self.changed.notify_all();
        }
    }

    /// Counts a reservation that may wait. It calls this before it looks for memory: it is woken for all that is freed after.
    pub fn begin_wait(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// The reservation waits no more.
    pub fn end_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// How often the waiting were woken. A reservation reads it before it looks for memory.
    pub fn turn(&self) -> u64 {
        *self.turn.lock()
    }

    /// Sleeps while the turn is still `turn`, at most until `until`. False if it still is.
    pub fn wait(&self, turn: u64, until: Instant) -> bool {
        let mut now = self.turn.lock();
        while *now == turn {
            if self.changed.wait_until(&mut now, until).timed_out() {
                break;
            }
        }
        *now != turn
    }

    /// Ends every wait, for good: the cache closes.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.turn.lock() += 1;
        self.changed.notify_all();
    }

    /// Whether [`close`](FreedMemory::close) was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
