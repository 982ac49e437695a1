//! Tensor parallelism: a scheduler process prefetches, worker processes attach by the session's number.

use kvkeep::abi::JobResult;
use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::daemon::client::Client;
use kvkeep::error::KVKEEP_ERR_NOT_HELD;
use kvkeep::key::Key;
use serde::{Deserialize, Serialize};

use super::{Part, daemon};
use crate::support::process::*;

const CHUNKS: u64 = 24;

/// Objects of a chunk are chunk-major, one a rank.
fn prompt(world: u32) -> Vec<Key> {
    (0..CHUNKS).flat_map(|chunk| (0..world).map(move |rank| key(chunk, rank))).collect()
}

/// Prefetches the prompt and says its session.
#[derive(Serialize, Deserialize)]
pub struct Scheduler {
    daemon: DaemonPart,
    world: u32,
    extra: u32,
}

impl Scheduler {
    pub fn play(&self) {
        let client = self.daemon.client();
        let session = client.begin_session(open_space(&client), "prompt", None).unwrap();
        let request =
            PrefetchRequest { extra_count: self.extra, objects_per_chunk: self.world, ..PrefetchRequest::default() };
        let (mut job, mut result) = (0, JobResult::default());
        client.submit_prefetch(session, &prompt(self.world), request, &mut job).unwrap();
        client.wait(job, WATCHDOG_MS).unwrap();
        client.query_job(job, &mut result).unwrap();
        say(&format!("prefetched {session} {} {}", result.hit_chunks, result.tier_keys[1]));
        hear();
        client.end_session(session).unwrap();
        say("ended");
        hear();
        client.close();
    }
}

/// Attaches to the session, looks at what is its rank's, and returns one share of each.
#[derive(Serialize, Deserialize)]
pub struct Worker {
    daemon: DaemonPart,
    session: u64,
    world: u32,
    rank: u32,
}

impl Worker {
    pub fn play(&self) {
        let client = self.daemon.client();
        let mine: Vec<Key> =
            prompt(self.world).into_iter().filter(|key| self.world == 1 || key.rank == self.rank).collect();
        look(&client, self.session, &mine);
        say("looked");
        hear();
        // Whatever the other workers returned meanwhile, this one's share keeps the bytes.
        look(&client, self.session, &mine);
        assert!(client.finish_read(self.session, &mine, 0, None).unwrap());
        say("returned");
        hear();
        client.close();
    }
}

fn shares_go_with_their_workers(tp: u32, world: u32) {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart { l1_bytes: 2 * MIB, watermark_percent: 100, ..DaemonPart::new(dir.path(), 0) };
    let _daemon = daemon(&part);
    let observer = part.client();
    let space = open_space(&observer);
    let objects = prompt(world);
    store(&observer, space, &objects);

    let extra = kvkeep_extra_count(tp, world);
    let mut scheduler = Process::start(&Part::Scheduler(Scheduler { daemon: part.clone(), world, extra }));
    let said = scheduler.expect("prefetched");
    let numbers: Vec<u64> = said.split(' ').map(|number| number.parse().unwrap()).collect();
    let [session, hits, loaded] = numbers[..] else { panic!("{said}") };
    assert_eq!((hits, loaded), (CHUNKS, objects.len() as u64));
    let shares = |left: u32| u64::from(left) * CHUNKS;
    assert_eq!(stats(&observer).l1_shares, shares(tp));

    let start = |rank| Process::start(&Part::Worker(Worker { daemon: part.clone(), session, world, rank }));
    let mut workers: Vec<Process> = (0..tp).map(start).collect();
    for worker in &mut workers {
        worker.expect("looked");
    }
    for (left, worker) in (0..tp).rev().zip(&mut workers) {
        worker.say("go on");
        worker.expect("returned");
        assert_eq!(stats(&observer).l1_shares, shares(left));
    }
    let mut status = [0];
    assert!(!observer.finish_read(session, &objects[..1], 0, Some(&mut status)).unwrap());
    assert_eq!(status, [KVKEEP_ERR_NOT_HELD as i32]);
    // The object was touched when its last share went, once.
    let uses: Vec<u64> = objects.iter().map(|key| uses(&observer, space, key)).collect();
    assert!(uses.iter().all(|&uses| uses == 1), "{uses:?}");

    scheduler.say("end");
    scheduler.expect("ended");
    let after = stats(&observer);
    assert_eq!((after.sessions, after.l1_shares, after.jobs), (0, 0, 0));
    evicted_from_the_tail(&observer, space, &objects);
    for worker in &mut workers {
        worker.say("close");
    }
    workers.into_iter().for_each(Process::wait);
    scheduler.say("close");
    scheduler.wait();
    until("every client closed in order", || stats(&observer).clients == 1);
    assert_eq!(stats(&observer).clients_lost, 0);
    observer.close();
}

/// As the helper of the C ABI: one object that all workers read, or one object each.
fn kvkeep_extra_count(tp: u32, world: u32) -> u32 {
    kvkeep::ffi::version::kvkeep_extra_count(tp as i32, world as i32) as u32
}

fn explained(client: &Client, space: u64, key: &Key) -> serde_json::Value {
    serde_json::from_str(&client.explain_key(space, key).unwrap()).unwrap()
}

fn uses(client: &Client, space: u64, key: &Key) -> u64 {
    explained(client, space, key)["l1"][0]["uses"].as_u64().unwrap()
}

/// The session's end touched what it used, last chunk first: under pressure the prompt loses its last chunks.
fn evicted_from_the_tail(client: &Client, space: u64, prompt: &[Key]) {
    let session = client.begin_session(space, "pressure", None).unwrap();
    let (before, mut number) = (stats(client).evictions, 1 << 32);
    while stats(client).evictions == before {
        write(client, session, &[key(number, 0)]);
        number += 1;
    }
    client.end_session(session).unwrap();
    let left: Vec<bool> = prompt.iter().map(|key| explained(client, space, key)["state"] == "ready").collect();
    let kept = left.iter().take_while(|there| **there).count();
    assert!((1..prompt.len()).contains(&kept) && left[kept..].iter().all(|there| !there), "not its tail: {left:?}");
}

#[test]
fn one_object_for_all_of_2_workers() {
    shares_go_with_their_workers(2, 1);
}

#[test]
fn one_object_for_all_of_4_workers() {
    shares_go_with_their_workers(4, 1);
}

#[test]
fn one_object_for_all_of_8_workers() {
    shares_go_with_their_workers(8, 1);
}

#[test]
fn one_object_for_each_of_2_workers() {
    shares_go_with_their_workers(2, 2);
}

#[test]
fn one_object_for_each_of_4_workers() {
    shares_go_with_their_workers(4, 4);
}

#[test]
fn one_object_for_each_of_8_workers() {
    shares_go_with_their_workers(8, 8);
}
