//! A daemon and its clients, by what the clients see.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvkeep::abi::{JobResult, KeyState, SpaceUsage, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{Callback, Mode, NodeConfig, Notify, PrefetchRequest, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::{KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, KVKEEP_OK};
use kvkeep::key::Key;
use parking_lot::Mutex;

use crate::support::daemon::Daemon;

const KIB: u64 = 1024;
/// Only a hang meets it.
const WATCHDOG_MS: u32 = 120_000;

fn start() -> Daemon {
    Daemon::start(|dir| NodeConfig {
        backend_urls: vec![format!("fs://{}/l2", dir.display())],
        ..NodeConfig::new(16 << 20)
    })
}

fn spec() -> SpaceSpec {
    let (layout, tenant) = (String::new(), String::new());
    SpaceSpec { generation: 0, model: "m".to_owned(), layout, tenant, chunk_tokens: 16, quota_bytes: 0 }
}

fn keys(count: u8) -> Vec<Key> {
    (0..count).map(|i| Key { hash: [i; 32], rank: 0, group: 0 }).collect()
}

fn views(count: usize) -> Vec<View> {
    vec![View::none(KVKEEP_OK); count]
}

fn write(client: &Client, session: u64, keys: &[Key]) {
    let mut views = views(keys.len());
    assert!(client.reserve_write(session, keys, &vec![4 * KIB; keys.len()], false, &mut views).unwrap());
    for (key, view) in keys.iter().zip(&views) {
        client.copy_in(view, &[key.hash[0]; 4096]).unwrap();
    }
    assert!(client.finish_write(session, keys, None).unwrap());
}

fn read(client: &Client, session: u64, keys: &[Key]) {
    let mut views = views(keys.len());
    assert!(client.reserve_read(session, keys, 0, &mut views).unwrap());
    for (key, view) in keys.iter().zip(&views) {
        let mut bytes = [0; 4096];
        client.copy_out(view, &mut bytes).unwrap();
        assert_eq!(bytes, [key.hash[0]; 4096]);
    }
    assert!(client.finish_read(session, keys, 0, None).unwrap());
}

#[test]
fn what_one_client_writes_another_reads() {
    let daemon = start();
    let (a, b) = (daemon.client(), daemon.client());
    let (space, keys) = (a.open_space(spec()).unwrap(), keys(20));
    assert_eq!(b.open_space(spec()).unwrap(), space);
    let session = a.begin_session(space, "writer", None).unwrap();
    write(&a, session, &keys);
    let reader = b.begin_session(space, "reader", None).unwrap();
    read(&b, reader, &keys);
    // A session is named by its number in every process.
    read(&b, session, &keys);
    let mut states = [KeyState::default(); 20];
    b.query_keys(space, &keys, &mut states).unwrap();
    assert!(states.iter().all(|said| (said.state, said.size, said.shares) == (1, 4 * KIB, 0)));
    let mut usage = SpaceUsage { struct_size: 7, ..SpaceUsage::default() };
    b.query_space(space, &mut usage).unwrap();
    assert_eq!((usage.struct_size, usage.objects, usage.used_bytes, usage.quota_bytes), (7, 20, 80 * KIB, 0));
    b.end_session(session).unwrap();
    assert_eq!(a.end_session(session).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
    a.close();
    b.close();
    assert_eq!(daemon.stats().sessions, 0);
}

#[test]
fn a_space_is_closed_when_the_last_client_that_has_it_open_closes_it() {
    let daemon = start();
    let (a, b, gone) = (daemon.client(), daemon.client(), daemon.client());
    let (space, keys) = (a.open_space(spec()).unwrap(), keys(5));
    for client in [&b, &gone] {
        assert_eq!(client.open_space(spec()).unwrap(), space);
    }
    let session = a.begin_session(space, "writer", None).unwrap();
    write(&a, session, &keys);
    a.end_session(session).unwrap();
    // One that is not there any more has nothing open.
    gone.close();
    a.close_space(space).unwrap();
    assert_eq!(a.close_space(space).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
    let reader = b.begin_session(space, "reader", None).unwrap();
    read(&b, reader, &keys);
    assert_eq!(b.close_space(space).unwrap_err().status, KVKEEP_ERR_LOCKED);
    b.end_session(reader).unwrap();
    b.close_space(space).unwrap();
    assert_eq!(daemon.stats().l1_objects, 0);
    assert_eq!(b.begin_session(space, "late", None).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
    assert_eq!(b.open_space(spec()).unwrap(), space);
    assert_eq!(daemon.stats().l1_objects, 0);
    a.close();
    b.close();
}

#[test]
fn a_job_is_answered_without_asking_and_completes_once() {
    let daemon = start();
    let client = daemon.client();
    let (space, keys) = (client.open_space(spec()).unwrap(), keys(8));
    let session = client.begin_session(space, "r", None).unwrap();
    write(&client, session, &keys[..5]);
    client.flush(WATCHDOG_MS).unwrap();
    assert_eq!(client.clear(space, false).unwrap(), (5, true));
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    let notify = Notify::Callback(Callback(Box::new(move |completion| teller.lock().push(*completion))));
    let mut job = 0;
    let request = PrefetchRequest { mode: Mode::Prefix, notify, ..PrefetchRequest::default() };
    client.submit_prefetch(session, &keys, request, &mut job).unwrap();
    client.wait(job, WATCHDOG_MS).unwrap();
    let (mut chunks, mut result) = (0, JobResult::default());
    assert_eq!(client.query_lookup_hits(job, &mut chunks).unwrap(), KVKEEP_OK);
    assert_eq!(client.query_job(job, &mut result).unwrap(), KVKEEP_OK);
    assert_eq!((chunks, result.hit_chunks, result.tier_keys[1]), (5, 5, 5));
    let mut bitmap = [0xff; 2];
    assert_eq!(client.query_bitmap(job, &mut bitmap).unwrap(), KVKEEP_OK);
    assert_eq!(bitmap, [0b1_1111, 0]);
    assert!(client.finish_read(session, &keys[..5], 0, None).unwrap());
    client.release_job(job).unwrap();
    assert_eq!(client.query_lookup_hits(job, &mut chunks).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
    client.end_session(session).unwrap();
    client.close();
    assert_eq!(told.lock().iter().map(|told| (told.job, told.hit_chunks)).collect::<Vec<_>>(), [(job, 5)]);
}

#[test]
fn who_waits_for_a_daemon_is_there_when_it_starts() {
    let mut daemon = start();
    daemon.stop();
    let (brief, patient) = (daemon.config("?wait_ms=50"), daemon.config("?wait_ms=600000"));
    let began = Instant::now();
    assert_eq!(Client::open(brief).err().unwrap().status, KVKEEP_ERR_DISCONNECTED);
    assert!(began.elapsed() >= Duration::from_millis(50));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| Client::open(patient).unwrap());
        daemon.restart();
        client.join().unwrap().close();
    });
}

#[test]
fn the_memory_of_a_former_run_is_let_go_in_time() {
    let mut daemon = start();
    let client =
        Client::open(ClientConfig { session_timeout: Some(Duration::from_secs(3)), ..daemon.config("") }).unwrap();
    let (space, keys) = (client.open_space(spec()).unwrap(), keys(1));
    let session = client.begin_session(space, "before", None).unwrap();
    write(&client, session, &keys);
    let mut view = views(1);
    client.reserve_read(session, &keys, 0, &mut view).unwrap();
    let mut bytes = [9; 4096];
    let began = Instant::now();
    daemon.restart();
    // What was looked at when the daemon went may be looked at for a while.
    client.copy_out(&view[0], &mut bytes).unwrap();
    assert_eq!(bytes, [keys[0].hash[0]; 4096]);
    while client.copy_out(&view[0], &mut bytes).is_ok() {
        assert!(began.elapsed() < Duration::from_millis(WATCHDOG_MS.into()), "it is never let go");
        std::thread::yield_now();
    }
    client.close();
}

#[test]
fn after_a_restart_old_numbers_are_disconnected_and_l2_is_found() {
    let mut daemon = start();
    let client = daemon.client();
    let (space, keys) = (client.open_space(spec()).unwrap(), keys(5));
    let session = client.begin_session(space, "before", None).unwrap();
    write(&client, session, &keys);
    client.flush(WATCHDOG_MS).unwrap();
    daemon.restart();
    // Until the client is connected again every call says so, and for what is lost they go on to.
    let begun = loop {
        assert_eq!(client.end_session(session).unwrap_err().status, KVKEEP_ERR_DISCONNECTED);
        match client.begin_session(space, "after", None) {
            Ok(begun) => break begun,
            Err(error) => assert_eq!(error.status, KVKEEP_ERR_DISCONNECTED, "{error}"),
        }
        std::thread::yield_now();
    };
    assert_eq!(client.end_session(session).unwrap_err().status, KVKEEP_ERR_DISCONNECTED);
    let mut job = 0;
    client.submit_prefetch(begun, &keys, PrefetchRequest::default(), &mut job).unwrap();
    client.wait(job, WATCHDOG_MS).unwrap();
    read(&client, begun, &keys);
    client.close();
}

#[test]
fn what_a_client_held_is_returned_when_it_closes() {
    let daemon = start();
    let (a, b) = (daemon.client(), daemon.client());
    let (space, keys) = (a.open_space(spec()).unwrap(), keys(5));
    let session = a.begin_session(space, "a", Some(Duration::from_secs(3600))).unwrap();
    write(&a, session, &keys);
    assert!(a.reserve_read(session, &keys, 3, &mut views(5)).unwrap());
    assert!(
        a.reserve_write(session, &[Key { hash: [99; 32], rank: 0, group: 0 }], &[4096], false, &mut views(1)).unwrap()
    );
    let attached = b.begin_session(space, "b", None).unwrap();
    assert!(b.reserve_read(attached, &keys[..1], 0, &mut views(1)).unwrap());
    a.close();
    let stats = daemon.stats();
    assert_eq!((stats.l1_shares, stats.l1_staged, stats.sessions, stats.clients_lost), (1, 0, 1, 0));
    b.close();
}

#[test]
fn a_commit_of_another_process_wakes_who_waits_for_it() {
    let daemon = start();
    let (decode, prefill) = (daemon.client(), daemon.client());
    let (space, keys) = (decode.open_space(spec()).unwrap(), keys(6));
    let session = decode.begin_session(space, "decode", None).unwrap();
    let hour = Duration::from_secs(3600);
    // AskedTransfer again so late that only the commit can answer it.
    let request = PrefetchRequest {
        objects_per_chunk: 2,
        deadline: Some(3 * hour),
        lookup_timeout: 2 * hour,
        lookup_interval: hour,
        ..PrefetchRequest::default()
    };
    let mut job = 0;
    decode.submit_prefetch(session, &keys, request, &mut job).unwrap();
    let writer = prefill.begin_session(space, "prefill", None).unwrap();
    for some in [&keys[..3], &keys[3..5]] {
        write(&prefill, writer, some);
        assert_eq!(decode.wait(job, 50).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
    }
    write(&prefill, writer, &keys[5..]);
    decode.wait(job, WATCHDOG_MS).unwrap();
    let mut chunks = 0;
    assert_eq!(decode.query_lookup_hits(job, &mut chunks).unwrap(), KVKEEP_OK);
    assert_eq!(chunks, 3);
    assert_eq!(daemon.stats().l1_shares, 6);
    read(&decode, session, &keys);
    decode.close();
    prefill.close();
}
