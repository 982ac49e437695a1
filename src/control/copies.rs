//! Objects in L1 that are to be written to one more backend: those that were used often enough for it, and those that another
//! backend gave.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashMap;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use crate::key::ObjectKey;

/// Most objects that wait to be copied. The oldest are forgotten: they are copied the next time.
const WAITING_MAX: usize = 1 << 14;
/// Most objects whose uses are counted for one backend. Beyond them counting begins anew.
const COUNTED_MAX: usize = 1 << 16;

/// The objects to be copied, and the counts of uses that lead there.
#[derive(Default)]
pub struct Copies {
    /// A backend promotes what others give.
    promotes: AtomicBool,
    /// A backend is written to after uses.
    counts_uses: AtomicBool,
    waiting: Mutex<VecDeque<WantedCopy>>,
    /// Uses by the number of the backend.
    uses: Mutex<HashMap<u64, HashMap<ObjectKey, u32>>>,
    waker: OnceCell<Box<dyn Fn() + Send + Sync>>,
}

/// An object that is to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WantedCopy {
    pub object: ObjectKey,
    pub to: CopyTarget,
}

/// The backends that are to get a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyTarget {
    /// The backend with this number.
    One(u64),
    /// All that promote, but the one with this number, which gave it.
    AllBut(u64),
}

impl Copies {
    /// Sets the function that wakes the store thread when an object is to be copied. Set once.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(waker));
    }

    /// Notes whether a backend promotes what others give, and whether one is written to after uses. Called whenever their list
    /// has changed.
    pub fn set_backends(&self, promotes: bool, counts_uses: bool) {
        self.promotes.store(promotes, Ordering::Release);
        self.counts_uses.store(counts_uses, Ordering::Release);
    }

    /// Whether uses are to be counted.
    pub fn counts_uses(&self) -> bool {
        self.counts_uses.load(Ordering::Acquire)
    }

    /// Notes that the backend with the number `from` gave an object, which L1 has now.
    pub fn loaded(&self, object: ObjectKey, from: u64) {
        if self.promotes.load(Ordering::Acquire) {
            self.want(std::iter::once(WantedCopy { object, to: CopyTarget::AllBut(from) }));
        }
    }

    /// Counts uses of objects in L1. `backends` are those that are written to after so many uses, by number. Called by the store
    /// thread.
    pub(super) fn used(&self, backends: &[(u64, u32)], objects: &[ObjectKey]) {
        let mut due = Vec::new();
        let mut uses = self.uses.lock();
        uses.retain(|number, _| backends.iter().any(|(other, _)| other == number));
        for &(number, least) in backends {
            let counts = uses.entry(number).or_default();
            for object in objects {
                if counts.len() >= COUNTED_MAX && !counts.contains_key(object) {
                    counts.clear();
                }
                let count = counts.entry(*object).or_insert(0);
                *count = count.saturating_add(1);
                if *count == least {
                    due.push(WantedCopy { object: *object, to: CopyTarget::One(number) });
                }
            }
        }
        drop(uses);
        self.want(due.into_iter());
    }

    fn want(&self, copies: impl Iterator<Item = WantedCopy>) {
        let mut waiting = self.waiting.lock();
        let first = waiting.is_empty();
        waiting.extend(copies);
        let surplus = waiting.len().saturating_sub(WAITING_MAX);
        waiting.drain(..surplus);
        let wake = first && !waiting.is_empty();
        drop(waiting);
        if wake && let Some(waker) = self.waker.get() {
            waker();
        }
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Takes the oldest.
    pub(super) fn take(&self) -> Option<WantedCopy> {
        self.waiting.lock().pop_front()
    }
}
