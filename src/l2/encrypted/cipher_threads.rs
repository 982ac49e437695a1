//! The threads that encrypt what is stored and decrypt what is loaded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::cipher_memory::CipherMemory;
use super::keys::EncryptionKeys;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_CLOSED, Result};
use crate::l2::object_header::Header;
use crate::l2::{Backend, LoadSink, Reply, StoreRequest, Stored};
use crate::threads;

/// Most threads of one backend. A core encrypts and decrypts several GB/s.
const THREADS_MAX: usize = 4;
/// Smaller objects are decrypted by the thread that read them: to wake another takes as long.
const SMALL: usize = 64 << 10;

/// An object that was read and is still encrypted.
pub struct Ciphertext {
    pub sink: Arc<dyn LoadSink>,
    pub index: u32,
    pub buffer: Buffer,
    pub header: Header,
}

enum CipherTask {
    Decrypt(Ciphertext),
    /// A store, and the memory for its ciphertext.
    Encrypt(StoreRequest, Buffer),
}

#[derive(Default)]
struct CipherQueue {
    loads: VecDeque<Ciphertext>,
    /// In their order; the first may wait for memory.
    stores: VecDeque<StoreRequest>,
    closed: bool,
    /// The threads end when no load waits.
    stopped: bool,
}

/// The work of the threads, and what they need for it.
pub struct CipherWork {
    inner: Arc<dyn Backend>,
    keys: EncryptionKeys,
    memory: Arc<CipherMemory>,
    queue: Mutex<CipherQueue>,
    wake: Condvar,
}

impl CipherWork {
    /// The work for a backend. No thread does it yet.
    pub fn new(inner: Arc<dyn Backend>, keys: EncryptionKeys, memory: Arc<CipherMemory>) -> Arc<CipherWork> {
        Arc::new(CipherWork { inner, keys, memory, queue: Mutex::default(), wake: Condvar::new() })
    }

    /// Starts the threads. If one cannot be started, those before it run.
    pub fn start(self: &Arc<Self>, threads: &mut Vec<JoinHandle<()>>) -> Result<()> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for number in 0..cores.min(THREADS_MAX) {
            let me = self.clone();
            let thread = threads::spawn(&format!("kvkeep-cipher-{number}"), move || me.run());
            threads.push(thread.map_err(|error| Error::io("starting a thread that encrypts", &error))?);
        }
        Ok(())
    }

    /// Encrypts stores and hands them on, in the background. Answers them CLOSED after [`close`](CipherWork::close).
    pub fn encrypt_later(&self, stores: Vec<StoreRequest>) {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            return stores.into_iter().for_each(|store| store.answer(Err(closed())));
        }
        queue.stores.extend(stores);
        self.wake.notify_all();
    }

    /// Decrypts an object and answers its load: in the background if it is large.
    pub fn decrypt(&self, object: Ciphertext) {
        if object.buffer.len() >= SMALL {
            let mut queue = self.queue.lock();
            // A backend that hung may answer when the threads are gone.
            if !queue.stopped {
                queue.loads.push_back(object);
                self.wake.notify_one();
                return;
            }
        }
        self.decrypt_now(object);
    }

    /// Refuses stores from now on, and answers those that wait. False if that was done before.
    pub fn close(&self) -> bool {
        let waiting = {
            let mut queue = self.queue.lock();
            if std::mem::replace(&mut queue.closed, true) {
                return false;
            }
            std::mem::take(&mut queue.stores)
        };
        waiting.into_iter().for_each(|store| store.answer(Err(closed())));
        true
    }

    /// Has the threads end when all loads are answered.
    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.wake.notify_all();
    }

    fn run(self: &Arc<Self>) {
        while let Some(task) = self.next() {
            match task {
                CipherTask::Decrypt(object) => self.decrypt_now(object),
                CipherTask::Encrypt(store, memory) => self.encrypt(store, memory),
            }
        }
    }

    /// Waits for work. Loads go first: a request waits for them.
    fn next(&self) -> Option<CipherTask> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(object) = queue.loads.pop_front() {
                return Some(CipherTask::Decrypt(object));
            }
            // Memory is asked for under the lock: what becomes free after that is followed by a wake-up.
            let memory = queue.stores.front().and_then(|store| self.memory.lend(store.buffer.len()));
            if let Some((memory, store)) = memory.and_then(|memory| Some((memory, queue.stores.pop_front()?))) {
                return Some(CipherTask::Encrypt(store, memory));
            }
            if queue.stopped {
                return None;
            }
            self.wake.wait(&mut queue);
        }
    }

    fn decrypt_now(&self, object: Ciphertext) {
        let Ciphertext { sink, index, mut buffer, header } = object;
        let result = self.keys.decrypt(&header, buffer.bytes_mut());
        sink.loaded(index, buffer, result);
    }

    fn encrypt(self: &Arc<Self>, store: StoreRequest, mut memory: Buffer) {
        self.memory.join_pages(&memory);
        memory.bytes_mut().copy_from_slice(store.buffer.bytes());
        let StoreRequest { key, header, buffer, deadline, reply } = store;
        drop(buffer);
        match self.keys.encrypt(&key, header.identity(), memory.bytes_mut()) {
            Ok(header) => {
                let me = self.clone();
                let reply = Reply::new(move |result: Result<Stored>| {
                    reply.send(result);
                    me.memory_came_free();
                });
                self.inner.store(vec![StoreRequest { key, header: header.into(), buffer: memory, deadline, reply }]);
            }
            Err(error) => {
                drop(memory);
                reply.send(Err(error));
                self.memory_came_free();
            }
        }
    }

    fn memory_came_free(&self) {
        if !self.queue.lock().stores.is_empty() {
            self.wake.notify_one();
        }
    }
}

fn closed() -> Error {
    Error::new(KVKEEP_ERR_CLOSED, "the backend is closed")
}
