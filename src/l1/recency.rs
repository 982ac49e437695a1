//! When an object counts as used, on a caller's word: touch and retain. Reads count by `share.rs`.

use super::outcome::Outcome;
use super::slot::RETAIN_MS;
use super::tier::L1;
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result};
use crate::key::Key;

pub(super) fn touch(l1: &L1, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
    l1.with(|state| {
        let space = state.space_index(space)?;
        let pool = state.spaces[space as usize].pool;
        let mut outcome = Outcome::new(statuses);
        for (i, key) in keys.iter().enumerate().rev() {
            outcome.set(
                i,
                state.find(space, key).map_or(KVKEEP_ERR_NOT_FOUND, |id| {
                    state.touch_object(pool, id);
                    KVKEEP_OK
                }),
            );
        }
        Ok(outcome.all_ok())
    })
}

pub(super) fn retain(
    l1: &L1,
    space: u64,
    keys: &[Key],
    priority: u32,
    ttl_ms: u32,
    statuses: Option<&mut [i32]>,
) -> Result<bool> {
    if priority > 100 {
        return Err(Error::invalid(format!("priority is {priority}, it must be 0 to 100: 100 keeps longest")));
    }
    l1.with(|state| {
        let space = state.space_index(space)?;
        let until = (state.now_ms + u64::from(ttl_ms)).div_ceil(RETAIN_MS).min(u64::from(u32::MAX)) as u32;
        let mut outcome = Outcome::new(statuses);
        for (i, key) in keys.iter().enumerate() {
            outcome.set(
                i,
                state.find(space, key).map_or(KVKEEP_ERR_NOT_FOUND, |id| {
                    let slot = state.slots.cold_mut(id);
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
