//! Counters and latency histograms that any thread may add to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::abi::{Histogram, KVKEEP_HISTOGRAM_BUCKETS};
use crate::write_waits::WriteWaits;

/// A counter that any thread may add to.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n` to the count.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes `n` away, of a count that also falls.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// The count as it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A latency histogram that any thread may add to.
#[derive(Default)]
pub struct LatencyMeter {
    count: Count,
    sum_us: Count,
    buckets: [Count; KVKEEP_HISTOGRAM_BUCKETS],
}

impl LatencyMeter {
    /// Adds one latency to its bucket.
    pub fn add(&self, latency: Duration) {
        let us = latency.as_micros() as u64;
        let bucket = (64 - us.saturating_sub(1).leading_zeros()) as usize * usize::from(us > 1);
        self.buckets[bucket.min(KVKEEP_HISTOGRAM_BUCKETS - 1)].add(1);
        self.sum_us.add(us);
        self.count.add(1);
    }

    /// A copy of the buckets, as the C ABI has them.
    pub fn get(&self) -> Histogram {
        let buckets = std::array::from_fn(|i| self.buckets[i].get());
        Histogram { count: self.count.get(), sum_us: self.sum_us.get(), buckets }
    }
}

/// The counters of the control layer; the meaning of each stands in the header of the C ABI.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Meters {
    pub clients: Count,
    pub clients_lost: Count,
    pub jobs_reclaimed: Count,
    pub jobs_submitted: Count,
    pub jobs_completed: Count,
    pub jobs_cancelled: Count,
    pub prefetch_hit_chunks: Count,
    pub prefetch_asked_chunks: Count,
    pub saved_tokens: Count,
    pub saved_bytes: Count,
    pub l1_hits: Count,
    pub l2_hits: Count,
    pub l2_misses: Count,
    pub loads: Count,
    pub loaded_bytes: Count,
    pub load_failures: Count,
    pub corruptions: Count,
    pub backend_timeouts: Count,
    pub stores: Count,
    pub stored_bytes: Count,
    pub stores_already: Count,
    pub store_retries: Count,
    pub writes_asked: Count,
    /// Taken from L1's queue and not ended.
    pub writes_under_way: Count,
    /// Since when these wait.
    pub write_waits: WriteWaits,
    pub writes_withdrawn: Count,
    pub dropped_failed: Count,
    pub dropped_fenced: Count,
    pub dropped_slow: Count,
    pub dropped_closed: Count,
    pub deletions_dropped: Count,
    pub uses_dropped: Count,
    pub registrations_refused: Count,
    pub memlock_refused: Count,
    pub lookup_latency: LatencyMeter,
    pub prefetch_latency: LatencyMeter,
    pub load_latency: LatencyMeter,
    pub store_latency: LatencyMeter,
    pub call_latency: LatencyMeter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_lands_in_the_first_bucket_that_holds_it() {
        let latency = LatencyMeter::default();
        for us in [0, 1, 2, 3, 4, 5, 1 << 24, 1 << 40] {
            latency.add(Duration::from_micros(us));
        }
        let histogram = latency.get();
        assert_eq!(histogram.buckets[..4], [2, 1, 2, 1]);
        assert_eq!(histogram.buckets[24..], [1, 1]);
        assert_eq!(histogram.count, 8);
    }
}
