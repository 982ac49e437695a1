//! All jobs of a cache that are not released: by number, by session, and by the time when something is due.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use super::job::{Job, JobHost};
use crate::control::completion::Completions;
use crate::doorbell::Doorbell;
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, Result};
use crate::key::Key;
use crate::l1::L1;
use crate::meters::Meters;

/// Commits are looked at together when more than one comes in so long.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

#[derive(Default)]
struct JobLists {
    by_id: HashMap<u64, Arc<Job>>,
    by_session: HashMap<u64, BTreeSet<u64>>,
    by_deadline: BTreeSet<(Instant, u64)>,
    /// Jobs to look up again, earliest first.
    to_look_up: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Jobs that a commit may answer, and when they were last looked through for one.
    awaiting: BTreeSet<u64>,
    looked: Option<Instant>,
}

/// The jobs of a cache, and the parts of it that they act on.
pub struct JobTable {
    l1: Arc<L1>,
    meters: Arc<Meters>,
    completions: Arc<Completions>,
    jobs_max: usize,
    /// Locked after the state of a job, never before.
    lists: Mutex<JobLists>,
    /// Wakes the control thread.
    bell: Doorbell,
    closing: AtomicBool,
}

/// The jobs with something to do at a time.
pub struct Due {
    /// Jobs whose deadline has passed.
    pub deadlines: Vec<Arc<Job>>,
    /// Jobs whose missing chunks are to be asked for again.
    pub lookups: Vec<Arc<Job>>,
    /// When the next one has something to do.
    pub next: Option<Instant>,
}

/// The jobs that a commit may answer.
pub enum Awaiting {
    /// These are to be looked through now.
    Now(Vec<Arc<Job>>),
    /// They were just looked through: look again then.
    At(Instant),
}

/// The error of a submission to a cache that closes.
pub fn closing() -> Error {
    Error::new(KVKEEP_ERR_CLOSED, "the cache is closing: submit nothing more")
}

/// The error of a job that is not there.
pub fn no_job(id: u64) -> Error {
    Error::new(
        KVKEEP_ERR_NOT_FOUND,
        format!(
            "job {id} is not there: it was never given, or was released by its caller, its session's end or its deadline"
        ),
    )
}

impl JobTable {
    /// An empty table for at most `jobs_max` jobs.
    pub fn new(l1: Arc<L1>, meters: Arc<Meters>, completions: Arc<Completions>, jobs_max: usize) -> Arc<JobTable> {
        let (lists, bell, closing) = (Mutex::default(), Doorbell::default(), AtomicBool::new(false));
        Arc::new(JobTable { l1, meters, completions, jobs_max, lists, bell, closing })
    }

    /// Most jobs not released.
    pub fn jobs_max(&self) -> usize {
        self.jobs_max
    }

    /// Makes a job known, if one more may be. Called under the lock of the job's state.
    pub fn enter(&self, job: &Arc<Job>) -> Result<()> {
        let mut lists = self.lists.lock();
        // Asked again under the lock, so that a close either ends this job or keeps it out.
        if self.is_closing() {
            return Err(closing());
        }
        if lists.by_id.len() >= self.jobs_max {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("{} jobs are not released yet: release some, or raise jobs_max", lists.by_id.len()),
            ));
        }
        lists.by_id.insert(job.id, job.clone());
        lists.by_session.entry(job.session).or_default().insert(job.id);
        lists.by_deadline.insert((job.deadline, job.id));
        drop(lists);
        self.wake_by(job.deadline);
        Ok(())
    }

    /// Takes a job out of the table: no call finds it any more.
    pub fn forget(&self, job: &Job) {
        let mut lists = self.lists.lock();
        lists.by_id.remove(&job.id);
        lists.by_deadline.remove(&(job.deadline, job.id));
        if let Some(of_session) = lists.by_session.get_mut(&job.session) {
            of_session.remove(&job.id);
            if of_session.is_empty() {
                lists.by_session.remove(&job.session);
            }
        }
    }

    /// The job of a number.
    pub fn job(&self, id: u64) -> Result<Arc<Job>> {
        self.lists.lock().by_id.get(&id).cloned().ok_or_else(|| no_job(id))
    }

    /// Every job, whatever its phase.
    pub fn all(&self) -> Vec<Arc<Job>> {
        self.lists.lock().by_id.values().cloned().collect()
    }

    /// How many jobs are not released.
    pub fn count(&self) -> usize {
        self.lists.lock().by_id.len()
    }

    /// The jobs of a session.
    pub fn of_session(&self, session: u64) -> Vec<Arc<Job>> {
        let lists = self.lists.lock();
        let ids = lists.by_session.get(&session).into_iter().flatten();
        ids.filter_map(|id| lists.by_id.get(id).cloned()).collect()
    }

    /// The numbers of a session's jobs.
    pub fn ids_of_session(&self, session: u64) -> BTreeSet<u64> {
        self.lists.lock().by_session.get(&session).cloned().unwrap_or_default()
    }

    /// Which of `keys` the jobs of a session ask for. Empty if the session has no job.
    pub fn asked_before(&self, session: u64, keys: &[Key]) -> Vec<bool> {
        let jobs = self.of_session(session);
        if jobs.is_empty() {
            return Vec::new();
        }
        let asked: HashSet<&Key> = jobs.iter().flat_map(|job| &job.keys).collect();
        keys.iter().map(|key| asked.contains(key)).collect()
    }

    /// Takes out the deadlines and lookups that are due at `now`. Called by the control thread.
    pub fn due(&self, now: Instant) -> Due {
        let mut due = Due { deadlines: Vec::new(), lookups: Vec::new(), next: None };
        let mut lists = self.lists.lock();
        while let Some(&(deadline, id)) = lists.by_deadline.first() {
            if deadline > now {
                due.next = Some(deadline);
                break;
            }
            lists.by_deadline.pop_first();
            due.deadlines.extend(lists.by_id.get(&id).cloned());
        }
        while let Some(&Reverse((at, id))) = lists.to_look_up.peek() {
            if at > now {
                due.next = Some(due.next.map_or(at, |next| next.min(at)));
                break;
            }
            lists.to_look_up.pop();
            due.lookups.extend(lists.by_id.get(&id).cloned());
        }
        due
    }

    /// Has the control thread look at a job's deadline again at `at`, if the job is still known.
    pub fn look_again(&self, job: &Job, at: Instant) {
        let mut lists = self.lists.lock();
        if lists.by_id.contains_key(&job.id) {
            lists.by_deadline.insert((at, job.id));
        }
    }

    /// The jobs that a commit may answer, unless they were just looked through. Takes back the note `commits` under the lock, so
    /// that no commit is missed. Called by the control thread.
    pub fn awaiting(&self, now: Instant, commits: &AtomicBool) -> Awaiting {
        let mut lists = self.lists.lock();
        let again = lists.looked.map(|looked| looked + LOOK_PAUSE);
        if let Some(again) = again.filter(|again| *again > now) {
            return Awaiting::At(again);
        }
        commits.store(false, Ordering::Release);
        lists.looked = Some(now);
        Awaiting::Now(lists.awaiting.iter().filter_map(|id| lists.by_id.get(id).cloned()).collect())
    }

    /// Keeps new jobs out.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Whether new jobs are kept out.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Wakes the control thread: there is something to do.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// Wakes the control thread, if it would sleep longer than until `at`.
    fn wake_by(&self, at: Instant) {
        self.bell.ring_by(at);
    }

    /// Waits until woken, or until `until`. Called by the control thread alone.
    pub fn sleep(&self, until: Instant) {
        self.bell.listen(until);
    }
}

impl JobHost for JobTable {
    fn l1(&self) -> &L1 {
        &self.l1
    }

    fn meters(&self) -> &Meters {
        &self.meters
    }

    fn completions(&self) -> &Completions {
        &self.completions
    }

    fn look_up_again(&self, job: u64, at: Instant) {
        self.lists.lock().to_look_up.push(Reverse((at, job)));
        self.wake_by(at);
    }

    fn await_commits(&self, job: u64, awaits: bool) {
        if awaits {
            self.lists.lock().awaiting.insert(job);
        } else {
            self.lists.lock().awaiting.remove(&job);
        }
        self.l1.await_commits(awaits);
    }
}
