//! What users do to keys outside the read and write paths: touch, retain, evict, delete, clear.

use super::slot::{FORGOTTEN, RETAIN_MS, STAGING, Slot};
use super::{L1, Outcome, State};
use crate::error::{Error, KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result, Status};
use crate::key::Key;
use crate::policy::Removal;

impl L1 {
    /// Marks keys as used now, last key first.
    pub fn touch(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.with(|state| {
            let space = state.space_index(space)?;
            let pool = state.spaces[space as usize].pool;
            let mut outcome = Outcome::new(statuses);
            for (i, key) in keys.iter().enumerate().rev() {
                outcome.set(
                    i,
                    state.find(space, key).map_or(KVKEEP_ERR_NOT_FOUND, |id| {
                        state.touch_slot(pool, id);
                        KVKEEP_OK
                    }),
                );
            }
            Ok(outcome.all_ok())
        })
    }

    /// Gives keys a retention of `priority` for `ttl_ms`.
    pub fn retain(
        &self,
        space: u64,
        keys: &[Key],
        priority: u32,
        ttl_ms: u32,
        statuses: Option<&mut [i32]>,
    ) -> Result<bool> {
        if priority > 100 {
            return Err(Error::invalid(format!("priority is {priority}, it must be 0 to 100: 100 keeps longest")));
        }
        self.with(|state| {
            let space = state.space_index(space)?;
            let until = (state.now_ms + u64::from(ttl_ms)).div_ceil(RETAIN_MS).min(u64::from(u32::MAX)) as u32;
            let mut outcome = Outcome::new(statuses);
            for (i, key) in keys.iter().enumerate() {
                outcome.set(
                    i,
                    state.find(space, key).map_or(KVKEEP_ERR_NOT_FOUND, |id| {
                        let slot = state.slots.detail_mut(id);
                        slot.priority = priority as u8;
                        slot.chances = priority.div_ceil(25) as u8;
                        slot.retain_until = until;
                        KVKEEP_OK
                    }),
                );
            }
            Ok(outcome.all_ok())
        })
    }

    /// Evicts keys that are not in use, whatever their policy would choose, be they written or not.
    pub fn evict(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.with_fingerprints(keys, |state, fingerprints, _| {
            let space = state.space_index(space)?;
            let mut outcome = Outcome::new(statuses);
            for (i, &fingerprint) in fingerprints.iter().enumerate() {
                state.look_ahead(fingerprints, i);
                let status = match state.find_fingerprint(fingerprint.within(space)) {
                    None => KVKEEP_ERR_NOT_FOUND,
                    Some(id) if state.slots[id].locked() => KVKEEP_ERR_LOCKED,
                    Some(id) => {
                        state.evict_as_it_is(id);
                        KVKEEP_OK
                    }
                };
                outcome.set(i, status);
            }
            Ok(outcome.all_ok())
        })
    }

    /// Deletes keys that are not in use, and says of each what became of it.
    pub fn delete(&self, space: u64, keys: &[Key]) -> Result<Vec<Status>> {
        self.with(|state| {
            let space = state.space_index(space)?;
            let delete = |key| match state.find(space, key) {
                _ if state.hidden_writes.has(space, key) => KVKEEP_ERR_LOCKED,
                None => KVKEEP_ERR_NOT_FOUND,
                Some(id) if state.slots[id].locked() => KVKEEP_ERR_LOCKED,
                Some(id) => {
                    state.hide(id, Removal::Deleted);
                    state.free_if_unused(id);
                    KVKEEP_OK
                }
            };
            Ok(keys.iter().map(delete).collect())
        })
    }

    /// Takes keys out of sight, in use or not.
    pub fn hide_all(&self, space: u64, keys: &[Key]) -> Result<()> {
        self.with(|state| {
            let space = state.space_index(space)?;
            for key in keys {
                if let Some(id) = state.find(space, key) {
                    state.hide(id, Removal::Deleted);
                    state.free_if_unused(id);
                }
            }
            Ok(())
        })
    }

    /// Removes the objects of a space, or of all. With `force`, those in use are hidden. Says how many went, and whether none stayed.
    pub fn clear(&self, space: Option<u64>, force: bool) -> Result<(u64, bool)> {
        self.with(|state| {
            let space = space.map(|space| state.space_index(space)).transpose()?;
            Ok(state.clear(space, force))
        })
    }

    /// Removes the objects of a space, or of all, in use or not, and has nothing committed that is staged now, or that a copy under
    /// way is still to stage: it comes from pages of before. Says how many went.
    pub fn forget(&self, space: Option<u64>) -> Result<u64> {
        self.with(|state| {
            let space = space.map(|space| state.space_index(space)).transpose()?;
            for id in state.slots_of(space, |slot| slot.is(STAGING)) {
                state.slots[id].set(FORGOTTEN);
            }
            for (_, mut session) in state.sessions.live() {
                session.forgotten |= session.user != 0 && space.is_none_or(|space| space == session.space);
            }
            Ok(state.clear(space, true).0)
        })
    }
}

impl State {
    /// The slots of a space, or of all, that are as wished.
    fn slots_of(&self, space: Option<u32>, wished: impl Fn(&Slot) -> bool) -> Vec<u32> {
        let of_space = |id| space.is_none_or(|space| space == self.slots.space(id));
        self.slots.live().filter(|(id, slot)| wished(slot) && of_space(*id)).map(|(id, _)| id).collect()
    }

    fn clear(&mut self, space: Option<u32>, force: bool) -> (u64, bool) {
        let ready = self.slots_of(space, Slot::is_findable);
        let mut gone = 0;
        for &id in &ready {
            if force || !self.slots[id].locked() {
                self.hide(id, Removal::Deleted);
                self.free_if_unused(id);
                gone += 1;
            }
        }
        (gone, gone == ready.len() as u64)
    }

    /// Tells the policy of its pool that an object was used.
    pub(super) fn touch_slot(&mut self, pool: usize, id: u32) {
        let (policy, metas) = self.policy(pool);
        policy.touch(id, &|id| metas.of(id));
    }
}
