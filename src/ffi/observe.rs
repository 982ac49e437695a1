//! Seen from outside: exported functions.

use std::ffi::c_char;

use super::handle::kvkeep;
use super::{check_struct, input, on, text};
use crate::error::{KVKEEP_OK, Status};
use crate::key::Key;
use crate::types::Stats;

/// ---- Seen from outside ----
///
/// Texts are written as NUL-terminated UTF-8 into the caller's buffer of `capacity` bytes; `*length` is set to the
/// length the whole text has without the NUL. Where it does not fit, what fits is written and the result is PARTIAL:
/// ask again with length + 1 bytes. `buffer` may be NULL when `capacity` is 0.
///
/// Fills in `stats`, prepared by KVKEEP_INIT. Counters are read one after another, not at one instant. Never blocks
/// on I/O.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_stats(cache: *mut kvkeep, stats: *mut Stats) -> Status {
    on(cache, |cache| {
        cache.stats(check_struct(stats, "stats")?)?;
        Ok(KVKEEP_OK)
    })
}

/// Everything counted, as Prometheus text (exposition format 0.0.4).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_metrics(
    cache: *mut kvkeep,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Status {
    on(cache, |cache| text::write(&cache.metrics()?, buffer, capacity, length))
}

/// Why a key is where it is: tier, state, size, who holds how many shares since when, and why it cannot be evicted.
/// JSON.
/// Errors: NOT_FOUND (space). A key that is nowhere is OK: its state is "absent".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_explain_key(
    cache: *mut kvkeep,
    space: u64,
    key: *const Key,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Status {
    on(cache, |cache| {
        let key = input(key, 1, "key")?[0];
        text::write(&cache.explain_key(space, &key)?, buffer, capacity, length)
    })
}

/// What a session holds (for `session` 0: every session that holds something): owner, request id, age, deadline,
/// shares per key, staged keys, jobs. JSON.
/// Errors: NOT_FOUND (session).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_explain_session(
    cache: *mut kvkeep,
    session: u64,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Status {
    on(cache, |cache| text::write(&cache.explain_session(session)?, buffer, capacity, length))
}
