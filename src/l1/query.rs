//! What L1 says of itself to programs: cheap enough to be asked for each request.

use super::slot::{BUSY, NONE, QUEUED, STORED, TEMPORARY};
use super::{L1, State};
use crate::abi::{
    KVKEEP_KEY_EVICTABLE, KVKEEP_KEY_STORED, KVKEEP_KEY_STORING, KVKEEP_KEY_TEMPORARY, KeyState, ObjectState,
    SessionState, SpaceUsage, chars,
};
use crate::error::Result;
use crate::key::Key;

impl L1 {
    /// What each key is now. Takes no shares and touches nothing.
    pub fn query_keys(&self, space: u64, keys: &[Key], states: &mut [KeyState]) -> Result<()> {
        self.looking_up(keys, false, |mut lookup| {
            // Alone: of calls side by side one would see half.
            self.with(|state| {
                let space = state.space_index(space)?;
                let (found, _) = lookup.find_all(state, space);
                for (said, &id) in states.iter_mut().zip(&*found) {
                    *said = if id == NONE { KeyState::default() } else { state.key_state(id) };
                }
                Ok(())
            })
        })
    }

    /// Fills in what a space takes of L1, but not the head.
    pub fn query_space(&self, space: u64, usage: &mut SpaceUsage) -> Result<()> {
        self.with(|state| {
            let space = &state.spaces[state.space_index(space)? as usize];
            usage.objects = space.ready;
            usage.used_bytes = space.used;
            usage.quota_bytes = space.quota;
            Ok(())
        })
    }
}

impl L1 {
    /// Fills in the state of a session, but not the head.
    pub fn query_session(&self, session: u64, said: &mut SessionState) -> Result<()> {
        self.with(|state| {
            let session = state.sessions.at(state.sessions.index(session)?);
            *said = SessionState {
                struct_size: said.struct_size,
                abi_version: said.abi_version,
                space: state.spaces[session.space as usize].tag.number(),
                age_ms: state.now_ms - session.began_ms,
                expires_in_ms: session.deadline_ms as i64 - state.now_ms as i64,
                shares: session.shares,
                revoked_shares: session.revoked.values().copied().map(u64::from).sum(),
                staged_keys: session.staged.len() as u64,
                jobs: session.jobs,
                owner_pid: session.owner_pid,
                request_id: chars(&session.request_id),
            };
            Ok(())
        })
    }
}

impl State {
    fn key_state(&self, id: u32) -> KeyState {
        let slot = &self.slots[id];
        let flags = [
            (slot.is(TEMPORARY), KVKEEP_KEY_TEMPORARY),
            (self.evictable(id), KVKEEP_KEY_EVICTABLE),
            (slot.is(STORED), KVKEEP_KEY_STORED),
            (slot.is(QUEUED), KVKEEP_KEY_STORING),
        ];
        KeyState {
            size: slot.size(),
            state: ObjectState::KVKEEP_OBJECT_READY as u32,
            shares: self.slots.shares(id),
            flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
            reserved: 0,
        }
    }

    /// Whether eviction may take a ready object: nobody uses its memory, or nobody but sessions past their deadlines.
    fn evictable(&self, id: u32) -> bool {
        let word = self.slots[id].word();
        if !word.locked() || word.is(BUSY) {
            return !word.locked();
        }
        let expired = |session: u32| self.sessions.at(session).is_expired(self.now_ms);
        let (holder, held) = word.holder();
        (held == 0 || expired(holder)) && self.holds.iter(&self.slots, id).all(|(session, _)| expired(session))
    }
}
