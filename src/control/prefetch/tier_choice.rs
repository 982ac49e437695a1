//! Which of several backends an object is loaded from: the one from which its job's bytes come soonest, by what was measured.

use std::sync::Arc;
use std::time::Instant;

use crate::control::backends::{BackendList, BackendSlot};

/// A backend is preferred to one above it if it takes less than this part of its time …
const CHEAPER_SHARE: f64 = 0.5;
/// … and saves so many microseconds: less is lost in the noise of measuring.
const SAVING_MIN_US: f64 = 1000.0;

/// The costs of a job's loads, by backend. They stay as they were when the job was looked up, so that its answers are compared
/// alike.
#[derive(Default)]
pub struct TierCosts {
    /// Microseconds, by the place of the backend; 0 where nothing was measured.
    by_place: Vec<f64>,
}

impl TierCosts {
    /// The costs of about `objects` objects.
    pub fn of(backends: &BackendList, objects: usize) -> TierCosts {
        if backends.len() < 2 {
            return TierCosts::default();
        }
        let now = Instant::now();
        let bytes = backends.iter().filter_map(|slot| slot.object_bytes()).max().unwrap_or(0) * objects as u64;
        let places = backends.iter().map(|slot| slot.place).max().unwrap_or(0);
        let mut by_place = vec![0.0; places + 1];
        for slot in backends.iter() {
            by_place[slot.place] = slot.cost_us(bytes, now);
        }
        TierCosts { by_place }
    }

    fn of_place(&self, place: usize) -> f64 {
        self.by_place.get(place).copied().unwrap_or(0.0)
    }

    fn beats(&self, place: usize, other: usize) -> bool {
        let (cost, other) = (self.of_place(place), self.of_place(other));
        cost < other * CHEAPER_SHARE && other - cost >= SAVING_MIN_US
    }

    /// The backends in their order, but those that are cheaper than others before them.
    pub fn order<'a>(&self, backends: &'a BackendList) -> Vec<&'a Arc<BackendSlot>> {
        let mut order: Vec<&Arc<BackendSlot>> = Vec::with_capacity(backends.len());
        for slot in backends.iter() {
            let before = order.iter().position(|other| self.beats(slot.place, other.place));
            order.insert(before.unwrap_or(order.len()), slot);
        }
        order
    }

    /// Whether loads from `slot` are to replace those from the backend at `place`.
    pub fn is_cheaper(&self, slot: &BackendSlot, place: u8) -> bool {
        self.beats(slot.place, place.into())
    }

    /// Whether to ask `slot` by I/O for what the index of the backend at `place` has.
    pub fn is_worth_asking(&self, slot: &BackendSlot, place: u8) -> bool {
        self.of_place(slot.place) > 0.0 && self.beats(slot.place, place.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(by_place: &[f64]) -> TierCosts {
        TierCosts { by_place: by_place.to_vec() }
    }

    #[test]
    fn a_backend_is_preferred_only_where_it_saves_much() {
        let costs = costs(&[0.0, 4000.0, 1900.0, 2100.0, 0.0]);
        assert!(costs.beats(2, 1) && !costs.beats(3, 1) && !costs.beats(1, 2));
        // One that was never measured is tried, where there is something to be saved.
        assert!(costs.beats(4, 1));
        assert!(!costs_of_little().beats(2, 1));
    }

    fn costs_of_little() -> TierCosts {
        costs(&[0.0, 900.0, 1.0])
    }
}
