//! An observer of the `fs` backend hears of everything that appears and vanishes, those of one key in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use kvkeep::arena::Buffer;
use kvkeep::key::ObjectKey;
use kvkeep::l2::fs::{Fs, FsOptions};
use kvkeep::l2::{Backend, Change, Found, Stored};

use crate::support::fs::*;

const LEN: usize = 10_000;

fn watch(fs: &Fs) -> Receiver<(Change, ObjectKey)> {
    let (to, changes) = mpsc::channel();
    fs.set_observer(Arc::new(move |change, key: &ObjectKey, _| to.send((change, *key)).unwrap_or_default()));
    changes
}

fn appeared(number: u64) -> (Change, ObjectKey) {
    (Change::Appeared, key(number))
}

fn vanished(number: u64) -> (Change, ObjectKey) {
    (Change::Vanished, key(number))
}

#[test]
fn eviction_deletion_and_quarantine_are_told() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = Fs::open(FsOptions { capacity: 3 * disk(LEN), ..options(dir.path(), engine) }).unwrap();
        store(&fs, 1, LEN).unwrap();
        let changes = watch(&fs);
        let told = || changes.try_iter().collect::<Vec<_>>();
        store(&fs, 2, LEN).unwrap();
        store(&fs, 2, LEN).unwrap();
        store(&fs, 3, LEN).unwrap();
        assert_eq!(told(), [appeared(2), appeared(3)]);
        store(&fs, 4, LEN).unwrap();
        assert_eq!(told(), [vanished(1), appeared(4)]);
        assert_eq!(deleted(&fs, &[2, 9]), 1);
        assert_eq!(told(), [vanished(2)]);
        // Deleted under a pin, it is told at once and not again when the pin goes.
        assert_eq!(cached(&fs, 3), Found::Present(LEN as u64));
        assert_eq!(deleted(&fs, &[3]), 1);
        assert_eq!(told(), [vanished(3)]);
        unpin(&fs, &[3]);
        assert_eq!(told(), []);
        // Deleted under a pin and stored again.
        assert_eq!(cached(&fs, 4), Found::Present(LEN as u64));
        let answer = delete(&fs, &[4]);
        assert_eq!(store(&fs, 4, LEN).unwrap(), Stored::Written);
        assert_eq!(answer.recv_timeout(WATCHDOG).unwrap().unwrap(), 1);
        unpin(&fs, &[4]);
        assert_eq!(told(), [vanished(4), appeared(4)]);
        fs.quarantine(key(4));
        fs.quarantine(key(4));
        assert_eq!(told(), [vanished(4)]);
    }
}

#[test]
fn what_others_removed_is_told_when_its_use_is_to_be_marked() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        store_all(&fs, &[(1, LEN), (2, LEN)]);
        let changes = watch(&fs);
        std::fs::remove_file(file(dir.path(), 1)).unwrap();
        // Used in L1, it is not read, and nobody looks for its file but for the time of the use.
        fs.touch(&[key(1), key(2)]);
        fs.close();
        assert_eq!(changes.try_iter().collect::<Vec<_>>(), [vanished(1)]);
        assert_eq!(fs.usage().objects, 1);
    }
}

#[test]
fn what_others_store_and_remove_is_told_when_it_is_noticed() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let (fs, other) = (open(dir.path(), engine), open(dir.path(), engine));
        let changes = watch(&fs);
        store_all(&other, &[(1, LEN), (2, LEN)]);
        let here = Found::Present(LEN as u64);
        assert_eq!(lookup(&fs, &[1, 2], true).unwrap(), [here, here]);
        std::fs::remove_file(file(dir.path(), 1)).unwrap();
        std::fs::File::options().write(true).open(file(dir.path(), 2)).unwrap().set_len(5000).unwrap();
        for number in [1, 2] {
            assert!(load_into(&fs, vec![(number, Buffer::heap(LEN).unwrap())]).remove(0).is_err());
        }
        assert_eq!(changes.try_iter().collect::<Vec<_>>(), [appeared(1), appeared(2), vanished(1), vanished(2)]);
    }
}

#[test]
fn what_an_observer_heard_is_what_is_there_whatever_happened_at_once() {
    const KEYS: u64 = 12;
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = Fs::open(FsOptions { capacity: 6 * disk(LEN), ..options(dir.path(), engine) }).unwrap();
        let changes = watch(&fs);
        std::thread::scope(|scope| {
            for part in 0..3 {
                let fs = &fs;
                scope.spawn(move || {
                    for round in 0..60 {
                        let number = (round * 5 + part * 7) % KEYS;
                        // Refused where everything stored is in use.
                        let _ = store(fs, number, LEN);
                        let _ = fetch(fs, (number + part) % KEYS);
                        match round % 4 {
                            0 => drop(deleted(fs, &[(number + 1) % KEYS])),
                            1 => fs.quarantine(key((number + 2) % KEYS)),
                            _ => {}
                        }
                    }
                });
            }
        });
        let mut heard = HashMap::new();
        let told: Vec<_> = changes.try_iter().collect();
        assert!(told.iter().any(|(change, _)| *change == Change::Vanished), "nothing happened");
        for (change, key) in told {
            // Nothing appears or vanishes twice in a row.
            assert_ne!(heard.insert(key, change), Some(change));
        }
        let mut listed: Vec<_> = fs.list(None).into_iter().map(|(key, _)| key.key.hash).collect();
        let mut heard: Vec<_> =
            heard.into_iter().filter(|(_, change)| *change == Change::Appeared).map(|(key, _)| key.key.hash).collect();
        listed.sort_unstable();
        heard.sort_unstable();
        assert_eq!(listed, heard);
    }
}
