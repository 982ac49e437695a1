//! A file system with less room than the capacity: full of our objects, of those of others, or out of files.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvkeep::error::KVKEEP_ERR_LIMIT;
use kvkeep::l2::fs::{EngineKind, Fs, FsOptions, MinFree};
use kvkeep::l2::{Backend, Health, Stored};
use kvkeep::log::{Log, LogLevel};

use crate::support::fs::*;
use crate::support::test_name;

const LEN: usize = 100_000;

fn name(test: &str) -> String {
    test_name(module_path!(), test)
}

type Lines = Arc<Mutex<Vec<String>>>;

fn logged(dir: &Path, engine: EngineKind, min_free: MinFree) -> (Arc<Fs>, Lines) {
    let lines = Lines::default();
    let told = lines.clone();
    let log = Log::new(LogLevel::Warn, move |_, line: &str| told.lock().unwrap().push(line.to_owned()));
    (Fs::open(FsOptions { log, min_free, ..options(&dir.join("kv"), engine) }).unwrap(), lines)
}

fn free(dir: &Path) -> u64 {
    let vfs = rustix::fs::statvfs(dir).unwrap();
    vfs.f_bavail * vfs.f_frsize
}

/// Stores objects in batches; all are written, and the newest can be read.
fn store_many(fs: &Fs, numbers: std::ops::Range<u64>, len: usize) {
    let (first, end) = (numbers.start, numbers.end);
    for at in numbers.step_by(10) {
        let batch: Vec<(u64, usize)> = (at..end.min(at + 10)).map(|number| (number, len)).collect();
        assert!(store_all(fs, &batch).into_iter().all(|result| result.unwrap() == Stored::Written));
    }
    (end - 10..end).for_each(|number| check(fs, number, len));
    assert!(first < end - 10);
}

#[test]
fn a_full_file_system_evicts_the_oldest_and_says_so_once() {
    in_tmpfs(&name("a_full_file_system_evicts_the_oldest_and_says_so_once"), "size=8m", |dir| {
        for engine in engines() {
            for min_free in [MinFree::Auto, MinFree::Bytes(0), MinFree::Percent(25.0)] {
                let (began, (fs, lines)) = (Instant::now(), logged(dir, engine, min_free));
                store_many(&fs, 0..200, LEN);
                let most = (8 << 20) - min_free.bytes(8 << 20);
                // Files of victims may be there a moment longer.
                until("no more is taken than may be", || (8 << 20) - free(dir) <= most);
                let taken = (8 << 20) - free(dir);
                assert!(taken > most - most / 4, "{taken} of {most} bytes");
                assert!(matches!(fs.health(), Health::Noted(_)), "{:?}", fs.health());
                // Others take a tenth of it, bit by bit. It is evicted too, and stores go on. Where others take what is evicted at
                // once, eviction pauses for some seconds, as if it did not help.
                if min_free != MinFree::Bytes(0) {
                    let mut others = std::fs::File::create(dir.join("others")).unwrap();
                    let (mut number, mut wrote) = (200, 0);
                    let others_began = Instant::now();
                    while wrote < (8 << 20) / 10 {
                        let bytes = free(dir).min(128 << 10);
                        others.write_all(&vec![1; bytes as usize]).unwrap();
                        wrote += bytes;
                        store_many(&fs, number..number + 20, LEN);
                        number += 20;
                        assert!(others_began.elapsed() < WATCHDOG, "others got {wrote} bytes");
                    }
                    std::fs::remove_file(dir.join("others")).unwrap();
                }
                store_many(&fs, 1_000_000..1_000_200, LEN);
                assert!(fs.usage().short);
                let lines = lines.lock().unwrap().clone();
                // One more for each time that the file system had room for ten seconds.
                assert!(!lines.is_empty() && lines.len() as u64 <= 1 + began.elapsed().as_secs() / 10, "{lines:?}");
                fs.close();
                std::fs::remove_dir_all(dir.join("kv")).unwrap();
            }
        }
    });
}

#[test]
fn a_store_larger_than_the_file_system_fails_alone() {
    in_tmpfs(&name("a_store_larger_than_the_file_system_fails_alone"), "size=4m", |dir| {
        for engine in engines() {
            let (fs, _) = logged(dir, engine, MinFree::Auto);
            assert_eq!(store(&fs, 1, 1 << 20).unwrap(), Stored::Written);
            let error = store(&fs, 2, 8 << 20).unwrap_err();
            assert_eq!(error.status, KVKEEP_ERR_LIMIT);
            assert!(error.message.contains("file system is full") && error.message.contains("min_free="), "{error}");
            assert!(matches!(fs.health(), Health::Bad(_)));
            assert_eq!(files(dir).len(), 1, "nothing is evicted for it, and nothing stays of it");
            assert_eq!(store(&fs, 3, 1 << 20).unwrap(), Stored::Written);
            assert!(!matches!(fs.health(), Health::Bad(_)));
            assert_eq!(fs.usage().bytes, 2 * disk(1 << 20));
            check(&fs, 1, 1 << 20);
            assert_eq!(deleted(&fs, &[1, 3]), 2);
        }
    });
}

#[test]
fn a_file_system_without_files_left_evicts_too() {
    in_tmpfs(&name("a_file_system_without_files_left_evicts_too"), "size=64m,nr_inodes=600", |dir| {
        for engine in engines() {
            let (fs, lines) = logged(dir, engine, MinFree::Auto);
            store_many(&fs, 0..1000, 4096);
            assert!(fs.usage().objects >= 200 && fs.usage().evicted >= 400, "{:?}", fs.usage());
            let lines = lines.lock().unwrap().clone();
            assert!(fs.usage().short && !lines.is_empty() && lines.len() < 10, "{lines:?}");
            fs.close();
            std::fs::remove_dir_all(dir.join("kv")).unwrap();
        }
    });
}

#[test]
fn a_file_system_full_of_others_files_refuses_stores_and_recovers() {
    in_tmpfs(&name("a_file_system_full_of_others_files_refuses_stores_and_recovers"), "size=8m", |dir| {
        for engine in engines() {
            std::fs::write(dir.join("others"), vec![1; (8 << 20) - (64 << 10)]).unwrap();
            let (fs, _) = logged(dir, engine, MinFree::Percent(5.0));
            let error = store(&fs, 1, 4096).unwrap_err();
            assert!(error.message.contains("min_free="), "{error}");
            let Health::Bad(why) = fs.health() else { panic!("{:?}", fs.health()) };
            assert!(why.contains("file system is full"), "{why}");
            std::fs::remove_file(dir.join("others")).unwrap();
            // It is measured again within a moment.
            let mut tries = 0;
            while store(&fs, 2, 4096).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(20));
                tries += 1;
                assert!(tries < 1000, "{:?}", fs.health());
            }
            check(&fs, 2, 4096);
            assert!(!matches!(fs.health(), Health::Bad(_)));
            fs.close();
            std::fs::remove_dir_all(dir.join("kv")).unwrap();
        }
    });
}
