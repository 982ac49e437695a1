//! Stores that are larger than the memory L1 has for them. The remainder of each waits in the background for the memory that writes
//! and copies under way free, and is copied as it comes.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::transfer_job::Transfer;
use crate::abi::View;
use crate::cache::Cache;
use crate::error::{KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA, KVKEEP_OK, KVKEEP_PARTIAL, Result, Status};
use crate::key::Key;
use crate::l1::memory_wait::is_refused;

/// Keys for which memory is asked at a time.
const WINDOW: usize = 64;
/// How long the thread waits for memory for one store before it asks for the next one's,
const TURN: Duration = Duration::from_millis(500);
/// and how long where a next one waits.
const SHORT_TURN: Duration = Duration::from_millis(20);
/// A store that was given no memory for so long gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The keys of a store that have no memory yet.
pub(super) struct StoreRemainder {
    pub(super) transfer: Arc<Transfer>,
    /// The keys by their places, in order, with what each needs.
    pub(super) keys: VecDeque<(usize, Key, u64)>,
    /// When it was given memory last.
    pub(super) fed: Instant,
}

#[derive(Default)]
struct RemainderQueue {
    remainders: VecDeque<StoreRemainder>,
    closing: bool,
}

/// The remainders of all large stores, and the thread that asks for their memory; there is none before the first.
pub(super) struct LargeStores {
    cache: Arc<dyn Cache>,
    queue: Mutex<RemainderQueue>,
    some: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    me: Weak<LargeStores>,
}

/// Why a store is given no more memory.
type Why = (Status, String);

impl LargeStores {
    /// No store waits yet.
    pub(super) fn new(cache: Arc<dyn Cache>) -> Arc<LargeStores> {
        Arc::new_cyclic(|me| LargeStores {
            cache,
            queue: Mutex::default(),
            some: Condvar::new(),
            thread: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Has the remainder of a store wait for memory. Called by the store's submission.
    pub(super) fn push(&self, remainder: StoreRemainder) {
        let mut thread = self.thread.lock();
        if thread.is_none()
            && let Some(me) = self.me.upgrade()
        {
            let run = move || me.run();
            *thread = std::thread::Builder::new().name("kvkeep-stream".to_owned()).spawn(run).ok();
        }
        if thread.is_none() {
            let why = "no thread can be started that waits for memory".to_owned();
            return remainder.end(Some((KVKEEP_ERR_NO_MEMORY, why)));
        }
        self.queue.lock().remainders.push_back(remainder);
        self.some.notify_one();
    }

    fn run(&self) {
        while let Some((mut remainder, wait)) = self.next() {
            match self.feed(&mut remainder, wait) {
                None => self.queue.lock().remainders.push_back(remainder),
                Some(why) => remainder.end(why),
            }
        }
    }

    /// Asks for memory for the next keys of a store. None: more are left. Else it is through, with the reason if some got none.
    fn feed(&self, remainder: &mut StoreRemainder, wait: Duration) -> Option<Option<Why>> {
        if !remainder.transfer.progress.lock().is_copying() {
            return Some(None);
        }
        let window: Vec<(usize, Key, u64)> = remainder.keys.iter().take(WINDOW).copied().collect();
        let (keys, sizes): (Vec<Key>, Vec<u64>) = window.iter().map(|&(_, key, size)| (key, size)).unzip();
        let mut views = vec![View::none(Status::KVKEEP_PENDING); keys.len()];
        let copy = remainder.transfer.copy;
        let status = match self.ask(copy, &keys, &sizes, remainder.fed, wait, &mut views) {
            Ok(status) => status,
            Err(error) => return Some(Some((error.status, error.message))),
        };
        let (mut taken, mut taken_views, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (&item, view) in window.iter().zip(&views) {
            if is_refused(view) {
                refused.push((item, view.status));
            } else {
                taken.push(item.0);
                taken_views.push(*view);
            }
        }
        remainder.keys.drain(..window.len());
        refused.iter().rev().for_each(|(item, _)| remainder.keys.push_front(*item));
        if !taken.is_empty() {
            remainder.fed = Instant::now();
            if !remainder.transfer.take_more(&*self.cache, &taken, &taken_views) {
                return Some(None);
            }
        }
        let Some((_, first)) = refused.first() else { return remainder.keys.is_empty().then_some(None) };
        let hopeless = status == KVKEEP_PARTIAL && taken.is_empty();
        (hopeless || remainder.fed.elapsed() >= PATIENCE).then(|| {
            let of_space = *first == KVKEEP_ERR_QUOTA as i32;
            let why = self.cache.explain_refusal(copy, of_space).unwrap_or_else(|error| error.message);
            Some((if of_space { KVKEEP_ERR_QUOTA } else { KVKEEP_ERR_NO_MEMORY }, why))
        })
    }

    /// Asks for memory. A store that got none since `fed` for as long as stores may wait, or that may not wait, takes the memory of objects
    /// that are still to be written.
    fn ask(
        &self,
        copy: u64,
        keys: &[Key],
        sizes: &[u64],
        fed: Instant,
        wait: Duration,
        views: &mut [View],
    ) -> Result<Status> {
        let store_wait = self.cache.store_wait();
        let left = store_wait.saturating_sub(fed.elapsed());
        if store_wait.is_zero() {
            return self.cache.reserve_waiting(copy, keys, sizes, wait, views);
        }
        if !left.is_zero() {
            let status = self.cache.reserve_waiting(copy, keys, sizes, wait.min(left), views)?;
            if status != KVKEEP_PARTIAL || views.iter().any(|view| !is_refused(view)) {
                return Ok(status);
            }
        }
        let all = self.cache.reserve_write(copy, keys, sizes, false, views)?;
        Ok(if all { KVKEEP_OK } else { KVKEEP_PARTIAL })
    }

    /// Ends the thread. No store waits any more.
    pub(super) fn close(&self) {
        self.queue.lock().closing = true;
        self.some.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    /// Blocks for the next remainder; gives how long to wait for its memory, too. None when closing.
    fn next(&self) -> Option<(StoreRemainder, Duration)> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(remainder) = queue.remainders.pop_front() {
                return Some((remainder, if queue.remainders.is_empty() { TURN } else { SHORT_TURN }));
            }
            if queue.closing {
                return None;
            }
            self.some.wait(&mut queue);
        }
    }
}

impl StoreRemainder {
    fn end(self, why: Option<Why>) {
        let left: Vec<usize> = self.keys.iter().map(|&(key, ..)| key).collect();
        self.transfer.stage_no_more(&left, why);
    }
}
