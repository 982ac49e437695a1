//! Parts of a store for which L1 has not enough memory at once: keys that were staged together, and are committed as soon as all of
//! them are copied, so that they can be written and make room for those behind them.

use std::sync::Arc;

use super::{Progress, Transfer};
use crate::abi::View;
use crate::cache::Cache;
use crate::error::{KVKEEP_ERR_EXISTS, KVKEEP_ERR_INTERNAL, KVKEEP_OK, KVKEEP_PENDING, Status};
use crate::key::Key;
use crate::transfer::device::Piece;

/// Keys that were staged together, and how many bytes of them are not copied yet.
pub(in crate::transfer::transfer_job) struct Part {
    keys: Arc<[usize]>,
    left: u64,
}

impl Part {
    pub(in crate::transfer::transfer_job) fn new(keys: Arc<[usize]>, bytes: u64) -> Part {
        Part { keys, left: bytes }
    }
}

impl Progress {
    /// A piece has landed, well or not. The keys of its part, if it was the last one of that.
    pub(in crate::transfer::transfer_job) fn part_landed(&mut self, piece: &Piece) -> Option<Arc<[usize]>> {
        let at = self.parts.iter().position(|part| piece.keys.is_of(&part.keys))?;
        self.parts[at].left -= piece.bytes;
        (self.parts[at].left == 0).then(|| self.parts.swap_remove(at).keys)
    }
}

impl Transfer {
    /// More keys of a store are staged, or were there already. False if it takes nothing any more.
    pub(in crate::transfer) fn take_more(self: &Arc<Self>, cache: &dyn Cache, keys: &[usize], views: &[View]) -> bool {
        let mut progress = self.progress.lock();
        if progress.stopped.is_some() || progress.ending {
            return false;
        }
        self.take_stored(cache, &mut progress, keys, views);
        drop(progress);
        self.start();
        true
    }

    /// Takes in keys of a store, some of which somebody else has stored already: that is as good.
    pub(in crate::transfer) fn take_stored(
        &self,
        cache: &dyn Cache,
        progress: &mut Progress,
        keys: &[usize],
        views: &[View],
    ) {
        let (mut staged, mut staged_views) = (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
        for (&key, view) in keys.iter().zip(views) {
            if view.status == KVKEEP_ERR_EXISTS as i32 {
                self.fail(progress, key, KVKEEP_OK);
            } else {
                staged.push(key);
                staged_views.push(*view);
            }
        }
        self.take_in(cache, progress, &staged, &staged_views);
    }

    /// Nothing more of a store will be staged: `left` are not to be, for the reason given.
    pub(in crate::transfer) fn stage_no_more(self: &Arc<Self>, left: &[usize], why: Option<(Status, String)>) {
        {
            let mut progress = self.progress.lock();
            progress.expected -= 1;
            if let Some((status, why)) = why {
                left.iter().for_each(|&key| self.fail(&mut progress, key, status));
                progress.shortage = Some((status, why));
            }
        }
        self.changed.notify_all();
        self.start();
    }

    /// Whether a store takes nothing any more.
    pub(in crate::transfer) fn is_over(&self) -> bool {
        let progress = self.progress.lock();
        progress.stopped.is_some() || progress.ending
    }

    /// Commits the keys of a part that is copied, and gives back the memory of those that could not be.
    pub(in crate::transfer::transfer_job) fn commit_part(&self, keys: &[usize]) {
        let Some(table) = self.table.upgrade() else { return };
        let (copied, failed): (Vec<usize>, Vec<usize>) = {
            let progress = self.progress.lock();
            if progress.stopped.is_some() {
                return;
            }
            keys.iter().partition(|&&key| progress.statuses[key] == KVKEEP_PENDING)
        };
        let named = |keys: &[usize]| keys.iter().map(|&key| self.keys[key]).collect::<Vec<Key>>();
        if !failed.is_empty() {
            // They end with the transfer's session at the latest.
            let _ = table.cache().abort_write(self.copy, &named(&failed), None);
        }
        if copied.is_empty() {
            return;
        }
        let mut said = vec![KVKEEP_ERR_INTERNAL as i32; copied.len()];
        if let Err(error) = table.cache().finish_write(self.copy, &named(&copied), Some(&mut said)) {
            said.fill(error.status as i32);
        }
        let mut progress = self.progress.lock();
        for (&key, said) in copied.iter().zip(said) {
            progress.statuses[key] = Status::from_number(said).unwrap_or(KVKEEP_ERR_INTERNAL);
            progress.short |= progress.statuses[key] != KVKEEP_OK;
        }
    }
}
