//! Device transfer: exported functions.

use std::ffi::c_void;

use super::config;
use super::guard::{on, on_even_poisoned};
use super::handle::kvkeep;
use super::options::{kvkeep_callback, kvkeep_pool_options, kvkeep_transfer_options};
use super::pointers::{input, output, output_slice};
use super::text::partial;
use super::versioned::{input_struct, input_struct_or_default};
use crate::call_errors::Subject;
use crate::error::{KVKEEP_OK, KVKEEP_PARTIAL, Result, Status};
use crate::key::Key;
use crate::transfer::submit::AskedTransfer;

/// ---- Device transfer ----
///
/// Objects go to and from an engine's paged memory. A pool registers the pages once. An object has the bytes of one chunk
/// for one rank and group: for each segment of the group in the order registered, for each block of the chunk, the segment's
/// `block_bytes` of that block. All else of a layout (heads or tokens first, K and V apart or fused, one latent, all layers of a
/// block together) is in the segments' addresses, sizes and strides. Groups whose blocks have different numbers of tokens take
/// a pool each. This process copies, embedded or as a daemon's client, on threads of the library; there are none before the first
/// pool.
///
/// On the host ("kvkeep-copy") a transfer's stream is always 0. On a CUDA device, addresses are device pointers and `stream` is a
/// CUstream (cudaStream_t) of the device's primary context, the one that the CUDA runtime uses; 0 is the default stream. Copies
/// begin after what is on that stream by the call, and run on two streams of the pool's own, so that both directions overlap.
/// libcuda.so.1 is loaded with the first such pool, and nothing else of CUDA is needed. L1 is registered with the driver in the
/// background, once for all devices, the parts first that a copy needs; where the machine does not allow that, copies are slower, and
/// `kvkeep_stream_wait_layer` may wait for the stream. Blocks that are neighbours on both sides go as one; fragments are moved by
/// the copy engines, in batches where the driver is of CUDA 12.8 or later, or, as far as that was measured to be faster, by a small
/// kernel (CUDA 12.1 or later). When a device is lost, its transfers complete as DEVICE; it takes a new process to use it again. A
/// pool must be closed before its device's primary context is reset.
///
/// A transfer is a job: `kvkeep_wait_job`, `kvkeep_cancel_job`, `kvkeep_release_job`, `kvkeep_query_job`, callbacks and the event
/// descriptor work on it as on a prefetch. Its number is never a prefetch's; only this handle knows it. It has no deadline. It
/// lives until `kvkeep_release_job`, or 300 s after it is done. The status of its completion and result is OK, PARTIAL (some blocks
/// have a status of their own: `kvkeep_query_blocks`), CANCELLED, or why all of it failed. Cancelling stops the copies that have not
/// begun; the completion comes when those in flight have landed, after which no page is touched any more: wait for it before pages
/// are used anew.
///
/// The memory of L1 under a transfer is held by a session of its own (explained as "copy for session n" with its request),
/// not by the session it is for. When that one ends, its transfers finish, and their stores are committed; when it is
/// aborted, by whichever process, they are cancelled or their stores dropped. A store's objects count as used by it.
///
/// Pages of a store must be written before it is submitted, or by what is on its stream by then, and may be read but not changed
/// until it is done; pages of a load must not be touched until it is done (or their layer, by `kvkeep_wait_layer` or, on a
/// stream, after `kvkeep_stream_wait_layer`).
///
/// Registers the pages of `space`, which was opened by this handle, and sets `*pool` to its number. `options` and its segments
/// are copied; the pages stay the caller's and must stay where they are until the pool is closed. Two segments of a group may
/// lie interleaved with one stride, but no block of theirs may overlap; segments of different groups may (an engine gives a
/// block to one group at a time).
///
/// The shape of an object is how it looks: `blocks_per_chunk`, and for each segment of the group in order its layer, part and
/// block_bytes. It is part of what objects are, in every process and tier. The first pool of a space, rank and group defines
/// it until the cache is closed (of a daemon: until the daemon ends); a pool of another shape is INVALID, in whichever process, and
/// so are the transfers of a pool once another process was first at a daemon that was started anew. Objects in a backend say
/// their shape too: one of another shape is a miss (per block: IO), with a line in the log; an object that this cache stores under its
/// key after that replaces it in the backend. Shapes are compared by a fingerprint of 128 bits.
/// The shape does not see dtypes, heads, the order of tokens or of K and V inside a segment, or segments of the same layer, part and
/// size that are exchanged; say such things in the `layout` of the space, and tell K from V by `parts`. Objects that were written
/// through views have no shape until they are written to a backend after a pool of their space, rank and group was opened:
/// their writer answers for what they look like.
/// Blocks while a CUDA device is opened, unless another pool of this handle has it open, and measured, once in a process.
/// Errors: UNSUPPORTED (a CUDA device, but no NVIDIA driver, one older than CUDA 11.4, no device, or one without unified addresses:
/// the message says what to install), DEVICE (the driver failed, as the message says), NOT_FOUND (space), INVALID (no such device;
/// pages that are not its memory; a `segment_count` of 0 or above 4096; a `block_count` or `blocks_per_chunk` out of range;
/// overlap; a stride below block_bytes; an address or block_bytes of 0; an address or size that is no multiple of 4; a chunk of
/// more than 1 TiB; blocks_per_chunk that does not divide chunk_tokens; a shape that is not that of an earlier pool of the
/// same space, rank and group, in whichever process), LIMIT (1024 pools open, or 65536 shapes remembered), IO (no thread can be started).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_open_pool(
    cache: *mut kvkeep,
    space: u64,
    options: *const kvkeep_pool_options,
    pool: *mut u64,
) -> Status {
    on(cache, Subject::Space(space), |cache| {
        let options = input_struct(options, "options")?;
        let pool = output(pool, "pool")?;
        *pool = cache.transfers().open_pool(space, config::pool(&options)?)?;
        Ok(KVKEEP_OK)
    })
}

/// Closes a pool: cancels its transfers and waits until the copies in flight have landed (never for I/O, but for the work that
/// is before them on the caller's stream). Its pages are not touched any more when this returns. Errors: NOT_FOUND.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_close_pool(cache: *mut kvkeep, pool: u64) -> Status {
    on_even_poisoned(cache, Subject::Pool(pool), |cache| cache.transfers().close_pool(pool).map(|()| KVKEEP_OK))
}

/// Stores `key_count` objects, each key once, from the blocks `block_ids`, `blocks_per_chunk` of them for each key, and sets
/// `*job`. `block_count` is `key_count` times `blocks_per_chunk`; both are 1 to KVKEEP_KEYS_MAX. The arrays are copied. The call
/// waits for no I/O and no copy: memory is reserved in it, evicting where needed; the pages are gathered and the objects committed
/// in the background. The last blocks of a key may be KVKEEP_BLOCK_NONE: the object is that much shorter (an engine's last, partial
/// chunk, under a key of its own). Where L1 has not enough memory for all of them and writes to backends, the others wait
/// in the background for memory that writes and copies under way free, and follow in the order of the keys; objects that were copied
/// before are committed, written and evicted meanwhile, so that a prompt may be larger than L1. The store gives up when nothing
/// under way will free memory, or when it got none for a minute (one with KVKEEP_LIFETIME_TEMPORARY at once): NO_MEMORY or QUOTA, and
/// the completion's message names the session that holds most, or says what else holds the memory. Keys must be of the pool's rank
/// and of a group that it has. `options` may be NULL. Callback as for `kvkeep_submit_prefetch`. Per block: OK (also where L1 has the
/// key already, and nothing is copied; where a backend alone has it, it is copied to L1, and not written there again), NO_MEMORY,
/// QUOTA, CANCELLED (the session was aborted, or the space forgotten, meanwhile), DISCONNECTED, DEVICE.
/// Errors: NOT_FOUND (pool, session), EXPIRED, INVALID (the counts; a key twice, or of another rank or group; a block that the pool
/// does not have, or that is missing before one that is not; a session of another space; a pool of
/// another shape than the daemon, which was started anew, has of its space; a stream that is none or is capturing a graph, or on the
/// host is not 0), PERMISSION (a read-only client), DISCONNECTED (a daemon's client, without its daemon or with a session of an
/// earlier one), LIMIT (65536 transfers not released, or as many completions not taken; `sessions_max`), DEVICE, IO (no thread can be
/// started); then no completion comes.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_submit_store(
    cache: *mut kvkeep,
    pool: u64,
    session: u64,
    keys: *const Key,
    key_count: usize,
    block_ids: *const i32,
    block_count: usize,
    options: *const kvkeep_transfer_options,
    job: *mut u64,
    callback: kvkeep_callback,
    userdata: *mut c_void,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let (keys, blocks) = (input(keys, key_count, "keys")?, input(block_ids, block_count, "block_ids")?);
        let request = config::store(&input_struct_or_default(options, "options")?, callback, userdata)?;
        let job = output(job, "job")?;
        cache.transfers().submit_store(AskedTransfer { pool, session, keys, blocks }, request, job)?;
        Ok(KVKEEP_OK)
    })
}

/// Loads `key_count` objects, each key once, into the blocks `block_ids`, `blocks_per_chunk` of them for each key, and sets
/// `*job`. Counts and arrays are as for `kvkeep_submit_store`; the call does not wait for I/O either. Blocks that are
/// KVKEEP_BLOCK_NONE are passed over; no block of a group may be named twice. Objects that L1 has are held from this call on and
/// copied layer by layer; the others are waited for in the background (a prefetch that loads one already is joined) and copied as
/// they come.
/// The session need not hold shares of the keys. A read-only client may load. `options` may be NULL. Callback as for
/// `kvkeep_submit_prefetch`.
/// Per block: OK, NOT_FOUND (in no tier; or the object is a shorter one, without this block), NO_MEMORY or QUOTA (L1, or the space,
/// has no room for it), IO (the backend failed, or the object was corrupt or has another shape), INVALID (the object's size is not of
/// this layout), LIMIT, CANCELLED, DISCONNECTED, DEVICE. The pages of a block that is not OK may hold anything. Objects that are
/// loaded together have one reason, that of the last of them that failed. The completion's message has the cause and the remedy.
/// Errors: as for `kvkeep_submit_store`, but neither for a read-only client nor for missing blocks; also INVALID for a block named
/// twice in a group, or a `skip_first_tokens` that is no multiple of a block's tokens; then no completion comes.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_submit_load(
    cache: *mut kvkeep,
    pool: u64,
    session: u64,
    keys: *const Key,
    key_count: usize,
    block_ids: *const i32,
    block_count: usize,
    options: *const kvkeep_transfer_options,
    job: *mut u64,
    callback: kvkeep_callback,
    userdata: *mut c_void,
) -> Status {
    on(cache, Subject::Session(session), |cache| {
        let (keys, blocks) = (input(keys, key_count, "keys")?, input(block_ids, block_count, "block_ids")?);
        let request = config::load(&input_struct_or_default(options, "options")?, callback, userdata)?;
        let job = output(job, "job")?;
        cache.transfers().submit_load(AskedTransfer { pool, session, keys, blocks }, request, job)?;
        Ok(KVKEEP_OK)
    })
}

/// What a call that waits for a layer returns.
fn layer_status(status: Status) -> Result<Status> {
    if status != KVKEEP_PARTIAL {
        return Ok(status);
    }
    partial("some objects could not be had: kvkeep_query_blocks says which, when the job is done")
}

/// Blocks until every page of `layer` (a segment's number) is copied, at most `timeout_ms`: a load's may be used then, a
/// store's overwritten, though other layers are not done. PARTIAL if some objects could not be had: wait for the whole and ask
/// which. Any number of threads may wait.
/// Errors: TIMEOUT, NOT_FOUND (released), CANCELLED, DISCONNECTED, DEVICE, INVALID (not the number of a transfer; a layer of none of
/// the pool's segments).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_wait_layer(cache: *mut kvkeep, job: u64, layer: u32, timeout_ms: u32) -> Status {
    on(cache, Subject::Job(job), |cache| layer_status(cache.transfers().wait_layer(job, layer, timeout_ms)?))
}

/// Makes `stream` wait until every page of `layer` is copied, so that what is put on it from now on may use a load's pages, or
/// overwrite a store's. The caller itself waits, at most `timeout_ms`, only until the copies are in the device's own queue: at
/// once for what L1 has, and for the rest when that has been loaded. The layer with the greatest number ends a transfer. On the
/// host, `stream` is 0 and this is `kvkeep_wait_layer`. PARTIAL if some objects could not be had by then; whether the device
/// failed later shows in the completion.
/// Errors: as for `kvkeep_wait_layer`; also INVALID for a stream that on the host is not 0, or on a CUDA device is none or is
/// capturing a graph, and NOT_FOUND for a CUDA device's pool that was closed.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_stream_wait_layer(
    cache: *mut kvkeep,
    job: u64,
    layer: u32,
    stream: u64,
    timeout_ms: u32,
) -> Status {
    on(cache, Subject::Job(job), |cache| {
        layer_status(cache.transfers().stream_wait_layer(job, layer, stream, timeout_ms)?)
    })
}

/// Fills in a kvkeep_status for each block number that the transfer was given, in that order. `status_count` is the
/// `block_count` it was submitted with. Blocks passed over are OK. PENDING until the transfer is done. `statuses` is written only
/// when this returns OK. Does not consume; any thread.
/// Errors: NOT_FOUND (released), INVALID (not the number of a transfer; a wrong count).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_query_blocks(
    cache: *mut kvkeep,
    job: u64,
    statuses: *mut i32,
    status_count: usize,
) -> Status {
    on(cache, Subject::Job(job), |cache| {
        let statuses = output_slice(statuses, status_count, "statuses")?;
        cache.transfers().query_blocks(job, statuses)
    })
}
