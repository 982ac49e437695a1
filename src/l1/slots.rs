//! All objects of L1: their slots, and the records of each that reads do not look at.

use std::ops::Range;

use super::alloc::Block;
use super::slot::{BUSY, FORGOTTEN, Flags, LISTED, NONE, READY, RETAIN_MS, Ref, STAGING, Slot};
use crate::chunked::Chunked;
use crate::fingerprint::Fingerprint;
use crate::hash::KeyHasher;
use crate::key::Key;
use crate::policy::Meta;

// Half a cache line.
const _: () = assert!(size_of::<Slot>() == 32);

/// The part of an object that a session looks at when it notes the object's use.
#[derive(Debug, Default)]
pub struct UseRecord {
    /// Raised when the slot is freed, so that an old reference names nothing.
    pub generation: u32,
    /// Place of the object in its prompt, as far as its writer's session knows.
    pub depth: u32,
    /// The last pass over a session's objects that met it.
    pub seen: u32,
}

/// The part of an object that neither a read nor a session's note looks at.
#[repr(align(64))]
#[derive(Debug)]
pub struct ColdRecord {
    /// The key it was stored under.
    pub key: Key,
    space: u16,
    /// Retention priority, 0 to 100.
    pub priority: u8,
    /// Turns as a victim that its retention still spares it.
    pub chances: u8,
    /// Until when its retention lasts, in units of [`RETAIN_MS`] of the cache's clock.
    pub retain_until: u32,
    /// The allocator's name for its bytes.
    pub node: u32,
    /// Transfers that run on its bytes.
    pub io: u32,
    /// Shares of sessions other than its holder: first of a list in [`Holders`](super::holders::Holders) …
    pub more: u32,
    /// … and how many they are.
    pub listed: u32,
}

const _: () = assert!(size_of::<ColdRecord>() == 64);

impl ColdRecord {
    /// The record of a new object.
    pub fn new(key: Key, space: u32, node: u32) -> ColdRecord {
        debug_assert!(space <= u32::from(u16::MAX));
        let (space, more) = (space as u16, NONE);
        ColdRecord { key, space, priority: 0, chances: 0, retain_until: 0, node, io: 0, more, listed: 0 }
    }

    /// The record of a free slot.
    pub fn free() -> ColdRecord {
        ColdRecord::new(Key { hash: [0; 32], rank: 0, group: 0 }, 0, 0)
    }

    /// Index of its space.
    pub fn space(&self) -> u32 {
        u32::from(self.space)
    }

    /// Whether its retention lasts at `now_ms`.
    pub fn retained(&self, now_ms: u64) -> bool {
        u64::from(self.retain_until) * RETAIN_MS > now_ms
    }
}

/// All slots of a tier, by number.
pub struct Slots {
    slots: Chunked<Slot, 2048>,
    use_records: Chunked<UseRecord, 4096>,
    cold: Chunked<ColdRecord>,
    made: u32,
    spare: Vec<u32>,
    /// How many slots have transfers running on their bytes.
    busy: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots::new()
    }
}

impl Slots {
    /// Without any object yet.
    pub fn new() -> Slots {
        let (slots, use_records, cold) = (Chunked::new(), Chunked::new(), Chunked::new());
        Slots { slots, use_records, cold, made: 0, spare: Vec::new(), busy: 0 }
    }

    /// Takes a free slot for an object that is being staged in `block`, whose key and space have this fingerprint. Called by
    /// `object_life::stage` alone.
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
            self.use_records.reach(self.made, UseRecord::default);
            self.cold.reach(self.made, ColdRecord::free);
            self.made += 1;
            self.made - 1
        });
        self.slots[id] = Slot::new(fingerprint, size, block.start, flags | STAGING);
        let UseRecord { generation, .. } = self.use_records[id];
        self.use_records[id] = UseRecord { generation, ..UseRecord::default() };
        self.cold[id] = ColdRecord::new(key, space, block.node);
        id
    }

    /// Frees a slot; references to its object name nothing from now on. Called by `object_life::free_if_unused` alone.
    pub fn free(&mut self, id: u32) {
        let use_record = &mut self.use_records[id];
        use_record.generation = use_record.generation.wrapping_add(1);
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
        Ref { slot: id, generation: self.use_records[id].generation }
    }

    /// The slot of `name`, if its object still lives.
    pub fn find(&self, name: Ref) -> Option<&Slot> {
        let slot = self.slots.get(name.slot)?;
        (slot.has(STAGING | READY) && self.use_records[name.slot].generation == name.generation).then_some(slot)
    }

    /// The key of the object in a slot.
    #[inline]
    pub fn key(&self, id: u32) -> &Key {
        &self.cold[id].key
    }

    /// Index of the space of the object in a slot.
    #[inline]
    pub fn space(&self, id: u32) -> u32 {
        self.cold[id].space()
    }

    /// The use record of the object in a slot.
    #[inline]
    pub fn use_record(&self, id: u32) -> &UseRecord {
        &self.use_records[id]
    }

    /// The use record of the object in a slot.
    #[inline]
    pub fn use_record_mut(&mut self, id: u32) -> &mut UseRecord {
        &mut self.use_records[id]
    }

    /// The cold record of the object in a slot.
    #[inline]
    pub fn cold(&self, id: u32) -> &ColdRecord {
        &self.cold[id]
    }

    /// The cold record of the object in a slot.
    #[inline]
    pub fn cold_mut(&mut self, id: u32) -> &mut ColdRecord {
        &mut self.cold[id]
    }

    /// Shares of an object held by all sessions.
    #[inline]
    pub fn shares(&self, id: u32) -> u32 {
        let slot = &self.slots[id];
        let held = slot.holder().1;
        if slot.is(LISTED) { held + self.cold[id].listed } else { held }
    }

    /// Transfers that run on an object's bytes.
    pub fn transfers(&self, id: u32) -> u32 {
        self.cold[id].io
    }

    /// One more transfer runs on an object's bytes.
    pub fn begin_transfer(&mut self, id: u32) {
        self.busy += usize::from(self.cold[id].io == 0);
        self.cold[id].io += 1;
        self.slots[id].set(BUSY);
    }

    /// One transfer fewer runs on an object's bytes.
    pub fn end_transfer(&mut self, id: u32) {
        let io = &mut self.cold[id].io;
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

    /// The facts that a policy may know of a new object.
    pub fn new_meta(&self, id: u32, now_ms: u64) -> Meta {
        // Which memories of a policy push each other out hangs on it, and one trace is to have one hit rate.
        const TAGS: KeyHasher = KeyHasher::fixed();
        let record = &self.cold[id];
        Meta { tag: TAGS.hash_in(record.space(), &record.key), ..self.meta(id, now_ms) }
    }

    /// The facts that a policy may know of an object it has already: no tag.
    pub fn meta(&self, id: u32, now_ms: u64) -> Meta {
        let (slot, record) = (&self.slots[id], &self.cold[id]);
        Meta {
            tag: 0,
            size: slot.size(),
            depth: self.use_records[id].depth,
            uses: slot.uses(),
            priority: if record.retained(now_ms) { record.priority } else { 0 },
        }
    }

    /// Every slot that has an object.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.live_among(0..self.made)
    }

    /// Those in use among the slots `ids`.
    pub fn live_among(&self, ids: Range<u32>) -> impl Iterator<Item = (u32, &Slot)> {
        let ids = ids.start..ids.end.min(self.made);
        ids.map(|id| (id, &self.slots[id])).filter(|(_, slot)| slot.has(STAGING | READY))
    }

    /// How many slots there are, in use or not.
    pub fn count(&self) -> u32 {
        self.made
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes()
            + self.use_records.memory_bytes()
            + self.cold.memory_bytes()
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
