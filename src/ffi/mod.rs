//! The C ABI: one file per noun, in the order of the header. An exported function checks its pointers, calls the cache
//! and turns the result into a status; nothing else happens here.
//!
//! The one promise C makes, that a pointer that is not NULL points to as much as its count says, is taken at its word
//! in [`input`], [`output`] and their kin; they are private to this module because only an `unsafe extern "C"`
//! function may pass that promise on.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)]

pub mod cache;
mod config;
pub mod device;
mod gate;
mod handle;
pub mod object;
pub mod observe;
pub mod options;
pub mod prefetch;
pub mod session;
mod text;
pub mod version;
mod versioned;
mod visitor;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi::{KVKEEP_EXTRA_COUNT_MAX, KVKEEP_KEYS_MAX};
use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_OK, KVKEEP_PARTIAL, Result, Status};
use crate::key::Key;
use crate::open_cache::OpenCache;
use versioned::{fill_struct, input_struct, input_struct_or_default};

/// Runs an exported body: errors become a status and this thread's message, a panic becomes INTERNAL.
#[inline]
fn guard(body: impl FnOnce() -> Result<Status>) -> Status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            text::set_last_error(&error.message);
            error.status
        }
        Err(panic) => {
            let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            text::set_last_error(&format!(
                "a bug in kvkeep was caught ({}): close the cache and open it again",
                what.unwrap_or("no message")
            ));
            KVKEEP_ERR_INTERNAL
        }
    }
}

/// Runs a body on the cache behind a handle, kept open meanwhile. A panic poisons that cache.
#[inline]
fn on(handle: *mut handle::kvkeep, body: impl FnOnce(&OpenCache) -> Result<Status>) -> Status {
    on_even_poisoned(handle, |cache| {
        if cache.is_poisoned() {
            return Err(Error::new(
                KVKEEP_ERR_INTERNAL,
                "a bug in kvkeep was caught earlier and this cache refuses further work: close it and open it again",
            ));
        }
        body(cache)
    })
}

/// As [`on`], for what begins no work: whoever is refused the end of a copy would free the pages under it.
#[inline]
fn on_even_poisoned(handle: *mut handle::kvkeep, body: impl FnOnce(&OpenCache) -> Result<Status>) -> Status {
    guard(|| {
        let user = handle::enter(handle)?;
        let cache = user.cache();
        let poison = Poison(cache);
        let result = body(cache).inspect_err(|error| cache.note_refusal(error));
        std::mem::forget(poison);
        result
    })
}

struct Poison<'a>(&'a OpenCache);

impl Drop for Poison<'_> {
    fn drop(&mut self) {
        self.0.poison();
    }
}

#[cold]
fn null(name: &str) -> Error {
    Error::invalid(format!("{name} is NULL: pass a valid pointer"))
}

#[cold]
fn misaligned<T>(name: &str) -> Error {
    Error::invalid(format!(
        "{name} is not aligned to {} bytes: pass a pointer to the type in the header",
        align_of::<T>()
    ))
}

#[cold]
fn bad_count(count: usize, name: &str) -> Error {
    Error::invalid(if count == 0 {
        format!("the count of {name} is 0: pass at least one")
    } else {
        format!("the count of {name} is {count}, more than KVKEEP_KEYS_MAX ({KVKEEP_KEYS_MAX}): split the batch")
    })
}

#[inline]
fn checked_count(count: usize, name: &str) -> Result<()> {
    if count == 0 || count > KVKEEP_KEYS_MAX { Err(bad_count(count, name)) } else { Ok(()) }
}

/// A caller's array to read.
#[inline]
fn input<'a, T>(first: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    checked_count(count, name)?;
    if first.is_null() {
        return Err(null(name));
    }
    if !first.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL, aligned, and of `count` elements by the caller's promise; `count` cannot overflow.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// A caller's place to write one value to.
fn output<'a, T>(place: *mut T, name: &str) -> Result<&'a mut T> {
    if place.is_null() {
        return Err(null(name));
    }
    if !place.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL, aligned, and writable by the caller's promise; T is plain data.
    Ok(unsafe { &mut *place })
}

/// A caller's place to write one value to, if it wants that value. Made before the work, so that a refusal changes nothing.
fn optional_output<'a, T>(place: *mut T, name: &str) -> Result<Option<&'a mut T>> {
    if place.is_null() { Ok(None) } else { output(place, name).map(Some) }
}

/// A caller's array to write.
#[inline]
fn output_slice<'a, T>(first: *mut T, count: usize, name: &str) -> Result<&'a mut [T]> {
    checked_count(count, name)?;
    if first.is_null() {
        return Err(null(name));
    }
    if !first.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL, aligned, and of `count` elements by the caller's promise; T is plain data.
    Ok(unsafe { std::slice::from_raw_parts_mut(first, count) })
}

/// A caller's optional array of one status per key.
#[inline]
fn optional_statuses<'a>(first: *mut i32, keys: &[Key]) -> Result<Option<&'a mut [i32]>> {
    if first.is_null() {
        return Ok(None);
    }
    let statuses = output_slice(first, keys.len(), "statuses")?;
    disjoint(&[keys.as_ptr_range().into(), statuses.as_ptr_range().into()])?;
    Ok(Some(statuses))
}

/// Where an array lies.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

impl<T> From<Range<*const T>> for Span {
    fn from(range: Range<*const T>) -> Span {
        Span { start: range.start.addr(), end: range.end.addr() }
    }
}

/// Refuses arrays that overlap.
#[inline]
fn disjoint(spans: &[Span]) -> Result<()> {
    for (i, a) in spans.iter().enumerate() {
        for b in &spans[i + 1..] {
            if a.start < b.end && b.start < a.end {
                return Err(Error::invalid("two of the arrays overlap: pass separate memory for each"));
            }
        }
    }
    Ok(())
}

/// The extra_count that every share operation takes.
fn checked_extra_count(extra_count: i32) -> Result<u32> {
    match u32::try_from(extra_count) {
        Ok(extra) if extra_count <= KVKEEP_EXTRA_COUNT_MAX => Ok(extra),
        _ => Err(Error::invalid(format!(
            "extra_count is {extra_count}, it must be 0 to {KVKEEP_EXTRA_COUNT_MAX}: pass the number of readers less one"
        ))),
    }
}

/// A choice between two, as C passes it.
fn flag(value: u32, name: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::invalid(format!("{name} is {value}, it must be 0 or 1: see the header for what they mean"))),
    }
}

/// What a batch call returns.
#[inline]
fn batch_status(all_ok: Result<bool>) -> Result<Status> {
    all_ok.map(|all_ok| if all_ok { KVKEEP_OK } else { KVKEEP_PARTIAL })
}

#[cfg(test)]
mod tests {
    use super::device::kvkeep_close_pool;
    use super::handle;
    use super::prefetch::{kvkeep_cancel_job, kvkeep_get_event_fd, kvkeep_release_job, kvkeep_wait_job};
    use super::session::kvkeep_end_session;
    use crate::config::{NodeConfig, SpaceSpec};
    use crate::error::{KVKEEP_ERR_INTERNAL, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK};
    use crate::key::Key;
    use crate::node::Node;
    use crate::transfer::cpu_copy::Promise;
    use crate::transfer::layout::Segment;
    use crate::transfer::submit::AskedTransfer;
    use crate::transfer::{PoolSpec, TransferRequest};

    #[test]
    fn what_is_under_way_can_be_ended_after_a_bug() {
        let cache = handle::open(Node::open(NodeConfig::new(1 << 20)).unwrap()).unwrap();
        let pages = vec![0u64; 512];
        let (session, pool, job) = {
            let user = handle::enter(cache).unwrap();
            let (model, layout, tenant) = ("m".to_owned(), String::new(), String::new());
            let spec = SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes: 0 };
            let space = user.cache().open_space(spec).unwrap();
            let address = pages.as_ptr().expose_provenance() as u64;
            let segments =
                vec![Segment { address, block_bytes: 4096, block_stride: 4096, group: 0, layer: 0, part: 0 }];
            let promise = Promise::of_a_test();
            let pool = PoolSpec { device: -1, rank: 0, blocks: 1, blocks_per_chunk: 1, segments, promise };
            let pool = user.cache().transfers().open_pool(space, pool).unwrap();
            let session = user.cache().begin_session(space, "r", None).unwrap();
            let keys = [Key { hash: [1; 32], rank: 0, group: 0 }];
            let (asked, mut job) = (AskedTransfer { pool, session, keys: &keys, blocks: &[0] }, 0);
            user.cache().transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
            user.cache().poison();
            (session, pool, job)
        };
        // SAFETY: an open handle, and a place that lives for the call.
        unsafe {
            assert_eq!(kvkeep_end_session(cache, session), KVKEEP_ERR_INTERNAL);
            assert_eq!(kvkeep_wait_job(cache, job, u32::MAX), KVKEEP_OK);
            assert_eq!(kvkeep_get_event_fd(cache, &mut 0), KVKEEP_OK);
            assert_eq!(kvkeep_cancel_job(cache, job), KVKEEP_OK);
            assert_eq!(kvkeep_release_job(cache, job), KVKEEP_OK);
            assert_eq!(kvkeep_close_pool(cache, pool), KVKEEP_OK);
            assert_eq!(kvkeep_close_pool(cache, pool), KVKEEP_ERR_NOT_FOUND);
        }
        handle::close(cache).unwrap();
    }
}
