//! A client's connections to one run of a daemon: the one that listens, and the lanes that calls take.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use zerocopy::{FromZeros, IntoBytes};

use super::client::ClientConfig;
use super::wire::frame::Inbox;
use super::wire::{FRAME_BYTES_MAX, Fields, Frame, Head, Request, WIRE_VERSION, Welcome, look_for};
use crate::arena::Arena;
use crate::error::{
    Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION,
    Result, Status,
};
use crate::in_use::InUse;

/// Most calls at once; more wait for a lane.
const LANES_MAX: usize = 32;
/// A daemon that does not answer for so long is taken for dead.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One connection with its buffers.
struct Lane {
    stream: UnixStream,
    frame: Frame,
    inbox: Inbox,
    patience: Duration,
    /// Most bytes of a request that the daemon takes.
    bytes_max: u32,
}

#[derive(Default)]
struct Lanes {
    idle: Vec<Lane>,
    open: usize,
}

/// The connection that listens. Its end tells the daemon that nothing of L1 is in use here any more.
struct Pushes(UnixStream);

impl Drop for Pushes {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A connection to one run of a daemon.
pub struct Link {
    /// What the daemon said of itself.
    pub welcome: Welcome,
    /// L1, mapped here. When the last use of it ends, the daemon is told.
    pub arena: InUse,
    path: Box<Path>,
    spin: Duration,
    pushes: Arc<Pushes>,
    lanes: Mutex<Lanes>,
    free: Condvar,
    lost: AtomicBool,
}

/// What a call says when there is no daemon to ask.
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
        // These say nothing of the daemon.
        Some(Errno::MFILE | Errno::NFILE) => no_descriptor(),
        Some(Errno::NOMEM | Errno::NOBUFS | Errno::INTR) => Error::io(format!("connecting to {path}"), error),
        _ => Error::new(
            KVKEEP_ERR_DISCONNECTED,
            format!("no daemon answers at {path} ({error}): start one with kvkeep serve --socket {path}"),
        ),
    }
}

impl Lane {
    fn open(path: &Path) -> Result<Lane> {
        let stream = UnixStream::connect(path).map_err(|error| unreachable(path, &error))?;
        let timeouts = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
        timeouts.map_err(|error| Error::io("setting a socket's timeouts", &error))?;
        Ok(Lane {
            stream,
            frame: Frame::default(),
            inbox: Inbox::default(),
            patience: PATIENCE,
            bytes_max: FRAME_BYTES_MAX,
        })
    }

    /// A request out, its answer in. The outer error means that the connection is of no use any more.
    fn call<R>(
        &mut self,
        request: &Request<'_>,
        spin: Duration,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> io::Result<Result<R>> {
        request.encode(&mut self.frame);
        let bytes = self.frame.finish();
        if bytes.len() - size_of::<Head>() > self.bytes_max as usize {
            let (bytes, most) = (bytes.len(), self.bytes_max);
            return Ok(Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("a message of {bytes} bytes, of which the daemon takes {most} at most: split the batch"),
            )));
        }
        let sent = self.stream.write_all(bytes);
        look_for(&self.stream, spin);
        let head = self.inbox.receive(&mut self.stream, FRAME_BYTES_MAX, false);
        // A daemon that refuses a connection need not take in the request: its answer says more than the failure to send.
        let head = if head.is_err() { sent.and(head)? } else { head? };
        let head = head.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
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
}

impl Link {
    /// Connects, and maps L1.
    pub fn open(config: &ClientConfig) -> Result<Link> {
        let (path, spin) = (&*config.socket, config.spin);
        let mut lane = Lane::open(path)?;
        let lost = |error: io::Error| unreachable(path, &error);
        let ClientConfig { read_only, observer, .. } = *config;
        Request::Hello { version: WIRE_VERSION, read_only, observer }.encode(&mut lane.frame);
        // One that refuses whoever asks need not take in what is asked: its answer says more than a failure to ask.
        let _ = lane.stream.write_all(lane.frame.finish());

        let mut head = Head::new_zeroed();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = {
            let mut into = [IoSliceMut::new(head.as_mut_bytes())];
            recvmsg(&lane.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)
                .map_err(|error| lost(error.into()))?
        };
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        lane.stream.read_exact(&mut head.as_mut_bytes()[got.bytes..]).map_err(lost)?;
        if head.bytes > FRAME_BYTES_MAX {
            return Err(lost(io::Error::from(io::ErrorKind::InvalidData)));
        }
        lane.inbox.fill(&mut lane.stream, head.bytes as usize).map_err(lost)?;
        let mut fields = lane.inbox.fields();
        let Ok(0..) = i32::try_from(head.kind) else {
            let status = Status::from_number(head.kind as i32).unwrap_or(KVKEEP_ERR_INTERNAL);
            return Err(Error::new(status, fields.take::<&str>().unwrap_or("the daemon gave no reason")));
        };
        // Without a place for one, the kernel drops a descriptor on its way.
        let fd = fd.ok_or_else(no_descriptor)?;
        let welcome: Welcome = fields.take()?;
        let arena = Arena::attach(fd, welcome.l1_bytes as usize, !welcome.read_only)
            .map_err(|error| Error::io("mapping the daemon's L1", &error))?;
        let pushes = Arc::new(Pushes(lane.stream));
        Ok(Link {
            welcome,
            arena: InUse::new(Arc::new(arena), Some(pushes.clone())),
            path: path.into(),
            spin,
            pushes,
            lanes: Mutex::default(),
            free: Condvar::new(),
            lost: AtomicBool::new(false),
        })
    }

    /// The stream of pushes; reading it takes as long as it takes.
    pub fn pushes(&self) -> io::Result<&UnixStream> {
        self.pushes.0.set_read_timeout(None)?;
        Ok(&self.pushes.0)
    }

    /// Ends every call, and the stream of pushes: the connection is over. What it held is the daemon's again when nobody uses
    /// the mapping any more.
    pub fn lose(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            let _ = send(&self.pushes.0, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            let _ = self.pushes.0.shutdown(Shutdown::Read);
        }
        // Under the lock, so that nobody who looked before goes to sleep after.
        let _lanes = self.lanes.lock();
        self.free.notify_all();
    }

    /// Whether the connection is over.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Makes a call that the daemon answers in `patience`.
    pub fn call<R>(
        &self,
        request: &Request<'_>,
        patience: Duration,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> Result<R> {
        let mut lane = self.take_lane()?;
        if lane.patience != patience {
            // It can only fail for a time of 0, which no caller has.
            let _ = lane.stream.set_read_timeout(Some(patience));
            lane.patience = patience;
        }
        match lane.call(request, self.spin, read) {
            Ok(result) => {
                lane.frame.trim();
                lane.inbox.trim();
                self.lanes.lock().idle.push(lane);
                self.free.notify_one();
                result
            }
            Err(_) => {
                self.lanes.lock().open -= 1;
                self.lose();
                Err(disconnected(&self.path))
            }
        }
    }

    fn take_lane(&self) -> Result<Lane> {
        let mut lanes = self.lanes.lock();
        loop {
            if self.is_lost() {
                return Err(disconnected(&self.path));
            }
            if let Some(lane) = lanes.idle.pop() {
                return Ok(lane);
            }
            if lanes.open < LANES_MAX.min((self.welcome.lanes_max as usize).max(1)) {
                lanes.open += 1;
                break;
            }
            self.free.wait(&mut lanes);
        }
        drop(lanes);
        let opened = Lane::open(&self.path).and_then(|mut lane| {
            let (client, secret) = (self.welcome.client, self.welcome.secret);
            let spin_us = self.spin.as_micros() as u32;
            let hello = Request::Lane { version: WIRE_VERSION, client, secret, spin_us };
            let answer =
                lane.call(&hello, Duration::ZERO, |_, _| Ok(())).map_err(|error| unreachable(&self.path, &error))?;
            // A daemon that does not know this client is another run of it.
            answer.map_err(|error| match error.status {
                KVKEEP_ERR_NOT_FOUND => disconnected(&self.path),
                _ => error,
            })?;
            lane.bytes_max = self.welcome.message_bytes_max.min(FRAME_BYTES_MAX);
            Ok(lane)
        });
        // Nothing was asked yet. Whether the daemon is there, the connection that listens finds out by itself.
        opened.inspect_err(|_| {
            self.lanes.lock().open -= 1;
            self.free.notify_one();
        })
    }
}
