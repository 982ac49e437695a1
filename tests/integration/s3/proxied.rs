//! A service behind a proxy that harms what passes: every request is answered once, and no wrong byte reaches a reader.
//!
//! `KVKEEP_PROXY_ROUNDS` says how often.

use std::time::Duration;

use kvkeep::cache::Cache as _;

use super::round_trip::hits;
use crate::promises::cache::{Cache, KIB, MIB, WATCHDOG_MS, fill, key, until, views, watched};
use crate::support::proxy::{Mischief, Proxy};
use crate::support::random::{Random, rounds, seed};
use crate::support::s3::Service;

/// Stores an object, unless it is there or on its way.
fn put(cache: &Cache, number: u32, size: u64) {
    let session = cache.session();
    let mut out = views(1);
    cache.node.reserve_write(session, &[key(number)], &[size], false, &mut out).unwrap();
    if out[0].status == 0 {
        fill(&out[0], number);
        cache.node.finish_write(session, &[key(number)], None).unwrap();
    }
    cache.node.end_session(session).unwrap();
}

/// What one thread asks for, a round at a time.
fn ask(cache: &Cache, mut random: Random, rounds: u64) -> u64 {
    let mut found = 0;
    for _ in 0..rounds {
        let first = random.below(24) as u32;
        match random.below(8) {
            // Some have a size at which they go in parts.
            0..3 => put(cache, first, if first == 0 { 6 * MIB } else { 32 * KIB }),
            3 => drop(cache.node.delete(cache.space, &[key(first)], None)),
            4 => drop(cache.node.clear(cache.space, false)),
            _ => found += u64::from(hits(cache, first..first + 4)),
        }
    }
    found
}

fn harmed(test: &'static str, mischief: Mischief, rounds: u64) {
    watched(move || {
        let Some(service) = Service::shared(test) else { return };
        let seed = seed("KVKEEP_PROXY_SEED");
        let proxy = Proxy::start(service.address.port(), seed);
        let address = ([127, 0, 0, 1], proxy.port).into();
        let url = service.url_at(address, "&part_size=5MiB&retries=1&stall_ms=2000&absent_ms=20");
        let cache = Cache::open(64 * MIB, &[&url], |config| config.backend_timeout = Duration::from_secs(3));
        proxy.set(mischief);
        let found: u64 = std::thread::scope(|scope| {
            let threads = [1, 2, 3].map(|thread| {
                scope.spawn({
                    let cache = &cache;
                    move || ask(cache, Random(seed ^ thread), rounds)
                })
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(proxy.done() > 0, "nothing happened");
        eprintln!("{mischief:?}: {} pieces were harmed, {found} objects were found", proxy.done());
        proxy.set(Mischief::default());
        let stored = || {
            let before = cache.stats().stores;
            cache.store(1000..1001, KIB);
            cache.node.flush(WATCHDOG_MS).unwrap();
            cache.node.clear(0, true).unwrap();
            cache.stats().stores > before
        };
        until("a store that works", stored);
        assert_eq!(hits(&cache, 1000..1001), 1);
        cache.at_rest();
        assert_eq!(cache.stats().l2_pins, 0);
        cache.node.close();
    });
}

fn default_rounds() -> u64 {
    rounds("KVKEEP_PROXY_ROUNDS", 100)
}

#[test]
fn p4_connections_that_are_cut_and_delayed_answer_everything() {
    let mischief = Mischief { delay: 20, cut: 100, truncate: 100, ..Mischief::default() };
    harmed("s3: p4_connections_that_are_cut_and_delayed_answer_everything", mischief, default_rounds());
}

#[test]
fn p7_bytes_that_change_their_order_reach_nobody() {
    let mischief = Mischief { reorder: 40, ..Mischief::default() };
    harmed("s3: p7_bytes_that_change_their_order_reach_nobody", mischief, default_rounds());
}

#[test]
fn p4_a_proxy_that_swallows_what_comes_is_given_up() {
    let mischief = Mischief { swallow: 60, delay: 50, ..Mischief::default() };
    harmed("s3: p4_a_proxy_that_swallows_what_comes_is_given_up", mischief, default_rounds() / 2);
}
