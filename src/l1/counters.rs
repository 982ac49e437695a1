//! The numbers that L1 counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{KVKEEP_ERR_QUOTA, Status};

/// Numbers that only grow.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub read_hits: u64,
    pub read_misses: u64,
    pub commits: u64,
    pub commits_discarded: u64,
    pub evictions: u64,
    pub evicted_bytes: u64,
    pub refused_memory: u64,
    pub refused_quota: u64,
    pub sessions_reclaimed: u64,
    pub shares_revoked: u64,
    pub commits_temporary: u64,
    pub writes_asked: u64,
    pub writes_withdrawn: u64,
    pub dropped_queue: u64,
    pub dropped_evicted: u64,
    pub uses_dropped: u64,
}

impl Counts {
    /// Writes that were dropped before the writer took them.
    pub fn writes_dropped(&self) -> u64 {
        self.dropped_queue + self.dropped_evicted
    }

    /// A reservation was refused for want of memory or quota.
    pub(super) fn count_refusal(&mut self, why: Status) {
        if why == KVKEEP_ERR_QUOTA {
            self.refused_quota += 1;
        } else {
            self.refused_memory += 1;
        }
    }
}

/// Numbers that go up and down.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Gauges {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub locked_bytes: u64,
    pub objects: u64,
    pub staged: u64,
    pub shares: u64,
    pub sessions: u64,
    pub writes_queued: u64,
    pub memory_bytes: u64,
}

/// The keys that one reservation for reading asks L1 for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReadCounts {
    /// Keys found that the request did not hold before.
    pub hits: u64,
    /// Keys not found. A copy counts none: it has its missing keys loaded by a job, which counts them.
    pub misses: u64,
}

/// Calls that share the state write to so many parts, each with cache lines of its own.
pub(super) const PARTS: usize = 8;

/// The part of a session, which few other sessions have.
pub(super) fn part_of(session: u32) -> usize {
    session as usize % PARTS
}

/// Sums that calls which share the state add to, each session on a cache line that few others have. Only the sums mean anything.
#[derive(Default)]
pub(super) struct Counters([CounterPart; PARTS]);

/// A part of the sums, some of which may be below zero: all wraps.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct CounterPart {
    locked_bytes: AtomicU64,
    shares: AtomicU64,
    read_hits: AtomicU64,
    read_misses: AtomicU64,
}

fn add(number: &mut AtomicU64, more: u64) {
    let number = number.get_mut();
    *number = number.wrapping_add(more);
}

impl Counters {
    /// The part that the calls of a session add to while they share the state.
    pub fn part(&self, session: u32) -> &CounterPart {
        &self.0[part_of(session)]
    }

    /// An object of so many bytes is in use from now on.
    pub fn lock(&mut self, bytes: u64) {
        add(&mut self.0[0].locked_bytes, bytes);
    }

    /// An object of so many bytes may be evicted from now on.
    pub fn unlock(&mut self, bytes: u64) {
        add(&mut self.0[0].locked_bytes, bytes.wrapping_neg());
    }

    /// A session took shares.
    pub fn take(&mut self, shares: u32) {
        add(&mut self.0[0].shares, shares.into());
    }

    /// A session returned shares.
    pub fn return_shares(&mut self, shares: u32) {
        add(&mut self.0[0].shares, u64::from(shares).wrapping_neg());
    }

    /// A reservation for reading asked for keys.
    pub fn read(&mut self, read: ReadCounts) {
        add(&mut self.0[0].read_hits, read.hits);
        add(&mut self.0[0].read_misses, read.misses);
    }

    /// Bytes of objects whose memory is in use.
    pub fn locked_bytes(&self) -> u64 {
        self.sum(|part| &part.locked_bytes)
    }

    /// Keys found by reads, and keys not found.
    pub fn reads(&self) -> (u64, u64) {
        (self.sum(|part| &part.read_hits), self.sum(|part| &part.read_misses))
    }

    /// Shares that sessions hold.
    pub fn shares(&self) -> u64 {
        self.sum(|part| &part.shares)
    }

    fn sum(&self, of: impl Fn(&CounterPart) -> &AtomicU64) -> u64 {
        self.0.iter().fold(0, |sum: u64, part| sum.wrapping_add(of(part).load(Ordering::Relaxed)))
    }
}

impl CounterPart {
    /// Shares were taken; so many bytes were taken into use.
    pub fn take(&self, shares: u64, locked: u64) {
        self.shares.fetch_add(shares, Ordering::Relaxed);
        self.locked_bytes.fetch_add(locked, Ordering::Relaxed);
    }

    /// A reservation for reading asked for keys.
    pub fn read(&self, read: ReadCounts) {
        self.read_hits.fetch_add(read.hits, Ordering::Relaxed);
        if read.misses > 0 {
            self.read_misses.fetch_add(read.misses, Ordering::Relaxed);
        }
    }

    /// Shares were returned; so many bytes became free to evict.
    pub fn return_shares(&self, shares: u64, unlocked: u64) {
        self.shares.fetch_sub(shares, Ordering::Relaxed);
        self.locked_bytes.fetch_sub(unlocked, Ordering::Relaxed);
    }
}
