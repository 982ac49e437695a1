//! The calls that read: taking shares of keys, and returning them.
//!
//! A call of one key takes a short way (`single_key_read.rs`).

use super::counters::ReadCounts;
use super::lookup;
use super::outcome::Outcome;
use super::session::sessions::Session;
use super::slot::{NONE, TEMPORARY};
use super::tier::L1;
use super::{count_lookups, share, share_return, single_key_read};
use crate::abi::View;
use crate::ablation::{self, Optimization::SingleKeyRead};
use crate::error::{KVKEEP_OK, Result};
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::misses::MissContext;

pub(super) fn reserve_read(l1: &L1, session: u64, keys: &[Key], count: u32, views: &mut [View]) -> Result<bool> {
    if let ([key], [view]) = (keys, &mut *views)
        && !ablation::is_off(SingleKeyRead)
    {
        *view = single_key_read::reserve(l1, session, key, count)?;
        return Ok(view.status == KVKEEP_OK as i32);
    }
    lookup::with_slots(l1, keys, false, |mut lookup| {
        l1.with(|state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let (found, fresh) = lookup.find_all(state, space);
            let mut read = ReadCounts::default();
            let mut all = true;
            for ((view, key), &id) in views.iter_mut().zip(keys).zip(&*found) {
                let before = read.hits;
                *view = share::read_one(state, index, id, count, &mut read, |id| fresh.push(id));
                read.chunks += (read.hits - before) * u64::from(key.stands_for_chunk());
                all &= view.status == KVKEEP_OK as i32;
            }
            share::note_all(state, index, fresh);
            let of_space = &mut state.spaces[space as usize];
            of_space.lookups.hits[0] += read.hits;
            state.counts.read(read, of_space.spec.chunk_tokens);
            if read.misses > 0 {
                let missed: Vec<Fingerprint> = lookup.missed().collect();
                count_lookups::count_misses(state, space, &missed, MissContext::READ);
            }
            Ok(all)
        })
    })
}

pub(super) fn reserve_found(
    l1: &L1,
    session: u64,
    keys: &[Key],
    count: u32,
    held: &mut [bool],
    mut sizes: Option<&mut [u64]>,
) -> Result<()> {
    lookup::with_slots(l1, keys, false, |mut lookup| {
        l1.with(|state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let (found, fresh) = lookup.find_all(state, space);
            for (i, (held, &id)) in held.iter_mut().zip(&*found).enumerate() {
                if id != NONE && !*held && share::take(state, index, id, count, fresh) {
                    *held = true;
                    if let Some(sizes) = &mut sizes {
                        sizes[i] = state.slots[id].size();
                    }
                }
            }
            share::note_all(state, index, fresh);
            Ok(())
        })
    })
}

pub(super) fn finish_read(
    l1: &L1,
    session: u64,
    keys: &[Key],
    count: u32,
    statuses: Option<&mut [i32]>,
) -> Result<bool> {
    let mut outcome = Outcome::new(statuses);
    if let [key] = keys
        && !ablation::is_off(SingleKeyRead)
    {
        outcome.set(0, single_key_read::finish(l1, session, key, count)?);
        return Ok(outcome.all_ok());
    }
    lookup::with_slots(l1, keys, true, |mut lookup| {
        l1.with(|state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let (found, _) = lookup.find_all(state, space);
            for (i, (key, id)) in keys.iter().zip(found.iter_mut()).enumerate() {
                outcome.set(i, share_return::return_key(state, index, key, id, count));
            }
            share::count_reads(state, space, found);
            Ok(outcome.all_ok())
        })
    })
}

pub(super) fn release(l1: &L1, session: u64, keys: &[Key], count: u32) -> Result<u64> {
    l1.with(|state| {
        let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let mut returned = 0;
        for key in keys {
            let mut id = state.find(space, key).unwrap_or(NONE);
            returned += u64::from(share_return::return_key(state, index, key, &mut id, count) == KVKEEP_OK);
            share::count_reads(state, space, &mut [id]);
        }
        Ok(returned)
    })
}

pub(super) fn return_unread(l1: &L1, session: u64, keys: impl Iterator<Item = Key>, count: u32) {
    l1.with(|state| {
        let Ok(index) = state.sessions.index(session) else { return };
        let space = state.sessions.at_mut(index).space;
        let pool = state.spaces[space as usize].pool;
        for key in keys {
            let mut id = state.find(space, &key).unwrap_or(NONE);
            let awaited = (id != NONE && share::is_to_be_read_once(state, id)).then_some(id);
            if let Some(awaited) = awaited {
                state.slots[awaited].clear(TEMPORARY);
            }
            share_return::return_key(state, index, &key, &mut id, count);
            if let Some(awaited) = awaited {
                state.slots[awaited].set(TEMPORARY);
            }
            share::keep_place(state, pool, id);
        }
    });
}

pub(super) fn get_views(l1: &L1, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool> {
    l1.with(|state| {
        let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let mut all = true;
        for (key, view) in keys.iter().zip(views) {
            let id = state.find(space, key).unwrap_or(NONE);
            *view = match share_return::held_slot(state, index, key, id, 1) {
                Some(id) => state.view(id),
                None => View::none(share_return::not_held(state, index, key)),
            };
            all &= view.status == KVKEEP_OK as i32;
        }
        Ok(all)
    })
}
