//! Work for backends that has not ended: writes, deletions and cleanings, their retries, and the order between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

use hashbrown::HashMap;

use super::backends::BackendSlot;
use super::forgotten::Which;
use crate::error::{Error, KVKEEP_ERR_LIMIT, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l1::slot::Ref;
use crate::l2::store_header::StoreHeader;

/// Most writes and deletions not over: a backend's queue is bounded by number, and loads go to it too.
pub(super) const OPEN_MAX: usize = 1 << 14;
/// Most writes that wait for a cleaning; those beyond are dropped and counted.
pub(super) const WAITING_MAX: usize = OPEN_MAX / 2;

/// The write of one object to all backends. It ends when every backend has answered for good.
pub(super) struct PendingWrite {
    pub name: Ref,
    /// When it was queued, by the clock of the cache.
    pub since_ms: u64,
    pub key: ObjectKey,
    pub header: StoreHeader,
    pub bytes: u64,
    /// Backends that have not answered for good.
    pub left: AtomicUsize,
    /// A backend has it.
    pub stored: AtomicBool,
    /// It is a copy for one more backend, which L1 did not queue.
    pub is_copy: bool,
}

/// Objects to be deleted from one backend.
pub(super) struct PendingDelete {
    pub keys: Arc<Vec<ObjectKey>>,
    pub slot: Arc<BackendSlot>,
    pub attempt: u32,
    /// A full queue is waited for until then.
    pub until: Instant,
}

/// A step that the store thread takes later: a retry, or the next step of a cleaning.
pub(super) enum Task {
    Write { pending: Arc<PendingWrite>, slot: Arc<BackendSlot>, attempt: u32 },
    Delete(PendingDelete),
    Clean(Cleaning),
}

/// A task and when it is due. The earliest is the greatest, for a heap.
pub(super) struct Retry {
    pub due: Instant,
    pub task: Task,
}

impl PartialEq for Retry {
    fn eq(&self, other: &Retry) -> bool {
        self.due == other.due
    }
}
impl Eq for Retry {}
impl PartialOrd for Retry {
    fn partial_cmp(&self, other: &Retry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Retry {
    fn cmp(&self, other: &Retry) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

/// The rest of forgetting a space in a backend.
pub(super) struct Cleaning {
    pub slot: Arc<BackendSlot>,
    pub which: Which,
    /// The objects still to be deleted; `None` before they are listed.
    pub keys: Option<Vec<ObjectKey>>,
    /// Failures in a row.
    pub attempt: u32,
}

impl Cleaning {
    /// Whether the space is to be forgotten.
    pub fn is_of(&self, space: &SpaceTag) -> bool {
        self.which.is_none_or(|which| which == *space)
    }
}

/// The order between writes and cleanings of one space: each waits until the other has ended.
#[derive(Default)]
pub(super) struct CleaningOrder {
    /// Writes that a backend has not answered.
    under_way: HashMap<(u64, SpaceTag), u32>,
    /// Cleanings that begin when those are answered.
    pub cleanings: Vec<Cleaning>,
    /// Writes that begin when a cleaning is done.
    pub writes: Vec<Task>,
}

impl CleaningOrder {
    /// Begins a write: true. False if it waits, and an error where it must not.
    pub fn begin(&mut self, pending: &Arc<PendingWrite>, slot: &Arc<BackendSlot>, attempt: u32) -> Result<bool> {
        let space = pending.key.space;
        if !slot.forgotten.covers(&space) {
            *self.under_way.entry((slot.number, space)).or_default() += 1;
            return Ok(true);
        }
        if slot.forgotten.failed(&space) || self.writes.len() >= WAITING_MAX {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                "what its space had there before is not deleted yet, and no more writes may wait for that",
            ));
        }
        self.writes.push(Task::Write { pending: pending.clone(), slot: slot.clone(), attempt });
        Ok(false)
    }

    /// A write was answered.
    pub fn end(&mut self, slot: u64, space: SpaceTag) {
        if let Some(count) = self.under_way.get_mut(&(slot, space)) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&(slot, space));
            }
        }
    }

    /// Takes the cleanings that no write keeps waiting.
    pub fn ready(&mut self) -> Vec<Cleaning> {
        let under_way = &self.under_way;
        self.cleanings
            .extract_if(.., |cleaning| {
                let waits = |(&(slot, space), _): (&(u64, SpaceTag), &u32)| {
                    slot == cleaning.slot.number && cleaning.is_of(&space)
                };
                !under_way.iter().any(waits)
            })
            .collect()
    }
}
