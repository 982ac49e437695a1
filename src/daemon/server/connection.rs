//! One socket of the daemon's, and its buffers.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::daemon::wire::frame::Inbox;
use crate::daemon::wire::{FRAME_BYTES_MAX, Frame, FrameHead};
use crate::error::{Error, KVKEEP_ERR_LIMIT};

/// A socket whose reads end at `until`, however slowly bytes come.
pub struct Until<'a> {
    /// The socket to read from.
    pub stream: &'a UnixStream,
    /// When a read fails that has not ended.
    pub until: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // It fails when no time is left.
        self.stream.set_read_timeout(Some(self.until.saturating_duration_since(Instant::now())))?;
        let mut stream = self.stream;
        stream.read(into)
    }
}

/// An event on the connection for pushes, or the end of the client's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientSignal {
    /// Nothing came from the client: there is a push to send.
    PushReady,
    /// The client has lost its connection, and lives.
    Lost,
    /// The client uses nothing of L1 any more, or is dead.
    Gone,
}

/// Waits until a client that listens on `stream` sends something there, its process ends, or there is a push to send.
pub fn wait_for(mut stream: &UnixStream, process: Option<&OwnedFd>, pushes: Option<BorrowedFd<'_>>) -> ClientSignal {
    loop {
        let fds = [Some(stream.as_fd()), process.map(AsFd::as_fd), pushes].into_iter().flatten();
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if process.is_some() && !fds[1].revents().is_empty() {
            return ClientSignal::Gone;
        }
        if fds[0].revents().is_empty() {
            return ClientSignal::PushReady;
        }
        return if stream.read(&mut [0]).is_ok_and(|bytes| bytes == 1) {
            ClientSignal::Lost
        } else {
            ClientSignal::Gone
        };
    }
}

/// One socket and the buffers of its frames.
pub struct Connection {
    /// The socket, shared with the threads that may shut it down.
    pub stream: Arc<UnixStream>,
    /// The frame received last.
    pub inbox: Inbox,
    /// The frame to send next.
    pub frame: Frame,
}

impl Connection {
    /// A connection on which nothing was received yet.
    pub fn new(stream: Arc<UnixStream>) -> Connection {
        Connection { stream, inbox: Inbox::default(), frame: Frame::default() }
    }

    /// Receives the next frame. Returns its kind, and leaves its fields in the inbox. None when the peer is gone or sends too
    /// much.
    pub fn receive(&mut self, bytes_max: u32, patient: bool) -> Option<u32> {
        let Some(head) = self.inbox.receive(&mut &*self.stream, bytes_max, patient).ok()? else {
            let message =
                format!("a message has more than the {bytes_max} bytes that the daemon takes: split the batch");
            self.refuse(&Error::new(KVKEEP_ERR_LIMIT, message));
            return None;
        };
        Some(head.kind)
    }

    /// Whether the client has ended its half and waits for the daemon to end the other: it gave up the last call. A client that is
    /// gone has ended both halves.
    pub fn is_given_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.stream, PollFlags::RDHUP)];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        polled.is_ok_and(|ready| ready == 1) && fds[0].revents() == PollFlags::RDHUP
    }

    /// Sends the frame. False if the peer does not take it.
    pub fn send(&mut self) -> bool {
        if self.frame.finish().len() - size_of::<FrameHead>() > FRAME_BYTES_MAX as usize {
            let message = "the answer is longer than a message may be: ask for less at a time";
            self.frame.begin(KVKEEP_ERR_LIMIT as u32).put(&message);
        }
        (&*self.stream).write_all(self.frame.finish()).is_ok()
    }

    /// Frees the memory that a rare large message took.
    pub fn trim(&mut self) {
        self.inbox.trim();
        self.frame.trim();
    }

    /// Sends the reason for a refusal.
    pub fn refuse(&mut self, error: &Error) {
        self.frame.begin(error.status as u32).put(&error.message.as_str());
        self.send();
    }
}
