//! L1 and the backends are kept informed of each other: uses go down, losses come up. Both in batches, on the store thread.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use hashbrown::HashSet;
use parking_lot::Mutex;

use super::backends::{BackendList, BackendSlot, Backends};
use super::deadline::Deadlines;
use super::losses::Noted;
use super::prefetch::loader::Loader;
use crate::error::Result;
use crate::key::ObjectKey;
use crate::l1::L1;
use crate::l1::slot::Ref;
use crate::l1::tier_notes::Uses;
use crate::l2::{Found, LookupRequest, Reply};
use crate::meters::Meters;

/// Objects in one call to a backend.
const BATCH: usize = 1024;
/// Most objects noted as used before the oldest are dropped.
const NOTED_MAX: usize = 1 << 16;

/// Passes uses from L1 to the backends, and losses from the backends to L1.
pub struct TierSync {
    pub(super) l1: Arc<L1>,
    pub(super) backends: Arc<Backends>,
    loader: Arc<Loader>,
    deadlines: Arc<Deadlines>,
    meters: Arc<Meters>,
    /// Objects that callers touched by key, the last one last.
    touched: Mutex<VecDeque<ObjectKey>>,
    /// An empty list with capacity, to be exchanged for L1's.
    spare: Mutex<Uses>,
}

impl TierSync {
    /// Between `l1` and `tiers`.
    pub fn new(
        l1: Arc<L1>,
        backends: Arc<Backends>,
        loader: Arc<Loader>,
        deadlines: Arc<Deadlines>,
        meters: Arc<Meters>,
    ) -> TierSync {
        TierSync { l1, backends, loader, deadlines, meters, touched: Mutex::default(), spare: Mutex::default() }
    }

    /// Whether no use and no loss waits.
    pub fn is_idle(&self) -> bool {
        self.backends.losses().is_empty()
            && self.backends.copies().is_empty()
            && self.touched.lock().is_empty()
            && !self.l1.has_uses()
    }

    /// Has the backends notified that objects were used, the last one last.
    pub fn touch(&self, objects: &[ObjectKey]) {
        let mut touched = self.touched.lock();
        touched.extend(objects);
        let surplus = touched.len().saturating_sub(NOTED_MAX);
        touched.drain(..surplus);
        drop(touched);
        self.meters.uses_dropped.add(surplus as u64);
    }

    /// Passes on all uses and losses. Called by the store thread.
    pub fn notify(&self) {
        self.notify_uses();
        let Noted { objects, any } = self.backends.losses().take();
        if any {
            self.look_through(None);
        } else if !objects.is_empty() {
            let lost = self.without_backend(&self.backends.list(), objects);
            self.lose(&lost);
        }
    }

    fn notify_uses(&self) {
        let backends = self.backends.list();
        let mut spare = self.spare.lock();
        self.l1.take_uses(&mut spare);
        let mut seen = HashSet::new();
        let last_last: Vec<Ref> = spare.drain(..).rev().filter(|object| seen.insert(*object)).collect();
        drop(spare);
        let used: Vec<Ref> = last_last.into_iter().rev().collect();
        for objects in used.chunks(BATCH) {
            touch(&backends, &self.l1.stored_names(objects));
            if self.backends.copies().counts_uses() {
                self.backends.copies().used(&self.backends.after_uses(), &self.l1.names(objects));
            }
        }
        let touched: Vec<ObjectKey> = std::mem::take(&mut *self.touched.lock()).into();
        touched.chunks(BATCH).for_each(|objects| touch(&backends, objects));
    }

    /// Those of some objects that are in L1, or on their way there, and in the index of no backend.
    fn without_backend(&self, backends: &BackendList, mut objects: Vec<ObjectKey>) -> Vec<ObjectKey> {
        let loading = self.loader.loading(&objects);
        self.l1.retain_stored(&mut objects, &loading);
        for slot in backends.iter() {
            for at in (0..objects.len()).step_by(BATCH).rev() {
                let piece = at..objects.len().min(at + BATCH);
                let mut found = slot.peek(&objects[piece.clone()]).into_iter();
                let mut kept = at;
                for i in piece.clone() {
                    objects[kept] = objects[i];
                    kept += usize::from(!matches!(found.next(), Some(Found::Present(_))));
                }
                objects.drain(kept..piece.end);
            }
        }
        objects
    }

    /// Marks objects as not stored.
    fn lose(&self, objects: &[ObjectKey]) {
        self.loader.lose(objects);
        self.l1.lose(objects);
    }

    /// Looks through all objects that L1 takes for stored: the backends, or one of them, may have lost some. Those without an index
    /// are asked, which blocks until the deadline of each, or until `until`, at the latest: one that is late or fails has nothing.
    pub fn look_through(&self, until: Option<Instant>) {
        let backends = self.backends.list();
        let deadline = |slot: &BackendSlot| until.into_iter().fold(self.deadlines.deadline(slot), Instant::min);
        let asked = backends.iter().filter(|slot| slot.usable() && !slot.backend.has_index());
        let mut asked: Vec<(&Arc<BackendSlot>, Instant)> = asked.map(|slot| (slot, deadline(slot))).collect();
        let mut first = 0;
        while let Some((objects, next)) = self.l1.stored_from(first) {
            first = next;
            if objects.is_empty() {
                continue;
            }
            let mut objects = self.without_backend(&backends, objects);
            asked.retain(|(slot, until)| remove_found(slot, *until, &mut objects));
            self.lose(&objects);
        }
    }
}

/// Asks a backend for objects and removes those that it has. Blocks. False if it does not answer by then.
fn remove_found(slot: &Arc<BackendSlot>, until: Instant, objects: &mut Vec<ObjectKey>) -> bool {
    let (asked, mut rest): (Vec<ObjectKey>, Vec<ObjectKey>) =
        objects.drain(..).partition(|object| slot.may_have(&object.space));
    let mut answers = true;
    for keys in asked.chunks(BATCH) {
        let found = if answers { look_up(slot, until, keys) } else { None };
        answers = found.is_some();
        let mut found = found.unwrap_or_default().into_iter();
        rest.extend(keys.iter().filter(|_| !matches!(found.next(), Some(Found::Present(_)))));
    }
    *objects = rest;
    answers
}

/// Asks a backend for objects and leaves no pin. None if it fails, or does not answer by then.
fn look_up(slot: &Arc<BackendSlot>, until: Instant, keys: &[ObjectKey]) -> Option<Vec<Found>> {
    let (to, answer) = mpsc::channel();
    let (backend, asked) = (slot.backend.clone(), keys.to_vec());
    let reply = Reply::new(move |result: Result<Vec<Found>>| {
        if let Ok(found) = &result {
            let present = asked.iter().zip(found).filter(|(_, found)| matches!(found, Found::Present(_)));
            let pinned: Vec<ObjectKey> = present.map(|(key, _)| *key).collect();
            backend.unpin(&pinned);
        }
        // Nobody waits for a late answer.
        let _ = to.send(result);
    });
    slot.backend.lookup(LookupRequest { keys: keys.to_vec(), in_order: false, deadline: until, reply });
    answer.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?.ok()
}

fn touch(backends: &BackendList, objects: &[ObjectKey]) {
    if !objects.is_empty() {
        backends.iter().filter(|slot| slot.usable()).for_each(|slot| slot.backend.touch(objects));
    }
}
