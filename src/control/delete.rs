//! Deleting objects from every backend, in the background: a deletion that fails is tried again.

use std::sync::Arc;
use std::time::Instant;

use super::backend_tasks::{PendingDelete, Task};
use super::writeback::{RETRIES, Writeback};
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, Result};
use crate::key::ObjectKey;
use crate::l2::{Found, Reply};
use crate::log::LogLevel;

impl Writeback {
    /// Deletes objects from every backend. Returns for each object whether the index of some backend has it.
    pub fn delete(self: &Arc<Self>, keys: &[ObjectKey]) -> Vec<bool> {
        let mut known = vec![false; keys.len()];
        let backends = self.backends.list();
        if backends.is_empty() {
            return known;
        }
        let shared = Arc::new(keys.to_vec());
        for slot in backends.iter() {
            for (known, found) in known.iter_mut().zip(slot.peek(keys)) {
                *known |= matches!(found, Found::Present(_));
            }
            {
                let mut state = self.state.lock();
                state.open += 1;
                state.deletions += 1;
            }
            let (keys, until) = (shared.clone(), self.deadlines.deadline(slot));
            self.send_deletion(PendingDelete { keys, slot: slot.clone(), attempt: 0, until });
        }
        known
    }

    /// Sends a deletion to its backend. Called with no lock held.
    pub(super) fn send_deletion(self: &Arc<Self>, deletion: PendingDelete) {
        let (me, backend, keys) = (self.clone(), deletion.slot.backend.clone(), deletion.keys.to_vec());
        let reply = Reply::new(move |result: Result<u64>| match result {
            Ok(_) => me.deletion_ended(),
            Err(error) => me.deletion_failed(deletion, &error),
        });
        backend.delete(keys, reply);
    }

    /// A deletion failed or was refused: try again later, or give up.
    fn deletion_failed(&self, mut deletion: PendingDelete, error: &Error) {
        let full = error.status == KVKEEP_ERR_LIMIT && Instant::now() < deletion.until;
        let again =
            (full || deletion.attempt < RETRIES) && error.status != KVKEEP_ERR_CLOSED && !self.state.lock().closing;
        let (kind, level) =
            if again { ("deletion again", LogLevel::Warn) } else { ("deletion given up", LogLevel::Error) };
        self.log.often(kind, level, || {
            let what = if again { "will be tried again" } else { "is given up" };
            let (count, number) = (deletion.keys.len(), deletion.slot.number);
            format!("deleting {count} objects from backend {number} {what}: {error}")
        });
        if again {
            let attempt = deletion.attempt;
            deletion.attempt += 1;
            self.retry_later(attempt, Task::Delete(deletion));
        } else {
            self.meters.deletions_dropped.add(deletion.keys.len() as u64);
            self.deletion_ended();
        }
    }

    /// A deletion ended: done, or given up.
    pub(super) fn deletion_ended(&self) {
        self.state.lock().deletions -= 1;
        self.work_ended(0);
    }

    /// Deletions that backends have not answered.
    pub fn deletions_pending(&self) -> u64 {
        self.state.lock().deletions as u64
    }
}
