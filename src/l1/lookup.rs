//! Which slots hold a batch of keys.

use std::cell::Cell;

use zerocopy::IntoBytes as _;

use super::slot::NONE;
use super::{L1, State};
use crate::arena::prefetch_to_change;
use crate::key::Key;
use crate::print::{Print, Printer};

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
    prints: Vec<Print>,
    found: Vec<u32>,
    /// Whether `found` has the slots of `keys`, and not what a caller made of them.
    fits: bool,
    fresh: Vec<u32>,
}

thread_local! {
    static LAST: Cell<Option<Box<Last>>> = const { Cell::new(None) };
}

impl Last {
    /// Makes the prints of `keys`, unless they are there, and says whether they were.
    #[inline]
    fn print(&mut self, keys: &[Key], printer: &Printer) -> bool {
        let again = self.keys.as_bytes() == keys.as_bytes();
        if !again {
            self.keys.clear();
            self.keys.extend_from_slice(keys);
            self.prints.clear();
            self.prints.extend(keys.iter().map(|key| printer.print(key)));
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
    /// Runs `body` with what finds the slots of `keys`. Their prints are made here, before a lock is taken. Whoever `returns` shares
    /// is likely to have looked them up last.
    #[inline]
    pub(super) fn looking_up<R>(&self, keys: &[Key], returns: bool, body: impl FnOnce(Lookup) -> R) -> R {
        with_last(|last| {
            let again = last.print(keys, &self.printer) && returns && last.fits;
            if !again {
                last.found.clear();
                last.found.resize(keys.len(), NONE);
            }
            // Who returns shares sorts out the slots.
            last.fits = !returns;
            body(Lookup { last, again })
        })
    }

    /// As [`with`](L1::with), with the prints of `keys`, and an empty list for those that a session uses for the first time.
    pub(super) fn with_prints<R>(
        &self,
        keys: &[Key],
        body: impl FnOnce(&mut State, &[Print], &mut Vec<u32>) -> R,
    ) -> R {
        with_last(|last| {
            last.print(keys, &self.printer);
            last.fits = false;
            last.fresh.clear();
            self.with(|state| body(state, &last.prints, &mut last.fresh))
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
        for (id, print) in self.last.found.iter_mut().zip(&self.last.prints) {
            *id = state.find_again(*id, print.within(space));
        }
    }

    /// A group of keys at a time, so that what they need of the memory is fetched at the same time.
    fn find_anew(&mut self, state: &State, space: u32) {
        let Last { prints, found, .. } = &mut *self.last;
        if let ([print], [id]) = (&prints[..], &mut found[..]) {
            *id = state.find_printed(print.within(space)).unwrap_or(NONE);
            return;
        }
        for (found, prints) in found.chunks_mut(GROUP).zip(prints.chunks(GROUP)) {
            prints.iter().for_each(|print| state.table.prefetch(print.hash));
            for (id, print) in found.iter_mut().zip(prints) {
                *id = state.table.candidate(print.hash).unwrap_or(NONE);
                if let Some(slot) = state.slots.get(*id) {
                    prefetch_to_change(slot);
                }
            }
            for (id, print) in found.iter_mut().zip(prints) {
                let print = print.within(space);
                if *id != NONE && !state.slots[*id].is_of(print) {
                    *id = state.find_printed(print).unwrap_or(NONE);
                }
            }
        }
    }
}

impl State {
    /// Has what the table says of a key fetched, as keys are gone through whose prints these are: of one some way ahead of number `at`.
    #[inline]
    pub(super) fn look_ahead(&self, prints: &[Print], at: usize) {
        if let Some(print) = prints.get(at + AHEAD) {
            self.table.prefetch(print.hash);
        }
    }

    /// The slot of a key.
    pub(super) fn find(&self, space: u32, key: &Key) -> Option<u32> {
        self.find_printed(self.printer.print(key).within(space))
    }

    /// The print of the key in a slot.
    pub(super) fn printed(&self, id: u32) -> Print {
        self.printer.print(self.slots.key(id)).within(self.slots.space(id))
    }

    /// The slot of the key with a print, or `NONE`: mostly it is `last`, where it was found before.
    #[inline]
    pub(super) fn find_again(&self, last: u32, print: Print) -> u32 {
        match self.slots.get(last) {
            Some(slot) if slot.is_of(print) && slot.is_findable() => last,
            _ => self.find_printed(print).unwrap_or(NONE),
        }
    }

    /// The slot of the key with a print.
    #[inline]
    pub(super) fn find_printed(&self, print: Print) -> Option<u32> {
        self.table.find(print.hash, |id| self.slots[id].is_of(print))
    }
}
