//! Request traces: one JSON object a line, in the public format or as `kvkeep serve --trace` writes them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use hashbrown::{HashMap, HashSet};
use kvkeep::daemon::trace_line::{TRACE_VERSION, TraceLine};

/// Largest block: no engine has larger ones, and sizes made from it do not overflow.
pub const BLOCK_BYTES_MAX: u64 = 64 << 30;

/// A request's objects, in the order of the prompt. Two requests share an id only if all tokens before it are equal too.
pub struct TraceRequest {
    /// When it came, in milliseconds.
    pub timestamp: u64,
    /// Tokens of its prompt.
    pub input_length: u64,
    /// Tokens of its answer.
    pub output_length: u64,
    /// The objects of each chunk.
    pub hash_ids: Vec<u64>,
    /// The session that asks. None in the public format: there a request stores what it misses, and ends.
    pub session: Option<u64>,
    /// So many objects are one chunk.
    pub objects_per_chunk: usize,
    /// Each chunk is of use by itself.
    pub any: bool,
    /// Only L1 was asked.
    pub l1_only: bool,
    /// Chunks that it found when it was recorded, the first ones where `missing` does not say others.
    found: usize,
    missing: Vec<u32>,
}

impl TraceRequest {
    /// Whether it found a chunk when it was recorded.
    pub fn was_found(&self, chunk: usize) -> bool {
        if self.missing.is_empty() { chunk < self.found } else { self.missing.binary_search(&(chunk as u32)).is_err() }
    }
}

/// What happened, in the order of the trace.
pub enum TraceEvent {
    /// A request asks for objects.
    Asked(TraceRequest),
    /// A session committed objects.
    Stored { session: u64, ids: Vec<u64> },
    /// A session copies for another.
    Copies { session: u64, copy_of: u64 },
    /// A session ended.
    Ended { session: u64 },
}

impl TraceEvent {
    /// The objects asked for or stored.
    fn ids(&self) -> &[u64] {
        match self {
            TraceEvent::Asked(request) => &request.hash_ids,
            TraceEvent::Stored { ids, .. } => ids,
            TraceEvent::Copies { .. } | TraceEvent::Ended { .. } => &[],
        }
    }
}

/// A trace that was read.
#[derive(Default)]
pub struct Trace {
    /// All events, in their order.
    pub events: Vec<TraceEvent>,
    /// Sentences about lines that are missing.
    pub notes: Vec<String>,
    /// A daemon recorded it: it says what was found and stored.
    pub recorded: bool,
    /// Bytes of objects, as far as the trace says them.
    sizes: HashMap<u64, u64>,
    /// Bytes of the others.
    unknown_bytes: u64,
}

impl Trace {
    /// The first `limit` requests of files, which are read one after another. A last line that is not whole is left out.
    pub fn read(paths: &[PathBuf], limit: usize) -> Result<Trace, String> {
        let mut trace = Trace::default();
        let (mut lookups, mut left) = (HashMap::new(), limit);
        for path in paths {
            left -= trace.read_file(path, left, &mut lookups)?;
        }
        if trace.requests().all(|request| request.hash_ids.is_empty()) {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            return Err(format!("{} asks for no block: name a trace with requests in it", names.join(", ")));
        }
        Ok(trace)
    }

    /// Reads a file up to its `limit`th request, and gives their number.
    fn read_file(&mut self, path: &Path, limit: usize, lookups: &mut HashMap<u64, usize>) -> Result<usize, String> {
        let name = path.display();
        let file = File::open(path).map_err(|error| format!("{name} cannot be opened: {error}; name a trace file"))?;
        let (mut reader, mut text, mut number) = (BufReader::new(file), String::new(), 0);
        let (mut requests, mut dropped) = (0, 0);
        while requests < limit {
            text.clear();
            number += 1;
            let length = reader
                .read_line(&mut text)
                .map_err(|error| format!("{name}, line {number}: cannot be read: {error}; name a trace file"))?;
            if length == 0 {
                break;
            }
            if text.trim().is_empty() {
                continue;
            }
            let line: TraceLine = match serde_json::from_str(&text) {
                Ok(line) => line,
                Err(error) if error.is_eof() && !text.ends_with('\n') => {
                    self.notes.push(format!("{name}: line {number}, the last one, is cut off and was left out"));
                    break;
                }
                Err(error) => return Err(wrong(path, number, &error.to_string())),
            };
            dropped += line.dropped.unwrap_or(0);
            let taken = self.take(line, lookups).map_err(|why| wrong(path, number, &why))?;
            requests += usize::from(taken);
        }
        if dropped > 0 {
            self.notes
                .push(format!("{name}: {dropped} lines were dropped when it was recorded, so that hits are missing"));
        }
        Ok(requests)
    }

    /// Takes a line. True if it is a request. `lookups` are the requests that were numbered, by their events.
    fn take(&mut self, line: TraceLine, lookups: &mut HashMap<u64, usize>) -> Result<bool, String> {
        if let Some(version) = line.trace_version {
            self.recorded = true;
            if version > TRACE_VERSION {
                return Err(format!(
                    "the trace has version {version}, and this kvkeep reads {TRACE_VERSION}: use a newer one"
                ));
            }
        } else if let Some(hash_ids) = line.hash_ids {
            let needs = |name: &str, value: Option<u64>| value.ok_or_else(|| format!("missing field `{name}`"));
            let objects_per_chunk = line.objects_per_chunk.unwrap_or(1) as usize;
            if objects_per_chunk == 0 || !hash_ids.len().is_multiple_of(objects_per_chunk) {
                return Err(format!("{} objects are no whole chunks of {objects_per_chunk}", hash_ids.len()));
            }
            lookups.extend(line.lookup.map(|lookup| (lookup, self.events.len())));
            self.events.push(TraceEvent::Asked(TraceRequest {
                timestamp: needs("timestamp", line.timestamp)?,
                input_length: needs("input_length", line.input_length)?,
                output_length: needs("output_length", line.output_length)?,
                hash_ids,
                session: line.session,
                objects_per_chunk,
                any: line.any,
                l1_only: line.l1_only,
                found: 0,
                missing: Vec::new(),
            }));
            return Ok(true);
        } else if let Some(ids) = line.stored {
            let bytes = line.bytes.unwrap_or_default();
            if bytes.len() > 1 && bytes.len() != ids.len() {
                return Err(format!("{} objects have {} sizes", ids.len(), bytes.len()));
            }
            if let Some(large) = bytes.iter().find(|&&bytes| bytes > BLOCK_BYTES_MAX) {
                return Err(format!("an object of {large} bytes: they have {BLOCK_BYTES_MAX} at most"));
            }
            let size_of = |at: usize| if bytes.len() == 1 { bytes.first() } else { bytes.get(at) };
            self.sizes.extend(ids.iter().enumerate().filter_map(|(at, &id)| Some((id, *size_of(at)?))));
            let session = line.session.ok_or("missing field `session`")?;
            self.events.push(TraceEvent::Stored { session, ids });
        } else if let (Some(lookup), Some(found)) = (line.lookup, line.found) {
            let asked = lookups.remove(&lookup).and_then(|at| self.events.get_mut(at));
            if let Some(TraceEvent::Asked(request)) = asked {
                request.found = found as usize;
                request.missing = line.missing.unwrap_or_default();
            }
        } else if let (Some(session), Some(copy_of)) = (line.session, line.copy_of) {
            self.events.push(TraceEvent::Copies { session, copy_of });
        } else if let (Some(session), true) = (line.session, line.ended) {
            self.events.push(TraceEvent::Ended { session });
        } else if line.model.is_none() && line.dropped.is_none() {
            return Err("missing field `hash_ids`".to_owned());
        }
        Ok(false)
    }

    /// The requests, in their order.
    pub fn requests(&self) -> impl Iterator<Item = &TraceRequest> {
        self.events.iter().filter_map(|event| if let TraceEvent::Asked(request) = event { Some(request) } else { None })
    }

    /// Gives objects of which the trace has no size this one, or else that of most others, or else `fallback`. True if it came to the
    /// fallback.
    pub fn set_unknown_bytes(&mut self, given: Option<u64>, fallback: u64) -> bool {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        self.sizes.values().for_each(|&bytes| *counts.entry(bytes).or_default() += 1);
        let most = counts.into_iter().max_by_key(|&(bytes, count)| (count, bytes)).map(|(bytes, _)| bytes);
        self.unknown_bytes = given.or(most).unwrap_or(fallback);
        given.or(most).is_none()
    }

    /// The bytes of an object.
    pub fn bytes_of(&self, id: u64) -> u64 {
        self.sizes.get(&id).copied().unwrap_or(self.unknown_bytes)
    }

    /// Every object that is asked for or stored, once.
    pub fn objects(&self) -> HashSet<u64> {
        self.events.iter().flat_map(TraceEvent::ids).copied().collect()
    }

    /// Objects that the trace asks for, and how many different ones.
    pub fn blocks(&self) -> (u64, u64) {
        let ids = || self.requests().flat_map(|request| &request.hash_ids);
        (ids().count() as u64, ids().collect::<HashSet<_>>().len() as u64)
    }
}

fn wrong(path: &Path, number: usize, why: &str) -> String {
    format!(
        "{}, line {number}: {why}; a request is {{\"timestamp\": ms, \"input_length\": tokens, \"output_length\": tokens, \
         \"hash_ids\": [numbers]}}, and kvkeep serve --trace writes others too",
        path.display()
    )
}
