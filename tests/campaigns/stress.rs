//! Everything at once, by seed: readers, writers, prefetchers with backends that fail, come and go, cancels, clears, evictions in a
//! small L1. Every byte read is checked, and at the end nothing is held and the books agree.
//!
//! KVKEEP_SOAK_SECONDS makes it last, KVKEEP_STRESS_SEED repeats a seed (not the interleaving).
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvkeep::abi::{Completion, JobResult, KeyState, SpaceUsage, Stats, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{Callback, Mode, NodeConfig, Notify, Policy, PrefetchRequest, SpaceSpec, StoreMode};
use kvkeep::error::{KVKEEP_ERR_EXPIRED, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, KVKEEP_OK};
use kvkeep::key::Key;
use kvkeep::node::Node;

use crate::support::process::watch_for;
use crate::support::random::{self, Random};

const MIB: u64 = 1 << 20;
/// Far beyond any pause of a loaded machine; only a hang meets it.
const WATCHDOG: Duration = Duration::from_secs(120);
const WATCHDOG_MS: u32 = 120_000;
const WORKERS: u64 = 6;

/// A prompt's chunk: prompts share beginnings, so keys meet.
fn key(prompt: u64, chunk: u64) -> Key {
    // Prompt p shares its first p % 8 chunks with all prompts alike in p % 3.
    let family = if chunk < prompt % 8 { prompt % 3 } else { 100 + prompt };
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&(family << 32 | chunk).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    hash[8..16].copy_from_slice(&family.to_le_bytes());
    hash[16..24].copy_from_slice(&chunk.to_le_bytes());
    Key { hash, rank: 0, group: 0 }
}

fn keys(prompt: u64, chunks: u64) -> Vec<Key> {
    (0..chunks).map(|chunk| key(prompt, chunk)).collect()
}

fn size(key: &Key) -> u64 {
    [512, 4096, 1000, 8192][usize::from(key.hash[0] % 4)]
}

fn bytes(key: &Key) -> Vec<u8> {
    let seed = u64::from_le_bytes(key.hash[..8].try_into().unwrap());
    (0..size(key)).map(|i| (seed >> (i % 8 * 8)) as u8 ^ (i / 8) as u8).collect()
}

fn views(count: usize) -> Vec<View> {
    vec![View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }; count]
}

/// Says what is wrong with an object's bytes: a flipped bit, a torn half, or another object.
fn wrong(key: &Key, found: &[u8]) -> ! {
    let expected = bytes(key);
    let differs = |at: &usize| found.get(*at) != expected.get(*at);
    let many = (0..found.len().max(expected.len())).filter(differs).count();
    let first = (0..found.len()).find(differs).unwrap_or(found.len());
    let begins = &found[..found.len().min(16)];
    panic!(
        "P1, P2: other bytes than were committed of {key}: {many} of {} differ, from {first} on; it begins with {begins:x?}, not {:x?}",
        found.len(),
        &expected[..expected.len().min(16)]
    );
}

/// How long a campaign lasts.
#[derive(Clone, Copy)]
pub enum Length {
    Seconds(f64),
    Operations(u64),
}

struct World {
    began: Instant,
    length: Length,
    operations: AtomicU64,
    node: Arc<Node>,
    space: u64,
    callbacks: Arc<Mutex<HashMap<u64, u32>>>,
    told_twice: Arc<AtomicU32>,
    asked: AtomicU64,
    events: AtomicU64,
    drained: AtomicU64,
    rounds: AtomicU64,
}

impl World {
    fn is_over(&self) -> bool {
        match self.length {
            Length::Seconds(seconds) => self.began.elapsed().as_secs_f64() >= seconds,
            Length::Operations(most) => self.operations.load(Ordering::Relaxed) >= most,
        }
    }

    fn check(&self, keys: &[Key], views: &[View]) {
        for (key, view) in keys.iter().zip(views).filter(|(_, view)| view.status == 0) {
            // SAFETY: a view whose shares this thread's session holds. Plain reads, so that a sanitizer sees a race.
            let found = unsafe { std::slice::from_raw_parts(view.data.cast::<u8>(), view.size as usize) };
            if found != bytes(key) {
                wrong(key, found);
            }
        }
    }

    fn write(&self, random: &mut Random, session: u64, keys: &[Key]) {
        let sizes: Vec<u64> = keys.iter().map(size).collect();
        let mut out = views(keys.len());
        let temporary = random.one_in(5);
        self.node.reserve_write(session, keys, &sizes, temporary, &mut out).unwrap();
        let staged: Vec<Key> =
            keys.iter().zip(&out).filter(|(_, view)| view.status == 0).map(|(key, _)| *key).collect();
        for (key, view) in keys.iter().zip(&out).filter(|(_, view)| view.status == 0) {
            // SAFETY: a view that this thread's session staged. Plain writes, as above.
            let place = unsafe { std::slice::from_raw_parts_mut(view.data.cast::<u8>(), view.size as usize) };
            place.copy_from_slice(&bytes(key));
        }
        if staged.is_empty() {
            return;
        }
        match random.below(8) {
            0 => drop(self.node.abort_write(session, &staged, None).unwrap()),
            1 => {
                let extra = random.below(3) as u32;
                let mut out = views(staged.len());
                assert!(self.node.finish_write_and_reserve_read(session, &staged, extra, &mut out).unwrap());
                self.check(&staged, &out);
                if random.one_in(2) {
                    assert!(self.node.finish_read(session, &staged, extra, None).unwrap());
                }
            }
            // Left staged: the session's end drops it.
            2 => {}
            _ => assert!(self.node.finish_write(session, &staged, None).unwrap()),
        }
    }

    fn read(&self, random: &mut Random, session: u64, keys: &[Key]) {
        let extra = random.below(4) as u32;
        let mut out = views(keys.len());
        self.node.reserve_read(session, keys, extra, &mut out).unwrap();
        self.check(keys, &out);
        if random.one_in(4) {
            std::thread::yield_now();
            self.check(keys, &out);
        }
        let held: Vec<Key> = keys.iter().zip(&out).filter(|(_, view)| view.status == 0).map(|(key, _)| *key).collect();
        if !held.is_empty() && !random.one_in(4) {
            for _ in 0..=extra {
                assert!(self.node.finish_read(session, &held, 0, None).unwrap());
            }
        }
    }

    fn notify(&self, random: &mut Random) -> Notify {
        match random.below(3) {
            0 => Notify::Poll,
            1 => {
                self.events.fetch_add(1, Ordering::SeqCst);
                Notify::EventFd
            }
            _ => {
                self.asked.fetch_add(1, Ordering::SeqCst);
                let (callbacks, twice) = (self.callbacks.clone(), self.told_twice.clone());
                Notify::Callback(Callback(Box::new(move |completion: &Completion| {
                    let mut callbacks = callbacks.lock().unwrap();
                    let times = callbacks.entry(completion.job).or_insert(0);
                    *times += 1;
                    if *times > 1 {
                        twice.fetch_add(1, Ordering::SeqCst);
                    }
                })))
            }
        }
    }

    fn prefetch(&self, random: &mut Random, session: u64, keys: &[Key]) {
        let extra = random.below(3) as u32;
        let request = PrefetchRequest {
            extra_count: extra,
            objects_per_chunk: if keys.len().is_multiple_of(2) { 1 + random.below(2) as u32 } else { 1 },
            mode: [Mode::Prefix, Mode::Any, Mode::Window(3)][random.below(3) as usize],
            policy: [Policy::BestEffort, Policy::Deadline, Policy::Wait][random.below(3) as usize],
            deadline: random.one_in(4).then(|| Duration::from_millis(random.below(20))),
            lookup_timeout: Duration::from_millis(if random.one_in(10) { 5 } else { 0 }),
            lookup_interval: Duration::from_millis(1),
            temporary: random.one_in(4),
            priority: random.below(3) as i32,
            notify: self.notify(random),
            ..Default::default()
        };
        let mut job = 0;
        self.node.submit_prefetch(session, keys, request, &mut job).unwrap();
        match random.below(6) {
            0 => drop(self.node.cancel(job)),
            1 => drop(self.node.release_job(job)),
            // Forgotten.
            2 => {}
            _ => match self.node.wait(job, WATCHDOG_MS) {
                Ok(()) => self.take_up(random, session, keys, job, extra),
                // Reclaimed at its deadline, before or after it was done.
                Err(error) => assert_eq!(error.status, KVKEEP_ERR_NOT_FOUND, "{error}"),
            },
        }
    }

    /// Reads what a job that is done has got.
    fn take_up(&self, random: &mut Random, session: u64, keys: &[Key], job: u64, extra: u32) {
        let mut result = JobResult::default();
        let mut bitmap = [0; 16];
        let both = self.node.query_job(job, &mut result).and(self.node.query_bitmap(job, &mut bitmap));
        match both {
            Ok(status) => assert_eq!(status, KVKEEP_OK),
            Err(error) => {
                assert_eq!(error.status, KVKEEP_ERR_NOT_FOUND, "{error}");
                return;
            }
        }
        let held: Vec<Key> =
            keys.iter().enumerate().filter(|(i, _)| bitmap[i / 8] >> (i % 8) & 1 == 1).map(|(_, key)| *key).collect();
        if held.is_empty() {
            return;
        }
        let mut out = views(held.len());
        // Whoever revokes an expired session's shares may come first; this session has just been used.
        assert!(self.node.get_views(session, &held, &mut out).unwrap());
        self.check(&held, &out);
        if random.one_in(2) {
            assert!(self.node.finish_read(session, &held, extra, None).unwrap());
        }
    }

    fn work(&self, mut random: Random) {
        while !self.is_over() {
            self.rounds.fetch_add(1, Ordering::Relaxed);
            let (prompt, chunks) = (random.below(40), 1 + random.below(20));
            let keys = keys(prompt, chunks);
            let session = self.node.begin_session(self.space, "stress", None).unwrap();
            for _ in 0..=random.below(4) {
                self.operations.fetch_add(1, Ordering::Relaxed);
                match random.below(12) {
                    0..3 => self.write(&mut random, session, &keys),
                    3..6 => self.read(&mut random, session, &keys),
                    6..10 => self.prefetch(&mut random, session, &keys),
                    10 => drop(self.node.touch(self.space, &keys, None).unwrap()),
                    _ => match random.below(24) {
                        22.. => self.ask(&keys),
                        20..22 => drop(self.node.evict(self.space, &keys, None).unwrap()),
                        0 => drop(self.node.clear(self.space, true).unwrap()),
                        1 => drop(self.node.clear(0, false).unwrap()),
                        2..8 => drop(self.node.delete(self.space, &keys, None).unwrap()),
                        8..12 => drop(self.node.retain(self.space, &keys, 75, 50, None).unwrap()),
                        12..14 => drop(self.node.explain_session(0).unwrap()),
                        14..16 => drop(self.node.explain_key(self.space, &keys[0]).unwrap()),
                        _ => self.idle(),
                    },
                }
            }
            let ended =
                if random.one_in(3) { self.node.abort_session(session) } else { self.node.end_session(session) };
            ended.unwrap();
            let again = self.node.end_session(session).unwrap_err();
            assert_eq!(again.status, KVKEEP_ERR_NOT_FOUND);
        }
    }

    fn ask(&self, keys: &[Key]) {
        let mut states = vec![KeyState::default(); keys.len()];
        self.node.query_keys(self.space, keys, &mut states).unwrap();
        assert!(states.iter().all(|said| (said.state == 0) == (said.size == 0)));
        let mut usage = SpaceUsage::default();
        self.node.query_space(self.space, &mut usage).unwrap();
        assert!(usage.used_bytes >= usage.objects);
    }

    /// A session and a job that nobody comes back to.
    fn idle(&self) {
        let session = self.node.begin_session(self.space, "idle", Some(Duration::from_millis(1))).unwrap();
        let request = PrefetchRequest { deadline: Some(Duration::from_millis(1)), ..Default::default() };
        if let Err(error) = self.node.submit_prefetch(session, &keys(1, 5), request, &mut 0) {
            assert_eq!(error.status, KVKEEP_ERR_EXPIRED, "{error}");
        }
    }

    fn drain(&self) {
        let blank = JobResult::default().completion(0, 0);
        let mut some = [blank; 16];
        loop {
            let count = self.node.take_completions(&mut some);
            self.drained.fetch_add(count as u64, Ordering::SeqCst);
            if count == 0 {
                return;
            }
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.node.stats(&mut stats);
        stats
    }
}

/// Backends that come and go while the others are used.
const GUESTS: [&str; 4] = [
    "memory:?capacity=256KiB&promote=on&write=off",
    "memory:?lookup=slow&write=after-uses",
    "fault:memory:?fault.load_error=0.5&fault.lookup_error=0.2&breaker_errors=3&breaker_pause_ms=2&store_latency_max_ms=1",
    "fault:memory:?fault.load_hang=0.02&fault.lookup_hang=0.01&fault.store_hang=0.01&fault.flip=0.1&deadline_ms=20",
];

impl World {
    /// Adds backends and removes them again.
    fn change_backends(&self, mut random: Random, guests: &[&str]) {
        let mut added = Vec::new();
        let remove = |backend| {
            if let Err(error) = self.node.remove_backend(backend) {
                assert_eq!(error.status, KVKEEP_ERR_TIMEOUT, "{error}");
            }
        };
        while !self.is_over() {
            if added.len() < 3 && random.one_in(2) {
                let guest = guests[random.below(guests.len() as u64) as usize];
                // One behind a proxy may not open.
                added.extend(
                    self.node.add_backend(guest).inspect_err(|error| assert!(guest.contains("//127"), "{error}")),
                );
            } else if !added.is_empty() {
                remove(added.swap_remove(random.below(added.len() as u64) as usize));
            }
            std::thread::sleep(Duration::from_millis(random.below(5)));
        }
        added.into_iter().for_each(remove);
    }
}

/// Works on a cache with the backends `urls`, while `guests` come and go, and checks that nothing is held at the end.
pub fn stress(seed: u64, length: Length, policy: &str, mode: StoreMode, urls: &[&str], guests: &[&str]) {
    println!("seed {seed}, {policy}, {mode:?}, {urls:?}");
    let mut config = NodeConfig::new(MIB / 2);
    config.eviction_policy = policy.to_owned();
    config.store_mode = mode;
    config.backend_urls = urls.iter().map(|url| (*url).to_owned()).collect();
    config.backend_timeout = Duration::from_millis(200);
    config.loading_bytes_max = 64 << 10;
    config.writes_pending_max = 64;
    let node = Node::open(config).unwrap();
    let (model, layout, tenant) = ("stress".to_owned(), String::new(), String::new());
    let space =
        node.open_space(SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes: 0 }).unwrap();
    let world = World {
        began: Instant::now(),
        length,
        operations: AtomicU64::new(0),
        node,
        space,
        callbacks: Arc::default(),
        told_twice: Arc::default(),
        asked: AtomicU64::new(0),
        events: AtomicU64::new(0),
        drained: AtomicU64::new(0),
        rounds: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let world = &world;
            scope.spawn(move || world.work(Random(seed.wrapping_mul(WORKERS).wrapping_add(worker))));
        }
        let changed = &world;
        scope.spawn(move || changed.change_backends(Random(seed ^ 0x5eed), guests));
        while !world.is_over() {
            world.drain();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    for backend in 1..=urls.len() as u64 {
        // Hung requests are answered now.
        let _ = world.node.remove_backend(backend);
    }
    // What was forgotten goes by itself, and what it held goes under pressure.
    let began = Instant::now();
    loop {
        let session = world.node.begin_session(space, "pressure", None).unwrap();
        world.node.reserve_write(session, &[key(1000, 0)], &[MIB / 2], true, &mut views(1)).unwrap();
        world.node.end_session(session).unwrap();
        let stats = world.stats();
        if stats.sessions == 0 && stats.jobs == 0 {
            break;
        }
        assert!(began.elapsed() < WATCHDOG, "{} sessions, {} jobs are left", stats.sessions, stats.jobs);
        std::thread::sleep(Duration::from_millis(5));
    }
    world.node.flush(WATCHDOG_MS).unwrap();
    while world.stats().l1_locked_bytes > 0 {
        assert!(began.elapsed() < WATCHDOG, "memory stays locked");
        std::thread::sleep(Duration::from_millis(5));
    }
    world.drain();
    let stats = world.stats();
    assert_eq!((stats.l1_shares, stats.l1_staged, stats.writes_pending), (0, 0, 0));
    assert_eq!(stats.jobs_submitted, stats.jobs_completed);
    assert_eq!(world.drained.load(Ordering::SeqCst), world.events.load(Ordering::SeqCst));
    world.node.clear(0, true).unwrap();
    let emptied = world.stats();
    assert_eq!((emptied.l1_used_bytes, emptied.l1_objects), (0, 0));
    world.node.close();
    let callbacks = world.callbacks.lock().unwrap();
    assert_eq!(callbacks.len() as u64, world.asked.load(Ordering::SeqCst));
    assert_eq!(world.told_twice.load(Ordering::SeqCst), 0);
    println!(
        "  {:.1} s, {} rounds, {} jobs, {} loads ({} failed, {} corrupt, {} late), {} stores, {} evictions",
        world.began.elapsed().as_secs_f64(),
        world.rounds.load(Ordering::Relaxed),
        stats.jobs_submitted,
        stats.loads,
        stats.load_failures,
        stats.corruptions,
        stats.backend_timeouts,
        stats.stores,
        stats.evictions
    );
}

#[test]
fn everything_at_once() {
    let seconds = std::env::var("KVKEEP_SOAK_SECONDS").map_or(4.0, |seconds| seconds.parse().unwrap());
    let seed = random::seed("KVKEEP_STRESS_SEED");
    const DELAY: &str =
        "fault:memory:?capacity=2MiB&fault.delay=0.3&fault.delay_ms=2&fault.load_error=0.05&fault.flip=0.02";
    const HANG: &str =
        "fault:memory:?fault.load_hang=0.002&fault.lookup_hang=0.002&fault.store_hang=0.001&fault.lookup_error=0.1";
    let dir = tempfile::tempdir().unwrap();
    let fs = |name: &str, engine: &str| {
        format!(
            "fault:fs://{}/{name}?capacity=1MiB&engine={engine}&fault.flip=0.01&fault.delay=0.02",
            dir.path().display()
        )
    };
    let (ring, pool) = (fs("a", "auto"), fs("b", "pool"));
    let cases: [(&str, StoreMode, Vec<&str>); 8] = [
        ("lru", StoreMode::WriteThrough, vec!["memory:?capacity=1MiB"]),
        ("s3fifo", StoreMode::WriteBack, vec!["memory:?lookup=slow", "memory:"]),
        ("mq", StoreMode::WriteThrough, vec![DELAY]),
        ("lru", StoreMode::AfterUses(2), vec![DELAY, HANG]),
        ("mq", StoreMode::WriteThrough, vec![HANG, "memory:"]),
        ("none", StoreMode::Never, vec![]),
        ("s3fifo", StoreMode::WriteThrough, vec![&ring]),
        ("lru", StoreMode::WriteBack, vec![&pool, &ring]),
    ];
    let count = cases.len() as f64;
    for (i, (policy, mode, urls)) in cases.into_iter().enumerate() {
        let _watchdog = watch_for(WATCHDOG * 5 + Duration::from_secs_f64(seconds));
        stress(seed.wrapping_add(i as u64), Length::Seconds(seconds / count), policy, mode, &urls, &GUESTS);
    }
}
