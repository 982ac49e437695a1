//! The jobs that have something to load.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use hashbrown::HashMap;

use super::job::Job;

/// The order of queued jobs: highest priority first, then in order of arrival.
type Priority = (i32, Reverse<u64>);

/// The queued jobs.
#[derive(Default)]
pub(super) struct LoadQueue {
    order: BinaryHeap<(Priority, u64)>,
    jobs: HashMap<u64, Arc<Job>>,
}

impl LoadQueue {
    /// Queues a job.
    pub(super) fn push(&mut self, job: &Arc<Job>) {
        self.order.push(((job.request.priority, Reverse(job.id)), job.id));
        self.jobs.insert(job.id, job.clone());
    }

    /// The job whose turn it is. It stays queued.
    pub(super) fn first(&self) -> Option<Arc<Job>> {
        self.order.peek().and_then(|(_, id)| self.jobs.get(id).cloned())
    }

    /// Takes a job out.
    pub(super) fn remove(&mut self, job: &Job) {
        self.jobs.remove(&job.id);
        self.order.retain(|(_, id)| *id != job.id);
    }

    /// Whether no job is queued.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}
