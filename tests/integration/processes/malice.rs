//! A peer that may connect and means no good, or is broken: the daemon goes on, and so do the others.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::daemon::client::Client;
use kvkeep::daemon::wire::frame::Inbox;
use kvkeep::daemon::wire::request::Extra;
use kvkeep::daemon::wire::{FRAME_BYTES_MAX, Frame, Request, WIRE_VERSION, Welcome};
use kvkeep::error::{
    KVKEEP_ERR_INVALID, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION, KVKEEP_ERR_VERSION, KVKEEP_OK,
    Status,
};
use kvkeep::key::Key;

use super::{Part, allow_descriptors, daemon, descriptors};
use crate::support::process::*;
use crate::support::random::{Random, rounds, seed};

/// A connection whose every byte is ours.
struct Raw {
    stream: UnixStream,
    inbox: Inbox,
}

fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut frame = Frame::default();
    request.encode(&mut frame);
    frame.finish().to_vec()
}

impl Raw {
    fn connect(part: &DaemonPart) -> Raw {
        let stream = UnixStream::connect(&part.socket).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        Raw { stream, inbox: Inbox::default() }
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The status of the next answer; None when the daemon has hung up.
    fn answer(&mut self) -> Option<i32> {
        let head = self.inbox.receive(&mut self.stream, FRAME_BYTES_MAX, false).ok()??;
        Some(head.kind as i32)
    }

    fn ask(&mut self, request: &Request<'_>) -> Option<i32> {
        self.send(&encoded(request));
        self.answer()
    }

    fn hello(part: &DaemonPart) -> (Raw, Welcome) {
        let mut raw = Raw::connect(part);
        assert_eq!(raw.ask(&Request::Hello { version: WIRE_VERSION, read_only: false, observer: false }), Some(0));
        let welcome = raw.inbox.fields().take().unwrap();
        (raw, welcome)
    }

    fn attach(part: &DaemonPart, welcome: &Welcome) -> Raw {
        let mut raw = Raw::connect(part);
        assert_eq!(raw.ask(&attach_request(welcome, 0)), Some(0));
        raw
    }
}

fn attach_request(welcome: &Welcome, wrong: u64) -> Request<'static> {
    Request::Attach { version: WIRE_VERSION, client: welcome.client, secret: welcome.secret ^ wrong, spin_us: 0 }
}

fn is(answer: Option<i32>, status: Status) {
    assert_eq!(answer, Some(status as i32));
}

/// Requests that a fuzzer changes. None of them adds or removes a backend or waits.
fn template<'a>(random: &mut Random, session: u64, space: u64, keys: &'a [Key], sizes: &'a [u64]) -> Request<'a> {
    let (extra, statuses) = (Extra(random.below(4) as u32), random.one_in(2));
    match random.below(16) {
        0 => Request::BeginSession { space, request_id: "fuzz", timeout_ms: 1000 },
        1 => Request::ReserveWrite { session, keys, sizes, temporary: statuses },
        2 => Request::FinishWrite { session, keys, statuses },
        3 => Request::AbortWrite { session, keys, statuses },
        4 => Request::FinishWriteAndReserveRead { session, keys, extra },
        5 => Request::ReserveRead { session, keys, extra },
        6 => Request::FinishRead { session, keys, extra, statuses },
        7 => Request::GetViews { session, keys },
        8 => Request::Touch { space, keys, statuses },
        9 => Request::SubmitPrefetch { session, keys, request: PrefetchRequest::default(), ticket: random.next() },
        10 => Request::SessionKeys { session, first_chunk: 0, ranks: (0, 1, 1), count: 4 },
        11 => Request::ExplainSession { session },
        12 => Request::ReadEvents { next: 0, count: 100 },
        13 => Request::Evict { space, keys, statuses },
        14 => Request::QueryKeys { space, keys },
        _ => Request::AppendTokens { session, tokens: &[1, 2, 3] },
    }
}

fn attack(part: &DaemonPart, random: &mut Random, space: u64) {
    let noise =
        |random: &mut Random, most: u64| -> Vec<u8> { (0..random.below(most)).map(|_| random.next() as u8).collect() };
    match random.below(6) {
        0 => {
            let mut raw = Raw::connect(part);
            let noise = noise(random, 300);
            raw.send(&noise);
            let _ = raw.stream.shutdown(Shutdown::Write);
            raw.answer();
        }
        1 => {
            let hello = encoded(&Request::Hello { version: WIRE_VERSION, read_only: false, observer: false });
            Raw::connect(part).send(&hello[..random.below(hello.len() as u64) as usize]);
        }
        2 => {
            let (_client, welcome) = Raw::hello(part);
            is(Raw::connect(part).ask(&attach_request(&welcome, 1 << random.below(64))), KVKEEP_ERR_NOT_FOUND);
        }
        3 => {
            // A head that promises more than ever comes.
            let (_client, welcome) = Raw::hello(part);
            let mut connection = Raw::attach(part, &welcome);
            let bytes = if random.one_in(2) { FRAME_BYTES_MAX } else { random.next() as u32 };
            let head = [(1 + random.below(36) as u32).to_le_bytes(), bytes.to_le_bytes()].concat();
            connection.send(&head);
            connection.send(&noise(random, 2000));
            if bytes > FRAME_BYTES_MAX {
                is(connection.answer(), KVKEEP_ERR_LIMIT);
            }
        }
        4 => {
            // Asks and asks, and hears no answer.
            let (_client, welcome) = Raw::hello(part);
            let mut connection = Raw::attach(part, &welcome);
            connection.stream.set_nonblocking(true).unwrap();
            let stats = encoded(&Request::GetStats {});
            for _ in 0..200 {
                let _ = connection.stream.write(&stats);
            }
        }
        _ => {
            let (_client, welcome) = Raw::hello(part);
            let mut connection = Raw::attach(part, &welcome);
            is(connection.ask(&Request::BeginSession { space, request_id: "fuzz", timeout_ms: 1000 }), KVKEEP_OK);
            let session = connection.inbox.fields().take().unwrap();
            for _ in 0..20 {
                let keys = keys(1..2 + random.below(8));
                let sizes: Vec<u64> = keys.iter().map(size).collect();
                let mut bytes = encoded(&template(random, session, space, &keys, &sizes));
                for _ in 0..random.below(4) {
                    let at = 8 + random.below(bytes.len() as u64 - 8) as usize;
                    bytes[at] = random.next() as u8;
                }
                connection.send(&bytes);
                if connection.answer().is_none() {
                    break;
                }
            }
        }
    }
}

/// Works and checks every byte until told to stop.
fn honest(client: &Client, space: u64, over: &AtomicBool) {
    let mut number = 1 << 20;
    while !over.load(Ordering::Relaxed) {
        let session = client.begin_session(space, "honest", None).unwrap();
        let mine = keys(number..number + 4);
        stage(client, session, &mine);
        let mut held = views(mine.len());
        assert!(client.finish_write_and_reserve_read(session, &mine, 0, &mut held).unwrap());
        check(client, &mine, &held);
        assert!(client.finish_read(session, &mine, 0, None).unwrap());
        client.end_session(session).unwrap();
        number += 4;
    }
}

/// How many threads a daemon has for its clients.
pub fn client_threads(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "kvkeep-client").count()
}

/// A line of /proc/PID/status.
fn status(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn whatever_is_sent_the_daemon_and_the_honest_go_on() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let server = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    let mut random = Random(seed("KVKEEP_FUZZ_SEED"));
    let over = AtomicBool::new(false);
    let mut before = 0;
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest(&client, space, &over));
        let rounds = rounds("KVKEEP_FUZZ_ROUNDS", 300);
        for round in 0..rounds {
            attack(&part, &mut random, space);
            if round == rounds / 3 {
                before = status(server.pid(), "RssAnon:");
            }
        }
        over.store(true, Ordering::Relaxed);
        honest.join().unwrap();
    });
    until("all that came is gone", || {
        let stats = stats(&client);
        let left = (stats.clients, stats.sessions, stats.l1_shares, stats.l1_staged, stats.jobs);
        // One that pushes, and one for its only connection.
        left == (1, 0, 0, 0, 0) && client_threads(server.pid()) == 2
    });
    let after = status(server.pid(), "RssAnon:");
    assert!(after < before + 32 * 1024, "the daemon grew from {before} KiB to {after} KiB");
    client.close();
}

#[test]
fn silent_connections_are_few_and_short_lived_and_hold_up_nobody() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    // Files of a backend would be counted, too.
    let part = DaemonPart::with_l2(dir.path(), "memory:");
    let server = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    let before = descriptors(server.pid()).len();
    let mut most = 0;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest(&client, space, &over));
        let mut silent = Vec::new();
        for _ in 0..510 {
            silent.push(Raw::connect(&part));
            most = most.max(descriptors(server.pid()).len() - before);
        }
        // Another client is let in at once, and does what it likes.
        let another = part.client();
        write(&another, another.begin_session(space, "another", None).unwrap(), &keys(0..4));
        another.close();
        // All of them are told why they have to go, without a word from them.
        let told = |raw: &mut Raw| {
            let limit = raw.answer() == Some(KVKEEP_ERR_LIMIT as i32);
            limit && raw.inbox.fields().take::<&str>().unwrap().contains("did not say") && raw.answer().is_none()
        };
        let all_told = silent.iter_mut().all(told);
        over.store(true, Ordering::Relaxed);
        honest.join().unwrap();
        assert!(all_told);
    });
    // Each took one descriptor, and there were 32 at a time. The honest one has made a connection meanwhile, and one was being refused.
    assert!(most <= 34, "{most} more than before");
    client.close();
}

#[test]
fn clients_leave_descriptors_for_backends() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::with_l2(dir.path(), &format!("fs://{}/l2?threads=1&depth=8", dir.path().display()));
    let limited = |command: &mut std::process::Command| {
        let limit = || {
            allow_descriptors(0, 128);
            Ok(())
        };
        // SAFETY: plain system calls in the child.
        unsafe { command.pre_exec(limit) };
    };
    let mut server = Process::start_with(&Part::Daemon(part.clone()), limited);
    server.expect("serving");
    let client = part.client();
    let space = open_space(&client);
    let hello = Request::Hello { version: WIRE_VERSION, read_only: false, observer: false };
    let (mut clients, mut refused) = (Vec::new(), Raw::connect(&part));
    while refused.ask(&hello) == Some(KVKEEP_OK as i32) {
        let welcome = refused.inbox.fields().take().unwrap();
        clients.push((std::mem::replace(&mut refused, Raw::connect(&part)), welcome));
    }
    assert!(clients.len() > 4, "{} clients in 128 descriptors", clients.len());
    let says = |mut raw: Raw| {
        let said = raw.inbox.fields().take::<&str>().unwrap();
        assert!(said.contains("set aside for its backends") && said.contains("ulimit -n"), "{said}");
        assert_eq!(raw.answer(), None);
    };
    says(refused);
    // Each of them may make a call still, which takes what was kept for it, and no second one at once.
    let mut connections = Vec::new();
    for (_, welcome) in &clients {
        connections.push(Raw::attach(&part, welcome));
        let mut second = Raw::connect(&part);
        match second.ask(&attach_request(welcome, 0)) {
            Some(0) => connections.push(second),
            answer => {
                is(answer, KVKEEP_ERR_LIMIT);
                says(second);
            }
        }
    }
    assert!(connections.len() < clients.len() + 4);
    // A quarter is free for backends: what is written is stored, and loaded again.
    assert!(descriptors(server.pid()).len() < 128 - 32);
    let mine = keys(0..200);
    store(&client, space, &mine);
    let session = client.begin_session(space, "loads", None).unwrap();
    let mut job = 0;
    client.submit_prefetch(session, &mine, PrefetchRequest::default(), &mut job).unwrap();
    client.wait(job, WATCHDOG_MS).unwrap();
    look(&client, session, &mine);
    client.close();
}

#[test]
fn what_begins_wrongly_is_told_why() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart { connections_max: 2, ..DaemonPart::new(dir.path(), 0) };
    let _server = daemon(&part);
    let refused = |mut raw: Raw, request: &Request<'_>, status, words: &str| {
        is(raw.ask(request), status);
        let said = raw.inbox.fields().take::<&str>().unwrap();
        assert!(said.contains(words), "{said:?} does not say {words:?}");
    };
    let connect = || Raw::connect(&part);
    refused(connect(), &Request::GetStats {}, KVKEEP_ERR_INVALID, "begins with hello");
    let newer = Request::Hello { version: WIRE_VERSION + 1, read_only: false, observer: false };
    refused(connect(), &newer, KVKEEP_ERR_VERSION, "use one build for both");
    let (client, welcome) = Raw::hello(&part);
    refused(connect(), &attach_request(&welcome, 1), KVKEEP_ERR_NOT_FOUND, "connect again");
    let mut connections = [Raw::attach(&part, &welcome), Raw::attach(&part, &welcome)];
    refused(connect(), &attach_request(&welcome, 0), KVKEEP_ERR_LIMIT, "raise connections_per_client_max");
    is(
        connections[0].ask(&Request::Hello { version: WIRE_VERSION, read_only: false, observer: false }),
        KVKEEP_ERR_INVALID,
    );
    is(connections[1].ask(&Request::GetStats {}), KVKEEP_OK);
    // One that said it only looks may do that, one call at a time, and nothing else.
    let hello = Request::Hello { version: WIRE_VERSION, read_only: false, observer: true };
    let observers: Vec<(Raw, Welcome)> = (0..4)
        .map(|_| {
            let mut raw = connect();
            is(raw.ask(&hello), KVKEEP_OK);
            let welcome = raw.inbox.fields().take().unwrap();
            (raw, welcome)
        })
        .collect();
    refused(connect(), &hello, KVKEEP_ERR_LIMIT, "only look");
    let mut looking = Raw::attach(&part, &observers[0].1);
    refused(connect(), &attach_request(&observers[0].1, 0), KVKEEP_ERR_LIMIT, "the most calls at once");
    is(looking.ask(&Request::GetStats {}), KVKEEP_OK);
    let open = Request::OpenSpace { spec: spec("m", "") };
    is(looking.ask(&open), KVKEEP_ERR_PERMISSION);
    is(looking.ask(&Request::BeginSession { space: 1, request_id: "", timeout_ms: 0 }), KVKEEP_ERR_PERMISSION);
    is(looking.ask(&Request::Clear { space: 0, force: true }), KVKEEP_ERR_PERMISSION);
    // The connections end with their client.
    drop(client);
    assert!(connections.iter_mut().all(|connection| connection.stream.read(&mut [0; 8]).is_ok_and(|bytes| bytes == 0)));
}

#[test]
fn who_hears_nothing_is_let_go_and_holds_nobody_up() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let _server = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest(&client, space, &over));
        let (deaf, welcome) = Raw::hello(&part);
        let mut connection = Raw::attach(&part, &welcome);
        is(connection.ask(&Request::BeginSession { space, request_id: "deaf", timeout_ms: 0 }), KVKEEP_OK);
        let session = connection.inbox.fields().take().unwrap();
        let staging = Request::ReserveWrite { session, keys: &keys(100..101), sizes: &[4096], temporary: false };
        is(connection.ask(&staging), KVKEEP_OK);
        // More than a socket holds of what it does not read.
        for ticket in 0..1500 {
            let (keys, request) = (&keys(0..8), PrefetchRequest::default());
            if connection.ask(&Request::SubmitPrefetch { session, keys, request, ticket }).is_none() {
                break;
            }
        }
        connection.stream.set_read_timeout(None::<Duration>).unwrap();
        assert!(connection.answer().is_none());
        over.store(true, Ordering::Relaxed);
        honest.join().unwrap();
        // It makes no calls any more; what it may still write is its own until it lets go.
        let mut raw = Raw::connect(&part);
        is(raw.ask(&attach_request(&welcome, 0)), KVKEEP_ERR_NOT_FOUND);
        assert_eq!((stats(&client).clients, stats(&client).l1_staged), (2, 1));
        drop(deaf);
    });
    until("it is gone", || stats(&client).clients == 1);
    let stats = stats(&client);
    assert_eq!((stats.clients_lost, stats.sessions, stats.jobs, stats.l1_staged), (1, 0, 0, 0));
    client.close();
}
