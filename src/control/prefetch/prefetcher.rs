//! The prefetches of a cache: jobs are submitted, cancelled and released here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hashbrown::HashSet;

use super::job::{Job, JobHost};
use super::job_table::{JobTable, closing};
use super::loader::Loader;
use super::phases::Phase;
use crate::config::PrefetchRequest;
use crate::control::backends::{BackendSlot, Backends};
use crate::control::deadline::Deadlines;
use crate::error::{Error, KVKEEP_ERR_CANCELLED, Result};
use crate::key::{Key, ObjectKey};
use crate::l1::L1;
use crate::memory_bounds::ask_for;
use crate::meters::Meters;

/// The bytes that a job needs for each key, about.
const KEY_BYTES: usize = 200;

/// Submits, looks up, ends and releases the jobs of a cache.
pub struct Prefetcher {
    pub(super) l1: Arc<L1>,
    pub(super) backends: Arc<Backends>,
    pub(in crate::control) loader: Arc<Loader>,
    pub(super) deadlines: Arc<Deadlines>,
    pub(super) meters: Arc<Meters>,
    pub(super) table: Arc<JobTable>,
    last: AtomicU64,
    /// Something was committed that a job may wait for.
    pub(super) commits: AtomicBool,
}

impl Prefetcher {
    /// A prefetcher of no jobs yet, which loads by `loader`. `boot` is the upper 16 bits of its jobs' numbers.
    pub fn new(
        l1: Arc<L1>,
        backends: Arc<Backends>,
        loader: Arc<Loader>,
        deadlines: Arc<Deadlines>,
        meters: Arc<Meters>,
        boot: u16,
    ) -> Arc<Prefetcher> {
        let (table, commits) = (loader.table().clone(), AtomicBool::new(false));
        let last = AtomicU64::new(u64::from(boot) << 48);
        Arc::new(Prefetcher { l1, backends, loader, deadlines, meters, table, last, commits })
    }

    /// All jobs, for queries and waits.
    pub fn table(&self) -> &JobTable {
        &self.table
    }

    /// Submits a job and sets `id` before its end can be notified.
    pub fn submit(self: &Arc<Self>, session: u64, keys: &[Key], request: PrefetchRequest, id: &mut u64) -> Result<()> {
        let submitted = Instant::now();
        let per_chunk = request.objects_per_chunk as usize;
        if !keys.len().is_multiple_of(per_chunk) {
            return Err(Error::invalid(format!(
                "{} keys are no whole number of chunks of objects_per_chunk = {per_chunk}: pass all keys of each chunk",
                keys.len()
            )));
        }
        if self.table.is_closing() {
            return Err(closing());
        }
        self.table.completions().check_capacity(&request.notify, self.table.jobs_max())?;
        ask_for(keys.len() * KEY_BYTES, "the keys of a job")?;
        let (space, timeout, copied_for) = self.l1.begin_job(session)?;
        let deadline = submitted + request.deadline.unwrap_or(timeout);
        let mut job =
            Job::new(self.last.fetch_add(1, Ordering::Relaxed) + 1, session, space, keys, request, submitted, deadline);
        if let Some(user) = copied_for {
            job.asked_before = self.table.asked_before(user, keys);
        }
        let job = Arc::new(job);
        // Locked before another thread can find the job, so that none ends it before it has begun.
        let mut state = job.state.lock();
        self.table.enter(&job).inspect_err(|_| self.l1.end_job(session))?;
        *id = job.id;
        self.meters.jobs_submitted.add(1);
        if let Some((_, lookup)) = state.lookup_mut() {
            job.await_commits(lookup, &*self.table);
        }
        let asks = self.ask(&job, &mut state);
        drop(state);
        self.ask_backends(&job, asks);
        self.meters.call_latency.add(submitted.elapsed());
        Ok(())
    }

    /// Has a job that pauses after its lookup load what it found.
    pub fn resume(&self, id: u64) -> Result<()> {
        let job = self.table.job(id)?;
        let mut state = job.state.lock();
        if Job::resume(&mut state) && self.loader.enqueue(&job) {
            self.table.wake();
        }
        Ok(())
    }

    /// Cancels a job that is not done.
    pub fn cancel(&self, id: u64) -> Result<()> {
        self.cancel_job(&*self.table.job(id)?, "cancelled by its caller");
        Ok(())
    }

    /// Cancels the jobs of a space, or all.
    pub fn cancel_space(&self, space: Option<u32>) {
        let jobs = self.table.all();
        for job in jobs.iter().filter(|job| space.is_none_or(|space| space == job.space.index)) {
            self.cancel_job(job, "cancelled because its space was cleared");
        }
    }

    fn cancel_job(&self, job: &Job, why: &str) {
        job.finish(&mut job.state.lock(), KVKEEP_ERR_CANCELLED, Some(why.to_owned()), &*self.table);
    }

    /// Ends a job, if it is not done, and forgets it.
    pub fn release(&self, id: u64) -> Result<()> {
        self.release_because(id, "released before it was done")
    }

    fn release_because(&self, id: u64, why: &str) -> Result<()> {
        let job = self.table.job(id)?;
        self.table.forget(&job);
        let mut state = job.state.lock();
        job.finish(&mut state, KVKEEP_ERR_CANCELLED, Some(why.to_owned()), &*self.table);
        job.mark_released(&mut state);
        Ok(())
    }

    /// Cancels and forgets the jobs of a session.
    pub fn release_session(&self, session: u64) {
        for id in self.table.ids_of_session(session) {
            // A job that its caller released meanwhile is gone already.
            let _ = self.release_because(id, "its session was ended or aborted");
        }
    }

    /// Refuses new jobs and completes all that are not done.
    pub fn close(&self) {
        self.table.close();
        for job in &self.table.all() {
            self.cancel_job(job, "cancelled because the cache closes");
        }
        self.table.wake();
    }

    /// Which objects are on their way from a backend into L1, or will be: found there by a job and still to be loaded.
    pub fn loading(&self, objects: &[ObjectKey]) -> Vec<bool> {
        let (mut asked, mut to_load) = (None, HashSet::new());
        for job in self.table.all() {
            let state = job.state.lock();
            for index in state.to_ask() {
                // Made only if there is one: mostly nothing is loaded.
                let asked = asked.get_or_insert_with(|| objects.iter().collect::<HashSet<_>>());
                to_load.extend(Some(job.object(index)).filter(|object| asked.contains(object)));
            }
        }
        // Asked last: an object that a job had still to load may be on its way by now.
        let mut loading = self.loader.loading(objects);
        for (loading, object) in loading.iter_mut().zip(objects) {
            *loading |= to_load.contains(object);
        }
        loading
    }

    /// How many loads have committed an object since the cache was opened.
    pub fn loads_committed(&self) -> u64 {
        self.loader.committed()
    }

    /// Has loads of objects that no backend has any more commit nothing.
    pub fn drop_deleted(&self, objects: &[ObjectKey]) {
        self.loader.drop_deleted(objects);
    }

    /// Whether a job found objects in a backend that it has not asked it for yet.
    pub fn plans_on(&self, slot: &BackendSlot) -> bool {
        let plans = self.table.all().iter().any(|job| {
            let state = job.state.lock();
            // A job that only looks up again for missing chunks, or pauses, may do so for long.
            let idle = state.is_paused() || matches!(&state.phase, Phase::Lookup(lookup) if lookup.asking == 0);
            !idle
                && state.search().is_some_and(|search| {
                    search.backends.iter().any(|its| its.number == slot.number)
                        && state.to_ask().any(|index| usize::from(search.found[index]) == slot.place)
                })
        });
        // Looked at last: a load that is no plan any more may be between its job and the backend.
        plans || slot.is_handed()
    }
}
