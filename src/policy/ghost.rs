//! The memory of evicted objects: of each a fingerprint of its tag and how often it was used.
//!
//! Eight bytes a memory, in buckets of eight. A tag has two buckets and is remembered in the emptier one, so that none is
//! forgotten before its time (balanced allocations: Azar, Broder, Karlin, Upfal, SIAM J. Comput. 1999). With one bucket, chance
//! forgets one in ten; neighbours of a prompt then come back with different counts, and the lower one leaves a hole in a prefix.
//! A fingerprint may be taken for another's once in some thousand times, which costs an object a better or worse place and
//! nothing else. Times are the policy's own count of events, and wrap.

use crate::chunked::Chunked;

const WAYS: usize = 8;
/// Buckets made for each memory while there are too few: so many that a bucket is always free, so few that no caller waits for them.
const GROWTH: u32 = 4;
/// Spreads a tag for its second bucket (2^32 divided by the golden ratio).
const SECOND: u32 = 0x9e37_79b9;

#[derive(Clone, Copy, Default)]
struct Remembered {
    /// 24 bits of fingerprint and 8 of uses; 0 for none.
    fingerprint: u32,
    since: u32,
}

/// The memory of one policy. It reaches back `span` events, each of which evicts one object at most, and takes less than
/// sixteen bytes for each event of the longest span it ever had, in steps of 64 KiB.
///
/// It grows by linear hashing (Litwin, VLDB 1980), a few buckets at a time: the next bucket takes its part of that which has half its number.
pub(super) struct Ghost {
    buckets: Chunked<[Remembered; WAYS]>,
    len: u32,
    wanted: u32,
    span: u32,
}

/// A tag in the form in which a policy keeps it: 32 bits, well mixed.
pub(super) fn short(tag: u64) -> u32 {
    (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

fn fingerprint(tag: u32, uses: u8) -> u32 {
    (tag | 0x100) & !0xff | u32::from(uses)
}

impl Ghost {
    pub(super) fn new() -> Ghost {
        Ghost { buckets: Chunked::new(), len: 0, wanted: 1, span: 0 }
    }

    /// Remembers for as many events as this from now on.
    pub(super) fn set_span(&mut self, span: usize) {
        self.span = u32::try_from(span).unwrap_or(u32::MAX / 2);
        // More than can be remembered, since chance fills buckets unevenly.
        self.wanted = self.wanted.max((self.span / 4 * 7).div_ceil(WAYS as u32));
    }

    fn grow(&mut self) {
        for _ in 0..GROWTH.min(self.wanted.saturating_sub(self.len)) {
            self.buckets.reach(self.len, Default::default);
            if let Some(bits) = self.len.checked_ilog2() {
                // The bit that now decides was not kept, so both hold the memory and the false ones age.
                self.buckets[self.len] = self.buckets[self.len - (1 << bits)];
            }
            self.len += 1;
        }
    }

    /// The two buckets that may hold a tag.
    fn choices(&self, tag: u32) -> Option<[u32; 2]> {
        let half = 1 << self.len.checked_ilog2()?;
        let place = |hash: u32| {
            let at = hash & (2 * half - 1);
            if at < self.len { at } else { at - half }
        };
        Some([place(tag), place(tag.wrapping_mul(SECOND) >> 7)])
    }

    /// Remembers an object that was used `uses` times, the last time at `since`.
    pub(super) fn remember(&mut self, tag: u32, uses: u8, since: u32, now: u32) {
        self.grow();
        let Some(choices) = self.choices(tag) else { return };
        let age = |memory: &Remembered| match memory.fingerprint {
            0 => u32::MAX,
            _ => now.wrapping_sub(memory.since),
        };
        // A memory older than the span is forgotten already.
        let fullness = |bucket: &u32| {
            let full = self.buckets[*bucket].iter().filter(|memory| age(memory) <= self.span).count();
            let oldest = self.buckets[*bucket].iter().map(age).max();
            (full, std::cmp::Reverse(oldest))
        };
        if let Some(bucket) = choices.into_iter().min_by_key(fullness)
            && let Some(memory) = self.buckets[bucket].iter_mut().max_by_key(|memory| age(memory))
        {
            *memory = Remembered { fingerprint: fingerprint(tag, uses), since };
        }
    }

    /// Forgets an object that was remembered. Gives how often it was used and how long ago.
    pub(super) fn recall(&mut self, tag: u32, now: u32) -> Option<(u8, u32)> {
        let wanted = fingerprint(tag, 0);
        let mut youngest = None;
        for bucket in self.choices(tag)? {
            if let Some(memory) = self.buckets[bucket].iter_mut().find(|memory| memory.fingerprint & !0xff == wanted) {
                let Remembered { fingerprint, since } = std::mem::take(memory);
                let recalled = (now.wrapping_sub(since), fingerprint as u8);
                youngest = Some(youngest.map_or(recalled, |other| recalled.min(other)));
            }
        }
        youngest.filter(|(age, _)| *age <= self.span).map(|(age, uses)| (uses, age))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.buckets.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_remembered_and_the_others_are_not() {
        let mut ghost = Ghost::new();
        assert_eq!(ghost.recall(short(1), 0), None);
        ghost.remember(short(1), 1, 0, 0);
        ghost.set_span(1000);
        (0..3000).for_each(|tag| ghost.remember(short(tag), tag as u8, tag as u32, tag as u32));
        let recalled = |ghost: &mut Ghost, tag| ghost.recall(short(tag), 3000) == Some((tag as u8, 3000 - tag as u32));
        let lost: Vec<u64> = (2000..3000).filter(|&tag| !recalled(&mut ghost, tag)).collect();
        assert!(lost.is_empty(), "of the last thousand {lost:?} are forgotten");
        let old = (0..2000).filter(|&tag| ghost.recall(short(tag), 3000).is_some()).count();
        assert!(old <= 2, "{old} older ones");
        assert_eq!(ghost.recall(short(2500), 3000), None, "recalled once");
    }

    #[test]
    fn p9_it_takes_no_more_however_much_it_is_told() {
        let mut ghost = Ghost::new();
        for span in [1000, 50_000, 100] {
            ghost.set_span(span);
            (0..200_000).for_each(|tag| ghost.remember(short(tag), 1, tag as u32, tag as u32));
        }
        assert!(ghost.memory_bytes() < 16 * 50_000, "{} bytes", ghost.memory_bytes());
    }

    #[test]
    fn growing_loses_nothing() {
        let mut ghost = Ghost::new();
        ghost.set_span(1000);
        (0..100).for_each(|tag| ghost.remember(short(tag), 3, 0, 0));
        ghost.set_span(10_000);
        (1000..4000).for_each(|tag| ghost.remember(short(tag), 1, 1, 1));
        assert!(ghost.memory_bytes() >= 8 * 10_000, "it has not grown");
        let kept = (0..100).filter(|&tag| ghost.recall(short(tag), 1) == Some((3, 1))).count();
        assert_eq!(kept, 100);
    }
}
