//! Requests on their way through the backend, and the order of those that change one key.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::redis_options::ServerAddress;
use super::resp::RespValue;
use super::slot_map::Redirect;
use crate::error::Error;
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::{Found, LoadRequest, Reply, StoreRequest};

/// The way of a request through a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Route {
    /// How often a server named another one for it.
    pub hops: u8,
    /// The server that has it now has its slot only on trial: each command comes after ASKING.
    pub asking: bool,
}

/// A load, which is sent again if the connection breaks.
pub struct QueuedLoad {
    pub load: LoadRequest,
    /// Connections that broke under it.
    pub broken: usize,
    pub route: Route,
}

impl QueuedLoad {
    pub fn fail(self, error: Error) {
        self.load.sink.loaded(self.load.index, self.load.buffer, Err(error));
    }
}

/// A store, likewise.
pub struct QueuedStore {
    pub store: StoreRequest,
    pub broken: usize,
    pub route: Route,
}

/// A request of a data connection.
pub enum DataRequest {
    Load(QueuedLoad),
    Store(Box<QueuedStore>),
}

impl DataRequest {
    pub fn deadline(&self) -> Instant {
        match self {
            DataRequest::Load(queued) => queued.load.deadline,
            DataRequest::Store(queued) => queued.store.deadline,
        }
    }

    pub fn route(&mut self) -> &mut Route {
        match self {
            DataRequest::Load(queued) => &mut queued.route,
            DataRequest::Store(queued) => &mut queued.route,
        }
    }
}

/// A lookup, which is answered when the last [`NodeLookup`] of it is dropped.
pub struct LookupBatch {
    in_order: bool,
    found: Mutex<LookupAnswers>,
    reply: Mutex<Option<Reply<Vec<Found>>>>,
    /// Counts pins.
    pins: Arc<AtomicU64>,
}

struct LookupAnswers {
    found: Vec<Found>,
    answered: bool,
    failed: Option<Error>,
}

impl LookupBatch {
    /// A lookup of `count` keys, all absent unless somebody finds them.
    pub fn new(count: usize, in_order: bool, reply: Reply<Vec<Found>>, pins: Arc<AtomicU64>) -> Arc<LookupBatch> {
        let answers = LookupAnswers { found: vec![Found::Absent; count], answered: false, failed: None };
        Arc::new(LookupBatch { in_order, found: Mutex::new(answers), reply: Mutex::new(Some(reply)), pins })
    }

    /// Some of its keys cannot be asked for.
    pub fn fail(&self, error: Error) {
        self.found.lock().failed = Some(error);
    }
}

impl Drop for LookupBatch {
    fn drop(&mut self) {
        let Some(reply) = self.reply.get_mut().take() else { return };
        let answers = self.found.get_mut();
        // Of several servers, one that fails has nothing.
        if let Some(error) = answers.failed.take().filter(|_| !answers.answered) {
            return reply.send(Err(error));
        }
        let mut found = std::mem::take(&mut answers.found);
        if self.in_order
            && let Some(gap) = found.iter().position(|found| *found == Found::Absent)
        {
            found[gap..].fill(Found::Absent);
        }
        let pins = found.iter().filter(|found| matches!(found, Found::Present(_))).count();
        self.pins.fetch_add(pins as u64, Ordering::Relaxed);
        reply.send(Ok(found));
    }
}

/// The keys of a lookup that one server is asked for, with their places in the batch.
pub struct NodeLookup {
    pub batch: Arc<LookupBatch>,
    pub keys: Vec<(u32, ObjectKey)>,
    pub deadline: Instant,
    pub route: Route,
}

impl NodeLookup {
    /// Gives the answers, one for each key.
    pub fn answer(self, found: impl Iterator<Item = Found>) {
        let mut answers = self.batch.found.lock();
        answers.answered = true;
        for ((place, _), found) in self.keys.iter().zip(found) {
            // Another server may have answered for a key that this one has not.
            if found != Found::Absent {
                answers.found[*place as usize] = found;
            }
        }
    }

    pub fn fail(self, error: Error) {
        self.batch.fail(error);
    }
}

/// The answer to a deletion of several objects, sent when the last [`NodeDelete`] of it is dropped.
pub struct DeletionBatch {
    pub removed: AtomicU64,
    failed: Mutex<Option<Error>>,
    reply: Mutex<Option<Reply<u64>>>,
}

impl DeletionBatch {
    pub fn new(reply: Option<Reply<u64>>) -> Arc<DeletionBatch> {
        Arc::new(DeletionBatch { removed: AtomicU64::new(0), failed: Mutex::default(), reply: Mutex::new(reply) })
    }

    pub fn fail(&self, error: Error) {
        *self.failed.lock() = Some(error);
    }
}

impl Drop for DeletionBatch {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.get_mut().take() {
            let result = self.failed.get_mut().take().map_or(Ok(*self.removed.get_mut()), Err);
            reply.send(result);
        }
    }
}

/// An object to delete, for a deletion that waits for it.
pub struct NodeDelete {
    pub key: ObjectKey,
    pub batch: Arc<DeletionBatch>,
    pub route: Route,
}

/// A walk through all keys of a server for those of a space, or of all spaces.
pub struct KeySweep {
    pub space: Option<SpaceTag>,
    /// Where the walk goes on; the server gives it.
    pub cursor: String,
    pub batch: Arc<DeletionBatch>,
}

/// An operation that changes what is under a key.
pub enum KeyChange {
    Store(Box<QueuedStore>),
    Delete(NodeDelete),
}

impl KeyChange {
    pub fn key(&self) -> ObjectKey {
        match self {
            KeyChange::Store(queued) => queued.store.key,
            KeyChange::Delete(delete) => delete.key,
        }
    }

    pub fn fail(self, error: Error) {
        match self {
            KeyChange::Store(queued) => queued.store.answer(Err(error)),
            KeyChange::Delete(delete) => delete.batch.fail(error),
        }
    }
}

/// Has changes of one key follow each other in the order in which they were asked for: they go over several connections.
#[derive(Default)]
pub struct ChangeOrder {
    /// Keys with a change under way.
    keys: HashMap<ObjectKey, KeyQueue>,
}

#[derive(Default)]
struct KeyQueue {
    /// Deletions under way or waiting.
    deletes: usize,
    current_deletes: bool,
    waiting: VecDeque<KeyChange>,
}

impl ChangeOrder {
    /// Gives the change back if it may begin now. It is under way then, until [`end`](ChangeOrder::end).
    pub fn begin(&mut self, change: KeyChange) -> Option<KeyChange> {
        let deletes = matches!(change, KeyChange::Delete(_));
        let mut free = false;
        let queue = self.keys.entry(change.key()).or_insert_with(|| {
            free = true;
            KeyQueue::default()
        });
        queue.deletes += usize::from(deletes);
        if free {
            queue.current_deletes = deletes;
            return Some(change);
        }
        queue.waiting.push_back(change);
        None
    }

    /// The change of a key that was under way is over. Returns the next one, which may begin now.
    pub fn end(&mut self, key: &ObjectKey) -> Option<KeyChange> {
        let queue = self.keys.get_mut(key)?;
        queue.deletes -= usize::from(queue.current_deletes);
        let Some(next) = queue.waiting.pop_front() else {
            self.keys.remove(key);
            return None;
        };
        queue.current_deletes = matches!(next, KeyChange::Delete(_));
        Some(next)
    }

    /// Whether the object under a key is to be deleted, so that it is not found any more.
    pub fn hides(&self, key: &ObjectKey) -> bool {
        self.keys.get(key).is_some_and(|queue| queue.deletes > 0)
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// A request that a server of a cluster gave back, since another one has its key.
pub enum Rerouted {
    Data(DataRequest),
    Lookup(NodeLookup),
    Delete(NodeDelete),
}

impl Rerouted {
    pub fn route(&mut self) -> &mut Route {
        match self {
            Rerouted::Data(request) => request.route(),
            Rerouted::Lookup(lookup) => &mut lookup.route,
            Rerouted::Delete(delete) => &mut delete.route,
        }
    }
}

/// The other servers, as the connections to one of them see them.
pub trait Reroute: Send + Sync {
    /// Gives a request to the server that it was redirected to.
    fn redirect(&self, to: Redirect, request: Rerouted);
    /// Takes in who has which slots, as the server at `asked` told.
    fn learn(&self, slots: &RespValue, asked: &ServerAddress);
    /// Takes in the replicas of the one master, as it answered ROLE.
    fn learn_replicas(&self, role: &RespValue, master: &ServerAddress);
    /// How many replicas of a master values are read from.
    fn replica_count(&self, master: &ServerAddress) -> usize;
    /// Gives a load that a replica cannot carry out to the master of its key.
    fn read_at_master(&self, load: QueuedLoad);
    /// Whether to ask soon who has which slots.
    fn wants_slots(&self) -> bool;
}
