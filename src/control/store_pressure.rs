//! Back-pressure of one backend: while its writes take too long, new ones are dropped.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The part of a new latency in the mean.
const NEW_SHARE: f64 = 0.125;

/// Bounds the latency of writes to one backend.
pub struct StorePressure {
    latency_max: Option<Duration>,
    state: Mutex<PressureState>,
}

#[derive(Default)]
struct PressureState {
    under_way: u64,
    mean_s: f64,
    /// When a write ended, or began while none was under way.
    moved: Option<Instant>,
}

impl StorePressure {
    /// New writes are dropped while the others take more than `latency_max`.
    pub fn new(latency_max: Option<Duration>) -> StorePressure {
        StorePressure { latency_max, state: Mutex::default() }
    }

    /// Whether a write may begin. While others take too long, one at a time may: it tells whether they still do.
    pub fn admits(&self, now: Instant) -> bool {
        let Some(most) = self.latency_max else { return true };
        let state = self.state.lock();
        let stalled = state.moved.is_some_and(|moved| now.saturating_duration_since(moved) > most);
        state.under_way == 0 || (state.mean_s <= most.as_secs_f64() && !stalled)
    }

    /// A write begins.
    pub fn begin(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.under_way == 0 {
            state.moved = Some(now);
        }
        state.under_way += 1;
    }

    /// It ended, after `took`.
    pub fn end(&self, now: Instant, took: Duration) {
        let mut state = self.state.lock();
        state.under_way = state.under_way.saturating_sub(1);
        state.mean_s += (took.as_secs_f64() - state.mean_s) * NEW_SHARE;
        state.moved = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(10);

    #[test]
    fn while_writes_take_long_one_at_a_time_may_begin() {
        let (pressure, now) = (StorePressure::new(Some(MOST)), Instant::now());
        assert!(pressure.admits(now));
        pressure.begin(now);
        assert!(pressure.admits(now + MOST) && !pressure.admits(now + 2 * MOST), "none ended for so long");
        (0..20).for_each(|_| pressure.begin(now));
        (0..20).for_each(|_| pressure.end(now, 3 * MOST));
        assert!(!pressure.admits(now));
        pressure.end(now, 3 * MOST);
        assert!(pressure.admits(now), "none is under way");
        for _ in 0..40 {
            pressure.begin(now);
            pressure.end(now, MOST / 10);
        }
        pressure.begin(now);
        assert!(pressure.admits(now));
    }

    #[test]
    fn without_a_bound_all_may_begin() {
        let (pressure, now) = (StorePressure::new(None), Instant::now());
        (0..9).for_each(|_| pressure.begin(now));
        assert!(pressure.admits(now + 1000 * MOST));
    }
}
