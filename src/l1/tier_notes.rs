//! What L1 keeps for the tiers below: which uses they have not heard of yet, and which objects they have lost.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;

use super::slot::{LOST, QUEUED, Ref, STORED, TEMPORARY};
use super::{L1, State, WAKE_USES, WAKE_WRITES};
use crate::key::{Key, ObjectKey};

/// Most uses that wait to be told; the oldest are dropped.
const USES_MAX: usize = 1 << 16;
/// Objects looked at under one lock.
const SLICE: usize = 64;
/// Slots looked through under one lock.
const SLOTS: u32 = 1024;

/// Uses that the tiers below have not heard of: the last one last, some named more than once.
pub type Uses = VecDeque<Ref>;

/// Objects that were hidden while they were being written: a backend may publish them yet.
#[derive(Default)]
pub(super) struct HiddenWrites {
    slots: HashMap<u32, (u32, Key)>,
    counts: HashMap<(u32, Key), u32>,
}

impl HiddenWrites {
    /// The object in a slot is being hidden.
    pub fn add(&mut self, id: u32, space: u32, key: Key) {
        self.slots.insert(id, (space, key));
        *self.counts.entry((space, key)).or_default() += 1;
    }

    /// The memory of a hidden object is let go: no backend writes it any more.
    pub fn remove(&mut self, id: u32) {
        if self.slots.is_empty() {
            return;
        }
        if let Some(name) = self.slots.remove(&id)
            && let Some(count) = self.counts.get_mut(&name)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&name);
            }
        }
    }

    /// Whether there is none.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.counts.is_empty()
    }

    /// Whether one of this key is still being written.
    pub fn has(&self, space: u32, key: &Key) -> bool {
        !self.counts.is_empty() && self.counts.contains_key(&(space, *key))
    }
}

impl L1 {
    /// Whether there are uses to tell.
    pub fn has_uses(&self) -> bool {
        self.uses_noted.load(Ordering::Acquire)
    }

    /// Takes the uses to tell, in exchange for an empty list.
    pub fn take_uses(&self, empty: &mut Uses) {
        if self.uses_noted.swap(false, Ordering::AcqRel) {
            self.with(|state| std::mem::swap(&mut state.uses, empty));
        }
    }

    /// The names of those objects that are still there and stored below, in order.
    pub fn stored_names(&self, objects: &[Ref]) -> Vec<ObjectKey> {
        let mut names = Vec::with_capacity(objects.len());
        for slice in objects.chunks(SLICE) {
            self.with(|state| {
                let stored = slice.iter().filter(|&&object| state.is_stored(object));
                names.extend(stored.map(|object| state.object_key(object.slot)));
            });
        }
        names
    }

    /// Keeps those objects that L1 takes for stored, that are being written, or that are marked in `wanted`.
    pub fn retain_stored(&self, objects: &mut Vec<ObjectKey>, wanted: &[bool]) {
        let mut stored = Vec::with_capacity(objects.len());
        for slice in objects.chunks(SLICE) {
            self.with(|state| stored.extend(slice.iter().map(|object| state.find_stored(object).is_some())));
        }
        let mut keeps = stored.into_iter().zip(wanted).map(|(stored, wanted)| stored | wanted);
        objects.retain(|_| keeps.next().unwrap_or(false));
    }

    /// No backend has these objects any more: they are not stored, and are written again before they are evicted.
    pub fn lose(&self, objects: &[ObjectKey]) {
        for slice in objects.chunks(SLICE) {
            self.with(|state| {
                for object in slice {
                    if let Some(id) = state.find_stored(object) {
                        let slot = &mut state.slots[id];
                        slot.clear(STORED);
                        // One that is being written may have been lost after that: it is not taken for stored when the write ends.
                        slot.set(if slot.is(TEMPORARY) { 0 } else { LOST });
                    }
                }
            });
        }
    }

    /// The stored objects among a range of slots that begins with `first`, and where the next range begins. `None`: there is none.
    pub fn stored_from(&self, first: u32) -> Option<(Vec<ObjectKey>, u32)> {
        self.with(|state| {
            let next = first.saturating_add(SLOTS);
            let live = state.slots.live_among(first..next);
            let stored = live.filter(|(_, slot)| slot.is_findable() && slot.is(STORED));
            let names = stored.map(|(id, _)| state.object_key(id)).collect();
            (first < state.slots.count()).then_some((names, next))
        })
    }
}

impl State {
    /// Notes that an object was used that a backend has.
    #[inline]
    pub(super) fn note_use_below(&mut self, id: u32) {
        if !self.slots[id].is(STORED) {
            return;
        }
        if self.uses.len() >= USES_MAX {
            self.uses.pop_front();
            self.counts.uses_dropped += 1;
        }
        self.uses.push_back(self.slots.name(id));
        // Told some at a time, unless many wait.
        self.wakes |= if self.uses.len() == USES_MAX / 2 { WAKE_USES | WAKE_WRITES } else { WAKE_USES };
    }

    fn is_stored(&self, object: Ref) -> bool {
        self.slots.find(object).is_some_and(|slot| slot.is_findable() && slot.is(STORED))
    }

    fn find_stored(&self, object: &ObjectKey) -> Option<u32> {
        let index = *self.by_number.get(&object.space.number())?;
        let id = self.find(index, &object.key)?;
        let same = self.spaces[index as usize].tag == object.space;
        (same && self.slots[id].has(STORED | QUEUED)).then_some(id)
    }

    /// The full name of the object in a slot.
    pub(super) fn object_key(&self, id: u32) -> ObjectKey {
        ObjectKey { space: self.spaces[self.slots.space(id) as usize].tag, key: *self.slots.key(id) }
    }
}
