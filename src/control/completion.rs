//! Completions on their way to the caller: each by exactly one way, exactly once (P4).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, ThreadId};

use once_cell::sync::OnceCell;
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};

use crate::abi::Completion;
use crate::config::{Callback, Notify};
use crate::error::{Error, KVKEEP_ERR_LIMIT, Result};

/// Most completions that wait to be taken, where no bound on jobs is known.
pub const WAITING_MAX: usize = 1 << 16;

#[derive(Default)]
struct Callbacks {
    queue: VecDeque<(Callback, Completion)>,
    closing: bool,
}

/// The queues of completions, and the callback thread.
pub struct Completions {
    callbacks: Mutex<Callbacks>,
    some: Condvar,
    drained: Mutex<VecDeque<Completion>>,
    waiting: AtomicUsize,
    fd: File,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: OnceCell<ThreadId>,
}

impl Completions {
    /// Starts the callback thread.
    pub fn start() -> Result<Arc<Completions>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("making the event descriptor", &error.into()))?;
        let completions = Arc::new(Completions {
            callbacks: Mutex::default(),
            some: Condvar::new(),
            drained: Mutex::default(),
            waiting: AtomicUsize::new(0),
            fd: fd.into(),
            thread: Mutex::default(),
            thread_id: OnceCell::new(),
        });
        let mine = completions.clone();
        let thread = std::thread::Builder::new()
            .name("kvkeep-callback".to_owned())
            .spawn(move || mine.run())
            .map_err(|error| Error::io("starting the callback thread", &error))?;
        let _ = completions.thread_id.set(thread.thread().id());
        *completions.thread.lock() = Some(thread);
        Ok(completions)
    }

    fn run(&self) {
        loop {
            let (callback, completion) = {
                let mut callbacks = self.callbacks.lock();
                loop {
                    if let Some(next) = callbacks.queue.pop_front() {
                        break next;
                    }
                    if callbacks.closing {
                        return;
                    }
                    self.some.wait(&mut callbacks);
                }
            };
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            (callback.0)(&completion);
        }
    }

    /// Queues a completion for its caller, if the caller wants one. Takes locks of its own; calls nothing back.
    pub fn deliver(&self, notify: Notify, completion: Completion) {
        if notify.is_queued() {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        match notify {
            Notify::Poll | Notify::Observer(_) => {}
            Notify::EventFd => {
                let mut drained = self.drained.lock();
                drained.push_back(completion);
                if drained.len() == 1 {
                    // It can only fail when the descriptor is readable already.
                    let _ = (&self.fd).write(&1u64.to_ne_bytes());
                }
            }
            Notify::Callback(callback) => {
                self.callbacks.lock().queue.push_back((callback, completion));
                self.some.notify_one();
            }
        }
    }

    /// Takes completions for the event descriptor, oldest first. Returns how many.
    pub fn drain(&self, completions: &mut [Completion]) -> usize {
        let mut drained = self.drained.lock();
        let count = completions.len().min(drained.len());
        for (place, completion) in completions.iter_mut().zip(drained.drain(..count)) {
            *place = completion;
        }
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        if count > 0 && drained.is_empty() {
            let _ = (&self.fd).read(&mut [0; 8]);
        }
        count
    }

    /// Completions that no callback and no drain has taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Refuses a job whose completion would be queued while `most` completions wait already.
    pub fn check_capacity(&self, notify: &Notify, most: usize) -> Result<()> {
        if notify.is_queued() && self.waiting() >= most {
            return Err(Error::new(KVKEEP_ERR_LIMIT, format!("{most} completions wait to be taken: drain them")));
        }
        Ok(())
    }

    /// The event descriptor, readable while completions wait. It stays this object's.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Whether the calling thread is the callback thread.
    pub fn on_thread(&self) -> bool {
        self.thread_id.get() == Some(&std::thread::current().id())
    }

    /// Delivers what is queued, then stops the thread.
    pub fn close(&self) {
        self.callbacks.lock().closing = true;
        self.some.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}
