//! Everything below L1: one trait for any store, one seal around every object.
//!
//! A backend moves opaque bytes: it is given a sealed [`object_header::Header`] beside the payload and gives both back. Identity
//! and checksum are made and verified here, above every backend, so that none can skip them.

use std::sync::Arc;
use std::time::Instant;

use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_INTERNAL, Result};
use crate::key::{ObjectKey, SpaceTag};

pub mod fault;
pub mod fs;
pub mod memory;
pub mod object_header;
#[cfg(test)]
mod tests;
pub mod url;

use self::object_header::Header;

/// What a lookup says of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// The backend does not have it.
    Absent,
    /// It has it, pinned for the caller until `unpin`: it is not evicted. The payload is this many bytes.
    Present(u64),
    /// Saying so needs I/O: ask by [`Backend::lookup`].
    Unknown,
}

/// What a store did with one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// Written and published.
    Written,
    /// It was there already; nothing was written.
    Already,
}

/// How full a backend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Objects present.
    pub objects: u64,
    /// Bytes taken in the backend, overhead included.
    pub bytes: u64,
    /// How many of them belong to no object: quarantine, leftovers and directories.
    pub overhead: u64,
    /// Most bytes the backend may take, 0 for no bound of its own.
    pub capacity: u64,
    /// Objects the backend evicted since it was opened.
    pub evicted: u64,
    /// Pins that lookups have taken and `unpin` has not given back.
    pub pins: u64,
    /// 1 if it moves bytes with threads because the kernel refuses io_uring.
    pub io_uring_refused: u64,
    /// The medium has less room for the backend than its capacity: new objects take the place of its oldest.
    pub short: bool,
}

/// Whether a backend can be used now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// It answers.
    Good,
    /// It answers, and an operator should know this of it.
    Noted(String),
    /// It fails for this reason and may come back.
    Bad(String),
}

/// One answer owed. Dropping it unanswered answers with an error, so that every item is answered exactly once.
pub struct Reply<T>(Option<Box<dyn FnOnce(Result<T>) + Send>>);

impl<T> Reply<T> {
    /// A reply that runs `then`. `then` runs on a backend's thread and must not block.
    pub fn new(then: impl FnOnce(Result<T>) + Send + 'static) -> Reply<T> {
        Reply(Some(Box::new(then)))
    }

    /// Answers.
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
pub struct Lookup {
    /// What is asked for.
    pub keys: Vec<ObjectKey>,
    /// The caller wants a prefix: after the first `Absent` the rest may be answered `Absent` unasked.
    pub in_order: bool,
    /// When the answer is of no more use.
    pub deadline: Instant,
    /// One [`Found`] per key, none of them `Unknown`.
    pub reply: Reply<Vec<Found>>,
}

/// One object to read into memory.
pub struct Load {
    /// Which object; pinned by the caller before.
    pub key: ObjectKey,
    /// Where its payload goes: exactly as many bytes as the payload. Held until answered.
    pub buffer: Buffer,
    /// The caller verifies the payload's checksum, not only whose it is and its length.
    pub checksum: bool,
    /// When the answer is of no more use.
    pub deadline: Instant,
    /// Whoever waits: for one item or, shared, for a whole batch.
    pub sink: Arc<dyn LoadSink>,
    /// The item's number in that batch.
    pub index: u32,
}

/// Takes the answers of a batch of loads, one call per item, on a backend's thread. Must not block.
pub trait LoadSink: Send + Sync {
    /// Item `index` was read (the header as stored, not verified yet) or failed. The buffer comes back with it.
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>);
}

/// One object to write.
pub struct Store {
    /// Which object.
    pub key: ObjectKey,
    /// Its seal.
    pub header: Header,
    /// Its payload. It is let go before the answer: whoever hears of that may want the object alone.
    pub buffer: Buffer,
    /// When the answer is of no more use.
    pub deadline: Instant,
    /// Whoever waits.
    pub reply: Reply<Stored>,
}

impl Store {
    /// Lets the payload go and answers.
    pub fn answer(self, outcome: Result<Stored>) {
        drop(self.buffer);
        self.reply.send(outcome);
    }
}

/// What became of an object in a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Lookups find it from now on: it was stored, or found to have been stored by somebody else.
    Appeared,
    /// Lookups do not find it any more: it was evicted, deleted or quarantined, or its bytes were found missing.
    Vanished,
}

/// Hears of every object that appears in a backend or vanishes from it, with the length of its payload, those of one key in
/// the order in which that happened. For the order's sake it is called with the backend's lock held: it must not block, nor call the backend.
pub type Observer = Arc<dyn Fn(Change, &ObjectKey, u64) + Send + Sync>;

/// A store of objects. Called from several threads at once. No function blocks on I/O, except `close`; what needs I/O
/// is queued inside, bounded, and answered from the backend's own threads.
pub trait Backend: Send + Sync {
    /// The URL's scheme.
    fn name(&self) -> &'static str;
    /// Answers at once what needs no I/O, `Unknown` for the rest. `found` has one place per key.
    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]);
    /// Answers whatever I/O it takes.
    fn lookup(&self, lookup: Lookup);
    /// Takes one pin off each key.
    fn unpin(&self, keys: &[ObjectKey]);
    /// Reads pinned objects.
    fn load(&self, loads: Vec<Load>);
    /// Writes objects. Evicts by its own policy to stay under its capacity. To write an object that is there already is to use it.
    fn store(&self, stores: Vec<Store>);
    /// Marks objects as used now, the last one last; those that are not there are passed over. Called in batches, some time after the
    /// uses: a store with a recency of its own is told of all uses by this call.
    fn touch(&self, keys: &[ObjectKey]);
    /// Removes objects, pinned or not: when this returns, lookups and loads that begin do not find them. `reply` comes when they are
    /// gone from the medium, which waits for no pin, and says how many were there. An object stored anew under the same
    /// key is another one: what is left of the pins is counted against it.
    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>);
    /// Removes from the medium what there is of a space, of all for `None`, and is not known here: others have stored it. Says how many
    /// objects that were. Asked when what is known was deleted; no object of the space is looked up or stored meanwhile.
    fn sweep(&self, _space: Option<SpaceTag>, reply: Reply<u64>) {
        reply.send(Ok(0));
    }
    /// Takes an object whose bytes are wrong out of sight, keeping them for an inspection where the medium can.
    fn quarantine(&self, key: ObjectKey);
    /// The objects of a space (of every space for `None`) known without I/O.
    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)>;
    /// Has `observer` hear of changes from now on, in place of the one before. What is there already is in
    /// [`list`](Backend::list), which may repeat what the observer heard meanwhile. A backend that cannot tell ignores it.
    fn set_observer(&self, observer: Observer) {
        drop(observer);
    }
    /// How full it is.
    fn usage(&self) -> Usage;
    /// Whether it answers.
    fn health(&self) -> Health;
    /// Answers everything accepted, persists what it keeps in memory and stops its threads. Called once; blocks.
    fn close(&self);
}
