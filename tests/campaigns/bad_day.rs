//! The bad day: two daemons share one directory on a disk that fills and empties, a third process deletes files by hand, both
//! daemons have 256 descriptors, and clients and daemons are killed at any instant.
//!
//! No byte is wrong, the directory stays within its bounds, nothing leaks, and when the day is over everything is found that the
//! capacity has room for. KVKEEP_BAD_DAY_SECONDS says how long it lasts, KVKEEP_BAD_DAY_SEED repeats a seed (not the interleaving).

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvkeep::abi::JobResult;
use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::daemon::client::Client;
use kvkeep::error::{Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_NOT_FOUND};
use kvkeep::key::Key;
use kvkeep::l2::Backend as _;
use kvkeep::l2::fs::{Fs, FsOptions, listing};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::support::process::{self, *};
use crate::support::random::{Random, rounds, seed};
use crate::support::skip::skipped;

const DAEMONS: usize = 2;
const CLIENTS: usize = 8;
/// Of each daemon's backend; the disk has room for both and some more.
const CAPACITY: u64 = 16 * MIB;
const DISK: u64 = 48 * MIB;
const DESCRIPTORS: u64 = 256;
/// Prompts that all clients ask for, and chunks of the longest: together four times the capacity.
const PROMPTS: u64 = 300;
const CHUNKS_MAX: u64 = 40;

#[derive(Serialize, Deserialize)]
enum Part {
    Daemon(DaemonPart),
    Client {
        daemon: DaemonPart,
        seed: u64,
    },
    /// Deletes objects of the directory by hand.
    Deleter {
        dir: PathBuf,
        seed: u64,
    },
    /// The whole day, over a directory.
    Day {
        dir: PathBuf,
        small_disk: bool,
        seconds: u64,
        seed: u64,
    },
}

impl process::Part for Part {
    const MODULE: &str = module_path!();
}

#[test]
#[ignore = "the other tests start it in processes"]
fn plays_its_part() {
    match process::part() {
        Part::Daemon(daemon) => {
            let limit = Some(DESCRIPTORS);
            setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
            daemon.play();
        }
        Part::Client { daemon, seed } => ask(&daemon, seed),
        Part::Deleter { dir, seed } => delete_by_hand(&dir, seed),
        Part::Day { dir, small_disk, seconds, seed } => day(&dir, small_disk, seconds, seed),
    }
}

/// A prompt shares its first chunks with others.
fn prompt(number: u64) -> Vec<Key> {
    let chunks = 4 + number * 7 % (CHUNKS_MAX - 3);
    let chunk = |chunk| if chunk < 4 { number % 16 * 4 + chunk } else { 1000 + number * CHUNKS_MAX + chunk };
    (0..chunks).map(|number| key(chunk(number), 0)).collect()
}

/// A daemon that died meanwhile, or whose death ended the session, is no fault of a client.
fn lost(error: &Error) -> bool {
    matches!(error.status, KVKEEP_ERR_DISCONNECTED | KVKEEP_ERR_NOT_FOUND)
}

/// Asks for prompts, a few of them often, checks every byte that is found, and stores the rest.
fn ask(daemon: &DaemonPart, seed: u64) {
    let client = daemon.patient_client();
    let mut random = Random(seed);
    loop {
        let number = if random.one_in(2) { random.below(16) } else { random.below(PROMPTS) };
        match serve(&client, &prompt(number)) {
            Ok((asked, found)) => say(&format!("served {asked} {found}")),
            Err(error) => {
                assert!(lost(&error), "{error}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// How many chunks were asked for, and how many found.
fn serve(client: &Client, keys: &[Key]) -> Result<(u64, u64), Error> {
    let space = client.open_space(spec("day", ""))?;
    let session = client.begin_session(space, "day", None)?;
    let mut job = 0;
    client.submit_prefetch(session, keys, PrefetchRequest::default(), &mut job)?;
    client.wait(job, WATCHDOG_MS)?;
    let mut result = JobResult::default();
    client.query_job(job, &mut result)?;
    let (found, missing) = keys.split_at(result.hit_chunks as usize);
    let mut held = views(found.len());
    if !found.is_empty() {
        client.get_views(session, found, &mut held)?;
        check(client, found, &held);
        client.finish_read(session, found, 0, None)?;
    }
    if !missing.is_empty() {
        let sizes: Vec<u64> = missing.iter().map(size).collect();
        let mut places = views(missing.len());
        client.reserve_write(session, missing, &sizes, false, &mut places)?;
        fill(client, missing, &places);
        let staged: Vec<Key> =
            missing.iter().zip(&places).filter(|(_, place)| place.status == 0).map(|(key, _)| *key).collect();
        if !staged.is_empty() {
            client.finish_write(session, &staged, None)?;
        }
    }
    client.end_session(session)?;
    Ok((keys.len() as u64, found.len() as u64))
}

/// Every file below a directory. What vanishes meanwhile is left out.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found
}

/// Bytes of disk that a directory and all in it take.
fn disk_usage(dir: &Path) -> u64 {
    let mut bytes = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    bytes
}

fn delete_by_hand(dir: &Path, seed: u64) {
    let mut random = Random(seed);
    loop {
        let files = files(dir);
        for _ in 0..files.len().min(3) {
            // One that is gone already is deleted as wished.
            let _ = std::fs::remove_file(&files[random.below(files.len() as u64) as usize]);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Fills the disk to its last byte and empties it again, until told to stop.
fn fill_and_empty(ballast: &Path, stop: &AtomicBool) -> u64 {
    let block = vec![0; 256 << 10];
    let mut times = 0;
    let wait = |time: Duration| {
        let until = Instant::now() + time;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let mut file = std::fs::File::create(ballast).unwrap();
        while file.write_all(&block).is_ok() {}
        times += 1;
        wait(Duration::from_millis(1500));
        std::fs::remove_file(ballast).unwrap();
        wait(Duration::from_millis(2500));
    }
    times
}

fn count(process: &Process, what: &str) -> usize {
    std::fs::read_dir(format!("/proc/{}/{what}", process.pid())).unwrap().count()
}

/// What a daemon has when nobody uses it: descriptors and threads.
fn resources(daemon: &Process) -> (usize, usize) {
    (count(daemon, "fd"), count(daemon, "task"))
}

struct Day {
    parts: Vec<DaemonPart>,
    daemons: Vec<Process>,
    clients: Vec<Process>,
    random: Random,
    asked: u64,
    found: u64,
    kills: u64,
}

/// Descriptors and threads that a daemon may have more than it had when it was new: clients that are about to go.
const SPARE: usize = 4;

impl Day {
    fn start_daemon(part: &DaemonPart) -> Process {
        let mut daemon = Process::start(&Part::Daemon(part.clone()));
        daemon.expect("serving");
        daemon
    }

    fn start_client(parts: &[DaemonPart], number: usize, seed: u64) -> Process {
        Process::start(&Part::Client { daemon: parts[number % DAEMONS].clone(), seed })
    }

    /// Hears one request of each client, then kills one of them, and now and then a daemon.
    fn go_on(&mut self) {
        for client in &mut self.clients {
            let served = client.expect("served");
            let numbers: Vec<u64> = served.split(' ').map(|number| number.parse().unwrap()).collect();
            self.asked += numbers[0];
            self.found += numbers[1];
        }
        if self.random.one_in(10) {
            let victim = self.random.below(CLIENTS as u64) as usize;
            self.clients[victim].kill();
            let seed = self.random.next();
            self.clients[victim] = Day::start_client(&self.parts, victim, seed);
            self.kills += 1;
        }
        if self.random.one_in(100) {
            let victim = self.random.below(DAEMONS as u64) as usize;
            self.daemons[victim].kill();
            self.daemons[victim] = Day::start_daemon(&self.parts[victim]);
            self.kills += 1;
        }
    }
}

fn day(dir: &Path, small_disk: bool, seconds: u64, seed: u64) {
    let _watch = watch_for(4 * WATCHDOG + Duration::from_secs(seconds));
    let objects = dir.join("objects");
    let part = |number: usize| {
        let l2 = format!("fs://{}?capacity={CAPACITY}", objects.display());
        let home = dir.join(format!("daemon{number}"));
        std::fs::create_dir(&home).unwrap();
        DaemonPart { l1_bytes: 4 * MIB, ..DaemonPart::with_l2(&home, &l2) }
    };
    let mut random = Random(seed);
    let parts: Vec<DaemonPart> = (0..DAEMONS).map(part).collect();
    let daemons: Vec<Process> = parts.iter().map(Day::start_daemon).collect();
    let fresh: Vec<(usize, usize)> = parts
        .iter()
        .zip(&daemons)
        .map(|(part, daemon)| {
            let client = part.client();
            serve(&client, &prompt(0)).unwrap();
            client.flush(WATCHDOG_MS).unwrap();
            let fresh = resources(daemon);
            client.close();
            fresh
        })
        .collect();
    let clients = (0..CLIENTS).map(|number| Day::start_client(&parts, number, random.next())).collect();
    let deleter = Process::start(&Part::Deleter { dir: objects.clone(), seed: random.next() });
    let stop = Arc::new(AtomicBool::new(false));
    let filler = small_disk.then(|| {
        let (stop, ballast) = (stop.clone(), dir.join("ballast"));
        std::thread::spawn(move || fill_and_empty(&ballast, &stop))
    });
    let mut day = Day { parts, daemons, clients, random, asked: 0, found: 0, kills: 0 };

    let end = Instant::now() + Duration::from_secs(seconds);
    let mut largest = 0;
    while Instant::now() < end {
        day.go_on();
        let used = disk_usage(&objects);
        largest = largest.max(used);
        let bound = CAPACITY * DAEMONS as u64;
        assert!(used <= bound + bound / 100, "{used} bytes of disk are used, each daemon may use {CAPACITY}");
    }
    drop(deleter);
    stop.store(true, Ordering::Relaxed);
    let filled = filler.map(|filler| filler.join().unwrap());
    day.clients.clear();
    eprintln!(
        "{} kills, {} of {} chunks found, the disk filled {filled:?} times, at most {largest} bytes of it used",
        day.kills, day.found, day.asked
    );

    for (part, (daemon, fresh)) in day.parts.iter().zip(day.daemons.iter().zip(fresh)) {
        let client = part.client();
        until("the dead clients are gone", || stats(&client).clients == 1);
        nothing_is_held(&client);
        until("the daemon has the descriptors and threads that a new one has", || {
            let (descriptors, threads) = resources(daemon);
            descriptors <= fresh.0 + SPARE && threads <= fresh.1 + SPARE
        });
        client.close();
    }
    all_is_found_again(&day.parts);
    for daemon in &mut day.daemons {
        daemon.say("stop");
        daemon.expect("stopped");
    }
    drop(day.daemons);

    // One process alone keeps the directory within its own capacity, and removes what the killed ones left.
    let options = FsOptions { capacity: CAPACITY, ..FsOptions::new(&objects) };
    let fs = Fs::open(options).unwrap();
    until("the surplus is worked off", || disk_usage(&objects) <= CAPACITY + CAPACITY / 100);
    let temporary = |entry: &listing::FileEntry| matches!(entry.kind, listing::FileKind::Temporary { .. });
    until("temporary files are removed", || !listing::list(&objects).unwrap().iter().any(temporary));
    let usage = fs.usage();
    assert!(usage.objects > 0 && usage.bytes <= CAPACITY, "{usage:?}");
    fs.close();
    for entry in listing::list(&objects).unwrap() {
        if let listing::FileKind::Object(key) = entry.kind {
            listing::verify(&entry.path, &key).unwrap();
        }
    }
}

/// Nobody is left who could hold anything.
fn nothing_is_held(client: &Client) {
    client.flush(WATCHDOG_MS).unwrap();
    until("nothing is held", || {
        let stats = stats(client);
        (stats.sessions, stats.l1_shares, stats.l1_staged, stats.jobs, stats.l1_locked_bytes) == (0, 0, 0, 0, 0)
    });
    let stats = stats(client);
    assert_eq!((stats.corruptions, stats.backend_timeouts), (0, 0));
}

/// With the disk free and nobody deleting: what one daemon stores in half of its capacity, each of them finds.
fn all_is_found_again(parts: &[DaemonPart]) {
    let clients: Vec<Arc<Client>> = parts.iter().map(DaemonPart::client).collect();
    let mut bytes = 0;
    // None of them was stored before: a daemon learns that others have deleted a file when it reads it.
    let prompts: Vec<Vec<Key>> = (1000..)
        .map(|number| (0..CHUNKS_MAX).map(|chunk| key(number * CHUNKS_MAX * 1000 + chunk, 0)).collect::<Vec<Key>>())
        .take_while(|keys| {
            // A file has a header and whole blocks of the disk.
            bytes += keys.iter().map(|key| size(key).next_multiple_of(4096) + 4096).sum::<u64>();
            bytes <= CAPACITY / 2
        })
        .collect();
    for keys in &prompts {
        serve(&clients[0], keys).unwrap();
        clients[0].flush(WATCHDOG_MS).unwrap();
    }
    for client in clients.iter().rev() {
        for keys in &prompts {
            let (asked, found) = serve(client, keys).unwrap();
            assert_eq!(found, asked, "chunks that were stored are not found");
        }
    }
    clients.iter().for_each(|client| client.close());
}

#[test]
fn nothing_is_lost_leaked_or_wrong_after_a_bad_day() {
    let seconds = rounds("KVKEEP_BAD_DAY_SECONDS", 15);
    let seed = seed("KVKEEP_BAD_DAY_SEED");
    let _watch = watch_for(5 * WATCHDOG + Duration::from_secs(seconds));
    let dir = tempfile::tempdir().unwrap();
    // A file system of its own, in a mount namespace that ends with the day. Containers may forbid that.
    let mount = format!("mount -t tmpfs -o size={DISK} kvkeep {} && exec \"$@\"", dir.path().display());
    let wrapper = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
    let small_disk = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").status().is_ok_and(|end| end.success());
    if !small_disk {
        skipped("a bad day, on a disk that fills", "no file system can be mounted");
    }
    let part = Part::Day { dir: dir.path().to_owned(), small_disk, seconds, seed };
    Process::start_under(if small_disk { &wrapper } else { &[] }, &part).wait();
}
