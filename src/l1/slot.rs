//! What L1 knows of one object: where its bytes lie, its state, and who holds it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::chunked::Chunked;
use crate::key::Key;
use crate::policy::Meta;

/// No slot, session or hold.
pub const NONE: u32 = u32::MAX;

/// The unit of retention's end, coarse so that 32 bits last for years.
pub const RETAIN_MS: u64 = 64;

/// Where an object is in its life. A slot that is `Free` names nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Not in use.
    Free,
    /// Reserved and not committed: only its writer knows of it.
    Staging,
    /// Committed.
    Ready,
}

/// Dropped when its last share is returned.
pub const TEMPORARY: u8 = 1;
/// Not in the table any more; freed when nothing uses its memory.
pub const HIDDEN: u8 = 2;
/// A backend has it.
pub const STORED: u8 = 4;
/// Waiting to be written to L2, or being written.
pub const QUEUED: u8 = 8;
/// Passed over as a victim because it was `QUEUED`.
pub const PARKED: u8 = 16;
/// To be evicted once it is written.
pub const LEAVING: u8 = 32;
/// Sessions beside its holder have shares of it.
pub const LISTED: u8 = 64;

/// One object. Two cache lines: finding and sharing it writes to the first alone, so that the second may lie in the caches
/// of all cores. What is atomic may change in calls that run side by side (`beside.rs`), all else in one that is alone.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Slot {
    /// Its key.
    pub key: Key,
    /// See [`holder`](Slot::holder).
    own: AtomicU64,
    /// Index of its space.
    pub space: u32,
    /// Times it was read.
    pub uses: AtomicU32,
    /// When the first of its present shares was taken, in milliseconds of the cache's clock, wrapping.
    pub since_ms: AtomicU32,
    /// Flags above.
    pub flags: u8,
    /// Its state.
    pub life: Life,
    /// Retention priority.
    pub priority: u8,
    /// Turns as a victim that its retention still spares it.
    pub chances: u8,
    /// Where its bytes begin in the arena.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
    /// The allocator's name for them.
    pub node: u32,
    /// Transfers that the library runs on its bytes.
    pub io: u32,
    /// Raised when the slot is freed, so that an old reference names nothing.
    pub generation: u32,
    /// Shares of sessions other than its holder: first of a list in [`Holds`] …
    more: u32,
    /// … and how many they are.
    rest: u32,
    /// Place of the object in its prompt, as far as its writer's session tells.
    pub depth: u32,
    /// Until when its retention lasts, in units of [`RETAIN_MS`] of the cache's clock.
    pub retain_until: u32,
    /// The last pass over a session's objects that met it.
    pub seen: u32,
}

const _: () = assert!(size_of::<Slot>() == 128);

impl Slot {
    fn empty(generation: u32) -> Slot {
        Slot {
            key: Key { hash: [0; 32], rank: 0, group: 0 },
            own: AtomicU64::new(own(NONE, 0)),
            space: 0,
            uses: AtomicU32::new(0),
            since_ms: AtomicU32::new(0),
            flags: 0,
            life: Life::Free,
            priority: 0,
            chances: 0,
            offset: 0,
            size: 0,
            node: 0,
            io: 0,
            generation,
            more: NONE,
            rest: 0,
            depth: 0,
            retain_until: 0,
            seen: 0,
        }
    }

    /// The session (by index) that used it last, or that stages it, and its shares.
    #[inline]
    pub fn holder(&self) -> (u32, u32) {
        let own = self.own.load(Ordering::Acquire);
        ((own >> 32) as u32, own as u32)
    }

    /// Sets what [`holder`](Slot::holder) gives. Calls that run side by side may do so only for a holder with shares, which
    /// is theirs alone while they have its session.
    #[inline]
    pub fn set_holder(&self, session: u32, held: u32) {
        self.own.store(own(session, held), Ordering::Release);
    }

    /// Makes `session` the holder, with `held` shares, if the holder is still `before`, without shares.
    #[inline]
    pub fn change_holder(&self, before: u32, session: u32, held: u32) -> bool {
        let (before, after) = (own(before, 0), own(session, held));
        self.own.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Shares of a session, if it is the holder.
    #[inline]
    pub fn held_by(&self, session: u32) -> u32 {
        match self.holder() {
            (holder, held) if holder == session => held,
            _ => 0,
        }
    }

    /// Counts a reading. Calls that run side by side may do so only for an object of which they have the last share.
    #[inline]
    pub fn count_use(&self) {
        let uses = self.uses.load(Ordering::Relaxed);
        self.uses.store(uses.saturating_add(1), Ordering::Relaxed);
    }

    /// Shares held by all sessions.
    #[inline]
    pub fn shares(&self) -> u32 {
        self.holder().1 + self.rest
    }

    /// Whether it is the object of this name.
    #[inline]
    pub fn names(&self, space: u32, key: &Key) -> bool {
        self.key == *key && self.space == space
    }

    /// What a policy may know of an object it has already; only a new one needs its tag.
    #[inline]
    pub fn meta(&self, now_ms: u64) -> Meta {
        Meta {
            tag: 0,
            size: self.size,
            depth: self.depth,
            uses: self.uses.load(Ordering::Relaxed),
            priority: if self.retained(now_ms) { self.priority } else { 0 },
        }
    }

    /// Where its bytes are.
    pub fn place(&self) -> Place {
        (self.offset, self.size)
    }

    /// Whether all of `flags` are set.
    pub fn is(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Whether its retention lasts at `now_ms`.
    pub fn retained(&self, now_ms: u64) -> bool {
        u64::from(self.retain_until) * RETAIN_MS > now_ms
    }

    /// Whether its memory is in use, so that it must not be evicted.
    pub fn locked(&self) -> bool {
        self.holder().1 > 0 || self.is(LISTED) || self.io > 0 || self.life == Life::Staging
    }
}

fn own(session: u32, held: u32) -> u64 {
    u64::from(session) << 32 | u64::from(held)
}

/// Where bytes begin in the arena, and how many they are.
pub type Place = (u64, u64);

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
    slots: Chunked<Slot>,
    made: u32,
    spare: Vec<u32>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots::new()
    }
}

impl Slots {
    /// None yet.
    pub fn new() -> Slots {
        Slots { slots: Chunked::new(), made: 0, spare: Vec::new() }
    }

    /// A fresh slot, all empty but its generation.
    pub fn take(&mut self) -> u32 {
        let id = self.spare.pop().unwrap_or_else(|| {
            self.slots.reach(self.made, || Slot::empty(0));
            self.made += 1;
            self.made - 1
        });
        let generation = self.slots[id].generation;
        self.slots[id] = Slot::empty(generation);
        id
    }

    /// Gives a slot back; references to it name nothing from now on.
    pub fn give(&mut self, id: u32) {
        let slot = &mut self.slots[id];
        slot.generation = slot.generation.wrapping_add(1);
        slot.life = Life::Free;
        self.spare.push(id);
    }

    /// The reference that names the object now in slot `id`.
    pub fn name(&self, id: u32) -> Ref {
        Ref { slot: id, generation: self.slots[id].generation }
    }

    /// The slot of `name`, if its object still lives.
    pub fn find(&self, name: Ref) -> Option<&Slot> {
        let slot = self.slots.get(name.slot)?;
        (slot.generation == name.generation && slot.life != Life::Free).then_some(slot)
    }

    /// Every slot in use.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.live_among(0..self.made)
    }

    /// Those in use among the slots `ids`.
    pub fn live_among(&self, ids: Range<u32>) -> impl Iterator<Item = (u32, &Slot)> {
        let ids = ids.start..ids.end.min(self.made);
        ids.map(|id| (id, &self.slots[id])).filter(|(_, slot)| slot.life != Life::Free)
    }

    /// How many there are, in use or not.
    pub fn count(&self) -> u32 {
        self.made
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes() + self.spare.capacity() * size_of::<u32>()
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

#[derive(Clone, Copy)]
struct Hold {
    session: u32,
    count: u32,
    next: u32,
}

/// Shares of an object's second and further holders, as lists.
#[derive(Default)]
pub struct Holds {
    holds: Vec<Hold>,
    spare: Vec<u32>,
}

impl Holds {
    /// Adds shares of `session` to the list of `slot`. True if it had none in the list before.
    pub fn add(&mut self, slot: &mut Slot, session: u32, count: u32) -> bool {
        slot.flags |= LISTED;
        slot.rest += count;
        let mut at = slot.more;
        while at != NONE {
            let hold = &mut self.holds[at as usize];
            if hold.session == session {
                hold.count += count;
                return false;
            }
            at = hold.next;
        }
        let hold = Hold { session, count, next: slot.more };
        slot.more = match self.spare.pop() {
            Some(place) => {
                self.holds[place as usize] = hold;
                place
            }
            None => {
                self.holds.push(hold);
                (self.holds.len() - 1) as u32
            }
        };
        true
    }

    /// Shares of `session` in the list of `slot`.
    pub fn count(&self, slot: &Slot, session: u32) -> u32 {
        self.iter(slot).find(|(holder, _)| *holder == session).map_or(0, |(_, count)| count)
    }

    /// Takes shares of `session` off the list; they must be there.
    pub fn sub(&mut self, slot: &mut Slot, session: u32, count: u32) {
        slot.rest -= count;
        if slot.rest == 0 {
            slot.flags &= !LISTED;
        }
        let mut before = NONE;
        let mut at = slot.more;
        while at != NONE {
            let hold = self.holds[at as usize];
            if hold.session == session {
                debug_assert!(hold.count >= count);
                if hold.count > count {
                    self.holds[at as usize].count -= count;
                    return;
                }
                match before {
                    NONE => slot.more = hold.next,
                    before => self.holds[before as usize].next = hold.next,
                }
                self.spare.push(at);
                return;
            }
            (before, at) = (at, hold.next);
        }
    }

    /// Sessions in the list and their shares.
    pub fn iter(&self, slot: &Slot) -> impl Iterator<Item = (u32, u32)> {
        let mut at = slot.more;
        std::iter::from_fn(move || {
            let hold = self.holds.get(at as usize)?;
            at = hold.next;
            Some((hold.session, hold.count))
        })
    }
}
