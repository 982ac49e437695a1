//! A backend whose objects are encrypted on their way to another one, and decrypted on their way back.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::cipher_memory::CipherMemory;
use super::cipher_threads::{CipherWork, Ciphertext};
use super::keys::EncryptionKeys;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_LIMIT, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::object_header::Header;
use crate::l2::{Backend, Found, Health, LoadRequest, LoadSink, LookupRequest, Observer, Reply, StoreRequest, Usage};

/// Most bytes of ciphertext on their way to one backend, unless a single object is larger.
const CIPHER_BYTES_MAX: u64 = 64 << 20;

/// Encrypts stores and decrypts loads of the backend inside, on threads of its own, so that those that move bytes go on. Loads are
/// decrypted where they were read to; stores need memory beside L1, and wait in their order while there is none.
pub struct EncryptedBackend {
    inner: Arc<dyn Backend>,
    memory: Arc<CipherMemory>,
    work: Arc<CipherWork>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Decrypts an object before its waiter sees it.
struct DecryptingSink {
    sink: Arc<dyn LoadSink>,
    work: Arc<CipherWork>,
}

impl LoadSink for DecryptingSink {
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>) {
        let sink = self.sink.clone();
        match result {
            Ok(header) => self.work.decrypt(Ciphertext { sink, index, buffer, header }),
            Err(error) => sink.loaded(index, buffer, Err(error)),
        }
    }
}

impl EncryptedBackend {
    /// Wraps `inner`.
    pub fn wrap(inner: Arc<dyn Backend>, keys: EncryptionKeys) -> Result<Arc<EncryptedBackend>> {
        let backend = EncryptedBackend::without_threads(inner, keys)?;
        backend.work.start(&mut backend.threads.lock())?;
        Ok(Arc::new(backend))
    }

    fn without_threads(inner: Arc<dyn Backend>, keys: EncryptionKeys) -> Result<EncryptedBackend> {
        let memory = CipherMemory::new(CIPHER_BYTES_MAX)?;
        let work = CipherWork::new(inner.clone(), keys, memory.clone());
        Ok(EncryptedBackend { inner, memory, work, threads: Mutex::default() })
    }

    /// Waits until all loads that wait are answered and the threads have ended.
    fn end_threads(&self) {
        self.work.stop();
        for thread in self.threads.lock().drain(..) {
            // The last handle may be dropped in an answer, on one of the threads, which cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                // A panic there was a panic in an answer; it was reported, and nothing is left to close.
                drop(thread.join());
            }
        }
    }
}

impl Backend for EncryptedBackend {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        self.inner.lookup_cached(keys, found);
    }

    fn has_index(&self) -> bool {
        self.inner.has_index()
    }

    fn lookup(&self, lookup: LookupRequest) {
        self.inner.lookup(lookup);
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        self.inner.unpin(keys);
    }

    fn load(&self, mut loads: Vec<LoadRequest>) {
        for load in &mut loads {
            load.sink = Arc::new(DecryptingSink { sink: load.sink.clone(), work: self.work.clone() });
        }
        self.inner.load(loads);
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        let (fitting, large): (Vec<_>, Vec<_>) =
            stores.into_iter().partition(|store| self.memory.fits(store.buffer.len()));
        for store in large {
            store.answer(Err(Error::new(
                KVKEEP_ERR_LIMIT,
                "an object above 1 GiB cannot be encrypted: use smaller chunks",
            )));
        }
        self.work.encrypt_later(fitting);
    }

    fn touch(&self, keys: &[ObjectKey]) {
        self.inner.touch(keys);
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        self.inner.delete(keys, reply);
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        self.inner.sweep(space, reply);
    }

    fn quarantine(&self, key: ObjectKey) {
        self.inner.quarantine(key);
    }

    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        self.inner.list(space)
    }

    fn set_observer(&self, observer: Observer) {
        self.inner.set_observer(observer);
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn close(&self) {
        if self.work.close() {
            // It answers the loads under way, which are still to be decrypted.
            self.inner.close();
            self.end_threads();
        }
    }
}

impl Drop for EncryptedBackend {
    fn drop(&mut self) {
        self.work.close();
        self.end_threads();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;

    use super::*;
    use crate::error::KVKEEP_ERR_CLOSED;
    use crate::l2::encrypted::{KeyCallback, KeyLocation};
    use crate::l2::memory::MemoryBackend;
    use crate::l2::tests::*;

    const LARGE: usize = 1 << 20;

    fn keys() -> EncryptionKeys {
        let callback = KeyCallback::new(|_, number, key| {
            key.fill(7);
            if number == 0 { 0 } else { crate::error::KVKEEP_ERR_NOT_FOUND as i32 }
        });
        EncryptionKeys::read(&KeyLocation::Callback("test".to_owned()), &callback).unwrap()
    }

    #[test]
    fn loads_that_wait_when_the_threads_are_stopped_are_answered() {
        let inner = MemoryBackend::open_url(&[]).unwrap();
        let storing = EncryptedBackend::wrap(inner.clone(), keys()).unwrap();
        assert!((0..4).all(|number| store(&*storing, number, LARGE).is_ok()));
        let backend = EncryptedBackend::without_threads(inner.clone(), keys()).unwrap();
        let waiting = send_loads(&backend, &[0, 1, 2], LARGE);
        // One thread answers for `inner`, in order.
        load(&*inner, 0, LARGE).0.unwrap();
        assert!(matches!(waiting.try_recv(), Err(TryRecvError::Empty)));
        backend.work.stop();
        // One that comes later is decrypted by the thread that read it.
        let (header, buffer) = load(&backend, 3, LARGE);
        header.unwrap().verify(&key(3), Some(&LAYOUT), buffer.bytes(), true).unwrap();
        assert_eq!(buffer.bytes(), payload(3, LARGE));
        let mut threads = Vec::new();
        backend.work.start(&mut threads).unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        for _ in 0..3 {
            let (index, buffer, header) = answer(&waiting);
            header.unwrap().verify(&key(index), Some(&LAYOUT), buffer.bytes(), true).unwrap();
            assert_eq!(buffer.bytes(), payload(index, LARGE));
        }
    }

    #[test]
    fn stores_that_wait_at_close_are_answered_once() {
        let inner = MemoryBackend::open_url(&[]).unwrap();
        let backend = EncryptedBackend::without_threads(inner, keys()).unwrap();
        let waiting: Vec<_> = (0..3).map(|number| send_store(&backend, number, LARGE)).collect();
        assert!(waiting.iter().all(|stored| matches!(stored.try_recv(), Err(TryRecvError::Empty))));
        backend.close();
        for stored in &waiting {
            assert_eq!(answer(stored).unwrap_err().status, KVKEEP_ERR_CLOSED);
            assert!(stored.try_recv().is_err());
        }
        assert_eq!(store(&backend, 3, LARGE).unwrap_err().status, KVKEEP_ERR_CLOSED);
        assert_eq!(backend.usage().objects, 0);
    }
}
