//! Shares: taking them, returning them exactly once, and the end of a session.
//!
//! What runs for each key is inlined by force: of a batch of one key, entering and leaving functions is a twentieth.

use super::counters::Read;
use super::session::{Session, Staged};
use super::slot::{
    BUSY, GIVEN_UP, HIDDEN, LISTED, LOST, NOBODY, NONE, QUEUED, READ, Ref, SHARES_MAX, STORED, Slot, TEMPORARY,
};
use super::{L1, Outcome, State};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{
    KVKEEP_ERR_EXPIRED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD, KVKEEP_OK, Result, Status,
};
use crate::key::Key;

/// Shares were taken of an object.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    /// The session used it for the first time.
    pub first: bool,
    /// The session had shares of it before.
    pub held: bool,
}

impl L1 {
    /// Takes `count` shares of each ready key.
    pub fn reserve_read(&self, session: u64, keys: &[Key], count: u32, views: &mut [View]) -> Result<bool> {
        let now_ms = self.now_ms();
        if let ([key], [view]) = (keys, &mut *views)
            && !self.crowd.is_there(now_ms)
        {
            *view = self.reserve_single(session, key, count, now_ms)?;
            return Ok(view.status == KVKEEP_OK as i32);
        }
        self.looking_up(keys, false, |mut lookup| {
            let beside = self.beside(session, now_ms, |beside| {
                let state = beside.state;
                let (found, fresh) = lookup.find_all(state, beside.session.space);
                let (hits, held) = beside.take_all(found, count, fresh)?;
                for (view, &id) in views.iter_mut().zip(&*found) {
                    *view = if id == NONE { View::none(KVKEEP_ERR_NOT_FOUND) } else { state.view(id) };
                }
                beside.count_read(keys.len() as u64, hits, held);
                Some(hits == keys.len() as u64)
            });
            if let Some(all) = beside {
                return Ok(all);
            }
            self.with_at(now_ms, |state| {
                let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
                let (found, fresh) = lookup.find_all(state, space);
                let mut read = Read::default();
                let mut all = true;
                for (view, &id) in views.iter_mut().zip(&*found) {
                    *view = state.read_one(index, id, count, &mut read, |id| fresh.push(id));
                    all &= view.status == KVKEEP_OK as i32;
                }
                state.note_all(index, fresh);
                state.tally.read(read);
                Ok(all)
            })
        })
    }

    /// Takes `count` shares of each ready key that is wanted and not there yet, and says which are there now.
    pub fn reserve_found(&self, session: u64, keys: &[Key], count: u32, held: &mut [bool]) -> Result<()> {
        self.looking_up(keys, false, |mut lookup| {
            let now_ms = self.now_ms();
            let beside = self.beside(session, now_ms, |beside| {
                let (found, fresh) = lookup.find_all(beside.state, beside.session.space);
                found.iter_mut().zip(&*held).filter(|(_, held)| **held).for_each(|(id, _)| *id = NONE);
                beside.take_all(found, count, fresh)?;
                found.iter().zip(&mut *held).for_each(|(id, held)| *held |= *id != NONE);
                Some(())
            });
            if beside.is_some() {
                return Ok(());
            }
            self.with_at(now_ms, |state| {
                let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
                let (found, fresh) = lookup.find_all(state, space);
                for (held, &id) in held.iter_mut().zip(&*found) {
                    *held |= id != NONE && !*held && state.take(index, id, count, fresh);
                }
                state.note_all(index, fresh);
                Ok(())
            })
        })
    }

    /// Returns `count` shares of each key.
    pub fn finish_read(
        &self,
        session: u64,
        keys: &[Key],
        count: u32,
        mut statuses: Option<&mut [i32]>,
    ) -> Result<bool> {
        let now_ms = self.now_ms();
        if let [key] = keys
            && !self.crowd.is_there(now_ms)
        {
            let mut outcome = Outcome::new(statuses);
            outcome.set(0, self.finish_single(session, key, count, now_ms)?);
            return Ok(outcome.all_ok());
        }
        self.looking_up(keys, true, |mut lookup| {
            let beside = self.beside(session, now_ms, |beside| {
                let (found, _) = lookup.find_all(beside.state, beside.session.space);
                beside.give_all(found, count, Outcome::new(statuses.as_deref_mut()))
            });
            if let Some(all) = beside {
                return Ok(all);
            }
            self.with_at(now_ms, |state| {
                let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
                let (found, _) = lookup.find_all(state, space);
                let mut outcome = Outcome::new(statuses);
                for (i, (key, id)) in keys.iter().zip(found.iter_mut()).enumerate() {
                    outcome.set(i, state.finish_one(index, key, id, count));
                }
                state.read_all(space, found);
                Ok(outcome.all_ok())
            })
        })
    }

    /// Returns `count` shares of each key that the session holds so many of, and says of how many keys.
    pub fn release(&self, session: u64, keys: &[Key], count: u32) -> Result<u64> {
        self.with(|state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let mut returned = 0;
            for key in keys {
                let mut id = state.find(space, key).unwrap_or(NONE);
                returned += u64::from(state.finish_one(index, key, &mut id, count) == KVKEEP_OK);
                state.read_all(space, &mut [id]);
            }
            Ok(returned)
        })
    }

    /// Returns shares that a job took and its caller never saw: no use, no touch. Unknown sessions have none left. A temporary object
    /// that nobody has read so far stays, unless a backend has it, too.
    pub fn take_back(&self, session: u64, keys: impl Iterator<Item = Key>, count: u32) {
        self.with(|state| {
            let Ok(index) = state.sessions.index(session) else { return };
            let space = state.sessions.at_mut(index).space;
            let pool = state.spaces[space as usize].pool;
            for key in keys {
                let mut id = state.find(space, &key).unwrap_or(NONE);
                let spared = (id != NONE && state.is_awaited(id)).then_some(id);
                if let Some(spared) = spared {
                    state.slots[spared].clear(TEMPORARY);
                }
                state.finish_one(index, &key, &mut id, count);
                if let Some(spared) = spared {
                    state.slots[spared].set(TEMPORARY);
                }
                state.unread(pool, id);
            }
        });
    }

    /// Views of keys whose shares the session holds.
    pub fn get_views(&self, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool> {
        self.with(|state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let mut all = true;
            for (key, view) in keys.iter().zip(views) {
                let id = state.find(space, key).unwrap_or(NONE);
                *view = match state.held_slot(index, key, id, 1) {
                    Some(id) => state.view(id),
                    None => View::none(state.not_held(index, key)),
                };
                all &= view.status == KVKEEP_OK as i32;
            }
            Ok(all)
        })
    }
}

impl State {
    pub(super) fn view(&self, id: u32) -> View {
        let slot = &self.slots[id];
        View {
            data: self.arena.at(self.alloc.offset(slot.start)).cast(),
            size: slot.size(),
            status: KVKEEP_OK as i32,
            reserved: 0,
        }
    }

    /// Gives `count` shares of a ready object to a session. False if it would have more than can be counted. If it had none of the
    /// object before, the slot is added to `fresh`, for [`note_all`](State::note_all).
    #[inline(always)]
    pub(super) fn take(&mut self, session: u32, id: u32, count: u32, fresh: &mut Vec<u32>) -> bool {
        let taken = self.take_one(session, id, count);
        if taken.is_some_and(|taken| taken.first) {
            fresh.push(id);
        }
        taken.is_some()
    }

    /// Takes shares of the object in a slot, which may be `NONE`, counts it in `read`, and gives its view.
    #[inline(always)]
    pub(super) fn read_one(
        &mut self,
        session: u32,
        id: u32,
        count: u32,
        read: &mut Read,
        mut fresh: impl FnMut(u32),
    ) -> View {
        if id == NONE {
            read.misses += u64::from(self.sessions.at_mut(session).user == 0);
            return View::none(KVKEEP_ERR_NOT_FOUND);
        }
        let known = self.is_held_for(session, id);
        let Some(Taken { first, held }) = self.take_one(session, id, count) else {
            return View::none(KVKEEP_ERR_LIMIT);
        };
        if first {
            fresh(id);
        }
        read.hits += u64::from(!known && !held);
        self.view(id)
    }

    /// As [`take`](State::take), and says what the session had of the object before. `None` if it would have too many.
    #[inline(always)]
    pub(super) fn take_one(&mut self, session: u32, id: u32, count: u32) -> Option<Taken> {
        let slot = &self.slots[id];
        let word = slot.word();
        let (holder, held) = word.holder();
        let shares = if word.is(LISTED) { self.slots.shares(id) } else { held };
        if count > SHARES_MAX - shares {
            return None;
        }
        let mut taken = Taken { first: holder != session, held: holder == session && held > 0 };
        if !taken.first || shares == 0 {
            slot.set_holder(session, held + count);
        } else {
            taken.first = self.holds.add(&mut self.slots, id, session, count);
            taken.held = !taken.first;
        }
        if shares == 0 {
            let slot = &mut self.slots[id];
            *slot.since_ms.get_mut() = self.now_ms as u32;
            if !word.locked() {
                self.tally.lock(slot.size());
            }
        }
        self.sessions.at_mut(session).shares += u64::from(count);
        self.tally.take(count);
        Some(taken)
    }

    /// Notes that a session has used objects.
    #[inline(always)]
    pub(super) fn note_all(&mut self, session: u32, fresh: &[u32]) {
        let holder = self.sessions.at_mut(session);
        holder.note_all(&self.slots, fresh);
        if holder.crammed() {
            self.strike_twice_named(session);
        }
    }

    /// Keeps the first mention of each living object that a session used. Slots are marked with the number of the pass, so that
    /// it costs one look at each.
    pub(super) fn strike_twice_named(&mut self, session: u32) {
        // 0 is what a fresh slot is marked with.
        self.passes = self.passes.wrapping_add(1).max(1);
        let (pass, slots) = (self.passes, &mut self.slots);
        let holder = self.sessions.at_mut(session);
        let mut twice = 0;
        holder.used.retain(|name| {
            if slots.find(*name).is_none() {
                return false;
            }
            let mention = slots.mention_mut(name.slot);
            let first = mention.seen != pass;
            mention.seen = pass;
            twice += usize::from(!first);
            first
        });
        holder.struck(twice);
    }

    #[inline]
    pub(super) fn shares_of(&self, session: u32, id: u32) -> u32 {
        let word = self.slots[id].word();
        let own = word.held_by(session);
        if word.is(LISTED) { own + self.holds.count(&self.slots, id, session) } else { own }
    }

    /// The slot of `key` of which `session` holds at least `count` shares: the one in the table, or a hidden one.
    #[inline(always)]
    fn held_slot(&self, session: u32, key: &Key, id: u32, count: u32) -> Option<u32> {
        if id != NONE && self.shares_of(session, id) >= count {
            return Some(id);
        }
        // Hidden since, and perhaps replaced.
        let holder = self.sessions.at(session);
        let holds = |name: &&Ref| self.slots.find(**name).is_some() && self.shares_of(session, name.slot) >= count;
        holder.strays.get(key)?.iter().rev().find(holds).map(|name| name.slot)
    }

    fn not_held(&self, session: u32, key: &Key) -> Status {
        if self.sessions.at(session).revoked.contains_key(key) { KVKEEP_ERR_EXPIRED } else { KVKEEP_ERR_NOT_HELD }
    }

    pub(super) fn forgive_revoked(&mut self, session: u32, key: &Key, count: u32) {
        let revoked = &mut self.sessions.at_mut(session).revoked;
        if let Some(left) = revoked.get_mut(key) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                revoked.remove(key);
            }
        }
    }

    /// Returns shares of the key whose slot is `id`, which becomes `NONE` unless they were the last ones and the object stays:
    /// the caller then says what becomes of its place among the others, by [`read_all`](State::read_all) or
    /// [`unread`](State::unread).
    #[inline(always)]
    pub(super) fn finish_one(&mut self, session: u32, key: &Key, id: &mut u32, count: u32) -> Status {
        let strays = !self.sessions.at_mut(session).strays.is_empty();
        if strays && let Some(status) = self.finish_among_copies(session, key, id, count) {
            return status;
        }
        let Some(held) = self.held_slot(session, key, *id, count) else {
            *id = NONE;
            let status = self.not_held(session, key);
            if status == KVKEEP_ERR_EXPIRED {
                self.forgive_revoked(session, key, count);
            }
            return status;
        };
        if strays && self.shares_of(session, held) == count {
            // It held this copy alone.
            self.sessions.at_mut(session).strays.remove(key);
        }
        *id = if self.give_back(session, held, count) { held } else { NONE };
        KVKEEP_OK
    }

    /// Takes `count` shares of an object back from a session that holds them. True if they were the last ones and the object stays.
    #[inline(always)]
    pub(super) fn give_back(&mut self, session: u32, id: u32, count: u32) -> bool {
        self.sessions.at_mut(session).shares -= u64::from(count);
        self.tally.give_back(count);
        let slot = &mut self.slots[id];
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
                self.holds.sub(&mut self.slots, id, session, count - own);
            }
            if self.slots.shares(id) > 0 {
                return false;
            }
        } else if held > own {
            return false;
        }
        let slot = &self.slots[id];
        if !word.is(BUSY) {
            self.tally.unlock(slot.size());
        }
        let stays = !word.has(TEMPORARY | HIDDEN);
        if !stays {
            if !word.is(HIDDEN) {
                self.hide(id, super::Removal::Deleted);
            }
            self.free_if_unused(id);
        }
        stays
    }

    /// Objects of a space whose last shares were returned count as read, the last one first; `NONE` is passed over.
    #[inline(always)]
    pub(super) fn read_all(&mut self, space: u32, ids: &mut [u32]) {
        let ids = without_none(ids);
        for &id in &*ids {
            self.count_read(id);
        }
        ids.reverse();
        self.touch_all(self.spaces[space as usize].pool, ids);
    }

    fn count_read(&mut self, id: u32) {
        let slot = &self.slots[id];
        slot.count_use();
        if self.due_after(slot, 0) {
            self.queue_write(id);
        }
    }

    /// Whether an object was committed to be read once and is still to be.
    fn is_awaited(&self, id: u32) -> bool {
        let slot = &self.slots[id];
        slot.is(TEMPORARY) && !slot.has(READ | STORED)
    }

    /// An object whose last share was returned, if not `NONE`, does not count as read and keeps its place.
    pub(super) fn unread(&mut self, pool: usize, id: u32) {
        if id != NONE {
            self.policy(pool).0.release(id);
        }
    }

    /// Whether an object read `more` times more is to be written to L2 for its uses.
    #[inline]
    pub(super) fn due_after(&self, slot: &Slot, more: u32) -> bool {
        let uses = slot.uses().saturating_add(more);
        matches!(self.config.store_mode, StoreMode::AfterUses(least) if uses >= least)
            && !slot.has(STORED | QUEUED | LOST | GIVEN_UP)
    }

    /// Ends the session at `index`.
    pub(super) fn end(&mut self, index: u32, touch: bool, reclaimed: bool) {
        let staged: Vec<Staged> = self.sessions.at_mut(index).staged.drain().collect();
        for Staged { id, writer } in staged {
            self.writers.subtract(writer, self.slots[id].size());
            self.unstage(id);
        }
        let session = self.sessions.at_mut(index);
        let mut used = std::mem::take(&mut session.used);
        let pool = self.spaces[session.space as usize].pool;
        if touch && session.landed {
            // Loads land in any order; the prompt's own is that in which its objects are to die.
            used.sort_by_key(|&name| self.slots.find(name).map_or(u32::MAX, |_| self.slots.mention(name.slot).depth));
        }
        for &name in used.iter().rev() {
            if self.slots.find(name).is_none() {
                continue;
            }
            let id = name.slot;
            let count = self.shares_of(index, id);
            if count > 0 && self.give_back(index, id, count) {
                if touch {
                    self.count_read(id);
                } else {
                    self.unread(pool, id);
                }
            }
            let Some(slot) = self.slots.find(name) else { continue };
            if touch && slot.is_findable() && self.slots.shares(id) == 0 {
                self.touch_slot(pool, id);
                self.note_use_below(id);
            }
            let slot = &self.slots[id];
            if slot.holder() == (index, 0) {
                slot.set_holder(NOBODY, 0);
            }
        }
        debug_assert_eq!(self.sessions.at(index).shares, 0);
        self.sessions.remove(index, reclaimed);
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
