//! Stores that are larger than the memory L1 has for them: the rest of each waits in the background for what writes and copies under
//! way free, and goes on as it comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::registry::Transfers;
use super::transfer_job::Transfer;
use crate::abi::View;
use crate::error::{KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA, KVKEEP_OK, KVKEEP_PARTIAL, Result, Status};
use crate::key::Key;
use crate::l1::memory_wait::is_refused;

/// Keys for which memory is asked at a time.
const WINDOW: usize = 64;
/// How long one store's rest is waited for before that of the next one is looked at.
const TURN: Duration = Duration::from_millis(500);
/// … where there is a next one.
const SHORT_TURN: Duration = Duration::from_millis(20);
/// A store gives up that was given no memory for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The keys of a store that have no memory yet.
pub(super) struct Rest {
    pub(super) transfer: Arc<Transfer>,
    /// The keys by their places, in order, with what each needs.
    pub(super) keys: VecDeque<(usize, Key, u64)>,
    /// When it was given memory last.
    pub(super) fed: Instant,
}

#[derive(Default)]
struct Queue {
    rests: VecDeque<Rest>,
    closing: bool,
}

/// All rests, and the thread that asks for their memory; none before the first.
#[derive(Default)]
pub(super) struct Streams {
    queue: Mutex<Queue>,
    some: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Why a store is given no more memory.
type Why = (Status, String);

impl Transfers {
    /// Has the rest of a store wait for memory.
    pub(super) fn stream(&self, rest: Rest) {
        let mut thread = self.streams.thread.lock();
        if thread.is_none()
            && let Some(me) = self.me.upgrade()
        {
            let run = move || me.run_streams();
            *thread = std::thread::Builder::new().name("kvkeep-stream".to_owned()).spawn(run).ok();
        }
        if thread.is_none() {
            let why = "no thread can be started that waits for memory".to_owned();
            return rest.end(Some((KVKEEP_ERR_NO_MEMORY, why)));
        }
        self.streams.queue.lock().rests.push_back(rest);
        self.streams.some.notify_one();
    }

    fn run_streams(&self) {
        while let Some((mut rest, wait)) = self.streams.next() {
            match self.feed(&mut rest, wait) {
                None => self.streams.queue.lock().rests.push_back(rest),
                Some(why) => rest.end(why),
            }
        }
    }

    /// Asks for memory for the next keys of a store. When it is through: why with less than all.
    fn feed(&self, rest: &mut Rest, wait: Duration) -> Option<Option<Why>> {
        if rest.transfer.is_over() {
            return Some(None);
        }
        let window: Vec<(usize, Key, u64)> = rest.keys.iter().take(WINDOW).copied().collect();
        let (keys, sizes): (Vec<Key>, Vec<u64>) = window.iter().map(|&(_, key, size)| (key, size)).unzip();
        let mut views = vec![View::none(Status::KVKEEP_PENDING); keys.len()];
        let copy = rest.transfer.copy;
        let status = match self.ask(copy, &keys, &sizes, rest.fed, wait, &mut views) {
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
        rest.keys.drain(..window.len());
        refused.iter().rev().for_each(|(item, _)| rest.keys.push_front(*item));
        if !taken.is_empty() {
            rest.fed = Instant::now();
            if !rest.transfer.take_more(self.cache(), &taken, &taken_views) {
                return Some(None);
            }
        }
        let Some((_, first)) = refused.first() else { return rest.keys.is_empty().then_some(None) };
        let hopeless = status == KVKEEP_PARTIAL && taken.is_empty();
        (hopeless || rest.fed.elapsed() >= PATIENCE).then(|| {
            let of_space = *first == KVKEEP_ERR_QUOTA as i32;
            let why = self.cache().explain_refusal(copy, of_space).unwrap_or_else(|error| error.message);
            Some((if of_space { KVKEEP_ERR_QUOTA } else { KVKEEP_ERR_NO_MEMORY }, why))
        })
    }

    /// Asks for memory. What was given none since `fed` for as long as stores wait, or has none to wait for, takes that of what is still
    /// to be written.
    fn ask(
        &self,
        copy: u64,
        keys: &[Key],
        sizes: &[u64],
        fed: Instant,
        wait: Duration,
        views: &mut [View],
    ) -> Result<Status> {
        let store_wait = self.cache().store_wait();
        let left = store_wait.saturating_sub(fed.elapsed());
        if store_wait.is_zero() {
            return self.cache().reserve_patiently(copy, keys, sizes, wait, views);
        }
        if !left.is_zero() {
            let status = self.cache().reserve_patiently(copy, keys, sizes, wait.min(left), views)?;
            if status != KVKEEP_PARTIAL || views.iter().any(|view| !is_refused(view)) {
                return Ok(status);
            }
        }
        let all = self.cache().reserve_write(copy, keys, sizes, false, views)?;
        Ok(if all { KVKEEP_OK } else { KVKEEP_PARTIAL })
    }

    /// Ends the thread. No store waits any more.
    pub(super) fn close_streams(&self) {
        self.streams.queue.lock().closing = true;
        self.streams.some.notify_one();
        if let Some(thread) = self.streams.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Streams {
    /// The next rest, and how long to wait for its memory. None when closing.
    fn next(&self) -> Option<(Rest, Duration)> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(rest) = queue.rests.pop_front() {
                return Some((rest, if queue.rests.is_empty() { TURN } else { SHORT_TURN }));
            }
            if queue.closing {
                return None;
            }
            self.some.wait(&mut queue);
        }
    }
}

impl Rest {
    fn end(self, why: Option<Why>) {
        let left: Vec<usize> = self.keys.iter().map(|&(key, ..)| key).collect();
        self.transfer.stage_no_more(&left, why);
    }
}
