//! Requests that were accepted and not begun, bounded, and the count of those not answered yet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::error::Error;
use crate::l2::fs::failures::{closed, full};
use crate::l2::{LoadRequest, StoreRequest};

/// Most loads and stores accepted and not answered.
pub const QUEUE_MAX: usize = 1 << 16;
/// While so many stores are written and wait to be synced, no more are begun: each holds a descriptor and its payload.
const UNSYNCED_MAX: usize = 64;

#[derive(Default)]
struct BacklogState {
    loads: VecDeque<LoadRequest>,
    stores: VecDeque<StoreRequest>,
    /// Stores that are written and not synced yet.
    unsynced: usize,
    closed: bool,
    stopped: bool,
}

impl BacklogState {
    fn store_places(&self) -> usize {
        UNSYNCED_MAX.saturating_sub(self.unsynced)
    }
}

/// Requests for the engine's threads. Loads are taken before stores, since an engine's request waits for them.
#[derive(Default)]
pub struct Backlog {
    work: Mutex<BacklogState>,
    /// Notified of requests, and of the end.
    ready: Condvar,
    /// Notified when nothing is left to answer.
    idle: Condvar,
    outstanding: AtomicUsize,
}

impl Backlog {
    fn accept<T>(&self, items: Vec<T>, push: impl FnOnce(&mut BacklogState, Vec<T>)) -> Result<(), (Vec<T>, Error)> {
        let mut work = self.work.lock();
        if work.closed {
            return Err((items, closed()));
        }
        if self.outstanding.load(Ordering::Acquire) + items.len() > QUEUE_MAX {
            return Err((items, full(QUEUE_MAX)));
        }
        self.outstanding.fetch_add(items.len(), Ordering::AcqRel);
        push(&mut work, items);
        Ok(())
    }

    /// Accepts all of `loads`, or none.
    pub fn accept_loads(&self, loads: Vec<LoadRequest>) -> Result<(), (Vec<LoadRequest>, Error)> {
        self.accept(loads, |work, loads| work.loads.extend(loads))
    }

    /// Accepts all of `stores`, or none.
    pub fn accept_stores(&self, stores: Vec<StoreRequest>) -> Result<(), (Vec<StoreRequest>, Error)> {
        self.accept(stores, |work, stores| work.stores.extend(stores))
    }

    /// Puts back stores that were accepted before.
    pub fn requeue(&self, stores: Vec<StoreRequest>) {
        self.work.lock().stores.extend(stores);
    }

    /// Wakes up to `count` threads that wait in [`Backlog::wait`].
    pub fn notify(&self, count: usize) {
        (0..count).for_each(|_| {
            self.ready.notify_one();
        });
    }

    /// Takes the next load, up to `most` of them.
    pub fn take_loads(&self, most: usize, into: &mut Vec<LoadRequest>) {
        let mut work = self.work.lock();
        let count = most.min(work.loads.len());
        into.extend(work.loads.drain(..count));
    }

    /// Takes the next stores, up to `most` of them.
    pub fn take_stores(&self, most: usize, into: &mut Vec<StoreRequest>) {
        let mut work = self.work.lock();
        let count = most.min(work.stores.len()).min(work.store_places());
        into.extend(work.stores.drain(..count));
    }

    /// Whether [`Backlog::take_loads`] or [`Backlog::take_stores`] has something for a thread that wants loads or stores.
    pub fn calls(&self, loads: bool, stores: bool) -> bool {
        let work = self.work.lock();
        (loads && !work.loads.is_empty()) || (stores && !work.stores.is_empty() && work.store_places() > 0)
    }

    /// Blocks for one request; `None` at the end.
    pub fn wait(&self) -> Option<BacklogItem> {
        let mut work = self.work.lock();
        loop {
            if let Some(load) = work.loads.pop_front() {
                return Some(BacklogItem::Load(load));
            }
            if work.store_places() > 0
                && let Some(store) = work.stores.pop_front()
            {
                return Some(BacklogItem::Store(store));
            }
            if work.stopped {
                return None;
            }
            self.ready.wait(&mut work);
        }
    }

    /// A store is written, and waits to be synced.
    pub fn written(&self) {
        self.work.lock().unsynced += 1;
    }

    /// So many stores that were written wait no more. The caller wakes the engine.
    pub fn synced(&self, count: usize) {
        self.work.lock().unsynced -= count;
    }

    /// One accepted request has been answered.
    pub fn answered(&self) {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _work = self.work.lock();
            self.idle.notify_all();
        }
    }

    /// Accepts nothing more and waits until everything accepted is answered. False if that was done before.
    pub fn close(&self) -> bool {
        let mut work = self.work.lock();
        if std::mem::replace(&mut work.closed, true) {
            return false;
        }
        while self.outstanding.load(Ordering::Acquire) > 0 {
            self.idle.wait(&mut work);
        }
        true
    }

    /// Whether it accepts nothing more.
    pub fn is_closed(&self) -> bool {
        self.work.lock().closed
    }

    /// Has every [`Backlog::wait`] end, now and later.
    pub fn stop(&self) {
        self.work.lock().stopped = true;
        self.ready.notify_all();
    }
}

/// One request for a thread of the pool.
pub enum BacklogItem {
    /// The thread reads this object.
    Load(LoadRequest),
    /// The thread writes this object.
    Store(StoreRequest),
}
