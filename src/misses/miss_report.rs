//! Hits and misses of lookups, as they cross the ABI.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::KVKEEP_TIERS_MAX;

/// Length of `reasons` in a kvkeep_miss_report. Later versions of the library may know more reasons than this one.
pub const KVKEEP_MISS_REASONS_MAX: usize = 16;

/// Why a lookup missed a key.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MissReason {
    /// It was never stored and never asked for since the cache was opened; or that was so long ago that it is forgotten.
    KVKEEP_MISS_NEVER_SEEN = 0,
    /// It was asked for before, and not committed since: the engine does not store it, or has not yet.
    KVKEEP_MISS_NOT_STORED = 1,
    /// A tier evicted it, the last one that had it: `evicted` has which. A backend whose evictions are not heard of (Redis, S3) counts
    /// here when it has lost what was stored in it, and so does one that was removed.
    KVKEEP_MISS_EVICTED = 2,
    /// It was not written to a backend because too many writes waited (`dropped_queue`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_QUEUE = 3,
    /// L1 evicted it before it was written (`dropped_evicted`).
    KVKEEP_MISS_DROPPED_EVICTED = 4,
    /// A backend refused it or failed to store it (`dropped_failed`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_FAILED = 5,
    /// The backends were fenced, failing or gone when it was to be written (`dropped_fenced`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_FENCED = 6,
    /// It was not written because writes took too long (`dropped_slow`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_SLOW = 7,
    /// Its bytes were found corrupt in a backend, which has put it aside: `quarantined` has which.
    KVKEEP_MISS_QUARANTINED = 8,
    /// An object of the same hash, rank and group is or was in another space: this one has another model, layout, tenant, chunk size
    /// or generation.
    KVKEEP_MISS_OTHER_SPACE = 9,
    /// The caller deleted it, cleared it, or had its space forgotten.
    KVKEEP_MISS_DELETED = 10,
    /// It was temporary, was read, and no backend had it.
    KVKEEP_MISS_TEMPORARY = 11,
    /// A backend that may have it was fenced, failing or late, or forgets the space, so that it was not asked or gave no answer.
    KVKEEP_MISS_UNREACHABLE = 12,
    /// A backend that may have it was not asked: an earlier key of the prefix was missing, and backends answer only by I/O; or
    /// `kvkeep_reserve_read`, which looks in L1 alone, came without a prefetch or after its shares were returned.
    KVKEEP_MISS_BEHIND_MISS = 13,
}

/// How lookups of a space, or of all, went since it was opened. The caller sets `struct_size` and `abi_version`.
///
/// A lookup is a prefetch or a `kvkeep_reserve_read`. Each counts a key once, unless its session holds it already, as `read_hits`,
/// `l2_hits` and `l2_misses` of the statistics do: `asked` is `hits` + `misses`, and `misses` the sum of `reasons`. A request that
/// prefetches keys and then reads those that are missing, too, counts them twice.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MissReport {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// Keys that lookups asked for.
    pub asked: u64,
    /// Of these, keys that a tier had.
    pub hits: u64,
    /// Of these, keys that none had.
    pub misses: u64,
    /// Estimate: keys that would have been hits in a cache without an end, which loses nothing but what is deleted. Exact while no more than 32,768
    /// keys were missed and lost, a sample of them from then on.
    pub endless_hits: u64,
    /// `hits` by tier: `[0]` L1, `[i]` the backend with place i.
    pub tier_hits: [u64; KVKEEP_TIERS_MAX],
    /// `misses` by reason: `[r]` those of the kvkeep_miss_reason r.
    pub reasons: [u64; KVKEEP_MISS_REASONS_MAX],
    /// Of the reason EVICTED, by the tier that evicted it.
    pub evicted: [u64; KVKEEP_TIERS_MAX],
    /// Of the reason QUARANTINED, by the backend that had it.
    pub quarantined: [u64; KVKEEP_TIERS_MAX],
}

const _: () = assert!(size_of::<MissReport>() == 360);
