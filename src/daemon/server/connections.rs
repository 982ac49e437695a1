//! The connections of a daemon and the clients that they belong to.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client_state::Guest;
use super::descriptors::OF_CLIENT;

/// A connection may be silent for so long, however many others come: a client may be held up between connecting and asking.
const SILENCE_MIN: Duration = Duration::from_millis(100);

/// What a connection has said that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Nothing yet.
    Silent,
    /// Nothing, and it was told to go.
    Refused,
    /// A client's connection for pushes.
    Client,
    /// A lane of this client.
    Lane(u64),
}

pub struct Stream {
    /// The socket, to be shut.
    pub socket: Arc<UnixStream>,
    /// When it was accepted.
    pub since: Instant,
    /// Its use.
    pub usage: Use,
}

/// All clients, and all connections.
#[derive(Default)]
pub struct Guests {
    /// Clients by their number.
    pub by_number: HashMap<u64, Arc<Guest>>,
    /// Connections with a thread, to be shut when the server stops.
    pub streams: HashMap<u64, Stream>,
}

impl Guests {
    /// Descriptors that clients have, or may have at once.
    pub fn descriptors(&self) -> usize {
        let clients = self.by_number.values().filter(|guest| !guest.observer);
        clients.map(|guest| OF_CLIENT + guest.lanes().saturating_sub(1)).sum()
    }

    /// A connection has said what it is. False if it was told to go before.
    pub fn admit(&mut self, number: u64, usage: Use) -> bool {
        let stream = self.streams.get_mut(&number).filter(|stream| stream.usage == Use::Silent);
        stream.map(|stream| stream.usage = usage).is_some()
    }

    /// Clients of a kind: those that only look or the others, those that lost their connection or the others.
    pub fn count(&self, observers: bool, cut: bool) -> usize {
        self.by_number.values().filter(|guest| (guest.observer, guest.is_cut()) == (observers, cut)).count()
    }

    /// How many connections have not said what they are.
    pub fn silent(&self) -> usize {
        self.streams.values().filter(|stream| matches!(stream.usage, Use::Silent | Use::Refused)).count()
    }

    /// Whether a connection was refused because it said nothing.
    pub fn is_refused(&self, number: u64) -> bool {
        self.streams.get(&number).is_some_and(|stream| stream.usage == Use::Refused)
    }

    /// Refuses the oldest of the connections that have said nothing, if it has had its time. Gives when to look again.
    pub fn refuse_oldest(&mut self) -> Instant {
        let now = Instant::now();
        let silent = self.streams.iter_mut().filter(|(_, stream)| stream.usage == Use::Silent);
        let silent = silent.filter(|(_, stream)| says_nothing(&stream.socket));
        match silent.min_by_key(|(number, _)| **number) {
            Some((_, stream)) if now >= stream.since + SILENCE_MIN => {
                stream.usage = Use::Refused;
                // Its thread finds that nothing comes, and says why it goes.
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
