//! The calls of a device's threads: a transfer gives the next piece, and takes the results of those before.

use std::sync::Arc;

use super::prefetch_arrival::PrefetchArrival;
use super::transfer::Transfer;
use crate::abi::View;
use crate::cache::Cache;
use crate::error::{KVKEEP_ERR_INTERNAL, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD, Result};
use crate::key::Key;
use crate::transfer::copy_device::{CopyPiece, CopyWork, StreamEvent};
use crate::transfer::cpu_copy::{Fragment, Way};

impl Transfer {
    /// Takes in the keys of prefetches that have ended. Not under the transfer's lock.
    fn take_arrivals(&self, cache: &dyn Cache, arrived: &[PrefetchArrival]) {
        let places: Vec<usize> = arrived.iter().flat_map(|arrival| &arrival.keys).copied().collect();
        let keys: Vec<Key> = places.iter().map(|&key| self.targets.keys[key]).collect();
        let mut views = vec![View::none(KVKEEP_ERR_NOT_FOUND); keys.len()];
        if let Err(error) = cache.get_views(self.copy, &keys, &mut views) {
            views.fill(View::none(error.status));
        }
        let absent = arrived.iter().flat_map(|arrival| arrival.keys.iter().map(|_| arrival.absent));
        for (view, absent) in views.iter_mut().zip(absent) {
            if view.status == KVKEEP_ERR_NOT_HELD as i32 {
                view.status = absent as i32;
            }
        }
        self.progress.lock().take_in(&self.targets, cache, &places, &views);
        self.changed.notify_all();
    }
}

impl CopyWork for Transfer {
    fn way(&self) -> Way {
        self.way
    }

    fn next(&self, fragments: &mut Vec<Fragment>) -> Option<CopyPiece> {
        let mut progress = self.progress.lock();
        if let Some(arrived) = progress.begin_arrivals() {
            drop(progress);
            if let Some(owner) = self.owner.upgrade() {
                self.take_arrivals(owner.cache(), &arrived);
            }
            progress = self.progress.lock();
            progress.step_ended();
            if progress.has_batches()
                && let Some(me) = self.me.upgrade()
            {
                // Another thread that found nothing meanwhile has taken it off the device's list.
                me.start();
            }
        }
        let piece = progress.cut(&self.targets, self.way, self.bytes, fragments);
        drop(progress);
        if piece.is_none() {
            self.end_if_over();
        }
        piece
    }

    fn queued(&self, piece: &CopyPiece, event: Arc<dyn StreamEvent>) {
        let mut progress = self.progress.lock();
        if progress.queued(piece, event) {
            self.changed.notify_all();
        }
    }

    fn landed(&self, piece: CopyPiece, result: Result<()>) {
        let mut progress = self.progress.lock();
        let mut landed = progress.landed(&self.targets, &piece, result);
        if landed.layer_done {
            self.changed.notify_all();
        }
        if let Some(keys) = landed.part {
            drop(progress);
            self.commit_part(&keys);
            progress = self.progress.lock();
            landed.last = progress.step_ended();
        }
        drop(progress);
        if landed.last {
            self.end_if_over();
        }
    }

    fn broken(&self) {
        let Some(owner) = self.owner.upgrade() else { return };
        owner.cache().poison();
        let why = (KVKEEP_ERR_INTERNAL, "a bug in kvkeep was caught while copying".to_owned());
        self.conclude(&*owner, vec![KVKEEP_ERR_INTERNAL; self.targets.keys.len()], Some(why));
    }
}
