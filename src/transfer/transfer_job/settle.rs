//! The end of a transfer: what was copied gets what it was copied for, and its caller is told once.

use std::time::Instant;

use super::{Progress, Transfer};
use crate::abi::{JobKind, JobResult};
use crate::cache::Cache;
use crate::control::completion::message_bytes;
use crate::error::{
    KVKEEP_ERR_CANCELLED, KVKEEP_ERR_DEVICE, KVKEEP_ERR_INTERNAL, KVKEEP_OK, KVKEEP_PARTIAL, KVKEEP_PENDING, Result,
    Status,
};
use crate::key::Key;
use crate::transfer::Transfers;
use crate::transfer::copy::Way;
use crate::transfer::device::Point;

impl Transfer {
    /// Ends it, if nothing is left to do.
    pub(in crate::transfer::transfer_job) fn end_if_over(&self) {
        let Some(table) = self.table.upgrade() else { return };
        let (mut statuses, stopped) = {
            let mut progress = self.progress.lock();
            let waits = progress.stopped.is_none() && (progress.expected > 0 || !progress.arrived.is_empty());
            if progress.busy > 0 || !progress.batches.is_empty() || waits || progress.ending {
                return;
            }
            progress.ending = true;
            (progress.statuses.clone(), progress.stopped.clone())
        };
        let ended = self.settle(table.cache(), &mut statuses, stopped.as_ref().map(|(status, _)| *status));
        let stopped = stopped.or(ended.err().map(|error| (error.status, error.message)));
        self.conclude(&table, statuses, stopped);
    }

    /// Gives the copied keys what they were copied for, and everything held back. Says what spoiled it as a whole.
    fn settle(&self, cache: &dyn Cache, statuses: &mut [Status], stopped: Option<Status>) -> Result<()> {
        let copied: Vec<usize> = (0..statuses.len()).filter(|&key| statuses[key] == KVKEEP_PENDING).collect();
        let keys: Vec<Key> = copied.iter().map(|&key| self.keys[key]).collect();
        let mut said = vec![stopped.unwrap_or(KVKEEP_OK) as i32; keys.len()];
        let mut result = Ok(());
        if self.way == Way::Gather && stopped.is_none() && !keys.is_empty() {
            result = cache.finish_write(self.copy, &keys, Some(&mut said)).map(drop);
        }
        if self.return_shares {
            // Of those that the session does not hold, or that went with it, there is nothing to return.
            let _ = cache.finish_read(self.session, &self.keys, 0, None);
        }
        let ended = if stopped.is_none() { cache.end_session(self.copy) } else { cache.abort_session(self.copy) };
        // What was read from memory that had been taken away meanwhile may be anything.
        let result = result.and(ended);
        for (&key, said) in copied.iter().zip(said) {
            statuses[key] = match &result {
                Err(error) if stopped.is_none() => error.status,
                _ => Status::from_number(said).unwrap_or(KVKEEP_ERR_INTERNAL),
            };
        }
        if stopped.is_some() { Ok(()) } else { result }
    }

    pub(in crate::transfer::transfer_job) fn conclude(
        &self,
        table: &Transfers,
        statuses: Vec<Status>,
        stopped: Option<(Status, String)>,
    ) {
        let now = Instant::now();
        let mut progress = self.progress.lock();
        progress.statuses = statuses;
        let done = progress.statuses.iter().filter(|&&status| status == KVKEEP_OK).count() as u32;
        let failed = progress.statuses.len() as u32 - done;
        // What is not committed in the end falls short as well.
        progress.short |= failed > 0;
        let (status, message) = match stopped {
            Some((status, message)) => (status, message),
            None if progress.statuses.iter().all(|&status| status == KVKEEP_ERR_CANCELLED) => {
                (KVKEEP_ERR_CANCELLED, "its session was aborted, or its space cleared or forgotten".to_owned())
            }
            None if progress.statuses.iter().all(|&status| status == KVKEEP_ERR_DEVICE) => {
                (KVKEEP_ERR_DEVICE, self.trouble(&progress, failed))
            }
            None if progress.short => (KVKEEP_PARTIAL, self.trouble(&progress, failed)),
            None => (KVKEEP_OK, String::new()),
        };
        let began = progress.began.unwrap_or(now);
        let micros = |later: Instant, earlier: Instant| later.saturating_duration_since(earlier).as_micros() as u64;
        let kind = if self.way == Way::Gather { JobKind::KVKEEP_JOB_STORE } else { JobKind::KVKEEP_JOB_LOAD };
        let answer = JobResult {
            status: status as i32,
            failed_keys: failed,
            total_us: micros(now, self.submitted),
            message: message_bytes(&message),
            kind: kind as u32,
            asked_keys: self.keys.len() as u32,
            copied_keys: done,
            copied_bytes: progress.moved,
            copy_us: micros(now, began),
            ..JobResult::default()
        };
        let completion = answer.completion(self.id, self.session);
        progress.answer = Some(answer);
        let notify = progress.notify.take();
        progress.places.clear();
        progress.marks.fill(None);
        *self.point.lock() = Point::default();
        drop(progress);
        table.is_done(self);
        if let Some(notify) = notify {
            table.cache().completions().deliver(notify, completion);
        }
        self.changed.notify_all();
    }

    fn trouble(&self, progress: &Progress, failed: u32) -> String {
        if let Some(failure) = &progress.failure {
            return failure.message.clone();
        }
        if let Some(shortage) = &progress.shortage {
            let (status, why) = shortage;
            let status = format!("{status:?}");
            let status = status.trim_start_matches("KVKEEP_ERR_");
            return format!("{status} for {failed} of {} objects: {why}", self.keys.len());
        }
        let why = progress.statuses.iter().find(|&&status| status != KVKEEP_OK);
        match why {
            Some(status) => format!("{failed} of {} objects fell short, the first by {status:?}", self.keys.len()),
            None => "some objects have fewer blocks than were asked for".to_owned(),
        }
    }
}
