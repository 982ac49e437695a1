//! What L1 and the backends tell each other beside objects: uses go down, losses come up. Both in batches, on the store thread.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashSet;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::backends::{TierList, Tiers};
use super::prefetch::loader::Loader;
use crate::key::ObjectKey;
use crate::l1::L1;
use crate::l1::slot::Ref;
use crate::l1::tier_notes::Uses;
use crate::l2::Found;
use crate::meters::Meters;

/// Objects a backend is told of in one call.
const BATCH: usize = 1024;
/// Most objects noted as lost or used before all are looked at again, or the oldest are dropped.
const NOTED_MAX: usize = 1 << 16;

/// Objects that backends said have vanished. Backends note them under their own locks, so that nothing else is done here.
#[derive(Default)]
pub struct Losses {
    noted: Mutex<Noted>,
    waker: OnceCell<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Noted {
    objects: Vec<ObjectKey>,
    /// More than can be noted: any object may have vanished.
    any: bool,
}

impl Losses {
    /// Whom to tell of the first loss after the others were taken. Set once.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(waker));
    }

    /// An object vanished from a backend.
    pub fn note(&self, object: &ObjectKey) {
        let mut noted = self.noted.lock();
        let first = noted.objects.is_empty() && !noted.any;
        if noted.objects.len() < NOTED_MAX {
            noted.objects.push(*object);
        } else {
            noted.any = true;
        }
        drop(noted);
        if first && let Some(waker) = self.waker.get() {
            waker();
        }
    }

    fn is_empty(&self) -> bool {
        let noted = self.noted.lock();
        noted.objects.is_empty() && !noted.any
    }

    fn take(&self) -> Noted {
        std::mem::take(&mut *self.noted.lock())
    }
}

/// Keeps L1 and the backends informed of each other.
pub struct Upkeep {
    pub(super) l1: Arc<L1>,
    pub(super) tiers: Arc<Tiers>,
    loader: Arc<Loader>,
    meters: Arc<Meters>,
    /// Objects that callers touched by key, the last one last.
    touched: Mutex<VecDeque<ObjectKey>>,
    /// An empty list with room, to be exchanged for L1's.
    spare: Mutex<Uses>,
}

impl Upkeep {
    /// Between `l1` and `tiers`.
    pub fn new(l1: Arc<L1>, tiers: Arc<Tiers>, loader: Arc<Loader>, meters: Arc<Meters>) -> Upkeep {
        Upkeep { l1, tiers, loader, meters, touched: Mutex::default(), spare: Mutex::default() }
    }

    /// Whether nothing waits to be told.
    pub fn is_idle(&self) -> bool {
        self.tiers.losses().is_empty() && self.touched.lock().is_empty() && !self.l1.has_uses()
    }

    /// Has the backends told that objects were used, the last one last.
    pub fn touch(&self, objects: &[ObjectKey]) {
        let mut touched = self.touched.lock();
        touched.extend(objects);
        let surplus = touched.len().saturating_sub(NOTED_MAX);
        touched.drain(..surplus);
        drop(touched);
        self.meters.uses_dropped.add(surplus as u64);
    }

    /// Tells each side what it has not heard of.
    pub fn tell(&self) {
        self.tell_uses();
        let Noted { objects, any } = self.tiers.losses().take();
        if any {
            self.look_through();
        } else if !objects.is_empty() {
            self.lose(&self.tiers.list(), objects);
        }
    }

    fn tell_uses(&self) {
        let tiers = self.tiers.list();
        let mut spare = self.spare.lock();
        self.l1.take_uses(&mut spare);
        let mut seen = HashSet::new();
        let last_last: Vec<Ref> = spare.drain(..).rev().filter(|object| seen.insert(*object)).collect();
        drop(spare);
        let used: Vec<Ref> = last_last.into_iter().rev().collect();
        for objects in used.chunks(BATCH) {
            touch(&tiers, &self.l1.stored_names(objects));
        }
        let touched: Vec<ObjectKey> = std::mem::take(&mut *self.touched.lock()).into();
        touched.chunks(BATCH).for_each(|objects| touch(&tiers, objects));
    }

    /// L1 does not take objects for stored any more that no backend has.
    fn lose(&self, tiers: &TierList, mut objects: Vec<ObjectKey>) {
        // Objects on their way into L1 are to be told of, too.
        let loading = self.loader.loading(&objects);
        self.l1.retain_stored(&mut objects, &loading);
        for tier in tiers.iter() {
            for at in (0..objects.len()).step_by(BATCH).rev() {
                let piece = at..objects.len().min(at + BATCH);
                let mut found = tier.peek(&objects[piece.clone()]).into_iter();
                let mut kept = at;
                for i in piece.clone() {
                    objects[kept] = objects[i];
                    kept += usize::from(!matches!(found.next(), Some(Found::Present(_))));
                }
                objects.drain(kept..piece.end);
            }
        }
        self.loader.lose(&objects);
        self.l1.lose(&objects);
    }

    /// Looks through all that L1 takes for stored: something may be gone from the backends, or a backend itself.
    pub fn look_through(&self) {
        let tiers = self.tiers.list();
        let mut first = 0;
        while let Some((objects, next)) = self.l1.stored_from(first) {
            if !objects.is_empty() {
                self.lose(&tiers, objects);
            }
            first = next;
        }
    }
}

fn touch(tiers: &TierList, objects: &[ObjectKey]) {
    if !objects.is_empty() {
        tiers.iter().filter(|tier| tier.usable()).for_each(|tier| tier.backend.touch(objects));
    }
}
