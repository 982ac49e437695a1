//! One server: the requests that wait for its connections, and whether there are any.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::node_queue::{ControlTurn, LinkKind, NodeQueue};
use super::redis_connection::{RedisConnection, ServerKind};
use super::redis_options::ServerAddress;
use super::redis_state::{RedisState, Refused};
use super::requests::{
    DataRequest, KeyChange, KeySweep, NodeDelete, NodeLookup, QueuedLoad, QueuedStore, Reroute, Rerouted, Route,
};
use super::sentinel::open_connection;
use super::server_usage::ServerUsage;
use super::wake_fd::WakeFd;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::{LoadRequest, Usage};
use crate::log::LogLevel;

/// Most uses that wait; more are dropped.
const TOUCHES_MAX: usize = 1 << 16;
/// Keys that one turn of the control connection asks for, and those that it changes.
const LOOKUPS_A_TURN: usize = 4096;
const CHANGES_A_TURN: usize = 512;
/// After so many loads a store has its turn, however many loads wait.
const LOADS_A_STORE: u32 = 4;
/// Time for which a server that says that it cannot serve now is not asked.
const PAUSE: Duration = Duration::from_millis(250);

/// The part that a server plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeRole {
    /// It has all keys.
    Single,
    /// A master of a cluster.
    Member,
    /// Values are read from it. What it cannot load is loaded from its master.
    Replica,
}

/// A server and its queue.
pub struct RedisNode {
    pub state: Arc<RedisState>,
    pub address: ServerAddress,
    pub role: NodeRole,
    queue: Mutex<NodeQueue>,
    /// That of the control thread first.
    bells: Vec<WakeFd>,
    /// What the server said of itself last, and its own count of evictions.
    usage: Mutex<(Usage, Option<u64>)>,
    /// How often the server was silent too long on some connection.
    silences: AtomicU64,
    /// The other servers.
    router: Weak<dyn Reroute>,
}

impl RedisNode {
    /// A server without connections yet.
    pub fn new(
        state: Arc<RedisState>,
        address: ServerAddress,
        role: NodeRole,
        router: Weak<dyn Reroute>,
    ) -> io::Result<RedisNode> {
        let bells = (0..=state.options.connections).map(|_| WakeFd::new()).collect::<io::Result<_>>()?;
        let (queue, usage) = (Mutex::default(), Mutex::default());
        Ok(RedisNode { state, address, role, queue, bells, usage, silences: AtomicU64::new(0), router })
    }

    /// A new connection to it, of a Sentinel's to the master of now. Blocks.
    pub fn connect(&self) -> Result<RedisConnection> {
        let options = &self.state.options;
        match self.role {
            NodeRole::Replica => RedisConnection::open(options, &self.address, ServerKind::Replica),
            NodeRole::Single | NodeRole::Member => open_connection(options, &self.address),
        }
    }

    /// The bell of a thread: 0 is the control connection's.
    pub fn bell(&self, number: usize) -> &WakeFd {
        &self.bells[number]
    }

    /// Queues a lookup, or gives it back with the reason.
    pub fn look_up(&self, lookup: NodeLookup) -> Refused<NodeLookup> {
        let mut queue = self.queue.lock();
        if let Some(error) = queue.refusal(LinkKind::Control, lookup.keys.len()) {
            return Err((lookup, error));
        }
        queue.keys += lookup.keys.len();
        queue.lookups.push_back(lookup);
        drop(queue);
        self.bell(0).ring();
        Ok(())
    }

    /// Queues loads, or gives them back with the reason.
    pub fn load(&self, loads: Vec<LoadRequest>) -> Refused<Vec<LoadRequest>> {
        let mut queue = self.queue.lock();
        if let Some(error) = queue.refusal(LinkKind::Data, loads.len()) {
            return Err((loads, error));
        }
        let count = loads.len();
        queue.keys += count;
        queue.loads.extend(loads.into_iter().map(|load| QueuedLoad { load, broken: 0, route: Route::default() }));
        self.wake_data(queue, count);
        Ok(())
    }

    /// Queues a change that may begin, or gives it back with the reason.
    pub fn change(&self, change: KeyChange) -> Refused<KeyChange> {
        let mut queue = self.queue.lock();
        let kind = if matches!(change, KeyChange::Store(_)) { LinkKind::Data } else { LinkKind::Control };
        if let Some(error) = queue.refusal(kind, 1) {
            return Err((change, error));
        }
        queue.keys += 1;
        match change {
            KeyChange::Store(store) => {
                queue.stores.push_back(store);
                self.wake_data(queue, 1);
            }
            KeyChange::Delete(delete) => {
                queue.deletes.push_back(delete);
                drop(queue);
                self.bell(0).ring();
            }
        }
        Ok(())
    }

    /// Queues uses; where there is no room or no connection for them, they are forgotten.
    pub fn touch(&self, keys: &[ObjectKey]) {
        let mut queue = self.queue.lock();
        if queue.refusal(LinkKind::Control, 0).is_some() {
            return;
        }
        let room = TOUCHES_MAX.saturating_sub(queue.touches.len());
        queue.touches.extend(keys.iter().take(room));
        drop(queue);
        self.bell(0).ring();
    }

    /// Queues a sweep, which is not counted as keys, or fails it.
    pub fn sweep(&self, sweep: KeySweep) {
        let mut queue = self.queue.lock();
        match queue.refusal(LinkKind::Control, 0) {
            Some(error) => {
                drop(queue);
                sweep.batch.fail(error);
            }
            None => {
                queue.sweeps.push_back(sweep);
                drop(queue);
                self.bell(0).ring();
            }
        }
    }

    fn wake_data(&self, mut queue: parking_lot::MutexGuard<'_, NodeQueue>, count: usize) {
        let from = queue.free.len() - count.min(queue.free.len());
        let woken = queue.free.split_off(from);
        drop(queue);
        woken.into_iter().for_each(|number| self.bell(number).ring());
    }

    /// The control connection's next turn.
    pub fn next_turn(&self) -> ControlTurn {
        let mut queue = self.queue.lock();
        let mut turn = ControlTurn::default();
        let mut asked = 0;
        while asked < LOOKUPS_A_TURN
            && let Some(lookup) = queue.lookups.pop_front()
        {
            asked += lookup.keys.len();
            turn.lookups.push(lookup);
        }
        let deletes = queue.deletes.len().min(CHANGES_A_TURN);
        turn.deletes.extend(queue.deletes.drain(..deletes));
        let touches = queue.touches.len().min(CHANGES_A_TURN);
        turn.touches.extend(queue.touches.drain(..touches));
        turn.sweep = queue.sweeps.pop_front();
        queue.keys -= asked + deletes;
        turn
    }

    /// The next load or store for a data connection. None: the thread is noted as free.
    pub fn next_request(&self, number: usize) -> Option<DataRequest> {
        let mut queue = self.queue.lock();
        queue.free.retain(|&free| free != number);
        let store_first = queue.loads_in_a_row >= LOADS_A_STORE && !queue.stores.is_empty();
        if !store_first && let Some(load) = queue.loads.pop_front() {
            queue.loads_in_a_row += 1;
            queue.keys -= 1;
            return Some(DataRequest::Load(load));
        }
        queue.loads_in_a_row = 0;
        if let Some(store) = queue.stores.pop_front() {
            queue.keys -= 1;
            return Some(DataRequest::Store(store));
        }
        queue.free.push(number);
        None
    }

    /// Takes requests back whose connection broke, and fails those under which one broke too often.
    pub fn give_back(&self, requests: Vec<DataRequest>, error: &Error) {
        let mut failed = Vec::new();
        let count = requests.len();
        // A server that went away broke all connections, of which each shows it only when it is used. For a replica the master is
        // asked at once.
        let broken_max = if self.role == NodeRole::Replica { 0 } else { self.state.options.connections + 1 };
        {
            let mut queue = self.queue.lock();
            let open = queue.closed.is_none();
            for request in requests.into_iter().rev() {
                match request {
                    DataRequest::Load(load) if open && load.broken < broken_max => {
                        queue.keys += 1;
                        queue.loads.push_front(QueuedLoad { broken: load.broken + 1, ..load });
                    }
                    DataRequest::Store(store) if open && store.broken < broken_max => {
                        queue.keys += 1;
                        queue.stores.push_front(Box::new(QueuedStore { broken: store.broken + 1, ..*store }));
                    }
                    request => failed.push(request),
                }
            }
            self.wake_data(queue, count);
        }
        let error = self.named(error);
        failed.into_iter().for_each(|request| self.fail(request, error.clone()));
    }

    /// The error of a connection, with the server that it was to.
    pub fn named(&self, error: &Error) -> Error {
        let server = self.address.to_string();
        let message = match error.message.contains(&server) {
            true => error.message.clone(),
            false => format!("{server}: {}", error.message),
        };
        Error { message, ..error.clone() }
    }

    /// Answers a request of a data connection with an error, or gives the load of a replica to the master.
    pub fn fail(&self, request: DataRequest, error: Error) {
        match request {
            DataRequest::Load(load) => match self.router().filter(|_| self.role == NodeRole::Replica) {
                Some(router) => router.read_at_master(load),
                None => load.fail(error),
            },
            DataRequest::Store(queued) => {
                let key = queued.store.key;
                queued.store.answer(Err(error));
                self.change_ended(&key);
            }
        }
    }

    /// The change of a key that was under way is answered.
    pub fn change_ended(&self, key: &ObjectKey) {
        self.state.change_ended(key, |next| self.change(next));
    }

    /// A connection is up.
    pub fn connected(&self, kind: LinkKind) {
        let mut queue = self.queue.lock();
        let links = queue.links(kind);
        links.up += 1;
        if links.trouble.take().is_some() {
            drop(queue);
            self.state.log.write(LogLevel::Info, || format!("redis: connected to {} again", self.address));
        }
    }

    /// A connection that was up is lost.
    pub fn disconnected(&self, kind: LinkKind, error: &Error) {
        self.queue.lock().links(kind).up -= 1;
        self.state.log.often("redis connection lost", LogLevel::Warn, || {
            format!("redis: a connection to {} is lost: {error}; it is made anew", self.address)
        });
    }

    /// A connection could not be had. While there is none of its kind, requests are refused with this error.
    pub fn connect_failed(&self, kind: LinkKind, error: &Error) {
        {
            let mut queue = self.queue.lock();
            let links = queue.links(kind);
            if links.up > 0 {
                return;
            }
            links.trouble = Some(error.clone());
        }
        self.state.log.often("redis unreachable", LogLevel::Error, || format!("redis: {error}"));
        self.refuse_waiting(kind, error);
    }

    /// Fails all that waits for a kind of connection.
    pub fn refuse_waiting(&self, kind: LinkKind, error: &Error) {
        if kind == LinkKind::Data {
            loop {
                let mut queue = self.queue.lock();
                let load = queue.loads.pop_front().map(DataRequest::Load);
                let Some(request) = load.or_else(|| queue.stores.pop_front().map(DataRequest::Store)) else { return };
                queue.keys -= 1;
                drop(queue);
                self.fail(request, error.clone());
            }
        }
        loop {
            let turn = self.next_turn();
            if turn.is_empty() {
                return;
            }
            self.fail_turn(turn, error);
        }
    }

    /// Fails all that a turn of the control connection was to do.
    pub fn fail_turn(&self, turn: ControlTurn, error: &Error) {
        turn.lookups.into_iter().for_each(|lookup| lookup.fail(error.clone()));
        turn.sweep.into_iter().for_each(|sweep| sweep.batch.fail(error.clone()));
        for NodeDelete { key, batch, .. } in turn.deletes {
            batch.fail(error.clone());
            drop(batch);
            self.change_ended(&key);
        }
    }

    /// The server cannot serve for a while.
    pub fn pause(&self, error: &Error) {
        let mut queue = self.queue.lock();
        queue.paused = Some((Instant::now() + PAUSE, error.clone()));
        drop(queue);
        self.state.log.often("redis pause", LogLevel::Warn, || format!("redis: {}: {error}", self.address));
    }

    /// The server said how full it is.
    pub fn note_usage(&self, server: &ServerUsage) {
        let (usage, evicted) = &mut *self.usage.lock();
        server.write_to(usage, evicted);
    }

    /// What the server said of itself last.
    pub fn usage(&self) -> Usage {
        self.usage.lock().0
    }

    /// The other servers, while the backend is open.
    pub fn router(&self) -> Option<Arc<dyn Reroute>> {
        self.router.upgrade()
    }

    /// The same if it is a master of a cluster.
    pub fn cluster(&self) -> Option<Arc<dyn Reroute>> {
        self.router().filter(|_| self.role == NodeRole::Member)
    }

    /// Takes a request that another server of the cluster redirected.
    pub fn take_over(&self, request: Rerouted) {
        match request {
            Rerouted::Data(request) => {
                let mut queue = self.queue.lock();
                if let Some(error) = queue.refusal(LinkKind::Data, 1) {
                    drop(queue);
                    return self.fail(request, error);
                }
                queue.keys += 1;
                match request {
                    DataRequest::Load(load) => queue.loads.push_back(load),
                    DataRequest::Store(store) => queue.stores.push_back(store),
                }
                self.wake_data(queue, 1);
            }
            Rerouted::Lookup(lookup) => {
                if let Err((lookup, error)) = self.look_up(lookup) {
                    lookup.fail(error);
                }
            }
            Rerouted::Delete(delete) => {
                let key = delete.key;
                if let Err((change, error)) = self.change(KeyChange::Delete(delete)) {
                    change.fail(error);
                    self.change_ended(&key);
                }
            }
        }
    }

    /// Whether there is no connection to it, and none can be had.
    pub fn is_unreachable(&self) -> bool {
        let queue = self.queue.lock();
        [&queue.control, &queue.data].into_iter().any(|links| links.up == 0 && links.trouble.is_some())
    }

    /// Whether a load would find a connection.
    pub fn is_ready(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.data.up > 0 && queue.refusal(LinkKind::Data, 0).is_none()
    }

    /// Why it cannot be used now.
    pub fn trouble(&self) -> Option<String> {
        let mut queue = self.queue.lock();
        let control = queue.refusal(LinkKind::Control, 0);
        control.or_else(|| queue.refusal(LinkKind::Data, 0)).map(|error| error.message)
    }

    /// The server owes an answer for too long. Other connections to it are made anew before they carry another request.
    pub fn was_silent(&self) -> Error {
        self.silences.fetch_add(1, Ordering::AcqRel);
        self.bells.iter().skip(1).for_each(WakeFd::ring);
        let timeout = self.state.options.timeout.as_millis();
        Error::new(KVKEEP_ERR_TIMEOUT, format!("{} owes an answer for {timeout} ms", self.address))
    }

    pub fn silences(&self) -> u64 {
        self.silences.load(Ordering::Acquire)
    }

    /// Accepts nothing more. What was accepted is carried out until `until`.
    pub fn close(&self, until: Instant) {
        self.queue.lock().closed.get_or_insert(until);
        self.bells.iter().for_each(WakeFd::ring);
    }

    /// Until when what was accepted is carried out, if it is closed.
    pub fn closing(&self) -> Option<Instant> {
        self.queue.lock().closed
    }
}
