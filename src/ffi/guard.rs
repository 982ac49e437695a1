//! The guard around every exported body: an error becomes a status and a message, a panic becomes INTERNAL.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{handle, text};
use crate::call_errors::Subject;
use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_PARTIAL, Result, Status};
use crate::open_cache::OpenCache;

/// Runs an exported body: errors become a status and this thread's message, a panic becomes INTERNAL.
#[inline]
pub(super) fn guard(body: impl FnOnce() -> Result<Status>) -> Status {
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

const POISONED: &str =
    "a bug in kvkeep was caught earlier and this cache refuses further work: close it and open it again";

/// Runs a body on the cache behind a handle, kept open meanwhile, and keeps the message of a failure for `subject`. A panic poisons
/// that cache.
#[inline]
pub(super) fn on(
    handle: *mut handle::kvkeep,
    subject: Subject,
    body: impl FnOnce(&OpenCache) -> Result<Status>,
) -> Status {
    on_even_poisoned(handle, subject, |cache| {
        if cache.is_poisoned() {
            return Err(Error::new(KVKEEP_ERR_INTERNAL, POISONED));
        }
        body(cache)
    })
}

/// As [`on`], for what begins no work: whoever is refused the end of a copy would free the pages under it.
#[inline]
pub(super) fn on_even_poisoned(
    handle: *mut handle::kvkeep,
    subject: Subject,
    body: impl FnOnce(&OpenCache) -> Result<Status>,
) -> Status {
    guard(|| {
        let user = handle::enter(handle)?;
        let cache = user.cache();
        let poison = Poison(cache, subject);
        let result = body(cache).inspect_err(|error| cache.note_refusal(error));
        std::mem::forget(poison);
        match &result {
            Err(error) => cache.call_errors().note(subject, &error.message),
            Ok(KVKEEP_PARTIAL) => cache.call_errors().note(subject, &text::last_error_text()),
            Ok(_) => {}
        }
        result
    })
}

/// As [`on_even_poisoned`], for a call that asks about errors: its own is no other call's.
pub(super) fn asking_errors(handle: *mut handle::kvkeep, body: impl FnOnce(&OpenCache) -> Result<Status>) -> Status {
    guard(|| body(handle::enter(handle)?.cache()))
}

struct Poison<'a>(&'a OpenCache, Subject);

impl Drop for Poison<'_> {
    fn drop(&mut self) {
        self.0.poison();
        self.0.call_errors().note(self.1, POISONED);
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::kvkeep_close_pool;
    use super::super::handle;
    use super::super::prefetch::{kvkeep_cancel_job, kvkeep_get_event_fd, kvkeep_release_job, kvkeep_wait_job};
    use super::super::session::kvkeep_end_session;
    use crate::config::{NodeConfig, SpaceSpec};
    use crate::error::{KVKEEP_ERR_INTERNAL, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK};
    use crate::key::Key;
    use crate::node::Node;
    use crate::open_cache::OpenCache;
    use crate::transfer::cpu_copy::Promise;
    use crate::transfer::layout::Segment;
    use crate::transfer::submit::AskedTransfer;
    use crate::transfer::{PoolSpec, TransferRequest};

    #[test]
    fn what_is_under_way_can_be_ended_after_a_bug() {
        let cache = handle::open(OpenCache::new(Node::open(NodeConfig::new(1 << 20)).unwrap())).unwrap();
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
