//! One object in L1: where its bytes lie, its state, and the session that holds it.

use crate::fingerprint::Fingerprint;

/// In place of a slot number: there is no slot.
pub const NONE: u32 = u32::MAX;

const SESSION_BITS: u32 = 20;
const HELD_BITS: u32 = 24;
const SIZE_HIGH_BITS: u32 = 6;
const HELD_SHIFT: u32 = 64 - SESSION_BITS - HELD_BITS;
const SESSION_SHIFT: u32 = 64 - SESSION_BITS;
const SIZE_HIGH_SHIFT: u32 = HELD_SHIFT - SIZE_HIGH_BITS;

const SIZE_HIGH: u64 = (1 << SIZE_HIGH_BITS) - 1;

/// In place of a session's index: no session. All indexes are below.
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
/// Not in the table any more; freed when no share, transfer or session uses its memory.
pub const DETACHED: Flags = 2;
/// A backend has it, as far as L1 knows.
pub const STORED: Flags = 4;
/// Waiting to be written to L2, or being written.
pub const QUEUED: Flags = 8;
/// Passed over as a victim because it was `QUEUED`.
pub const PARKED: Flags = 16;
/// To be evicted once it is written.
pub const LEAVING: Flags = 32;
/// Sessions other than its holder have shares of it, in `Holders`.
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
/// Together with `QUEUED`, which no object given up has: the writer took it from the queue, and counts its end.
pub const WRITING: Flags = GIVEN_UP;

const FLAGS: u64 = (1 << SIZE_HIGH_SHIFT) - 1;
const HELD: u64 = (SHARES_MAX as u64) << HELD_SHIFT;
/// The bits of `word` that keep an object's memory from being evicted.
const LOCKS: u64 = HELD | (LISTED | BUSY | STAGING) as u64;

/// The part of an object that a read looks at, on half a cache line: of a hundred thousand objects it stays in a core's share of the
/// caches, where the keys themselves would not.
#[repr(C, align(32))]
#[derive(Debug)]
pub struct Slot {
    fingerprint_low: u64,
    /// From the top: its holder, the holder's shares, the upper bits of its size, flags.
    word: Word,
    /// Where its bytes begin in the arena, in the allocator's units.
    pub start: u32,
    size_low: u32,
    /// When the first of its present shares was taken, in milliseconds of the cache's clock, wrapping.
    pub since_ms: u32,
    uses: u16,
    fingerprint_high: u16,
}

/// A slot's holder, flags and upper bits of the size.
#[derive(Clone, Copy, Debug)]
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
    /// The slot of an object that no session holds yet.
    pub(super) fn new(fingerprint: Fingerprint, size: u64, start: u32, flags: Flags) -> Slot {
        debug_assert!(size <= SIZE_MAX);
        let word = u64::from(NOBODY) << SESSION_SHIFT | size >> 32 << SIZE_HIGH_SHIFT | u64::from(flags);
        Slot {
            fingerprint_low: fingerprint.low,
            word: Word(word),
            start,
            size_low: size as u32,
            since_ms: 0,
            uses: 0,
            fingerprint_high: fingerprint.high,
        }
    }

    /// A slot without an object.
    pub(super) fn free() -> Slot {
        Slot::new(Fingerprint::default(), 0, 0, 0)
    }

    /// Its holder, flags and upper bits of the size.
    #[inline]
    pub fn word(&self) -> Word {
        self.word
    }

    /// Whether it is the object whose key has this fingerprint within its space.
    #[inline]
    pub fn is_of(&self, fingerprint: Fingerprint) -> bool {
        self.fingerprint_low == fingerprint.low && self.fingerprint_high == fingerprint.high
    }

    /// Bytes of its payload.
    #[inline]
    pub fn size(&self) -> u64 {
        u64::from(self.size_low) | (self.word.0 >> SIZE_HIGH_SHIFT & SIZE_HIGH) << 32
    }

    /// As [`Word::holder`].
    #[inline]
    pub fn holder(&self) -> (u32, u32) {
        self.word.holder()
    }

    /// Sets the holder and its shares.
    #[inline]
    pub fn set_holder(&mut self, session: u32, held: u32) {
        self.word = self.word.with_holder(session, held);
    }

    /// As [`Word::held_by`].
    #[inline]
    pub fn held_by(&self, session: u32) -> u32 {
        self.word.held_by(session)
    }

    /// Times it was read, counted up to [`USES_MAX`].
    #[inline]
    pub fn uses(&self) -> u32 {
        u32::from(self.uses)
    }

    /// Counts a read.
    #[inline]
    pub fn count_use(&mut self) {
        self.uses = self.uses.saturating_add(1);
    }

    /// As [`Word::is`].
    #[inline]
    pub fn is(&self, flags: Flags) -> bool {
        self.word.is(flags)
    }

    /// As [`Word::has`].
    #[inline]
    pub fn has(&self, flags: Flags) -> bool {
        self.word.has(flags)
    }

    /// Sets flags.
    #[inline]
    pub fn set(&mut self, flags: Flags) {
        self.word.0 |= u64::from(flags);
    }

    /// Clears flags.
    #[inline]
    pub fn clear(&mut self, flags: Flags) {
        self.word.0 &= !u64::from(flags);
    }

    /// Whether it is committed, and in the table.
    pub fn is_findable(&self) -> bool {
        self.word.0 & u64::from(READY | DETACHED) == u64::from(READY)
    }

    /// As [`Word::locked`].
    #[inline]
    pub fn locked(&self) -> bool {
        self.word.locked()
    }
}

/// Names an object for as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ref {
    /// The number of its slot.
    pub slot: u32,
    /// The slot's generation at that time.
    pub generation: u32,
}

impl Ref {
    /// A reference to no object at all.
    pub const NOTHING: Ref = Ref { slot: NONE, generation: 0 };

    /// As one number, for a token that a backend gives back.
    pub fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// From the number that [`pack`](Ref::pack) made.
    pub fn unpack(number: u64) -> Ref {
        Ref { slot: number as u32, generation: (number >> 32) as u32 }
    }
}
