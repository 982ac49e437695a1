//! Values are read from replicas. A replica that lags, dies or hangs costs nobody an object, and no change goes to one.

use std::sync::mpsc;

use kvkeep::error::{KVKEEP_ERR_PERMISSION, KVKEEP_ERR_TIMEOUT};
use kvkeep::l2::{Backend, Found, Health, Reply, Stored};
use rustix::process::Signal;

use super::cluster::Cluster;
use super::sentinel::{Sentinel, until_failed_over};
use crate::support::fs::{key, until};
use crate::support::redis::*;

const LENGTH: usize = 50_000;

fn replica_of(master: &Server) -> Option<Server> {
    let replica =
        Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string(), "--repl-diskless-sync-delay", "0"])?;
    until("the replica", || replica.ask(&["INFO", "replication"]).contains("master_link_status:up"));
    Some(replica)
}

/// Loads an object until each of these servers was asked for it, then forgets how often they were.
fn until_read(backend: &dyn Backend, number: u64, replicas: &[&Server]) {
    until("reads at the replicas", || {
        load(backend, number, LENGTH).unwrap();
        replicas.iter().all(|replica| replica.calls("get") > 0)
    });
    replicas.iter().for_each(|replica| drop(replica.ask(&["CONFIG", "RESETSTAT"])));
}

/// Stores objects, and waits until so many replicas have them.
fn stored(backend: &dyn Backend, master: &Server, replicas: usize, numbers: std::ops::Range<u64>) {
    numbers.for_each(|number| assert_eq!(store(backend, number, LENGTH).unwrap(), Stored::Written));
    let count = replicas.to_string();
    until("the replicas to have all", || master.ask(&["WAIT", &count, "1000"]).starts_with(&format!(":{count}")));
}

fn all_present(backend: &dyn Backend, numbers: std::ops::Range<u64>) -> bool {
    let numbers: Vec<u64> = numbers.collect();
    lookup(backend, &numbers, false)
        .is_ok_and(|found| found.iter().all(|&found| found == Found::Present(LENGTH as u64)))
}

fn all_loaded(answers: &mpsc::Receiver<Loaded>, count: usize) {
    for _ in 0..count {
        answer(answers).2.unwrap();
    }
}

fn load_all(backend: &dyn Backend, numbers: std::ops::Range<u64>) {
    let objects: Vec<(u64, usize)> = numbers.map(|number| (number, LENGTH)).collect();
    let answers = send_loads(backend, &objects);
    all_loaded(&answers, objects.len());
    objects.iter().take(5).for_each(|&(number, length)| load(backend, number, length).unwrap());
}

fn notes(backend: &dyn Backend) -> String {
    match backend.health() {
        Health::Noted(note) => note,
        health => format!("{health:?}"),
    }
}

/// No change was sent there: it would have been refused.
fn refused_nothing(replica: &Server) {
    let told = replica.ask(&["INFO", "errorstats"]);
    assert!(!told.contains("READONLY") && !told.contains("MOVED"), "{told}");
}

#[test]
fn values_come_from_the_replicas_and_changes_go_to_the_master() {
    let Some(master) = Server::start(&[]) else { return };
    let (Some(one), Some(two)) = (replica_of(&master), replica_of(&master)) else { return };
    let backend = master.open("?read_from=replica&ttl=1h");
    stored(&*backend, &master, 2, 0..60);
    until_read(&*backend, 0, &[&one, &two]);
    master.ask(&["CONFIG", "RESETSTAT"]);
    assert!(all_present(&*backend, 0..60));
    load_all(&*backend, 0..60);
    let read = [master.calls("get"), one.calls("get"), two.calls("get")];
    assert!(read[0] == 0 && read[1] >= 30 && read[2] >= 30 && read[1] + read[2] == 65, "{read:?}");
    assert_eq!(backend.health(), Health::Good);
    // The replicas would refuse these.
    assert_eq!(store(&*backend, 0, LENGTH).unwrap(), Stored::Already);
    backend.touch(&[key(1), key(2)]);
    assert_eq!(delete(&*backend, &[3, 4, 5]).unwrap(), 3);
    assert_eq!(lookup(&*backend, &[3, 4, 6], false).unwrap()[..2], [Found::Absent; 2]);
    assert_eq!(store(&*backend, 3, LENGTH).unwrap(), Stored::Written);
    [&one, &two].into_iter().for_each(refused_nothing);
}

#[test]
fn a_value_that_a_replica_has_not_comes_from_the_master() {
    let Some(master) = Server::start(&[]) else { return };
    let Some(replica) = replica_of(&master) else { return };
    let backend = master.open("?read_from=replica&part=1MiB");
    stored(&*backend, &master, 1, 0..10);
    let (parted, long) = (100, (2 << 20) + 5);
    assert_eq!(store(&*backend, parted, long).unwrap(), Stored::Written);
    until_read(&*backend, 0, &[&replica]);
    // One that lags or is wrong in every way: without values, with parts that are short or missing, and with other values.
    replica.ask(&["CONFIG", "SET", "replica-read-only", "no"]);
    let part = replica.keys().into_iter().find(|name| name.contains("}/")).unwrap();
    for command in [&["SETRANGE", &part, "2000000", "x"][..], &["DEL", &part], &["FLUSHALL"]] {
        replica.ask(command);
        load(&*backend, parted, long).unwrap();
    }
    assert!(all_present(&*backend, 0..10));
    load_all(&*backend, 0..10);
    for name in master.keys() {
        replica.ask(&["SET", &name, "another value"]);
    }
    load_all(&*backend, 0..10);
    load(&*backend, parted, long).unwrap();
    for name in master.keys() {
        replica.ask(&["DEL", &name]);
        replica.ask(&["RPUSH", &name, "no value"]);
    }
    load_all(&*backend, 0..10);
    assert!(replica.calls("get") > 30 && master.calls("get") > 30);
    // What the master has not is a miss, whatever the replica has.
    replica.ask(&["SET", "kvkeep:x", "1"]);
    assert_eq!(lookup(&*backend, &[500], true).unwrap(), [Found::Absent]);
}

#[test]
fn p4_a_replica_that_dies_or_hangs_under_load_costs_nothing() {
    let Some(master) = Server::start(&[]) else { return };
    let Some(mut replica) = replica_of(&master) else { return };
    let backend = master.open("?read_from=replica&timeout_ms=500&connect_ms=500");
    stored(&*backend, &master, 1, 0..40);
    for _ in 0..2 {
        until_read(&*backend, 0, &[&replica]);
        let objects: Vec<(u64, usize)> = (0..40).map(|number| (number, LENGTH)).collect();
        let under_way: Vec<_> = (0..20).map(|_| send_loads(&*backend, &objects)).collect();
        replica.kill();
        for answers in under_way {
            all_loaded(&answers, objects.len());
        }
        load_all(&*backend, 0..40);
        until("a note", || notes(&*backend).contains("replica"));
        assert_eq!(store(&*backend, 1, LENGTH).unwrap(), Stored::Already);
        replica.restart();
    }
    until_read(&*backend, 0, &[&replica]);
    replica.signal(Signal::STOP);
    load_all(&*backend, 0..40);
    replica.signal(Signal::CONT);
    until_read(&*backend, 0, &[&replica]);
    until("an end of the note", || backend.health() == Health::Good);
    // Close has all requests answered, also those that a replica owes.
    replica.signal(Signal::STOP);
    let answers = send_loads(&*backend, &[(1, LENGTH); 20]);
    backend.close();
    assert_eq!(answers.iter().take(20).count(), 20);
    replica.signal(Signal::CONT);
}

#[test]
fn reading_goes_on_while_the_master_is_away() {
    let Some(mut master) = Server::start(&[]) else { return };
    let Some(replica) = replica_of(&master) else { return };
    let backend = master.open("?read_from=replica");
    stored(&*backend, &master, 1, 0..20);
    until_read(&*backend, 0, &[&replica]);
    master.kill();
    until("lookups", || all_present(&*backend, 0..20));
    load_all(&*backend, 0..20);
    assert!(store(&*backend, 50, LENGTH).is_err() && delete(&*backend, &[1]).is_err());
    assert!(matches!(backend.health(), Health::Bad(_)));
    refused_nothing(&replica);
}

#[test]
fn a_space_is_forgotten_when_the_replicas_have_forgotten_it() {
    let Some(master) = Server::start(&[]) else { return };
    // The replica comes when the servers have been asked already.
    let backend = master.open("?read_from=replica&timeout_ms=1000");
    let Some(replica) = replica_of(&master) else { return };
    stored(&*backend, &master, 1, 0..20);
    let sweep = || {
        let (to, answers) = mpsc::channel();
        backend.sweep(Some(key(0).space), Reply::new(move |result| to.send(result).unwrap_or_default()));
        answer(&answers)
    };
    replica.signal(Signal::STOP);
    let error = sweep().unwrap_err();
    assert!(error.status == KVKEEP_ERR_TIMEOUT && error.message.contains("0 of 1 replicas"), "{error}");
    replica.signal(Signal::CONT);
    until("the replica to follow", || sweep().is_ok());
    assert!(replica.keys().is_empty());
}

#[test]
fn the_replicas_of_a_cluster_are_read_from() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    let backend = open(&cluster.url("?read_from=replica")).unwrap();
    let of_first: Vec<u64> = (0..200).filter(|&number| cluster.place(number).1 == 0).take(20).collect();
    let of_others: Vec<u64> = (0..200).filter(|&number| cluster.place(number).1 != 0).take(20).collect();
    let all = || of_first.iter().chain(&of_others);
    all().for_each(|&number| assert_eq!(store(&*backend, number, LENGTH).unwrap(), Stored::Written));
    cluster.servers[0].ask(&["WAIT", "1", "10000"]);
    until_read(&*backend, of_first[0], &[&cluster.servers[3]]);
    cluster.servers[0].ask(&["CONFIG", "RESETSTAT"]);
    all().for_each(|&number| load(&*backend, number, LENGTH).unwrap());
    assert_eq!([cluster.servers[0].calls("get"), cluster.servers[3].calls("get")], [0, 20]);
    assert_eq!(delete(&*backend, &of_first[..2]).unwrap(), 2);
    refused_nothing(&cluster.servers[3]);
    cluster.servers[3].kill();
    all().skip(2).for_each(|&number| load(&*backend, number, LENGTH).unwrap());
    cluster.servers[3].restart();
    until_read(&*backend, of_first[5], &[&cluster.servers[3]]);
    // It takes over and is read as a master.
    let numbers = &of_first[2..];
    cluster.servers[0].kill();
    until("the failover", || numbers.iter().all(|&number| store(&*backend, number, LENGTH).is_ok()));
    numbers.iter().for_each(|&number| load(&*backend, number, LENGTH).unwrap());
}

#[test]
fn replicas_of_a_master_that_a_sentinel_names_are_read_from() {
    let Some(mut master) = Server::start(&[]) else { return };
    let Some(replica) = replica_of(&master) else { return };
    let sentinel = Sentinel::start(&master);
    let url = format!("redis+sentinel://127.0.0.1:{}/main?read_from=replica", sentinel.port);
    until("the Sentinel", || open(&url).is_ok());
    let backend = open(&url).unwrap();
    stored(&*backend, &master, 1, 0..20);
    until_read(&*backend, 0, &[&replica]);
    master.ask(&["CONFIG", "RESETSTAT"]);
    load_all(&*backend, 0..20);
    assert_eq!([master.calls("get"), replica.calls("get")], [0, 25]);
    sentinel.until_it_knows_the_replica();
    master.kill();
    until("reads while the master is away", || all_present(&*backend, 0..20));
    load_all(&*backend, 0..20);
    until_failed_over(&sentinel, || store(&*backend, 100, LENGTH).is_ok());
    load_all(&*backend, 0..20);
    until("a note", || notes(&*backend).contains("no replica is connected"));
}

#[test]
fn a_user_who_may_not_ask_for_replicas_is_told() {
    let Some(server) = Server::start(&[]) else { return };
    server.ask(&["ACL", "SETUSER", "kv", "on", ">s3cret", "~*", "+@all", "-role"]);
    let error = open(&format!("redis://kv:s3cret@127.0.0.1:{}?read_from=replica", server.port)).map(drop).unwrap_err();
    assert!(error.status == KVKEEP_ERR_PERMISSION && error.message.contains("+role"), "{error}");
}
