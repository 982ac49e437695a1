//! A space as operators see it: by name, with the part of L1 that it takes.

use serde::{Serialize, Serializer};

use crate::misses::LookupCounts;

/// One open space.
#[derive(Clone, Debug, Serialize)]
pub struct SpaceReport {
    /// Its number; text in JSON, since it has more digits than JavaScript's numbers.
    #[serde(serialize_with = "as_text")]
    pub space: u64,
    /// The name of the model.
    pub model: String,
    /// What the bytes depend on besides the model.
    pub layout: String,
    /// The salt of the tenant.
    pub tenant: String,
    /// The number of the model's weights.
    pub generation: u64,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// Objects in L1 that lookups find.
    pub objects: u64,
    /// Bytes of L1 of its objects, staged and hidden ones too.
    pub used_bytes: u64,
    /// Most bytes of L1, 0 for no bound.
    pub quota_bytes: u64,
    /// The keys that lookups asked for in it.
    pub lookups: LookupCounts,
}

fn as_text<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}
