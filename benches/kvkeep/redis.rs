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
use crate::report::{Report, Wanted, median};
use crate::{RUN_TIME, RUNS};

/// Connections for values, ours and those of the bare loops.
const CONNECTIONS: usize = 4;
/// Bytes under way on a connection: of a pipeline of the crate, and of a bare loop, of which the fastest counts.
const WINDOW: usize = 8 << 20;
const BARE_WINDOWS: [usize; 3] = [256 << 10, 1 << 20, WINDOW];
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
            // It keeps the memory of deleted values, and gives new ones pieces of it, however long: else they pay for page faults.
            .env("MALLOC_CONF", "dirty_decay_ms:-1,lg_extent_max_active_fit:40")
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

    /// Deletes all that it has. FLUSHALL would give the memory back to the kernel besides.
    fn empty(&self) {
        let script =
            "local keys = redis.call('KEYS', '*') if #keys > 0 then redis.call('DEL', unpack(keys)) end return 0";
        let command = format!("*3\r\n$4\r\nEVAL\r\n${}\r\n{script}\r\n$1\r\n0\r\n", script.len());
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server accepts");
        stream.write_all(command.as_bytes()).expect("the server takes a command");
        let mut reply = [0; 4];
        stream.read_exact(&mut reply).expect("the server answers");
        assert!(reply == *b":0\r\n", "the server could not be emptied");
    }

    /// Seconds of processor time that its threads have had.
    fn cpu_seconds(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the server runs");
        let spent = tasks.filter_map(|task| {
            let line = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            line.split(' ').next()?.parse::<f64>().ok()
        });
        spent.sum::<f64>() / 1e9
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

/// Moves the values of these numbers over a socket, so many of them under way at once.
type BareWork = fn(&mut TcpStream, &mut [u8], usize, std::ops::Range<usize>, usize);

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

    /// GB/s with each of the windows. `before` is called before each pass over all values, and not timed.
    fn run(&mut self, one: BareWork, before: impl Fn()) -> [f64; BARE_WINDOWS.len()] {
        BARE_WINDOWS.map(|bytes| self.run_with(one, window(bytes, self.size), &before))
    }

    /// GB/s of a run in which each thread has `one` called for its socket.
    fn run_with(&mut self, one: BareWork, window: usize, before: impl Fn()) -> f64 {
        let (size, share) = (self.size, self.count / CONNECTIONS);
        let (mut spent, mut bytes) = (Duration::ZERO, 0);
        while spent < RUN_TIME {
            before();
            let began = Instant::now();
            std::thread::scope(|scope| {
                for (number, (stream, memory)) in self.streams.iter_mut().zip(&mut self.memory).enumerate() {
                    scope.spawn(move || one(stream, memory, size, number * share..(number + 1) * share, window));
                }
            });
            spent += began.elapsed();
            bytes += self.count * size;
        }
        bytes as f64 / spent.as_secs_f64() / 1e9
    }
}

/// Values of one size under way on a connection that has a window of so many bytes.
fn window(bytes: usize, size: usize) -> usize {
    (bytes / size).clamp(1, 256)
}

fn name(number: usize) -> String {
    format!("bare{number:06}")
}

/// SETs, each sent whole in one call, a window ahead of their replies.
fn bare_store(stream: &mut TcpStream, memory: &mut [u8], size: usize, numbers: std::ops::Range<usize>, window: usize) {
    const REPLY: &[u8] = b"+OK\r\n";
    let (mut owed, mut replies) = (0, [0; 4096]);
    let mut await_replies = |stream: &mut TcpStream, owed: &mut usize, most: usize| {
        while *owed > most * REPLY.len() {
            let count = stream.read(&mut replies).expect("the server answers");
            assert!(count > 0 && replies[..count].iter().all(|byte| REPLY.contains(byte)), "a value was refused");
            *owed -= count;
        }
    };
    for (number, payload) in numbers.zip(memory.chunks_exact(size)) {
        let head = format!("*3\r\n$3\r\nSET\r\n$10\r\n{}\r\n${size}\r\n", name(number));
        let mut slices = [head.as_bytes(), payload, b"\r\n"].map(IoSlice::new);
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let sent = stream.write_vectored(rest).expect("the server takes values");
            IoSlice::advance_slices(&mut rest, sent);
        }
        owed += REPLY.len();
        await_replies(stream, &mut owed, window - 1);
    }
    await_replies(stream, &mut owed, 0);
}

/// GETs, a window ahead of their replies, each of which is received whole into a place of its own.
fn bare_load(stream: &mut TcpStream, memory: &mut [u8], size: usize, numbers: std::ops::Range<usize>, window: usize) {
    let command = |number| format!("*2\r\n$3\r\nGET\r\n$10\r\n{}\r\n", name(number));
    let reply = size + format!("${size}\r\n\r\n").len();
    let ahead = window.min(numbers.len());
    let first: String = numbers.clone().take(ahead).map(command).collect();
    stream.write_all(first.as_bytes()).expect("the server takes commands");
    for (number, place) in numbers.clone().zip(memory.chunks_exact_mut(reply)) {
        stream.read_exact(place).expect("the server answers");
        if number + ahead < numbers.end {
            stream.write_all(command(number + ahead).as_bytes()).expect("the server takes commands");
        }
    }
}

/// One run of ours.
struct Run {
    gb_per_s: f64,
    /// Seconds of processor time a GiB, of this process and of the server.
    cpu: f64,
    server_cpu: f64,
}

impl Run {
    fn new(spent: Duration, bytes: u64, cpu: f64, server_cpu: f64) -> Run {
        let gib = bytes as f64 / GIB;
        Run { gb_per_s: bytes as f64 / spent.as_secs_f64() / 1e9, cpu: cpu / gib, server_cpu: server_cpu / gib }
    }
}

/// GB/s of the contenders one after another, and our run.
struct Round {
    bare: [f64; BARE_WINDOWS.len()],
    /// Of the crate by pipelines, and by one command after another.
    client: [f64; 2],
    ours: Run,
}

/// The values of `RUN_ROWS`. The bare loop is that of the window that is the fastest in most rounds.
fn run_values(rounds: &[Round]) -> [Vec<f64>; RUN_ROWS.len()] {
    let of_window = |window: usize| median(&rounds.iter().map(|round| round.bare[window]).collect::<Vec<_>>());
    let fastest = (0..BARE_WINDOWS.len()).max_by(|&a, &b| of_window(a).total_cmp(&of_window(b))).unwrap_or(0);
    let mut all: [Vec<f64>; RUN_ROWS.len()] = Default::default();
    for Round { bare, client: [pipelines, calls], ours } in rounds {
        let (bare, rate) = (bare[fastest], ours.gb_per_s);
        let row = [rate / bare, rate / pipelines, rate / calls, bare / pipelines, rate, ours.cpu, ours.server_cpu];
        all.iter_mut().zip(row).for_each(|(runs, run)| runs.push(run));
    }
    all
}

/// Loads all keys by one job, again and again.
fn load_run(cache: &Cache, server: &Server, keys: &[Key]) -> Run {
    let (mut spent, mut bytes, cpu, server_cpu) = (Duration::ZERO, 0, cpu_seconds(), server.cpu_seconds());
    while spent < RUN_TIME {
        let (_, time, loaded) = load(cache, keys);
        spent += time;
        bytes += loaded;
    }
    Run::new(spent, bytes, cpu_seconds() - cpu, server.cpu_seconds() - server_cpu)
}

/// From the commit of new objects to "stored"; the server is emptied between two times. The last objects stay.
fn store_run(cache: &Cache, server: &Server, keys: &mut Vec<Key>, size: u64, random: &mut Random) -> Run {
    let (mut spent, mut bytes, mut cpu, mut server_cpu) = (Duration::ZERO, 0, 0.0, 0.0);
    while spent < RUN_TIME {
        server.empty();
        *keys = random.keys(keys.len());
        let session = cache.begin();
        cache.stage(session, keys, size, random);
        let (began, before, server_before) = (Instant::now(), cpu_seconds(), server.cpu_seconds());
        cache.finish_write(session, keys);
        cache.drain();
        spent += began.elapsed();
        cpu += cpu_seconds() - before;
        server_cpu += server.cpu_seconds() - server_before;
        bytes += keys.len() as u64 * size;
        cache.end(session);
        cache.clear();
    }
    Run::new(spent, bytes, cpu, server_cpu)
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

/// The rows of loads and those of stores, each with the shape and the server's threads in the place of `{}`, as `run_values` gives them.
const RUN_ROWS: [(&str, &str, Wanted); 7] = [
    ("{}_vs_bare", "ratio", Wanted::AtLeast(0.9)),
    ("{}_vs_crate", "ratio", Wanted::AtLeast(1.5)),
    ("{}_vs_crate_calls", "ratio", Wanted::Nothing),
    ("{}_bare_vs_crate", "ratio", Wanted::Nothing),
    ("{}_gb_per_s", "GB/s", Wanted::Nothing),
    ("{}_cpu_s_per_gib", "s/GiB", Wanted::Nothing),
    ("{}_server_cpu_s_per_gib", "s/GiB", Wanted::Nothing),
];
const OTHER_ROWS: [(&str, &str, Wanted); 3] = [
    ("load_{}_beside_l1_mib", "MiB", Wanted::AtMost(64.0)),
    ("store_{}_beside_l1_mib", "MiB", Wanted::AtMost(64.0)),
    ("lookup_{}_us", "us", Wanted::Nothing),
];

/// All rows of a shape, in the order of their measurements.
fn rows(shape: &str) -> Vec<(String, &'static str, Wanted)> {
    let runs = ["load", "store"]
        .into_iter()
        .flat_map(|way| RUN_ROWS.into_iter().map(move |(name, unit, wanted)| (format!("{way}_{name}"), unit, wanted)));
    let others = OTHER_ROWS.into_iter().map(|(name, unit, wanted)| (name.to_owned(), unit, wanted));
    runs.chain(others)
        .map(|(name, unit, wanted)| (format!("redis_{}", name.replace("{}", shape)), unit, wanted))
        .collect()
}

fn values(report: &mut Report, random: &mut Random, shape: &str, io_threads: u32, count: usize, size: u64) {
    let shape = if io_threads == 1 { shape.to_owned() } else { format!("{shape}_io{io_threads}") };
    let rows = rows(&shape);
    if !report.wants(&rows.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>()) {
        return;
    }
    let Some(server) = Server::start(io_threads) else {
        return println!("redis: no server can be had; its rows are left out");
    };
    let (url, mut keys) = (server.url(), random.keys(count));
    let mut bare = Bare::connect(&server, size, count, random);
    let mut value = vec![0; size as usize];
    random.fill(&mut value);
    let mut client = RedisClient::connect(server.port, CONNECTIONS, value, count, window(WINDOW, size as usize));
    let before = resident();
    let l1_bytes = count as u64 * size + 64 * MIB;
    let cache = Cache::open(Setup { l1_bytes, url: Some(&url), ..Default::default() });
    let mut others: [Vec<f64>; OTHER_ROWS.len()] = Default::default();
    // Before the crate runs: its memory stays with the process.
    for _ in 0..RUNS {
        let stored = peak(|| store_run(&cache, &server, &mut keys, size, random));
        let loaded = peak(|| load_run(&cache, &server, &keys));
        for (runs, bytes) in others.iter_mut().zip([loaded, stored]) {
            runs.push((bytes as f64 - (before + l1_bytes) as f64) / MIB as f64);
        }
    }
    let (mut loads, mut stores) = (Vec::new(), Vec::new());
    for _ in 0..=RUNS {
        // All store what is not there: a value that is replaced gives its memory, still in the caches, to the next one.
        let (bare_stored, bare_loaded) = (bare.run(bare_store, || server.empty()), bare.run(bare_load, || ()));
        let (client_stored, client_loaded) = (client.store(|| server.empty()), client.load());
        let ours = store_run(&cache, &server, &mut keys, size, random);
        stores.push(Round { bare: bare_stored, client: client_stored, ours });
        let ours = load_run(&cache, &server, &keys);
        loads.push(Round { bare: bare_loaded, client: client_loaded, ours });
        others[2].push(load(&cache, &keys).0.as_secs_f64() * 1e6);
    }
    // The first round warms up.
    others[2].remove(0);
    let measured = [&loads[1..], &stores[1..]].into_iter().flat_map(run_values).chain(others);
    for ((name, unit, wanted), runs) in rows.into_iter().zip(measured) {
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
