//! What the directory remembers: restarts, capacity, order, other processes, rubbish, full disks.
#![allow(unsafe_code)]

use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use kvkeep::arena::{Buffer, Hold};
use kvkeep::error::{KVKEEP_ERR_INVALID, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION, Result};
use kvkeep::l2::fs::listing::FileKind;
use kvkeep::l2::fs::{EngineKind, Fs, FsOptions};
use kvkeep::l2::{Backend, Found, LookupRequest, Reply, Stored};
use kvkeep::log::Log;

use crate::support::fs::*;
use crate::support::skip::skipped;

const LEN: usize = 10_000;

fn bounded(dir: &std::path::Path, engine: EngineKind, objects: u64) -> Arc<Fs> {
    Fs::open(FsOptions { capacity: objects * disk(LEN), ..options(dir, engine) }).unwrap()
}

fn present(fs: &Fs, numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    let there: Vec<u64> = numbers.filter(|&number| matches!(cached(fs, number), Found::Present(_))).collect();
    unpin(fs, &there);
    there
}

#[test]
fn p9_the_least_recently_used_go_first_and_the_bound_holds() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = bounded(dir.path(), engine, 4);
        for number in 0..4 {
            store(&fs, number, LEN).unwrap();
        }
        fs.touch(&[key(0)]);
        check(&fs, 1, LEN);
        for number in 4..6 {
            assert_eq!(store(&fs, number, LEN).unwrap(), Stored::Written);
            let on_disk: u64 = files(dir.path()).iter().map(|(_, len)| len.next_multiple_of(4096)).sum();
            assert!(on_disk <= 4 * disk(LEN) && fs.usage().bytes <= 4 * disk(LEN));
        }
        assert_eq!(present(&fs, 0..6), [0, 1, 4, 5]);
        assert_eq!(fs.usage().evicted, 2);
        // A batch of more than fits at once waits for its own writes.
        let batch: Vec<(u64, usize)> = (10..30).map(|number| (number, LEN)).collect();
        assert!(store_all(&fs, &batch).into_iter().all(|result| result.unwrap() == Stored::Written));
        assert_eq!(fs.usage().objects, 4);
        assert_eq!(files(dir.path()).len(), 4);
        // One object larger than everything fails alone and evicts nobody.
        let error = store(&fs, 40, 7 * LEN).unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_LIMIT);
        assert_eq!(fs.usage().objects, 4);
    }
}

#[test]
fn p2_pinned_objects_are_not_evicted() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = bounded(dir.path(), engine, 2);
        store_all(&fs, &[(1, LEN), (2, LEN)]);
        assert_eq!(cached(&fs, 1), Found::Present(LEN as u64));
        store(&fs, 3, LEN).unwrap();
        assert_eq!(present(&fs, 1..4), [1, 3]);
        assert_eq!(cached(&fs, 3), Found::Present(LEN as u64));
        assert_eq!(store(&fs, 4, LEN).unwrap_err().status, KVKEEP_ERR_LIMIT);
        load_into(&fs, vec![(1, Buffer::heap(LEN).unwrap())]).remove(0).unwrap();
        unpin(&fs, &[3]);
        assert_eq!(store(&fs, 4, LEN).unwrap(), Stored::Written);
        assert_eq!(present(&fs, 1..5), [1, 4]);
    }
}

#[test]
fn a_deleted_object_is_gone_whoever_has_it_pinned_and_can_be_stored_anew() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        store_all(&fs, &[(1, LEN), (2, LEN), (3, LEN)]);
        assert_eq!(deleted(&fs, &[1, 9]), 1);
        assert!(!file(dir.path(), 1).exists());
        assert_eq!(cached(&fs, 2), Found::Present(LEN as u64));
        let answer = delete(&fs, &[2]);
        assert_eq!(cached(&fs, 2), Found::Absent);
        assert_eq!(lookup(&fs, &[2], true).unwrap(), [Found::Absent]);
        // Nobody waits for the pin.
        assert_eq!(answer.recv_timeout(WATCHDOG).unwrap().unwrap(), 1);
        assert!(!file(dir.path(), 2).exists());
        let late = load_into(&fs, vec![(2, Buffer::heap(LEN).unwrap())]).remove(0).map(|_| ());
        assert_eq!(late.unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        assert_eq!(fs.usage().pins, 1);
        unpin(&fs, &[2]);
        // Deleted and stored again in one breath, with another length, while a reader has the old one pinned.
        assert_eq!(cached(&fs, 3), Found::Present(LEN as u64));
        let answer = delete(&fs, &[3]);
        assert_eq!(store(&fs, 3, 2 * LEN).unwrap(), Stored::Written);
        assert_eq!(answer.recv_timeout(WATCHDOG).unwrap().unwrap(), 1);
        let late = load_into(&fs, vec![(3, Buffer::heap(LEN).unwrap())]).remove(0).map(|_| ());
        assert_eq!(late.unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        check(&fs, 3, 2 * LEN);
        unpin(&fs, &[3, 3]);
        assert_eq!((fs.usage().bytes, fs.usage().pins), (disk(2 * LEN), 0));
        check(&fs, 3, 2 * LEN);
    }
}

/// Deletes object 1 as soon as its payload is let go.
struct Deletes(Mutex<Option<Arc<Fs>>>);

impl Hold for Deletes {
    fn release(&self, _: u64) {
        let fs = self.0.lock().unwrap().take();
        assert_eq!(fs.map(|fs| deleted(&fs, &[1])), Some(1));
    }
}

#[test]
fn what_is_deleted_as_soon_as_nobody_writes_it_stays_away() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        let mut bytes = payload(1, LEN);
        let hold = Arc::new(Deletes(Mutex::new(Some(fs.clone()))));
        // SAFETY: `bytes` lives until the store is answered, which is after its buffer is let go.
        let buffer = unsafe { Buffer::from_raw(bytes.bytes_mut().as_mut_ptr(), LEN, hold, 0) };
        let (to, answers) = mpsc::channel();
        fs.store(vec![storing(1, buffer, &to)]);
        assert_eq!(answers.recv_timeout(WATCHDOG).unwrap().1.unwrap(), Stored::Written);
        assert_eq!(lookup(&fs, &[1], false).unwrap(), [Found::Absent]);
        assert_eq!((fs.usage().objects, files(dir.path()).len()), (0, 0));
    }
}

#[test]
fn a_restart_keeps_index_usage_and_order() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = bounded(dir.path(), engine, 6);
        for number in 0..6 {
            store(&fs, number, LEN).unwrap();
        }
        // One call, so that the order within it must be kept as well.
        fs.touch(&[key(3), key(0), key(5)]);
        check(&fs, 1, LEN);
        let usage = fs.usage();
        fs.close();
        drop(fs);
        let fs = bounded(dir.path(), engine, 6);
        assert_eq!(fs.usage(), usage);
        assert_eq!(fs.list(None).len(), 6);
        assert_eq!(fs.list(Some(kvkeep::key::SpaceTag([0; 16]))), []);
        let mut left = vec![2, 4, 3, 0, 5, 1];
        for number in 10..16 {
            store(&fs, number, LEN).unwrap();
            let gone = left.remove(0);
            assert!(!file(dir.path(), gone).exists());
            let mut expected = left.clone();
            expected.sort_unstable();
            assert_eq!(present(&fs, 0..6), expected);
        }
        // A smaller capacity is worked off after it is opened.
        fs.close();
        let fs = bounded(dir.path(), engine, 2);
        wait_until(&fs, |usage| usage.objects == 2);
        assert_eq!(present(&fs, 0..20), [14, 15]);
        fs.close();
        assert_eq!(files(dir.path()).len(), 2);
    }
}

#[test]
fn two_backends_on_one_directory_see_each_other() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (open(dir.path(), engine), open(dir.path(), engine));
        let alone = Fs::open(FsOptions { shared: Some(false), ..options(dir.path(), engine) }).unwrap();
        store_all(&one, &[(1, LEN), (2, LEN), (4, LEN)]);
        assert_eq!(cached(&two, 1), Found::Unknown);
        assert_eq!(cached(&alone, 1), Found::Absent);
        let (here, absent) = (Found::Present(LEN as u64), Found::Absent);
        assert_eq!(lookup(&two, &[1, 2, 3, 4], true).unwrap(), [here, here, absent, absent]);
        assert_eq!(lookup(&two, &[1, 2, 3, 4], false).unwrap(), [here, here, absent, here]);
        assert_eq!(cached(&two, 1), here);
        unpin(&two, &[1, 2, 1, 2, 4, 1]);
        assert_eq!(two.usage().bytes, 3 * disk(LEN));
        check(&two, 2, LEN);
        assert_eq!(store(&two, 1, LEN).unwrap(), Stored::Already);
        assert_eq!(store(&alone, 1, LEN).unwrap(), Stored::Already);
        // Gone under `one`: that load fails and the index learns it.
        assert_eq!(deleted(&two, &[1]), 1);
        assert!(fetch(&one, 1).is_err());
        assert_eq!(lookup(&one, &[1], true).unwrap(), [absent]);
        assert_eq!(files(dir.path()).len(), 2);
    }
}

#[test]
fn a_backend_that_is_alone_knows_what_is_absent() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let options = || FsOptions { cleanup_every: Duration::from_millis(20), ..options(dir.path(), engine) };
        let one = Fs::open(options()).unwrap();
        store(&one, 1, LEN).unwrap();
        assert_eq!(cached(&one, 2), Found::Absent);
        // From the moment that another has opened the directory, an absent key may have been stored by it.
        let two = open(dir.path(), engine);
        assert_eq!(cached(&one, 2), Found::Unknown);
        assert_eq!(cached(&two, 2), Found::Unknown);
        store(&two, 2, LEN).unwrap();
        two.close();
        drop(two);
        // When the other is gone, the directory is listed, and then this one is alone again.
        let watchdog = Instant::now() + WATCHDOG;
        while cached(&one, 3) != Found::Absent {
            assert!(Instant::now() < watchdog, "not alone again");
            std::thread::yield_now();
        }
        assert_eq!(cached(&one, 2), Found::Present(LEN as u64));
        unpin(&one, &[2]);
        check(&one, 2, LEN);
        one.close();
        drop(one);
        assert!(!dir.path().join("tmp/.opened").exists());
        // Without the file that shows later openers, nothing would.
        let one = open(dir.path(), engine);
        assert_eq!(cached(&one, 3), Found::Absent);
        std::fs::remove_file(dir.path().join("tmp/.opened")).unwrap();
        assert_eq!(cached(&one, 3), Found::Unknown);
        let told = Fs::open(FsOptions { shared: Some(true), ..options() }).unwrap();
        assert_eq!(cached(&told, 3), Found::Unknown);
    }
}

#[test]
fn a_file_may_be_of_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path(), EngineKind::Pool), open(dir.path(), EngineKind::Pool));
    let century = Duration::from_secs(100 * 365 * 86_400);
    for (number, time) in [(1, SystemTime::UNIX_EPOCH - century), (2, SystemTime::UNIX_EPOCH + 6 * century)] {
        store(&one, number, LEN).unwrap();
        let written = std::fs::File::options().write(true).open(file(dir.path(), number)).unwrap();
        written.set_modified(time).unwrap();
        check(&two, number, LEN);
    }
    drop((one, two));
    let fs = open(dir.path(), EngineKind::Pool);
    (1..3).for_each(|number| check(&fs, number, LEN));
}

#[test]
fn rubbish_is_removed_or_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let fs = open(dir.path(), EngineKind::Pool);
    store_all(&fs, &[(1, LEN), (2, LEN)]);
    drop(fs);
    let shard = file(dir.path(), 1).parent().unwrap().to_owned();
    let put = |name: &str| std::fs::write(shard.join(name), b"half").map(|()| shard.join(name)).unwrap();
    // What a child of this process, which is dead by now, would have left.
    let seen = {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let start = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().to_owned();
        drop(child.stdin.take());
        child.wait().unwrap();
        format!("{}-{start}", child.id())
    };
    let this = host();
    let dead = put(&format!(".tmp-{this}-{seen}-0.1"));
    let elsewhere = put(".tmp-00112233aabbccdd-1-1-0.1");
    let old = put(".tmp-00112233aabbccdd-1-1-0.2");
    let past = SystemTime::now() - Duration::from_secs(7200);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(past).unwrap();
    let foreign = put("README");
    let short = file(dir.path(), 2);
    std::fs::File::options().write(true).open(&short).unwrap().set_len(100).unwrap();
    std::fs::write(dir.path().join("notes"), b"mine").unwrap();
    // What one that was killed while it opened the directory left.
    let probe = dir.path().join(dead.file_name().unwrap());
    std::fs::write(&probe, b"").unwrap();
    let listed = kvkeep::l2::fs::listing::list(dir.path()).unwrap();
    let stale = FileKind::Temporary { stale: true };
    assert!(listed.iter().any(|entry| entry.path == probe && entry.kind == stale));
    assert!(listed.iter().all(|entry| entry.path != dir.path().join("notes")));

    let fs = open(dir.path(), EngineKind::Pool);
    assert!(!dead.exists() && !probe.exists() && !old.exists() && !short.exists());
    assert!(elsewhere.exists() && foreign.exists() && dir.path().join("notes").exists());
    assert_eq!(fs.usage().bytes, disk(LEN));
    check(&fs, 1, LEN);
}

/// The host part of temporary names, as this process writes it.
fn host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let digits = |bytes: &[u8]| kvkeep::key::hex(&blake3::hash(bytes).as_bytes()[..4]);
    digits(boot.as_bytes()) + &digits(namespace.to_str().unwrap().as_bytes())
}

#[test]
fn p7_quarantine_keeps_a_bounded_number() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        let objects: Vec<(u64, usize)> = (0..70).map(|number| (number, 100)).collect();
        store_all(&fs, &objects);
        for number in 0..70 {
            fs.quarantine(key(number));
            assert!(!matches!(cached(&fs, number), Found::Present(_)));
        }
        let numbers: Vec<u64> = (0..70).collect();
        assert!(lookup(&fs, &numbers, false).unwrap().iter().all(|found| *found == Found::Absent));
        assert_eq!(fs.quarantined(), 70);
        assert_eq!(files(&dir.path().join("quarantine")).len(), 64);
        assert_eq!((fs.usage().objects, fs.usage().bytes), (0, 64 * disk(100)));
        let usage = fs.usage();
        drop(fs);
        assert_eq!(open(dir.path(), engine).usage(), usage);
    }
}

#[test]
fn p7_what_is_damaged_is_moved_away_however_much_waits() {
    let dir = tempfile::tempdir().unwrap();
    let fs = open(dir.path(), EngineKind::Pool);
    store(&fs, 1, LEN).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let ask = |numbers: std::ops::Range<u64>, reply| {
        fs.lookup(LookupRequest { keys: numbers.map(key).collect(), in_order: true, deadline: deadline(), reply });
    };
    // Holds the maintenance thread, behind which more waits than it takes.
    ask(1000..1001, Reply::new(move |_| wait.recv().unwrap_or_default()));
    let (refused, refusals) = mpsc::channel();
    for _ in 0..3 {
        let refused = refused.clone();
        ask(0..1 << 17, Reply::new(move |found: Result<Vec<Found>>| refused.send(found.is_err()).unwrap_or_default()));
    }
    assert!(refusals.recv_timeout(WATCHDOG).unwrap());
    fs.quarantine(key(1));
    go.send(()).unwrap();
    fs.close();
    assert_eq!(fs.quarantined(), 1);
    assert!(!file(dir.path(), 1).exists());
}

struct Mount<'a>(&'a std::path::Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn what_cannot_be_unlinked_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| Command::new("mount").args(args).arg(dir.path()).output();
    if !mount(&["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).is_ok_and(|output| output.status.success()) {
        return skipped("what_cannot_be_unlinked_keeps_its_place", "a tmpfs cannot be mounted");
    }
    let _mount = Mount(dir.path());
    for engine in engines() {
        let fs = bounded(dir.path(), engine, 4);
        store_all(&fs, &[(0, LEN), (1, LEN), (2, LEN), (3, LEN)]);
        assert!(mount(&["-o", "remount,ro"]).unwrap().status.success());
        for number in 10..16 {
            assert_eq!(store(&fs, number, LEN).unwrap_err().status, KVKEEP_ERR_PERMISSION);
        }
        assert!(delete(&fs, &[1]).recv_timeout(WATCHDOG).unwrap().is_err());
        assert_eq!((fs.usage().objects, fs.usage().bytes), (4, 4 * disk(LEN)));
        assert!(mount(&["-o", "remount,rw"]).unwrap().status.success());
        (0..4).for_each(|number| check(&fs, number, LEN));
        for number in 10..13 {
            assert_eq!(store(&fs, number, LEN).unwrap(), Stored::Written);
        }
        assert_eq!((fs.usage().bytes, files(dir.path()).len()), (4 * disk(LEN), 4));
        assert_eq!(deleted(&fs, &[0, 1, 2, 3, 10, 11, 12]), 4);
    }
}

#[test]
fn a_wrong_policy_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let params = [("policy".to_owned(), "fifo".to_owned())];
    let error = Fs::open_url(dir.path().to_str().unwrap(), &params, &Log::none()).err().unwrap();
    assert_eq!(error.status, KVKEEP_ERR_INVALID);
    assert!(error.message.contains("fifo") && error.message.contains("lru"), "{error}");
}

#[test]
fn objects_are_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt as _;
    fn look(path: &std::path::Path, seen: &mut [usize; 2]) {
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o007, 0, "{}", path.display());
        seen[usize::from(metadata.is_dir())] += 1;
        if metadata.is_dir() {
            std::fs::read_dir(path).unwrap().for_each(|entry| look(&entry.unwrap().path(), seen));
        }
    }
    for engine in engines() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("made/by/the/cache");
        let fs = Fs::open(options(&dir, engine)).unwrap();
        for number in 0..3 {
            store(&fs, number, LEN).unwrap();
        }
        let mut seen = [0; 2];
        look(&above.path().join("made"), &mut seen);
        // The objects, and the files by which the backend says that it lives and has the directory alone.
        assert!(seen[0] == 5 && seen[1] > 4, "{seen:?}");
    }
}
