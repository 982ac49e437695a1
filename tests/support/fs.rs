//! What the tests of the `fs` backend share.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use kvkeep::arena::Buffer;
use kvkeep::error::{Error, Result};
use kvkeep::key::{Key, ObjectKey, SpaceTag};
use kvkeep::l2::fs::{EngineKind, Fs, FsOptions};
use kvkeep::l2::object_header::Header;
use kvkeep::l2::{Backend, Found, LoadRequest, LoadSink, LookupRequest, Reply, StoreRequest, Stored, Usage};

use super::skip::skipped;

/// Against hangs only: no test expects to come near it.
pub const WATCHDOG: Duration = Duration::from_secs(120);
pub const LAYOUT: [u8; 16] = [7; 16];
pub const SPACE: SpaceTag = SpaceTag([0xa1; 16]);

/// The engines that this kernel allows.
pub fn engines() -> Vec<EngineKind> {
    let dir = tempfile::tempdir().unwrap();
    match Fs::open(FsOptions { engine: EngineKind::Uring, ..FsOptions::new(dir.path()) }) {
        Ok(_) => vec![EngineKind::Uring, EngineKind::Pool],
        Err(error) => {
            skipped("tests of the io_uring engine", error);
            vec![EngineKind::Pool]
        }
    }
}

/// Options under which a capacity has room for as many objects as it says: directories do not count.
pub fn options(dir: &Path, engine: EngineKind) -> FsOptions {
    FsOptions { engine, count_directories: false, ..FsOptions::new(dir) }
}

pub fn open(dir: &Path, engine: EngineKind) -> Arc<Fs> {
    Fs::open(options(dir, engine)).unwrap()
}

pub fn deadline() -> Instant {
    Instant::now() + WATCHDOG
}

/// Asks until it is so.
pub fn until(what: &str, come: impl Fn() -> bool) {
    let began = Instant::now();
    while !come() {
        assert!(began.elapsed() < WATCHDOG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn key(number: u64) -> ObjectKey {
    let hash = *blake3::hash(&number.to_le_bytes()).as_bytes();
    ObjectKey { space: SPACE, key: Key { hash, rank: (number % 3) as u32, group: (number % 2) as u32 } }
}

/// The bytes of object `number`, told from those of every other.
pub fn payload(number: u64, len: usize) -> Buffer {
    let mut buffer = Buffer::heap(len).unwrap();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in buffer.bytes_mut().chunks_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    buffer
}

fn wait<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(WATCHDOG).expect("an answer before the watchdog")
}

/// Waits until `done` is true of the usage, which is asked for after each change in the index.
pub fn wait_until(fs: &Fs, done: impl Fn(&Usage) -> bool) {
    let (to, changes) = mpsc::channel();
    fs.set_observer(Arc::new(move |_, _: &ObjectKey, _| to.send(()).unwrap_or_default()));
    let watch = Instant::now();
    while !done(&fs.usage()) {
        // Of the last change the observer hears a moment before the usage does.
        let _ = changes.recv_timeout(Duration::from_millis(50));
        assert!(watch.elapsed() < WATCHDOG, "{:?}", fs.usage());
    }
}

/// A store request, and what it answers.
pub fn storing(number: u64, buffer: Buffer, to: &Sender<(u64, Result<Stored>)>) -> StoreRequest {
    let key = key(number);
    let header = Header::new(&key, &LAYOUT, buffer.bytes(), true).into();
    let to = to.clone();
    let reply = Reply::new(move |result| to.send((number, result)).unwrap_or_default());
    StoreRequest { key, header, buffer, deadline: deadline(), reply }
}

/// Stores objects of these numbers and lengths in one batch; answers in their order.
pub fn store_all(fs: &Fs, objects: &[(u64, usize)]) -> Vec<Result<Stored>> {
    let (to, answers) = mpsc::channel();
    fs.store(objects.iter().map(|&(number, len)| storing(number, payload(number, len), &to)).collect());
    let mut results: Vec<(u64, Result<Stored>)> = objects.iter().map(|_| wait(&answers)).collect();
    results.sort_by_key(|(number, _)| objects.iter().position(|(other, _)| other == number));
    results.into_iter().map(|(_, result)| result).collect()
}

pub fn store(fs: &Fs, number: u64, len: usize) -> Result<Stored> {
    store_all(fs, &[(number, len)]).remove(0)
}

pub fn cached(fs: &Fs, number: u64) -> Found {
    let mut found = [Found::Absent];
    fs.lookup_cached(&[key(number)], &mut found);
    found[0]
}

pub fn lookup(fs: &Fs, numbers: &[u64], in_order: bool) -> Result<Vec<Found>> {
    let (to, answers) = mpsc::channel();
    let reply = Reply::new(move |result| to.send(result).unwrap_or_default());
    let keys = numbers.iter().map(|&number| key(number)).collect();
    fs.lookup(LookupRequest { keys, in_order, deadline: deadline(), reply });
    wait(&answers)
}

pub fn unpin(fs: &Fs, numbers: &[u64]) {
    let keys: Vec<ObjectKey> = numbers.iter().map(|&number| key(number)).collect();
    fs.unpin(&keys);
}

pub fn delete(fs: &Fs, numbers: &[u64]) -> Receiver<Result<u64>> {
    let (to, answers) = mpsc::channel();
    let reply = Reply::new(move |result| to.send(result).unwrap_or_default());
    fs.delete(numbers.iter().map(|&number| key(number)).collect(), reply);
    answers
}

pub fn deleted(fs: &Fs, numbers: &[u64]) -> u64 {
    wait(&delete(fs, numbers)).unwrap()
}

struct Sink(Sender<(u32, Buffer, Result<Header>)>);

impl LoadSink for Sink {
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>) {
        self.0.send((index, buffer, result)).unwrap_or_default();
    }
}

/// Loads pinned objects into buffers of these lengths, and verifies them.
pub fn load_into(fs: &Fs, objects: Vec<(u64, Buffer)>) -> Vec<Result<Buffer>> {
    load_verified(fs, objects, true)
}

/// As [`load_into`]; without `checksum` only whose they are and their lengths are verified.
pub fn load_verified(fs: &Fs, objects: Vec<(u64, Buffer)>, checksum: bool) -> Vec<Result<Buffer>> {
    let (to, answers) = mpsc::channel();
    let sink: Arc<dyn LoadSink> = Arc::new(Sink(to));
    let numbers: Vec<u64> = objects.iter().map(|(number, _)| *number).collect();
    let loads = objects.into_iter().enumerate().map(|(index, (number, buffer))| {
        let sink = Arc::clone(&sink);
        LoadRequest { key: key(number), buffer, checksum, deadline: deadline(), sink, index: index as u32 }
    });
    fs.load(loads.collect());
    drop(sink);
    let mut results: Vec<(u32, Result<Buffer>)> = numbers
        .iter()
        .map(|_| {
            let (index, buffer, result) = wait(&answers);
            let key = key(numbers[index as usize]);
            let verified = result.and_then(|header| header.verify(&key, Some(&LAYOUT), buffer.bytes(), checksum));
            (index, verified.map(|()| buffer))
        })
        .collect();
    assert!(answers.recv().is_err(), "an item was answered twice");
    results.sort_by_key(|(index, _)| *index);
    assert!(results.iter().enumerate().all(|(at, (index, _))| at == *index as usize), "an item was answered twice");
    results.into_iter().map(|(_, result)| result).collect()
}

/// Looks an object up, loads and verifies it, and unpins it.
pub fn fetch(fs: &Fs, number: u64) -> Result<Vec<u8>> {
    match lookup(fs, &[number], false)?[0] {
        Found::Present(size) => {
            let buffer = Buffer::heap(size as usize).unwrap();
            let result = load_into(fs, vec![(number, buffer)]).remove(0);
            unpin(fs, &[number]);
            result.map(|buffer| buffer.bytes().to_vec())
        }
        _ => Err(Error::new(kvkeep::error::KVKEEP_ERR_NOT_FOUND, "absent")),
    }
}

/// Fetches an object and compares every byte.
pub fn check(fs: &Fs, number: u64, len: usize) {
    let bytes = fetch(fs, number).unwrap_or_else(|error| panic!("object {number}: {error}"));
    assert!(bytes == payload(number, len).bytes(), "object {number} has other bytes");
}

/// Where an object's file is.
pub fn file(dir: &Path, number: u64) -> std::path::PathBuf {
    let key = key(number);
    let hash = kvkeep::key::hex(&key.key.hash);
    let name = format!("{hash}-{}-{}", key.key.rank, key.key.group);
    dir.join(kvkeep::key::hex(&key.space.0)).join(&hash[..2]).join(name)
}

/// Every file below `dir` and its length, but those by which writers say that they live.
pub fn files(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => all.extend(files(&entry.path())),
            Ok(_) if entry.file_name().to_str().unwrap().starts_with(".writer-") => {}
            Ok(_) if entry.file_name() == ".opened" => {}
            Ok(meta) => all.push((entry.path(), meta.len())),
            Err(_) => {}
        }
    }
    all
}

/// Bytes of disk that objects take in it, and not what else is there.
pub fn object_bytes(fs: &Fs) -> u64 {
    fs.usage().bytes - fs.usage().overhead
}

/// Bytes of disk that an object takes.
pub fn disk(len: usize) -> u64 {
    4096 + (len as u64).next_multiple_of(4096)
}

struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Runs `test`, which is the test that the harness knows as `name` ([`super::test_name`]), in a tmpfs of its own with these mount options: one that this process mounts, or
/// one in a user namespace. It is skipped where neither is allowed.
pub fn in_tmpfs(name: &str, options: &str, test: impl FnOnce(&Path)) {
    const DIR: &str = "KVKEEP_TEST_TMPFS";
    if let Ok(dir) = std::env::var(DIR) {
        return test(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output();
    if mount.is_ok_and(|output| output.status.success()) {
        let _mount = Mount(dir.path());
        return test(dir.path());
    }
    let script =
        format!("mount -t tmpfs -o {options} tmpfs \"${DIR}\" || exit 77; exec \"$0\" --exact {name} --nocapture");
    let child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .output();
    match child {
        Ok(output) if output.status.success() => {
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
        }
        Ok(output) if output.status.code() == Some(77) || !output.stdout.starts_with(b"\nrunning") => {
            skipped(name, format!("no tmpfs can be mounted ({})", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(output) => panic!("{output:?}"),
        Err(error) => skipped(name, format!("no tmpfs can be mounted (unshare: {error})")),
    }
}
