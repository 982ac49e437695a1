//! Calls that read, side by side.
//!
//! Reads of two sessions do not hinder each other, and whatever could see half of one has the lock alone; so, when calls
//! meet, those that take and return shares use the state together. Each has its session to itself, and with it every
//! object of which that session is the holder and has shares; it becomes the holder of one that nobody has shares of by one
//! exchange. Nothing else of an object changes here. A batch that needs more than this is found out before it has changed
//! anything, or is undone unseen, and runs alone.
//!
//! Where no calls meet, an exchange per object would be wasted, and each call has the state alone.

use std::sync::atomic::{AtomicU64, Ordering};

use super::counters::Read;
use super::session::Session;
use super::share::without_none;
use super::slot::{BUSY, LISTED, NONE, SHARES_MAX, Slot, TEMPORARY};
use super::{L1, Outcome, State, patiently};
use crate::error::{KVKEEP_ERR_NOT_HELD, KVKEEP_OK};

/// Calls that met, less one for each millisecond since; from so many on the next ones run side by side …
const CROWD: u64 = 8;
/// … for so long. A background thread that passes by now and then makes no crowd.
const CROWD_MS: u64 = 50;

/// Most calls in a row that a session runs alone because one of them had to.
const SITS_OUT_MAX: u8 = 63;

/// Whether calls meet, so that one has to wait for another.
#[derive(Default)]
pub(super) struct Crowd {
    /// When the last of them will be forgotten.
    until_ms: AtomicU64,
}

impl Crowd {
    /// Two calls met.
    pub fn met(&self, now_ms: u64) {
        let until_ms = self.until_ms.load(Ordering::Relaxed).max(now_ms).saturating_add(1);
        let there = until_ms > now_ms + CROWD;
        self.until_ms.store(if there { now_ms + CROWD + CROWD_MS } else { until_ms }, Ordering::Relaxed);
    }

    /// From now on there is one.
    #[cfg(test)]
    pub fn stay(&self) {
        self.until_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// From now on there is none.
    #[cfg(test)]
    pub fn leave(&self) {
        self.until_ms.store(0, Ordering::Relaxed);
    }

    #[inline]
    pub fn is_there(&self, now_ms: u64) -> bool {
        self.until_ms.load(Ordering::Relaxed) > now_ms + CROWD
    }
}

/// The state as one of several calls has it.
pub(super) struct Beside<'a> {
    pub state: &'a State,
    pub session: &'a mut Session,
    pub index: u32,
    now_ms: u64,
}

impl L1 {
    /// Runs a call of a session beside others, if calls met of late. `None`: nothing was done, and it must run alone.
    #[inline]
    pub(super) fn beside<R>(
        &self,
        session: u64,
        now_ms: u64,
        body: impl FnOnce(&mut Beside) -> Option<R>,
    ) -> Option<R> {
        if !self.crowd.is_there(now_ms) {
            return None;
        }
        let look = || self.state.try_read();
        let state = look().or_else(|| patiently(look)).unwrap_or_else(|| self.state.read());
        let index = state.sessions.index(session).ok()?;
        let mut session = state.sessions.try_at(index).filter(|session| !session.crammed())?;
        if session.sits_out > 0 {
            session.sits_out -= 1;
            return None;
        }
        // The clock was read before the lock was waited for.
        let now_ms = now_ms.max(state.now_ms);
        session.deadline_ms = session.deadline_ms.max(now_ms + session.timeout_ms);
        let result = body(&mut Beside { state: &state, session: &mut session, index, now_ms });
        // Who shares objects with others is likely to do so again.
        session.sat_out = if result.is_some() { 0 } else { (session.sat_out * 2 + 1).min(SITS_OUT_MAX) };
        session.sits_out = session.sat_out;
        result
    }
}

impl Beside<'_> {
    /// Takes `count` shares of each object found, and says how many those are and of how many the session had shares before.
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
        self.state.tally.beside(self.index).take(taken * u64::from(count), locked);
        Some((taken, held))
    }

    /// Counts a reservation of `keys` keys, of which `hits` were found and `held` of these were held before. A key that the
    /// session copies for has another holder, and is not taken here.
    pub fn count_read(&self, keys: u64, hits: u64, held: u64) {
        let misses = if self.session.user == 0 { keys - hits } else { 0 };
        self.state.tally.beside(self.index).read(Read { hits: hits - held, misses });
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

    /// Returns `count` shares of each object found, touches those of which they were the last, and says whether it had all.
    pub fn give_all(&mut self, found: &mut [u32], count: u32, mut outcome: Outcome) -> Option<bool> {
        let state = self.state;
        let alone = |slot: &Slot| slot.is(TEMPORARY) || slot.is(LISTED) || state.due_after(slot, 1);
        if state.hidden > 0
            || !self.session.revoked.is_empty()
            || found.iter().any(|&id| id != NONE && alone(&state.slots[id]))
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
        state.tally.beside(self.index).give_back(given * u64::from(count), unlocked);
        let pool = state.spaces[self.session.space as usize].pool;
        let touched = without_none(found);
        touched.reverse();
        state.touch_beside(self.index, pool, touched, self.now_ms);
        Some(outcome.all_ok())
    }
}

#[cfg(test)]
mod tests;
