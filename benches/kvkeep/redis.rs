//! The `redis` backend through the whole stack, against bare loops over as many sockets to the same server and against the `redis`
//! crate, in turns.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvkeep::key::Key;

use crate::cache::{Cache, Setup};
use crate::fs::cpu_seconds;
use crate::half_duplex::HalfDuplex;
use crate::prefetch::load;
use crate::random::Random;
use crate::redis_client::RedisClient;
use crate::report::{Report, Wanted};
use crate::{RUN_TIME, RUNS};

/// Connections for values, ours and those of the bare loops.
const CONNECTIONS: usize = 4;
/// Bytes under way on a connection of a bare loop.
const WINDOW: usize = 8 << 20;
const MIB: u64 = 1 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// A server of its own, which keeps nothing on a disk.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(io_threads: u32) -> Option<Server> {
        let found = Command::new("scripts/redis.sh").stderr(Stdio::null()).output().ok()?;
        let program = String::from_utf8(found.stdout).ok()?;
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let child = Command::new(program.trim())
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--io-threads", &io_threads.to_string(), "--io-threads-do-reads", "yes"])
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let server = Server { child, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "the Redis server does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    /// Deletes all that it has.
    fn empty(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server accepts");
        stream.write_all(b"FLUSHALL SYNC\r\n").expect("the server takes a command");
        stream.read_exact(&mut [0; 5]).expect("the server answers");
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}?connections={CONNECTIONS}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sockets that move values of one size, and do nothing else.
struct Bare {
    streams: Vec<TcpStream>,
    size: usize,
    count: usize,
    memory: Vec<Vec<u8>>,
}

impl Bare {
    fn connect(server: &Server, size: u64, count: usize, random: &mut Random) -> Bare {
        let stream = |_| {
            let stream = TcpStream::connect(("127.0.0.1", server.port)).expect("the server accepts");
            stream.set_nodelay(true).expect("a TCP socket");
            stream
        };
        let share = (count / CONNECTIONS) * (size as usize + 32);
        let mut memory = vec![vec![0; share]; CONNECTIONS];
        memory.iter_mut().for_each(|memory| random.fill(memory));
        Bare { streams: (0..CONNECTIONS).map(stream).collect(), size: size as usize, count, memory }
    }

    /// GB/s of a run in which each thread has `one` called for a socket, its memory and its numbers.
    fn run(&mut self, one: fn(&mut TcpStream, &mut [u8], usize, std::ops::Range<usize>)) -> f64 {
        let (size, share) = (self.size, self.count / CONNECTIONS);
        let (mut spent, mut bytes) = (Duration::ZERO, 0);
        while spent < RUN_TIME {
            let began = Instant::now();
            std::thread::scope(|scope| {
                for (number, (stream, memory)) in self.streams.iter_mut().zip(&mut self.memory).enumerate() {
                    scope.spawn(move || one(stream, memory, size, number * share..(number + 1) * share));
                }
            });
            spent += began.elapsed();
            bytes += self.count * size;
        }
        bytes as f64 / spent.as_secs_f64() / 1e9
    }
}

/// Values of one size under way on a connection.
fn window(size: usize) -> usize {
    (WINDOW / size).clamp(1, 256)
}

fn name(number: usize) -> String {
    format!("bare{number:06}")
}

/// SETs: the heads and payloads of several in one call, then their replies.
fn bare_store(stream: &mut TcpStream, memory: &mut [u8], size: usize, numbers: std::ops::Range<usize>) {
    let numbers: Vec<usize> = numbers.collect();
    for (batch, numbers) in numbers.chunks(window(size)).enumerate() {
        let heads: Vec<String> = numbers
            .iter()
            .map(|&number| format!("*3\r\n$3\r\nSET\r\n$10\r\n{}\r\n${size}\r\n", name(number)))
            .collect();
        let payloads = memory[batch * numbers.len() * size..].chunks_exact(size);
        let pieces = heads.iter().zip(payloads).flat_map(|(head, payload)| [head.as_bytes(), payload, b"\r\n"]);
        let mut slices: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let sent = stream.write_vectored(rest).expect("the server takes values");
            IoSlice::advance_slices(&mut rest, sent);
        }
        let mut replies = vec![0; numbers.len() * 5];
        stream.read_exact(&mut replies).expect("the server answers");
        assert!(replies.chunks(5).all(|reply| reply == b"+OK\r\n"), "a value was refused");
    }
}

/// GETs, a window ahead of their replies, each of which is received whole into a place of its own.
fn bare_load(stream: &mut TcpStream, memory: &mut [u8], size: usize, numbers: std::ops::Range<usize>) {
    let command = |number| format!("*2\r\n$3\r\nGET\r\n$10\r\n{}\r\n", name(number));
    let reply = size + format!("${size}\r\n\r\n").len();
    let ahead = window(size).min(numbers.len());
    let first: String = numbers.clone().take(ahead).map(command).collect();
    stream.write_all(first.as_bytes()).expect("the server takes commands");
    for (number, place) in numbers.clone().zip(memory.chunks_exact_mut(reply)) {
        stream.read_exact(place).expect("the server answers");
        if number + ahead < numbers.end {
            stream.write_all(command(number + ahead).as_bytes()).expect("the server takes commands");
        }
    }
}

/// Loads all keys by one job, again and again: GB/s, and seconds of processor time a GiB.
fn load_run(cache: &Cache, keys: &[Key]) -> (f64, f64) {
    let (mut spent, mut bytes, cpu) = (Duration::ZERO, 0, cpu_seconds());
    while spent < RUN_TIME {
        let (_, time, loaded) = load(cache, keys);
        spent += time;
        bytes += loaded;
    }
    (bytes as f64 / spent.as_secs_f64() / 1e9, (cpu_seconds() - cpu) / (bytes as f64 / GIB))
}

/// GB/s from the commit of new objects to "stored", and seconds of processor time a GiB; the server is emptied between two times.
/// The last objects stay.
fn store_run(cache: &Cache, server: &Server, keys: &mut Vec<Key>, size: u64, random: &mut Random) -> (f64, f64) {
    let (mut spent, mut bytes, mut cpu) = (Duration::ZERO, 0, 0.0);
    while spent < RUN_TIME {
        server.empty();
        *keys = random.keys(keys.len());
        let session = cache.begin();
        cache.stage(session, keys, size, random);
        let (began, before) = (Instant::now(), cpu_seconds());
        cache.finish_write(session, keys);
        cache.drain();
        spent += began.elapsed();
        cpu += cpu_seconds() - before;
        bytes += keys.len() as u64 * size;
        cache.end(session);
        cache.clear();
    }
    (bytes as f64 / spent.as_secs_f64() / 1e9, cpu / (bytes as f64 / GIB))
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB")
}

/// Most bytes of this process in memory while `work` runs, as seen every millisecond.
fn peak<T>(work: impl FnOnce() -> T) -> u64 {
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        work();
        over.store(true, Ordering::Relaxed);
    });
    most.into_inner()
}

/// The rows of values, each with the shape and the server's threads in the place of `{}`.
const ROWS: [(&str, &str, Wanted); 11] = [
    ("load_{}_vs_bare", "ratio", Wanted::AtLeast(0.9)),
    ("load_{}_vs_crate", "ratio", Wanted::AtLeast(1.5)),
    ("load_{}_gb_per_s", "GB/s", Wanted::Nothing),
    ("load_{}_cpu_s_per_gib", "s/GiB", Wanted::Nothing),
    ("store_{}_vs_bare", "ratio", Wanted::AtLeast(0.9)),
    ("store_{}_vs_crate", "ratio", Wanted::AtLeast(1.5)),
    ("store_{}_gb_per_s", "GB/s", Wanted::Nothing),
    ("store_{}_cpu_s_per_gib", "s/GiB", Wanted::Nothing),
    ("load_{}_beside_l1_mib", "MiB", Wanted::AtMost(64.0)),
    ("store_{}_beside_l1_mib", "MiB", Wanted::AtMost(64.0)),
    ("lookup_{}_us", "us", Wanted::Nothing),
];

fn values(report: &mut Report, random: &mut Random, shape: &str, io_threads: u32, count: usize, size: u64) {
    let shape = if io_threads == 1 { shape.to_owned() } else { format!("{shape}_io{io_threads}") };
    let names = ROWS.map(|(name, ..)| format!("redis_{}", name.replace("{}", &shape)));
    if !report.wants(&names.each_ref().map(String::as_str)) {
        return;
    }
    let Some(server) = Server::start(io_threads) else {
        return println!("redis: no server can be had; its rows are left out");
    };
    let (url, mut keys) = (server.url(), random.keys(count));
    let mut bare = Bare::connect(&server, size, count, random);
    let mut value = vec![0; size as usize];
    random.fill(&mut value);
    let mut client = RedisClient::connect(server.port, CONNECTIONS, value, count, window(size as usize));
    let before = resident();
    let l1_bytes = count as u64 * size + 64 * MIB;
    let cache = Cache::open(Setup { l1_bytes, url: Some(&url), ..Default::default() });
    let mut runs: [Vec<f64>; 11] = Default::default();
    // Before the crate runs: its memory stays with the process.
    for _ in 0..RUNS {
        let stored = peak(|| store_run(&cache, &server, &mut keys, size, random));
        let loaded = peak(|| load_run(&cache, &keys));
        for (runs, bytes) in runs[8..].iter_mut().zip([loaded, stored]) {
            runs.push((bytes as f64 - (before + l1_bytes) as f64) / MIB as f64);
        }
    }
    for round in 0..=RUNS {
        let (bare_stored, bare_loaded) = (bare.run(bare_store), bare.run(bare_load));
        let (client_stored, client_loaded) = (client.store(), client.load());
        let (stored, store_cpu) = store_run(&cache, &server, &mut keys, size, random);
        let (loaded, load_cpu) = load_run(&cache, &keys);
        let answered = load(&cache, &keys).0.as_secs_f64() * 1e6;
        // The first round warms up.
        if round > 0 {
            let of_loads = [loaded / bare_loaded, loaded / client_loaded, loaded, load_cpu];
            let of_stores = [stored / bare_stored, stored / client_stored, stored, store_cpu];
            let all = of_loads.into_iter().chain(of_stores);
            runs[..8].iter_mut().zip(all).for_each(|(runs, run)| runs.push(run));
            runs[10].push(answered);
        }
    }
    for ((name, runs), (_, unit, wanted)) in names.into_iter().zip(runs).zip(ROWS) {
        report.add(name, unit, runs, wanted);
    }
}

/// How often a lookup of 1,024 keys waits for the server.
fn round_trips(report: &mut Report, random: &mut Random) {
    const NAME: &str = "redis_lookup_1024_round_trips";
    if !report.wants(&[NAME]) {
        return;
    }
    let Some(server) = Server::start(1) else { return println!("redis: no server can be had; {NAME} is left out") };
    let keys = random.keys(1024);
    let open = |url: &str| Cache::open(Setup { l1_bytes: 64 * MIB, url: Some(url), ..Default::default() });
    {
        let cache = open(&server.url());
        let session = cache.begin();
        cache.stage(session, &keys, 4096, random);
        cache.finish_write(session, &keys);
        cache.drain();
        cache.end(session);
    }
    let proxy = HalfDuplex::start(server.port);
    let cache = open(&format!("redis://127.0.0.1:{}", proxy.port));
    let run = |_| {
        let before = proxy.lookups();
        load(&cache, &keys);
        (proxy.lookups() - before) as f64
    };
    report.add(NAME, "trips", (0..RUNS).map(run).collect(), Wanted::AtMost(3.0));
}

pub fn run(report: &mut Report) {
    let mut random = Random::new(8);
    for io_threads in [1, 2] {
        values(report, &mut random, "256x1mib", io_threads, 256, MIB);
        values(report, &mut random, "1024x64kib", io_threads, 1024, MIB / 16);
    }
    round_trips(report, &mut random);
}
