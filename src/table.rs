//! Which slot of a tier holds a key: hash tables of slot numbers that can be asked without touching the slots.

use hashbrown::HashTable;

use crate::arena;

/// A table that is full looks at all its slots and moves them to one of twice the size, during some caller's call: a million of them
/// take a tenth of a second. Of so many tables each moves a little, and they do so one after another, as chance fills them.
const PARTS: usize = 256;

/// Slot numbers by the hashes of their keys.
pub struct Table {
    parts: Box<[HashTable<u32>; PARTS]>,
}

/// The part that holds a hash, chosen by bits that hashbrown makes nothing of: places come from the lowest, tags from the highest.
#[inline]
fn part(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

impl Table {
    /// Empty.
    pub fn new() -> Table {
        Table { parts: Box::new(std::array::from_fn(|_| HashTable::new())) }
    }

    /// Has the place of a slot number fetched, which is asked for soon.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.parts[part(hash)].find(hash, |id| {
            arena::prefetch(id);
            false
        });
    }

    /// A slot that very likely holds the key: seven bits of its hash are the same. The caller compares, and asks [`find`](Table::find)
    /// if it is another. Asking so for a batch first, and comparing after, lets the memory accesses of its keys overlap.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// The slot that holds the key, as `is` decides.
    #[inline]
    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.parts[part(hash)].find(hash, |&id| is(id)).copied()
    }

    /// Adds a slot whose key is not there. `rehash` gives the hash of a slot's key.
    pub fn insert(&mut self, hash: u64, id: u32, rehash: impl Fn(u32) -> u64) {
        self.parts[part(hash)].insert_unique(hash, id, |&id| rehash(id));
    }

    /// Takes a slot out, and says whether it was there.
    pub fn remove(&mut self, hash: u64, id: u32) -> bool {
        let entry = self.parts[part(hash)].find_entry(hash, |&other| other == id);
        entry.is_ok_and(|entry| {
            entry.remove();
            true
        })
    }

    /// All slots, in no order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.parts.iter().flatten().copied()
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.parts) + self.parts.iter().map(HashTable::allocation_size).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::hash::KeyHasher;
    use crate::key::Key;

    /// The hashes of so many keys, which are the slots' numbers.
    fn hashes(count: u32) -> Vec<u64> {
        let hasher = KeyHasher::new();
        let hash = |n: u32| {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&n.to_le_bytes());
            hasher.hash(&Key { hash, rank: 0, group: 0 })
        };
        (0..count).map(hash).collect()
    }

    #[test]
    fn what_is_in_it_is_found_and_nothing_else() {
        let hashes = hashes(60_000);
        let hash = |id: u32| hashes[id as usize];
        let mut table = Table::new();
        (0..50_000).for_each(|id| table.insert(hash(id), id, hash));
        (0..50_000).step_by(3).for_each(|id| assert!(table.remove(hash(id), id)));
        let stays = |id: u32| id < 50_000 && !id.is_multiple_of(3);
        for id in 0..60_000 {
            assert_eq!(table.find(hash(id), |other| other == id), stays(id).then_some(id));
        }
        assert!(!table.remove(hash(1), 2) && !table.remove(hash(0), 0));
        let mut ids: Vec<u32> = table.ids().collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq((0..50_000).filter(|&id| stays(id))));
    }

    #[test]
    fn slots_of_one_hash_are_told_apart() {
        let mut table = Table::new();
        (0..10).for_each(|id| table.insert(7, id, |_| 7));
        assert!(table.candidate(7).is_some_and(|id| id < 10));
        assert_eq!(table.candidate(7 | 1 << 60), None);
        assert_eq!(table.find(7, |id| id == 9), Some(9));
        assert!(table.remove(7, 4));
        assert_eq!(table.find(7, |id| id == 4), None);
    }

    #[test]
    fn no_insertion_moves_many() {
        let hashes = hashes(200_000);
        let mut table = Table::new();
        let mut most = 0;
        for (id, &hash) in (0..).zip(&hashes) {
            let moved = Cell::new(0);
            table.insert(hash, id, |id| {
                moved.set(moved.get() + 1);
                hashes[id as usize]
            });
            most = most.max(moved.get());
        }
        assert!((1..200_000 / 100).contains(&most), "{most} slots were moved at once");
    }
}
