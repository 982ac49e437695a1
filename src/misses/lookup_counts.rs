//! The keys that lookups in one space asked for: hits by tier, misses by reason.

use super::miss_report::{KVKEEP_MISS_REASONS_MAX, MissReason, MissReport};
use crate::abi::KVKEEP_TIERS_MAX;

/// Counts of one space, or of several together.
#[derive(Clone, Copy, Default, Debug)]
pub struct LookupCounts {
    /// Keys found, by the place of the tier.
    pub hits: [u64; KVKEEP_TIERS_MAX],
    /// Keys missed, by reason.
    pub misses: [u64; KVKEEP_MISS_REASONS_MAX],
    /// Of those evicted, by the place of the tier.
    pub evicted: [u64; KVKEEP_TIERS_MAX],
    /// Of those quarantined, by the place of the backend.
    pub quarantined: [u64; KVKEEP_TIERS_MAX],
    /// Misses that the sample stands for …
    pub sampled: u64,
    /// … and those of them that a cache without an end would have had.
    pub seen: u64,
}

impl LookupCounts {
    /// Counts a miss, for its reason and the place of the tier that this speaks of.
    pub fn miss(&mut self, reason: MissReason, place: usize) {
        self.misses[reason as usize] += 1;
        match reason {
            MissReason::KVKEEP_MISS_EVICTED => self.evicted[place] += 1,
            MissReason::KVKEEP_MISS_QUARANTINED => self.quarantined[place] += 1,
            _ => {}
        }
    }

    /// Adds the counts of another space.
    pub fn add(&mut self, other: &LookupCounts) {
        fn add<const N: usize>(sums: &mut [u64; N], more: &[u64; N]) {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        add(&mut self.hits, &other.hits);
        add(&mut self.misses, &other.misses);
        add(&mut self.evicted, &other.evicted);
        add(&mut self.quarantined, &other.quarantined);
        self.sampled += other.sampled;
        self.seen += other.seen;
    }

    /// As they cross the ABI, under the head of `before`.
    pub fn report(&self, before: &MissReport) -> MissReport {
        let (hits, misses) = (self.hits.iter().sum::<u64>(), self.misses.iter().sum::<u64>());
        let share = if self.sampled == 0 { 0.0 } else { self.seen as f64 / self.sampled as f64 };
        MissReport {
            struct_size: before.struct_size,
            abi_version: before.abi_version,
            asked: hits + misses,
            hits,
            misses,
            endless_hits: hits + (misses as f64 * share).round() as u64,
            tier_hits: self.hits,
            reasons: self.misses,
            evicted: self.evicted,
            quarantined: self.quarantined,
        }
    }
}
