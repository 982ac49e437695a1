//! The state of one backend, for people and for Prometheus.

use serde::Serialize;

/// One backend as statistics and health show it.
#[derive(Serialize, Debug)]
pub struct BackendReport {
    /// The number that `kvkeep_add_backend` gave.
    pub backend: u64,
    /// Its place among the tiers.
    pub tier: usize,
    /// The scheme of its URL.
    pub scheme: &'static str,
    /// Why it is not used now, if so.
    pub trouble: Option<String>,
    /// What an operator should know of it although it is used, if anything.
    pub note: Option<String>,
    /// Its requests failed in a row: it gets no more for a pause, then one that decides.
    pub open: bool,
    /// How often that began.
    pub breaker_opened: u64,
    /// The medium has less room than the capacity.
    pub short: bool,
    /// Objects that it has.
    pub objects: u64,
    /// Bytes of its objects.
    pub bytes: u64,
    /// Most bytes it may take, 0 for no bound of its own.
    pub capacity_bytes: u64,
    /// Objects that it has evicted.
    pub evictions: u64,
    /// Writes that it was asked for: the sum of the next five.
    pub writes_asked: u64,
    /// Objects that it stored.
    pub stores: u64,
    /// Objects that it had.
    pub stores_already: u64,
    /// Writes to it that were dropped.
    pub stores_dropped: u64,
    /// Writes to it of objects that were deleted first.
    pub writes_withdrawn: u64,
    /// Writes to it that have not ended.
    pub writes_pending: u64,
    /// Objects loaded from it.
    pub loads: u64,
    /// Their bytes.
    pub loaded_bytes: u64,
    /// Keys that prefetches asked it for, counted each time.
    pub asked_keys: u64,
    /// Of these, the keys that it had.
    pub found_keys: u64,
    /// Microseconds until the first byte of a load, by its loads of late.
    pub load_latency_us: u64,
    /// Bytes that it loads a second from then on; 0 where nothing was measured.
    pub load_bytes_per_s: u64,
    /// Pins of jobs on its objects: those may not be evicted.
    pub pins: u64,
}
