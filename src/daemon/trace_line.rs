//! The lines of a request trace: `kvkeep serve --trace` writes them, `kvkeep replay` reads them.
//!
//! A trace has one JSON object a line. The first line has the version, later ones are requests and their effects. A request is
//! a line with `timestamp`, `input_length`, `output_length` and `hash_ids`, the public format of request traces, so that other programs
//! can read it too: they pass over the lines without these.

use serde::{Deserialize, Serialize};

/// The version that is written, and the newest that can be read.
pub const TRACE_VERSION: u32 = 1;

fn is_false(value: &bool) -> bool {
    !value
}

/// One line. Fields that a line has not are left out.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceLine {
    /// On the first line: the version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_version: Option<u32>,
    /// On the first line: when the recording began, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_ms: Option<u64>,

    /// When it happened, in milliseconds since the recording began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// The session that it happened in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
    /// The space of the session; with `model`, a space that was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<u64>,
    /// Names of a space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The layout of a space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// The tenant of a space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Tokens of a chunk of a space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_tokens: Option<u32>,

    /// Tokens that a request asks for, in whole chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_length: Option<u64>,
    /// Tokens of its answer. kvkeep does not know them and writes 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_length: Option<u64>,
    /// The objects that it asks for, in the order of the prompt, one number each. Two are equal if their objects are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_ids: Option<Vec<u64>>,
    /// Numbers the lookup, for `found`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookup: Option<u64>,
    /// So many of the objects are one chunk; 1 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects_per_chunk: Option<u32>,
    /// Each chunk is of use by itself: the lookup does not end with the first missing one.
    #[serde(skip_serializing_if = "is_false")]
    pub any: bool,
    /// Only L1 was asked.
    #[serde(skip_serializing_if = "is_false")]
    pub l1_only: bool,

    /// Chunks that the lookup of this number found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<u32>,
    /// The chunks that it did not find, ascending, where others behind them were found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<u32>>,
    /// The objects that were committed,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<Vec<u64>>,
    /// and the bytes of each, or one number for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u64>>,
    /// The session copies for this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<u64>,
    /// The session ended.
    #[serde(skip_serializing_if = "is_false")]
    pub ended: bool,
    /// So many lines are missing here, because they came faster than the disk takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
}
