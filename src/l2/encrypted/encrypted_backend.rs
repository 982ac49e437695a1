//! A backend whose objects are encrypted on their way to another one, and decrypted on their way back.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::cipher_memory::CipherMemory;
use super::keys::EncryptionKeys;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::object_header::Header;
use crate::l2::{
    Backend, Found, Health, LoadRequest, LoadSink, LookupRequest, Observer, Reply, StoreRequest, Stored, Usage,
};

/// Most bytes of ciphertext on their way to one backend, unless a single object is larger.
const CIPHER_BYTES_MAX: u64 = 64 << 20;

/// Encrypts stores and decrypts loads of the backend inside. Loads are decrypted where they were read to; stores need memory
/// beside L1, and wait in their order while there is none.
pub struct EncryptedBackend {
    state: Arc<EncryptedState>,
}

struct EncryptedState {
    inner: Arc<dyn Backend>,
    keys: EncryptionKeys,
    memory: Arc<CipherMemory>,
    waiting: Mutex<WaitingStores>,
}

#[derive(Default)]
struct WaitingStores {
    stores: VecDeque<StoreRequest>,
    /// A thread hands them on.
    running: bool,
    closed: bool,
}

/// Decrypts an object before its waiter sees it.
struct DecryptingSink {
    sink: Arc<dyn LoadSink>,
    state: Arc<EncryptedState>,
}

impl LoadSink for DecryptingSink {
    fn loaded(&self, index: u32, mut buffer: Buffer, result: Result<Header>) {
        let result = result.and_then(|header| self.state.keys.decrypt(&header, buffer.bytes_mut()));
        self.sink.loaded(index, buffer, result);
    }
}

impl EncryptedState {
    /// Encrypts and hands on the stores that wait, as far as there is memory. Called with each new store and with each answer,
    /// on the thread of either.
    fn run(self: &Arc<Self>) {
        if std::mem::replace(&mut self.waiting.lock().running, true) {
            return;
        }
        while let Some((store, memory)) = self.next() {
            self.encrypt(store, memory);
        }
    }

    /// The next store, and the memory for it. The thread runs on until there is none.
    fn next(&self) -> Option<(StoreRequest, Buffer)> {
        // Memory is asked for under the lock: what becomes free after that is followed by a call of `run`.
        let mut waiting = self.waiting.lock();
        let memory = waiting.stores.front().and_then(|store| self.memory.lend(store.buffer.len()));
        let next = memory.and_then(|memory| Some((waiting.stores.pop_front()?, memory)));
        waiting.running = next.is_some();
        next
    }

    fn encrypt(self: &Arc<Self>, store: StoreRequest, mut memory: Buffer) {
        memory.bytes_mut().copy_from_slice(store.buffer.bytes());
        match self.keys.encrypt(&store.key, &store.header, memory.bytes_mut()) {
            Ok(header) => {
                let StoreRequest { key, buffer, deadline, reply, .. } = store;
                drop(buffer);
                let me = self.clone();
                let reply = Reply::new(move |result: Result<Stored>| {
                    reply.send(result);
                    me.run();
                });
                self.inner.store(vec![StoreRequest { key, header, buffer: memory, deadline, reply }]);
            }
            Err(error) => store.answer(Err(error)),
        }
    }
}

impl EncryptedBackend {
    /// Wraps `inner`.
    pub fn wrap(inner: Arc<dyn Backend>, keys: EncryptionKeys) -> Result<Arc<EncryptedBackend>> {
        let memory = CipherMemory::new(CIPHER_BYTES_MAX)?;
        let state = EncryptedState { inner, keys, memory, waiting: Mutex::default() };
        Ok(Arc::new(EncryptedBackend { state: Arc::new(state) }))
    }
}

impl Backend for EncryptedBackend {
    fn name(&self) -> &'static str {
        self.state.inner.name()
    }

    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        self.state.inner.lookup_cached(keys, found);
    }

    fn has_index(&self) -> bool {
        self.state.inner.has_index()
    }

    fn lookup(&self, lookup: LookupRequest) {
        self.state.inner.lookup(lookup);
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        self.state.inner.unpin(keys);
    }

    fn load(&self, mut loads: Vec<LoadRequest>) {
        for load in &mut loads {
            load.sink = Arc::new(DecryptingSink { sink: load.sink.clone(), state: self.state.clone() });
        }
        self.state.inner.load(loads);
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        let (fitting, large): (Vec<_>, Vec<_>) =
            stores.into_iter().partition(|store| self.state.memory.fits(store.buffer.len()));
        for store in large {
            store.answer(Err(Error::new(
                KVKEEP_ERR_LIMIT,
                "an object above 1 GiB cannot be encrypted: use smaller chunks",
            )));
        }
        {
            let mut waiting = self.state.waiting.lock();
            if waiting.closed {
                drop(waiting);
                fitting.into_iter().for_each(|store| store.answer(Err(closed())));
                return;
            }
            waiting.stores.extend(fitting);
        }
        self.state.run();
    }

    fn touch(&self, keys: &[ObjectKey]) {
        self.state.inner.touch(keys);
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        self.state.inner.delete(keys, reply);
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        self.state.inner.sweep(space, reply);
    }

    fn quarantine(&self, key: ObjectKey) {
        self.state.inner.quarantine(key);
    }

    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        self.state.inner.list(space)
    }

    fn set_observer(&self, observer: Observer) {
        self.state.inner.set_observer(observer);
    }

    fn usage(&self) -> Usage {
        self.state.inner.usage()
    }

    fn health(&self) -> Health {
        self.state.inner.health()
    }

    fn close(&self) {
        let waiting = {
            let mut waiting = self.state.waiting.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.stores)
        };
        waiting.into_iter().for_each(|store| store.answer(Err(closed())));
        self.state.inner.close();
    }
}

fn closed() -> Error {
    Error::new(KVKEEP_ERR_CLOSED, "the backend is closed")
}
