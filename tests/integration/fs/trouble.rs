//! What cannot be read, listed, removed or written is no reason to lose anything else.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvkeep::error::{KVKEEP_ERR_IO, KVKEEP_ERR_PERMISSION};
use kvkeep::l2::fs::{EngineKind, Fs, FsOptions};
use kvkeep::l2::{Backend, Found, Health, Stored};
use kvkeep::log::{Log, LogLevel};

use crate::support::fs::*;

const LEN: usize = 10_000;

/// Runs `test` for each engine as a user who is bound by permissions, in a directory of that user.
fn as_user(test: impl Fn(&Path, EngineKind) + Send + Sync) {
    const NOBODY: libc::uid_t = 65_534;
    let engines = engines();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: plain calls, of which a raw one changes this thread alone, and those that it starts.
            unsafe {
                if libc::geteuid() == 0 {
                    assert_eq!(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY), 0);
                    assert_eq!(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
                }
            }
            for engine in engines {
                let dir = tempfile::tempdir().unwrap();
                test(dir.path(), engine);
            }
        });
        thread.join().unwrap();
    });
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

type Lines = Arc<Mutex<Vec<String>>>;

/// Opens `dir`, and gives what it logs.
fn logged(dir: &Path, engine: EngineKind) -> (Arc<Fs>, Lines) {
    let lines = Lines::default();
    let to = Arc::clone(&lines);
    let log = Log::new(LogLevel::Warn, move |_, line: &str| to.lock().unwrap().push(line.to_owned()));
    let cleanup_every = Duration::from_millis(20);
    (Fs::open(FsOptions { log, cleanup_every, ..options(dir, engine) }).unwrap(), lines)
}

fn bad(fs: &Fs) -> String {
    match fs.health() {
        Health::Bad(why) => why,
        Health::Good | Health::Noted(_) => panic!("healthy"),
    }
}

#[test]
fn an_object_that_this_user_may_not_read_is_a_miss_and_stays_as_it_is() {
    as_user(|dir, engine| {
        for shared in [true, false] {
            let fs = Fs::open(FsOptions { shared: Some(shared), ..options(dir, engine) }).unwrap();
            store_all(&fs, &[(1, LEN), (2, LEN), (3, LEN)]);
            let usage = fs.usage();
            allow(&file(dir, 2), 0);
            for _ in 0..3 {
                // It is promised once at most.
                assert!(fetch(&fs, 2).is_err());
                check(&fs, 1, LEN);
            }
            assert_eq!(lookup(&fs, &[2], true).unwrap(), [Found::Absent]);
            assert_eq!(store(&fs, 2, LEN).unwrap(), Stored::Already);
            assert_eq!((fs.quarantined(), fs.usage(), fs.health()), (0, usage, Health::Good));
            // Readable again, it is found at once.
            allow(&file(dir, 2), 0o600);
            check(&fs, 2, LEN);
            drop(fs);
            // The same for one that it did not store.
            allow(&file(dir, 3), 0);
            let fs = Fs::open(FsOptions { shared: Some(shared), ..options(dir, engine) }).unwrap();
            let error = fetch(&fs, 3).unwrap_err();
            assert_eq!(error.status, KVKEEP_ERR_PERMISSION);
            let name = file(dir, 3);
            let end = &name.to_str().unwrap()[name.to_str().unwrap().len() - 20..];
            assert!(error.message.starts_with("Permission denied") && error.message.ends_with(end), "{error}");
            assert_eq!(store(&fs, 3, LEN).unwrap(), Stored::Already);
            assert_eq!((files(dir).len(), fs.usage()), (3, usage));
            allow(&file(dir, 3), 0o600);
            check(&fs, 3, LEN);
            assert_eq!(deleted(&fs, &[1, 2, 3]), 3);
        }
    });
}

#[test]
fn a_shard_that_cannot_be_listed_hides_its_own_objects_only() {
    as_user(|dir, engine| {
        let numbers: Vec<u64> = (0..20).collect();
        let objects: Vec<(u64, usize)> = numbers.iter().map(|&number| (number, LEN)).collect();
        store_all(&open(dir, engine), &objects);
        let shard = file(dir, 0).parent().unwrap().to_owned();
        let hidden: Vec<u64> =
            numbers.iter().copied().filter(|&number| file(dir, number).starts_with(&shard)).collect();
        allow(&shard, 0);
        let (fs, lines) = logged(dir, engine);
        assert_eq!(fs.usage().objects, 20 - hidden.len() as u64);
        let why = bad(&fs);
        assert!(why.contains("cannot be listed") && why.contains(dir.to_str().unwrap()), "{why}");
        assert!(lines.lock().unwrap()[0].contains("cannot be listed"));
        for &(number, _) in objects.iter().filter(|(number, _)| !hidden.contains(number)) {
            check(&fs, number, LEN);
        }
        assert_eq!(lookup(&fs, &[hidden[0], numbers[19]], false).unwrap()[0], Found::Absent);
        unpin(&fs, &[numbers[19]]);
        let error = store(&fs, hidden[0], LEN).unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_PERMISSION);
        assert_eq!(store(&fs, 100, LEN).unwrap(), Stored::Written);
        // It is listed as soon as it can be.
        allow(&shard, 0o700);
        until("a healthy backend", || fs.health() == Health::Good);
        assert_eq!(fs.usage().objects, 21);
        hidden.iter().for_each(|&number| check(&fs, number, LEN));
        drop(fs);
        // A whole space.
        let space = shard.parent().unwrap();
        allow(space, 0);
        let (fs, _) = logged(dir, engine);
        assert_eq!(fs.usage().objects, 0);
        assert!(bad(&fs).contains("1 directory of objects"));
        allow(space, 0o700);
        until("a healthy backend", || fs.health() == Health::Good);
        check(&fs, 0, LEN);
    });
}

#[test]
fn a_directory_that_cannot_be_written_is_read_and_says_so() {
    as_user(|dir, engine| {
        store_all(&open(dir, engine), &[(1, LEN), (2, LEN)]);
        let mut places = vec![dir.to_owned()];
        places.extend(fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
        places.extend([1, 2].map(|number| file(dir, number).parent().unwrap().to_owned()));
        places.iter().for_each(|place| allow(place, 0o500));
        let (fs, lines) = logged(dir, engine);
        let why = bad(&fs);
        assert!(why.contains("Permission denied") && why.contains(dir.to_str().unwrap()), "{why}");
        assert!(lines.lock().unwrap().iter().any(|line| line.contains("none is stored")));
        check(&fs, 1, LEN);
        for number in 1..6 {
            match store(&fs, number, LEN) {
                Ok(stored) => assert!(number < 3 && stored == Stored::Already),
                Err(error) => assert!(number > 2 && error.status == KVKEEP_ERR_PERMISSION, "{error}"),
            }
        }
        assert!(delete(&fs, &[1]).recv_timeout(WATCHDOG).unwrap().is_err());
        check(&fs, 1, LEN);
        assert!(matches!(fs.health(), Health::Bad(_)), "a read is no proof that writes succeed");
        places.iter().for_each(|place| allow(place, 0o700));
        assert_eq!(store(&fs, 3, LEN).unwrap(), Stored::Written);
        assert_eq!(fs.health(), Health::Good);
        check(&fs, 3, LEN);
    });
}

#[test]
fn a_file_that_cannot_be_evicted_leaves_the_room_to_others() {
    as_user(|dir, engine| {
        let fs = Fs::open(FsOptions { capacity: 4 * disk(LEN), ..options(dir, engine) }).unwrap();
        for number in 0..4 {
            store(&fs, number, LEN).unwrap();
        }
        let stuck = file(dir, 0);
        allow(stuck.parent().unwrap(), 0o500);
        let error = store(&fs, 10, LEN).unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_IO, "not a matter of permission: the next attempt evicts another");
        assert!(error.message.starts_with("Permission denied") && error.message.contains("evicting"), "{error}");
        let path = stuck.to_str().unwrap();
        assert!(error.message.ends_with(&path[path.len() - 10..]), "{error}");
        for number in 10..12 {
            assert_eq!(store(&fs, number, LEN).unwrap(), Stored::Written);
        }
        check(&fs, 0, LEN);
        assert_eq!((fs.usage().objects, files(dir).len()), (4, 4));
        allow(stuck.parent().unwrap(), 0o700);
    });
}

#[test]
fn a_directory_that_cannot_be_listed_is_refused_with_its_name() {
    as_user(|dir, engine| {
        allow(dir, 0o300);
        let error = Fs::open(options(dir, engine)).err().expect("a refusal");
        allow(dir, 0o700);
        assert_eq!(error.status, KVKEEP_ERR_PERMISSION);
        assert!(error.message.contains(dir.to_str().unwrap()), "{error}");
    });
}

#[test]
fn what_is_no_file_is_no_object_and_a_new_one_takes_its_place() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        store(&fs, 1, LEN).unwrap();
        fs::remove_file(file(dir.path(), 1)).unwrap();
        std::os::unix::fs::symlink("/dev/null", file(dir.path(), 1)).unwrap();
        assert!(fetch(&fs, 1).is_err());
        assert_eq!(store(&fs, 1, LEN).unwrap(), Stored::Written);
        check(&fs, 1, LEN);
        assert_eq!(fs.quarantined(), 0);
    }
}
