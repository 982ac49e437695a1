//! The connections of a daemon and the clients that they belong to.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client_state::ClientState;
use super::descriptors::OF_CLIENT;

/// A connection may be silent for so long, however many others come: a client may be held up between connecting and its first
/// request.
const SILENCE_MIN: Duration = Duration::from_millis(100);

/// The purpose of a connection, known from its first request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It has not sent its first request yet.
    Silent,
    /// It sent no first request, and was refused.
    Refused,
    /// The connection on which a client listens for pushes.
    Pushes,
    /// A request connection of this client.
    Requests(u64),
}

pub struct OpenConnection {
    /// The socket, to be shut down.
    pub socket: Arc<UnixStream>,
    /// When it was accepted.
    pub since: Instant,
    /// The purpose, as far as it is known.
    pub purpose: Purpose,
}

/// All clients, and all connections.
#[derive(Default)]
pub struct Connections {
    /// Connected clients by number.
    pub clients: HashMap<u64, Arc<ClientState>>,
    /// Connections with a thread, to be shut when the server stops.
    pub streams: HashMap<u64, OpenConnection>,
}

impl Connections {
    /// Descriptors that clients have, or may have at once.
    pub fn descriptors(&self) -> usize {
        let clients = self.clients.values().filter(|client| !client.observer);
        clients.map(|client| OF_CLIENT + client.request_connections().saturating_sub(1)).sum()
    }

    /// Notes the purpose of a silent connection. False if the connection was refused before.
    pub fn admit(&mut self, number: u64, purpose: Purpose) -> bool {
        let stream = self.streams.get_mut(&number).filter(|stream| stream.purpose == Purpose::Silent);
        stream.map(|stream| stream.purpose = purpose).is_some()
    }

    /// How many clients there are: observers or the others, with a lost connection or with a live one.
    pub fn count(&self, observers: bool, cut: bool) -> usize {
        self.clients.values().filter(|client| (client.observer, client.is_cut()) == (observers, cut)).count()
    }

    /// How many connections have made no request yet.
    pub fn silent(&self) -> usize {
        self.streams.values().filter(|stream| matches!(stream.purpose, Purpose::Silent | Purpose::Refused)).count()
    }

    /// Whether a connection was refused because it made no request.
    pub fn is_refused(&self, number: u64) -> bool {
        self.streams.get(&number).is_some_and(|stream| stream.purpose == Purpose::Refused)
    }

    /// Refuses the oldest of the silent connections, if it has had its time. Returns when to look again.
    pub fn refuse_oldest(&mut self) -> Instant {
        let now = Instant::now();
        let silent = self.streams.iter_mut().filter(|(_, stream)| stream.purpose == Purpose::Silent);
        let silent = silent.filter(|(_, stream)| says_nothing(&stream.socket));
        match silent.min_by_key(|(number, _)| **number) {
            Some((_, stream)) if now >= stream.since + SILENCE_MIN => {
                stream.purpose = Purpose::Refused;
                // Its thread finds that nothing comes, and sends the reason.
                let _ = stream.socket.shutdown(Shutdown::Read);
                now + SILENCE_MIN
            }
            Some((_, stream)) => stream.since + SILENCE_MIN,
            None => now + SILENCE_MIN,
        }
    }
}

/// Whether nothing has come on a connection that its thread has not taken.
fn says_nothing(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}
