//! The memory of a thread: the keys it looked up last, their fingerprints and their slots.

use std::cell::Cell;

use zerocopy::IntoBytes as _;

use crate::ablation::{self, Optimization};
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::key::Key;

/// Most keys that a thread remembers between two calls.
const KEPT: usize = 1 << 16;

/// The batch that a thread looked up last. A caller that reads a batch mostly returns it next, and its slots are found here.
#[derive(Default)]
pub(super) struct LastBatch {
    pub keys: Vec<Key>,
    pub fingerprints: Vec<Fingerprint>,
    pub found: Vec<u32>,
    /// Whether `found` has the slots of `keys`, and was not changed by a caller since.
    pub fits: bool,
    /// For the slots that a session uses for the first time.
    pub fresh: Vec<u32>,
}

thread_local! {
    static LAST: Cell<Option<Box<LastBatch>>> = const { Cell::new(None) };
}

impl LastBatch {
    /// Makes the fingerprints of `keys`, unless they are there. True if they were.
    #[inline]
    pub fn fingerprint(&mut self, keys: &[Key], fingerprinter: &Fingerprinter) -> bool {
        let remembers = !ablation::is_off(Optimization::LastBatch);
        let again = remembers && self.keys.as_bytes() == keys.as_bytes();
        if !again {
            self.keys.clear();
            if remembers {
                self.keys.extend_from_slice(keys);
            }
            self.fingerprints.clear();
            self.fingerprints.extend(keys.iter().map(|key| fingerprinter.fingerprint(key)));
        }
        again
    }
}

/// Runs `body` with the last batch of this thread.
#[inline]
pub(super) fn with_last_batch<R>(body: impl FnOnce(&mut LastBatch) -> R) -> R {
    // A thread that is ending keeps nothing.
    let mut last = LAST.try_with(Cell::take).unwrap_or_default().unwrap_or_default();
    let result = body(&mut last);
    if last.keys.capacity() > KEPT {
        last = Box::default();
    }
    let _ = LAST.try_with(|place| place.set(Some(last)));
    result
}
