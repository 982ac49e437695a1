//! Forgetting a space in every backend: its objects are deleted in the background. Until that is done the backend is not looked
//! up for the space, and new objects of the space wait to be written, so that nothing old is found and nothing new is deleted.

use std::sync::Arc;
use std::time::Instant;

use super::backend_tasks::{Cleaning, Task};
use super::backends::BackendSlot;
use super::forgotten::Which;
use super::writeback::{RETRIES, Writeback};
use crate::error::{Error, KVKEEP_ERR_CLOSED};
use crate::key::ObjectKey;
use crate::l2::Reply;
use crate::log::LogLevel;

/// Objects deleted by one request to a backend.
const BATCH: usize = 4096;

impl Writeback {
    /// Has backends delete the objects of a space, or of all. The caller has called
    /// [`begin`](super::forgotten::ForgottenSpaces::begin) of each, and has removed the objects from L1.
    pub fn forget(self: &Arc<Self>, which: Which, backends: &[Arc<BackendSlot>]) {
        let ready = {
            let mut state = self.state.lock();
            state.open += backends.len();
            state.deletions += backends.len();
            state.order.cleanings.extend(backends.iter().map(|slot| Cleaning {
                slot: slot.clone(),
                which,
                keys: None,
                attempt: 0,
            }));
            state.order.ready()
        };
        self.begin_cleanings(ready);
    }

    pub(super) fn begin_cleanings(&self, cleanings: Vec<Cleaning>) {
        for cleaning in cleanings {
            self.run_at(Instant::now(), Task::Clean(cleaning));
        }
    }

    /// Does the next step of a cleaning. Called by the store thread.
    pub(super) fn clean(self: &Arc<Self>, mut cleaning: Cleaning) {
        let backend = cleaning.slot.backend.clone();
        let which = cleaning.which;
        let keys = cleaning
            .keys
            .get_or_insert_with(|| backend.list(which).into_iter().map(|(key, _)| key).collect::<Vec<ObjectKey>>());
        let batch = keys.split_off(keys.len().saturating_sub(BATCH));
        let me = self.clone();
        if batch.is_empty() {
            return backend.sweep(
                which,
                Reply::new(move |result| match result {
                    Ok(_) => me.cleaned(&cleaning, None),
                    Err(error) => me.not_cleaned(cleaning, Vec::new(), error),
                }),
            );
        }
        let asked = batch.clone();
        backend.delete(
            asked,
            Reply::new(move |result| match result {
                Ok(_) => me.run_at(Instant::now(), Task::Clean(Cleaning { attempt: 0, ..cleaning })),
                Err(error) => me.not_cleaned(cleaning, batch, error),
            }),
        );
    }

    fn not_cleaned(self: &Arc<Self>, mut cleaning: Cleaning, batch: Vec<ObjectKey>, error: Error) {
        if cleaning.attempt >= RETRIES || error.status == KVKEEP_ERR_CLOSED {
            return self.cleaned(&cleaning, Some(error));
        }
        self.meters.store_retries.add(1);
        cleaning.keys.get_or_insert_default().extend(batch);
        cleaning.attempt += 1;
        self.retry_later(cleaning.attempt - 1, Task::Clean(cleaning));
    }

    /// A backend has forgotten a space, or cannot.
    fn cleaned(self: &Arc<Self>, cleaning: &Cleaning, failure: Option<Error>) {
        let slot = &cleaning.slot;
        let closed = failure.as_ref().is_some_and(|error| error.status == KVKEEP_ERR_CLOSED);
        if let Some(error) = failure.as_ref().filter(|_| !closed) {
            let number = slot.number;
            self.log.write(LogLevel::Error, || {
                format!(
                    "backend {number} cannot forget a space: {error}; it is not asked about that space any more: mend it, then \
                     forget the space again, or use another generation of the space"
                )
            });
        }
        let waiting = {
            let mut state = self.state.lock();
            slot.forgotten.end(cleaning.which, failure.is_some());
            let of_it = |task: &mut Task| match task {
                Task::Write { pending, slot: other, .. } => {
                    other.number == slot.number && cleaning.is_of(&pending.key.space)
                }
                _ => false,
            };
            state.order.writes.extract_if(.., of_it).collect::<Vec<Task>>()
        };
        for task in waiting {
            self.run_at(Instant::now(), task);
        }
        self.deletion_ended();
    }
}
