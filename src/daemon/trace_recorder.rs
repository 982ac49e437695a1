//! Records the requests that a daemon sees as a trace: the lookups, what they found, what was stored, and the ends of sessions.
//!
//! Requests put a note in a queue and go on. A thread of its own writes the notes. Where the queue is full a note is dropped and
//! counted: no request waits for the disk. A trace has no tokens and no keys: an object's number is a hash that is salted anew in each run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};

use super::trace_file::TraceFile;
use super::trace_line::{TRACE_VERSION, TraceLine};
use crate::config::SpaceSpec;
use crate::error::{Error, Result};
use crate::hash::KeyHasher;
use crate::key::Key;
use crate::log::{Log, LogLevel};
use crate::threads;

/// Most bytes of notes that wait to be written.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Of so many the writer is woken: until then it comes by itself.
const WAKE_BYTES: usize = 1 << 20;
/// Most spaces that are named, as many as a cache may have open. Of later ones the tokens of a request are not known.
const SPACES_MAX: usize = 65_536;
/// Pause of the writer.
const PAUSE: Duration = Duration::from_millis(200);
/// An object's number has so many bits that every JSON reader knows it exactly.
const ID_BITS: u32 = 53;

/// Notes that wait, and how many were dropped since the last ones were taken.
#[derive(Default)]
struct TraceQueue {
    notes: Vec<TraceLine>,
    bytes: usize,
    dropped: u64,
    closed: bool,
}

struct RecorderState {
    queue: Mutex<TraceQueue>,
    wake: Condvar,
    /// The file could not be written: nothing is recorded any more.
    failed: AtomicBool,
    dropped: AtomicU64,
    log: Log,
    name: String,
}

/// Records requests.
pub struct TraceRecorder {
    state: Arc<RecorderState>,
    began: Instant,
    salt: KeyHasher,
    lookups: AtomicU64,
    /// Tokens of a chunk of each space that was noted.
    spaces: Mutex<HashMap<u64, u32>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A lookup to be noted.
pub struct RecordedLookup<'a> {
    /// The session that asks.
    pub session: u64,
    /// The number of its space.
    pub space: u64,
    /// The keys, chunk by chunk.
    pub keys: &'a [Key],
    /// Objects of one chunk.
    pub objects_per_chunk: u32,
    /// Each chunk is of use by itself.
    pub any: bool,
    /// No backend is asked.
    pub l1_only: bool,
}

impl TraceRecorder {
    /// Begins a trace of at most `bytes_max` bytes.
    pub fn start(path: &Path, bytes_max: u64, log: Log) -> Result<Arc<TraceRecorder>> {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
        let first = TraceLine { trace_version: Some(TRACE_VERSION), unix_ms: Some(unix_ms), ..TraceLine::default() };
        let file = TraceFile::create(path, bytes_max, first)?;
        let state = Arc::new(RecorderState {
            queue: Mutex::default(),
            wake: Condvar::new(),
            failed: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            log,
            name: path.display().to_string(),
        });
        let writer = state.clone();
        let thread = threads::spawn("kvkeep-trace", move || writer.write_all(file))
            .map_err(|error| Error::io("starting the thread kvkeep-trace", &error))?;
        state.log.write(LogLevel::Info, || format!("requests are recorded in {}", state.name));
        Ok(Arc::new(TraceRecorder {
            state,
            began: Instant::now(),
            salt: KeyHasher::new(),
            lookups: AtomicU64::new(0),
            spaces: Mutex::default(),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// A space was opened.
    pub fn space(&self, number: u64, spec: &SpaceSpec) {
        let mut spaces = self.spaces.lock();
        if spaces.len() == SPACES_MAX || spaces.insert(number, spec.chunk_tokens).is_some() {
            return;
        }
        // Noted under the lock: before any request of the space.
        self.state.note(TraceLine {
            space: Some(number),
            model: Some(spec.model.clone()),
            layout: Some(spec.layout.clone()),
            tenant: Some(spec.tenant.clone()),
            chunk_tokens: Some(spec.chunk_tokens),
            ..TraceLine::default()
        });
    }

    /// A session asks for keys. Gives the number of the lookup.
    pub fn lookup(&self, asked: &RecordedLookup) -> u64 {
        let lookup = self.lookups.fetch_add(1, Ordering::Relaxed) + 1;
        let chunk_tokens = self.spaces.lock().get(&asked.space).copied().unwrap_or(0);
        let chunks = asked.keys.len() as u64 / u64::from(asked.objects_per_chunk.max(1));
        self.note(TraceLine {
            session: Some(asked.session),
            space: Some(asked.space),
            input_length: Some(chunks * u64::from(chunk_tokens)),
            output_length: Some(0),
            hash_ids: Some(self.ids(asked.space, asked.keys.iter())),
            lookup: Some(lookup),
            objects_per_chunk: (asked.objects_per_chunk != 1).then_some(asked.objects_per_chunk),
            any: asked.any,
            l1_only: asked.l1_only,
            ..TraceLine::default()
        });
        lookup
    }

    /// A lookup found so many chunks: the first ones, but for the `missing` ones among them and behind them.
    pub fn found(&self, lookup: u64, chunks: u32, missing: Option<Vec<u32>>) {
        self.note(TraceLine { lookup: Some(lookup), found: Some(chunks), missing, ..TraceLine::default() });
    }

    /// A session committed these keys, with the bytes of each.
    pub fn stored(&self, session: u64, space: u64, stored: &[(Key, u64)]) {
        let Some(&(_, first)) = stored.first() else { return };
        let alike = stored.iter().all(|(_, bytes)| *bytes == first);
        let bytes = if alike { vec![first] } else { stored.iter().map(|(_, bytes)| *bytes).collect() };
        self.note(TraceLine {
            session: Some(session),
            space: Some(space),
            stored: Some(self.ids(space, stored.iter().map(|(key, _)| key))),
            bytes: Some(bytes),
            ..TraceLine::default()
        });
    }

    /// A session began that copies for another.
    pub fn copies(&self, session: u64, copy_of: u64) {
        self.note(TraceLine { session: Some(session), copy_of: Some(copy_of), ..TraceLine::default() });
    }

    /// A session ended.
    pub fn ended(&self, session: u64) {
        self.note(TraceLine { session: Some(session), ended: true, ..TraceLine::default() });
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// Writes what waits and ends.
    pub fn close(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        self.state.queue.lock().closed = true;
        self.state.wake.notify_one();
        // It ends by a panic only where a bug was met, which was reported.
        drop(thread.join());
        let dropped = self.dropped();
        if dropped > 0 {
            self.state.log.write(LogLevel::Warn, || {
                format!("the trace {} lacks {dropped} lines that were dropped", self.state.name)
            });
        }
    }

    fn note(&self, line: TraceLine) {
        let timestamp = self.began.elapsed().as_millis() as u64;
        self.state.note(TraceLine { timestamp: Some(timestamp), ..line });
    }

    fn ids<'a>(&self, space: u64, keys: impl Iterator<Item = &'a Key>) -> Vec<u64> {
        let space = space.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        keys.map(|key| (self.salt.hash(key) ^ space) >> (u64::BITS - ID_BITS)).collect()
    }
}

/// Bytes of the queue that a note takes, about.
fn queued_bytes(line: &TraceLine) -> usize {
    let numbers = [&line.hash_ids, &line.stored, &line.bytes];
    let numbers: usize = numbers.into_iter().flatten().map(|numbers| numbers.len() * size_of::<u64>()).sum();
    let texts: usize = [&line.model, &line.layout, &line.tenant].into_iter().flatten().map(String::len).sum();
    size_of::<TraceLine>() + numbers + texts
}

impl RecorderState {
    fn note(&self, line: TraceLine) {
        let bytes = queued_bytes(&line);
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        if self.failed.load(Ordering::Relaxed) || queue.bytes + bytes > QUEUE_BYTES_MAX {
            queue.dropped += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = queue.bytes;
        queue.bytes += bytes;
        queue.notes.push(line);
        if before < WAKE_BYTES && queue.bytes >= WAKE_BYTES {
            self.wake.notify_one();
        }
    }

    /// Writes notes until the recorder is closed. The body of the writer's thread.
    fn write_all(&self, mut file: TraceFile) {
        loop {
            let mut queue = self.queue.lock();
            if !queue.closed && queue.bytes < WAKE_BYTES {
                self.wake.wait_for(&mut queue, PAUSE);
            }
            let (notes, dropped, closed) =
                (std::mem::take(&mut queue.notes), std::mem::take(&mut queue.dropped), queue.closed);
            queue.bytes = 0;
            drop(queue);
            if !self.failed.load(Ordering::Relaxed)
                && let Err(error) = write(&mut file, notes, dropped)
            {
                self.failed.store(true, Ordering::Relaxed);
                self.log.write(LogLevel::Error, || {
                    format!(
                        "the trace {} cannot be written: {error}; no more requests are recorded, and the daemon serves on. Make \
                         room, or restart it with another --trace",
                        self.name
                    )
                });
            }
            if dropped > 0 && !self.failed.load(Ordering::Relaxed) {
                self.log.often("trace dropped", LogLevel::Warn, || {
                    format!("{dropped} lines were dropped from the trace {}: its disk is too slow", self.name)
                });
            }
            if closed {
                return;
            }
        }
    }
}

impl Drop for TraceRecorder {
    fn drop(&mut self) {
        self.close();
    }
}

/// Writes notes, and how many are missing behind them.
fn write(file: &mut TraceFile, notes: Vec<TraceLine>, dropped: u64) -> std::io::Result<()> {
    for note in notes {
        // Every file of a trace names the spaces.
        if note.model.is_some() { file.begin(note)? } else { file.write(&note)? }
    }
    if dropped > 0 {
        file.write(&TraceLine { dropped: Some(dropped), ..TraceLine::default() })?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8, rank: u32) -> Key {
        Key { hash: [n; 32], rank, group: 0 }
    }

    fn lines(path: &Path) -> Vec<TraceLine> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn spec(chunk_tokens: u32) -> SpaceSpec {
        let (model, layout, tenant) = ("m".to_owned(), "l".to_owned(), "t".to_owned());
        SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens, quota_bytes: 0 }
    }

    fn ask(session: u64, space: u64, keys: &[Key]) -> RecordedLookup<'_> {
        RecordedLookup { session, space, keys, objects_per_chunk: 2, any: false, l1_only: false }
    }

    #[test]
    fn requests_and_their_effects_are_lines_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let recorder = TraceRecorder::start(&path, 1 << 20, Log::none()).unwrap();
        recorder.space(5, &spec(16));
        recorder.space(5, &spec(16));
        let keys = [key(1, 0), key(1, 1), key(2, 0), key(2, 1)];
        let lookup = recorder.lookup(&ask(7, 5, &keys));
        recorder.found(lookup, 1, None);
        recorder.copies(8, 7);
        recorder.stored(8, 5, &[(keys[2], 100), (keys[3], 100)]);
        recorder.stored(8, 5, &[(keys[2], 100), (keys[0], 50)]);
        recorder.stored(8, 5, &[]);
        recorder.ended(7);
        let other = recorder.lookup(&ask(9, 6, &keys[..2]));
        assert_ne!(lookup, other);
        recorder.close();
        recorder.ended(9);
        assert_eq!(recorder.dropped(), 0);

        let lines = lines(&path);
        assert_eq!(lines.len(), 9, "{lines:#?}");
        assert_eq!((lines[0].trace_version, lines[0].unix_ms.is_some()), (Some(TRACE_VERSION), true));
        assert_eq!((lines[1].space, lines[1].model.as_deref(), lines[1].chunk_tokens), (Some(5), Some("m"), Some(16)));
        let ids = lines[2].hash_ids.clone().unwrap();
        assert_eq!((lines[2].input_length, lines[2].objects_per_chunk, ids.len()), (Some(32), Some(2), 4));
        assert!(ids.iter().all(|id| id >> ID_BITS == 0));
        assert_eq!((lines[3].lookup, lines[3].found), (lines[2].lookup, Some(1)));
        assert_eq!((lines[4].session, lines[4].copy_of), (Some(8), Some(7)));
        assert_eq!((lines[5].stored.as_deref(), lines[5].bytes.as_deref()), (Some(&ids[2..]), Some(&[100][..])));
        assert_eq!(lines[6].stored, Some(vec![ids[2], ids[0]]));
        assert_eq!(lines[6].bytes, Some(vec![100, 50]));
        assert!(lines[7].ended && lines[7].session == Some(7));
        // The same key is another object in another space.
        assert!(lines[8].hash_ids.as_ref().is_some_and(|other| other.iter().all(|id| !ids.contains(id))));
        assert!(lines[2..].is_sorted_by_key(|line| line.timestamp));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("0101010101"), "no key is there: {text}");
    }

    #[test]
    fn equal_keys_are_equal_in_one_run_and_not_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let ids = || {
            let recorder = TraceRecorder::start(&path, 1 << 20, Log::none()).unwrap();
            for session in 0..2 {
                recorder.lookup(&ask(session, 5, &[key(1, 0), key(1, 1)]));
            }
            recorder.close();
            let lines = lines(&path);
            assert_eq!(lines[1].hash_ids, lines[2].hash_ids);
            lines[1].hash_ids.clone().unwrap()
        };
        let (one, other) = (ids(), ids());
        assert!(one[0] != one[1] && one != other, "{one:?} {other:?}");
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_the_recording_and_the_log_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let (sender, said) = std::sync::mpsc::channel();
        let log = Log::new(LogLevel::Warn, move |_, line| drop(sender.send(line.to_owned())));
        let recorder = TraceRecorder::start(&folder.join("trace"), 1 << 16, log).unwrap();
        // There is no place any more for the file that is to follow the first one.
        std::fs::remove_dir_all(&folder).unwrap();
        let keys = vec![key(1, 0); 2000];
        let mut lines = 0;
        let line = loop {
            recorder.lookup(&ask(1, 5, &keys));
            lines += 1;
            if let Ok(line) = said.recv_timeout(PAUSE / 10) {
                break line;
            }
            assert!(lines < 10_000, "the log never said anything");
        };
        assert!(line.contains("cannot be written") && line.contains("the daemon serves on"), "{line}");
        let before = recorder.dropped();
        recorder.lookup(&ask(1, 5, &keys));
        assert_eq!(recorder.dropped(), before + 1);
        recorder.close();
        let last = said.try_iter().last().unwrap();
        assert!(last.contains(&format!("lacks {} lines", before + 1)), "{last}");
    }

    #[test]
    fn where_the_queue_is_full_lines_are_dropped_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let recorder = TraceRecorder::start(&path, 1 << 30, Log::none()).unwrap();
        // More than all that may wait.
        recorder.space(5, &SpaceSpec { model: "m".repeat(QUEUE_BYTES_MAX), ..spec(16) });
        recorder.lookup(&ask(2, 5, &[key(1, 0), key(1, 1)]));
        recorder.close();
        assert_eq!(recorder.dropped(), 1);
        let lines = lines(&path);
        assert!(lines.iter().any(|line| line.dropped == Some(1)), "{lines:?}");
        assert!(lines.iter().any(|line| line.session == Some(2)) && lines.iter().all(|line| line.model.is_none()));
    }
}
