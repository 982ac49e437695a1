//! One client as its daemon sees it: its process, its rights, and the sessions and jobs that end with it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use super::access::Limits;
use super::descriptors::failed;
use super::peer::Peer;
use super::push::PushQueue;
use super::recording::AnswerNote;
use crate::abi::JobResult;
use crate::cache::Cache;
use crate::config::JobObserver;
use crate::daemon::wire::{PUSH_DONE, PUSH_LOOKED_UP, PUSH_RELEASED, Request};
use crate::error::{Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_PERMISSION, Result};
use crate::node::Node;

#[derive(Default)]
struct Holdings {
    gone: bool,
    sessions: HashSet<u64>,
    /// Jobs not released by ticket; 0 while one is being submitted.
    jobs: HashMap<u64, u64>,
}

/// The rights of a client.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    /// The client may not write.
    pub read_only: bool,
    /// The client may change what all clients share.
    pub admin: bool,
    /// The client may look at numbers and reasons, and nothing else.
    pub observer: bool,
}

/// A connected client: what it may do, and what it holds.
pub struct ClientState {
    /// The number that the daemon gave it, never used again.
    pub number: u64,
    /// Proves that a request connection is this client's.
    pub secret: u64,
    /// The process that connected.
    pub peer: Peer,
    /// The client may not write.
    pub read_only: bool,
    /// The client may change what all clients share.
    pub admin: bool,
    /// The client only looks at numbers and reasons, and holds nothing.
    pub observer: bool,
    /// The pushes that it has not been sent yet.
    pub pushes: PushQueue,
    /// Readable once its process has ended.
    pub process: Option<OwnedFd>,
    request_connections: AtomicUsize,
    cut: AtomicBool,
    held: Mutex<Holdings>,
}

fn gone() -> Error {
    Error::new(KVKEEP_ERR_DISCONNECTED, "the client's connection is being ended")
}

fn limit(what: &str, most: u64, option: &str) -> Error {
    Error::new(
        KVKEEP_ERR_LIMIT,
        format!(
            "this client has {most} {what}, the most the daemon gives one: end some, or raise {option} of kvkeep serve"
        ),
    )
}

impl ClientState {
    /// A client that holds nothing yet.
    pub fn new(number: u64, secret: u64, peer: Peer, rights: Rights) -> Result<ClientState> {
        let Rights { read_only, admin, observer } = rights;
        let (request_connections, cut, held) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::default());
        let process = peer.watch().map_err(|error| failed("watching a client's process", &error))?;
        Ok(ClientState {
            number,
            secret,
            peer,
            read_only,
            admin,
            observer,
            pushes: PushQueue::new()?,
            process,
            request_connections,
            cut,
            held,
        })
    }

    /// Counts one more request connection.
    pub fn add_request_connection(&self) {
        self.request_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// How many request connections it has.
    pub fn request_connections(&self) -> usize {
        self.request_connections.load(Ordering::Relaxed)
    }

    /// Counts one request connection less.
    pub fn remove_request_connection(&self) {
        self.request_connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes that the client makes no calls any more: its connection is lost.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Whether the client makes no calls any more.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Whether the client has left in order.
    pub fn is_gone(&self) -> bool {
        self.held.lock().gone
    }

    /// Refuses requests that an observer may not make.
    pub fn may_ask(&self, request: &Request<'_>) -> Result<()> {
        if self.observer && !request.only_looks() {
            return Err(Error::new(
                KVKEEP_ERR_PERMISSION,
                "this connection only looks at numbers and reasons: open the cache without asking for that",
            ));
        }
        Ok(())
    }

    /// Refuses requests that a reader may not make.
    pub fn may_write(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(
                KVKEEP_ERR_PERMISSION,
                "this client is a reader: open the cache without KVKEEP_FLAG_READ_ONLY, as a user whom the daemon lets write",
            ));
        }
        Ok(())
    }

    /// Refuses requests that concern every client, unless this is the daemon's own user or root.
    pub fn may_administer(&self) -> Result<()> {
        if !self.admin {
            return Err(Error::new(
                KVKEEP_ERR_PERMISSION,
                format!("user {} may not change what all clients share: do it as the daemon's user", self.peer.uid),
            ));
        }
        Ok(())
    }

    /// Begins a session that ends with this client.
    pub fn begin_session(&self, node: &Node, limits: &Limits, begin: impl FnOnce() -> Result<u64>) -> Result<u64> {
        let mut held = self.held.lock();
        if held.gone {
            return Err(gone());
        }
        if held.sessions.len() >= limits.sessions_per_client_max {
            // Some may have been ended by others, or by their deadline.
            held.sessions.retain(|&session| node.l1.session_lives(session).is_ok());
            if held.sessions.len() >= limits.sessions_per_client_max {
                let most = limits.sessions_per_client_max as u64;
                return Err(limit("live sessions", most, "sessions_per_client_max"));
            }
        }
        let session = begin()?;
        held.sessions.insert(session);
        Ok(session)
    }

    /// A session was ended.
    pub fn end_session(&self, session: u64) {
        self.held.lock().sessions.remove(&session);
    }

    /// Begins to follow a job that the client knows by `ticket`. Its lookup's answer goes to `note` too.
    pub fn begin_job(
        self: &Arc<Self>,
        limits: &Limits,
        ticket: u64,
        note: Option<AnswerNote>,
    ) -> Result<Arc<dyn JobObserver>> {
        let mut held = self.held.lock();
        if held.gone {
            return Err(gone());
        }
        if held.jobs.len() >= limits.jobs_per_client_max {
            return Err(limit("jobs not released", limits.jobs_per_client_max as u64, "jobs_per_client_max"));
        }
        if held.jobs.insert(ticket, 0).is_some() {
            return Err(Error::invalid("malformed message: a ticket is used twice"));
        }
        Ok(Arc::new(JobPusher { client: Arc::downgrade(self), ticket, note }))
    }

    /// The job of a ticket was accepted, or (0) refused. False if the client has left meanwhile: then it is to be released.
    pub fn accept_job(&self, ticket: u64, job: u64) -> bool {
        let mut held = self.held.lock();
        if job == 0 {
            held.jobs.remove(&ticket);
        } else if let Some(known) = held.jobs.get_mut(&ticket) {
            *known = job;
        }
        !held.gone
    }

    /// Ends all sessions and jobs of a client that has left. Returns how many sessions that ended, and how many of them held
    /// something. Called by the thread of the client's connection when it ends, and by Bye.
    pub fn leave(&self, node: &Node) -> (usize, usize) {
        let held = {
            let mut held = self.held.lock();
            std::mem::replace(&mut *held, Holdings { gone: true, ..Holdings::default() })
        };
        for job in held.jobs.into_values().filter(|job| *job != 0) {
            // A job that was released meanwhile is gone already; so is a session that ended.
            let _ = node.release_job(job);
        }
        let holding = held.sessions.iter().filter(|&&session| node.l1.session_holds(session)).count();
        let ended = held.sessions.iter().filter(|&&session| node.abort_session(session).is_ok()).count();
        // The keys that it staged in sessions of other clients.
        node.l1.close_writer(self.number);
        (ended, holding)
    }
}

/// Pushes the progress of one job to its client.
struct JobPusher {
    client: Weak<ClientState>,
    ticket: u64,
    note: Option<AnswerNote>,
}

impl JobObserver for JobPusher {
    fn looked_up(&self, chunks: u32) {
        if let Some(note) = &self.note {
            note.found(chunks);
        }
        if let Some(client) = self.client.upgrade() {
            client.pushes.push(PUSH_LOOKED_UP, |frame| {
                frame.put(&self.ticket).put(&chunks);
            });
        }
    }

    fn done(&self, result: &JobResult, held: &[bool]) {
        if let Some(client) = self.client.upgrade() {
            client.pushes.push(PUSH_DONE, |frame| {
                frame.put(&self.ticket).put(result).put(&bitmap(held).as_slice());
            });
        }
    }

    fn released(&self) {
        if let Some(client) = self.client.upgrade() {
            client.held.lock().jobs.remove(&self.ticket);
            client.pushes.push(PUSH_RELEASED, |frame| {
                frame.put(&self.ticket);
            });
        }
    }
}

/// Bit i % 8 of byte i / 8 is key i.
fn bitmap(held: &[bool]) -> Vec<u8> {
    held.chunks(8).map(|eight| eight.iter().rev().fold(0, |byte, &held| byte << 1 | u8::from(held))).collect()
}
