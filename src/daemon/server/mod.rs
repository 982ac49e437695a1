//! The daemon's side of the socket: it lets clients in, gives each connection a thread, and notices when one dies.

pub(crate) mod accept;
pub(crate) mod access;
pub(crate) mod answers;
pub(crate) mod batch;
pub(crate) mod client_state;
pub(crate) mod connection;
pub(crate) mod connections;
pub mod descriptors;
pub(crate) mod dispatch;
pub(crate) mod inspection;
pub(crate) mod lock_file;
pub(crate) mod peer;
pub(crate) mod push;
pub(crate) mod space_grants;
pub(crate) mod undo;

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use self::accept::{Accepted, Acceptor};
pub use self::access::{Access, Limits};
use self::answers::AnswerScratch;
use self::client_state::{ClientState, Rights};
use self::connection::{ClientSignal, Connection, Until, wait_for};
use self::connections::{Connections, OpenConnection, Purpose};
use self::descriptors::{DescriptorShares, OF_CLIENT, none_left};
use self::dispatch::Handler;
pub use self::lock_file::LockFile;
use self::peer::{Peer, random};
use super::wire::{Request, WIRE_VERSION, Welcome, look_for};
use crate::error::{
    Error, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_VERSION, KVKEEP_OK, Result,
};
use crate::log::LogLevel;
use crate::node::Node;

/// How long a peer may take to take in an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may be open without its first request.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Pause after a connection that could not be accepted, not even to be refused.
const PAUSE: Duration = Duration::from_millis(10);

/// Most bytes of a connection's first request.
const FIRST_BYTES_MAX: u32 = 4096;

/// Longest time to look for the next request before sleeping, for a client that spins itself.
const SPIN_MAX: Duration = Duration::from_micros(50);

struct ServerState {
    node: Arc<Node>,
    handler: Handler,
    access: Access,
    limits: Limits,
    boot: u16,
    shares: DescriptorShares,
    connections: Mutex<Connections>,
    /// Notified when a connection ended or made its first request.
    changed: Condvar,
    next: AtomicU64,
    stopping: AtomicBool,
}

/// A node's socket being served.
pub struct Server {
    shared: Arc<ServerState>,
    lock_file: LockFile,
    listener: Arc<UnixListener>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves a node on the claimed socket until stopped.
    pub fn start(node: Arc<Node>, lock_file: LockFile, access: Access, limits: Limits) -> Result<Server> {
        let path: &PathBuf = &lock_file.socket;
        let failed = |error: io::Error| Error::io(format!("serving {}", path.display()), &error);
        // The process that listened here is gone: its lock file was free.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = Arc::new(UnixListener::bind(path).map_err(failed)?);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode)).map_err(failed)?;
        let shared = Arc::new(ServerState {
            handler: Handler::new(node.clone(), access.tenants.clone(), limits.clone()),
            node,
            access,
            limits,
            boot: lock_file.boot,
            shares: DescriptorShares::now(),
            connections: Mutex::default(),
            changed: Condvar::new(),
            next: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
        });
        let (accepting, listening) = (shared.clone(), listener.clone());
        let accepting = std::thread::Builder::new()
            .name("kvkeep-accept".to_owned())
            .spawn(move || accepting.accept(&listening))
            .map_err(|error| Error::io("starting the thread kvkeep-accept", &error))?;
        shared.node.log.say(LogLevel::Info, || {
            let DescriptorShares { clients, http, backends, .. } = shared.shares;
            format!(
                "serving {}; of {} descriptors, clients may have {clients}, {backends} are set aside for backends and {http} for HTTP",
                path.display(),
                descriptors::limit()
            )
        });
        Ok(Server { shared, lock_file, listener, accepting: Some(accepting) })
    }

    /// Accepts no more connections, ends every client, and returns when their threads are gone.
    pub fn stop(mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        drop(self.shared.connections.lock());
        self.shared.changed.notify_all();
        let _ = std::fs::remove_file(&self.lock_file.socket);
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let mut connections = self.shared.connections.lock();
        for stream in connections.streams.values() {
            let _ = stream.socket.shutdown(Shutdown::Both);
        }
        while !connections.streams.is_empty() {
            self.shared.changed.wait(&mut connections);
        }
    }
}

fn silent() -> Error {
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
    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        let mut acceptor = Acceptor::new(listener);
        loop {
            self.make_room();
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            match acceptor.accept() {
                Ok(Accepted::Connection(stream)) => self.begin(stream),
                Ok(Accepted::NoDescriptor(stream)) => self.refuse(stream, &none_left()),
                Err(error) if !self.stopping.load(Ordering::SeqCst) => {
                    self.node.log.often("accept", LogLevel::Warn, || format!("no connection can be accepted: {error}"));
                    std::thread::sleep(PAUSE);
                }
                Err(_) => {}
            }
        }
    }

    /// Waits until one more connection may be silent for a while. The oldest silent connection is refused for it.
    fn make_room(&self) {
        let mut connections = self.connections.lock();
        while connections.silent() >= self.shares.silent && !self.stopping.load(Ordering::SeqCst) {
            let until = connections.refuse_oldest();
            self.changed.wait_until(&mut connections, until);
        }
    }

    /// Gives a connection a thread, if its peer may connect at all.
    fn begin(self: &Arc<Self>, stream: UnixStream) {
        let peer = Peer::of(&stream).map_err(|error| Error::io("asking who connected", &error));
        let peer = match peer.and_then(|peer| self.access.rights(peer).map(|_| peer)) {
            Ok(peer) => peer,
            Err(error) => return self.refuse(stream, &error),
        };
        let (number, stream) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::new(stream));
        self.connections
            .lock()
            .streams
            .insert(number, OpenConnection { socket: stream.clone(), since: Instant::now(), purpose: Purpose::Silent });
        let (me, socket) = (self.clone(), stream.clone());
        let thread = std::thread::Builder::new().name("kvkeep-client".to_owned()).spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| me.serve(socket, peer, number)));
            if ended.is_err() {
                me.node.poison();
            }
            me.forget(number);
        });
        if let Err(error) = thread {
            self.forget(number);
            let message =
                format!("the daemon has no thread left for another connection ({error}): raise its limit of tasks");
            self.refuse(stream, &Error::new(KVKEEP_ERR_LIMIT, message));
        }
    }

    /// Sends the reason for a refusal, and closes the connection.
    fn refuse(&self, stream: impl Into<Arc<UnixStream>>, error: &Error) {
        self.node.log.often("refused connection", LogLevel::Warn, || format!("a connection was refused: {error}"));
        let stream = stream.into();
        // A new socket has room for the answer: sending it must not wait for the reader.
        if stream.set_nonblocking(true).is_ok() {
            Connection::new(stream).refuse(error);
        }
    }

    fn forget(&self, number: u64) {
        self.connections.lock().streams.remove(&number);
        self.changed.notify_all();
    }

    /// One connection, from its first request to its end.
    fn serve(self: &Arc<Self>, stream: Arc<UnixStream>, peer: Peer, number: u64) {
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
            self.node.log.say(LogLevel::Warn, || {
                format!(
                    "client {} (pid {}) went without a word: {ended} sessions aborted",
                    client.number, client.peer.pid
                )
            });
        }
        self.node.meters.clients.sub(1);
    }

    /// The client that a connection belongs to, and, for a request connection, how long to look for its next request before
    /// sleeping.
    fn admit(&self, peer: Peer, request: Request<'_>, number: u64) -> Result<(Arc<ClientState>, Option<Duration>)> {
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
                        "this client makes the most calls at once: raise lanes_per_client_max",
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
                self.check_room(&connections, observer)?;
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
    fn check_room(&self, connections: &Connections, observer: bool) -> Result<()> {
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
    fn request_connections_max(&self, client: &ClientState) -> usize {
        if client.observer { 1 } else { self.limits.lanes_per_client_max }
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
                self.node.log.say(LogLevel::Warn, || {
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
