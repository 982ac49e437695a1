//! The end of a transfer and of its parts: the copied keys are committed, or their shares returned, and the caller is notified once.

use std::time::Instant;

use super::transfer::{Transfer, TransferOwner};
use super::transfer_phases::{Progress, Steps, StopReason};
use crate::abi::{JobKind, JobResult, chars};
use crate::cache::Cache;
use crate::error::{
    KVKEEP_ERR_CANCELLED, KVKEEP_ERR_DEVICE, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, KVKEEP_PARTIAL,
    KVKEEP_PENDING, Result, Status,
};
use crate::key::Key;
use crate::transfer::copy_device::StreamPoint;
use crate::transfer::cpu_copy::Way;

fn micros(later: Instant, earlier: Instant) -> u64 {
    later.saturating_duration_since(earlier).as_micros() as u64
}

/// A status without the beginning that all have.
fn brief(status: Status) -> String {
    format!("{status:?}").trim_start_matches("KVKEEP_ERR_").to_owned()
}

impl Transfer {
    fn named(&self, keys: &[usize]) -> Vec<Key> {
        keys.iter().map(|&key| self.targets.keys[key]).collect()
    }

    /// Commits the keys of a part that is copied, and gives back the memory of those that could not be. Not under the transfer's lock.
    pub(super) fn commit_part(&self, keys: &[usize]) {
        let Some(owner) = self.owner.upgrade() else { return };
        let Some((copied, failed)) = self.progress.lock().split_part(keys) else { return };
        if !failed.is_empty() {
            // They end with the transfer's session at the latest.
            let _ = owner.cache().abort_write(self.copy, &self.named(&failed), None);
        }
        if copied.is_empty() {
            return;
        }
        let mut statuses = vec![KVKEEP_ERR_INTERNAL as i32; copied.len()];
        if let Err(error) = owner.cache().finish_write(self.copy, &self.named(&copied), Some(&mut statuses)) {
            statuses.fill(error.status as i32);
        }
        let statuses = statuses.iter().map(|&status| Status::from_number(status).unwrap_or(KVKEEP_ERR_INTERNAL));
        self.progress.lock().part_committed(&copied, statuses);
    }

    /// Ends it, if nothing is left to do. Called by a device's thread that found no piece or landed the last one; not under the
    /// transfer's lock.
    pub(super) fn end_if_over(&self) {
        let Some(owner) = self.owner.upgrade() else { return };
        let begun = self.progress.lock().begin_settling();
        let Some((mut statuses, stopped)) = begun else { return };
        let ended = self.settle(owner.cache(), &mut statuses, stopped.as_ref().map(|(status, _)| *status));
        let stopped = stopped.or(ended.err().map(|error| (error.status, error.message)));
        self.conclude(&*owner, statuses, stopped);
    }

    /// Commits the copied keys of a store, returns shares, and ends the session that holds the transfer's memory. Gives the error that
    /// spoiled it as a whole.
    fn settle(&self, cache: &dyn Cache, statuses: &mut [Status], stopped: Option<Status>) -> Result<()> {
        let copied: Vec<usize> = (0..statuses.len()).filter(|&key| statuses[key] == KVKEEP_PENDING).collect();
        let keys = self.named(&copied);
        let mut committed = vec![stopped.unwrap_or(KVKEEP_OK) as i32; keys.len()];
        let mut result = Ok(());
        if self.way == Way::Gather && stopped.is_none() && !keys.is_empty() {
            result = cache.finish_write(self.copy, &keys, Some(&mut committed)).map(drop);
        }
        if self.return_shares {
            // Of those that the session does not hold, or that went with it, there is nothing to return.
            let _ = cache.finish_read(self.session, &self.targets.keys, 0, None);
        }
        let ended = if stopped.is_none() { cache.end_session(self.copy) } else { cache.abort_session(self.copy) };
        // What was read from memory that had been taken away meanwhile may be anything.
        let result = result.and(ended);
        for (&key, committed) in copied.iter().zip(committed) {
            statuses[key] = match &result {
                Err(error) if stopped.is_none() => error.status,
                _ => Status::from_number(committed).unwrap_or(KVKEEP_ERR_INTERNAL),
            };
        }
        if stopped.is_some() { Ok(()) } else { result }
    }

    /// Gives it its answer, and reports that once. Called by the thread that settled it, or that caught a bug; not under the transfer's
    /// lock.
    pub(super) fn conclude(&self, owner: &dyn TransferOwner, statuses: Vec<Status>, stopped: Option<StopReason>) {
        let mut progress = self.progress.lock();
        let finished = progress.finish(statuses, |progress, steps| self.answer(progress, steps, stopped));
        let Some((answer, notify)) = finished else { return };
        *self.point.lock() = StreamPoint::default();
        drop(progress);
        owner.transfer_done(self);
        owner.cache().completions().deliver(notify, answer.completion(self.id, self.session));
        self.changed.notify_all();
    }

    fn answer(&self, progress: &Progress, steps: &Steps, stopped: Option<StopReason>) -> JobResult {
        let now = Instant::now();
        let statuses = progress.statuses();
        let done = statuses.iter().filter(|&&status| status == KVKEEP_OK).count() as u32;
        let failed = statuses.len() as u32 - done;
        let all = |of: Status| statuses.iter().all(|&status| status == of);
        let (status, message) = match stopped {
            Some((status, message)) => (status, message),
            None if all(KVKEEP_ERR_CANCELLED) => {
                (KVKEEP_ERR_CANCELLED, "its session was aborted, or its space cleared or forgotten".to_owned())
            }
            None if all(KVKEEP_ERR_DEVICE) => (KVKEEP_ERR_DEVICE, self.shortfall(statuses, steps, failed)),
            None if progress.is_short() => (KVKEEP_PARTIAL, self.shortfall(statuses, steps, failed)),
            None => (KVKEEP_OK, String::new()),
        };
        let kind = if self.way == Way::Gather { JobKind::KVKEEP_JOB_STORE } else { JobKind::KVKEEP_JOB_LOAD };
        JobResult {
            status: status as i32,
            failed_keys: failed,
            total_us: micros(now, self.submitted),
            message: chars(&message),
            kind: kind as u32,
            asked_keys: self.targets.keys.len() as u32,
            copied_keys: done,
            copied_bytes: steps.copied,
            copy_us: micros(now, steps.began.unwrap_or(now)),
            ..JobResult::default()
        }
    }

    /// A sentence on why less was done than asked for.
    fn shortfall(&self, statuses: &[Status], steps: &Steps, failed: u32) -> String {
        if let Some(failure) = &steps.failure {
            return failure.message.clone();
        }
        let count = statuses.len();
        if let Some((status, why)) = &steps.shortage {
            return format!("{} for {failed} of {count} objects: {why}", brief(*status));
        }
        match statuses.iter().find(|&&status| status != KVKEEP_OK) {
            Some(KVKEEP_ERR_NOT_FOUND) => format!("{failed} of {count} objects were not found in any tier"),
            Some(status) => format!("{} for {failed} of {count} objects", brief(*status)),
            None => "some objects have fewer blocks than were asked for".to_owned(),
        }
    }
}
