//! The trait of a store below L1, the requests that it takes and the answers that it gives.
//!
//! A backend moves opaque bytes: it is given a [`StoreHeader`] with each payload, which makes the [`Header`] to store, and gives header
//! and payload back. Identity and checksum are verified above every backend, so that none can skip them.

use std::sync::Arc;
use std::time::Instant;

use super::object_header::Header;
use super::store_header::StoreHeader;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_INTERNAL, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::space_names::SpaceNames;

/// The answer of a lookup for one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// The backend does not have it.
    Absent,
    /// It has it, pinned for the caller until `unpin`: it is not evicted. The payload is this many bytes.
    Present(u64),
    /// Saying so needs I/O: ask by [`Backend::lookup`].
    Unknown,
}

/// The success of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// The backend wrote and published it.
    Written,
    /// It was there already; nothing was written.
    Already,
}

/// How full a backend is, and what it has done since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Objects that lookups find.
    pub objects: u64,
    /// Bytes taken in the backend, overhead included.
    pub bytes: u64,
    /// The part of `bytes` that belongs to no object: quarantine, leftovers and directories.
    pub overhead: u64,
    /// Most bytes the backend may take, 0 for no bound of its own.
    pub capacity: u64,
    /// Objects the backend evicted since it was opened.
    pub evicted: u64,
    /// Pins that lookups have taken and `unpin` has not given back.
    pub pins: u64,
    /// 1 if it moves bytes with threads because the kernel refuses io_uring.
    pub io_uring_refused: u64,
    /// The medium has less free space than the backend's capacity: new objects take the place of its oldest.
    pub short: bool,
}

/// Whether a backend can be used now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// The backend answers its requests.
    Good,
    /// It answers, and this sentence tells an operator what slows or bounds it.
    Noted(String),
    /// It fails for this reason and may come back.
    Bad(String),
}

/// The answer that a request is owed. A reply that is dropped unanswered answers with `INTERNAL`, so that every request is answered
/// exactly once.
pub struct Reply<T>(Option<Box<dyn FnOnce(Result<T>) + Send>>);

impl<T> Reply<T> {
    /// A reply that runs `then`. `then` runs on a backend's thread and must not block.
    pub fn new(then: impl FnOnce(Result<T>) + Send + 'static) -> Reply<T> {
        Reply(Some(Box::new(then)))
    }

    /// Answers on the calling thread.
    pub fn send(mut self, result: Result<T>) {
        if let Some(then) = self.0.take() {
            then(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Err(Error::new(KVKEEP_ERR_INTERNAL, "the backend dropped a request unanswered")));
        }
    }
}

/// A lookup that may need I/O. Keys answered `Present` are pinned.
pub struct LookupRequest {
    /// The keys that the caller asks for.
    pub keys: Vec<ObjectKey>,
    /// The caller wants a prefix: the backend may answer `Absent` for every key after the first absent one.
    pub in_order: bool,
    /// The backend need not begin after this time; it answers `TIMEOUT` then.
    pub deadline: Instant,
    /// One [`Found`] per key, none of them `Unknown`.
    pub reply: Reply<Vec<Found>>,
}

/// One object to read into memory.
pub struct LoadRequest {
    /// The object, which the caller has pinned.
    pub key: ObjectKey,
    /// Its payload goes here: exactly as many bytes as the payload has. The backend holds it until it answers.
    pub buffer: Buffer,
    /// The caller verifies the payload's checksum, not only whose it is and its length.
    pub checksum: bool,
    /// The backend need not begin after this time; it answers `TIMEOUT` then.
    pub deadline: Instant,
    /// Takes the answer, alone or with others of one batch.
    pub sink: Arc<dyn LoadSink>,
    /// The number of this item in the sink's batch.
    pub index: u32,
}

/// Takes the answers of a batch of loads, one call per item, on a backend's thread. Must not block.
pub trait LoadSink: Send + Sync {
    /// The backend read item `index`, whose header is not verified yet, or failed to. The buffer comes back in both cases.
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>);
}

/// One object to write.
pub struct StoreRequest {
    /// The key of the object.
    pub key: ObjectKey,
    /// The header to store with it, as [`seal`](StoreRequest::seal) gives it.
    pub header: StoreHeader,
    /// Its payload. The backend drops it before it answers, since the answer may let another have the object's memory.
    pub buffer: Buffer,
    /// The backend need not begin after this time; it answers `TIMEOUT` then.
    pub deadline: Instant,
    /// Takes the one answer.
    pub reply: Reply<Stored>,
}

impl StoreRequest {
    /// The header, with the checksum of the payload, which is made by the first call.
    pub fn seal(&mut self) -> Header {
        let header = self.header.seal(self.buffer.bytes());
        self.header = header.into();
        header
    }

    /// Drops the payload, then answers.
    pub fn answer(self, outcome: Result<Stored>) {
        drop(self.buffer);
        self.reply.send(outcome);
    }
}

/// A change that an observer sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Lookups find it from now on: it was stored, or another process was found to have stored it.
    Appeared,
    /// Lookups do not find it any more: it was evicted, deleted or quarantined, or its bytes were found missing.
    Vanished,
}

/// The backend calls it for every object that appears or vanishes, with the length of the payload; changes of one key come in their
/// order. The backend's lock is held during the call, which must not block and must not call the backend.
pub type Observer = Arc<dyn Fn(Change, &ObjectKey, u64) + Send + Sync>;

/// A store of objects. Called from several threads at once. No function blocks on I/O, except `close`; what needs I/O
/// is queued inside, bounded, and answered from the backend's own threads.
pub trait Backend: Send + Sync {
    /// The scheme of the URLs that open it.
    fn name(&self) -> &'static str;
    /// Answers without I/O, `Unknown` for what needs I/O. `found` has one place per key.
    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]);
    /// Whether its index has every object that this process stored or found in it. If not, `lookup_cached` of most objects is
    /// `Unknown`, and only a lookup tells.
    fn has_index(&self) -> bool {
        true
    }
    /// Answers every key, with as much I/O as that takes.
    fn lookup(&self, lookup: LookupRequest);
    /// Takes one pin off each key.
    fn unpin(&self, keys: &[ObjectKey]);
    /// Reads objects that the caller has pinned.
    fn load(&self, loads: Vec<LoadRequest>);
    /// Writes objects, evicting others by its own policy to stay under its capacity. Storing an object that is there already counts as
    /// a use of it.
    fn store(&self, stores: Vec<StoreRequest>);
    /// Marks objects as used now, the last one last; absent ones are skipped. Called in batches, some time after the
    /// uses: this call is how a store with a recency of its own learns of uses in L1.
    fn touch(&self, keys: &[ObjectKey]);
    /// Removes objects, pinned or not: lookups and loads that begin after this call do not find them. `reply` comes when they are gone
    /// from the medium, which waits for no pin, with the number that were there. An object stored anew under the same key is
    /// another object, and takes over the pins that are left.
    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>);
    /// Removes the objects of a space, of every space for `None`, that other processes have stored and this one does not know. Answers
    /// how many it removed. Called after `delete` of all known ones; no object of the space is looked up or stored meanwhile.
    fn sweep(&self, _space: Option<SpaceTag>, reply: Reply<u64>) {
        reply.send(Ok(0));
    }
    /// Hides an object whose bytes are wrong from lookups and, where the medium can, keeps the bytes for an inspection.
    fn quarantine(&self, key: ObjectKey);
    /// Gives the names of a space that is open here, so that the backend can show them to people who look at its medium. Called at each opening of
    /// the space, and of those that are open when the backend is added. Never blocks.
    fn name_space(&self, _space: SpaceTag, _names: &SpaceNames) {}
    /// The objects of a space (of every space for `None`) known without I/O.
    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)>;
    /// Replaces the observer of changes. [`list`](Backend::list) gives the objects that are there already, and may repeat changes that
    /// the observer saw meanwhile. A backend that cannot see changes ignores the call.
    fn set_observer(&self, observer: Observer) {
        drop(observer);
    }
    /// Counts and bytes, as of now.
    fn usage(&self) -> Usage;
    /// Whether it answers, and the reason if not.
    fn health(&self) -> Health;
    /// Answers everything accepted, persists what it keeps in memory and stops its threads. Called once; blocks.
    fn close(&self);
}
