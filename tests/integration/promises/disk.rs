//! P7 and P8: damaged bytes are a miss, and a killed process loses nothing that was stored.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use kvkeep::abi::Stats;
use kvkeep::cache::Cache as _;
use kvkeep::error::{KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND};

use super::cache::{Cache, MIB, WATCHDOG_MS, intact, key, keys, said, until, watched};
use crate::support::test_name;

const CHILD: &str = "KVKEEP_PROMISE_CHILD";
const KILLED: &str = "p8_a_process_that_is_killed_loses_nothing_it_had_stored";
const SIZE: u64 = 8192;

fn damaged(params: &str) {
    let dir = tempfile::tempdir().unwrap();
    let plain = format!("fs://{}?capacity=64MiB", dir.path().display());
    let open = |url: &str| Cache::open(4 * MIB, &[url], |_| {});

    let cache = open(&format!("fault:{plain}&{params}"));
    cache.store(0..8, SIZE);
    cache.node.flush(WATCHDOG_MS).unwrap();
    cache.node.clear(0, true).unwrap();
    let session = cache.session();
    let answer = cache.prefetch(session, 0..8);
    assert_eq!((answer.lookup_chunks, answer.hit_chunks, answer.failed_keys), (8, 0, 8));
    let Stats { corruptions, load_failures, l1_objects, l1_shares, .. } = cache.stats();
    assert_eq!((corruptions, load_failures, l1_objects, l1_shares), (8, 0, 0, 0));
    assert!(cache.read(session, 0..8, 0).iter().all(|view| view.data.is_null()));
    // Quarantined: not found again, by this cache or the next.
    let answer = cache.prefetch(session, 0..8);
    assert_eq!((answer.lookup_chunks, cache.stats().corruptions), (0, 8));
    cache.node.close();
    let cache = open(&plain);
    let session = cache.session();
    assert_eq!(cache.prefetch(session, 0..8).lookup_chunks, 0);

    // And stored anew they are as good as any.
    cache.store_below(0..8, SIZE);
    assert_eq!(cache.prefetch(session, 0..8).hit_chunks, 8);
    assert!(cache.read(session, 0..8, 0).iter().zip(0..).all(|(view, number)| intact(view, number)));
    assert_eq!(cache.stats().corruptions, 0);
    cache.node.close();
}

#[test]
fn p7_flipped_bits_are_a_miss_never_served_and_stored_anew() {
    watched(|| damaged("fault.flip=1"));
}

#[test]
fn p7_torn_objects_are_a_miss_never_served_and_stored_anew() {
    watched(|| damaged("fault.torn=1"));
}

#[test]
fn p7_objects_of_another_space_are_never_met() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("fs://{}?capacity=64MiB", dir.path().display());
        let cache = Cache::open(4 * MIB, &[&url], |_| {});
        cache.store_below(0..8, SIZE);
        let mut spec = super::cache::spec(0);
        spec.tenant = "another".to_owned();
        let other = cache.node.open_space(spec).unwrap();
        let session = cache.node.begin_session(other, "other", None).unwrap();
        assert_eq!(cache.prefetch(session, 0..8).lookup_chunks, 0);
        cache.node.close();
    });
}

/// In the child: stores until it is killed, saying which objects are stored.
fn store_forever(dir: &str) {
    let cache = Cache::open(4 * MIB, &[&format!("fs://{dir}?capacity=256MiB")], |_| {});
    for round in 0u32.. {
        cache.store(round * 8..round * 8 + 8, SIZE);
        cache.node.flush(WATCHDOG_MS).unwrap();
        println!("stored {round}");
    }
}

#[test]
fn p8_a_process_that_is_killed_loses_nothing_it_had_stored() {
    if let Ok(dir) = std::env::var(CHILD) {
        return store_forever(&dir);
    }
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        for kill_at in [1, 3, 9, 20] {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &test_name(module_path!(), KILLED), "--nocapture"])
                .env(CHILD, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let stored = lines
                .map(|line| line.unwrap())
                .filter_map(|line| line.split("stored ").nth(1).and_then(|round| round.parse::<u32>().ok()))
                .find(|round| *round >= kill_at)
                .unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            let url = format!("fs://{}?capacity=256MiB", dir.path().display());
            let cache = Cache::open(4 * MIB, &[&url], |_| {});
            let session = cache.session();
            for round in 0..=stored {
                let numbers = round * 8..round * 8 + 8;
                assert_eq!(cache.prefetch(session, numbers.clone()).hit_chunks, 8);
                let held = cache.read(session, numbers.clone(), 0);
                assert!(held.iter().zip(numbers.clone()).all(|(view, number)| intact(view, number)));
                cache.finish(session, numbers, 1);
            }
            let stats = cache.stats();
            assert!(stats.l2_objects >= u64::from(stored + 1) * 8 && stats.l2_bytes > 0);
            assert_eq!(stats.corruptions, 0);
            cache.node.close();
        }
    });
}

#[test]
fn p8_a_cache_dropped_without_close_leaves_what_it_had_stored() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("fs://{}?capacity=64MiB", dir.path().display());
        let left = Cache::open(4 * MIB, &[&url], |_| {});
        left.store(0..16, SIZE);
        left.node.flush(WATCHDOG_MS).unwrap();
        drop(left);
        let cache = Cache::open(4 * MIB, &[&url], |_| {});
        until("the index", || cache.stats().l2_objects == 16);
        let session = cache.session();
        assert_eq!(cache.prefetch(session, 0..16).hit_chunks, 16);
        assert!(cache.read(session, 0..16, 0).iter().zip(0..).all(|(view, number)| intact(view, number)));
        cache.node.close();
    });
}

#[test]
fn what_was_deleted_is_gone_however_many_keys_were_named() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(MIB, &[&format!("fs://{}", dir.path().display())], |_| {});
        cache.store(0..4, 4096);
        cache.node.flush(WATCHDOG_MS).unwrap();
        let mut statuses = vec![9; 200_000];
        cache.node.delete(cache.space, &keys(0..200_000), Some(&mut statuses)).unwrap();
        assert_eq!(statuses[..4], [0; 4]);
        cache.node.flush(WATCHDOG_MS).unwrap();
        let (session, stats) = (cache.session(), cache.stats());
        assert_eq!((stats.l2_objects, stats.stores_dropped), (0, 0));
        assert_eq!(cache.prefetch(session, 0..4).hit_chunks, 0);
        cache.node.close();
    });
}

#[test]
fn a_prefetch_finds_what_another_process_stored_however_many_keys_it_names() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("fs://{}", dir.path().display());
        let [one, two] = [(); 2].map(|()| Cache::open(MIB, &[&url], |_| {}));
        one.store(0..4, 4096);
        one.node.flush(WATCHDOG_MS).unwrap();
        let answer = two.prefetch(two.session(), 0..200_000);
        assert_eq!((answer.hit_chunks, answer.tier_keys[1]), (4, 4));
        one.node.close();
        two.node.close();
    });
}

#[test]
fn a_key_that_is_named_twice_is_deleted_once_whichever_tier_has_it() {
    watched(|| {
        for urls in [&[][..], &["memory:"], &["memory:?lookup=slow"]] {
            let cache = Cache::open(MIB, urls, |_| {});
            for in_l1 in [true, false] {
                cache.store(0..2, 4096);
                cache.node.flush(WATCHDOG_MS).unwrap();
                if !in_l1 {
                    cache.node.evict(cache.space, &keys(0..2), None).unwrap();
                }
                let (there, mut statuses) = (in_l1 || urls == ["memory:"], [9; 4]);
                let named = [key(0), key(1), key(0), key(0)];
                assert!(!cache.node.delete(cache.space, &named, Some(&mut statuses)).unwrap());
                let absent = said(KVKEEP_ERR_NOT_FOUND);
                let first = if there { 0 } else { absent };
                assert_eq!(statuses, [first, first, absent, absent], "{urls:?}, in L1: {in_l1}");
                cache.node.flush(WATCHDOG_MS).unwrap();
            }
            cache.node.close();
        }
    });
}

#[test]
fn a_key_in_use_that_is_named_twice_is_locked_twice() {
    let cache = Cache::open(MIB, &["memory:"], |_| {});
    cache.store(0..1, 4096);
    let session = cache.session();
    cache.read(session, 0..1, 0);
    let mut statuses = [9; 2];
    assert!(!cache.node.delete(cache.space, &[key(0); 2], Some(&mut statuses)).unwrap());
    assert_eq!(statuses, [said(KVKEEP_ERR_LOCKED); 2]);
    cache.node.close();
}

#[test]
fn what_a_directory_gives_up_for_a_smaller_capacity_is_counted() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let url = |capacity: &str| format!("fs://{}?capacity={capacity}", dir.path().display());
        let cache = Cache::open(4 * MIB, &[&url("64MiB")], |_| {});
        cache.store_below(0..64, SIZE);
        assert_eq!((cache.stats().l2_objects, cache.stats().l2_evictions), (64, 0));
        cache.node.close();
        // Worked off in the background.
        let cache = Cache::open(4 * MIB, &[&url("128KiB")], |_| {});
        until("the surplus to go", || cache.stats().l2_bytes <= 128 << 10);
        let stats = cache.stats();
        assert!(stats.l2_evictions > 0);
        assert_eq!(stats.l2_evictions, 64 - stats.l2_objects);
        cache.node.remove_backend(1).unwrap();
        assert_eq!(cache.stats().l2_evictions, stats.l2_evictions);
        cache.node.close();
    });
}
