//! Serving one connection, from its first request to its end: the thread kvkeep-client.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::answers::AnswerScratch;
use super::client_state::ClientState;
use super::connection::{ClientSignal, Connection, Until, wait_for};
use super::connections::Purpose;
use super::peer::Peer;
use super::server_state::{SILENCE_MAX, ServerState, silent};
use crate::daemon::wire::{Request, Welcome, look_for};
use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_OK};
use crate::log::LogLevel;

/// How long a peer may take to take in an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes of a connection's first request.
const FIRST_BYTES_MAX: u32 = 4096;

impl ServerState {
    /// Sends the reason for a refusal, and closes the connection.
    pub(super) fn refuse(&self, stream: impl Into<Arc<UnixStream>>, error: &Error) {
        self.node.log.often("refused connection", LogLevel::Warn, || format!("a connection was refused: {error}"));
        let stream = stream.into();
        // A new socket has room for the answer: sending it must not wait for the reader.
        if stream.set_nonblocking(true).is_ok() {
            Connection::new(stream).refuse(error);
        }
    }

    /// Forgets a connection whose thread has ended.
    pub(super) fn forget(&self, number: u64) {
        self.connections.lock().streams.remove(&number);
        self.changed.notify_all();
    }

    /// One connection, from its first request to its end.
    pub(super) fn serve(self: &Arc<Self>, stream: Arc<UnixStream>, peer: Peer, number: u64) {
        let mut connection = Connection::new(stream);
        let _ = connection.stream.set_write_timeout(Some(PATIENCE));
        let first = {
            let mut from = Until { stream: &connection.stream, until: Instant::now() + SILENCE_MAX };
            connection.inbox.receive(&mut from, FIRST_BYTES_MAX, false)
        };
        let admitted = match first {
            Ok(Some(head)) => Request::decode(head.kind, connection.inbox.fields())
                .and_then(|request| self.admit(peer, request, number)),
            Ok(None) => Err(Error::invalid("malformed message: the first is long")),
            // It has left, as a caller does that waits no longer.
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof && !self.connections.lock().is_refused(number) =>
            {
                return;
            }
            Err(_) => Err(silent()),
        };
        self.changed.notify_all();
        let _ = connection.stream.set_read_timeout(Some(PATIENCE));
        let (client, spin) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => return self.refuse(connection.stream, &error),
        };
        if let Some(spin) = spin {
            connection.frame.begin(KVKEEP_OK as u32);
            if connection.send() {
                self.serve_requests(&mut connection, &client, spin);
            }
            client.remove_request_connection();
            return;
        }
        if self.welcome(&mut connection, &client).is_ok() && self.push(&mut connection, &client) {
            self.linger(&connection.stream, &client);
        }
        let _ = connection.stream.shutdown(Shutdown::Both);
        self.end_requests(&client);
        self.connections.lock().clients.remove(&client.number);
        let orderly = client.is_gone();
        let (ended, _) = client.leave(&self.node);
        if client.observer {
            return;
        }
        if !orderly {
            self.node.meters.clients_lost.add(1);
            self.node.log.write(LogLevel::Warn, || {
                format!(
                    "client {} (pid {}) went without a word: {ended} sessions aborted",
                    client.number, client.peer.pid
                )
            });
        }
        self.node.meters.clients.sub(1);
    }

    /// Answers hello, and passes the descriptor of L1.
    fn welcome(&self, connection: &mut Connection, client: &ClientState) -> io::Result<()> {
        let arena = self.node.l1.arena();
        let welcome = Welcome {
            client: client.number,
            secret: client.secret,
            boot: self.boot,
            l1_bytes: arena.bytes() as u64,
            session_timeout_ms: self.node.session_timeout.as_millis() as u64,
            read_only: client.read_only,
            message_bytes_max: self.limits.message_bytes_max,
            request_connections_max: self.request_connections_max(client) as u32,
            store_wait_ms: self.node.store_wait.as_millis() as u32,
        };
        connection.frame.begin(KVKEEP_OK as u32).put(&welcome);
        let read_only = if client.read_only { Some(arena.read_only_fd()?) } else { None };
        let fd: BorrowedFd<'_> = read_only.as_ref().map_or(arena.fd().as_fd(), AsFd::as_fd);
        let bytes = connection.frame.finish();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(&*connection.stream, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        (&*connection.stream).write_all(&bytes[sent..])
    }

    /// Sends a client its pushes, until the client or its connection is gone. Returns whether the client may still be alive.
    fn push(&self, connection: &mut Connection, client: &ClientState) -> bool {
        let mut bytes = Vec::new();
        loop {
            match wait_for(&connection.stream, client.process.as_ref(), Some(client.pushes.fd())) {
                ClientSignal::PushReady => {}
                signal => return signal == ClientSignal::Lost,
            }
            if !client.pushes.take(&mut bytes) || (&*connection.stream).write_all(&bytes).is_err() {
                self.node.log.write(LogLevel::Warn, || {
                    format!("client {} (pid {}) does not read what is pushed to it", client.number, client.peer.pid)
                });
                return true;
            }
        }
    }

    /// Waits for the end of a client that has lost its connection. Until then its copies may be under way and its views in use,
    /// so the daemon keeps all that the client holds.
    fn linger(&self, stream: &UnixStream, client: &ClientState) {
        self.end_requests(client);
        client.pushes.close();
        let _ = stream.shutdown(Shutdown::Write);
        // The client may still send the byte that says the connection is lost.
        for _ in 0..2 {
            if wait_for(stream, client.process.as_ref(), None) != ClientSignal::Lost {
                return;
            }
        }
    }

    /// Ends a client's request connections, and lets it open no more.
    fn end_requests(&self, client: &ClientState) {
        let connections = self.connections.lock();
        client.cut();
        let request_connections =
            connections.streams.values().filter(|stream| stream.purpose == Purpose::Requests(client.number));
        request_connections.for_each(|connection| drop(connection.socket.shutdown(Shutdown::Both)));
    }

    /// Answers the requests of a connection, one after the other.
    fn serve_requests(&self, connection: &mut Connection, client: &Arc<ClientState>, spin: Duration) {
        let mut scratch = AnswerScratch::default();
        self.answer_all(connection, client, spin, &mut scratch);
        if connection.is_given_up() {
            self.handler.take_back(client, &mut scratch);
        }
    }

    fn answer_all(
        &self,
        connection: &mut Connection,
        client: &Arc<ClientState>,
        spin: Duration,
        scratch: &mut AnswerScratch,
    ) {
        while let Some(kind) = connection.receive(self.limits.message_bytes_max, true) {
            scratch.undo.clear();
            let (inbox, frame) = (&connection.inbox, &mut connection.frame);
            let answered = catch_unwind(AssertUnwindSafe(|| {
                let request = Request::decode(kind, inbox.fields())?;
                self.handler.answer(client, request, scratch, frame)
            }));
            match answered {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    self.node.shortfall.refused(&error);
                    frame.begin(error.status as u32).put(&error.message.as_str());
                }
                Err(_) => {
                    self.node.poison();
                    frame.begin(KVKEEP_ERR_INTERNAL as u32).put(&"a bug in the daemon was caught: restart it");
                }
            }
            if !connection.send() {
                return;
            }
            connection.trim();
            look_for(&connection.stream, spin);
        }
    }
}
