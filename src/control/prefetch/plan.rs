//! The hit rule: from the keys that are there, the chunks of the answer. Pure functions.

use crate::config::{GroupRule, Mode};
use crate::key::Key;

/// The place of a key that no tier was found to have.
pub const NOWHERE: u8 = u8::MAX;

/// The answer to a job, as far as its keys are there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HitPlan {
    /// Length of the answer in chunks.
    pub chunks: u32,
    /// Which keys belong to the answer.
    pub wanted: Vec<bool>,
    /// Whether more keys could make it longer.
    pub complete: bool,
}

impl HitPlan {
    /// The answer that no key can be had.
    pub fn nothing(keys: usize) -> HitPlan {
        HitPlan { chunks: 0, wanted: vec![false; keys], complete: false }
    }
}

/// The part of a job's request that decides its answer.
pub struct Question<'a> {
    /// The keys asked for, chunk-major.
    pub keys: &'a [Key],
    /// Objects of one chunk.
    pub per_chunk: usize,
    /// The hit rule of all groups but the exceptions.
    pub mode: Mode,
    /// Groups with a rule of their own.
    pub rules: &'a [GroupRule],
}

impl Question<'_> {
    fn mode_of(&self, key: &Key) -> Mode {
        self.rules.iter().find(|rule| rule.group == key.group).map_or(self.mode, |rule| rule.mode)
    }

    /// The answer when the keys marked in `there` can be had.
    pub fn answer(&self, there: &[bool]) -> HitPlan {
        match self.mode {
            Mode::Any => self.any(there),
            Mode::Prefix if self.rules.is_empty() => self.prefix(there),
            _ => self.longest(there),
        }
    }

    /// Whether a job needs a key: the answer `plan` holds it, or misses it. What lies before a window is neither.
    pub fn needs(&self, plan: &HitPlan, index: usize) -> bool {
        self.mode == Mode::Any || plan.wanted[index] || index / self.per_chunk >= plan.chunks as usize
    }

    /// Whether a job needs every key, whatever the answer is: no group has a window. The answer then holds as many chunks as it is
    /// long.
    pub fn needs_all(&self) -> bool {
        matches!(self.mode, Mode::Any | Mode::Prefix) && self.rules.is_empty()
    }

    fn any(&self, there: &[bool]) -> HitPlan {
        let mut wanted = vec![false; there.len()];
        let mut chunks = 0;
        for (wanted, there) in wanted.chunks_mut(self.per_chunk).zip(there.chunks(self.per_chunk)) {
            if there.iter().all(|&there| there) {
                wanted.fill(true);
                chunks += 1;
            }
        }
        HitPlan { chunks, complete: chunks as usize * self.per_chunk == there.len(), wanted }
    }

    fn prefix(&self, there: &[bool]) -> HitPlan {
        let run = there.iter().position(|&there| !there).unwrap_or(there.len());
        let chunks = run / self.per_chunk;
        let mut wanted = vec![false; there.len()];
        wanted[..chunks * self.per_chunk].fill(true);
        HitPlan { chunks: chunks as u32, complete: run == there.len(), wanted }
    }

    /// Every length at which every group can continue when the keys marked in `there` can be had, the longest first.
    pub fn lengths(&self, there: &[bool]) -> Vec<u32> {
        let runs = self.runs(there);
        (1..=there.len() / self.per_chunk)
            .rev()
            .filter(|&length| runs.fit(length))
            .map(|length| length as u32)
            .collect()
    }

    fn longest(&self, there: &[bool]) -> HitPlan {
        let chunks = there.len() / self.per_chunk;
        let runs = self.runs(there);
        let length = (1..=chunks).rev().find(|&length| runs.fit(length)).unwrap_or(0);
        let wanted = (0..there.len())
            .map(|i| {
                let chunk = i / self.per_chunk;
                chunk < length && length - chunk <= runs.kinds[runs.kind_of[i]].0
            })
            .collect();
        HitPlan { chunks: length as u32, complete: length == chunks, wanted }
    }

    fn runs(&self, there: &[bool]) -> Runs {
        let chunks = there.len() / self.per_chunk;
        let windows = |mode| if let Mode::Window(chunks) = mode { chunks as usize } else { usize::MAX };
        let mut kinds: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut kind_of = Vec::with_capacity(there.len());
        for key in &self.keys[..there.len()] {
            let window = windows(self.mode_of(key));
            let kind = kinds.iter().position(|(known, _)| *known == window).unwrap_or_else(|| {
                kinds.push((window, vec![0; chunks + 1]));
                kinds.len() - 1
            });
            kind_of.push(kind);
        }
        for (kind, (_, runs)) in kinds.iter_mut().enumerate() {
            for chunk in 0..chunks {
                let places = chunk * self.per_chunk..(chunk + 1) * self.per_chunk;
                let whole = places.into_iter().all(|i| kind_of[i] != kind || there[i]);
                runs[chunk + 1] = if whole { runs[chunk] + 1 } else { 0 };
            }
        }
        Runs { kinds, kind_of }
    }
}

/// The chunks of a job as far as they are there, by window lengths: a prefix group has all chunks before its length, a window group
/// the last ones.
struct Runs {
    /// Window lengths, and for each length of the job how many chunks in a row, up to it, have every object of that window length.
    kinds: Vec<(usize, Vec<usize>)>,
    /// The kind of each key.
    kind_of: Vec<usize>,
}

impl Runs {
    /// Whether every group can continue at this length.
    fn fit(&self, length: usize) -> bool {
        self.kinds.iter().all(|(window, runs)| runs[length] >= (*window).min(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(chunks: usize, groups: u32) -> Vec<Key> {
        (0..chunks)
            .flat_map(|chunk| (0..groups).map(move |group| Key { hash: [chunk as u8; 32], rank: 0, group }))
            .collect()
    }

    fn bits(text: &str) -> Vec<bool> {
        text.bytes().filter(|byte| *byte != b' ').map(|byte| byte == b'1').collect()
    }

    fn ask(mode: Mode, rules: &[GroupRule], per_chunk: usize, there: &str) -> (u32, Vec<bool>) {
        let there = bits(there);
        let keys = keys(there.len() / per_chunk, per_chunk as u32);
        let plan = Question { keys: &keys, per_chunk, mode, rules }.answer(&there);
        assert_eq!(plan.complete, plan.chunks as usize * per_chunk == there.len());
        (plan.chunks, plan.wanted)
    }

    #[test]
    fn what_lies_before_a_window_is_not_needed() {
        let keys = keys(6, 1);
        let needed = |mode, there: &str| {
            let question = Question { keys: &keys, per_chunk: 1, mode, rules: &[] };
            let plan = question.answer(&bits(there));
            (0..6).map(|i| question.needs(&plan, i)).collect::<Vec<_>>()
        };
        assert_eq!(needed(Mode::Window(2), "001100"), bits("001111"));
        assert_eq!(needed(Mode::Window(2), "000011"), bits("000011"));
        assert_eq!(needed(Mode::Window(2), "000000"), bits("111111"));
        assert_eq!(needed(Mode::Prefix, "110100"), bits("111111"));
        assert_eq!(needed(Mode::Any, "010000"), bits("111111"));
    }

    #[test]
    fn a_gap_ends_a_prefix() {
        assert_eq!(ask(Mode::Prefix, &[], 1, "1101"), (2, bits("1100")));
        assert_eq!(ask(Mode::Prefix, &[], 1, "0111"), (0, bits("0000")));
        assert_eq!(ask(Mode::Prefix, &[], 1, "1111"), (4, bits("1111")));
    }

    #[test]
    fn a_chunk_is_a_hit_when_all_its_objects_are() {
        assert_eq!(ask(Mode::Prefix, &[], 2, "11 10 11"), (1, bits("11 00 00")));
        assert_eq!(ask(Mode::Any, &[], 2, "11 10 11"), (2, bits("11 00 11")));
    }

    #[test]
    fn a_window_needs_only_its_last_chunks() {
        assert_eq!(ask(Mode::Window(2), &[], 1, "001100"), (4, bits("001100")));
        assert_eq!(ask(Mode::Window(2), &[], 1, "001010"), (0, bits("000000")));
        assert_eq!(ask(Mode::Window(2), &[], 1, "100000"), (1, bits("100000")));
        assert_eq!(ask(Mode::Window(1), &[], 1, "000001"), (6, bits("000001")));
    }

    #[test]
    fn a_hybrid_continues_where_every_group_can() {
        let rules = [GroupRule { group: 1, mode: Mode::Window(1) }];
        assert_eq!(ask(Mode::Prefix, &rules, 2, "10 11 10 10"), (2, bits("10 11 00 00")));
        assert_eq!(ask(Mode::Prefix, &rules, 2, "10 10 10 11"), (4, bits("10 10 10 11")));
        assert_eq!(ask(Mode::Prefix, &rules, 2, "10 00 10 11"), (0, bits("00 00 00 00")));
    }

    #[test]
    fn every_length_at_which_all_groups_can_continue_is_told() {
        let lengths = |mode, rules: &[GroupRule], per_chunk: usize, there: &str| {
            let there = bits(there);
            let keys = keys(there.len() / per_chunk, per_chunk as u32);
            Question { keys: &keys, per_chunk, mode, rules }.lengths(&there)
        };
        let rules = [GroupRule { group: 1, mode: Mode::Window(1) }];
        assert_eq!(lengths(Mode::Prefix, &[], 1, "1101"), [2, 1]);
        assert!(lengths(Mode::Prefix, &[], 1, "0111").is_empty());
        assert_eq!(lengths(Mode::Window(2), &[], 1, "101101"), [4, 1]);
        assert_eq!(lengths(Mode::Prefix, &rules, 2, "10 11 10 11 01"), [4, 2]);
    }

    #[test]
    fn the_longest_agrees_with_the_prefix_when_all_groups_are_alike() {
        let rules = [GroupRule { group: 9, mode: Mode::Window(1) }];
        for pattern in 0..256u32 {
            let there = format!("{pattern:08b}");
            assert_eq!(ask(Mode::Prefix, &rules, 2, &there), ask(Mode::Prefix, &[], 2, &there));
        }
    }
}
