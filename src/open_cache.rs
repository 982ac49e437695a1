//! One open cache as its handle has it: the cache itself, and the transfers of this process.
//!
//! It dereferences to [`Cache`] for calls that a cache does alone; calls that concern transfers too stand here.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::abi::{JobResult, View};
use crate::cache::Cache;
use crate::call_errors::CallErrors;
use crate::config::SpaceSpec;
use crate::daemon::service::Service;
use crate::error::{Error, KVKEEP_ERR_EXISTS, Result, Status};
use crate::key::Key;
use crate::store_wait;
use crate::transfer::Transfers;
use crate::transfer::transfers::is_transfer;

/// A cache and its transfers.
pub struct OpenCache {
    cache: Arc<dyn Cache>,
    transfers: Arc<Transfers>,
    /// The last explanation of a refusal of L1, and when it was made: it costs a look at every session.
    refusal: Mutex<Option<(Instant, String)>>,
    call_errors: CallErrors,
    serving: Mutex<Serving>,
}

/// Opens a cache to other processes.
type StartService = Box<dyn FnOnce() -> Result<Service> + Send>;

/// Whether other processes reach a cache.
#[derive(Default)]
enum Serving {
    /// They never do.
    #[default]
    Never,
    /// Not yet.
    Later(StartService),
    /// They do.
    Now(Service),
}

/// An explanation of a refusal is true enough for so long.
const REFUSAL_KEPT: Duration = Duration::from_secs(1);

impl Deref for OpenCache {
    type Target = dyn Cache;

    fn deref(&self) -> &(dyn Cache + 'static) {
        &*self.cache
    }
}

impl OpenCache {
    /// A cache with no transfers yet.
    pub fn new(cache: Arc<dyn Cache>) -> OpenCache {
        let transfers = Transfers::new(cache.clone());
        OpenCache {
            cache,
            transfers,
            refusal: Mutex::default(),
            call_errors: CallErrors::new(),
            serving: Mutex::default(),
        }
    }

    /// Sets how it is opened to other processes, once it is asked to be.
    pub fn served_by(self, start: impl FnOnce() -> Result<Service> + Send + 'static) -> OpenCache {
        *self.serving.lock() = Serving::Later(Box::new(start));
        self
    }

    /// Lets other processes connect.
    pub fn serve_clients(&self) -> Result<()> {
        let mut serving = self.serving.lock();
        let (now, result) = match std::mem::take(&mut *serving) {
            Serving::Later(start) => match start() {
                Ok(service) => (Serving::Now(service), Ok(())),
                Err(error) => (Serving::Never, Err(error)),
            },
            Serving::Now(service) => {
                let error = Error::new(KVKEEP_ERR_EXISTS, "clients are served already: call it once");
                (Serving::Now(service), Err(error))
            }
            Serving::Never => {
                let error = Error::invalid("the cache has no socket for clients: open it with `listen`");
                (Serving::Never, Err(error))
            }
        };
        *serving = now;
        result
    }

    /// The transfers of this process.
    pub fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    /// The calls that failed of late.
    pub fn call_errors(&self) -> &CallErrors {
        &self.call_errors
    }

    /// Why a session was refused memory, for people.
    pub fn why_refused(&self, session: u64, of_space: bool) -> String {
        let now = Instant::now();
        let mut last = self.refusal.lock();
        if let Some((at, text)) = &*last
            && !of_space
            && now.duration_since(*at) < REFUSAL_KEPT
        {
            return text.clone();
        }
        let text = self.cache.explain_refusal(session, of_space).unwrap_or_else(|error| error.message);
        if !of_space {
            *last = Some((now, text.clone()));
        }
        text
    }

    /// Opens a space, which transfers then know.
    pub fn open_space(&self, spec: SpaceSpec) -> Result<u64> {
        let number = self.cache.open_space(spec.clone())?;
        self.transfers.note_space(number, &spec);
        Ok(number)
    }

    /// Closes a space that neither a session nor a pool of this process uses.
    pub fn close_space(&self, space: u64) -> Result<()> {
        self.transfers.check_without_pools(space)?;
        self.cache.close_space(space)?;
        self.transfers.forget_space(space);
        Ok(())
    }

    /// Stages keys. If the cache has a time for it, waits for writes under way before unwritten objects are evicted.
    pub fn reserve_write(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        let wait = self.cache.store_wait();
        if temporary || wait.is_zero() {
            return self.cache.reserve_write(session, keys, sizes, temporary, views);
        }
        store_wait::reserve(&*self.cache, wait, session, keys, sizes, views)
    }

    /// Ends a session, touches nothing, and drops the copies under way for it.
    pub fn abort_session(&self, session: u64) -> Result<()> {
        self.cache.abort_session(session)?;
        self.transfers.abort_session(session);
        Ok(())
    }

    /// The early answer of a prefetch.
    pub fn query_lookup_hits(&self, job: u64, chunks: &mut u32) -> Result<Status> {
        if is_transfer(job) { Err(self.transfers.no_lookup(job)) } else { self.cache.query_lookup_hits(job, chunks) }
    }

    /// The answer of a job.
    pub fn query_job(&self, job: u64, result: &mut JobResult) -> Result<Status> {
        if is_transfer(job) { self.transfers.query(job, result) } else { self.cache.query_job(job, result) }
    }

    /// Which keys of a prefetch are held.
    pub fn query_bitmap(&self, job: u64, bitmap: &mut [u8]) -> Result<Status> {
        if is_transfer(job) { Err(self.transfers.no_lookup(job)) } else { self.cache.query_bitmap(job, bitmap) }
    }

    /// Every restorable length of a prefetch, the longest first.
    pub fn query_prefix_lengths(&self, job: u64, lengths: &mut Vec<u32>) -> Result<Status> {
        if is_transfer(job) {
            Err(self.transfers.no_lookup(job))
        } else {
            self.cache.query_prefix_lengths(job, lengths)
        }
    }

    /// Blocks until a job is done.
    pub fn wait(&self, job: u64, timeout_ms: u32) -> Result<()> {
        if is_transfer(job) { self.transfers.wait(job, timeout_ms) } else { self.cache.wait(job, timeout_ms) }
    }

    /// Has a prefetch that pauses after its lookup load what it found.
    pub fn resume_job(&self, job: u64) -> Result<()> {
        if is_transfer(job) { Err(self.transfers.no_lookup(job)) } else { self.cache.resume_job(job) }
    }

    /// Cancels a prefetch or a transfer.
    pub fn cancel(&self, job: u64) -> Result<()> {
        if is_transfer(job) { self.transfers.cancel(job) } else { self.cache.cancel(job) }
    }

    /// Forgets a prefetch or a transfer.
    pub fn release_job(&self, job: u64) -> Result<()> {
        if is_transfer(job) { self.transfers.release(job) } else { self.cache.release_job(job) }
    }

    /// Ends every wait, because the cache closes.
    pub fn wake_waiters(&self) {
        self.transfers.begin_closing();
        self.cache.wake_waiters();
    }

    /// Closes. Called once, when no other call is in flight.
    pub fn close(&self) {
        let serving = std::mem::take(&mut *self.serving.lock());
        if let Serving::Now(service) = serving {
            service.stop();
        }
        self.transfers.close();
        self.cache.close();
    }
}
