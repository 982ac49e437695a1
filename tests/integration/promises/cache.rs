//! A cache as these tests use it: keys by number, bytes that say whose they are, and a watchdog instead of a hang.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kvkeep::abi::{JobResult, Stats, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, Notify, PrefetchRequest, SpaceSpec};
use kvkeep::error::{KVKEEP_OK, KVKEEP_PENDING, Status};
use kvkeep::key::Key;
use kvkeep::node::Node;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Long enough for any machine; only a hang meets it.
pub const WATCHDOG: Duration = Duration::from_secs(120);
pub const WATCHDOG_MS: u32 = 120_000;

/// Runs a test on a thread of its own, and gives up on one that hangs.
pub fn watched(test: impl FnOnce() + Send + 'static) {
    let (done, over) = channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match over.recv_timeout(WATCHDOG) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            eprintln!("a test hangs");
            std::process::abort();
        }
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Waits for what nothing announces.
pub fn until(what: &str, mut come: impl FnMut() -> bool) {
    let began = Instant::now();
    while !come() {
        assert!(began.elapsed() < WATCHDOG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn key(number: u32) -> Key {
    let mut hash = [7; 32];
    hash[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_le_bytes());
    hash[4..8].copy_from_slice(&number.to_le_bytes());
    Key { hash, rank: 0, group: 0 }
}

pub fn keys(numbers: std::ops::Range<u32>) -> Vec<Key> {
    numbers.map(key).collect()
}

pub fn views(count: usize) -> Vec<View> {
    vec![View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }; count]
}

pub fn result() -> JobResult {
    // SAFETY: plain data for which zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// Writes bytes that no other number has.
pub fn fill(view: &View, number: u32) {
    // SAFETY: a view that a reservation to write gave, of a size that is a multiple of 8 and aligned to 64.
    let words = unsafe { std::slice::from_raw_parts_mut(view.data.cast::<u64>(), view.size as usize / 8) };
    for (i, word) in words.iter_mut().enumerate() {
        *word = (u64::from(number) << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Whether the bytes are those of this number.
pub fn intact(view: &View, number: u32) -> bool {
    // SAFETY: a view that this test holds, of a size that is a multiple of 8 and aligned to 64.
    let words = unsafe { std::slice::from_raw_parts(view.data.cast::<u64>(), view.size as usize / 8) };
    let is =
        |(i, word): (usize, &u64)| *word == (u64::from(number) << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    !words.is_empty() && words.iter().enumerate().all(is)
}

pub struct Cache {
    pub node: Arc<Node>,
    pub space: u64,
}

pub fn spec(quota_bytes: u64) -> SpaceSpec {
    let (model, layout, tenant) = ("toy".to_owned(), "f16".to_owned(), String::new());
    SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes }
}

impl Cache {
    pub fn open(l1_bytes: u64, urls: &[&str], change: impl FnOnce(&mut NodeConfig)) -> Cache {
        let mut config = NodeConfig::new(l1_bytes);
        config.backend_urls = urls.iter().map(|url| (*url).to_owned()).collect();
        change(&mut config);
        let node = Node::open(config).unwrap();
        let space = node.open_space(spec(0)).unwrap();
        Cache { node, space }
    }

    pub fn session(&self) -> u64 {
        self.node.begin_session(self.space, "test", None).unwrap()
    }

    /// Commits objects of `size` bytes.
    pub fn put(&self, session: u64, numbers: std::ops::Range<u32>, size: u64) {
        let keys = keys(numbers.clone());
        let mut out = views(keys.len());
        let all = self.node.reserve_write(session, &keys, &vec![size; keys.len()], false, &mut out).unwrap();
        assert!(all, "{:?}", out.iter().map(|view| view.status).collect::<Vec<_>>());
        out.iter().zip(numbers).for_each(|(view, number)| fill(view, number));
        assert!(self.node.finish_write(session, &keys, None).unwrap());
    }

    /// As [`put`](Cache::put), by a session of its own.
    pub fn store(&self, numbers: std::ops::Range<u32>, size: u64) {
        let session = self.session();
        self.put(session, numbers, size);
        self.node.end_session(session).unwrap();
    }

    /// Objects that are in L2 and not in L1.
    pub fn store_below(&self, numbers: std::ops::Range<u32>, size: u64) {
        self.store(numbers, size);
        self.node.flush(WATCHDOG_MS).unwrap();
        self.node.clear(0, true).unwrap();
    }

    pub fn read(&self, session: u64, numbers: std::ops::Range<u32>, extra: u32) -> Vec<View> {
        let mut out = views(numbers.len());
        self.node.reserve_read(session, &keys(numbers), extra, &mut out).unwrap();
        out
    }

    /// Returns shares and says of each key what became of it.
    pub fn finish(&self, session: u64, numbers: std::ops::Range<u32>, extra: u32) -> Vec<i32> {
        let mut statuses = vec![77; numbers.len()];
        self.node.finish_read(session, &keys(numbers), extra, Some(&mut statuses)).unwrap();
        statuses
    }

    pub fn submit(&self, session: u64, numbers: std::ops::Range<u32>, request: PrefetchRequest) -> u64 {
        let mut job = 0;
        self.node.submit_prefetch(session, &keys(numbers), request, &mut job).unwrap();
        job
    }

    /// Prefetches and waits for the answer.
    pub fn prefetch(&self, session: u64, numbers: std::ops::Range<u32>) -> JobResult {
        let job = self.submit(session, numbers, PrefetchRequest::default());
        self.node.wait(job, WATCHDOG_MS).unwrap();
        self.answer(job).unwrap()
    }

    /// A job's answer, if it is there.
    pub fn answer(&self, job: u64) -> Option<JobResult> {
        let mut answer = result();
        match self.node.query_job(job, &mut answer).unwrap() {
            KVKEEP_OK => Some(answer),
            status => {
                assert_eq!(status, KVKEEP_PENDING);
                None
            }
        }
    }

    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.node.stats(&mut stats);
        stats
    }

    /// Nobody holds anything, in L1's books and in the jobs'.
    pub fn at_rest(&self) {
        self.node.flush(WATCHDOG_MS).unwrap();
        let stats = self.stats();
        assert_eq!((stats.l1_shares, stats.l1_staged, stats.l1_locked_bytes), (0, 0, 0));
        assert_eq!((stats.sessions, stats.jobs), (0, 0));
        assert_eq!(stats.jobs_submitted, stats.jobs_completed);
    }
}

pub fn by_event() -> PrefetchRequest {
    PrefetchRequest { notify: Notify::EventFd, ..Default::default() }
}

pub fn said(status: Status) -> i32 {
    status as i32
}
