//! How often a store asks first, and what it does where something lies under its key.

use kvkeep::l2::{Found, Health, Stored};

use crate::support::redis::*;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Most bytes of payload that are sent without a question.
const UNASKED: usize = 4 * MIB - 160;

#[test]
fn a_store_asks_first_only_if_it_is_large() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = server.open("");
    let stores: Vec<_> = (0..16).map(|number| send_store(&*backend, number, 64 * KIB)).collect();
    stores.iter().for_each(|stored| assert_eq!(answer(stored).unwrap(), Stored::Written));
    assert_eq!(store(&*backend, 16, UNASKED).unwrap(), Stored::Written);
    assert_eq!(server.calls("getrange"), 0);
    assert_eq!(store(&*backend, 17, UNASKED + 1).unwrap(), Stored::Written);
    assert_eq!(server.calls("getrange"), 1);
    // An object in parts is found by its manifest, which goes last.
    assert_eq!(store(&*server.open("?part=1MiB"), 18, MIB + 1).unwrap(), Stored::Written);
    assert_eq!(server.calls("getrange"), 2);
    for (number, length) in [(3, 64 * KIB), (16, UNASKED), (17, UNASKED + 1), (18, MIB + 1)] {
        load(&*backend, number, length).unwrap();
    }
}

#[test]
fn an_object_that_is_there_is_not_written_again() {
    let Some(server) = Server::start(&[]) else { return };
    for (number, length, with) in [(1, 64 * KIB, ""), (2, MIB + 5, "?part=1MiB"), (3, 100, "?ttl=1h")] {
        store(&*server.open(with), number, length).unwrap();
        let keys = server.keys();
        // Whether it lies there whole or in parts, and however this backend would store it.
        for rest in ["", "?part=1MiB", "?ttl=1h"] {
            let backend = server.open(rest);
            assert_eq!(store(&*backend, number, length).unwrap(), Stored::Already, "{with} {rest}");
            load(&*backend, number, length).unwrap();
            assert_eq!(backend.health(), Health::Good);
        }
        assert_eq!(server.keys(), keys);
    }
}

#[test]
fn of_two_stores_in_the_same_moment_one_is_written() {
    let Some(server) = Server::start(&[]) else { return };
    let backends = [server.open(""), server.open("")];
    let send = |number| backends.each_ref().map(|backend| send_store(&**backend, number, 10 * KIB));
    let stores: Vec<_> = (0..200).map(send).collect();
    for both in &stores {
        let written = both.iter().filter(|stored| answer(stored).unwrap() == Stored::Written).count();
        assert_eq!(written, 1);
    }
}

#[test]
fn p7_what_is_not_the_object_is_replaced() {
    let Some(server) = Server::start(&[]) else { return };
    store(&*server.open(""), 1, 500).unwrap();
    let name = server.keys().remove(0);
    let stays: [&[&str]; 5] = [
        // Another program's, as long as the object; a list; an object with a torn header; one that is cut off there.
        &["SET", &name, &"x".repeat(660)],
        &["RPUSH", &name, "a"],
        &["SETRANGE", &name, "100", "torn"],
        &["SET", &name, "KVKEEPOB"],
        &["SET", &name, ""],
    ];
    for command in stays {
        if command[0] != "SETRANGE" {
            server.ask(&["DEL", &name]);
        }
        assert!(!server.ask(command).starts_with('-'));
        let backend = server.open("");
        let before = server.calls("getrange");
        assert_eq!(store(&*backend, 1, 500).unwrap(), Stored::Written, "{command:?}");
        assert_eq!(server.calls("getrange"), before + 1);
        load(&*backend, 1, 500).unwrap();
        let noted = matches!(backend.health(), Health::Noted(why) if why.contains("prefix="));
        assert_eq!(noted, !command.contains(&""), "{command:?}");
    }
    // The object of another length, which the model of another time stored, and one whose last part is gone.
    let backend = server.open("");
    assert_eq!(store(&*backend, 1, 400).unwrap(), Stored::Written);
    load(&*backend, 1, 400).unwrap();
    store(&*server.open("?part=1MiB"), 2, 2 * MIB + 1).unwrap();
    let last = server.keys().into_iter().find(|key| key.ends_with("/2")).unwrap();
    server.ask(&["UNLINK", &last]);
    assert_eq!(store(&*backend, 2, 2 * MIB + 1).unwrap(), Stored::Written);
    load(&*backend, 2, 2 * MIB + 1).unwrap();
    assert_eq!(server.keys().len(), 2, "the other parts are gone");
    assert_eq!(lookup(&*backend, &[1, 2], true).unwrap(), [Found::Present(400), Found::Present(2 * MIB as u64 + 1)]);
}

#[test]
fn bytes_that_are_there_are_sent_in_vain_a_few_times_at_most() {
    let Some(server) = Server::start(&[]) else { return };
    let one = |numbers: std::ops::Range<u64>| {
        let first = server.open("");
        numbers.for_each(|number| assert_eq!(store(&*first, number, KIB).unwrap(), Stored::Written));
    };
    one(0..64);
    let (second, sent) = (server.open(""), server.calls("set"));
    (0..64).for_each(|number| assert_eq!(store(&*second, number, KIB).unwrap(), Stored::Already));
    let sent = server.calls("set") - sent;
    assert!((1..=8).contains(&sent), "sent {sent} of 64 objects that are there");
    // Others are not there: soon it does not ask any more.
    let asked = server.calls("getrange");
    (100..164).for_each(|number| assert_eq!(store(&*second, number, KIB).unwrap(), Stored::Written));
    assert!(server.calls("getrange") - asked < 64);
    let asked = server.calls("getrange");
    (200..210).for_each(|number| assert_eq!(store(&*second, number, KIB).unwrap(), Stored::Written));
    assert_eq!(server.calls("getrange"), asked);
}
