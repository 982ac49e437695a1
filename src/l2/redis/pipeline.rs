//! Loads and stores under way on one connection: commands go out before earlier ones are answered, and values come straight into the
//! memory of those who wait for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::active::{ServerLoad, ServerStore, StepKind};
use super::redis_connection::RedisConnection;
use super::redis_node::{NodeRole, RedisNode};
use super::redis_options::RedisOptions;
use super::requests::{DataRequest, Rerouted, Route};
use super::resp::{ReplyHead, RespValue};
use super::server_error::{Consequence, server_error};
use super::slot_map::{Redirect, parse_redirect};
use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_TIMEOUT, Result};

/// Requests under way however large they are, so that the server has work while the answer to one travels.
const OVERLAP: usize = 2;
/// Received at a time where a value may begin: enough for its length, and little that is copied.
const HEAD_BYTES: usize = 32;
/// Longest sleep.
const IDLE: Duration = Duration::from_secs(3600);

struct Step {
    request: u64,
    kind: StepKind,
}

/// Where the bytes that come next belong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Incoming {
    /// Into the inbox: the beginning of a reply.
    Reply,
    /// To the load of the first step: so many bytes of the value, or of this part of it, are there.
    Value(usize),
    /// Nowhere: so many bytes are left.
    Nowhere(usize),
    /// The two bytes that end a value.
    End,
}

enum PipelinedRequest {
    Load(ServerLoad),
    Store(ServerStore),
}

/// Where requests under way are to go instead, by their numbers.
type Redirects = HashMap<u64, Redirect>;

/// One connection and its requests.
pub struct Pipeline<'a> {
    node: &'a Arc<RedisNode>,
    number: usize,
    connection: RedisConnection,
    active: HashMap<u64, PipelinedRequest>,
    redirects: Redirects,
    steps: VecDeque<Step>,
    next_id: u64,
    bytes: usize,
    incoming: Incoming,
    /// When the server last took or sent something, or began to owe an answer.
    progress: Instant,
    /// Silences of the server that were known when the connection was made.
    silences: u64,
    /// The server has answered on this connection.
    pub answered: bool,
}

impl PipelinedRequest {
    fn bytes(&self) -> usize {
        match self {
            PipelinedRequest::Load(load) => load.queued.load.buffer.len(),
            PipelinedRequest::Store(store) => store.queued.store.buffer.len(),
        }
    }

    fn route(&self) -> Route {
        match self {
            PipelinedRequest::Load(load) => load.queued.route,
            PipelinedRequest::Store(store) => store.queued.route,
        }
    }

    fn give_up(self) -> DataRequest {
        match self {
            PipelinedRequest::Load(load) => DataRequest::Load(load.queued),
            PipelinedRequest::Store(store) => DataRequest::Store(store.queued),
        }
    }
}

impl<'a> Pipeline<'a> {
    /// The pipeline of thread `number`.
    /// `silences` are those of the node before it connected.
    pub fn new(node: &'a Arc<RedisNode>, number: usize, connection: RedisConnection, silences: u64) -> Pipeline<'a> {
        Pipeline {
            node,
            number,
            connection,
            active: HashMap::new(),
            redirects: HashMap::new(),
            steps: VecDeque::new(),
            next_id: 0,
            bytes: 0,
            incoming: Incoming::Reply,
            progress: Instant::now(),
            silences,
            answered: false,
        }
    }

    /// Carries requests out until the backend is closed. Fails when the connection is of no use any more.
    pub fn run(&mut self) -> Result<()> {
        loop {
            if self.steps.is_empty() && self.node.silences() != self.silences {
                return Err(Error::new(KVKEEP_ERR_IO, "the server is silent on another connection"));
            }
            let idle = self.begin_requests();
            let before = self.connection.outbox.len();
            let active = &self.active;
            self.connection.send(|id| match active.get(&id) {
                Some(PipelinedRequest::Store(store)) => Some(store.queued.store.buffer.bytes()),
                _ => None,
            })?;
            if self.connection.outbox.len() < before {
                self.progress = Instant::now();
            }
            if !self.connection.is_drained() && self.receive()? > 0 {
                self.progress = Instant::now();
                self.read_replies()?;
                continue;
            }
            let now = Instant::now();
            let mut until = self.progress + self.node.state.options.timeout;
            if self.steps.is_empty() {
                // What may come is an end of the connection, which is noticed at once.
                until = now + IDLE;
            } else if now >= until {
                return Err(self.node.was_silent());
            }
            if let Some(closing) = self.node.closing() {
                if idle && self.steps.is_empty() {
                    return Ok(());
                }
                if now >= closing {
                    return Err(Error::new(KVKEEP_ERR_TIMEOUT, "the backend was closed before the server answered"));
                }
                until = until.min(closing);
            }
            let bell = self.node.bell(self.number);
            if self.connection.wait(Some(bell.fd()), until)? {
                bell.clear();
            }
        }
    }

    /// The requests that have not ended. The connection is given up with them.
    pub fn abandon(self) -> Vec<DataRequest> {
        let mut left: Vec<(u64, PipelinedRequest)> = self.active.into_iter().collect();
        left.sort_unstable_by_key(|(id, _)| *id);
        left.into_iter().map(|(_, active)| active.give_up()).collect()
    }

    /// Begins as many requests as the depth and the window allow. True if no more wait.
    fn begin_requests(&mut self) -> bool {
        let RedisOptions { depth, window, .. } = self.node.state.options;
        while self.active.len() < depth && (self.active.len() < OVERLAP || self.bytes < window) {
            let Some(mut request) = self.node.next_request(self.number) else { return true };
            if Instant::now() >= request.deadline() {
                let late = "the deadline passed before the redis backend came to the request";
                self.node.fail(request, Error::new(KVKEEP_ERR_TIMEOUT, late));
                continue;
            }
            if self.steps.is_empty() {
                self.progress = Instant::now();
            }
            let id = self.next_id;
            self.next_id += 1;
            let (options, outbox) = (&self.node.state.options, &mut self.connection.outbox);
            outbox.asking = request.route().asking;
            if outbox.asking {
                self.steps.push_back(Step { request: id, kind: StepKind::Asking });
            }
            let (active, kind) = match request {
                DataRequest::Load(queued) => {
                    let load = ServerLoad::begin(queued, options, outbox);
                    (PipelinedRequest::Load(load), StepKind::Value)
                }
                DataRequest::Store(queued) => {
                    let (store, kind) = ServerStore::begin(queued, id, &self.node.state, outbox);
                    (PipelinedRequest::Store(store), kind)
                }
            };
            self.bytes += active.bytes();
            self.active.insert(id, active);
            self.steps.push_back(Step { request: id, kind });
        }
        false
    }

    /// Receives what is there: into the load that it is for, and else into the inbox.
    fn receive(&mut self) -> Result<usize> {
        let Some(step) = self.steps.front() else { return self.connection.receive(&mut [], usize::MAX) };
        match (self.incoming, self.active.get_mut(&step.request)) {
            (Incoming::Value(at), Some(PipelinedRequest::Load(load))) => {
                let mut places = load.places(step.kind, at);
                let room: usize = places.iter().map(|place| place.len()).sum();
                let count = self.connection.receive(&mut places, HEAD_BYTES)?;
                self.incoming = if count >= room { Incoming::End } else { Incoming::Value(at + count) };
                Ok(count)
            }
            _ if step.kind.is_value() => self.connection.receive(&mut [], HEAD_BYTES),
            _ => self.connection.receive(&mut [], usize::MAX),
        }
    }

    /// Reads all replies that are received.
    fn read_replies(&mut self) -> Result<()> {
        loop {
            match self.incoming {
                Incoming::Reply => {
                    if !self.read_reply()? {
                        return Ok(());
                    }
                }
                Incoming::Value(at) => {
                    let Some(Step { request, kind }) = self.steps.front() else { return Ok(()) };
                    let Some(PipelinedRequest::Load(load)) = self.active.get_mut(request) else { return Ok(()) };
                    let (mut now, mut full) = (at, true);
                    for place in load.places(*kind, at) {
                        let bytes = self.connection.take(place.len());
                        place[..bytes.len()].copy_from_slice(bytes);
                        (now, full) = (now + bytes.len(), full && bytes.len() == place.len());
                    }
                    self.incoming = if full { Incoming::End } else { Incoming::Value(now) };
                    if !full {
                        return Ok(());
                    }
                }
                Incoming::Nowhere(left) => {
                    let taken = self.connection.take(left).len();
                    self.incoming = if taken == left { Incoming::End } else { Incoming::Nowhere(left - taken) };
                    if taken < left {
                        return Ok(());
                    }
                }
                Incoming::End => {
                    if !self.connection.take_line_end()? {
                        return Ok(());
                    }
                    self.incoming = Incoming::Reply;
                    self.end_step(None)?;
                }
            }
        }
    }

    /// Reads the next reply, or the beginning of a value. False if neither is received.
    fn read_reply(&mut self) -> Result<bool> {
        let Some(step) = self.steps.front() else { return self.connection.check_quiet().map(|()| false) };
        if step.kind.is_value()
            && let Some(PipelinedRequest::Load(load)) = self.active.get_mut(&step.request)
        {
            match self.connection.head()? {
                None => return Ok(false),
                Some(ReplyHead::Bulk { length, head }) if load.expects(step.kind, length) => {
                    self.connection.take(head);
                    self.incoming = Incoming::Value(0);
                    return Ok(true);
                }
                Some(ReplyHead::Bulk { length, head }) if !load.may_be_manifest(step.kind, length) => {
                    self.connection.take(head);
                    load.is_another();
                    self.incoming = Incoming::Nowhere(length);
                    return Ok(true);
                }
                Some(_) => {}
            }
        }
        let Some(reply) = self.connection.reply()? else { return Ok(false) };
        self.end_step(Some(reply))?;
        Ok(true)
    }

    /// The first step is answered: by `reply`, or by a value that is in its place or skipped.
    fn end_step(&mut self, reply: Option<RespValue>) -> Result<()> {
        let Some(Step { request, kind }) = self.steps.pop_front() else { return Ok(()) };
        self.answered = true;
        if kind == StepKind::Asking {
            return Ok(());
        }
        let (mut refused, mut fatal) = (None, None);
        // A value of another type is no object.
        let reply = match reply {
            Some(RespValue::Failure(text)) if text.starts_with("WRONGTYPE") => Some(RespValue::Bulk(vec![0])),
            reply => reply,
        };
        if let Some(RespValue::Failure(text)) = &reply {
            if self.node.cluster().is_some()
                && let Some(redirect) = parse_redirect(text, &self.node.address)
            {
                self.redirects.insert(request, redirect);
            }
            let (error, consequence) = server_error(text, kind.command());
            match consequence {
                Consequence::Nothing => {}
                Consequence::Pause => self.node.pause(&error),
                Consequence::Reconnect => fatal = Some(error.clone()),
            }
            refused = Some(error);
        }
        let reply = match refused {
            Some(error) => Err(error),
            None => Ok(reply),
        };
        let (node, outbox) = (self.node, &mut self.connection.outbox);
        let steps = &mut self.steps;
        let asking = self.active.get(&request).is_some_and(|active| active.route().asking);
        outbox.asking = asking;
        let add = |kind| {
            if asking {
                steps.push_back(Step { request, kind: StepKind::Asking });
            }
            steps.push_back(Step { request, kind });
        };
        let ended = match self.active.get_mut(&request) {
            Some(PipelinedRequest::Load(load)) => load.answered(kind, reply, &node.state, outbox, add),
            Some(PipelinedRequest::Store(store)) => {
                let reply = reply.map(|reply| reply.unwrap_or(RespValue::Nil));
                store.answered(kind, reply, request, &node.state, outbox, add)
            }
            None => false,
        };
        if ended && let Some(active) = self.active.remove(&request) {
            self.bytes -= active.bytes();
            if let Some((redirect, cluster)) = self.redirects.remove(&request).zip(node.cluster()) {
                cluster.redirect(redirect, Rerouted::Data(active.give_up()));
                return fatal.map_or(Ok(()), Err);
            }
            match active {
                PipelinedRequest::Load(load) => match load.failure().filter(|_| node.role == NodeRole::Replica) {
                    Some(error) => node.fail(DataRequest::Load(load.queued), error),
                    None => load.end(&node.state),
                },
                PipelinedRequest::Store(store) => {
                    let key = store.queued.store.key;
                    store.end(&node.state);
                    node.change_ended(&key);
                }
            }
        }
        fatal.map_or(Ok(()), Err)
    }
}
