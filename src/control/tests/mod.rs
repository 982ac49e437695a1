//! Jobs, fences and the writer, with backends held in the test's hand.

mod forget_space;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::prefetch::loader::LOADS_MAX;
use crate::abi::{JobResult, Stats, View};
use crate::cache::Cache as _;
use crate::config::{NodeConfig, Policy, PrefetchRequest, SpaceSpec};
use crate::control::backend_tasks::OPEN_MAX;
use crate::error::{
    Error, KVKEEP_ERR_IO, KVKEEP_ERR_LIMIT, KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, KVKEEP_OK,
    Result, Status,
};
use crate::key::{Key, ObjectKey, SpaceTag};
use crate::l2::common_options::CommonOptions;
use crate::l2::fault::{FaultBackend, FaultOptions};
use crate::l2::memory::MemoryBackend;
use crate::l2::registry::OpenBackend;
use crate::l2::{Backend, Found, Health, LoadRequest, LookupRequest, Reply, StoreRequest, Usage};
use crate::node::Node;

/// Long enough for any machine; only a hang meets it.
const WATCHDOG: Duration = Duration::from_secs(60);
pub(super) const WATCHDOG_MS: u32 = 60_000;

pub(super) fn until(what: &str, mut come: impl FnMut() -> bool) {
    let began = Instant::now();
    while !come() {
        assert!(began.elapsed() < WATCHDOG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn keys(count: u8) -> Vec<Key> {
    (0..count).map(|number| Key { hash: [number; 32], rank: 0, group: 0 }).collect()
}

pub(super) fn open(l1_bytes: u64, timeout_ms: u64, backend: Arc<dyn Backend>) -> (Arc<Node>, u64) {
    open_with(l1_bytes, backend, |config| config.backend_timeout = Duration::from_millis(timeout_ms))
}

fn open_with(l1_bytes: u64, backend: Arc<dyn Backend>, change: impl FnOnce(&mut NodeConfig)) -> (Arc<Node>, u64) {
    let mut config = NodeConfig::new(l1_bytes);
    change(&mut config);
    let node = Node::open(config).unwrap();
    node.backends.add(OpenBackend { backend, url: String::new(), options: CommonOptions::default() }).unwrap();
    node.l1.set_has_l2(true);
    let (model, layout, tenant) = ("m".to_owned(), String::new(), String::new());
    let space =
        node.open_space(SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes: 0 }).unwrap();
    (node, space)
}

pub(super) fn store(node: &Node, space: u64, count: u8, size: u64) {
    let session = node.begin_session(space, "w", None).unwrap();
    let keys = keys(count);
    let mut views = vec![View::none(KVKEEP_OK); keys.len()];
    assert!(node.reserve_write(session, &keys, &vec![size; keys.len()], false, &mut views).unwrap());
    assert!(node.finish_write(session, &keys, None).unwrap());
    node.end_session(session).unwrap();
}

/// Objects that only the backend has.
pub(super) fn store_below(node: &Node, space: u64, count: u8) {
    store(node, space, count, 4096);
    node.flush(WATCHDOG_MS).unwrap();
    node.clear(0, true).unwrap();
}

pub(super) fn stats(node: &Node) -> Stats {
    let mut stats = Stats::default();
    node.stats(&mut stats);
    stats
}

pub(super) fn submit(node: &Node, session: u64, count: u8, temporary: bool) -> u64 {
    let mut job = 0;
    let request = PrefetchRequest { temporary, ..Default::default() };
    node.submit_prefetch(session, &keys(count), request, &mut job).unwrap();
    job
}

pub(super) fn faulty(chance: &str) -> Arc<FaultBackend> {
    let options = FaultOptions::parse(&[(chance.to_owned(), "1".to_owned())]).unwrap();
    FaultBackend::wrap(MemoryBackend::open_url(&[]).unwrap(), options).unwrap()
}

#[test]
fn a_fenced_backend_is_unfenced_when_it_has_answered_all() {
    let fault = faulty("fault.load_hang");
    let (node, space) = open(1 << 20, 50, fault.clone());
    store_below(&node, space, 4);
    let session = node.begin_session(space, "r", None).unwrap();
    let job = submit(&node, session, 4, false);
    node.wait(job, WATCHDOG_MS).unwrap();
    let slot = node.backends.list()[0].clone();
    until("every load to be late", || slot.late() == 4);
    assert!(!slot.usable());
    assert_eq!(stats(&node).l1_locked_bytes, 4 * 4096);
    assert_eq!(fault.release_hangs(), 4);
    until("the fence to fall", || slot.usable());
    until("the late buffers", || stats(&node).l1_locked_bytes == 0);
    // Asked again, it hangs again, and answers this time.
    let job = submit(&node, session, 4, false);
    until("the loads", || fault.hung() == 4);
    fault.release_hangs();
    node.wait(job, WATCHDOG_MS).unwrap();
    assert_eq!(stats(&node).l1_shares, 4);
    node.close();
}

#[test]
fn a_lookup_that_is_answered_too_late_leaves_no_pin() {
    let fault = faulty("fault.lookup_hang");
    let (node, space) = open(1 << 20, 50, fault.clone());
    store_below(&node, space, 4);
    let session = node.begin_session(space, "r", None).unwrap();
    let job = submit(&node, session, 4, false);
    node.wait(job, WATCHDOG_MS).unwrap();
    let slot = node.backends.list()[0].clone();
    assert_eq!((slot.late(), fault.release_hangs()), (1, 1));
    until("the fence to fall", || slot.usable());
    until("the pins", || slot.backend.usage().pins == 0);
    assert_eq!(stats(&node).l1_shares, 0);
    node.close();
}

#[test]
fn jobs_that_share_a_load_keep_it_if_one_of_them_does() {
    for keep_first in [true, false] {
        let fault = faulty("fault.load_hang");
        let (node, space) = open(1 << 20, 30_000, fault.clone());
        store_below(&node, space, 4);
        let session = node.begin_session(space, "r", None).unwrap();
        let jobs = [submit(&node, session, 4, !keep_first), submit(&node, session, 4, keep_first)];
        until("the loads", || fault.hung() == 4);
        // The second job has joined the first one's loads when the loader is through with it.
        until("both jobs to be issued", || {
            node.prefetcher.table().of_session(session).len() == 2 && node.prefetcher.loader.idle()
        });
        assert_eq!((fault.hung(), fault.release_hangs()), (4, 4));
        jobs.iter().for_each(|&job| node.wait(job, WATCHDOG_MS).unwrap());
        assert_eq!((stats(&node).loads, stats(&node).l1_shares), (4, 8));
        assert!(node.finish_read(session, &keys(4), 1, None).unwrap());
        assert_eq!(stats(&node).l1_objects, 4);
        node.close();
    }
}

#[test]
fn an_object_being_loaded_is_not_deleted_behind_its_readers_back() {
    let fault = faulty("fault.load_hang");
    let (node, space) = open(1 << 20, 30_000, fault.clone());
    store_below(&node, space, 4);
    let session = node.begin_session(space, "r", None).unwrap();
    let job = submit(&node, session, 2, false);
    until("the loads", || fault.hung() == 2);
    let mut statuses = [9; 4];
    node.delete(space, &keys(4), Some(&mut statuses)).unwrap();
    let locked = KVKEEP_ERR_LOCKED as i32;
    assert_eq!(statuses, [locked, locked, 0, 0]);
    fault.release_hangs();
    node.wait(job, WATCHDOG_MS).unwrap();
    assert!(node.finish_read(session, &keys(2), 0, None).unwrap());
    assert!(node.delete(space, &keys(2), None).unwrap());
    assert_eq!((stats(&node).l1_objects, stats(&node).l2_objects), (0, 0));
    node.close();
}

#[test]
fn an_object_that_a_job_will_load_is_not_deleted_behind_its_back() {
    let fault = faulty("fault.load_hang");
    // Room for one load.
    let (node, space) = open_with(1 << 20, fault.clone(), |config| config.loading_bytes_max = 4096);
    store_below(&node, space, 4);
    let session = node.begin_session(space, "r", None).unwrap();
    let job = submit(&node, session, 2, false);
    until("the first load", || fault.hung() == 1);
    let mut statuses = [9; 4];
    node.delete(space, &keys(4), Some(&mut statuses)).unwrap();
    let locked = KVKEEP_ERR_LOCKED as i32;
    assert_eq!(statuses, [locked, locked, 0, 0]);
    until("the job", || {
        fault.release_hangs();
        node.wait(job, 0).is_ok()
    });
    assert!(node.finish_read(session, &keys(2), 0, None).unwrap());
    assert!(node.delete(space, &keys(2), None).unwrap());
    assert_eq!((stats(&node).l1_objects, stats(&node).l2_objects), (0, 0));
    node.close();
}

#[test]
fn what_l2_has_already_does_not_stop_the_writer() {
    let memory = MemoryBackend::open_url(&[]).unwrap();
    let (node, space) = open(1 << 20, 30_000, memory);
    // More than may be written at once, in one batch that wakes the writer once.
    store(&node, space, 12, 64 << 10);
    node.flush(WATCHDOG_MS).unwrap();
    node.clear(0, true).unwrap();
    store(&node, space, 12, 64 << 10);
    until("the queue to empty by itself", || stats(&node).writes_pending == 0);
    assert_eq!(stats(&node).stores_already, 12);
    node.close();
}

#[test]
fn places_rise_in_the_order_of_adding_while_there_are_some() {
    let (node, _) = open(1 << 20, 30_000, MemoryBackend::open_url(&[]).unwrap());
    let places = |node: &Node| node.backends.list().iter().map(|slot| slot.place).collect::<Vec<_>>();
    let add = || node.add_backend("memory:").unwrap();
    let second = add();
    node.remove_backend(1).unwrap();
    add();
    assert_eq!(places(&node), [2, 3]);
    (4..8).for_each(|_| _ = add());
    assert_eq!(places(&node), [2, 3, 4, 5, 6, 7]);
    node.remove_backend(second).unwrap();
    add();
    assert_eq!(places(&node), [3, 4, 5, 6, 7, 1]);
    node.close();
}

#[test]
fn a_backend_added_while_another_is_removed_is_written_to() {
    let (node, space) = open(1 << 20, 30_000, MemoryBackend::open_url(&[]).unwrap());
    for round in 1..=1000 {
        std::thread::scope(|scope| {
            // The one that the round before added.
            scope.spawn(|| node.remove_backend(round).unwrap());
            node.add_backend("memory:").unwrap();
        });
        store(&node, space, 1, 4096);
        node.flush(WATCHDOG_MS).unwrap();
        assert_eq!(stats(&node).stores, round);
        node.clear(0, true).unwrap();
    }
    node.close();
}

#[test]
fn a_paused_job_answered_after_its_deadline_ends_as_its_policy_says() {
    let fault = faulty("fault.lookup_hang");
    let (node, space) = open(1 << 20, 60_000, fault.clone());
    store_below(&node, space, 1);
    for (policy, status) in
        [(Policy::BestEffort, KVKEEP_OK), (Policy::Deadline, KVKEEP_ERR_TIMEOUT), (Policy::Wait, KVKEEP_OK)]
    {
        let session = node.begin_session(space, "r", None).unwrap();
        let deadline = Some(Duration::from_secs(1));
        let request = PrefetchRequest { policy, deadline, pause_after_lookup: true, ..Default::default() };
        let mut id = 0;
        node.submit_prefetch(session, &keys(1), request, &mut id).unwrap();
        let job = node.prefetcher.table().of_session(session)[0].clone();
        // Locked over its deadline, so that the control thread comes after the answer.
        let mut state = job.state.lock();
        until("the deadline", || Instant::now() >= job.deadline);
        state.lookup_mut().unwrap().1.search.found[0] = 1;
        job.looked_up(&mut state, node.prefetcher.table());
        drop(state);
        let mut result = JobResult::default();
        assert_eq!(node.query_job(id, &mut result).unwrap(), KVKEEP_OK, "{policy:?}");
        assert_eq!(result.status, status as i32, "{policy:?}");
        node.end_session(session).unwrap();
    }
    fault.release_hangs();
    node.close();
}

#[test]
fn whoever_waits_for_a_job_that_is_released_is_told_so() {
    let (node, space) = open(1 << 20, 30_000, faulty("fault.load_hang"));
    store_below(&node, space, 1);
    let session = node.begin_session(space, "r", None).unwrap();
    for round in 0..200 {
        let job = submit(&node, session, 1, false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| node.wait(job, WATCHDOG_MS));
            (0..round).for_each(|_| std::thread::yield_now());
            node.release_job(job).unwrap();
            assert_eq!(waiter.join().unwrap().unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        });
    }
    node.backends.remove(1).unwrap().retire(WATCHDOG).unwrap();
    node.close();
}

/// A backend with a bug: loads are lost. It refuses its first deletions.
pub(super) struct Loses(pub Arc<MemoryBackend>, pub AtomicU32, pub Status);

impl Backend for Loses {
    fn name(&self) -> &'static str {
        "loses"
    }
    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        self.0.lookup_cached(keys, found);
    }
    fn lookup(&self, lookup: LookupRequest) {
        self.0.lookup(lookup);
    }
    fn unpin(&self, keys: &[ObjectKey]) {
        self.0.unpin(keys);
    }
    fn load(&self, loads: Vec<LoadRequest>) {
        drop(loads);
    }
    fn store(&self, stores: Vec<StoreRequest>) {
        self.0.store(stores);
    }
    fn touch(&self, keys: &[ObjectKey]) {
        self.0.touch(keys);
    }
    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => reply.send(Err(Error::new(self.2, "refused"))),
            Err(_) => self.0.delete(keys, reply),
        }
    }
    fn quarantine(&self, key: ObjectKey) {
        self.0.quarantine(key);
    }
    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        self.0.list(space)
    }
    fn usage(&self) -> Usage {
        self.0.usage()
    }
    fn health(&self) -> Health {
        self.0.health()
    }
    fn close(&self) {
        self.0.close();
    }
}

#[test]
fn a_job_ends_though_its_backend_loses_the_loads() -> Result<()> {
    let (node, space) =
        open(1 << 20, 50, Arc::new(Loses(MemoryBackend::open_url(&[])?, AtomicU32::new(0), KVKEEP_ERR_IO)));
    store_below(&node, space, 4);
    let session = node.begin_session(space, "r", None)?;
    let job = submit(&node, session, 4, false);
    node.wait(job, WATCHDOG_MS)?;
    assert_eq!((stats(&node).backend_timeouts, stats(&node).l1_locked_bytes), (4, 0));
    node.close();
    Ok(())
}

#[test]
fn a_deletion_that_a_backend_refuses_is_sent_again_and_counted_if_given_up() -> Result<()> {
    // One that has too much to do is asked until its time is up, one that fails four times.
    for (refusals, why, retries, dropped, left) in [(4, KVKEEP_ERR_LIMIT, 4, 0, 0), (1000, KVKEEP_ERR_IO, 3, 4, 4)] {
        let backend = Loses(MemoryBackend::open_url(&[])?, AtomicU32::new(refusals), why);
        let (node, space) = open(1 << 20, 30_000, Arc::new(backend));
        store_below(&node, space, 4);
        assert!(node.delete(space, &keys(4), None)?);
        node.flush(WATCHDOG_MS)?;
        let stats = stats(&node);
        assert_eq!((stats.store_retries, stats.stores_dropped, stats.l2_objects), (retries, dropped, left));
        assert_eq!((stats.dropped_deletions, stats.deletions_pending), (dropped, 0));
        node.close();
    }
    Ok(())
}

/// Small objects, of which there are many before their bytes are.
pub(super) fn many(count: u32) -> Vec<Key> {
    let hash = |number: u32| std::array::from_fn(|i| number.to_le_bytes()[i % 4]);
    (0..count).map(|number| Key { hash: hash(number), rank: 0, group: 0 }).collect()
}

pub(super) fn store_many(node: &Node, space: u64, keys: &[Key]) {
    let session = node.begin_session(space, "w", None).unwrap();
    let mut views = vec![View::none(KVKEEP_OK); keys.len()];
    assert!(node.reserve_write(session, keys, &vec![64; keys.len()], false, &mut views).unwrap());
    assert!(node.finish_write(session, keys, None).unwrap());
    node.end_session(session).unwrap();
}

#[test]
fn p9_objects_being_loaded() {
    let fault = faulty("fault.load_hang");
    let (node, space) = open(64 << 20, 60_000, fault.clone());
    let keys = many(20_000);
    store_many(&node, space, &keys);
    node.flush(WATCHDOG_MS).unwrap();
    node.clear(0, true).unwrap();
    let session = node.begin_session(space, "r", None).unwrap();
    let mut job = 0;
    node.submit_prefetch(session, &keys, PrefetchRequest::default(), &mut job).unwrap();
    until("the bound", || fault.hung() >= LOADS_MAX);
    // Issues whatever the bound allows.
    node.prefetcher.loader.issue();
    assert!(fault.hung() < LOADS_MAX + 256, "{} are being loaded", fault.hung());
    until("the job", || {
        fault.release_hangs();
        node.wait(job, 0).is_ok()
    });
    let stats = stats(&node);
    assert_eq!((stats.loads, stats.load_failures), (20_000, 0));
    node.close();
}

#[test]
fn p9_objects_being_written() {
    let fault = faulty("fault.store_hang");
    let (node, space) = open(64 << 20, 60_000, fault.clone());
    store_many(&node, space, &many(20_000));
    until("the bound", || fault.hung() >= OPEN_MAX);
    let mut looks = 0;
    until("the writer to go on, had it no bound", || {
        looks += 1;
        looks == 100 || fault.hung() == 20_000
    });
    assert!(fault.hung() < OPEN_MAX + 64 && node.l1.writes_queued() > 0, "{} are being written", fault.hung());
    until("the writes", || {
        fault.release_hangs();
        stats(&node).writes_pending == 0
    });
    assert_eq!((stats(&node).stores, stats(&node).stores_dropped), (20_000, 0));
    node.close();
}

#[test]
fn bytes_that_several_jobs_wait_for_are_counted_once() {
    let fault = faulty("fault.load_hang");
    let (node, space) = open(1 << 20, 60_000, fault.clone());
    store_below(&node, space, 4);
    let sessions = [0; 3].map(|_: u64| node.begin_session(space, "r", None).unwrap());
    let jobs = sessions.map(|session| submit(&node, session, 4, false));
    until("the loads", || fault.hung() == 4);
    until("all jobs to wait for them", || node.prefetcher.loader.idle());
    // Its part falls to the next.
    node.cancel(jobs[0]).unwrap();
    fault.release_hangs();
    let answers = jobs.map(|job| {
        node.wait(job, WATCHDOG_MS).unwrap();
        let mut answer = JobResult::default();
        node.query_job(job, &mut answer).unwrap();
        (answer.loaded_bytes, answer.tier_keys[1])
    });
    // Each was given objects that the backend had.
    assert_eq!(answers, [(0, 0), (4 * 4096, 4), (0, 4)]);
    assert_eq!(stats(&node).loaded_bytes, 4 * 4096);
    node.close();
}
