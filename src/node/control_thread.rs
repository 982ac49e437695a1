//! The control thread: deadlines of backends and jobs, sessions that expire, background eviction, and the log's summaries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::control::deadline::Deadlines;
use crate::control::prefetch::Prefetcher;
use crate::control::shortfall::Shortfall;
use crate::control::tokens::Chains;
use crate::control::writeback::Writeback;
use crate::l1::L1;
use crate::l1::evict::Eviction;
use crate::log::{Log, LogLevel};
use crate::meters::Meters;

/// Background eviction runs for so long …
const BURST: Duration = Duration::from_micros(200);
/// … and pauses for so long: the kernel may have woken its thread on the processor of a caller, which would wait for a time
/// slice to end.
const BURST_PAUSE: Duration = Duration::from_micros(100);
/// Background eviction that finds L1 busy tries again after so long …
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// … and insists after so many times in a row.
const BUSY_MOST: u32 = 16;

/// The parts that the control thread looks after.
pub(super) struct ControlThread {
    pub l1: Arc<L1>,
    pub meters: Arc<Meters>,
    pub shortfall: Arc<Shortfall>,
    pub prefetcher: Arc<Prefetcher>,
    pub deadlines: Arc<Deadlines>,
    pub chains: Arc<Chains>,
    pub log: Log,
    pub above_watermark: Arc<AtomicBool>,
    pub writer: Arc<Writeback>,
    pub stop: Arc<AtomicBool>,
}

impl ControlThread {
    /// The body of the thread.
    pub fn run(&self) {
        let (mut reclaim, mut busy) = (Instant::now(), 0);
        let mut burst = None;
        self.l1.misses().prefault();
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let (_, late) = self.deadlines.expire(now);
            let due = self.prefetcher.run_due();
            self.log.write_repeated();
            self.shortfall.look(now, &self.log, || self.l1.counts(), &self.meters);
            // A new session or request may be due before this; it is looked for at least this often.
            let often = now + Duration::from_millis(50);
            if reclaim <= now {
                let (gone, idle) = self.l1.reclaim_sessions();
                for session in gone {
                    self.prefetcher.release_session(session);
                    self.chains.forget(session);
                }
                for (kind, line) in self.l1.take_notices() {
                    self.log.often(kind, LogLevel::Warn, || line);
                }
                reclaim = idle.map_or(often, |wait| often.min(now + wait));
                if self.l1.has_uses() {
                    self.writer.wake();
                }
            }
            let mut next = [late, due, Some(reclaim)].into_iter().flatten().fold(often, Instant::min);
            // Taken back first: a commit that finds it set meanwhile would not wake this thread.
            if self.above_watermark.swap(false, Ordering::AcqRel) {
                let evicted = self.l1.evict_slice(busy == BUSY_MOST);
                busy = if evicted == Eviction::Busy { busy + 1 } else { 0 };
                if evicted != Eviction::Done {
                    self.above_watermark.store(true, Ordering::Release);
                }
                match evicted {
                    Eviction::More if now.duration_since(*burst.get_or_insert(now)) < BURST => continue,
                    Eviction::More => next = next.min(now + BURST_PAUSE),
                    Eviction::Busy => next = next.min(now + BUSY_PAUSE),
                    Eviction::Done => {}
                }
            }
            burst = None;
            self.prefetcher.sleep(next);
        }
    }
}
