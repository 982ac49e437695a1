//! Making room: eviction, retention's spared turns, and the shares of expired sessions as a last resort.

use super::alloc::Block;
use parking_lot::MutexGuard;

use super::memory_wait::Spared;
use super::session::Session;
use super::slot::{GIVEN_UP, LEAVING, LOST, PARKED, QUEUED, Ref, SIZE_MAX, STORED, Slot, TEMPORARY};
use super::{L1, State, WAKE_FREED};
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA, Status};
use crate::policy::Removal;

/// Objects evicted under one lock by the background thread.
const SLICE: usize = 64;
/// Objects that backends lost, met by an eviction that cannot wait: so many are written first, the next one is dropped.
const WRITTEN_FIRST: usize = 8;

/// What is left to do after a slice of background eviction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Eviction {
    /// Nothing: L1 is no more above its low watermark, or nothing may go.
    Done,
    /// More.
    More,
    /// The same as before: callers keep L1 busy. Those that write make their room themselves.
    Busy,
}

impl L1 {
    /// Evicts a slice of objects if L1 is above its low watermark. `insists`: even if L1 is busy.
    pub fn evict_slice(&self, insists: bool) -> Eviction {
        let slice = |state: &mut State| {
            let above = |state: &State| state.above(state.config.low_percent, state.leaving_bytes);
            (0..SLICE).all(|_| above(state) && state.evict_in_background()) && above(state)
        };
        let more = if insists { Some(self.with(slice)) } else { self.with_leave(slice) };
        match more {
            None => Eviction::Busy,
            Some(true) => Eviction::More,
            Some(false) => Eviction::Done,
        }
    }
}

impl State {
    /// Memory for `size` bytes of `space`, evicting what it takes.
    pub(super) fn make_room(&mut self, space: u32, size: u64) -> Result<Block, Status> {
        if size > self.alloc.capacity().min(SIZE_MAX) {
            return Err(KVKEEP_ERR_NO_MEMORY);
        }
        let quota = self.spaces[space as usize].quota;
        if quota > 0 {
            if size > quota {
                return Err(KVKEEP_ERR_QUOTA);
            }
            while self.spaces[space as usize].used.saturating_add(size) > quota {
                if !self.evict_one(self.spaces[space as usize].pool) && !self.revoke_oldest(Some(space)) {
                    return Err(KVKEEP_ERR_QUOTA);
                }
            }
        }
        if let Some(block) = self.alloc.alloc(size) {
            return Ok(block);
        }
        // Do not empty the cache for what cannot fit anyway.
        let takeable = self.alloc.capacity().saturating_sub(self.tally.locked_bytes());
        if size > takeable && size > takeable + self.revocable_bytes() {
            return Err(KVKEEP_ERR_NO_MEMORY);
        }
        loop {
            if !self.evict_one(self.fullest_pool()) && !self.evict_any() && !self.revoke_oldest(None) {
                return Err(KVKEEP_ERR_NO_MEMORY);
            }
            if let Some(block) = self.alloc.alloc(size) {
                return Ok(block);
            }
        }
    }

    fn fullest_pool(&self) -> usize {
        (0..self.pools.len()).max_by_key(|&pool| self.pools[pool].bytes).unwrap_or(0)
    }

    fn evict_any(&mut self) -> bool {
        (0..self.pools.len()).any(|pool| self.evict_one(pool))
    }

    /// The next victim of a pool that is not in use and that L2 has, had, or need not have.
    fn victim(&mut self, pool: usize) -> Option<u32> {
        let policy = self.write_policy();
        self.settle_touched();
        loop {
            let (slots, parked) = (&mut self.slots, &mut self.parked);
            let mut usable = |id: u32| {
                let name = slots.name(id);
                if parked.len() == parked.capacity() {
                    // Those written or gone since would pile up where a victim is always found.
                    parked.retain(|&name| slots.find(name).is_some_and(|slot| slot.is(PARKED)));
                }
                let slot = &mut slots[id];
                if slot.locked() {
                    return false;
                }
                let unwritten = policy.is_unwritten(slot) && !policy.is_lost(slot);
                if unwritten && !slot.is(PARKED) {
                    slot.set(PARKED);
                    parked.push_back(name);
                }
                !unwritten
            };
            let id = self.pools[pool].policy.get_mut().victim(&mut usable)?;
            let now_ms = self.now_ms;
            let detail = self.slots.detail_mut(id);
            if detail.chances == 0 || !detail.retained(now_ms) {
                return Some(id);
            }
            detail.chances -= 1;
            self.touch_slot(pool, id);
        }
    }

    /// Has a victim that backends lost written, and leave when it is. False if it need not be, or cannot.
    fn write_first(&mut self, id: u32) -> bool {
        if !self.write_policy().is_lost(&self.slots[id]) {
            return false;
        }
        let name = self.slots.name(id);
        let queued = self.queue_write(id);
        let slot = &mut self.slots[id];
        if !queued {
            // Counted as dropped already.
            slot.clear(LOST);
            slot.set(GIVEN_UP);
            return false;
        }
        self.leaving_bytes += slot.size();
        if !slot.is(PARKED) {
            self.parked.push_back(name);
        }
        slot.set(PARKED | LEAVING);
        true
    }

    /// Evicts an object at once; if backends lost it, a few others are looked at first, and it leaves when it is written.
    fn evict_victim(&mut self, pool: usize) -> bool {
        for _ in 0..WRITTEN_FIRST {
            let Some(id) = self.victim(pool) else { return false };
            if !self.write_first(id) {
                self.evict(id);
                return true;
            }
        }
        let Some(id) = self.victim(pool) else { return false };
        self.evict_as_it_is(id);
        true
    }

    /// Evicts one object of a pool: one that L2 has if possible, else one that is still to be written.
    fn evict_one(&mut self, pool: usize) -> bool {
        if self.spared == Spared::Everything {
            return false;
        }
        if self.evict_victim(pool) {
            return true;
        }
        if self.spared == Spared::Unwritten {
            return false;
        }
        for _ in 0..self.parked.len() {
            let Some(name) = self.parked.pop_front() else { break };
            let Some(slot) = self.slots.find(name) else { continue };
            if !slot.is(PARKED) {
                continue;
            }
            if slot.locked() || self.spaces[self.slots.space(name.slot) as usize].pool != pool {
                self.parked.push_back(name);
                continue;
            }
            self.evict_as_it_is(name.slot);
            return true;
        }
        false
    }

    /// Evicts a slice of what a space has above its quota and L2 has, or need not have. True if there may be more.
    pub(super) fn trim_to_quota(&mut self, space: u32) -> bool {
        for _ in 0..SLICE {
            let space = &self.spaces[space as usize];
            if space.quota == 0 || space.used <= space.quota {
                return false;
            }
            let pool = space.pool;
            if !self.evict_victim(pool) {
                return false;
            }
        }
        true
    }

    /// An object that was to leave once written does not any more. True if it was.
    pub(super) fn stay(&mut self, id: u32) -> bool {
        let slot = &mut self.slots[id];
        let leaving = slot.is(LEAVING);
        if leaving {
            slot.clear(LEAVING);
            self.leaving_bytes -= slot.size();
        }
        leaving
    }

    pub(super) fn evict(&mut self, id: u32) {
        self.wakes |= WAKE_FREED;
        self.counts.evictions += 1;
        self.counts.evicted_bytes += self.slots[id].size();
        self.hide(id, Removal::Evicted);
        self.free_if_unused(id);
    }

    /// Evicts an object, though it may still have to be written.
    pub(super) fn evict_as_it_is(&mut self, id: u32) {
        let slot = &self.slots[id];
        // One that is queued is counted as dropped when it leaves the queue.
        if !slot.is(QUEUED) && self.write_policy().is_unwritten(slot) {
            self.count_unasked_drop();
        }
        self.evict(id);
    }

    /// An object is evicted that was to be written, and that no backend was asked to store.
    pub(super) fn count_unasked_drop(&mut self) {
        self.counts.writes_asked += 1;
        self.counts.dropped_evicted += 1;
    }

    fn write_policy(&self) -> WritePolicy {
        let mode = self.config.store_mode;
        WritePolicy {
            back: self.has_l2 && mode == StoreMode::WriteBack,
            again: self.has_l2 && mode != StoreMode::Never,
        }
    }

    /// Evicts one object, or starts writing one that must be written first.
    fn evict_in_background(&mut self) -> bool {
        let first = self.fullest_pool();
        let victim = self.victim(first).or_else(|| (0..self.pools.len()).find_map(|pool| self.victim(pool)));
        if let Some(id) = victim {
            if !self.write_first(id) {
                self.evict(id);
            }
            return true;
        }
        for _ in 0..self.parked.len() {
            let Some(name) = self.parked.pop_front() else { break };
            let Some(slot) = self.slots.find(name) else { continue };
            if !slot.is(PARKED) {
                continue;
            }
            let passed = slot.is(LEAVING) || slot.locked();
            self.parked.push_back(name);
            if passed {
                continue;
            }
            if !self.slots[name.slot].is(QUEUED) {
                if !self.has_l2 {
                    // There is nothing to write it to any more.
                    self.evict(name.slot);
                    return true;
                }
                if !self.writes_have_room() || !self.queue_write(name.slot) {
                    return false;
                }
            }
            let slot = &mut self.slots[name.slot];
            slot.set(LEAVING);
            self.leaving_bytes += slot.size();
            return true;
        }
        false
    }

    fn expired(&self, space: Option<u32>) -> impl Iterator<Item = (u32, MutexGuard<'_, Session>)> {
        self.sessions.live().filter(move |(_, session)| {
            session.shares > 0 && session.is_expired(self.now_ms) && space.is_none_or(|space| space == session.space)
        })
    }

    fn revocable_bytes(&self) -> u64 {
        let size = |session: u32, name: Ref| match self.slots.find(name) {
            Some(slot) if self.shares_of(session, name.slot) > 0 => slot.size(),
            _ => 0,
        };
        self.expired(None).map(|(index, session)| session.used.iter().map(|&name| size(index, name)).sum::<u64>()).sum()
    }

    /// Takes the shares of the session that expired first. True if it held any.
    fn revoke_oldest(&mut self, space: Option<u32>) -> bool {
        let first = self.expired(space).map(|(index, session)| (session.deadline_ms, index)).min();
        let Some((_, index)) = first else { return false };
        let Session { used, space, .. } = self.sessions.at_mut(index);
        let (used, pool) = (used.clone(), self.spaces[*space as usize].pool);
        for name in used.into_iter().rev() {
            if self.slots.find(name).is_none() {
                continue;
            }
            let count = self.shares_of(index, name.slot);
            if count == 0 {
                continue;
            }
            let key = *self.slots.key(name.slot);
            if self.give_back(index, name.slot, count) {
                self.unread(pool, name.slot);
            }
            *self.sessions.at_mut(index).revoked.entry(key).or_insert(0) += count;
            self.counts.shares_revoked += u64::from(count);
        }
        self.sessions.at_mut(index).strays.clear();
        for (key, owed) in std::mem::take(&mut self.sessions.at_mut(index).owed) {
            self.forgive_revoked(index, &key, owed);
        }
        true
    }
}

/// Which objects eviction has written first.
#[derive(Clone, Copy)]
struct WritePolicy {
    /// All that no backend has.
    back: bool,
    /// Those that a backend had and lost.
    again: bool,
}

impl WritePolicy {
    /// Whether an object is still to be written to L2.
    fn is_unwritten(self, slot: &Slot) -> bool {
        slot.is(QUEUED) || self.is_lost(slot) || self.back && !slot.has(STORED | GIVEN_UP | TEMPORARY)
    }

    /// Whether it is to be written because backends lost it, and is not being written.
    fn is_lost(self, slot: &Slot) -> bool {
        self.again && slot.is(LOST) && !slot.is(QUEUED)
    }
}

#[cfg(test)]
mod tests;
