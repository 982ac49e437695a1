//! Shares: counting them for a session and an object, when a session takes and returns them. `share_return.rs` finds out of which
//! copy of a key shares are returned.
//!
//! Those that run for each key are inlined by force: of a batch of one key, entering
//! and leaving functions is a twentieth.

use super::counters::ReadCounts;
use super::slot::{BUSY, DETACHED, LISTED, NONE, READ, SHARES_MAX, STORED, TEMPORARY};
use super::state::L1State;
use super::{object_life, pending_writes};
use crate::abi::View;
use crate::error::{KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND};
use crate::policy::Removal;

/// The former state of a session that took shares of an object.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    /// The session used it for the first time.
    pub first: bool,
    /// The session had shares of it before.
    pub held: bool,
}

/// Gives `count` shares of a ready object to a session. False if it would have more than can be counted. If it had none of the
/// object before, the slot is added to `fresh`, for [`note_all`].
#[inline(always)]
pub(super) fn take(state: &mut L1State, session: u32, id: u32, count: u32, fresh: &mut Vec<u32>) -> bool {
    let taken = take_one(state, session, id, count);
    if taken.is_some_and(|taken| taken.first) {
        fresh.push(id);
    }
    taken.is_some()
}

/// Takes shares of the object in a slot, which may be `NONE`, counts it in `read`, and gives its view.
#[inline(always)]
pub(super) fn read_one(
    state: &mut L1State,
    session: u32,
    id: u32,
    count: u32,
    read: &mut ReadCounts,
    mut fresh: impl FnMut(u32),
) -> View {
    if id == NONE {
        read.misses += u64::from(state.sessions.at_mut(session).user == 0);
        return View::none(KVKEEP_ERR_NOT_FOUND);
    }
    let known = is_held_for(state, session, id);
    let Some(Taken { first, held }) = take_one(state, session, id, count) else {
        return View::none(KVKEEP_ERR_LIMIT);
    };
    if first {
        fresh(id);
    }
    let view = state.view(id);
    if !known && !held {
        read.hits += 1;
        read.bytes += view.size;
    }
    view
}

/// As [`take`], and says which shares the session had of the object before. `None` if it would have too many.
#[inline(always)]
pub(super) fn take_one(state: &mut L1State, session: u32, id: u32, count: u32) -> Option<Taken> {
    let word = state.slots[id].word();
    let (holder, held) = word.holder();
    let shares = if word.is(LISTED) { state.slots.shares(id) } else { held };
    if count > SHARES_MAX - shares {
        return None;
    }
    let mut taken = Taken { first: holder != session, held: holder == session && held > 0 };
    if !taken.first || shares == 0 {
        state.slots[id].set_holder(session, held + count);
    } else {
        taken.first = state.holders.add(&mut state.slots, id, session, count);
        taken.held = !taken.first;
    }
    if shares == 0 {
        let slot = &mut state.slots[id];
        slot.since_ms = state.now_ms as u32;
        if !word.locked() {
            state.in_use.lock(slot.size());
        }
    }
    state.sessions.at_mut(session).shares += u64::from(count);
    state.in_use.shares += u64::from(count);
    Some(taken)
}

/// Whether the session that `copy` copies for, if it does, has shares of an object.
#[inline(always)]
fn is_held_for(state: &mut L1State, copy: u32, id: u32) -> bool {
    state.sessions.at_mut(copy).user != 0 && {
        let user = state.sessions.user_of(copy);
        user != copy && state.shares_of(user, id) > 0
    }
}

/// Notes that a session has used objects.
#[inline(always)]
pub(super) fn note_all(state: &mut L1State, session: u32, fresh: &[u32]) {
    let holder = state.sessions.at_mut(session);
    holder.note_all(&state.slots, fresh);
    if holder.has_duplicates() {
        forget_duplicates(state, session);
    }
}

/// Leaves the first entry of each living object in the list of those that a session used. Slots are marked with the number of the
/// pass, so that it costs one look at each.
fn forget_duplicates(state: &mut L1State, session: u32) {
    // A fresh slot is marked with 0.
    state.passes = state.passes.wrapping_add(1).max(1);
    let (pass, slots) = (state.passes, &mut state.slots);
    let holder = state.sessions.at_mut(session);
    let mut twice = 0;
    holder.used.retain(|name| {
        if slots.find(*name).is_none() {
            return false;
        }
        let record = slots.use_record_mut(name.slot);
        let first = record.seen != pass;
        record.seen = pass;
        twice += usize::from(!first);
        first
    });
    holder.set_distinct(twice);
}

/// Takes `count` shares of an object back from a session that holds them. True if they were the last ones and the object stays.
#[inline(always)]
pub(super) fn return_shares(state: &mut L1State, session: u32, id: u32, count: u32) -> bool {
    state.sessions.at_mut(session).shares -= u64::from(count);
    state.in_use.shares -= u64::from(count);
    let slot = &mut state.slots[id];
    let word = slot.word();
    if word.is(TEMPORARY) {
        slot.set(READ);
    }
    let held = word.held_by(session);
    let own = held.min(count);
    if own > 0 {
        slot.set_holder(session, held - own);
    }
    if word.is(LISTED) {
        if count > own {
            state.holders.sub(&mut state.slots, id, session, count - own);
        }
        if state.slots.shares(id) > 0 {
            return false;
        }
    } else if held > own {
        return false;
    }
    let slot = &state.slots[id];
    if !word.is(BUSY) {
        state.in_use.unlock(slot.size());
    }
    let stays = !word.has(TEMPORARY | DETACHED);
    if !stays {
        if !word.is(DETACHED) {
            object_life::detach(state, id, Removal::Deleted);
        }
        object_life::free_if_unused(state, id);
    }
    stays
}

/// Counts objects of a space whose last shares were returned as read, the last one first; `NONE` is passed over.
#[inline(always)]
pub(super) fn count_reads(state: &mut L1State, space: u32, ids: &mut [u32]) {
    let ids = without_none(ids);
    for &id in &*ids {
        count_read(state, id);
    }
    ids.reverse();
    state.touch_all(state.spaces[space as usize].pool, ids);
}

pub(super) fn count_read(state: &mut L1State, id: u32) {
    state.slots[id].count_use();
    if pending_writes::is_due_after(state, &state.slots[id], 0) {
        pending_writes::queue_write(state, id);
    }
}

/// Whether an object was committed to be read once and is still to be.
pub(super) fn is_to_be_read_once(state: &L1State, id: u32) -> bool {
    let slot = &state.slots[id];
    slot.is(TEMPORARY) && !slot.has(READ | STORED)
}

/// Does not count an object whose last share was returned as read, if not `NONE`: it keeps its place in the order of eviction.
pub(super) fn keep_place(state: &mut L1State, pool: usize, id: u32) {
    if id != NONE {
        state.policy(pool).0.release(id);
    }
}

/// Those of `ids` that are not `NONE`, moved to the front.
pub(super) fn without_none(ids: &mut [u32]) -> &mut [u32] {
    let mut kept = 0;
    for at in 0..ids.len() {
        let id = ids[at];
        ids[kept] = id;
        kept += usize::from(id != NONE);
    }
    &mut ids[..kept]
}
