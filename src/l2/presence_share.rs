//! How many of the objects that were stored lately a server had already: decides whether a store asks first.

use std::sync::atomic::{AtomicU32, Ordering};

use super::object_header::HEADER_BYTES;

/// All of them.
const WHOLE: u32 = 1 << 16;
/// What one answer weighs is the whole divided by this.
const MEMORY: u32 = 32;
/// A store asks first from this share on: more bodies would be sent in vain than questions are saved.
const SMALL: u32 = WHOLE / 8;
/// Most bytes of an object, with its header, that is worth a try without a question: they may be sent in vain.
const UNASKED_MAX: u64 = 4 << 20;

/// The share of the last answers that said "it is there". Nothing was there at the beginning.
#[derive(Default)]
pub struct PresenceShare(AtomicU32);

impl PresenceShare {
    /// Takes an answer in. One that is lost to another thread's does no harm.
    pub fn note(&self, is_there: bool) {
        let share = self.0.load(Ordering::Relaxed);
        let gain = if is_there { WHOLE / MEMORY } else { 0 };
        self.0.store(share - share / MEMORY + gain, Ordering::Relaxed);
    }

    /// Whether to send an object of so much payload without asking first. The server refuses it if one is there.
    pub fn may_send_unasked(&self, payload: u64) -> bool {
        HEADER_BYTES as u64 + payload <= UNASKED_MAX && self.0.load(Ordering::Relaxed) < SMALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers_until(share: &PresenceShare, is_there: bool, is_small: bool) -> u32 {
        let mut count = 0;
        while share.may_send_unasked(0) != is_small {
            share.note(is_there);
            count += 1;
        }
        count
    }

    #[test]
    fn some_answers_in_a_row_turn_it_and_none_overflow_it() {
        let share = PresenceShare::default();
        assert_eq!(answers_until(&share, true, false), 5);
        assert_eq!(answers_until(&share, false, true), 6);
        (0..10_000).for_each(|_| share.note(true));
        assert!((50..100).contains(&answers_until(&share, false, true)));
        // One in ten is few.
        (0..10_000).for_each(|number| share.note(number % 10 == 0));
        let most = UNASKED_MAX - HEADER_BYTES as u64;
        assert!(share.may_send_unasked(most) && !share.may_send_unasked(most + 1));
    }
}
