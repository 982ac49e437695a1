//! The numbers that L1 counts.

use crate::error::{KVKEEP_ERR_QUOTA, Status};

/// Numbers that only grow.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub read_hits: u64,
    pub read_misses: u64,
    pub saved_tokens: u64,
    pub saved_bytes: u64,
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

    /// A reservation for reading asked for keys of a space with so many tokens a chunk.
    pub(super) fn read(&mut self, read: ReadCounts, chunk_tokens: u32) {
        self.read_hits += read.hits;
        self.read_misses += read.misses;
        self.saved_bytes += read.bytes;
        self.saved_tokens += read.chunks * u64::from(chunk_tokens);
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
    /// Bytes of these.
    pub bytes: u64,
    /// Of these, the keys that stand for their chunks: those of rank 0 and group 0.
    pub chunks: u64,
    /// Keys not found. A copy counts none: it has its missing keys loaded by a job, which counts them.
    pub misses: u64,
}

/// What all sessions have in use together.
#[derive(Default)]
pub(super) struct InUse {
    /// Bytes of objects whose memory is in use.
    pub locked_bytes: u64,
    /// Shares that sessions hold.
    pub shares: u64,
}

impl InUse {
    /// An object of so many bytes is in use from now on.
    pub fn lock(&mut self, bytes: u64) {
        self.locked_bytes += bytes;
    }

    /// An object of so many bytes may be evicted from now on.
    pub fn unlock(&mut self, bytes: u64) {
        self.locked_bytes -= bytes;
    }
}
