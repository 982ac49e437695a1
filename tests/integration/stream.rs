//! Stores of more than L1 holds: embedded, and through a daemon.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::time::Duration;

use kvkeep::abi::{JobResult, Stats, View};
use kvkeep::config::{NodeConfig, Notify, PrefetchRequest, SpaceSpec, StoreMode};
use kvkeep::error::{KVKEEP_ERR_CANCELLED, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA, KVKEEP_OK, KVKEEP_PARTIAL};
use kvkeep::key::Key;
use kvkeep::node::Node;
use kvkeep::open_cache::OpenCache;
use kvkeep::transfer::cpu_copy::Promise;
use kvkeep::transfer::layout::Segment;
use kvkeep::transfer::submit::AskedTransfer;
use kvkeep::transfer::{PoolSpec, TransferRequest};

use crate::support::daemon::Daemon;

const WAIT_MS: u32 = 120_000;
const OBJECT: u64 = 64 << 10;
/// So many objects fill L1.
const ROOM: u64 = 16;
/// So many are stored: a prompt of four times L1.
const COUNT: usize = 64;

fn config(url: &str) -> NodeConfig {
    NodeConfig {
        backend_urls: (!url.is_empty()).then(|| url.to_owned()).into_iter().collect(),
        // Nothing is evicted but for what needs its memory.
        watermark_high_percent: 100,
        ..NodeConfig::new(ROOM * OBJECT)
    }
}

fn embedded(url: &str) -> OpenCache {
    OpenCache::new(Node::open(config(url)).unwrap())
}

fn key(number: usize) -> Key {
    let mut hash = [3; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    Key { hash, rank: 0, group: 0 }
}

fn keys(numbers: std::ops::Range<usize>) -> Vec<Key> {
    numbers.map(key).collect()
}

/// Pages of `COUNT` blocks, one for each object, and as many to load into.
struct Pages {
    words: Vec<u64>,
    space: u64,
    pool: u64,
}

fn pages_of(opened: &OpenCache, quota_bytes: u64) -> Pages {
    let (model, layout, tenant) = ("m".to_owned(), "one".to_owned(), String::new());
    let spec = SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes };
    let space = opened.open_space(spec).unwrap();
    let stored = COUNT * OBJECT as usize / 8;
    let mut words: Vec<u64> = (0..stored as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    words.resize(2 * stored, 0);
    let segments = vec![Segment {
        address: words.as_ptr().expose_provenance() as u64,
        block_bytes: OBJECT,
        block_stride: OBJECT,
        group: 0,
        layer: 0,
        part: 0,
    }];
    // SAFETY: the memory outlives the pool in each test, and nobody touches it while a transfer is not done.
    let promise = unsafe { Promise::given() };
    let spec = PoolSpec { device: -1, rank: 0, blocks: 2 * COUNT as u32, blocks_per_chunk: 1, segments, promise };
    let pool = opened.transfers().open_pool(space, spec).unwrap();
    Pages { words, space, pool }
}

fn submit(opened: &OpenCache, pages: &Pages, session: u64, numbers: std::ops::Range<usize>) -> u64 {
    let (keys, blocks): (_, Vec<i32>) = (keys(numbers.clone()), numbers.map(|number| number as i32).collect());
    let asked = AskedTransfer { pool: pages.pool, session, keys: &keys, blocks: &blocks };
    let mut job = 0;
    opened.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
    job
}

fn result(opened: &OpenCache, job: u64) -> JobResult {
    let mut result = JobResult::default();
    opened.wait(job, WAIT_MS).unwrap();
    assert_eq!(opened.query_job(job, &mut result).unwrap(), KVKEEP_OK);
    result
}

fn message(result: &JobResult) -> String {
    // SAFETY: NUL-terminated, as the header says.
    unsafe { CStr::from_ptr(result.message.as_ptr()) }.to_str().unwrap().to_owned()
}

fn statuses(opened: &OpenCache, job: u64, count: usize) -> Vec<i32> {
    let mut statuses = vec![9; count];
    assert_eq!(opened.transfers().query_blocks(job, &mut statuses).unwrap(), KVKEEP_OK);
    statuses
}

fn stats(opened: &OpenCache) -> Stats {
    let mut stats = Stats::default();
    opened.stats(&mut stats).unwrap();
    stats
}

fn larger_than_l1(opened: &OpenCache) {
    let pages = pages_of(opened, 0);
    let session = opened.begin_session(pages.space, "long", None).unwrap();
    let job = submit(opened, &pages, session, 0..COUNT);
    let answer = result(opened, job);
    assert_eq!((answer.status, answer.copied_keys), (KVKEEP_OK as i32, COUNT as u32), "{}", message(&answer));
    assert_eq!(statuses(opened, job, COUNT), vec![0; COUNT]);
    opened.flush(WAIT_MS).unwrap();
    let said = stats(opened);
    assert_eq!((said.l2_objects, said.stores_dropped, said.l1_staged), (COUNT as u64, 0, 0));
    // All of it comes back, as much at a time as L1 holds.
    for first in (0..COUNT).step_by(8) {
        let (keys, blocks) = (keys(first..first + 8), (COUNT + first) as i32..(COUNT + first + 8) as i32);
        let blocks: Vec<i32> = blocks.collect();
        let (asked, mut job) = (AskedTransfer { pool: pages.pool, session, keys: &keys, blocks: &blocks }, 0);
        opened.transfers().submit_load(asked, TransferRequest::default(), &mut job).unwrap();
        assert_eq!(result(opened, job).status, KVKEEP_OK as i32);
    }
    let (stored, loaded) = pages.words.split_at(pages.words.len() / 2);
    assert!(stored == loaded);
    opened.end_session(session).unwrap();
    opened.close();
}

#[test]
fn a_store_of_more_than_l1_streams_through_it() {
    let dir = tempfile::tempdir().unwrap();
    larger_than_l1(&embedded("memory:"));
    larger_than_l1(&embedded(&format!("fs://{}", dir.path().display())));
    // A disk that is slow, and one whose writes go back.
    larger_than_l1(&embedded("fault:memory:?fault.delay=1&fault.delay_ms=10"));
    let write_back = NodeConfig { store_mode: StoreMode::WriteBack, watermark_high_percent: 80, ..config("memory:") };
    let opened = OpenCache::new(Node::open(write_back).unwrap());
    let pages = pages_of(&opened, 0);
    let session = opened.begin_session(pages.space, "long", None).unwrap();
    assert_eq!(result(&opened, submit(&opened, &pages, session, 0..COUNT)).status, KVKEEP_OK as i32);
    assert_eq!(stats(&opened).stores_dropped, 0);
    opened.close();
}

#[test]
fn it_streams_through_a_daemon_too() {
    let daemon = Daemon::start(|_| config("memory:"));
    larger_than_l1(&OpenCache::new(daemon.client()));
}

#[test]
fn two_at_once_both_come_through() {
    let opened = embedded("fault:memory:?fault.delay=1&fault.delay_ms=5");
    let pages = pages_of(&opened, 0);
    let sessions = [(); 2].map(|()| opened.begin_session(pages.space, "r", None).unwrap());
    let half = COUNT / 2;
    let jobs = [submit(&opened, &pages, sessions[0], 0..half), submit(&opened, &pages, sessions[1], half..COUNT)];
    for job in jobs {
        let answer = result(&opened, job);
        assert_eq!(answer.status, KVKEEP_OK as i32, "{}", message(&answer));
    }
    opened.close();
}

#[test]
fn memory_that_a_session_holds_is_named_with_its_holder_and_the_store_goes_on_when_it_is_returned() {
    let opened = embedded("memory:");
    let pages = pages_of(&opened, 0);
    let holder = opened.begin_session(pages.space, "holder", None).unwrap();
    let held = keys(0..ROOM as usize);
    assert_eq!(result(&opened, submit(&opened, &pages, holder, 0..ROOM as usize)).status, KVKEEP_OK as i32);
    let none = View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 };
    assert!(opened.reserve_read(holder, &held, 0, &mut vec![none; held.len()]).unwrap());
    let session = opened.begin_session(pages.space, "r", None).unwrap();
    let job = submit(&opened, &pages, session, 20..24);
    let answer = result(&opened, job);
    assert_eq!(answer.status, KVKEEP_PARTIAL as i32);
    assert_eq!(statuses(&opened, job, 4), vec![KVKEEP_ERR_NO_MEMORY as i32; 4]);
    let said = message(&answer);
    assert!(said.starts_with("NO_MEMORY for 4 of 4 objects: session "), "{said}");
    let remedy = "holds 100 % of L1: return its shares or end it, or make L1 larger";
    assert!(said.contains(&format!("{holder} {remedy}")), "{said}");
    opened.finish_read(holder, &held, 0, None).unwrap();
    assert_eq!(result(&opened, submit(&opened, &pages, session, 20..24)).status, KVKEEP_OK as i32);
    opened.close();
}

/// Has objects of `OBJECT` bytes stored and only in L2, and L1 or the quota filled by the shares of a session, which is given.
fn fill(opened: &OpenCache, pages: &Pages, stored: std::ops::Range<usize>, full: std::ops::Range<usize>) -> u64 {
    let holder = opened.begin_session(pages.space, "holder", None).unwrap();
    assert_eq!(result(opened, submit(opened, pages, holder, stored)).status, KVKEEP_OK as i32);
    opened.flush(WAIT_MS).unwrap();
    assert_eq!(result(opened, submit(opened, pages, holder, full.clone())).status, KVKEEP_OK as i32);
    let (held, none) = (keys(full), View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 });
    assert!(opened.reserve_read(holder, &held, 0, &mut vec![none; held.len()]).unwrap());
    holder
}

fn load(opened: &OpenCache, pages: &Pages, session: u64, numbers: std::ops::Range<usize>) -> u64 {
    let (keys, blocks): (_, Vec<i32>) = (keys(numbers.clone()), numbers.map(|number| number as i32).collect());
    let asked = AskedTransfer { pool: pages.pool, session, keys: &keys, blocks: &blocks };
    let mut job = 0;
    opened.transfers().submit_load(asked, TransferRequest::default(), &mut job).unwrap();
    job
}

fn full_l1(opened: &OpenCache) {
    let pages = pages_of(opened, 0);
    let holder = fill(opened, &pages, 20..24, 0..ROOM as usize);
    let session = opened.begin_session(pages.space, "r", None).unwrap();
    let who = format!("session {holder} holds 100 % of L1: return its shares or end it, or make L1 larger");
    let job = load(opened, &pages, session, 20..24);
    let answer = result(opened, job);
    assert_eq!((answer.status, answer.failed_keys), (KVKEEP_PARTIAL as i32, 4));
    assert_eq!(statuses(opened, job, 4), vec![KVKEEP_ERR_NO_MEMORY as i32; 4]);
    let said = message(&answer);
    assert!(said.starts_with(&format!("NO_MEMORY for 4 of 4 objects: {who}")), "{said}");
    // So does the prefetch of them,
    let mut job = 0;
    opened.submit_prefetch(session, &keys(20..24), PrefetchRequest::default(), &mut job).unwrap();
    let answer = result(opened, job);
    assert_eq!((answer.failed_keys, answer.failed_status), (4, KVKEEP_ERR_NO_MEMORY as i32));
    let said = message(&answer);
    assert!(said.starts_with(&format!("no room for what was found: {who}")), "{said}");
    // and a store of a temporary object, which does not wait for memory.
    let (asked, mut job) = (AskedTransfer { pool: pages.pool, session, keys: &keys(30..31), blocks: &[30] }, 0);
    let temporary = TransferRequest { temporary: true, ..TransferRequest::default() };
    opened.transfers().submit_store(asked, temporary, &mut job).unwrap();
    let said = message(&result(opened, job));
    assert!(said.starts_with(&format!("NO_MEMORY for 1 of 1 objects: {who}")), "{said}");
    assert_eq!(statuses(opened, job, 1), [KVKEEP_ERR_NO_MEMORY as i32]);
    opened.end_session(holder).unwrap();
    let job = load(opened, &pages, session, 20..24);
    assert_eq!(result(opened, job).status, KVKEEP_OK as i32);
    // A job of a session that is aborted says so.
    let waits = PrefetchRequest {
        lookup_timeout: Duration::from_secs(3600),
        notify: Notify::EventFd,
        ..PrefetchRequest::default()
    };
    opened.submit_prefetch(session, &keys(40..41), waits, &mut 0).unwrap();
    opened.abort_session(session).unwrap();
    let mut ends = [JobResult::default().completion(0, 0); 2];
    while opened.completions().drain(&mut ends) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(ends[0].status, KVKEEP_ERR_CANCELLED as i32);
    assert_eq!(kvkeep::abi::text_of(&ends[0].message), "its session was ended or aborted");
    opened.close();
}

#[test]
fn a_job_without_memory_names_the_holder() {
    full_l1(&embedded("memory:"));
    let daemon = Daemon::start(|_| config("memory:"));
    full_l1(&OpenCache::new(daemon.client()));
}

#[test]
fn a_load_beyond_the_quota_says_so() {
    let opened = embedded("memory:");
    let pages = pages_of(&opened, 4 * OBJECT);
    let holder = fill(&opened, &pages, 4..6, 0..4);
    let job = load(&opened, &pages, holder, 4..6);
    let said = message(&result(&opened, job));
    assert!(
        said.starts_with(&format!("QUOTA for 2 of 2 objects: session {holder} holds 100 % of the quota")),
        "{said}"
    );
    assert_eq!(statuses(&opened, job, 2), [KVKEEP_ERR_QUOTA as i32; 2]);
    opened.close();
}

#[test]
fn without_a_backend_the_head_stays_and_the_tail_is_refused() {
    let opened = embedded("");
    let pages = pages_of(&opened, 0);
    let session = opened.begin_session(pages.space, "r", None).unwrap();
    let job = submit(&opened, &pages, session, 0..COUNT);
    let answer = result(&opened, job);
    assert_eq!(answer.status, KVKEEP_PARTIAL as i32);
    let expected = "NO_MEMORY for 48 of 64 objects: L1 is full, and no backend is given what is stored: add one, or make L1 larger";
    assert!(message(&answer).starts_with(expected), "{}", message(&answer));
    let said = statuses(&opened, job, COUNT);
    let room = ROOM as usize;
    assert_eq!(said[..room], vec![0; room]);
    assert_eq!(said[room..], vec![KVKEEP_ERR_NO_MEMORY as i32; COUNT - room]);
    assert_eq!(stats(&opened).l1_objects, ROOM);
    opened.close();
}

#[test]
fn a_quota_is_streamed_through_as_l1_is() {
    let opened = embedded("memory:");
    let pages = pages_of(&opened, 4 * OBJECT);
    let session = opened.begin_session(pages.space, "r", None).unwrap();
    assert_eq!(result(&opened, submit(&opened, &pages, session, 0..COUNT)).status, KVKEEP_OK as i32);
    // Where shares fill it, the message says so.
    let held = keys(0..4);
    opened.flush(WAIT_MS).unwrap();
    opened.clear(pages.space, true).unwrap();
    while stats(&opened).l1_used_bytes > 0 {
        std::thread::yield_now();
    }
    assert_eq!(result(&opened, submit(&opened, &pages, session, 0..4)).status, KVKEEP_OK as i32);
    let none = View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 };
    assert!(opened.reserve_read(session, &held, 0, &mut [none; 4]).unwrap());
    let answer = result(&opened, submit(&opened, &pages, session, 4..5));
    assert_eq!(answer.status, KVKEEP_PARTIAL as i32);
    assert!(message(&answer).starts_with("QUOTA for 1 of 1 objects: session "), "{}", message(&answer));
    let mut view = [none];
    assert!(!opened.reserve_write(session, &[key(99)], &[OBJECT], false, &mut view).unwrap());
    assert_eq!(view[0].status, KVKEEP_ERR_QUOTA as i32);
    opened.close();
}

#[test]
fn one_that_waits_can_be_cancelled() {
    let hung = NodeConfig { backend_timeout: Duration::from_secs(3600), ..config("fault:memory:?fault.store_hang=1") };
    let opened = OpenCache::new(Node::open(hung).unwrap());
    let pages = pages_of(&opened, 0);
    let session = opened.begin_session(pages.space, "r", None).unwrap();
    let job = submit(&opened, &pages, session, 0..COUNT);
    assert!(opened.wait(job, 100).is_err());
    opened.cancel(job).unwrap();
    assert_eq!(result(&opened, job).status, KVKEEP_ERR_CANCELLED as i32);
    let said = statuses(&opened, job, COUNT);
    let statuses = [KVKEEP_OK as i32, KVKEEP_ERR_CANCELLED as i32];
    assert!(said.iter().all(|status| statuses.contains(status)), "{said:?}");
    assert_eq!(said[COUNT - 1], KVKEEP_ERR_CANCELLED as i32);
    assert_eq!(stats(&opened).l1_staged, 0);
    opened.transfers().close_pool(pages.pool).unwrap();
    // Closing would wait for the backend, which never answers.
    std::mem::forget(opened);
}

#[test]
fn one_that_waits_stores_nothing_more_once_its_space_is_forgotten() {
    let hung = NodeConfig { backend_timeout: Duration::from_secs(3600), ..config("fault:memory:?fault.store_hang=1") };
    let opened = OpenCache::new(Node::open(hung).unwrap());
    let pages = pages_of(&opened, 0);
    let session = opened.begin_session(pages.space, "r", None).unwrap();
    let job = submit(&opened, &pages, session, 0..COUNT);
    assert!(opened.wait(job, 100).is_err());
    opened.forget_space(pages.space).unwrap();
    let answer = result(&opened, job);
    let said = statuses(&opened, job, COUNT);
    let room = ROOM as usize;
    assert_eq!(said[room..], vec![KVKEEP_ERR_CANCELLED as i32; COUNT - room], "{}", message(&answer));
    assert_eq!((stats(&opened).l1_objects, stats(&opened).l1_staged), (0, 0));
    opened.transfers().close_pool(pages.pool).unwrap();
    std::mem::forget(opened);
}
