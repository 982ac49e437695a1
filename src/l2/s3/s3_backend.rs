//! The backend: takes requests on callers' threads, and hands them to tasks on its own.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::crypto::ring;
use tokio::runtime::{Builder, Handle, Runtime};

use super::bucket_client::BucketClient;
use super::bucket_errors::closed;
use super::bucket_tasks::{BucketTasks, Hidden, UnansweredLoad, UnansweredReply};
use super::request_gate::RequestGate;
use super::s3_options::S3Options;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::object_header::HEADER_BYTES;
use crate::l2::url::Url;
use crate::l2::{Backend, Found, Health, LoadRequest, LookupRequest, Observer, Reply, StoreRequest, Usage};
use crate::log::{Log, LogLevel};
use crate::threads;

/// How long close waits for requests before it gives them up, and for their tasks after.
const PATIENCE: Duration = Duration::from_secs(1);

/// The backend of `s3:`, `gs:` and `az:`.
pub struct S3Backend {
    tasks: Arc<BucketTasks>,
    gate: Arc<RequestGate>,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

impl S3Backend {
    /// Opens a prefix of a bucket: fails if the service does not answer as it should.
    pub fn open_url(url: &Url, log: &Log) -> Result<Arc<S3Backend>> {
        let options = S3Options::parse(url)?;
        // Fails where the process has chosen another, which does as well.
        let _ = ring::default_provider().install_default();
        let runtime = Builder::new_multi_thread()
            .worker_threads(options.threads)
            // They look hosts up.
            .max_blocking_threads(4)
            .thread_name("kvkeep-s3")
            .on_thread_start(threads::follow_policy)
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| Error::io("starting the threads of a bucket's backend", &error))?;
        match S3Backend::reach(&runtime, &options, log) {
            Ok(tasks) => {
                let (gate, handle) = (Arc::default(), runtime.handle().clone());
                let backend = Arc::new(S3Backend { tasks, gate, handle, runtime: Mutex::new(Some(runtime)) });
                if options.list || !options.shared {
                    backend.learn_all(!options.shared);
                }
                Ok(backend)
            }
            Err(error) => {
                // The caller's thread may be one of another runtime, on which none may be waited for.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Makes the client, and asks the service whether it is one.
    fn reach(runtime: &Runtime, options: &S3Options, log: &Log) -> Result<Arc<BucketTasks>> {
        let bucket = {
            let _inside = runtime.enter();
            BucketClient::new(options)?
        };
        let tasks = Arc::new(BucketTasks::new(bucket, options, log.clone()));
        let (sender, answer) = mpsc::channel();
        let (probing, patience) = (tasks.clone(), options.open);
        runtime.spawn(async move {
            let nobody = probing.names.nobody();
            let probe = tokio::time::timeout(patience, probing.bucket.probe(&nobody)).await;
            let _ = sender.send(probe.unwrap_or_else(|_| {
                let message = format!(
                    "no answer in {patience:?}: opening {}; correct endpoint=, start the service, or raise open_ms=. Without access \
                     keys in the environment, the wait was for an instance that gives them",
                    probing.bucket.place
                );
                Err(Error::new(KVKEEP_ERR_TIMEOUT, message))
            }));
        });
        answer.recv().unwrap_or_else(|_| Err(closed()))?;
        Ok(tasks)
    }

    fn learn_all(&self, alone: bool) {
        let tasks = self.tasks.clone();
        self.handle.spawn(async move {
            if let Err(error) = tasks.learn_all(alone).await {
                tasks.log.write(LogLevel::Error, || format!("objects are asked for one by one, not listed: {error}"));
            }
        });
    }
}

impl Backend for S3Backend {
    fn name(&self) -> &'static str {
        self.tasks.bucket.service.scheme()
    }

    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        let (mut known, now) = (self.tasks.known.lock(), Instant::now());
        for (key, found) in keys.iter().zip(found) {
            *found = known.look_up(key, now);
        }
    }

    fn has_index(&self) -> bool {
        false
    }

    fn lookup(&self, lookup: LookupRequest) {
        let LookupRequest { keys, in_order, deadline, reply } = lookup;
        let entered = match self.gate.enter(keys.len()) {
            Ok(entered) => entered,
            Err(error) => return reply.send(Err(error)),
        };
        let (tasks, reply) = (self.tasks.clone(), UnansweredReply::new(reply));
        self.handle.spawn(async move {
            let found = tasks.look_up(&keys, in_order, deadline).await;
            reply.answer(found);
            drop(entered);
        });
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        self.tasks.known.lock().unpin(keys.len() as u64);
    }

    fn load(&self, loads: Vec<LoadRequest>) {
        for load in loads {
            let entered = self.gate.enter(1);
            let load = UnansweredLoad::new(load);
            match entered {
                Ok(entered) => {
                    let tasks = self.tasks.clone();
                    self.handle.spawn(async move {
                        tasks.load(load).await;
                        drop(entered);
                    });
                }
                Err(error) => load.answer(Err(error)),
            }
        }
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        for store in stores {
            match self.gate.enter(1) {
                Ok(entered) => {
                    let tasks = self.tasks.clone();
                    self.handle.spawn(async move {
                        tasks.store(store).await;
                        drop(entered);
                    });
                }
                Err(error) => store.answer(Err(error)),
            }
        }
    }

    /// The server has no recency of its own.
    fn touch(&self, _keys: &[ObjectKey]) {}

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        let entered = match self.gate.enter(1) {
            Ok(entered) => entered,
            Err(error) => return reply.send(Err(error)),
        };
        let (tasks, reply, hidden) = (self.tasks.clone(), UnansweredReply::new(reply), Hidden::new(&self.tasks, keys));
        self.handle.spawn(async move {
            let outcome = tasks.delete(&hidden).await.map(|()| hidden.known);
            drop(hidden);
            reply.answer(outcome);
            drop(entered);
        });
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        let entered = match self.gate.enter(1) {
            Ok(entered) => entered,
            Err(error) => return reply.send(Err(error)),
        };
        let (tasks, reply) = (self.tasks.clone(), UnansweredReply::new(reply));
        self.handle.spawn(async move {
            let swept = tasks.sweep(space).await;
            reply.answer(swept);
            drop(entered);
        });
    }

    fn quarantine(&self, key: ObjectKey) {
        let Ok(entered) = self.gate.enter(1) else { return };
        let (tasks, hidden) = (self.tasks.clone(), Hidden::new(&self.tasks, vec![key]));
        self.handle.spawn(async move {
            tasks.put_away(&hidden).await;
            drop((hidden, entered));
        });
    }

    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        self.tasks.known.lock().list(space)
    }

    fn set_observer(&self, observer: Observer) {
        self.tasks.known.lock().observe(observer);
    }

    fn usage(&self) -> Usage {
        self.tasks.known.lock().usage(HEADER_BYTES as u64)
    }

    fn health(&self) -> Health {
        if self.gate.is_closed() {
            return Health::Bad(closed().message);
        }
        match self.tasks.health.trouble() {
            Some(trouble) => Health::Bad(trouble),
            None if self.tasks.bucket.has_dropped_condition() => Health::Noted(
                "the service of the bucket knows no conditional put: a later store replaces the object".to_owned(),
            ),
            None => Health::Good,
        }
    }

    fn close(&self) {
        self.gate.close();
        let Some(runtime) = self.runtime.lock().take() else { return };
        // The last handle may be dropped in an answer, on a thread of the runtime, which cannot wait for itself.
        if Handle::try_current().is_ok() {
            return runtime.shutdown_background();
        }
        if !self.gate.wait_empty(PATIENCE) {
            self.tasks.stop.send_replace(true);
            self.gate.wait_empty(PATIENCE);
        }
        // Answers what is left: tasks that are dropped say so.
        runtime.shutdown_timeout(PATIENCE);
    }
}

impl Drop for S3Backend {
    fn drop(&mut self) {
        self.close();
    }
}
