//! Opening and closing spaces, and their quotas.

use super::pools::EvictionPool;
use super::space::Space;
use super::state::L1State;
use super::tier::L1;
use super::{evict, remove};
use crate::config::SpaceSpec;
use crate::error::{Error, KVKEEP_ERR_LIMIT, KVKEEP_ERR_LOCKED, Result};
use crate::hash::{layout_tag, space_tag};
use crate::key::SpaceTag;
use crate::misses::LookupCounts;
use crate::policy::Removal;

const SPACES_MAX: usize = 1 << 16;
/// Among more open spaces, those that differ little from a new one are not looked for.
const COMPARED_MAX: usize = 1024;

pub(super) fn open_space(l1: &L1, spec: &SpaceSpec) -> Result<u64> {
    open_tagged_space(l1, space_tag(spec), spec)
}

/// As [`open_space`], of a space with the tag `tag`. A number is half of a tag, so the tags are compared.
pub(super) fn open_tagged_space(l1: &L1, tag: SpaceTag, spec: &SpaceSpec) -> Result<u64> {
    let index = l1.with(|state| {
        let index = match state.by_number.get(&tag.number()) {
            Some(&index) if state.spaces[index as usize].tag != tag => return Err(alias(&tag)),
            // A caller that asks for no quota does not mean to lift the one that another set.
            Some(&index) if spec.quota_bytes == 0 => return Ok(index),
            Some(&index) => index,
            None => {
                let (layout, spec) = (layout_tag(spec), spec.clone());
                let space =
                    Space { tag, layout, spec, quota: 0, used: 0, ready: 0, pool: 0, lookups: LookupCounts::default() };
                note_odd_difference(state, &space);
                let index = enter(state, space)?;
                state.by_number.insert(tag.number(), index);
                index
            }
        };
        set_quota_of(state, index, spec.quota_bytes)?;
        Ok(index)
    })?;
    trim_to_quota(l1, index);
    Ok(tag.number())
}

/// Notes for the log that another open space differs from `space` by its layout or chunk size alone: they share nothing.
fn note_odd_difference(state: &mut L1State, space: &Space) {
    if state.by_number.len() > COMPARED_MAX {
        return;
    }
    let others = state.by_number.values().map(|&index| &state.spaces[index as usize]);
    let odd = others.filter_map(|other| Some((other.tag.number(), space.odd_difference(other)?))).min();
    if let Some((other, difference)) = odd {
        let (number, model) = (space.tag.number(), &space.spec.model);
        state.note("odd space", || {
            format!(
                "space {number} of model {model:?} differs from space {other} by its {difference}, alone: they share nothing; \
                 give both the same, unless their bytes differ"
            )
        });
    }
}

/// Gives a space an index: that of a closed one, if no memory is that one's any more, or a new one.
fn enter(state: &mut L1State, space: Space) -> Result<u32> {
    let left = state.closed_spaces.iter().position(|&index| state.spaces[index as usize].used == 0);
    if let Some(at) = left {
        let index = state.closed_spaces.swap_remove(at);
        let former = std::mem::replace(&mut state.spaces[index as usize], space);
        if former.pool != 0 {
            state.spare_pools.push(former.pool);
        }
        // Loads that came after it was closed may have left some.
        state.shapes.forget(index);
        return Ok(index);
    }
    if state.spaces.len() >= SPACES_MAX {
        return Err(Error::new(
            KVKEEP_ERR_LIMIT,
            format!("{SPACES_MAX} spaces are open: close some, or use fewer tenants or layouts per cache"),
        ));
    }
    state.spaces.push(space);
    Ok(state.spaces.len() as u32 - 1)
}

/// Closes a space that no session uses: its number is not known any more, and its objects leave this tier.
pub(super) fn close_space(l1: &L1, number: u64) -> Result<()> {
    l1.with(|state| {
        let index = state.space_index(number)?;
        if let Some((_, session)) = state.sessions.live().find(|(_, session)| session.space == index) {
            return Err(Error::new(
                KVKEEP_ERR_LOCKED,
                format!("session {} of space {number} is live: end the sessions of a space first", session.id),
            ));
        }
        remove::clear_objects(state, Some(index), true);
        state.shapes.forget(index);
        state.by_number.remove(&number);
        state.closed_spaces.push(index);
        state.closed_lookups.add(&state.spaces[index as usize].lookups);
        Ok(())
    })
}

pub(super) fn set_quota(l1: &L1, number: u64, quota_bytes: u64) -> Result<()> {
    let index = l1.with(|state| {
        let index = state.space_index(number)?;
        set_quota_of(state, index, quota_bytes)?;
        Ok(index)
    })?;
    trim_to_quota(l1, index);
    Ok(())
}

/// Evicts the objects above a space's quota, a slice under one lock.
fn trim_to_quota(l1: &L1, space: u32) {
    while l1.with(|state| evict::trim_to_quota(state, space)) {}
}

#[cold]
fn alias(tag: &SpaceTag) -> Error {
    Error::invalid(format!(
        "the number of this space, {}, is that of another space that is open (a coincidence of one in 2^64, or made so): \
         change a character of its tenant, layout or model",
        tag.number()
    ))
}

fn set_quota_of(state: &mut L1State, index: u32, quota: u64) -> Result<()> {
    let space = &mut state.spaces[index as usize];
    space.quota = quota;
    if quota == 0 || space.pool != 0 {
        return Ok(());
    }
    // A quota evicts within its space, so from now on its objects compete with each other only.
    let empty = EvictionPool::new(&state.config.policy)?;
    let pool = state.spare_pools.pop().unwrap_or(state.pools.len());
    space.pool = pool;
    match state.pools.get_mut(pool) {
        Some(spare) => *spare = empty,
        None => state.pools.push(empty),
    }
    let members: Vec<u32> = state
        .slots
        .live()
        .filter(|(id, slot)| slot.is_findable() && state.slots.space(*id) == index)
        .map(|(id, _)| id)
        .collect();
    for id in members {
        let size = state.slots[id].size();
        state.policy(0).0.remove(id, Removal::Deleted);
        state.pools[0].bytes -= size;
        let (policy, metas) = state.policy(pool);
        policy.insert(id, &|id| metas.of_new(id));
        state.pools[pool].bytes += size;
    }
    Ok(())
}
