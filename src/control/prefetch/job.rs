//! One prefetch job: its request, its state by phase, and every transition between the phases.
//!
//! A job is in `Lookup` while tiers are asked, in `Load` while its bytes are queued or being loaded, and `Done` at its end. All
//! transitions are functions of this file: [`Job::new`], [`Job::looked_up`], [`Job::resume`], [`Job::issue`], [`Job::landed`],
//! [`Job::looked_elsewhere`], [`Job::end_late`], [`Job::finish`], [`Job::mark_released`]. Each runs under the lock of the job's
//! state. The table of jobs is locked after it, never before.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::hit_counters::{LookupTally, count_chunks, count_lookup, given_bytes};
use super::phases::{DonePhase, JobState, LoadPhase, LookupPhase, Phase, Search, there};
use super::plan::{HitPlan, NOWHERE, Question};
use crate::abi::{JobKind, JobResult, KVKEEP_TIERS_MAX, chars};
use crate::config::{JobObserver, Notify, Policy, PrefetchRequest};
use crate::control::completion::Completions;
use crate::error::{Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_TIMEOUT, KVKEEP_OK, Status};
use crate::key::{Key, ObjectKey};
use crate::l1::{L1, LoadReader, SpaceInfo};
use crate::meters::Meters;
use crate::misses::MissContext;

/// The cache around a job, as far as the job's transitions act on it.
pub trait JobHost {
    /// The L1 that the job's session holds shares in.
    fn l1(&self) -> &L1;
    /// The counters that jobs add to.
    fn meters(&self) -> &Meters;
    /// The queues that deliver completions to callers.
    fn completions(&self) -> &Completions;
    /// Has the control thread look the job up again at `at`.
    fn look_up_again(&self, job: u64, at: Instant);
    /// Has the control thread look through the job after a commit, or no longer. Called once for each change.
    fn await_commits(&self, job: u64, awaits: bool);
}

/// How a key of a job came to be in L1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeySource {
    /// It was loaded. So many bytes count for this job: none if they count for another that waits for the same object.
    Loaded(u64),
    /// It was in L1 when the loader came to it.
    There,
}

/// Why a key of a job did not come.
#[derive(Clone)]
pub struct NotLoaded {
    /// The reason, for the result and its message.
    why: Error,
    /// The place of the backend that could not give it: another may. None: nothing can.
    failed_place: Option<usize>,
}

impl NotLoaded {
    /// No backend can give it.
    pub fn from_anywhere(why: Error) -> NotLoaded {
        NotLoaded { why, failed_place: None }
    }

    /// The backend at `place` could not give it.
    pub fn from(place: usize, why: Error) -> NotLoaded {
        NotLoaded { why, failed_place: Some(place) }
    }
}

/// One job. All but `state` stays as it was submitted.
pub struct Job {
    /// The job's number, never used again.
    pub id: u64,
    /// The session that holds the job's shares.
    pub session: u64,
    /// The space of that session.
    pub space: SpaceInfo,
    /// The keys asked for, chunk-major.
    pub keys: Vec<Key>,
    /// The request as submitted, less how to notify.
    pub request: PrefetchRequest,
    /// Of the job of a load: the keys that its request asked for before. Empty if there are none.
    pub asked_before: Vec<bool>,
    /// The observer that follows the job, if the request names one.
    observer: Option<Arc<dyn JobObserver>>,
    /// When it was submitted.
    pub submitted: Instant,
    /// When it ends as its policy says.
    pub deadline: Instant,
    /// The state of the job. Locked before the table of jobs, never after.
    pub state: Mutex<JobState>,
    /// Notified under the lock of the state when the job is done or released.
    pub done: Condvar,
}

impl Job {
    /// → `Lookup`. Called by the thread that submits, which asks the tiers next.
    pub fn new(
        id: u64,
        session: u64,
        space: SpaceInfo,
        keys: &[Key],
        mut request: PrefetchRequest,
        submitted: Instant,
        deadline: Instant,
    ) -> Job {
        let notify = std::mem::take(&mut request.notify);
        let lookup_notify = std::mem::take(&mut request.lookup_notify);
        let observer = match &notify {
            Notify::Observer(observer) => Some(observer.clone()),
            _ => None,
        };
        let search = Search { found: vec![NOWHERE; keys.len()], notify: Some(notify), ..Search::default() };
        let ask_until = (!request.lookup_timeout.is_zero()).then(|| submitted + request.lookup_timeout);
        let pauses = request.pause_after_lookup;
        let phase = Phase::Lookup(LookupPhase { search, lookup_notify, asking: 0, ask_until, awaiting: false, pauses });
        let (state, done) = (Mutex::new(JobState { held: vec![false; keys.len()], phase }), Condvar::new());
        let keys = keys.to_vec();
        let asked_before = Vec::new();
        Job { id, session, space, keys, request, asked_before, observer, submitted, deadline, state, done }
    }

    /// Has a commit answer the job in `Lookup`, if it may. Called by the thread that submits, under the lock of the state,
    /// before L1 is asked, so that no commit comes between.
    pub fn await_commits(&self, lookup: &mut LookupPhase, host: &impl JobHost) {
        if lookup.ask_until.is_some() {
            lookup.awaiting = true;
            host.await_commits(self.id, true);
        }
    }

    /// No commit changes the answer any more.
    fn await_no_more(&self, lookup: &mut LookupPhase, host: &impl JobHost) {
        if std::mem::take(&mut lookup.awaiting) {
            host.await_commits(self.id, false);
        }
    }

    /// Takes the next `count` planned keys of `Load`, which are on their way from now on. Called by the loader when the job's
    /// turn comes, under the lock of the state.
    pub fn issue(load: &mut LoadPhase, count: usize) -> Vec<u32> {
        let issued = load.planned()[..count].to_vec();
        load.cursor += count;
        load.loading += count;
        issued
    }

    /// `Lookup` → `Load`: every backend has answered, or a commit made the answer complete. `Lookup` → `Done`, if nothing is to be
    /// loaded. The job stays in `Lookup` if missing chunks are to be asked for again.
    ///
    /// Called under the lock of the state, by the thread that submits, by the control thread, and by a backend's thread with the
    /// last answer. True if the caller is to queue the job in the loader, under the same lock.
    pub fn looked_up(self: &Arc<Self>, state: &mut JobState, host: &impl JobHost) -> bool {
        let Some((held, lookup)) = state.lookup_mut() else { return false };
        let now = Instant::now();
        let plan = self.answer(&there(&lookup.search.found));
        if let Some(until) = lookup.ask_until.filter(|until| !plan.complete && now < *until) {
            host.look_up_again(self.id, (now + self.request.lookup_interval).min(until));
            return false;
        }
        self.await_no_more(lookup, host);
        self.count_lookup(&lookup.search, &plan, host);
        if let Some(observer) = &self.observer {
            observer.looked_up(plan.chunks);
        }
        if lookup.lookup_notify.is_queued() {
            let answer = JobResult::of_lookup(plan.chunks).completion(self.id, self.session);
            host.completions().deliver(std::mem::take(&mut lookup.lookup_notify), answer);
        }
        host.meters().lookup_latency.add(now - self.submitted);
        self.unpin(&mut lookup.search, |i| !plan.wanted[i]);
        self.return_shares(held, &plan.wanted, host.l1());
        let to_load: Vec<u32> =
            (0..self.keys.len() as u32).filter(|&i| plan.wanted[i as usize] && !held[i as usize]).collect();
        let (nothing, search) = (to_load.is_empty(), std::mem::take(&mut lookup.search));
        let pauses = lookup.pauses;
        let lookup = (plan.chunks, now);
        state.phase = Phase::Load(LoadPhase { paused: pauses, ..LoadPhase::new(search, lookup, to_load) });
        if nothing {
            self.finish(state, KVKEEP_OK, None, host);
        } else if pauses && now >= self.deadline {
            // Under the policy that waits, the control thread has passed over the job at its deadline.
            self.end_late(state, host);
        }
        !nothing && !pauses
    }

    /// `Lookup` or `Load` → `Done`, as the policy says at the deadline. Under the policy that waits, a job that loads goes on. Called
    /// under the lock of the state, after the deadline.
    pub fn end_late(&self, state: &mut JobState, host: &impl JobHost) {
        let status = match self.request.policy {
            Policy::Deadline => KVKEEP_ERR_TIMEOUT,
            Policy::Wait if !state.is_paused() => return,
            Policy::BestEffort | Policy::Wait => KVKEEP_OK,
        };
        self.finish(state, status, Some("its deadline passed".to_owned()), host);
    }

    /// Has the job load what it finds, or has found. Called under the lock of the state by the caller of the job. True if the caller is
    /// to queue the job in the loader, under the same lock.
    pub fn resume(state: &mut JobState) -> bool {
        match &mut state.phase {
            Phase::Lookup(lookup) => {
                lookup.pauses = false;
                false
            }
            Phase::Load(load) => std::mem::take(&mut load.paused),
            Phase::Done(_) => false,
        }
    }

    /// `Load` → `Load`, or → `Done` with the last key: a key has come, or will not. One that another backend may have stays on its way,
    /// and the control thread looks for it there. Called by the loader with no lock held, on
    /// the thread of a backend, of the control thread or of a caller. False if the job was over, and the key's shares are
    /// returned.
    pub fn landed(
        self: &Arc<Self>,
        index: usize,
        outcome: std::result::Result<KeySource, NotLoaded>,
        host: &impl JobHost,
    ) -> bool {
        let mut state = self.state.lock();
        let JobState { held, phase: Phase::Load(load) } = &mut *state else {
            if outcome.is_ok() {
                host.l1().return_unread(self.session, std::iter::once(self.keys[index]), self.shares());
            }
            return false;
        };
        match outcome {
            Ok(source) => {
                load.loading -= 1;
                held[index] = true;
                match source {
                    KeySource::Loaded(bytes) => load.loaded_bytes += bytes,
                    KeySource::There => load.search.found[index] = 0,
                }
                self.finish_if_over(&mut state, host);
            }
            Err(NotLoaded { why, failed_place }) => {
                if failed_place.is_some_and(|place| load.search.note_failed(index, place, &self.space.tag)) {
                    load.elsewhere.push((index as u32, why));
                    if load.elsewhere.len() == 1 && load.asking == 0 {
                        host.look_up_again(self.id, Instant::now());
                    }
                } else {
                    self.looked_elsewhere(&mut state, &[], vec![(index as u32, why)], host);
                }
            }
        }
        true
    }

    /// `Load` → `Load`, or → `Done` with the last key: other backends were asked for keys that one could not give. Those `found` are
    /// planned again, those `lost` have failed. Called under the lock of the state by the control thread, and by a backend's thread with
    /// an answer. True if the caller is to queue the job in the loader, under the same lock.
    pub fn looked_elsewhere(
        &self,
        state: &mut JobState,
        found: &[u32],
        lost: Vec<(u32, Error)>,
        host: &impl JobHost,
    ) -> bool {
        let Some(load) = state.load_mut() else { return false };
        load.to_load.extend(found);
        load.loading -= found.len() + lost.len();
        load.failed += lost.len() as u32;
        if let Some((_, why)) = lost.into_iter().next_back() {
            load.failed_status = why.status;
            load.search.trouble = Some(why.message);
        }
        if load.asking == 0 && !load.elsewhere.is_empty() {
            host.look_up_again(self.id, Instant::now());
        }
        self.finish_if_over(state, host);
        !found.is_empty()
    }

    fn finish_if_over(&self, state: &mut JobState, host: &impl JobHost) {
        if state.load_mut().is_some_and(|load| load.loading == 0 && load.all_issued()) {
            self.finish(state, KVKEEP_OK, None, host);
        }
    }

    /// `Lookup` or `Load` → `Done`, with what the job holds, or with nothing unless `status` is OK. A job that is done stays as
    /// it is.
    ///
    /// Called under the lock of the state by every way that a job ends: by the two transitions above, by the control thread at the
    /// deadline, and by callers that cancel or release it, end its session, clear its space or close the cache.
    pub fn finish(&self, state: &mut JobState, status: Status, trouble: Option<String>, host: &impl JobHost) {
        if state.is_done() {
            return;
        }
        let plan = self.answer(&state.held);
        let given = if status == KVKEEP_OK { plan } else { HitPlan::nothing(self.keys.len()) };
        let (mut search, lookup, failed, failed_status, loaded_bytes) = match &mut state.phase {
            Phase::Lookup(lookup) => {
                self.unpin(&mut lookup.search, |_| true);
                self.await_no_more(lookup, host);
                (std::mem::take(&mut lookup.search), None, 0, KVKEEP_OK, 0)
            }
            Phase::Load(load) => {
                self.unpin(&mut load.search, |_| true);
                load.forget_unloaded(&state.held);
                let LoadPhase { search, lookup, failed, failed_status, loaded_bytes, .. } = load;
                (std::mem::take(search), Some(*lookup), *failed, *failed_status, *loaded_bytes)
            }
            Phase::Done(_) => return,
        };
        debug_assert!(search.pins.is_empty(), "job {} ends with a pin", self.id);
        if trouble.is_some() {
            search.trouble = trouble;
        }
        if lookup.is_none() && status != KVKEEP_ERR_CANCELLED {
            self.count_lookup(&search, &given, host);
        }
        if lookup.is_none() {
            search.keep_found(&state.held);
        }
        self.return_shares(&mut state.held, &given.wanted, host.l1());
        host.l1().end_job(self.session);
        let now = Instant::now();
        let is_looked_up = lookup.is_some();
        let (lookup_chunks, looked_up) = lookup.unwrap_or((given.chunks, now));
        let since = |later: Instant, earlier: Instant| later.saturating_duration_since(earlier).as_micros() as u64;
        let result = JobResult {
            struct_size: size_of::<JobResult>() as u32,
            abi_version: 0,
            status: status as i32,
            hit_chunks: given.chunks,
            lookup_chunks,
            failed_keys: failed,
            failed_status: failed_status as i32,
            tier_keys: tier_keys(&state.held, &search.found),
            loaded_bytes,
            lookup_us: since(looked_up, self.submitted),
            load_us: since(now, looked_up),
            total_us: since(now, self.submitted),
            message: chars(search.trouble.as_deref().unwrap_or("")),
            kind: JobKind::KVKEEP_JOB_PREFETCH as u32,
            asked_keys: self.keys.len() as u32,
            ..JobResult::default()
        };
        let found = if status == KVKEEP_OK { search.found } else { Vec::new() };
        state.phase = Phase::Done(DonePhase { lookup_chunks, is_looked_up, result, found, at: now, released: false });
        let bytes = given_bytes(&given, &search.sizes, &self.asked_before);
        self.notify_end(search.notify, &given, bytes, &result, &state.held, host);
    }

    /// Counts a job that is done, and notifies its observer, its caller and those that wait for it.
    fn notify_end(
        &self,
        notify: Option<Notify>,
        given: &HitPlan,
        bytes: u64,
        result: &JobResult,
        held: &[bool],
        host: &impl JobHost,
    ) {
        let completion = result.completion(self.id, self.session);
        let meters = host.meters();
        meters.jobs_completed.add(1);
        if result.status == KVKEEP_ERR_CANCELLED as i32 {
            meters.jobs_cancelled.add(1);
        } else {
            count_chunks(meters, &self.question(), given, &self.asked_before, self.space.chunk_tokens);
            meters.saved_bytes.add(bytes);
        }
        meters.prefetch_latency.add(self.submitted.elapsed());
        if let Some(observer) = &self.observer {
            observer.done(result, held);
        }
        if let Some(notify) = notify {
            host.completions().deliver(notify, completion);
        }
        self.done.notify_all();
    }

    /// `Done` → `Done`, released: no call finds the job any more. Called under the lock of the state by the thread that has taken
    /// the job out of the table and finished it: that of a release, of a session's end, of the deadline, or of a submission that
    /// met its session's end.
    pub fn mark_released(&self, state: &mut JobState) {
        if let Phase::Done(done) = &mut state.phase {
            done.released = true;
        }
        self.done.notify_all();
        if let Some(observer) = &self.observer {
            observer.released();
        }
    }

    /// Shares of each key that the job takes.
    pub fn shares(&self) -> u32 {
        self.request.extra_count + 1
    }

    /// The job's part in a load, for the commit of the object.
    pub fn reader(&self) -> LoadReader {
        LoadReader { session: self.session, count: self.shares(), keep: !self.request.temporary }
    }

    /// The full name of a key.
    pub fn object(&self, index: usize) -> ObjectKey {
        ObjectKey { space: self.space.tag, key: self.keys[index] }
    }

    fn question(&self) -> Question<'_> {
        Question {
            keys: &self.keys,
            per_chunk: self.request.objects_per_chunk as usize,
            mode: self.request.mode,
            rules: &self.request.group_rules,
        }
    }

    fn answer(&self, there: &[bool]) -> HitPlan {
        self.question().answer(there)
    }

    /// Every length of a prefix at which the keys that could be had let all groups continue, the longest first; none while it
    /// looks up.
    pub fn prefix_lengths(&self, state: &JobState) -> Option<Vec<u32>> {
        match &state.phase {
            Phase::Lookup(_) => None,
            Phase::Load(load) => Some(self.question().lengths(&there(&load.search.found))),
            Phase::Done(done) => Some(self.question().lengths(&there(&done.found))),
        }
    }

    /// The answer in chunks, if nothing more is found.
    pub fn chunks_so_far(&self, lookup: &LookupPhase) -> u32 {
        self.answer(&there(&lookup.search.found)).chunks
    }

    /// Whether the answer would be complete with the keys that were found so far.
    pub fn is_answered(&self, lookup: &LookupPhase) -> bool {
        self.answer(&there(&lookup.search.found)).complete
    }

    fn count_lookup(&self, search: &Search, plan: &HitPlan, host: &impl JobHost) {
        let LookupTally { hits, missed } =
            count_lookup(host.meters(), &self.question(), plan, &search.found, &self.asked_before);
        let unreachable = search.unanswered || search.backends.iter().any(|slot| !slot.may_have(&self.space.tag));
        let context = MissContext { unreachable, in_order: search.in_order, l1_alone: false };
        host.l1().count_lookup(self.space, &hits, &missed, context);
    }

    /// Unpins the pinned keys that `which` chooses.
    fn unpin(&self, search: &mut Search, which: impl Fn(usize) -> bool) {
        search.pins.give_back(&search.backends, |index| self.object(index), which);
    }

    /// Returns the shares of held keys that are not wanted.
    fn return_shares(&self, held: &mut [bool], wanted: &[bool], l1: &L1) {
        // The usual case, found by one comparison of bytes.
        if held == wanted {
            return;
        }
        let extra: Vec<usize> = (0..self.keys.len()).filter(|&i| held[i] && !wanted[i]).collect();
        if extra.is_empty() {
            return;
        }
        l1.return_unread(self.session, extra.iter().map(|&i| self.keys[i]), self.shares());
        extra.into_iter().for_each(|i| held[i] = false);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let Job { keys, space, state, .. } = self;
        if let Some(Search { pins, backends, .. }) = state.get_mut().search_mut() {
            pins.give_back(backends, |index| ObjectKey { space: space.tag, key: keys[index] }, |_| true);
        }
    }
}

/// How many of the held keys each tier had.
fn tier_keys(held: &[bool], found: &[u8]) -> [u32; KVKEEP_TIERS_MAX] {
    let mut tier_keys = [0; KVKEEP_TIERS_MAX];
    for (&held, &found) in held.iter().zip(found) {
        if held && let Some(count) = tier_keys.get_mut(found as usize) {
            *count += 1;
        }
    }
    tier_keys
}
