//! Memory under a transfer: loads from L2 into staging, and writes of committed objects to L2.
//!
//! A [`Buffer`] counts as a transfer of its slot, so that the memory is neither evicted nor reused while a backend has it (P2).

use std::sync::Arc;

use super::slot::{DETACHED, FORGOTTEN, GIVEN_UP, LOST, PARKED, QUEUED, Ref, STAGING, STORED, TEMPORARY, WRITING};
use super::state::{ArenaRange, L1State};
use super::tier::L1;
use super::wakes::WAKE_FREED;
use super::{evict, object_life, pending_writes, share, tier_notes, write};
use crate::arena::{Buffer, Hold};
use crate::error::{KVKEEP_ERR_CLOSED, Status};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, ObjectKey};
use crate::policy::Removal;
use crate::shape::ShapeTag;

/// An object to be written to L2.
pub struct QueuedWrite {
    /// Names it to [`L1::written`].
    pub name: Ref,
    /// When it was queued, by the clock of the cache.
    pub since_ms: u64,
    /// The space and the key it is stored under.
    pub key: ObjectKey,
    /// The tag of its space's layout.
    pub layout: [u8; 16],
    /// The tag of its shape.
    pub shape: ShapeTag,
    /// The bytes to write; one more buffer of them can be had by [`L1::buffer`].
    pub buffer: Buffer,
}

/// A reader of a loaded object: the session, and the shares it is to get.
#[derive(Clone, Copy, Debug)]
pub struct LoadReader {
    /// The number of the session.
    pub session: u64,
    /// How many shares it gets.
    pub count: u32,
    /// Whether the object is to stay when they are returned; one such reader is enough.
    pub keep: bool,
}

impl Hold for L1 {
    fn release(&self, token: u64) {
        self.with(|state| end_transfer(state, Ref::unpack(token)));
    }
}

/// A buffer over the bytes of a slot for which the caller began a transfer. A staged slot is known to no one but its loader, and a ready one is
/// never written again.
fn buffer_of(l1: &L1, name: Ref, (offset, size): ArenaRange) -> Option<Buffer> {
    let hold: Arc<dyn Hold> = l1.upgrade()?;
    Some(l1.arena().lend(offset, size, hold, name.pack()))
}

pub(super) fn stage_loads<'a>(
    l1: &L1,
    space: u32,
    wanted: impl Iterator<Item = (&'a Key, u64, u32)>,
    temporary: bool,
) -> Vec<std::result::Result<(Ref, Buffer), Status>> {
    let mut full = None;
    // Hashed before the lock is taken.
    let wanted: Vec<(&Key, Fingerprint, u64, u32)> =
        wanted.map(|(key, size, depth)| (key, l1.fingerprinter.fingerprint(key).within(space), size, depth)).collect();
    let staged: Vec<std::result::Result<(Ref, ArenaRange), Status>> = l1.with(|state| {
        wanted
            .into_iter()
            .map(|(key, fingerprint, size, depth)| {
                if let Some(status) = full {
                    return Err(status);
                }
                let id = write::stage(state, space, key, fingerprint, size, temporary).inspect_err(|&status| {
                    state.counts.count_refusal(status);
                    full = Some(status);
                })?;
                state.slots[id].set(STORED);
                state.slots.use_record_mut(id).depth = depth;
                state.slots.begin_transfer(id);
                Ok((state.slots.name(id), state.range_of(id)))
            })
            .collect()
    });
    staged
        .into_iter()
        .map(|staged| {
            let (name, place) = staged?;
            let buffer = buffer_of(l1, name, place).ok_or(KVKEEP_ERR_CLOSED)?;
            Ok((name, buffer))
        })
        .collect()
}

pub(super) fn commit_load(
    l1: &L1,
    name: Ref,
    shape: ShapeTag,
    readers: &[LoadReader],
    lost: bool,
) -> Option<Vec<bool>> {
    l1.with(|state| {
        let live = state.slots.find(name).is_some_and(|slot| slot.is(STAGING));
        if !live {
            return Some(vec![false; readers.len()]);
        }
        if state.slots[name.slot].is(FORGOTTEN) {
            object_life::discard_staging(state, name.slot);
            return Some(vec![false; readers.len()]);
        }
        if !state.shapes.admits(state.shape_name(name.slot), shape) {
            object_life::discard_staging(state, name.slot);
            return None;
        }
        if readers.iter().any(|reader| reader.keep) {
            state.slots[name.slot].clear(TEMPORARY);
        }
        let slot = &mut state.slots[name.slot];
        if lost {
            slot.clear(STORED);
            slot.set(if slot.is(TEMPORARY) { 0 } else { LOST });
        }
        let fingerprint = state.fingerprint_of(name.slot);
        let id = object_life::commit(state, name.slot, fingerprint);
        object_life::rank_committed(state);
        let given = readers
            .iter()
            .map(|reader| {
                let Ok((index, session)) = state.sessions.use_now(reader.session, state.now_ms) else {
                    return false;
                };
                session.landed = true;
                let mut fresh = Vec::new();
                let taken = share::take(state, index, id, reader.count, &mut fresh);
                share::note_all(state, index, &fresh);
                taken
            })
            .collect();
        // Loaded to be read once, and no reader is left.
        if id == name.slot && state.slots[id].is(TEMPORARY) && state.slots.shares(id) == 0 {
            object_life::detach(state, id, Removal::Deleted);
            object_life::free_if_unused(state, id);
        }
        Some(given)
    })
}

pub(super) fn drop_load(l1: &L1, name: Ref) {
    l1.with(|state| {
        if state.slots.find(name).is_some_and(|slot| slot.is(STAGING)) {
            object_life::discard_staging(state, name.slot);
        }
    });
}

pub(super) fn take_writes(l1: &L1, objects: usize, bytes: u64) -> Vec<QueuedWrite> {
    let taken: Vec<(Ref, u64, ArenaRange, ObjectKey, [u8; 16], ShapeTag)> = l1.with(|state| {
        let mut taken = Vec::new();
        let mut left = bytes;
        while taken.len() < objects && (left > 0 || taken.is_empty()) {
            let Some((name, since_ms)) = state.writes.pop_front() else { break };
            let Some(slot) = state.slots.find(name) else { continue };
            if slot.is(DETACHED) || !slot.is(QUEUED) {
                continue;
            }
            left = left.saturating_sub(slot.size());
            state.slots[name.slot].set(WRITING);
            state.writes_waiting -= 1;
            let space = &state.spaces[state.slots.space(name.slot) as usize];
            let key = ObjectKey { space: space.tag, key: *state.slots.key(name.slot) };
            taken.push((name, since_ms, state.range_of(name.slot), key, space.layout, state.shape_of(name.slot)));
            begin_transfer(state, name.slot);
        }
        taken
    });
    taken
        .into_iter()
        .filter_map(|(name, since_ms, place, key, layout, shape)| {
            Some(QueuedWrite { name, since_ms, key, layout, shape, buffer: buffer_of(l1, name, place)? })
        })
        .collect()
}

pub(super) fn begin_backend_copy(l1: &L1, object: &ObjectKey) -> Option<QueuedWrite> {
    let (name, place, layout, shape) = l1.with(|state| {
        let id = tier_notes::find_ready(state, object)?;
        begin_transfer(state, id);
        let layout = state.spaces[state.slots.space(id) as usize].layout;
        Some((state.slots.name(id), state.range_of(id), layout, state.shape_of(id)))
    })?;
    Some(QueuedWrite { name, since_ms: l1.now_ms(), key: *object, layout, shape, buffer: buffer_of(l1, name, place)? })
}

pub(super) fn copied(l1: &L1, name: Ref) {
    l1.with(|state| {
        if state.slots.find(name).is_some_and(|slot| slot.is_findable() && !slot.has(QUEUED | STORED)) {
            let slot = &mut state.slots[name.slot];
            slot.clear(LOST | GIVEN_UP);
            slot.set(STORED);
        }
    });
}

pub(super) fn drop_writes(l1: &L1) -> u64 {
    l1.with(|state| {
        for (name, _) in std::mem::take(&mut state.writes) {
            if state.slots.find(name).is_some_and(|slot| slot.is(QUEUED) && !slot.is(WRITING)) {
                let slot = &mut state.slots[name.slot];
                slot.clear(QUEUED);
                slot.set(GIVEN_UP);
            }
        }
        std::mem::take(&mut state.writes_waiting)
    })
}

pub(super) fn buffer(l1: &L1, name: Ref) -> Option<Buffer> {
    let place = l1.with(|state| {
        state.slots.find(name).filter(|slot| slot.is_findable())?;
        let place = state.range_of(name.slot);
        begin_transfer(state, name.slot);
        Some(place)
    })?;
    buffer_of(l1, name, place)
}

pub(super) fn written(l1: &L1, name: Ref, stored: bool) {
    l1.with(|state| {
        if state.slots.find(name).is_none() {
            return;
        }
        state.wakes |= WAKE_FREED;
        let leaving = pending_writes::stop_leaving(state, name.slot);
        let slot = &mut state.slots[name.slot];
        let parked = slot.is(PARKED);
        // Lost since it was queued.
        let lost = slot.is(LOST) && stored;
        slot.clear(QUEUED | PARKED | WRITING);
        if !lost {
            slot.clear(LOST);
            slot.set(if stored { STORED } else { GIVEN_UP });
        }
        if slot.is(DETACHED) {
            return;
        }
        let locked = slot.locked();
        let pool = state.spaces[state.slots.space(name.slot) as usize].pool;
        if leaving && !locked && state.above(state.config.low_percent, 0) {
            // It is not kept to be written again: a backend that loses at once what it stores must not keep L1 full.
            if lost {
                pending_writes::count_unasked_drop(state);
            }
            evict::evict_object(state, name.slot);
        } else if parked {
            state.policy(pool).0.release(name.slot);
        }
    });
}

/// One more transfer runs on an object's bytes: they are locked.
fn begin_transfer(state: &mut L1State, id: u32) {
    let was_locked = state.slots[id].locked();
    state.slots.begin_transfer(id);
    state.relock(id, was_locked);
}

/// A buffer was let go: one transfer fewer runs on the bytes. With the last one, a detached object is freed and another may be evicted.
fn end_transfer(state: &mut L1State, name: Ref) {
    if state.slots.find(name).is_none() {
        debug_assert!(false, "a buffer outlived its slot");
        return;
    }
    let id = name.slot;
    state.wakes |= WAKE_FREED;
    state.slots.end_transfer(id);
    state.relock(id, true);
    let slot = &state.slots[id];
    if slot.locked() {
        return;
    }
    if slot.is(DETACHED) {
        return object_life::free_if_unused(state, id);
    }
    let pool = state.spaces[state.slots.space(id) as usize].pool;
    if !slot.is(PARKED) || slot.is(TEMPORARY) {
        state.policy(pool).0.release(id);
    }
}
