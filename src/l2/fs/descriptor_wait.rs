//! Waiting for a descriptor where the process or the machine has none left.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A file that others close is not announced: it is tried again this often.
pub const PAUSE: Duration = Duration::from_millis(5);

/// Whether a file was not opened because there is no descriptor for it.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Threads that wait for a descriptor.
#[derive(Default)]
pub struct Descriptors {
    waiting: AtomicUsize,
    lock: Mutex<()>,
    freed: Condvar,
}

impl Descriptors {
    /// Waits until the backend has closed a file, or a moment.
    pub fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut lock = self.lock.lock();
        self.freed.wait_for(&mut lock, PAUSE);
        drop(lock);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// A file was closed.
    pub fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_one();
        }
    }
}
