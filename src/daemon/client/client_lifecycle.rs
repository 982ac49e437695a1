//! The life of a client: it connects, listens for pushes, reconnects, and closes.

use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::connect_options::ClientConfig;
use super::daemon_link::{DaemonLink, disconnected};
use super::jobs::SubmittedJobs;
use super::spaces::Spaces;
use super::started_ids::StartedIds;
use crate::arena::Arena;
use crate::arena_lease::ArenaLease;
use crate::control::completion::Completions;
use crate::daemon::wire::frame::Inbox;
use crate::daemon::wire::{FRAME_BYTES_MAX, Fields, FrameHead, PUSH_DONE, PUSH_LOOKED_UP, PUSH_RELEASED, Request};
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_TIMEOUT, Result, Status};
use crate::log::LogLevel;

/// Pauses between two attempts to reconnect: the first, and the longest.
const RECONNECT_MS: (u64, u64) = (10, 500);

/// Pause between two attempts to reach a daemon that is not there yet.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Connected {
    link: Option<Arc<DaemonLink>>,
    /// Upper bytes of the numbers that former runs of the daemon gave.
    past: Vec<u16>,
    /// L1s of former runs, or of connections that were lost: views of them may be in use until the time given.
    retired: Vec<(Instant, ArenaLease)>,
}

/// A client of a daemon.
pub struct Client {
    pub(super) config: ClientConfig,
    connected: RwLock<Connected>,
    pub(super) jobs: SubmittedJobs,
    pub(super) completions: Arc<Completions>,
    pub(super) spaces: Spaces,
    started: Mutex<StartedIds>,
    closing: Arc<AtomicBool>,
    sleeping: Mutex<()>,
    wake: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub(super) poisoned: AtomicBool,
}

impl Client {
    /// Connects, as soon as there is a daemon.
    pub fn open(config: ClientConfig) -> Result<Arc<Client>> {
        let until = Instant::now() + config.wait;
        let link = loop {
            match DaemonLink::open(&config) {
                Err(error) if error.status == KVKEEP_ERR_DISCONNECTED && Instant::now() < until => {
                    std::thread::sleep(ATTEMPT_PAUSE);
                }
                link => break Arc::new(link?),
            }
        };
        let connected = Connected { link: Some(link.clone()), ..Connected::default() };
        let client = Arc::new(Client {
            config,
            connected: RwLock::new(connected),
            jobs: SubmittedJobs::default(),
            completions: Completions::start()?,
            spaces: Spaces::default(),
            started: Mutex::default(),
            closing: Arc::default(),
            sleeping: Mutex::default(),
            wake: Condvar::new(),
            threads: Mutex::default(),
            poisoned: AtomicBool::new(false),
        });
        let me = client.clone();
        let listening = client.spawn("kvkeep-push", move || me.listen());
        if let Err(error) = listening {
            client.completions.close();
            return Err(error);
        }
        client.prefault(&link);
        client.log(LogLevel::Info, || format!("connected to {}", client.socket().display()));
        Ok(client)
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| Error::io(format!("starting the thread {name}"), &error))?;
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    fn prefault(&self, link: &DaemonLink) {
        if self.config.prefault {
            let (arena, stop) = ((*link.arena).clone(), self.closing.clone());
            // Without it, the first use of a page pays for it.
            let _ = self.spawn("kvkeep-prefault", move || arena.prefault(&stop));
        }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.config.socket
    }

    fn log(&self, level: LogLevel, line: impl FnOnce() -> String) {
        self.config.log.write(level, line);
    }

    /// The connection, if there is one.
    pub(super) fn link(&self) -> Result<Arc<DaemonLink>> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::new(KVKEEP_ERR_CLOSED, "the cache is closing"));
        }
        let connected = self.connected.read();
        let link = connected.link.as_ref().filter(|link| !link.is_lost());
        link.cloned().ok_or_else(|| disconnected(self.socket()))
    }

    /// As [`link`](Client::link), for a call about a session or a job: one of a former run of the daemon is lost, and so is one
    /// that began here on a former connection.
    pub(super) fn link_of(&self, number: u64) -> Result<Arc<DaemonLink>> {
        let link = self.link()?;
        let boot = (number >> 48) as u16;
        let past = boot != link.welcome.boot && self.connected.read().past.contains(&boot);
        if past || self.started.lock().is_lost(number) {
            return Err(disconnected(self.socket()));
        }
        Ok(link)
    }

    /// Begins a session by a request.
    pub(super) fn begin(&self, link: &DaemonLink, request: &Request<'_>) -> Result<u64> {
        let session = self.call(link, request, |_, fields| fields.take())?;
        let mut started = self.started.lock();
        // Under the lock, since the thread that drops a lost link marks its sessions once.
        if link.is_lost() {
            started.lose([session])
        } else {
            started.began(session)
        }
        Ok(session)
    }

    /// A job was lost while it was accepted.
    pub(super) fn lose_job(&self, job: u64, ticket: u64) {
        self.started.lock().lose([job]);
        self.jobs.disconnect_ticket(ticket, &self.completions);
    }

    /// Forgets a session that has ended or is unknown.
    pub(super) fn forget_session(&self, session: u64) {
        self.started.lock().ended(session);
        self.jobs.forget_session(session);
    }

    /// The first arena that views of this client may lie in, the present one before those of former runs, that `is` it.
    pub(super) fn find_arena(&self, is: impl Fn(&Arena) -> bool) -> Option<ArenaLease> {
        let connected = self.connected.read();
        let retired = connected.retired.iter().map(|(_, arena)| arena);
        connected.link.iter().map(|link| &link.arena).chain(retired).find(|arena| is(arena)).cloned()
    }

    /// Unmaps L1s of former runs whose time is over. Returns when to look again, if any is left.
    fn unmap_retired(&self) -> Option<Instant> {
        if self.connected.read().retired.is_empty() {
            return None;
        }
        let now = Instant::now();
        let mut connected = self.connected.write();
        connected.retired.retain(|(until, _)| *until > now);
        connected.retired.iter().map(|(until, _)| *until).min()
    }

    /// Makes a call that does not wait for anything.
    pub(super) fn call<R>(
        &self,
        link: &DaemonLink,
        request: &Request<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> Result<R> {
        link.call(request, read)
    }

    /// Makes a call that returns something its caller holds. See [`DaemonLink::give_back`].
    pub(super) fn give_back<R>(
        &self,
        link: &Arc<DaemonLink>,
        request: &Request<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> Result<R> {
        self.give_back_as(link, request, request, read)
    }

    /// As [`give_back`](Client::give_back), with another request where the daemon cannot be asked in time.
    pub(super) fn give_back_as<R>(
        &self,
        link: &Arc<DaemonLink>,
        request: &Request<'_>,
        fallback: &Request<'_>,
        read: impl FnOnce(Status, &mut Fields<'_>) -> Result<R>,
    ) -> Result<R> {
        let given_back = link.give_back(request, fallback, read);
        if given_back.needs_thread {
            let link = link.clone();
            // Without it, the next call does the same.
            let _ = self.spawn("kvkeep-owed", move || link.settle());
        }
        given_back.result
    }

    /// The body of the thread that reads pushes, and reconnects when the daemon went away.
    fn listen(&self) {
        while !self.closing.load(Ordering::Acquire) {
            // A link that was lost meanwhile is dropped like any other: its jobs must end.
            let Some(link) = self.connected.read().link.clone() else {
                self.reconnect();
                continue;
            };
            if let Ok(stream) = link.pushes() {
                let mut stream = BufReader::new(stream);
                let mut inbox = Inbox::default();
                while self.await_push(&stream) && self.take_push(&mut stream, &mut inbox) {}
            }
            link.lose();
            self.disconnect(&link);
        }
    }

    /// Waits for a push, and lets L1s go meanwhile. False if the stream is of no use any more.
    fn await_push(&self, stream: &BufReader<&UnixStream>) -> bool {
        while stream.buffer().is_empty()
            && let Some(until) = self.unmap_retired()
        {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let Ok(left) = Timespec::try_from(left) else { break };
            match poll(&mut [PollFd::new(*stream.get_ref(), PollFlags::IN)], Some(&left)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(_) => return false,
            }
        }
        true
    }

    fn take_push(&self, stream: &mut impl Read, inbox: &mut Inbox) -> bool {
        let mut head = FrameHead::new_zeroed();
        if stream.read_exact(head.as_mut_bytes()).is_err() || head.bytes > FRAME_BYTES_MAX {
            return false;
        }
        inbox.fill(stream, head.bytes as usize).is_ok() && self.pushed(head.kind, inbox.fields()).is_ok()
    }

    fn pushed(&self, kind: u32, mut fields: Fields<'_>) -> Result<()> {
        let ticket = fields.take()?;
        match kind {
            PUSH_LOOKED_UP => self.jobs.looked_up(ticket, fields.take()?, &self.completions),
            PUSH_DONE => {
                let (result, bitmap) = (fields.take()?, fields.take()?);
                self.jobs.done(ticket, result, bitmap, &self.completions);
            }
            PUSH_RELEASED => self.jobs.released(ticket),
            _ => return Err(Error::invalid("malformed push")),
        }
        fields.end()
    }

    /// The daemon is gone: nothing of that run is good any more.
    fn disconnect(&self, link: &DaemonLink) {
        {
            let mut connected = self.connected.write();
            connected.link = None;
            if !connected.past.contains(&link.welcome.boot) {
                connected.past.push(link.welcome.boot);
            }
            let patience =
                self.config.session_timeout.unwrap_or(Duration::from_millis(link.welcome.session_timeout_ms));
            connected.retired.push((Instant::now() + patience, link.arena.clone()));
        }
        if !self.closing.load(Ordering::Acquire) {
            let jobs = self.jobs.disconnect(disconnected(self.socket()), &self.completions);
            let mut started = self.started.lock();
            started.lose_all();
            started.lose(jobs);
            drop(started);
            self.log(LogLevel::Warn, || format!("the daemon at {} went away", self.socket().display()));
        }
    }

    fn reconnect(&self) {
        let mut pause = Duration::from_millis(RECONNECT_MS.0);
        while !self.closing.load(Ordering::Acquire) {
            match DaemonLink::open(&self.config) {
                // A link on which the spaces cannot be opened again is of no use: it is dropped, and another is tried.
                Ok(link) => {
                    if self.adopt(Arc::new(link)) {
                        return;
                    }
                }
                Err(error) => self.log(LogLevel::Info, || format!("not connected yet: {error}")),
            }
            self.unmap_retired();
            let mut sleeping = self.sleeping.lock();
            if !self.closing.load(Ordering::Acquire) {
                self.wake.wait_for(&mut sleeping, pause);
            }
            pause = (pause * 2).min(Duration::from_millis(RECONNECT_MS.1));
        }
    }

    fn adopt(&self, link: Arc<DaemonLink>) -> bool {
        // Without a request connection, no space can be opened again.
        if let Err(error) = self.call(&link, &Request::Ping {}, |_, _| Ok(())) {
            self.config.log.often("adopt", LogLevel::Warn, || format!("connected, but no call is answered: {error}"));
            return false;
        }
        for spec in self.spaces.all() {
            let opened = self.call(&link, &Request::OpenSpace { spec }, |_, fields| fields.take::<u64>());
            if let Err(error) = opened {
                self.log(LogLevel::Warn, || format!("opening a space again: {error}"));
                if matches!(error.status, KVKEEP_ERR_TIMEOUT | KVKEEP_ERR_DISCONNECTED) {
                    return false;
                }
            }
        }
        self.prefault(&link);
        {
            let mut connected = self.connected.write();
            connected.past.retain(|boot| *boot != link.welcome.boot);
            connected.link = Some(link);
        }
        self.log(LogLevel::Info, || format!("connected again to {}", self.socket().display()));
        true
    }

    /// Loses the connection, as when the daemon does not answer for too long.
    #[cfg(test)]
    pub fn lose(&self) {
        self.link().unwrap().lose();
    }

    /// Ends every wait: the cache closes.
    pub(super) fn begin_closing(&self) {
        self.jobs.close(&self.completions);
    }

    /// Has the daemon end this client's sessions and jobs, then disconnects.
    pub(super) fn finish_closing(&self) {
        let link = self.link();
        if let Ok(link) = &link {
            // A daemon that is gone by now has ended everything already.
            let holding = self.call(link, &Request::Bye {}, |_, fields| fields.take::<u64>());
            // A daemon that does not answer may hold something, too.
            let holds = holding.map_or_else(|error| error.status == KVKEEP_ERR_TIMEOUT, |holding| holding > 0);
            if holds {
                // A view may still be looked at.
                Arena::keep_mapped((*link.arena).clone());
            }
        }
        self.closing.store(true, Ordering::Release);
        self.jobs.close(&self.completions);
        // It may be another link by now; a link that comes later is not listened to.
        if let Some(link) = &self.connected.read().link {
            link.lose();
        }
        drop(self.sleeping.lock());
        self.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            let _ = thread.join();
        }
        *self.connected.write() = Connected::default();
        self.completions.close();
        self.log(LogLevel::Info, || "closed".to_owned());
    }
}
