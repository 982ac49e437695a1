//! What L1 counted, and how full it is.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{L1, State};
use crate::error::{KVKEEP_ERR_QUOTA, Status};

/// What only grows.
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
}

/// What goes up and down.
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
pub(super) struct Read {
    /// Keys found that the request did not hold before.
    pub hits: u64,
    /// Keys not found. A copy counts none: it has its missing keys loaded by a job, which counts them.
    pub misses: u64,
}

/// On how many parts, each with cache lines of its own, calls that run side by side write what they tell the others.
pub(super) const PARTS: usize = 8;

/// That of a session, which few others are on.
pub(super) fn part_of(session: u32) -> usize {
    session as usize % PARTS
}

/// What calls that run side by side count, those of a session on a cache line that few others are on. Only the sums mean anything.
#[derive(Default)]
pub(super) struct Tally([Part; PARTS]);

/// A part of the sums, some of which may be below zero: all wraps.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Part {
    locked_bytes: AtomicU64,
    shares: AtomicU64,
    read_hits: AtomicU64,
    read_misses: AtomicU64,
}

fn add(number: &mut AtomicU64, more: u64) {
    let number = number.get_mut();
    *number = number.wrapping_add(more);
}

impl Tally {
    /// Where the calls of a session count, side by side with others.
    pub fn beside(&self, session: u32) -> &Part {
        &self.0[part_of(session)]
    }

    /// Memory was taken into use.
    pub fn lock(&mut self, bytes: u64) {
        add(&mut self.0[0].locked_bytes, bytes);
    }

    /// Memory became free to evict.
    pub fn unlock(&mut self, bytes: u64) {
        add(&mut self.0[0].locked_bytes, bytes.wrapping_neg());
    }

    /// Shares were taken.
    pub fn take(&mut self, shares: u32) {
        add(&mut self.0[0].shares, shares.into());
    }

    /// Shares were returned.
    pub fn give_back(&mut self, shares: u32) {
        add(&mut self.0[0].shares, u64::from(shares).wrapping_neg());
    }

    /// A reservation for reading asked for keys.
    pub fn read(&mut self, read: Read) {
        add(&mut self.0[0].read_hits, read.hits);
        add(&mut self.0[0].read_misses, read.misses);
    }

    /// Bytes in use.
    pub fn locked_bytes(&self) -> u64 {
        self.sum(|part| &part.locked_bytes)
    }

    fn sum(&self, of: impl Fn(&Part) -> &AtomicU64) -> u64 {
        self.0.iter().fold(0, |sum: u64, part| sum.wrapping_add(of(part).load(Ordering::Relaxed)))
    }
}

impl Part {
    /// Shares were taken; so many bytes were taken into use.
    pub fn take(&self, shares: u64, locked: u64) {
        self.shares.fetch_add(shares, Ordering::Relaxed);
        self.locked_bytes.fetch_add(locked, Ordering::Relaxed);
    }

    /// A reservation for reading asked for keys.
    pub fn read(&self, read: Read) {
        self.read_hits.fetch_add(read.hits, Ordering::Relaxed);
        if read.misses > 0 {
            self.read_misses.fetch_add(read.misses, Ordering::Relaxed);
        }
    }

    /// Shares were returned; so many bytes became free to evict.
    pub fn give_back(&self, shares: u64, unlocked: u64) {
        self.shares.fetch_sub(shares, Ordering::Relaxed);
        self.locked_bytes.fetch_sub(unlocked, Ordering::Relaxed);
    }
}

impl L1 {
    /// Objects waiting to be written to L2.
    pub fn writes_queued(&self) -> u64 {
        self.state.read().writes_waiting
    }

    /// What it counted.
    pub fn counts(&self) -> Counts {
        self.state.read().counts()
    }

    /// What it counted, and how full it is.
    pub fn gauges(&self) -> (Counts, Gauges) {
        self.with(|state| (state.counts(), state.gauges()))
    }
}

impl State {
    /// A reservation was refused for want of room.
    pub(super) fn count_refusal(&mut self, why: Status) {
        if why == KVKEEP_ERR_QUOTA {
            self.counts.refused_quota += 1;
        } else {
            self.counts.refused_memory += 1;
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            read_hits: self.tally.sum(|part| &part.read_hits),
            read_misses: self.tally.sum(|part| &part.read_misses),
            ..self.counts
        }
    }

    pub(super) fn gauges(&self) -> Gauges {
        let policies: usize = self.pools.iter().map(|pool| pool.policy.lock().memory_bytes()).sum();
        Gauges {
            capacity_bytes: self.alloc.capacity(),
            used_bytes: self.alloc.used_bytes(),
            locked_bytes: self.tally.locked_bytes(),
            objects: self.ready,
            staged: self.staged,
            shares: self.tally.sum(|part| &part.shares),
            sessions: self.sessions.len() as u64,
            writes_queued: self.writes_waiting,
            memory_bytes: (policies
                + self.touched.memory_bytes()
                + self.table.memory_bytes()
                + self.slots.memory_bytes()
                + self.alloc.memory_bytes()) as u64,
        }
    }
}
