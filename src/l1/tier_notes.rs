//! Notes for the backends: the uses they do not know of yet, and the objects they have lost.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::slot::{LOST, QUEUED, Ref, STORED, TEMPORARY};
use super::state::L1State;
use super::tier::L1;
use super::wakes::{WAKE_USES, WAKE_WRITES};
use crate::key::ObjectKey;

/// Most uses that wait for the backends; the oldest are dropped.
const NOTED_MAX: usize = 1 << 16;
/// Objects looked at under one lock.
const SLICE: usize = 64;
/// Slots looked through under one lock.
const SLOTS: u32 = 1024;

/// Uses that the backends do not know of: the last one last, some named more than once.
pub type Uses = VecDeque<Ref>;

pub(super) fn take_uses(l1: &L1, empty: &mut Uses) {
    if l1.uses_noted.swap(false, Ordering::AcqRel) {
        l1.with(|state| std::mem::swap(&mut state.uses, empty));
    }
}

pub(super) fn stored_names(l1: &L1, objects: &[Ref]) -> Vec<ObjectKey> {
    let mut names = Vec::with_capacity(objects.len());
    for slice in objects.chunks(SLICE) {
        l1.with(|state| {
            let stored = slice.iter().filter(|&&object| is_stored(state, object));
            names.extend(stored.map(|object| state.object_key(object.slot)));
        });
    }
    names
}

pub(super) fn names(l1: &L1, objects: &[Ref]) -> Vec<ObjectKey> {
    let mut names = Vec::with_capacity(objects.len());
    for slice in objects.chunks(SLICE) {
        l1.with(|state| {
            let is_there = |object: &&Ref| state.slots.find(**object).is_some_and(|slot| slot.is_findable());
            names.extend(slice.iter().filter(is_there).map(|object| state.object_key(object.slot)));
        });
    }
    names
}

pub(super) fn retain_stored(l1: &L1, objects: &mut Vec<ObjectKey>, wanted: &[bool]) {
    let mut stored = Vec::with_capacity(objects.len());
    for slice in objects.chunks(SLICE) {
        l1.with(|state| stored.extend(slice.iter().map(|object| find_stored(state, object).is_some())));
    }
    let mut keeps = stored.into_iter().zip(wanted).map(|(stored, wanted)| stored | wanted);
    objects.retain(|_| keeps.next().unwrap_or(false));
}

pub(super) fn lose(l1: &L1, objects: &[ObjectKey]) {
    for slice in objects.chunks(SLICE) {
        l1.with(|state| {
            for object in slice {
                if let Some(id) = find_stored(state, object) {
                    let slot = &mut state.slots[id];
                    slot.clear(STORED);
                    // One that is being written may have been lost after that: it is not taken for stored when the write ends.
                    slot.set(if slot.is(TEMPORARY) { 0 } else { LOST });
                }
            }
        });
    }
}

pub(super) fn stored_from(l1: &L1, first: u32) -> Option<(Vec<ObjectKey>, u32)> {
    l1.with(|state| {
        let next = first.saturating_add(SLOTS);
        let live = state.slots.live_among(first..next);
        let stored = live.filter(|(_, slot)| slot.is_findable() && slot.is(STORED));
        let names = stored.map(|(id, _)| state.object_key(id)).collect();
        (first < state.slots.count()).then_some((names, next))
    })
}

/// Notes that an object was used that a backend has, or any object if all uses are noted.
#[inline]
pub(super) fn note_use(state: &mut L1State, id: u32) {
    if !state.slots[id].is(STORED) && !state.notes_all_uses {
        return;
    }
    if state.uses.len() >= NOTED_MAX {
        state.uses.pop_front();
        state.counts.uses_dropped += 1;
    }
    state.uses.push_back(state.slots.name(id));
    // The backends get some at a time, unless many wait.
    state.wakes |= if state.uses.len() == NOTED_MAX / 2 { WAKE_USES | WAKE_WRITES } else { WAKE_USES };
}

/// The slot of an object that lookups find.
pub(super) fn find_ready(state: &L1State, object: &ObjectKey) -> Option<u32> {
    let index = *state.by_number.get(&object.space.number())?;
    let id = state.find(index, &object.key)?;
    (state.spaces[index as usize].tag == object.space && state.slots[id].is_findable()).then_some(id)
}

fn is_stored(state: &L1State, object: Ref) -> bool {
    state.slots.find(object).is_some_and(|slot| slot.is_findable() && slot.is(STORED))
}

fn find_stored(state: &L1State, object: &ObjectKey) -> Option<u32> {
    let index = *state.by_number.get(&object.space.number())?;
    let id = state.find(index, &object.key)?;
    let same = state.spaces[index as usize].tag == object.space;
    (same && state.slots[id].has(STORED | QUEUED)).then_some(id)
}
