//! A memory of fixed size: the last that is known of objects, by their keys. The oldest are forgotten.

use std::hint::black_box;

use crate::abi::KVKEEP_TIERS_MAX;
use crate::arena::prefetch_to_change;

/// Objects remembered under hashes that begin alike: one cache line.
const WAYS: usize = 8;
/// Words of a page of memory, at least.
const PAGE_WORDS: usize = 4096 / size_of::<u64>();
/// Bits of the place in an entry.
const PLACE_BITS: u32 = 3;

const _: () = assert!(KVKEEP_TIERS_MAX <= 1 << PLACE_BITS);

/// The last that is known of an object.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectFate {
    /// A lookup missed it, and nothing of it was heard since.
    Missed = 1,
    /// A backend has it, or had it when it was last heard of.
    Stored,
    /// A tier evicted it, the last one that had it.
    Evicted,
    /// It was not written, because too many writes waited.
    DroppedQueue,
    /// L1 evicted it before it was written.
    DroppedEvicted,
    /// A backend refused or failed to store it.
    DroppedFailed,
    /// The backends were fenced, failing or gone when it was to be written.
    DroppedFenced,
    /// Writes took too long for more of them.
    DroppedSlow,
    /// Its bytes were found corrupt.
    Quarantined,
    /// The caller deleted it, cleared L1, or had its space forgotten.
    Deleted,
    /// It was to be read once.
    Temporary,
}

const FATES: [ObjectFate; 11] = [
    ObjectFate::Missed,
    ObjectFate::Stored,
    ObjectFate::Evicted,
    ObjectFate::DroppedQueue,
    ObjectFate::DroppedEvicted,
    ObjectFate::DroppedFailed,
    ObjectFate::DroppedFenced,
    ObjectFate::DroppedSlow,
    ObjectFate::Quarantined,
    ObjectFate::Deleted,
    ObjectFate::Temporary,
];

impl ObjectFate {
    /// Whether it tells of no loss, so that it is forgotten first.
    fn is_weak(self) -> bool {
        matches!(self, ObjectFate::Missed | ObjectFate::Stored)
    }
}

/// Stands for an object: for its key, and for its space apart from that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FateName {
    /// Of the key, evenly spread.
    pub hash: u64,
    /// Other bits of the key.
    pub tag: u32,
    /// Of the space.
    pub space: u16,
}

/// What is known of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KnownKey {
    /// The fate of the object in its space, and the place of the tier that it speaks of.
    Here(ObjectFate, usize),
    /// Only an object of another space is known under this key.
    Elsewhere,
    /// Nothing.
    Nowhere,
}

/// The fates of at most so many objects.
pub(super) struct FateMemory {
    /// One word for each object, none is 0; in a bucket the newest loss first.
    words: Vec<u64>,
    /// The first word at the beginning of a cache line.
    first: usize,
    buckets: usize,
}

/// An object in a word: 32 bits of its key, 16 of its space, 8 for its fate and a place.
fn encode(name: FateName, fate: ObjectFate, place: usize) -> u64 {
    let place = place.min(KVKEEP_TIERS_MAX - 1) as u64;
    u64::from(name.tag) << 32 | u64::from(name.space) << 16 | (fate as u64) << PLACE_BITS | place
}

fn decode(word: u64) -> Option<(ObjectFate, usize)> {
    let fate = (word as u8 >> PLACE_BITS).checked_sub(1)?;
    Some((*FATES.get(usize::from(fate))?, word as usize % (1 << PLACE_BITS)))
}

fn space_of(word: u64) -> u16 {
    (word >> 16) as u16
}

fn is_weak(word: u64) -> bool {
    decode(word).is_none_or(|(fate, _)| fate.is_weak())
}

impl FateMemory {
    /// Remembers at most `objects`, a power of two and at least eight. Memory is touched as it is used.
    pub fn new(objects: usize) -> FateMemory {
        let buckets = (objects / WAYS).next_power_of_two();
        let words = vec![0; (buckets + 1) * WAYS];
        let first = words.as_ptr().align_offset(64).min(WAYS);
        FateMemory { words, first, buckets }
    }

    fn bucket(&self, hash: u64) -> std::ops::Range<usize> {
        let at = self.first + (hash as usize & (self.buckets - 1)) * WAYS;
        at..at + WAYS
    }

    /// Has the core's cache fetch the memory for a key, which is asked for soon.
    pub fn prefetch(&self, hash: u64) {
        prefetch_to_change(&self.words[self.bucket(hash).start]);
    }

    /// Touches a page of the memory, the one of this number, so that no caller waits for it. False beyond the last.
    pub fn touch(&mut self, page: usize) -> bool {
        let word = self.words.get_mut(page * PAGE_WORDS);
        word.map(|word| *word = black_box(*word)).is_some()
    }

    /// What is known of a key in its space, or else in others.
    pub fn find(&self, name: FateName) -> KnownKey {
        let mut known = KnownKey::Nowhere;
        for &word in &self.words[self.bucket(name.hash)] {
            if (word >> 32) as u32 == name.tag
                && let Some((fate, place)) = decode(word)
            {
                if space_of(word) == name.space {
                    return KnownKey::Here(fate, place);
                }
                // Of a key that lookups only missed there, nothing was there.
                if fate != ObjectFate::Missed {
                    known = KnownKey::Elsewhere;
                }
            }
        }
        known
    }

    /// Remembers the fate of an object in place of what was known of it. A loss has the oldest in its bucket forgotten, those first that
    /// tell of no loss; what tells of none has no loss forgotten.
    pub fn set(&mut self, name: FateName, fate: ObjectFate, place: usize) {
        let range = self.bucket(name.hash);
        let bucket = &mut self.words[range];
        let word = encode(name, fate, place);
        let is_same = |other: &u64| decode(*other).is_some() && (other ^ word) >> 16 == 0;
        let same = bucket.iter().position(is_same);
        if fate.is_weak() {
            let at = same.or_else(|| bucket.iter().position(|word| *word == 0));
            if let Some(at) = at.or_else(|| bucket.iter().rposition(|word| is_weak(*word))) {
                bucket[at] = word;
            }
            return;
        }
        let at = same.or_else(|| bucket.iter().rposition(|word| is_weak(*word))).unwrap_or(WAYS - 1);
        bucket.copy_within(..at, 1);
        bucket[0] = word;
    }

    /// Has the objects of a space, or of all, count as deleted.
    pub fn delete_space(&mut self, space: Option<u16>) {
        for word in &mut self.words {
            let was_there = decode(*word).is_some_and(|(fate, _)| fate != ObjectFate::Missed);
            if was_there && space.is_none_or(|space| space == space_of(*word)) {
                *word = *word >> 16 << 16 | (ObjectFate::Deleted as u64) << PLACE_BITS;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64, space: u16) -> FateName {
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        FateName { hash: hash ^ hash >> 32, tag: number as u32, space }
    }

    #[test]
    fn every_fate_and_place_reads_back() {
        let mut memory = FateMemory::new(1 << 10);
        for (number, fate) in FATES.into_iter().enumerate() {
            for place in 0..KVKEEP_TIERS_MAX {
                memory.set(name(number as u64, 7), fate, place);
                assert_eq!(memory.find(name(number as u64, 7)), KnownKey::Here(fate, place));
            }
        }
        assert_eq!(memory.find(name(99, 7)), KnownKey::Nowhere);
    }

    #[test]
    fn a_key_of_another_space_is_told_apart() {
        let mut memory = FateMemory::new(1 << 10);
        memory.set(name(1, 1), ObjectFate::Evicted, 0);
        memory.set(name(2, 1), ObjectFate::Missed, 0);
        assert_eq!(memory.find(name(1, 2)), KnownKey::Elsewhere);
        assert_eq!(memory.find(name(2, 2)), KnownKey::Nowhere);
        memory.set(name(1, 2), ObjectFate::Stored, 3);
        assert_eq!(memory.find(name(1, 2)), KnownKey::Here(ObjectFate::Stored, 3));
        memory.delete_space(Some(1));
        assert_eq!(memory.find(name(1, 1)), KnownKey::Here(ObjectFate::Deleted, 0));
        assert_eq!(memory.find(name(1, 2)), KnownKey::Here(ObjectFate::Stored, 3));
    }

    #[test]
    fn the_newest_losses_are_remembered_and_the_memory_does_not_grow() {
        let mut memory = FateMemory::new(1 << 10);
        let words = memory.words.len();
        for number in 0..10_000 {
            memory.set(name(number, 1), ObjectFate::Evicted, 0);
        }
        let known = |numbers: std::ops::Range<u64>| {
            numbers.filter(|number| memory.find(name(*number, 1)) == KnownKey::Here(ObjectFate::Evicted, 0)).count()
        };
        assert_eq!(memory.words.len(), words);
        assert!(known(0..10_000) <= 1 << 10);
        assert!(known(9_744..10_000) > 250, "{} of the newest 256", known(9_744..10_000));
        assert!(known(0..5_000) < 50, "{} of the oldest 5000", known(0..5_000));
    }

    #[test]
    fn misses_have_no_loss_forgotten() {
        let mut memory = FateMemory::new(WAYS);
        (0..6).for_each(|number| memory.set(name(number, 1), ObjectFate::Evicted, 0));
        (10..20).for_each(|number| memory.set(name(number, 1), ObjectFate::Missed, 0));
        assert!((0..6).all(|number| memory.find(name(number, 1)) == KnownKey::Here(ObjectFate::Evicted, 0)));
        assert_eq!(memory.find(name(19, 1)), KnownKey::Here(ObjectFate::Missed, 0));
        // And losses do forget misses.
        (6..8).for_each(|number| memory.set(name(number, 1), ObjectFate::Deleted, 0));
        assert!((0..6).all(|number| memory.find(name(number, 1)) == KnownKey::Here(ObjectFate::Evicted, 0)));
        memory.set(name(8, 1), ObjectFate::Deleted, 0);
        assert_eq!(memory.find(name(0, 1)), KnownKey::Nowhere);
    }
}
