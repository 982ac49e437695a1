//! The calls that write: staging keys, committing them, and giving them up.

use super::lookup;
use super::outcome::Outcome;
use super::session::sessions::{Session, Staged};
use super::slot::{FORGOTTEN, TEMPORARY};
use super::state::{L1State, MayEvict};
use super::tier::L1;
use super::{evict, object_life, pending_writes, share};
use crate::abi::View;
use crate::error::{
    KVKEEP_ERR_CANCELLED, KVKEEP_ERR_EXISTS, KVKEEP_ERR_INVALID, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NO_MEMORY,
    KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result, Status,
};
use crate::fingerprint::Fingerprint;
use crate::key::Key;

pub(super) fn reserve_write_by(
    l1: &L1,
    writer: u64,
    session: u64,
    keys: &[Key],
    sizes: &[u64],
    temporary: bool,
    views: &mut [View],
) -> Result<bool> {
    lookup::with_fingerprints(l1, keys, |state, fingerprints, _| {
        stage_all(state, (session, writer), keys, fingerprints, sizes, temporary, views)
    })
}

pub(super) fn finish_write(l1: &L1, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
    lookup::with_fingerprints(l1, keys, |state, fingerprints, fresh| {
        let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let user = state.sessions.user_of(index);
        let orphan = state.sessions.is_orphan(index);
        let mut outcome = Outcome::new(statuses);
        for (i, fingerprint) in fingerprints.iter().map(|fingerprint| fingerprint.within(space)).enumerate() {
            let status = match take_staged(state, index, fingerprint) {
                Some(id) if orphan || state.slots[id].is(FORGOTTEN) => {
                    object_life::discard_staging(state, id);
                    KVKEEP_ERR_CANCELLED
                }
                Some(id) => {
                    commit_for(state, user, id, fingerprint, fresh);
                    KVKEEP_OK
                }
                None => KVKEEP_ERR_NOT_FOUND,
            };
            outcome.set(i, status);
        }
        object_life::rank_committed(state);
        share::note_all(state, user, fresh);
        Ok(outcome.all_ok())
    })
}

pub(super) fn finish_write_and_reserve_read(
    l1: &L1,
    session: u64,
    keys: &[Key],
    count: u32,
    views: &mut [View],
) -> Result<bool> {
    lookup::with_fingerprints(l1, keys, |state, fingerprints, fresh| {
        let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let user = state.sessions.user_of(index);
        let (mut all, mut taken) = (true, Vec::new());
        for (fingerprint, view) in fingerprints.iter().map(|fingerprint| fingerprint.within(space)).zip(views) {
            *view = match take_staged(state, index, fingerprint) {
                Some(id) if state.slots[id].is(FORGOTTEN) => {
                    object_life::discard_staging(state, id);
                    all = false;
                    View::none(KVKEEP_ERR_CANCELLED)
                }
                Some(id) => {
                    let id = commit_for(state, user, id, fingerprint, fresh);
                    if share::take(state, index, id, count, if user == index { fresh } else { &mut taken }) {
                        state.view(id)
                    } else {
                        all = false;
                        View::none(KVKEEP_ERR_LIMIT)
                    }
                }
                None => {
                    all = false;
                    View::none(KVKEEP_ERR_NOT_FOUND)
                }
            };
        }
        object_life::rank_committed(state);
        share::note_all(state, user, fresh);
        share::note_all(state, index, &taken);
        Ok(all)
    })
}

pub(super) fn abort_write(l1: &L1, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
    lookup::with_fingerprints(l1, keys, |state, fingerprints, _| {
        let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let mut outcome = Outcome::new(statuses);
        for (i, fingerprint) in fingerprints.iter().map(|fingerprint| fingerprint.within(space)).enumerate() {
            let staged = take_staged(state, index, fingerprint);
            outcome.set(
                i,
                staged.map_or(KVKEEP_ERR_NOT_FOUND, |id| {
                    object_life::discard_staging(state, id);
                    KVKEEP_OK
                }),
            );
        }
        Ok(outcome.all_ok())
    })
}

/// Stages keys for a session and a writer.
pub(super) fn stage_all(
    state: &mut L1State,
    (session, writer): (u64, u64),
    keys: &[Key],
    fingerprints: &[Fingerprint],
    sizes: &[u64],
    temporary: bool,
    views: &mut [View],
) -> Result<bool> {
    state.writers.check(writer, sizes)?;
    let (index, _) = state.sessions.use_now(session, state.now_ms)?;
    let user = state.sessions.user_of(index);
    // The first key that does not fit decides for the new ones behind it: a prefix with a hole is useless.
    let mut full: Option<Status> = None;
    let mut all = true;
    for (i, ((key, &size), view)) in keys.iter().zip(sizes).zip(views).enumerate() {
        state.look_ahead(fingerprints, i);
        let depth = state.sessions.at_mut(user).next_depth;
        *view = match stage_for(state, (index, writer), key, fingerprints[i], size, temporary, full) {
            Ok(id) => {
                state.slots.use_record_mut(id).depth = depth;
                state.sessions.at_mut(user).next_depth += 1;
                state.view(id)
            }
            Err(status) => {
                if !matches!(status, KVKEEP_ERR_EXISTS | KVKEEP_ERR_INVALID) {
                    full = Some(status);
                }
                all = false;
                View::none(status)
            }
        };
    }
    Ok(all)
}

fn stage_for(
    state: &mut L1State,
    (session, writer): (u32, u64),
    key: &Key,
    fingerprint: Fingerprint,
    size: u64,
    temporary: bool,
    full: Option<Status>,
) -> std::result::Result<u32, Status> {
    let holder = state.sessions.at_mut(session);
    let space = holder.space;
    if size == 0 {
        return Err(KVKEEP_ERR_INVALID);
    }
    if holder.forgotten {
        return Err(KVKEEP_ERR_CANCELLED);
    }
    let fingerprint = fingerprint.within(space);
    let staged = holder.staged.find(fingerprint.hash, |staged| state.slots[staged.id].is_of(fingerprint)).is_some();
    if staged || state.find_fingerprint(fingerprint).is_some() {
        return Err(KVKEEP_ERR_EXISTS);
    }
    if let Some(status) = full {
        return Err(status);
    }
    // A reservation that waits for writes does not add to those that wait already.
    if state.may_evict == MayEvict::Written && !pending_writes::has_room_for(state, session) {
        return Err(KVKEEP_ERR_NO_MEMORY);
    }
    let id = stage(state, space, key, fingerprint, size, temporary).inspect_err(|&why| {
        // One that waits is refused when it waits no more.
        if state.may_evict == MayEvict::All {
            state.counts.count_refusal(why);
        }
    })?;
    state.slots[id].set_holder(session, 0);
    let holder = state.sessions.at_mut(session);
    let (slots, fingerprinter) = (&state.slots, &state.fingerprinter);
    let hash = |staged: &Staged| fingerprinter.fingerprint(slots.key(staged.id)).hash;
    holder.staged.insert_unique(fingerprint.hash, Staged { id, writer }, hash);
    state.writers.add(writer, size);
    Ok(id)
}

/// Takes a key out of those that a session stages. Gives its slot, which is still staging.
fn take_staged(state: &mut L1State, session: u32, fingerprint: Fingerprint) -> Option<u32> {
    let slots = &state.slots;
    let staged = &mut state.sessions.at_mut(session).staged;
    let (Staged { id, writer }, _) =
        staged.find_entry(fingerprint.hash, |staged| slots[staged.id].is_of(fingerprint)).ok()?.remove();
    state.writers.subtract(writer, slots[id].size());
    Some(id)
}

/// Stages an object: finds memory for it, and evicts others if it must. No session holds it yet.
pub(super) fn stage(
    state: &mut L1State,
    space: u32,
    key: &Key,
    fingerprint: Fingerprint,
    size: u64,
    temporary: bool,
) -> std::result::Result<u32, Status> {
    let block = evict::allocate(state, space, size)?;
    Ok(object_life::stage(state, space, key, fingerprint, size, block, temporary))
}

/// Commits a staged object for the session that uses it. Its slot is added to `fresh` for `share::note_all`, unless the key was ready
/// already. Returns the slot that is read from now on.
fn commit_for(state: &mut L1State, user: u32, id: u32, fingerprint: Fingerprint, fresh: &mut Vec<u32>) -> u32 {
    state.counts.commits += 1;
    let kept = object_life::commit(state, id, fingerprint);
    if kept == id {
        state.counts.commits_temporary += u64::from(state.slots[id].is(TEMPORARY));
        state.slots[id].set_holder(user, 0);
        fresh.push(id);
    } else {
        state.counts.commits_discarded += 1;
    }
    kept
}
