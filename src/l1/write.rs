//! The write path: staging, and the commit that makes an object readable and unchangeable.

use super::memory_wait::Spared;
use super::session::{Session, Staged};
use super::slot::{
    BUSY, FORGOTTEN, GIVEN_UP, HIDDEN, LOST, NOBODY, QUEUED, READY, STAGING, STORED, TEMPORARY, WRITING,
};
use super::staged_bytes::THIS_PROCESS;
use super::{L1, Outcome, Space, State, WAKE_COMMITS, WAKE_FREED, WAKE_ROOM, WAKE_WRITES};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{
    KVKEEP_ERR_CANCELLED, KVKEEP_ERR_EXISTS, KVKEEP_ERR_INVALID, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NO_MEMORY,
    KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result, Status,
};
use crate::events::EventKind;
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::policy::Removal;

impl L1 {
    /// Stages `sizes[i]` bytes for `keys[i]`, for this process.
    pub fn reserve_write(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.reserve_write_by(THIS_PROCESS, session, keys, sizes, temporary, views)
    }

    /// Stages `sizes[i]` bytes for `keys[i]`, for a writer that has an account.
    pub fn reserve_write_by(
        &self,
        writer: u64,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.with_fingerprints(keys, |state, fingerprints, _| {
            state.stage_all((session, writer), keys, fingerprints, sizes, temporary, views)
        })
    }

    /// Commits staged keys.
    pub fn finish_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.with_fingerprints(keys, |state, fingerprints, fresh| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let user = state.sessions.user_of(index);
            let orphan = state.sessions.is_orphan(index);
            let mut outcome = Outcome::new(statuses);
            for (i, fingerprint) in fingerprints.iter().map(|fingerprint| fingerprint.within(space)).enumerate() {
                let status = match state.unstaged(index, fingerprint) {
                    Some(id) if orphan || state.slots[id].is(FORGOTTEN) => {
                        state.unstage(id);
                        KVKEEP_ERR_CANCELLED
                    }
                    Some(id) => {
                        state.commit_for(user, id, fingerprint, fresh);
                        KVKEEP_OK
                    }
                    None => KVKEEP_ERR_NOT_FOUND,
                };
                outcome.set(i, status);
            }
            state.rank_new();
            state.note_all(user, fresh);
            Ok(outcome.all_ok())
        })
    }

    /// Commits staged keys and takes `count` shares of each.
    pub fn finish_write_and_reserve_read(
        &self,
        session: u64,
        keys: &[Key],
        count: u32,
        views: &mut [View],
    ) -> Result<bool> {
        self.with_fingerprints(keys, |state, fingerprints, fresh| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let user = state.sessions.user_of(index);
            let (mut all, mut taken) = (true, Vec::new());
            for (fingerprint, view) in fingerprints.iter().map(|fingerprint| fingerprint.within(space)).zip(views) {
                *view = match state.unstaged(index, fingerprint) {
                    Some(id) if state.slots[id].is(FORGOTTEN) => {
                        state.unstage(id);
                        all = false;
                        View::none(KVKEEP_ERR_CANCELLED)
                    }
                    Some(id) => {
                        let id = state.commit_for(user, id, fingerprint, fresh);
                        if state.take(index, id, count, if user == index { fresh } else { &mut taken }) {
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
            state.rank_new();
            state.note_all(user, fresh);
            state.note_all(index, &taken);
            Ok(all)
        })
    }

    /// Gives staged keys back.
    pub fn abort_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.with_fingerprints(keys, |state, fingerprints, _| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let mut outcome = Outcome::new(statuses);
            for (i, fingerprint) in fingerprints.iter().map(|fingerprint| fingerprint.within(space)).enumerate() {
                let staged = state.unstaged(index, fingerprint);
                outcome.set(
                    i,
                    staged.map_or(KVKEEP_ERR_NOT_FOUND, |id| {
                        state.unstage(id);
                        KVKEEP_OK
                    }),
                );
            }
            Ok(outcome.all_ok())
        })
    }
}

impl State {
    /// Stages keys for a session and a writer.
    pub(super) fn stage_all(
        &mut self,
        (session, writer): (u64, u64),
        keys: &[Key],
        fingerprints: &[Fingerprint],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.writers.check(writer, sizes)?;
        let (index, _) = self.sessions.use_now(session, self.now_ms)?;
        let user = self.sessions.user_of(index);
        // The first key that does not fit decides for the new ones behind it: a prefix with a hole is useless.
        let mut full: Option<Status> = None;
        let mut all = true;
        for (i, ((key, &size), view)) in keys.iter().zip(sizes).zip(views).enumerate() {
            self.look_ahead(fingerprints, i);
            let depth = self.sessions.at_mut(user).next_depth;
            *view = match self.stage_for((index, writer), key, fingerprints[i], size, temporary, full) {
                Ok(id) => {
                    self.slots.mention_mut(id).depth = depth;
                    self.sessions.at_mut(user).next_depth += 1;
                    self.view(id)
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
        &mut self,
        (session, writer): (u32, u64),
        key: &Key,
        fingerprint: Fingerprint,
        size: u64,
        temporary: bool,
        full: Option<Status>,
    ) -> std::result::Result<u32, Status> {
        let holder = self.sessions.at_mut(session);
        let space = holder.space;
        if size == 0 {
            return Err(KVKEEP_ERR_INVALID);
        }
        if holder.forgotten {
            return Err(KVKEEP_ERR_CANCELLED);
        }
        let fingerprint = fingerprint.within(space);
        let staged = holder.staged.find(fingerprint.hash, |staged| self.slots[staged.id].is_of(fingerprint)).is_some();
        if staged || self.find_fingerprint(fingerprint).is_some() {
            return Err(KVKEEP_ERR_EXISTS);
        }
        if let Some(status) = full {
            return Err(status);
        }
        // What waits for writes does not add to those that wait already.
        if self.spared == Spared::Unwritten && !self.writes_have_room_for(session) {
            return Err(KVKEEP_ERR_NO_MEMORY);
        }
        let id = self.stage(space, key, fingerprint, size, temporary).inspect_err(|&why| {
            // One that waits is refused when it waits no more.
            if self.spared == Spared::Nothing {
                self.count_refusal(why);
            }
        })?;
        self.slots[id].set_holder(session, 0);
        let holder = self.sessions.at_mut(session);
        let (slots, fingerprinter) = (&self.slots, &self.fingerprinter);
        let hash = |staged: &Staged| fingerprinter.fingerprint(slots.key(staged.id)).hash;
        holder.staged.insert_unique(fingerprint.hash, Staged { id, writer }, hash);
        self.writers.add(writer, size);
        Ok(id)
    }

    /// Takes a key off what a session stages.
    fn unstaged(&mut self, session: u32, fingerprint: Fingerprint) -> Option<u32> {
        let slots = &self.slots;
        let staged = &mut self.sessions.at_mut(session).staged;
        let (Staged { id, writer }, _) =
            staged.find_entry(fingerprint.hash, |staged| slots[staged.id].is_of(fingerprint)).ok()?.remove();
        self.writers.subtract(writer, slots[id].size());
        Some(id)
    }

    /// A slot with memory, staged, held by nobody yet.
    pub(super) fn stage(
        &mut self,
        space: u32,
        key: &Key,
        fingerprint: Fingerprint,
        size: u64,
        temporary: bool,
    ) -> std::result::Result<u32, Status> {
        let block = self.make_room(space, size)?;
        let id = self.slots.take(*key, space, fingerprint, size, block, if temporary { TEMPORARY } else { 0 });
        self.spaces[space as usize].used += size;
        self.tally.lock(size);
        self.staged += 1;
        Ok(id)
    }

    /// Drops staging; a transfer into it keeps the memory until it lands.
    pub(super) fn unstage(&mut self, id: u32) {
        self.staged -= 1;
        self.hidden += 1;
        let slot = &mut self.slots[id];
        slot.clear(STAGING);
        slot.set(READY | HIDDEN);
        self.wakes |= WAKE_FREED;
        self.relock(id, true);
        self.free_if_unused(id);
    }

    /// Commits what was staged; it is used by a session, which is to be noted of what is added to `fresh`. Returns the slot that is read
    /// from now on.
    fn commit_for(&mut self, user: u32, id: u32, fingerprint: Fingerprint, fresh: &mut Vec<u32>) -> u32 {
        self.counts.commits += 1;
        let kept = self.commit(id, fingerprint);
        if kept == id {
            self.counts.commits_temporary += u64::from(self.slots[id].is(TEMPORARY));
            self.slots[id].set_holder(user, 0);
            fresh.push(id);
        } else {
            self.counts.commits_discarded += 1;
        }
        kept
    }

    /// Makes a staged slot readable, unless its key is already: then this copy goes. Returns the slot that stays. The caller goes on to
    /// [`rank_new`](State::rank_new) when it has committed its batch.
    pub(super) fn commit(&mut self, id: u32, fingerprint: Fingerprint) -> u32 {
        let slot = &self.slots[id];
        let (space, temporary, size) = (self.slots.space(id), slot.is(TEMPORARY), slot.size());
        if let Some(first) = self.find_fingerprint(fingerprint) {
            self.unstage(id);
            if !temporary && self.slots[first].is(TEMPORARY) {
                self.slots[first].clear(TEMPORARY);
                self.queue_after_commit(first);
            }
            return first;
        }
        self.staged -= 1;
        self.ready += 1;
        let slot = &mut self.slots[id];
        slot.clear(STAGING);
        slot.set(READY);
        slot.set_holder(NOBODY, 0);
        self.relock(id, true);
        let (slots, fingerprinter) = (&self.slots, &self.fingerprinter);
        self.table.insert(fingerprint.hash, id, |id| fingerprinter.fingerprint(slots.key(id)).hash);
        let Space { pool, ready, .. } = &mut self.spaces[space as usize];
        *ready += 1;
        self.pools[*pool].bytes += size;
        self.unranked.push(id);
        self.record(EventKind::Stored, id);
        self.queue_after_commit(id);
        if self.above(self.config.high_percent, 0) {
            self.wakes |= WAKE_ROOM;
        }
        self.wakes |= WAKE_COMMITS | WAKE_FREED;
        id
    }

    /// Has policies know what was committed, last one first: of a prompt that was committed as one batch the last chunk goes first.
    pub(super) fn rank_new(&mut self) {
        let mut unranked = std::mem::take(&mut self.unranked);
        if let Some(&id) = unranked.first() {
            // A batch is of one space.
            let pool = self.spaces[self.slots.space(id) as usize].pool;
            let (policy, metas) = self.policy(pool);
            unranked.drain(..).rev().for_each(|id| policy.insert(id, &|id| metas.of_new(id)));
        }
        self.unranked = unranked;
    }

    /// Whether more than `percent` of L1 is used, `less` so many bytes; never above 100.
    pub(super) fn above(&self, percent: u32, less: u64) -> bool {
        let used = self.alloc.used_bytes().saturating_sub(less);
        percent < 100 && u128::from(used) * 100 > u128::from(self.alloc.capacity()) * u128::from(percent)
    }

    fn queue_after_commit(&mut self, id: u32) {
        if self.config.store_mode == StoreMode::WriteThrough && !self.slots[id].has(STORED | LOST | TEMPORARY) {
            self.queue_write(id);
        }
    }

    /// Queues an object to be written to L2, if there is one and the queue has room.
    pub(super) fn queue_write(&mut self, id: u32) -> bool {
        if !self.has_l2 || self.slots[id].is(QUEUED) {
            return false;
        }
        self.counts.writes_asked += 1;
        if !self.writes_have_room() {
            self.counts.dropped_queue += 1;
            return false;
        }
        self.writes_waiting += 1;
        self.slots[id].clear(LOST | GIVEN_UP);
        self.slots[id].set(QUEUED);
        let name = self.slots.name(id);
        self.writes.push_back(name);
        self.wakes |= WAKE_WRITES;
        true
    }

    /// Whether one more object can be queued to be written. Where much of the queue names what is gone, that is struck out.
    pub(super) fn writes_have_room(&mut self) -> bool {
        let most = self.config.writes_max as usize;
        // A full queue is looked through once for so many that left, and not for each.
        if self.writes.len() >= most && self.writes_gone > most / 8 {
            let slots = &self.slots;
            self.writes
                .retain(|&name| slots.find(name).is_some_and(|slot| slot.is(QUEUED | READY) && !slot.is(HIDDEN)));
            self.writes_gone = 0;
        }
        self.writes.len() < most
    }

    /// Takes a ready object out of the table: nobody finds it any more.
    pub(super) fn hide(&mut self, id: u32, why: Removal) {
        self.stay(id);
        self.hidden += 1;
        let slot = &mut self.slots[id];
        slot.set(HIDDEN);
        self.writes_gone += usize::from(slot.is(QUEUED));
        if slot.is(QUEUED) && !slot.is(WRITING) {
            self.writes_waiting -= 1;
            match why {
                Removal::Evicted => self.counts.dropped_evicted += 1,
                Removal::Deleted => self.counts.writes_withdrawn += 1,
            }
        }
        let size = slot.size();
        let (space, key) = (self.slots.space(id), *self.slots.key(id));
        if self.slots[id].is(BUSY) {
            self.hidden_writes.add(id, space, key);
        }
        self.table.remove(self.fingerprinter.fingerprint(&key).hash, id);
        let Space { pool, ready, .. } = &mut self.spaces[space as usize];
        *ready -= 1;
        let pool = *pool;
        self.policy(pool).0.remove(id, why);
        self.pools[pool].bytes -= size;
        self.ready -= 1;
        self.record(EventKind::Removed, id);
        let (slot, name) = (&self.slots[id], self.slots.name(id));
        let (holder, held) = slot.holder();
        let holders = (held > 0)
            .then_some(holder)
            .into_iter()
            .chain(self.holds.iter(&self.slots, id).map(|(session, _)| session));
        for session in holders {
            let mut session = self.sessions.at(session);
            let of_key = session.strays.entry(key).or_default();
            // The holder may stand in the list too.
            if !of_key.contains(&name) {
                of_key.push(name);
            }
        }
    }

    /// Frees a hidden object that nothing uses.
    pub(super) fn free_if_unused(&mut self, id: u32) {
        let slot = &self.slots[id];
        debug_assert!(slot.is(HIDDEN));
        if slot.locked() {
            return;
        }
        self.spaces[self.slots.space(id) as usize].used -= slot.size();
        self.hidden -= 1;
        self.hidden_writes.remove(id);
        self.alloc.free(self.slots.detail(id).node);
        self.slots.give(id);
    }
}
