//! The threads that make stores durable before they are answered, where `durability=power` asks for it. Several, since a disk takes many
//! flushes at once as fast as one.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, unlinkat};

use crate::error::{Error, Result};
use crate::l2::Stored;
use crate::l2::fs::core::Core;
use crate::l2::fs::durability;
use crate::l2::fs::file_buffers::{FileBuffers, Spare};
use crate::l2::fs::store::ActiveStore;
use crate::threads;

const THREADS: usize = 4;

/// A store whose bytes are written.
struct UnsyncedStore {
    active: ActiveStore,
    buffers: FileBuffers,
    /// The temporary file; none where the object is there already.
    file: Option<OwnedFd>,
}

#[derive(Default)]
struct SyncState {
    stores: Vec<UnsyncedStore>,
    stopped: bool,
}

#[derive(Default)]
struct SyncQueue {
    state: Mutex<SyncState>,
    ready: Condvar,
}

impl SyncQueue {
    /// Blocks for this thread's part of the stores that wait; `None` at the end.
    fn next(&self) -> Option<Vec<UnsyncedStore>> {
        let mut state = self.state.lock();
        loop {
            if !state.stores.is_empty() {
                let count = state.stores.len().div_ceil(THREADS);
                return Some(state.stores.drain(..count).collect());
            }
            if state.stopped {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// All stores that wait.
    fn rest(&self) -> Vec<UnsyncedStore> {
        std::mem::take(&mut self.state.lock().stores)
    }
}

/// The threads, and the stores that wait for them.
pub struct Syncer {
    core: std::sync::Weak<Core>,
    queue: Arc<SyncQueue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Syncer {
    /// Starts the threads.
    pub fn start(core: &Arc<Core>) -> Result<Arc<Syncer>> {
        let queue = Arc::new(SyncQueue::default());
        let syncer = Syncer { core: Arc::downgrade(core), queue: Arc::clone(&queue), threads: Mutex::default() };
        for number in 0..THREADS {
            let (core, queue) = (Arc::clone(core), Arc::clone(&queue));
            let thread = threads::spawn(&format!("kvkeep-fs-s{number}"), move || {
                while let Some(stores) = queue.next() {
                    publish(&core, &queue, stores);
                }
            });
            let thread = thread.map_err(|error| Error::io("starting a thread of the fs backend", &error))?;
            syncer.threads.lock().push(thread);
        }
        Ok(Arc::new(syncer))
    }

    /// Has a store published, synced and answered. `file` is its temporary file, whole; none: the object is there already.
    pub fn take(&self, active: ActiveStore, buffers: FileBuffers, file: Option<OwnedFd>) {
        if let Some(core) = self.core.upgrade() {
            core.backlog.written();
        }
        self.queue.state.lock().stores.push(UnsyncedStore { active, buffers, file });
        self.queue.ready.notify_one();
    }

    /// Ends the threads when nothing waits.
    pub fn join(&self) {
        self.queue.state.lock().stopped = true;
        self.queue.ready.notify_all();
        for thread in self.threads.lock().drain(..) {
            // A thread that panicked was reported by the panic.
            let _ = thread.join();
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.join();
    }
}

/// Gives the stores their names, makes both durable, and answers.
fn publish(core: &Core, queue: &SyncQueue, stores: Vec<UnsyncedStore>) {
    let mut named: Vec<_> = stores.into_iter().map(|store| name(core, store)).collect();
    let synced = loop {
        let good = || named.iter().filter(|(.., outcome)| outcome.is_ok()).map(|(active, ..)| active);
        let patience = good().map(|active| active.patience).max();
        match durability::sync_names(&core.root, good().map(|active| active.path.as_str())) {
            Err(error) if patience.is_some_and(|patience| core.waits_for_descriptor(&error, patience)) => {
                // Those that wait may have all the descriptors.
                named.extend(queue.rest().into_iter().map(|store| name(core, store)));
                core.descriptors.wait();
            }
            synced => break synced,
        }
    };
    let count = named.len();
    for (active, buffers, mut outcome) in named {
        if let (Ok(stored), Err(error)) = (&outcome, &synced) {
            if *stored == Stored::Written {
                // Tried again, it would be taken for one that is synced.
                let _ = unlinkat(&core.root.dirfd, active.path.as_str(), AtFlags::empty());
            }
            outcome = Err(core.root.error("syncing the directory of", &active.path, error));
        }
        core.end_store(active, buffers, outcome, &mut Spare::new());
    }
    core.backlog.synced(count);
    core.wake(count);
}

/// Syncs the bytes of a store, and renames its file.
fn name(core: &Core, store: UnsyncedStore) -> (ActiveStore, FileBuffers, Result<Stored>) {
    let UnsyncedStore { mut active, buffers, file } = store;
    let written = match file {
        Some(file) => {
            let synced = durability::sync_file(file);
            #[cfg(test)]
            let synced = synced.and_then(|()| core.free_space.pretend(core.root.index(|index| index.held()), true));
            core.descriptors.freed();
            let synced = synced.inspect_err(|error| {
                // Some file systems look for room only now. The victims leave it for the next attempt.
                core.makes_room(&mut active, error);
            });
            synced.map_err(|error| ("syncing", error)).and_then(|()| {
                let renamed = core.rename(&mut active);
                core.renamed(&active, &buffers, renamed).map_err(|error| ("publishing", error))
            })
        }
        None => Ok(Stored::Already),
    };
    let outcome = written.and_then(|stored| match stored {
        // By another process, which may not have synced it yet.
        Stored::Already => {
            durability::sync_object(&core.root, &active.path).map(|()| stored).map_err(|error| ("syncing", error))
        }
        Stored::Written => Ok(stored),
    });
    let outcome = outcome.map_err(|(what, error)| core.root.error(what, &active.path, &error));
    (active, buffers, outcome)
}
