//! Which slot of a tier holds a key: hash tables of slot numbers that can be asked without touching the slots.

use crate::arena;

/// A table that is full moves all its slot numbers to a larger one, and looks at each slot for it, during some caller's call: a million
/// of them take a tenth of a second. Of so many tables each moves a little, and they do so one after another, as chance fills them.
const PARTS: usize = 256;

/// Places in a bucket.
const WAYS: usize = 12;
/// Slot numbers for each bucket, on average, from which on a part grows: one in twenty then is not in the bucket that it belongs to.
const FULL: usize = 10;

/// Slot numbers by the hashes of their keys.
pub struct SlotTable {
    parts: Box<[TablePart; PARTS]>,
}

#[derive(Default)]
struct TablePart {
    buckets: Vec<Bucket>,
    count: usize,
}

/// A cache line, which is mostly all that a lookup of a key touches. A slot number that does not fit goes to the next bucket with a
/// free place, and all buckets that it passes count it, so that a lookup goes on there (as in F14, Bronson and Shi 2019).
#[repr(align(64))]
#[derive(Clone, Default)]
struct Bucket {
    /// Bits of the keys' hashes, 0 where there is no key.
    tags: [u8; WAYS],
    passed: u32,
    ids: [u32; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// Parts, buckets and tags are chosen by bits of their own: a part by those below the tag's seven.
#[inline]
fn part(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

/// The tag of a hash, which is never 0.
#[inline]
fn tag(hash: u64) -> u8 {
    (hash >> 57) as u8 | 0x80
}

/// The highest bit of each byte of `tags` that is `tag`.
#[inline]
fn equal(tags: u64, tag: u8) -> u64 {
    const LOW: u64 = u64::MAX / 0xff * 0x7f;
    let other = tags ^ (u64::MAX / 0xff * u64::from(tag));
    !(((other & LOW) + LOW) | other | LOW)
}

impl Bucket {
    /// The places of a tag.
    #[inline]
    fn places(&self, tag: u8) -> impl Iterator<Item = usize> + use<> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.tags;
        let first = equal(u64::from_le_bytes([a, b, c, d, e, f, g, h]), tag);
        let last = equal(u64::from(u32::from_le_bytes([i, j, k, l])), tag) as u32;
        let mut marks = u128::from(last) << 64 | u128::from(first);
        std::iter::from_fn(move || {
            let place = marks.trailing_zeros() as usize / 8;
            marks &= marks.wrapping_sub(1);
            (place < WAYS).then_some(place)
        })
    }
}

impl TablePart {
    /// The bucket that a hash belongs to.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u64::from(hash as u32) * self.buckets.len() as u64) >> 32) as usize
    }

    /// The buckets that may have a hash, in order.
    #[inline]
    fn way(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let (home, count) = (self.home(hash), self.buckets.len());
        (home..count).chain(0..home)
    }

    /// Bucket and place of the slot number that `is` takes.
    #[inline]
    fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<(usize, usize)> {
        let tag = tag(hash);
        for at in self.way(hash) {
            let bucket = &self.buckets[at];
            if let Some(place) = bucket.places(tag).find(|&place| is(bucket.ids[place])) {
                return Some((at, place));
            }
            if bucket.passed == 0 {
                break;
            }
        }
        None
    }

    /// Adds a slot number to the first bucket that has a free place.
    #[inline]
    fn add(&mut self, hash: u64, id: u32) {
        for at in self.way(hash) {
            let bucket = &mut self.buckets[at];
            if let Some(place) = bucket.places(0).next() {
                bucket.tags[place] = tag(hash);
                bucket.ids[place] = id;
                self.count += 1;
                return;
            }
            bucket.passed += 1;
        }
    }

    fn remove(&mut self, hash: u64, id: u32) -> bool {
        let Some((found, place)) = self.find(hash, |other| other == id) else { return false };
        for at in self.way(hash).take_while(|&at| at != found) {
            self.buckets[at].passed -= 1;
        }
        self.buckets[found].tags[place] = 0;
        self.count -= 1;
        true
    }

    #[cold]
    fn grow(&mut self, rehash: impl Fn(u32) -> u64) {
        let more = self.buckets.len() + self.buckets.len() / 2 + 1;
        let before = std::mem::replace(self, TablePart { buckets: vec![Bucket::default(); more], count: 0 });
        before.ids().for_each(|id| self.add(rehash(id), id));
    }

    fn ids(&self) -> impl Iterator<Item = u32> {
        let taken = |bucket: &Bucket| bucket.tags.into_iter().zip(bucket.ids).filter(|(tag, _)| *tag != 0);
        self.buckets.iter().flat_map(taken).map(|(_, id)| id)
    }
}

impl SlotTable {
    /// A table without slots.
    pub fn new() -> SlotTable {
        SlotTable { parts: Box::new(std::array::from_fn(|_| TablePart::default())) }
    }

    /// Has the core fetch the bucket of a hash that is looked up soon.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let part = &self.parts[part(hash)];
        if let Some(bucket) = part.buckets.get(part.home(hash)) {
            arena::prefetch(bucket);
        }
    }

    /// A slot that very likely holds the key: seven bits of its hash are the same. The caller compares, and asks [`find`](SlotTable::find)
    /// if it is another. Asking so for a batch first, and comparing after, lets the memory accesses of its keys overlap.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// The slot that holds the key, as `is` decides.
    #[inline]
    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let part = &self.parts[part(hash)];
        part.find(hash, is).map(|(at, place)| part.buckets[at].ids[place])
    }

    /// Adds a slot whose key is not there. `rehash` gives the hash of a slot's key.
    pub fn insert(&mut self, hash: u64, id: u32, rehash: impl Fn(u32) -> u64) {
        let part = &mut self.parts[part(hash)];
        if part.count >= part.buckets.len() * FULL {
            part.grow(rehash);
        }
        part.add(hash, id);
    }

    /// Takes a slot out. True if it was there.
    pub fn remove(&mut self, hash: u64, id: u32) -> bool {
        self.parts[part(hash)].remove(hash, id)
    }

    /// All slots, in no order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.parts.iter().flat_map(TablePart::ids)
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let buckets: usize = self.parts.iter().map(|part| part.buckets.capacity()).sum();
        size_of_val(&*self.parts) + buckets * size_of::<Bucket>()
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
        let mut table = SlotTable::new();
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
        let mut table = SlotTable::new();
        (0..10).for_each(|id| table.insert(7, id, |_| 7));
        assert!(table.candidate(7).is_some_and(|id| id < 10));
        assert_eq!(table.candidate(7 | 1 << 60), None);
        assert_eq!(table.find(7, |id| id == 9), Some(9));
        assert!(table.remove(7, 4));
        assert_eq!(table.find(7, |id| id == 4), None);
    }

    proptest::proptest! {
        /// Few buckets and tags for many keys, so that most of them are not where they belong.
        #[test]
        fn crowded_buckets_lose_nothing(moves in proptest::collection::vec((0..400_u32, 0..3_u8), 1..1500)) {
            let hash = |id: u32| u64::from(id % 3) << 57 | u64::from(id % 5) << 29 | u64::from(id % 2);
            let (mut table, mut there) = (SlotTable::new(), std::collections::HashSet::new());
            for (id, what) in moves {
                if what > 0 && there.insert(id) {
                    table.insert(hash(id), id, hash);
                } else if what == 0 {
                    assert_eq!(table.remove(hash(id), id), there.remove(&id));
                }
                assert_eq!(table.find(hash(id), |other| other == id), there.contains(&id).then_some(id));
                match table.candidate(hash(id)) {
                    Some(other) => assert!(there.contains(&other) && tag(hash(other)) == tag(hash(id))),
                    None => assert!(!there.contains(&id)),
                }
            }
            assert_eq!(table.ids().collect::<std::collections::HashSet<_>>(), there);
            there.iter().for_each(|&id| assert!(table.remove(hash(id), id)));
            let part = &table.parts[0];
            assert!(part.count == 0 && part.buckets.iter().all(|bucket| bucket.passed == 0 && bucket.tags == [0; WAYS]));
        }
    }

    #[test]
    fn no_insertion_moves_many() {
        let hashes = hashes(200_000);
        let mut table = SlotTable::new();
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
