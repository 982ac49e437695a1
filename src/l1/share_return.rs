//! Returning shares by key. A session may hold several copies of one key: those that were detached, and one that was committed since.

use super::share;
use super::slot::{NONE, Ref};
use super::state::L1State;
use crate::error::{KVKEEP_ERR_EXPIRED, KVKEEP_ERR_NOT_HELD, KVKEEP_OK, Status};
use crate::key::Key;

/// The slot of `key` of which `session` holds at least `count` shares: the one in the table, or a detached one.
#[inline(always)]
pub(super) fn held_slot(state: &L1State, session: u32, key: &Key, id: u32, count: u32) -> Option<u32> {
    if id != NONE && state.shares_of(session, id) >= count {
        return Some(id);
    }
    // Detached since, and perhaps replaced.
    let holder = state.sessions.at(session);
    let holds = |name: &&Ref| state.slots.find(**name).is_some() && state.shares_of(session, name.slot) >= count;
    holder.detached.get(key)?.iter().rev().find(holds).map(|name| name.slot)
}

/// The answer to a session that does not hold the shares of a key it returns or reads: EXPIRED if they were revoked.
pub(super) fn not_held(state: &L1State, session: u32, key: &Key) -> Status {
    if state.sessions.at(session).revoked.contains_key(key) { KVKEEP_ERR_EXPIRED } else { KVKEEP_ERR_NOT_HELD }
}

/// Returns shares of the key whose slot is `id`, which becomes `NONE` unless they were the last ones and the object stays:
/// the caller then counts it as read by `share::count_reads`, or not by `share::keep_place`.
#[inline(always)]
pub(super) fn return_key(state: &mut L1State, session: u32, key: &Key, id: &mut u32, count: u32) -> Status {
    let detached = !state.sessions.at_mut(session).detached.is_empty();
    if detached && let Some(status) = return_among_copies(state, session, key, id, count) {
        return status;
    }
    let Some(held) = held_slot(state, session, key, *id, count) else {
        *id = NONE;
        let status = not_held(state, session, key);
        if status == KVKEEP_ERR_EXPIRED {
            state.sessions.at_mut(session).forgive_revoked(key, count);
        }
        return status;
    };
    if detached && state.shares_of(session, held) == count {
        // It held no other copy.
        state.sessions.at_mut(session).detached.remove(key);
    }
    *id = if share::return_shares(state, session, held, count) { held } else { NONE };
    KVKEEP_OK
}

/// Returns shares of a session that holds several copies of a key, all but one of them detached by a clearing of its space. The
/// shares of one return are of one copy. Where it is open of which, another reader may still read either: so all stay until as
/// many shares are returned as were taken. `None` where it holds one copy, or none.
fn return_among_copies(state: &mut L1State, session: u32, key: &Key, id: &mut u32, count: u32) -> Option<Status> {
    let detached = state.sessions.at_mut(session).detached.get(key)?;
    let live = detached.iter().filter(|name| state.slots.find(**name).is_some()).map(|name| name.slot);
    let ids: Vec<u32> = live.chain((*id != NONE).then_some(*id)).collect();
    let shares = |id: u32| (id, state.shares_of(session, id));
    let copies: Vec<(u32, u32)> = ids.into_iter().map(shares).filter(|(_, shares)| *shares > 0).collect();
    if copies.len() < 2 {
        return None;
    }
    let taken: u64 = copies.iter().map(|(_, shares)| u64::from(*shares)).sum();
    let owed = &mut state.sessions.at_mut(session).owed;
    let before = owed.get(key).copied().unwrap_or(0);
    let returned = u64::from(before) + u64::from(count);
    let mut large_enough = copies.iter().filter(|(_, shares)| *shares >= count);
    match (large_enough.next(), large_enough.next()) {
        (None, _) => {
            *id = NONE;
            return Some(KVKEEP_ERR_NOT_HELD);
        }
        (Some(&(copy, _)), None) if before == 0 => {
            *id = if share::return_shares(state, session, copy, count) { copy } else { NONE };
            return Some(KVKEEP_OK);
        }
        _ => {}
    }
    *id = NONE;
    if returned > taken {
        return Some(KVKEEP_ERR_NOT_HELD);
    }
    if returned < taken {
        owed.insert(*key, before + count);
        return Some(KVKEEP_OK);
    }
    owed.remove(key);
    state.sessions.at_mut(session).detached.remove(key);
    for (copy, shares) in copies {
        // One of them at most is not detached.
        if share::return_shares(state, session, copy, shares) {
            *id = copy;
        }
    }
    Some(KVKEEP_OK)
}
