//! What is stored is loaded, byte for byte, whatever its size and wherever its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use kvkeep::arena::{Arena, Buffer, Hold, MapOptions};
use kvkeep::error::{
    KVKEEP_ERR_CLOSED, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Status,
};
use kvkeep::l2::fs::{Fs, FsOptions};
use kvkeep::l2::{Backend, Found, Reply, StoreRequest, Stored};

use crate::support::fs::*;

const LENGTHS: [usize; 9] = [0, 1, 4095, 4096, 4097, 100_000, 1 << 20, (3 << 20) + 5, 9 << 20];

#[test]
fn every_size_comes_back() {
    for engine in engines() {
        for direct in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let fs = Fs::open(FsOptions { direct, ..options(dir.path(), engine) }).unwrap();
            let objects: Vec<(u64, usize)> = LENGTHS.iter().enumerate().map(|(i, &len)| (i as u64, len)).collect();
            for result in store_all(&fs, &objects) {
                assert_eq!(result.unwrap(), Stored::Written);
            }
            for &(number, len) in &objects {
                check(&fs, number, len);
                assert_eq!(file(dir.path(), number).metadata().unwrap().len(), 4096 + len as u64);
            }
            let usage = fs.usage();
            assert_eq!(usage.objects, LENGTHS.len() as u64);
            assert_eq!(usage.bytes, LENGTHS.iter().map(|&len| disk(len)).sum::<u64>());
        }
    }
}

/// Keeps an arena mapped.
struct Mapped(#[allow(dead_code)] Arc<Arena>);

impl Hold for Mapped {
    fn release(&self, _token: u64) {}
}

/// A buffer at an address that direct I/O does not take.
fn unaligned(len: usize) -> Buffer {
    let arena = Arc::new(Arena::map(len + 100, MapOptions::default()).unwrap());
    arena.lend(100, len as u64, Arc::new(Mapped(Arc::clone(&arena))), 0)
}

/// Whether a buffer has been given back.
struct GivenBack(AtomicBool);

impl Hold for GivenBack {
    fn release(&self, _token: u64) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The answer to a store, by which its buffer must have been given back.
fn answer(fs: &Fs, number: u64, len: usize, deadline: Instant) -> Result<Stored, Status> {
    let arena = Arc::new(Arena::map(len, MapOptions::default()).unwrap());
    let given_back = Arc::new(GivenBack(AtomicBool::new(false)));
    let mut buffer = arena.lend(0, len as u64, given_back.clone(), 0);
    buffer.bytes_mut().copy_from_slice(payload(number, len).bytes());
    let (to, answers) = channel();
    let reply = Reply::new(move |result: kvkeep::error::Result<Stored>| {
        to.send((result, given_back.0.load(Ordering::SeqCst))).unwrap();
    });
    fs.store(vec![StoreRequest { deadline, reply, ..storing(number, buffer, &channel().0) }]);
    let (result, first) = answers.recv_timeout(WATCHDOG).unwrap();
    assert!(first, "the buffer of a store was held when it was answered: {result:?}");
    result.map_err(|error| error.status)
}

#[test]
fn p2_who_hears_that_a_store_is_over_may_count_on_its_memory() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = Fs::open(FsOptions { capacity: disk(4096), ..options(dir.path(), engine) }).unwrap();
        assert_eq!(answer(&fs, 1, 4096, deadline()), Ok(Stored::Written));
        assert_eq!(answer(&fs, 1, 4096, deadline()), Ok(Stored::Already));
        assert_eq!(answer(&fs, 2, 8192, deadline()), Err(KVKEEP_ERR_LIMIT));
        assert_eq!(answer(&fs, 3, 4096, Instant::now()), Err(KVKEEP_ERR_TIMEOUT));
        fs.close();
        assert_eq!(answer(&fs, 4, 4096, deadline()), Err(KVKEEP_ERR_CLOSED));
    }
}

#[test]
fn unaligned_memory_is_stored_and_loaded() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        let (to, answers) = std::sync::mpsc::channel();
        for (number, len) in [(1, 5000), (2, 8192), (3, (2 << 20) + 1)] {
            let mut buffer = unaligned(len);
            buffer.bytes_mut().copy_from_slice(payload(number, len).bytes());
            fs.store(vec![storing(number, buffer, &to)]);
            assert_eq!(answers.recv_timeout(WATCHDOG).unwrap().1.unwrap(), Stored::Written);
            assert!(matches!(cached(&fs, number), Found::Present(size) if size == len as u64));
            let loaded = load_into(&fs, vec![(number, unaligned(len))]).remove(0).unwrap();
            assert!(loaded.bytes() == payload(number, len).bytes());
        }
    }
}

#[test]
fn many_small_objects_come_back_from_one_batch() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        let objects: Vec<(u64, usize)> = (0..600).map(|number| (number, 4096)).collect();
        assert!(store_all(&fs, &objects).into_iter().all(|result| result.unwrap() == Stored::Written));
        let numbers: Vec<u64> = (0..600).collect();
        assert!(lookup(&fs, &numbers, true).unwrap().iter().all(|found| *found == Found::Present(4096)));
        let loads = numbers.iter().map(|&number| (number, Buffer::heap(4096).unwrap())).collect();
        for (number, loaded) in load_into(&fs, loads).into_iter().enumerate() {
            assert!(loaded.unwrap().bytes() == payload(number as u64, 4096).bytes());
        }
    }
}

#[test]
fn storing_again_writes_nothing() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        let results = store_all(&fs, &[(1, 9000), (2, 10)]);
        assert!(results.into_iter().all(|result| result.unwrap() == Stored::Written));
        assert_eq!(store(&fs, 1, 9000).unwrap(), Stored::Already);
        // Twice in one batch: one is written, the other waits for it.
        let (to, answers) = std::sync::mpsc::channel();
        fs.store(vec![storing(3, payload(3, 2 << 20), &to), storing(3, payload(3, 2 << 20), &to)]);
        let mut both: Vec<Stored> = (0..2).map(|_| answers.recv_timeout(WATCHDOG).unwrap().1.unwrap()).collect();
        both.sort_by_key(|stored| *stored == Stored::Already);
        assert_eq!(both, [Stored::Written, Stored::Already]);
        assert_eq!(files(dir.path()).len(), 3);
    }
}

#[test]
fn a_load_fails_alone_and_says_why() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        store_all(&fs, &[(1, 5000), (2, 5000), (3, 3 << 20), (4, 5000)]);
        assert_eq!(lookup(&fs, &[1, 2, 3, 4], true).unwrap().len(), 4);
        std::fs::remove_file(file(dir.path(), 2)).unwrap();
        std::fs::File::options().write(true).open(file(dir.path(), 3)).unwrap().set_len(1 << 20).unwrap();
        let loads = [(1, 5000), (2, 5000), (3, 3 << 20), (4, 4999), (5, 1)];
        let loads = loads.map(|(number, len)| (number, Buffer::heap(len).unwrap()));
        let results: Vec<_> = load_into(&fs, loads.into()).into_iter().map(|result| result.map(|_| ())).collect();
        assert!(results[0].is_ok());
        let error = |at: usize| results[at].as_ref().unwrap_err().clone();
        assert_eq!(error(1).status, KVKEEP_ERR_NOT_FOUND);
        let path = file(dir.path(), 2).into_os_string().into_string().unwrap();
        assert!(error(1).message.ends_with(&path[path.len() - 20..]), "{}", error(1));
        assert_eq!(error(2).status, KVKEEP_ERR_CORRUPT);
        assert!(error(2).message.contains("ends after"), "{}", error(2));
        // Nothing is wrong with the object: it is not the one that was looked up.
        assert_eq!(error(3).status, KVKEEP_ERR_NOT_FOUND);
        assert_eq!(error(4).status, KVKEEP_ERR_NOT_FOUND);
        // Neither the vanished nor the short one is served again; both can be stored anew.
        assert_eq!(lookup(&fs, &[2, 3], false).unwrap(), [Found::Absent, Found::Absent]);
        assert_eq!(fs.quarantined(), 1);
        assert_eq!((object_bytes(&fs), fs.usage().overhead), (2 * disk(5000), 1 << 20));
        assert!(store_all(&fs, &[(2, 5000), (3, 3 << 20)]).into_iter().all(|r| r.unwrap() == Stored::Written));
        check(&fs, 2, 5000);
        check(&fs, 3, 3 << 20);
    }
}

#[test]
fn p4_what_is_late_too_much_or_after_close_is_answered() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        let (to, answers) = std::sync::mpsc::channel();
        let mut late = storing(1, payload(1, 10), &to);
        late.deadline = std::time::Instant::now();
        fs.store(vec![late]);
        assert_eq!(answers.recv_timeout(WATCHDOG).unwrap().1.unwrap_err().status, KVKEEP_ERR_TIMEOUT);
        let too_many = (0..70_000).map(|_| storing(1, Buffer::heap(0).unwrap(), &to)).collect();
        fs.store(too_many);
        for _ in 0..70_000 {
            assert_eq!(answers.recv_timeout(WATCHDOG).unwrap().1.unwrap_err().status, KVKEEP_ERR_LIMIT);
        }
        // Everything accepted before close is carried out.
        fs.store((10..60).map(|number| storing(number, payload(number, 100_000), &to)).collect());
        fs.close();
        let accepted: Vec<_> = answers.try_iter().collect();
        assert_eq!(accepted.len(), 50);
        assert!(accepted.into_iter().all(|(_, result)| result.unwrap() == Stored::Written));
        assert_eq!(store(&fs, 2, 10).unwrap_err().status, KVKEEP_ERR_CLOSED);
        assert_eq!(lookup(&fs, &[10], true).unwrap_err().status, KVKEEP_ERR_CLOSED);
        let load = load_into(&fs, vec![(10, Buffer::heap(100_000).unwrap())]).remove(0);
        assert_eq!(load.map(|_| ()).unwrap_err().status, KVKEEP_ERR_CLOSED);
        assert_eq!(cached(&fs, 10), Found::Absent);
        fs.close();
    }
}
