//! Sessions: exported functions.

use super::config;
use super::guard::on;
use super::handle::kvkeep;
use super::options::kvkeep_session_options;
use super::pointers::{input, optional_output, output, output_slice};
use super::versioned::input_struct_or_default;
use crate::call_errors::Subject;
use crate::error::{Error, KVKEEP_OK, Status};
use crate::key::Key;

/// ---- Sessions ----
///
/// A session is one request's use of a space, named by a number that is never reused: the keys it used, the shares
/// it holds, its staged writes, its jobs and its deadline. Any use renews the deadline. Past it, a session that holds
/// nothing is ended; shares that it holds may be revoked by eviction when memory runs short, and a later use of their keys
/// says EXPIRED. Where none was revoked, the next use revives the session. Staged writes are never revoked. A call that names a
/// session which was ended by its deadline is EXPIRED, also where only NOT_FOUND (session) is named.
/// When `sessions_max` are live, a new session takes the place of one that is past its deadline and stages nothing: of those, the one
/// that expired first. All clients of a daemon may use a session by its number.
///
/// Begins a session of `space` and sets `*session`. `options` may be NULL.
/// Errors: NOT_FOUND (space), INVALID, LIMIT (`sessions_max`).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_begin_session(
    cache: *mut kvkeep,
    space: u64,
    options: *const kvkeep_session_options,
    session: *mut u64,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let options = input_struct_or_default(options, "options")?;
        let session = output(session, "session")?;
        let (request_id, timeout_ms) = config::session(&options)?;
        *session = cache.begin_session(space, request_id, timeout_ms)?;
        Ok(KVKEEP_OK)
    })
}

/// Ends a session: returns its shares, drops its staging, cancels and releases its jobs, and touches every key it
/// used, the last used first, so that the first chunk of a prefix is the most recent. Never blocks. Errors: NOT_FOUND
/// (unknown, or ended before).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_end_session(cache: *mut kvkeep, session: u64) -> Status {
    on(cache, Subject::Session(session), |cache| cache.end_session(session).map(|()| KVKEEP_OK))
}

/// As `kvkeep_end_session`, but touches nothing. Never blocks. Errors: NOT_FOUND.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_abort_session(cache: *mut kvkeep, session: u64) -> Status {
    on(cache, Subject::Session(session), |cache| cache.abort_session(session).map(|()| KVKEEP_OK))
}

/// Renews the deadline of a session, and does nothing else: for a request that goes on without using the cache. Keys whose
/// shares were revoked before stay EXPIRED. Never blocks on I/O.
/// Errors: NOT_FOUND (unknown, or ended before), EXPIRED (ended by its deadline).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_renew_session(cache: *mut kvkeep, session: u64) -> Status {
    on(cache, Subject::Session(session), |cache| cache.renew_session(session).map(|()| KVKEEP_OK))
}

/// Appends `token_count` token ids to the session's sequence and hashes every chunk that is now full. Sets `*chunk_count`
/// to the full chunks so far, unless NULL. The hash of chunk i is BLAKE3(hash of chunk i-1 || its token ids as
/// little-endian u32); before the first stands BLAKE3("kvkeep space" || the space's 16-byte tag), where the tag is
/// the first half of BLAKE3 over model, layout and tenant, each preceded by its length as little-endian u64, and
/// chunk tokens as little-endian u32; a generation that is not 0 follows as little-endian u64.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID, NO_MEMORY (the system refuses it), LIMIT (2^26 tokens a session; 4 GiB of
/// hashes of all sessions, which are 32 bytes a chunk).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_append_tokens(
    cache: *mut kvkeep,
    session: u64,
    tokens: *const u32,
    token_count: usize,
    chunk_count: *mut usize,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let (tokens, chunk_count) =
            (input(tokens, token_count, "tokens")?, optional_output(chunk_count, "chunk_count")?);
        let chunks = cache.append_tokens(session, tokens)?;
        if let Some(chunk_count) = chunk_count {
            *chunk_count = chunks as usize;
        }
        Ok(KVKEEP_OK)
    })
}

/// Writes the keys of `chunk_count` full chunks from `first_chunk` on, chunk-major: for each chunk, for each of
/// `rank_count` ranks from `first_rank` on, for each group from 0 to `group_count` - 1. `keys` has room for
/// `key_count` keys, which must be chunk_count * rank_count * group_count.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID (a chunk that is not full yet, a wrong count).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_session_keys(
    cache: *mut kvkeep,
    session: u64,
    first_chunk: u64,
    chunk_count: usize,
    first_rank: u32,
    rank_count: u32,
    group_count: u32,
    keys: *mut Key,
    key_count: usize,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let wanted = chunk_count as u128 * u128::from(rank_count) * u128::from(group_count);
        if wanted != key_count as u128 {
            return Err(Error::invalid(format!(
                "key_count is {key_count}, but chunk_count * rank_count * group_count is {wanted}: pass room for exactly that many keys"
            )));
        }
        let keys = output_slice(keys, key_count, "keys")?;
        cache.session_keys(session, first_chunk, (first_rank, rank_count, group_count), keys)?;
        Ok(KVKEEP_OK)
    })
}

/// Writes the keys of the session's last chunk, which is not full, cut after its first `tail_tokens` tokens: one for each of
/// `rank_count` ranks from `first_rank` on, for each group from 0 to `group_count` - 1. `keys` has room for `key_count` keys, which
/// must be rank_count * group_count. The hash is made as that of a full chunk, of so many tokens: each length has a key of its own,
/// and an object stored under it is found by the very tokens it has, no others. Such a key stands behind those of the full chunks, in a
/// prefetch as in a transfer (`kvkeep_submit_store` says how an object is shorter than a chunk). The session keeps the tokens of its last
/// chunk until more are appended that fill it.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID (`tail_tokens` of 0, or more than the chunk has; a wrong count).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_tail_keys(
    cache: *mut kvkeep,
    session: u64,
    tail_tokens: u32,
    first_rank: u32,
    rank_count: u32,
    group_count: u32,
    keys: *mut Key,
    key_count: usize,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let wanted = u128::from(rank_count) * u128::from(group_count);
        if wanted != key_count as u128 {
            return Err(Error::invalid(format!(
                "key_count is {key_count}, but rank_count * group_count is {wanted}: pass room for exactly that many keys"
            )));
        }
        let keys = output_slice(keys, key_count, "keys")?;
        cache.tail_keys(session, tail_tokens, (first_rank, rank_count, group_count), keys)?;
        Ok(KVKEEP_OK)
    })
}
