//! One space, which is a namespace of keys.

use crate::config::SpaceSpec;
use crate::key::SpaceTag;
use crate::misses::LookupCounts;

pub(super) struct Space {
    pub tag: SpaceTag,
    pub layout: [u8; 16],
    /// Its names, as it was first opened with.
    pub spec: SpaceSpec,
    /// Most bytes of its objects, 0 for no bound.
    pub quota: u64,
    /// Bytes of its objects, staged, ready or detached: the quota bounds these.
    pub used: u64,
    /// How many objects of it are ready.
    pub ready: u64,
    /// Index of the pool in which its objects compete.
    pub pool: usize,
    /// The keys that lookups asked for in it.
    pub lookups: LookupCounts,
}

impl Space {
    /// The difference to `other`, if it is only one of layout or chunk size, so that it may not be meant.
    pub fn odd_difference(&self, other: &Space) -> Option<String> {
        let (mine, its) = (&self.spec, &other.spec);
        let same =
            |a: &SpaceSpec, b: &SpaceSpec| (&a.model, &a.tenant, a.generation) == (&b.model, &b.tenant, b.generation);
        match (same(mine, its), mine.layout != its.layout, mine.chunk_tokens != its.chunk_tokens) {
            (true, true, false) => Some(format!("layout, {:?} and {:?}", mine.layout, its.layout)),
            (true, false, true) => Some(format!("chunk_tokens, {} and {}", mine.chunk_tokens, its.chunk_tokens)),
            _ => None,
        }
    }
}

/// A space, for the layers above.
#[derive(Clone, Copy, Debug)]
pub struct SpaceInfo {
    /// Its index in this tier.
    pub index: u32,
    /// The hash that names it everywhere.
    pub tag: SpaceTag,
    /// The tag of its layout.
    pub layout: [u8; 16],
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
}
