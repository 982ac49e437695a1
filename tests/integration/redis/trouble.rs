//! Servers that die, come back, hang, or are not what they were: requests are answered once, and never with wrong bytes.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use kvkeep::error::{KVKEEP_ERR_CORRUPT, KVKEEP_ERR_IO, KVKEEP_ERR_TIMEOUT};
use kvkeep::l2::{Backend, Found, Health, Stored};
use rustix::process::Signal;

use crate::support::fs::{WATCHDOG, until};
use crate::support::redis::*;

const LENGTH: usize = 100_000;

fn is_bad(backend: &dyn Backend) -> bool {
    matches!(backend.health(), Health::Bad(_))
}

/// Stores, looks up, loads and deletes until `over`; counts the loads that worked. Every request is answered, and no bytes are wrong.
pub fn busy(backend: &dyn Backend, thread: u64, over: &AtomicBool, loaded: &AtomicU64) {
    let mut round = 0;
    while !over.load(Ordering::Relaxed) {
        let number = thread * 1000 + round % 20;
        round += 1;
        let _ = store(backend, number, LENGTH);
        if let Ok(found) = lookup(backend, &[number, number + 500], false) {
            assert_eq!(found[1], Found::Absent);
        }
        match load(backend, number, LENGTH) {
            Ok(()) => drop(loaded.fetch_add(1, Ordering::Relaxed)),
            Err(error) => assert_ne!(error.status, KVKEEP_ERR_CORRUPT, "{error}"),
        }
        if round % 7 == 0 {
            let _ = delete(backend, &[number]);
        }
    }
}

#[test]
fn p4_a_server_killed_under_load_is_used_again_when_it_is_back() {
    let Some(mut server) = Server::start(&[]) else { return };
    let backend = server.open("");
    let (over, loaded) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let threads: Vec<_> = (1..=4)
        .map(|thread| {
            let (backend, over, loaded) = (backend.clone(), over.clone(), loaded.clone());
            std::thread::spawn(move || busy(&*backend, thread, &over, &loaded))
        })
        .collect();
    for _ in 0..3 {
        let before = loaded.load(Ordering::Relaxed);
        until("loads", || loaded.load(Ordering::Relaxed) > before + 50);
        server.kill();
        until("trouble", || is_bad(&*backend));
        server.restart();
        until("an end of it", || !is_bad(&*backend));
    }
    over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(store(&*backend, 1, LENGTH).unwrap(), Stored::Written);
    load(&*backend, 1, LENGTH).unwrap();
}

#[test]
fn requests_to_a_server_that_is_away_fail_at_once() {
    let Some(mut server) = Server::start(&[]) else { return };
    let backend = server.open("");
    store(&*backend, 1, LENGTH).unwrap();
    server.kill();
    until("trouble", || is_bad(&*backend));
    let errors = [store(&*backend, 2, 10).unwrap_err(), load(&*backend, 1, LENGTH).unwrap_err()];
    for error in
        errors.into_iter().chain([lookup(&*backend, &[1], true).unwrap_err(), delete(&*backend, &[1]).unwrap_err()])
    {
        assert_eq!(error.status, KVKEEP_ERR_IO);
        assert!(error.message.contains(&server.port.to_string()), "{error}");
    }
    // At first it is the connection that broke; then it is the server that takes none.
    let unreachable = |why: &str| why.contains(&server.port.to_string()) && why.contains("reachable");
    until("a reason", || matches!(backend.health(), Health::Bad(why) if unreachable(&why)));
    let began = Instant::now();
    backend.close();
    assert!(began.elapsed() < WATCHDOG);
}

#[test]
fn connections_that_the_server_ends_are_made_anew_and_nothing_is_missed() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("");
    store(&*backend, 1, LENGTH).unwrap();
    for _ in 0..20 {
        server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Present(LENGTH as u64)]);
        load(&*backend, 1, LENGTH).unwrap();
        assert_eq!(store(&*backend, 1, LENGTH).unwrap(), Stored::Already);
    }
}

#[test]
fn a_server_that_hangs_is_given_up_and_taken_again() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("?timeout_ms=200&connect_ms=200");
    store(&*backend, 1, LENGTH).unwrap();
    server.signal(Signal::STOP);
    let loads = send_loads(&*backend, &[(1, LENGTH); 20]);
    let lookups = send_lookup(&*backend, &[1], true);
    let stored = send_store(&*backend, 2, LENGTH);
    for _ in 0..20 {
        assert_eq!(answer(&loads).2.unwrap_err().status, KVKEEP_ERR_TIMEOUT);
    }
    assert!(answer(&lookups).is_err() && answer(&stored).is_err());
    until("trouble", || is_bad(&*backend));
    server.signal(Signal::CONT);
    until("an end of the trouble", || !is_bad(&*backend));
    load(&*backend, 1, LENGTH).unwrap();
    // Close returns, whatever the server owes.
    server.signal(Signal::STOP);
    let loads = send_loads(&*backend, &[(1, LENGTH); 20]);
    backend.close();
    assert_eq!(loads.iter().take(20).filter(|(_, _, result)| result.is_err()).count(), 20);
    server.signal(Signal::CONT);
}

#[test]
fn p4_a_proxy_that_answers_html_in_its_place_makes_misses() {
    let Some(mut server) = Server::start(&[]) else { return };
    let backend = server.open("?connect_ms=1000");
    store(&*backend, 1, LENGTH).unwrap();
    server.kill();
    let (over, listener) = (Arc::new(AtomicBool::new(false)), TcpListener::bind(("127.0.0.1", server.port)).unwrap());
    let ends = over.clone();
    let proxy = std::thread::spawn(move || {
        while !ends.load(Ordering::Acquire) {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<html></html>");
        }
    });
    until("the cause", || matches!(backend.health(), Health::Bad(why) if why.contains("HTTP/1.1 502")));
    let errors = [load(&*backend, 1, LENGTH).unwrap_err(), store(&*backend, 2, 10).unwrap_err()];
    for error in errors.into_iter().chain([lookup(&*backend, &[1], true).unwrap_err()]) {
        assert_eq!(error.status, KVKEEP_ERR_IO, "{error}");
    }
    over.store(true, Ordering::Release);
    drop(TcpStream::connect(("127.0.0.1", server.port)));
    proxy.join().unwrap();
    server.restart();
    until("an end of the trouble", || backend.health() == Health::Good);
    assert_eq!(store(&*backend, 1, LENGTH).unwrap(), Stored::Written);
    load(&*backend, 1, LENGTH).unwrap();
}

#[test]
fn a_replica_refuses_stores_and_gives_what_it_has() {
    let Some(master) = Server::start(&[]) else { return };
    let Some(replica) = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]) else { return };
    store(&*master.open(""), 1, LENGTH).unwrap();
    let backend = replica.open("");
    until("the replica to have it", || lookup(&*backend, &[1], true).is_ok_and(|found| found[0] != Found::Absent));
    load(&*backend, 1, LENGTH).unwrap();
    let error = store(&*backend, 2, LENGTH).unwrap_err();
    assert!(error.message.contains("READONLY") && error.message.contains("name the master"), "{error}");
    load(&*backend, 1, LENGTH).unwrap();
    // Promoted, as after a failover, it takes stores.
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(store(&*backend, 2, LENGTH).unwrap(), Stored::Written);
}

#[test]
fn a_server_that_cannot_serve_now_is_left_alone_for_a_moment() {
    let Some(master) = Server::start(&[]) else { return };
    let mut arguments = vec!["--replica-serve-stale-data", "no", "--replicaof", "127.0.0.1"];
    let nobody = free_port().to_string();
    arguments.push(&nobody);
    let Some(replica) = Server::start(&arguments) else { return };
    let backend = replica.open("");
    let error = lookup(&*backend, &[1], true).unwrap_err();
    assert!(error.message.contains("MASTERDOWN"), "{error}");
    let Health::Bad(why) = backend.health() else { panic!("good") };
    assert!(why.contains("MASTERDOWN") && why.contains("wait"), "{why}");
    assert!(load(&*backend, 1, LENGTH).unwrap_err().message.contains("MASTERDOWN"));
    store(&*master.open(""), 1, LENGTH).unwrap();
    replica.ask(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    until("the replica to serve", || load(&*backend, 1, LENGTH).is_ok());
    assert_eq!(backend.health(), Health::Good);
}
