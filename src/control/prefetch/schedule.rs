//! The control thread's part of prefetching: deadlines, lookups again, commits that answer jobs, queued loads.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::job::Job;
use super::job_table::{Awaiting, Due};
use super::phases::Phase;
use super::prefetcher::Prefetcher;

impl Prefetcher {
    /// Does what is due: deadlines, lookups again, loads. Returns when to look again. Called by the control thread.
    pub fn run_due(self: &Arc<Self>) -> Option<Instant> {
        let now = Instant::now();
        let Due { deadlines, lookups, next } = self.table.due(now);
        for job in deadlines {
            self.overdue(&job);
        }
        let next = [next, self.look_for_commits(now)].into_iter().flatten().min();
        for job in lookups {
            let mut state = job.state.lock();
            match &state.phase {
                Phase::Lookup(lookup) if lookup.asking == 0 => {
                    let asks = self.ask(&job, &mut state);
                    drop(state);
                    self.ask_backends(&job, asks);
                }
                Phase::Load(_) => {
                    let asks = self.ask_elsewhere(&job, &mut state);
                    drop(state);
                    self.ask_backends_elsewhere(&job, asks);
                }
                Phase::Lookup(_) | Phase::Done(_) => {}
            }
        }
        self.loader.issue();
        next
    }

    /// Notes a commit that a job may wait for. Called by L1 after a commit, on any thread.
    pub fn committed(&self) {
        if !self.commits.swap(true, Ordering::AcqRel) {
            self.table.wake();
        }
    }

    /// Looks in L1 for what jobs wait for, if something was committed. Returns when to look again, if that was just done.
    fn look_for_commits(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        if !self.commits.load(Ordering::Acquire) {
            return None;
        }
        let jobs = match self.table.awaiting(now, &self.commits) {
            Awaiting::Now(jobs) => jobs,
            Awaiting::At(again) => return Some(again),
        };
        for job in jobs {
            let mut state = job.state.lock();
            // Answered though a backend is still asked: the pins of its late answer are given back.
            if let Some((held, lookup)) = state.lookup_mut()
                && lookup.awaits_commits()
                && self.find_in_l1(&job, held, &mut lookup.search).is_ok()
                && job.is_answered(lookup)
            {
                self.looked_up(&job, &mut state);
            }
        }
        None
    }

    /// A job's deadline passed: it ends as its policy says; a job that was done and not released is reclaimed.
    fn overdue(&self, job: &Arc<Job>) {
        let mut state = job.state.lock();
        if let Phase::Done(done) = &state.phase {
            // Its answer may be read for as long again as it had to come.
            let until = done.at + (job.deadline - job.submitted);
            drop(state);
            if until > Instant::now() {
                self.table.look_again(job, until);
            } else if self.release(job.id).is_ok() {
                self.meters.jobs_reclaimed.add(1);
            }
            return;
        }
        job.end_late(&mut state, &*self.table);
        drop(state);
        self.table.look_again(job, Instant::now() + (job.deadline - job.submitted).max(Duration::from_millis(1)));
    }

    /// Wakes the control thread: there is something to do.
    pub fn wake(&self) {
        self.table.wake();
    }

    /// Waits until woken, or until `until`. Called by the control thread alone.
    pub fn sleep(&self, until: Instant) {
        self.table.sleep(until);
    }
}
