//! The node: builds, connects and stops the parts of one cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::ages::Ages;
use super::control_thread::ControlThread;
use crate::arena::{Arena, MapOptions};
use crate::config::{NodeConfig, StoreMode};
use crate::control::backends::Backends;
use crate::control::completion::Completions;
use crate::control::deadline::Deadlines;
use crate::control::prefetch::loader::Loader;
use crate::control::prefetch::{JobTable, Prefetcher};
use crate::control::shortfall::Shortfall;
use crate::control::tier_sync::TierSync;
use crate::control::tokens::Chains;
use crate::control::writeback::Writeback;
use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_NO_MEMORY, Result};
use crate::l1::{L1, L1Config, WAKE_COMMITS, WAKE_EVICTION, WAKE_WRITES};
use crate::l2;
use crate::l2::encrypted::KeyCallback;
use crate::log::{Log, LogLevel};
use crate::memory_bounds::MemoryBounds;
use crate::meters::Meters;
use crate::threads;

/// Most bytes being written to L2 at once, unless L1 is small.
const WRITING_BYTES_MAX: u64 = 64 << 20;
/// Most bytes being loaded from L2 at once, unless another bound is given or L1 is small.
const LOADING_BYTES_MAX: u64 = 1 << 30;
/// Most bytes being loaded at once, if no bound is given. More than a disk reads in a fraction of a request's time would only
/// wait in the backend, which is taken for hung if they wait too long.
fn loading_default(l1_bytes: u64) -> u64 {
    LOADING_BYTES_MAX.min(l1_bytes / 4)
}

/// One cache in this process: its parts and its threads.
pub struct Node {
    pub(crate) l1: Arc<L1>,
    pub(crate) backends: Arc<Backends>,
    pub(crate) prefetcher: Arc<Prefetcher>,
    pub(crate) writer: Arc<Writeback>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) shortfall: Arc<Shortfall>,
    pub(super) ages: Ages,
    deadlines: Arc<Deadlines>,
    pub(crate) completions: Arc<Completions>,
    pub(crate) chains: Arc<Chains>,
    pub(crate) log: Log,
    pub(crate) key_callback: KeyCallback,
    pub(crate) session_timeout: Duration,
    pub(crate) backend_timeout: Duration,
    pub(crate) writes_pending_max: u64,
    pub(crate) store_wait: Duration,
    /// Objects are written to backends.
    writes: bool,
    /// Held while L1 is notified whether there are backends.
    pub(crate) below: Mutex<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: Arc<AtomicBool>,
    /// L1 is above its high watermark.
    above_watermark: Arc<AtomicBool>,
    poisoned: AtomicBool,
}

fn map_arena(config: &NodeConfig, bounds: &MemoryBounds) -> Result<Arc<Arena>> {
    let bytes = config.l1_bytes;
    if bytes == 0 {
        return Err(Error::invalid("l1_bytes is 0: set the size of L1 in bytes"));
    }
    if bytes < 4096 {
        return Err(Error::invalid(format!("l1_bytes is {bytes}: L1 needs at least 4096 bytes")));
    }
    bounds.check("l1_bytes", "L1", bytes)?;
    let options = MapOptions { huge_pages: config.huge_pages, numa_node: config.numa_node, name: None };
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
        let bounds = MemoryBounds::of_process(config.huge_pages);
        let arena = map_arena(&config, &bounds)?;
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
                boot: config.boot,
            },
        )?;
        let loading_max =
            if config.loading_bytes_max == 0 { loading_default(l1_bytes) } else { config.loading_bytes_max };
        let writing_max = WRITING_BYTES_MAX.min(l1_bytes / 4).max(1);
        let backends = Arc::new(Backends::new(l1.events().clone(), l1.misses().clone(), config.log.clone()));
        let meters = Arc::<Meters>::default();
        let deadlines = Arc::new(Deadlines::new(config.backend_timeout));
        let completions = Completions::start()?;
        let (log, checksum) = (config.log.clone(), config.checksum);
        let jobs = JobTable::new(l1.clone(), meters.clone(), completions.clone(), config.jobs_max as usize);
        let loading_max = loading_max.max(1);
        let loader =
            Loader::new(jobs, l1.clone(), deadlines.clone(), meters.clone(), log.clone(), checksum, loading_max);
        let sync = TierSync::new(l1.clone(), backends.clone(), loader.clone(), deadlines.clone(), meters.clone());
        let (its_backends, its_meters) = (backends.clone(), meters.clone());
        let prefetcher = Prefetcher::new(l1.clone(), its_backends, loader, deadlines.clone(), its_meters, config.boot);
        let writer = Writeback::new(sync, deadlines.clone(), meters.clone(), log.clone(), checksum, writing_max);
        let node = Arc::new(Node {
            l1,
            backends,
            prefetcher,
            writer,
            meters,
            shortfall: Arc::default(),
            ages: Ages::default(),
            deadlines,
            completions,
            chains: Arc::default(),
            log,
            key_callback: config.key_callback.clone(),
            session_timeout: config.session_timeout,
            backend_timeout: config.backend_timeout,
            writes_pending_max: config.writes_pending_max.into(),
            store_wait: config.store_wait,
            writes: config.store_mode != StoreMode::Never,
            below: Mutex::default(),
            threads: Mutex::default(),
            stop: Arc::default(),
            above_watermark: Arc::default(),
            poisoned: AtomicBool::new(false),
        });
        let opened = node.start(&config, &arena);
        if let Err(error) = opened {
            node.close();
            return Err(error);
        }
        node.log.write(LogLevel::Info, || format!("opened with an L1 of {l1_bytes} bytes; {bounds}"));
        if let Some(high) = bounds.high.filter(|high| l1_bytes > high.bytes) {
            node.log.write(LogLevel::Warn, || {
                format!(
                    "L1 has {l1_bytes} bytes, but the kernel slows this process down above {} bytes ({}): make L1 smaller, or \
                     raise memory.high",
                    high.bytes,
                    high.file.display()
                )
            });
        }
        Ok(node)
    }

    fn start(self: &Arc<Self>, config: &NodeConfig, arena: &Arc<Arena>) -> Result<()> {
        let (above_watermark, prefetcher, writer) =
            (self.above_watermark.clone(), Arc::downgrade(&self.prefetcher), Arc::downgrade(&self.writer));
        let waker = Arc::downgrade(&self.writer);
        self.backends.losses().set_waker(move || {
            if let Some(writer) = waker.upgrade() {
                writer.wake();
            }
        });
        let waker = Arc::downgrade(&self.writer);
        self.backends.copies().set_waker(move || {
            if let Some(writer) = waker.upgrade() {
                writer.wake();
            }
        });
        self.l1.set_waker(move |wakes| {
            if wakes & WAKE_WRITES != 0
                && let Some(writer) = writer.upgrade()
            {
                writer.wake();
            }
            if wakes & WAKE_COMMITS != 0
                && let Some(prefetcher) = prefetcher.upgrade()
            {
                prefetcher.committed();
            }
            if wakes & WAKE_EVICTION != 0
                && !above_watermark.swap(true, Ordering::AcqRel)
                && let Some(prefetcher) = prefetcher.upgrade()
            {
                prefetcher.wake();
            }
        });
        for url in &config.backend_urls {
            self.backends.add(l2::registry::open(url, &self.log, arena, &self.key_callback)?)?;
        }
        self.note_backends();

        let parts = ControlThread {
            l1: self.l1.clone(),
            meters: self.meters.clone(),
            shortfall: self.shortfall.clone(),
            prefetcher: self.prefetcher.clone(),
            deadlines: self.deadlines.clone(),
            chains: self.chains.clone(),
            log: self.log.clone(),
            above_watermark: self.above_watermark.clone(),
            writer: self.writer.clone(),
            stop: self.stop.clone(),
        };
        self.spawn("kvkeep-control", move || parts.run())?;
        let writer = self.writer.clone();
        self.spawn("kvkeep-store", move || writer.run())?;
        if config.prefault {
            let (arena, stop) = (arena.clone(), self.stop.clone());
            let log = self.log.clone();
            self.spawn("kvkeep-prefault", move || {
                arena.prefault(&stop);
                if arena.joining_refused() {
                    log.write(LogLevel::Info, || {
                        "the kernel did not join all pages of L1 to huge ones: transfers are slower; it can from Linux 6.1 on, \
                         while memory is not fragmented"
                            .to_owned()
                    });
                }
            })?;
        }
        Ok(())
    }

    /// Has L1 know what is written to the backends. Called whenever their list has changed.
    pub(super) fn note_backends(&self) {
        let counts_uses = self.writes && !self.backends.after_uses().is_empty();
        let promotes = self.writes && self.backends.list().iter().any(|slot| slot.options.promote);
        self.backends.copies().set_backends(promotes, counts_uses);
        self.l1.set_notes_all_uses(counts_uses);
        self.l1.set_has_l2(self.writes && self.backends.any_gets_all());
    }

    /// Starts a thread. If it meets a bug the cache is poisoned, since its work is not done any more, and jobs that wait for it
    /// end.
    fn spawn(self: &Arc<Self>, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let me = Arc::downgrade(self);
        let guarded = move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err()
                && let Some(me) = me.upgrade()
            {
                me.poison();
                me.prefetcher.close();
            }
        };
        let thread =
            threads::spawn(name, guarded).map_err(|error| Error::io(format!("starting the thread {name}"), &error))?;
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
            self.log.write(LogLevel::Error, || "a bug was caught; the cache refuses further work".to_owned());
        }
    }

    /// Closes. Called once, when no other call is in flight.
    pub fn close(&self) {
        self.prefetcher.close();
        if let Err(error) = self.writer.drain(self.backend_timeout) {
            self.log.write(LogLevel::Warn, || format!("closing: {error}"));
        }
        self.writer.close();
        self.stop.store(true, Ordering::Release);
        self.prefetcher.wake();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        for error in self.backends.close(self.backend_timeout) {
            self.log.write(LogLevel::Error, || format!("closing: {error}"));
        }
        self.completions.close();
        let (_, gauges) = self.l1.gauges();
        self.writer.drop_rest();
        let counts = self.l1.counts();
        self.shortfall.look_last(&self.log, &counts, &self.meters);
        if gauges.locked_bytes > 0 {
            self.log.write(LogLevel::Warn, || {
                format!("closed with {} bytes in use: they stay mapped until the process exits", gauges.locked_bytes)
            });
            Arena::keep_mapped(self.l1.arena().clone());
        }
        self.log.write_repeated_now();
        self.log.write(LogLevel::Info, || "closed".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_being_loaded_than_a_backend_reads_in_time() {
        assert_eq!(loading_default(1 << 20), 1 << 18);
        assert_eq!(loading_default(1 << 40), 1 << 30);
    }
}
