//! Counters of writes by their end. One write is one object that is to go to one backend; an object that is dropped before it is
//! sent to any counts as one.
//!
//! Asked = stored + already there + dropped + withdrawn + pending: in all, and for each backend of those it was asked for.

use crate::meters::{Count, Meters};
use crate::misses::ObjectFate;

/// Why a write was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// A backend refused it, failed to the end, or did not answer in time.
    Failed,
    /// There was no backend, or it was fenced, failing or removed.
    Fenced,
    /// Writes to the backend take longer than its `store_latency_max_ms`.
    Slow,
    /// The cache closed before the write ended.
    Closed,
}

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The backend has it now: so many bytes.
    Stored(u64),
    /// The backend had it.
    Already,
    /// The backend does not get it.
    Dropped(Dropped),
    /// The object was deleted or forgotten first.
    Withdrawn,
}

impl Ended {
    /// What is known of the object from now on, for lookups that miss it. None where others note it, or nothing is to be noted.
    pub fn fate(self) -> Option<ObjectFate> {
        match self {
            Ended::Already => Some(ObjectFate::Stored),
            Ended::Dropped(Dropped::Failed) => Some(ObjectFate::DroppedFailed),
            Ended::Dropped(Dropped::Fenced) => Some(ObjectFate::DroppedFenced),
            Ended::Dropped(Dropped::Slow) => Some(ObjectFate::DroppedSlow),
            Ended::Stored(_) | Ended::Dropped(Dropped::Closed) | Ended::Withdrawn => None,
        }
    }
}

/// The writes that one backend was asked for.
#[derive(Default)]
pub struct WriteCounters {
    /// Writes asked for: the sum of the others.
    pub asked: Count,
    /// Objects that it stored.
    pub stored: Count,
    /// Objects that it had.
    pub already: Count,
    /// Objects that it does not get.
    pub dropped: Count,
    /// Objects that were deleted or forgotten first.
    pub withdrawn: Count,
    /// Writes that have not ended.
    pub pending: Count,
}

impl WriteCounters {
    /// Counts one more write that is asked for.
    pub fn begin(&self) {
        self.asked.add(1);
        self.pending.add(1);
    }

    /// One of them has ended.
    pub fn end(&self, how: Ended) {
        let count = match how {
            Ended::Stored(_) => &self.stored,
            Ended::Already => &self.already,
            Ended::Dropped(_) => &self.dropped,
            Ended::Withdrawn => &self.withdrawn,
        };
        count.add(1);
        self.pending.sub(1);
    }
}

impl Meters {
    /// Writes that were dropped once they were taken from L1's queue.
    pub fn writes_dropped(&self) -> u64 {
        [&self.dropped_failed, &self.dropped_fenced, &self.dropped_slow, &self.dropped_closed]
            .iter()
            .map(|count| count.get())
            .sum()
    }

    /// Counts a write that has ended.
    pub fn end_write(&self, how: Ended) {
        match how {
            Ended::Stored(bytes) => {
                self.stores.add(1);
                self.stored_bytes.add(bytes);
            }
            Ended::Already => self.stores_already.add(1),
            Ended::Dropped(Dropped::Failed) => self.dropped_failed.add(1),
            Ended::Dropped(Dropped::Fenced) => self.dropped_fenced.add(1),
            Ended::Dropped(Dropped::Slow) => self.dropped_slow.add(1),
            Ended::Dropped(Dropped::Closed) => self.dropped_closed.add(1),
            Ended::Withdrawn => self.writes_withdrawn.add(1),
        }
    }
}
