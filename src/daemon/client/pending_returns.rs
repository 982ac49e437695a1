//! Requests that return something and that the daemon could not be asked in time: it is asked when it answers again.
//!
//! Their callers got TIMEOUT and hold nothing any more. Without this, the daemon would hold shares until their session's
//! deadline, and those of a copy for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

/// Most bytes of requests that wait.
const BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
struct ReturnQueue {
    requests: VecDeque<Arc<[u8]>>,
    bytes: usize,
    has_thread: bool,
}

/// The requests of one connection, in the order in which they were made.
#[derive(Default)]
pub struct PendingReturns {
    any: AtomicBool,
    queue: Mutex<ReturnQueue>,
    /// Held while a request is made, so that they keep their order.
    making: Mutex<()>,
}

/// What became of a request that was to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Added {
    /// The request waits, and a thread makes it.
    Waits,
    /// The request waits, and the caller is to start the thread.
    NeedsThread,
    /// Too many requests wait: this one is dropped.
    NoRoom,
}

impl PendingReturns {
    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Adds a request, encoded as a frame.
    pub fn add(&self, request: &[u8]) -> Added {
        let mut queue = self.queue.lock();
        if queue.bytes + request.len() > BYTES_MAX {
            return Added::NoRoom;
        }
        queue.bytes += request.len();
        queue.requests.push_back(request.into());
        self.any.store(true, Ordering::Release);
        if std::mem::replace(&mut queue.has_thread, true) { Added::Waits } else { Added::NeedsThread }
    }

    /// Waits for the thread that makes a request now, at most until `until`. The caller makes requests while it holds the guard.
    pub fn lock_until(&self, until: Instant) -> Option<MutexGuard<'_, ()>> {
        self.making.try_lock_until(until)
    }

    /// The request to make next. Called under the guard of `lock_until`.
    pub fn first(&self) -> Option<Arc<[u8]>> {
        self.queue.lock().requests.front().cloned()
    }

    /// Removes the first request: it was made, or cannot be made any more.
    pub fn made(&self) {
        let mut queue = self.queue.lock();
        if let Some(request) = queue.requests.pop_front() {
            queue.bytes -= request.len();
        }
        if queue.requests.is_empty() {
            self.any.store(false, Ordering::Release);
        }
    }

    /// Whether the thread has nothing left to do, and ends.
    pub fn ends_thread(&self) -> bool {
        let mut queue = self.queue.lock();
        if queue.requests.is_empty() {
            queue.has_thread = false;
        }
        queue.requests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_wait_in_their_order_and_within_a_bound() {
        let returns = PendingReturns::default();
        assert!(returns.is_empty() && returns.first().is_none());
        assert_eq!(returns.add(&[1]), Added::NeedsThread);
        assert_eq!(returns.add(&vec![2; BYTES_MAX - 1]), Added::Waits);
        assert_eq!(returns.add(&[3]), Added::NoRoom);
        assert!(!returns.is_empty() && !returns.ends_thread());
        assert_eq!(returns.first().as_deref(), Some(&[1][..]));
        returns.made();
        assert_eq!(returns.first().map(|request| request[0]), Some(2));
        returns.made();
        assert!(returns.is_empty() && returns.ends_thread());
        assert_eq!(returns.add(&[3]), Added::NeedsThread);
    }
}
