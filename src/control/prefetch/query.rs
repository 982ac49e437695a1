//! A caller's questions about a job: its answers, and waiting for them.

use std::time::{Duration, Instant};

use super::job_table::{JobTable, no_job};
use super::phases::Phase;
use crate::abi::JobResult;
use crate::config::Mode;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, KVKEEP_OK, KVKEEP_PENDING, Result, Status};
use crate::l1::SpaceInfo;

/// The error of a bitmap that is too short for a job's keys.
pub fn small_bitmap(job: u64, keys: usize, bytes: usize) -> Error {
    let needed = keys.div_ceil(8);
    Error::invalid(format!("bitmap has {bytes} bytes, the {keys} keys of job {job} need {needed}: pass more"))
}

impl JobTable {
    /// The early answer of a job in chunks, or PENDING while the job looks up: `chunks` then is what it is at least.
    pub fn query_lookup_hits(&self, id: u64, chunks: &mut u32) -> Result<Status> {
        let job = self.job(id)?;
        let state = job.state.lock();
        let (known, status) = match &state.phase {
            Phase::Lookup(lookup) => (job.chunks_so_far(lookup), KVKEEP_PENDING),
            Phase::Load(load) => (load.lookup_chunks(), KVKEEP_OK),
            Phase::Done(done) => (done.lookup_chunks, KVKEEP_OK),
        };
        *chunks = known;
        Ok(status)
    }

    /// Whether the lookup of a job was answered before the job ended.
    pub fn is_looked_up(&self, id: u64) -> bool {
        self.job(id).is_ok_and(|job| match &job.state.lock().phase {
            Phase::Lookup(_) => false,
            Phase::Load(_) => true,
            Phase::Done(done) => done.is_looked_up,
        })
    }

    /// The answer of a job, or PENDING until the job is done.
    pub fn query(&self, id: u64, result: &mut JobResult) -> Result<Status> {
        let job = self.job(id)?;
        let state = job.state.lock();
        let Phase::Done(done) = &state.phase else { return Ok(KVKEEP_PENDING) };
        let (struct_size, abi_version) = (result.struct_size, result.abi_version);
        *result = JobResult { struct_size, abi_version, ..done.result };
        Ok(KVKEEP_OK)
    }

    /// Which keys of a job are held, or PENDING until the job is done.
    pub fn query_bitmap(&self, id: u64, bitmap: &mut [u8]) -> Result<Status> {
        let job = self.job(id)?;
        let needed = job.keys.len().div_ceil(8);
        if bitmap.len() < needed {
            return Err(small_bitmap(id, job.keys.len(), bitmap.len()));
        }
        let state = job.state.lock();
        if !state.is_done() {
            return Ok(KVKEEP_PENDING);
        }
        bitmap.fill(0);
        for (i, _) in state.held.iter().enumerate().filter(|(_, held)| **held) {
            bitmap[i / 8] |= 1 << (i % 8);
        }
        Ok(KVKEEP_OK)
    }

    /// Every restorable length of a job, or PENDING while the job looks up.
    pub fn query_prefix_lengths(&self, id: u64, lengths: &mut Vec<u32>) -> Result<Status> {
        let job = self.job(id)?;
        if job.request.mode == Mode::Any {
            return Err(Error::invalid(format!(
                "job {id} is of mode EACH, which looks for no length: use PREFIX or WINDOW, or kvkeep_query_bitmap"
            )));
        }
        let state = job.state.lock();
        let Some(all) = job.prefix_lengths(&state) else { return Ok(KVKEEP_PENDING) };
        *lengths = all;
        Ok(KVKEEP_OK)
    }

    /// Blocks until a job is done or released.
    pub fn wait(&self, id: u64, timeout: Duration) -> Result<()> {
        let job = self.job(id)?;
        let until = Instant::now() + timeout;
        let mut state = job.state.lock();
        loop {
            if let Phase::Done(done) = &state.phase {
                return if done.released { Err(no_job(id)) } else { Ok(()) };
            }
            if job.done.wait_until(&mut state, until).timed_out() && !state.is_done() {
                return Err(Error::new(
                    KVKEEP_ERR_TIMEOUT,
                    format!("job {id} is not done after {timeout:?}: wait longer, cancel it, or give it a deadline"),
                ));
            }
        }
    }

    /// The space of a job, if the job is there.
    pub fn space_of(&self, id: u64) -> Option<SpaceInfo> {
        Some(self.job(id).ok()?.space)
    }

    /// The jobs of a session, with whether each is done.
    pub fn states_of_session(&self, session: u64) -> Vec<(u64, bool)> {
        self.of_session(session).iter().map(|job| (job.id, job.state.lock().is_done())).collect()
    }
}
