//! The state of one backend, as it crosses the ABI.

use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use crate::abi::KVKEEP_MESSAGE_BYTES;

/// Length of the URL inside a backend's state, its NUL included.
pub const KVKEEP_URL_BYTES: usize = 512;

/// Whether a backend is used.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendHealth {
    /// It answers.
    KVKEEP_BACKEND_GOOD = 0,
    /// It is used, and `message` names what slows or bounds it.
    KVKEEP_BACKEND_NOTED = 1,
    /// It is not used until it has answered the requests that passed their deadline.
    KVKEEP_BACKEND_FENCED = 2,
    /// It fails, and may come back.
    KVKEEP_BACKEND_BAD = 3,
    /// So many of its requests failed in a row (`breaker_errors` of its URL) that it gets no more for a pause, then one that decides.
    /// Until then its objects are misses; or only its writes failed, and are dropped.
    KVKEEP_BACKEND_OPEN = 4,
}

/// The state of one backend. Counters only grow; gauges are marked. Of reads, `loaded_bytes / load_busy_us / 1000` is the rate in
/// GB/s while there was anything to read, `load_us / loads` the mean latency; so it is of writes. Its hit rate is
/// `found_keys / asked_keys`. Loading n bytes from it takes about `load_latency_us + n * 1000000 / load_bytes_per_s` microseconds,
/// as far as its loads of late can tell: an engine that computes them sooner need not load them.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BackendState {
    /// The number that `kvkeep_add_backend` gave.
    pub backend: u64,
    /// Its place, as in `tier_keys` of a result.
    pub place: u32,
    /// A kvkeep_backend_health.
    pub health: u32,
    /// Gauge: objects that it has, where it knows.
    pub objects: u64,
    /// Gauge: bytes that it has, where it knows.
    pub bytes: u64,
    /// Most bytes it may take; 0: no bound of its own.
    pub capacity_bytes: u64,
    /// Objects that it has evicted.
    pub evictions: u64,
    /// Objects loaded from it.
    pub loads: u64,
    /// Their bytes.
    pub loaded_bytes: u64,
    /// Microseconds from their requests until they were verified, summed.
    pub load_us: u64,
    /// Microseconds in which it had a load to do.
    pub load_busy_us: u64,
    /// Objects written to it.
    pub stores: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Microseconds from their requests until they were stored, summed.
    pub store_us: u64,
    /// Microseconds in which it had a write to do.
    pub store_busy_us: u64,
    /// Writes to it that were dropped.
    pub stores_dropped: u64,
    /// Gauge: writes to it that have not ended.
    pub writes_pending: u64,
    /// Keys that prefetches asked it for, counted each time.
    pub asked_keys: u64,
    /// Of these, the keys that it had.
    pub found_keys: u64,
    /// Gauge: microseconds until the first byte of a load is there. With `load_bytes_per_s` by its loads of late, the newest
    /// counting most; by its writes, as long as nothing was loaded from it.
    pub load_latency_us: u64,
    /// Gauge: bytes that it loads a second from then on; 0 where nothing was measured.
    pub load_bytes_per_s: u64,
    /// How often its circuit breakers opened: one for lookups and loads, one for writes.
    pub breaker_opened: u64,
    /// Always 0.
    pub reserved: [u64; 3],
    /// Its URL without passwords, keys and tokens, NUL-terminated UTF-8, cut where it is longer.
    pub url: [std::ffi::c_char; KVKEEP_URL_BYTES],
    /// NUL-terminated UTF-8: empty for GOOD, else the reason.
    pub message: [std::ffi::c_char; KVKEEP_MESSAGE_BYTES],
}

impl Default for BackendState {
    fn default() -> BackendState {
        BackendState::new_zeroed()
    }
}

const _: () = assert!(size_of::<BackendState>() == 832);
