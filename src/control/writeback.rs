//! Writing committed objects to L2 on the store thread: bounded, and retried with back-off.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::backend_tasks::{CleaningOrder, OPEN_MAX, PendingWrite, Retry, Task};
use super::backends::{BackendSlot, Backends};
use super::deadline::Deadlines;
use super::tier_sync::TierSync;
use super::write_counters::{Dropped, Ended};
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_PERMISSION, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l1::slot::Ref;
use crate::l1::{L1, QueuedWrite};
use crate::l2::store_header::StoreHeader;
use crate::l2::{Found, Reply, StoreRequest, Stored};
use crate::log::{Log, LogLevel};
use crate::meters::Meters;

/// Objects taken from L1's queue at a time.
const BATCH: usize = 64;
/// Times a failed write is tried again, and the first pause before it; each further one is four times as long.
pub(super) const RETRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(super) struct WritebackState {
    woken: bool,
    pub(super) closing: bool,
    retries: BinaryHeap<Retry>,
    /// Bytes of writes that have not ended.
    bytes: u64,
    /// Writes and deletions that have not ended.
    pub(super) open: usize,
    /// The deletions among them.
    pub(super) deletions: usize,
    pub(super) order: CleaningOrder,
    /// L1's queue is being read: the writes taken from it are not counted in `open` yet.
    reading: bool,
    /// The thread is not waiting.
    busy: bool,
}

/// Writes, deletions and cleanings of all backends, driven by the store thread.
pub struct Writeback {
    pub(super) l1: Arc<L1>,
    pub(super) backends: Arc<Backends>,
    sync: TierSync,
    pub(super) deadlines: Arc<Deadlines>,
    pub(super) meters: Arc<Meters>,
    pub(super) log: Log,
    checksum: bool,
    bytes_max: u64,
    pub(super) state: Mutex<WritebackState>,
    /// Writes that had not ended were counted as dropped: a later answer counts nothing.
    pub(super) over: AtomicBool,
    wake: Condvar,
    /// `reading` is over.
    read: Condvar,
    /// Nothing is on its way, or the thread waits.
    quiet: Condvar,
}

/// The error of a write that is not sent, because others before it failed.
fn failing() -> Error {
    Error::new(KVKEEP_ERR_IO, "the backend failed before, and another write decides whether it gets more")
}

impl Writeback {
    /// At most `bytes_max` bytes on their way at once.
    pub fn new(
        sync: TierSync,
        deadlines: Arc<Deadlines>,
        meters: Arc<Meters>,
        log: Log,
        checksum: bool,
        bytes_max: u64,
    ) -> Arc<Writeback> {
        let (l1, backends) = (sync.l1.clone(), sync.backends.clone());
        let state = Mutex::default();
        let over = AtomicBool::new(false);
        Arc::new(Writeback {
            l1,
            backends,
            sync,
            deadlines,
            meters,
            log,
            checksum,
            bytes_max,
            state,
            over,
            wake: Condvar::new(),
            read: Condvar::new(),
            quiet: Condvar::new(),
        })
    }

    /// Wakes the store thread: there is something to do.
    pub fn wake(&self) {
        self.state.lock().woken = true;
        self.wake.notify_one();
    }

    /// Has the backends notified that objects were used, the last one last.
    pub fn touch(&self, objects: &[ObjectKey]) {
        self.sync.touch(objects);
        self.wake();
    }

    /// Has L1 look again for objects that are stored nowhere. Called after a backend was removed. Blocks until `until` at most.
    pub fn removed(&self, until: Instant) {
        self.sync.look_through(Some(until));
    }

    /// The body of the store thread.
    pub fn run(self: &Arc<Self>) {
        loop {
            let (retries, free_bytes, closing) = {
                let mut state = self.state.lock();
                let now = Instant::now();
                let due = state.retries.peek().map(|retry| retry.due);
                if !state.woken && !state.closing && due.is_none_or(|due| due > now) {
                    state.busy = false;
                    self.quiet.notify_all();
                    match due {
                        Some(due) => drop(self.wake.wait_until(&mut state, due)),
                        None => self.wake.wait(&mut state),
                    }
                }
                (state.woken, state.busy) = (false, true);
                let now = Instant::now();
                let mut retries = Vec::new();
                while state.retries.peek().is_some_and(|retry| retry.due <= now) {
                    retries.extend(state.retries.pop());
                }
                let free_bytes = if state.open < OPEN_MAX { self.bytes_max.saturating_sub(state.bytes) } else { 0 };
                (retries, free_bytes, state.closing)
            };
            if closing {
                return;
            }
            // Before writes, since objects that were used before them are to be evicted last.
            self.sync.notify();
            for retry in retries {
                match retry.task {
                    Task::Write { pending, slot, attempt } => self.retry_write(&pending, slot, attempt),
                    Task::Delete(deletion) => {
                        self.meters.store_retries.add(1);
                        self.send_deletion(deletion);
                    }
                    Task::Clean(cleaning) => self.clean(cleaning),
                }
            }
            if free_bytes == 0 {
                continue;
            }
            self.state.lock().reading = true;
            let writes = self.l1.take_writes(BATCH, free_bytes);
            {
                let mut state = self.state.lock();
                state.reading = false;
                state.open += writes.len();
                self.meters.writes_under_way.add(writes.len() as u64);
                // Fewer than asked for may mean that the bytes ran out, and the writes taken may need fewer after all.
                state.woken |= !writes.is_empty();
            }
            self.read.notify_all();
            let left = free_bytes.saturating_sub(writes.iter().map(|write| write.buffer.len() as u64).sum());
            for write in writes {
                self.start_write(write);
            }
            self.start_copies(left);
        }
    }

    fn start_write(self: &Arc<Self>, write: QueuedWrite) {
        let backends = self.backends.list();
        let chosen: Vec<&Arc<BackendSlot>> = backends.iter().filter(|slot| slot.gets_all()).collect();
        // It was asked for once, for all of them.
        self.ask_for(chosen.len().saturating_sub(1));
        if chosen.is_empty() {
            self.end_write(&write.key, None, Ended::Dropped(Dropped::Fenced));
        }
        self.write_to(&chosen, write, false);
    }

    /// Starts writes of objects that one more backend is to get, of about `free_bytes`.
    fn start_copies(self: &Arc<Self>, free_bytes: u64) {
        let (copies, backends, mut left) = (self.backends.copies(), self.backends.list(), free_bytes);
        for _ in 0..BATCH {
            let Some(copy) = (left > 0).then(|| copies.take()).flatten() else { break };
            let chosen: Vec<&Arc<BackendSlot>> = backends.iter().filter(|slot| slot.is_target(copy.to)).collect();
            let write = if chosen.is_empty() { None } else { self.l1.begin_backend_copy(&copy.object) };
            let Some(write) = write else { continue };
            left = left.saturating_sub(write.buffer.len() as u64);
            self.ask_for(chosen.len());
            self.state.lock().open += 1;
            self.write_to(&chosen, write, true);
        }
        self.state.lock().woken |= left > 0 && !copies.is_empty();
    }

    /// Counts writes that L1 did not count when it queued them.
    fn ask_for(&self, writes: usize) {
        self.meters.writes_asked.add(writes as u64);
        self.meters.writes_under_way.add(writes as u64);
    }

    /// Writes an object to those of the backends that do not have it.
    fn write_to(self: &Arc<Self>, chosen: &[&Arc<BackendSlot>], write: QueuedWrite, is_copy: bool) {
        let (mut targets, mut stored, now) = (Vec::new(), false, Instant::now());
        for &slot in chosen {
            slot.writes.begin();
            let refused = match slot {
                // An object that a fenced or failing backend misses is not written to it later.
                _ if !slot.writable() => Some(Dropped::Fenced),
                _ if !slot.pressure.admits(now) => Some(Dropped::Slow),
                _ => None,
            };
            if let Some(why) = refused {
                self.end_write(&write.key, Some(slot), Ended::Dropped(why));
                continue;
            }
            if slot.take_misshapen(&write.key) {
                slot.backend.delete(vec![write.key], Reply::new(|_| {}));
                targets.push(slot.clone());
                continue;
            }
            // An object of a space that the backend is to forget is not this object.
            if slot.may_have(&write.key.space)
                && let [Found::Present(_)] = slot.peek(&[write.key])[..]
            {
                // Writing an object that is there counts as a use.
                slot.backend.touch(&[write.key]);
                self.end_write(&write.key, Some(slot), Ended::Already);
                stored = true;
            } else {
                targets.push(slot.clone());
            }
        }
        if targets.is_empty() {
            self.note_written(write.name, is_copy, stored);
            // A thread that waits for the last write may want the buffer alone.
            drop(write.buffer);
            return self.work_ended(0);
        }
        let bytes = write.buffer.len() as u64;
        let mut header = StoreHeader::new(&write.key, &write.layout, write.shape, bytes, self.checksum);
        if targets.len() > 1 {
            // One checksum for all of them.
            header = header.seal(write.buffer.bytes()).into();
        }
        let (left, stored) = (AtomicUsize::new(targets.len()), AtomicBool::new(stored));
        let (name, since_ms, key) = (write.name, write.since_ms, write.key);
        let pending = Arc::new(PendingWrite { name, since_ms, key, header, bytes, left, stored, is_copy });
        self.meters.write_waits.begin(since_ms);
        self.state.lock().bytes += bytes;
        let mut buffer = Some(write.buffer);
        for slot in targets {
            match buffer.take().or_else(|| self.l1.buffer(pending.name)) {
                Some(buffer) => self.send_write(&pending, slot, buffer, 0),
                None => self.write_ended(&pending, &slot, Ended::Withdrawn),
            }
        }
    }

    fn retry_write(self: &Arc<Self>, pending: &Arc<PendingWrite>, slot: Arc<BackendSlot>, attempt: u32) {
        let buffer = self.l1.buffer(pending.name);
        let gone = match attempt {
            _ if buffer.is_some() => Ended::Dropped(Dropped::Fenced),
            // It waited until its space was forgotten, and went with it.
            0 => Ended::Withdrawn,
            // It was evicted or deleted since a backend failed to store it.
            _ => Ended::Dropped(Dropped::Failed),
        };
        match buffer.filter(|_| slot.is_reachable()) {
            Some(buffer) => {
                self.send_write(pending, slot, buffer, attempt);
            }
            None => self.write_ended(pending, &slot, gone),
        }
    }

    fn send_write(self: &Arc<Self>, pending: &Arc<PendingWrite>, slot: Arc<BackendSlot>, buffer: Buffer, attempt: u32) {
        let begun = self.state.lock().order.begin(pending, &slot, attempt);
        match begun {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                self.log.often("a write that cannot wait", LogLevel::Warn, || {
                    format!("writing {} to backend {} is given up: {error}", pending.key.key, slot.number)
                });
                return self.write_ended(pending, &slot, Ended::Dropped(Dropped::Failed));
            }
        }
        if !slot.write_breaker.admit() {
            drop(buffer);
            match attempt {
                0 => self.write_ended(pending, &slot, Ended::Dropped(Dropped::Fenced)),
                // It waits as long as if it were tried once more.
                _ => self.write_failed(pending, &slot, attempt, &failing()),
            }
            return self.write_answered(pending, &slot);
        }
        self.meters.store_retries.add(u64::from(attempt > 0));
        let (began, under_way) = (Instant::now(), slot.stores.begin());
        slot.pressure.begin(began);
        let (me, late_pending, late_slot) = (self.clone(), pending.clone(), slot.clone());
        let on_late = std::iter::once(Box::new(move || {
            me.meters.backend_timeouts.add(1);
            let error = Error::new(KVKEEP_ERR_TIMEOUT, "not answered in time: the backend is fenced until it answers");
            late_slot.note_write(Some(&error));
            me.write_failed(&late_pending, &late_slot, RETRIES, &error);
        }) as Box<dyn FnOnce() + Send>);
        let ticket = self.deadlines.begin(&slot, on_late).pop();
        let (me, its_pending, its_slot) = (self.clone(), pending.clone(), slot.clone());
        let reply = Reply::new(move |result: Result<Stored>| {
            drop(under_way);
            its_slot.pressure.end(Instant::now(), began.elapsed());
            if !ticket.is_some_and(|ticket| ticket.answered()) {
                return me.write_answered(&its_pending, &its_slot);
            }
            its_slot.note_write(result.as_ref().err());
            match result {
                Ok(Stored::Written) => {
                    me.meters.store_latency.add(began.elapsed());
                    its_slot.stores.moved(its_pending.bytes, began.elapsed());
                    me.write_ended(&its_pending, &its_slot, Ended::Stored(its_pending.bytes));
                }
                Ok(Stored::Already) => me.write_ended(&its_pending, &its_slot, Ended::Already),
                Err(error) => me.write_failed(&its_pending, &its_slot, attempt, &error),
            }
            me.write_answered(&its_pending, &its_slot);
        });
        let (key, header, deadline) = (pending.key, pending.header, self.deadlines.deadline(&slot));
        slot.backend.store(vec![StoreRequest { key, header, buffer, deadline, reply }]);
    }

    /// A write failed: try again later, or give up. A write that is not permitted is not tried again.
    fn write_failed(&self, pending: &Arc<PendingWrite>, slot: &Arc<BackendSlot>, attempt: u32, error: &Error) {
        let closing = self.state.lock().closing;
        let again = attempt < RETRIES && error.status != KVKEEP_ERR_PERMISSION && !closing;
        let (kind, level) = if again { ("write again", LogLevel::Warn) } else { ("write given up", LogLevel::Error) };
        self.log.often(kind, level, || {
            let what = if again { "will be tried again" } else { "is given up" };
            format!("writing {} to backend {} {what}: {error}", pending.key.key, slot.number)
        });
        if !again {
            let why = if closing { Dropped::Closed } else { Dropped::Failed };
            return self.write_ended(pending, slot, Ended::Dropped(why));
        }
        self.retry_later(attempt, Task::Write { pending: pending.clone(), slot: slot.clone(), attempt: attempt + 1 });
    }

    pub(super) fn retry_later(&self, attempt: u32, task: Task) {
        self.run_at(Instant::now() + PAUSE * 4u32.pow(attempt.min(RETRIES)), task);
    }

    /// Has the store thread do a task at a time.
    pub(super) fn run_at(&self, due: Instant, task: Task) {
        self.state.lock().retries.push(Retry { due, task });
        self.wake();
    }

    /// A backend has answered a write, in time or not: a cleaning that waited for the write may begin.
    fn write_answered(&self, pending: &PendingWrite, slot: &BackendSlot) {
        let ready = {
            let mut state = self.state.lock();
            state.order.end(slot.number, pending.key.space);
            state.order.ready()
        };
        self.begin_cleanings(ready);
    }

    /// A write to one backend has ended. The last one ends the object's pending write.
    fn write_ended(&self, pending: &Arc<PendingWrite>, slot: &BackendSlot, how: Ended) {
        self.end_write(&pending.key, Some(slot), how);
        pending.stored.fetch_or(matches!(how, Ended::Stored(_) | Ended::Already), Ordering::AcqRel);
        if pending.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.note_written(pending.name, pending.is_copy, pending.stored.load(Ordering::Acquire));
            self.meters.write_waits.end(pending.since_ms);
            self.work_ended(pending.bytes);
        }
    }

    /// Has L1 know how the write of an object ended.
    fn note_written(&self, name: Ref, is_copy: bool, stored: bool) {
        match (is_copy, stored) {
            (false, _) => self.l1.written(name, stored),
            (true, true) => self.l1.copied(name),
            (true, false) => {}
        }
    }

    /// Counts the end of a write to a backend, or of a write for which there is no backend. Called before L1 may evict the object for it.
    fn end_write(&self, object: &ObjectKey, slot: Option<&BackendSlot>, how: Ended) {
        if self.over.load(Ordering::Acquire) {
            return;
        }
        self.meters.end_write(how);
        self.meters.writes_under_way.sub(1);
        if let Some(fate) = how.fate() {
            self.l1.misses().write_ended(object, fate, slot.map_or(0, |slot| slot.place));
        }
        if let Some(slot) = slot {
            slot.writes.end(how);
        }
    }

    /// A write or deletion of so many bytes is over for every backend.
    pub(super) fn work_ended(&self, bytes: u64) {
        let mut state = self.state.lock();
        let was_full = state.bytes >= self.bytes_max || state.open >= OPEN_MAX;
        state.bytes -= bytes;
        state.open -= 1;
        if was_full {
            state.woken = true;
            self.wake.notify_one();
        }
        if state.open == 0 {
            self.quiet.notify_all();
        }
    }

    /// Writes waiting or on their way, and deletions.
    pub fn pending(&self) -> u64 {
        let mut state = self.state.lock();
        while state.reading {
            self.read.wait(&mut state);
        }
        // The queue is not read while the state is locked.
        self.l1.writes_queued() + state.open as u64
    }

    /// Writes waiting or on their way, one for each backend.
    pub fn writes_pending(&self) -> u64 {
        let mut state = self.state.lock();
        while state.reading {
            self.read.wait(&mut state);
        }
        self.l1.writes_queued() + self.meters.writes_under_way.get()
    }

    /// Whether all uses and losses have reached the other side.
    fn has_notified(&self) -> bool {
        // Uses and losses that the thread has taken have reached the other side when it waits again.
        self.sync.is_idle() && !self.state.lock().busy
    }

    /// Blocks until nothing is waiting or on its way, uses and losses included.
    pub fn drain(&self, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        loop {
            let pending = self.pending();
            if pending == 0 && self.has_notified() {
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
            // Woken once, not for each write that ends: the store thread needs the processor for the writes.
            self.wake();
            let mut state = self.state.lock();
            while state.open > 0 || state.busy || state.woken {
                if self.quiet.wait_until(&mut state, until).timed_out() {
                    break;
                }
            }
        }
    }

    /// Stops the thread; retries that wait are dropped.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        state.retries.clear();
        self.wake.notify_one();
    }

    /// Counts the writes that had not ended when the cache closed. Called once nothing is written any more.
    pub fn drop_rest(&self) {
        if self.over.swap(true, Ordering::AcqRel) {
            return;
        }
        let under_way = self.meters.writes_under_way.get();
        self.meters.writes_under_way.sub(under_way);
        self.meters.dropped_closed.add(under_way + self.l1.drop_writes());
    }
}
