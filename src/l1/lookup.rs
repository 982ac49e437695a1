//! Which slots hold a batch of keys.

use std::cell::Cell;

use super::slot::NONE;
use super::{L1, State};
use crate::arena::prefetch_to_change;
use crate::hash::KeyHasher;
use crate::key::Key;

/// Keys looked up together: as many as the core can have cache misses for, and a few more.
const GROUP: usize = 32;
/// How many keys ahead the table is asked for what is written.
const AHEAD: usize = 12;

/// What a thread looked up last. Whoever reads a batch mostly returns it next, and finds its slots here.
#[derive(Default)]
struct Last {
    names: Vec<u64>,
    hashes: Vec<u64>,
    found: Vec<u32>,
    fresh: Vec<u32>,
}

thread_local! {
    static LAST: Cell<Option<Box<Last>>> = const { Cell::new(None) };
}

impl Last {
    #[inline]
    fn hash(&mut self, keys: &[Key], hasher: &KeyHasher) {
        self.hashes.clear();
        self.hashes.extend(keys.iter().map(|key| hasher.hash(key)));
    }
}

#[inline]
fn with_last<R>(body: impl FnOnce(&mut Last) -> R) -> R {
    // A thread that is ending keeps nothing.
    let mut last = LAST.try_with(Cell::take).unwrap_or_default().unwrap_or_default();
    let result = body(&mut last);
    let _ = LAST.try_with(|place| place.set(Some(last)));
    result
}

/// Keys and their slots.
pub(super) struct Lookup<'a> {
    keys: &'a [Key],
    last: &'a mut Last,
    /// Whether these keys were the last ones looked up, so that `found` may hold their slots already.
    again: bool,
}

/// Tells keys apart well enough to try.
#[inline]
fn name(key: &Key) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = key.hash;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h]) ^ u64::from(key.rank) << 32 ^ u64::from(key.group)
}

impl L1 {
    /// Runs `body` with what finds the slots of `keys`. Their hashes are made here, before a lock is taken. `again`: they are likely to
    /// be the last ones that this thread looked up.
    #[inline]
    pub(super) fn looking_up<R>(&self, keys: &[Key], again: bool, body: impl FnOnce(Lookup) -> R) -> R {
        with_last(|last| {
            let again = again && last.names.iter().copied().eq(keys.iter().map(name));
            if !again {
                last.names.clear();
                last.names.extend(keys.iter().map(name));
                last.hash(keys, &self.hasher);
                last.found.clear();
                last.found.resize(keys.len(), NONE);
            }
            body(Lookup { keys, last, again })
        })
    }

    /// As [`with`](L1::with), with the hashes of `keys`, and an empty list for those that a session uses for the first time.
    pub(super) fn with_hashes<R>(&self, keys: &[Key], body: impl FnOnce(&mut State, &[u64], &mut Vec<u32>) -> R) -> R {
        with_last(|last| {
            last.names.clear();
            last.fresh.clear();
            last.hash(keys, &self.hasher);
            self.with(|state| body(state, &last.hashes, &mut last.fresh))
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
        // What the caller makes of the slots is not what the next one looks for.
        self.last.names.clear();
        for (id, key) in self.last.found.iter_mut().zip(self.keys) {
            *id = state.find_again(*id, space, key);
        }
    }

    /// A group of keys at a time, so that what they need of the memory is fetched at the same time.
    fn find_anew(&mut self, state: &State, space: u32) {
        let Last { hashes, found, .. } = &mut *self.last;
        if let ([key], [hash], [id]) = (self.keys, &hashes[..], &mut found[..]) {
            *id = state.find_hashed(*hash, space, key).unwrap_or(NONE);
            return;
        }
        for ((found, hashes), keys) in found.chunks_mut(GROUP).zip(hashes.chunks(GROUP)).zip(self.keys.chunks(GROUP)) {
            hashes.iter().for_each(|&hash| state.table.prefetch(hash));
            for (id, &hash) in found.iter_mut().zip(hashes) {
                *id = state.table.candidate(hash).unwrap_or(NONE);
                if let Some(slot) = state.slots.get(*id) {
                    prefetch_to_change(slot);
                }
            }
            for ((id, &hash), key) in found.iter_mut().zip(hashes).zip(keys) {
                if *id != NONE && !state.slots[*id].names(space, key) {
                    *id = state.find_hashed(hash, space, key).unwrap_or(NONE);
                }
            }
        }
    }
}

impl State {
    /// Has what the table says of a hash fetched, as keys are gone through whose hashes these are: of one some way ahead of number `at`.
    #[inline]
    pub(super) fn look_ahead(&self, hashes: &[u64], at: usize) {
        if let Some(&hash) = hashes.get(at + AHEAD) {
            self.table.prefetch(hash);
        }
    }

    /// The slot of a key.
    pub(super) fn find(&self, space: u32, key: &Key) -> Option<u32> {
        self.find_hashed(self.hasher.hash(key), space, key)
    }

    /// The slot of a key, or `NONE`: mostly it is `last`, where it was found before.
    #[inline]
    pub(super) fn find_again(&self, last: u32, space: u32, key: &Key) -> u32 {
        match self.slots.get(last) {
            Some(slot) if slot.names(space, key) && slot.is_findable() => last,
            _ => self.find(space, key).unwrap_or(NONE),
        }
    }

    /// As [`find`](State::find), with the key's hash.
    #[inline]
    pub(super) fn find_hashed(&self, hash: u64, space: u32, key: &Key) -> Option<u32> {
        self.table.find(hash, |id| self.slots[id].names(space, key))
    }
}
