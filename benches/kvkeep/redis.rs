//! The `redis` backend through the whole stack, against bare loops over as many sockets to the same server, in turns.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvkeep::key::Key;

use crate::cache::{Cache, Setup};
use crate::fs::cpu_seconds;
use crate::prefetch::load;
use crate::random::Random;
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
    fn start() -> Option<Server> {
        let found = Command::new("scripts/redis.sh").stderr(Stdio::null()).output().ok()?;
        let program = String::from_utf8(found.stdout).ok()?;
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let child = Command::new(program.trim())
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
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

fn name(number: usize) -> String {
    format!("bare{number:06}")
}

/// SETs: the heads and payloads of several in one call, then their replies.
fn bare_store(stream: &mut TcpStream, memory: &mut [u8], size: usize, numbers: std::ops::Range<usize>) {
    let numbers: Vec<usize> = numbers.collect();
    for (batch, numbers) in numbers.chunks((WINDOW / size).clamp(1, 256)).enumerate() {
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
    let ahead = (WINDOW / size).clamp(1, 256).min(numbers.len());
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

/// GB/s from the commit of new objects to "stored"; the server is emptied between two times. The last ones stay.
fn store_run(cache: &Cache, server: &Server, keys: &mut Vec<Key>, size: u64, random: &mut Random) -> f64 {
    let (mut spent, mut bytes) = (Duration::ZERO, 0);
    while spent < RUN_TIME {
        server.empty();
        *keys = random.keys(keys.len());
        let session = cache.begin();
        cache.stage(session, keys, size, random);
        let began = Instant::now();
        cache.finish_write(session, keys);
        cache.drain();
        spent += began.elapsed();
        bytes += keys.len() as u64 * size;
        cache.end(session);
        cache.clear();
    }
    bytes as f64 / spent.as_secs_f64() / 1e9
}

fn values(report: &mut Report, random: &mut Random, what: &str, count: usize, size: u64) {
    let names =
        ["load_{}_vs_bare", "load_{}_gb_per_s", "load_{}_cpu_s_per_gib", "store_{}_vs_bare", "store_{}_gb_per_s"];
    let names = names.map(|name| format!("redis_{}", name.replace("{}", what)));
    let lookup = format!("redis_lookup_{count}_us");
    if !report.wants(&names.each_ref().map(String::as_str)) && !report.wants(&[&lookup]) {
        return;
    }
    let Some(server) = Server::start() else { return println!("redis: no server can be had; its rows are left out") };
    let (url, mut keys) = (server.url(), random.keys(count));
    let cache = Cache::open(Setup { l1_bytes: count as u64 * size + 64 * MIB, url: Some(&url), ..Default::default() });
    let mut bare = Bare::connect(&server, size, count, random);
    let mut runs: [Vec<f64>; 6] = Default::default();
    for round in 0..=RUNS {
        let bare_stored = bare.run(bare_store);
        let bare_loaded = bare.run(bare_load);
        let stored = store_run(&cache, &server, &mut keys, size, random);
        let (loaded, cpu) = load_run(&cache, &keys);
        let answered = load(&cache, &keys).0.as_secs_f64() * 1e6;
        // The first round warms up.
        if round > 0 {
            let all = [loaded / bare_loaded, loaded, cpu, stored / bare_stored, stored, answered];
            runs.iter_mut().zip(all).for_each(|(runs, run)| runs.push(run));
        }
    }
    let wanted = [Wanted::AtLeast(0.9), Wanted::Nothing, Wanted::Nothing, Wanted::AtLeast(0.9), Wanted::Nothing];
    let units = ["ratio", "GB/s", "s/GiB", "ratio", "GB/s"];
    let [a, b, c, d, e, answered] = runs;
    for (((name, runs), wanted), unit) in names.into_iter().zip([a, b, c, d, e]).zip(wanted).zip(units) {
        report.add(name, unit, runs, wanted);
    }
    report.add(lookup, "us", answered, Wanted::Nothing);
}

pub fn run(report: &mut Report) {
    let mut random = Random::new(8);
    values(report, &mut random, "256x1mib", 256, MIB);
    values(report, &mut random, "1024x64kib", 1024, MIB / 16);
}
