//! Eight workers, a scheduler and a daemon over the requests of a trace, any of which is killed at any instant and started again.
//!
//! After each kill nothing of the dead is held, every byte read is its key's, and L1's books agree. KVKEEP_CHAOS_KILLS says how
//! many kills, KVKEEP_CHAOS_SEED repeats a seed (not the interleaving).

use std::collections::HashMap;
use std::time::Duration;

use kvkeep::abi::JobResult;
use kvkeep::cache::Cache as _;
use kvkeep::config::{Mode, PrefetchRequest};
use kvkeep::daemon::client::Client;
use kvkeep::error::{
    Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_EXISTS, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK,
};
use kvkeep::key::Key;
use serde::{Deserialize, Serialize};

use crate::support::process::{self, *};
use crate::support::random::{Random, rounds, seed};

const WORKERS: u32 = 8;
/// Chunks of one request, at most.
const CHUNKS_MAX: usize = 40;

#[derive(Serialize, Deserialize)]
enum Part {
    Daemon(DaemonPart),
    Scheduler { daemon: DaemonPart, seed: u64 },
    Worker { daemon: DaemonPart, rank: u32 },
}

impl process::Part for Part {
    const MODULE: &str = module_path!();
}

#[test]
#[ignore = "the other tests start it in processes"]
fn plays_its_part() {
    match process::part() {
        Part::Daemon(daemon) => daemon.play(),
        Part::Scheduler { daemon, seed } => schedule(&daemon, seed),
        Part::Worker { daemon, rank } => work(&daemon, rank),
    }
}

/// The prompts of the trace, as numbers of their chunks.
fn prompts() -> Vec<Vec<u64>> {
    #[derive(Deserialize)]
    struct Line {
        hash_ids: Vec<u64>,
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/conversation_slice.jsonl");
    let lines = std::fs::read_to_string(path).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Line>(line).unwrap().hash_ids);
    lines.map(|ids| ids.into_iter().take(CHUNKS_MAX).collect()).collect()
}

/// Every second request is of a model whose chunks have one object that all workers read; of the others each has one.
fn objects(request: usize, ids: &[u64]) -> Vec<Key> {
    let world = if request.is_multiple_of(2) { 1 } else { WORKERS };
    ids.iter().flat_map(|id| (0..world).map(move |rank| key(id * 2 + u64::from(world > 1), rank))).collect()
}

fn of_rank(objects: &[Key], request: usize, rank: u32) -> Vec<Key> {
    objects.iter().filter(|key| request.is_multiple_of(2) || key.rank == rank).copied().collect()
}

/// A daemon that died meanwhile, or whose death ended the session, is no fault of who asked.
fn lost(error: &Error) -> bool {
    matches!(error.status, KVKEEP_ERR_DISCONNECTED | KVKEEP_ERR_NOT_FOUND)
}

/// Prefetches one request after the other, has each rank read what was found, and has what was not computed and written.
fn schedule(daemon: &DaemonPart, seed: u64) {
    let client = daemon.patient_client();
    let (prompts, mut random) = (prompts(), Random(seed));
    loop {
        let request = random.below(100) as usize;
        match serve(&client, request, &prompts[request], &mut random) {
            Ok(()) => say("served"),
            Err(error) => {
                assert!(lost(&error), "{error}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn serve(client: &Client, request: usize, ids: &[u64], random: &mut Random) -> Result<(), Error> {
    let space = client.open_space(spec("chaos", ""))?;
    let objects = objects(request, ids);
    let world = if request.is_multiple_of(2) { 1 } else { WORKERS };
    let session = client.begin_session(space, &format!("request {request}"), None)?;
    let extra_count = if world == 1 { WORKERS - 1 } else { 0 };
    let prefetch = PrefetchRequest { extra_count, objects_per_chunk: world, mode: Mode::Prefix, ..Default::default() };
    let mut job = 0;
    client.submit_prefetch(session, &objects, prefetch, &mut job)?;
    if random.one_in(8) {
        client.cancel(job)?;
    }
    client.wait(job, WATCHDOG_MS)?;
    let mut result = JobResult::default();
    client.query_job(job, &mut result)?;
    let hits = result.hit_chunks as usize * world as usize;
    // Each rank reads what is its own, then stages and commits what was not found.
    say(&format!("session {session} {request} {hits}"));
    for _ in 0..WORKERS {
        if hear() == "over" {
            break;
        }
    }
    client.end_session(session)
}

/// Does its rank's part of each session that it is told of.
fn work(daemon: &DaemonPart, rank: u32) {
    let client = daemon.patient_client();
    let prompts = prompts();
    loop {
        let told = hear();
        let numbers: Vec<u64> = told.split(' ').map(|number| number.parse().unwrap()).collect();
        let [session, request, hits] = numbers[..] else { panic!("{told}") };
        let (request, hits) = (request as usize, hits as usize);
        let objects = objects(request, &prompts[request]);
        let done = attend(&client, session, request, &objects, hits, rank);
        match done {
            Ok(()) => say("done"),
            Err(error) => {
                assert!(lost(&error), "{error}");
                say("done not");
            }
        }
    }
}

fn attend(client: &Client, session: u64, request: usize, objects: &[Key], hits: usize, rank: u32) -> Result<(), Error> {
    let mine = of_rank(&objects[..hits], request, rank);
    if !mine.is_empty() {
        let mut held = views(mine.len());
        client.get_views(session, &mine, &mut held)?;
        for (key, view) in mine.iter().zip(&held) {
            assert_eq!(view.status, KVKEEP_OK as i32);
            let mut found = vec![0; size(key) as usize];
            client.copy_out(view, &mut found).unwrap();
            if found != bytes(key) {
                // Only the scheduler's death may have taken the shares away meanwhile.
                match client.get_views(session, &[*key], &mut views(1)) {
                    Err(error) if error.status == KVKEEP_ERR_NOT_FOUND => return Err(error),
                    _ => panic!("other bytes than were committed: {key}"),
                }
            }
        }
        client.finish_read(session, &mine, 0, None)?;
    }
    // An object that all read is written by one of them.
    let missing = of_rank(&objects[hits..], request, rank);
    if missing.is_empty() || (request.is_multiple_of(2) && request as u32 / 2 % WORKERS != rank) {
        return Ok(());
    }
    let sizes: Vec<u64> = missing.iter().map(size).collect();
    let mut places = views(missing.len());
    client.reserve_write(session, &missing, &sizes, false, &mut places)?;
    let mut staged = Vec::new();
    for (key, place) in missing.iter().zip(&places) {
        match place.status {
            0 => staged.push(*key),
            status => assert!([KVKEEP_ERR_EXISTS as i32, KVKEEP_ERR_NO_MEMORY as i32].contains(&status), "{status}"),
        }
    }
    fill(client, &missing, &places);
    if !staged.is_empty() {
        client.finish_write(session, &staged, None)?;
    }
    Ok(())
}

/// Everything that runs, and the test's own client.
struct World {
    part: DaemonPart,
    daemon: Process,
    scheduler: Process,
    workers: Vec<Process>,
    client: std::sync::Arc<Client>,
    random: Random,
    /// Clients killed under the daemon that runs.
    killed: u64,
    served: u64,
}

impl World {
    fn start_scheduler(&mut self) {
        let seed = self.random.next();
        self.scheduler = Process::start(&Part::Scheduler { daemon: self.part.clone(), seed });
    }

    /// Serves requests until `count` are served, and then kills the victim in the midst of the next.
    fn serve(&mut self, count: u64, victim: Option<u64>) {
        let mut left = count;
        loop {
            let said = self.scheduler.hear().expect("the scheduler ended");
            let Some(session) = said.strip_prefix("session ") else {
                self.served += 1;
                left = left.saturating_sub(1);
                match victim {
                    None if left == 0 => return,
                    // In the midst of a call, or of none.
                    Some(victim @ 8..) if left == 0 && self.random.one_in(2) => {
                        self.pause();
                        return self.kill(victim, false);
                    }
                    _ => continue,
                }
            };
            for worker in &mut self.workers {
                worker.say(session);
            }
            if left == 0
                && let Some(victim) = victim
            {
                self.pause();
                return self.kill(victim, true);
            }
            for worker in &mut self.workers {
                worker.expect("done");
                self.scheduler.say("done");
            }
        }
    }

    fn pause(&mut self) {
        for step in 0..self.random.below(400_000) {
            std::hint::black_box(step);
        }
    }

    /// Kills one and starts it again; `told` whether the workers have a session to attend to.
    fn kill(&mut self, victim: u64, told: bool) {
        let rank = victim as usize;
        match victim {
            0..8 => {
                self.workers[rank].kill();
                self.workers[rank] = start_worker(&self.part, rank as u32);
                self.killed += 1;
                self.settle(Some(rank));
            }
            8 => {
                self.scheduler.kill();
                if told {
                    self.settle(None);
                }
                self.killed += 1;
                self.nothing_is_held();
                self.start_scheduler();
            }
            _ => {
                self.daemon.kill();
                self.daemon = start_daemon(&self.part);
                self.killed = 0;
                if told {
                    self.settle(None);
                    self.scheduler.say("over");
                }
            }
        }
        self.all_are_here();
    }

    fn all_are_here(&self) {
        let (killed, client, clients) = (self.killed, &self.client, 2 + u64::from(WORKERS));
        until("every survivor is connected, and the dead are counted", || {
            let mut stats = kvkeep::abi::Stats::default();
            client.stats(&mut stats).is_ok() && stats.clients == clients && stats.clients_lost == killed
        });
    }

    /// The workers that live finish what they were told.
    fn settle(&mut self, dead: Option<usize>) {
        for rank in (0..self.workers.len()).filter(|rank| Some(*rank) != dead) {
            self.workers[rank].expect("done");
        }
        if dead.is_some() {
            self.scheduler.say("over");
        }
    }

    /// The scheduler is dead: nobody else has sessions.
    fn nothing_is_held(&self) {
        let client = &self.client;
        until("nothing is held", || {
            let stats = stats(client);
            (stats.sessions, stats.l1_shares, stats.l1_staged, stats.jobs) == (0, 0, 0, 0)
        });
        assert!(client.explain_session(0).unwrap().contains(r#""sessions":[]"#));
    }

    /// What sessions are said to hold is what is held.
    fn sums_match(&self) {
        let explained: serde_json::Value = serde_json::from_str(&self.client.explain_session(0).unwrap()).unwrap();
        let sessions = explained["sessions"].as_array().unwrap();
        let sum = |of: &dyn Fn(&serde_json::Value) -> u64| sessions.iter().map(of).sum::<u64>();
        let shares = sum(&|session| session["shares"].as_u64().unwrap());
        let held = sum(&|session| {
            session["held"].as_array().unwrap().iter().map(|held| held[1].as_u64().unwrap()).sum::<u64>()
        });
        assert_eq!(shares, held);
    }

    /// Nobody works: everything in L1 can be named, and what it weighs is what is used.
    fn books_agree(&self) {
        let client = &self.client;
        client.flush(WATCHDOG_MS).unwrap();
        until("no memory is locked", || stats(client).l1_locked_bytes == 0);
        let space = client.open_space(spec("chaos", "")).unwrap();
        let (mut objects, mut bytes) = (0, 0);
        let mut known = HashMap::new();
        for (request, ids) in prompts().iter().enumerate() {
            for key in self::objects(request, ids) {
                known.insert((key.hash, key.rank), key);
            }
        }
        let session = client.begin_session(space, "books", None).unwrap();
        let all: Vec<Key> = known.into_values().collect();
        for some in all.chunks(500) {
            let mut held = views(some.len());
            client.reserve_read(session, some, 0, &mut held).unwrap();
            let there: Vec<(&Key, _)> = some.iter().zip(&held).filter(|(_, view)| view.status == 0).collect();
            for (key, view) in there {
                check(client, &[*key], &[*view]);
                (objects, bytes) = (objects + 1, bytes + view.size);
            }
        }
        client.abort_session(session).unwrap();
        let stats = stats(client);
        assert_eq!((stats.l1_objects, stats.l1_shares, stats.l1_staged), (objects, 0, 0));
        // Memory is given in units of 64 bytes.
        assert!(stats.l1_used_bytes >= bytes && stats.l1_used_bytes < bytes + 64 * objects + 1, "{stats:?} {bytes}");
        assert_eq!((stats.corruptions, stats.jobs_submitted), (0, stats.jobs_completed));
    }
}

fn start_worker(part: &DaemonPart, rank: u32) -> Process {
    Process::start(&Part::Worker { daemon: part.clone(), rank })
}

fn start_daemon(part: &DaemonPart) -> Process {
    let mut process = Process::start(&Part::Daemon(part.clone()));
    process.expect("serving");
    process
}

#[test]
fn whoever_is_killed_nothing_leaks_and_no_byte_is_wrong() {
    let seed = seed("KVKEEP_CHAOS_SEED");
    let kills = rounds("KVKEEP_CHAOS_KILLS", 5);
    let _watch = watch_for(WATCHDOG + Duration::from_secs(20) * kills as u32);
    let dir = tempfile::tempdir().unwrap();
    let l2 = format!("fault:fs://{}/l2?capacity=64MiB&fault.delay=0.1&fault.delay_ms=3", dir.path().display());
    let part = DaemonPart { l1_bytes: 4 * MIB, ..DaemonPart::with_l2(dir.path(), &l2) };
    let mut random = Random(seed);
    let daemon = start_daemon(&part);
    let scheduler = Process::start(&Part::Scheduler { daemon: part.clone(), seed: random.next() });
    let workers = (0..WORKERS).map(|rank| start_worker(&part, rank)).collect();
    let client = part.client();
    let mut world = World { part, daemon, scheduler, workers, client, random, killed: 0, served: 0 };
    world.all_are_here();
    for kill in 0..kills {
        // The daemon and the scheduler are each killed about every fourth time, and in the first four.
        let worker = world.random.below(u64::from(WORKERS));
        let victim = match kill % 4 {
            1 => 8,
            3 => 9,
            _ => worker,
        };
        let before = world.random.below(60);
        world.serve(before, Some(victim));
        world.sums_match();
        eprintln!(
            "kill {}: {}",
            kill + 1,
            ["a worker", "the scheduler", "the daemon"][victim.saturating_sub(7) as usize]
        );
    }
    world.serve(5, None);
    world.scheduler.kill();
    world.nothing_is_held();
    world.workers.clear();
    until("every client is gone", || stats(&world.client).clients == 1);
    world.books_agree();
    let stats = stats(&world.client);
    eprintln!(
        "{kills} kills, {} requests served; by the last daemon {} chunks found of {}, {} objects loaded, {} evicted",
        world.served, stats.prefetch_hit_chunks, stats.prefetch_asked_chunks, stats.loads, stats.evictions
    );
    world.client.close();
}
