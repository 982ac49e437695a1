//! Writing committed objects to L2 in the background: bounded, retried with back-off, never in anybody's way.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::backends::{Tier, Tiers};
use super::deadline::Watch;
use super::forget_space::{Cleaning, Turns};
use super::tier_sync::Upkeep;
use super::write_counters::{Dropped, Ended};
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_PERMISSION, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l1::slot::Ref;
use crate::l1::{L1, Write};
use crate::l2::object_header::Header;
use crate::l2::{Found, Reply, StoreRequest, Stored};
use crate::log::{Log, LogLevel};
use crate::meters::Meters;

/// Objects taken from L1's queue at a time.
const BATCH: usize = 64;
/// Most journeys and deletions not over: a backend's queue is bounded by number, and loads go to it too.
pub(super) const OPEN_MAX: usize = 1 << 14;
/// Times a failed write is tried again, and the first pause before it; each further one is four times as long.
pub(super) const RETRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);

/// One object on its way to all backends.
pub(super) struct Journey {
    name: Ref,
    pub(super) key: ObjectKey,
    header: Header,
    bytes: u64,
    /// Backends that have not answered for good.
    left: AtomicUsize,
    /// A backend has it.
    stored: AtomicBool,
}

/// Objects to be deleted from one backend.
pub(super) struct Deletion {
    keys: Arc<Vec<ObjectKey>>,
    tier: Arc<Tier>,
    attempt: u32,
    /// A full queue is waited for until then.
    until: Instant,
}

pub(super) enum Errand {
    Write { journey: Arc<Journey>, tier: Arc<Tier>, attempt: u32 },
    Delete(Deletion),
    Clean(Cleaning),
}

struct Retry {
    due: Instant,
    errand: Errand,
}

impl PartialEq for Retry {
    fn eq(&self, other: &Retry) -> bool {
        self.due == other.due
    }
}
impl Eq for Retry {}
impl PartialOrd for Retry {
    fn partial_cmp(&self, other: &Retry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Retry {
    fn cmp(&self, other: &Retry) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

#[derive(Default)]
pub(super) struct Desk {
    woken: bool,
    closing: bool,
    retries: BinaryHeap<Retry>,
    /// Bytes being written.
    bytes: u64,
    /// Journeys and deletions not over.
    pub(super) open: usize,
    /// The deletions among them.
    pub(super) deletions: usize,
    pub(super) turns: Turns,
    /// L1's queue is being read: what was taken is not open yet.
    reading: bool,
    /// The thread is not waiting.
    busy: bool,
}

/// The writer.
pub struct Writer {
    pub(super) l1: Arc<L1>,
    pub(super) tiers: Arc<Tiers>,
    upkeep: Upkeep,
    watch: Arc<Watch>,
    pub(super) meters: Arc<Meters>,
    pub(super) log: Log,
    checksum: bool,
    bytes_max: u64,
    pub(super) desk: Mutex<Desk>,
    /// What did not end was counted as dropped: an answer that comes yet counts nothing.
    pub(super) over: AtomicBool,
    wake: Condvar,
    quiet: Condvar,
}

impl Writer {
    /// At most `bytes_max` bytes on their way at once.
    pub fn new(
        upkeep: Upkeep,
        watch: Arc<Watch>,
        meters: Arc<Meters>,
        log: Log,
        checksum: bool,
        bytes_max: u64,
    ) -> Arc<Writer> {
        let (l1, tiers) = (upkeep.l1.clone(), upkeep.tiers.clone());
        let (desk, wake, quiet) = (Mutex::default(), Condvar::new(), Condvar::new());
        let over = AtomicBool::new(false);
        Arc::new(Writer { l1, tiers, upkeep, watch, meters, log, checksum, bytes_max, desk, over, wake, quiet })
    }

    /// Tells the writer that there is something to do.
    pub fn wake(&self) {
        self.desk.lock().woken = true;
        self.wake.notify_one();
    }

    /// Has the backends told that objects were used, the last one last.
    pub fn touch(&self, objects: &[ObjectKey]) {
        self.upkeep.touch(objects);
        self.wake();
    }

    /// A backend was removed: what it alone had is not stored any more.
    pub fn removed(&self) {
        self.upkeep.look_through();
    }

    /// The writer's thread.
    pub fn run(self: &Arc<Self>) {
        loop {
            let (retries, room, closing) = {
                let mut desk = self.desk.lock();
                desk.busy = false;
                self.quiet.notify_all();
                let now = Instant::now();
                let due = desk.retries.peek().map(|retry| retry.due);
                if !desk.woken && !desk.closing && due.is_none_or(|due| due > now) {
                    match due {
                        Some(due) => drop(self.wake.wait_until(&mut desk, due)),
                        None => self.wake.wait(&mut desk),
                    }
                }
                (desk.woken, desk.busy) = (false, true);
                let now = Instant::now();
                let mut retries = Vec::new();
                while desk.retries.peek().is_some_and(|retry| retry.due <= now) {
                    retries.extend(desk.retries.pop());
                }
                let room = if desk.open < OPEN_MAX { self.bytes_max.saturating_sub(desk.bytes) } else { 0 };
                (retries, room, desk.closing)
            };
            if closing {
                return;
            }
            // Before writes, since what was used before them is to be evicted for them last.
            self.upkeep.tell();
            for retry in retries {
                match retry.errand {
                    Errand::Write { journey, tier, attempt } => self.write_again(&journey, tier, attempt),
                    Errand::Delete(deletion) => {
                        self.meters.store_retries.add(1);
                        self.send_deletion(deletion);
                    }
                    Errand::Clean(cleaning) => self.clean(cleaning),
                }
            }
            if room == 0 {
                continue;
            }
            self.desk.lock().reading = true;
            let writes = self.l1.take_writes(BATCH, room);
            {
                let mut desk = self.desk.lock();
                desk.reading = false;
                desk.open += writes.len();
                self.meters.writes_under_way.add(writes.len() as u64);
                // Fewer than asked for may mean that room ran out, and those taken may not need it after all.
                desk.woken |= !writes.is_empty();
            }
            self.quiet.notify_all();
            for write in writes {
                self.set_out(write);
            }
        }
    }

    fn set_out(self: &Arc<Self>, write: Write) {
        let tiers = self.tiers.list();
        let mut targets: Vec<Arc<Tier>> = Vec::new();
        let mut stored = false;
        // It was asked for once, for all of them.
        let more = tiers.len().saturating_sub(1) as u64;
        self.meters.writes_asked.add(more);
        self.meters.writes_under_way.add(more);
        if tiers.is_empty() {
            self.end_write(None, Ended::Dropped(Dropped::Fenced));
        }
        for tier in tiers.iter() {
            tier.writes.begin();
            if !tier.usable() {
                // What a fenced backend misses is not written to it later.
                self.end_write(Some(tier), Ended::Dropped(Dropped::Fenced));
                continue;
            }
            if tier.take_misshapen(&write.key) {
                tier.backend.delete(vec![write.key], Reply::new(|_| {}));
                targets.push(tier.clone());
                continue;
            }
            // What it has of a space that it is to forget is not this object.
            if tier.may_have(&write.key.space)
                && let [Found::Present(_)] = tier.peek(&[write.key])[..]
            {
                // To write what is there is to use it.
                tier.backend.touch(&[write.key]);
                self.end_write(Some(tier), Ended::Already);
                stored = true;
            } else {
                targets.push(tier.clone());
            }
        }
        if targets.is_empty() {
            self.l1.written(write.name, stored);
            // Whoever waits for the last write may want the object alone.
            drop(write.buffer);
            return self.ended(0);
        }
        let header = Header::seal(&write.key, &write.layout, write.buffer.bytes(), self.checksum).of_shape(write.shape);
        let bytes = write.buffer.len() as u64;
        let (left, stored) = (AtomicUsize::new(targets.len()), AtomicBool::new(stored));
        let journey = Arc::new(Journey { name: write.name, key: write.key, header, bytes, left, stored });
        self.desk.lock().bytes += bytes;
        let mut buffer = Some(write.buffer);
        for tier in targets {
            match buffer.take().or_else(|| self.l1.buffer(journey.name)) {
                Some(buffer) => self.send(&journey, tier, buffer, 0),
                None => self.arrived(&journey, &tier, Ended::Withdrawn),
            }
        }
    }

    fn write_again(self: &Arc<Self>, journey: &Arc<Journey>, tier: Arc<Tier>, attempt: u32) {
        let buffer = self.l1.buffer(journey.name);
        let gone = match attempt {
            _ if buffer.is_some() => Ended::Dropped(Dropped::Fenced),
            // It waited until its space was forgotten, and went with it.
            0 => Ended::Withdrawn,
            // It was evicted or deleted since a backend failed to store it.
            _ => Ended::Dropped(Dropped::Failed),
        };
        match buffer.filter(|_| tier.usable()) {
            Some(buffer) => {
                // The first attempt comes here, too, where it had to wait until a space was forgotten.
                self.meters.store_retries.add(u64::from(attempt > 0));
                self.send(journey, tier, buffer, attempt);
            }
            None => self.arrived(journey, &tier, gone),
        }
    }

    fn send(self: &Arc<Self>, journey: &Arc<Journey>, tier: Arc<Tier>, buffer: Buffer, attempt: u32) {
        let begun = self.desk.lock().turns.begin(journey, &tier, attempt);
        match begun {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                self.log.often("a write that cannot wait", LogLevel::Warn, || {
                    format!("writing {} to backend {} is given up: {error}", journey.key.key, tier.number)
                });
                return self.arrived(journey, &tier, Ended::Dropped(Dropped::Failed));
            }
        }
        let began = Instant::now();
        let (me, late_journey, late_tier) = (self.clone(), journey.clone(), tier.clone());
        let on_late = std::iter::once(Box::new(move || {
            me.meters.backend_timeouts.add(1);
            let error = Error::new(KVKEEP_ERR_TIMEOUT, "not answered in time: the backend is fenced until it answers");
            me.failed(&late_journey, &late_tier, RETRIES, &error);
        }) as Box<dyn FnOnce() + Send>);
        let ticket = self.watch.begin(&tier, on_late).pop();
        let (me, its_journey, its_tier) = (self.clone(), journey.clone(), tier.clone());
        let reply = Reply::new(move |result: Result<Stored>| {
            if !ticket.is_some_and(|ticket| ticket.answered()) {
                return me.answered(&its_journey, &its_tier);
            }
            match result {
                Ok(Stored::Written) => {
                    me.meters.store_latency.add(began.elapsed());
                    me.arrived(&its_journey, &its_tier, Ended::Stored(its_journey.bytes));
                }
                Ok(Stored::Already) => me.arrived(&its_journey, &its_tier, Ended::Already),
                Err(error) => me.failed(&its_journey, &its_tier, attempt, &error),
            }
            me.answered(&its_journey, &its_tier);
        });
        let (key, header, deadline) = (journey.key, journey.header, self.watch.deadline());
        tier.backend.store(vec![StoreRequest { key, header, buffer, deadline, reply }]);
    }

    /// A write failed: try again later, or give up. What is not allowed now is not allowed a moment later.
    fn failed(&self, journey: &Arc<Journey>, tier: &Arc<Tier>, attempt: u32, error: &Error) {
        let closing = self.desk.lock().closing;
        let again = attempt < RETRIES && error.status != KVKEEP_ERR_PERMISSION && !closing;
        let (kind, level) = if again { ("write again", LogLevel::Warn) } else { ("write given up", LogLevel::Error) };
        self.log.often(kind, level, || {
            let what = if again { "will be tried again" } else { "is given up" };
            format!("writing {} to backend {} {what}: {error}", journey.key.key, tier.number)
        });
        if !again {
            let why = if closing { Dropped::Closed } else { Dropped::Failed };
            return self.arrived(journey, tier, Ended::Dropped(why));
        }
        self.later(attempt, Errand::Write { journey: journey.clone(), tier: tier.clone(), attempt: attempt + 1 });
    }

    pub(super) fn later(&self, attempt: u32, errand: Errand) {
        self.at(Instant::now() + PAUSE * 4u32.pow(attempt.min(RETRIES)), errand);
    }

    /// Has the writer's thread do something at a time.
    pub(super) fn at(&self, due: Instant, errand: Errand) {
        self.desk.lock().retries.push(Retry { due, errand });
        self.wake();
    }

    /// A backend has answered a write, in time or not: what it stored by that can be seen.
    fn answered(&self, journey: &Journey, tier: &Tier) {
        let ready = {
            let mut desk = self.desk.lock();
            desk.turns.end(tier.number, journey.key.space);
            desk.turns.ready()
        };
        self.begin_cleanings(ready);
    }

    /// One backend is through with an object: it has it, or does not get it.
    fn arrived(&self, journey: &Arc<Journey>, tier: &Tier, how: Ended) {
        self.end_write(Some(tier), how);
        journey.stored.fetch_or(matches!(how, Ended::Stored(_) | Ended::Already), Ordering::AcqRel);
        if journey.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.l1.written(journey.name, journey.stored.load(Ordering::Acquire));
            self.ended(journey.bytes);
        }
    }

    pub(super) fn ended(&self, bytes: u64) {
        let mut desk = self.desk.lock();
        let was_full = desk.bytes >= self.bytes_max || desk.open >= OPEN_MAX;
        desk.bytes -= bytes;
        desk.open -= 1;
        if was_full {
            desk.woken = true;
            self.wake.notify_one();
        }
        if desk.open == 0 {
            self.quiet.notify_all();
        }
    }

    /// Deletes objects from every backend, and says how many of them some backend knew.
    pub fn delete(self: &Arc<Self>, keys: &[ObjectKey]) -> Vec<bool> {
        let mut known = vec![false; keys.len()];
        let tiers = self.tiers.list();
        if tiers.is_empty() {
            return known;
        }
        let shared = Arc::new(keys.to_vec());
        for tier in tiers.iter() {
            for (known, found) in known.iter_mut().zip(tier.peek(keys)) {
                *known |= matches!(found, Found::Present(_));
            }
            {
                let mut desk = self.desk.lock();
                desk.open += 1;
                desk.deletions += 1;
            }
            let (keys, until) = (shared.clone(), self.watch.deadline());
            self.send_deletion(Deletion { keys, tier: tier.clone(), attempt: 0, until });
        }
        known
    }

    fn send_deletion(self: &Arc<Self>, deletion: Deletion) {
        let (me, backend, keys) = (self.clone(), deletion.tier.backend.clone(), deletion.keys.to_vec());
        let reply = Reply::new(move |result: Result<u64>| match result {
            Ok(_) => me.deletion_ended(),
            Err(error) => me.undeleted(deletion, &error),
        });
        backend.delete(keys, reply);
    }

    /// A deletion failed or was refused: try again later, or give up.
    fn undeleted(&self, mut deletion: Deletion, error: &Error) {
        let full = error.status == KVKEEP_ERR_LIMIT && Instant::now() < deletion.until;
        let again =
            (full || deletion.attempt < RETRIES) && error.status != KVKEEP_ERR_CLOSED && !self.desk.lock().closing;
        let (kind, level) =
            if again { ("deletion again", LogLevel::Warn) } else { ("deletion given up", LogLevel::Error) };
        self.log.often(kind, level, || {
            let what = if again { "will be tried again" } else { "is given up" };
            let (count, number) = (deletion.keys.len(), deletion.tier.number);
            format!("deleting {count} objects from backend {number} {what}: {error}")
        });
        if again {
            let attempt = deletion.attempt;
            deletion.attempt += 1;
            self.later(attempt, Errand::Delete(deletion));
        } else {
            self.meters.deletions_dropped.add(deletion.keys.len() as u64);
            self.deletion_ended();
        }
    }

    /// Writes waiting or on their way, and deletions.
    pub fn pending(&self) -> u64 {
        let mut desk = self.desk.lock();
        while desk.reading {
            self.quiet.wait(&mut desk);
        }
        // The queue is not read while the desk is held.
        self.l1.writes_queued() + desk.open as u64
    }

    /// Writes waiting or on their way, one for each backend.
    pub fn writes_pending(&self) -> u64 {
        let mut desk = self.desk.lock();
        while desk.reading {
            self.quiet.wait(&mut desk);
        }
        self.l1.writes_queued() + self.meters.writes_under_way.get()
    }

    /// Whether all uses and losses are told.
    fn has_told(&self) -> bool {
        // What the thread has taken to tell is told when it waits again.
        self.upkeep.is_idle() && !self.desk.lock().busy
    }

    /// Blocks until nothing is waiting or on its way, uses and losses included.
    pub fn drain(&self, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        loop {
            let pending = self.pending();
            if pending == 0 && self.has_told() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::new(
                    KVKEEP_ERR_TIMEOUT,
                    format!(
                        "{pending} writes are left after {timeout:?}: wait longer, or look at the log for a backend that fails"
                    ),
                ));
            }
            self.wake();
            let mut desk = self.desk.lock();
            if desk.open > 0 || desk.busy || desk.woken {
                self.quiet.wait_until(&mut desk, until);
            }
        }
    }

    /// Stops the thread; retries that wait are dropped.
    pub fn close(&self) {
        let mut desk = self.desk.lock();
        desk.closing = true;
        desk.retries.clear();
        self.wake.notify_one();
    }
}
