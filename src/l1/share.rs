//! Shares: taking them, returning them exactly once, and the end of a session.

use super::slot::{HIDDEN, Life, NONE, QUEUED, STORED, TEMPORARY};
use super::{L1, Outcome, State};
use crate::config::StoreMode;
use crate::error::{
    KVKEEP_ERR_EXPIRED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD, KVKEEP_OK, Result, Status,
};
use crate::key::Key;
use crate::types::View;

/// What becomes of the recency of an object whose last share is returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recency {
    /// It was read: it counts as used.
    Read,
    /// It keeps its place.
    Keep,
}

impl L1 {
    /// Takes `count` shares of each ready key.
    pub fn reserve_read(&self, session: u64, keys: &[Key], count: u32, views: &mut [View]) -> Result<bool> {
        self.with_hashes(keys, |state, hashes| {
            let index = state.sessions.use_now(session, state.now_ms)?;
            let space = state.sessions.at(index).space;
            let mut found = std::mem::take(&mut state.found);
            state.find_all(space, keys, hashes, &mut found);
            let mut hits = 0;
            for (view, &id) in views.iter_mut().zip(&found) {
                *view = if id == NONE {
                    View::none(KVKEEP_ERR_NOT_FOUND)
                } else if state.take(index, id, count) {
                    hits += 1;
                    state.view(id)
                } else {
                    View::none(KVKEEP_ERR_LIMIT)
                };
            }
            state.found = found;
            state.counts.read_hits += hits;
            state.counts.read_misses += keys.len() as u64 - hits;
            Ok(hits == keys.len() as u64)
        })
    }

    /// Takes `count` shares of each ready key that is wanted and not there yet, and says which are there now.
    pub fn reserve_found(&self, session: u64, keys: &[Key], count: u32, held: &mut [bool]) -> Result<()> {
        self.with_hashes(keys, |state, hashes| {
            let index = state.sessions.use_now(session, state.now_ms)?;
            let space = state.sessions.at(index).space;
            let mut found = std::mem::take(&mut state.found);
            state.find_all(space, keys, hashes, &mut found);
            for (held, &id) in held.iter_mut().zip(&found) {
                if !*held && id != NONE && state.take(index, id, count) {
                    *held = true;
                    state.counts.read_hits += 1;
                }
            }
            state.found = found;
            Ok(())
        })
    }

    /// Returns `count` shares of each key.
    pub fn finish_read(&self, session: u64, keys: &[Key], count: u32, statuses: Option<&mut [i32]>) -> Result<bool> {
        self.with_hashes(keys, |state, hashes| {
            let index = state.sessions.use_now(session, state.now_ms)?;
            let space = state.sessions.at(index).space;
            let mut found = std::mem::take(&mut state.found);
            state.find_all(space, keys, hashes, &mut found);
            let mut outcome = Outcome::new(statuses);
            for (i, (key, &id)) in keys.iter().zip(&found).enumerate() {
                outcome.set(i, state.finish_one(index, key, id, count));
            }
            state.found = found;
            Ok(outcome.all_ok())
        })
    }

    /// Returns `count` shares of each key that the session holds so many of, and says of how many keys.
    pub fn release(&self, session: u64, keys: &[Key], count: u32) -> Result<u64> {
        self.with(|state| {
            let index = state.sessions.use_now(session, state.now_ms)?;
            let space = state.sessions.at(index).space;
            let returned = keys.iter().filter(|key| {
                let id = state.find(space, key).unwrap_or(NONE);
                state.finish_one(index, key, id, count) == KVKEEP_OK
            });
            Ok(returned.count() as u64)
        })
    }

    /// Returns shares that a job took and its caller never saw: no use, no touch. Unknown sessions have none left.
    pub fn take_back(&self, session: u64, keys: impl Iterator<Item = Key>, count: u32) {
        self.with(|state| {
            let Ok(index) = state.sessions.index(session) else { return };
            let space = state.sessions.at(index).space;
            for key in keys {
                let id = state.find(space, &key).unwrap_or(NONE);
                if let Some(id) = state.held_slot(index, &key, id, count) {
                    state.give_back(index, id, count, Recency::Keep);
                } else if state.sessions.at(index).revoked.contains_key(&key) {
                    state.forgive_revoked(index, &key, count);
                }
            }
        });
    }

    /// Views of keys whose shares the session holds.
    pub fn unsafe_read(&self, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool> {
        self.with(|state| {
            let index = state.sessions.use_now(session, state.now_ms)?;
            let space = state.sessions.at(index).space;
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
    /// The slots of `keys`, in two passes over a group, so that the memory accesses of its keys overlap.
    fn find_all(&self, space: u32, keys: &[Key], hashes: &[u64], found: &mut Vec<u32>) {
        const GROUP: usize = 32;
        found.clear();
        for (hashes, keys) in hashes.chunks(GROUP).zip(keys.chunks(GROUP)) {
            let first = found.len();
            found.extend(hashes.iter().map(|&hash| self.table.candidate(hash).unwrap_or(NONE)));
            for ((id, &hash), key) in found[first..].iter_mut().zip(hashes).zip(keys) {
                if *id != NONE && !self.slots[*id].names(space, key) {
                    *id = self.find_hashed(hash, space, key).unwrap_or(NONE);
                }
            }
        }
    }

    pub(super) fn view(&self, id: u32) -> View {
        let slot = &self.slots[id];
        View { data: self.arena.at(slot.offset).cast(), size: slot.size, status: KVKEEP_OK as i32, reserved: 0 }
    }

    /// Gives `count` shares of a ready object to a session. False if it would have more than can be counted.
    #[inline]
    pub(super) fn take(&mut self, session: u32, id: u32, count: u32) -> bool {
        let Some(shares) = self.slots[id].shares.checked_add(count) else { return false };
        let was_locked = self.slots[id].locked();
        let now_ms = self.now_ms as u32;
        let slot = &mut self.slots[id];
        if slot.shares == 0 {
            slot.since_ms = now_ms;
        }
        slot.shares = shares;
        let noted = if slot.holder == session {
            slot.held += count;
            true
        } else if slot.held == 0 && slot.more == NONE {
            (slot.holder, slot.held) = (session, count);
            false
        } else {
            !self.holds.add(slot, session, count)
        };
        let depth = slot.depth;
        self.shares += u64::from(count);
        self.relock(id, was_locked);
        let name = self.slots.name(id);
        let holder = self.sessions.at_mut(session);
        holder.shares += u64::from(count);
        holder.next_depth = holder.next_depth.max(depth + 1);
        if !noted && holder.note(name) {
            self.strike_twice_named(session);
        }
        true
    }

    /// Keeps the first mention of each living object that a session used. Slots are marked with the number of the pass, so that
    /// it costs one look at each.
    pub(super) fn strike_twice_named(&mut self, session: u32) {
        // 0 is what a fresh slot is marked with.
        self.passes = self.passes.wrapping_add(1).max(1);
        let (pass, slots) = (self.passes, &mut self.slots);
        let holder = self.sessions.at_mut(session);
        holder.used.retain(|name| {
            let first = slots.find(*name).is_some_and(|slot| slot.seen != pass);
            if first {
                slots[name.slot].seen = pass;
            }
            first
        });
        holder.distinct = holder.used.len();
    }

    pub(super) fn shares_of(&self, session: u32, id: u32) -> u32 {
        let slot = &self.slots[id];
        let own = if slot.holder == session { slot.held } else { 0 };
        if slot.more == NONE { own } else { own + self.holds.count(slot, session) }
    }

    /// The slot of `key` of which `session` holds at least `count` shares: the one in the table, or a hidden one.
    fn held_slot(&self, session: u32, key: &Key, id: u32, count: u32) -> Option<u32> {
        if id != NONE && self.shares_of(session, id) >= count {
            return Some(id);
        }
        // Hidden by a forced clear or replaced since: rare, so looked for among what the session used.
        if self.hidden == 0 || self.sessions.at(session).shares == 0 {
            return None;
        }
        self.sessions.at(session).used.iter().rev().map(|name| name.slot).find(|&id| {
            let slot = &self.slots[id];
            slot.is(HIDDEN) && slot.life == Life::Ready && slot.key == *key && self.shares_of(session, id) >= count
        })
    }

    fn not_held(&self, session: u32, key: &Key) -> Status {
        if self.sessions.at(session).revoked.contains_key(key) { KVKEEP_ERR_EXPIRED } else { KVKEEP_ERR_NOT_HELD }
    }

    fn forgive_revoked(&mut self, session: u32, key: &Key, count: u32) {
        let revoked = &mut self.sessions.at_mut(session).revoked;
        if let Some(left) = revoked.get_mut(key) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                revoked.remove(key);
            }
        }
    }

    #[inline]
    fn finish_one(&mut self, session: u32, key: &Key, id: u32, count: u32) -> Status {
        match self.held_slot(session, key, id, count) {
            Some(id) => {
                self.give_back(session, id, count, Recency::Read);
                KVKEEP_OK
            }
            None => {
                let status = self.not_held(session, key);
                if status == KVKEEP_ERR_EXPIRED {
                    self.forgive_revoked(session, key, count);
                }
                status
            }
        }
    }

    /// Takes `count` shares of an object back from a session that holds them.
    #[inline]
    pub(super) fn give_back(&mut self, session: u32, id: u32, count: u32, recency: Recency) {
        let slot = &mut self.slots[id];
        let own = if slot.holder == session { slot.held.min(count) } else { 0 };
        slot.held -= own;
        slot.shares -= count;
        if count > own {
            self.holds.sub(slot, session, count - own);
        }
        self.shares -= u64::from(count);
        self.sessions.at_mut(session).shares -= u64::from(count);
        if self.slots[id].shares == 0 {
            self.unshared(id, recency);
        }
    }

    /// The last share of an object went.
    fn unshared(&mut self, id: u32, recency: Recency) {
        let slot = &mut self.slots[id];
        if slot.is(TEMPORARY) && !slot.is(HIDDEN) {
            self.hide(id, super::Removal::Deleted);
        }
        self.relock(id, true);
        let slot = &mut self.slots[id];
        if slot.is(HIDDEN) {
            return self.free_if_unused(id);
        }
        let pool = self.spaces[slot.space as usize].pool;
        if recency == Recency::Keep {
            return self.pools[pool].policy.release(id);
        }
        slot.uses = slot.uses.saturating_add(1);
        let slot = &self.slots[id];
        let meta = self.meta(slot);
        if let StoreMode::AfterUses(uses) = self.config.store_mode
            && slot.uses >= uses
            && slot.flags & (STORED | QUEUED) == 0
        {
            self.queue_write(id);
        }
        self.pools[pool].policy.touch(id, meta);
    }

    /// Ends the session at `index`.
    pub(super) fn end(&mut self, index: u32, touch: bool, reclaimed: bool) {
        let staged: Vec<u32> = self.sessions.at_mut(index).staged.drain().collect();
        for id in staged {
            self.unstage(id);
        }
        let used = std::mem::take(&mut self.sessions.at_mut(index).used);
        for &name in used.iter().rev() {
            if self.slots.find(name).is_none() {
                continue;
            }
            let id = name.slot;
            let count = self.shares_of(index, id);
            if count > 0 {
                self.give_back(index, id, count, if touch { Recency::Read } else { Recency::Keep });
            }
            let Some(slot) = self.slots.find(name) else { continue };
            let lives = slot.life == Life::Ready && !slot.is(HIDDEN);
            if touch && lives && slot.shares == 0 {
                let (pool, meta) = (self.spaces[slot.space as usize].pool, self.meta(slot));
                self.pools[pool].policy.touch(id, meta);
            }
            let slot = &mut self.slots[id];
            if slot.holder == index && slot.held == 0 {
                slot.holder = NONE;
            }
        }
        debug_assert_eq!(self.sessions.at(index).shares, 0);
        self.sessions.remove(index, reclaimed);
    }
}
