//! Two caches that share only a server.

use kvkeep::abi::{KVKEEP_KEY_STORED, KeyState};
use kvkeep::backend_state::BackendHealth;
use kvkeep::cache::Cache as _;
use kvkeep::error::KVKEEP_ERR_NOT_FOUND;
use kvkeep::misses::miss_report::{MissReason, MissReport};
use rustix::process::Signal;

use crate::promises::cache::{Cache, MIB, WATCHDOG_MS, intact, keys, said, until, watched};
use crate::support::redis::*;

pub const SIZE: u64 = 64 << 10;

/// Prefetches objects and compares their bytes.
pub fn read_all(cache: &Cache, numbers: std::ops::Range<u32>) -> u64 {
    let session = cache.session();
    let hits = cache.prefetch(session, numbers.clone()).hit_chunks;
    let views = cache.read(session, numbers.start..numbers.start + hits, 0);
    assert!(views.iter().zip(numbers).all(|(view, number)| view.status == 0 && intact(view, number)));
    cache.node.end_session(session).unwrap();
    u64::from(hits)
}

#[test]
fn a_second_cache_hits_what_the_first_one_stored() {
    watched(|| {
        let Some(server) = Server::start(&[]) else { return };
        let one = Cache::open(16 * MIB, &[&server.url("")], |_| {});
        let two = Cache::open(16 * MIB, &[&server.url("?connections=2")], |_| {});
        assert_eq!(read_all(&two, 0..100), 0);
        one.store_below(0..100, SIZE);
        assert_eq!((read_all(&two, 0..100), read_all(&one, 0..150)), (100, 100));
        // What is there is not written again, and what the other deletes is a miss.
        let before = two.stats().stores;
        two.node.clear(0, true).unwrap();
        two.store(0..100, SIZE);
        two.node.flush(WATCHDOG_MS).unwrap();
        assert_eq!((two.stats().stores, two.stats().stores_already), (before, 100));
        one.node.forget_space(one.space).unwrap();
        one.node.flush(WATCHDOG_MS).unwrap();
        two.node.clear(0, true).unwrap();
        assert_eq!(read_all(&two, 0..100), 0);
        assert!(server.keys().is_empty());
        for cache in [one, two] {
            cache.at_rest();
            cache.node.close();
        }
    });
}

/// How many objects L1 takes for stored.
fn stored(cache: &Cache, numbers: std::ops::Range<u32>) -> usize {
    let keys = keys(numbers);
    let mut states = vec![KeyState::default(); keys.len()];
    cache.node.query_keys(cache.space, &keys, &mut states).unwrap();
    states.iter().filter(|state| state.flags & KVKEEP_KEY_STORED != 0).count()
}

#[test]
fn what_only_the_server_has_is_stored_when_another_backend_goes() {
    watched(|| {
        let Some(server) = Server::start(&[]) else { return };
        let cache = Cache::open(16 * MIB, &["memory:", &server.url("")], |_| {});
        cache.store(0..100, SIZE);
        cache.node.flush(WATCHDOG_MS).unwrap();
        let name = server.keys().remove(0);
        server.ask(&["DEL", &name]);
        let stores = cache.stats().stores;
        cache.node.remove_backend(1).unwrap();
        assert_eq!(stored(&cache, 0..100), 99);
        // Only the one that the server lost is written again when L1 evicts all.
        cache.node.evict(cache.space, &keys(0..100), None).unwrap();
        cache.node.flush(WATCHDOG_MS).unwrap();
        assert!(cache.stats().stores <= stores + 1 && server.keys().len() >= 99);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn a_key_that_only_the_server_has_is_deleted_there() {
    watched(|| {
        let Some(server) = Server::start(&[]) else { return };
        let [one, two] = [(); 2].map(|()| Cache::open(16 * MIB, &[&server.url("")], |_| {}));
        one.store_below(0..10, SIZE);
        // Nothing here knows of it without asking, and so the status is that there is none.
        let mut statuses = [0; 10];
        assert!(!two.node.delete(two.space, &keys(0..10), Some(&mut statuses)).unwrap());
        assert_eq!(statuses, [said(KVKEEP_ERR_NOT_FOUND); 10]);
        two.node.flush(WATCHDOG_MS).unwrap();
        assert!(server.keys().is_empty());
        assert_eq!(read_all(&one, 0..10), 0);
        [one, two].into_iter().for_each(|cache| cache.node.close());
    });
}

#[test]
fn a_server_that_evicts_makes_misses() {
    watched(|| {
        let limits = ["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"];
        let Some(server) = Server::start(&limits) else { return };
        let cache = Cache::open(64 * MIB, &[&server.url("")], |_| {});
        cache.store_below(0..500, SIZE);
        assert_eq!(cache.stats().stores, 500);
        let found: u64 = (0..500).map(|number| read_all(&cache, number..number + 1)).sum();
        assert!((1..200).contains(&found), "{found}");
        // It does not tell of each, but they were stored there.
        let mut report = MissReport::default();
        cache.node.query_misses(cache.space, &mut report).unwrap();
        assert_eq!((report.hits, report.misses), (found, 500 - found));
        assert_eq!(
            (report.reasons[MissReason::KVKEEP_MISS_EVICTED as usize], report.evicted[1]),
            (500 - found, 500 - found)
        );
        until("the evictions to be counted", || cache.node.query_backends()[0].evictions > 300);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn a_full_server_refuses_stores_and_the_cache_goes_on() {
    watched(|| {
        let Some(server) = Server::start(&["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]) else { return };
        let cache = Cache::open(64 * MIB, &[&server.url("")], |_| {});
        cache.store_below(0..300, SIZE);
        let stats = cache.stats();
        assert!(stats.stores > 0 && stats.stores_dropped > 0 && stats.stores + stats.stores_dropped == 300);
        let told = format!("{:?}", cache.node.backend_reports());
        assert!(told.contains("allkeys-lru"), "{told}");
        // What it took can be read.
        let found: u64 = (0..300).map(|number| read_all(&cache, number..number + 1)).sum();
        assert_eq!(found, stats.stores);
        server.ask(&["FLUSHALL"]);
        cache.store_below(300..310, SIZE);
        assert_eq!(read_all(&cache, 300..310), 10);
        until("the note to go", || !format!("{:?}", cache.node.backend_reports()).contains("allkeys-lru"));
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn p4_a_server_that_hangs_is_fenced_and_each_request_completes_once() {
    watched(|| {
        let Some(server) = Server::start(&[]) else { return };
        let short = |config: &mut kvkeep::config::NodeConfig| {
            config.backend_timeout = std::time::Duration::from_millis(300);
        };
        let cache = Cache::open(64 * MIB, &[&server.url("?timeout_ms=2000")], short);
        cache.store_below(0..200, SIZE);
        server.signal(Signal::STOP);
        let session = cache.session();
        let result = cache.prefetch(session, 0..200);
        assert_eq!(result.hit_chunks, 0);
        assert!(cache.stats().backend_timeouts > 0);
        cache.node.end_session(session).unwrap();
        // The connection is given up, and its requests are answered: the backend is not fenced any more, but it is in trouble.
        until("trouble", || cache.node.query_backends()[0].health == BackendHealth::KVKEEP_BACKEND_BAD as u32);
        server.signal(Signal::CONT);
        until("the backend to be good again", || {
            cache.node.query_backends()[0].health == BackendHealth::KVKEEP_BACKEND_GOOD as u32
        });
        // On a busy machine some of so many are late once more.
        until("all to be loaded", || read_all(&cache, 0..200) == 200);
        cache.at_rest();
        cache.node.close();
    });
}
