//! The `redis` backend as its callers see it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::redis_connection::RedisConnection;
use super::redis_options::{RedisOptions, ServerAddress};
use super::redis_router::RedisRouter;
use super::redis_state::RedisState;
use super::requests::{
    DeletionBatch, KeyChange, KeySweep, LookupBatch, NodeDelete, NodeLookup, QueuedStore, Reroute as _, Route,
};
use super::resp::RespValue;
use super::sentinel::open_connection;
use super::server_error::server_error;
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::url::Url;
use crate::l2::{Backend, Found, Health, LoadRequest, LookupRequest, Observer, Reply, StoreRequest, Usage};
use crate::log::Log;

/// A Redis or Valkey server, or a cluster of them.
pub struct RedisBackend {
    state: Arc<RedisState>,
    router: Arc<RedisRouter>,
}

impl RedisBackend {
    /// Opens the server or the cluster that a URL names: connects, logs in and starts the threads. Blocks for at most about the
    /// connect timeout, of a cluster for each server that the URL names.
    pub fn open_url(url: &Url, log: &Log) -> Result<Arc<RedisBackend>> {
        let state = Arc::new(RedisState::new(RedisOptions::from_url(url)?, log.clone()));
        let backend = RedisBackend { state: state.clone(), router: RedisRouter::new(state.clone()) };
        let mut refusal = Error::invalid("redis: the URL names no server");
        for server in &state.options.servers {
            let opened = open_connection(&state.options, server);
            let added = opened.and_then(|first| backend.add(server, first));
            match added {
                Ok(()) => return Ok(Arc::new(backend)),
                Err(error) => refusal = Error { message: format!("redis: {}", error.message), ..error },
            }
        }
        Err(refusal)
    }

    fn add(&self, server: &ServerAddress, mut first: RedisConnection) -> Result<()> {
        if !self.state.options.cluster {
            let role = if self.state.options.read_from_replica { Some(self.ask_role(&mut first)?) } else { None };
            self.router.add_single(server, first)?;
            role.iter().for_each(|role| self.router.learn_replicas(role, server));
            return Ok(());
        }
        first.outbox.command(&[b"CLUSTER", b"SLOTS"]);
        let slots = first.call(1, Instant::now() + self.state.options.connect_timeout)?;
        self.router.add_cluster(slots.first().unwrap_or(&RespValue::Nil), server)
    }

    /// Has a server say whether it is a master, and which replicas it has.
    fn ask_role(&self, connection: &mut RedisConnection) -> Result<RespValue> {
        connection.outbox.command(&[b"ROLE"]);
        let mut replies = connection.call(1, Instant::now() + self.state.options.connect_timeout)?;
        match replies.pop() {
            Some(RespValue::Failure(text)) => Err(server_error(&text, "ROLE").0),
            reply => Ok(reply.unwrap_or(RespValue::Nil)),
        }
    }

    /// Why replicas that are to be read from are not, if so.
    fn replica_note(&self) -> Option<String> {
        if !self.state.options.read_from_replica {
            return None;
        }
        let replicas = self.router.replicas();
        if replicas.is_empty() {
            return Some("no replica is connected to the master, which is read instead".to_owned());
        }
        let troubles: Vec<String> = replicas.iter().filter_map(|replica| replica.trouble()).collect();
        let why = troubles.first()?;
        let (bad, all) = (troubles.len(), replicas.len());
        Some(format!("{bad} of {all} replicas cannot be used, and values are read elsewhere: {why}"))
    }

    /// Begins a change, or has it wait for those of its key that came before.
    fn change(&self, change: KeyChange) {
        let key = change.key();
        let Some(change) = self.state.order.lock().begin(change) else { return };
        if let Err((change, error)) = self.router.change(change) {
            change.fail(error);
            self.router.change_ended(&key);
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

    fn has_index(&self) -> bool {
        false
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
        let (sorted, failed) = self.router.sort(asked, |(_, key)| *key);
        for (node, keys) in sorted {
            let lookup = NodeLookup { batch: batch.clone(), keys, deadline, route: Route::default() };
            self.router.look_up(&node, lookup);
        }
        if let Some((_, error)) = failed.into_iter().next() {
            batch.fail(error);
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
        let (sorted, failed) = self.router.sort(loads, |load| load.key);
        for (load, error) in failed {
            load.sink.loaded(load.index, load.buffer, Err(error));
        }
        for (node, loads) in sorted {
            self.router.load(&node, loads);
        }
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        stores.into_iter().for_each(|store| {
            self.change(KeyChange::Store(Box::new(QueuedStore { store, broken: 0, route: Route::default() })))
        });
    }

    fn touch(&self, keys: &[ObjectKey]) {
        for (node, keys) in self.router.sort(keys.to_vec(), |key| *key).0 {
            node.touch(&keys);
        }
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        let batch = DeletionBatch::new(Some(reply));
        for key in keys {
            self.change(KeyChange::Delete(NodeDelete { key, batch: batch.clone(), route: Route::default() }));
        }
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        let batch = DeletionBatch::new(Some(reply));
        for node in self.router.nodes() {
            node.sweep(KeySweep { space, cursor: "0".to_owned(), batch: batch.clone() });
        }
    }

    fn quarantine(&self, key: ObjectKey) {
        self.change(KeyChange::Delete(NodeDelete { key, batch: DeletionBatch::new(None), route: Route::default() }));
    }

    fn list(&self, _space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        Vec::new()
    }

    fn set_observer(&self, observer: Observer) {
        self.state.observe(observer);
    }

    fn usage(&self) -> Usage {
        let mut sum = Usage { pins: self.state.pins.load(Ordering::Relaxed), ..Usage::default() };
        for usage in self.router.nodes().iter().map(|node| node.usage()) {
            sum.objects += usage.objects;
            sum.bytes += usage.bytes;
            sum.capacity += usage.capacity;
            sum.evicted += usage.evicted;
        }
        sum
    }

    fn health(&self) -> Health {
        let nodes = self.router.nodes();
        let troubles: Vec<String> = nodes.iter().filter_map(|node| node.trouble()).collect();
        let notes: Vec<String> = [self.state.note(), self.replica_note()].into_iter().flatten().collect();
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        match (troubles.first(), note) {
            (Some(why), _) if nodes.len() > 1 => {
                Health::Bad(format!("{} of {} servers cannot be used: {why}", troubles.len(), nodes.len()))
            }
            (Some(why), _) => Health::Bad(why.clone()),
            (None, Some(note)) => Health::Noted(note),
            (None, None) => Health::Good,
        }
    }

    fn close(&self) {
        self.router.close(Instant::now() + self.state.options.timeout);
    }
}

impl Drop for RedisBackend {
    fn drop(&mut self) {
        self.close();
    }
}
