//! The `redis` backend as its callers see it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use super::control_link::run_control_link;
use super::data_link::run_data_link;
use super::redis_connection::RedisConnection;
use super::redis_node::{LinkKind, RedisNode};
use super::redis_options::RedisOptions;
use super::redis_state::{RedisState, closed};
use super::requests::{DeletionBatch, KeyChange, KeySweep, LookupBatch, NodeDelete, NodeLookup, QueuedStore};
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::url::Url;
use crate::l2::{Backend, Found, Health, LoadRequest, LookupRequest, Observer, Reply, StoreRequest, Usage};
use crate::log::{Log, LogLevel};
use crate::threads;

/// A Redis or Valkey server.
pub struct RedisBackend {
    state: Arc<RedisState>,
    node: Arc<RedisNode>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl RedisBackend {
    /// Opens the server that a URL names: connects, logs in and starts the threads. Blocks for at most about the connect timeout.
    pub fn open_url(url: &Url, log: &Log) -> Result<Arc<RedisBackend>> {
        let options = RedisOptions::from_url(url)?;
        let first = RedisConnection::open(&options, &options.server)
            .map_err(|error| Error { message: format!("redis: {}", error.message), ..error })?;
        let (address, connections) = (options.server.clone(), options.connections);
        let state = Arc::new(RedisState::new(options, log.clone()));
        let node =
            RedisNode::new(state.clone(), address).map_err(|error| Error::io("starting the redis backend", &error))?;
        let backend = RedisBackend { state, node: Arc::new(node), threads: Mutex::default() };
        let control = backend.node.clone();
        backend.start("kvkeep-redis", move || run_control_link(&control, first))?;
        for number in 1..=connections {
            let node = backend.node.clone();
            backend.start(&format!("kvkeep-redis-{number}"), move || run_data_link(&node, number))?;
        }
        log.write(LogLevel::Info, || format!("redis: connected to {}", backend.node.address));
        Ok(Arc::new(backend))
    }

    fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = threads::spawn(name, body);
        self.threads.lock().push(thread.map_err(|error| Error::io("starting a thread of the redis backend", &error))?);
        Ok(())
    }

    /// Begins a change, or has it wait for those of its key that came before.
    fn change(&self, change: KeyChange) {
        let key = change.key();
        let Some(change) = self.state.order.lock().begin(change) else { return };
        if let Err((change, error)) = self.node.change(change) {
            change.fail(error);
            self.node.change_ended(&key);
        }
    }
}

impl Backend for RedisBackend {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        let order = self.state.order.lock();
        for (key, found) in keys.iter().zip(found) {
            *found = if order.hides(key) { Found::Absent } else { Found::Unknown };
        }
    }

    fn lookup(&self, lookup: LookupRequest) {
        let LookupRequest { keys, in_order, deadline, reply } = lookup;
        let batch = LookupBatch::new(keys.len(), in_order, reply, self.state.pins.clone());
        let mut asked: Vec<(u32, ObjectKey)> = Vec::with_capacity(keys.len());
        let order = self.state.order.lock();
        for (place, key) in keys.into_iter().enumerate() {
            if !order.hides(&key) {
                asked.push((place as u32, key));
            }
        }
        drop(order);
        if let Err((lookup, error)) = self.node.look_up(NodeLookup { batch, keys: asked, deadline }) {
            lookup.fail(error);
        }
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        let less = |pins: u64| Some(pins.saturating_sub(keys.len() as u64));
        let _ = self.state.pins.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn load(&self, loads: Vec<LoadRequest>) {
        let order = self.state.order.lock();
        let (hidden, loads): (Vec<LoadRequest>, Vec<LoadRequest>) = if order.is_empty() {
            (Vec::new(), loads)
        } else {
            loads.into_iter().partition(|load| order.hides(&load.key))
        };
        drop(order);
        for load in hidden {
            let error = Error::new(KVKEEP_ERR_NOT_FOUND, format!("the object {} is deleted", load.key.key));
            load.sink.loaded(load.index, load.buffer, Err(error));
        }
        if let Err((loads, error)) = self.node.load(loads) {
            for load in loads {
                load.sink.loaded(load.index, load.buffer, Err(error.clone()));
            }
        }
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        stores
            .into_iter()
            .for_each(|store| self.change(KeyChange::Store(Box::new(QueuedStore { store, again: false }))));
    }

    fn touch(&self, keys: &[ObjectKey]) {
        self.node.touch(keys);
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        let batch = DeletionBatch::new(Some(reply));
        for key in keys {
            self.change(KeyChange::Delete(NodeDelete { key, batch: batch.clone() }));
        }
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        self.node.sweep(KeySweep { space, cursor: "0".to_owned(), batch: DeletionBatch::new(Some(reply)) });
    }

    fn quarantine(&self, key: ObjectKey) {
        self.change(KeyChange::Delete(NodeDelete { key, batch: DeletionBatch::new(None) }));
    }

    fn list(&self, _space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        Vec::new()
    }

    fn set_observer(&self, observer: Observer) {
        self.state.observe(observer);
    }

    fn usage(&self) -> Usage {
        Usage { pins: self.state.pins.load(Ordering::Relaxed), ..self.node.usage() }
    }

    fn health(&self) -> Health {
        match (self.node.trouble(), self.state.note()) {
            (Some(why), _) => Health::Bad(why),
            (None, Some(note)) => Health::Noted(note),
            (None, None) => Health::Good,
        }
    }

    fn close(&self) {
        self.node.close(Instant::now() + self.state.options.timeout);
        for thread in self.threads.lock().drain(..) {
            // The last handle may be dropped in an answer, on a thread that cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                // A thread that panicked was reported by the panic.
                let _ = thread.join();
            }
        }
        for kind in [LinkKind::Data, LinkKind::Control] {
            self.node.refuse_waiting(kind, &closed());
        }
    }
}

impl Drop for RedisBackend {
    fn drop(&mut self) {
        self.close();
    }
}
