//! What one cache stores in a bucket, another finds there, and only that.

use kvkeep::cache::Cache as _;
use kvkeep::key::hex;

use crate::promises::cache::{Cache, KIB, MIB, WATCHDOG, WATCHDOG_MS, intact, key, watched};
use crate::support::s3::Service;
use crate::support::tcp_proxy::TcpProxy;

/// Prefetches, and says how many chunks of it the backend gave. All of them have their own bytes.
pub fn hits(cache: &Cache, numbers: std::ops::Range<u32>) -> u32 {
    let session = cache.session();
    let answer = cache.prefetch(session, numbers.clone());
    let held = numbers.start..numbers.start + answer.hit_chunks;
    let views = cache.read(session, held.clone(), 0);
    assert!(views.iter().zip(held).all(|(view, number)| intact(view, number)));
    cache.node.end_session(session).unwrap();
    answer.tier_keys[1]
}

/// A cache that waits for its backend as long as the test may run.
pub fn open(url: &str) -> Cache {
    Cache::open(64 * MIB, &[url], |config| config.backend_timeout = WATCHDOG)
}

#[test]
fn a_second_cache_hits_what_the_first_stored() {
    watched(|| {
        let Some(service) = Service::shared("a_second_cache_hits_what_the_first_stored") else { return };
        for parameters in ["", "&checksum=sha256&sign_payload=off&conditional=off", "&list=on", "&checksum=crc64nvme"] {
            let url = service.url(&format!("&part_size=5MiB{parameters}"));
            let first = open(&url);
            first.store_below(0..16, 64 * KIB);
            // In parts, and read in ranges; their last parts are whole, short, and of a header's length.
            first.store_below(16..17, 10 * MIB - 160);
            first.store_below(17..18, 12 * MIB);
            first.store_below(18..19, 10 * MIB);
            let stats = first.stats();
            assert_eq!((stats.stores, stats.stores_dropped), (19, 0), "{parameters}");
            assert_eq!(hits(&first, 0..16), 16);
            first.node.close();
            let second = open(&url);
            assert_eq!(hits(&second, 0..40), 19, "{parameters}");
            // They are there: nothing is written again.
            second.node.clear(0, true).unwrap();
            second.store(0..16, 64 * KIB);
            second.node.flush(WATCHDOG_MS).unwrap();
            assert_eq!((second.stats().stores, second.stats().stores_already), (0, 16), "{parameters}");
            second.at_rest();
            second.node.close();
        }
    });
}

#[test]
fn an_object_has_the_documented_name() {
    watched(|| {
        let Some(service) = Service::shared("an_object_has_the_documented_name") else { return };
        let url = service.url("");
        let cache = open(&url);
        cache.store_below(3..4, KIB);
        let names = service.names(&url);
        let end = format!("/{}-0-0", hex(&key(3).hash));
        assert!(names.len() == 1 && names[0].ends_with(&end), "{names:?}");
        let prefix = url["s3://kvkeep/".len()..].split('?').next().unwrap();
        let space = names[0].strip_prefix(prefix).unwrap().strip_suffix(&end).unwrap();
        assert!(space.len() == 33 && space[1..].bytes().all(|digit| digit.is_ascii_hexdigit()), "{space}");
        cache.node.close();
    });
}

#[test]
fn a_store_of_what_another_stored_meanwhile_writes_nothing() {
    watched(|| {
        let Some(service) = Service::shared("a_store_of_what_another_stored_meanwhile_writes_nothing") else { return };
        // It remembers for long that the objects are absent, so that only the service can tell.
        let url = service.url("&absent_ms=600000");
        let (first, second) = (open(&url), open(&url));
        assert_eq!((hits(&first, 0..4), hits(&second, 0..4)), (0, 0));
        first.store_below(0..4, KIB);
        second.store_below(0..4, KIB);
        assert_eq!((second.stats().stores, second.stats().stores_already), (0, 4));
        assert_eq!(hits(&second, 0..4), 4);
        first.node.close();
        second.node.close();
    });
}

#[test]
fn a_lookup_asks_little_beyond_the_first_gap_and_nothing_twice() {
    watched(|| {
        let Some(service) = Service::shared("a_lookup_asks_little_beyond_the_first_gap_and_nothing_twice") else {
            return;
        };
        let proxy = TcpProxy::start(service.address, "HEAD ");
        let url = service.url_at(proxy.address, "&absent_ms=600000");
        let first = open(&url);
        first.store_below(0..40, KIB);
        proxy.take_count();
        assert_eq!(hits(&first, 0..40), 40);
        assert_eq!(proxy.take_count(), 0, "its own stores are known");
        let second = open(&url);
        // Questions may still be on their way when the first gap has been answered.
        let asked_in_all = || {
            let mut asked = 0;
            crate::promises::cache::until("a lookup of the gap that asks nothing", || {
                assert_eq!(hits(&second, 1000..2024), 0);
                let count = proxy.take_count();
                asked += count;
                count == 0
            });
            asked
        };
        let asked = asked_in_all();
        assert!((1..=8).contains(&asked), "asked {asked} times for a prefix that is absent");
        assert_eq!(hits(&second, 0..1024), 40);
        let asked = asked_in_all();
        assert!((40..=40 + 64 + 8).contains(&asked), "asked {asked} times for 40 objects");
        let third = open(&format!("{url}&list=on"));
        crate::promises::cache::until("the listing", || third.stats().l2_objects == 40);
        assert_eq!(hits(&third, 0..40), 40);
        assert_eq!(proxy.take_count(), 0, "the listing told");
        for cache in [first, second, third] {
            cache.node.close();
        }
    });
}

#[test]
fn what_is_deleted_or_forgotten_is_gone_for_all_and_can_be_stored_again() {
    watched(|| {
        let test = "what_is_deleted_or_forgotten_is_gone_for_all_and_can_be_stored_again";
        let Some(service) = Service::shared(test) else { return };
        for parameters in ["", "&bulk_delete=off"] {
            let url = service.url(parameters);
            let (first, second) = (open(&url), open(&url));
            first.store_below(0..8, KIB);
            second.store_below(8..12, KIB);
            assert_eq!(hits(&second, 0..12), 12);
            second.node.clear(0, true).unwrap();
            first.node.delete(first.space, &[key(2)], None).unwrap();
            first.node.flush(WATCHDOG_MS).unwrap();
            assert_eq!(service.names(&url).len(), 11, "{parameters}");
            // It took the object for present, and loads nothing in its place.
            assert_eq!(hits(&second, 0..3), 2);
            first.store_below(2..3, KIB);
            assert_eq!(hits(&first, 0..12), 12);
            // An object of another program stays.
            let prefix = url["s3://".len()..].split('?').next().unwrap();
            assert_eq!(service.ask("PUT", &format!("/{prefix}/notes/of-others"), b"mine").0, 200);
            first.node.forget_space(first.space).unwrap();
            first.node.flush(WATCHDOG_MS).unwrap();
            let left = service.names(&url);
            assert!(left.len() == 1 && left[0].ends_with("/notes/of-others"), "{parameters} {left:?}");
            assert_eq!(hits(&open(&url), 0..12), 0);
            first.node.close();
            second.node.close();
        }
    });
}
