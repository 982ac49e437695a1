//! The `s3` backend through the whole stack, against a bare loop over `object_store` with as many requests at once, in turns. Both
//! talk to the same server: threads of this process that keep objects in memory and speak as much of S3 as that takes.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, ObjectStore, ObjectStoreExt};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::{Builder, Runtime};

use crate::cache::{Cache, Setup};
use crate::fs::cpu_seconds;
use crate::prefetch::{load, store};
use crate::random::Random;
use crate::report::{Report, Wanted};
use crate::{RUN_TIME, RUNS};

/// Requests at once, and threads, of both.
const DEPTH: usize = 32;
const THREADS: usize = 2;
const GIB: f64 = (1u64 << 30) as f64;

/// What the server has.
#[derive(Default)]
struct Objects {
    kept: RwLock<HashMap<String, Arc<Vec<u8>>>>,
    /// Memory of objects that are deleted, for new ones: faulting it in again would cost more than storing them.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Objects {
    fn clear(&self) {
        let deleted = std::mem::take(&mut *self.kept.write());
        self.spare.lock().extend(deleted.into_values().filter_map(|object| Arc::try_unwrap(object).ok()));
    }

    /// Memory for an object that is about to be received.
    fn memory(&self, length: usize) -> Vec<u8> {
        let mut memory = self.spare.lock().pop().unwrap_or_default();
        memory.resize(length, 0);
        memory
    }
}

/// Serves S3 from memory; gives its address, and what it has.
fn serve() -> (String, Arc<Objects>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let all = Arc::new(Objects::default());
    let objects = all.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let objects = objects.clone();
            // It ends with its connection.
            std::thread::spawn(move || drop(answer(connection, &objects)));
        }
    });
    (address, all)
}

fn answer(connection: TcpStream, objects: &Objects) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let (mut from, mut to) = (BufReader::with_capacity(256 << 10, connection.try_clone()?), connection);
    loop {
        let (mut line, mut length, mut only_new) = (String::new(), 0, false);
        if from.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            from.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
            only_new |= name.eq_ignore_ascii_case("if-none-match");
        }
        let mut body = if length > 0 { objects.memory(length) } else { Vec::new() };
        from.read_exact(&mut body)?;
        let mut words = line.split(' ');
        let (method, name) = (words.next().unwrap_or(""), words.next().unwrap_or("").to_owned());
        let tags = "ETag: \"1\"\r\nLast-Modified: Mon, 30 Nov 2026 10:00:00 GMT\r\n";
        if method == "PUT" && only_new && objects.kept.read().contains_key(&name) {
            let error = "<Error><Code>PreconditionFailed</Code></Error>";
            write!(to, "HTTP/1.1 412 Precondition Failed\r\nContent-Length: {}\r\n\r\n{error}", error.len())?;
            continue;
        }
        if method == "PUT" {
            objects.kept.write().insert(name, Arc::new(body));
            write!(to, "HTTP/1.1 200 OK\r\n{tags}Content-Length: 0\r\n\r\n")?;
            continue;
        }
        let found = objects.kept.read().get(&name).cloned();
        match found {
            Some(object) => {
                let head = format!("HTTP/1.1 200 OK\r\n{tags}Content-Length: {}\r\n\r\n", object.len());
                to.write_all(head.as_bytes())?;
                if method == "GET" {
                    to.write_all(&object)?;
                }
            }
            None => {
                let error = "<Error><Code>NoSuchKey</Code></Error>";
                let sent = if method == "HEAD" { "" } else { error };
                write!(to, "HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{sent}", error.len())?;
            }
        }
    }
}

/// A loop over the client that moves each object into memory of its own.
struct BareClient {
    runtime: Runtime,
    client: AmazonS3,
    names: Vec<Path>,
    memory: Vec<Vec<u8>>,
    payloads: Vec<Bytes>,
}

impl BareClient {
    fn new(address: &str, objects: usize, size: usize, random: &mut Random) -> BareClient {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().unwrap();
        let client = AmazonS3Builder::new()
            .with_endpoint(format!("http://{address}"))
            .with_bucket_name("bare")
            .with_skip_signature(true)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .build()
            .unwrap();
        let names: Vec<Path> = (0..objects).map(|number| Path::from(format!("{number}"))).collect();
        let mut memory = vec![vec![0; size + 160]; objects];
        memory.iter_mut().for_each(|object| random.fill(object));
        let payloads = memory.iter().map(|object| Bytes::from(object.clone())).collect();
        let bare = BareClient { runtime, client, names, memory, payloads };
        bare.store_once();
        bare
    }

    fn store_once(&self) {
        let jobs = self.names.iter().cloned().zip(self.payloads.iter().cloned()).map(|(name, payload)| {
            let client = self.client.clone();
            self.runtime.spawn(async move { client.put(&name, payload.into()).await.unwrap() })
        });
        let stored = stream::iter(jobs).buffered(DEPTH).map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(self.runtime.block_on(stored).len(), self.names.len());
    }

    /// GB/s of stores of what is not there.
    fn store(&self, stored: &Objects) -> f64 {
        let (mut spent, mut bytes) = (Duration::ZERO, 0);
        while spent < RUN_TIME {
            stored.clear();
            let began = Instant::now();
            self.store_once();
            spent += began.elapsed();
            bytes += self.payloads.iter().map(Bytes::len).sum::<usize>();
        }
        bytes as f64 / spent.as_secs_f64() / 1e9
    }

    /// GB/s of loads.
    fn run(&mut self) -> f64 {
        let (mut spent, mut bytes) = (Duration::ZERO, 0);
        while spent < RUN_TIME {
            let began = Instant::now();
            let jobs = self.names.iter().cloned().zip(self.memory.drain(..)).map(|(name, mut object)| {
                let client = self.client.clone();
                // As the backend: each on whichever thread is free.
                self.runtime.spawn(async move {
                    let mut frames = client.get_opts(&name, GetOptions::default()).await.unwrap().into_stream();
                    let mut at = 0;
                    while let Some(frame) = frames.try_next().await.unwrap() {
                        object[at..at + frame.len()].copy_from_slice(&frame);
                        at += frame.len();
                    }
                    assert_eq!(at, object.len());
                    object
                })
            });
            // Lazily: so many at once.
            let back = stream::iter(jobs).buffered(DEPTH).map(Result::unwrap).collect::<Vec<_>>();
            let memory = self.runtime.block_on(back);
            spent += began.elapsed();
            bytes += memory.iter().map(Vec::len).sum::<usize>();
            self.memory = memory;
        }
        bytes as f64 / spent.as_secs_f64() / 1e9
    }
}

fn loads(report: &mut Report, random: &mut Random, objects: usize, size: usize, name: &str) {
    let [ratio, ours, bare, cpu] =
        ["vs_bare", "gb_per_s", "bare_gb_per_s", "cpu_s_per_gib"].map(|what| format!("s3_load_{name}_{what}"));
    if !report.wants(&[&ratio, &ours, &bare, &cpu]) {
        return;
    }
    let (address, _) = serve();
    let url = format!("s3://kv/bench?endpoint=http://{address}&anonymous=on&depth={DEPTH}&threads={THREADS}");
    let keys = random.keys(objects);
    store(&url, &keys, size as u64, random);
    let l1_bytes = (objects * size) as u64 + (64 << 20);
    let cache = Cache::open(Setup { l1_bytes, url: Some(&url), ..Default::default() });
    let mut client = BareClient::new(&address, objects, size, random);
    load(&cache, &keys);
    let [mut ratios, mut ours_runs, mut bare_runs, mut cpu_runs] = [const { Vec::new() }; 4];
    for _ in 0..RUNS {
        let theirs = client.run();
        let (mut spent, mut bytes, before) = (Duration::ZERO, 0, cpu_seconds());
        while spent < RUN_TIME {
            let (_, time, loaded) = load(&cache, &keys);
            spent += time;
            bytes += loaded;
        }
        let rate = bytes as f64 / spent.as_secs_f64() / 1e9;
        ratios.push(rate / theirs);
        ours_runs.push(rate);
        bare_runs.push(theirs);
        cpu_runs.push((cpu_seconds() - before) / (bytes as f64 / GIB));
    }
    report.add(ratio, "ratio", ratios, Wanted::AtLeast(0.9));
    report.add(ours, "GB/s", ours_runs, Wanted::Nothing);
    report.add(bare, "GB/s", bare_runs, Wanted::Nothing);
    // The server's too, which is in this process.
    report.add(cpu, "s/GiB", cpu_runs, Wanted::Nothing);
}

fn stores(report: &mut Report, random: &mut Random, objects: usize, size: usize, name: &str) {
    let [ratio, ours, bare, cpu] =
        ["vs_bare", "gb_per_s", "bare_gb_per_s", "cpu_s_per_gib"].map(|what| format!("s3_store_{name}_{what}"));
    if !report.wants(&[&ratio, &ours, &bare, &cpu]) {
        return;
    }
    let (address, stored) = serve();
    let url = format!("s3://kv/bench?endpoint=http://{address}&anonymous=on&depth={DEPTH}&threads={THREADS}");
    let l1_bytes = (objects * size) as u64 + (64 << 20);
    let cache = Cache::open(Setup { l1_bytes, url: Some(&url), ..Default::default() });
    let client = BareClient::new(&address, objects, size, random);
    let [mut ratios, mut ours_runs, mut bare_runs, mut cpu_runs] = [const { Vec::new() }; 4];
    for _ in 0..RUNS {
        let theirs = client.store(&stored);
        let (mut spent, mut bytes, mut cpu_spent) = (Duration::ZERO, 0, 0.0);
        while spent < RUN_TIME {
            stored.clear();
            let keys = random.keys(objects);
            let session = cache.begin();
            cache.stage(session, &keys, size as u64, random);
            let (began, before) = (Instant::now(), cpu_seconds());
            cache.finish_write(session, &keys);
            cache.drain();
            spent += began.elapsed();
            cpu_spent += cpu_seconds() - before;
            bytes += objects * size;
            cache.end(session);
            cache.clear();
            // What was stored, and nothing was dropped.
            assert_eq!(stored.kept.read().len(), objects);
        }
        let rate = bytes as f64 / spent.as_secs_f64() / 1e9;
        ratios.push(rate / theirs);
        ours_runs.push(rate);
        bare_runs.push(theirs);
        cpu_runs.push(cpu_spent / (bytes as f64 / GIB));
    }
    report.add(ratio, "ratio", ratios, Wanted::AtLeast(0.9));
    report.add(ours, "GB/s", ours_runs, Wanted::Nothing);
    report.add(bare, "GB/s", bare_runs, Wanted::Nothing);
    // The server's too, which is in this process.
    report.add(cpu, "s/GiB", cpu_runs, Wanted::Nothing);
}

pub fn run(report: &mut Report) {
    let mut random = Random::new(3);
    loads(report, &mut random, 256, 1 << 20, "1mib");
    loads(report, &mut random, 1024, 64 << 10, "64kib");
    stores(report, &mut random, 256, 1 << 20, "1mib");
    stores(report, &mut random, 1024, 64 << 10, "64kib");
}
