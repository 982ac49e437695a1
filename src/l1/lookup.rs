//! Which slots hold a batch of keys.

use super::last_batch::{LastBatch, with_last_batch};
use super::slot::NONE;
use super::state::L1State;
use super::tier::L1;
use crate::ablation::{self, Optimization::KeyFingerprint};
use crate::arena::{prefetch, prefetch_to_change};
use crate::fingerprint::Fingerprint;
use crate::key::Key;

/// Keys looked up together: as many as the core can have cache misses for, and a few more.
const GROUP: usize = 32;

/// Keys and their slots.
pub(super) struct BatchLookup<'a> {
    last: &'a mut LastBatch,
    /// Whether these keys were the last ones looked up, so that `found` may hold their slots already.
    again: bool,
}

/// Runs `body` with a lookup of the slots of `keys`. Their fingerprints are made here, before a lock is taken. A call that
/// `returns` shares is likely to be for the keys that this thread looked up last.
#[inline]
pub(super) fn with_slots<R>(l1: &L1, keys: &[Key], returns: bool, body: impl FnOnce(BatchLookup) -> R) -> R {
    with_last_batch(|last| {
        let again = last.fingerprint(keys, &l1.fingerprinter) && returns && last.fits;
        if !again {
            last.found.clear();
            last.found.resize(keys.len(), NONE);
        }
        // A call that returns shares changes the list of slots.
        last.fits = !returns;
        body(BatchLookup { last, again })
    })
}

/// As `L1::with`, with the fingerprints of `keys`, and an empty list for those that a session uses for the first time.
pub(super) fn with_fingerprints<R>(
    l1: &L1,
    keys: &[Key],
    body: impl FnOnce(&mut L1State, &[Fingerprint], &mut Vec<u32>) -> R,
) -> R {
    with_last_batch(|last| {
        last.fingerprint(keys, &l1.fingerprinter);
        last.fits = false;
        last.fresh.clear();
        l1.with(|state| body(state, &last.fingerprints, &mut last.fresh))
    })
}

impl BatchLookup<'_> {
    /// The slots of the keys in a space, `NONE` for those that are not there; and an empty list for those that a session takes for
    /// the first time.
    #[inline(always)]
    pub fn find_all(&mut self, state: &L1State, space: u32) -> (&mut [u32], &mut Vec<u32>) {
        if self.again {
            self.find_again(state, space);
        } else {
            self.find_anew(state, space);
        }
        self.last.fresh.clear();
        (&mut self.last.found, &mut self.last.fresh)
    }

    /// The fingerprints of the keys that are not there, once [`find_all`](BatchLookup::find_all) has looked. They are of no space.
    pub fn missed(&self) -> impl Iterator<Item = Fingerprint> {
        let all = self.last.fingerprints.iter().zip(&self.last.found);
        all.filter(|(_, id)| **id == NONE).map(|(fingerprint, _)| *fingerprint)
    }

    fn find_again(&mut self, state: &L1State, space: u32) {
        for (id, fingerprint) in self.last.found.iter_mut().zip(&self.last.fingerprints) {
            *id = state.find_again(*id, fingerprint.within(space));
        }
        if ablation::is_off(KeyFingerprint) {
            compare_keys(state, &mut self.last.found, &self.last.keys);
        }
    }

    /// A group of keys at a time, so that the memory of all of them is fetched at the same time.
    fn find_anew(&mut self, state: &L1State, space: u32) {
        let LastBatch { keys, fingerprints, found, .. } = &mut *self.last;
        let compare = ablation::is_off(KeyFingerprint);
        if let ([fingerprint], [id]) = (&fingerprints[..], &mut found[..]) {
            *id = state.find_fingerprint(fingerprint.within(space)).unwrap_or(NONE);
            return;
        }
        for (at, (found, fingerprints)) in found.chunks_mut(GROUP).zip(fingerprints.chunks(GROUP)).enumerate() {
            fingerprints.iter().for_each(|fingerprint| state.table.prefetch(fingerprint.hash));
            for (id, fingerprint) in found.iter_mut().zip(fingerprints) {
                *id = state.table.candidate(fingerprint.hash).unwrap_or(NONE);
                if let Some(slot) = state.slots.get(*id) {
                    prefetch_to_change(slot);
                    if compare {
                        prefetch(state.slots.key(*id));
                    }
                }
            }
            for (id, fingerprint) in found.iter_mut().zip(fingerprints) {
                let fingerprint = fingerprint.within(space);
                if *id != NONE && !state.slots[*id].is_of(fingerprint) {
                    *id = state.find_fingerprint(fingerprint).unwrap_or(NONE);
                }
            }
            if compare {
                compare_keys(state, found, &keys[at * GROUP..]);
            }
        }
    }
}

/// Leaves the slots whose keys these are.
fn compare_keys(state: &L1State, found: &mut [u32], keys: &[Key]) {
    let found = found.iter_mut().zip(keys);
    found.filter(|(id, key)| **id != NONE && state.slots.key(**id) != *key).for_each(|(id, _)| *id = NONE);
}
