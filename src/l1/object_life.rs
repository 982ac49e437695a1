//! The life of an object: every change of its state, as the flags of its slot have it.
//!
//! ```text
//! free --stage--> staging --commit--> ready --detach--> detached --free_if_unused--> free
//!                 staging --discard_staging-----------> detached
//! ```
//!
//! All functions here need the lock.

use super::alloc::Block;
use super::pending_writes;
use super::slot::{BUSY, DETACHED, NOBODY, QUEUED, READY, STAGING, STORED, Slot, TEMPORARY, WRITING};
use super::space::Space;
use super::state::L1State;
use super::wakes::{WAKE_COMMITS, WAKE_EVICTION, WAKE_FREED};
use crate::events::EventKind;
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::misses::LeftL1;
use crate::policy::Removal;

/// Free to staging: takes a slot for an object whose memory is `block`. No session holds it yet. Called for a writer and for a load,
/// by `write::stage`.
pub(super) fn stage(
    state: &mut L1State,
    space: u32,
    key: &Key,
    fingerprint: Fingerprint,
    size: u64,
    block: Block,
    temporary: bool,
) -> u32 {
    let id = state.slots.take(*key, space, fingerprint, size, block, if temporary { TEMPORARY } else { 0 });
    state.spaces[space as usize].used += size;
    state.in_use.lock(size);
    state.staged += 1;
    id
}

/// Staging to detached, and to free unless a transfer into the memory is under way. Called when a writer aborts or ends, when its
/// space was forgotten, when a load is given up, and when the key was committed meanwhile.
pub(super) fn discard_staging(state: &mut L1State, id: u32) {
    state.staged -= 1;
    state.detached += 1;
    let slot = &mut state.slots[id];
    slot.clear(STAGING);
    slot.set(READY | DETACHED);
    state.wakes |= WAKE_FREED;
    state.relock(id, true);
    free_if_unused(state, id);
}

/// Staging to ready: lookups find the object from now on, and its bytes do not change any more. Where its key is ready already, this
/// copy is discarded instead. Returns the slot that stays. Called by `write.rs` for a writer and by `tier_io.rs` for a load, each of
/// which goes on to [`rank_committed`] when it has committed its batch.
pub(super) fn commit(state: &mut L1State, id: u32, fingerprint: Fingerprint) -> u32 {
    let slot = &state.slots[id];
    let (space, temporary, size) = (state.slots.space(id), slot.is(TEMPORARY), slot.size());
    if let Some(first) = state.find_fingerprint(fingerprint) {
        discard_staging(state, id);
        if !temporary && state.slots[first].is(TEMPORARY) {
            state.slots[first].clear(TEMPORARY);
            pending_writes::queue_after_commit(state, first);
        }
        return first;
    }
    state.staged -= 1;
    state.ready += 1;
    let slot = &mut state.slots[id];
    slot.clear(STAGING);
    slot.set(READY);
    slot.set_holder(NOBODY, 0);
    state.relock(id, true);
    let (slots, fingerprinter) = (&state.slots, &state.fingerprinter);
    state.table.insert(fingerprint.hash, id, |id| fingerprinter.fingerprint(slots.key(id)).hash);
    let Space { pool, ready, .. } = &mut state.spaces[space as usize];
    *ready += 1;
    state.pools[*pool].bytes += size;
    state.unranked.push(id);
    state.record(EventKind::Stored, id);
    pending_writes::queue_after_commit(state, id);
    if state.above(state.config.high_percent, 0) {
        state.wakes |= WAKE_EVICTION;
    }
    state.wakes |= WAKE_COMMITS | WAKE_FREED;
    id
}

/// Adds the objects of a batch that was committed to their policy, the last one first: of a prompt that was committed as one batch
/// the last chunk is evicted first.
pub(super) fn rank_committed(state: &mut L1State) {
    let mut unranked = std::mem::take(&mut state.unranked);
    if let Some(&id) = unranked.first() {
        // A batch is of one space.
        let pool = state.spaces[state.slots.space(id) as usize].pool;
        let (policy, metas) = state.policy(pool);
        unranked.drain(..).rev().for_each(|id| policy.insert(id, &|id| metas.of_new(id)));
    }
    state.unranked = unranked;
}

/// Ready to detached: no lookup finds the object any more, and the sessions that have shares of it may read on. Called when it is
/// evicted, deleted, cleared or forgotten, and with the last share of a temporary object. The caller goes on to [`free_if_unused`].
pub(super) fn detach(state: &mut L1State, id: u32, why: Removal) {
    pending_writes::stop_leaving(state, id);
    state.detached += 1;
    let slot = &mut state.slots[id];
    slot.set(DETACHED);
    state.writes_gone += usize::from(slot.is(QUEUED));
    if slot.is(QUEUED) && !slot.is(WRITING) {
        state.writes_waiting -= 1;
        match why {
            Removal::Evicted => state.counts.dropped_evicted += 1,
            Removal::Deleted => state.counts.writes_withdrawn += 1,
        }
    }
    let size = slot.size();
    let (space, key) = (state.slots.space(id), *state.slots.key(id));
    if state.slots[id].is(BUSY) {
        state.detached_writes.add(id, space, key);
    }
    let fingerprint = state.fingerprinter.fingerprint(&key);
    state.table.remove(fingerprint.hash, id);
    if let Some(how) = leaves(&state.slots[id], why) {
        state.misses.left_l1(&state.spaces[space as usize].tag, fingerprint, how);
    }
    let Space { pool, ready, .. } = &mut state.spaces[space as usize];
    *ready -= 1;
    let pool = *pool;
    state.policy(pool).0.remove(id, why);
    state.pools[pool].bytes -= size;
    state.ready -= 1;
    state.record(EventKind::Removed, id);
    let (slot, name) = (&state.slots[id], state.slots.name(id));
    let (holder, held) = slot.holder();
    let holders = (held > 0)
        .then_some(holder)
        .into_iter()
        .chain(state.holders.iter(&state.slots, id).map(|(session, _)| session));
    for session in holders {
        let of_key = state.sessions.at_mut(session).detached.entry(key).or_default();
        // The holder may stand in the list too.
        if !of_key.contains(&name) {
            of_key.push(name);
        }
    }
}

/// How an object leaves L1, for the memory of what became of it; none where a backend has what is deleted here.
fn leaves(slot: &Slot, why: Removal) -> Option<LeftL1> {
    let is_stored = slot.is(STORED);
    match why {
        Removal::Evicted if is_stored => Some(LeftL1::Stored),
        Removal::Evicted if slot.is(QUEUED) && !slot.is(WRITING) => Some(LeftL1::Unwritten),
        Removal::Evicted => Some(LeftL1::Evicted),
        Removal::Deleted if is_stored => slot.is(TEMPORARY).then_some(LeftL1::Stored),
        Removal::Deleted if slot.is(TEMPORARY) => Some(LeftL1::Temporary),
        Removal::Deleted => Some(LeftL1::Deleted),
    }
}

/// Detached to free: gives the memory back, unless shares or transfers are left. Called after each of these may have been the last.
pub(super) fn free_if_unused(state: &mut L1State, id: u32) {
    let slot = &state.slots[id];
    debug_assert!(slot.is(DETACHED));
    if slot.locked() {
        return;
    }
    state.spaces[state.slots.space(id) as usize].used -= slot.size();
    state.detached -= 1;
    state.detached_writes.remove(id);
    state.alloc.free(state.slots.cold(id).node);
    state.slots.free(id);
}
