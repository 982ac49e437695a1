//! A daemon that is killed, and a second one: what clients are told, and what they find afterwards.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use kvkeep::abi::JobResult;
use kvkeep::cache::Cache as _;
use kvkeep::config::{Callback, Notify, PrefetchRequest};
use kvkeep::daemon::client::Client;
use kvkeep::error::{Error, KVKEEP_ERR_DISCONNECTED};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use super::{Part, daemon};
use crate::support::process::*;
use crate::support::random::{Random, rounds, seed};

type Told = Arc<Mutex<Vec<(u64, i32)>>>;

fn callback(told: &Told) -> Notify {
    let told = told.clone();
    Notify::Callback(Callback(Box::new(move |completion| {
        told.lock().unwrap().push((completion.job, completion.status));
    })))
}

fn drain(client: &Client) -> Vec<(u64, i32)> {
    let blank = JobResult::default().completion(0, 0);
    let mut some = [blank; 64];
    let count = client.take_completions(&mut some);
    some[..count].iter().map(|completion| (completion.job, completion.status)).collect()
}

fn submit(client: &Client, session: u64, notify: Notify) -> Result<u64, Error> {
    let mut job = 0;
    let request = PrefetchRequest { notify, ..PrefetchRequest::default() };
    client.submit_prefetch(session, &keys(0..20), request, &mut job)?;
    Ok(job)
}

pub fn is_disconnected<T>(result: Result<T, Error>) {
    let error = result.err().expect("a call of a daemon that is gone succeeded");
    assert_eq!(error.status, KVKEEP_ERR_DISCONNECTED, "{error}");
    assert!(error.message.contains("went away") && error.message.contains("begin new sessions"), "{error}");
}

#[test]
fn every_call_is_disconnected_at_once_and_l2_is_found_again() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let plain = DaemonPart::new(dir.path(), 0);
    let mut first = daemon(&plain);
    let client = plain.client();
    let space = open_space(&client);
    store(&client, space, &keys(0..20));
    first.say("stop");
    first.expect("stopped");
    first.wait();

    // Nothing is loaded or stored: jobs and drains are under way when the daemon dies.
    let hangs = format!("fault:fs://{}/l2?fault.load_hang=1&fault.store_hang=1", dir.path().display());
    let mut hanging = daemon(&DaemonPart::with_l2(dir.path(), &hangs));
    until("connected again", || client.begin_session(space, "probe", None).is_ok());
    let other = plain.client();
    let session = client.begin_session(space, "before", None).unwrap();
    write(&client, session, &keys(100..101));
    let told = Told::default();
    let jobs = [
        submit(&client, session, Notify::Poll).unwrap(),
        submit(&client, session, callback(&told)).unwrap(),
        submit(&client, session, Notify::EventFd).unwrap(),
    ];
    let ready = Barrier::new(5);
    let (killed, slowest) = std::thread::scope(|scope| {
        let run = |call: &'static str| {
            let (client, other, ready) = (&client, &other, &ready);
            scope.spawn(move || {
                ready.wait();
                let ended = match call {
                    "wait" => client.wait(jobs[0], WATCHDOG_MS),
                    // Of a job that another client submitted.
                    "wait there" => other.wait(jobs[1], WATCHDOG_MS),
                    "drain" => client.flush(WATCHDOG_MS),
                    _ => loop {
                        if let Err(error) = other.begin_session(space, "next", None) {
                            break Err(error);
                        }
                    },
                };
                (call, ended, Instant::now())
            })
        };
        let calls = ["wait", "wait there", "drain", "next"].map(run);
        ready.wait();
        // Nobody can say that a thread has begun to wait.
        std::thread::sleep(Duration::from_millis(50));
        let killed = Instant::now();
        hanging.kill();
        let ended = calls.map(|call| call.join().unwrap());
        let slowest = ended.iter().map(|(_, _, at)| *at).max().unwrap();
        for (call, ended, _) in ended {
            is_disconnected::<()>(Err(ended.expect_err(call)));
        }
        (killed, slowest)
    });
    eprintln!("every call had ended {:?} after the kill", slowest - killed);
    // SAFETY: the client lives, and with it its descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(client.event_fd()) };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
    assert_eq!(drain(&client), [(jobs[2], KVKEEP_ERR_DISCONNECTED as i32)]);
    until("the callback came", || !told.lock().unwrap().is_empty());
    is_disconnected(client.begin_session(space, "no daemon", None));
    is_disconnected(client.query_job(jobs[0], &mut JobResult::default()));

    let _again = daemon(&plain);
    until("connected again", || client.begin_session(space, "probe", None).is_ok());
    for job in jobs {
        is_disconnected(client.query_lookup_hits(job, &mut 0));
        is_disconnected(client.query_job(job, &mut JobResult::default()));
        is_disconnected(client.query_bitmap(job, &mut [0; 3]));
        is_disconnected(client.wait(job, 0));
        is_disconnected(client.cancel(job));
        is_disconnected(client.release_job(job));
    }
    is_disconnected(client.end_session(session));
    is_disconnected(client.get_views(session, &keys(0..1), &mut views(1)));
    let session = client.begin_session(space, "after", None).unwrap();
    let job = submit(&client, session, callback(&told)).unwrap();
    client.wait(job, WATCHDOG_MS).unwrap();
    look(&client, session, &keys(0..20));
    client.end_session(session).unwrap();
    other.close();
    client.close();
    let disconnected = (jobs[1], KVKEEP_ERR_DISCONNECTED as i32);
    assert_eq!(*told.lock().unwrap(), [disconnected, (job, 0)]);
    assert!(drain(&client).is_empty());
}

#[test]
fn accepted_jobs_complete_once_whenever_the_daemon_dies() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 1);
    let mut server = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    store(&client, space, &keys(0..20));
    let (told, accepted, over) = (Told::default(), Mutex::new(HashMap::new()), AtomicBool::new(false));
    let mut random = Random(seed("KVKEEP_KILL_SEED"));
    std::thread::scope(|scope| {
        for queued in [false, true, false, true] {
            let (client, told, accepted, over) = (&client, &told, &accepted, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let Ok(session) = client.begin_session(space, "jobs", None) else { continue };
                    for _ in 0..4 {
                        let notify = if queued { Notify::EventFd } else { callback(told) };
                        if let Ok(job) = submit(client, session, notify) {
                            assert!(accepted.lock().unwrap().insert(job, 0).is_none());
                        }
                    }
                    let _ = client.end_session(session);
                }
            });
        }
        for _ in 0..rounds("KVKEEP_KILL_ROUNDS", 5) {
            let before = accepted.lock().unwrap().len();
            until("some jobs", || accepted.lock().unwrap().len() > before + 40);
            for step in 0..random.below(500_000) {
                std::hint::black_box(step);
            }
            server.kill();
            server = daemon(&part);
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut accepted = accepted.into_inner().unwrap();
    let mut queued = Vec::new();
    let began = Instant::now();
    while queued.len() + told.lock().unwrap().len() < accepted.len() {
        queued.extend(drain(&client));
        assert!(began.elapsed() < WATCHDOG, "a completion never came");
        std::thread::yield_now();
    }
    client.close();
    queued.extend(drain(&client));
    for (job, _) in queued.iter().chain(told.lock().unwrap().iter()) {
        *accepted.get_mut(job).expect("a job completed that was not accepted") += 1;
    }
    assert!(accepted.values().all(|&times| times == 1));
    let lost = queued
        .iter()
        .chain(told.lock().unwrap().iter())
        .filter(|(_, status)| *status == KVKEEP_ERR_DISCONNECTED as i32)
        .count();
    eprintln!("{} jobs accepted, {lost} of them lost with their daemon", accepted.len());
}

#[test]
fn a_second_daemon_is_refused_on_the_socket_and_welcome_beside_it() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let first = daemon(&part);
    let mut refused = Process::start(&Part::Daemon(part.clone()));
    let why = refused.expect("refused KVKEEP_ERR_EXISTS");
    assert!(why.contains(&format!("pid {}", first.pid())) && why.contains(&part.socket), "{why}");
    refused.wait();

    let beside = DaemonPart { socket: format!("{}/beside.sock", dir.path().display()), ..part.clone() };
    let _second = daemon(&beside);
    let (a, b) = (part.client(), beside.client());
    for (from, to, numbers) in [(&a, &b, 0..10), (&b, &a, 10..20)] {
        let (space, there) = (open_space(from), open_space(to));
        store(from, space, &keys(numbers.clone()));
        let session = to.begin_session(there, "reader", None).unwrap();
        let mut job = 0;
        to.submit_prefetch(session, &keys(numbers.clone()), PrefetchRequest::default(), &mut job).unwrap();
        to.wait(job, WATCHDOG_MS).unwrap();
        look(to, session, &keys(numbers));
        to.end_session(session).unwrap();
    }
    a.close();
    b.close();
}

/// A host that has not told the kernel to spare it a broken pipe's signal, as C programs have not.
#[derive(Serialize, Deserialize)]
pub struct Caller {
    daemon: DaemonPart,
}

impl Caller {
    pub fn play(&self) {
        let client = self.daemon.client();
        let space = open_space(&client);
        // Some connections, so that calls find one that the daemon has closed.
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| stats(&client)))));
        // SAFETY: the default action of a signal has no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        say("connected");
        hear();
        for _ in 0..50 {
            is_disconnected(client.begin_session(space, "gone", None));
        }
        client.close();
        say("alive");
    }
}

#[test]
fn a_host_survives_its_daemon_without_minding_signals() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let mut server = daemon(&part);
    let mut caller = Process::start(&Part::Caller(Caller { daemon: part }));
    caller.expect("connected");
    caller.signal(rustix::process::Signal::STOP);
    server.kill();
    caller.signal(rustix::process::Signal::CONT);
    caller.say("go on");
    caller.expect("alive");
    caller.wait();
}
