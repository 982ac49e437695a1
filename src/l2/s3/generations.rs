//! A bounded map that forgets what was not used for long.

use hashbrown::HashMap;

use crate::key::ObjectKey;

/// Two maps: what is used goes into the young one; when that is full, the old one is dropped and the young one grows old.
pub struct Generations<V> {
    young: HashMap<ObjectKey, V>,
    old: HashMap<ObjectKey, V>,
    /// Most entries of each.
    most: usize,
    dropped: bool,
    /// What an entry weighs, and the sum of each map.
    weigh: fn(&V) -> u64,
    young_weight: u64,
    old_weight: u64,
}

impl<V: Copy> Generations<V> {
    /// With room for `most` entries, whose weights are summed up.
    pub fn new(most: usize, weigh: fn(&V) -> u64) -> Generations<V> {
        let (young, old, most) = (HashMap::new(), HashMap::new(), (most / 2).max(1));
        Generations { young, old, most, dropped: false, weigh, young_weight: 0, old_weight: 0 }
    }

    /// The value of a key, which is used now.
    pub fn get(&mut self, key: &ObjectKey) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(*value);
        }
        let value = *self.old.get(key)?;
        self.insert(*key, value);
        Some(value)
    }

    /// Sets the value of a key, and gives the one before. What is dropped for it is dropped silently.
    pub fn insert(&mut self, key: ObjectKey, value: V) -> Option<V> {
        let before = self.remove(&key);
        if self.young.len() >= self.most {
            self.dropped |= !self.old.is_empty();
            self.old = std::mem::take(&mut self.young);
            self.old_weight = std::mem::take(&mut self.young_weight);
        }
        self.young_weight += (self.weigh)(&value);
        self.young.insert(key, value);
        before
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<V> {
        if let Some(value) = self.young.remove(key) {
            self.young_weight -= (self.weigh)(&value);
            return Some(value);
        }
        let value = self.old.remove(key)?;
        self.old_weight -= (self.weigh)(&value);
        Some(value)
    }

    /// The number of entries, and the sum of their weights.
    pub fn size(&self) -> (u64, u64) {
        ((self.young.len() + self.old.len()) as u64, self.young_weight + self.old_weight)
    }

    /// Whether an entry was ever dropped for others.
    pub fn has_dropped(&self) -> bool {
        self.dropped
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &V)> {
        self.young.iter().chain(&self.old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, SpaceTag};

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let key = |rank| ObjectKey { space: SpaceTag([0; 16]), key: Key { hash: [0; 32], rank, group: 0 } };
        let mut map = Generations::new(8, |rank| u64::from(*rank));
        for rank in 0..100 {
            assert_eq!(map.insert(key(rank), rank), None);
            assert_eq!(map.get(&key(0)), Some(0), "after {rank}");
            let (count, sum) = (map.iter().count() as u64, map.iter().map(|(_, rank)| u64::from(*rank)).sum::<u64>());
            assert!(count <= 8 && map.size() == (count, sum));
        }
        assert_eq!((map.get(&key(99)), map.get(&key(5))), (Some(99), None));
        assert_eq!((map.insert(key(0), 7), map.remove(&key(0)), map.remove(&key(0))), (Some(0), Some(7), None));
    }
}
