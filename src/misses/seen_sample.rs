//! A sample of the keys that were ever there or asked for: of the misses in it, those of such keys would be hits of a cache without an
//! end.
//!
//! It is a spatial sample as in SHARDS (Waldspurger, Park, Garthwaite and Ahmad, "Efficient MRC Construction with SHARDS", FAST 2015), of
//! fixed size: the keys whose hashes are below a threshold, which is halved whenever they are too many.

use hashbrown::HashSet;

use super::fate_memory::FateName;

/// Keys in the sample, at most so many.
pub(super) struct SeenSample {
    seen: HashSet<FateName>,
    most: usize,
    /// The highest hash that is in the sample.
    highest: u64,
}

impl SeenSample {
    /// Every key is in the sample until there are more than `most`.
    pub fn new(most: usize) -> SeenSample {
        SeenSample { seen: HashSet::with_capacity(most + 1), most, highest: u64::MAX }
    }

    fn has_room_for(&self, name: FateName) -> bool {
        name.hash <= self.highest
    }

    /// Notes an object that a cache without an end would have from now on. True if it was noted before.
    pub fn note(&mut self, name: FateName) -> bool {
        if !self.has_room_for(name) {
            return false;
        }
        let again = !self.seen.insert(name);
        while self.seen.len() > self.most {
            self.highest /= 2;
            let highest = self.highest;
            self.seen.retain(|name| name.hash <= highest);
        }
        again
    }

    /// Notes an object that a lookup missed. None if it is not in the sample; else how many keys it stands for, and whether it was noted
    /// before.
    pub fn miss(&mut self, name: FateName) -> Option<(u64, bool)> {
        let weight = (u64::MAX / self.highest).max(1);
        self.has_room_for(name).then(|| (weight, self.note(name)))
    }

    /// Forgets an object that was deleted.
    pub fn forget(&mut self, name: FateName) {
        self.seen.remove(&name);
    }

    /// Forgets the objects of a space, or of all.
    pub fn forget_space(&mut self, space: Option<u16>) {
        self.seen.retain(|name| space.is_some_and(|space| space != name.space));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> FateName {
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        FateName { hash: hash ^ hash >> 32, tag: number as u32, space: 1 }
    }

    #[test]
    fn every_key_is_in_a_sample_that_is_not_full() {
        let mut sample = SeenSample::new(100);
        for number in 0..100 {
            assert_eq!(sample.miss(name(number)), Some((1, false)));
            assert_eq!(sample.miss(name(number)), Some((1, true)));
        }
        sample.forget(name(5));
        assert_eq!(sample.miss(name(5)), Some((1, false)));
        sample.forget_space(Some(2));
        assert_eq!(sample.miss(name(5)), Some((1, true)));
        sample.forget_space(None);
        assert_eq!(sample.miss(name(5)), Some((1, false)));
    }

    #[test]
    fn a_full_sample_estimates_within_two_percent() {
        let mut sample = SeenSample::new(1 << 12);
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (random >> 33) % below
        };
        let (mut asked, mut again, mut seen, mut truly) = (0, 0, HashSet::new(), 0);
        const ASKS: u64 = 400_000;
        for _ in 0..ASKS {
            // Half of them from a small set, so that some keys are far likelier than others.
            let number = if next(2) == 0 { next(20_000) } else { next(400_000) };
            truly += u64::from(!seen.insert(number));
            if let Some((weight, seen)) = sample.miss(name(number)) {
                asked += weight;
                again += if seen { weight } else { 0 };
            }
            assert!(sample.seen.len() <= 1 << 12);
        }
        let (estimate, truth) = (again as f64 / asked as f64, truly as f64 / ASKS as f64);
        assert!((estimate - truth).abs() < 0.02, "{estimate} is not {truth}");
        assert!((asked as f64 / ASKS as f64 - 1.0).abs() < 0.1, "{asked} stand for {ASKS}");
    }
}
