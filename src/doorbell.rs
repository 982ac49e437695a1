//! A bell that wakes a thread of the library.
//!
//! Ringing takes no lock. With a condition variable, the thread that rings would wait for the lock that the sleeper wakes up
//! with; and a fair lock may be handed to a sleeper that has no processor yet, which on a busy machine takes milliseconds.

use std::time::Instant;

use crate::sync::{AtomicBool, AtomicU64, OnceLock, Ordering, Thread, current, park_timeout};

/// The sleeper is awake, and would sleep without end.
const AWAKE: u64 = u64::MAX;

/// Any thread rings it; one thread listens.
pub struct Doorbell {
    rung: AtomicBool,
    /// Until when the listener sleeps, in nanoseconds since `born`.
    until: AtomicU64,
    born: Instant,
    listener: OnceLock<Thread>,
}

impl Default for Doorbell {
    fn default() -> Doorbell {
        Doorbell {
            rung: AtomicBool::new(false),
            until: AtomicU64::new(AWAKE),
            born: Instant::now(),
            listener: OnceLock::new(),
        }
    }
}

impl Doorbell {
    fn since_birth(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_nanos()).unwrap_or(AWAKE)
    }

    /// Wakes the listener, or has it not fall asleep. The listener then sees all that this thread did before.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst)
            && let Some(listener) = self.listener.get()
        {
            listener.unpark();
        }
    }

    /// Rings if the listener would sleep longer than until `at`.
    pub fn ring_by(&self, at: Instant) {
        if self.since_birth(at) < self.until.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Sleeps until it rings, or until `until`. Always called by the same thread.
    pub fn listen(&self, until: Instant) {
        self.listener.get_or_init(current);
        self.until.store(self.since_birth(until), Ordering::SeqCst);
        while !self.rung.swap(false, Ordering::SeqCst) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            park_timeout(left);
        }
        self.until.store(AWAKE, Ordering::SeqCst);
    }

    /// Whether the listener sleeps, or is about to.
    #[cfg(test)]
    pub fn is_asleep(&self) -> bool {
        self.until.load(Ordering::SeqCst) != AWAKE
    }
}
