//! What L1 knows of one object: where its bytes lie, its state, and who holds it.

use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::alloc::Block;
use super::detail::{Detail, Mention};
use crate::chunked::Chunked;
use crate::fingerprint::Fingerprint;
use crate::hash::KeyHasher;
use crate::key::Key;
use crate::policy::Meta;

/// No slot.
pub const NONE: u32 = u32::MAX;

const SESSION_BITS: u32 = 20;
const HELD_BITS: u32 = 24;
const SIZE_HIGH_BITS: u32 = 6;
const HELD_SHIFT: u32 = 64 - SESSION_BITS - HELD_BITS;
const SESSION_SHIFT: u32 = 64 - SESSION_BITS;
const SIZE_HIGH_SHIFT: u32 = HELD_SHIFT - SIZE_HIGH_BITS;

const SIZE_HIGH: u64 = (1 << SIZE_HIGH_BITS) - 1;

/// No session. Sessions' indexes are below.
pub const NOBODY: u32 = (1 << SESSION_BITS) - 1;
/// Most shares of one object.
pub const SHARES_MAX: u32 = (1 << HELD_BITS) - 1;
/// Most bytes of one object.
pub const SIZE_MAX: u64 = (1 << (32 + SIZE_HIGH_BITS)) - 1;
/// Most uses that are counted.
pub const USES_MAX: u32 = u16::MAX as u32;

/// The unit of retention's end, coarse so that 32 bits last for years.
pub const RETAIN_MS: u64 = 64;

/// Flags of a slot, as many as there are bits for.
pub type Flags = u16;
/// Dropped when its last share is returned.
pub const TEMPORARY: Flags = 1;
/// Not in the table any more; freed when nothing uses its memory.
pub const HIDDEN: Flags = 2;
/// A backend has it, as far as L1 knows.
pub const STORED: Flags = 4;
/// Waiting to be written to L2, or being written.
pub const QUEUED: Flags = 8;
/// Passed over as a victim because it was `QUEUED`.
pub const PARKED: Flags = 16;
/// To be evicted once it is written.
pub const LEAVING: Flags = 32;
/// Sessions beside its holder have shares of it.
pub const LISTED: Flags = 64;
/// Transfers of the library run on its bytes.
pub const BUSY: Flags = 128;
/// Reserved and not committed: only its writer knows of it.
pub const STAGING: Flags = 256;
/// Committed. A slot that is neither this nor `STAGING` is free and names nothing.
pub const READY: Flags = 512;
/// Its space was forgotten after it was staged: it is not committed.
pub const FORGOTTEN: Flags = 1024;
/// Of a temporary object: a reader has returned shares of it.
pub const READ: Flags = 2048;
/// A backend had it and lost it: it is to be written again before it is evicted.
pub const LOST: Flags = 4096;
/// Writing it was given up: it is not tried again.
pub const GIVEN_UP: Flags = 8192;
/// Together with `QUEUED`, which nothing given up is: it was taken from the queue, and the writer counts what becomes of it.
pub const WRITING: Flags = GIVEN_UP;

const FLAGS: u64 = (1 << SIZE_HIGH_SHIFT) - 1;
const HELD: u64 = (SHARES_MAX as u64) << HELD_SHIFT;
/// What of `word` keeps an object's memory from being evicted.
const LOCKS: u64 = HELD | (LISTED | BUSY | STAGING) as u64;

/// What a reading looks at, on half a cache line: of a hundred thousand objects, that is what stays in a core's share of the caches,
/// where the keys themselves would not. What is atomic may change in calls that run side by side (`beside.rs`), all else in one that is
/// alone.
#[repr(C, align(32))]
#[derive(Debug)]
pub struct Slot {
    fingerprint_low: u64,
    /// From the top: its holder, the holder's shares, the upper bits of its size, flags. Calls side by side change the first two.
    word: AtomicU64,
    /// Where its bytes begin in the arena, in the allocator's units.
    pub start: u32,
    size_low: u32,
    /// When the first of its present shares was taken, in milliseconds of the cache's clock, wrapping.
    pub since_ms: AtomicU32,
    uses: AtomicU16,
    fingerprint_high: u16,
}

const _: () = assert!(size_of::<Slot>() == 32);

/// What a slot said of its holder, its flags and the upper bits of its size at one moment.
#[derive(Clone, Copy)]
pub struct Word(u64);

impl Word {
    /// The session (by index) that used the object last, or that stages it, and its shares.
    #[inline]
    pub fn holder(self) -> (u32, u32) {
        ((self.0 >> SESSION_SHIFT) as u32, (self.0 >> HELD_SHIFT) as u32 & SHARES_MAX)
    }

    /// Shares of a session, if it is the holder.
    #[inline]
    pub fn held_by(self, session: u32) -> u32 {
        match self.holder() {
            (holder, held) if holder == session => held,
            _ => 0,
        }
    }

    /// Whether all of `flags` are set.
    #[inline]
    pub fn is(self, flags: Flags) -> bool {
        self.0 & u64::from(flags) == u64::from(flags)
    }

    /// Whether one of `flags` is set.
    #[inline]
    pub fn has(self, flags: Flags) -> bool {
        self.0 & u64::from(flags) != 0
    }

    /// Whether the object's memory is in use, so that it must not be evicted.
    #[inline]
    pub fn locked(self) -> bool {
        self.0 & LOCKS != 0
    }

    /// The same with another holder.
    #[inline]
    fn with_holder(self, session: u32, held: u32) -> Word {
        let holder = u64::from(session) << SESSION_SHIFT | u64::from(held) << HELD_SHIFT;
        Word(self.0 & (FLAGS | SIZE_HIGH << SIZE_HIGH_SHIFT) | holder)
    }
}

impl Slot {
    fn new(fingerprint: Fingerprint, size: u64, start: u32, flags: Flags) -> Slot {
        debug_assert!(size <= SIZE_MAX);
        let word = u64::from(NOBODY) << SESSION_SHIFT | size >> 32 << SIZE_HIGH_SHIFT | u64::from(flags);
        Slot {
            fingerprint_low: fingerprint.low,
            word: AtomicU64::new(word),
            start,
            size_low: size as u32,
            since_ms: AtomicU32::new(0),
            uses: AtomicU16::new(0),
            fingerprint_high: fingerprint.high,
        }
    }

    fn free() -> Slot {
        Slot::new(Fingerprint::default(), 0, 0, 0)
    }

    /// What it says now. Worth asking once where several things are asked of it.
    #[inline]
    pub fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// Whether it is the object whose key has this fingerprint within its space.
    #[inline]
    pub fn is_of(&self, fingerprint: Fingerprint) -> bool {
        self.fingerprint_low == fingerprint.low && self.fingerprint_high == fingerprint.high
    }

    /// How many bytes it has.
    #[inline]
    pub fn size(&self) -> u64 {
        u64::from(self.size_low) | (self.word().0 >> SIZE_HIGH_SHIFT & SIZE_HIGH) << 32
    }

    /// As [`Word::holder`].
    #[inline]
    pub fn holder(&self) -> (u32, u32) {
        self.word().holder()
    }

    /// Sets what [`holder`](Slot::holder) gives. Calls that run side by side may do so only for a holder with shares, which
    /// is theirs alone while they have its session.
    #[inline]
    pub fn set_holder(&self, session: u32, held: u32) {
        self.word.store(self.word().with_holder(session, held).0, Ordering::Release);
    }

    /// Makes `session` the holder, with `held` shares, if the holder is still `before`, without shares.
    #[inline]
    pub fn change_holder(&self, before: u32, session: u32, held: u32) -> bool {
        let word = self.word();
        let (before, after) = (word.with_holder(before, 0).0, word.with_holder(session, held).0);
        self.word.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// As [`Word::held_by`].
    #[inline]
    pub fn held_by(&self, session: u32) -> u32 {
        self.word().held_by(session)
    }

    /// Times it was read, counted up to [`USES_MAX`].
    #[inline]
    pub fn uses(&self) -> u32 {
        u32::from(self.uses.load(Ordering::Relaxed))
    }

    /// Counts a reading. Calls that run side by side may do so only for an object of which they have the last share.
    #[inline]
    pub fn count_use(&self) {
        let uses = self.uses.load(Ordering::Relaxed);
        self.uses.store(uses.saturating_add(1), Ordering::Relaxed);
    }

    /// As [`Word::is`].
    #[inline]
    pub fn is(&self, flags: Flags) -> bool {
        self.word().is(flags)
    }

    /// As [`Word::has`].
    #[inline]
    pub fn has(&self, flags: Flags) -> bool {
        self.word().has(flags)
    }

    /// Sets flags.
    #[inline]
    pub fn set(&mut self, flags: Flags) {
        *self.word.get_mut() |= u64::from(flags);
    }

    /// Clears flags.
    #[inline]
    pub fn clear(&mut self, flags: Flags) {
        *self.word.get_mut() &= !u64::from(flags);
    }

    /// Whether it is committed, and in the table.
    pub fn is_findable(&self) -> bool {
        self.word().0 & u64::from(READY | HIDDEN) == u64::from(READY)
    }

    /// As [`Word::locked`].
    #[inline]
    pub fn locked(&self) -> bool {
        self.word().locked()
    }
}

/// Names an object for as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ref {
    /// Its slot.
    pub slot: u32,
    /// The slot's generation at that time.
    pub generation: u32,
}

impl Ref {
    /// Names no object.
    pub const NOTHING: Ref = Ref { slot: NONE, generation: 0 };

    /// As one number.
    pub fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// From one number.
    pub fn unpack(number: u64) -> Ref {
        Ref { slot: number as u32, generation: (number >> 32) as u32 }
    }
}

/// All slots.
pub struct Slots {
    slots: Chunked<Slot, 2048>,
    mentions: Chunked<Mention, 4096>,
    details: Chunked<Detail>,
    made: u32,
    spare: Vec<u32>,
    /// How many transfers run on.
    busy: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots::new()
    }
}

impl Slots {
    /// None yet.
    pub fn new() -> Slots {
        let (slots, mentions, details) = (Chunked::new(), Chunked::new(), Chunked::new());
        Slots { slots, mentions, details, made: 0, spare: Vec::new(), busy: 0 }
    }

    /// A slot for an object that is being staged in `block`, whose key and space have this fingerprint.
    pub fn take(
        &mut self,
        key: Key,
        space: u32,
        fingerprint: Fingerprint,
        size: u64,
        block: Block,
        flags: Flags,
    ) -> u32 {
        let id = self.spare.pop().unwrap_or_else(|| {
            self.slots.reach(self.made, Slot::free);
            self.mentions.reach(self.made, Mention::default);
            self.details.reach(self.made, Detail::free);
            self.made += 1;
            self.made - 1
        });
        self.slots[id] = Slot::new(fingerprint, size, block.start, flags | STAGING);
        let Mention { generation, .. } = self.mentions[id];
        self.mentions[id] = Mention { generation, ..Mention::default() };
        self.details[id] = Detail::new(key, space, block.node);
        id
    }

    /// Gives a slot back; references to it name nothing from now on.
    pub fn give(&mut self, id: u32) {
        let mention = &mut self.mentions[id];
        mention.generation = mention.generation.wrapping_add(1);
        self.slots[id].clear(STAGING | READY | FORGOTTEN);
        self.spare.push(id);
    }

    /// The slot, if there is one of this number.
    #[inline]
    pub fn get(&self, id: u32) -> Option<&Slot> {
        self.slots.get(id)
    }

    /// The reference that names the object now in slot `id`.
    #[inline]
    pub fn name(&self, id: u32) -> Ref {
        Ref { slot: id, generation: self.mentions[id].generation }
    }

    /// The slot of `name`, if its object still lives.
    pub fn find(&self, name: Ref) -> Option<&Slot> {
        let slot = self.slots.get(name.slot)?;
        (slot.has(STAGING | READY) && self.mentions[name.slot].generation == name.generation).then_some(slot)
    }

    /// The key of the object in a slot.
    #[inline]
    pub fn key(&self, id: u32) -> &Key {
        &self.details[id].key
    }

    /// Index of the space of the object in a slot.
    #[inline]
    pub fn space(&self, id: u32) -> u32 {
        self.details[id].space()
    }

    /// What a session looks at that notes the object in a slot.
    #[inline]
    pub fn mention(&self, id: u32) -> &Mention {
        &self.mentions[id]
    }

    /// What a session looks at that notes the object in a slot.
    #[inline]
    pub fn mention_mut(&mut self, id: u32) -> &mut Mention {
        &mut self.mentions[id]
    }

    /// What else is known of the object in a slot.
    #[inline]
    pub fn detail(&self, id: u32) -> &Detail {
        &self.details[id]
    }

    /// What else is known of the object in a slot.
    #[inline]
    pub fn detail_mut(&mut self, id: u32) -> &mut Detail {
        &mut self.details[id]
    }

    /// Shares of an object held by all sessions.
    #[inline]
    pub fn shares(&self, id: u32) -> u32 {
        let slot = &self.slots[id];
        let held = slot.holder().1;
        if slot.is(LISTED) { held + self.details[id].rest } else { held }
    }

    /// Transfers that run on an object's bytes.
    pub fn transfers(&self, id: u32) -> u32 {
        self.details[id].io
    }

    /// One more transfer runs on an object's bytes.
    pub fn begin_transfer(&mut self, id: u32) {
        self.busy += usize::from(self.details[id].io == 0);
        self.details[id].io += 1;
        self.slots[id].set(BUSY);
    }

    /// One fewer.
    pub fn end_transfer(&mut self, id: u32) {
        let io = &mut self.details[id].io;
        *io -= 1;
        if *io == 0 {
            self.busy -= 1;
            self.slots[id].clear(BUSY);
        }
    }

    /// How many slots have transfers running on their bytes.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// What a policy may know of a new object.
    pub fn new_meta(&self, id: u32, now_ms: u64) -> Meta {
        // Which memories of a policy push each other out hangs on it, and one trace is to have one hit rate.
        const TAGS: KeyHasher = KeyHasher::fixed();
        let detail = &self.details[id];
        Meta { tag: TAGS.hash_in(detail.space(), &detail.key), ..self.meta(id, now_ms) }
    }

    /// What a policy may know of an object it has already: no tag.
    pub fn meta(&self, id: u32, now_ms: u64) -> Meta {
        let (slot, detail) = (&self.slots[id], &self.details[id]);
        Meta {
            tag: 0,
            size: slot.size(),
            depth: self.mentions[id].depth,
            uses: slot.uses(),
            priority: if detail.retained(now_ms) { detail.priority } else { 0 },
        }
    }

    /// Every slot in use.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.live_among(0..self.made)
    }

    /// Those in use among the slots `ids`.
    pub fn live_among(&self, ids: Range<u32>) -> impl Iterator<Item = (u32, &Slot)> {
        let ids = ids.start..ids.end.min(self.made);
        ids.map(|id| (id, &self.slots[id])).filter(|(_, slot)| slot.has(STAGING | READY))
    }

    /// How many there are, in use or not.
    pub fn count(&self) -> u32 {
        self.made
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes()
            + self.mentions.memory_bytes()
            + self.details.memory_bytes()
            + self.spare.capacity() * size_of::<u32>()
    }
}

impl std::ops::Index<u32> for Slots {
    type Output = Slot;
    #[inline]
    fn index(&self, id: u32) -> &Slot {
        &self.slots[id]
    }
}

impl std::ops::IndexMut<u32> for Slots {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id]
    }
}
