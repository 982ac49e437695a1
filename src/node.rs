//! The node: builds, connects and stops the parts of one cache.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::arena::{Arena, MapOptions};
use crate::config::{Log, LogLevel, NodeConfig, PrefetchRequest, SpaceSpec, StoreMode};
use crate::control::chain::{Chains, Ranks};
use crate::control::complete::Completions;
use crate::control::load::Loader;
use crate::control::prefetch::Prefetcher;
use crate::control::tiers::Tiers;
use crate::control::watch::Watch;
use crate::control::writeback::Writer;
use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result, Status};
use crate::key::{Key, ObjectKey};
use crate::l1::{L1, L1Config, Outcome, WAKE_ROOM, WAKE_WRITES};
use crate::l2;
use crate::stats::Meters;
use crate::types::{Completion, PrefetchResult, View};

/// Bytes of L1 made present at a time.
const PREFAULT_BYTES: u64 = 8 << 20;
/// Most bytes being written to L2 at once, unless L1 is small.
const WRITING_BYTES_MAX: u64 = 64 << 20;

/// One cache.
pub struct Node {
    pub(crate) l1: Arc<L1>,
    pub(crate) tiers: Arc<Tiers>,
    pub(crate) prefetcher: Arc<Prefetcher>,
    pub(crate) writer: Arc<Writer>,
    pub(crate) meters: Arc<Meters>,
    watch: Arc<Watch>,
    completions: Arc<Completions>,
    chains: Arc<Chains>,
    log: Log,
    session_timeout: Duration,
    backend_timeout: Duration,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: Arc<AtomicBool>,
    /// L1 is above its high watermark.
    room: Arc<AtomicBool>,
    poisoned: AtomicBool,
}

fn machine_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn map_arena(config: &NodeConfig) -> Result<Arc<Arena>> {
    let bytes = config.l1_bytes;
    if bytes == 0 {
        return Err(Error::invalid("l1_bytes is 0: set the size of L1 in bytes"));
    }
    if bytes < 4096 {
        return Err(Error::invalid(format!("l1_bytes is {bytes}: L1 needs at least 4096 bytes")));
    }
    if let Some(machine) = machine_bytes()
        && bytes > machine
    {
        return Err(Error::new(
            KVKEEP_ERR_NO_MEMORY,
            format!("l1_bytes is {bytes}, but the machine has {machine} bytes of memory: make L1 smaller"),
        ));
    }
    let options = MapOptions { huge_pages: config.huge_pages, numa_node: config.numa_node };
    Arena::map(bytes as usize, options).map(Arc::new).map_err(|error| {
        let remedy = match (config.huge_pages, config.numa_node) {
            (true, _) => "reserve more huge pages (vm.nr_hugepages) or drop the flag",
            (_, Some(_)) => "use a NUMA node that the machine has",
            _ => "make L1 smaller",
        };
        let status = match error.kind() {
            std::io::ErrorKind::OutOfMemory => KVKEEP_ERR_NO_MEMORY,
            std::io::ErrorKind::InvalidInput => crate::error::KVKEEP_ERR_INVALID,
            _ => KVKEEP_ERR_IO,
        };
        Error::new(status, format!("L1 of {bytes} bytes cannot be mapped: {error}; {remedy}"))
    })
}

impl Node {
    /// Opens a cache in this process.
    pub fn open(config: NodeConfig) -> Result<Arc<Node>> {
        let arena = map_arena(&config)?;
        let l1_bytes = arena.bytes() as u64;
        let l1 = L1::new(
            arena.clone(),
            L1Config {
                policy: config.eviction_policy.clone(),
                high_percent: config.watermark_high_percent,
                low_percent: config.watermark_low_percent,
                store_mode: config.store_mode,
                writes_max: config.writes_pending_max,
                sessions_max: config.sessions_max,
            },
        )?;
        let loading_max = if config.loading_bytes_max == 0 { l1_bytes / 4 } else { config.loading_bytes_max };
        let writing_max = WRITING_BYTES_MAX.min(l1_bytes / 4).max(1);
        let (tiers, meters) = (Arc::new(Tiers::default()), Arc::new(Meters::default()));
        let watch = Arc::new(Watch::new(config.backend_timeout));
        let completions = Completions::start()?;
        let (log, checksum) = (config.log.clone(), config.checksum);
        let loader = Loader::new(l1.clone(), watch.clone(), meters.clone(), log.clone(), checksum, loading_max.max(1));
        let prefetcher = Prefetcher::new(
            l1.clone(),
            tiers.clone(),
            loader,
            watch.clone(),
            completions.clone(),
            meters.clone(),
            config.jobs_max,
        );
        let writer =
            Writer::new(l1.clone(), tiers.clone(), watch.clone(), meters.clone(), log.clone(), checksum, writing_max);
        let node = Arc::new(Node {
            l1,
            tiers,
            prefetcher,
            writer,
            meters,
            watch,
            completions,
            chains: Arc::default(),
            log,
            session_timeout: config.session_timeout,
            backend_timeout: config.backend_timeout,
            threads: Mutex::default(),
            stop: Arc::default(),
            room: Arc::default(),
            poisoned: AtomicBool::new(false),
        });
        let opened = node.start(&config, &arena);
        if let Err(error) = opened {
            node.close();
            return Err(error);
        }
        node.log.say(LogLevel::Info, || format!("opened with an L1 of {l1_bytes} bytes"));
        Ok(node)
    }

    fn start(&self, config: &NodeConfig, arena: &Arc<Arena>) -> Result<()> {
        let (room, prefetcher, writer) =
            (self.room.clone(), Arc::downgrade(&self.prefetcher), Arc::downgrade(&self.writer));
        let writes = config.store_mode != StoreMode::Never;
        self.l1.set_waker(move |wakes| {
            if wakes & WAKE_WRITES != 0
                && let Some(writer) = writer.upgrade()
            {
                writer.wake();
            }
            if wakes & WAKE_ROOM != 0
                && !room.swap(true, Ordering::AcqRel)
                && let Some(prefetcher) = prefetcher.upgrade()
            {
                prefetcher.wake();
            }
        });
        for url in &config.backend_urls {
            self.tiers.add(l2::url::open(url)?)?;
        }
        self.l1.set_has_l2(writes && !config.backend_urls.is_empty());

        let parts = Housekeeping {
            l1: self.l1.clone(),
            prefetcher: self.prefetcher.clone(),
            watch: self.watch.clone(),
            chains: self.chains.clone(),
            room: self.room.clone(),
            stop: self.stop.clone(),
        };
        self.spawn("kvkeep-control", move || parts.run())?;
        let writer = self.writer.clone();
        self.spawn("kvkeep-store", move || writer.run())?;
        if config.prefault {
            let (arena, stop) = (arena.clone(), self.stop.clone());
            self.spawn("kvkeep-prefault", move || prefault(&arena, &stop))?;
        }
        Ok(())
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| Error::io(format!("starting the thread {name}"), &error))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Whether a bug was caught in it.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// A bug was caught: refuse further work.
    pub fn poison(&self) {
        if !self.poisoned.swap(true, Ordering::Relaxed) {
            self.log.say(LogLevel::Error, || "a bug was caught; the cache refuses further work".to_owned());
        }
    }

    /// Whether the caller is a callback.
    pub fn on_callback_thread(&self) -> bool {
        self.completions.on_thread()
    }

    /// Ends every wait, because the cache closes: jobs are cancelled, so that waiters return.
    pub fn wake_waiters(&self) {
        self.prefetcher.close();
    }

    /// Closes. Called once, when no other call is in flight.
    pub fn close(&self) {
        self.prefetcher.close();
        if let Err(error) = self.writer.drain(self.backend_timeout) {
            self.log.say(LogLevel::Warn, || format!("closing: {error}"));
        }
        self.writer.close();
        self.stop.store(true, Ordering::Release);
        self.prefetcher.wake();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        for error in self.tiers.close(self.backend_timeout) {
            self.log.say(LogLevel::Error, || format!("closing: {error}"));
        }
        self.completions.close();
        let (_, gauges) = self.l1.gauges();
        if gauges.locked_bytes > 0 {
            self.log.say(LogLevel::Warn, || {
                format!("closed with {} bytes in use: they stay mapped until the process exits", gauges.locked_bytes)
            });
            std::mem::forget(self.l1.arena().clone());
        }
        self.log.say(LogLevel::Info, || "closed".to_owned());
    }

    /// Opens a space.
    pub fn open_space(&self, spec: SpaceSpec) -> Result<u64> {
        self.l1.open_space(&spec)
    }

    /// Adds a backend.
    pub fn add_backend(&self, url: &str) -> Result<u64> {
        let number = self.tiers.add(l2::url::open(url)?)?;
        self.l1.set_has_l2(true);
        self.log.say(LogLevel::Info, || format!("added backend {number}: {url}"));
        Ok(number)
    }

    /// Removes a backend.
    pub fn remove_backend(&self, number: u64) -> Result<()> {
        let removed = self.tiers.remove(number, self.backend_timeout);
        self.l1.set_has_l2(!self.tiers.list().is_empty());
        removed
    }

    /// Blocks until everything committed is in L2 or given up.
    pub fn drain_writes(&self, timeout_ms: u32) -> Result<()> {
        self.writer.drain(Duration::from_millis(u64::from(timeout_ms)))
    }

    /// Begins a session.
    pub fn begin_session(&self, space: u64, request_id: &str, timeout: Option<Duration>) -> Result<u64> {
        let session = self.l1.begin_session(space, request_id, timeout.unwrap_or(self.session_timeout))?;
        Ok(session)
    }

    /// Ends a session and touches what it used.
    pub fn end_session(&self, session: u64) -> Result<()> {
        self.leave(session, true)
    }

    /// Ends a session and touches nothing.
    pub fn abort_session(&self, session: u64) -> Result<()> {
        self.leave(session, false)
    }

    fn leave(&self, session: u64, touch: bool) -> Result<()> {
        self.l1.session_lives(session)?;
        self.prefetcher.release_session(session);
        let ended = self.l1.end_session(session, touch);
        self.forget(session);
        ended
    }

    /// Lets go of what belongs to a session that has ended, and of what a call that met its end left behind.
    fn forget(&self, session: u64) {
        self.prefetcher.release_session(session);
        self.chains.forget(session);
    }

    /// Appends tokens.
    pub fn append_tokens(&self, session: u64, tokens: &[u32]) -> Result<u64> {
        let space = self.l1.session_space(session)?;
        let chunks = self.chains.append(session, &space, tokens)?;
        if let Err(error) = self.l1.session_lives(session) {
            // It ended meanwhile.
            self.chains.forget(session);
            return Err(error);
        }
        Ok(chunks)
    }

    /// Writes keys of a session's chunks.
    pub fn session_keys(
        &self,
        session: u64,
        first_chunk: u64,
        first_rank: u32,
        rank_count: u32,
        group_count: u32,
        keys: &mut [Key],
    ) -> Result<()> {
        self.l1.session_space(session)?;
        self.chains.keys(session, first_chunk, (first_rank, rank_count, group_count), keys)
    }

    /// Stages keys.
    pub fn reserve_write(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.l1.reserve_write(session, keys, sizes, temporary, views)
    }

    /// Commits keys.
    pub fn finish_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.l1.finish_write(session, keys, statuses)
    }

    /// Gives staged keys back.
    pub fn abort_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.l1.abort_write(session, keys, statuses)
    }

    /// Commits keys and takes shares.
    pub fn finish_write_and_reserve_read(
        &self,
        session: u64,
        keys: &[Key],
        extra: u32,
        views: &mut [View],
    ) -> Result<bool> {
        self.l1.finish_write_and_reserve_read(session, keys, extra + 1, views)
    }

    /// Takes shares.
    pub fn reserve_read(&self, session: u64, keys: &[Key], extra: u32, views: &mut [View]) -> Result<bool> {
        self.l1.reserve_read(session, keys, extra + 1, views)
    }

    /// Returns shares.
    pub fn finish_read(&self, session: u64, keys: &[Key], extra: u32, statuses: Option<&mut [i32]>) -> Result<bool> {
        self.l1.finish_read(session, keys, extra + 1, statuses)
    }

    /// Returns shares of chunks by their tokens.
    pub fn release_tokens(&self, session: u64, tokens: Range<u64>, ranks: Ranks, extra: u32) -> Result<u64> {
        let space = self.l1.session_space(session)?;
        let keys = self.chains.keys_of_tokens(session, &space, tokens, ranks)?;
        self.l1.release(session, &keys, extra + 1)
    }

    /// Views of held keys.
    pub fn unsafe_read(&self, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool> {
        self.l1.unsafe_read(session, keys, views)
    }

    fn objects(&self, space: u64, keys: &[Key]) -> Result<Vec<ObjectKey>> {
        let tag = self.l1.space(space)?.tag;
        Ok(keys.iter().map(|&key| ObjectKey { space: tag, key }).collect())
    }

    /// Marks keys as used.
    pub fn touch(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let tiers = self.tiers.list();
        if !tiers.is_empty() {
            let mut objects = self.objects(space, keys)?;
            objects.reverse();
            tiers.iter().filter(|tier| tier.usable()).for_each(|tier| tier.backend.touch(&objects));
        }
        self.l1.touch(space, keys, statuses)
    }

    /// Keeps keys longer.
    pub fn retain(
        &self,
        space: u64,
        keys: &[Key],
        priority: u32,
        ttl_ms: u32,
        statuses: Option<&mut [i32]>,
    ) -> Result<bool> {
        self.l1.retain(space, keys, priority, ttl_ms, statuses)
    }

    /// Deletes keys everywhere, unless they are in use.
    pub fn delete(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let mut said = self.l1.delete(space, keys)?;
        let free: Vec<usize> = (0..keys.len()).filter(|&i| said[i] != crate::error::KVKEEP_ERR_LOCKED).collect();
        let objects = self.objects(space, keys)?;
        let objects: Vec<ObjectKey> = free.iter().map(|&i| objects[i]).collect();
        if !objects.is_empty() {
            for (&i, known) in free.iter().zip(self.writer.delete(&objects)) {
                if known && said[i] == KVKEEP_ERR_NOT_FOUND {
                    said[i] = KVKEEP_OK;
                }
            }
        }
        let mut outcome = Outcome::new(statuses);
        said.into_iter().enumerate().for_each(|(i, status)| outcome.set(i, status));
        Ok(outcome.all_ok())
    }

    /// Empties L1 of a space's objects, or of all for 0.
    pub fn clear(&self, space: u64, force: bool) -> Result<(u64, bool)> {
        let space = (space != 0).then_some(space);
        if force {
            let index = space.map(|space| self.l1.space(space)).transpose()?.map(|space| space.index);
            self.prefetcher.cancel_space(index);
        }
        self.l1.clear(space, force)
    }

    /// Submits a prefetch.
    pub fn submit_prefetch(&self, session: u64, keys: &[Key], request: PrefetchRequest, job: &mut u64) -> Result<()> {
        self.prefetcher.submit(session, keys, request, job)
    }

    /// The early answer of a job.
    pub fn query_lookup_hits(&self, job: u64, chunks: &mut u32) -> Result<Status> {
        let began = Instant::now();
        let status = self.prefetcher.query_lookup_hits(job, chunks);
        self.meters.call_latency.add(began.elapsed());
        status
    }

    /// The answer of a job.
    pub fn query_prefetch(&self, job: u64, result: &mut PrefetchResult) -> Result<Status> {
        let began = Instant::now();
        let status = self.prefetcher.query(job, result);
        self.meters.call_latency.add(began.elapsed());
        status
    }

    /// Which keys of a job are held.
    pub fn query_bitmap(&self, job: u64, bitmap: &mut [u8]) -> Result<Status> {
        self.prefetcher.query_bitmap(job, bitmap)
    }

    /// Blocks until a job is done.
    pub fn wait(&self, job: u64, timeout_ms: u32) -> Result<()> {
        self.prefetcher.wait(job, Duration::from_millis(u64::from(timeout_ms)))
    }

    /// Cancels a job.
    pub fn cancel(&self, job: u64) -> Result<()> {
        self.prefetcher.cancel(job)
    }

    /// Forgets a job.
    pub fn release_job(&self, job: u64) -> Result<()> {
        self.prefetcher.release(job)
    }

    /// The descriptor that completions raise.
    pub fn event_fd(&self) -> i32 {
        self.completions.fd()
    }

    /// Gives completions.
    pub fn drain_completions(&self, completions: &mut [Completion]) -> usize {
        self.completions.drain(completions)
    }
}

/// What the control thread looks after.
struct Housekeeping {
    l1: Arc<L1>,
    prefetcher: Arc<Prefetcher>,
    watch: Arc<Watch>,
    chains: Arc<Chains>,
    room: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Housekeeping {
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let (_, late) = self.watch.expire(now);
            let due = self.prefetcher.turn();
            let (gone, idle) = self.l1.reclaim_sessions();
            for session in gone {
                self.prefetcher.release_session(session);
                self.chains.forget(session);
            }
            let more = self.room.load(Ordering::Acquire) && {
                let more = self.l1.evict_slice();
                self.room.store(more, Ordering::Release);
                more
            };
            if more {
                continue;
            }
            // A new session or request may be due before this; it is looked for at least this often.
            let often = now + Duration::from_millis(50);
            let next = [late, due, idle.map(|wait| now + wait)].into_iter().flatten().min();
            self.prefetcher.sleep(next.map_or(often, |next| next.min(often)));
        }
    }
}

fn prefault(arena: &Arena, stop: &AtomicBool) {
    let bytes = arena.bytes() as u64;
    let mut at = 0;
    while at < bytes && !stop.load(Ordering::Acquire) {
        let part = PREFAULT_BYTES.min(bytes - at);
        // Where the kernel cannot, the first use of a page pays for it as without prefaulting.
        if arena.populate(at, part).is_err() {
            return;
        }
        at += part;
    }
}
