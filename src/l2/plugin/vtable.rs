//! The public face of a plug-in: the structs and function types of the header.

use std::ffi::{c_char, c_void};

use crate::error::Status;
use crate::key::Key;

/// Bytes of the header that a backend stores beside each payload.
pub const KVKEEP_OBJECT_HEADER_BYTES: usize = 160;

/// In the flags of a lookup: the caller wants a prefix, so that every key after the first absent one may be answered NOT_FOUND
/// without a look.
pub const KVKEEP_LOOKUP_IN_ORDER: u32 = 1;

/// The name of an object below L1, the same in every process and after every restart. 56 bytes without padding, so that its bytes
/// may serve as a name.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendKey {
    /// The tag of its space: a fingerprint of model, layout, tenant, chunk size and generation.
    pub space: [u8; 16],
    /// Its key in the space.
    pub key: Key,
}

/// One object of a load or a store.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendObject {
    /// Its name.
    pub key: BackendKey,
    /// KVKEEP_OBJECT_HEADER_BYTES bytes: a load writes what was stored, a store reads. They say whose the payload is and have its
    /// checksum; kvkeep makes and verifies them. Not in the arena.
    pub header: *mut c_void,
    /// The payload in L1, aligned to 64: a load writes it, a store reads it.
    pub data: *mut c_void,
    /// Bytes of the payload. For a load, those that the lookup answered.
    pub size: u64,
    /// Always 0.
    pub reserved: [u64; 2],
}

/// A parameter of a backend's URL, percent-decoded.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendParameter {
    /// Its name; NUL-terminated UTF-8.
    pub name: *const c_char,
    /// Its value; NUL-terminated UTF-8.
    pub value: *const c_char,
}

/// The answer to one request. Prepare it with KVKEEP_INIT and set the fields that the request asks for. It is read during the
/// call of `complete` only.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendAnswer {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// A kvkeep_status: OK, or the error that the whole request met; then nothing else is read but `message`. Of a health request, OK
    /// means that the backend answers its requests.
    pub status: i32,
    /// Must be 0.
    pub reserved: u32,
    /// For people: the cause of an error, or of a health request what slows or bounds the backend. UTF-8. NULL: nothing to say.
    pub message: *const c_char,
    /// A kvkeep_status for each key or object of the request, in its order. Of a lookup: OK or NOT_FOUND. Of a load: OK, NOT_FOUND
    /// or an error. Of a store: OK, EXISTS (it was there already) or an error. Of a removal: OK, NOT_FOUND or an error. NULL: all OK.
    pub statuses: *const i32,
    /// Of a lookup: for each key that is OK, the bytes of its payload. Of a load: for each object, the bytes of payload that were
    /// read; NULL: as many as were asked for. Otherwise not read.
    pub sizes: *const u64,
    /// Elements of `statuses` and of `sizes`: as many as the request has keys or objects.
    pub count: usize,
    /// Of a list: names of objects, at most KVKEEP_KEYS_MAX. NULL if none.
    pub keys: *const BackendKey,
    /// How many names.
    pub key_count: usize,
    /// Of a list: where the next one is to go on, in the plug-in's own numbers. 0: these were the last.
    pub next_cursor: u64,
    /// Of a usage request: objects that the backend has, 0 where it does not know.
    pub objects: u64,
    /// Of a usage request: bytes that they take.
    pub bytes: u64,
    /// Of a usage request: most bytes that it may take; 0: no bound of its own.
    pub capacity_bytes: u64,
    /// Of a usage request: objects that it has evicted since it was opened.
    pub evictions: u64,
}

/// Completes a request: exactly once, from any thread, also from inside the call that made the request. Afterwards the plug-in uses
/// nothing of the request any more: not its arrays, headers or payloads. Waits for no I/O. Returns OK; or INVALID where there is no
/// such request, because it was completed before or never made: nothing was changed then; or INVALID or VERSION where the answer
/// is none: the request has then ended with an error. Each refusal is counted and logged; `kvkeep_last_error` is not set.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_complete = Option<unsafe extern "C" fn(request: u64, answer: *const BackendAnswer) -> Status>;

/// Writes a line to the cache's log. `backend` is the number in the host, `level` a kvkeep_log_level. Any thread.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_log = Option<unsafe extern "C" fn(backend: u64, level: i32, message: *const c_char)>;

/// Tells that the backend has lost objects by itself, because it evicted them or another process deleted them: L1 then does not take
/// them for stored any more. Of removals, and of loads that are NOT_FOUND, kvkeep knows already. Any thread.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_lost = Option<unsafe extern "C" fn(backend: u64, keys: *const BackendKey, key_count: usize)>;

/// The library, as a plug-in sees it. Functions are called by these pointers, not by name: the process may have the library linked
/// into its program, where a plug-in cannot find its functions.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendHost {
    /// sizeof of the library's struct: a field beyond it is not there.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the library.
    pub abi_version: u32,
    /// The number to pass to `log` and `lost`.
    pub backend: u64,
    /// First byte of L1 in this process, so that it can be registered with a device or a network. Payloads lie in it, except where
    /// "fault:" tears a store.
    pub arena: *mut c_void,
    /// Its length in bytes.
    pub arena_bytes: u64,
    /// Completes a request.
    pub complete: kvkeep_backend_complete,
    /// Writes a line to the log.
    pub log: kvkeep_backend_log,
    /// Tells of objects that are gone.
    pub lost: kvkeep_backend_lost,
}

/// Opens a backend and sets `*backend`, which the other functions get; it may stay NULL. `parameters` are those of the URL that
/// kvkeep does not know itself; one that the plug-in does not know should be INVALID. They are valid during the call; `host` is
/// until close returns. Returns a kvkeep_status; on failure, writes cause and remedy as NUL-terminated UTF-8 into `message` of
/// `message_bytes` bytes; close is not called then. Runs inside the call that opens the backend, and may block.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_open = Option<
    unsafe extern "C" fn(
        userdata: *mut c_void,
        parameters: *const BackendParameter,
        parameter_count: usize,
        host: *const BackendHost,
        backend: *mut *mut c_void,
        message: *mut c_char,
        message_bytes: usize,
    ) -> i32,
>;

/// Asks which objects are there, and pins those that are: until unpin, the backend should not evict them. A store that has no pins
/// leaves unpin NULL: where an object is gone when it is loaded, its load is NOT_FOUND. `flags` are KVKEEP_LOOKUP_…, or'ed.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_lookup = Option<
    unsafe extern "C" fn(
        backend: *mut c_void,
        request: u64,
        keys: *const BackendKey,
        key_count: usize,
        flags: u32,
        timeout_ms: u32,
    ),
>;

/// Reads objects: of each, the header and exactly `size` bytes of payload. An object that is longer or shorter is answered with its
/// own length in `sizes`, and is then deleted.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_load = Option<
    unsafe extern "C" fn(
        backend: *mut c_void,
        request: u64,
        objects: *const BackendObject,
        object_count: usize,
        timeout_ms: u32,
    ),
>;

/// Writes objects: of each, header and payload. No lookup may find an object before it is whole. One that is there already is EXISTS
/// and is not written again.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_store = Option<
    unsafe extern "C" fn(
        backend: *mut c_void,
        request: u64,
        objects: *const BackendObject,
        object_count: usize,
        timeout_ms: u32,
    ),
>;

/// Deletes objects, pinned or not. kvkeep neither finds them here nor stores them anew before it is completed, however long that takes.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_remove = Option<
    unsafe extern "C" fn(
        backend: *mut c_void,
        request: u64,
        keys: *const BackendKey,
        key_count: usize,
        timeout_ms: u32,
    ),
>;

/// Lists objects of one space, whose tag has 16 bytes, or for NULL of all, from `cursor` on: 0, or the `next_cursor` of the answer
/// before. It is asked when a space is forgotten; what it lists is removed before it is asked for more. NULL: the backend cannot list,
/// and can forget a space only as far as its objects are removed by key; the space's `generation` then serves instead.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_list =
    Option<unsafe extern "C" fn(backend: *mut c_void, request: u64, space: *const u8, cursor: u64, timeout_ms: u32)>;

/// Tells of keys, and is owed no answer: to touch, that they were used, the last one last; to unpin, that each has one pin less. `keys`
/// is valid during the call. NULL: the backend does not care.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_tell =
    Option<unsafe extern "C" fn(backend: *mut c_void, keys: *const BackendKey, key_count: usize)>;

/// Asks for usage or health, now and then. NULL: usage is 0, and health is good.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_query = Option<unsafe extern "C" fn(backend: *mut c_void, request: u64, timeout_ms: u32)>;

/// Closes a backend, once, when no other call of it runs or will begin. Requests may still be under way: the plug-in completes each
/// before it returns, and afterwards calls the host no more. The memory of a request that it does not complete stays reserved until
/// the process exits. May block; a cache that closes waits for it up to `backend_timeout_ms`.
#[allow(non_camel_case_types)]
pub type kvkeep_backend_close = Option<unsafe extern "C" fn(backend: *mut c_void)>;

/// A store that the host or a plug-in brings: its functions. `open`, `lookup`, `load`, `store`, `remove` and `close` are required.
///
/// Threads. Functions are called from `threads` threads of the library, "kvkeep-plugin", with no lock held: 1 by default, so that they
/// are called one after another. A function may do its work and complete the request before it returns, or return at once and complete
/// from another thread; a function that blocks delays only its own backend. It must not throw, and must not call kvkeep but by the
/// host. More than one request is usually under way.
///
/// Ownership. Keys, objects, headers and payloads of a request are the library's, and stay in place until the request is completed,
/// however late that is.
///
/// Time. `timeout_ms` is the time that is left. A request that is not completed by then is given up for its caller: the backend gets no
/// new requests until it has completed all that are late, and the memory of a late one is used for nothing else before.
///
/// What goes wrong. A nonsensical answer is an error of its request; a second answer is refused. Both are counted, are named in the
/// backend's health, and are logged, at most once in ten seconds. Nothing that a backend answers is believed before its header and
/// checksum are verified. Code that writes where it should not cannot be contained: a plug-in is part of the process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendVtable {
    /// sizeof of the plug-in's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the plug-in's header.
    pub abi_version: u32,
    /// What the store is called, for people: 1 to 63 bytes of UTF-8, copied.
    pub name: *const c_char,
    /// Passed to `open`.
    pub userdata: *mut c_void,
    /// Opens the backend.
    pub open: kvkeep_backend_open,
    /// Looks keys up, and pins what is there.
    pub lookup: kvkeep_backend_lookup,
    /// Reads objects.
    pub load: kvkeep_backend_load,
    /// Writes objects.
    pub store: kvkeep_backend_store,
    /// Notes uses. May be NULL.
    pub touch: kvkeep_backend_tell,
    /// Takes pins off. May be NULL.
    pub unpin: kvkeep_backend_tell,
    /// Deletes objects.
    pub remove: kvkeep_backend_remove,
    /// Lists objects. May be NULL.
    pub list: kvkeep_backend_list,
    /// Counts what the backend has. May be NULL.
    pub usage: kvkeep_backend_query,
    /// Says whether the backend can be used. May be NULL.
    pub health: kvkeep_backend_query,
    /// Closes the backend.
    pub close: kvkeep_backend_close,
}

/// The function "kvkeep_plugin" that a shared library for "plugin:/path/library.so" exports: gives its vtable, which is copied. The
/// library stays loaded until the process exits.
#[allow(non_camel_case_types)]
pub type kvkeep_plugin_entry = Option<unsafe extern "C" fn() -> *const BackendVtable>;

const _: () = assert!(size_of::<BackendKey>() == 56);
const _: () = assert!(size_of::<BackendObject>() == 96);
const _: () = assert!(size_of::<BackendParameter>() == 16);
const _: () = assert!(size_of::<BackendAnswer>() == 104);
const _: () = assert!(size_of::<BackendHost>() == 56);
const _: () = assert!(size_of::<BackendVtable>() == 112);
const _: () = assert!(KVKEEP_OBJECT_HEADER_BYTES == crate::l2::object_header::HEADER_BYTES);
