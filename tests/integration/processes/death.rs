//! Clients that die, or hang, at any instant: what was theirs is returned, and nobody else notices.

use std::cell::Cell;
use std::time::Duration;

use kvkeep::abi::Stats;
use kvkeep::cache::Cache as _;
use kvkeep::config::{Mode, PrefetchRequest};
use kvkeep::error::{KVKEEP_ERR_EXPIRED, KVKEEP_OK};
use kvkeep::key::Key;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{Part, daemon};
use crate::support::process::*;
use crate::support::random::{Random, rounds, seed};

/// Keys that are in L2 alone, to be prefetched.
const STORED: std::ops::Range<u64> = 0..200;

/// Stages, holds shares and has jobs, more and more of them, until it is killed.
#[derive(Serialize, Deserialize)]
pub struct Busy {
    daemon: DaemonPart,
    seed: u64,
}

impl Busy {
    pub fn play(&self) {
        let client = self.daemon.client();
        let space = open_space(&client);
        let mut random = Random(self.seed);
        let mut sessions = Vec::new();
        loop {
            let session = client.begin_session(space, "busy", None).unwrap();
            sessions.push(session);
            let first = 1000 + random.below(1 << 40);
            let mine = keys(first..first + 1 + random.below(8));
            stage(&client, session, &mine);
            let committed = &mine[..random.below(mine.len() as u64 + 1) as usize];
            if !committed.is_empty() {
                assert!(client.finish_write(session, committed, None).unwrap());
                let extra = random.below(4) as u32;
                assert!(client.reserve_read(session, committed, extra, &mut views(committed.len())).unwrap());
            }
            let first = random.below(STORED.end - 20);
            let request = PrefetchRequest {
                extra_count: random.below(4) as u32,
                mode: if random.one_in(2) { Mode::Prefix } else { Mode::Any },
                temporary: random.one_in(2),
                ..PrefetchRequest::default()
            };
            client.submit_prefetch(session, &keys(first..first + 1 + random.below(20)), request, &mut 0).unwrap();
            if sessions.len() > 8 {
                let session = sessions.swap_remove(random.below(8) as usize);
                let ended = if random.one_in(2) { client.end_session(session) } else { client.abort_session(session) };
                ended.unwrap();
            }
            say("lap");
        }
    }
}

/// What a client of this process keeps while others die.
fn kept(stats: &Stats) -> (u64, u64, u64, u64) {
    (stats.sessions, stats.l1_shares, stats.l1_staged, stats.jobs)
}

#[test]
fn what_a_killed_client_held_is_returned_and_nothing_else() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    // Loads that take a while, so that kills meet jobs that are not done.
    let part = DaemonPart::new(dir.path(), 3);
    let _daemon = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    store(&client, space, &keys(STORED));
    let (held, staged) = (keys(500..520), keys(600..605));
    let session = client.begin_session(space, "keeper", None).unwrap();
    write(&client, session, &held);
    assert!(client.reserve_read(session, &held, 1, &mut views(held.len())).unwrap());
    // One that is loaded from L2, and that the others load too.
    let loaded = keys(100..110);
    let mut job = 0;
    client.submit_prefetch(session, &loaded, PrefetchRequest::default(), &mut job).unwrap();
    client.wait(job, WATCHDOG_MS).unwrap();
    client.release_job(job).unwrap();
    stage(&client, session, &staged);
    let mine = (1, 2 * 20 + 10, 5, 0);
    assert_eq!(kept(&stats(&client)), mine);

    let rounds = rounds("KVKEEP_KILL_ROUNDS", 12);
    let mut random = Random(seed("KVKEEP_KILL_SEED"));
    let mut worst = Duration::ZERO;
    for round in 1..=rounds {
        let mut busy = Process::start(&Part::Busy(Busy { daemon: part.clone(), seed: random.next() }));
        for _ in 0..1 + random.below(30) {
            busy.expect("lap");
        }
        for step in 0..random.below(300_000) {
            std::hint::black_box(step);
        }
        busy.kill();
        let took = until("all returned", || {
            let stats = stats(&client);
            kept(&stats) == mine && stats.clients == 1
        });
        worst = worst.max(took);
        assert_eq!(stats(&client).clients_lost, round);
        look(&client, session, &held);
        look(&client, session, &loaded);
    }
    eprintln!("{rounds} clients killed: all was returned {worst:?} after the kill at the latest");
    // What this client staged is as it left it.
    assert!(client.finish_write(session, &staged, None).unwrap());
    read(&client, session, &staged);
    client.end_session(session).unwrap();
    let stats = stats(&client);
    assert_eq!(kept(&stats), (0, 0, 0, 0));
    assert_eq!(stats.jobs_submitted, stats.jobs_completed);
    client.close();
}

/// Works in somebody else's session.
#[derive(Serialize, Deserialize)]
pub struct Attached {
    daemon: DaemonPart,
    session: u64,
    /// Leaves a child that has its descriptors.
    forks: bool,
}

impl Attached {
    pub fn play(&self) {
        let client = self.daemon.client();
        stage(&client, self.session, &keys(700..710));
        let request = PrefetchRequest { extra_count: 3, ..PrefetchRequest::default() };
        client.submit_prefetch(self.session, &keys(0..50), request, &mut 0).unwrap();
        if !self.forks {
            say("attached");
            hear();
            return;
        }
        // SAFETY: the child does nothing but wait for a signal.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: a plain call.
                unsafe { libc::pause() };
            }
        }
        say(&format!("attached {child}"));
        hear();
    }
}

fn a_worker_dies_in_another_session(forks: bool) {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let first = daemon(&part);
    let client = part.client();
    store(&client, open_space(&client), &keys(0..50));
    client.close();
    drop(first);
    // Nothing is ever loaded: the worker's job is under way when it dies.
    let hanging = DaemonPart::with_l2(dir.path(), &format!("fault:fs://{}/l2?fault.load_hang=1", dir.path().display()));
    let _daemon = daemon(&hanging);
    let client = hanging.client();
    let session = client.begin_session(open_space(&client), "scheduler", None).unwrap();
    let own = keys(800..803);
    stage(&client, session, &own);
    let mut worker = Process::start(&Part::Attached(Attached { daemon: hanging.clone(), session, forks }));
    let child = worker.expect("attached");
    let before = stats(&client);
    assert_eq!((before.jobs, before.clients), (1, 2));
    worker.kill();
    let took = until("the worker's part was given back", || stats(&client).clients == 1 && stats(&client).jobs == 0);
    eprintln!("seen {took:?} after the kill");
    if forks {
        kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }
    let after = stats(&client);
    assert_eq!((after.sessions, after.jobs_cancelled, after.clients_lost), (1, 1, 1));
    // The session goes on: what the worker staged may be staged anew, what the owner staged is there.
    write(&client, session, &keys(700..710));
    assert!(client.finish_write(session, &own, None).unwrap());
    read(&client, session, &own);
    client.end_session(session).unwrap();
    client.close();
}

#[test]
fn a_worker_that_dies_gives_back_what_it_did_in_the_schedulers_session() {
    a_worker_dies_in_another_session(false);
}

#[test]
fn a_child_that_inherited_its_descriptors_does_not_keep_a_dead_client_alive() {
    a_worker_dies_in_another_session(true);
}

/// Holds shares in a session of a short deadline.
#[derive(Serialize, Deserialize)]
pub struct Hanging {
    daemon: DaemonPart,
}

const HELD: std::ops::Range<u64> = 0..100;

impl Hanging {
    pub fn play(&self) {
        let client = self.daemon.client();
        let space = open_space(&client);
        let session = client.begin_session(space, "hangs", Some(Duration::from_millis(300))).unwrap();
        let mine: Vec<Key> = keys(HELD);
        write(&client, session, &mine);
        assert!(client.reserve_read(session, &mine, 0, &mut views(mine.len())).unwrap());
        say("holding");
        hear();
        let mut statuses = vec![0; mine.len()];
        match client.finish_read(session, &mine, 0, Some(&mut statuses)) {
            Ok(all) => {
                let expired = statuses.iter().filter(|&&status| status == KVKEEP_ERR_EXPIRED as i32).count();
                let fine = statuses.iter().filter(|&&status| status == KVKEEP_OK as i32).count();
                assert!(!all && expired > 0 && expired + fine == mine.len(), "{statuses:?}");
                say(&format!("expired {expired}"));
            }
            Err(error) => {
                assert_eq!(error.status, KVKEEP_ERR_EXPIRED, "{error}");
                say("expired 100");
            }
        }
        // It is a client like any other.
        let session = client.begin_session(space, "again", None).unwrap();
        client.end_session(session).unwrap();
        client.close();
    }
}

#[test]
fn a_client_that_hangs_is_bounded_by_its_deadline() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart { l1_bytes: MIB, ..DaemonPart::new(dir.path(), 0) };
    let _daemon = daemon(&part);
    let client = part.client();
    let mut hanging = Process::start(&Part::Hanging(Hanging { daemon: part.clone() }));
    hanging.expect("holding");
    hanging.signal(Signal::STOP);
    let session = client.begin_session(open_space(&client), "pressure", None).unwrap();
    // More and more, until there is no room beside what the hanging client holds.
    let number = Cell::new(1 << 40);
    until("room was taken from who hangs", || {
        number.set(number.get() + 1);
        let more = client.reserve_write(session, &[key(number.get(), 0)], &[32 * KIB], false, &mut views(1));
        more.unwrap() && stats(&client).shares_revoked > 0
    });
    let revoked = stats(&client).shares_revoked;
    hanging.signal(Signal::CONT);
    hanging.say("go on");
    let expired: u64 = hanging.expect("expired").parse().unwrap();
    assert_eq!(expired, revoked);
    hanging.wait();
    client.abort_session(session).unwrap();
    let after = stats(&client);
    assert_eq!((after.l1_shares, after.l1_staged, after.clients_lost), (0, 0, 0));
    client.close();
}
