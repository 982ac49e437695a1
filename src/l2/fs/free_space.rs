//! The free space of the file system, which others use too: measured now and then, and learned from stores that it refuses.
//!
//! Below `min_free=`, or when the file system is full, new objects take the place of the oldest of this backend.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::fstatvfs;

use super::fs_options::MinFree;
use super::index::Index;
use super::root::Root;
use crate::log::LogLevel;

/// The file system is measured again after this time, the second one while it has too little space: a store must not evict for
/// bytes that others have freed,
const MEASURE_EVERY: Duration = Duration::from_millis(100);
const MEASURE_EVERY_SHORT: Duration = Duration::from_millis(1);
/// or when so many bytes were reserved since.
const MEASURE_BYTES: u64 = 64 << 20;
/// How long a refusal bounds the directory, unless the file system has more space since; and how long it must have had space before
/// the log has it.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How long no more is evicted for what the file system lacks where an eviction did not help, at first,
const PATIENCE: Duration = Duration::from_secs(10);
/// and at most: it may be that it frees bytes late, or for others.
const PATIENCE_MAX: Duration = Duration::from_secs(320);

/// An eviction of what the file system lacked.
struct Relief {
    /// Spare bytes and bytes of the directory when it began.
    spare: i64,
    held: u64,
    began: Instant,
    /// How long to wait before another one, if this one did not help.
    patience: Duration,
}

/// The file system refused a store.
struct DiskFull {
    at: Instant,
    /// Bytes that were free then, by its own count.
    free: u64,
}

#[derive(Default)]
struct FreeSpaceState {
    measured: Option<Instant>,
    free: u64,
    min_free: u64,
    relief: Option<Relief>,
    /// A store met the file system's bound last at this time.
    pressed: Option<Instant>,
    refused: Option<DiskFull>,
    /// Evicting did not help a store then.
    futile: Option<Instant>,
}

/// The free space as last measured, and what follows from it.
pub struct FreeSpace {
    min_free: MinFree,
    state: Mutex<FreeSpaceState>,
    /// The file system has too little space.
    short: AtomicBool,
    /// Bytes reserved since it was measured.
    reserved: AtomicU64,
    /// Bytes reserved by stores whose files are not allocated yet.
    unallocated: AtomicU64,
    /// Bytes of all objects above which stores are refused as by a full file system.
    #[cfg(test)]
    pub full_above: AtomicU64,
    /// They are refused when they are synced.
    #[cfg(test)]
    pub full_at_sync: AtomicBool,
    /// A test does not wait until refusals are forgotten.
    #[cfg(test)]
    pub forgets: AtomicBool,
}

impl FreeSpace {
    pub fn new(min_free: MinFree) -> FreeSpace {
        FreeSpace {
            min_free,
            state: Mutex::default(),
            short: AtomicBool::new(false),
            reserved: AtomicU64::new(0),
            unallocated: AtomicU64::new(0),
            #[cfg(test)]
            full_above: AtomicU64::new(u64::MAX),
            #[cfg(test)]
            full_at_sync: AtomicBool::new(false),
            #[cfg(test)]
            forgets: AtomicBool::new(false),
        }
    }

    /// A store of `bytes` was admitted.
    pub fn reserve(&self, bytes: u64) {
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        self.unallocated.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A store's file is allocated, or the store ended.
    pub fn allocated(&self, bytes: u64) {
        self.unallocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn remembered(&self) -> Duration {
        #[cfg(test)]
        if self.forgets.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        REMEMBERED
    }

    /// Whether the file system has less space than the capacity.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// A sentence for the operator while the file system is full.
    pub fn note(&self) -> Option<String> {
        self.is_short().then(|| {
            let state = self.state.lock();
            format!(
                "the file system is full ({} free, {} kept free): new objects take the place of the oldest",
                size(state.free),
                size(state.min_free)
            )
        })
    }

    /// Measures the free space, unless that was done a moment ago. Waits for the file system under no lock.
    pub fn measure(&self, root: &Root) {
        let mut state = self.state.lock();
        let every = if self.is_short() { MEASURE_EVERY_SHORT } else { MEASURE_EVERY };
        let fresh = state.measured.is_some_and(|measured| measured.elapsed() < every);
        if fresh && self.reserved.load(Ordering::Relaxed) < MEASURE_BYTES.min(state.free / 4) {
            return;
        }
        let now = Instant::now();
        state.measured = Some(now);
        self.reserved.store(0, Ordering::Relaxed);
        // A file system that hangs must not keep others waiting, such as a caller that asks for the backend's health.
        drop(state);
        let Ok(vfs) = fstatvfs(&root.dirfd) else { return };
        let mut state = self.state.lock();
        let unit = vfs.f_frsize.max(1);
        state.free = vfs.f_bavail.saturating_mul(unit);
        state.min_free = self.min_free.bytes(vfs.f_blocks.saturating_mul(unit));
        let taken = state.min_free.saturating_add(self.unallocated.load(Ordering::Relaxed));
        let free = i64::try_from(state.free).unwrap_or(i64::MAX);
        // A file system that does not give its size is not measured.
        let spare = if vfs.f_blocks == 0 { i64::MAX } else { free.saturating_sub_unsigned(taken) };
        let margin = root.index(|index| index.margin());
        // A quota or a lack of files may refuse a store though bytes are free: then more free bytes prove nothing.
        let is_over = |refused: &DiskFull| {
            let has_room = refused.free < MEASURE_BYTES && state.free > refused.free.saturating_add(2 * margin);
            has_room || refused.at.elapsed() >= self.remembered()
        };
        if state.refused.as_ref().is_some_and(is_over) {
            state.refused = None;
            root.index(Index::forget_refusals);
        }
        let pressed = root.index(|index| {
            let patient = state.is_patient(spare, index.held(), index.is_shrinking(), now);
            index.measured(spare, patient);
            index.take_pressed()
        });
        if pressed || spare < 0 {
            return self.now_short(root, state, None);
        }
        if state.pressed.is_some_and(|pressed| now - pressed >= self.remembered())
            && spare.unsigned_abs() > root.index(|index| 2 * index.margin())
        {
            state.pressed = None;
            self.short.store(false, Ordering::Relaxed);
            let free = size(state.free);
            // The log's reader may ask for the backend's health.
            drop(state);
            root.log.write(LogLevel::Info, || {
                format!("fs: the file system of {} has room again ({free} free)", root.dir.display())
            });
        }
    }

    /// A store met the file system's bound, by the error `cause` or by what is to stay free.
    fn now_short(&self, root: &Root, mut state: MutexGuard<'_, FreeSpaceState>, cause: Option<&io::Error>) {
        state.pressed = Some(Instant::now());
        let (free, min_free) = (size(state.free), size(state.min_free));
        drop(state);
        if !self.short.swap(true, Ordering::Relaxed) {
            let cause = cause.map_or(String::new(), |error| format!("{error}; "));
            root.log.write(LogLevel::Warn, || {
                format!(
                    "fs: the file system of {} is full ({cause}{free} free, {min_free} kept free by min_free=): \
                     new objects take the place of the oldest of this cache until it has room again",
                    root.dir.display()
                )
            });
        }
    }

    /// A store met the file system's bound when it was admitted.
    pub fn pressed(&self, root: &Root) {
        self.now_short(root, self.state.lock(), None);
    }

    /// The file system refused a store with `error`. False where an eviction would not help: it did not at the last attempt of a store
    /// some seconds ago.
    pub fn refused(&self, root: &Root, error: &io::Error, last_attempt: bool) -> bool {
        let now = Instant::now();
        let free = fstatvfs(&root.dirfd).map_or(u64::MAX, |vfs| vfs.f_bavail.saturating_mul(vfs.f_frsize.max(1)));
        let mut state = self.state.lock();
        state.refused = Some(DiskFull { at: now, free });
        if last_attempt {
            state.futile = Some(now);
        }
        let futile = state.futile.is_some_and(|futile| now - futile < PATIENCE);
        self.now_short(root, state, Some(error));
        !futile
    }

    /// Fails as a full file system does when `held` bytes are more than a test allows, at the allocation or at the sync.
    #[cfg(test)]
    pub fn pretend(&self, held: u64, syncing: bool) -> io::Result<()> {
        let full =
            syncing == self.full_at_sync.load(Ordering::Relaxed) && held > self.full_above.load(Ordering::Relaxed);
        if full { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }
}

/// A number of bytes as text, in KiB, MiB or GiB.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// Whether the file system has no more bytes, or no more files, for its caller.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

impl FreeSpaceState {
    /// Whether to wait before more is evicted than stores need, since it did not help the last time.
    fn is_patient(&mut self, spare: i64, held: u64, shrinking: bool, now: Instant) -> bool {
        if spare >= 0 {
            self.relief = None;
            return false;
        }
        let mut patience = PATIENCE;
        if let Some(relief) = &self.relief {
            if shrinking {
                return false;
            }
            let (evicted, gained) = (relief.held.saturating_sub(held), spare.saturating_sub(relief.spare));
            if u64::try_from(gained).unwrap_or(0) < evicted / 2 {
                if now - relief.began < relief.patience {
                    return true;
                }
                patience = (relief.patience * 2).min(PATIENCE_MAX);
            }
        }
        self.relief = Some(Relief { spare, held, began: now, patience });
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_system_lacks_is_not_evicted_again_and_again_where_that_does_not_help() {
        let (mut state, begun) = (FreeSpaceState::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        let gib = 1 << 30;
        assert!(!state.is_patient(-4 * gib, 100 << 30, false, begun));
        assert!(!state.is_patient(-3 * gib, 99 << 30, true, begun), "it is going on");
        // The eviction of four GiB freed none.
        assert!(state.is_patient(-4 * gib, 96 << 30, false, after(1)));
        assert!(!state.is_patient(-4 * gib, 96 << 30, false, after(11)));
        assert!(state.is_patient(-4 * gib, 92 << 30, false, after(22)), "the second time it waits longer");
        assert!(!state.is_patient(-4 * gib, 92 << 30, false, after(32)));
        // It helped, and then others took more.
        assert!(!state.is_patient(-gib, 88 << 30, false, after(33)));
        assert!(!state.is_patient(gib, 88 << 30, false, after(34)));
        assert!(!state.is_patient(-gib, 88 << 30, false, after(35)));
    }
}
