//! Cache: exported functions.

use std::ffi::{c_char, c_void};

use super::guard::{asking_errors, guard, on};
use super::handle::{self, kvkeep};
use super::options::{kvkeep_options, kvkeep_space_options};
use super::pointers::{optional_output, output};
use super::versioned::input_struct;
use super::{config, text, versioned};
use crate::call_errors::{CallErrors, Subject};
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Status};
use crate::l2::plugin::PluginSource;
use crate::l2::plugin::vtable::BackendVtable;
use crate::threads;

/// The newest failure of `kvkeep_open`, which gives no cache to keep it.
static UNOPENED: CallErrors = CallErrors::new();

/// ---- Cache ----
///
/// A cache is one open kvkeep. Every function may be called from any thread at any time, at once with any other. A call that
/// begins after `kvkeep_close` began is CLOSED. A handle is a token, not an address: using a closed or invented one is CLOSED, too.
/// After fork, the child's copy of a handle is closed.
///
/// Opens a cache. `options` is read during the call only; `*cache` is set on success and left alone on failure.
/// Blocks while the backends open (a directory's index is rebuilt). Close with `kvkeep_close`.
/// A client of a daemon connects, and maps its L1. When the daemon goes away, every call says DISCONNECTED and every job
/// not done completes so, at once; the client reconnects by itself. Sessions, jobs and shares of the former run are lost
/// and keep saying DISCONNECTED; spaces keep their numbers. Views of the former run stay readable for one session
/// timeout longer. So it is when only the connection is lost, because one side was stopped for long: then memory that this process
/// held is given to nobody else meanwhile, staging included, nor while copies are under way. A call for which this process or
/// the daemon has no descriptor left is LIMIT, and nothing else is lost.
/// A daemon that is stopped or overloaded holds a call no longer than `patience_ms` of `connect`, or than the call's own
/// time; then the call is TIMEOUT, and the calls after it wait a part of that until the daemon has answered again. Such a
/// call takes nothing: a session, reservation or job that it would have made is undone when the daemon goes on. A call that
/// commits, returns, cancels, releases or ends counts as done, and is done when the daemon goes on, even where the daemon could
/// not be asked yet: the views must not be used any more. Sessions, shares and jobs stay as they are. Calls that add or remove
/// backends, delete, clear or forget are waited for as long as the daemon answers others; after TIMEOUT, make them again.
/// Errors: INVALID, VERSION (header and library do not fit, or library and daemon), NO_MEMORY (L1 does not fit the
/// machine or the control group), PERMISSION, IO, DISCONNECTED (no daemon answers), LIMIT (256 caches are open; the daemon's
/// clients), EXISTS (another process serves the socket of `listen`).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_open(options: *const kvkeep_options, cache: *mut *mut kvkeep) -> Status {
    guard(|| {
        let open = || {
            let options = input_struct(options, "options")?;
            let cache = output(cache, "cache")?;
            threads::defer_background();
            *cache = config::open(&options).and_then(handle::open)?;
            Ok(KVKEEP_OK)
        };
        open().inspect_err(|error: &Error| UNOPENED.note(Subject::Cache, &error.message))
    })
}

/// Closes a cache: refuses new calls, cancels its jobs (each still completes once; callbacks have returned when this
/// does), lets calls under way end (those that wait stop waiting), gives accepted writes to L2 up to `backend_timeout_ms`, ends all
/// sessions without touching, and frees L1. Memory that a session still holds shares or staging of, or that a hung backend may
/// still write, stays mapped until the process exits (logged). A client's sessions and jobs end the same way; the daemon and its L1
/// go on, and what a view still shows may be replaced. With `listen`, clients are disconnected first. Completions for the event descriptor that nobody took before are gone.
/// Blocks. Not from a callback (INVALID). NULL is OK; a handle closed before is CLOSED.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_close(cache: *mut kvkeep) -> Status {
    guard(|| if cache.is_null() { Ok(KVKEEP_OK) } else { handle::close(cache).map(|()| KVKEEP_OK) })
}

/// Opens a space and sets `*space` to its number, valid until the space or the cache is closed. Opening the same model, layout,
/// tenant, chunk size and generation again, in whichever process, gives the same number. It sets the quota anew if `quota_bytes`
/// is not 0; 0, or a read-only client, leaves the quota of an open space as it is, and `kvkeep_set_quota` takes it away. Objects of
/// two spaces never meet, in any tier.
/// Errors: INVALID (also for a space whose number, the first 8 bytes of its tag, is that of another open space: a coincidence
/// of one in 2^64), LIMIT (65536 spaces).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_open_space(
    cache: *mut kvkeep,
    options: *const kvkeep_space_options,
    space: *mut u64,
) -> Status {
    on(cache, Subject::Cache, |cache| {
        let options = input_struct(options, "options")?;
        let space = output(space, "space")?;
        *space = cache.open_space(config::space(&options)?)?;
        Ok(KVKEEP_OK)
    })
}

/// Closes a space that is used no more: its number is not valid any more, and its objects leave L1, written or not: `kvkeep_flush`
/// first has those written that wait for it. Backends keep theirs, and opening the space again finds them. A daemon closes the space
/// when the last client that has it open and is connected closes it; until then its number and its objects stay. Never
/// blocks on I/O.
/// Errors: NOT_FOUND (space), LOCKED (a session of it is live, or a pool of it is open), PERMISSION (a read-only client).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_close_space(cache: *mut kvkeep, space: u64) -> Status {
    on(cache, Subject::Space(space), |cache| cache.close_space(space).map(|()| KVKEEP_OK))
}

/// Sets the most bytes of L1 that objects of a space may take, for all clients of a daemon, as opening it again with one does. 0: no bound but
/// L1. Objects above it are evicted at once, but for those in use or still to be written to L2: the space stays above its quota until
/// its next reservation or load evicts them. A client that connects to a new run of the daemon sets the quota that it set last, or
/// opened the space with; where clients differ, the last to connect has its way. Never blocks on I/O.
/// Errors: NOT_FOUND (space), PERMISSION (a read-only client).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_set_quota(cache: *mut kvkeep, space: u64, quota_bytes: u64) -> Status {
    on(cache, Subject::Space(space), |cache| cache.set_quota(space, quota_bytes).map(|()| KVKEEP_OK))
}

/// Adds a backend below those already there. `url` is UTF-8 and copied: "fs:///directory?capacity=200GiB",
/// "s3://bucket/prefix?endpoint=https://host:port", "gs://bucket/prefix", "az://container/prefix", "memory:?capacity=1GiB", "plugin:/path/to/library.so?name=value", or "fault:"
/// before one of these. Sets `*backend` to its number, unless NULL. Blocks while the backend opens. A directory may be open in several processes; its capacity bounds what each of them
/// knows to be there, not what all of them write. "fs:" also leaves `min_free=` of the file system free, a size or a share such as 5%
/// (by default 1 %, at most 1 GiB): below it, and where the file system is full, new objects take the place of the directory's oldest.
/// A directory above its bounds is worked off in the background after it is opened.
/// Objects of "fs:" survive every end of the process, and with `durability=power` a power cut: they are synced before
/// `KVKEEP_KEY_STORED`, events, counters and `kvkeep_flush` tell of them.
/// Errors: INVALID (unknown scheme or parameter, said in the message), PERMISSION, IO, LIMIT (seven backends), of a bucket
/// also NOT_FOUND (there is none), TIMEOUT (no answer) and UNSUPPORTED (a library that was built without its service), of a plug-in, the error
/// that its `open` returned, and of a URL with "key_from=", the error of `key_callback`.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_add_backend(cache: *mut kvkeep, url: *const c_char, backend: *mut u64) -> Status {
    on(cache, Subject::Cache, |cache| {
        let backend = optional_output(backend, "backend")?;
        let number = cache.add_backend(text::utf8(url, "url")?)?;
        if let Some(backend) = backend {
            *backend = number;
        }
        Ok(KVKEEP_OK)
    })
}

/// Adds a backend whose functions the caller has, as `kvkeep_add_backend` adds one by its URL. `vtable` and `parameters` are copied; the
/// functions must be there until the backend is closed. `parameters` are written as in a URL, percent-encoded: "host=a&threads=4".
/// NULL: none. Three of them are not the plug-in's own: `threads`, from which it is called (1 by default, at most 64), `batch`, the
/// most objects of one load or store (32 by default), and `depth`, the most objects that it loads and stores at once (1024 by default).
/// A shared library that exports its vtable is added by `kvkeep_add_backend` with "plugin:/path/to/library.so?name=value", in a daemon
/// too.
/// Errors: INVALID (a function that is missing, named in the message; the parameters), VERSION (the vtable is of another ABI),
/// UNSUPPORTED (a client of a daemon), LIMIT (seven backends), the error that the plug-in's `open` returned, and that of `key_callback`.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_add_backend_vtable(
    cache: *mut kvkeep,
    vtable: *const BackendVtable,
    parameters: *const c_char,
    backend: *mut u64,
) -> Status {
    on(cache, Subject::Cache, |cache| {
        let backend = optional_output(backend, "backend")?;
        let parameters = text::utf8_or(parameters, "", "parameters")?;
        // SAFETY: that the struct is as large as it says, and its functions are those of the header, is the caller's promise.
        let source = unsafe { PluginSource::of_host(vtable, parameters) }?;
        let number = cache.add_plugin(&source)?;
        if let Some(backend) = backend {
            *backend = number;
        }
        Ok(KVKEEP_OK)
    })
}

/// Lets other processes connect to a cache that was opened with `listen`. Call it when the backends are added: objects that are
/// committed before are not written to a backend that comes later.
/// Errors: INVALID (opened without `listen`), EXISTS (called before), PERMISSION, IO.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_serve_clients(cache: *mut kvkeep) -> Status {
    on(cache, Subject::Cache, |cache| cache.serve_clients().map(|()| KVKEEP_OK))
}

/// Removes a backend: no new job asks it, objects that jobs have found in it are loaded, everything else it accepted is
/// answered, then it is closed. Its stored objects stay where they are. Blocks until then, at most `backend_timeout_ms`; a backend
/// that hangs longer is left fenced.
/// Errors: NOT_FOUND, TIMEOUT (it did not close in time).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_remove_backend(cache: *mut kvkeep, backend: u64) -> Status {
    on(cache, Subject::Backend(backend), |cache| cache.remove_backend(backend).map(|()| KVKEEP_OK))
}

/// Waits until everything committed before is written to L2 or given up, and deletions have reached it. Blocks up to
/// `timeout_ms`.
/// Errors: TIMEOUT (the message says how many objects are left).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_flush(cache: *mut kvkeep, timeout_ms: u32) -> Status {
    on(cache, Subject::Cache, |cache| cache.flush(timeout_ms).map(|()| KVKEEP_OK))
}

/// Prepares a versioned struct as KVKEEP_INIT does, for hosts that have no macros: zeroes `struct_size` bytes, and fills in
/// `struct_size` and `abi_version`, which is the KVKEEP_ABI_VERSION of the header that the host's own declarations were made from. Any
/// struct whose first fields these are; whether a version of it has this size is checked where it is used. Any thread.
/// Errors: INVALID (NULL, not aligned to 8 bytes, a size that no such struct has), VERSION (the library has another ABI version).
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_init_struct(versioned: *mut c_void, struct_size: usize, abi_version: u32) -> Status {
    guard(|| versioned::init(versioned.cast(), struct_size, abi_version).map(|()| KVKEEP_OK))
}

/// Writes the message that `kvkeep_last_error` had after the newest call that named a subject and returned an error or PARTIAL,
/// whichever thread made that call: for hosts whose next call may run on another thread (goroutines, virtual threads).
/// `subject` is a kvkeep_subject, and `number` its number. A call names the first of session, job, pool, backend and space that is
/// among its arguments; one without any of them names KVKEEP_SUBJECT_CACHE, whose number is 0. While one task at a time uses a
/// subject, the message is that of the task's own call. Where `cache` is NULL, the subject is KVKEEP_SUBJECT_CACHE, and the call is
/// the newest `kvkeep_open` of this process that was refused. `buffer`, `buffer_bytes` and `length` are as in "Seen from outside".
/// Never blocks. Any thread.
/// Errors: NOT_FOUND (no call of the subject has failed, or calls of 256 other subjects have since), INVALID.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvkeep_get_error(
    cache: *mut kvkeep,
    subject: u32,
    number: u64,
    buffer: *mut c_char,
    buffer_bytes: usize,
    length: *mut usize,
) -> Status {
    let copy = |errors: &CallErrors| {
        let subject = config::subject(subject, number)?;
        let message = errors.newest(subject).ok_or_else(|| {
            Error::new(KVKEEP_ERR_NOT_FOUND, format!("no failed call of {subject:?} is known: name the session, job, pool, backend or space that the call named"))
        })?;
        text::write(&message, buffer, buffer_bytes, length)
    };
    if cache.is_null() { guard(|| copy(&UNOPENED)) } else { asking_errors(cache, |cache| copy(cache.call_errors())) }
}
