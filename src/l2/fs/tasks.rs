//! The queue of the maintenance thread: requests that need the file system but move no payload.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use parking_lot::Mutex;

use super::failures::{closed, full};
use crate::doorbell::Doorbell;
use crate::error::{Error, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::{LookupRequest, Reply};

/// While so many keys wait in the queue, no more are accepted. One task is accepted whole, however many keys it has.
const KEYS_MAX: usize = 1 << 17;
/// Times of last use are written when this many wait.
pub const DIRTY_MAX: usize = 4096;

/// The answer to a deletion of several objects: sent when the last [`PendingDelete`] of them is dropped.
pub struct DeleteBatch {
    /// Files unlinked so far.
    pub removed: AtomicU64,
    failed: Mutex<Option<Error>>,
    reply: Mutex<Option<Reply<u64>>>,
}

impl DeleteBatch {
    /// A batch without objects yet, which answers `reply`.
    pub fn new(reply: Reply<u64>) -> Arc<DeleteBatch> {
        Arc::new(DeleteBatch { removed: AtomicU64::new(0), failed: Mutex::new(None), reply: Mutex::new(Some(reply)) })
    }

    /// Has the batch answer with `error`.
    pub fn fail(&self, error: Error) {
        *self.failed.lock() = Some(error);
    }
}

impl Drop for DeleteBatch {
    fn drop(&mut self) {
        let result = match self.failed.get_mut().take() {
            Some(error) => Err(error),
            None => Ok(*self.removed.get_mut()),
        };
        if let Some(reply) = self.reply.get_mut().take() {
            reply.send(result);
        }
    }
}

/// A hidden object whose file is still to be unlinked, and the batch that waits for it.
pub type PendingDelete = (ObjectKey, Arc<DeleteBatch>);

/// A walk through the directories of a space, or of all spaces, one directory at a time.
pub struct ForeignSweep {
    pub space: Option<SpaceTag>,
    /// Directories that are still to be looked into, shards before their spaces; `None` before they are known.
    pub left: Option<Vec<(SpaceTag, Option<String>)>>,
    /// Files unlinked so far.
    pub removed: u64,
    pub reply: Reply<u64>,
}

impl ForeignSweep {
    pub fn new(space: Option<SpaceTag>, reply: Reply<u64>) -> ForeignSweep {
        ForeignSweep { space, left: None, removed: 0, reply }
    }

    /// Answers with `error`; the sweep ends unfinished.
    pub fn refuse(self, error: Error) {
        self.reply.send(Err(error));
    }
}

/// A task for the maintenance thread.
pub enum MaintenanceTask {
    /// Look for keys in the file system.
    Lookup(LookupRequest),
    /// Unlink objects that are hidden already, for these deletions.
    Unlink(Vec<PendingDelete>),
    /// Move a hidden object away.
    Quarantine(ObjectKey),
    /// Evict a few of the objects that are above the bounds.
    Evict,
    /// Write the file that names a space.
    NameSpace(SpaceTag),
    /// Unlink objects of a space that other processes have stored.
    Sweep(ForeignSweep),
}

impl MaintenanceTask {
    fn keys(&self) -> usize {
        match self {
            MaintenanceTask::Lookup(lookup) => lookup.keys.len(),
            MaintenanceTask::Unlink(keys) => keys.len(),
            MaintenanceTask::Quarantine(_)
            | MaintenanceTask::Evict
            | MaintenanceTask::NameSpace(_)
            | MaintenanceTask::Sweep(_) => 1,
        }
    }
}

#[derive(Default)]
struct TaskList {
    queue: VecDeque<MaintenanceTask>,
    keys: usize,
    flush: bool,
    closed: bool,
}

impl TaskList {
    fn append(&mut self, task: MaintenanceTask) {
        self.keys += task.keys();
        self.queue.push_back(task);
    }
}

/// Tasks in their order, and the bell that wakes the thread for them.
#[derive(Default)]
pub struct TaskQueue {
    list: Mutex<TaskList>,
    bell: Doorbell,
}

impl TaskQueue {
    /// Fails with the reason if the queue takes no more tasks now.
    pub fn admits(&self) -> Result<()> {
        TaskQueue::check(&self.list.lock())
    }

    fn check(list: &TaskList) -> Result<()> {
        if list.closed {
            return Err(closed());
        }
        if list.keys >= KEYS_MAX { Err(full(KEYS_MAX)) } else { Ok(()) }
    }

    /// Queues a task, or gives it back with the reason for the refusal.
    pub fn offer(&self, task: MaintenanceTask) -> std::result::Result<(), (MaintenanceTask, Error)> {
        let mut list = self.list.lock();
        if let Err(error) = TaskQueue::check(&list) {
            return Err((task, error));
        }
        list.append(task);
        drop(list);
        self.bell.ring();
        Ok(())
    }

    /// Queues a task that must not be refused: the index has hidden its objects already.
    pub fn push(&self, task: MaintenanceTask) {
        if task.keys() > 0 {
            self.list.lock().append(task);
            self.bell.ring();
        }
    }

    /// Wakes the thread to write times of last use once `waiting` of them are many.
    pub fn used(&self, waiting: usize) {
        if waiting >= DIRTY_MAX {
            self.list.lock().flush = true;
            self.bell.ring();
        }
    }

    /// Accepts nothing more. The thread ends when the queue is empty.
    pub fn close(&self) {
        self.list.lock().closed = true;
        self.bell.ring();
    }

    /// Whether it accepts nothing more.
    pub fn is_closed(&self) -> bool {
        self.list.lock().closed
    }

    /// Blocks for the next task. `Some(None)`: `due` has come, or it is time to write times of use. `None`: closed and empty.
    pub fn next(&self, due: Instant) -> Option<Option<MaintenanceTask>> {
        loop {
            let mut list = self.list.lock();
            if std::mem::take(&mut list.flush) || Instant::now() >= due {
                return Some(None);
            }
            if let Some(task) = list.queue.pop_front() {
                list.keys -= task.keys();
                return Some(Some(task));
            }
            if list.closed {
                return None;
            }
            drop(list);
            self.bell.listen(due);
        }
    }
}
