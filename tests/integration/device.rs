//! Pages to objects and back, bit by bit, over layouts of every kind: embedded, and as a daemon's client.
//!
//! `PROPTEST_CASES` says how many layouts are tried embedded; a tenth as many are tried through a daemon.

use kvkeep::abi::{Completion, Stats};
use kvkeep::config::{NodeConfig, Notify, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::{
    KVKEEP_ERR_CANCELLED, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION,
    KVKEEP_ERR_TIMEOUT, KVKEEP_OK, Status,
};
use kvkeep::key::Key;
use kvkeep::node::Node;
use kvkeep::open_cache::OpenCache;
use kvkeep::transfer::TransferRequest;
use kvkeep::transfer::submit::AskedTransfer;
use zerocopy::FromZeros as _;

use crate::support::daemon::Daemon;
use crate::support::device::{Case, Kind, OnHost, WAIT_MS, result, round_trip, status, try_layouts};

#[test]
fn pages_come_back_bit_by_bit_whatever_their_layout() {
    let node =
        Node::open(NodeConfig { backend_urls: vec!["memory:".to_owned()], ..NodeConfig::new(256 << 20) }).unwrap();
    let opened = OpenCache::new(node);
    try_layouts(&opened, &OnHost, 1);
    opened.close();
}

fn start(url: &'static str) -> Daemon {
    Daemon::start(move |_| NodeConfig { backend_urls: vec![url.to_owned()], ..NodeConfig::new(64 << 20) })
}

fn client(daemon: &Daemon) -> OpenCache {
    OpenCache::new(daemon.client())
}

const SMALL: Case = Case {
    kind: Kind::Apart,
    layers: 3,
    groups: 1,
    tp: 2,
    bytes: 1024,
    gap: 0,
    per_chunk: 4,
    chunks: 20,
    tail: 3,
    skip: 2,
    temporary: false,
    seed: 5,
};

#[test]
fn pages_come_back_bit_by_bit_through_a_daemon_too() {
    let daemon = start("memory:");
    let opened = client(&daemon);
    try_layouts(&opened, &OnHost, 10);
    opened.close();
}

#[test]
fn a_daemons_client_copies_itself() {
    let daemon = start("memory:");
    let opened = client(&daemon);
    for kind in [Kind::Apart, Kind::Interleaved, Kind::Latent, Kind::CrossLayer] {
        round_trip(&opened, &Case { kind, seed: kind as u64, ..SMALL }, &OnHost, &|_| {});
        // From below, in several prefetches whose ends are pushed.
        round_trip(&opened, &Case { kind, seed: 9 + kind as u64, groups: 2, ..SMALL }, &OnHost, &|space| {
            opened.flush(WAIT_MS).unwrap();
            opened.clear(space, false).unwrap();
        });
    }
    opened.close();
}

fn plain_space(case: &Case) -> SpaceSpec {
    SpaceSpec {
        generation: 0,
        model: "m".to_owned(),
        layout: String::new(),
        tenant: String::new(),
        chunk_tokens: 4 * case.per_chunk,
        quota_bytes: 0,
    }
}

/// Its mapping cannot be written to, but read from.
#[test]
fn a_reader_loads_and_stores_nothing() {
    let daemon = start("memory:");
    let read_only = ClientConfig { read_only: true, ..daemon.config("") };
    let (writer, reader) = (client(&daemon), OpenCache::new(Client::open(read_only).unwrap()));
    let case = Case { tp: 1, ..SMALL };
    let space = writer.open_space(plain_space(&case)).unwrap();
    assert_eq!(reader.open_space(plain_space(&case)).unwrap(), space);
    let mut pages = case.pages(&OnHost, 0, 7);
    pages.memory.words_mut().iter_mut().enumerate().for_each(|(i, word)| *word = i as u64);
    let (keys, blocks) = (case.keys(0), case.blocks(&(0..pages.blocks as i32).collect::<Vec<_>>()));
    let pool = pages.pool(&writer, space, 0, case.per_chunk);
    let session = writer.begin_session(space, "w", None).unwrap();
    let mut job = 0;
    let asked = AskedTransfer { pool, session, keys: &keys, blocks: &blocks };
    writer.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
    assert_eq!(status(&writer, job), KVKEEP_OK);
    let empty = case.pages(&OnHost, 0, 0);
    let pool = empty.pool(&reader, space, 0, case.per_chunk);
    let session = reader.begin_session(space, "r", None).unwrap();
    let asked = || AskedTransfer { pool, session, keys: &keys, blocks: &blocks };
    reader.transfers().submit_load(asked(), TransferRequest::default(), &mut job).unwrap();
    assert_eq!(status(&reader, job), KVKEEP_OK);
    for segment in 0..pages.segments.len() {
        assert!((0..case.used() as i32).all(|block| empty.bytes(segment, block) == pages.bytes(segment, block)));
    }
    job = 77;
    let refused = reader.transfers().submit_store(asked(), TransferRequest::default(), &mut job).unwrap_err();
    assert_eq!((refused.status, job), (KVKEEP_ERR_PERMISSION, 77));
    assert!(refused.message.contains(':'), "{refused}");
    reader.close();
    writer.close();
}

#[test]
fn transfers_and_their_completions_are_counted() {
    const MOST: usize = 1 << 16;
    let opened = OpenCache::new(Node::open(NodeConfig::new(4 << 20)).unwrap());
    let case = Case { tp: 1, ..SMALL };
    let space = opened.open_space(plain_space(&case)).unwrap();
    let pages = case.pages(&OnHost, 0, 7);
    let pool = pages.pool(&opened, space, 0, case.per_chunk);
    let (keys, blocks) = (case.keys(0), [0, 1, 2, 3]);
    let session = opened.begin_session(space, "r", None).unwrap();
    let submit = || {
        let (mut job, request) = (0, TransferRequest { notify: Notify::EventFd, ..TransferRequest::default() });
        let asked = AskedTransfer { pool, session, keys: &keys[..1], blocks: &blocks };
        opened.transfers().submit_store(asked, request, &mut job).map(|()| job)
    };
    let mut jobs = vec![submit().unwrap()];
    opened.wait(jobs[0], WAIT_MS).unwrap();
    jobs.extend((1..MOST).map(|_| submit().unwrap()));
    jobs.iter().for_each(|&job| opened.wait(job, WAIT_MS).unwrap());
    // Who is done has told so a moment later.
    while opened.completions().waiting() < MOST {
        std::thread::yield_now();
    }
    let refused = submit().unwrap_err();
    assert_eq!(refused.status, KVKEEP_ERR_LIMIT);
    assert!(refused.message.contains("drain"), "{refused}");
    let mut drained = vec![Completion::new_zeroed(); MOST];
    assert_eq!(opened.take_completions(&mut drained), MOST);
    let refused = submit().unwrap_err();
    assert_eq!(refused.status, KVKEEP_ERR_LIMIT);
    assert!(refused.message.contains("release"), "{refused}");
    // Before anything is looked up or reserved for it.
    let (asked, request) =
        (AskedTransfer { pool, session, keys: &keys[1..2], blocks: &blocks }, TransferRequest::default());
    assert_eq!(opened.transfers().submit_load(asked, request, &mut 0).unwrap_err().status, KVKEEP_ERR_LIMIT);
    opened.release_job(jobs[9]).unwrap();
    assert_eq!(status(&opened, submit().unwrap()), KVKEEP_OK);
    let mut stats = Stats::default();
    opened.stats(&mut stats).unwrap();
    assert_eq!((stats.sessions, stats.commits, stats.read_misses), (1, 1, 0));
    opened.close();
}

/// One client's objects, that another loads while they are on their way from a backend that does not answer.
#[test]
fn loads_end_with_their_daemon() {
    let mut daemon = start("fault:memory:?fault.load_hang=1");
    let (writer, reader) = (client(&daemon), client(&daemon));
    let case = Case { tp: 1, ..SMALL };
    let space = writer.open_space(plain_space(&case)).unwrap();
    assert_eq!(reader.open_space(plain_space(&case)).unwrap(), space);
    let pages = case.pages(&OnHost, 0, 7);
    let (keys, blocks) = (case.keys(0), case.blocks(&(0..pages.blocks as i32).collect::<Vec<_>>()));
    let store = |opened: &OpenCache, keys: &[Key]| {
        let pool = pages.pool(opened, space, 0, case.per_chunk);
        let session = opened.begin_session(space, "w", None).unwrap();
        let mut job = 0;
        let blocks = &blocks[..keys.len() * case.per_chunk as usize];
        let asked = AskedTransfer { pool, session, keys, blocks };
        opened.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
        assert_eq!(status(opened, job), KVKEEP_OK);
        opened.end_session(session).unwrap();
    };
    store(&writer, &keys);
    writer.flush(WAIT_MS).unwrap();
    writer.clear(space, false).unwrap();
    // Of what is there and what is not, the first is copied and the second waited for.
    store(&writer, &keys[..1]);
    let pool = pages.pool(&reader, space, 0, case.per_chunk);
    let session = reader.begin_session(space, "r", None).unwrap();
    let (mut job, mut other) = (0, 0);
    let asked = || AskedTransfer { pool, session, keys: &keys, blocks: &blocks };
    reader.transfers().submit_load(asked(), TransferRequest::default(), &mut job).unwrap();
    reader.transfers().submit_load(asked(), TransferRequest::default(), &mut other).unwrap();
    assert_eq!(reader.wait(job, 10).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
    // Aborted in another process, it goes on: only stores are dropped.
    writer.abort_session(session).unwrap();
    assert_eq!(reader.wait(job, 10).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
    reader.cancel(other).unwrap();
    assert_eq!(status(&reader, other), KVKEEP_ERR_CANCELLED);
    daemon.stop();
    let ended = result(&reader, job);
    assert_eq!(Status::from_number(ended.status), Some(KVKEEP_ERR_DISCONNECTED), "{ended:?}");
    let waited = reader.transfers().wait_layer(job, 0, 0).unwrap_err();
    assert_eq!(waited.status, KVKEEP_ERR_DISCONNECTED);
    assert!(waited.message.contains("submit it again"), "{waited}");
    for result in [
        reader.transfers().submit_load(asked(), TransferRequest::default(), &mut 0),
        reader.transfers().submit_store(asked(), TransferRequest::default(), &mut 0),
    ] {
        assert_eq!(result.unwrap_err().status, KVKEEP_ERR_DISCONNECTED);
    }
    let mut statuses = vec![0; blocks.len()];
    assert_eq!(reader.transfers().query_blocks(job, &mut statuses).unwrap(), KVKEEP_OK);
    assert!(
        statuses[case.per_chunk as usize..]
            .iter()
            .zip(&blocks[case.per_chunk as usize..])
            .all(|(&status, &block)| status == if block < 0 { KVKEEP_OK } else { KVKEEP_ERR_DISCONNECTED } as i32)
    );
    assert_eq!(reader.transfers().close_pool(pool + 9).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
    reader.close();
    writer.close();
}
