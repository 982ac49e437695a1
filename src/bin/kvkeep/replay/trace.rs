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

/// A trace that was read.
pub struct Trace {
    /// The requests, in their order.
    pub requests: Vec<TraceRequest>,
    /// A sentence about a last line that is not whole, and was left out.
    pub note: Option<String>,
}

impl Trace {
    /// The first `limit` requests of a file. A last line that is not whole is left out.
    pub fn read(path: &Path, limit: usize) -> Result<Trace, String> {
        let name = path.display();
        let file = File::open(path).map_err(|error| format!("{name} cannot be opened: {error}; name a trace file"))?;
        let mut trace = Trace { requests: Vec::new(), note: None };
        let (mut reader, mut line, mut number) = (BufReader::new(file), String::new(), 0);
        while trace.requests.len() < limit {
            line.clear();
            number += 1;
            let length = reader
                .read_line(&mut line)
                .map_err(|error| format!("{name}, line {number}: cannot be read: {error}; name a trace file"))?;
            if length == 0 {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            match serde_json::from_str(&line) {
                Ok(request) => trace.requests.push(request),
                Err(error) if error.is_eof() && !line.ends_with('\n') => {
                    trace.note = Some(format!("line {number}, the last one, is cut off and was left out"));
                }
                Err(error) => {
                    return Err(format!(
                        "{name}, line {number}: {error}; a line is {{\"timestamp\": ms, \"input_length\": tokens, \
                         \"output_length\": tokens, \"hash_ids\": [numbers]}}"
                    ));
                }
            }
        }
        if trace.requests.iter().all(|request| request.hash_ids.is_empty()) {
            return Err(format!("{name} asks for no block: name a trace with requests in it"));
        }
        Ok(trace)
    }

    /// Blocks that the trace asks for, and how many of them are different.
    pub fn blocks(&self) -> (u64, u64) {
        let ids = || self.requests.iter().flat_map(|request| &request.hash_ids);
        (ids().count() as u64, ids().collect::<HashSet<_>>().len() as u64)
    }
}
