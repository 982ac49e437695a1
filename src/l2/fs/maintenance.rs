//! The thread for what needs the file system but moves no payload: lookups of unknown keys, deletions, quarantine, and
//! writing the times of last use onto the files.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, openat, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::engine::backlog::{closed, full};
use super::foreign::Sweep;
use super::index::Index;
use super::object_io::{Core, payload_of};
use super::path;
use crate::doorbell::Doorbell;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::{Found, LookupRequest, Reply};

/// While so many keys wait for the keeper, no more are taken. One job is taken whole, however many keys it is about.
const KEYS_MAX: usize = 1 << 17;
/// Files unlinked before the next job's turn: a lookup has a deadline.
const UNLINKS_MAX: usize = 1 << 12;
/// Times of last use are written when this many wait,
const DIRTY_MAX: usize = 4096;
/// or when the oldest may have waited this long.
const FLUSH_EVERY: Duration = Duration::from_secs(10);

/// A batch of objects to be deleted. Answers when the last hold on it goes.
pub struct Deletion {
    removed: AtomicU64,
    failed: Mutex<Option<Error>>,
    reply: Mutex<Option<Reply<u64>>>,
}

impl Deletion {
    /// One that answers `reply`.
    pub fn new(reply: Reply<u64>) -> Arc<Deletion> {
        Arc::new(Deletion { removed: AtomicU64::new(0), failed: Mutex::new(None), reply: Mutex::new(Some(reply)) })
    }

    fn fail(&self, error: Error) {
        *self.failed.lock() = Some(error);
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        let result = match self.failed.get_mut().take() {
            Some(error) => Err(error),
            None => Ok(*self.removed.get_mut()),
        };
        if let Some(reply) = self.reply.get_mut().take() {
            reply.send(result);
        }
    }
}

/// A hidden object to be unlinked, and the deletion that waits for it.
pub type Departure = (ObjectKey, Arc<Deletion>);

/// One piece of work.
pub enum Job {
    /// Ask the file system.
    Lookup(LookupRequest),
    /// Unlink objects that are hidden already, for these deletions.
    Unlink(Vec<Departure>),
    /// Move a hidden object away.
    Quarantine(ObjectKey),
    /// Evict the next few objects of those that are above the bounds.
    Shrink,
    /// Unlink what others have stored of a space.
    Sweep(Sweep),
}

impl Job {
    fn keys(&self) -> usize {
        match self {
            Job::Lookup(lookup) => lookup.keys.len(),
            Job::Unlink(keys) => keys.len(),
            Job::Quarantine(_) | Job::Shrink | Job::Sweep(_) => 1,
        }
    }
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    keys: usize,
    flush: bool,
    closed: bool,
}

impl Jobs {
    fn append(&mut self, job: Job) {
        self.keys += job.keys();
        self.queue.push_back(job);
    }
}

/// The keeper's queue.
#[derive(Default)]
pub struct Keeper {
    jobs: Mutex<Jobs>,
    bell: Doorbell,
}

impl Keeper {
    /// Says whether there is room for a job, and if not, why.
    pub fn admits(&self) -> Result<()> {
        Keeper::room(&self.jobs.lock())
    }

    fn room(jobs: &Jobs) -> Result<()> {
        if jobs.closed {
            return Err(closed());
        }
        if jobs.keys >= KEYS_MAX { Err(full(KEYS_MAX)) } else { Ok(()) }
    }

    /// Queues a job, or gives it back with the reason.
    pub fn offer(&self, job: Job) -> std::result::Result<(), (Job, Error)> {
        let mut jobs = self.jobs.lock();
        if let Err(error) = Keeper::room(&jobs) {
            return Err((job, error));
        }
        jobs.append(job);
        drop(jobs);
        self.bell.ring();
        Ok(())
    }

    /// Queues what must not be refused: what becomes of the files of objects that are hidden already.
    pub fn insist(&self, job: Job) {
        if job.keys() > 0 {
            self.jobs.lock().append(job);
            self.bell.ring();
        }
    }

    /// Has times of last use written if many wait.
    pub fn used(&self, waiting: usize) {
        if waiting >= DIRTY_MAX {
            self.jobs.lock().flush = true;
            self.bell.ring();
        }
    }

    /// Accepts nothing more and has the thread end when it has done everything.
    pub fn close(&self) {
        self.jobs.lock().closed = true;
        self.bell.ring();
    }

    /// The next job; `None` in it: `due` has come, or it is time to write times of use. `None`: the end.
    fn next(&self, due: Instant) -> Option<Option<Job>> {
        loop {
            let mut jobs = self.jobs.lock();
            if std::mem::take(&mut jobs.flush) || Instant::now() >= due {
                return Some(None);
            }
            if let Some(job) = jobs.queue.pop_front() {
                jobs.keys -= job.keys();
                return Some(Some(job));
            }
            if jobs.closed {
                return None;
            }
            drop(jobs);
            self.bell.listen(due);
        }
    }

    /// The thread.
    pub fn run(core: &Core) {
        core.index(Index::check_bounds);
        let mut flushed = Instant::now();
        let mut tidied = flushed;
        while let Some(job) = core.keeper.next((flushed + FLUSH_EVERY).min(tidied + core.tidy_every)) {
            match job {
                Some(Job::Lookup(lookup)) => core.look_up(lookup),
                Some(Job::Unlink(mut keys)) => {
                    let now = keys.split_off(keys.len().saturating_sub(UNLINKS_MAX));
                    core.keeper.insist(Job::Unlink(keys));
                    for (key, deletion) in now {
                        core.unlink(key, Some(&deletion));
                    }
                }
                Some(Job::Quarantine(key)) => core.move_away(key),
                Some(Job::Shrink) => core.shrink(),
                Some(Job::Sweep(sweep)) => core.sweep(sweep),
                None => {
                    core.flush();
                    core.space.measure(core);
                    core.index(Index::check_bounds);
                    flushed = Instant::now();
                    if tidied.elapsed() >= core.tidy_every {
                        core.tidy();
                        core.measure_some_directories();
                        core.list_again();
                        tidied = Instant::now();
                    }
                }
            }
        }
        core.flush();
    }
}

impl Core {
    fn look_up(&self, lookup: LookupRequest) {
        let LookupRequest { keys, in_order, deadline, reply } = lookup;
        let mut found = vec![Found::Absent; keys.len()];
        let other = if self.shared { Found::Unknown } else { Found::Absent };
        self.index(|index| index.lookup(&keys, &mut found, other));
        let result = self.ask(&keys, &mut found, in_order, deadline);
        match result {
            Ok(()) => reply.send(Ok(found)),
            Err(error) => {
                self.unpin_found(&keys, &found);
                reply.send(Err(error));
            }
        }
    }

    /// Asks the file system for every key still unknown.
    fn ask(&self, keys: &[ObjectKey], found: &mut [Found], in_order: bool, deadline: Instant) -> Result<()> {
        for at in 0..keys.len() {
            if found[at] == Found::Unknown {
                if Instant::now() >= deadline {
                    return Err(Error::new(KVKEEP_ERR_TIMEOUT, "the deadline passed before the lookup was done"));
                }
                found[at] = self.discover(&keys[at]);
            }
            if in_order && found[at] == Found::Absent {
                self.unpin_found(&keys[at..], &found[at..]);
                found[at..].fill(Found::Absent);
                return Ok(());
            }
        }
        Ok(())
    }

    fn unpin_found(&self, keys: &[ObjectKey], found: &[Found]) {
        let pinned = keys.iter().zip(found).filter(|(_, found)| matches!(found, Found::Present(_)));
        let pinned: Vec<ObjectKey> = pinned.map(|(key, _)| *key).collect();
        self.unpin(&pinned);
    }

    /// Takes one pin off each key, with what follows from it.
    pub fn unpin(&self, keys: &[ObjectKey]) {
        let stores = self.index(|index| index.unpin(keys));
        self.again(stores);
    }

    /// Bytes of payload and time of use of the object at `path`, if there is one.
    pub fn stat(&self, path: &str) -> rustix::io::Result<Option<(u64, u64)>> {
        match statat(&self.dirfd, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
                let used = seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as u64);
                Ok(payload_of(stat.st_size as u64).map(|size| (size, used)))
            }
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the file system for one key. What cannot be seen or opened is absent for now.
    fn discover(&self, key: &ObjectKey) -> Found {
        let path = path::object(key);
        let seen = match self.stat(&path) {
            Ok(seen) => seen,
            Err(error) => {
                self.unread("looking up", &path, &error.into());
                return Found::Absent;
            }
        };
        let Some((size, used)) = seen else { return Found::Absent };
        if self.index(|index| index.is_unreadable(key)) && !self.opens(&path) {
            return Found::Absent;
        }
        self.index(|index| index.discovered(*key, size, used))
    }

    /// Whether this process may read the file at `path`.
    fn opens(&self, path: &str) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        openat(&self.dirfd, path, flags, Mode::empty()).is_ok()
    }

    /// Evicts a few of the objects that are above the bounds, and comes back for more.
    fn shrink(&self) {
        let closing = self.keeper.jobs.lock().closed;
        if !closing && self.shrinking.step(self) {
            self.keeper.insist(Job::Shrink);
        }
    }

    /// Unlinks the file of a hidden object. Whether it is away.
    pub fn unlink(&self, key: ObjectKey, deletion: Option<&Deletion>) -> bool {
        let path = path::object(&key);
        let result = match unlinkat(&self.dirfd, path.as_str(), AtFlags::empty()) {
            Err(error) if error != rustix::io::Errno::NOENT => Err(self.error("deleting", &path, &error.into())),
            result => Ok(u64::from(result.is_ok())),
        };
        let away = result.is_ok();
        if away {
            self.departed(&key)
        } else {
            self.stays(&key)
        }
        match (result, deletion) {
            (Ok(removed), Some(deletion)) => {
                deletion.removed.fetch_add(removed, Ordering::Relaxed);
            }
            (Err(error), Some(deletion)) => deletion.fail(error),
            (_, None) => {}
        }
        away
    }

    /// The file of a hidden object is away.
    pub fn departed(&self, key: &ObjectKey) {
        self.prune(key);
        let stores = self.index(|index| index.left(key));
        self.again(stores);
    }

    /// The file of a hidden object cannot be taken away: it takes its place, and is known, as before.
    pub fn stays(&self, key: &ObjectKey) {
        match self.stat(&path::object(key)) {
            Ok(Some((size, used))) => {
                let stores = self.index(|index| index.stays(key, size, used));
                self.again(stores);
            }
            Ok(None) | Err(_) => self.departed(key),
        }
    }

    /// Writes onto their files the times of use that wait now, a batch at a time.
    fn flush(&self) {
        let batches = self.index(|index| index.dirty()).div_ceil(DIRTY_MAX);
        for _ in 0..batches {
            let used = self.index(|index| index.take_dirty(DIRTY_MAX));
            for (key, born, nanoseconds) in used {
                let time = Timespec {
                    tv_sec: (nanoseconds / 1_000_000_000) as i64,
                    tv_nsec: (nanoseconds % 1_000_000_000) as _,
                };
                let access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
                let times = Timestamps { last_access: access, last_modification: time };
                // One that cannot be marked loses only its place in the order.
                let marked = utimensat(&self.dirfd, path::object(&key).as_str(), &times, AtFlags::SYMLINK_NOFOLLOW);
                if marked == Err(Errno::NOENT) {
                    // Another process removed it: what is in L1 is to be written again.
                    self.index(|index| {
                        if index.is_still(&key, born) {
                            index.lost(&key);
                        }
                    });
                }
            }
        }
    }
}
