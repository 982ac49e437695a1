//! The calls that read: taking shares of keys, and returning them.
//!
//! A call of one key takes a short way (`single_key_read.rs`); where calls meet, one shares the lock if it can (`shared_read.rs`).

use super::counters::ReadCounts;
use super::lookup;
use super::outcome::Outcome;
use super::session::sessions::Session;
use super::slot::{NONE, TEMPORARY};
use super::tier::L1;
use super::{share, share_return, shared_read, single_key_read};
use crate::abi::View;
use crate::ablation::{self, Optimization::SingleKeyRead};
use crate::error::{KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result};
use crate::key::Key;

pub(super) fn reserve_read(l1: &L1, session: u64, keys: &[Key], count: u32, views: &mut [View]) -> Result<bool> {
    let now_ms = l1.now_ms();
    if let ([key], [view]) = (keys, &mut *views)
        && !ablation::is_off(SingleKeyRead)
        && !l1.contention.is_there(now_ms)
    {
        *view = single_key_read::reserve(l1, session, key, count, now_ms)?;
        return Ok(view.status == KVKEEP_OK as i32);
    }
    lookup::with_slots(l1, keys, false, |mut lookup| {
        let shared = shared_read::run(l1, session, now_ms, |call| {
            let state = call.state;
            let (found, fresh) = lookup.find_all(state, call.session.space);
            let (hits, held) = call.take_all(found, count, fresh)?;
            for (view, &id) in views.iter_mut().zip(&*found) {
                *view = if id == NONE { View::none(KVKEEP_ERR_NOT_FOUND) } else { state.view(id) };
            }
            call.count_read(keys.len() as u64, hits, held);
            Some(hits == keys.len() as u64)
        });
        if let Some(all) = shared {
            return Ok(all);
        }
        l1.with_at(now_ms, |state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let (found, fresh) = lookup.find_all(state, space);
            let mut read = ReadCounts::default();
            let mut all = true;
            for (view, &id) in views.iter_mut().zip(&*found) {
                *view = share::read_one(state, index, id, count, &mut read, |id| fresh.push(id));
                all &= view.status == KVKEEP_OK as i32;
            }
            share::note_all(state, index, fresh);
            state.counters.read(read);
            Ok(all)
        })
    })
}

pub(super) fn reserve_found(l1: &L1, session: u64, keys: &[Key], count: u32, held: &mut [bool]) -> Result<()> {
    lookup::with_slots(l1, keys, false, |mut lookup| {
        let now_ms = l1.now_ms();
        let shared = shared_read::run(l1, session, now_ms, |call| {
            let (found, fresh) = lookup.find_all(call.state, call.session.space);
            found.iter_mut().zip(&*held).filter(|(_, held)| **held).for_each(|(id, _)| *id = NONE);
            call.take_all(found, count, fresh)?;
            found.iter().zip(&mut *held).for_each(|(id, held)| *held |= *id != NONE);
            Some(())
        });
        if shared.is_some() {
            return Ok(());
        }
        l1.with_at(now_ms, |state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let (found, fresh) = lookup.find_all(state, space);
            for (held, &id) in held.iter_mut().zip(&*found) {
                *held |= id != NONE && !*held && share::take(state, index, id, count, fresh);
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
    mut statuses: Option<&mut [i32]>,
) -> Result<bool> {
    let now_ms = l1.now_ms();
    if let [key] = keys
        && !ablation::is_off(SingleKeyRead)
        && !l1.contention.is_there(now_ms)
    {
        let mut outcome = Outcome::new(statuses);
        outcome.set(0, single_key_read::finish(l1, session, key, count, now_ms)?);
        return Ok(outcome.all_ok());
    }
    lookup::with_slots(l1, keys, true, |mut lookup| {
        let shared = shared_read::run(l1, session, now_ms, |call| {
            let (found, _) = lookup.find_all(call.state, call.session.space);
            call.return_all(found, count, Outcome::new(statuses.as_deref_mut()))
        });
        if let Some(all) = shared {
            return Ok(all);
        }
        l1.with_at(now_ms, |state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let (found, _) = lookup.find_all(state, space);
            let mut outcome = Outcome::new(statuses);
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
