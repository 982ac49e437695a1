//! The engine that leaves opening, reading, writing and renaming to io_uring: one thread keeps many objects under way.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::IoEngine;
use super::bell::Bell;
use super::operation::RANGE_BYTES;
use super::ring::Ring;
use super::syncer::Syncer;
use crate::l2::fs::core::Core;
use crate::threads;

/// Threads, each with a ring, by default: small objects cost more than one thread can give.
const THREADS: usize = 2;
/// Objects under way per ring, by default.
const DEPTH: usize = 96;
/// Bytes under way in all rings; more only makes each wait longer.
const BYTES_MAX: u64 = 16 * RANGE_BYTES;

/// The rings' threads and their bells.
pub struct Uring {
    bells: Vec<Arc<Bell>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    depth: usize,
    syncer: Option<Arc<Syncer>>,
}

impl Uring {
    /// Starts `threads` rings of `depth` objects each, or the defaults for 0.
    pub fn start(
        core: &Arc<Core>,
        syncer: &Option<Arc<Syncer>>,
        threads: usize,
        depth: usize,
    ) -> io::Result<Arc<Uring>> {
        let depth = if depth == 0 { DEPTH } else { depth };
        let mut uring = Uring { bells: Vec::new(), threads: Mutex::new(Vec::new()), depth, syncer: syncer.clone() };
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
        let bell = Arc::new(Bell::new()?);
        self.bells.push(Arc::clone(&bell));
        let (core, syncer, depth) = (Arc::clone(core), self.syncer.clone(), self.depth);
        let (started, result) = mpsc::channel();
        let thread = threads::spawn(&format!("kvkeep-fs-{number}"), move || {
            // Made here, since the kernel serves a ring best that only one thread submits to.
            let mut ring = match Ring::new(core, syncer, bell, depth, bytes_max) {
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

impl IoEngine for Uring {
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
        if let Some(syncer) = &self.syncer {
            syncer.join();
        }
    }
}
