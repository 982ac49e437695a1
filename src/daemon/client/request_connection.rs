//! A request connection of a client: a request out, its answer in, within a time.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with};

use crate::daemon::wire::frame::Inbox;
use crate::daemon::wire::{FRAME_BYTES_MAX, Fields, Frame, FrameHead, Request, look_for};
use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_LIMIT, Result, Status};

/// The kernel's timeouts are set anew when they are off by more than this part of the time that is left.
const PRECISION: u32 = 8;

/// How long a call waits for the daemon.
#[derive(Clone, Copy)]
pub struct Deadline<'a> {
    /// When it gives up.
    pub until: Instant,
    /// Asked then, before a part of the answer has come: whether the daemon still works, and until when to wait on.
    pub works: Option<&'a dyn Fn() -> Option<Instant>>,
}

impl Deadline<'_> {
    /// A deadline `patience` from now.
    pub fn after(patience: Duration) -> Deadline<'static> {
        Deadline { until: Instant::now() + patience, works: None }
    }
}

/// Why a request connection is of no use any more.
pub enum Failure {
    /// The daemon did not take the whole request in time: it will not carry it out.
    NotAsked,
    /// The daemon did not answer in time: it may have carried the request out, or may do so later.
    NotAnswered,
    /// The connection is broken.
    Broken(io::Error),
}

/// A socket whose reads and writes end in time.
struct TimedSocket {
    stream: UnixStream,
    read_timeout: Duration,
    write_timeout: Duration,
}

/// A socket in use until a deadline.
struct TimedIo<'a> {
    timed: &'a mut TimedSocket,
    deadline: Deadline<'a>,
    /// A part of the answer has come.
    begun: bool,
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The timeout to set for the time that is left, if the timeout that is set is too far off.
fn retimed(set: Duration, left: Duration) -> Option<Duration> {
    (set.abs_diff(left) > left / PRECISION).then(|| left.max(Duration::from_millis(1)))
}

impl TimedIo<'_> {
    fn left(&self) -> Duration {
        self.deadline.until.saturating_duration_since(Instant::now())
    }
}

impl Read for TimedIo<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.left();
            if let Some(timeout) = retimed(self.timed.read_timeout, left) {
                self.timed.stream.set_read_timeout(Some(timeout))?;
                self.timed.read_timeout = timeout;
            }
            match self.timed.stream.read(into) {
                Err(error) if is_late(&error) && !self.left().is_zero() => {}
                Err(error) if is_late(&error) && !self.begun => match self.deadline.works.and_then(|works| works()) {
                    Some(until) => self.deadline.until = until,
                    None => return Err(error),
                },
                Ok(bytes) => {
                    self.begun = true;
                    return Ok(bytes);
                }
                failed => return failed,
            }
        }
    }
}

impl Write for TimedIo<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        loop {
            let left = self.left();
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            }
            if let Some(timeout) = retimed(self.timed.write_timeout, left) {
                self.timed.stream.set_write_timeout(Some(timeout))?;
                self.timed.write_timeout = timeout;
            }
            match self.timed.stream.write(from) {
                Err(error) if is_late(&error) => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects a socket; a daemon that accepts nothing is waited for until then.
pub fn connect_until(path: &Path, deadline: Deadline<'_>) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        let left = deadline.until.saturating_duration_since(Instant::now());
        set_socket_timeout(&socket, Timeout::Send, Some(left.max(Duration::from_millis(1))))?;
        match connect(&socket, &address) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !left.is_zero() => {}
            connected => {
                connected?;
                return Ok(UnixStream::from(socket));
            }
        }
    }
}

/// One request connection with its buffers, used by one thread at a time.
pub struct RequestConnection {
    timed: TimedSocket,
    frame: Frame,
    inbox: Inbox,
    /// Most bytes of a request that the daemon takes.
    pub bytes_max: u32,
}

impl RequestConnection {
    /// A connection on which nothing was asked yet.
    pub fn new(stream: UnixStream) -> RequestConnection {
        let timed = TimedSocket { stream, read_timeout: Duration::ZERO, write_timeout: Duration::ZERO };
        RequestConnection { timed, frame: Frame::default(), inbox: Inbox::default(), bytes_max: FRAME_BYTES_MAX }
    }

    /// Sends a request and reads its answer. The outer error means that the connection is of no use any more.
    pub fn call<R>(
        &mut self,
        request: &Request<'_>,
        spin: Duration,
        deadline: Deadline<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> std::result::Result<Result<R>, Failure> {
        let mut frame = std::mem::take(&mut self.frame);
        request.encode(&mut frame);
        let result = self.call_encoded(frame.finish(), spin, deadline, read);
        self.frame = frame;
        result
    }

    /// As [`call`](RequestConnection::call), of a request that is encoded already.
    pub fn call_encoded<R>(
        &mut self,
        bytes: &[u8],
        spin: Duration,
        deadline: Deadline<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> std::result::Result<Result<R>, Failure> {
        if bytes.len() - size_of::<FrameHead>() > self.bytes_max as usize {
            let (bytes, most) = (bytes.len(), self.bytes_max);
            return Ok(Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("a message of {bytes} bytes, of which the daemon takes {most} at most: split the batch"),
            )));
        }
        let mut within = TimedIo { timed: &mut self.timed, deadline, begun: false };
        let sent = within.write_all(bytes);
        if sent.as_ref().is_err_and(is_late) {
            return Err(Failure::NotAsked);
        }
        look_for(&within.timed.stream, spin);
        let head = match (self.inbox.receive(&mut within, FRAME_BYTES_MAX, false), sent) {
            (Ok(Some(head)), _) => head,
            (Ok(None), _) => return Err(Failure::Broken(io::Error::from(io::ErrorKind::InvalidData))),
            (Err(error), Ok(())) if is_late(&error) => return Err(Failure::NotAnswered),
            // A daemon that refuses a connection need not read the request: its answer has a better reason than the failure to
            // send.
            (Err(error), sent) => return Err(Failure::Broken(sent.err().unwrap_or(error))),
        };
        let mut fields = self.inbox.fields();
        Ok(match Status::from_number(head.kind as i32) {
            Some(status) if status as i32 >= 0 => {
                read(status, &mut fields).and_then(|read| fields.end().map(|()| read))
            }
            status => {
                let message = fields.take::<&str>().unwrap_or("the daemon gave no reason");
                Err(Error::new(status.unwrap_or(KVKEEP_ERR_INTERNAL), message))
            }
        })
    }

    /// Frees the memory that a rare large message took.
    pub fn trim(&mut self) {
        self.frame.trim();
        self.inbox.trim();
    }

    /// Gives up the call. The daemon notices, takes back what its answer gave, and closes the connection.
    pub fn give_up(self) -> AbandonedCall {
        let _ = self.timed.stream.shutdown(Shutdown::Write);
        AbandonedCall(self.timed.stream)
    }
}

/// A connection whose caller did not wait for the answer. It stays open until the daemon has come to it: a closed one would look
/// like that of a client that has gone, whose views may still be used.
pub struct AbandonedCall(UnixStream);

impl AbandonedCall {
    /// Whether the daemon has closed its end. Bytes that it still sends are dropped.
    pub fn is_over(&self) -> bool {
        let mut bytes = [0; 1 << 14];
        loop {
            match recv(&self.0, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((1.., _)) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                _ => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_set_anew_only_when_it_is_far_off() {
        let ms = Duration::from_millis;
        assert_eq!(retimed(ms(2000), ms(1999)), None);
        assert_eq!(retimed(ms(2000), ms(500)), Some(ms(500)));
        assert_eq!(retimed(ms(100), ms(500)), Some(ms(500)));
        assert_eq!(retimed(ms(0), ms(2000)), Some(ms(2000)));
        assert_eq!(retimed(ms(2000), ms(0)), Some(ms(1)));
    }
}
