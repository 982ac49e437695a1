//! What is stored on a server is found and loaded, byte for byte, and nothing else is.

use std::sync::Arc;
use std::sync::mpsc;

use kvkeep::error::{KVKEEP_ERR_CLOSED, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Status};
use kvkeep::key::{ObjectKey, SpaceTag};
use kvkeep::l2::object_header::Header;
use kvkeep::l2::{Change, Found, Reply, StoreRequest, Stored};

use crate::support::fs::{LAYOUT, SPACE, key, payload};
use crate::support::redis::*;

const LENGTHS: [usize; 9] = [0, 1, 32, 160, 4097, 100_000, 1 << 20, (3 << 20) + 5, 9 << 20];
const MIB: usize = 1 << 20;

fn status<T>(result: kvkeep::error::Result<T>) -> Status {
    result.err().unwrap().status
}

fn present(length: usize) -> Found {
    Found::Present(length as u64)
}

/// Every size is stored by one backend and loaded by another.
pub fn every_size_comes_back(server: &Server, url: &str) {
    let (one, two) = (open(url).unwrap(), open(url).unwrap());
    let numbers: Vec<u64> = (0..LENGTHS.len() as u64).collect();
    assert!(lookup(&*two, &numbers, false).unwrap().iter().all(|found| *found == Found::Absent));
    let stores: Vec<_> = numbers.iter().map(|&number| send_store(&*one, number, LENGTHS[number as usize])).collect();
    stores.iter().for_each(|stored| assert_eq!(answer(stored).unwrap(), Stored::Written));
    let expected: Vec<Found> = LENGTHS.iter().map(|&length| present(length)).collect();
    assert_eq!(lookup(&*two, &numbers, true).unwrap(), expected);
    for (&number, length) in numbers.iter().zip(LENGTHS) {
        load(&*two, number, length).unwrap();
        assert_eq!(store(&*two, number, length).unwrap(), Stored::Already);
    }
    // All at once, over all connections.
    let objects: Vec<(u64, usize)> = numbers.iter().copied().zip(LENGTHS).collect();
    let loads = send_loads(&*one, &objects);
    for _ in &objects {
        let (index, buffer, result) = answer(&loads);
        let (number, length) = objects[index as usize];
        result.unwrap().verify(&key(number), Some(&LAYOUT), buffer.bytes(), true).unwrap();
        assert!(buffer.bytes() == payload(number, length).bytes());
    }
    assert_eq!(delete(&*two, &numbers).unwrap(), numbers.len() as u64);
    assert_eq!(delete(&*two, &numbers).unwrap(), 0);
    assert!(lookup(&*one, &numbers, false).unwrap().iter().all(|found| *found == Found::Absent));
    assert_eq!((one.usage().pins, two.usage().pins), (0, 0));
    assert!(server.keys().is_empty(), "{:?}", server.keys());
}

#[test]
fn every_size_comes_back_over_tcp_and_over_a_unix_socket() {
    let Some(server) = Server::start(&[]) else { return };
    every_size_comes_back(&server, &server.url(""));
    every_size_comes_back(&server, &server.url("?connections=1&depth=1"));
    every_size_comes_back(&server, &format!("redis+unix://{}?connections=2", server.socket().display()));
    every_size_comes_back(&server, &server.url("?part=1MiB"));
    every_size_comes_back(&server, &server.url("?part=1MiB&ttl=1h"));
}

#[test]
fn databases_and_prefixes_are_apart() {
    let Some(server) = Server::start(&[]) else { return };
    let [here, there] = ["/3?prefix=a:", "?db=3&prefix=b:"].map(|rest| server.open(rest));
    store(&*here, 1, 100).unwrap();
    assert_eq!(lookup(&*there, &[1], true).unwrap(), [Found::Absent]);
    assert_eq!(lookup(&*server.open("?prefix=a:"), &[1], true).unwrap(), [Found::Absent]);
    assert_eq!(lookup(&*server.open("/3?prefix=a:"), &[1], true).unwrap(), [present(100)]);
    assert!(server.keys().is_empty());
}

#[test]
fn an_object_in_parts_is_found_whole_or_not_at_all() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("?part=1MiB");
    let length = 3 * MIB + 7;
    store(&*backend, 1, length).unwrap();
    let keys = server.keys();
    assert_eq!(keys.len(), 5, "a manifest and four parts");
    for name in &keys {
        assert!(server.ask(&["TTL", name]).starts_with(":-1"), "{name} ends by itself");
    }
    load(&*backend, 1, length).unwrap();
    // Parts of a writer that died before it wrote the manifest are not found, and end by themselves.
    server.ask(&["UNLINK", &keys[3]]);
    assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Absent]);
    assert_eq!(status(load(&*backend, 1, length)), KVKEEP_ERR_NOT_FOUND);
    // It is stored anew, and what is left of the old one goes.
    assert_eq!(store(&*backend, 1, length).unwrap(), Stored::Written);
    let new = server.keys();
    assert_eq!((new.len(), new[0] == keys[0]), (5, true));
    assert!(new[1..].iter().all(|part| !keys.contains(part)));
    // A part that is shorter is as good as none.
    server.ask(&["SET", &new[4], "x"]);
    assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Absent]);
    assert_eq!(status(load(&*backend, 1, length)), KVKEEP_ERR_NOT_FOUND);
    // A backend with another bound reads it as well, and replaces it.
    let whole = server.open("");
    assert_eq!(store(&*whole, 1, length).unwrap(), Stored::Written);
    assert_eq!(server.keys(), [keys[0].clone()]);
    load(&*backend, 1, length).unwrap();
}

#[test]
fn a_time_to_live_begins_anew_with_each_use() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("?ttl=1h");
    store(&*backend, 1, 100).unwrap();
    let name = server.keys().remove(0);
    let lives = || server.ask(&["TTL", &name]).lines().next().unwrap()[1..].parse::<i64>().unwrap();
    assert!((3590..=3600).contains(&lives()), "{}", lives());
    server.ask(&["EXPIRE", &name, "100"]);
    assert_eq!(store(&*backend, 1, 100).unwrap(), Stored::Already);
    assert!(lives() > 3590);
    server.ask(&["EXPIRE", &name, "100"]);
    backend.touch(&[key(1), key(2)]);
    // Uses are sent before what is asked after them.
    lookup(&*backend, &[1], true).unwrap();
    lookup(&*backend, &[1], true).unwrap();
    assert!(lives() > 3590);
    server.ask(&["PEXPIRE", &name, "0"]);
    assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Absent]);
}

#[test]
fn a_thousand_keys_are_looked_up_in_order_and_any_order() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("");
    let stores: Vec<_> =
        (0..1024).filter(|number| *number != 700).map(|number| send_store(&*backend, number, 64)).collect();
    stores.iter().for_each(|stored| assert_eq!(answer(stored).unwrap(), Stored::Written));
    let numbers: Vec<u64> = (0..1024).collect();
    let before = server.calls("getrange");
    let any = lookup(&*backend, &numbers, false).unwrap();
    assert_eq!(server.calls("getrange") - before, 1024);
    assert_eq!(any.iter().filter(|found| **found == present(64)).count(), 1023);
    assert_eq!(any[700], Found::Absent);
    let prefix = lookup(&*backend, &numbers, true).unwrap();
    assert!(prefix[..700].iter().all(|found| *found == present(64)));
    assert!(prefix[700..].iter().all(|found| *found == Found::Absent));
    for (index, buffer, result) in send_loads(&*backend, &[(1, 64); 500]).iter().take(500) {
        assert!(result.is_ok() && buffer.bytes() == payload(1, 64).bytes(), "{index}");
    }
}

#[test]
fn p7_what_another_program_stored_under_our_key_is_a_miss() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("");
    store(&*backend, 1, 500).unwrap();
    let name = server.keys().remove(0);
    for command in [&["SET", &name, "hello"][..], &["DEL", &name], &["RPUSH", &name, "a", "b"]] {
        server.ask(command);
        assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Absent], "{command:?}");
        assert_eq!(status(load(&*backend, 1, 500)), KVKEEP_ERR_NOT_FOUND, "{command:?}");
    }
    assert!(matches!(backend.health(), kvkeep::l2::Health::Noted(why) if why.contains("prefix=")));
    // As many bytes as the object has, but not its: the header tells.
    server.ask(&["DEL", &name]);
    server.ask(&["SET", &name, &"x".repeat(660)]);
    assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Absent]);
    assert!(load(&*backend, 1, 500).is_err());
    assert_eq!(store(&*backend, 1, 500).unwrap(), Stored::Written);
    load(&*backend, 1, 500).unwrap();
    // Another object of another length under the key.
    assert_eq!(status(load(&*backend, 1, 499)), KVKEEP_ERR_NOT_FOUND);
    load(&*backend, 1, 500).unwrap();
}

#[test]
fn a_sweep_removes_the_objects_of_one_space_and_nothing_else() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("?part=1MiB&prefix=a*[");
    let stores: Vec<_> = (0..3000).map(|number| send_store(&*backend, number, 10)).collect();
    assert!(stores.iter().all(|stored| answer(stored).is_ok()));
    store(&*backend, 5000, 2 * MIB + 1).unwrap();
    server.ask(&["SET", "a*[", "x"]);
    server.ask(&["SET", "a*[{zz}", "x"]);
    let sweep = |space| {
        let (to, answers) = mpsc::channel();
        backend.sweep(space, Reply::new(move |result| to.send(result).unwrap()));
        answer(&answers).unwrap()
    };
    assert_eq!(sweep(Some(SpaceTag([1; 16]))), 0);
    assert_eq!(lookup(&*backend, &[1, 5000], false).unwrap(), [present(10), present(2 * MIB + 1)]);
    assert_eq!(sweep(Some(SPACE)), 3001);
    assert_eq!(server.ask(&["DBSIZE"]).lines().next(), Some(":2"));
    store(&*backend, 1, 10).unwrap();
    assert_eq!(sweep(None), 1);
    assert_eq!(server.ask(&["DBSIZE"]).lines().next(), Some(":2"));
}

#[test]
fn changes_of_one_key_keep_their_order() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("?connections=8");
    let (to, changes) = mpsc::channel();
    backend.set_observer(Arc::new(move |change, key: &ObjectKey, _| to.send((change, *key)).unwrap()));
    for round in 0..200 {
        let first = send_store(&*backend, 1, 100_000);
        let deleted = send_delete(&*backend, &[1]);
        // Answered before the next store: on another connection, that one may be the faster.
        assert_eq!(answer(&send_lookup(&*backend, &[1], true)).unwrap(), [Found::Absent]);
        let again = send_store(&*backend, 1, 100_000);
        assert_eq!(answer(&first).unwrap(), Stored::Written, "{round}");
        assert_eq!(answer(&deleted).unwrap(), 1);
        assert_eq!(answer(&again).unwrap(), Stored::Written);
        assert_eq!(lookup(&*backend, &[1], true).unwrap(), [present(100_000)]);
        backend.quarantine(key(1));
        assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Absent]);
    }
    drop(delete(&*backend, &[1]));
    let seen: Vec<Change> = changes.try_iter().map(|(change, _)| change).collect();
    assert_eq!(seen, [Change::Appeared, Change::Vanished].repeat(400));
}

#[test]
fn p4_what_is_late_or_after_close_is_answered() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("");
    let (to, answers) = mpsc::channel();
    let buffer = payload(1, 100);
    let header = Header::new(&key(1), &LAYOUT, buffer.bytes(), true).into();
    let reply = Reply::new(move |result| to.send(result).unwrap());
    let deadline = std::time::Instant::now();
    backend.store(vec![StoreRequest { key: key(1), header, buffer, deadline, reply }]);
    assert_eq!(status(answer(&answers)), KVKEEP_ERR_TIMEOUT);
    let stores: Vec<_> = (10..200).map(|number| send_store(&*backend, number, 100_000)).collect();
    backend.close();
    stores.iter().for_each(|stored| assert_eq!(answer(stored).unwrap(), Stored::Written));
    assert_eq!(status(store(&*backend, 1, 10)), KVKEEP_ERR_CLOSED);
    assert_eq!(status(load(&*backend, 10, 10)), KVKEEP_ERR_CLOSED);
    assert_eq!(status(lookup(&*backend, &[10], true)), KVKEEP_ERR_CLOSED);
    assert_eq!(status(delete(&*backend, &[10])), KVKEEP_ERR_CLOSED);
    backend.close();
}
