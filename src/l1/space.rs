//! Spaces: their names, their quotas, and the pools in which their objects compete for room.

use parking_lot::Mutex;

use super::{L1, Pool, Space, SpaceInfo, State};
use crate::config::SpaceSpec;
use crate::error::{Error, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, Result};
use crate::hash::{layout_tag, space_tag};
use crate::key::SpaceTag;
use crate::policy::{self, Removal};

const SPACES_MAX: usize = 1 << 16;

impl L1 {
    /// Opens a space, or sets the quota of one that is open, and gives its number.
    pub fn open_space(&self, spec: &SpaceSpec) -> Result<u64> {
        self.open_tagged_space(space_tag(spec), spec)
    }

    /// As [`open_space`](L1::open_space), of a space with the tag `tag`. A number is half of a tag, so the tags are compared.
    pub(super) fn open_tagged_space(&self, tag: SpaceTag, spec: &SpaceSpec) -> Result<u64> {
        let index = self.with(|state| {
            let index = match state.by_number.get(&tag.number()) {
                Some(&index) if state.spaces[index as usize].tag != tag => return Err(alias(&tag)),
                Some(&index) => index,
                None => {
                    if state.spaces.len() >= SPACES_MAX {
                        return Err(Error::new(
                            KVKEEP_ERR_LIMIT,
                            format!("{SPACES_MAX} spaces are open: use fewer tenants or layouts per cache"),
                        ));
                    }
                    let index = state.spaces.len() as u32;
                    let layout = layout_tag(spec);
                    let chunk_tokens = spec.chunk_tokens;
                    state.spaces.push(Space { tag, layout, chunk_tokens, quota: 0, used: 0, ready: 0, pool: 0 });
                    state.by_number.insert(tag.number(), index);
                    index
                }
            };
            state.set_quota(index, spec.quota_bytes)?;
            Ok(index)
        })?;
        self.trim_to_quota(index);
        Ok(tag.number())
    }

    /// Sets the quota of an open space.
    pub fn set_quota(&self, number: u64, quota_bytes: u64) -> Result<()> {
        let index = self.with(|state| {
            let index = state.space_index(number)?;
            state.set_quota(index, quota_bytes)?;
            Ok(index)
        })?;
        self.trim_to_quota(index);
        Ok(())
    }

    fn trim_to_quota(&self, space: u32) {
        while self.with(|state| state.trim_to_quota(space)) {}
    }

    /// The space of a number.
    pub fn space(&self, number: u64) -> Result<SpaceInfo> {
        self.with(|state| state.space_index(number).map(|index| state.space_info(index)))
    }

    /// The space of a session, whose deadline is renewed.
    pub fn session_space(&self, session: u64) -> Result<SpaceInfo> {
        self.with(|state| {
            let space = state.sessions.use_now(session, state.now_ms)?.1.space;
            Ok(state.space_info(space))
        })
    }
}

#[cold]
fn alias(tag: &SpaceTag) -> Error {
    Error::invalid(format!(
        "the number of this space, {}, is that of another space that is open (a coincidence of one in 2^64, or made so): \
         change a character of its tenant, layout or model",
        tag.number()
    ))
}

pub(super) fn new_pool(policy: &str) -> Result<Pool> {
    let names = policy::NAMES.join(", ");
    let policy = policy::by_name(policy)
        .ok_or_else(|| Error::invalid(format!("eviction_policy \"{policy}\" is unknown: use one of {names}")))?;
    Ok(Pool { policy: Mutex::new(policy), bytes: 0 })
}

impl State {
    pub(super) fn space_index(&self, number: u64) -> Result<u32> {
        self.by_number.get(&number).copied().ok_or_else(|| {
            Error::new(
                KVKEEP_ERR_NOT_FOUND,
                format!("space {number} was never opened: use a number that kvkeep_open_space gave"),
            )
        })
    }

    pub(super) fn space_info(&self, index: u32) -> SpaceInfo {
        let space = &self.spaces[index as usize];
        SpaceInfo { index, tag: space.tag, layout: space.layout, chunk_tokens: space.chunk_tokens }
    }

    fn set_quota(&mut self, index: u32, quota: u64) -> Result<()> {
        let space = &mut self.spaces[index as usize];
        space.quota = quota;
        if quota == 0 || space.pool != 0 {
            return Ok(());
        }
        // A quota evicts within its space, so from now on its objects compete with each other only.
        let pool = self.pools.len();
        space.pool = pool;
        self.pools.push(new_pool(&self.config.policy)?);
        let members: Vec<u32> = self
            .slots
            .live()
            .filter(|(id, slot)| slot.is_findable() && self.slots.space(*id) == index)
            .map(|(id, _)| id)
            .collect();
        for id in members {
            let size = self.slots[id].size();
            self.policy(0).0.remove(id, Removal::Deleted);
            self.pools[0].bytes -= size;
            let (policy, metas) = self.policy(pool);
            policy.insert(id, &|id| metas.of_new(id));
            self.pools[pool].bytes += size;
        }
        Ok(())
    }
}
