//! Prefetch jobs: submit, look up, load, done; and everything a caller may ask of one.

pub(crate) mod hit_counters;
pub mod job;
pub mod loader;
pub(crate) mod pins;
pub mod plan;
pub mod query;
pub(crate) mod schedule;

use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::Mutex;

use self::job::{Arrival, Job, NOWHERE, Phase, Progress};
use self::loader::Loader;
use self::pins::Answers;
use self::plan::Plan;
use super::backends::{Tier, Tiers};
use super::completion::Completions;
use super::deadline::Watch;
use crate::config::{Mode, PrefetchRequest};
use crate::doorbell::Doorbell;
use crate::error::{
    Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT,
    KVKEEP_OK, Result, Status,
};
use crate::key::{Key, ObjectKey};
use crate::l1::L1;
use crate::l2::{Found, LookupRequest, Reply};
use crate::memory_bounds::ask_for;
use crate::meters::Meters;

/// Keys (by index) to be asked of a backend.
type Asks = Vec<(Arc<Tier>, Vec<u32>)>;

#[derive(Default)]
pub(super) struct Jobs {
    pub(super) by_id: HashMap<u64, Arc<Job>>,
    pub(super) by_session: HashMap<u64, BTreeSet<u64>>,
    pub(super) by_deadline: BTreeSet<(Instant, u64)>,
    /// Jobs to ask again, earliest first.
    pub(super) asking: BinaryHeap<std::cmp::Reverse<(Instant, u64)>>,
    /// Jobs that a commit may answer, and when they were last looked through for one.
    pub(super) awaiting: BTreeSet<u64>,
    pub(super) looked: Option<Instant>,
}

/// What a job needs for each key, about.
const KEY_BYTES: usize = 200;

/// How many jobs there may be, and how their numbers begin.
pub struct JobBounds {
    /// Most jobs not released.
    pub jobs_max: u32,
    /// Upper 16 bits of their numbers.
    pub boot: u16,
}

/// All jobs of a cache.
pub struct Prefetcher {
    pub(super) l1: Arc<L1>,
    tiers: Arc<Tiers>,
    pub(super) loader: Arc<Loader>,
    watch: Arc<Watch>,
    completions: Arc<Completions>,
    pub(super) meters: Arc<Meters>,
    jobs_max: usize,
    pub(super) jobs: Mutex<Jobs>,
    last: AtomicU64,
    /// Wakes the control thread.
    pub(super) bell: Doorbell,
    pub(super) closing: AtomicBool,
    /// Something was committed that a job may wait for.
    pub(super) commits: AtomicBool,
}

fn closing() -> Error {
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

/// Keys of which a backend's index is asked at a time: what is written down for them stays in the core's cache.
const PIECE: usize = 256;

impl Prefetcher {
    /// No jobs yet.
    pub fn new(
        l1: Arc<L1>,
        tiers: Arc<Tiers>,
        loader: Arc<Loader>,
        watch: Arc<Watch>,
        completions: Arc<Completions>,
        meters: Arc<Meters>,
        bounds: JobBounds,
    ) -> Arc<Prefetcher> {
        let prefetcher = Arc::new(Prefetcher {
            l1,
            tiers,
            loader: loader.clone(),
            watch,
            completions,
            meters,
            jobs_max: bounds.jobs_max as usize,
            jobs: Mutex::default(),
            last: AtomicU64::new(u64::from(bounds.boot) << 48),
            bell: Doorbell::default(),
            closing: AtomicBool::new(false),
            commits: AtomicBool::new(false),
        });
        loader.set_prefetcher(&prefetcher);
        prefetcher
    }

    /// Submits a job and sets `id` before anybody can be told of its end.
    pub fn submit(self: &Arc<Self>, session: u64, keys: &[Key], request: PrefetchRequest, id: &mut u64) -> Result<()> {
        let submitted = Instant::now();
        let per_chunk = request.objects_per_chunk as usize;
        if !keys.len().is_multiple_of(per_chunk) {
            return Err(Error::invalid(format!(
                "{} keys are no whole number of chunks of objects_per_chunk = {per_chunk}: pass all keys of each chunk",
                keys.len()
            )));
        }
        if self.closing() {
            return Err(closing());
        }
        self.completions.check_room(&request.notify, self.jobs_max)?;
        ask_for(keys.len() * KEY_BYTES, "the keys of a job")?;
        let (space, timeout, copied_for) = self.l1.begin_job(session)?;
        let deadline = submitted + request.deadline.unwrap_or(timeout);
        let mut job =
            Job::new(self.last.fetch_add(1, Ordering::Relaxed) + 1, session, space, keys, request, submitted, deadline);
        if let Some(user) = copied_for {
            job.asked_before = self.asked_before(user, keys);
        }
        let job = Arc::new(job);
        // Held before anybody can find the job, so that nobody ends it before it has begun.
        let mut progress = job.progress.lock();
        self.enter(&job).inspect_err(|_| self.l1.end_job(session))?;
        *id = job.id;
        self.meters.jobs_submitted.add(1);
        let lookup_timeout = job.request.lookup_timeout;
        progress.ask_until = (!lookup_timeout.is_zero()).then(|| submitted + lookup_timeout);
        if progress.ask_until.is_some() {
            // Before L1 is asked, so that no commit comes between.
            progress.awaiting = true;
            self.jobs.lock().awaiting.insert(job.id);
            self.l1.await_commits(true);
        }
        let asks = self.ask(&job, &mut progress);
        drop(progress);
        self.ask_tiers(&job, asks);
        self.meters.call_latency.add(submitted.elapsed());
        Ok(())
    }

    /// Makes a job known, if one more may be.
    fn enter(&self, job: &Arc<Job>) -> Result<()> {
        let mut jobs = self.jobs.lock();
        // Asked again under the lock, so that a close either ends this job or keeps it out.
        if self.closing() {
            return Err(closing());
        }
        if jobs.by_id.len() >= self.jobs_max {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("{} jobs are not released yet: release some, or raise jobs_max", jobs.by_id.len()),
            ));
        }
        jobs.by_id.insert(job.id, job.clone());
        jobs.by_session.entry(job.session).or_default().insert(job.id);
        jobs.by_deadline.insert((job.deadline, job.id));
        drop(jobs);
        self.wake_by(job.deadline);
        Ok(())
    }

    /// Looks for what is still missing: in L1, then in the backends' indexes. What needs I/O is returned, to be asked of the
    /// backends once the job's lock is let go: a backend may answer at once.
    pub(super) fn ask(self: &Arc<Self>, job: &Arc<Job>, progress: &mut Progress) -> Asks {
        if self.find_in_l1(job, progress).is_err() {
            self.finish(job, progress, KVKEEP_ERR_CANCELLED, Some("the session has ended".to_owned()));
            // Its session's end may have passed before it was known.
            self.forget(job);
            progress.released = true;
            if let Some(observer) = &job.observer {
                observer.released();
            }
            return Vec::new();
        }
        // Here and below, a vector that grows bit by bit would ask for memory again and again, which others may be asking for too.
        let mut missing: Vec<u32> = Vec::with_capacity(job.keys.len());
        missing.extend((0..job.keys.len() as u32).filter(|&i| progress.found[i as usize] == NOWHERE));
        if missing.is_empty() {
            self.looked_up(job, progress);
            return Vec::new();
        }
        // Sizes are of what backends have: as long as there are none, it has asked none.
        if progress.sizes.is_empty() {
            progress.tiers = self.tiers.list();
        }
        let tiers = progress.tiers.clone();
        if !tiers.is_empty() && progress.sizes.is_empty() {
            progress.sizes = vec![0; job.keys.len()];
        }
        let mut unknown: Asks = Vec::new();
        for tier in tiers.iter().filter(|tier| tier.may_have(&job.space.tag)) {
            if missing.is_empty() {
                break;
            }
            let mut ask = Vec::new();
            let mut still = 0;
            let mut objects: Vec<ObjectKey> = Vec::with_capacity(missing.len().min(PIECE));
            let mut found = [Found::Unknown; PIECE];
            for from in (0..missing.len()).step_by(PIECE) {
                let piece = from..missing.len().min(from + PIECE);
                objects.clear();
                objects.extend(missing[piece.clone()].iter().map(|&i| job.object(i as usize)));
                let found = &mut found[..piece.len()];
                tier.backend.lookup_cached(&objects, found);
                for (at, &found) in piece.zip(&*found) {
                    let index = missing[at];
                    match found {
                        Found::Present(bytes) => {
                            self.note_found(job, progress, index as usize, tier, bytes);
                            continue;
                        }
                        Found::Absent => {}
                        Found::Unknown => {
                            if ask.is_empty() {
                                ask.reserve_exact(missing.len() - at);
                            }
                            ask.push(index);
                        }
                    }
                    missing[still] = index;
                    still += 1;
                }
            }
            missing.truncate(still);
            if !ask.is_empty() {
                unknown.push((tier.clone(), ask));
            }
        }
        for (_, ask) in &mut unknown {
            ask.retain(|&index| progress.found[index as usize] == NOWHERE);
        }
        unknown.retain(|(_, ask)| !ask.is_empty());
        if unknown.is_empty() {
            self.looked_up(job, progress);
        }
        progress.asking = unknown.len();
        unknown
    }

    /// Takes shares of what is in L1 by now.
    pub(super) fn find_in_l1(&self, job: &Job, progress: &mut Progress) -> Result<()> {
        self.l1.reserve_found(job.session, &job.keys, job.shares(), &mut progress.held)?;
        for (held, found) in progress.held.iter().zip(&mut progress.found) {
            if *held && *found == NOWHERE {
                *found = 0;
            }
        }
        Ok(())
    }

    pub(super) fn ask_tiers(self: &Arc<Self>, job: &Arc<Job>, asks: Asks) {
        // Where only one backend is asked, the first gap decides a prefix: it need not ask beyond.
        let in_order = job.request.mode == Mode::Prefix && job.request.group_rules.is_empty() && asks.len() == 1;
        for (tier, ask) in asks {
            self.ask_tier(job, tier, ask, in_order);
        }
    }

    fn ask_tier(self: &Arc<Self>, job: &Arc<Job>, tier: Arc<Tier>, ask: Vec<u32>, in_order: bool) {
        let keys = ask.iter().map(|&i| job.object(i as usize)).collect();
        let (me, late_job, late_tier) = (self.clone(), job.clone(), tier.clone());
        let on_late = std::iter::once(Box::new(move || {
            me.meters.backend_timeouts.add(1);
            let error = Error::new(KVKEEP_ERR_TIMEOUT, "a lookup was not answered in time");
            me.answered(&late_job, &late_tier, Err(error));
        }) as Box<dyn FnOnce() + Send>);
        let ticket = self.watch.begin(&tier, on_late).pop();
        let (me, job, answered_tier) = (self.clone(), job.clone(), tier.clone());
        let reply = Reply::new(move |result: Result<Vec<Found>>| {
            let answers = result.map(|found| Answers::new(job.clone(), answered_tier.clone(), ask, found));
            // Dropped, with the pins in it, if the job was told already that it is too late.
            if ticket.is_some_and(|ticket| ticket.answered()) {
                me.answered(&job, &answered_tier, answers);
            }
        });
        tier.backend.lookup(LookupRequest { keys, in_order, deadline: self.watch.deadline(), reply });
    }

    /// Takes in a backend's answer.
    fn answered(self: &Arc<Self>, job: &Arc<Job>, tier: &Arc<Tier>, answers: Result<Answers>) {
        let mut progress = job.progress.lock();
        match answers {
            Ok(mut answers) => {
                let asks = progress.phase == Phase::Lookup;
                for (index, bytes) in answers.take(|index| asks && progress.found[index] == NOWHERE) {
                    self.note_found(job, &mut progress, index, tier, bytes);
                }
            }
            Err(error) => progress.trouble = Some(format!("backend {}: {error}", tier.number)),
        }
        progress.asking = progress.asking.saturating_sub(1);
        if progress.phase == Phase::Lookup && progress.asking == 0 {
            self.looked_up(job, &mut progress);
        }
    }

    fn note_found(&self, job: &Job, progress: &mut Progress, index: usize, tier: &Tier, bytes: u64) {
        progress.found[index] = tier.place as u8;
        progress.sizes[index] = bytes;
        progress.pins.take_over(index, tier.place, job.keys.len());
    }

    /// All tiers have answered: say the early answer and start loading, or ask again later for what is missing.
    pub(super) fn looked_up(self: &Arc<Self>, job: &Arc<Job>, progress: &mut Progress) {
        let now = Instant::now();
        let there: Vec<bool> = progress.found.iter().map(|&found| found != NOWHERE).collect();
        let plan = job.answer(&there);
        if !plan.complete && progress.ask_until.is_some_and(|until| now < until) {
            let again = (now + job.request.lookup_interval).min(progress.ask_until.unwrap_or(now));
            self.jobs.lock().asking.push(std::cmp::Reverse((again, job.id)));
            return self.wake_by(again);
        }
        self.await_no_more(job, progress);
        progress.lookup = Some((plan.chunks, now));
        self.count_lookup(job, progress, &plan);
        if let Some(observer) = &job.observer {
            observer.looked_up(plan.chunks);
        }
        self.meters.lookup_latency.add(now - job.submitted);
        job.unpin(progress, |i| !plan.wanted[i]);
        self.trim(job, progress, &plan.wanted);
        progress.to_load =
            (0..job.keys.len() as u32).filter(|&i| plan.wanted[i as usize] && !progress.held[i as usize]).collect();
        if progress.to_load.is_empty() {
            return self.finish(job, progress, KVKEEP_OK, None);
        }
        progress.phase = Phase::Load;
        if self.loader.enqueue(job) {
            self.wake();
        }
    }

    /// Returns the shares of held keys that are not wanted.
    fn trim(&self, job: &Job, progress: &mut Progress, wanted: &[bool]) {
        let extra: Vec<usize> = (0..job.keys.len()).filter(|&i| progress.held[i] && !wanted[i]).collect();
        if extra.is_empty() {
            return;
        }
        self.l1.take_back(job.session, extra.iter().map(|&i| job.keys[i]), job.shares());
        extra.into_iter().for_each(|i| progress.held[i] = false);
    }

    /// A key of a job has come, or will not. False if the job is over.
    pub fn landed(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        outcome: std::result::Result<Arrival, String>,
    ) -> bool {
        let mut progress = job.progress.lock();
        if progress.phase != Phase::Load {
            if outcome.is_ok() {
                self.l1.take_back(job.session, std::iter::once(job.keys[index]), job.shares());
            }
            return false;
        }
        progress.loading -= 1;
        match outcome {
            Ok(arrival) => {
                progress.held[index] = true;
                match arrival {
                    Arrival::Loaded(bytes) => progress.loaded_bytes += bytes,
                    Arrival::There => progress.found[index] = 0,
                }
            }
            Err(why) => {
                progress.failed += 1;
                progress.trouble = Some(why);
            }
        }
        if progress.loading == 0 && progress.cursor == progress.to_load.len() {
            self.finish(job, &mut progress, KVKEEP_OK, None);
        }
        true
    }

    /// Ends a job with what it holds, or with nothing unless `status` is OK.
    pub(super) fn finish(&self, job: &Arc<Job>, progress: &mut Progress, status: Status, trouble: Option<String>) {
        let plan = job.answer(&progress.held);
        let given = if status == KVKEEP_OK { plan } else { Plan::nothing(job.keys.len()) };
        let (keep, chunks) = (&given.wanted, given.chunks);
        self.trim(job, progress, keep);
        job.unpin(progress, |_| true);
        debug_assert!(progress.pins.is_empty(), "job {} ends with a pin", job.id);
        self.await_no_more(job, progress);
        progress.phase = Phase::Done;
        progress.done_at = Some(Instant::now());
        if trouble.is_some() {
            progress.trouble = trouble;
        }
        if progress.lookup.is_none() {
            progress.lookup = Some((chunks, Instant::now()));
            if status != KVKEEP_ERR_CANCELLED {
                self.count_lookup(job, progress, &given);
            }
        }
        self.l1.end_job(job.session);
        let completion = job.conclude(progress, chunks, status);
        self.meters.jobs_completed.add(1);
        if status == KVKEEP_ERR_CANCELLED {
            self.meters.jobs_cancelled.add(1);
        } else {
            self.count_chunks(job, &given);
        }
        self.meters.prefetch_latency.add(job.submitted.elapsed());
        if let (Some(observer), Some(result)) = (&job.observer, &progress.result) {
            observer.done(result, &progress.held);
        }
        if let Some(notify) = progress.notify.take() {
            self.completions.deliver(notify, completion);
        }
        job.done.notify_all();
    }

    pub(super) fn job(&self, id: u64) -> Result<Arc<Job>> {
        self.jobs.lock().by_id.get(&id).cloned().ok_or_else(|| no_job(id))
    }

    pub(super) fn cancel_job(&self, job: &Arc<Job>, why: &str) {
        let mut progress = job.progress.lock();
        if progress.phase != Phase::Done {
            self.finish(job, &mut progress, KVKEEP_ERR_CANCELLED, Some(why.to_owned()));
        }
    }
}
