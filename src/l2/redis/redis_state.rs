//! What all threads of one open backend share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::redis_options::RedisOptions;
use super::requests::{ChangeOrder, KeyChange};
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_NO_MEMORY};
use crate::key::ObjectKey;
use crate::l2::presence_share::PresenceShare;
use crate::l2::{Change, Observer};
use crate::log::{Log, LogLevel};

/// The options, the observer, and the order of changes.
pub struct RedisState {
    pub options: RedisOptions,
    pub log: Log,
    observer: Mutex<Option<Observer>>,
    pub order: Mutex<ChangeOrder>,
    /// Pins that lookups have taken and `unpin` has not given back. The server knows of none.
    pub pins: Arc<AtomicU64>,
    /// Of the objects that were stored.
    pub there: PresenceShare,
    /// Keys of ours under which something else was found.
    foreign: AtomicU64,
    /// The server refused the last store because it is full.
    full: AtomicBool,
}

/// Nothing, or what was refused and the reason.
pub type Refused<T> = Result<(), (T, Error)>;

/// The answer to every request after close.
pub fn closed() -> Error {
    Error::new(KVKEEP_ERR_CLOSED, "the redis backend is closed")
}

impl RedisState {
    pub fn new(options: RedisOptions, log: Log) -> RedisState {
        RedisState {
            options,
            log,
            observer: Mutex::default(),
            order: Mutex::default(),
            pins: Arc::default(),
            there: PresenceShare::default(),
            foreign: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }
    }

    pub fn observe(&self, observer: Observer) {
        *self.observer.lock() = Some(observer);
    }

    /// An object appeared or vanished.
    pub fn notify(&self, change: Change, key: &ObjectKey, length: u64) {
        if let Some(observer) = &*self.observer.lock() {
            observer(change, key, length);
        }
    }

    /// Something else than the object lies under its key.
    pub fn found_foreign(&self, key: &ObjectKey) {
        self.foreign.fetch_add(1, Ordering::Relaxed);
        self.log.often("redis foreign value", LogLevel::Warn, || {
            format!("redis: under the key of {} is something that kvkeep did not store: set another prefix=", key.key)
        });
    }

    /// Whether stores are refused because the server is full.
    pub fn store_ended(&self, error: Option<&Error>) {
        let full = error.is_some_and(|error| error.status == KVKEEP_ERR_NO_MEMORY);
        if self.full.load(Ordering::Relaxed) != full && (full || error.is_none()) {
            self.full.store(full, Ordering::Relaxed);
        }
    }

    /// A sentence for operators, if there is something to say.
    pub fn note(&self) -> Option<String> {
        let foreign = self.foreign.load(Ordering::Relaxed);
        let full = "the server is full and evicts nothing: set its maxmemory-policy to allkeys-lru";
        let full = self.full.load(Ordering::Relaxed).then(|| full.to_owned());
        let foreign = (foreign > 0).then(|| {
            let prefix = &self.options.prefix;
            format!("{foreign} times something else lay under a key that begins with {prefix:?}: set another prefix=")
        });
        let notes: Vec<String> = [full, foreign].into_iter().flatten().collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    /// The change of a key is over: has the next one begin. `start` gives a change back with the reason if it cannot begin.
    pub fn change_ended(&self, key: &ObjectKey, start: impl Fn(KeyChange) -> Refused<KeyChange>) {
        loop {
            let Some(next) = self.order.lock().end(key) else { return };
            match start(next) {
                Ok(()) => return,
                Err((change, error)) => change.fail(error),
            }
        }
    }
}
