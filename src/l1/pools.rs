//! Pools of objects that compete for memory, each with an eviction policy.

use super::slots::Slots;
use crate::error::Result;
use crate::policy::{self, EvictionPolicy, Meta};

/// Objects that compete for memory: those of all spaces without a quota, or those of one space with one.
pub(super) struct EvictionPool {
    pub policy: Box<dyn EvictionPolicy>,
    /// Bytes of its ready objects.
    pub bytes: u64,
}

impl EvictionPool {
    /// An empty pool with the policy of this name. Fails if there is none.
    pub fn new(policy: &str) -> Result<EvictionPool> {
        Ok(EvictionPool { policy: policy::by_name(policy)?, bytes: 0 })
    }
}

/// The facts of objects that a policy may ask for.
#[derive(Clone, Copy)]
pub(super) struct Metas<'a> {
    pub slots: &'a Slots,
    pub now_ms: u64,
}

impl Metas<'_> {
    /// Those of an object that is new to the policy.
    pub fn of_new(&self, id: u32) -> Meta {
        self.slots.new_meta(id, self.now_ms)
    }

    /// Those of an object that the policy has already.
    pub fn of(&self, id: u32) -> Meta {
        self.slots.meta(id, self.now_ms)
    }
}
