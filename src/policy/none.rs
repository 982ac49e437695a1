//! Nothing is ever evicted: a full tier refuses.

use super::eviction_policy::{EvictionPolicy, Meta, Removal};

/// The policy that has no victims.
pub struct Never;

impl EvictionPolicy for Never {
    fn name(&self) -> &'static str {
        "none"
    }

    fn insert(&mut self, _id: u32, _meta: &dyn Fn(u32) -> Meta) {}

    fn touch(&mut self, _id: u32, _meta: &dyn Fn(u32) -> Meta) {}

    fn remove(&mut self, _id: u32, _why: Removal) {}

    fn victim(&mut self, _usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        None
    }

    fn release(&mut self, _id: u32) {}

    fn memory_bytes(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_offers_a_victim() {
        let mut policy = Never;
        policy.insert(0, &|_| Meta::default());
        assert_eq!(policy.victim(&mut |_| true), None);
    }
}
