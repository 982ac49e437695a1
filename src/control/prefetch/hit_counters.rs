//! What jobs add to the counters of lookups.
//!
//! A key counts once for each request that asks for it. The job of a load asks for keys that its request may have asked for
//! before, by a prefetch that is still bringing them: these do not count again.

use hashbrown::HashSet;

use super::Prefetcher;
use super::job::{Job, NOWHERE, Progress};
use super::plan::Plan;
use crate::key::Key;

impl Job {
    fn counts(&self, index: usize) -> bool {
        self.asked_before.get(index).is_none_or(|asked| !asked)
    }
}

impl Prefetcher {
    /// Which of `keys` the jobs of a session that are not released ask for.
    pub(in crate::control) fn asked_before(&self, session: u64, keys: &[Key]) -> Vec<bool> {
        let jobs = self.jobs_of(session);
        if jobs.is_empty() {
            return Vec::new();
        }
        let asked: HashSet<&Key> = jobs.iter().flat_map(|job| &job.keys).collect();
        keys.iter().map(|key| asked.contains(key)).collect()
    }

    /// Counts in which tier the keys were found that a job needs, as far as its lookup got.
    pub(in crate::control) fn count_lookup(&self, job: &Job, progress: &Progress, plan: &Plan) {
        let question = job.question();
        let (mut l1_hits, mut l2_hits, mut misses) = (0, 0, 0);
        for (index, &found) in progress.found.iter().enumerate() {
            if question.needs(plan, index) && job.counts(index) {
                match found {
                    0 => l1_hits += 1,
                    NOWHERE => misses += 1,
                    _ => l2_hits += 1,
                }
            }
        }
        self.meters.l1_hits.add(l1_hits);
        self.meters.l2_hits.add(l2_hits);
        self.meters.l2_misses.add(misses);
    }

    /// Counts the chunks that a job needed and those of them that its answer has.
    pub(in crate::control) fn count_chunks(&self, job: &Job, answer: &Plan) {
        let question = job.question();
        let (mut needed, mut hits) = (0, 0);
        for first in (0..job.keys.len()).step_by(question.per_chunk) {
            let of_chunk = || (first..first + question.per_chunk).filter(|&index| job.counts(index));
            needed += u64::from(of_chunk().any(|index| question.needs(answer, index)));
            hits += u64::from(of_chunk().any(|index| answer.wanted[index]));
        }
        self.meters.prefetch_asked_chunks.add(needed);
        self.meters.prefetch_hit_chunks.add(hits);
    }
}
