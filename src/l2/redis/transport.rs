//! The socket of one connection to a server, which never blocks once it is connected.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};

use super::redis_options::ServerAddress;
use super::tls::{TlsSettings, TlsStream};

/// Time after which the kernel asks whether the peer of a silent connection is there, so that it notices a machine that vanished.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(30);

/// A connected socket.
pub enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

impl Transport {
    /// Connects to the first address of the server that answers. Blocks, names included, until about `until`.
    pub fn connect(server: &ServerAddress, tls: Option<&TlsSettings>, until: Instant) -> io::Result<Transport> {
        match server {
            ServerAddress::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Transport::Unix(stream))
            }
            ServerAddress::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    match TcpStream::connect_timeout(&address, left) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            set_socket_keepalive(&stream, true)?;
                            set_tcp_keepidle(&stream, KEEP_ALIVE)?;
                            stream.set_nonblocking(true)?;
                            return match tls {
                                Some(settings) => Ok(Transport::Tls(Box::new(TlsStream::new(stream, settings, host)?))),
                                None => Ok(Transport::Tcp(stream)),
                            };
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Sends what an earlier write left inside. Called before each wait.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Transport::Tls(stream) => stream.flush(),
            Transport::Tcp(_) | Transport::Unix(_) => Ok(()),
        }
    }

    fn has_left(&self) -> bool {
        match self {
            Transport::Tls(stream) => stream.wants_write(),
            Transport::Tcp(_) | Transport::Unix(_) => false,
        }
    }

    /// Receives into several places, in their order. Fails with `WouldBlock` if nothing is there.
    pub fn read(&mut self, places: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.read_vectored(places),
            Transport::Unix(stream) => stream.read_vectored(places),
            Transport::Tls(stream) => stream.read(places),
        }
    }

    /// Sends from several places, in their order. Fails with `WouldBlock` if the socket takes nothing now.
    pub fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.write_vectored(pieces),
            Transport::Unix(stream) => stream.write_vectored(pieces),
            Transport::Tls(stream) => stream.write(pieces),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Tcp(stream) => stream.as_fd(),
            Transport::Unix(stream) => stream.as_fd(),
            Transport::Tls(stream) => stream.socket().as_fd(),
        }
    }

    /// Whether a read that fills less than its places leaves nothing behind that a wait would not notice.
    pub fn reads_whole(&self) -> bool {
        match self {
            Transport::Tcp(_) | Transport::Unix(_) => true,
            Transport::Tls(_) => false,
        }
    }

    /// Sleeps until something is there to read, `to_write` and the socket takes something, `bell` rings, or `until`. True if the bell
    /// has rung.
    pub fn wait(&self, bell: Option<BorrowedFd<'_>>, to_write: bool, until: Instant) -> io::Result<bool> {
        let interest = if to_write || self.has_left() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let socket = PollFd::from_borrowed_fd(self.fd(), interest);
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that a thread that waits for a time does not wake up before it.
        let left = Timespec { tv_sec: left.as_secs().min(3600) as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let (polled, rung) = match bell {
            Some(bell) => {
                let mut fds = [socket, PollFd::from_borrowed_fd(bell, PollFlags::IN)];
                (poll(&mut fds, Some(&left)), !fds[1].revents().is_empty())
            }
            None => (poll(&mut [socket], Some(&left)), false),
        };
        match polled {
            Ok(_) => Ok(rung),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
