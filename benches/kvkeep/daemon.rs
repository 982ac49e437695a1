//! The same cache through a daemon in a process of its own, beside the bare cost of asking another process at all.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use kvkeep::config::NodeConfig;
use kvkeep::daemon::server::{Access, Limits, LockFile, Server};
use kvkeep::ffi::options::kvkeep_prefetch_mode::KVKEEP_PREFETCH_PREFIX;
use kvkeep::key::Key;
use kvkeep::node::Node;

use crate::cache::{Cache, Setup, await_populated, views};
use crate::prefetch::directory;
use crate::random::Random;
use crate::report::{Report, Wanted, median};
use crate::{RUN_TIME, RUNS};

const ROLE: &str = "KVKEEP_BENCH_ROLE";
const SOCKET: &str = "KVKEEP_BENCH_SOCKET";
/// The optimisations that another process does without, as a number.
const OFF: &str = "KVKEEP_BENCH_OFF";
const L1_BYTES: u64 = 512 << 20;
const RESIDENT: usize = 100_000;
const OBJECT_BYTES: u64 = 1024;
const BATCH: usize = 256;
const CLIENTS: usize = 8;
/// Keys that all clients read, where they meet on the same objects.
const HOT: usize = 32 * BATCH;
/// Longer than any answer takes: a spinning client never sleeps.
const SPIN: &str = "?spin_us=10000";
/// Seeds the resident keys, so that every process knows them.
const SEED: u64 = 9;

/// Another process of the benchmark; it ends when its input does.
struct Other {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(role: &str, socket: &Path, off: u32) -> Other {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .env(ROLE, role)
            .env(SOCKET, socket)
            .env(OFF, off.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut other = Other { child, output };
        assert_eq!(other.line(), "ready");
        other
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output");
        line.trim().to_owned()
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"\n").expect("its input");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Whether this process is another one of a benchmark; it is over then.
pub fn plays_a_role() -> bool {
    let (Some(role), Some(socket)) = (std::env::var_os(ROLE), std::env::var_os(SOCKET)) else { return false };
    let socket = Path::new(&socket);
    #[cfg(feature = "ablation")]
    kvkeep::ablation::turn_off(std::env::var(OFF).ok().and_then(|off| off.parse().ok()).unwrap_or(0));
    match role.to_str() {
        Some("daemon") => serve(socket),
        Some("pong") => pong(socket),
        Some("hot") => one_of_many(socket, HOT),
        _ => one_of_many(socket, RESIDENT),
    }
    true
}

fn until_input_ends() {
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn serve(socket: &Path) {
    let lock_file = LockFile::take(socket).expect("the socket");
    let config = NodeConfig { boot: lock_file.boot, watermark_high_percent: 100, ..NodeConfig::new(L1_BYTES) };
    let node = Node::open(config).expect("a node");
    // Joining pages takes them out of the mappings of clients.
    await_populated();
    let server = Server::start(node.clone(), lock_file, Access::default(), Limits::default()).expect("a server");
    until_input_ends();
    server.stop();
    node.close();
}

/// Sends back what it gets, as little as can be.
fn pong(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("the socket");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut message = [0; 64];
                while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
            });
        }
    });
    until_input_ends();
}

fn one_of_many(socket: &Path, count: usize) {
    let cache = client(socket, "");
    let keys = Random::new(SEED).keys(RESIDENT);
    let mut prompts: Vec<&[Key]> = keys[..count].chunks_exact(BATCH).collect();
    Random::new(u64::from(std::process::id())).shuffle(&mut prompts);
    let order = prompts.concat();
    println!("ready");
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        println!("{}", read(&cache, &order));
        line.clear();
    }
}

fn client(socket: &Path, options: &str) -> Cache {
    let url = format!("unix://{}{options}", socket.display());
    Cache::open(Setup { l1_bytes: L1_BYTES, connect: Some(&url), ..Setup::default() })
}

/// Keys a second of reserve_read + finish_read.
fn read(cache: &Cache, order: &[Key]) -> f64 {
    let session = cache.begin();
    let mut views = views(BATCH);
    let (began, mut keys) = (Instant::now(), 0);
    for batch in order.chunks_exact(BATCH).cycle() {
        cache.reserve_read(session, batch, 0, &mut views);
        black_box(&mut views);
        cache.finish_read(session, batch, 0);
        keys += BATCH;
        if began.elapsed() >= RUN_TIME {
            break;
        }
    }
    let rate = keys as f64 / began.elapsed().as_secs_f64();
    cache.end(session);
    rate
}

/// Microseconds of two messages there and back, waiting asleep or by looking again and again.
fn ping(stream: &mut UnixStream, spin: bool) -> f64 {
    stream.set_nonblocking(spin).expect("a socket");
    let mut message = [1; 64];
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < RUN_TIME {
        let at = Instant::now();
        for _ in 0..2 {
            stream.write_all(&message).expect("a message out");
            while let Err(error) = stream.read_exact(&mut message) {
                assert!(spin && error.kind() == std::io::ErrorKind::WouldBlock, "{error}");
            }
        }
        times.push(at.elapsed().as_secs_f64() * 1e6);
    }
    median(&times)
}

/// Microseconds of a reserve_read and a finish_read of a batch.
fn pair(cache: &Cache, order: &[Key]) -> f64 {
    let session = cache.begin();
    let mut views = views(BATCH);
    let mut times = Vec::new();
    let began = Instant::now();
    for batch in order.chunks_exact(BATCH).cycle() {
        let at = Instant::now();
        cache.reserve_read(session, batch, 0, &mut views);
        cache.finish_read(session, batch, 0);
        times.push(at.elapsed().as_secs_f64() * 1e6);
        if began.elapsed() >= RUN_TIME {
            break;
        }
    }
    cache.end(session);
    median(&times)
}

fn round_trips(report: &mut Report, daemon: &Path, ponger: &Path, order: &mut [Key]) {
    for (spin, name) in [(false, "sleeping"), (true, "spinning")] {
        let names = [format!("socket_pingpong2_{name}_us"), format!("daemon_read_b256_{name}_us")];
        if !report.wants(&[&names[0], &names[1]]) {
            continue;
        }
        let mut stream = UnixStream::connect(ponger).expect("the other process");
        let cache = client(daemon, if spin { SPIN } else { "" });
        let (mut bare, mut whole) = (Vec::new(), Vec::new());
        for round in 0..=RUNS {
            Random::new(round as u64).shuffle(order);
            let (ping, pair) = (ping(&mut stream, spin), pair(&cache, order));
            if round > 0 {
                bare.push(ping);
                whole.push(pair);
            }
        }
        let ratios = whole.iter().zip(&bare).map(|(whole, bare)| whole / bare).collect();
        report.add(&names[0], "us", bare, Wanted::Nothing);
        report.add(&names[1], "us", whole, Wanted::Nothing);
        report.add(format!("daemon_read_b256_{name}_vs_pingpong"), "ratio", ratios, Wanted::AtMost(1.5));
    }
}

fn prefetch(report: &mut Report, socket: &Path, order: &mut [Key]) {
    const JOB: usize = 1024;
    let name = "daemon_prefetch_l1_1024_us";
    if !report.wants(&[name]) {
        return;
    }
    let cache = client(socket, "");
    let mut runs = Vec::new();
    for round in 0..=RUNS {
        Random::new(round as u64).shuffle(order);
        let mut times = Vec::new();
        let began = Instant::now();
        for keys in order.chunks_exact(JOB).cycle() {
            let session = cache.begin();
            let at = Instant::now();
            let job = cache.submit(session, keys, KVKEEP_PREFETCH_PREFIX);
            let result = loop {
                if let Some(result) = cache.result(job) {
                    break result;
                }
            };
            times.push(at.elapsed().as_secs_f64() * 1e6);
            assert_eq!(result.hit_chunks as usize, JOB);
            cache.end(session);
            if began.elapsed() >= RUN_TIME {
                break;
            }
        }
        if round > 0 {
            runs.push(median(&times));
        }
    }
    report.add(name, "us", runs, Wanted::AtMost(400.0));
}

fn many(report: &mut Report, socket: &Path) {
    let names = ["daemon_read_8clients_keys_per_s", "daemon_read_8clients_fairness"];
    if !report.wants(&names) {
        return;
    }
    let mut clients: Vec<Other> = (0..CLIENTS).map(|_| Other::start("client", socket, 0)).collect();
    let (mut sums, mut fairness) = (Vec::new(), Vec::new());
    for round in 0..=RUNS {
        clients.iter_mut().for_each(Other::go);
        let rates: Vec<f64> = clients.iter_mut().map(|client| client.line().parse().expect("a rate")).collect();
        if round > 0 {
            sums.push(rates.iter().sum());
            let (least, most) = rates.iter().fold((f64::MAX, 0f64), |(a, b), rate| (a.min(*rate), b.max(*rate)));
            fairness.push(least / most);
        }
    }
    report.add(names[0], "keys/s", sums, Wanted::Nothing);
    // The slowest client's share of the fastest one's.
    report.add(names[1], "ratio", fairness, Wanted::Nothing);
}

/// Copying out of the shared L1 against copying as much from this process's own memory.
fn copies(report: &mut Report, socket: &Path) {
    const BYTES: usize = 64 << 20;
    const PART: u64 = 4 << 20;
    let name = "daemon_copy_vs_memcpy";
    if !report.wants(&[name]) {
        return;
    }
    let (cache, mut random) = (client(socket, ""), Random::new(3));
    let (session, keys) = (cache.begin(), random.keys(BYTES / PART as usize));
    cache.stage(session, &keys, PART, &mut random);
    cache.finish_write(session, &keys);
    let mut views = views(keys.len());
    cache.reserve_read(session, &keys, 0, &mut views);
    let mut own = vec![0; BYTES];
    random.fill(&mut own);
    let mut to = own.clone();
    let mut run = |shared: bool| {
        let (began, mut copied) = (Instant::now(), 0);
        while began.elapsed() < RUN_TIME {
            for (i, (view, to)) in views.iter().zip(to.chunks_exact_mut(PART as usize)).enumerate() {
                let from = if shared {
                    // SAFETY: this session holds a share of it until the end.
                    unsafe { std::slice::from_raw_parts(view.data.cast::<u8>().cast_const(), PART as usize) }
                } else {
                    &own[i * PART as usize..][..PART as usize]
                };
                to.copy_from_slice(black_box(from));
                black_box(to);
            }
            copied += BYTES;
        }
        copied as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    let runs: Vec<[f64; 2]> = (0..=RUNS).map(|_| [run(true), run(false)]).collect();
    let of = |i: usize| runs[1..].iter().map(|run| run[i]).collect::<Vec<f64>>();
    let ratios = runs[1..].iter().map(|[shared, own]| shared / own).collect();
    report.add("daemon_copy_gb_per_s", "GB/s", of(0), Wanted::Nothing);
    report.add("daemon_copy_own_gb_per_s", "GB/s", of(1), Wanted::Nothing);
    report.add(name, "ratio", ratios, Wanted::AtLeast(0.95));
    cache.end(session);
}

/// Stores the keys through a daemon.
fn fill(daemon: &Path, keys: &[Key]) {
    let (cache, mut random) = (client(daemon, ""), Random::new(SEED + 1));
    let session = cache.begin();
    for batch in keys.chunks(1000) {
        cache.stage(session, batch, OBJECT_BYTES, &mut random);
        cache.finish_write(session, batch);
    }
    cache.end(session);
}

/// A daemon and its eight clients, which read the same few prompts.
#[cfg(feature = "ablation")]
pub struct Crowd {
    clients: Vec<Other>,
    _daemon: Other,
    _dir: tempfile::TempDir,
}

#[cfg(feature = "ablation")]
impl Crowd {
    /// The daemon does without the optimisations of `off`.
    pub fn start(off: u32) -> Crowd {
        let dir = directory();
        let socket = dir.path().join("d");
        let daemon = Other::start("daemon", &socket, off);
        fill(&socket, &Random::new(SEED).keys(RESIDENT));
        let clients = (0..CLIENTS).map(|_| Other::start("hot", &socket, 0)).collect();
        Crowd { clients, _daemon: daemon, _dir: dir }
    }

    /// Keys a second of all of them.
    pub fn run(&mut self) -> f64 {
        self.clients.iter_mut().for_each(Other::go);
        self.clients.iter_mut().map(|client| client.line().parse::<f64>().expect("a rate")).sum()
    }
}

pub fn run(report: &mut Report) {
    let names = ["daemon_read", "socket_pingpong2_us", "daemon_prefetch_l1_1024_us", "daemon_copy_vs_memcpy"];
    if !report.wants(&names) {
        return;
    }
    let dir = directory();
    let (daemon, ponger) = (dir.path().join("d"), dir.path().join("p"));
    let _daemon = Other::start("daemon", &daemon, 0);
    let _ponger = Other::start("pong", &ponger, 0);
    let mut order = Random::new(SEED).keys(RESIDENT);
    fill(&daemon, &order);
    round_trips(report, &daemon, &ponger, &mut order);
    prefetch(report, &daemon, &mut order);
    many(report, &daemon);
    copies(report, &daemon);
}
