//! The time of jobs: what is due when, and how each ends that nobody waits for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Prefetcher;
use super::job::{Job, NOWHERE, Phase, Progress};
use crate::config::Policy;
use crate::error::{KVKEEP_ERR_CANCELLED, KVKEEP_ERR_TIMEOUT, KVKEEP_OK, Result};

/// Commits are looked at together when more than one comes in so long.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

impl Prefetcher {
    pub(in crate::control) fn forget(&self, job: &Arc<Job>) {
        let mut jobs = self.jobs.lock();
        jobs.by_id.remove(&job.id);
        jobs.by_deadline.remove(&(job.deadline, job.id));
        if let Some(of_session) = jobs.by_session.get_mut(&job.session) {
            of_session.remove(&job.id);
            if of_session.is_empty() {
                jobs.by_session.remove(&job.session);
            }
        }
    }

    /// Forgets a job.
    pub fn release(&self, id: u64) -> Result<()> {
        let job = self.job(id)?;
        self.forget(&job);
        let mut progress = job.progress.lock();
        progress.released = true;
        if progress.phase != Phase::Done {
            self.finish(&job, &mut progress, KVKEEP_ERR_CANCELLED, Some("released before it was done".to_owned()));
        }
        job.done.notify_all();
        if let Some(observer) = &job.observer {
            observer.released();
        }
        Ok(())
    }

    /// Cancels and forgets the jobs of a session.
    pub fn release_session(&self, session: u64) {
        let ids = self.jobs.lock().by_session.get(&session).cloned().unwrap_or_default();
        for id in ids {
            // One that its caller released meanwhile is gone as wished.
            let _ = self.release(id);
        }
    }

    /// Cancels the jobs of a space, or all.
    pub fn cancel_space(&self, space: Option<u32>) {
        let jobs = self.all_jobs();
        for job in jobs.iter().filter(|job| space.is_none_or(|space| space == job.space.index)) {
            self.cancel_job(job, "cancelled because its space was cleared");
        }
    }

    /// Something was committed that a job may wait for.
    pub fn committed(&self) {
        if !self.commits.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// A job is answered, or over: no commit changes that.
    pub(in crate::control) fn await_no_more(&self, job: &Job, progress: &mut Progress) {
        if std::mem::take(&mut progress.awaiting) {
            self.jobs.lock().awaiting.remove(&job.id);
            self.l1.await_commits(false);
        }
    }

    /// Looks in L1 for what jobs wait for, if something was committed. Says when to look again, if that was just done.
    fn look_for_commits(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        if !self.commits.load(Ordering::Acquire) {
            return None;
        }
        let jobs: Vec<Arc<Job>> = {
            let mut jobs = self.jobs.lock();
            let again = jobs.looked.map(|looked| looked + LOOK_PAUSE);
            if let Some(again) = again.filter(|again| *again > now) {
                return Some(again);
            }
            self.commits.store(false, Ordering::Release);
            jobs.looked = Some(now);
            jobs.awaiting.iter().filter_map(|id| jobs.by_id.get(id).cloned()).collect()
        };
        for job in jobs {
            let mut progress = job.progress.lock();
            // Answered though a backend is still asked: what it then says it has is unpinned.
            if progress.awaiting && self.find_in_l1(&job, &mut progress).is_ok() {
                let there: Vec<bool> = progress.found.iter().map(|&found| found != NOWHERE).collect();
                if job.answer(&there).complete {
                    self.looked_up(&job, &mut progress);
                }
            }
        }
        None
    }

    /// Tells the control thread that there is something to do.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// Tells the control thread that there is something to do at `at`, if it would sleep longer than that.
    pub(in crate::control) fn wake_by(&self, at: Instant) {
        self.bell.ring_by(at);
    }

    /// Waits until woken, or until `until`.
    pub fn sleep(&self, until: Instant) {
        self.bell.listen(until);
    }

    /// Does what is due: deadlines, askings, loads. Says when to look again.
    pub fn turn(self: &Arc<Self>) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        let mut ask = Vec::new();
        {
            let mut jobs = self.jobs.lock();
            while let Some(&(deadline, id)) = jobs.by_deadline.first() {
                if deadline > now {
                    next = Some(deadline);
                    break;
                }
                jobs.by_deadline.pop_first();
                due.extend(jobs.by_id.get(&id).cloned());
            }
            while let Some(&std::cmp::Reverse((at, id))) = jobs.asking.peek() {
                if at > now {
                    next = Some(next.map_or(at, |next| next.min(at)));
                    break;
                }
                jobs.asking.pop();
                ask.extend(jobs.by_id.get(&id).cloned());
            }
        }
        for job in due {
            self.overdue(&job);
        }
        let next = [next, self.look_for_commits(now)].into_iter().flatten().min();
        for job in ask {
            let mut progress = job.progress.lock();
            if progress.phase == Phase::Lookup && progress.asking == 0 {
                let asks = self.ask(&job, &mut progress);
                drop(progress);
                self.ask_tiers(&job, asks);
            }
        }
        self.loader.issue();
        next
    }

    /// A job's deadline passed: it ends as its policy says; one that was done and not released is reclaimed.
    fn overdue(&self, job: &Arc<Job>) {
        let mut progress = job.progress.lock();
        if progress.phase == Phase::Done {
            // Its answer may be read for as long again as it had to come.
            let until = progress.done_at.map(|at| at + (job.deadline - job.submitted));
            drop(progress);
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => self.look_again(job, until),
                None if self.release(job.id).is_ok() => self.meters.jobs_reclaimed.add(1),
                None => {}
            }
            return;
        }
        let late = Some("its deadline passed".to_owned());
        match job.request.policy {
            Policy::BestEffort => self.finish(job, &mut progress, KVKEEP_OK, late),
            Policy::Deadline => self.finish(job, &mut progress, KVKEEP_ERR_TIMEOUT, late),
            Policy::Wait => {}
        }
        drop(progress);
        self.look_again(job, Instant::now() + (job.deadline - job.submitted).max(Duration::from_millis(1)));
    }

    /// Has a job that is still known be looked at again.
    fn look_again(&self, job: &Job, at: Instant) {
        let mut jobs = self.jobs.lock();
        if jobs.by_id.contains_key(&job.id) {
            jobs.by_deadline.insert((at, job.id));
        }
    }

    /// Refuses new jobs and completes all that are not done.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        for job in &self.all_jobs() {
            self.cancel_job(job, "cancelled because the cache closes");
        }
        self.wake();
    }

    /// Whether it is closing.
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}
