//! The engine that leaves opening, reading, writing and renaming to io_uring: one thread keeps many objects under way.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::operation::PIECE;
use super::ring::Ring;
use crate::l2::fs::object_io::{Core, Engine};
use crate::threads;

/// Threads, each with a ring, if not told: small objects cost more than one thread can give.
const THREADS: usize = 2;
/// Objects under way per ring if not told.
const DEPTH: usize = 96;
/// Bytes under way in all rings; more only makes each wait longer.
const BYTES_MAX: u64 = 16 * PIECE;

/// Wakes a ring's thread.
pub struct Bell {
    pub fd: OwnedFd,
    /// The thread waits, or is about to, and would take more work.
    pub waiting: AtomicBool,
    /// The thread is to end.
    pub stopped: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // Fails only when it has been rung more often than a counter can hold.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

/// The rings.
pub struct Uring {
    bells: Vec<Arc<Bell>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    depth: usize,
}

impl Uring {
    /// Starts `threads` rings of `depth` objects each, or the defaults for 0.
    pub fn start(core: &Arc<Core>, threads: usize, depth: usize) -> io::Result<Arc<Uring>> {
        let depth = if depth == 0 { DEPTH } else { depth };
        let mut uring = Uring { bells: Vec::new(), threads: Mutex::new(Vec::new()), depth };
        let threads = if threads == 0 { THREADS } else { threads };
        for number in 0..threads {
            if let Err(error) = uring.add(core, number, BYTES_MAX / threads as u64) {
                uring.join();
                return Err(error);
            }
        }
        Ok(Arc::new(uring))
    }

    fn add(&mut self, core: &Arc<Core>, number: usize, bytes_max: u64) -> io::Result<()> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC)?;
        let bell = Arc::new(Bell { fd, waiting: AtomicBool::new(false), stopped: AtomicBool::new(false) });
        self.bells.push(Arc::clone(&bell));
        let (core, depth) = (Arc::clone(core), self.depth);
        let (started, result) = mpsc::channel();
        let thread = threads::spawn(&format!("kvkeep-fs-{number}"), move || {
            // Made here, since the kernel serves a ring best that only one thread submits to.
            let mut ring = match Ring::new(core, bell, depth, bytes_max) {
                Ok(ring) => ring,
                Err(error) => return drop(started.send(Err(error))),
            };
            drop(started.send(Ok(())));
            ring.run();
        })?;
        self.threads.lock().push(thread);
        result.recv().map_err(io::Error::other)?
    }
}

impl Engine for Uring {
    fn wake(&self, count: usize) {
        let mut left = count;
        for bell in &self.bells {
            if left == 0 {
                break;
            }
            if bell.waiting.swap(false, Ordering::SeqCst) {
                bell.ring();
                left = left.saturating_sub(self.depth);
            }
        }
    }

    fn join(&self) {
        for bell in &self.bells {
            bell.stopped.store(true, Ordering::SeqCst);
            bell.ring();
        }
        for thread in self.threads.lock().drain(..) {
            // A thread that panicked was reported by the panic.
            let _ = thread.join();
        }
    }
}
