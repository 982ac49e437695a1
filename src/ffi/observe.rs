//! Seen from outside: exported functions.

use std::ffi::c_char;

use super::handle::kvkeep;
use super::{disjoint, fill_struct, input, on, output, output_slice, text};
use crate::error::{KVKEEP_OK, Status};
use crate::events::Event;
use crate::key::Key;
use crate::types::{SpaceUsage, Stats};

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
        fill_struct(stats, "stats", |stats| cache.stats(stats))?;
        Ok(KVKEEP_OK)
    })
}

/// Fills in `usage`, prepared by KVKEEP_INIT, with what a space takes of L1 and may take, all of it at one instant. Never
/// blocks on I/O.
/// Errors: NOT_FOUND (space), INVALID, VERSION (`abi_version` is another's).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_space(cache: *mut kvkeep, space: u64, usage: *mut SpaceUsage) -> Status {
    on(cache, |cache| {
        fill_struct(usage, "usage", |usage| cache.query_space(space, usage))?;
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

/// Copies events to `events`, oldest first, at most `capacity` (1 to KVKEEP_KEYS_MAX) of them, from the number
/// `*next_sequence` on, or from the oldest that is kept where that is 0. Sets `*count`, and `*next_sequence` to where to go
/// on. The place is the caller's, so that there may be any number of readers. The newest KVKEEP_EVENTS_MAX events are kept,
/// from the first call on; before it they are only counted. A reader that was too slow sees it: the first event it is given
/// has a higher number than it asked for, and `*next_sequence` rises by more than `*count`. Events of L1 are in the order in
/// which they happened, and so are those of one key in one backend. What another process does to a shared backend is told
/// when this one notices; what a backend has when it is added, or when it is removed, is not told. Never blocks. Any thread.
/// Errors: INVALID (no event has the number before `*next_sequence` yet), NO_MEMORY (at the first call: the system refuses what
/// the kept events need).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_drain_events(
    cache: *mut kvkeep,
    next_sequence: *mut u64,
    events: *mut Event,
    capacity: usize,
    count: *mut usize,
) -> Status {
    on(cache, |node| {
        let next = output(next_sequence, "next_sequence")?;
        let (events, count) = (output_slice(events, capacity, "events")?, output(count, "count")?);
        let (next_span, count_span) = (std::slice::from_ref(&*next), std::slice::from_ref(&*count));
        let events_span = events.as_ptr_range().into();
        disjoint(&[events_span, next_span.as_ptr_range().into(), count_span.as_ptr_range().into()])?;
        *count = node.drain_events(next, events)?;
        Ok(KVKEEP_OK)
    })
}
