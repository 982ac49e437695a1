//! The life of a session: begun, expired, aborted, ended.
//!
//! ```text
//! begin --> live --deadline passes--> expired --end_idle, end_longest_expired--> ended
//!                                     expired --any use--> live
//!           live --end_or_abort------------------------------------------------> ended
//! ```
//!
//! A session is expired when its deadline has passed, and live again when it is used (`Sessions::use_now`). While it is expired, its
//! shares may be revoked for memory. All functions here need the lock.

use std::time::Duration;

use super::sessions::{Session, Staged};
use crate::error::Result;
use crate::l1::slot::{NOBODY, Ref};
use crate::l1::space::SpaceInfo;
use crate::l1::state::L1State;
use crate::l1::{object_life, share, tier_notes};

/// Sessions are looked through for idle ones no more often than this, and again after that for one that was not.
const RECLAIM_PAUSE_MS: u64 = 50;
const HELD_AGAIN_MS: u64 = 1000;

/// Begins a session for a process. Where as many live as may, ends the one that expired first. Called for `L1::begin_session`.
pub(in crate::l1) fn begin(
    state: &mut L1State,
    space: u64,
    owner_pid: u32,
    request_id: &str,
    timeout: Duration,
) -> Result<u64> {
    let space = state.space_index(space)?;
    if state.sessions.full() {
        end_longest_expired(state);
    }
    let session = state.sessions.begin(space, owner_pid, request_id, timeout, state.now_ms)?;
    state.reclaim_ms = state.reclaim_ms.min(state.now_ms + timeout.as_millis() as u64 + 1);
    Ok(session)
}

/// Counts one more job of a session that is not done: one with jobs is not ended for being idle. Called for `L1::begin_job`.
pub(in crate::l1) fn begin_job(state: &mut L1State, session: u64) -> Result<(SpaceInfo, Duration, Option<u64>)> {
    let (_, session) = state.sessions.use_now(session, state.now_ms)?;
    session.jobs += 1;
    let (space, timeout, user) = (session.space, Duration::from_millis(session.timeout_ms), session.user);
    Ok((state.space_info(space), timeout, (user != 0).then_some(user)))
}

/// Counts one job of a session as done. Called for `L1::end_job`; a session that has ended has none to count.
pub(in crate::l1) fn end_job(state: &mut L1State, session: u64) {
    if let Ok((_, session)) = state.sessions.use_now(session, state.now_ms) {
        session.jobs = session.jobs.saturating_sub(1);
    }
}

/// Live to ended, by its caller: as [`end`], and with `touch` false it is aborted, so that copies for it commit nothing. Called for
/// `L1::end_session`.
pub(in crate::l1) fn end_or_abort(state: &mut L1State, session: u64, touch: bool) -> Result<()> {
    let index = state.sessions.index(session)?;
    if !touch {
        state.sessions.mark_aborted(index);
    }
    end(state, index, touch, false);
    Ok(())
}

/// Live or expired to ended: discards the staging of the session at `index` and returns its shares. With `touch`, the objects it used
/// count as used, the last used first. One that was `reclaimed` is remembered, so that a late use is answered with EXPIRED.
fn end(state: &mut L1State, index: u32, touch: bool, reclaimed: bool) {
    let staged: Vec<Staged> = state.sessions.at_mut(index).staged.drain().collect();
    for Staged { id, writer } in staged {
        state.writers.subtract(writer, state.slots[id].size());
        object_life::discard_staging(state, id);
    }
    let session = state.sessions.at_mut(index);
    let mut used = std::mem::take(&mut session.used);
    let pool = state.spaces[session.space as usize].pool;
    if touch && session.landed {
        // Loads are committed in any order; objects are to be evicted in that of the prompt.
        used.sort_by_key(|&name| state.slots.find(name).map_or(u32::MAX, |_| state.slots.use_record(name.slot).depth));
    }
    for &name in used.iter().rev() {
        if state.slots.find(name).is_none() {
            continue;
        }
        let id = name.slot;
        let count = state.shares_of(index, id);
        if count > 0 && share::return_shares(state, index, id, count) {
            if touch {
                share::count_read(state, id);
            } else {
                share::keep_place(state, pool, id);
            }
        }
        let Some(slot) = state.slots.find(name) else { continue };
        if touch && slot.is_findable() && state.slots.shares(id) == 0 {
            state.touch_object(pool, id);
            tier_notes::note_use(state, id);
        }
        let slot = &mut state.slots[id];
        if slot.holder() == (index, 0) {
            slot.set_holder(NOBODY, 0);
        }
    }
    debug_assert_eq!(state.sessions.at(index).shares, 0);
    state.sessions.remove(index, reclaimed);
}

/// Expired to ended: ends sessions that passed their deadline holding nothing. Gives the numbers of all that were ended by their
/// deadlines since the last call, and when to look again. Called by a background thread, for `L1::reclaim_sessions`.
pub(in crate::l1) fn end_idle(state: &mut L1State) -> (Vec<u64>, Option<Duration>) {
    let now_ms = state.now_ms;
    let wait = |until: u64| (until != u64::MAX).then(|| Duration::from_millis(until.saturating_sub(now_ms)));
    let mut ended = std::mem::take(&mut state.reclaimed);
    if now_ms < state.reclaim_ms {
        return (ended, wait(state.reclaim_ms));
    }
    let mut idle = Vec::new();
    let mut next = u64::MAX;
    for (index, session) in state.sessions.live() {
        if !session.is_expired(now_ms) {
            next = next.min(session.deadline_ms + 1);
        } else if session.idle() {
            idle.push((index, session.id));
        } else {
            next = next.min(now_ms + HELD_AGAIN_MS);
        }
    }
    for &(index, _) in &idle {
        end(state, index, true, true);
        state.counts.sessions_reclaimed += 1;
    }
    state.reclaim_ms = next.max(now_ms + RECLAIM_PAUSE_MS);
    let wait = wait(state.reclaim_ms);
    ended.extend(idle.into_iter().map(|(_, id)| id));
    (ended, wait)
}

/// Expired to ended, where as many live as may: ends the session that expired first and stages nothing, though it holds shares.
/// Sessions that their callers forgot must not keep others out forever. Called before a session or a copy begins.
pub(in crate::l1) fn end_longest_expired(state: &mut L1State) {
    let expired = state
        .sessions
        .live()
        .filter(|(_, session)| session.is_expired(state.now_ms) && session.staged.is_empty() && session.jobs == 0);
    let first = expired.map(|(index, session)| (session.deadline_ms, index, session.id, session.shares)).min();
    let Some((_, index, id, shares)) = first else { return };
    state.counts.shares_revoked += shares;
    if shares > 0 {
        note(state, index, || {
            format!("{shares} of its shares were taken: it had passed its deadline, and as many sessions live as may")
        });
    }
    state.reclaimed.push(id);
    end(state, index, true, true);
    state.counts.sessions_reclaimed += 1;
}

/// Expired sessions that hold shares.
fn expired(state: &L1State, space: Option<u32>) -> impl Iterator<Item = (u32, &Session)> {
    state.sessions.live().filter(move |(_, session)| {
        session.shares > 0 && session.is_expired(state.now_ms) && space.is_none_or(|space| space == session.space)
    })
}

/// Bytes of the objects of which expired sessions have shares.
pub(in crate::l1) fn revocable_bytes(state: &L1State) -> u64 {
    let size = |session: u32, name: Ref| match state.slots.find(name) {
        Some(slot) if state.shares_of(session, name.slot) > 0 => slot.size(),
        _ => 0,
    };
    expired(state, None).map(|(index, session)| session.used.iter().map(|&name| size(index, name)).sum::<u64>()).sum()
}

/// Revokes the shares of the session that expired first, of any space or of one. It stays expired, and returns of these shares are
/// answered with EXPIRED. False if no expired session holds any. Called by `evict.rs` where no object may be evicted.
pub(in crate::l1) fn revoke_longest_expired(state: &mut L1State, space: Option<u32>) -> bool {
    let first = expired(state, space).map(|(index, session)| (session.deadline_ms, index)).min();
    let Some((_, index)) = first else { return false };
    let Session { used, space, .. } = state.sessions.at_mut(index);
    let (used, pool) = (used.clone(), state.spaces[*space as usize].pool);
    let mut revoked = 0;
    for name in used.into_iter().rev() {
        if state.slots.find(name).is_none() {
            continue;
        }
        let count = state.shares_of(index, name.slot);
        if count == 0 {
            continue;
        }
        let key = *state.slots.key(name.slot);
        if share::return_shares(state, index, name.slot, count) {
            share::keep_place(state, pool, name.slot);
        }
        *state.sessions.at_mut(index).revoked.entry(key).or_insert(0) += count;
        revoked += u64::from(count);
    }
    state.counts.shares_revoked += revoked;
    note(state, index, || {
        format!("{revoked} of its shares were taken: it had passed its deadline, and memory is needed")
    });
    state.sessions.at_mut(index).detached.clear();
    for (key, owed) in std::mem::take(&mut state.sessions.at_mut(index).owed) {
        state.sessions.at_mut(index).forgive_revoked(&key, owed);
    }
    true
}

/// Discards all that a writer has staged, in any session. Called when the writer's client ends.
pub(in crate::l1) fn drop_staged_by(state: &mut L1State, writer: u64) {
    let sessions = state.sessions.live().filter(|(_, session)| !session.staged.is_empty());
    let sessions: Vec<u32> = sessions.map(|(index, _)| index).collect();
    for index in sessions {
        let staged = &mut state.sessions.at_mut(index).staged;
        let dropped: Vec<Staged> = staged.extract_if(|staged| staged.writer == writer).collect();
        if !dropped.is_empty() {
            note(state, index, || {
                format!("objects that it had staged were dropped, since their writer has gone: {}", dropped.len())
            });
        }
        dropped.into_iter().for_each(|staged| object_life::discard_staging(state, staged.id));
    }
}

/// Keeps a line about what was taken from the session at `index` until it is logged.
fn note(state: &mut L1State, index: u32, what: impl FnOnce() -> String) {
    let name = state.sessions.at(index).name();
    state.note("session taken", || format!("{name}: {}", what()));
}
