//! Which slots hold a batch of keys.

use std::cell::Cell;

use zerocopy::IntoBytes as _;

use super::slot::NONE;
use super::{L1, State};
use crate::arena::prefetch_to_change;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::key::Key;

/// Keys looked up together: as many as the core can have cache misses for, and a few more.
const GROUP: usize = 32;
/// Most keys that a thread remembers between two calls.
const KEPT: usize = 1 << 16;
/// How many keys ahead the table is asked for what is written.
const AHEAD: usize = 12;

/// What a thread looked up last. Whoever reads a batch mostly returns it next, and finds its slots here.
#[derive(Default)]
struct Last {
    keys: Vec<Key>,
    fingerprints: Vec<Fingerprint>,
    found: Vec<u32>,
    /// Whether `found` has the slots of `keys`, and not what a caller made of them.
    fits: bool,
    fresh: Vec<u32>,
}

thread_local! {
    static LAST: Cell<Option<Box<Last>>> = const { Cell::new(None) };
}

impl Last {
    /// Makes the fingerprints of `keys`, unless they are there, and says whether they were.
    #[inline]
    fn fingerprint(&mut self, keys: &[Key], fingerprinter: &Fingerprinter) -> bool {
        let again = self.keys.as_bytes() == keys.as_bytes();
        if !again {
            self.keys.clear();
            self.keys.extend_from_slice(keys);
            self.fingerprints.clear();
            self.fingerprints.extend(keys.iter().map(|key| fingerprinter.fingerprint(key)));
        }
        again
    }
}

#[inline]
fn with_last<R>(body: impl FnOnce(&mut Last) -> R) -> R {
    // A thread that is ending keeps nothing.
    let mut last = LAST.try_with(Cell::take).unwrap_or_default().unwrap_or_default();
    let result = body(&mut last);
    if last.keys.capacity() > KEPT {
        last = Box::default();
    }
    let _ = LAST.try_with(|place| place.set(Some(last)));
    result
}

/// Keys and their slots.
pub(super) struct Lookup<'a> {
    last: &'a mut Last,
    /// Whether these keys were the last ones looked up, so that `found` may hold their slots already.
    again: bool,
}

impl L1 {
    /// Runs `body` with what finds the slots of `keys`. Their fingerprints are made here, before a lock is taken. Whoever `returns` shares
    /// is likely to have looked them up last.
    #[inline]
    pub(super) fn looking_up<R>(&self, keys: &[Key], returns: bool, body: impl FnOnce(Lookup) -> R) -> R {
        with_last(|last| {
            let again = last.fingerprint(keys, &self.fingerprinter) && returns && last.fits;
            if !again {
                last.found.clear();
                last.found.resize(keys.len(), NONE);
            }
            // Who returns shares sorts out the slots.
            last.fits = !returns;
            body(Lookup { last, again })
        })
    }

    /// As [`with`](L1::with), with the fingerprints of `keys`, and an empty list for those that a session uses for the first time.
    pub(super) fn with_fingerprints<R>(
        &self,
        keys: &[Key],
        body: impl FnOnce(&mut State, &[Fingerprint], &mut Vec<u32>) -> R,
    ) -> R {
        with_last(|last| {
            last.fingerprint(keys, &self.fingerprinter);
            last.fits = false;
            last.fresh.clear();
            self.with(|state| body(state, &last.fingerprints, &mut last.fresh))
        })
    }
}

impl Lookup<'_> {
    /// The slots of the keys in a space, `NONE` for those that are not there; and an empty list for those that a session takes for
    /// the first time.
    #[inline(always)]
    pub fn find_all(&mut self, state: &State, space: u32) -> (&mut [u32], &mut Vec<u32>) {
        if self.again {
            self.find_again(state, space);
        } else {
            self.find_anew(state, space);
        }
        self.last.fresh.clear();
        (&mut self.last.found, &mut self.last.fresh)
    }

    fn find_again(&mut self, state: &State, space: u32) {
        for (id, fingerprint) in self.last.found.iter_mut().zip(&self.last.fingerprints) {
            *id = state.find_again(*id, fingerprint.within(space));
        }
    }

    /// A group of keys at a time, so that what they need of the memory is fetched at the same time.
    fn find_anew(&mut self, state: &State, space: u32) {
        let Last { fingerprints, found, .. } = &mut *self.last;
        if let ([fingerprint], [id]) = (&fingerprints[..], &mut found[..]) {
            *id = state.find_fingerprint(fingerprint.within(space)).unwrap_or(NONE);
            return;
        }
        for (found, fingerprints) in found.chunks_mut(GROUP).zip(fingerprints.chunks(GROUP)) {
            fingerprints.iter().for_each(|fingerprint| state.table.prefetch(fingerprint.hash));
            for (id, fingerprint) in found.iter_mut().zip(fingerprints) {
                *id = state.table.candidate(fingerprint.hash).unwrap_or(NONE);
                if let Some(slot) = state.slots.get(*id) {
                    prefetch_to_change(slot);
                }
            }
            for (id, fingerprint) in found.iter_mut().zip(fingerprints) {
                let fingerprint = fingerprint.within(space);
                if *id != NONE && !state.slots[*id].is_of(fingerprint) {
                    *id = state.find_fingerprint(fingerprint).unwrap_or(NONE);
                }
            }
        }
    }
}

impl State {
    /// Has what the table says of a key fetched, as keys are gone through whose fingerprints these are: of one some way ahead of number `at`.
    #[inline]
    pub(super) fn look_ahead(&self, fingerprints: &[Fingerprint], at: usize) {
        if let Some(fingerprint) = fingerprints.get(at + AHEAD) {
            self.table.prefetch(fingerprint.hash);
        }
    }

    /// The slot of a key.
    pub(super) fn find(&self, space: u32, key: &Key) -> Option<u32> {
        self.find_fingerprint(self.fingerprinter.fingerprint(key).within(space))
    }

    /// The fingerprint of the key in a slot.
    pub(super) fn fingerprint_of(&self, id: u32) -> Fingerprint {
        self.fingerprinter.fingerprint(self.slots.key(id)).within(self.slots.space(id))
    }

    /// The slot of the key with a fingerprint, or `NONE`: mostly it is `last`, where it was found before.
    #[inline]
    pub(super) fn find_again(&self, last: u32, fingerprint: Fingerprint) -> u32 {
        match self.slots.get(last) {
            Some(slot) if slot.is_of(fingerprint) && slot.is_findable() => last,
            _ => self.find_fingerprint(fingerprint).unwrap_or(NONE),
        }
    }

    /// The slot of the key with a fingerprint.
    #[inline]
    pub(super) fn find_fingerprint(&self, fingerprint: Fingerprint) -> Option<u32> {
        self.table.find(fingerprint.hash, |id| self.slots[id].is_of(fingerprint))
    }
}
