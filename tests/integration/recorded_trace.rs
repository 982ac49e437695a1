//! A daemon that records its requests, and the recording replayed by keys alone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kvkeep::abi::{Stats, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{Policy, PrefetchRequest, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::daemon::trace_line::TraceLine;
use kvkeep::error::KVKEEP_OK;
use kvkeep::key::Key;
use rustix::process::{Pid, Signal, kill_process};

const SLICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/conversation_slice.jsonl");
/// Only a hang meets it.
const WATCHDOG: Duration = Duration::from_secs(120);
const BYTES: u64 = 4096;

/// A daemon that records, and one client of it.
struct Recorded {
    child: Child,
    dir: PathBuf,
    client: Arc<Client>,
    space: u64,
}

impl Recorded {
    fn start(dir: &Path, words: &str) -> Recorded {
        let socket = dir.join("kvkeep.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_kvkeep"))
            .args(["serve", "--no-prefault", "--log", "warn", "--trace"])
            .arg(dir.join("trace"))
            .arg("--socket")
            .arg(&socket)
            .args(words.split_whitespace())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("unix://{}?wait_ms={}&patience_ms=120000", socket.display(), WATCHDOG.as_millis());
        let client = Client::open(ClientConfig::new(&url).unwrap()).unwrap();
        let (model, layout) = ("model of the trace".to_owned(), "layout".to_owned());
        let spec =
            SpaceSpec { generation: 0, model, layout, tenant: "acme".to_owned(), chunk_tokens: 16, quota_bytes: 0 };
        let space = client.open_space(spec).unwrap();
        Recorded { child, dir: dir.to_owned(), client, space }
    }

    fn begin(&self) -> u64 {
        self.client.begin_session(self.space, "request", None).unwrap()
    }

    /// Looks keys up, loads them, returns their shares, and gives those that are missing.
    fn look_up(&self, session: u64, keys: &[Key], per_chunk: u32) -> Vec<Key> {
        let request = PrefetchRequest { objects_per_chunk: per_chunk, policy: Policy::Wait, ..Default::default() };
        let mut job = 0;
        self.client.submit_prefetch(session, keys, request, &mut job).unwrap();
        self.client.wait(job, WATCHDOG.as_millis() as u32).unwrap();
        let mut bitmap = vec![0; keys.len().div_ceil(8)];
        assert_eq!(self.client.query_bitmap(job, &mut bitmap).unwrap(), KVKEEP_OK);
        let is_held = |i: &usize| bitmap[i / 8] >> (i % 8) & 1 == 1;
        let (held, missing): (Vec<usize>, Vec<usize>) = (0..keys.len()).partition(is_held);
        let of = |chosen: Vec<usize>| chosen.into_iter().map(|i| keys[i]).collect::<Vec<Key>>();
        // A batch has at least one key.
        if !held.is_empty() {
            self.client.finish_read(session, &of(held), 0, None).unwrap();
        }
        of(missing)
    }

    fn store(&self, session: u64, keys: &[Key]) {
        if keys.is_empty() {
            return;
        }
        let mut views = vec![View::none(KVKEEP_OK); keys.len()];
        self.client.reserve_write(session, keys, &vec![BYTES; keys.len()], false, &mut views).unwrap();
        let staged = keys.iter().zip(&views).filter(|(_, view)| view.status == KVKEEP_OK as i32);
        let staged: Vec<Key> = staged.map(|(key, _)| *key).collect();
        if !staged.is_empty() {
            self.client.finish_write(session, &staged, None).unwrap();
        }
    }

    /// A request from its lookup to its end.
    fn serve(&self, keys: &[Key], per_chunk: u32) {
        let session = self.begin();
        let missing = self.look_up(session, keys, per_chunk);
        self.store(session, &missing);
        self.client.end_session(session).unwrap();
    }

    /// Ends the daemon, and gives what it counted.
    fn end(mut self) -> Stats {
        let mut stats = Stats::default();
        self.client.stats(&mut stats).unwrap();
        self.client.close();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        stats
    }

    fn trace(&self) -> PathBuf {
        self.dir.join("trace")
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(id: u64, rank: u32) -> Key {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&id.to_le_bytes());
    Key { hash, rank, group: 0 }
}

/// The keys of a real trace's first requests, `ranks` for each block.
fn requests(count: usize, ranks: u32) -> Vec<Vec<Key>> {
    let text = std::fs::read_to_string(SLICE).unwrap();
    let ids = |line: &str| serde_json::from_str::<TraceLine>(line).unwrap().hash_ids.unwrap();
    let keys = |ids: Vec<u64>| ids.into_iter().flat_map(|id| (0..ranks).map(move |rank| key(id, rank))).collect();
    text.lines().take(count).map(ids).map(keys).collect()
}

fn kvkeep(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_kvkeep")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// What a replay of the trace says.
fn replay(trace: &Path, words: &str) -> String {
    let args: Vec<&str> = ["replay", trace.to_str().unwrap()].into_iter().chain(words.split_whitespace()).collect();
    let (code, out, err) = kvkeep(&args);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    out
}

fn number(report: &str, name: &str) -> u64 {
    let line = report.lines().find_map(|line| line.strip_prefix(&format!("{name}  ")));
    let line = line.unwrap_or_else(|| panic!("no line {name:?} in\n{report}"));
    line.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
}

#[test]
fn a_recording_replays_to_the_hits_that_the_daemon_counted() {
    for (policy, ranks) in [("lru", 1), ("mq", 1), ("lru", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Recorded::start(dir.path(), &format!("--l1 4MiB --policy {policy} --watermark-high-percent 100"));
        requests(250, ranks).iter().for_each(|keys| daemon.serve(keys, ranks));
        let trace = daemon.trace();
        let stats = daemon.end();
        assert!(stats.prefetch_hit_chunks > 0 && stats.evictions > 0);

        let words = format!("--l1 4MiB --policy {policy} --watermark-high-percent 100");
        let report = replay(&trace, &words);
        assert_eq!(number(&report, "blocks asked"), stats.prefetch_asked_chunks, "{report}");
        assert_eq!(number(&report, "prefix hits"), stats.prefetch_hit_chunks, "{policy} {ranks} {report}");
        assert_eq!(number(&report, "L1 evictions"), stats.evictions, "{policy} {ranks} {report}");
        let rate = stats.prefetch_hit_chunks as f64 * 100.0 / stats.prefetch_asked_chunks as f64;
        assert!(report.contains(&format!("The daemon that recorded them hit {rate:.2} % of")), "{report}");
        assert!(report.contains(": 4 KiB each.\n"), "the sizes are the recording's: {report}");
        // A larger one would have hit more.
        let larger = replay(&trace, &format!("--l1 64MiB --policy {policy}"));
        assert!(number(&larger, "prefix hits") > stats.prefetch_hit_chunks, "{larger}");
        // A file that was cut in two is the same trace.
        let text = std::fs::read_to_string(&trace).unwrap();
        let half = text.match_indices('\n').nth(text.lines().count() / 2).unwrap().0 + 1;
        let (older, newer) = (dir.path().join("trace.1"), dir.path().join("trace.2"));
        std::fs::write(&older, &text[..half]).unwrap();
        std::fs::write(&newer, &text[half..]).unwrap();
        let both = replay(&older, &format!("{} {words}", newer.display()));
        assert_eq!(number(&both, "prefix hits"), stats.prefetch_hit_chunks, "{both}");
        // The real cache can be given it too.
        let real = replay(&trace, "--real --l1 64MiB");
        assert_eq!(number(&real, "wrong bytes"), 0);
    }
}

#[test]
fn a_recording_over_a_directory_replays_to_nearly_the_hits_that_the_daemon_counted() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("fs://{}/l2?capacity=32MiB", dir.path().display());
    let daemon = Recorded::start(dir.path(), &format!("--l1 2MiB --l2 {url}"));
    requests(250, 1).iter().for_each(|keys| {
        daemon.serve(keys, 1);
        daemon.client.flush(WATCHDOG.as_millis() as u32).unwrap();
    });
    let trace = daemon.trace();
    let stats = daemon.end();
    let report = replay(&trace, "--l1 2MiB --l2 32MiB");
    let (hits, counted) = (number(&report, "prefix hits"), stats.prefetch_hit_chunks);
    assert!(stats.loads > 0 && number(&report, "hits in L2") > 0, "{report}");
    // Background eviction and writes take time in the daemon.
    assert!(hits.abs_diff(counted) * 100 <= stats.prefetch_asked_chunks, "{hits} and {counted}: {report}");
}

#[test]
fn requests_that_run_side_by_side_replay_so() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Recorded::start(dir.path(), "--l1 4MiB");
    let keys: Vec<Key> = (0..10).map(|id| key(id, 0)).collect();
    let [one, other] = [daemon.begin(), daemon.begin()];
    // Both miss, since neither has stored yet.
    assert_eq!(daemon.look_up(one, &keys, 1).len() + daemon.look_up(other, &keys, 1).len(), 20);
    daemon.store(one, &keys);
    daemon.store(other, &keys);
    [one, other].into_iter().for_each(|session| daemon.client.end_session(session).unwrap());
    // A read that no lookup came before; and one of keys that were looked up, which does not count again.
    let session = daemon.begin();
    let mut views = vec![View::none(KVKEEP_OK); 4];
    assert!(!daemon.client.reserve_read(session, &[keys[0], keys[1], key(99, 0), keys[2]], 0, &mut views).unwrap());
    daemon.look_up(session, &keys[..2], 1);
    daemon.client.end_session(session).unwrap();
    // Stored and never asked for again, by a session that is aborted.
    let session = daemon.begin();
    daemon.store(session, &[key(100, 0)]);
    daemon.client.abort_session(session).unwrap();
    let trace = daemon.trace();
    daemon.end();
    let report = replay(&trace, "--l1 4MiB");
    assert_eq!((number(&report, "blocks asked"), number(&report, "hits")), (24, 3), "{report}");
    assert_eq!(number(&report, "L1 commits"), 11, "{report}");
    assert!(report.contains("The daemon that recorded them hit 12.50 % of 24 chunks"), "{report}");

    // The file names the space and nothing that was asked.
    let text = std::fs::read_to_string(&trace).unwrap();
    assert!(
        text.contains("\"model of the trace\"") && text.contains("\"acme\"") && !text.contains("request"),
        "{text}"
    );
    let lines: Vec<TraceLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0].trace_version, lines[1].chunk_tokens), (Some(1), Some(16)));
    assert_eq!(lines.iter().filter_map(|line| line.input_length).max(), Some(160));
}

#[test]
fn a_recording_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes");
    std::fs::write(&notes, "mine").unwrap();
    let socket = dir.path().join("k.sock");
    let serve = ["serve", "--l1", "4MiB", "--socket", socket.to_str().unwrap()];
    let (there, folder) = (notes.to_str().unwrap(), dir.path().to_str().unwrap());
    for (words, says) in [
        (&["--trace", there][..], "is no trace of kvkeep"),
        (&["--trace", folder], "give --trace a file in a directory that this user may write"),
        (&["--trace", "/nowhere/trace"], "/nowhere is no directory"),
        (&["--trace", "/proc/trace"], "cannot be written"),
        (&["--trace", there, "--trace-bytes", "4KiB"], "at least 65536"),
    ] {
        let (code, _, err) = kvkeep(&[&serve[..], words].concat());
        assert!(code == 2 && err.contains(says), "{words:?}: {code} {err}");
        // A check finds the same, except for what only an attempt shows.
        if words[1] != "/proc/trace" {
            let (code, _, err) = kvkeep(&[&serve[..], words, &["--check"]].concat());
            assert!(code == 2 && err.contains(says), "{words:?}: {code} {err}");
        }
    }
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "mine");
}

#[test]
fn a_recording_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let asked = r#"{"timestamp":0,"session":1,"input_length":5,"output_length":0,"hash_ids":[1,2]"#;
    for (lines, says) in [
        (r#"{"trace_version":2}"#.to_owned(), "line 1: the trace has version 2, and this kvkeep reads 1"),
        (format!("{asked},\"objects_per_chunk\":3}}"), "no whole chunks of 3"),
        (format!("{asked},\"objects_per_chunk\":0}}"), "no whole chunks of 0"),
        (format!("{asked}}}\n{{\"session\":1,\"stored\":[1,2,3],\"bytes\":[4,5]}}"), "line 2: 3 objects have 2 sizes"),
        (format!("{asked}}}\n{{\"stored\":[1],\"bytes\":[4]}}"), "missing field `session`"),
        (
            format!("{asked}}}\n{{\"session\":1,\"stored\":[1],\"bytes\":[{}]}}", u64::MAX),
            "they have 68719476736 at most",
        ),
        (format!("{asked}}}\n{{\"session\":1}}"), "missing field `hash_ids`"),
        (format!("{asked}}}\n{{\"session\":\"one\"}}"), "line 2: invalid type"),
    ] {
        std::fs::write(&trace, format!("{lines}\n")).unwrap();
        let (code, _, err) = kvkeep(&["replay", trace.to_str().unwrap()]);
        assert!(code == 2 && err.contains(says), "{lines}: {code} {err}");
    }
    // What is missing is said, and the rest is replayed.
    std::fs::write(&trace, format!("{{\"trace_version\":1}}\n{asked}}}\n{{\"dropped\":7}}\n{{\"session\":1,\"sto"))
        .unwrap();
    let (code, out, err) = kvkeep(&["replay", trace.to_str().unwrap(), "--l1", "1GiB"]);
    assert_eq!((code, number(&out, "blocks asked")), (0, 2));
    assert!(err.contains("7 lines were dropped") && err.contains("line 4, the last one, is cut off"), "{err}");
}
