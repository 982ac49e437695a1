//! Where descriptors run out, loads and stores wait for some.
//!
//! A program of its own: it limits the descriptors of its process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::mpsc;

use kvkeep::arena::Buffer;
use kvkeep::l2::fs::{Durability, Fs, FsOptions};
use kvkeep::l2::{Backend, Found, Health, Stored};
use rustix::process::{Resource, getrlimit, setrlimit};

use support::fs::*;

const LEN: usize = 10_000;
const OBJECTS: u64 = 300;

fn limit(most: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(most);
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn loads_and_stores_wait_for_descriptors_instead_of_failing() {
    let before = getrlimit(Resource::Nofile).current.unwrap();
    let durabilities = [Durability::Crash, Durability::Power];
    for (engine, durability) in
        engines().into_iter().flat_map(|engine| durabilities.map(|durability| (engine, durability)))
    {
        let dir = tempfile::tempdir().unwrap();
        let fs = Fs::open(FsOptions { durability, ..options(dir.path(), engine) }).unwrap();
        store(&fs, 0, LEN).unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let numbers: Vec<u64> = (0..OBJECTS).collect();
        let objects: Vec<(u64, usize)> = numbers.iter().map(|&number| (number, LEN)).collect();
        // A few for all of them.
        limit(open + 2);
        assert!(store_all(&fs, &objects).into_iter().all(|stored| stored.is_ok()));
        assert!(lookup(&fs, &numbers, true).unwrap().iter().all(|found| *found == Found::Present(LEN as u64)));
        let loads = objects.iter().map(|&(number, len)| (number, Buffer::heap(len).unwrap())).collect();
        assert!(load_into(&fs, loads).into_iter().all(|loaded| loaded.is_ok()));
        unpin(&fs, &numbers);

        // None at all, until another part of the process closes one.
        let (to, answers) = mpsc::channel();
        let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/").ok()).collect();
        fs.store(vec![storing(OBJECTS, payload(OBJECTS, LEN), &to)]);
        assert!(answers.try_recv().is_err());
        drop(files);
        assert_eq!(answers.recv_timeout(WATCHDOG).unwrap().1.unwrap(), Stored::Written);

        // The end does not wait for them.
        let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/").ok()).collect();
        fs.store(vec![storing(OBJECTS + 1, payload(OBJECTS + 1, LEN), &to)]);
        fs.close();
        let error = answers.recv_timeout(WATCHDOG).unwrap().1.unwrap_err();
        assert!(error.message.contains("Too many open files"), "{error}");
        assert!(matches!(fs.health(), Health::Bad(_)));
        drop(files);
        limit(before);
        assert_eq!(fs.quarantined(), 0);
    }
}
