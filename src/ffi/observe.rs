//! Seen from outside: exported functions.

use std::ffi::{c_char, c_void};

use super::guard::on;
use super::handle::kvkeep;
use super::pointers::{disjoint, input, output, output_slice};
use super::text::{self, partial};
use super::versioned::fill_struct;
use crate::abi::{SessionState, SpaceUsage, Stats};
use crate::backend_state::BackendState;
use crate::call_errors::Subject;
use crate::error::{Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_OK, Status};
use crate::events::Event;
use crate::key::Key;
use crate::misses::miss_report::MissReport;

/// ---- Seen from outside ----
///
/// Texts are written as NUL-terminated UTF-8 into the caller's buffer of `buffer_bytes` bytes; `*length` is set to the
/// length the whole text has without the NUL. Where it does not fit, what fits is written and the result is PARTIAL:
/// ask again with length + 1 bytes. `buffer` may be NULL when `buffer_bytes` is 0.
///
/// Fills in `stats`, prepared by KVKEEP_INIT. Counters are read one after another, not at one instant. Never blocks
/// on I/O.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_stats(cache: *mut kvkeep, stats: *mut Stats) -> Status {
    on(cache, Subject::Cache, |cache| {
        fill_struct(stats, "stats", |stats| cache.stats(stats))?;
        Ok(KVKEEP_OK)
    })
}

/// Fills in `usage`, prepared by KVKEEP_INIT, with what a space takes of L1 and may take, all of it at one instant. Never
/// blocks on I/O.
/// Errors: NOT_FOUND (space), INVALID, VERSION (`abi_version` is another's).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_space(cache: *mut kvkeep, space: u64, usage: *mut SpaceUsage) -> Status {
    on(cache, Subject::Space(space), |cache| {
        fill_struct(usage, "usage", |usage| cache.query_space(space, usage))?;
        Ok(KVKEEP_OK)
    })
}

/// Fills in `report`, prepared by KVKEEP_INIT, with how lookups went in a space since it was opened, and why they missed keys; `space` 0:
/// in all spaces, those too that were closed since. Why a key is missing is known from a memory that holds the newest objects which
/// tiers lost, backends stored, or lookups missed: one for each 2 KiB of L1, from 65,536 to 1,048,576, in eight bytes each. The older
/// ones are forgotten, and count as never seen. The memory begins empty when the cache is opened; in a daemon it is the daemon's, for
/// all of its clients. It is asked only for a key that is missed. Never blocks on I/O.
/// Errors: NOT_FOUND (space), INVALID, VERSION (`abi_version` is another's).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_misses(cache: *mut kvkeep, space: u64, report: *mut MissReport) -> Status {
    let subject = if space == 0 { Subject::Cache } else { Subject::Space(space) };
    on(cache, subject, |cache| {
        fill_struct(report, "report", |report| cache.query_misses(space, report))?;
        Ok(KVKEEP_OK)
    })
}

/// Fills in `state`, prepared by KVKEEP_INIT, with the state of a session, all of it at one instant. Renews no deadline. Never
/// blocks on I/O.
/// Errors: NOT_FOUND (unknown, or ended before), EXPIRED (ended by its deadline), INVALID, VERSION (`abi_version` is another's).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_session(cache: *mut kvkeep, session: u64, state: *mut SessionState) -> Status {
    on(cache, Subject::Session(session), |cache| {
        fill_struct(state, "state", |state| cache.query_session(session, state))?;
        Ok(KVKEEP_OK)
    })
}

/// Fills in `backends` with the states of the first `backend_capacity` backends, in the order in which they are asked, and sets
/// `*backend_count` to how many there are. PARTIAL where they do not fit. `backends` may be NULL when `backend_capacity` is 0.
/// Never blocks on I/O.
/// Errors: INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_backends(
    cache: *mut kvkeep,
    backends: *mut BackendState,
    backend_capacity: usize,
    backend_count: *mut usize,
) -> Status {
    on(cache, Subject::Cache, |cache| {
        let states: &mut [BackendState] =
            if backend_capacity == 0 { &mut [] } else { output_slice(backends, backend_capacity, "backends")? };
        let count = output(backend_count, "backend_count")?;
        disjoint(&[states.as_ptr_range().into(), std::slice::from_ref(&*count).as_ptr_range().into()])?;
        let all = cache.query_backends()?;
        *count = all.len();
        states.iter_mut().zip(&all).for_each(|(state, found)| *state = *found);
        if all.len() > states.len() {
            return partial(&format!("there are {} backends: give room for as many states", all.len()));
        }
        Ok(KVKEEP_OK)
    })
}

/// Sets `*base` and `*bytes` to the memory of L1 (the arena) in this process, for hosts that register its memory with a device or a
/// network. The bytes of an object may be used there only under a share of it. It stays in place until close; a daemon's client has
/// another one after it has connected to another run of the daemon, and the former stays mapped for one session timeout. With
/// KVKEEP_FLAG_READ_ONLY it cannot be written.
/// Errors: DISCONNECTED (a daemon's client, without its daemon).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_arena(cache: *mut kvkeep, base: *mut *mut c_void, bytes: *mut usize) -> Status {
    on(cache, Subject::Cache, |cache| {
        let (base, bytes) = (output(base, "base")?, output(bytes, "bytes")?);
        let arena = cache.arena().ok_or_else(|| {
            Error::new(KVKEEP_ERR_DISCONNECTED, "L1 is not mapped while the daemon is away: ask again when it is back")
        })?;
        (*base, *bytes) = (arena.at(0).cast(), arena.bytes());
        Ok(KVKEEP_OK)
    })
}

/// Writes every counter as Prometheus text (exposition format 0.0.4).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_metrics(
    cache: *mut kvkeep,
    buffer: *mut c_char,
    buffer_bytes: usize,
    length: *mut usize,
) -> Status {
    on(cache, Subject::Cache, |cache| text::write(&cache.metrics()?, buffer, buffer_bytes, length))
}

/// Writes, as JSON, why a key is where it is: tier, state, size, the holders of its shares and since when, and why it cannot be
/// evicted.
/// Errors: NOT_FOUND (space). A key that is nowhere is OK: its state is "absent".
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_explain_key(
    cache: *mut kvkeep,
    space: u64,
    key: *const Key,
    buffer: *mut c_char,
    buffer_bytes: usize,
    length: *mut usize,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let key = input(key, 1, "key")?[0];
        text::write(&cache.explain_key(space, &key)?, buffer, buffer_bytes, length)
    })
}

/// Writes, as JSON, how lookups went: `all` of them, and `spaces` with the names and the `lookups` of each open space (of very many,
/// of those that take most of L1). Each has the numbers of a kvkeep_miss_report, and for each reason that there was its name, its place
/// of a tier, its misses and a sentence for people, that of most misses first.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_explain_misses(
    cache: *mut kvkeep,
    buffer: *mut c_char,
    buffer_bytes: usize,
    length: *mut usize,
) -> Status {
    on(cache, Subject::Cache, |cache| text::write(&cache.explain_misses()?, buffer, buffer_bytes, length))
}

/// Writes, as JSON, the state of a session (for `session` 0: of every session that holds something, that with most bytes first):
/// owner, request id, age, idle time, deadline, bytes of L1 that it holds (objects that others share count whole), how long the
/// longest shared of them has been shared, shares per key, staged keys, jobs.
/// Errors: NOT_FOUND (session).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_explain_session(
    cache: *mut kvkeep,
    session: u64,
    buffer: *mut c_char,
    buffer_bytes: usize,
    length: *mut usize,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        text::write(&cache.explain_session(session)?, buffer, buffer_bytes, length)
    })
}

/// Copies events to `events`, oldest first, at most `event_capacity` (1 to KVKEEP_KEYS_MAX) of them, from the number
/// `*next_sequence` on, or from the oldest that is kept where that is 0. Sets `*event_count`, and `*next_sequence` to where to go
/// on. The place is the caller's, so that there may be any number of readers. The newest KVKEEP_EVENTS_MAX events are kept,
/// from the first call on; before it they are only counted. A reader that was too slow sees it: the first event it is given
/// has a higher number than it asked for, and `*next_sequence` rises by more than `*event_count`. Events of L1 are in the order in
/// which they happened, and so are those of one key in one backend. A change that another process makes in a shared
/// backend has its event when this one notices; the objects of a backend that is added or removed have none. Never blocks. Any
/// thread.
/// Errors: INVALID (no event has the number before `*next_sequence` yet), NO_MEMORY (at the first call: the system refuses what
/// the kept events need).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_read_events(
    cache: *mut kvkeep,
    next_sequence: *mut u64,
    events: *mut Event,
    event_capacity: usize,
    event_count: *mut usize,
) -> Status {
    on(cache, Subject::Cache, |node| {
        let next = output(next_sequence, "next_sequence")?;
        let (events, count) = (output_slice(events, event_capacity, "events")?, output(event_count, "event_count")?);
        let (next_span, count_span) = (std::slice::from_ref(&*next), std::slice::from_ref(&*count));
        let events_span = events.as_ptr_range().into();
        disjoint(&[events_span, next_span.as_ptr_range().into(), count_span.as_ptr_range().into()])?;
        *count = node.read_events(next, events)?;
        Ok(KVKEEP_OK)
    })
}
