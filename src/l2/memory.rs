//! Objects in heap memory, gone with the process. For tests, and for spare memory that is not the arena's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::object_header::{HEADER_BYTES, Header};
use super::url::Parameters;
use super::{Backend, Change, Found, Health, LoadRequest, LookupRequest, Observer, Reply, StoreRequest, Stored, Usage};
use crate::error::{
    Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Result,
};
use crate::hash::KeyHasher;
use crate::key::{ObjectKey, SpaceTag};
use crate::memory_bounds::MemoryBounds;
use crate::policy::{self, EvictionPolicy, Meta, Removal};
use crate::threads;

const DEFAULT_CAPACITY: u64 = 1 << 30;
/// Most keys waiting in the queue.
const QUEUE_MAX: usize = 1 << 16;
/// Bytes that an object takes besides its payload: the header, its entry, and its part of the index.
const OVERHEAD: u64 = (HEADER_BYTES + size_of::<MemoryObject>() + size_of::<ObjectKey>() + 16) as u64;

struct MemoryObject {
    key: ObjectKey,
    header: Header,
    payload: Arc<Vec<u8>>,
    pins: u32,
    uses: u32,
    /// Deleted while pinned: it has no bytes any more, and stays to count its pins.
    hidden: bool,
}

struct Objects {
    index: HashMap<ObjectKey, u32>,
    entries: Vec<Option<MemoryObject>>,
    spare: Vec<u32>,
    policy: Box<dyn EvictionPolicy>,
    usage: Usage,
    observer: Option<Observer>,
}

enum MemoryRequest {
    Lookup(LookupRequest),
    Load(LoadRequest),
    Store(StoreRequest),
    Deleted(Reply<u64>, u64),
}

#[derive(Default)]
struct RequestQueue {
    work: VecDeque<MemoryRequest>,
    /// The number of keys in `work`.
    keys: usize,
    closed: bool,
}

struct MemoryState {
    objects: Mutex<Objects>,
    queue: Mutex<RequestQueue>,
    wake: Condvar,
}

/// The `memory:` backend. One thread, `kvkeep-memory`, answers all requests, so that callers see them answered late as by
/// any other backend.
pub struct MemoryBackend {
    shared: Arc<MemoryState>,
    /// Lookups need the thread too, as if they needed I/O.
    slow: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn closed() -> Error {
    Error::new(KVKEEP_ERR_CLOSED, "the memory backend is closed")
}

fn late(deadline: Instant) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(Error::new(KVKEEP_ERR_TIMEOUT, "the deadline passed before the memory backend came to the request"))
}

impl MemoryRequest {
    fn keys(&self) -> usize {
        match self {
            MemoryRequest::Lookup(lookup) => lookup.keys.len(),
            MemoryRequest::Load(_) | MemoryRequest::Store(_) | MemoryRequest::Deleted(..) => 1,
        }
    }

    fn fail(self, error: Error) {
        match self {
            MemoryRequest::Lookup(lookup) => lookup.reply.send(Err(error)),
            MemoryRequest::Load(load) => load.sink.loaded(load.index, load.buffer, Err(error)),
            MemoryRequest::Store(store) => store.answer(Err(error)),
            MemoryRequest::Deleted(reply, _) => reply.send(Err(error)),
        }
    }
}

impl RequestQueue {
    /// Fails with the reason if requests of `keys` more keys do not fit the queue.
    fn admits(&self, keys: usize) -> Result<()> {
        if self.closed {
            return Err(closed());
        }
        if self.keys == 0 || self.keys + keys <= QUEUE_MAX {
            return Ok(());
        }
        let message = format!("the memory backend has {} keys waiting already: try again later", self.keys);
        Err(Error::new(KVKEEP_ERR_LIMIT, message))
    }
}

impl MemoryObject {
    fn bytes(&self) -> u64 {
        self.payload.len() as u64 + OVERHEAD
    }

    fn meta(&self) -> Meta {
        const TAGS: KeyHasher = KeyHasher::fixed();
        let tag = TAGS.hash(&self.key.key) ^ self.key.space.number();
        Meta { tag, size: self.payload.len() as u64, uses: self.uses, ..Meta::default() }
    }
}

impl Objects {
    fn find(&mut self, key: &ObjectKey) -> Option<(u32, &mut MemoryObject)> {
        let slot = *self.index.get(key)?;
        Some((slot, self.entries.get_mut(slot as usize)?.as_mut()?))
    }

    fn notify(&self, change: Change, slot: u32) {
        if let (Some(observer), Some(entry)) = (&self.observer, &self.entries[slot as usize]) {
            observer(change, &entry.key, entry.payload.len() as u64);
        }
    }

    fn pin(&mut self, key: &ObjectKey) -> Found {
        match self.find(key) {
            Some((_, entry)) if !entry.hidden => {
                entry.pins += 1;
                let bytes = entry.payload.len() as u64;
                self.usage.pins += 1;
                Found::Present(bytes)
            }
            _ => Found::Absent,
        }
    }

    fn unpin(&mut self, key: &ObjectKey) {
        let Some((slot, entry)) = self.find(key).filter(|(_, entry)| entry.pins > 0) else { return };
        entry.pins -= 1;
        let (pins, hidden) = (entry.pins, entry.hidden);
        self.usage.pins -= 1;
        match (pins, hidden) {
            (0, true) => self.forget(slot),
            (0, false) => self.policy.release(slot),
            _ => {}
        }
    }

    /// Marks an object as used. False if there is no such object.
    fn touch(&mut self, key: &ObjectKey) -> bool {
        let Some((slot, entry)) = self.find(key).filter(|(_, entry)| !entry.hidden) else { return false };
        let meta = entry.meta();
        self.policy.touch(slot, &|_| meta);
        true
    }

    /// Removes an object; a pinned one leaves an entry that counts its pins. True if the object was there.
    fn delete(&mut self, key: &ObjectKey) -> bool {
        let Some((slot, _)) = self.find(key).filter(|(_, entry)| !entry.hidden) else { return false };
        self.policy.remove(slot, Removal::Deleted);
        self.usage.objects -= 1;
        self.notify(Change::Vanished, slot);
        match &mut self.entries[slot as usize] {
            Some(entry) if entry.pins > 0 => {
                self.usage.bytes -= entry.bytes();
                entry.hidden = true;
                entry.payload = Arc::default();
            }
            _ => self.forget(slot),
        }
        true
    }

    /// Removes an entry that the policy has forgotten already.
    fn forget(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(slot as usize).and_then(Option::take) else { return };
        self.usage.bytes -= if entry.hidden { 0 } else { entry.bytes() };
        self.index.remove(&entry.key);
        self.spare.push(slot);
    }

    /// Takes `bytes` of the capacity, evicting unpinned objects.
    fn reserve(&mut self, bytes: u64) -> Result<()> {
        let capacity = self.usage.capacity;
        if bytes > capacity {
            let message =
                format!("an object of {bytes} bytes is larger than the memory backend, {capacity}; raise capacity");
            return Err(Error::new(KVKEEP_ERR_NO_MEMORY, message));
        }
        while self.usage.bytes + bytes > capacity {
            let entries = &self.entries;
            let free = |slot: u32| entries[slot as usize].as_ref().is_some_and(|entry| entry.pins == 0);
            let Some(slot) = self.policy.victim(&mut { free }) else {
                return Err(Error::new(KVKEEP_ERR_NO_MEMORY, "the memory backend is full of objects it may not evict"));
            };
            self.policy.remove(slot, Removal::Evicted);
            self.notify(Change::Vanished, slot);
            self.forget(slot);
            self.usage.objects -= 1;
            self.usage.evicted += 1;
        }
        self.usage.bytes += bytes;
        Ok(())
    }

    /// Makes an object visible; the caller has reserved its bytes.
    fn publish(&mut self, key: ObjectKey, header: Header, payload: Arc<Vec<u8>>) {
        let mut entry = MemoryObject { key, header, payload, pins: 0, uses: 0, hidden: false };
        let slot = match self.find(&key) {
            // Deleted while pinned, and stored anew: the pins count against the new object.
            Some((slot, old)) => {
                entry.pins = old.pins;
                slot
            }
            None => self.spare.pop().unwrap_or_else(|| {
                self.entries.push(None);
                self.entries.len() as u32 - 1
            }),
        };
        self.policy.insert(slot, &|_| entry.meta());
        self.usage.objects += 1;
        self.index.insert(key, slot);
        self.entries[slot as usize] = Some(entry);
        self.notify(Change::Appeared, slot);
    }
}

impl MemoryState {
    fn run(&self) {
        loop {
            let mut queue = self.queue.lock();
            while queue.work.is_empty() && !queue.closed {
                self.wake.wait(&mut queue);
            }
            let Some(work) = queue.work.pop_front() else { return };
            queue.keys -= work.keys();
            drop(queue);
            self.answer(work);
        }
    }

    fn answer(&self, work: MemoryRequest) {
        match work {
            MemoryRequest::Lookup(lookup) => {
                let found = late(lookup.deadline).map(|()| self.look_up(&lookup));
                lookup.reply.send(found);
            }
            MemoryRequest::Load(mut load) => {
                let result = late(load.deadline).and_then(|()| self.read(&mut load));
                load.sink.loaded(load.index, load.buffer, result);
            }
            MemoryRequest::Store(store) => {
                let result = late(store.deadline).and_then(|()| self.write(&store));
                store.answer(result);
            }
            MemoryRequest::Deleted(reply, count) => reply.send(Ok(count)),
        }
    }

    fn look_up(&self, lookup: &LookupRequest) -> Vec<Found> {
        let mut objects = self.objects.lock();
        let mut over = false;
        let mut pin = |key| {
            let found = if over { Found::Absent } else { objects.pin(key) };
            over |= lookup.in_order && found == Found::Absent;
            found
        };
        lookup.keys.iter().map(&mut pin).collect()
    }

    fn read(&self, load: &mut LoadRequest) -> Result<Header> {
        let mut objects = self.objects.lock();
        let Some((slot, entry)) = objects.find(&load.key).filter(|(_, entry)| !entry.hidden) else {
            return Err(Error::new(KVKEEP_ERR_NOT_FOUND, format!("the memory backend has no object {}", load.key.key)));
        };
        let (header, payload) = (entry.header, entry.payload.clone());
        let (wanted, length) = (load.buffer.len(), payload.len());
        if wanted != length {
            return Err(Error::invalid(format!("the object has {length} bytes and the buffer {wanted}")));
        }
        entry.uses = entry.uses.saturating_add(1);
        let meta = entry.meta();
        objects.policy.touch(slot, &|_| meta);
        drop(objects);
        load.buffer.bytes_mut().copy_from_slice(&payload);
        Ok(header)
    }

    fn write(&self, store: &StoreRequest) -> Result<Stored> {
        let bytes = store.buffer.len() as u64 + OVERHEAD;
        {
            let mut objects = self.objects.lock();
            if objects.touch(&store.key) {
                return Ok(Stored::Already);
            }
            objects.reserve(bytes)?;
        }
        // Copied without the lock. This thread is the only one that stores, so the key stays absent.
        let mut payload = Vec::new();
        if payload.try_reserve_exact(store.buffer.len()).is_err() {
            self.objects.lock().usage.bytes -= bytes;
            return Err(Error::new(KVKEEP_ERR_NO_MEMORY, "the process has no memory for the memory backend's object"));
        }
        payload.extend_from_slice(store.buffer.bytes());
        let header = store.header.seal(&payload);
        self.objects.lock().publish(store.key, header, Arc::new(payload));
        Ok(Stored::Written)
    }
}

impl MemoryBackend {
    /// Opens an empty one. Parameters: `capacity` (1GiB), `policy` (lru), `lookup` (`cached`, or `slow` to answer lookups
    /// from the thread only).
    pub fn open_url(params: &[(String, String)]) -> Result<Arc<MemoryBackend>> {
        let mut options = Parameters::new("memory", params);
        let capacity = options.capacity(DEFAULT_CAPACITY)?;
        MemoryBounds::of_process(false).check("capacity", "the memory backend", capacity)?;
        let policy = options.text("policy")?.unwrap_or("lru");
        let policy = policy::by_name(policy).map_err(|error| options.wrong("policy", &error.message))?;
        let slow = match options.text("lookup")?.unwrap_or("cached") {
            "cached" => false,
            "slow" => true,
            other => return Err(options.wrong("lookup", &format!("{other:?} is neither cached nor slow"))),
        };
        options.finish()?;
        let usage = Usage { capacity, ..Usage::default() };
        let (index, entries, spare) = (HashMap::new(), Vec::new(), Vec::new());
        let objects = Objects { index, entries, spare, policy, usage, observer: None };
        let shared = Arc::new(MemoryState {
            objects: Mutex::new(objects),
            queue: Mutex::new(RequestQueue::default()),
            wake: Condvar::new(),
        });
        let worker = shared.clone();
        let thread = threads::spawn("kvkeep-memory", move || worker.run())
            .map_err(|error| Error::io("starting the memory backend's thread", &error))?;
        Ok(Arc::new(MemoryBackend { shared, slow, thread: Mutex::new(Some(thread)) }))
    }

    /// Queues all of `work`, or fails all of it on the caller's thread.
    fn submit(&self, work: Vec<MemoryRequest>) {
        let mut queue = self.shared.queue.lock();
        let keys = work.iter().map(MemoryRequest::keys).sum();
        match queue.admits(keys) {
            Ok(()) => {
                queue.keys += keys;
                queue.work.extend(work);
                drop(queue);
                self.shared.wake.notify_one();
            }
            Err(error) => {
                drop(queue);
                work.into_iter().for_each(|work| work.fail(error.clone()));
            }
        }
    }
}

impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        if self.slow {
            found.fill(Found::Unknown);
            return;
        }
        let mut objects = self.shared.objects.lock();
        for (key, found) in keys.iter().zip(found) {
            *found = objects.pin(key);
        }
    }

    fn has_index(&self) -> bool {
        !self.slow
    }

    fn lookup(&self, lookup: LookupRequest) {
        self.submit(vec![MemoryRequest::Lookup(lookup)]);
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        let mut objects = self.shared.objects.lock();
        keys.iter().for_each(|key| objects.unpin(key));
    }

    fn load(&self, loads: Vec<LoadRequest>) {
        self.submit(loads.into_iter().map(MemoryRequest::Load).collect());
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        self.submit(stores.into_iter().map(MemoryRequest::Store).collect());
    }

    fn touch(&self, keys: &[ObjectKey]) {
        let mut objects = self.shared.objects.lock();
        for key in keys {
            objects.touch(key);
        }
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        // Held until the answer is queued, so that no other work takes the place that it needs.
        let mut queue = self.shared.queue.lock();
        if let Err(error) = queue.admits(1) {
            drop(queue);
            return reply.send(Err(error));
        }
        let mut objects = self.shared.objects.lock();
        let count = keys.iter().filter(|key| objects.delete(key)).count();
        drop(objects);
        queue.keys += 1;
        queue.work.push_back(MemoryRequest::Deleted(reply, count as u64));
        drop(queue);
        self.shared.wake.notify_one();
    }

    fn quarantine(&self, key: ObjectKey) {
        self.shared.objects.lock().delete(&key);
    }

    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        let objects = self.shared.objects.lock();
        let visible = objects.entries.iter().flatten().filter(|entry| !entry.hidden);
        let wanted = visible.filter(|entry| space.is_none_or(|space| space == entry.key.space));
        wanted.map(|entry| (entry.key, entry.payload.len() as u64)).collect()
    }

    fn set_observer(&self, observer: Observer) {
        self.shared.objects.lock().observer = Some(observer);
    }

    fn usage(&self) -> Usage {
        self.shared.objects.lock().usage
    }

    fn health(&self) -> Health {
        if self.shared.queue.lock().closed { Health::Bad(closed().message) } else { Health::Good }
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
        let Some(thread) = self.thread.lock().take() else { return };
        // The last handle may be dropped in an answer, on the thread itself, which cannot wait for itself.
        if thread.thread().id() != std::thread::current().id() {
            // A panic there was a panic in an answer; it was reported, and nothing is left to close.
            drop(thread.join());
        }
    }
}

impl Drop for MemoryBackend {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
#[path = "tests/memory.rs"]
mod tests;
