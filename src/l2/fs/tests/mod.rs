//! Failures of a disk that no test can have for real.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::file_format::disk_bytes;
use super::{Durability, EngineKind, Fs, FsOptions, MinFree};
use crate::error::{KVKEEP_ERR_IO, KVKEEP_ERR_PERMISSION};
use crate::l2::tests::{load, lookup, store};
use crate::l2::{Backend, Found, Health, Stored};
use crate::log::{Log, LogLevel};

const LEN: usize = 10_000;

/// An open directory for each engine that this kernel allows.
fn everywhere(test: impl Fn(&Arc<Fs>)) {
    for engine in [EngineKind::Pool, EngineKind::Auto] {
        let dir = tempfile::tempdir().unwrap();
        test(&Fs::open(FsOptions { engine, ..FsOptions::new(dir.path()) }).unwrap());
    }
}

#[test]
fn a_read_that_the_disk_refuses_is_a_miss_of_that_read_and_nothing_more() {
    everywhere(|fs| {
        for number in 0..20 {
            store(&**fs, number, LEN).unwrap();
        }
        for errno in [libc::EIO, libc::ESTALE, libc::EACCES, libc::EPERM, libc::ENOMEM, libc::EBADMSG, libc::EUCLEAN] {
            *fs.core.reads_fail_with.lock() = Some(errno);
            for number in 0..3 {
                let error = load(&**fs, number, LEN).0.unwrap_err();
                let expected = if errno == libc::EACCES { KVKEEP_ERR_PERMISSION } else { KVKEEP_ERR_IO };
                assert!(error.status == expected || errno == libc::EPERM, "{error}");
                assert!(error.message.starts_with(&std::io::Error::from_raw_os_error(errno).to_string()), "{error}");
                assert!(error.message.len() < 128 && error.message.ends_with("-0-0"), "{error}");
            }
            *fs.core.reads_fail_with.lock() = None;
            assert!(load(&**fs, 0, LEN).0.is_ok());
            assert_eq!(fs.health(), Health::Good);
        }
        assert_eq!((fs.quarantined(), fs.usage().objects), (0, 20));
        let numbers: Vec<u32> = (0..20).collect();
        assert_eq!(lookup(&**fs, &numbers, true).unwrap(), vec![Found::Present(LEN as u64); 20]);
        assert_eq!(store(&**fs, 1, LEN).unwrap(), Stored::Already);
        assert!((0..20).all(|number| load(&**fs, number, LEN).0.is_ok()));
    });
}

#[test]
fn many_reads_that_fail_in_a_row_make_the_backend_unhealthy_until_one_succeeds() {
    everywhere(|fs| {
        store(&**fs, 1, LEN).unwrap();
        *fs.core.reads_fail_with.lock() = Some(libc::EIO);
        for _ in 0..8 {
            assert_eq!(fs.health(), Health::Good);
            load(&**fs, 1, LEN).0.unwrap_err();
        }
        let Health::Bad(why) = fs.health() else { panic!("healthy after eight failures") };
        assert!(why.contains("reads fail: Input/output error"), "{why}");
        *fs.core.reads_fail_with.lock() = None;
        assert!(load(&**fs, 1, LEN).0.is_ok());
        assert_eq!(fs.health(), Health::Good);
    });
}

#[test]
fn a_file_system_that_is_full_when_it_syncs_makes_room_for_the_next_attempt() {
    for engine in [EngineKind::Pool, EngineKind::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let durability = Durability::Power;
        let options = FsOptions { engine, durability, min_free: MinFree::Bytes(0), ..FsOptions::new(dir.path()) };
        let fs = Fs::open(FsOptions { count_directories: false, ..options }).unwrap();
        fs.core.free_space.full_at_sync.store(true, Ordering::Relaxed);
        fs.core.free_space.full_above.store(20 * disk_bytes(LEN as u64), Ordering::Relaxed);
        for number in 0..20 {
            assert_eq!(store(&*fs, number, LEN).unwrap(), Stored::Written);
        }
        for number in 20..60 {
            let stored = store(&*fs, number, LEN).or_else(|error| {
                assert!(error.message.contains("No space left on device"), "{error}");
                store(&*fs, number, LEN)
            });
            assert_eq!(stored.unwrap(), Stored::Written, "{number}");
        }
        assert!((50..60).all(|number| load(&*fs, number, LEN).0.is_ok()), "the newest are there");
        assert!(fs.usage().evicted >= 40 && temporaries(dir.path()) == 0, "{:?}", fs.usage());
    }
}

/// Options of a directory in which nothing but the test's bound on the file system evicts.
fn unbounded(dir: &std::path::Path, engine: EngineKind, log: Log) -> Arc<Fs> {
    Fs::open(FsOptions { engine, log, min_free: MinFree::Bytes(0), count_directories: false, ..FsOptions::new(dir) })
        .unwrap()
}

#[test]
fn a_full_file_system_is_a_bound_like_the_capacity_and_said_once() {
    for engine in [EngineKind::Pool, EngineKind::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let logged = Arc::clone(&lines);
        let log = Log::new(LogLevel::Info, move |_, line: &str| {
            if line.contains("the file system of") {
                logged.lock().push(line.to_owned());
            }
        });
        let fs = unbounded(dir.path(), engine, log);
        let disk = disk_bytes(LEN as u64);
        fs.core.free_space.full_above.store(50 * disk, Ordering::Relaxed);
        for number in 0..50 {
            assert_eq!(store(&*fs, number, LEN).unwrap(), Stored::Written);
        }
        assert_eq!((fs.usage().evicted, fs.health(), fs.usage().short), (0, Health::Good, false));
        for number in 50..200 {
            assert_eq!(store(&*fs, number, LEN).unwrap(), Stored::Written, "{number}");
        }
        assert!(fs.usage().objects >= 48 && fs.usage().evicted <= 152, "{:?}", fs.usage());
        assert!((160..200).all(|number| load(&*fs, number, LEN).0.is_ok()), "the newest are there");
        let Health::Noted(note) = fs.health() else { panic!("{:?}", fs.health()) };
        assert!(fs.usage().short && note.contains("the file system is full"), "{note}");
        let said = lines.lock().clone();
        assert!(said.len() == 1 && said[0].contains("No space left on device"), "{said:?}");
        // Where nothing can be evicted, a store fails alone, after it was tried a few times.
        fs.core.free_space.full_above.store(0, Ordering::Relaxed);
        let error = store(&*fs, 1000, LEN).unwrap_err();
        assert!(error.message.contains("No space left on device"), "{error}");
        assert!(matches!(fs.health(), Health::Bad(_)));
        let left = fs.usage().objects;
        for number in 1001..1020 {
            assert!(store(&*fs, number, LEN).is_err());
        }
        assert!(fs.usage().objects + 20 >= left, "evicting does not help, so it is not done");
        assert_eq!(temporaries(dir.path()), 0);
        fs.core.free_space.full_above.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(store(&*fs, 2000, LEN).unwrap(), Stored::Written);
        assert!(!matches!(fs.health(), Health::Bad(_)));
        // Once there has been room for a while, that is said too.
        fs.core.free_space.forgets.store(true, Ordering::Relaxed);
        let mut number = 3000;
        while fs.usage().short {
            store(&*fs, number, LEN).unwrap();
            number += 1;
        }
        assert_eq!(fs.health(), Health::Good);
        let said = lines.lock().clone();
        assert!(said.len() == 2 && said[1].contains("has room again"), "{said:?}");
    }
}

/// Temporary files anywhere below `dir`.
fn temporaries(dir: &std::path::Path) -> usize {
    let entries = super::listing::list(dir).unwrap();
    entries.iter().filter(|entry| matches!(entry.kind, super::listing::FileKind::Temporary { .. })).count()
}
