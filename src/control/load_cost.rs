//! The time that loads from a backend take: a latency and a rate, fitted to the loads of late.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The weight of a measurement when the next is made.
const DECAY: f64 = 15.0 / 16.0;
/// After so long without a load an estimate counts half when tiers are compared, so that a backend that was slow is tried again.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// Measures loads from one backend.
#[derive(Default)]
pub struct LoadCost {
    sums: Mutex<Sums>,
}

/// Sums of bytes (x) and microseconds (y), the newest with weight 1.
#[derive(Clone, Copy, Default)]
struct Sums {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    newest: Option<Instant>,
}

/// The time of a load: a latency and a time for each byte.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LoadEstimate {
    /// Microseconds until the first byte.
    pub latency_us: f64,
    /// Microseconds for each byte.
    pub us_per_byte: f64,
}

impl LoadEstimate {
    /// Microseconds for so many bytes that are asked for together.
    pub fn us(&self, bytes: u64) -> f64 {
        self.latency_us + self.us_per_byte * bytes as f64
    }
}

impl LoadCost {
    /// Notes that `bytes` that were asked for together were there after `took`.
    pub fn note(&self, bytes: u64, took: Duration) {
        let (x, y) = (bytes as f64, took.as_secs_f64() * 1e6);
        let mut sums = self.sums.lock();
        let Sums { weight, x: sum_x, y: sum_y, xx, xy, .. } = *sums;
        *sums = Sums {
            weight: weight * DECAY + 1.0,
            x: sum_x * DECAY + x,
            y: sum_y * DECAY + y,
            xx: xx * DECAY + x * x,
            xy: xy * DECAY + x * y,
            newest: Some(Instant::now()),
        };
    }

    /// The line through the loads of late; none before the first.
    pub fn estimate(&self) -> Option<LoadEstimate> {
        let sums = *self.sums.lock();
        sums.newest.map(|_| sums.fit())
    }

    /// The share of its estimate that counts now, by its age; none before the first load.
    pub fn freshness(&self, now: Instant) -> Option<f64> {
        let newest = self.sums.lock().newest?;
        Some(0.5f64.powf(now.saturating_duration_since(newest).as_secs_f64() / HALF_LIFE.as_secs_f64()))
    }
}

impl Sums {
    /// Least squares, with neither part below zero.
    fn fit(&self) -> LoadEstimate {
        let (x, y) = (self.x / self.weight, self.y / self.weight);
        let (variance, covariance) = (self.xx / self.weight - x * x, self.xy / self.weight - x * y);
        // Loads of one size cannot tell latency from rate: all of it counts as rate.
        let steepest = if x > 0.0 { y / x } else { 0.0 };
        let us_per_byte = if variance > 0.01 * x * x { (covariance / variance).clamp(0.0, steepest) } else { steepest };
        LoadEstimate { latency_us: (y - us_per_byte * x).max(0.0), us_per_byte }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(estimate: LoadEstimate, latency_us: f64, us_per_byte: f64) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() <= 0.01 * b.max(1e-6);
        close(estimate.latency_us, latency_us) && close(estimate.us_per_byte, us_per_byte)
    }

    fn note(cost: &LoadCost, bytes: u64, us: u64) {
        cost.note(bytes, Duration::from_micros(us));
    }

    #[test]
    fn latency_and_rate_are_told_apart_by_loads_of_two_sizes() {
        let cost = LoadCost::default();
        assert_eq!(cost.estimate(), None);
        for _ in 0..4 {
            note(&cost, 1000, 500 + 100);
            note(&cost, 100_000, 500 + 10_000);
        }
        let estimate = cost.estimate().unwrap();
        assert!(near(estimate, 500.0, 0.1), "{estimate:?}");
        assert!((estimate.us(50_000) - 5500.0).abs() < 60.0);
    }

    #[test]
    fn loads_of_one_size_give_a_rate() {
        let cost = LoadCost::default();
        (0..9).for_each(|_| note(&cost, 4096, 4096));
        assert!(near(cost.estimate().unwrap(), 0.0, 1.0));
        // Whatever noise has it, nothing is below zero.
        note(&cost, 1 << 20, 10);
        let LoadEstimate { latency_us, us_per_byte } = cost.estimate().unwrap();
        assert!(latency_us >= 0.0 && us_per_byte >= 0.0);
    }

    #[test]
    fn new_loads_count_more_than_old_ones_and_an_old_estimate_counts_less() {
        let cost = LoadCost::default();
        (0..100).for_each(|_| note(&cost, 1000, 100_000));
        (0..100).for_each(|_| note(&cost, 1000, 100));
        let rate = cost.estimate().unwrap().us_per_byte;
        assert!(rate > 0.1 && rate < 0.5, "{rate}");
        let now = Instant::now();
        assert!(cost.freshness(now).unwrap() > 0.9);
        let later = cost.freshness(now + HALF_LIFE).unwrap();
        assert!(later > 0.4 && later < 0.51, "{later}");
    }
}
