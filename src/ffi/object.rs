//! Objects: exported functions.

use super::config::{checked_extra_count, flag};
use super::guard::on;
use super::handle::kvkeep;
use super::partial::{batch_status, explain};
use super::pointers::{disjoint, input, optional_output, optional_statuses, output_slice};
use super::text::partial;
use crate::abi::{KeyState, View};
use crate::call_errors::Subject;
use crate::error::{KVKEEP_ERR_QUOTA, KVKEEP_OK, Result, Status};
use crate::key::Key;
use crate::l1::memory_wait::is_refused;

/// What NOT_FOUND means of a key.
const NOT_STAGED: &str = "this session has not staged it: reserve it by kvkeep_reserve_write first";
const NOT_READY: &str = "it is not ready in L1: have it loaded by kvkeep_submit_prefetch";

/// What a batch call that fills in views returns.
#[inline]
fn views_status(all_ok: bool, keys: &[Key], views: &[View], absent: impl FnOnce(&Key) -> String) -> Result<Status> {
    if all_ok { Ok(KVKEEP_OK) } else { explain(keys, Some(views.iter().map(|view| view.status)), absent) }
}

/// ---- Objects ----
///
/// All functions of this part take a batch of `key_count` keys, 1 to KVKEEP_KEYS_MAX, never block on I/O (only
/// `kvkeep_reserve_write` waits for writes, as long as `store_wait_ms` says), and are atomic: no other call sees half of one. A key
/// fails alone: its status stands in its view, or in `statuses`, which may be NULL. The call returns OK when every key did, PARTIAL
/// when one or more did not, and an error when nothing was done at all. Arrays must not overlap. A session works on keys of its own
/// space.
///
/// Reserves `sizes[i]` bytes of L1 for `keys[i]` and returns views to write to. `lifetime` is a kvkeep_lifetime.
/// Nobody reads the bytes before they are committed; they stay the session's until `kvkeep_finish_write`,
/// `kvkeep_abort_write`, or its end. Two sessions may stage one key. When L1 is full, objects not in use are evicted
/// in the call. Memory is given in key order: after the first key that does not fit, later new keys do not either.
/// Per key: EXISTS (ready, or staged by this session), NO_MEMORY, QUOTA (kvkeep_last_error() then names the session that holds
/// most, and what to do), INVALID (a size of 0). Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_reserve_write(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    sizes: *const u64,
    lifetime: u32,
    views: *mut View,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let (keys, sizes) = (input(keys, key_count, "keys")?, input(sizes, key_count, "sizes")?);
        let views = output_slice(views, key_count, "views")?;
        disjoint(&[keys.as_ptr_range().into(), sizes.as_ptr_range().into(), views.as_ptr_range().into()])?;
        let temporary = flag(lifetime, "lifetime")?;
        let all_ok = cache.reserve_write(session, keys, sizes, temporary, views)?;
        if all_ok {
            return Ok(KVKEEP_OK);
        }
        let Some(refused) = views.iter().find(|view| is_refused(view)) else {
            return explain(keys, Some(views.iter().map(|view| view.status)), |_| String::new());
        };
        let short = views.iter().filter(|view| is_refused(view)).count();
        let of_space = refused.status == KVKEEP_ERR_QUOTA as i32;
        partial(&format!("no memory for {short} of {} keys: {}", keys.len(), cache.why_refused(session, of_space)))
    })
}

/// Commits staged keys: from now on every session can read them and they never change. If another session committed
/// the key first, this copy is discarded and the result is still OK (a temporary object becomes a kept one if this
/// one was to be kept). For eviction the last key of a call came first, so that a prompt goes from its end.
/// Per key: NOT_FOUND (not staged by this session), CANCELLED (its space was forgotten since). Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_finish_write(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    statuses: *mut i32,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let mut statuses = optional_statuses(statuses, keys)?;
        let all_ok = cache.finish_write(session, keys, statuses.as_deref_mut());
        batch_status(all_ok, keys, statuses.as_deref(), |_| NOT_STAGED.to_owned())
    })
}

/// Drops staged keys. The views must not be used any more.
/// Per key: NOT_FOUND (not staged by this session). Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_abort_write(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    statuses: *mut i32,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let mut statuses = optional_statuses(statuses, keys)?;
        let all_ok = cache.abort_write(session, keys, statuses.as_deref_mut());
        batch_status(all_ok, keys, statuses.as_deref(), |_| NOT_STAGED.to_owned())
    })
}

/// Commits staged keys and takes 1 + extra_count shares of each in one step, so that eviction cannot come between.
/// Views are for reading, of whichever copy was committed first.
/// Per key: NOT_FOUND (not staged by this session), CANCELLED (its space was forgotten since). Errors: NOT_FOUND (session), INVALID
/// (extra_count outside 0 to 127).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_finish_write_and_reserve_read(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    extra_count: i32,
    views: *mut View,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let views = output_slice(views, key_count, "views")?;
        disjoint(&[keys.as_ptr_range().into(), views.as_ptr_range().into()])?;
        let extra = checked_extra_count(extra_count)?;
        let all_ok = cache.finish_write_and_reserve_read(session, keys, extra, views)?;
        views_status(all_ok, keys, views, |_| NOT_STAGED.to_owned())
    })
}

/// Takes 1 + extra_count shares of each ready key and returns views to read. The bytes stay where they are until the
/// shares are returned.
/// Per key: NOT_FOUND (absent from L1, or only staged), LIMIT (the object would have 2^24 shares). Errors: NOT_FOUND
/// (session), INVALID (extra_count outside 0 to 127).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_reserve_read(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    extra_count: i32,
    views: *mut View,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let views = output_slice(views, key_count, "views")?;
        disjoint(&[keys.as_ptr_range().into(), views.as_ptr_range().into()])?;
        let all_ok = cache.reserve_read(session, keys, checked_extra_count(extra_count)?, views)?;
        views_status(all_ok, keys, views, |key| match cache.stager(session, key) {
            Some(who) => format!("{who} has it staged: it can be read as soon as it is committed"),
            None => NOT_READY.to_owned(),
        })
    })
}

/// Returns 1 + extra_count shares of each key, whichever of the session's readers took them. When the last share of an
/// object is returned, a temporary object is dropped and any other is touched, once; of one call the last key first. Shares of
/// chunks that the engine decides to compute itself are returned by this call too, with the job's extra_count, for all readers
/// together.
/// Per key: NOT_HELD (the session holds fewer shares; none is returned), EXPIRED (they were revoked after the
/// deadline). Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_finish_read(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    extra_count: i32,
    statuses: *mut i32,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let mut statuses = optional_statuses(statuses, keys)?;
        let all_ok = cache.finish_read(session, keys, checked_extra_count(extra_count)?, statuses.as_deref_mut());
        batch_status(all_ok, keys, statuses.as_deref(), |_| NOT_READY.to_owned())
    })
}

/// As `kvkeep_finish_read`, for the session's chunks whose tokens lie wholly within [first_token, last_token) of the
/// tokens it appended, and ranks and groups as in `kvkeep_get_session_keys`. Sets `*returned_count` to the keys whose shares
/// were returned, unless NULL; chunks the session holds no shares of are passed over.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID (extra_count; an empty or unknown range).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_finish_read_tokens(
    cache: *mut kvkeep,
    session: u64,
    first_token: u64,
    last_token: u64,
    first_rank: u32,
    rank_count: u32,
    group_count: u32,
    extra_count: i32,
    returned_count: *mut u64,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let extra = checked_extra_count(extra_count)?;
        let returned_count = optional_output(returned_count, "returned_count")?;
        let ranks = (first_rank, rank_count, group_count);
        let count = cache.finish_read_tokens(session, first_token..last_token, ranks, extra)?;
        if let Some(returned_count) = returned_count {
            *returned_count = count;
        }
        Ok(KVKEEP_OK)
    })
}

/// Fills in views again, for keys whose shares the session holds; takes none.
/// Per key: NOT_HELD, EXPIRED. Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_views(
    cache: *mut kvkeep,
    session: u64,
    keys: *const Key,
    key_count: usize,
    views: *mut View,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let views = output_slice(views, key_count, "views")?;
        disjoint(&[keys.as_ptr_range().into(), views.as_ptr_range().into()])?;
        let all_ok = cache.get_views(session, keys, views)?;
        views_status(all_ok, keys, views, |_| NOT_READY.to_owned())
    })
}

/// Marks ready keys as used now, in L1 and in backends that have them, last key first, so that the first is the most
/// recent.
/// Per key: NOT_FOUND (not in L1). Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_touch(
    cache: *mut kvkeep,
    space: u64,
    keys: *const Key,
    key_count: usize,
    statuses: *mut i32,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let mut statuses = optional_statuses(statuses, keys)?;
        let all_ok = cache.touch(space, keys, statuses.as_deref_mut());
        batch_status(all_ok, keys, statuses.as_deref(), |_| NOT_READY.to_owned())
    })
}

/// Fills in `states[i]` with the state of `keys[i]` in L1, all of them at one instant. Takes no shares, touches nothing and
/// renews no deadline. Backends are not asked. An answer may be out of date when the call returns: only shares keep an object.
/// The call is OK whatever the states are.
/// Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_keys(
    cache: *mut kvkeep,
    space: u64,
    keys: *const Key,
    key_count: usize,
    states: *mut KeyState,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let (keys, states) = (input(keys, key_count, "keys")?, output_slice(states, key_count, "states")?);
        disjoint(&[keys.as_ptr_range().into(), states.as_ptr_range().into()])?;
        cache.query_keys(space, keys, states).map(|()| KVKEEP_OK)
    })
}

/// Keeps keys longer: until `ttl_ms` from now, eviction passes each over up to ceil(priority / 25) times before it
/// takes it. A bias, never a hard pin. `priority` is 0 (removes the bias) to 100.
/// Per key: NOT_FOUND (not ready in L1). Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_retain(
    cache: *mut kvkeep,
    space: u64,
    keys: *const Key,
    key_count: usize,
    priority: u32,
    ttl_ms: u32,
    statuses: *mut i32,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let mut statuses = optional_statuses(statuses, keys)?;
        let all_ok = cache.retain(space, keys, priority, ttl_ms, statuses.as_deref_mut());
        batch_status(all_ok, keys, statuses.as_deref(), |_| NOT_READY.to_owned())
    })
}

/// Evicts keys from L1 alone, at once and whatever the policy would choose; backends keep what they have. An object that is
/// still to be written is dropped unwritten, and counted by `stores_dropped`: `kvkeep_flush` first has those written
/// that wait for it. It counts as an eviction, with an event of its removal from L1.
/// Per key: NOT_FOUND (not ready in L1), LOCKED (shared, or under a copy or a transfer). Errors: NOT_FOUND (space), INVALID,
/// PERMISSION (a read-only client).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_evict(
    cache: *mut kvkeep,
    space: u64,
    keys: *const Key,
    key_count: usize,
    statuses: *mut i32,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let mut statuses = optional_statuses(statuses, keys)?;
        let all_ok = cache.evict(space, keys, statuses.as_deref_mut());
        batch_status(all_ok, keys, statuses.as_deref(), |_| NOT_READY.to_owned())
    })
}

/// Deletes keys from L1 at once, and from every backend in the background (lookups through this cache miss at once;
/// `kvkeep_flush` waits for the backends). A backend that fails, or has no room for more work, is asked again; a deletion that is
/// given up is logged, and counted by `stores_dropped`.
/// Per key: LOCKED (shared, under a copy or a transfer, or found by a job that will load it; deleted nowhere), NOT_FOUND (in no
/// tier that knows without I/O; named before in the same call). A backend that knows by I/O alone (Redis, S3, a plug-in) deletes
/// what it has of NOT_FOUND keys all the same. Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_delete(
    cache: *mut kvkeep,
    space: u64,
    keys: *const Key,
    key_count: usize,
    statuses: *mut i32,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let keys = input(keys, key_count, "keys")?;
        let mut statuses = optional_statuses(statuses, keys)?;
        let all_ok = cache.delete(space, keys, statuses.as_deref_mut());
        batch_status(all_ok, keys, statuses.as_deref(), |_| "no tier is known to have it".to_owned())
    })
}

/// Empties L1 of a space's committed objects (of every space for `space` 0); backends keep theirs. Without `force`
/// objects in use stay, and the result is PARTIAL if there are any. With `force` (1) jobs of the space are cancelled
/// and objects in use are hidden from new lookups at once; their memory is freed when the last share is returned. A session that
/// comes to hold a key from before and from after holds two copies: the shares of one return are of one copy, so that more than it
/// holds of either are NOT_HELD, and where either may be meant, both stay until it has returned all its shares of the key. Staged
/// writes stay. Sets `*removed_count` to the objects gone or hidden, unless NULL.
/// Errors: NOT_FOUND (space), INVALID (force neither 0 nor 1).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_clear(cache: *mut kvkeep, space: u64, force: u32, removed_count: *mut u64) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let (force, removed_count) = (flag(force, "force")?, optional_output(removed_count, "removed_count")?);
        let (count, all) = cache.clear(space, force)?;
        if let Some(removed_count) = removed_count {
            *removed_count = count;
        }
        if all {
            return Ok(KVKEEP_OK);
        }
        partial("objects that are in use stay: kvkeep_explain_session(0) names their holders, or clear with force")
    })
}

/// Forgets a space in every tier (every space for `space` 0), as is wanted when its weights have changed. When this returns, no
/// call finds an object that was stored before, whichever client of a daemon makes it: jobs of the space are cancelled and L1 is
/// emptied as by `kvkeep_clear` with `force`; objects that are staged or being stored from pages are not committed any more (their
/// keys are CANCELLED). In the backends all of it is deleted in the background, objects of other processes too. Until that is
/// done, nothing of the space is looked up there, and objects that are stored anew wait in L1 to be written; `kvkeep_flush` waits
/// for all of it. A backend that cannot delete is not asked about the space any more until this was called again with success:
/// logged as an error. Sets `*removed_count` to the objects of L1 gone or hidden, unless NULL. Does not block on I/O. Two things
/// are beyond it: another process that has the same directory open keeps the objects in its own L1, and may store them again; and
/// objects that are not deleted yet when the process ends are found by the next. Another `generation` of the space meets neither.
/// Errors: NOT_FOUND (space), PERMISSION (a read-only client).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_forget_space(cache: *mut kvkeep, space: u64, removed_count: *mut u64) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let removed_count = optional_output(removed_count, "removed_count")?;
        let count = cache.forget_space(space)?;
        if let Some(removed_count) = removed_count {
            *removed_count = count;
        }
        Ok(KVKEEP_OK)
    })
}
