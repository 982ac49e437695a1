//! Clients that live, and so does their daemon: what parts them, what does not, and what becomes of what they held.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use kvkeep::abi::JobResult;
use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::{KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND};
use parking_lot::Mutex;
use rustix::net::{Shutdown, getpeername, shutdown};
use serde::{Deserialize, Serialize};

use super::restart::is_disconnected;
use super::{Part, allow_descriptors, daemon, descriptors};
use crate::support::process::*;

/// Has no descriptor left for a while.
#[derive(Serialize, Deserialize)]
pub struct Starved {
    daemon: DaemonPart,
}

/// Makes calls at once, which need a connection each, until one cannot have it. Gives the message.
fn until_refused(client: &Client) -> String {
    let refused = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while refused.lock().is_none() {
                    if let Err(error) = client.metrics() {
                        assert_eq!(error.status, KVKEEP_ERR_LIMIT, "{error}");
                        *refused.lock() = Some(error.message);
                    }
                }
            });
        }
    });
    refused.into_inner().unwrap()
}

impl Starved {
    pub fn play(&self) {
        let client = self.daemon.client();
        let space = open_space(&client);
        let session = client.begin_session(space, "starved", None).unwrap();
        stage(&client, session, &keys(0..1));
        let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        let before = allow_descriptors(0, next as u64);
        let message = until_refused(&client);
        assert!(message.contains("ulimit -n"), "{message}");
        allow_descriptors(0, before);
        // The session is there, and what it staged.
        assert!(client.finish_write(session, &keys(0..1), None).unwrap());
        read(&client, session, &keys(0..1));
        client.end_session(session).unwrap();
        client.close();
        say("served");
    }
}

#[test]
fn a_client_without_a_descriptor_loses_a_call_and_not_its_sessions() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let _daemon = daemon(&part);
    let client = part.client();
    let mut starved = Process::start(&Part::Starved(Starved { daemon: part }));
    starved.expect("served");
    starved.wait();
    assert_eq!(stats(&client).clients_lost, 0);
    client.close();
}

#[test]
fn a_call_that_finds_the_daemon_without_a_descriptor_is_a_limit_and_loses_nothing_else() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let server = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    let session = client.begin_session(space, "holds", None).unwrap();
    let (held, staged) = (keys(0..20), keys(20..21));
    write(&client, session, &held);
    assert!(client.reserve_read(session, &held, 0, &mut views(held.len())).unwrap());
    stage(&client, session, &staged);
    // Every number that it may have is taken, but for the one that is kept to refuse with.
    let taken = descriptors(server.pid());
    let free = (0..).find(|number| !taken.contains(number)).unwrap();
    let before = allow_descriptors(server.pid(), free);
    let message = until_refused(&client);
    assert!(message.contains("the daemon") && message.contains("ulimit -n"), "{message}");
    allow_descriptors(server.pid(), before);
    // What was held is held, what was staged is staged, and the next call needs no new connection.
    assert!(client.finish_write(session, &staged, None).unwrap());
    look(&client, session, &held);
    assert!(client.finish_read(session, &held, 0, None).unwrap());
    client.end_session(session).unwrap();
    let stats = stats(&client);
    assert_eq!((stats.clients_lost, stats.sessions, stats.l1_shares), (0, 0, 0));
    client.close();
}

/// This process's connections to a daemon.
fn connections(part: &DaemonPart) -> Vec<RawFd> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds = fds.filter_map(|fd| fd.ok()?.file_name().into_string().ok()?.parse::<RawFd>().ok());
    let path = rustix::net::SocketAddrUnix::new(&part.socket).unwrap();
    // SAFETY: asking whom a descriptor is connected to changes nothing, whosever it is by now.
    let peer = |fd: RawFd| getpeername(unsafe { BorrowedFd::borrow_raw(fd) });
    let is = |fd: &RawFd| peer(*fd).is_ok_and(|peer| peer == Some(path.clone().into()));
    fds.filter(is).collect()
}

/// A client whose next call finds its connection broken.
fn broken_client(part: &DaemonPart, config: ClientConfig) -> (Arc<Client>, impl Fn()) {
    let before = connections(part);
    let client = Client::open(config).unwrap();
    // The one that listens; what comes later is for calls.
    let listening: Vec<RawFd> = connections(part).into_iter().filter(|fd| !before.contains(fd)).collect();
    let lose = {
        let (client, part) = (client.clone(), part.clone());
        move || {
            for connection in
                connections(&part).into_iter().filter(|fd| !before.contains(fd) && !listening.contains(fd))
            {
                // SAFETY: a connection of the client above, which is alive.
                shutdown(unsafe { BorrowedFd::borrow_raw(connection) }, Shutdown::Both).unwrap();
            }
            assert_eq!(client.metrics().unwrap_err().status, KVKEEP_ERR_DISCONNECTED);
        }
    };
    (client, lose)
}

#[test]
fn p2_what_a_client_held_stays_its_own_for_a_session_timeout_after_it_lost_its_connection() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    // Whoever has lost a connection is in nobody's way, nor in its own.
    let part = DaemonPart { clients_max: 2, ..DaemonPart::new(dir.path(), 0) };
    let mut server = daemon(&part);
    let other = part.client();
    let others = other.begin_session(open_space(&other), "other", None).unwrap();
    for (timeout, patient) in [(Duration::from_millis(1), false), (Duration::from_secs(3600), true)] {
        let config = ClientConfig { session_timeout: Some(timeout), ..part.config() };
        let (client, lose) = broken_client(&part, config);
        let space = open_space(&client);
        // A session that stages lives, whatever its deadline.
        let session = client.begin_session(space, "parted", Some(Duration::from_secs(3600))).unwrap();
        let staged = stage(&client, session, &keys(0..1));
        let mut job = 0;
        client.submit_prefetch(session, &keys(1..2), PrefetchRequest::default(), &mut job).unwrap();
        lose();
        until("connected again", || client.begin_session(space, "probe", None).is_ok());
        is_disconnected(client.finish_write(session, &keys(0..1), None));
        is_disconnected(client.end_session(session));
        is_disconnected(client.query_job(job, &mut JobResult::default()));
        is_disconnected(client.wait(job, 0));
        // Not those of others, nor what there never was.
        client.append_tokens(others, &[1]).unwrap();
        assert_eq!(client.append_tokens(others + (1 << 40), &[1]).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        if patient {
            // The view may still be written.
            fill(&client, &keys(0..1), &staged);
            let stats = stats(&other);
            assert_eq!((stats.clients, stats.l1_staged), (3, 1));
        } else {
            until("it is given back", || stats(&other).l1_staged == 0 && stats(&other).clients == 2);
            assert!(client.copy_in(&staged[0], &bytes(&keys(0..1)[0])).is_err());
        }
        client.close();
        until("nothing is left of it", || (stats(&other).l1_staged, stats(&other).clients) == (0, 1));
    }
    assert_eq!(stats(&other).clients_lost, 2);
    // Nor does a daemon wait for who has lost it.
    let (client, lose) = broken_client(&part, part.config());
    stage(&client, client.begin_session(open_space(&client), "parted", None).unwrap(), &keys(0..1));
    lose();
    server.say("stop");
    server.expect("stopped");
    server.wait();
    client.close();
    other.close();
}
