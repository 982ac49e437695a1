//! What becomes of writes, by number. One write is one object that is to go to one backend; an object that is dropped before it is
//! sent to any counts as one.
//!
//! Asked = stored + already there + dropped + withdrawn + pending: in all, and for each backend of those it was asked for.

use std::sync::atomic::Ordering;

use super::backends::Tier;
use super::writeback::Writer;
use crate::meters::{Count, Meters};

/// Why a write was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// A backend refused it, failed to the end, or did not answer in time.
    Failed,
    /// There was no backend, or it was fenced or removed.
    Fenced,
    /// The cache closed.
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

/// The writes that one backend was asked for.
#[derive(Default)]
pub struct Writes {
    /// All of them.
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

impl Writes {
    /// One more is asked for.
    pub fn begin(&self) {
        self.asked.add(1);
        self.pending.add(1);
    }

    fn end(&self, how: Ended) {
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
        [&self.dropped_failed, &self.dropped_fenced, &self.dropped_closed].iter().map(|count| count.get()).sum()
    }

    fn end_write(&self, how: Ended) {
        match how {
            Ended::Stored(bytes) => {
                self.stores.add(1);
                self.stored_bytes.add(bytes);
            }
            Ended::Already => self.stores_already.add(1),
            Ended::Dropped(Dropped::Failed) => self.dropped_failed.add(1),
            Ended::Dropped(Dropped::Fenced) => self.dropped_fenced.add(1),
            Ended::Dropped(Dropped::Closed) => self.dropped_closed.add(1),
            Ended::Withdrawn => self.writes_withdrawn.add(1),
        }
    }
}

impl Writer {
    /// A write ended: that to a backend, or one that none was to get.
    pub(super) fn end_write(&self, tier: Option<&Tier>, how: Ended) {
        if self.over.load(Ordering::Acquire) {
            return;
        }
        self.meters.end_write(how);
        self.meters.writes_under_way.sub(1);
        if let Some(tier) = tier {
            tier.writes.end(how);
        }
    }

    /// A deletion ended.
    pub(super) fn deletion_ended(&self) {
        self.desk.lock().deletions -= 1;
        self.ended(0);
    }

    /// Deletions that backends have not answered.
    pub fn deletions_pending(&self) -> u64 {
        self.desk.lock().deletions as u64
    }

    /// Counts what was not written when the cache closed. Nothing is written any more.
    pub fn drop_rest(&self) {
        if self.over.swap(true, Ordering::AcqRel) {
            return;
        }
        let under_way = self.meters.writes_under_way.get();
        self.meters.writes_under_way.sub(under_way);
        self.meters.dropped_closed.add(under_way + self.l1.drop_writes());
    }
}
