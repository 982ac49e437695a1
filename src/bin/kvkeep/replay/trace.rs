//! Request traces: one JSON object a line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

/// One request of a trace.
#[derive(Deserialize)]
pub struct TraceRequest {
    /// When it came, in milliseconds.
    pub timestamp: u64,
    /// Tokens of its prompt.
    pub input_length: u64,
    /// Tokens of its answer.
    pub output_length: u64,
    /// One id for each block of the prompt; two requests share one only if all tokens before it are equal too.
    pub hash_ids: Vec<u64>,
}

/// The first `limit` requests of a file.
pub fn read(path: &Path, limit: usize) -> Result<Vec<TraceRequest>, String> {
    let name = path.display();
    let file = File::open(path).map_err(|error| format!("{name} cannot be opened: {error}; name a trace file"))?;
    let mut requests = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        if requests.len() == limit {
            break;
        }
        let line = line.map_err(|error| format!("{name}, line {}: cannot be read: {error}", i + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        requests.push(serde_json::from_str(&line).map_err(|error| {
            format!(
                "{name}, line {}: {error}; a line is {{\"timestamp\": ms, \"input_length\": tokens, \"output_length\": \
                 tokens, \"hash_ids\": [numbers]}}",
                i + 1
            )
        })?);
    }
    if requests.iter().all(|request: &TraceRequest| request.hash_ids.is_empty()) {
        return Err(format!("{name} asks for no block: name a trace with requests in it"));
    }
    Ok(requests)
}

/// Blocks that a trace asks for, and how many of them are different.
pub fn blocks(requests: &[TraceRequest]) -> (u64, u64) {
    let ids = || requests.iter().flat_map(|request| &request.hash_ids);
    (ids().count() as u64, ids().collect::<HashSet<_>>().len() as u64)
}
