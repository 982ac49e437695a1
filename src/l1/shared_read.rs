//! Reads that share the lock.
//!
//! Reads of two sessions do not hinder each other, and a call that could see half of one has the exclusive lock; so, when calls
//! meet, those that take and return shares use the state together. Each locks its session, and has with it every
//! object of which that session is the holder and has shares; by one exchange it becomes the holder of an object of which no
//! session has shares. Nothing else of an object changes here. A batch that needs more than this is found out before it has changed
//! anything, or is undone unseen, and runs under the exclusive lock.
//!
//! Where no calls meet, an exchange per object would be wasted, and each call takes the exclusive lock.

use std::sync::atomic::Ordering;

use super::counters::ReadCounts;
use super::outcome::Outcome;
use super::pending_writes;
use super::pools::Metas;
use super::session::sessions::Session;
use super::share::without_none;
use super::slot::{BUSY, LISTED, NONE, SHARES_MAX, Slot, TEMPORARY};
use super::spin::spin;
use super::state::L1State;
use super::tier::L1;
use crate::error::{KVKEEP_ERR_NOT_HELD, KVKEEP_OK};

/// Most calls in a row that a session makes under the exclusive lock because one of them had to.
const EXCLUSIVE_MAX: u8 = 63;

/// The state and the session of a call that shares the lock.
pub(super) struct SharedCall<'a> {
    pub state: &'a L1State,
    pub session: &'a mut Session,
    pub index: u32,
    now_ms: u64,
}

/// Runs a call of a session under the shared lock, if calls met of late. `None`: it changed nothing, and must take the exclusive lock.
#[inline]
pub(super) fn run<R>(l1: &L1, session: u64, now_ms: u64, body: impl FnOnce(&mut SharedCall) -> Option<R>) -> Option<R> {
    if !l1.contention.is_there(now_ms) {
        return None;
    }
    let look = || l1.state.try_read();
    let state = look().or_else(|| spin(look)).unwrap_or_else(|| l1.state.read());
    let index = state.sessions.index(session).ok()?;
    let mut session = state.sessions.try_at(index).filter(|session| !session.has_duplicates())?;
    if session.exclusive_left > 0 {
        session.exclusive_left -= 1;
        return None;
    }
    // The clock was read before the lock was waited for.
    let now_ms = now_ms.max(state.now_ms);
    session.deadline_ms = session.deadline_ms.max(now_ms + session.timeout_ms);
    let result = body(&mut SharedCall { state: &state, session: &mut session, index, now_ms });
    // A session that shares objects with others is likely to do so again.
    session.exclusive_last = if result.is_some() { 0 } else { (session.exclusive_last * 2 + 1).min(EXCLUSIVE_MAX) };
    session.exclusive_left = session.exclusive_last;
    result
}

impl SharedCall<'_> {
    /// Takes `count` shares of each object found. Gives the number of these objects, and of how many the session had shares before.
    /// `fresh` is for those taken for the first time.
    pub fn take_all(&mut self, found: &[u32], count: u32, fresh: &mut Vec<u32>) -> Option<(u64, u64)> {
        let (mut taken, mut locked, mut held) = (0, 0, 0);
        let mut refused = None;
        for (i, &id) in found.iter().enumerate().filter(|(_, id)| **id != NONE) {
            let Some((bytes, was_held)) = self.take(id, count, fresh) else {
                refused = Some(i);
                break;
            };
            (taken, locked, held) = (taken + 1, locked + bytes, held + u64::from(was_held));
        }
        // Even if none is kept: the session is their holder now.
        self.session.note_all(&self.state.slots, fresh);
        if let Some(refused) = refused {
            for &id in found[..refused].iter().filter(|id| **id != NONE) {
                let slot = &self.state.slots[id];
                slot.set_holder(self.index, slot.held_by(self.index) - count);
            }
            return None;
        }
        self.session.shares += taken * u64::from(count);
        self.state.counters.part(self.index).take(taken * u64::from(count), locked);
        Some((taken, held))
    }

    /// Counts a reservation of `keys` keys, of which `hits` were found and `held` of these were held before. A key that the
    /// session copies for has another holder, and is not taken here.
    pub fn count_read(&self, keys: u64, hits: u64, held: u64) {
        let misses = if self.session.user == 0 { keys - hits } else { 0 };
        self.state.counters.part(self.index).read(ReadCounts { hits: hits - held, misses });
    }

    /// Takes shares of one object: of how many bytes the first ones, and whether the session had some before.
    #[inline]
    fn take(&mut self, id: u32, count: u32, fresh: &mut Vec<u32>) -> Option<(u64, bool)> {
        let slot = &self.state.slots[id];
        let (holder, held) = slot.holder();
        if count > SHARES_MAX - self.state.slots.shares(id) {
            return None;
        }
        if held > 0 || slot.is(LISTED) {
            if holder != self.index {
                return None;
            }
            slot.set_holder(holder, held + count);
            return Some((0, held > 0));
        }
        if !slot.change_holder(holder, self.index, count) {
            return None;
        }
        slot.since_ms.store(self.now_ms as u32, Ordering::Relaxed);
        if holder != self.index {
            fresh.push(id);
        }
        Some((if slot.is(BUSY) { 0 } else { slot.size() }, false))
    }

    /// Returns `count` shares of each object found, and touches those of which they were the last. True if the session had all.
    pub fn return_all(&mut self, found: &mut [u32], count: u32, mut outcome: Outcome) -> Option<bool> {
        let state = self.state;
        let exclusive =
            |slot: &Slot| slot.is(TEMPORARY) || slot.is(LISTED) || pending_writes::is_due_after(state, slot, 1);
        if state.detached > 0
            || !self.session.revoked.is_empty()
            || found.iter().any(|&id| id != NONE && exclusive(&state.slots[id]))
        {
            return None;
        }
        let (mut given, mut unlocked) = (0, 0);
        for (i, id) in found.iter_mut().enumerate() {
            let held = if *id == NONE { 0 } else { state.slots[*id].held_by(self.index) };
            if held < count {
                outcome.set(i, KVKEEP_ERR_NOT_HELD);
                *id = NONE;
                continue;
            }
            outcome.set(i, KVKEEP_OK);
            given += 1;
            let slot = &state.slots[*id];
            if held > count {
                slot.set_holder(self.index, held - count);
                *id = NONE;
                continue;
            }
            slot.count_use();
            unlocked += if slot.is(BUSY) { 0 } else { slot.size() };
            slot.set_holder(self.index, 0);
        }
        self.session.shares -= given * u64::from(count);
        state.counters.part(self.index).return_shares(given * u64::from(count), unlocked);
        let pool = state.spaces[self.session.space as usize].pool;
        let touched = without_none(found);
        touched.reverse();
        let metas = Metas { slots: &state.slots, now_ms: self.now_ms };
        state.deferred.note_shared(&state.pools, metas, self.index, pool, touched);
        Some(outcome.all_ok())
    }
}

#[cfg(test)]
#[path = "tests/shared_read.rs"]
mod tests;
