//! A daemon that is stopped: no call waits for it longer than it may, and when it goes on, nobody holds what he does not know of.

use std::sync::Arc;
use std::time::Duration;

use kvkeep::abi::{JobResult, KeyState, Stats};
use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::{Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_TIMEOUT, KVKEEP_PENDING};
use kvkeep::key::Key;
use rustix::process::Signal;

use super::daemon;
use super::malice::client_threads;
use crate::support::process::*;

const HOUR_MS: u32 = 3_600_000;

/// A daemon that has keys 900 to 910 in L2 alone.
struct Scene {
    _dir: tempfile::TempDir,
    part: DaemonPart,
    server: Process,
}

impl Scene {
    /// `loads`: whether a load of them ever ends.
    fn start(loads: bool) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let part = DaemonPart::new(dir.path(), 0);
        let mut server = daemon(&part);
        let client = part.client();
        store(&client, open_space(&client), &keys(900..910));
        client.close();
        server.kill();
        let hangs = u8::from(!loads);
        let l2 = format!("fault:fs://{}/l2?fault.load_hang={hangs}", dir.path().display());
        let part = DaemonPart::with_l2(dir.path(), &l2);
        let server = daemon(&part);
        Scene { _dir: dir, part, server }
    }

    fn client(&self, patience: Duration) -> Arc<Client> {
        Client::open(ClientConfig { patience, ..self.part.config() }).unwrap()
    }

    fn go_on(&self) {
        self.server.signal(Signal::CONT);
    }

    /// Waits until the daemon has come to every call that was given up: so many connections are left.
    fn settle(&self, connections: usize) {
        until("the calls given up are over", || client_threads(self.server.pid()) == connections);
    }
}

fn late<T>(result: Result<T, Error>) {
    let error = result.err().unwrap();
    assert_eq!(error.status, KVKEEP_ERR_TIMEOUT, "{error}");
    assert!(error.message.contains("did not answer in time"), "{error}");
    assert!(error.message.contains("stopped or overloaded") && error.message.contains("patience_ms"), "{error}");
}

fn held(stats: &Stats) -> [u64; 4] {
    [stats.sessions, stats.l1_shares, stats.l1_staged, stats.jobs]
}

#[test]
fn a_call_waits_no_longer_than_its_patience_and_everything_is_as_it_was_when_the_daemon_goes_on() {
    let _watch = watch();
    let scene = Scene::start(false);
    let client = scene.client(Duration::from_secs(2));
    let space = open_space(&client);
    let session = client.begin_session(space, "holds", None).unwrap();
    let (mine, staged) = (keys(0..20), keys(20..24));
    write(&client, session, &mine);
    assert!(client.reserve_read(session, &mine, 2, &mut views(mine.len())).unwrap());
    stage(&client, session, &staged);
    let mut job = 0;
    client.submit_prefetch(session, &keys(900..901), PrefetchRequest::default(), &mut job).unwrap();
    let before = stats(&client);

    scene.server.stop();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (client, mine) = (&client, &mine);
            scope.spawn(move || {
                // More calls than there may be connections: those beyond are not asked.
                for _ in 0..8 {
                    late(client.metrics());
                    late(client.reserve_read(session, mine, thread, &mut views(mine.len())));
                    late(client.open_space(spec("new", "")));
                    // This process knows what it was told before, and waits by itself.
                    assert_eq!(client.query_job(job, &mut JobResult::default()).unwrap(), KVKEEP_PENDING);
                    let error = client.wait(job, 1).unwrap_err();
                    assert!(error.status == KVKEEP_ERR_TIMEOUT && error.message.contains("not done yet"), "{error}");
                }
            });
        }
    });
    scene.go_on();

    // What was held is held, no more and no less, and the session goes on.
    until("it answers again", || client.metrics().is_ok());
    let patient = scene.client(WATCHDOG);
    until("nothing is left of the calls given up", || held(&stats(&patient)) == held(&before));
    look(&client, session, &mine);
    assert!(client.finish_read(session, &mine, 2, None).unwrap());
    assert!(client.finish_write(session, &staged, None).unwrap());
    client.cancel(job).unwrap();
    client.end_session(session).unwrap();
    let after = stats(&patient);
    // The load without an end is what is staged still.
    assert_eq!((after.sessions, after.l1_shares, after.jobs, after.clients_lost), (0, 0, 0, 0));
    client.close();
    patient.close();
}

#[test]
fn a_call_given_up_takes_nothing_and_what_it_gives_back_is_given_back() {
    let _watch = watch();
    let scene = Scene::start(true);
    // One is impatient, the other does what must succeed.
    let (client, other) = (scene.client(Duration::from_millis(200)), scene.client(WATCHDOG));
    let space = open_space(&other);
    let session = other.begin_session(space, "holds", None).unwrap();
    let ready = keys(0..10);
    write(&other, session, &ready);
    let count = |count: usize| views(count);
    let stop = || {
        // It has a connection, so that its next call is asked, and nothing else is under way.
        until("it is answered", || client.metrics().is_ok());
        scene.settle(4);
        scene.server.stop();
    };
    // Gives what is held afterwards.
    let goes_on = || {
        scene.go_on();
        // The client's own connection is left, and the two of the other.
        scene.settle(3);
        held(&stats(&other))
    };
    let idle = held(&stats(&other));
    assert_eq!(idle, [1, 0, 0, 0]);

    stop();
    late(client.begin_session(space, "late", None));
    assert_eq!(goes_on(), idle);
    stop();
    late(client.begin_copy(session, space, &[]));
    assert_eq!(goes_on(), idle);
    stop();
    late(client.reserve_write(session, &keys(100..110), &[512; 10], false, &mut count(10)));
    assert_eq!(goes_on(), idle);
    stop();
    late(client.reserve_read(session, &ready, 3, &mut count(10)));
    assert_eq!(goes_on(), idle);
    stop();
    // One is done at once and has its shares, of the other that may be so.
    for keys in [ready.clone(), keys(900..905)] {
        let (request, mut job) = (PrefetchRequest { extra_count: 1, ..PrefetchRequest::default() }, 0);
        late(client.submit_prefetch(session, &keys, request, &mut job));
        assert_eq!(job, 0);
    }
    assert_eq!(goes_on(), idle);
    stop();
    late(client.add_backend("memory:"));
    assert_eq!(goes_on(), idle);
    assert_eq!(other.metrics().unwrap().matches("scheme=\"memory\"").count(), 0);

    // What is given back.
    let staged = keys(110..112);
    stage(&other, session, &staged);
    stop();
    late(client.finish_write_and_reserve_read(session, &staged[..1], 0, &mut count(1)));
    assert_eq!(goes_on(), [1, 0, 1, 0]);
    assert!(other.reserve_read(session, &staged[..1], 0, &mut count(1)).unwrap());
    stop();
    late(client.abort_write(session, &staged[1..], None));
    assert_eq!(goes_on(), [1, 1, 0, 0]);
    stop();
    late(client.finish_read(session, &staged[..1], 0, None));
    assert_eq!(goes_on(), idle);
    stop();
    late(client.end_session(session));
    assert_eq!(goes_on(), [0; 4]);
    assert_eq!(stats(&other).clients_lost, 0);
    client.close();
    other.close();
}

#[test]
fn what_is_given_back_while_the_daemon_cannot_be_asked_is_given_back_when_it_goes_on() {
    const SESSIONS: u64 = 40;
    let _watch = watch();
    let scene = Scene::start(true);
    let (client, other) = (scene.client(Duration::from_millis(200)), scene.client(WATCHDOG));
    let space = open_space(&client);
    let held_by_each: Vec<(u64, Vec<Key>)> = (0..SESSIONS)
        .map(|number| {
            let session = client.begin_session(space, "holds", None).unwrap();
            let keys = keys(number * 4..number * 4 + 4);
            write(&client, session, &keys[..1]);
            assert!(client.reserve_read(session, &keys[..1], 0, &mut views(1)).unwrap());
            stage(&client, session, &keys[1..]);
            (session, keys)
        })
        .collect();
    let many = SESSIONS;
    assert_eq!(held(&stats(&other)), [many, many, 3 * many, 0]);

    scene.server.stop();
    for (session, keys) in &held_by_each {
        // Those beyond the connections are not asked.
        late(client.finish_write(*session, &keys[1..2], None));
        late(client.finish_write_and_reserve_read(*session, &keys[2..3], 0, &mut views(1)));
        late(client.abort_write(*session, &keys[3..], None));
        late(client.finish_read(*session, &keys[..1], 0, None));
        late(client.end_session(*session));
    }
    scene.go_on();
    // The client makes no other call.
    until("all was given back", || held(&stats(&other)) == [0; 4]);
    // What was asked late was carried out beside the rest, in any order; what was not, in the order of the calls.
    let last = &held_by_each[SESSIONS as usize - 1].1;
    let mut states = vec![KeyState::default(); last.len()];
    other.query_keys(space, last, &mut states).unwrap();
    assert_eq!(states.iter().map(|key| key.state).collect::<Vec<_>>(), [1, 1, 1, 0]);
    assert_eq!(stats(&other).clients_lost, 0);
    until("it answers again", || client.metrics().is_ok());
    client.close();
    other.close();
}

#[test]
fn a_call_with_a_time_of_its_own_waits_that_time() {
    let _watch = watch();
    let scene = Scene::start(false);
    // Only these times bound the calls: the watchdog comes before the patience.
    let patience = Duration::from_millis(HOUR_MS.into());
    let (scheduler, worker) = (scene.client(patience), scene.client(patience));
    let space = open_space(&scheduler);
    let session = scheduler.begin_session(space, "scheduler", None).unwrap();
    let mut job = 0;
    scheduler.submit_prefetch(session, &keys(900..901), PrefetchRequest::default(), &mut job).unwrap();
    scene.server.stop();
    for client in [&scheduler, &worker] {
        // One of them was told of the job, the other has to ask.
        assert_eq!(client.wait(job, 300).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
        assert_eq!(client.wait(job, 0).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
        late(client.flush(300));
    }
    scene.go_on();
    assert_eq!(worker.wait(job, 1).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
    worker.cancel(job).unwrap();
    worker.wait(job, WATCHDOG_MS).unwrap();
    scheduler.wait(job, WATCHDOG_MS).unwrap();
    worker.close();
    scheduler.close();
}

#[test]
fn a_client_of_a_stopped_daemon_can_be_closed_and_leaves_nothing() {
    let _watch = watch();
    let scene = Scene::start(false);
    let other = scene.client(WATCHDOG);
    let client = scene.client(Duration::from_secs(2));
    let session = client.begin_session(open_space(&client), "holds", None).unwrap();
    write(&client, session, &keys(0..4));
    let mut held_views = views(4);
    assert!(client.reserve_read(session, &keys(0..4), 0, &mut held_views).unwrap());
    scene.server.stop();
    client.close();
    // Its views may still be looked at.
    // SAFETY: they lie in a mapping that stays, as they were held when their cache was closed.
    let first = unsafe { std::slice::from_raw_parts(held_views[0].data.cast::<u8>(), held_views[0].size as usize) };
    assert_eq!(first, bytes(&keys(0..1)[0]));
    // Nobody can connect meanwhile.
    let error =
        Client::open(ClientConfig { patience: Duration::from_millis(50), ..scene.part.config() }).err().unwrap();
    assert!(error.status == KVKEEP_ERR_DISCONNECTED && error.message.contains("no daemon answers"), "{error}");
    scene.go_on();
    until("all was returned", || held(&stats(&other)) == [0; 4] && stats(&other).clients == 1);
    other.close();
}

#[test]
fn a_client_that_has_given_up_a_call_finds_its_daemon_dead_as_any_other() {
    let _watch = watch();
    let mut scene = Scene::start(false);
    let client = scene.client(Duration::from_secs(2));
    let session = client.begin_session(open_space(&client), "holds", None).unwrap();
    scene.server.stop();
    late(client.append_tokens(session, &[1]));
    scene.server.kill();
    until("it is seen", || client.append_tokens(session, &[1]).unwrap_err().status == KVKEEP_ERR_DISCONNECTED);
    client.close();
}
