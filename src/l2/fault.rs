//! Any backend, made to fail on purpose: errors, delays, hangs, torn and flipped bytes, decided by a seed.
//!
//! Whether the nth lookup, load or store fails depends on the seed and on n alone. A request that is held back is held
//! with its buffer, answered exactly once, and never from its caller's thread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::object_header::Header;
use super::url::Parameters;
use super::{Backend, Found, Health, LoadRequest, LoadSink, LookupRequest, Observer, Reply, StoreRequest, Usage};
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_CLOSED, KVKEEP_ERR_IO, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::space_names::SpaceNames;
use crate::threads;

/// The probabilities with which requests of one kind fail.
struct Chances {
    kind: u64,
    what: &'static str,
    error: f64,
    hang: f64,
    delay: f64,
    torn: f64,
    flip: f64,
    /// Only so many requests may fail.
    most: u64,
    asked: AtomicU64,
}

/// The failures drawn for one request.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Fate {
    hang: bool,
    error: bool,
    delay: bool,
    torn: bool,
    flip: bool,
    /// Random bits that choose the bit to flip.
    luck: u64,
}

enum FaultRequest {
    Lookup(LookupRequest),
    Load(LoadRequest),
    Store(StoreRequest),
}

/// A request held back until `at`; ordered by `at`, then by `number`.
struct DelayedRequest {
    at: Instant,
    number: u64,
    request: FaultRequest,
    error: Option<Error>,
}

#[derive(Default)]
struct DelayQueue {
    due: BinaryHeap<Reverse<DelayedRequest>>,
    hung: Vec<FaultRequest>,
    held: u64,
    closed: bool,
}

struct FaultState {
    inner: Arc<dyn Backend>,
    waiting: Mutex<DelayQueue>,
    wake: Condvar,
}

/// The failures of a `fault:` URL.
pub struct FaultOptions {
    seed: u64,
    lookups: Chances,
    loads: Chances,
    stores: Chances,
    delay_by: Duration,
}

/// The backend `fault:`, around another one.
pub struct FaultBackend {
    shared: Arc<FaultState>,
    options: FaultOptions,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Sixty-four well mixed bits (splitmix64).
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl PartialEq for DelayedRequest {
    fn eq(&self, other: &DelayedRequest) -> bool {
        self.number == other.number
    }
}

impl Eq for DelayedRequest {}

impl PartialOrd for DelayedRequest {
    fn partial_cmp(&self, other: &DelayedRequest) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DelayedRequest {
    fn cmp(&self, other: &DelayedRequest) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl FaultRequest {
    fn fail(self, error: Error) {
        match self {
            FaultRequest::Lookup(lookup) => lookup.reply.send(Err(error)),
            FaultRequest::Load(load) => load.sink.loaded(load.index, load.buffer, Err(error)),
            FaultRequest::Store(store) => store.answer(Err(error)),
        }
    }

    fn forward(self, inner: &dyn Backend) {
        match self {
            FaultRequest::Lookup(lookup) => inner.lookup(lookup),
            FaultRequest::Load(load) => inner.load(vec![load]),
            FaultRequest::Store(store) => inner.store(vec![store]),
        }
    }

    /// Damages the request's bytes on their way, as `fate` has it.
    fn spoil(self, fate: Fate) -> FaultRequest {
        if !fate.torn && !fate.flip {
            return self;
        }
        match self {
            FaultRequest::Load(mut load) => {
                load.sink = Arc::new(Spoiled { sink: load.sink, fate });
                FaultRequest::Load(load)
            }
            FaultRequest::Store(store) => FaultRequest::Store(tear(store)),
            lookup => lookup,
        }
    }
}

/// Spoils what is loaded before its waiter sees it.
struct Spoiled {
    sink: Arc<dyn LoadSink>,
    fate: Fate,
}

impl LoadSink for Spoiled {
    fn loaded(&self, index: u32, mut buffer: Buffer, result: Result<Header>) {
        if result.is_ok() && !buffer.is_empty() {
            let bytes = buffer.bytes_mut();
            let length = bytes.len();
            if self.fate.torn {
                // Inverted and not zeroed, so that a tail of zeros is torn too.
                bytes[length / 2..].iter_mut().for_each(|byte| *byte = !*byte);
            }
            if self.fate.flip {
                let bit = (self.fate.luck % (length as u64 * 8)) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        self.sink.loaded(index, buffer, result);
    }
}

/// The same store of a payload whose second half never reached the medium. The caller's buffer is held meanwhile.
fn tear(store: StoreRequest) -> StoreRequest {
    let StoreRequest { key, header, buffer, deadline, reply } = store;
    match Buffer::heap(buffer.len()) {
        Ok(mut torn) => {
            let half = buffer.len() / 2;
            torn.bytes_mut()[..half].copy_from_slice(&buffer.bytes()[..half]);
            let header = header.seal(buffer.bytes()).into();
            let reply = Reply::new(move |result| {
                drop(buffer);
                reply.send(result);
            });
            StoreRequest { key, header, buffer: torn, deadline, reply }
        }
        // Without memory for the torn copy the store goes through whole.
        Err(_) => StoreRequest { key, header, buffer, deadline, reply },
    }
}

impl Chances {
    fn draw(&self, seed: u64) -> Fate {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let dice = |side: u64| mix(mix(mix(seed ^ self.kind) ^ number) ^ side);
        let happens =
            |side, chance: f64| number < self.most && ((dice(side) >> 11) as f64) < chance * (1u64 << 53) as f64;
        Fate {
            hang: happens(1, self.hang),
            error: happens(2, self.error),
            delay: happens(3, self.delay),
            torn: happens(4, self.torn),
            flip: happens(5, self.flip),
            luck: dice(6),
        }
    }
}

impl FaultState {
    /// The thread: answers or forwards each delayed request in its time, and after close all that are left.
    fn run(&self) {
        let mut waiting = self.waiting.lock();
        loop {
            let now = Instant::now();
            match waiting.due.peek().map(|Reverse(held)| held.at) {
                Some(at) if at <= now => {
                    let Some(Reverse(held)) = waiting.due.pop() else { continue };
                    parking_lot::MutexGuard::unlocked(&mut waiting, || match held.error {
                        Some(error) => held.request.fail(error),
                        None => held.request.forward(&*self.inner),
                    });
                }
                Some(at) => drop(self.wake.wait_until(&mut waiting, at)),
                None if waiting.closed => return,
                None => self.wake.wait(&mut waiting),
            }
        }
    }

    fn hold(&self, at: Instant, request: FaultRequest, error: Option<Error>) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            request.fail(Error::new(KVKEEP_ERR_CLOSED, "the fault backend is closed"));
            return;
        }
        let number = waiting.held;
        waiting.held += 1;
        waiting.due.push(Reverse(DelayedRequest { at, number, request, error }));
        drop(waiting);
        self.wake.notify_one();
    }
}

impl FaultOptions {
    /// Reads the parameters: `fault.seed`; the probabilities `fault.lookup_error`, `fault.load_error`,
    /// `fault.store_error`, `fault.lookup_hang`, `fault.load_hang`, `fault.store_hang`, `fault.delay` (by
    /// `fault.delay_ms`, 10 if not given), `fault.load_delay` (of loads alone), `fault.torn` (loads lose their second half, stores write only the first) and
    /// `fault.flip` (one bit of a load). Of each kind of request only the first `fault.first` meet all that, if it is given.
    pub fn parse(params: &[(String, String)]) -> Result<FaultOptions> {
        let mut options = Parameters::new("fault", params);
        let seed = options.number("fault.seed", 0)?;
        let most = options.number("fault.first", u64::MAX)?;
        let torn = options.chance("fault.torn")?;
        let flip = options.chance("fault.flip")?;
        let delay = options.chance("fault.delay")?;
        let load_delay = options.chance("fault.load_delay")?;
        let chances = |kind, what, error, hang| Chances {
            kind,
            what,
            error,
            hang,
            delay: if kind == 2 { delay.max(load_delay) } else { delay },
            torn: if kind == 1 { 0.0 } else { torn },
            flip: if kind == 2 { flip } else { 0.0 },
            most,
            asked: AtomicU64::new(0),
        };
        let lookups = chances(1, "lookup", options.chance("fault.lookup_error")?, options.chance("fault.lookup_hang")?);
        let loads = chances(2, "load", options.chance("fault.load_error")?, options.chance("fault.load_hang")?);
        let stores = chances(3, "store", options.chance("fault.store_error")?, options.chance("fault.store_hang")?);
        let delay_by = options.milliseconds("fault.delay_ms", 10)?;
        options.finish()?;
        Ok(FaultOptions { seed, lookups, loads, stores, delay_by })
    }
}

impl FaultBackend {
    /// Wraps `inner`.
    pub fn wrap(inner: Arc<dyn Backend>, options: FaultOptions) -> Result<Arc<FaultBackend>> {
        let shared = Arc::new(FaultState { inner, waiting: Mutex::new(DelayQueue::default()), wake: Condvar::new() });
        let timer = shared.clone();
        let thread = threads::spawn("kvkeep-fault", move || timer.run())
            .map_err(|error| Error::io("starting the fault backend's thread", &error))?;
        Ok(Arc::new(FaultBackend { shared, options, thread: Mutex::new(Some(thread)) }))
    }

    /// The number of requests that hang now.
    pub fn hung(&self) -> usize {
        self.shared.waiting.lock().hung.len()
    }

    /// Forwards every request that hangs to the wrapped backend. Gives their number.
    pub fn release_hangs(&self) -> usize {
        let hung = std::mem::take(&mut self.shared.waiting.lock().hung);
        let count = hung.len();
        hung.into_iter().for_each(|request| request.forward(&*self.shared.inner));
        count
    }

    /// Delays, hangs or fails a request as its seed decides; gives it back if it goes on at once.
    fn meet(&self, chances: &Chances, request: FaultRequest) -> Option<FaultRequest> {
        let fate = chances.draw(self.options.seed);
        let request = request.spoil(fate);
        if fate.hang {
            let mut waiting = self.shared.waiting.lock();
            if !waiting.closed {
                waiting.hung.push(request);
                return None;
            }
            return Some(request);
        }
        if !fate.error && !fate.delay {
            return Some(request);
        }
        let error = || Error::new(KVKEEP_ERR_IO, format!("the fault backend made this {} fail", chances.what));
        let by = if fate.delay { self.options.delay_by } else { Duration::ZERO };
        self.shared.hold(Instant::now() + by, request, fate.error.then(error));
        None
    }
}

impl Backend for FaultBackend {
    fn name(&self) -> &'static str {
        "fault"
    }

    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        // Answers given at once cannot fail, so that lookups which are to fail have to go to `lookup`.
        if self.options.lookups.error > 0.0 || self.options.lookups.hang > 0.0 || self.options.lookups.delay > 0.0 {
            found.fill(Found::Unknown);
        } else {
            self.shared.inner.lookup_cached(keys, found);
        }
    }

    fn has_index(&self) -> bool {
        self.shared.inner.has_index()
    }

    fn lookup(&self, lookup: LookupRequest) {
        if let Some(request) = self.meet(&self.options.lookups, FaultRequest::Lookup(lookup)) {
            request.forward(&*self.shared.inner);
        }
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        self.shared.inner.unpin(keys);
    }

    fn load(&self, loads: Vec<LoadRequest>) {
        let through = |load| match self.meet(&self.options.loads, FaultRequest::Load(load)) {
            Some(FaultRequest::Load(load)) => Some(load),
            _ => None,
        };
        let loads: Vec<_> = loads.into_iter().filter_map(through).collect();
        if !loads.is_empty() {
            self.shared.inner.load(loads);
        }
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        let through = |store| match self.meet(&self.options.stores, FaultRequest::Store(store)) {
            Some(FaultRequest::Store(store)) => Some(store),
            _ => None,
        };
        let stores: Vec<_> = stores.into_iter().filter_map(through).collect();
        if !stores.is_empty() {
            self.shared.inner.store(stores);
        }
    }

    fn touch(&self, keys: &[ObjectKey]) {
        self.shared.inner.touch(keys);
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        self.shared.inner.delete(keys, reply);
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        self.shared.inner.sweep(space, reply);
    }

    fn quarantine(&self, key: ObjectKey) {
        self.shared.inner.quarantine(key);
    }

    fn name_space(&self, space: SpaceTag, names: &SpaceNames) {
        self.shared.inner.name_space(space, names);
    }

    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        self.shared.inner.list(space)
    }

    fn set_observer(&self, observer: Observer) {
        self.shared.inner.set_observer(observer);
    }

    fn usage(&self) -> Usage {
        self.shared.inner.usage()
    }

    fn health(&self) -> Health {
        self.shared.inner.health()
    }

    /// Delayed requests go on in their time, as in a slow backend, hanging ones are answered as cancelled, and the wrapped backend is
    /// closed last.
    fn close(&self) {
        {
            let mut waiting = self.shared.waiting.lock();
            waiting.closed = true;
            let now = Instant::now();
            for request in std::mem::take(&mut waiting.hung) {
                let error = Error::new(KVKEEP_ERR_CANCELLED, "the fault backend was closed while the request hung");
                let number = waiting.held;
                waiting.held += 1;
                waiting.due.push(Reverse(DelayedRequest { at: now, number, request, error: Some(error) }));
            }
        }
        self.shared.wake.notify_one();
        let Some(thread) = self.thread.lock().take() else { return };
        // The last handle may be dropped in an answer, on the thread itself, which cannot wait for itself.
        if thread.thread().id() != std::thread::current().id() {
            // A panic there was a panic in an answer; it was reported, and nothing is left to close.
            drop(thread.join());
        }
        self.shared.inner.close();
    }
}

impl Drop for FaultBackend {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
#[path = "tests/fault.rs"]
mod tests;
