//! A cache as a C program has one: every call here goes through an exported function.

use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut, without_provenance_mut};
use std::time::{Duration, Instant};

use kvkeep::abi::{JobResult, View};
use kvkeep::error::{KVKEEP_OK, KVKEEP_PARTIAL, KVKEEP_PENDING, Status};
use kvkeep::ffi::cache::{kvkeep_close, kvkeep_flush, kvkeep_open, kvkeep_open_space};
use kvkeep::ffi::object::{
    kvkeep_clear, kvkeep_delete, kvkeep_finish_read, kvkeep_finish_write, kvkeep_reserve_read, kvkeep_reserve_write,
};
use kvkeep::ffi::options::{
    KVKEEP_FLAG_NO_CHECKSUM, kvkeep_options, kvkeep_prefetch_mode, kvkeep_prefetch_options, kvkeep_space_options,
};
use kvkeep::ffi::prefetch::{
    kvkeep_query_job, kvkeep_query_lookup_hits, kvkeep_release_job, kvkeep_submit_prefetch, kvkeep_wait_job,
};
use kvkeep::ffi::session::{kvkeep_begin_session, kvkeep_end_session};
use kvkeep::ffi::version::{KVKEEP_ABI_VERSION, kvkeep_last_error};
use kvkeep::key::Key;

use crate::random::Random;

const MODEL: &CStr = c"benchmark";

/// How a cache is opened.
#[derive(Clone, Copy, Default)]
pub struct Setup<'a> {
    pub l1_bytes: u64,
    /// The daemon's URL; its L1 has `l1_bytes`.
    pub connect: Option<&'a str>,
    /// The `fs` backend's URL.
    pub url: Option<&'a str>,
    pub no_checksum: bool,
    /// Evict in the background too, not only inside a call that needs room.
    pub background_eviction: bool,
}

/// An open cache with one space. All benchmarks stop at the first unexpected status.
pub struct Cache {
    token: usize,
    pub space: u64,
}

/// Stops unless a call said OK.
pub fn must(status: Status) {
    assert!(status == KVKEEP_OK, "{status:?}: {}", last_error());
}

fn last_error() -> String {
    // SAFETY: the text is NUL-terminated and valid until this thread's next call.
    unsafe { CStr::from_ptr(kvkeep_last_error()) }.to_string_lossy().into_owned()
}

/// Whether all L1 that this process maps is there.
fn is_populated() -> bool {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    let (mut ours, mut size, mut found) = (false, 0, false);
    for line in smaps.lines() {
        if line.contains('-') && !line.contains(" kB") {
            ours = line.contains("memfd:kvkeep-l1");
            found |= ours;
        } else if line.starts_with("Size:") {
            size = kib(line).unwrap_or(0);
        } else if ours && line.starts_with("Rss:") && kib(line).unwrap_or(0) < size / 64 * 63 {
            return false;
        }
    }
    found
}

/// Waits until all L1 that this process maps is there.
pub fn await_populated() {
    let began = Instant::now();
    while !is_populated() {
        assert!(began.elapsed() < Duration::from_secs(120), "L1 is not populated after two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Cache {
    /// Opens a cache and waits until every page of its L1 is there.
    pub fn open(setup: Setup) -> Cache {
        let url = setup.url.map(|url| CString::new(url).expect("a URL without NUL"));
        let urls: Vec<_> = url.iter().map(|url| url.as_ptr()).collect();
        // SAFETY: plain data for which zero is a valid value, as KVKEEP_INIT makes it.
        let mut options: kvkeep_options = unsafe { std::mem::zeroed() };
        options.struct_size = size_of::<kvkeep_options>() as u32;
        options.abi_version = KVKEEP_ABI_VERSION;
        let connect = setup.connect.map(|url| CString::new(url).expect("a URL without NUL"));
        match &connect {
            Some(url) => options.connect = url.as_ptr(),
            None => options.l1_bytes = setup.l1_bytes,
        }
        options.flags = if setup.no_checksum { KVKEEP_FLAG_NO_CHECKSUM } else { 0 };
        if !setup.background_eviction && connect.is_none() {
            options.watermark_high_percent = 100;
        }
        options.backend_urls = if urls.is_empty() { null() } else { urls.as_ptr() };
        options.backend_count = urls.len();
        // SAFETY: as above.
        let mut space: kvkeep_space_options = unsafe { std::mem::zeroed() };
        space.struct_size = size_of::<kvkeep_space_options>() as u32;
        space.abi_version = KVKEEP_ABI_VERSION;
        space.model = MODEL.as_ptr();

        let mut handle = null_mut();
        let mut cache = Cache { token: 0, space: 0 };
        // SAFETY: the pointers are those of live locals.
        must(unsafe { kvkeep_open(&options, &mut handle) });
        cache.token = handle.addr();
        // SAFETY: as above.
        must(unsafe { kvkeep_open_space(handle, &space, &mut cache.space) });
        await_populated();
        cache
    }

    /// The handle's number, for calls that stand elsewhere.
    pub fn token(&self) -> usize {
        self.token
    }

    pub fn begin(&self) -> u64 {
        let mut session = 0;
        // SAFETY: the pointers are those of live locals, or NULL where that is allowed.
        must(unsafe { kvkeep_begin_session(without_provenance_mut(self.token), self.space, null(), &mut session) });
        session
    }

    pub fn end(&self, session: u64) {
        // SAFETY: no pointers but the handle.
        must(unsafe { kvkeep_end_session(without_provenance_mut(self.token), session) });
    }

    /// Takes shares of keys that are all there.
    #[inline]
    pub fn reserve_read(&self, session: u64, keys: &[Key], extra: i32, views: &mut [View]) {
        assert!(views.len() >= keys.len());
        let (keys, count, views) = (keys.as_ptr(), keys.len(), views.as_mut_ptr());
        // SAFETY: the arrays are live and as long as `count` says.
        must(unsafe { kvkeep_reserve_read(without_provenance_mut(self.token), session, keys, count, extra, views) });
    }

    /// A read of keys of which none is there.
    #[inline]
    pub fn reserve_absent(&self, session: u64, keys: &[Key], views: &mut [View]) {
        assert!(views.len() >= keys.len());
        let (keys, count, views) = (keys.as_ptr(), keys.len(), views.as_mut_ptr());
        // SAFETY: the arrays are live and as long as `count` says.
        let status = unsafe { kvkeep_reserve_read(without_provenance_mut(self.token), session, keys, count, 0, views) };
        assert!(status == KVKEEP_PARTIAL, "{status:?}: {}", last_error());
    }

    #[inline]
    pub fn finish_read(&self, session: u64, keys: &[Key], extra: i32) {
        let (keys, count) = (keys.as_ptr(), keys.len());
        // SAFETY: the array is live and as long as `count` says; no statuses are wanted.
        must(unsafe {
            kvkeep_finish_read(without_provenance_mut(self.token), session, keys, count, extra, null_mut())
        });
    }

    /// Stages keys; each view says whether its key was new. True if all were.
    #[inline]
    pub fn reserve_write(&self, session: u64, keys: &[Key], sizes: &[u64], views: &mut [View]) -> bool {
        assert!(sizes.len() >= keys.len() && views.len() >= keys.len());
        let (keys, count) = (keys.as_ptr(), keys.len());
        let (sizes, views) = (sizes.as_ptr(), views.as_mut_ptr());
        // SAFETY: the arrays are live and as long as `count` says.
        let status =
            unsafe { kvkeep_reserve_write(without_provenance_mut(self.token), session, keys, count, sizes, 0, views) };
        assert!(status == KVKEEP_OK || status == KVKEEP_PARTIAL, "{status:?}: {}", last_error());
        status == KVKEEP_OK
    }

    #[inline]
    pub fn finish_write(&self, session: u64, keys: &[Key]) {
        let (keys, count) = (keys.as_ptr(), keys.len());
        // SAFETY: the array is live and as long as `count` says; no statuses are wanted.
        must(unsafe { kvkeep_finish_write(without_provenance_mut(self.token), session, keys, count, null_mut()) });
    }

    /// Writes new keys of one size, filled with random bytes, and leaves them staged.
    pub fn stage(&self, session: u64, keys: &[Key], size: u64, random: &mut Random) {
        let mut views = views(keys.len());
        assert!(self.reserve_write(session, keys, &vec![size; keys.len()], &mut views), "not all keys could be staged");
        views.iter().for_each(|view| fill(view, random));
    }

    /// Empties L1 of everything. An object whose transfer has just ended may be in use for a moment longer.
    pub fn clear(&self) {
        let began = Instant::now();
        loop {
            // SAFETY: no pointers but the handle.
            let status = unsafe { kvkeep_clear(without_provenance_mut(self.token), self.space, 0, null_mut()) };
            if status != KVKEEP_PARTIAL {
                return must(status);
            }
            assert!(began.elapsed() < Duration::from_secs(10), "L1 still has objects in use");
            std::thread::yield_now();
        }
    }

    /// Deletes keys from every tier and waits until that is done.
    pub fn delete(&self, keys: &[Key]) {
        let (first, count) = (keys.as_ptr(), keys.len());
        // SAFETY: the array is live and as long as `count` says; no statuses are wanted.
        must(unsafe { kvkeep_delete(without_provenance_mut(self.token), self.space, first, count, null_mut()) });
        self.drain();
    }

    /// Waits until everything committed is stored.
    pub fn drain(&self) {
        // SAFETY: no pointers but the handle.
        must(unsafe { kvkeep_flush(without_provenance_mut(self.token), 120_000) });
    }

    #[inline]
    pub fn submit(&self, session: u64, keys: &[Key], mode: kvkeep_prefetch_mode) -> u64 {
        // SAFETY: plain data for which zero is a valid value, as KVKEEP_INIT makes it.
        let mut options: kvkeep_prefetch_options = unsafe { std::mem::zeroed() };
        options.struct_size = size_of::<kvkeep_prefetch_options>() as u32;
        options.abi_version = KVKEEP_ABI_VERSION;
        options.mode = mode as u32;
        let mut job = 0;
        let (keys, count) = (keys.as_ptr(), keys.len());
        // SAFETY: the array is live and as long as `count` says; options and job are live locals.
        must(unsafe {
            let cache = without_provenance_mut(self.token);
            kvkeep_submit_prefetch(cache, session, keys, count, &options, &mut job, None, null_mut())
        });
        job
    }

    /// The early answer, None while it is not known.
    #[inline]
    pub fn lookup_hits(&self, job: u64) -> Option<u32> {
        let mut chunks = 0;
        // SAFETY: `chunks` is a live local.
        known(unsafe { kvkeep_query_lookup_hits(without_provenance_mut(self.token), job, &mut chunks) })
            .then_some(chunks)
    }

    /// The answer, None while it is not known.
    #[inline]
    pub fn result(&self, job: u64) -> Option<JobResult> {
        // SAFETY: plain data for which zero is a valid value, as KVKEEP_INIT makes it.
        let mut result: JobResult = unsafe { std::mem::zeroed() };
        result.struct_size = size_of::<JobResult>() as u32;
        result.abi_version = KVKEEP_ABI_VERSION;
        // SAFETY: `result` is a live local.
        known(unsafe { kvkeep_query_job(without_provenance_mut(self.token), job, &mut result) }).then_some(result)
    }

    pub fn wait(&self, job: u64) {
        // SAFETY: no pointers but the handle.
        must(unsafe { kvkeep_wait_job(without_provenance_mut(self.token), job, 120_000) });
    }

    pub fn release(&self, job: u64) {
        // SAFETY: no pointers but the handle.
        must(unsafe { kvkeep_release_job(without_provenance_mut(self.token), job) });
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: nobody else uses the handle any more. A failure while closing costs the benchmark nothing.
        let _ = unsafe { kvkeep_close(without_provenance_mut(self.token)) };
    }
}

fn known(status: Status) -> bool {
    assert!(status == KVKEEP_OK || status == KVKEEP_PENDING, "{status:?}: {}", last_error());
    status == KVKEEP_OK
}

/// Room for views.
pub fn views(count: usize) -> Vec<View> {
    vec![View { data: null_mut(), size: 0, status: 0, reserved: 0 }; count]
}

/// Writes random bytes to a staged view.
pub fn fill(view: &View, random: &mut Random) {
    // SAFETY: a staged view of a session of this thread is its own to write.
    random.fill(unsafe { std::slice::from_raw_parts_mut(view.data.cast::<u8>(), view.size as usize) });
}
