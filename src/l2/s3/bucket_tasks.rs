//! The life of each request to a bucket, from the call to its answer, on the runtime's threads.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use super::bucket_client::{Asked, BucketClient, asked};
use super::bucket_errors::{ServiceHealth, closed, late};
use super::known_objects::KnownObjects;
use super::object_names::ObjectNames;
use super::s3_options::S3Options;
use super::sent_buffer;
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::object_header::Header;
use crate::l2::presence_share::PresenceShare;
use crate::l2::store_header::StoreHeader;
use crate::l2::{Found, LoadRequest, Reply, StoreRequest, Stored};
use crate::log::{Log, LogLevel};

/// Questions of a prefix that are asked before the first answer; each answer allows more.
const FIRST_QUESTIONS: usize = 8;
/// Broken objects that are kept; further ones are deleted.
const QUARANTINE_MAX: u32 = 64;
/// Most of the time to a deadline that is left for the answer.
const MARGIN_MAX: Duration = Duration::from_millis(500);
/// Longest time that a deletion may take, since its caller gives it no deadline.
const DELETION_TIME: Duration = Duration::from_secs(60);

/// What the tasks of one backend share.
pub struct BucketTasks {
    pub bucket: BucketClient,
    pub names: ObjectNames,
    pub known: Mutex<KnownObjects>,
    pub health: ServiceHealth,
    /// A deletion or a store has ended.
    changed: Notify,
    questions: Arc<Semaphore>,
    questions_max: usize,
    loads: Semaphore,
    stores: Semaphore,
    /// Of the stored objects of which nothing was known.
    there: PresenceShare,
    quarantined: AtomicU32,
    pub stop: watch::Sender<bool>,
    pub log: Log,
}

/// A load that is answered once: with CLOSED when it is dropped.
pub struct UnansweredLoad(Option<LoadRequest>);

impl UnansweredLoad {
    pub fn new(load: LoadRequest) -> UnansweredLoad {
        UnansweredLoad(Some(load))
    }

    pub fn answer(mut self, outcome: Result<Header>) {
        if let Some(load) = self.0.take() {
            load.sink.loaded(load.index, load.buffer, outcome);
        }
    }
}

impl Drop for UnansweredLoad {
    fn drop(&mut self) {
        if let Some(load) = self.0.take() {
            load.sink.loaded(load.index, load.buffer, Err(closed()));
        }
    }
}

impl BucketTasks {
    pub fn new(bucket: BucketClient, options: &S3Options, log: Log) -> BucketTasks {
        BucketTasks {
            bucket,
            names: ObjectNames::new(&options.prefix),
            known: Mutex::new(KnownObjects::new(options.index, options.absent)),
            health: ServiceHealth::default(),
            changed: Notify::new(),
            questions: Arc::new(Semaphore::new(options.lookups)),
            questions_max: options.lookups,
            loads: Semaphore::new(options.depth),
            stores: Semaphore::new(options.depth),
            there: PresenceShare::default(),
            quarantined: AtomicU32::new(0),
            stop: watch::Sender::new(false),
            log,
        }
    }

    /// Does `work`, but not beyond the deadline and not after close.
    async fn in_time<T>(&self, deadline: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
        let left = deadline.saturating_duration_since(Instant::now());
        // An answer in time is better than the same one late, which fences the backend.
        let until = tokio::time::Instant::now() + left - (left / 10).min(MARGIN_MAX);
        let mut stop = self.stop.subscribe();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Err(closed()),
            outcome = tokio::time::timeout_at(until, work) => outcome.unwrap_or_else(|_| Err(late())),
        }
    }

    /// Counts the outcome of a request to the service for the backend's health.
    fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Ok(_) => self.health.succeeded(),
            // The service answered.
            Err(error) if [KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_CORRUPT].contains(&error.status) => self.health.succeeded(),
            Err(error) if error.status == KVKEEP_ERR_CLOSED => {}
            Err(error) => self.health.failed(error),
        }
        outcome
    }

    /// Asks the service for one object, and remembers the answer.
    async fn ask(&self, key: ObjectKey) -> Result<Asked> {
        let moment = self.known.lock().moment();
        let asked = self.note(self.bucket.ask(&self.names.object(&key)).await)?;
        let mut known = self.known.lock();
        match asked {
            Asked::Payload(bytes) => known.appeared(key, bytes, moment),
            Asked::Missing => known.missing(key, moment),
            Asked::Foreign => self.log.often("a foreign object in a bucket", LogLevel::Warn, || {
                format!("{} has a foreign object under the name of {}: it is a miss", self.bucket.place, key.key)
            }),
        }
        Ok(asked)
    }

    /// Begins a question. It goes on when nobody waits for its answer any more, since a connection is lost with a question that is
    /// given up.
    fn question(self: &Arc<Self>, key: ObjectKey) -> JoinHandle<Result<Asked>> {
        let me = self.clone();
        tokio::spawn(async move {
            let _place = me.questions.acquire().await.map_err(|_| closed())?;
            me.ask(key).await
        })
    }

    /// Answers a lookup: many questions at once, and for a prefix none far beyond its end.
    pub async fn look_up(
        self: &Arc<Self>,
        keys: &[ObjectKey],
        in_order: bool,
        deadline: Instant,
    ) -> Result<Vec<Found>> {
        let mut found = Vec::with_capacity(keys.len());
        let outcome = self.in_time(deadline, self.look_up_all(keys, in_order, &mut found)).await;
        if let Err(error) = outcome {
            let pins = found.iter().filter(|found| matches!(found, Found::Present(_))).count();
            self.known.lock().unpin(pins as u64);
            return Err(error);
        }
        found.resize(keys.len(), Found::Absent);
        Ok(found)
    }

    async fn look_up_all(self: &Arc<Self>, keys: &[ObjectKey], in_order: bool, found: &mut Vec<Found>) -> Result<()> {
        let mut asked: VecDeque<Option<JoinHandle<Result<Asked>>>> = VecDeque::new();
        let mut ahead = if in_order { FIRST_QUESTIONS.min(self.questions_max) } else { self.questions_max };
        let (mut next, mut failure, mut answers) = (keys.iter(), None, 0);
        for key in keys {
            while asked.len() < ahead
                && let Some(key) = next.next()
            {
                let unknown = self.known.lock().peek(key, Instant::now()) == Found::Unknown;
                asked.push_back(unknown.then(|| self.question(*key)));
            }
            let answer = match asked.pop_front().flatten() {
                Some(question) => question.await.unwrap_or_else(|_| Err(closed())),
                // The memory has the answer.
                None => Ok(Asked::Missing),
            };
            let here = match answer {
                Ok(answer) => {
                    answers += 1;
                    self.known.lock().conclude(key, Instant::now(), answer)
                }
                Err(error) => {
                    self.log.often("lookup in a bucket", LogLevel::Warn, || {
                        format!("a lookup failed and is a miss: {error}")
                    });
                    failure.get_or_insert(error);
                    Found::Absent
                }
            };
            found.push(here);
            if in_order && here == Found::Absent {
                break;
            }
            ahead = (ahead * 2).min(self.questions_max);
        }
        match failure {
            Some(error) if answers == 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// Answers a load.
    pub async fn load(&self, mut load: UnansweredLoad) {
        let Some(LoadRequest { key, buffer, deadline, .. }) = &mut load.0 else { return };
        let work = async {
            let _place = self.loads.acquire().await.map_err(|_| closed())?;
            self.read(*key, buffer.bytes_mut()).await
        };
        let outcome = self.in_time(*deadline, work).await;
        load.answer(outcome);
    }

    async fn read(&self, key: ObjectKey, payload: &mut [u8]) -> Result<Header> {
        let moment = {
            let known = self.known.lock();
            if known.is_deleting(&key) {
                return Err(Error::new(KVKEEP_ERR_NOT_FOUND, format!("{} is being deleted", key.key)));
            }
            known.moment()
        };
        let outcome = self.note(self.bucket.read(&self.names.object(&key), payload).await);
        let mut known = self.known.lock();
        match outcome {
            Ok(header) => {
                known.appeared(key, payload.len() as u64, moment);
                Ok(header)
            }
            // Another process has stored another object under the key: the next lookup asks for it.
            Err(error) if error.status == KVKEEP_ERR_CORRUPT => {
                known.forget(&key);
                Err(Error { status: KVKEEP_ERR_NOT_FOUND, ..error })
            }
            Err(error) => {
                if error.status == KVKEEP_ERR_NOT_FOUND {
                    known.missing(key, moment);
                }
                Err(error)
            }
        }
    }

    /// Answers a store, once nothing of its payload is being sent any more.
    pub async fn store(&self, request: StoreRequest) {
        let StoreRequest { key, header, buffer, deadline, reply } = request;
        let reply = UnansweredReply::new(reply);
        let (payload, gone) = sent_buffer::lend(buffer);
        let outcome = self.in_time(deadline, self.write(key, &header, payload)).await;
        drop(gone.await);
        reply.answer(outcome);
    }

    async fn write(&self, key: ObjectKey, header: &StoreHeader, payload: Bytes) -> Result<Stored> {
        loop {
            let changed = self.changed.notified();
            if self.known.lock().begin_store(key) {
                break;
            }
            changed.await;
        }
        let bytes = payload.len() as u64;
        let mut storing = Storing { tasks: self, key, written: None };
        let outcome = self.write_once(key, header, payload).await;
        storing.written = outcome.is_ok().then_some(bytes);
        outcome
    }

    async fn write_once(&self, key: ObjectKey, header: &StoreHeader, payload: Bytes) -> Result<Stored> {
        let _place = self.stores.acquire().await.map_err(|_| closed())?;
        let (name, bytes) = (self.names.object(&key), payload.len() as u64);
        let peeked = self.known.lock().peek(&key, Instant::now());
        let there = match peeked {
            Found::Present(bytes) => Asked::Payload(bytes),
            Found::Absent => Asked::Missing,
            Found::Unknown => {
                if self.there.may_send_unasked(bytes) && self.bucket.has_condition() {
                    let header = header.seal(&payload);
                    let created = self.note(self.bucket.create(&name, &header, payload.clone()).await)?;
                    if created == Some(Stored::Written) {
                        self.there.note(false);
                        return Ok(Stored::Written);
                    }
                }
                // Also tells whether the object that is there is the one.
                let asked = self.ask(key).await?;
                self.there.note(asked != Asked::Missing);
                asked
            }
        };
        let replace = match there {
            Asked::Payload(there) if there == bytes => return Ok(Stored::Already),
            Asked::Payload(_) => true,
            Asked::Missing => false,
            Asked::Foreign => {
                let (place, key) = (&self.bucket.place, key.key);
                let message = format!("another program's object has the name of {key} in {place}; use another prefix");
                return Err(Error::new(KVKEEP_ERR_PERMISSION, message));
            }
        };
        let header = header.seal(&payload);
        self.note(self.bucket.write(&name, &header, payload, replace).await)
    }

    /// Deletes objects that are hidden already.
    pub async fn delete(&self, hidden: &Hidden) -> Result<()> {
        let names: Vec<_> = hidden.keys.iter().map(|key| Ok(self.names.object(key))).collect();
        let work = async {
            loop {
                let changed = self.changed.notified();
                if !self.known.lock().is_storing(&hidden.keys) {
                    break;
                }
                changed.await;
            }
            self.bucket.delete(stream::iter(names).boxed()).await
        };
        let outcome = self.in_time(Instant::now() + DELETION_TIME, work).await;
        self.note(outcome).map(drop)
    }

    /// Deletes all objects of a space, or of all, that the service lists.
    pub async fn sweep(&self, space: Option<SpaceTag>) -> Result<u64> {
        let folder = space.map_or_else(|| self.names.root().clone(), |space| self.names.space(space));
        let names = self.names.clone();
        let listed = self.bucket.list(&folder);
        let ours = listed.try_filter_map(move |meta| {
            let name = names.key(&meta.location).map(|_| meta.location);
            async move { Ok(name) }
        });
        let outcome = self.in_time(Instant::now() + DELETION_TIME, self.bucket.delete(ours.boxed())).await;
        self.note(outcome)
    }

    /// Moves a hidden object that is broken out of the way; deletes it where many were moved before.
    pub async fn put_away(&self, hidden: &Hidden) {
        for key in &hidden.keys {
            let name = self.names.object(key);
            let work = async {
                if self.quarantined.fetch_add(1, Ordering::Relaxed) < QUARANTINE_MAX {
                    self.bucket.rename(&name, &self.names.quarantined(key)).await
                } else {
                    self.bucket.remove(&name).await
                }
            };
            if let Err(error) = self.note(self.in_time(Instant::now() + DELETION_TIME, work).await)
                && error.status != KVKEEP_ERR_NOT_FOUND
            {
                self.log.often("quarantine in a bucket", LogLevel::Error, || {
                    format!("a broken object stays where it is, and may be found again: {error}")
                });
            }
        }
    }

    /// Learns of all objects that are there. Afterwards nothing else is, if `alone`.
    pub async fn learn_all(&self, alone: bool) -> Result<()> {
        let moment = self.known.lock().moment();
        let mut listed = self.bucket.list(self.names.root());
        while let Some(meta) = listed.next().await {
            let meta = meta.map_err(|error| self.bucket.failure("listing", &error))?;
            if let Some(key) = self.names.key(&meta.location)
                && let Asked::Payload(bytes) = asked(meta.size)
            {
                self.known.lock().appeared(key, bytes, moment);
            }
        }
        if alone {
            self.known.lock().is_complete(moment);
        }
        Ok(())
    }
}

/// A reply that says CLOSED when it is dropped.
pub struct UnansweredReply<T>(Option<Reply<T>>);

impl<T> UnansweredReply<T> {
    pub fn new(reply: Reply<T>) -> UnansweredReply<T> {
        UnansweredReply(Some(reply))
    }

    pub fn answer(mut self, outcome: Result<T>) {
        if let Some(reply) = self.0.take() {
            reply.send(outcome);
        }
    }
}

impl<T> Drop for UnansweredReply<T> {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply.send(Err(closed()));
        }
    }
}

/// A store under way, which a deletion waits for.
struct Storing<'a> {
    tasks: &'a BucketTasks,
    key: ObjectKey,
    written: Option<u64>,
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.tasks.known.lock().end_store(self.key, self.written);
        self.tasks.changed.notify_waiters();
    }
}

/// Objects that lookups do not find because they are being deleted. A store of one waits.
pub struct Hidden {
    tasks: Arc<BucketTasks>,
    keys: Vec<ObjectKey>,
    /// How many of them were known to be there.
    pub known: u64,
}

impl Hidden {
    pub fn new(tasks: &Arc<BucketTasks>, keys: Vec<ObjectKey>) -> Hidden {
        let known = tasks.known.lock().begin_delete(&keys);
        Hidden { tasks: tasks.clone(), keys, known }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        self.tasks.known.lock().end_delete(&self.keys);
        self.tasks.changed.notify_waiters();
    }
}
