//! A transfer as others hold it. Its memory in L1 is held by a session of its own (P2). Observers note objects that arrive from below,
//! and the device's threads take them in and also end it: nothing here runs under a lock of the cache's, and no callback is waited for.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::prefetch_arrival::PrefetchArrival;
use super::targets::Targets;
use super::transfer_phases::{Progress, StopReason};
use crate::abi::{JobResult, View, text_of};
use crate::cache::Cache;
use crate::config::{JobObserver, Notify};
use crate::control::prefetch::NO_ROOM;
use crate::error::{
    KVKEEP_ERR_INTERNAL, KVKEEP_ERR_IO, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_QUOTA, KVKEEP_OK, Status,
};
use crate::key::Key;
use crate::transfer::copy_device::StreamPoint;
use crate::transfer::cpu_copy::Way;
use crate::transfer::page_pool::PagePool;

/// The registry of a transfer, as the transfer sees it.
pub trait TransferOwner: Send + Sync {
    /// The cache that it copies for.
    fn cache(&self) -> &dyn Cache;
    /// The transfer has its answer. Called once, not under the transfer's lock.
    fn transfer_done(&self, transfer: &Transfer);
}

/// One store or load.
pub struct Transfer {
    /// The number that the caller knows it by.
    pub id: u64,
    /// The session it is for.
    pub session: u64,
    /// The session that holds its memory.
    pub copy: u64,
    pub targets: Targets,
    pub(super) way: Way,
    pub(super) return_shares: bool,
    /// The point of the caller's stream that it follows, until it ends.
    pub(super) point: Mutex<StreamPoint>,
    pub(super) submitted: Instant,
    /// Bytes that are asked for.
    pub(super) bytes: u64,
    pub(super) owner: Weak<dyn TransferOwner>,
    /// Its state; the functions of [`Progress`] are all that changes it.
    pub progress: Mutex<Progress>,
    /// Notified when a layer or all of it is done, and when it is released. Goes with `progress`.
    pub changed: Condvar,
    pub(super) me: Weak<Transfer>,
}

/// The parts from which the submission makes a transfer.
pub struct TransferPlan {
    /// The number that the registry gave it.
    pub id: u64,
    /// The pool of its pages.
    pub pool: Arc<PagePool>,
    /// The session it is for.
    pub session: u64,
    /// The session that holds its memory.
    pub copy: u64,
    /// Which way it goes.
    pub way: Way,
    /// Its keys, each once.
    pub keys: Vec<Key>,
    /// As many blocks for each key as a chunk has.
    pub blocks: Vec<i32>,
    /// Return the session's own shares at the end.
    pub return_shares: bool,
    /// The point of the caller's stream that it follows.
    pub point: StreamPoint,
    /// How its end is reported.
    pub notify: Notify,
    /// When it was submitted.
    pub submitted: Instant,
}

impl Transfer {
    /// A transfer that is being submitted: it does not end before [`submitted`](Transfer::submitted).
    pub fn new(plan: TransferPlan, owner: Weak<dyn TransferOwner>) -> Arc<Transfer> {
        let targets = Targets { pool: plan.pool, keys: plan.keys, blocks: plan.blocks };
        Arc::new_cyclic(|me| Transfer {
            id: plan.id,
            session: plan.session,
            copy: plan.copy,
            way: plan.way,
            return_shares: plan.return_shares,
            point: Mutex::new(plan.point),
            submitted: plan.submitted,
            bytes: targets.layer_bytes().iter().sum(),
            owner,
            progress: Mutex::new(Progress::new(&targets, plan.notify)),
            targets,
            changed: Condvar::new(),
            me: me.clone(),
        })
    }

    /// Wakes the device for it. Called after every change that may let it go on; not under its lock.
    pub fn start(self: &Arc<Self>) {
        let point = self.point.lock().clone();
        self.targets.pool.device.start(self.clone(), point);
    }

    /// Its submission is over. Called once, by the submission.
    pub fn submitted(self: &Arc<Self>) {
        self.progress.lock().step_ended();
        self.start();
    }

    /// Stops what has not started; it completes when what is in flight has landed. Called for a cancel, a release, an abort of its
    /// session and a close of its pool or cache.
    pub fn stop(self: &Arc<Self>, status: Status, why: &str) {
        let stopped = self.progress.lock().stop(status, why);
        if stopped {
            self.start();
        }
    }

    /// Takes in keys of a store that have memory now, or were stored already. False if it takes nothing any more. Called by the thread
    /// of large stores.
    pub fn take_more(self: &Arc<Self>, cache: &dyn Cache, keys: &[usize], views: &[View]) -> bool {
        let mut progress = self.progress.lock();
        if !progress.is_copying() {
            return false;
        }
        progress.take_stored(&self.targets, cache, keys, views);
        drop(progress);
        self.start();
        true
    }

    /// Nothing more of a store will be staged: `left` are not to be, for the reason given. Called by the thread of large stores.
    pub fn stage_no_more(self: &Arc<Self>, left: &[usize], why: Option<StopReason>) {
        self.progress.lock().staged_all(&self.targets, left, why);
        self.changed.notify_all();
        self.start();
    }
}

/// Follows a prefetch of some of a load's keys.
pub struct PrefetchFollower {
    /// The load that waits for the keys.
    pub transfer: Arc<Transfer>,
    /// Places of the keys.
    pub keys: Vec<usize>,
}

impl JobObserver for PrefetchFollower {
    fn done(&self, result: &JobResult, _held: &[bool]) {
        let absent = match Status::from_number(result.status).unwrap_or(KVKEEP_ERR_INTERNAL) {
            KVKEEP_OK if result.failed_keys > 0 => match Status::from_number(result.failed_status) {
                Some(status @ (KVKEEP_ERR_NO_MEMORY | KVKEEP_ERR_QUOTA)) => status,
                _ => KVKEEP_ERR_IO,
            },
            KVKEEP_OK => KVKEEP_ERR_NOT_FOUND,
            status => status,
        };
        let message = text_of(&result.message);
        let why = message.strip_prefix(NO_ROOM).unwrap_or(&message).to_owned();
        self.transfer.progress.lock().prefetch_ended(PrefetchArrival { keys: self.keys.clone(), absent, why });
        self.transfer.start();
    }
}
