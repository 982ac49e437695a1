//! One space, which is a namespace of keys.

use crate::key::SpaceTag;

pub(super) struct Space {
    pub tag: SpaceTag,
    pub layout: [u8; 16],
    pub chunk_tokens: u32,
    /// Most bytes of its objects, 0 for no bound.
    pub quota: u64,
    /// Bytes of its objects, staged, ready or detached: the quota bounds these.
    pub used: u64,
    /// How many objects of it are ready.
    pub ready: u64,
    /// Index of the pool in which its objects compete.
    pub pool: usize,
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
