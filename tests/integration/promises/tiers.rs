//! What the tiers know of each other: uses in L1 reach the backends, and L1 hears what they lost.

use kvkeep::abi::{KVKEEP_KEY_STORED, KVKEEP_KEY_STORING, KeyState};
use kvkeep::cache::Cache as _;
use kvkeep::config::StoreMode;

use super::cache::{Cache, MIB, WATCHDOG_MS, key, keys, until, watched};

const SIZE: u64 = 4096;
/// What an object of `SIZE` bytes takes on disk.
const BELOW: u64 = 2 * SIZE;

/// A backend in memory and one on disk, each with room for `objects` objects.
fn backends(objects: u64, test: impl Fn(&str)) {
    let cache = Cache::open(MIB, &["memory:"], |_| {});
    put_below(&cache, 0..1);
    test(&format!("memory:?capacity={}", objects * cache.stats().l2_bytes));
    cache.node.close();
    let dir = tempfile::tempdir().unwrap();
    test(&format!("fs://{}?capacity={}", dir.path().display(), objects * BELOW));
}

/// Which of the keys the first backend has.
fn below(cache: &Cache, numbers: std::ops::Range<u32>) -> Vec<u32> {
    let has = |number: &u32| {
        let told = cache.node.explain_key(cache.space, &key(*number)).unwrap();
        told.contains("\"state\":\"present\"")
    };
    numbers.filter(has).collect()
}

fn put_below(cache: &Cache, numbers: std::ops::Range<u32>) {
    cache.store(numbers, SIZE);
    cache.node.flush(WATCHDOG_MS).unwrap();
}

fn read(cache: &Cache, numbers: std::ops::Range<u32>) {
    let session = cache.session();
    assert!(cache.read(session, numbers, 0).iter().all(|view| view.status == 0));
    cache.node.end_session(session).unwrap();
}

fn flags(cache: &Cache, number: u32) -> u32 {
    let mut state = [KeyState::default()];
    cache.node.query_keys(cache.space, &[key(number)], &mut state).unwrap();
    state[0].flags & (KVKEEP_KEY_STORED | KVKEEP_KEY_STORING)
}

fn stored(cache: &Cache, numbers: std::ops::Range<u32>) -> Vec<u32> {
    numbers.filter(|&number| flags(cache, number) == KVKEEP_KEY_STORED).collect()
}

#[test]
fn what_is_always_read_from_l1_stays_in_the_backends() {
    watched(|| {
        backends(32, |url| {
            let cache = Cache::open(MIB, &[url], |_| {});
            put_below(&cache, 0..8);
            for round in 1..10 {
                read(&cache, 0..8);
                put_below(&cache, round * 100..round * 100 + 8);
            }
            assert_eq!(below(&cache, 0..8), Vec::from_iter(0..8));
            assert!(below(&cache, 500..508).is_empty());
            cache.node.close();
        });
    });
}

#[test]
fn of_a_prompt_that_was_used_the_last_chunks_go_first() {
    watched(|| {
        backends(16, |url| {
            let cache = Cache::open(MIB, &[url], |_| {});
            put_below(&cache, 0..12);
            read(&cache, 0..12);
            put_below(&cache, 100..110);
            assert_eq!(below(&cache, 0..12), Vec::from_iter(0..6));
            cache.node.close();
        });
    });
}

#[test]
fn a_touch_and_a_write_of_what_is_there_are_uses_below() {
    watched(|| {
        backends(16, |url| {
            let cache = Cache::open(MIB, &[url], |_| {});
            put_below(&cache, 0..16);
            assert!(cache.node.touch(cache.space, &keys(0..3), None).unwrap());
            cache.node.flush(WATCHDOG_MS).unwrap();
            cache.node.evict(cache.space, &keys(3..6), None).unwrap();
            // Found in the index, and by the backend itself.
            put_below(&cache, 3..6);
            assert_eq!(cache.stats().stores_already, 3);
            put_below(&cache, 100..110);
            assert_eq!(below(&cache, 0..16), Vec::from_iter(0..6));
            cache.node.close();
        });
    });
}

#[test]
fn uses_reach_every_backend_and_survive_a_restart() {
    watched(|| {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let urls = [0, 1].map(|i| format!("fs://{}?capacity={}", dirs[i].path().display(), 16 * BELOW));
        let open = || Cache::open(MIB, &[&urls[0], &urls[1]], |_| {});
        let cache = open();
        put_below(&cache, 0..16);
        read(&cache, 0..8);
        // Told at the latest when it closes.
        cache.node.close();
        let cache = open();
        put_below(&cache, 100..108);
        for place in [1, 2] {
            let session = cache.session();
            let answer = cache.prefetch(session, 0..16);
            assert_eq!((answer.hit_chunks, answer.tier_keys[place]), (8, 8));
            cache.node.end_session(session).unwrap();
            cache.node.clear(0, true).unwrap();
            if place == 1 {
                cache.node.remove_backend(1).unwrap();
            }
        }
        cache.node.close();
    });
}

#[test]
fn what_a_backend_evicts_is_stored_no_more_and_written_again_before_l1_evicts_it() {
    watched(|| {
        backends(8, |url| {
            let cache = Cache::open(128 * SIZE, &[url], |config| config.watermark_high_percent = 100);
            put_below(&cache, 0..16);
            assert_eq!(below(&cache, 0..16), stored(&cache, 0..16));
            assert_eq!((stored(&cache, 0..16).len(), cache.stats().stores), (8, 16));
            // Not at once: a backend that is full would be given the same objects in turn.
            cache.node.flush(WATCHDOG_MS).unwrap();
            assert_eq!((cache.stats().stores, cache.stats().stores_dropped), (16, 0));
            // With L1 full, the next ones make it evict what backends lost: that is written first, or counted as dropped.
            cache.store(1000..1112, SIZE);
            cache.node.flush(WATCHDOG_MS).unwrap();
            assert_eq!((cache.stats().stores, cache.stats().evictions), (128, 0));
            cache.store(2000..2008, SIZE);
            cache.node.flush(WATCHDOG_MS).unwrap();
            let stats = cache.stats();
            assert!(stats.stores > 136, "nothing was written again");
            assert!(stats.stores <= 136 + 8 * 8 && stats.stores_dropped <= stats.evictions, "{stats:?}");
            cache.node.close();
        });
    });
}

#[test]
fn the_last_copy_is_never_evicted_as_stored() {
    watched(|| {
        backends(8, |url| {
            let cache = Cache::open(MIB, &[url], |_| {});
            put_below(&cache, 0..16);
            let lost: Vec<u32> = (0..16).filter(|&number| flags(&cache, number) == 0).collect();
            assert_eq!(lost.len(), 8);
            for &number in &lost {
                assert!(cache.node.evict(cache.space, &[key(number)], None).unwrap());
            }
            assert_eq!(cache.stats().stores_dropped, 8);
            for number in stored(&cache, 0..16) {
                assert!(cache.node.evict(cache.space, &[key(number)], None).unwrap());
            }
            assert_eq!(cache.stats().stores_dropped, 8);
            cache.node.close();
        });
    });
}

#[test]
fn what_a_removed_backend_alone_had_is_stored_no_more() {
    watched(|| {
        let cache = Cache::open(MIB, &["memory:", "memory:"], |_| {});
        put_below(&cache, 0..8);
        cache.node.remove_backend(1).unwrap();
        assert_eq!(stored(&cache, 0..8).len(), 8);
        cache.node.remove_backend(2).unwrap();
        assert!(stored(&cache, 0..8).is_empty());
        // There is nothing to write them to, so they go as they are.
        (1..5).for_each(|round| cache.store(round * 100..round * 100 + 100, SIZE));
        // Those that are still there are written to a new backend before they go.
        let cache = Cache::open(16 * SIZE, &["memory:"], |config| config.watermark_high_percent = 100);
        put_below(&cache, 0..8);
        cache.node.remove_backend(1).unwrap();
        cache.node.add_backend("memory:").unwrap();
        put_below(&cache, 100..116);
        until("what was met by eviction", || {
            cache.node.flush(WATCHDOG_MS).unwrap();
            put_below(&cache, 200..208);
            let stats = cache.stats();
            stats.stores + stats.stores_dropped >= 8 + 16 + 8 + 8
        });
        cache.node.close();
    });
}

#[test]
fn a_write_that_was_given_up_is_not_said_to_be_stored() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.store_error=1"], |_| {});
        put_below(&cache, 0..4);
        assert_eq!((stored(&cache, 0..4), cache.stats().stores_dropped), (vec![], 4));
        // Nor is it tried, or counted, again.
        assert!(cache.node.evict(cache.space, &keys(0..4), None).unwrap());
        cache.node.flush(WATCHDOG_MS).unwrap();
        assert_eq!((cache.stats().stores_dropped, cache.stats().store_retries), (4, 12));
        cache.node.close();
        // One of two is enough.
        let cache = Cache::open(MIB, &["fault:memory:?fault.store_error=1", "memory:"], |_| {});
        put_below(&cache, 0..4);
        assert_eq!((stored(&cache, 0..4).len(), cache.stats().stores_dropped), (4, 4));
        cache.node.close();
    });
}

#[test]
fn a_quarantined_object_is_stored_no_more_and_what_was_loaded_is_until_it_is_lost() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("fs://{}?capacity={}", dir.path().display(), 8 * BELOW);
        let cache = Cache::open(MIB, &[&url], |_| {});
        cache.store_below(0..8, SIZE);
        let session = cache.session();
        assert_eq!(cache.prefetch(session, 0..8).hit_chunks, 8);
        cache.node.end_session(session).unwrap();
        assert_eq!(stored(&cache, 0..8).len(), 8);
        put_below(&cache, 100..104);
        assert_eq!(stored(&cache, 0..8), below(&cache, 0..8));
        assert_eq!(stored(&cache, 0..8).len(), 4);
        cache.node.close();
    });
}

#[test]
fn a_backend_that_keeps_nothing_is_not_written_to_without_end() {
    watched(|| {
        for mode in [StoreMode::WriteThrough, StoreMode::WriteBack] {
            // Room for two objects, and an L1 that evicts in the background.
            let cache = Cache::open(64 * SIZE, &["memory:?capacity=9KiB"], |config| config.store_mode = mode);
            for round in 0..8 {
                cache.store(round * 100..round * 100 + 40, SIZE);
                cache.node.flush(WATCHDOG_MS).unwrap();
            }
            until("L1 to be below its watermark", || cache.stats().l1_used_bytes <= 52 * SIZE);
            cache.node.flush(WATCHDOG_MS).unwrap();
            let stats = cache.stats();
            assert!(stats.stores <= 2 * 320, "{} writes of 320 objects", stats.stores);
            cache.node.close();
        }
    });
}
