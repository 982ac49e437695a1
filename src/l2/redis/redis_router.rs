//! The servers of a backend: one, or the masters of a cluster, and the replicas that are read from. They come and go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::control_link::run_control_link;
use super::data_link::run_data_link;
use super::node_queue::LinkKind;
use super::object_name::object_name;
use super::redis_connection::RedisConnection;
use super::redis_node::{NodeRole, RedisNode};
use super::redis_options::ServerAddress;
use super::redis_state::{RedisState, Refused, closed};
use super::replica_set::{ReplicaSet, parse_role};
use super::requests::{DataRequest, KeyChange, NodeLookup, QueuedLoad, Reroute, Rerouted, Route};
use super::resp::RespValue;
use super::slot_map::{Redirect, SLOTS, parse_slots, slot_of};
use crate::error::{Error, KVKEEP_ERR_IO, Result};
use crate::key::ObjectKey;
use crate::l2::LoadRequest;
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
    replicas: ReplicaSet,
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
        let node = self.start(address, NodeRole::Single, Some(first))?;
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
    fn start(&self, address: &ServerAddress, role: NodeRole, first: Option<RedisConnection>) -> Result<Arc<RedisNode>> {
        let failed = |error| Error::io("starting the redis backend", &error);
        let router: Weak<dyn Reroute> = self.me.clone();
        let node = Arc::new(RedisNode::new(self.state.clone(), address.clone(), role, router).map_err(failed)?);
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

    /// The server that has all keys, or all masters.
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

    /// The replicas that values are read from.
    pub fn replicas(&self) -> Vec<Arc<RedisNode>> {
        self.map.read().replicas.nodes().cloned().collect()
    }

    /// Has loads of one master's keys carried out: by its replicas in turns, where there are some, or by itself.
    pub fn load(&self, master: &RedisNode, loads: Vec<LoadRequest>) {
        let replicas = self.map.read().replicas.ready(&master.address);
        let mut rest = Vec::new();
        if replicas.is_empty() {
            rest = loads;
        } else {
            let mut shares: Vec<Vec<LoadRequest>> = replicas.iter().map(|_| Vec::new()).collect();
            for (place, load) in loads.into_iter().enumerate() {
                shares[place % replicas.len()].push(load);
            }
            for (replica, share) in replicas.iter().zip(shares).filter(|(_, share)| !share.is_empty()) {
                if let Err((share, _)) = replica.load(share) {
                    rest.extend(share);
                }
            }
        }
        if let Err((loads, error)) = master.load(rest) {
            for load in loads {
                load.sink.loaded(load.index, load.buffer, Err(error.clone()));
            }
        }
    }

    /// Has keys of one master looked up: there, or by a replica while there is no connection to it.
    pub fn look_up(&self, master: &RedisNode, lookup: NodeLookup) {
        let Err((lookup, error)) = master.look_up(lookup) else { return };
        let replica = self.map.read().replicas.ready(&master.address).into_iter().next();
        let refused = match replica {
            Some(replica) => replica.look_up(lookup).err(),
            None => Some((lookup, error)),
        };
        if let Some((lookup, error)) = refused {
            lookup.fail(error);
        }
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
            map.nodes.iter().chain(map.replicas.nodes()).cloned().collect::<Vec<_>>()
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
        map.nodes.push(self.try_start(address, NodeRole::Member)?);
        Some(map.nodes.len() as u16 - 1)
    }

    fn try_start(&self, address: &ServerAddress, role: NodeRole) -> Option<Arc<RedisNode>> {
        let started = self.start(address, role, None);
        let failed = |error: &Error| {
            self.state.log.often("redis server", LogLevel::Error, || format!("redis: {address}: {error}"));
        };
        started.inspect_err(failed).ok()
    }

    /// Reads from these replicas of masters from now on, and from no others.
    fn use_replicas(&self, map: &mut NodeMap, replicas: Vec<(ServerAddress, Vec<ServerAddress>)>) {
        let unused = map.replicas.replace(replicas, |address| self.try_start(address, NodeRole::Replica));
        unused.iter().for_each(|node| node.close(Instant::now() + self.state.options.timeout));
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
        let mut replicas = Vec::new();
        for range in ranges {
            let Some(place) = self.node_at(&mut map, &range.master) else { continue };
            used.push(place);
            slots[usize::from(*range.slots.start())..=usize::from(*range.slots.end())].fill(place);
            replicas.push((range.master, range.replicas));
        }
        if self.state.options.read_from_replica {
            self.use_replicas(&mut map, replicas);
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

    fn learn_replicas(&self, role: &RespValue, master: &ServerAddress) {
        let Some(replicas) = parse_role(role) else { return };
        let mut map = self.map.write();
        if !map.closed {
            self.use_replicas(&mut map, vec![(master.clone(), replicas)]);
        }
    }

    fn replica_count(&self, master: &ServerAddress) -> usize {
        self.map.read().replicas.count(master)
    }

    fn read_at_master(&self, load: QueuedLoad) {
        match self.node_of(&load.load.key) {
            Ok(master) => {
                let load = QueuedLoad { broken: 0, route: Route::default(), ..load };
                master.take_over(Rerouted::Data(DataRequest::Load(load)));
            }
            Err(error) => load.fail(error),
        }
    }

    fn wants_slots(&self) -> bool {
        self.moved.load(Ordering::Acquire) || self.map.read().nodes.iter().any(|node| node.is_unreachable())
    }
}
