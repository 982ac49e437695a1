//! Reservations that wait for the backends before L1 drops what is still to be written (`store_wait_ms`).
#![allow(unsafe_code)]

use std::ops::Range;
use std::thread;
use std::time::Duration;

use kvkeep::abi::{JobResult, Stats, View};
use kvkeep::config::{NodeConfig, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::KVKEEP_OK;
use kvkeep::key::Key;
use kvkeep::node::Node;
use kvkeep::open_cache::OpenCache;
use kvkeep::transfer::PoolSpec;
use kvkeep::transfer::TransferRequest;
use kvkeep::transfer::cpu_copy::Promise;
use kvkeep::transfer::layout::Segment;
use kvkeep::transfer::submit::AskedTransfer;

use crate::support::daemon::Daemon;

const WAIT_MS: u32 = 120_000;
const OBJECT: u64 = 16 << 10;
/// So many objects fill L1.
const ROOM: u64 = 16;
const FOREVER: Duration = Duration::from_secs(100_000);

fn config(url: &str, store_wait: Duration) -> NodeConfig {
    NodeConfig {
        backend_urls: vec![url.to_owned()],
        watermark_high_percent: 100,
        store_wait,
        backend_timeout: Duration::from_secs(60),
        ..NodeConfig::new(ROOM * OBJECT)
    }
}

fn embedded(config: NodeConfig) -> OpenCache {
    OpenCache::new(Node::open(config).unwrap())
}

fn spec() -> SpaceSpec {
    let (model, layout, tenant) = ("m".to_owned(), "l".to_owned(), String::new());
    SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes: 0 }
}

fn keys(numbers: Range<u64>) -> Vec<Key> {
    let key = |number: u64| {
        let mut hash = [5; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        Key { hash, rank: 0, group: 0 }
    };
    numbers.map(key).collect()
}

/// Stores objects, and says how many were given memory.
fn store(opened: &OpenCache, space: u64, numbers: Range<u64>) -> usize {
    let session = opened.begin_session(space, "w", None).unwrap();
    let keys = keys(numbers);
    let mut views = vec![View::none(KVKEEP_OK); keys.len()];
    opened.reserve_write(session, &keys, &vec![OBJECT; keys.len()], false, &mut views).unwrap();
    let given = views.iter().filter(|view| view.status == KVKEEP_OK as i32).count();
    opened.finish_write(session, &keys[..given], None).unwrap();
    opened.end_session(session).unwrap();
    given
}

fn stats(opened: &OpenCache) -> Stats {
    let mut stats = Stats::default();
    opened.stats(&mut stats).unwrap();
    stats
}

/// A burst of four times L1, a batch at a time, over a backend that takes its time.
fn burst(opened: &OpenCache) -> Stats {
    let space = opened.open_space(spec()).unwrap();
    for first in (0..4 * ROOM).step_by(8) {
        assert_eq!(store(opened, space, first..first + 8), 8);
    }
    opened.flush(WAIT_MS).unwrap();
    stats(opened)
}

const SLOW: &str = "fault:memory:?fault.delay=1&fault.delay_ms=20";

#[test]
fn a_burst_that_outruns_the_disk_drops_nothing_where_stores_wait() {
    let opened = embedded(config(SLOW, Duration::ZERO));
    assert!(burst(&opened).stores_dropped > 0, "the backend is not slow");
    opened.close();
    let opened = embedded(config(SLOW, FOREVER));
    let stats = burst(&opened);
    assert_eq!((stats.stores, stats.stores_dropped, stats.refusals), (4 * ROOM, 0, 0));
    opened.close();
}

#[test]
fn as_many_writes_as_may_wait_are_waited_for_too() {
    let opened = embedded(NodeConfig { writes_pending_max: 8, ..config(SLOW, FOREVER) });
    assert_eq!(burst(&opened).dropped_queue, 0);
    opened.close();
}

#[test]
fn a_daemons_clients_wait_as_it_says_or_as_they_say() {
    for (of_daemon, of_client) in [(FOREVER, None), (Duration::ZERO, Some(FOREVER))] {
        let daemon = Daemon::start(move |_| config(SLOW, of_daemon));
        let config = ClientConfig { store_wait: of_client, ..daemon.config("") };
        let opened = OpenCache::new(Client::open(config).unwrap());
        assert_eq!(burst(&opened).stores_dropped, 0);
        opened.close();
    }
}

#[test]
fn when_the_bound_has_passed_writes_are_dropped_and_nothing_is_refused() {
    let opened = embedded(config("fault:memory:?fault.store_hang=1", Duration::from_millis(50)));
    let space = opened.open_space(spec()).unwrap();
    let mut given = 0;
    for first in (0..4 * ROOM).step_by(4) {
        given += store(&opened, space, first..first + 4);
    }
    // A quarter of L1 is under writes that hang, and cannot be evicted.
    assert_eq!(given as u64, 4 * ROOM);
    assert!(stats(&opened).dropped_evicted > 0);
    assert_eq!(stats(&opened).refusals, 0);
    opened.remove_backend(1).unwrap();
    opened.close();
}

#[test]
fn others_go_on_while_a_store_waits_and_it_ends_with_its_backend() {
    let opened = embedded(config("fault:memory:?fault.store_hang=1", FOREVER));
    let space = opened.open_space(spec()).unwrap();
    assert_eq!(store(&opened, space, 0..ROOM), ROOM as usize);
    thread::scope(|scope| {
        let waits = scope.spawn(|| store(&opened, space, 100..101));
        for _ in 0..200 {
            let reader = opened.begin_session(space, "r", None).unwrap();
            let mut views = vec![View::none(KVKEEP_OK); ROOM as usize];
            assert!(opened.reserve_read(reader, &keys(0..ROOM), 0, &mut views).unwrap());
            opened.end_session(reader).unwrap();
        }
        assert!(!waits.is_finished());
        opened.remove_backend(1).unwrap();
        assert_eq!(waits.join().unwrap(), 1);
    });
    opened.close();
}

#[test]
fn a_store_that_waits_ends_when_the_cache_closes() {
    let opened = embedded(NodeConfig {
        backend_timeout: Duration::from_millis(500),
        ..config("fault:memory:?fault.delay=1&fault.delay_ms=60000", FOREVER)
    });
    let space = opened.open_space(spec()).unwrap();
    assert_eq!(store(&opened, space, 0..ROOM), ROOM as usize);
    thread::scope(|scope| {
        let waits = scope.spawn(|| store(&opened, space, 100..101));
        opened.wake_waiters();
        waits.join().unwrap();
    });
    opened.close();
}

#[test]
fn a_transfer_waits_in_the_background_and_drops_nothing() {
    for (url, wait, drops) in
        [(SLOW, FOREVER, false), ("fault:memory:?fault.store_hang=1", Duration::from_millis(50), true)]
    {
        let opened = embedded(config(url, wait));
        let space = opened.open_space(spec()).unwrap();
        let count = 3 * ROOM;
        let words = vec![7u64; (count * OBJECT / 8) as usize];
        let segments = vec![Segment {
            address: words.as_ptr().expose_provenance() as u64,
            block_bytes: OBJECT,
            block_stride: OBJECT,
            group: 0,
            layer: 0,
            part: 0,
        }];
        // SAFETY: the memory outlives the pool, and nobody touches it while a transfer is not done.
        let promise = unsafe { Promise::given() };
        let pool = PoolSpec { device: -1, rank: 0, blocks: count as u32, blocks_per_chunk: 1, segments, promise };
        let pool = opened.transfers().open_pool(space, pool).unwrap();
        // Unwritten objects of others fill L1.
        assert_eq!(store(&opened, space, 1000..1000 + ROOM), ROOM as usize);
        let session = opened.begin_session(space, "t", None).unwrap();
        let (keys, blocks): (_, Vec<i32>) = (keys(0..count), (0..count as i32).collect());
        let mut job = 0;
        let asked = AskedTransfer { pool, session, keys: &keys, blocks: &blocks };
        opened.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
        opened.wait(job, WAIT_MS).unwrap();
        let mut result = JobResult::default();
        opened.query_job(job, &mut result).unwrap();
        assert_eq!((result.status, u64::from(result.copied_keys)), (KVKEEP_OK as i32, count));
        assert_eq!(stats(&opened).stores_dropped > 0, drops);
        opened.end_session(session).unwrap();
        opened.release_job(job).unwrap();
        opened.remove_backend(1).unwrap();
        opened.close();
    }
}
