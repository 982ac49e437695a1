//! Copies of one key that a session holds after its space was cleared: the cleared ones, and one that was committed since.

use super::State;
use super::slot::NONE;
use crate::error::{KVKEEP_ERR_NOT_HELD, KVKEEP_OK, Status};
use crate::key::Key;

impl State {
    /// Returns shares of a session that holds several copies of a key, all but one of them hidden by a clearing of its space. Those
    /// of one return are of one copy. Where it is open of which, another reader may still read either: so all stay until as many
    /// shares are returned as were taken. `None` where it holds one copy, or none.
    pub(super) fn finish_among_copies(&mut self, session: u32, key: &Key, id: &mut u32, count: u32) -> Option<Status> {
        let hidden = self.sessions.at_mut(session).strays.get(key)?;
        let live = hidden.iter().filter(|name| self.slots.find(**name).is_some()).map(|name| name.slot);
        let ids: Vec<u32> = live.chain((*id != NONE).then_some(*id)).collect();
        let shares = |id: u32| (id, self.shares_of(session, id));
        let copies: Vec<(u32, u32)> = ids.into_iter().map(shares).filter(|(_, shares)| *shares > 0).collect();
        if copies.len() < 2 {
            return None;
        }
        let taken: u64 = copies.iter().map(|(_, shares)| u64::from(*shares)).sum();
        let owed = &mut self.sessions.at_mut(session).owed;
        let before = owed.get(key).copied().unwrap_or(0);
        let returned = u64::from(before) + u64::from(count);
        let mut large_enough = copies.iter().filter(|(_, shares)| *shares >= count);
        match (large_enough.next(), large_enough.next()) {
            (None, _) => {
                *id = NONE;
                return Some(KVKEEP_ERR_NOT_HELD);
            }
            (Some(&(copy, _)), None) if before == 0 => {
                *id = if self.give_back(session, copy, count) { copy } else { NONE };
                return Some(KVKEEP_OK);
            }
            _ => {}
        }
        *id = NONE;
        if returned > taken {
            return Some(KVKEEP_ERR_NOT_HELD);
        }
        if returned < taken {
            owed.insert(*key, before + count);
            return Some(KVKEEP_OK);
        }
        owed.remove(key);
        self.sessions.at_mut(session).strays.remove(key);
        for (copy, shares) in copies {
            // One of them at most is not hidden.
            if self.give_back(session, copy, shares) {
                *id = copy;
            }
        }
        Some(KVKEEP_OK)
    }
}
