//! A node's socket being served: connections are accepted, and each gets a thread.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::accept::{Accepted, Acceptor};
use super::access::{Access, Limits};
use super::connections::{OpenConnection, Purpose};
use super::descriptors::{self, DescriptorShares, none_left};
use super::dispatch::Handler;
use super::lock_file::LockFile;
use super::peer::Peer;
use super::server_state::ServerState;
use crate::daemon::trace_recorder::TraceRecorder;
use crate::error::{Error, KVKEEP_ERR_LIMIT, Result};
use crate::log::LogLevel;
use crate::node::Node;

/// Pause after a connection that could not be accepted, not even to be refused.
const PAUSE: Duration = Duration::from_millis(10);

/// A node's socket being served.
pub struct Server {
    state: Arc<ServerState>,
    lock_file: LockFile,
    listener: Arc<UnixListener>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves a node on the claimed socket until stopped.
    pub fn start(node: Arc<Node>, lock_file: LockFile, access: Access, limits: Limits) -> Result<Server> {
        Server::start_recorded(node, lock_file, access, limits, None)
    }

    /// As [`start`](Server::start), and notes the requests of clients in a trace.
    pub fn start_recorded(
        node: Arc<Node>,
        lock_file: LockFile,
        access: Access,
        limits: Limits,
        recorder: Option<Arc<TraceRecorder>>,
    ) -> Result<Server> {
        let path: &PathBuf = &lock_file.socket;
        let failed = |error: io::Error| Error::io(format!("serving {}", path.display()), &error);
        // The process that listened here is gone: its lock file was free.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = Arc::new(UnixListener::bind(path).map_err(failed)?);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode)).map_err(failed)?;
        let state = Arc::new(ServerState {
            handler: Handler::new(node.clone(), access.tenants.clone(), limits.clone(), recorder),
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
        let (accepting, listening) = (state.clone(), listener.clone());
        let accepting = std::thread::Builder::new()
            .name("kvkeep-accept".to_owned())
            .spawn(move || accepting.accept(&listening))
            .map_err(|error| Error::io("starting the thread kvkeep-accept", &error))?;
        state.node.log.write(LogLevel::Info, || {
            let DescriptorShares { clients, http, backends, .. } = state.shares;
            format!(
                "serving {}; of {} descriptors, clients may have {clients}, {backends} are set aside for backends and {http} for HTTP",
                path.display(),
                descriptors::limit()
            )
        });
        Ok(Server { state, lock_file, listener, accepting: Some(accepting) })
    }

    /// Accepts no more connections, ends every client, and returns when their threads are gone.
    pub fn stop(mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        drop(self.state.connections.lock());
        self.state.changed.notify_all();
        let _ = std::fs::remove_file(&self.lock_file.socket);
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let mut connections = self.state.connections.lock();
        for stream in connections.streams.values() {
            let _ = stream.socket.shutdown(Shutdown::Both);
        }
        while !connections.streams.is_empty() {
            self.state.changed.wait(&mut connections);
        }
    }
}

impl ServerState {
    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        let mut acceptor = Acceptor::new(listener);
        loop {
            self.bound_silent_connections();
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
    fn bound_silent_connections(&self) {
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
}
