//! Objects that are to be written to L2: which they are, and the queue they wait in.
//!
//! `QUEUED` objects wait in the queue or, once `WRITING` is set too, are with the writer (`tier_io.rs`). A `LEAVING` one is evicted when
//! it is written. A `LOST` one was stored and is not any more; one that is `GIVEN_UP` is not tried again.

use super::slot::{DETACHED, GIVEN_UP, LEAVING, LOST, QUEUED, READY, STORED, Slot, TEMPORARY};
use super::state::L1State;
use super::wakes::WAKE_WRITES;
use crate::config::StoreMode;
use crate::misses::ObjectFate;

/// Whether every committed object is written to L2 sooner or later, used or not.
pub(super) fn stores_everything(state: &L1State) -> bool {
    state.has_l2 && matches!(state.config.store_mode, StoreMode::WriteThrough | StoreMode::WriteBack)
}

/// Whether an object read `more` times more is to be written to L2 for its uses.
#[inline]
pub(super) fn is_due_after(state: &L1State, slot: &Slot, more: u32) -> bool {
    let uses = slot.uses().saturating_add(more);
    matches!(state.config.store_mode, StoreMode::AfterUses(least) if uses >= least)
        && !slot.has(STORED | QUEUED | LOST | GIVEN_UP)
}

pub(super) fn queue_after_commit(state: &mut L1State, id: u32) {
    if state.config.store_mode == StoreMode::WriteThrough && !state.slots[id].has(STORED | LOST | TEMPORARY) {
        queue_write(state, id);
    }
}

/// Queues an object to be written to L2. False if there is no L2, if it is queued already, or if the queue is full.
pub(super) fn queue_write(state: &mut L1State, id: u32) -> bool {
    if !state.has_l2 || state.slots[id].is(QUEUED) {
        return false;
    }
    state.counts.writes_asked += 1;
    if !has_room(state) {
        state.counts.dropped_queue += 1;
        state.misses.write_ended(&state.object_key(id), ObjectFate::DroppedQueue, 0);
        return false;
    }
    state.writes_waiting += 1;
    state.slots[id].clear(LOST | GIVEN_UP);
    state.slots[id].set(QUEUED);
    let name = state.slots.name(id);
    state.writes.push_back((name, state.now_ms));
    state.wakes |= WAKE_WRITES;
    true
}

/// Whether one more object can be queued to be written. Where much of the queue names objects that are gone, these are
/// taken out.
pub(super) fn has_room(state: &mut L1State) -> bool {
    let most = state.config.writes_max as usize;
    // A full queue is looked through once for so many that left, and not for each.
    if state.writes.len() >= most && state.writes_gone > most / 8 {
        let slots = &state.slots;
        state
            .writes
            .retain(|&(name, _)| slots.find(name).is_some_and(|slot| slot.is(QUEUED | READY) && !slot.is(DETACHED)));
        state.writes_gone = 0;
    }
    state.writes.len() < most
}

/// Whether one more object of a session can be queued to be written besides those that it stages. If none waits it can: a batch
/// that is larger than the queue has nothing to wait for.
pub(super) fn has_room_for(state: &mut L1State, session: u32) -> bool {
    let staged = state.sessions.at_mut(session).staged.len() as u64;
    state.writes_waiting == 0 || state.writes_waiting + staged < u64::from(state.config.writes_max)
}

/// An object that was to be evicted once written is not any more. True if it was.
pub(super) fn stop_leaving(state: &mut L1State, id: u32) -> bool {
    let slot = &mut state.slots[id];
    let leaving = slot.is(LEAVING);
    if leaving {
        slot.clear(LEAVING);
        state.leaving_bytes -= slot.size();
    }
    leaving
}

/// An object is evicted that was to be written, and that no backend was asked to store.
pub(super) fn count_unasked_drop(state: &mut L1State) {
    state.counts.writes_asked += 1;
    state.counts.dropped_evicted += 1;
}
