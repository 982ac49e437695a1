//! Prefetch: exported functions.

use std::ffi::c_void;

use super::config;
use super::guard::{on, on_even_poisoned};
use super::handle::kvkeep;
use super::options::{kvkeep_callback, kvkeep_prefetch_options};
use super::pointers::{disjoint, input, output, output_slice};
use super::text::partial;
use super::versioned::{fill_struct, input_struct_or_default};
use crate::abi::{Completion, JobResult};
use crate::call_errors::Subject;
use crate::error::{KVKEEP_OK, Status};
use crate::key::Key;

/// ---- Prefetch ----
///
/// A job looks its keys up in every tier, then loads into L1 what L1 lacks. Nothing here waits for I/O, except
/// `kvkeep_wait_job`. A job is named by a number that is never reused. It lives until `kvkeep_release_job`, the end of
/// its session, or, once it is done, until its `deadline_ms` have passed again, whichever is first; then every query says
/// NOT_FOUND. The shares it took belong to the session and outlive it. Every accepted job completes exactly once.
///
/// Submits a job for `key_count` keys (copied) and sets `*job`. L1 hits, and backends whose index needs no I/O, are
/// answered inside the call; if nothing is left to load, the job is done when it returns. `options` may be NULL.
/// `callback` may be NULL: the job then reports by `notify` of the options. A callback may run before this returns,
/// on the library's thread; `*job` is set by then.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID, NO_MEMORY (the system refuses it), LIMIT (`jobs_max` jobs not released, or as
/// many completions not taken yet); then no completion comes.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_submit_prefetch(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    options: *const kvkeep_prefetch_options,
    job: *mut u64,
    callback: kvkeep_callback,
    userdata: *mut c_void,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let options = input_struct_or_default(options, "options")?;
        let job = output(job, "job")?;
        let request = config::prefetch(&options, callback, userdata)?;
        cache.submit_prefetch(session, keys, request, job)?;
        Ok(KVKEEP_OK)
    })
}

/// Has a job that was submitted with `pause_after_lookup` load what it found, or will find. Any other job stays as it is: OK. Waits for
/// nothing. Any thread, also the job's own callback; of several at once one resumes the job.
/// Errors: NOT_FOUND (never given, or released), INVALID (a transfer).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_resume_job(cache: *mut kvkeep, job: u64) -> Status {
    on(cache, Subject::Job(job), |cache| cache.resume_job(job).map(|()| KVKEEP_OK))
}

/// Sets `*chunks` to how many chunks will be hit, as soon as every tier has answered the lookup and before any byte is loaded. L1 and a
/// directory that no other process has open ("fs://", but for `shared=true`) answer within the submission; a directory that others have open,
/// for keys that its index lacks, after it was asked; a server or a plug-in after it has answered.
/// PENDING until known: `*chunks` then is how many will be hit at least; in a daemon's client that number is of the submission, and does
/// not grow. `notify_lookup` of the options reports the answer in place of asking. The loads may still fall short of it: the result of the job is final. May be
/// called again, from any thread.
/// Errors: NOT_FOUND (never given, or released), INVALID (a transfer).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_lookup_hits(cache: *mut kvkeep, job: u64, chunks: *mut u32) -> Status {
    on(cache, Subject::Job(job), |cache| {
        let chunks = output(chunks, "chunks")?;
        cache.query_lookup_hits(job, chunks)
    })
}

/// Fills in `result`, prepared by KVKEEP_INIT, with the result of a job that is done; PENDING until then. OK however the job
/// ended: its own status is in the result. May be called again, from any thread.
/// Errors: NOT_FOUND (never given, or released).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_job(cache: *mut kvkeep, job: u64, result: *mut JobResult) -> Status {
    on(cache, Subject::Job(job), |cache| fill_struct(result, "result", |result| cache.query_job(job, result)))
}

/// Every prefix length in chunks at which all groups of the job could continue, as soon as every tier has answered the lookup: for
/// hosts whose ranks or groups ask by jobs of their own, and go on at the greatest length that all have. Fills in `lengths` with
/// the first `length_capacity` of them, the longest first, and sets `*length_count` to how many there are; PARTIAL where they do not
/// fit. `lengths` may be NULL when `length_capacity` is 0. The job loads what its longest length needs, `kvkeep_query_lookup_hits`;
/// for a shorter one, submit its chunks alone. Once the job is done, lengths that need an object which could not be loaded are not
/// among them; of a job that ended early there are none. PENDING until known. Does not consume; any thread.
/// Errors: NOT_FOUND (never given, or released), INVALID (a transfer; KVKEEP_PREFETCH_EACH).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_prefix_lengths(
    cache: *mut kvkeep,
    job: u64,
    lengths: *mut u32,
    length_capacity: usize,
    length_count: *mut usize,
) -> Status {
    on(cache, Subject::Job(job), |cache| {
        let wanted: &mut [u32] =
            if length_capacity == 0 { &mut [] } else { output_slice(lengths, length_capacity, "lengths")? };
        let count = output(length_count, "length_count")?;
        disjoint(&[wanted.as_ptr_range().into(), std::slice::from_ref(&*count).as_ptr_range().into()])?;
        let mut all = Vec::new();
        let status = cache.query_prefix_lengths(job, &mut all)?;
        if status != KVKEEP_OK {
            return Ok(status);
        }
        *count = all.len();
        wanted.iter_mut().zip(&all).for_each(|(place, length)| *place = *length);
        if all.len() > wanted.len() {
            return partial(&format!("the job has {} lengths: give room for as many", all.len()));
        }
        Ok(KVKEEP_OK)
    })
}

/// Fills in `bitmap` with the keys of a done job that the session holds shares of: bit i % 8 of byte i / 8 is key i. `bitmap` has
/// `bitmap_bytes` bytes, at least (key_count + 7) / 8 of them; the function zeroes those beyond. PENDING until the job is done.
/// Errors: NOT_FOUND, INVALID (too small; a transfer).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_bitmap(
    cache: *mut kvkeep,
    job: u64,
    bitmap: *mut u8,
    bitmap_bytes: usize,
) -> Status {
    on(cache, Subject::Job(job), |cache| {
        let bitmap = output_slice(bitmap, bitmap_bytes, "bitmap")?;
        cache.query_bitmap(job, bitmap)
    })
}

/// Blocks until the job is done, at most `timeout_ms`; 0 only asks. OK however the job ended: its result is then there to query.
/// Any number of threads may wait, whatever other way the job reports by. After TIMEOUT the job goes on: a transfer still touches
/// its pages, until it was cancelled and waited for again.
/// Errors: TIMEOUT, NOT_FOUND (never given, or released, also while waiting).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_wait_job(cache: *mut kvkeep, job: u64, timeout_ms: u32) -> Status {
    on_even_poisoned(cache, Subject::Job(job), |cache| cache.wait(job, timeout_ms).map(|()| KVKEEP_OK))
}

/// Stops the work that has not begun, returns the job's shares, and completes it as CANCELLED; waits for nothing. An object
/// under a transfer stays in use until its bytes have landed; then nobody holds it: it can be evicted, or, if it was to be
/// temporary, is freed. A job that is done already stays as it is, and its shares stay the session's: OK.
/// Errors: NOT_FOUND.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_cancel_job(cache: *mut kvkeep, job: u64) -> Status {
    on_even_poisoned(cache, Subject::Job(job), |cache| cache.cancel(job).map(|()| KVKEEP_OK))
}

/// Releases a job; one that is not done is cancelled first. Its shares stay the session's. A transfer that is not done touches its
/// pages until its completion, which after this only a callback or the event descriptor reports: wait before. Errors: NOT_FOUND.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_release_job(cache: *mut kvkeep, job: u64) -> Status {
    on_even_poisoned(cache, Subject::Job(job), |cache| cache.release_job(job).map(|()| KVKEEP_OK))
}

/// Sets `*fd` to a descriptor that is readable while `kvkeep_take_completions` has something to give. Owned by the
/// library, valid until close: poll it, do not read or close it. Any thread.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_event_fd(cache: *mut kvkeep, fd: *mut i32) -> Status {
    on_even_poisoned(cache, Subject::Cache, |cache| {
        *output(fd, "fd")? = cache.event_fd();
        Ok(KVKEEP_OK)
    })
}

/// Takes up to `completion_capacity` (1 to KVKEEP_KEYS_MAX) completions of jobs submitted with KVKEEP_NOTIFY_EVENT_FD, oldest first
/// (with `notify_lookup` two of a job, told apart by their kind), and sets `*completion_count`, to 0 where there is none. Each is given exactly once. Never blocks. Any thread.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_take_completions(
    cache: *mut kvkeep,
    completions: *mut Completion,
    completion_capacity: usize,
    completion_count: *mut usize,
) -> Status {
    on_even_poisoned(cache, Subject::Cache, |cache| {
        let completions = output_slice(completions, completion_capacity, "completions")?;
        let completion_count = output(completion_count, "completion_count")?;
        disjoint(&[completions.as_ptr_range().into(), std::slice::from_ref(&*completion_count).as_ptr_range().into()])?;
        *completion_count = cache.take_completions(completions);
        Ok(KVKEEP_OK)
    })
}
