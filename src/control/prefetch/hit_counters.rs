//! The counters of lookups, as far as jobs add to them.
//!
//! A key counts once for each request that asks for it. The job of a load asks for keys that its request may have asked for
//! before, by a prefetch that is still bringing them: these do not count again.

use super::plan::{HitPlan, NOWHERE, Question};
use crate::meters::Meters;

fn counts(asked_before: &[bool], index: usize) -> bool {
    asked_before.get(index).is_none_or(|asked| !asked)
}

/// Counts in which tier the keys were found that a job needs, as far as its lookup got.
pub fn count_lookup(meters: &Meters, question: &Question, plan: &HitPlan, found: &[u8], asked_before: &[bool]) {
    let (mut l1_hits, mut l2_hits, mut misses) = (0, 0, 0);
    for (index, &found) in found.iter().enumerate() {
        if question.needs(plan, index) && counts(asked_before, index) {
            match found {
                0 => l1_hits += 1,
                NOWHERE => misses += 1,
                _ => l2_hits += 1,
            }
        }
    }
    meters.l1_hits.add(l1_hits);
    meters.l2_hits.add(l2_hits);
    meters.l2_misses.add(misses);
}

/// Counts the chunks that a job needed and those of them that its answer has.
pub fn count_chunks(meters: &Meters, question: &Question, answer: &HitPlan, asked_before: &[bool]) {
    let (mut needed, mut hits) = (0, 0);
    for (chunk, wanted) in answer.wanted.chunks(question.per_chunk).enumerate() {
        let needs_all = question.needs_chunk(answer, chunk);
        let (asked, hit) = if asked_before.is_empty() {
            // One pass over bytes: this runs for every chunk of every request.
            let hit = wanted.contains(&true);
            (needs_all || hit, hit)
        } else {
            let first = chunk * question.per_chunk;
            let counted = || wanted.iter().enumerate().filter(|(at, _)| counts(asked_before, first + at));
            (counted().any(|(_, wanted)| needs_all || *wanted), counted().any(|(_, wanted)| *wanted))
        };
        needed += u64::from(asked);
        hits += u64::from(hit);
    }
    meters.prefetch_asked_chunks.add(needed);
    meters.prefetch_hit_chunks.add(hits);
}
