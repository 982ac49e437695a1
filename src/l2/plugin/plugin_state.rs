//! One open plug-in: its requests under way, its queue, and what it has told of itself.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use once_cell::sync::Lazy;
use parking_lot::{Condvar, Mutex};

use super::call_queue::{CallQueue, PluginCall};
use super::open_request::{OpenRequest, Owed};
use super::vtable::BackendVtable;
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_TIMEOUT};
use crate::key::ObjectKey;
use crate::l2::{Change, Health, Observer, Usage};
use crate::log::{Log, LogLevel};

/// A request without a deadline of its own is given up after so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Usage and health are asked for again after so long.
const REPORT_AGE: Duration = Duration::from_secs(1);
/// Bits of a request's number that count the requests of one plug-in; those above are the plug-in's own number.
const SEQUENCE_BITS: u32 = 40;

/// Every plug-in that is open, or that still owes an answer with memory of L1.
static PLUGINS: Lazy<Mutex<HashMap<u64, Arc<PluginState>>>> = Lazy::new(Mutex::default);
/// The number of the plug-in that was opened last.
static LAST: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct OpenRequests {
    /// The sequence of the request that was made last.
    last: u64,
    open: HashMap<u64, OpenRequest>,
}

/// What it told of itself last.
struct Report {
    usage: Usage,
    health: Health,
    /// When usage and health were asked for last, and how many of the two are not answered.
    asked: Option<Instant>,
    unanswered: u32,
    /// Answers that were refused, and the reason of the last.
    refused: u64,
    refusal: String,
}

/// One open plug-in.
pub(super) struct PluginState {
    /// Its number, the upper bits of its requests'.
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) vtable: BackendVtable,
    /// What its open function gave.
    pub(super) backend: AtomicPtr<c_void>,
    /// Bytes of L1: no payload is larger.
    pub(super) arena_bytes: u64,
    pub(super) log: Log,
    pub(super) queue: Mutex<CallQueue>,
    pub(super) wake: Condvar,
    pub(super) pins: AtomicU64,
    requests: Mutex<OpenRequests>,
    /// It was closed: when its last request is completed, it is forgotten.
    over: AtomicBool,
    report: Mutex<Report>,
    observer: Mutex<Option<Observer>>,
}

// SAFETY: the vtable's functions may be called from any thread, and its userdata is only passed to them.
unsafe impl Send for PluginState {}
// SAFETY: as above.
unsafe impl Sync for PluginState {}

/// The plug-in that a request or a host call names.
pub(super) fn find(number: u64) -> Option<Arc<PluginState>> {
    PLUGINS.lock().get(&number).cloned()
}

/// The plug-in that made a request.
pub(super) fn find_by_request(request: u64) -> Option<Arc<PluginState>> {
    find(request >> SEQUENCE_BITS)
}

impl PluginState {
    /// A plug-in that is about to be opened. It is found by its number from now on.
    pub(super) fn register(
        name: String,
        vtable: BackendVtable,
        arena_bytes: u64,
        depth: usize,
        log: Log,
    ) -> Arc<PluginState> {
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let report = Report {
            usage: Usage::default(),
            health: Health::Good,
            asked: None,
            unanswered: 0,
            refused: 0,
            refusal: String::new(),
        };
        let state = Arc::new(PluginState {
            number,
            name,
            vtable,
            backend: AtomicPtr::new(std::ptr::null_mut()),
            arena_bytes,
            log,
            queue: Mutex::new(CallQueue::new(depth)),
            wake: Condvar::new(),
            pins: AtomicU64::new(0),
            requests: Mutex::default(),
            over: AtomicBool::new(false),
            report: Mutex::new(report),
            observer: Mutex::default(),
        });
        PLUGINS.lock().insert(number, state.clone());
        state
    }

    /// Answers with an error what nobody will answer any more, and forgets the plug-in, unless it still owes an answer with memory of
    /// L1: that stays reserved until the plug-in completes the request.
    pub(super) fn unregister(&self) {
        let closed = Error::new(KVKEEP_ERR_CLOSED, format!("the plug-in {} is closed", self.name));
        let rest = self.queue.lock().take_rest();
        rest.into_iter().for_each(|owed| owed.fail(&closed));
        self.give_up(|_| true, &closed);
        self.over.store(true, Ordering::SeqCst);
        let owed = self.forget_if_over();
        if owed == 0 {
            return;
        }
        self.log.write(LogLevel::Error, || {
            format!(
                "the plug-in {} closed without completing {owed} requests: their memory stays reserved until it does, or until the \
                 process exits",
                self.name
            )
        });
    }

    /// Forgets a plug-in that is closed and owes nothing. Returns the number of requests that it owes.
    pub(super) fn forget_if_over(&self) -> usize {
        let owed = self.requests.lock().open.len();
        if owed == 0 && self.over.load(Ordering::SeqCst) {
            PLUGINS.lock().remove(&self.number);
        }
        owed
    }

    /// Queues a call, or answers it with the reason why not.
    pub(super) fn push(&self, call: PluginCall) {
        let refused = self.queue.lock().push(call);
        match refused {
            Ok(()) => drop(self.wake.notify_one()),
            Err((PluginCall::Request(Owed::Usage | Owed::Health), _)) => self.report.lock().unanswered -= 1,
            Err((PluginCall::Request(owed), error)) => owed.fail(&error),
            // Uses that the plug-in does not learn of, and pins of a plug-in that is closed.
            Err((PluginCall::Touch(_) | PluginCall::Unpin(_), _)) => {}
        }
    }

    /// Notes a request that is about to be made. Returns its number.
    pub(super) fn note(&self, request: OpenRequest) -> u64 {
        let mut requests = self.requests.lock();
        requests.last += 1;
        let number = self.number << SEQUENCE_BITS | requests.last;
        requests.open.insert(number, request);
        number
    }

    /// Takes a request that is being completed; for one that is not open, the reason.
    pub(super) fn take(&self, request: u64) -> Result<OpenRequest, &'static str> {
        let mut requests = self.requests.lock();
        let made = request & ((1 << SEQUENCE_BITS) - 1);
        let reason =
            if made == 0 || made > requests.last { "a request that was never made" } else { "a request twice" };
        let taken = requests.open.remove(&request).ok_or(reason)?;
        drop(requests);
        self.release(taken.object_count());
        Ok(taken)
    }

    /// The plug-in has so many objects less in hand.
    pub(super) fn release(&self, objects: usize) {
        if self.queue.lock().release(objects) {
            self.wake.notify_all();
        }
    }

    /// Gives up lists and removals that take too long, and loads and stores that waited too long to be asked for.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        let late = Error::new(KVKEEP_ERR_TIMEOUT, format!("the plug-in {} did not answer in time", self.name));
        self.give_up(|request| request.until <= now, &late);
        let waited = self.queue.lock().take_late(now);
        waited.into_iter().for_each(|owed| owed.fail(&late));
    }

    /// Whether there are requests that `expire` may have to give up.
    pub(super) fn has_waiters(&self) -> bool {
        let waits = |request: &OpenRequest| matches!(request.owed, Owed::Remove(..) | Owed::List(_));
        self.queue.lock().has_waiting() || self.requests.lock().open.values().any(waits)
    }

    /// Gives up lists and removals; their arrays stay, and the keys count as being removed until the plug-in answers: it may still
    /// delete them.
    fn give_up(&self, which: impl Fn(&OpenRequest) -> bool, error: &Error) {
        let mut waiters = Vec::new();
        for request in self.requests.lock().open.values_mut() {
            if matches!(request.owed, Owed::Remove(..) | Owed::List(_)) && which(request) {
                waiters.push(request.take_waiter());
            }
        }
        for waiter in waiters {
            waiter.fail(error);
        }
    }

    /// Keys are not being removed any more.
    pub(super) fn end_removal(&self, keys: &[ObjectKey]) {
        if self.queue.lock().end_removal(keys) {
            self.wake.notify_one();
        }
    }

    /// Counts and logs an answer that is refused.
    pub(super) fn refuse(&self, why: &str) {
        {
            let mut report = self.report.lock();
            report.refused += 1;
            why.clone_into(&mut report.refusal);
        }
        self.log.often("plug-in misbehaves", LogLevel::Error, || {
            format!("the plug-in {} {why}: that is refused; have it corrected", self.name)
        });
    }

    /// Asks for usage and health, if the last answers are old.
    fn refresh(&self) {
        let asks = [(self.vtable.usage.is_some(), Owed::Usage), (self.vtable.health.is_some(), Owed::Health)];
        {
            let mut report = self.report.lock();
            if report.unanswered > 0 || report.asked.is_some_and(|asked| asked.elapsed() < REPORT_AGE) {
                return;
            }
            report.asked = Some(Instant::now());
            report.unanswered = asks.iter().filter(|(asked, _)| *asked).count() as u32;
        }
        for (_, owed) in asks.into_iter().filter(|(asked, _)| *asked) {
            self.push(PluginCall::Request(owed));
        }
    }

    /// Takes in an answer about usage.
    pub(super) fn set_usage(&self, usage: Option<Usage>) {
        let mut report = self.report.lock();
        report.unanswered = report.unanswered.saturating_sub(1);
        if let Some(usage) = usage {
            report.usage = usage;
        }
    }

    /// Takes in an answer about health.
    pub(super) fn set_health(&self, health: Health) {
        let mut report = self.report.lock();
        report.unanswered = report.unanswered.saturating_sub(1);
        report.health = health;
    }

    /// The usage as it was told last.
    pub(super) fn usage(&self) -> Usage {
        self.refresh();
        Usage { pins: self.pins.load(Ordering::Relaxed), ..self.report.lock().usage }
    }

    /// The health as it was told last.
    pub(super) fn health(&self) -> Health {
        self.refresh();
        if self.queue.lock().is_closed() {
            return Health::Bad("the plug-in is closed".to_owned());
        }
        let report = self.report.lock();
        let waited = report.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        if report.unanswered > 0 && waited > PATIENCE {
            return Health::Bad(format!("it has not said for {} s whether it is well", waited.as_secs()));
        }
        match &report.health {
            Health::Good if report.refused > 0 => Health::Noted(format!(
                "{} of its answers were refused; the last time it {}",
                report.refused, report.refusal
            )),
            health => health.clone(),
        }
    }

    /// Replaces the observer of changes.
    pub(super) fn set_observer(&self, observer: Observer) {
        *self.observer.lock() = Some(observer);
    }

    /// Notifies the observer, in the order in which the plug-in answers.
    pub(super) fn notify(&self, change: Change, key: &ObjectKey, bytes: u64) {
        if let Some(observer) = &*self.observer.lock() {
            observer(change, key, bytes);
        }
    }

    /// Counts pins that a lookup has taken.
    pub(super) fn add_pins(&self, count: u64) {
        self.pins.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes pins off.
    pub(super) fn unpin(&self, keys: &[ObjectKey]) {
        let count = keys.len() as u64;
        // Never below 0, whoever unpins what was never pinned.
        let _ = self.pins.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pins| Some(pins.saturating_sub(count)));
        if self.vtable.unpin.is_some() {
            self.push(PluginCall::Unpin(keys.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::open_request::AfterRemoval;
    use super::super::vtable::BackendAnswer;
    use super::*;
    use crate::l2::Reply;
    use crate::l2::tests::key;

    #[test]
    fn a_removal_that_was_given_up_goes_on_until_it_is_answered() {
        // SAFETY: all zeroes are a valid value of it.
        let vtable: BackendVtable = unsafe { std::mem::zeroed() };
        let state = PluginState::register("slow".to_owned(), vtable, 1 << 20, 1, Log::none());
        let (sender, answers) = channel();
        let removal =
            Owed::Remove(vec![key(1)], AfterRemoval::Reply(Reply::new(move |result| sender.send(result).unwrap())));
        state.push(PluginCall::Request(removal));
        let Some(PluginCall::Request(removal)) = state.queue.lock().pop(1) else { panic!("no removal in the queue") };
        let request = state.note(OpenRequest::new(removal, Instant::now()));
        state.expire();
        assert_eq!(answers.recv().unwrap().unwrap_err().status, KVKEEP_ERR_TIMEOUT);
        assert!(state.queue.lock().is_being_removed(&key(1)));
        let open = state.take(request).unwrap();
        // SAFETY: all zeroes are a valid value of it.
        let mut answer: BackendAnswer = unsafe { std::mem::zeroed() };
        (answer.struct_size, answer.abi_version) = (size_of::<BackendAnswer>() as u32, 1);
        state.end(open, &raw const answer).unwrap();
        assert!(!state.queue.lock().is_being_removed(&key(1)));
        state.unregister();
        assert!(find(state.number).is_none());
    }
}
