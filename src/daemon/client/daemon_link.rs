//! A client's connections to one run of a daemon: the connection for pushes, and the request connections.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use zerocopy::{FromZeros, IntoBytes};

use super::connect_options::ClientConfig;
use super::pending_returns::{Added, PendingReturns};
use super::request_connection::{AbandonedCall, Deadline, Failure, RequestConnection, connect_until};
use crate::arena::Arena;
use crate::arena_lease::ArenaLease;
use crate::daemon::wire::frame::Inbox;
use crate::daemon::wire::{FRAME_BYTES_MAX, Fields, Frame, FrameHead, Request, WIRE_VERSION, Welcome};
use crate::error::{
    Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION,
    KVKEEP_ERR_TIMEOUT, Result, Status,
};

/// Most calls at once; more wait for a connection.
const CONNECTIONS_MAX: usize = 32;
/// While a call is unanswered that was given up, others wait this part of their time: a daemon that is stopped must not hold up
/// each call of a scheduler as long as the first.
const PATIENCE_PARTS: u32 = 16;
/// How much later than its own time a call gives up a daemon that should have answered by then.
const GRACE: Duration = Duration::from_millis(100);
/// Between two looks at whether a call given up is over.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct ConnectionPool {
    idle: Vec<RequestConnection>,
    open: usize,
    /// Connections whose callers did not wait for the answer, and that the daemon has not come to yet.
    given_up: Vec<AbandonedCall>,
}

impl ConnectionPool {
    /// Forgets the calls given up that the daemon has come to.
    fn look(&mut self) {
        self.given_up.retain(|connection| !connection.is_over());
    }
}

/// The connection for pushes. Its end shows the daemon that nothing of L1 is in use here any more.
struct PushStream(UnixStream);

impl Drop for PushStream {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// All connections of a client to one run of a daemon.
pub struct DaemonLink {
    /// The daemon's answer to hello.
    pub welcome: Welcome,
    /// L1, mapped here. When its last use ends, the connection for pushes is closed.
    pub arena: ArenaLease,
    path: Box<Path>,
    spin: Duration,
    patience: Duration,
    pushes: Arc<PushStream>,
    pool: Mutex<ConnectionPool>,
    free: Condvar,
    lost: AtomicBool,
    returns: PendingReturns,
}

/// The outcome of a call that returns something its caller holds.
pub struct ReturnOutcome<R> {
    /// The result for the caller.
    pub result: Result<R>,
    /// The daemon was not asked yet: the caller starts a thread that runs [`DaemonLink::settle`].
    pub needs_thread: bool,
}

/// The error of a call when there is no daemon to ask.
pub fn disconnected(path: &Path) -> Error {
    Error::new(
        KVKEEP_ERR_DISCONNECTED,
        format!(
            "the daemon at {} went away, and what it held for this process with it: begin new sessions when it is back \
             (this cache reconnects by itself)",
            path.display()
        ),
    )
}

fn no_descriptor() -> Error {
    Error::new(
        KVKEEP_ERR_LIMIT,
        "no descriptor is left for another connection to the daemon: close some, or raise the limit on open files (ulimit -n)",
    )
}

fn unreachable(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => Error::new(
            KVKEEP_ERR_PERMISSION,
            format!("{path} may not be opened by this user: have the daemon's socket mode or group allow it"),
        ),
        // These failures are this process's own.
        Some(Errno::MFILE | Errno::NFILE) => no_descriptor(),
        Some(Errno::NOMEM | Errno::NOBUFS | Errno::INTR) => Error::io(format!("connecting to {path}"), error),
        _ => Error::new(
            KVKEEP_ERR_DISCONNECTED,
            format!("no daemon answers at {path} ({error}): start one with kvkeep serve --socket {path}"),
        ),
    }
}

/// The error of a call that the daemon did not answer in time.
fn unanswered(path: &Path) -> Error {
    Error::new(
        KVKEEP_ERR_TIMEOUT,
        format!(
            "the daemon at {} did not answer in time, it is stopped or overloaded: try again when it goes on, or raise \
             patience_ms in connect; what this call would have taken is given back then, what it gives back counts as given back",
            path.display()
        ),
    )
}

/// Why a call has no answer that its caller can use.
struct Unanswered {
    /// The daemon was asked, or may have been.
    asked: bool,
    error: Error,
}

impl Unanswered {
    fn before(error: Error) -> Unanswered {
        Unanswered { asked: false, error }
    }

    fn after(error: Error) -> Unanswered {
        Unanswered { asked: true, error }
    }
}

/// Whether a request that failed with `status` is made later. Where no descriptor is left, a caller tries again; but it takes a
/// session that it ended for ended.
fn returns_later(status: Status, request: &Request<'_>) -> bool {
    let ends = matches!(request, Request::EndSession { .. } | Request::AbortSession { .. });
    status == KVKEEP_ERR_TIMEOUT || status == KVKEEP_ERR_LIMIT && ends
}

/// The error of a call that gives something back, of which too many wait already.
fn too_many_returns(error: Error) -> Error {
    let remedy = "too many such calls wait already, this one is forgotten: what it gives back is held until its session's deadline";
    Error::new(error.status, format!("{}; {remedy}", error.message))
}

/// The error of a call for which no connection became free in time.
fn no_connection(connections: usize) -> Error {
    let message = format!(
        "{connections} calls of this client were under way all the time, the most at once: make fewer, or raise connections_per_client_max \
         of kvkeep serve if it is less than {CONNECTIONS_MAX}"
    );
    Error::new(KVKEEP_ERR_TIMEOUT, message)
}

fn unreached(path: &Path, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::WouldBlock { unanswered(path) } else { unreachable(path, error) }
}

impl DaemonLink {
    /// Connects, and maps L1.
    pub fn open(config: &ClientConfig) -> Result<DaemonLink> {
        let ClientConfig { read_only, observer, spin, patience, .. } = *config;
        let path = &*config.socket;
        let lost = |error: io::Error| unreachable(path, &error);
        let mut stream = connect_until(path, Deadline::after(patience)).map_err(lost)?;
        let timeouts = stream.set_read_timeout(Some(patience)).and(stream.set_write_timeout(Some(patience)));
        timeouts.map_err(|error| Error::io("setting a socket's timeouts", &error))?;
        let (mut frame, mut inbox) = (Frame::default(), Inbox::default());
        Request::Hello { version: WIRE_VERSION, read_only, observer }.encode(&mut frame);
        // A daemon that refuses every connection need not read the request: its answer has a better reason than the failure to
        // send.
        let _ = stream.write_all(frame.finish());

        let mut head = FrameHead::new_zeroed();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = {
            let mut into = [IoSliceMut::new(head.as_mut_bytes())];
            recvmsg(&stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).map_err(|error| lost(error.into()))?
        };
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        stream.read_exact(&mut head.as_mut_bytes()[got.bytes..]).map_err(lost)?;
        if head.bytes > FRAME_BYTES_MAX {
            return Err(lost(io::Error::from(io::ErrorKind::InvalidData)));
        }
        inbox.fill(&mut stream, head.bytes as usize).map_err(lost)?;
        let mut fields = inbox.fields();
        let Ok(0..) = i32::try_from(head.kind) else {
            let status = Status::from_number(head.kind as i32).unwrap_or(KVKEEP_ERR_INTERNAL);
            return Err(Error::new(status, fields.take::<&str>().unwrap_or("the daemon gave no reason")));
        };
        // Where this process has no free descriptor, the kernel drops the one on its way.
        let fd = fd.ok_or_else(no_descriptor)?;
        let welcome: Welcome = fields.take()?;
        let arena = Arena::attach(fd, welcome.l1_bytes as usize, !welcome.read_only)
            .map_err(|error| Error::io("mapping the daemon's L1", &error))?;
        let pushes = Arc::new(PushStream(stream));
        Ok(DaemonLink {
            welcome,
            arena: ArenaLease::new(Arc::new(arena), Some(pushes.clone())),
            path: path.into(),
            spin,
            patience,
            pushes,
            pool: Mutex::default(),
            free: Condvar::new(),
            lost: AtomicBool::new(false),
            returns: PendingReturns::default(),
        })
    }

    /// The stream of pushes; reading it takes as long as it takes.
    pub fn pushes(&self) -> io::Result<&UnixStream> {
        self.pushes.0.set_read_timeout(None)?;
        Ok(&self.pushes.0)
    }

    /// Ends every call, and the stream of pushes: the connection is over. The daemon takes back all that it held when the
    /// mapping is in use no more.
    pub fn lose(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            let _ = send(&self.pushes.0, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            let _ = self.pushes.0.shutdown(Shutdown::Read);
        }
        // Under the lock, so that no thread that looked before goes to sleep after.
        let _connections = self.pool.lock();
        self.free.notify_all();
    }

    /// Whether the connection is over.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Makes a call that the daemon answers at once.
    pub fn call<R>(&self, request: &Request<'_>, read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>) -> Result<R> {
        let deadline = self.deadline();
        self.exchange(self.take_connection(deadline)?, request, deadline, read)
    }

    fn deadline(&self) -> Deadline<'static> {
        let part = if self.awaits_none() { 1 } else { PATIENCE_PARTS };
        Deadline::after(self.patience / part)
    }

    /// Makes a call that gives back what its caller holds. Where the daemon cannot be asked in time, it is asked for `fallback`
    /// when it answers again.
    pub fn give_back<R>(
        &self,
        request: &Request<'_>,
        fallback: &Request<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> ReturnOutcome<R> {
        let deadline = self.deadline();
        let asked = self.take_connection(deadline).map_err(Unanswered::before).and_then(|mut connection| {
            let answer = connection.call(request, self.spin, deadline, read);
            self.finish(connection, answer)
        });
        let added = match &asked {
            Err(Unanswered { asked: false, error }) if returns_later(error.status, fallback) => {
                let mut frame = Frame::default();
                fallback.encode(&mut frame);
                self.returns.add(frame.finish())
            }
            _ => Added::Waits,
        };
        ReturnOutcome {
            result: asked.map_err(|unanswered| match added {
                Added::NoRoom => too_many_returns(unanswered.error),
                _ => unanswered.error,
            }),
            needs_thread: added == Added::NeedsThread,
        }
    }

    /// Makes the requests that could not be made in time, until none is left, or the connection is over. The body of a thread.
    pub fn settle(&self) {
        while !self.is_lost() && !self.returns.ends_thread() {
            if !self.awaits_none() || self.make_returns(Deadline::after(self.patience)).is_err() {
                let mut pool = self.pool.lock();
                if !self.is_lost() {
                    self.free.wait_for(&mut pool, LOOK);
                }
            }
        }
    }

    /// Makes the pending requests that return something, in their order.
    fn make_returns(&self, deadline: Deadline<'_>) -> Result<()> {
        while !self.returns.is_empty() {
            let _order = self.returns.lock_until(deadline.until).ok_or_else(|| unanswered(&self.path))?;
            let Some(request) = self.returns.first() else { continue };
            let mut connection = self.take_free_connection(deadline)?;
            let answer = connection.call_encoded(&request, self.spin, deadline, |_, fields| {
                fields.skip();
                Ok(())
            });
            match self.finish(connection, answer) {
                Err(Unanswered { asked: false, error }) => return Err(error),
                // A request that fails returns what is gone already.
                _ => self.returns.made(),
            }
        }
        Ok(())
    }

    /// Makes a call that waits in the daemon, for the time that is left of its own when it has a connection, and at most
    /// `most_ms`.
    pub fn call_until<'a>(&self, until: Instant, most_ms: u32, request: impl Fn(u32) -> Request<'a>) -> Result<()> {
        let deadline = Deadline { until: until + GRACE, works: None };
        let connection = self.take_connection(deadline)?;
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let request = request(left.min(u128::from(most_ms)) as u32);
        self.exchange(connection, &request, deadline, |_, _| Ok(()))
    }

    /// Makes a call that takes its time: it is waited for as long as the daemon answers other calls.
    pub fn call_while_it_works<R>(
        &self,
        request: &Request<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> Result<R> {
        let works = || {
            let deadline = Deadline::after(self.patience / 4);
            let answered = self
                .take_connection(deadline)
                .and_then(|connection| self.exchange(connection, &Request::Ping {}, deadline, |_, _| Ok(())));
            answered.ok().map(|()| Instant::now() + self.patience)
        };
        let deadline = Deadline { works: Some(&works), ..Deadline::after(self.patience) };
        self.exchange(self.take_connection(deadline)?, request, deadline, read)
    }

    fn exchange<R>(
        &self,
        mut connection: RequestConnection,
        request: &Request<'_>,
        deadline: Deadline<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> Result<R> {
        let answer = connection.call(request, self.spin, deadline, read);
        self.finish(connection, answer).map_err(|unanswered| unanswered.error)
    }

    /// Puts a connection back after a call, or drops it.
    fn finish<R>(
        &self,
        mut connection: RequestConnection,
        answer: std::result::Result<Result<R>, Failure>,
    ) -> std::result::Result<R, Unanswered> {
        match answer {
            Ok(result) => {
                connection.trim();
                self.pool.lock().idle.push(connection);
                self.free.notify_one();
                result.map_err(Unanswered::after)
            }
            Err(failure) => {
                let asked = !matches!(failure, Failure::NotAsked);
                let failed = self.fail(connection, failure, |_| {
                    self.lose();
                    disconnected(&self.path)
                });
                failed.map_err(|error| Unanswered { asked, error })
            }
        }
    }

    /// Drops a connection after a failure. `broken` makes the error of a broken one.
    fn fail<R>(
        &self,
        connection: RequestConnection,
        failure: Failure,
        broken: impl FnOnce(io::Error) -> Error,
    ) -> Result<R> {
        let mut pool = self.pool.lock();
        pool.open -= 1;
        if let Failure::NotAnswered = failure {
            pool.given_up.push(connection.give_up());
        }
        drop(pool);
        self.free.notify_one();
        Err(match failure {
            Failure::Broken(error) => broken(error),
            Failure::NotAsked | Failure::NotAnswered => unanswered(&self.path),
        })
    }

    /// Whether the daemon has come to every call that was given up.
    fn awaits_none(&self) -> bool {
        let mut pool = self.pool.lock();
        pool.look();
        pool.given_up.is_empty()
    }

    /// Takes a connection, once pending returns have been made: calls keep their order.
    fn take_connection(&self, deadline: Deadline<'_>) -> Result<RequestConnection> {
        self.make_returns(deadline)?;
        self.take_free_connection(deadline)
    }

    fn take_free_connection(&self, deadline: Deadline<'_>) -> Result<RequestConnection> {
        let mut pool = self.pool.lock();
        pool.look();
        let most = (self.welcome.request_connections_max as usize).max(1);
        loop {
            if self.is_lost() {
                return Err(disconnected(&self.path));
            }
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            // A daemon that answers nothing is not asked for ever more connections.
            let waiting = pool.given_up.len();
            if pool.open < CONNECTIONS_MAX && waiting < CONNECTIONS_MAX && pool.open + waiting < most {
                pool.open += 1;
                break;
            }
            let now = Instant::now();
            if now >= deadline.until {
                let free = pool.given_up.is_empty();
                return Err(if free { no_connection(pool.open) } else { unanswered(&self.path) });
            }
            // No thread notifies of an abandoned call that is over.
            let until = if pool.given_up.is_empty() { deadline.until } else { deadline.until.min(now + LOOK) };
            self.free.wait_until(&mut pool, until);
            pool.look();
        }
        drop(pool);
        // Nothing is asked yet. Whether the daemon is there, the connection that listens finds out by itself.
        let connected = connect_until(&self.path, deadline).map_err(|error| unreached(&self.path, &error));
        let mut connection = RequestConnection::new(connected.inspect_err(|_| self.forget_connection())?);
        let (client, secret) = (self.welcome.client, self.welcome.secret);
        let spin_us = self.spin.as_micros() as u32;
        let hello = Request::Attach { version: WIRE_VERSION, client, secret, spin_us };
        match connection.call(&hello, Duration::ZERO, deadline, |_, _| Ok(())) {
            Ok(Ok(())) => {
                connection.bytes_max = self.welcome.message_bytes_max.min(FRAME_BYTES_MAX);
                Ok(connection)
            }
            Ok(Err(error)) => {
                self.forget_connection();
                // A daemon that does not know this client is another run of it.
                Err(if error.status == KVKEEP_ERR_NOT_FOUND { disconnected(&self.path) } else { error })
            }
            Err(failure) => self.fail(connection, failure, |error| unreachable(&self.path, &error)),
        }
    }

    /// Counts one connection less.
    fn forget_connection(&self) {
        self.pool.lock().open -= 1;
        self.free.notify_one();
    }
}
