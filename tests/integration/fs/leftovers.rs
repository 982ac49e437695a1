//! What takes room in the directory without being an object is bounded, counted, and removed as soon as nobody needs it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvkeep::l2::fs::{EngineKind, Fs, FsOptions};
use kvkeep::l2::{Backend, Stored};

use crate::support::fs::*;
use crate::support::skip::skipped;
use crate::support::test_name;

const LEN: usize = 10_000;
const CHILD: &str = "KVKEEP_LEFTOVERS_CHILD";

fn tidied(dir: &Path, engine: EngineKind, capacity: u64) -> Arc<Fs> {
    Fs::open(FsOptions { capacity, cleanup_every: Duration::from_millis(10), ..options(dir, engine) }).unwrap()
}

/// Waits until the directory has been tidied, twice for sure: a temporary that nobody can ask about goes then.
fn tidied_twice(dir: &Path) {
    for number in 0..2 {
        let old = dir.join(format!("tmp/.tmp-ffffffffffffffff-1-1-0.{number}"));
        File::create(&old).unwrap().set_modified(SystemTime::now() - Duration::from_secs(100_000)).unwrap();
        until("an old temporary to go", || !old.exists());
    }
}

/// This kernel's half of the host in the names of temporaries.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    kvkeep::key::hex(&blake3::hash(boot.as_bytes()).as_bytes()[..4])
}

/// The lock and a temporary of a writer in another process namespace, as its names say.
fn foreign(dir: &Path, host: &str, number: u32) -> (File, PathBuf, PathBuf) {
    let writer = format!("{host}-{number}-77-0");
    let claim = dir.join(format!("tmp/.writer-{writer}"));
    let temporary = dir.join(format!("tmp/5/.tmp-{writer}.5"));
    // As a writer does: locked before others can find it.
    let unnamed = dir.join(format!("{host}-{number}"));
    let lock = File::create(&unnamed).unwrap();
    lock.lock().unwrap();
    fs::rename(unnamed, &claim).unwrap();
    fs::write(&temporary, b"half").unwrap();
    (lock, claim, temporary)
}

#[test]
fn what_a_writer_leaves_goes_with_its_lock_whatever_namespace_it_ran_in() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = tidied(dir.path(), engine, 0);
        let (other, rebooted) = (format!("{}00000000", boot()), "0123456701234567".to_owned());
        for host in [other, rebooted] {
            let (lock, claim, temporary) = foreign(dir.path(), &host, 1);
            tidied_twice(dir.path());
            assert!(temporary.exists() && claim.exists(), "its writer lives");
            // Process 1 of this namespace lives too, and has nothing to do with it.
            drop(lock);
            until("a dead writer's temporary to go", || !temporary.exists());
            until("its claim to go", || !claim.exists());
            // The same at the next open.
            let (lock, claim, temporary) = foreign(dir.path(), &host, 2);
            drop(open(dir.path(), engine));
            assert!(temporary.exists());
            drop(lock);
            drop(open(dir.path(), engine));
            until("both to go", || !temporary.exists() && !claim.exists());
        }
        let is_claim = |entry: &std::io::Result<fs::DirEntry>| {
            entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with(".writer-")
        };
        let claims = || fs::read_dir(dir.path().join("tmp")).unwrap().filter(is_claim).count();
        assert_eq!(claims(), 1);
        drop(fs);
        assert_eq!(claims(), 0);
    }
}

/// Opens the directory, leaves a temporary as one that is being written, and waits to be killed.
fn child(dir: &Path) {
    let _fs = open(dir, EngineKind::Pool);
    let mut names =
        fs::read_dir(dir.join("tmp")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pid = format!("-{}-", std::process::id());
    let own = names.find(|name| name.starts_with(".writer-") && name.contains(&pid)).unwrap();
    fs::write(dir.join("tmp").join(own.replacen(".writer-", ".tmp-", 1) + ".999"), vec![1; LEN]).unwrap();
    std::thread::sleep(2 * WATCHDOG);
}

fn spawn(dir: &Path, before: &[&str]) -> Child {
    let test = test_name(module_path!(), "what_a_killed_process_leaves_goes_while_others_run");
    let binary = std::env::current_exe().unwrap();
    let mut words: Vec<&str> = before.to_vec();
    words.extend([binary.to_str().unwrap(), "--exact", &test, "--nocapture"]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env(CHILD, dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn what_a_killed_process_leaves_goes_while_others_run() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir));
    }
    let namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    let can_unshare = Command::new(namespace[0]).args(&namespace[1..]).arg("true").status().is_ok_and(|s| s.success());
    let mut kinds: Vec<&[&str]> = vec![&[]];
    if can_unshare {
        kinds.push(&namespace);
    } else {
        skipped("what_a_killed_process_leaves_goes, in a namespace of its own", "unshare is refused");
    }
    for before in kinds {
        let dir = tempfile::tempdir().unwrap();
        let fs = tidied(dir.path(), EngineKind::Pool, 0);
        let mut child = spawn(dir.path(), before);
        let left = || {
            let names = fs::read_dir(dir.path().join("tmp")).unwrap();
            names.filter(|name| name.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".999")).count()
        };
        until("a temporary of the child", || left() == 1);
        tidied_twice(dir.path());
        assert_eq!(left(), 1, "its writer lives");
        child.kill().unwrap();
        child.wait().unwrap();
        until("the temporary of the killed child to go", || left() == 0);
        drop(fs);
    }
}

#[test]
fn what_nobody_can_be_asked_about_counts_under_the_capacity_until_it_is_old() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let capacity = 4 * disk(LEN);
        let fs = tidied(dir.path(), engine, capacity);
        let objects: Vec<(u64, usize)> = (0..4).map(|number| (number, LEN)).collect();
        assert!(store_all(&fs, &objects).into_iter().all(|stored| stored.is_ok()));
        let left = dir.path().join("tmp/.tmp-0123456701234567-1-1-0.1");
        fs::write(&left, vec![1; 2 * LEN]).unwrap();
        let bytes = left.metadata().unwrap().blocks() * 512;
        let age = |seconds| {
            File::options()
                .write(true)
                .open(&left)
                .unwrap()
                .set_modified(SystemTime::now() - Duration::from_secs(seconds))
                .unwrap()
        };
        tidied_twice(dir.path());
        assert_eq!(fs.usage().overhead, 0, "it may be being written");
        age(600);
        until("it to be counted", || fs.usage().overhead == bytes);
        until("room for it", || fs.usage().bytes <= capacity);
        assert_eq!(store(&fs, 10, LEN).unwrap(), Stored::Written);
        assert!(fs.usage().bytes <= capacity && fs.usage().objects == 2);
        age(2 * 3600);
        until("it to go", || !left.exists());
        until("its room to be free", || fs.usage().overhead == 0);
    }
}

#[test]
fn quarantine_is_bounded_in_bytes_and_counts_under_the_capacity() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let capacity = 250 * disk(LEN);
        let fs = tidied(dir.path(), engine, capacity);
        let objects: Vec<(u64, usize)> = (0..250).map(|number| (number, LEN)).collect();
        assert!(store_all(&fs, &objects).into_iter().all(|stored| stored.is_ok()));
        let kept =
            || files(dir.path()).iter().filter(|(path, _)| path.parent().unwrap().ends_with("quarantine")).count();
        for number in 0..5 {
            fs.quarantine(key(number));
            lookup(&fs, &[number], false).unwrap();
            assert!(kept() <= 2 && fs.usage().bytes <= capacity);
        }
        assert_eq!((kept(), fs.usage().overhead, fs.quarantined()), (2, 2 * disk(LEN), 5));
        assert_eq!(fs.usage().bytes, 247 * disk(LEN));
        for number in 300..310 {
            assert_eq!(store(&fs, number, LEN).unwrap(), Stored::Written);
        }
        let on_disk: u64 = files(dir.path()).iter().map(|(_, len)| len.next_multiple_of(4096)).sum();
        assert_eq!((on_disk, fs.usage().bytes), (capacity, capacity));
        // Somebody empties it.
        fs::remove_dir_all(dir.path().join("quarantine")).unwrap();
        until("its room to be free", || fs.usage().overhead == 0);
        // One that alone is more than the quarantine may hold is not kept.
        store(&fs, 400, 10 * LEN).unwrap();
        fs.quarantine(key(400));
        lookup(&fs, &[400], false).unwrap();
        assert_eq!((kept(), fs.quarantined(), file(dir.path(), 400).exists()), (0, 6, false));
        // A smaller capacity has a smaller quarantine.
        fs.quarantine(key(300));
        fs.quarantine(key(301));
        drop(fs);
        assert_eq!(kept(), 2);
        let fs = tidied(dir.path(), engine, 100 * disk(LEN));
        assert_eq!((kept(), fs.usage().overhead), (1, disk(LEN)));
    }
}

#[test]
fn directories_that_vanish_are_made_again() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        for number in 0..3 {
            store(&fs, number, LEN).unwrap();
            fs::remove_dir_all(file(dir.path(), number).parent().unwrap()).unwrap();
            assert!(fetch(&fs, number).is_err());
            fs::remove_dir_all(dir.path().join("tmp")).unwrap();
            assert_eq!(store(&fs, number, LEN).unwrap(), Stored::Written);
            check(&fs, number, LEN);
        }
    }
}

/// Bytes of disk of everything below `path`, itself included.
fn disk_usage(path: &Path) -> u64 {
    let own = path.symlink_metadata().map_or(0, |meta| meta.blocks() * 512);
    let below = fs::read_dir(path).into_iter().flatten().map(|entry| disk_usage(&entry.unwrap().path()));
    own + below.sum::<u64>()
}

#[test]
fn directories_count_under_the_capacity_and_go_when_they_are_empty() {
    const SMALL: usize = 4000;
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let capacity = 4 << 20;
        let cleanup_every = Duration::from_millis(10);
        let options = || FsOptions { capacity, cleanup_every, ..FsOptions { engine, ..FsOptions::new(dir.path()) } };
        let fs = Fs::open(options()).unwrap();
        for first in [0, 400, 800] {
            let objects: Vec<(u64, usize)> = (first..first + 400).map(|number| (number, SMALL)).collect();
            for stored in store_all(&fs, &objects) {
                stored.unwrap();
            }
        }
        until("the directory to be within its bound", || disk_usage(dir.path()) <= capacity + capacity / 100);
        until("all of it to be counted", || fs.usage().bytes >= disk_usage(dir.path()) && fs.usage().bytes <= capacity);
        assert!(fs.usage().objects > 300, "{:?}", fs.usage());
        fs.close();
        drop(fs);
        let fs = Fs::open(options()).unwrap();
        assert!(fs.usage().bytes >= disk_usage(dir.path()), "{:?}", fs.usage());
        deleted(&fs, &(0..1200).collect::<Vec<u64>>());
        assert_eq!(fs.usage().objects, 0);
        let directories =
            || fs::read_dir(dir.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
        until("empty directories to go", || directories() == 1);
        until("their bytes to be free", || fs.usage().bytes == disk_usage(dir.path()));
        assert_eq!(store(&fs, 0, SMALL).unwrap(), Stored::Written);
        check(&fs, 0, SMALL);
    }
}
