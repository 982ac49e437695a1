//! Removing objects on a caller's word: evict, delete, clear, forget.
//!
//! `object_life.rs` has the changes of state behind these, `evict.rs` the removal for want of memory.

use hashbrown::HashSet;

use super::lookup;
use super::outcome::Outcome;
use super::slot::{FORGOTTEN, STAGING, Slot};
use super::state::L1State;
use super::tier::L1;
use super::{evict, object_life};
use crate::error::{KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result, Status};
use crate::key::Key;
use crate::policy::Removal;
use crate::shape::Shape;

pub(super) fn evict(l1: &L1, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
    lookup::with_fingerprints(l1, keys, |state, fingerprints, _| {
        let space = state.space_index(space)?;
        let mut outcome = Outcome::new(statuses);
        for (i, &fingerprint) in fingerprints.iter().enumerate() {
            state.look_ahead(fingerprints, i);
            let status = match state.find_fingerprint(fingerprint.within(space)) {
                None => KVKEEP_ERR_NOT_FOUND,
                Some(id) if state.slots[id].locked() => KVKEEP_ERR_LOCKED,
                Some(id) => {
                    evict::evict_now(state, id);
                    KVKEEP_OK
                }
            };
            outcome.set(i, status);
        }
        Ok(outcome.all_ok())
    })
}

pub(super) fn delete(l1: &L1, space: u64, keys: &[Key]) -> Result<Vec<Status>> {
    l1.with(|state| {
        let space = state.space_index(space)?;
        let delete = |key| match state.find(space, key) {
            _ if state.detached_writes.has(space, key) => KVKEEP_ERR_LOCKED,
            None => KVKEEP_ERR_NOT_FOUND,
            Some(id) if state.slots[id].locked() => KVKEEP_ERR_LOCKED,
            Some(id) => {
                object_life::detach(state, id, Removal::Deleted);
                object_life::free_if_unused(state, id);
                KVKEEP_OK
            }
        };
        Ok(keys.iter().map(delete).collect())
    })
}

pub(super) fn detach_keys(l1: &L1, space: u64, keys: &[Key]) -> Result<()> {
    l1.with(|state| {
        let space = state.space_index(space)?;
        for key in keys {
            if let Some(id) = state.find(space, key) {
                object_life::detach(state, id, Removal::Deleted);
                object_life::free_if_unused(state, id);
            }
        }
        Ok(())
    })
}

pub(super) fn clear(l1: &L1, space: Option<u64>, force: bool) -> Result<(u64, bool)> {
    l1.with(|state| {
        let space = space.map(|space| state.space_index(space)).transpose()?;
        Ok(clear_objects(state, space, force))
    })
}

pub(super) fn forget(l1: &L1, space: Option<u64>) -> Result<u64> {
    l1.with(|state| {
        let space = space.map(|space| state.space_index(space)).transpose()?;
        for id in slots_of(state, space, |slot| slot.is(STAGING)) {
            state.slots[id].set(FORGOTTEN);
        }
        for session in state.sessions.live_mut() {
            session.forgotten |= session.user != 0 && space.is_none_or(|space| space == session.space);
        }
        Ok(clear_objects(state, space, true).0)
    })
}

/// Declares the shapes that a pool has in a space, and detaches the objects of ranks and groups whose shape was another.
pub(super) fn declare_shapes(state: &mut L1State, space: u32, shapes: &[Shape]) -> Result<()> {
    let replaced = state.shapes.declare(space, shapes)?;
    if !replaced.is_empty() {
        detach_groups(state, space, &replaced);
    }
    Ok(())
}

/// Detaches the objects of some ranks and groups.
fn detach_groups(state: &mut L1State, space: u32, groups: &HashSet<(u32, u32)>) {
    let of_groups = |id: u32| {
        let key = state.slots.key(id);
        state.slots.space(id) == space && groups.contains(&(key.rank, key.group))
    };
    let live = state.slots.live().filter(|(id, slot)| slot.is_findable() && of_groups(*id));
    let ids: Vec<u32> = live.map(|(id, _)| id).collect();
    for id in ids {
        object_life::detach(state, id, Removal::Deleted);
        object_life::free_if_unused(state, id);
    }
}

/// The slots of a space, or of all, that `wished` accepts.
fn slots_of(state: &L1State, space: Option<u32>, wished: impl Fn(&Slot) -> bool) -> Vec<u32> {
    let of_space = |id| space.is_none_or(|space| space == state.slots.space(id));
    state.slots.live().filter(|(id, slot)| wished(slot) && of_space(*id)).map(|(id, _)| id).collect()
}

/// Detaches the ready objects of a space, or of all; without `force`, those that are not in use. Gives the number removed, and whether
/// none stayed.
pub(super) fn clear_objects(state: &mut L1State, space: Option<u32>, force: bool) -> (u64, bool) {
    let ready = slots_of(state, space, Slot::is_findable);
    let mut gone = 0;
    for &id in &ready {
        if force || !state.slots[id].locked() {
            object_life::detach(state, id, Removal::Deleted);
            object_life::free_if_unused(state, id);
            gone += 1;
        }
    }
    (gone, gone == ready.len() as u64)
}
