//! Accepting connections to the daemon's socket, also when no descriptor is left.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use super::descriptors::is_none_left;

/// A connection that was accepted.
pub enum Accepted {
    /// It is to be served.
    Connection(UnixStream),
    /// It took the last descriptor: it is to be refused and closed before the next is accepted.
    NoDescriptor(UnixStream),
}

/// Accepts connections. It reserves a descriptor: when no other is left, a connection is accepted with it and refused with the
/// reason. Otherwise its peer would wait for an answer that never comes.
pub struct Acceptor<'a> {
    listener: &'a UnixListener,
    spare: Option<UnixListener>,
}

impl Acceptor<'_> {
    /// For the connections of `listener`.
    pub fn new(listener: &UnixListener) -> Acceptor<'_> {
        Acceptor { listener, spare: None }
    }

    /// Waits for the next connection.
    pub fn accept(&mut self) -> io::Result<Accepted> {
        if self.spare.is_none() {
            self.spare = self.listener.try_clone().ok();
        }
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Accepted::Connection(stream)),
            Err(error) if is_none_left(&error) => {
                drop(self.spare.take());
                self.listener.accept().map(|(stream, _)| Accepted::NoDescriptor(stream))
            }
            Err(error) => Err(error),
        }
    }
}
