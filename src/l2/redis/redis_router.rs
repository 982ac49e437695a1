//! The servers of a backend: one, or the masters of a cluster, which come and go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::control_link::run_control_link;
use super::data_link::run_data_link;
use super::object_name::object_name;
use super::redis_connection::RedisConnection;
use super::redis_node::{LinkKind, RedisNode};
use super::redis_options::ServerAddress;
use super::redis_state::{RedisState, Refused, closed};
use super::requests::{DataRequest, KeyChange, Reroute, Rerouted};
use super::resp::RespValue;
use super::slot_map::{Redirect, SLOTS, parse_slots, slot_of};
use crate::error::{Error, KVKEEP_ERR_IO, Result};
use crate::key::ObjectKey;
use crate::log::LogLevel;
use crate::threads;

/// How often one request may be redirected.
const HOPS_MAX: u8 = 5;
/// A slot that no known server has.
const NOBODY: u16 = u16::MAX;

/// Which server has which slots.
#[derive(Default)]
struct NodeMap {
    nodes: Vec<Arc<RedisNode>>,
    /// For each slot the place of its server in `nodes`; empty where one server has all keys.
    slots: Vec<u16>,
    closed: bool,
}

/// Items by the server that has the key of each, and those that no server has, with the reason.
type Sorted<T> = Vec<(Arc<RedisNode>, Vec<T>)>;
type Unserved<T> = Vec<(T, Error)>;

/// The servers, and the threads of their connections.
pub struct RedisRouter {
    me: Weak<RedisRouter>,
    state: Arc<RedisState>,
    map: RwLock<NodeMap>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// A server named another one for a slot: the others are to be asked who has which.
    moved: AtomicBool,
}

impl RedisRouter {
    pub fn new(state: Arc<RedisState>) -> Arc<RedisRouter> {
        Arc::new_cyclic(|me| RedisRouter {
            me: me.clone(),
            state,
            map: RwLock::default(),
            threads: Mutex::default(),
            moved: AtomicBool::new(false),
        })
    }

    /// Adds the one server that has all keys, with a connection to it.
    pub fn add_single(&self, address: &ServerAddress, first: RedisConnection) -> Result<()> {
        let node = self.start(address, None, Some(first))?;
        self.map.write().nodes.push(node);
        Ok(())
    }

    /// Takes in the slots of a cluster, as `asked` told them. Fails if there are none.
    pub fn add_cluster(&self, slots: &RespValue, asked: &ServerAddress) -> Result<()> {
        self.learn(slots, asked);
        match self.map.read().slots.is_empty() {
            true => {
                Err(Error::new(KVKEEP_ERR_IO, format!("redis: the cluster of {asked} serves no slot yet: create it")))
            }
            false => Ok(()),
        }
    }

    /// Starts the threads of a server.
    fn start(
        &self,
        address: &ServerAddress,
        reroute: Option<Weak<dyn Reroute>>,
        first: Option<RedisConnection>,
    ) -> Result<Arc<RedisNode>> {
        let failed = |error| Error::io("starting the redis backend", &error);
        let node = Arc::new(RedisNode::new(self.state.clone(), address.clone(), reroute).map_err(failed)?);
        let mut started = Vec::new();
        let control = node.clone();
        started.push(threads::spawn("kvkeep-redis", move || run_control_link(&control, first)).map_err(failed)?);
        for number in 1..=self.state.options.connections {
            let data = node.clone();
            match threads::spawn(&format!("kvkeep-redis-{number}"), move || run_data_link(&data, number)) {
                Ok(thread) => started.push(thread),
                Err(error) => {
                    node.close(Instant::now());
                    self.threads.lock().extend(started);
                    return Err(failed(error));
                }
            }
        }
        self.threads.lock().extend(started);
        self.state.log.write(LogLevel::Info, || format!("redis: {address} is used"));
        Ok(node)
    }

    /// All servers.
    pub fn nodes(&self) -> Vec<Arc<RedisNode>> {
        self.map.read().nodes.clone()
    }

    /// The server that has a key.
    pub fn node_of(&self, key: &ObjectKey) -> Result<Arc<RedisNode>> {
        let map = self.map.read();
        let place = match map.slots.is_empty() {
            true => 0,
            false => map.slots[usize::from(slot_of(&object_name(&self.state.options.prefix, key)))],
        };
        let missing =
            || Error::new(KVKEEP_ERR_IO, "no server of the cluster has the key's slot: look into CLUSTER INFO");
        if map.closed {
            return Err(closed());
        }
        map.nodes.get(usize::from(place)).cloned().ok_or_else(missing)
    }

    /// Sorts `items` by the server that has the key of each. Those of no server come with the error.
    pub fn sort<T>(&self, items: Vec<T>, key: impl Fn(&T) -> ObjectKey) -> (Sorted<T>, Unserved<T>) {
        let (mut sorted, mut failed): (Sorted<T>, _) = (Vec::new(), Vec::new());
        for item in items {
            match self.node_of(&key(&item)) {
                Ok(node) => match sorted.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &node)) {
                    Some((_, items)) => items.push(item),
                    None => sorted.push((node, vec![item])),
                },
                Err(error) => failed.push((item, error)),
            }
        }
        (sorted, failed)
    }

    /// Gives a change that may begin to the server that has its key, or gives it back with the reason.
    pub fn change(&self, change: KeyChange) -> Refused<KeyChange> {
        match self.node_of(&change.key()) {
            Ok(node) => node.change(change),
            Err(error) => Err((change, error)),
        }
    }

    /// The change of a key that was under way is answered.
    pub fn change_ended(&self, key: &ObjectKey) {
        self.state.change_ended(key, |next| self.change(next));
    }

    /// Answers a redirected request with an error.
    fn refuse(&self, request: Rerouted, error: Error) {
        let key = match request {
            Rerouted::Data(DataRequest::Load(load)) => return load.fail(error),
            Rerouted::Lookup(lookup) => return lookup.fail(error),
            Rerouted::Data(DataRequest::Store(queued)) => {
                let key = queued.store.key;
                queued.store.answer(Err(error));
                key
            }
            Rerouted::Delete(delete) => {
                delete.batch.fail(error);
                delete.key
            }
        };
        self.change_ended(&key);
    }

    /// Accepts nothing more, carries out until `until` what was accepted, and stops the threads.
    pub fn close(&self, until: Instant) {
        let nodes = {
            let mut map = self.map.write();
            map.closed = true;
            map.nodes.clone()
        };
        nodes.iter().for_each(|node| node.close(until));
        let threads: Vec<_> = self.threads.lock().drain(..).collect();
        for thread in threads {
            // The last handle may be dropped in an answer, on a thread that cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                // A thread that panicked was reported by the panic.
                let _ = thread.join();
            }
        }
        for kind in [LinkKind::Data, LinkKind::Control] {
            nodes.iter().for_each(|node| node.refuse_waiting(kind, &closed()));
        }
    }

    /// The server at an address, which is started if it is new.
    fn node_at(&self, map: &mut NodeMap, address: &ServerAddress) -> Option<u16> {
        if let Some(place) = map.nodes.iter().position(|node| node.address == *address) {
            return Some(place as u16);
        }
        let me: Weak<dyn Reroute> = self.me.clone();
        match self.start(address, Some(me), None) {
            Ok(node) => {
                map.nodes.push(node);
                Some(map.nodes.len() as u16 - 1)
            }
            Err(error) => {
                self.state.log.often("redis server", LogLevel::Error, || format!("redis: {address}: {error}"));
                None
            }
        }
    }
}

impl Reroute for RedisRouter {
    fn redirect(&self, to: Redirect, mut request: Rerouted) {
        let hops = request.route().hops + 1;
        let node = {
            let mut map = self.map.write();
            match self.node_at(&mut map, &to.server) {
                _ if map.closed => Err(closed()),
                _ if hops > HOPS_MAX => {
                    let why =
                        format!("the servers of the cluster do not agree who has slot {}: try again later", to.slot);
                    Err(Error::new(KVKEEP_ERR_IO, why))
                }
                Some(place) => {
                    if !to.ask
                        && let Some(slot) = map.slots.get_mut(usize::from(to.slot))
                    {
                        *slot = place;
                    }
                    Ok(map.nodes[usize::from(place)].clone())
                }
                None => Err(Error::new(KVKEEP_ERR_IO, format!("{} cannot be used", to.server))),
            }
        };
        if !to.ask && !self.moved.swap(true, Ordering::AcqRel) {
            self.nodes().iter().for_each(|node| node.bell(0).ring());
        }
        (request.route().hops, request.route().asking) = (hops, to.ask);
        match node {
            Ok(node) => node.take_over(request),
            Err(error) => self.refuse(request, error),
        }
    }

    fn learn(&self, slots: &RespValue, asked: &ServerAddress) {
        let ranges = parse_slots(slots, asked);
        if ranges.is_empty() {
            return;
        }
        let mut map = self.map.write();
        if map.closed {
            return;
        }
        let mut slots = vec![NOBODY; SLOTS];
        let mut used = Vec::new();
        for (range, address) in ranges {
            let Some(place) = self.node_at(&mut map, &address) else { continue };
            used.push(place);
            slots[usize::from(*range.start())..=usize::from(*range.end())].fill(place);
        }
        // Servers that have no slot any more are let go; the others move up.
        let mut places = vec![NOBODY; map.nodes.len()];
        let mut kept = Vec::new();
        for (place, node) in map.nodes.iter().enumerate() {
            if used.contains(&(place as u16)) {
                places[place] = kept.len() as u16;
                kept.push(node.clone());
            } else {
                node.close(Instant::now() + self.state.options.timeout);
            }
        }
        for slot in slots.iter_mut().filter(|slot| **slot != NOBODY) {
            *slot = places[usize::from(*slot)];
        }
        (map.nodes, map.slots) = (kept, slots);
        self.moved.store(false, Ordering::Release);
    }

    fn wants_slots(&self) -> bool {
        self.moved.load(Ordering::Acquire) || self.map.read().nodes.iter().any(|node| node.is_unreachable())
    }
}
