//! The memory of what became of objects, and the reasons of misses that follow from it.

use parking_lot::Mutex;

use super::fate_memory::{FateMemory, FateName, KnownKey, ObjectFate};
use super::lookup_counts::LookupCounts;
use super::miss_report::MissReason;
use super::seen_sample::SeenSample;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::key::{ObjectKey, SpaceTag};

/// Bytes of L1 for each object whose fate is remembered, in eight bytes …
const L1_BYTES_EACH: u64 = 2048;
/// … but at least so many …
const REMEMBERED_MIN: u64 = 1 << 16;
/// … and at most so many.
const REMEMBERED_MAX: u64 = 1 << 20;
/// How many keys ahead the memory is fetched.
const AHEAD: usize = 16;
/// Keys in the sample.
const SAMPLE_MAX: usize = 1 << 15;

/// How an object left L1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftL1 {
    /// A backend has it.
    Stored,
    /// It was evicted, and no write of it was under way.
    Evicted,
    /// It was evicted before it was written.
    Unwritten,
    /// Its last share went.
    Temporary,
    /// The caller removed it.
    Deleted,
}

/// How a lookup asked for the keys that it missed.
#[derive(Clone, Copy, Default, Debug)]
pub struct MissContext {
    /// A backend was not asked, or gave no answer.
    pub unreachable: bool,
    /// Backends may not have been asked for keys after the first that is missing.
    pub in_order: bool,
    /// L1 alone was asked.
    pub l1_alone: bool,
}

impl MissContext {
    /// Of a read, which asks L1 and no backend.
    pub const READ: MissContext = MissContext { unreachable: false, in_order: false, l1_alone: true };
}

/// What is known of objects that L1 need not have. Its lock is taken under that of L1 and those of backends, and none after it.
pub struct MissedKeys {
    fingerprinter: Fingerprinter,
    memory: Mutex<KnownFates>,
}

struct KnownFates {
    fates: FateMemory,
    sample: SeenSample,
}

fn space_bits(space: &SpaceTag) -> u16 {
    space.number() as u16
}

fn name(space: &SpaceTag, fingerprint: Fingerprint) -> FateName {
    FateName { hash: fingerprint.hash, tag: fingerprint.low as u32, space: space_bits(space) }
}

impl KnownFates {
    fn set(&mut self, name: FateName, fate: ObjectFate, place: usize) {
        self.fates.set(name, fate, place);
        if fate == ObjectFate::Deleted {
            self.sample.forget(name);
        } else {
            self.sample.note(name);
        }
    }

    fn fate(&self, name: FateName) -> Option<ObjectFate> {
        match self.fates.find(name) {
            KnownKey::Here(fate, _) => Some(fate),
            KnownKey::Elsewhere | KnownKey::Nowhere => None,
        }
    }
}

impl MissedKeys {
    /// Nothing is known yet. The memory is in proportion to L1.
    pub fn new(fingerprinter: Fingerprinter, l1_bytes: u64) -> MissedKeys {
        let objects = (l1_bytes / L1_BYTES_EACH).clamp(REMEMBERED_MIN, REMEMBERED_MAX);
        let memory = KnownFates { fates: FateMemory::new(objects as usize), sample: SeenSample::new(SAMPLE_MAX) };
        MissedKeys { fingerprinter, memory: Mutex::new(memory) }
    }

    /// Touches the memory, page by page: a first touch costs a caller microseconds. Called once, by a background thread.
    pub fn prefault(&self) {
        let mut pages = 0..;
        while pages.next().is_some_and(|page| self.memory.lock().fates.touch(page)) {}
    }

    fn name(&self, object: &ObjectKey) -> FateName {
        name(&object.space, self.fingerprinter.fingerprint(&object.key))
    }

    /// The backend at `place` has an object.
    pub fn stored(&self, object: &ObjectKey, place: usize) {
        let name = self.name(object);
        self.memory.lock().set(name, ObjectFate::Stored, place);
    }

    /// The backend at `place` has an object no more; since a caller had its space forgotten, if `forgotten`.
    pub fn vanished(&self, object: &ObjectKey, place: usize, forgotten: bool) {
        let name = self.name(object);
        let mut memory = self.memory.lock();
        match memory.fate(name) {
            _ if forgotten => memory.set(name, ObjectFate::Deleted, place),
            // The reason was noted before.
            Some(ObjectFate::Deleted | ObjectFate::Quarantined) => {}
            _ => memory.set(name, ObjectFate::Evicted, place),
        }
    }

    /// An object in the backend at `place` is corrupt.
    pub fn quarantined(&self, object: &ObjectKey, place: usize) {
        let name = self.name(object);
        self.memory.lock().set(name, ObjectFate::Quarantined, place);
    }

    /// The caller deleted an object. Where no tier is known to have had it (`certain` is false), only if it was stored once.
    pub fn deleted(&self, object: &ObjectKey, certain: bool) {
        let name = self.name(object);
        let mut memory = self.memory.lock();
        if certain || memory.fate(name) == Some(ObjectFate::Stored) {
            memory.set(name, ObjectFate::Deleted, 0);
        }
    }

    /// The caller had the objects of a space forgotten, or all.
    pub fn forgotten(&self, space: Option<&SpaceTag>) {
        let mut memory = self.memory.lock();
        memory.fates.delete_space(space.map(space_bits));
        memory.sample.forget_space(space.map(space_bits));
    }

    /// The write of an object to the backend at `place` has ended like this, or, for 0, that to every backend. One that another backend has
    /// is not lost by it.
    pub fn write_ended(&self, object: &ObjectKey, fate: ObjectFate, place: usize) {
        let name = self.name(object);
        let mut memory = self.memory.lock();
        if fate == ObjectFate::Stored || memory.fate(name) != Some(ObjectFate::Stored) {
            memory.set(name, fate, place);
        }
    }

    /// An object leaves L1. Called under L1's lock.
    pub fn left_l1(&self, space: &SpaceTag, fingerprint: Fingerprint, how: LeftL1) {
        let name = name(space, fingerprint);
        let mut memory = self.memory.lock();
        let known = memory.fates.find(name);
        match how {
            LeftL1::Stored => {
                let place = if let KnownKey::Here(ObjectFate::Stored, place) = known { place } else { 1 };
                memory.set(name, ObjectFate::Stored, place);
            }
            LeftL1::Evicted => match known {
                KnownKey::Here(
                    fate @ (ObjectFate::DroppedQueue
                    | ObjectFate::DroppedFailed
                    | ObjectFate::DroppedFenced
                    | ObjectFate::DroppedSlow),
                    place,
                ) => memory.set(name, fate, place),
                _ => memory.set(name, ObjectFate::Evicted, 0),
            },
            LeftL1::Unwritten => memory.set(name, ObjectFate::DroppedEvicted, 0),
            LeftL1::Temporary => memory.set(name, ObjectFate::Temporary, 0),
            LeftL1::Deleted => memory.set(name, ObjectFate::Deleted, 0),
        }
    }

    /// Counts keys of a space that a lookup missed, in its order, by reason. `is_elsewhere` looks for a key in the other spaces of L1.
    /// Called under L1's lock.
    pub fn count_misses(
        &self,
        space: &SpaceTag,
        missed: &[Fingerprint],
        context: MissContext,
        is_elsewhere: impl Fn(Fingerprint) -> bool,
        counts: &mut LookupCounts,
    ) {
        let mut memory = self.memory.lock();
        // Behind a key that was never there none can be: its hash is that of all tokens before it, too.
        let mut is_behind = false;
        missed.iter().take(AHEAD).for_each(|fingerprint| memory.fates.prefetch(fingerprint.hash));
        for (at, &fingerprint) in missed.iter().enumerate() {
            if let Some(ahead) = missed.get(at + AHEAD) {
                memory.fates.prefetch(ahead.hash);
            }
            let name = name(space, fingerprint);
            let (reason, place) = reason(memory.fates.find(name), context, is_behind, || is_elsewhere(fingerprint));
            counts.miss(reason, place);
            if let Some((weight, seen)) = memory.sample.miss(name) {
                counts.sampled += weight;
                counts.seen += if seen { weight } else { 0 };
            }
            let is_new = reason == MissReason::KVKEEP_MISS_NEVER_SEEN;
            if is_new {
                memory.fates.set(name, ObjectFate::Missed, 0);
            }
            if at == 0 {
                is_behind = context.in_order && !is_new && reason != MissReason::KVKEEP_MISS_NOT_STORED;
            }
        }
    }
}

/// The reason of a miss, and the place of the tier that it speaks of.
fn reason(
    known: KnownKey,
    context: MissContext,
    is_behind: bool,
    is_elsewhere: impl FnOnce() -> bool,
) -> (MissReason, usize) {
    use MissReason::*;
    match known {
        KnownKey::Here(ObjectFate::Stored, _) | KnownKey::Nowhere if context.unreachable => {
            (KVKEEP_MISS_UNREACHABLE, 0)
        }
        KnownKey::Here(ObjectFate::Stored, _) if is_behind || context.l1_alone => (KVKEEP_MISS_BEHIND_MISS, 0),
        KnownKey::Here(ObjectFate::Stored | ObjectFate::Evicted, place) => (KVKEEP_MISS_EVICTED, place),
        KnownKey::Here(ObjectFate::Missed, _) => (KVKEEP_MISS_NOT_STORED, 0),
        KnownKey::Here(ObjectFate::DroppedQueue, _) => (KVKEEP_MISS_DROPPED_QUEUE, 0),
        KnownKey::Here(ObjectFate::DroppedEvicted, _) => (KVKEEP_MISS_DROPPED_EVICTED, 0),
        KnownKey::Here(ObjectFate::DroppedFailed, _) => (KVKEEP_MISS_DROPPED_FAILED, 0),
        KnownKey::Here(ObjectFate::DroppedFenced, _) => (KVKEEP_MISS_DROPPED_FENCED, 0),
        KnownKey::Here(ObjectFate::DroppedSlow, _) => (KVKEEP_MISS_DROPPED_SLOW, 0),
        KnownKey::Here(ObjectFate::Quarantined, place) => (KVKEEP_MISS_QUARANTINED, place),
        KnownKey::Here(ObjectFate::Deleted, _) => (KVKEEP_MISS_DELETED, 0),
        KnownKey::Here(ObjectFate::Temporary, _) => (KVKEEP_MISS_TEMPORARY, 0),
        KnownKey::Elsewhere => (KVKEEP_MISS_OTHER_SPACE, 0),
        KnownKey::Nowhere if is_elsewhere() => (KVKEEP_MISS_OTHER_SPACE, 0),
        KnownKey::Nowhere if is_behind => (KVKEEP_MISS_BEHIND_MISS, 0),
        KnownKey::Nowhere => (KVKEEP_MISS_NEVER_SEEN, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::misses::miss_report::MissReport;

    const SPACE: SpaceTag = SpaceTag([3; 16]);

    struct Books {
        misses: MissedKeys,
        counts: LookupCounts,
    }

    impl Books {
        fn new() -> Books {
            Books { misses: MissedKeys::new(Fingerprinter::of_process(), 0), counts: LookupCounts::default() }
        }

        fn fingerprint(&self, number: u32) -> Fingerprint {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&number.to_le_bytes());
            self.misses.fingerprinter.fingerprint(&Key { hash, rank: 0, group: 0 })
        }

        fn lose(&self, numbers: std::ops::Range<u32>) {
            numbers.for_each(|number| self.misses.left_l1(&SPACE, self.fingerprint(number), LeftL1::Evicted));
        }

        /// Misses keys, and gives those of them that count as evicted and as never seen.
        fn miss(&mut self, numbers: std::ops::Range<u32>) -> (u64, u64) {
            let missed: Vec<Fingerprint> = numbers.map(|number| self.fingerprint(number)).collect();
            let before = self.counts.misses;
            self.misses.count_misses(&SPACE, &missed, MissContext::default(), |_| false, &mut self.counts);
            let by = |reason: MissReason| self.counts.misses[reason as usize] - before[reason as usize];
            (by(MissReason::KVKEEP_MISS_EVICTED), by(MissReason::KVKEEP_MISS_NEVER_SEEN))
        }
    }

    #[test]
    fn beyond_its_bound_the_oldest_losses_count_as_never_seen() {
        let mut books = Books::new();
        const LOST: u32 = 4 * REMEMBERED_MIN as u32;
        books.lose(0..LOST);
        let newest = books.miss(LOST - 10_000..LOST);
        assert!(newest.0 >= 9_800 && newest.0 + newest.1 == 10_000, "{newest:?}");
        let oldest = books.miss(0..10_000);
        assert!(oldest.1 >= 9_800 && oldest.0 + oldest.1 == 10_000, "{oldest:?}");
    }

    #[test]
    fn beyond_the_sample_the_endless_cache_is_estimated_within_two_percent() {
        let mut books = Books::new();
        const LOST: u32 = 4 * SAMPLE_MAX as u32;
        books.lose(0..LOST);
        // Two of three were there once.
        for first in (0..LOST).step_by(1024) {
            books.miss(first..first + 1024);
            books.miss(LOST + first / 2..LOST + first / 2 + 512);
        }
        let report = books.counts.report(&MissReport::default());
        let (estimate, truth) = (report.endless_hits as f64 / report.asked as f64, 2.0 / 3.0);
        assert_eq!(report.asked, u64::from(LOST) * 3 / 2);
        assert!((estimate - truth).abs() < 0.02, "{estimate}");
    }

    #[test]
    fn a_deletion_is_no_loss_and_its_reason_stays() {
        let mut books = Books::new();
        let object = ObjectKey { space: SPACE, key: Key { hash: [0; 32], rank: 0, group: 0 } };
        books.misses.stored(&object, 2);
        books.misses.deleted(&object, false);
        books.misses.vanished(&object, 2, false);
        books.miss(0..1);
        assert_eq!(books.counts.misses[MissReason::KVKEEP_MISS_DELETED as usize], 1);
        assert_eq!(books.counts.seen, 0);
        // Stored anew, it may be lost anew.
        books.misses.stored(&object, 2);
        books.misses.vanished(&object, 2, false);
        assert_eq!(books.miss(0..1), (1, 0));
        assert_eq!(books.counts.evicted[2], 1);
        // A key that nobody knows is not deleted by being named.
        let unknown = ObjectKey { space: SPACE, key: Key { hash: [9; 32], rank: 0, group: 0 } };
        books.misses.deleted(&unknown, false);
        assert_eq!(books.misses.memory.lock().fate(books.misses.name(&unknown)), None);
    }
}
