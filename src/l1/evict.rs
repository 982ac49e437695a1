//! Eviction: finding memory for a reservation, and keeping L1 below its watermark in the background.
//!
//! Where no object may be evicted, shares of expired sessions are revoked as a last resort. Retained objects are spared some turns.

use super::alloc::Block;
use super::session::lifecycle;
use super::slot::{GIVEN_UP, LEAVING, LOST, PARKED, QUEUED, SIZE_MAX, STORED, Slot, TEMPORARY};
use super::state::{L1State, MayEvict};
use super::tier::L1;
use super::wakes::WAKE_FREED;
use super::{object_life, pending_writes};
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA, Status};
use crate::misses::LeftL1;
use crate::policy::Removal;

/// Objects evicted under one lock by the background thread.
const SLICE: usize = 64;
/// Objects that backends lost, met by an eviction that cannot wait: so many are written first, the next one is dropped.
const WRITTEN_FIRST: usize = 8;

/// The work that is left after a slice of background eviction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Eviction {
    /// None: L1 is no more above its low watermark, or no object may go.
    Done,
    /// Another slice at once.
    More,
    /// The same as before: callers keep L1 busy. Those that write evict for themselves.
    Busy,
}

pub(super) fn evict_slice(l1: &L1, insists: bool) -> Eviction {
    let slice = |state: &mut L1State| {
        let above = |state: &L1State| state.above(state.config.low_percent, state.leaving_bytes);
        (0..SLICE).all(|_| above(state) && evict_in_background(state)) && above(state)
    };
    let more = if insists { Some(l1.with(slice)) } else { l1.with_if_free(slice) };
    match more {
        None => Eviction::Busy,
        Some(true) => Eviction::More,
        Some(false) => Eviction::Done,
    }
}

/// Allocates memory for an object of `space`, and evicts others for it as far as the call may. Called by `write::stage`.
pub(super) fn allocate(state: &mut L1State, space: u32, size: u64) -> Result<Block, Status> {
    if size > state.alloc.capacity().min(SIZE_MAX) {
        return Err(KVKEEP_ERR_NO_MEMORY);
    }
    let quota = state.spaces[space as usize].quota;
    if quota > 0 {
        if size > quota {
            return Err(KVKEEP_ERR_QUOTA);
        }
        while state.spaces[space as usize].used.saturating_add(size) > quota {
            let pool = state.spaces[space as usize].pool;
            if !evict_one(state, pool) && !lifecycle::revoke_longest_expired(state, Some(space)) {
                return Err(KVKEEP_ERR_QUOTA);
            }
        }
    }
    if let Some(block) = state.alloc.alloc(size) {
        return Ok(block);
    }
    // Do not empty the cache for an object that cannot fit anyway.
    let takeable = state.alloc.capacity().saturating_sub(state.in_use.locked_bytes);
    if size > takeable && size > takeable + lifecycle::revocable_bytes(state) {
        return Err(KVKEEP_ERR_NO_MEMORY);
    }
    loop {
        let fullest = fullest_pool(state);
        if !evict_one(state, fullest) && !evict_any(state) && !lifecycle::revoke_longest_expired(state, None) {
            return Err(KVKEEP_ERR_NO_MEMORY);
        }
        if let Some(block) = state.alloc.alloc(size) {
            return Ok(block);
        }
    }
}

fn fullest_pool(state: &L1State) -> usize {
    (0..state.pools.len()).max_by_key(|&pool| state.pools[pool].bytes).unwrap_or(0)
}

fn evict_any(state: &mut L1State) -> bool {
    (0..state.pools.len()).any(|pool| evict_one(state, pool))
}

/// The next victim of a pool: an object that is not in use and that L2 has, had, or need not have.
fn victim(state: &mut L1State, pool: usize) -> Option<u32> {
    let rule = WriteRule::of(state);
    loop {
        let (slots, parked) = (&mut state.slots, &mut state.parked);
        let mut usable = |id: u32| {
            let name = slots.name(id);
            if parked.len() == parked.capacity() {
                // Those written or gone since would pile up where a victim is always found.
                parked.retain(|&name| slots.find(name).is_some_and(|slot| slot.is(PARKED)));
            }
            let slot = &mut slots[id];
            if slot.locked() {
                return false;
            }
            let unwritten = rule.is_unwritten(slot) && !rule.is_lost(slot);
            if unwritten && !slot.is(PARKED) {
                slot.set(PARKED);
                parked.push_back(name);
            }
            !unwritten
        };
        let id = state.pools[pool].policy.victim(&mut usable)?;
        let now_ms = state.now_ms;
        let cold = state.slots.cold_mut(id);
        if cold.chances == 0 || !cold.retained(now_ms) {
            return Some(id);
        }
        cold.chances -= 1;
        state.touch_object(pool, id);
    }
}

/// Has a victim that backends lost written before it is evicted. False if it need not be, or cannot.
fn write_first(state: &mut L1State, id: u32) -> bool {
    if !WriteRule::of(state).is_lost(&state.slots[id]) {
        return false;
    }
    let name = state.slots.name(id);
    let queued = pending_writes::queue_write(state, id);
    let slot = &mut state.slots[id];
    if !queued {
        // Counted as dropped already.
        slot.clear(LOST);
        slot.set(GIVEN_UP);
        return false;
    }
    state.leaving_bytes += slot.size();
    if !slot.is(PARKED) {
        state.parked.push_back(name);
    }
    slot.set(PARKED | LEAVING);
    true
}

/// Evicts an object at once; if backends lost it, a few others are looked at first, and it leaves when it is written.
fn evict_victim(state: &mut L1State, pool: usize) -> bool {
    for _ in 0..WRITTEN_FIRST {
        let Some(id) = victim(state, pool) else { return false };
        if !write_first(state, id) {
            evict_object(state, id);
            return true;
        }
    }
    let Some(id) = victim(state, pool) else { return false };
    evict_now(state, id);
    true
}

/// Evicts one object of a pool: one that L2 has if possible, else one that is still to be written.
fn evict_one(state: &mut L1State, pool: usize) -> bool {
    if state.may_evict == MayEvict::Nothing {
        return false;
    }
    if evict_victim(state, pool) {
        return true;
    }
    if state.may_evict == MayEvict::Written {
        return false;
    }
    for _ in 0..state.parked.len() {
        let Some(name) = state.parked.pop_front() else { break };
        let Some(slot) = state.slots.find(name) else { continue };
        if !slot.is(PARKED) {
            continue;
        }
        if slot.locked() || state.spaces[state.slots.space(name.slot) as usize].pool != pool {
            state.parked.push_back(name);
            continue;
        }
        evict_now(state, name.slot);
        return true;
    }
    false
}

/// Evicts a slice of the objects that a space has above its quota and that L2 has, or need not have. True if there may be more.
pub(super) fn trim_to_quota(state: &mut L1State, space: u32) -> bool {
    for _ in 0..SLICE {
        let space = &state.spaces[space as usize];
        if space.quota == 0 || space.used <= space.quota {
            return false;
        }
        let pool = space.pool;
        if !evict_victim(state, pool) {
            return false;
        }
    }
    true
}

/// Evicts a ready object that is not in use and that need not be written any more.
pub(super) fn evict_object(state: &mut L1State, id: u32) {
    state.wakes |= WAKE_FREED;
    state.counts.evictions += 1;
    state.counts.evicted_bytes += state.slots[id].size();
    object_life::detach(state, id, Removal::Evicted);
    object_life::free_if_unused(state, id);
}

/// Evicts an object, though it may still have to be written. It must not be in use.
pub(super) fn evict_now(state: &mut L1State, id: u32) {
    let slot = &state.slots[id];
    // One that is queued is counted as dropped when it leaves the queue.
    if slot.is(QUEUED) || !WriteRule::of(state).is_unwritten(slot) {
        return evict_object(state, id);
    }
    pending_writes::count_unasked_drop(state);
    let (space, key) = (state.slots.space(id), *state.slots.key(id));
    evict_object(state, id);
    let fingerprint = state.fingerprinter.fingerprint(&key);
    state.misses.left_l1(&state.spaces[space as usize].tag, fingerprint, LeftL1::Unwritten);
}

/// Evicts one object, or starts writing one that must be written first.
fn evict_in_background(state: &mut L1State) -> bool {
    let first = fullest_pool(state);
    let victim = victim(state, first).or_else(|| (0..state.pools.len()).find_map(|pool| victim(state, pool)));
    if let Some(id) = victim {
        if !write_first(state, id) {
            evict_object(state, id);
        }
        return true;
    }
    for _ in 0..state.parked.len() {
        let Some(name) = state.parked.pop_front() else { break };
        let Some(slot) = state.slots.find(name) else { continue };
        if !slot.is(PARKED) {
            continue;
        }
        let passed = slot.is(LEAVING) || slot.locked();
        state.parked.push_back(name);
        if passed {
            continue;
        }
        if !state.slots[name.slot].is(QUEUED) {
            if !state.has_l2 {
                // There is nothing to write it to any more.
                evict_object(state, name.slot);
                return true;
            }
            if !pending_writes::has_room(state) || !pending_writes::queue_write(state, name.slot) {
                return false;
            }
        }
        let slot = &mut state.slots[name.slot];
        slot.set(LEAVING);
        state.leaving_bytes += slot.size();
        return true;
    }
    false
}

/// Which objects eviction has written first.
#[derive(Clone, Copy)]
struct WriteRule {
    /// All that no backend has.
    back: bool,
    /// Those that a backend had and lost.
    again: bool,
}

impl WriteRule {
    fn of(state: &L1State) -> WriteRule {
        let mode = state.config.store_mode;
        WriteRule {
            back: state.has_l2 && mode == StoreMode::WriteBack,
            again: state.has_l2 && mode != StoreMode::Never,
        }
    }

    /// Whether an object is still to be written to L2.
    fn is_unwritten(self, slot: &Slot) -> bool {
        slot.is(QUEUED) || self.is_lost(slot) || self.back && !slot.has(STORED | GIVEN_UP | TEMPORARY)
    }

    /// Whether it is to be written because backends lost it, and is not being written.
    fn is_lost(self, slot: &Slot) -> bool {
        self.again && slot.is(LOST) && !slot.is(QUEUED)
    }
}

#[cfg(test)]
#[path = "tests/evict.rs"]
mod tests;
