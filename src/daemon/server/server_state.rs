//! The state that all connections of a daemon share, and the admission of connections by their first request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::access::{Access, Limits};
use super::client_state::{ClientState, Rights};
use super::connections::{Connections, Purpose};
use super::descriptors::{DescriptorShares, OF_CLIENT};
use super::dispatch::Handler;
use super::peer::{Peer, random};
use crate::daemon::wire::{Request, WIRE_VERSION};
use crate::error::{Error, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_VERSION, Result};
use crate::node::Node;

/// How long a connection may be open without its first request.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Longest time to look for the next request before sleeping, for a client that spins itself.
const SPIN_MAX: Duration = Duration::from_micros(50);

/// The state of a daemon that its threads share.
pub(super) struct ServerState {
    pub(super) node: Arc<Node>,
    pub(super) handler: Handler,
    pub(super) access: Access,
    pub(super) limits: Limits,
    pub(super) boot: u16,
    pub(super) shares: DescriptorShares,
    pub(super) connections: Mutex<Connections>,
    /// Notified when a connection ended or made its first request.
    pub(super) changed: Condvar,
    pub(super) next: AtomicU64,
    pub(super) stopping: AtomicBool,
}

/// The error of a connection that made no request in time.
pub(super) fn silent() -> Error {
    Error::new(
        KVKEEP_ERR_LIMIT,
        format!(
            "a connection that did not say what it is, in {} s or before others had to: try again",
            SILENCE_MAX.as_secs()
        ),
    )
}

fn clients_have_all() -> Error {
    Error::new(
        KVKEEP_ERR_LIMIT,
        "the daemon's clients have all descriptors that are not set aside for its backends: close some, or raise the limit on \
         open files that kvkeep serve is started with (ulimit -n, LimitNOFILE=)",
    )
}

fn check_version(version: u32) -> Result<()> {
    if version == WIRE_VERSION {
        return Ok(());
    }
    Err(Error::new(
        KVKEEP_ERR_VERSION,
        format!("the client speaks version {version}, this daemon {WIRE_VERSION}: use one build for both"),
    ))
}

impl ServerState {
    /// The client that a connection belongs to, and, for a request connection, how long to look for its next request before
    /// sleeping.
    pub(super) fn admit(
        &self,
        peer: Peer,
        request: Request<'_>,
        number: u64,
    ) -> Result<(Arc<ClientState>, Option<Duration>)> {
        match request {
            Request::Attach { version, client: client_number, secret, spin_us } => {
                check_version(version)?;
                let mut connections = self.connections.lock();
                let client = connections.clients.get(&client_number).cloned();
                let client = client
                    .filter(|client| !client.is_cut() && client.secret == secret && client.peer.uid == peer.uid)
                    .ok_or_else(|| {
                        Error::new(
                            KVKEEP_ERR_NOT_FOUND,
                            format!("client {client_number} is not connected: connect again"),
                        )
                    })?;
                // The first is counted with its client.
                if client.request_connections() > 0 && connections.descriptors() >= self.shares.clients {
                    return Err(clients_have_all());
                }
                if client.request_connections() >= self.request_connections_max(&client) {
                    return Err(Error::new(
                        KVKEEP_ERR_LIMIT,
                        "this client makes the most calls at once: raise connections_per_client_max",
                    ));
                }
                if !connections.admit(number, Purpose::Requests(client_number)) {
                    return Err(silent());
                }
                client.add_request_connection();
                Ok((client, Some(Duration::from_micros(u64::from(spin_us)).min(SPIN_MAX))))
            }
            Request::Hello { version, read_only, observer } => {
                check_version(version)?;
                let (may_write, admin) = self.access.rights(peer)?;
                let secret = random().map_err(|error| Error::io("making a secret", &error))?;
                let rights = Rights { read_only: read_only || observer || !may_write, admin, observer };
                let client = Arc::new(ClientState::new(number, secret, peer, rights)?);
                let mut connections = self.connections.lock();
                self.check_clients(&connections, observer)?;
                if !connections.admit(number, Purpose::Pushes) {
                    return Err(silent());
                }
                if !observer {
                    self.node.l1.open_writer(number, self.limits.staged_bytes_per_client_max);
                    self.node.meters.clients.add(1);
                }
                connections.clients.insert(number, client.clone());
                Ok((client, None))
            }
            _ => Err(Error::invalid("malformed message: a connection begins with hello")),
        }
    }

    /// Refuses one client, or one observer, too many. Observers have few places, which no other client takes.
    fn check_clients(&self, connections: &Connections, observer: bool) -> Result<()> {
        let most = if observer { self.shares.observers } else { self.limits.clients_max };
        // Clients that have lost their connection are counted apart: they must be able to connect again.
        if connections.count(observer, false) >= most || connections.count(observer, true) >= most {
            let message = if observer {
                format!("{most} connections that only look are there, the most there may be: end one, or try again")
            } else {
                format!("{most} clients are connected: close some, or raise clients_max")
            };
            return Err(Error::new(KVKEEP_ERR_LIMIT, message));
        }
        if !observer && connections.descriptors() + OF_CLIENT > self.shares.clients {
            return Err(clients_have_all());
        }
        Ok(())
    }

    /// How many request connections a client may have.
    pub(super) fn request_connections_max(&self, client: &ClientState) -> usize {
        if client.observer { 1 } else { self.limits.connections_per_client_max }
    }
}
