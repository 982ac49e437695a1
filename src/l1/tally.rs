//! What L1 counted, and how full it is.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{L1, State};

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
    pub refusals: u64,
    pub sessions_reclaimed: u64,
    pub shares_revoked: u64,
    pub writes_dropped: u64,
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

/// What calls that run side by side count together, on a cache line that nothing else is on.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Tally {
    pub locked_bytes: AtomicU64,
    pub shares: AtomicU64,
    pub read_hits: AtomicU64,
    pub read_misses: AtomicU64,
}

impl L1 {
    /// Objects waiting to be written to L2.
    pub fn writes_queued(&self) -> u64 {
        self.state.read().writes.len() as u64
    }

    /// What it counted, and how full it is.
    pub fn gauges(&self) -> (Counts, Gauges) {
        self.with(|state| (state.counts(), state.gauges()))
    }
}

impl State {
    fn counts(&self) -> Counts {
        let (hits, misses) = (&self.tally.read_hits, &self.tally.read_misses);
        Counts { read_hits: hits.load(Ordering::Relaxed), read_misses: misses.load(Ordering::Relaxed), ..self.counts }
    }

    pub(super) fn gauges(&self) -> Gauges {
        let policies: usize = self.pools.iter().map(|pool| pool.policy.lock().memory_bytes()).sum();
        Gauges {
            capacity_bytes: self.alloc.capacity(),
            used_bytes: self.alloc.used_bytes(),
            locked_bytes: self.tally.locked_bytes.load(Ordering::Relaxed),
            objects: self.ready,
            staged: self.staged,
            shares: self.tally.shares.load(Ordering::Relaxed),
            sessions: self.sessions.len() as u64,
            writes_queued: self.writes.len() as u64,
            memory_bytes: (policies + self.table.memory_bytes() + self.slots.memory_bytes() + self.alloc.memory_bytes())
                as u64,
        }
    }
}
