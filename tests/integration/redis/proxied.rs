//! A server behind a proxy that harms what passes: every request is answered once, and no wrong byte reaches a reader.
//!
//! `KVKEEP_PROXY_ROUNDS` says how often.

use std::sync::Arc;

use kvkeep::error::{KVKEEP_ERR_CORRUPT, KVKEEP_ERR_INTERNAL};
use kvkeep::l2::{Found, Stored};

use crate::support::fs::{key, until};
use crate::support::proxy::{Mischief, Proxy};
use crate::support::random::{Random, rounds, seed};
use crate::support::redis::*;

/// Lengths of objects by their numbers; the last ones are in parts.
fn length(number: u64) -> usize {
    [0, 77, 4096, 100_000, 1 << 20, 2_500_000][number as usize % 6]
}

/// What one thread asks for, a round at a time; it counts what worked.
fn ask(backend: &dyn kvkeep::l2::Backend, seed: u64, rounds: u64) -> u64 {
    let mut random = Random(seed);
    let mut worked = 0;
    for _ in 0..rounds {
        let number = random.below(24);
        match random.below(8) {
            0..3 => worked += u64::from(store(backend, number, length(number)).is_ok()),
            3 => drop(delete(backend, &[number])),
            4 => {
                let numbers: Vec<u64> = (0..24).collect();
                for (found, number) in lookup(backend, &numbers, false).into_iter().flatten().zip(numbers) {
                    assert!([Found::Absent, Found::Present(length(number) as u64)].contains(&found), "{found:?}");
                }
            }
            _ => match load(backend, number, length(number)) {
                Ok(()) => worked += 1,
                Err(error) if error.status == KVKEEP_ERR_CORRUPT => {
                    // As the library does with bytes that are proved wrong.
                    backend.quarantine(key(number));
                }
                Err(error) => assert_ne!(error.status, KVKEEP_ERR_INTERNAL, "{error}"),
            },
        }
    }
    worked
}

/// Threads ask through a proxy that does `mischief`; then all is well again.
fn harmed(mischief: Mischief, rounds: u64) {
    let Some(server) = Server::start(&[]) else { return };
    let seed = seed("KVKEEP_PROXY_SEED");
    let proxy = Proxy::start(server.port, seed);
    let url = format!("redis://127.0.0.1:{}?part=1MiB&timeout_ms=250&connect_ms=1000", proxy.port);
    let backend = open(&url).unwrap();
    proxy.set(mischief);
    let worked: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn({
                    let backend = &backend;
                    move || ask(&**backend, seed ^ thread, rounds)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(proxy.done() > 0, "nothing happened");
    eprintln!("{mischief:?}: {} pieces were harmed, {worked} of {} requests worked", proxy.done(), 4 * rounds);
    proxy.set(Mischief::default());
    assert_eq!(backend.usage().pins, 0);
    // An object that was never stored before, once a connection is up again.
    until("a store that works", || store(&*backend, 1_000_000, 1000).is_ok());
    assert_eq!(store(&*backend, 1_000_000, 1000).unwrap(), Stored::Already);
    backend.close();
    assert_eq!(Arc::strong_count(&backend), 1);
}

fn default_rounds() -> u64 {
    rounds("KVKEEP_PROXY_ROUNDS", 120)
}

#[test]
fn p4_connections_that_are_cut_and_delayed_answer_everything() {
    harmed(Mischief { delay: 20, cut: 100, truncate: 100, ..Mischief::default() }, default_rounds());
}

#[test]
fn p7_bytes_that_change_their_order_reach_nobody() {
    harmed(Mischief { reorder: 40, ..Mischief::default() }, default_rounds());
}

#[test]
fn p4_a_proxy_that_swallows_what_comes_is_given_up() {
    harmed(Mischief { swallow: 400, delay: 50, ..Mischief::default() }, default_rounds() / 4);
}
