//! What callers may ask of a job: its answers, waiting for them, cancelling it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashSet;

use super::job::{Job, Phase};
use super::{Prefetcher, no_job};
use crate::abi::JobResult;
use crate::control::backends::Tier;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, KVKEEP_OK, KVKEEP_PENDING, Result, Status};
use crate::key::ObjectKey;
use crate::l1::SpaceInfo;

/// The error of a bitmap that is too short for a job's keys.
pub fn small_bitmap(job: u64, keys: usize, bytes: usize) -> Error {
    let needed = keys.div_ceil(8);
    Error::invalid(format!("bitmap has {bytes} bytes, the {keys} keys of job {job} need {needed}: pass more"))
}

impl Prefetcher {
    /// The early answer.
    pub fn query_lookup_hits(&self, id: u64, chunks: &mut u32) -> Result<Status> {
        let job = self.job(id)?;
        let progress = job.progress.lock();
        match progress.lookup {
            Some((hits, _)) => {
                *chunks = hits;
                Ok(KVKEEP_OK)
            }
            None => Ok(KVKEEP_PENDING),
        }
    }

    /// The answer.
    pub fn query(&self, id: u64, result: &mut JobResult) -> Result<Status> {
        let job = self.job(id)?;
        let progress = job.progress.lock();
        match progress.result {
            Some(answer) => {
                let (struct_size, abi_version) = (result.struct_size, result.abi_version);
                *result = JobResult { struct_size, abi_version, ..answer };
                Ok(KVKEEP_OK)
            }
            None => Ok(KVKEEP_PENDING),
        }
    }

    /// Which keys are held.
    pub fn query_bitmap(&self, id: u64, bitmap: &mut [u8]) -> Result<Status> {
        let job = self.job(id)?;
        let needed = job.keys.len().div_ceil(8);
        if bitmap.len() < needed {
            return Err(small_bitmap(id, job.keys.len(), bitmap.len()));
        }
        let progress = job.progress.lock();
        if progress.result.is_none() {
            return Ok(KVKEEP_PENDING);
        }
        bitmap.fill(0);
        for (i, _) in progress.held.iter().enumerate().filter(|(_, held)| **held) {
            bitmap[i / 8] |= 1 << (i % 8);
        }
        Ok(KVKEEP_OK)
    }

    /// Blocks until a job is done.
    pub fn wait(&self, id: u64, timeout: Duration) -> Result<()> {
        let job = self.job(id)?;
        let until = Instant::now() + timeout;
        let mut progress = job.progress.lock();
        loop {
            if progress.released {
                return Err(no_job(id));
            }
            if progress.phase == Phase::Done {
                return Ok(());
            }
            if job.done.wait_until(&mut progress, until).timed_out() && progress.phase != Phase::Done {
                return Err(Error::new(
                    KVKEEP_ERR_TIMEOUT,
                    format!("job {id} is not done after {timeout:?}: wait longer, cancel it, or give it a deadline"),
                ));
            }
        }
    }

    /// Cancels a job that is not done.
    pub fn cancel(&self, id: u64) -> Result<()> {
        let job = self.job(id)?;
        self.cancel_job(&job, "cancelled by its caller");
        Ok(())
    }

    /// Which objects are on their way from a backend into L1, or will be: found there by a job and still to be loaded.
    pub fn loading(&self, objects: &[ObjectKey]) -> Vec<bool> {
        let (mut asked, mut to_load) = (None, HashSet::new());
        for job in self.all_jobs() {
            let progress = job.progress.lock();
            for index in progress.to_ask() {
                // Made only if there is one: mostly nothing is loaded.
                let asked = asked.get_or_insert_with(|| objects.iter().collect::<HashSet<_>>());
                to_load.extend(Some(job.object(index)).filter(|object| asked.contains(object)));
            }
        }
        // Asked last: what a job had still to load may be on its way by now.
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
    pub fn plans_on(&self, tier: &Tier) -> bool {
        let plans = self.all_jobs().iter().any(|job| {
            let progress = job.progress.lock();
            // One that only asks again for what is missing may do so for long.
            (progress.phase != Phase::Lookup || progress.asking > 0)
                && progress.tiers.iter().any(|its| its.number == tier.number)
                && progress.to_ask().any(|index| usize::from(progress.found[index]) == tier.place)
        });
        // Looked at last: what was no plan any more may be between its job and the backend.
        plans || tier.is_handed()
    }

    /// Every job, whatever its phase.
    pub(in crate::control) fn all_jobs(&self) -> Vec<Arc<Job>> {
        self.jobs.lock().by_id.values().cloned().collect()
    }

    /// The space of a job.
    pub fn space_of(&self, id: u64) -> Option<SpaceInfo> {
        Some(self.job(id).ok()?.space)
    }

    /// Jobs not released.
    pub fn count(&self) -> usize {
        self.jobs.lock().by_id.len()
    }

    /// Jobs of a session, with whether each is done.
    pub fn of_session(&self, session: u64) -> Vec<(u64, bool)> {
        self.jobs_of(session).iter().map(|job| (job.id, job.progress.lock().phase == Phase::Done)).collect()
    }

    pub(in crate::control) fn jobs_of(&self, session: u64) -> Vec<Arc<Job>> {
        let jobs = self.jobs.lock();
        let ids = jobs.by_session.get(&session).into_iter().flatten();
        ids.filter_map(|id| jobs.by_id.get(id).cloned()).collect()
    }
}
