//! The counters of lookups, as far as jobs add to them.
//!
//! A key counts once for each request that asks for it. The job of a load asks for keys that its request may have asked for
//! before, by a prefetch that is still bringing them: these do not count again.

use super::plan::{HitPlan, Question};
use crate::abi::KVKEEP_TIERS_MAX;
use crate::key::Key;
use crate::meters::Meters;

fn counts(asked_before: &[bool], index: usize) -> bool {
    asked_before.get(index).is_none_or(|asked| !asked)
}

/// The keys that a lookup asked for.
#[derive(Default)]
pub struct LookupTally {
    /// Keys found, by the place of the tier.
    pub hits: [u64; KVKEEP_TIERS_MAX],
    /// Keys missed, in the order of the job.
    pub missed: Vec<Key>,
}

/// Counts in which tier the keys were found that a job needs, as far as its lookup got.
pub fn count_lookup(
    meters: &Meters,
    question: &Question,
    plan: &HitPlan,
    found: &[u8],
    asked_before: &[bool],
) -> LookupTally {
    let mut tally = LookupTally::default();
    for (index, &found) in found.iter().enumerate() {
        if question.needs(plan, index) && counts(asked_before, index) {
            match tally.hits.get_mut(usize::from(found)) {
                Some(hits) => *hits += 1,
                None => {
                    if tally.missed.is_empty() {
                        tally.missed.reserve_exact(question.keys.len() - index);
                    }
                    tally.missed.push(question.keys[index]);
                }
            }
        }
    }
    let [l1_hits, l2_hits @ ..] = tally.hits;
    meters.l1_hits.add(l1_hits);
    meters.l2_hits.add(l2_hits.iter().sum());
    meters.l2_misses.add(tally.missed.len() as u64);
    tally
}

/// Counts the chunks that a job needed, those of them that its answer has, and their tokens.
pub fn count_chunks(meters: &Meters, question: &Question, answer: &HitPlan, asked_before: &[bool], chunk_tokens: u32) {
    let chunks = question.keys.len().div_ceil(question.per_chunk);
    let (mut needed, mut hits) = (0, 0);
    if asked_before.is_empty() && question.needs_all() {
        (needed, hits) = (chunks as u64, u64::from(answer.chunks));
    } else {
        for chunk in 0..chunks {
            let keys = chunk * question.per_chunk..(chunk + 1) * question.per_chunk;
            let counted = || keys.clone().filter(|&index| counts(asked_before, index));
            needed += u64::from(counted().any(|index| question.needs(answer, index)));
            hits += u64::from(counted().any(|index| answer.wanted[index]));
        }
    }
    meters.prefetch_asked_chunks.add(needed);
    meters.prefetch_hit_chunks.add(hits);
    // Of the jobs for several ranks or groups, one counts.
    if question.keys.first().is_some_and(Key::stands_for_chunk) {
        meters.saved_tokens.add(hits * u64::from(chunk_tokens));
    }
}

/// The bytes of the keys in an answer that the request had not asked for before.
pub fn given_bytes(answer: &HitPlan, sizes: &[u64], asked_before: &[bool]) -> u64 {
    let given = sizes.iter().zip(&answer.wanted).enumerate();
    given.filter(|(i, (_, wanted))| **wanted && counts(asked_before, *i)).map(|(_, (size, _))| size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GroupRule, Mode};

    /// Without windows the numbers follow from the answer's length; a list in which no key was asked for before has each chunk
    /// looked at, and must come to the same.
    #[test]
    fn chunks_count_alike_by_the_length_of_the_answer_and_one_by_one() {
        let keys = [Key { hash: [0; 32], rank: 0, group: 0 }; 6];
        let window = [GroupRule { group: 0, mode: Mode::Window(1) }];
        let cases: [(Mode, &[GroupRule]); 4] =
            [(Mode::Prefix, &[]), (Mode::Any, &[]), (Mode::Window(2), &[]), (Mode::Prefix, &window)];
        for (mode, rules) in cases {
            for per_chunk in [1, 2, 3] {
                for bits in 0..1 << keys.len() {
                    let there: Vec<bool> = (0..keys.len()).map(|i| bits >> i & 1 == 1).collect();
                    let question = Question { keys: &keys, per_chunk, mode, rules };
                    let answer = question.answer(&there);
                    let count = |asked_before: &[bool]| {
                        let meters = Meters::default();
                        count_chunks(&meters, &question, &answer, asked_before, 16);
                        assert_eq!(meters.saved_tokens.get(), 16 * meters.prefetch_hit_chunks.get());
                        (meters.prefetch_asked_chunks.get(), meters.prefetch_hit_chunks.get())
                    };
                    assert_eq!(count(&[]), count(&[false; 6]), "{mode:?} {rules:?} {per_chunk} {there:?}");
                }
            }
        }
    }
}
