//! Services that die, hang, cut and lie: each request is answered once, and no wrong byte reaches a reader.

use std::time::Duration;

use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, PrefetchRequest};

use super::round_trip::hits;
use crate::promises::cache::{Cache, KIB, MIB, WATCHDOG_MS, until, watched};
use crate::support::s3::Service;
use crate::support::tcp_proxy::{TcpProxy, Weather};

fn patient(seconds: u64) -> impl FnOnce(&mut NodeConfig) {
    move |config| config.backend_timeout = Duration::from_secs(seconds)
}

#[test]
fn foreign_and_broken_objects_are_counted_misses() {
    watched(|| {
        let Some(service) = Service::shared("foreign_and_broken_objects_are_counted_misses") else { return };
        let url = service.url("");
        let first = Cache::open(64 * MIB, &[&url], patient(100));
        first.store_below(0..5, KIB);
        first.node.close();
        let mut names = service.names(&url);
        names.sort();
        let (short, junk) = (&names[0], &names[1]);
        for (name, body) in [(short, &b"too short"[..]), (junk, &[7; 1184])] {
            let path = format!("/kvkeep/{name}");
            assert_eq!((service.ask("DELETE", &path, b"").0, service.ask("PUT", &path, body).0), (204, 200));
        }
        let cache = Cache::open(64 * MIB, &[&url], patient(100));
        let session = cache.session();
        let each = PrefetchRequest { mode: kvkeep::config::Mode::Any, ..PrefetchRequest::default() };
        let job = cache.submit(session, 0..5, each);
        cache.node.wait(job, WATCHDOG_MS).unwrap();
        assert_eq!(cache.answer(job).unwrap().tier_keys[1], 3);
        cache.node.end_session(session).unwrap();
        assert_eq!(cache.stats().corruptions, 1);
        until("the quarantine", || {
            let left = service.names(&url);
            let moved = left.iter().any(|name| name.contains("/quarantine/")) && !left.contains(junk);
            assert!(left.contains(short), "{left:?}");
            moved
        });
        // The short one is somebody else's: it is not replaced, and the write is given up.
        cache.node.clear(0, true).unwrap();
        cache.store(0..5, KIB);
        cache.node.flush(WATCHDOG_MS).unwrap();
        assert_eq!((cache.stats().stores, cache.stats().stores_dropped), (1, 1));
        assert!(service.names(&url).contains(junk));
        cache.node.close();
    });
}

#[test]
fn connections_that_are_cut_are_taken_up_again_or_the_objects_are_misses() {
    watched(|| {
        let test = "connections_that_are_cut_are_taken_up_again_or_the_objects_are_misses";
        let Some(service) = Service::shared(test) else { return };
        let proxy = TcpProxy::start(service.address, "GET ");
        let cache = Cache::open(64 * MIB, &[&service.url_at(proxy.address, "")], patient(100));
        cache.store_below(0..4, MIB);
        // Each answer brings some of the object, and the next one the rest.
        proxy.set(Weather::Cut(700 * KIB));
        assert_eq!(hits(&cache, 0..4), 4);
        assert!(proxy.take_count() >= 8);
        cache.node.clear(0, true).unwrap();
        proxy.set(Weather::Cut(100));
        assert_eq!(hits(&cache, 0..4), 0);
        proxy.set(Weather::Fair);
        assert_eq!(hits(&cache, 0..4), 4);
        assert_eq!(cache.stats().corruptions, 0);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn a_turned_bit_is_a_counted_miss() {
    watched(|| {
        let Some(service) = Service::shared("a_turned_bit_is_a_counted_miss") else { return };
        let proxy = TcpProxy::start(service.address, "GET ");
        let url = service.url_at(proxy.address, "");
        let first = Cache::open(64 * MIB, &[&url], patient(100));
        first.store_below(0..1, MIB);
        first.node.close();
        // The answers to the opening of the second are shorter; each load has a connection of its own first.
        let cache = Cache::open(64 * MIB, &[&url], patient(100));
        proxy.set(Weather::Turn(500_000));
        assert_eq!(hits(&cache, 0..1), 0);
        assert_eq!(cache.stats().corruptions, 1);
        proxy.set(Weather::Fair);
        cache.store_below(0..1, MIB);
        assert_eq!(hits(&cache, 0..1), 1);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn a_service_that_hangs_delays_nobody_beyond_the_deadline() {
    watched(|| {
        let Some(service) = Service::shared("a_service_that_hangs_delays_nobody_beyond_the_deadline") else { return };
        let proxy = TcpProxy::start(service.address, "GET ");
        let url = service.url_at(proxy.address, "&absent_ms=0&retries=0&list=on");
        let first = Cache::open(64 * MIB, &[&url], patient(100));
        first.store_below(0..8, KIB);
        first.node.close();
        let cache = Cache::open(64 * MIB, &[&url], patient(1));
        until("the listing", || cache.stats().l2_objects == 8);
        proxy.set(Weather::Still);
        // Loads of what is known, a lookup of what is not, and stores: each ends once.
        assert_eq!(hits(&cache, 0..8), 0);
        assert_eq!(hits(&cache, 100..108), 0);
        cache.store(200..208, KIB);
        cache.node.flush(WATCHDOG_MS).unwrap();
        let stats = cache.stats();
        assert_eq!((stats.stores, stats.stores_dropped), (0, 8));
        cache.at_rest();
        proxy.set(Weather::Fair);
        // It is asked again once it has answered, or its requests were given up.
        until("hits", || hits(&cache, 0..8) == 8);
        proxy.set(Weather::Still);
        let session = cache.session();
        let job = cache.submit(session, 300..308, PrefetchRequest::default());
        // Closes although the job's question hangs.
        cache.node.close();
        let _ = job;
    });
}

#[test]
fn a_service_that_dies_is_a_miss_and_another_takes_its_place() {
    watched(|| {
        let test = "a_service_that_dies_is_a_miss_and_another_takes_its_place";
        let (Some(mut service), Some(other)) = (Service::start(test), Service::shared(test)) else { return };
        let cache = Cache::open(64 * MIB, &[&service.url("&retries=0")], patient(100));
        cache.store_below(0..8, KIB);
        service.kill();
        assert_eq!((hits(&cache, 0..8), hits(&cache, 100..108)), (0, 0));
        cache.store(8..16, KIB);
        cache.node.flush(WATCHDOG_MS).unwrap();
        assert_eq!((cache.stats().stores, cache.stats().stores_dropped), (8, 8));
        let trouble = cache.node.backend_reports()[0].trouble.clone().unwrap_or_default();
        assert!(trouble.contains("cannot be reached (Connection refused"), "{trouble}");
        // Another takes its place.
        cache.node.remove_backend(1).unwrap();
        cache.node.add_backend(&other.url("")).unwrap();
        cache.store_below(16..24, KIB);
        assert_eq!(hits(&cache, 16..24), 8);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn a_service_that_forgot_all_is_written_again() {
    watched(|| {
        let Some(service) = Service::shared("a_service_that_forgot_all_is_written_again") else { return };
        let url = service.url("");
        let cache = Cache::open(64 * MIB, &[&url], patient(100));
        cache.store(0..8, KIB);
        cache.node.flush(WATCHDOG_MS).unwrap();
        for name in service.names(&url) {
            assert_eq!(service.ask("DELETE", &format!("/kvkeep/{name}"), b"").0, 204);
        }
        cache.node.clear(0, true).unwrap();
        assert_eq!(hits(&cache, 0..8), 0, "it was taken for present, and is a miss");
        assert_eq!(cache.stats().corruptions, 0);
        cache.store_below(0..8, KIB);
        assert_eq!(service.names(&url).len(), 8);
        assert_eq!(hits(&cache, 0..8), 8);
        cache.node.close();
    });
}
