//! Structs and constants of the ABI that callers fill in.

use std::ffi::{c_char, c_void};

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::abi::Completion;

/// ---- Types ----
///
/// Every struct whose first fields are struct_size and abi_version is prepared by KVKEEP_INIT(&s), which zeroes it
/// and fills in both; `kvkeep_init_struct` does so for hosts without macros. Zero (or NULL) in any other field means the default named beside it, so that a caller sets only the
/// fields it needs. Fields are added at the end and never moved, so that a caller built with an older, shorter struct keeps
/// working.
/// A result struct is filled in up to the caller's struct_size, whatever it is; bytes beyond the library's own struct are left
/// as they were. A struct_size that does not even hold its first two fields is INVALID.
/// Of an option struct, fields that the caller's version does not have are 0. A struct_size that no version had is INVALID:
/// options are never guessed. One larger than the library's is a newer caller's: fields that the library does not know must be 0
/// (VERSION otherwise).
/// Elements of arrays have no size of their own. Those that an option struct points to (kvkeep_group_rule, kvkeep_segment) have
/// the size that they had together with the caller's version of that struct. kvkeep_key, kvkeep_view and kvkeep_key_state keep
/// their sizes for good; so do kvkeep_completion, kvkeep_event and kvkeep_backend_state from this version on. Their reserved fields
/// are there to grow into.
/// An array inside a struct keeps its length for good. The last element of `tier_keys` and of `buckets` stands for all that come
/// after; a text that does not fit is cut.
///
/// Back L1 with reserved huge pages; opening fails where too few are reserved.
pub const KVKEEP_FLAG_HUGE_PAGES: u32 = 1;
/// Bind L1 to the node in `numa_node`.
pub const KVKEEP_FLAG_NUMA_NODE: u32 = 2;
/// Do not touch L1's pages in the background after opening; each first use of a page then pays for it.
pub const KVKEEP_FLAG_NO_PREFAULT: u32 = 4;
/// Neither compute nor verify checksums of L2 objects, which miss one random corruption in 2^32 (CRC-32C). Identity and length are
/// always verified.
pub const KVKEEP_FLAG_NO_CHECKSUM: u32 = 8;
/// For a daemon's client: its L1 is mapped so that this process cannot write it; calls that write are PERMISSION.
pub const KVKEEP_FLAG_READ_ONLY: u32 = 16;
/// `l1_bytes` is a percentage, 1 to 100, of the machine's memory or of the control group's limit, whichever is less.
pub const KVKEEP_FLAG_L1_PERCENT: u32 = 32;

/// When a committed object is written to the L2 backends.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_store_mode {
    /// After its commit, in the background. The default.
    KVKEEP_STORE_WRITE_THROUGH = 0,
    /// When background eviction chooses it. Inline eviction prefers objects already written, and drops others
    /// unwritten.
    KVKEEP_STORE_WRITE_BACK = 1,
    /// After it was read `store_after_uses` times.
    KVKEEP_STORE_AFTER_USES = 2,
    /// Never.
    KVKEEP_STORE_NEVER = 3,
}

/// How long an object lives.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_lifetime {
    /// Until it is evicted or deleted. The default.
    KVKEEP_LIFETIME_CACHED = 0,
    /// Until its last share is returned; it is never written to L2. A job that returns shares itself (of chunks beyond its answer,
    /// or because it is cancelled) has not read the object: one that was committed so and that nobody has read yet stays.
    KVKEEP_LIFETIME_TEMPORARY = 1,
}

/// Which chunks of a job count as hits.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_prefetch_mode {
    /// The longest run from the first chunk; a gap ends it and nothing beyond is loaded.
    KVKEEP_PREFETCH_PREFIX = 0,
    /// The longest length whose last `window_chunks` chunks are there (sliding window and state groups).
    KVKEEP_PREFETCH_WINDOW = 1,
    /// Each chunk for itself.
    KVKEEP_PREFETCH_EACH = 2,
}

/// The effect of a job's deadline.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_prefetch_policy {
    /// At the deadline the job ends with what is loaded by then. The default.
    KVKEEP_PREFETCH_POLICY_BEST_EFFORT = 0,
    /// The job ends when everything that was planned is loaded or failed, however long the backends take; one that pauses ends at its
    /// deadline.
    KVKEEP_PREFETCH_POLICY_WAIT = 1,
    /// Not done by the deadline: TIMEOUT, and nothing is held.
    KVKEEP_PREFETCH_POLICY_DEADLINE = 2,
}

/// How a job without a callback reports its end.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_notify {
    /// By `kvkeep_query_job` or `kvkeep_wait_job` only.
    KVKEEP_NOTIFY_POLL = 0,
    /// By `kvkeep_take_completions`, the descriptor of `kvkeep_get_event_fd` becoming readable.
    KVKEEP_NOTIFY_EVENT_FD = 1,
}

/// A change of an object in one tier.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_event_kind {
    /// It is there from now on: committed to L1, or written to a backend.
    KVKEEP_EVENT_STORED = 1,
    /// It is not there any more: evicted, deleted, cleared, dropped with its last share, or quarantined.
    KVKEEP_EVENT_REMOVED = 2,
}

/// How important a line of the log is.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_log_level {
    /// Something failed that a person should look at.
    KVKEEP_LOG_ERROR = 1,
    /// Something was refused, dropped or retried. The default.
    KVKEEP_LOG_WARN = 2,
    /// A cache was opened or closed, or a backend added or removed.
    KVKEEP_LOG_INFO = 3,
}

/// Gets one line of text, valid during the call. Runs on any library thread, or inside a call that opens or closes a
/// cache or a pool; must not call into kvkeep.
#[allow(non_camel_case_types)]
pub type kvkeep_log_callback = Option<unsafe extern "C" fn(userdata: *mut c_void, level: i32, message: *const c_char)>;

/// Gives the master keys of a backend whose URL has "key_from=NAME", one with each call: `number` 0 is the newest key, which encrypts
/// and decrypts; 1 and so on are older ones, which only decrypt. Writes the 32 bytes of the key to `key` and returns KVKEEP_OK, or
/// returns KVKEEP_ERR_NOT_FOUND where there is no key of this number (there may be at most 255). Any other error, and NOT_FOUND for
/// number 0, is that of the call that opens the backend; a key of zeros alone, one given twice, and a number that is no error of
/// kvkeep_status are INVALID there. Objects know their key by an id that is derived from its bytes, so that the
/// order of older keys does not matter.
/// Runs inside `kvkeep_open`, `kvkeep_add_backend` and `kvkeep_add_backend_vtable` on the caller's thread, or on a library thread for a
/// client of this cache (`listen`) that adds a backend; only while a backend opens. Two threads that
/// add backends may call it at once, and `key_userdata` must stay until `kvkeep_close` returns. `name` is UTF-8, and valid during the call; the
/// memory at `key` is the library's, and is cleared when the keys have been derived from it. May block; must not call into kvkeep, and
/// must not throw.
#[allow(non_camel_case_types)]
pub type kvkeep_key_callback =
    Option<unsafe extern "C" fn(userdata: *mut c_void, name: *const c_char, number: u32, key: *mut u8) -> i32>;

/// Gets the completion of a job, valid during the call only. Runs on the library thread "kvkeep-callback", never inside a
/// call of the submitter, with no lock held, exactly once; with `notify_lookup` once more before, of kind KVKEEP_JOB_LOOKUP, so that
/// `userdata` is needed until the other call. May call any function but `kvkeep_close`; must not throw.
#[allow(non_camel_case_types)]
pub type kvkeep_callback = Option<unsafe extern "C" fn(userdata: *mut c_void, completion: *const Completion)>;

/// How a cache is opened.
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct kvkeep_options {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// NULL: embedded, in this process. "unix:///path/of/the.sock": a client of the daemon that serves this socket
    /// (`kvkeep serve`), whose L1 is mapped here. A client leaves everything below 0 or NULL (INVALID otherwise), except
    /// the flags READ_ONLY and NO_PREFAULT, `session_timeout_ms` (0: the daemon's) and the log: all else is the
    /// daemon's. "unix:///path?spin_us=50": a call looks for its answer so long before it sleeps, and the
    /// daemon for the next call (at most 50 us): quicker, at the price of a busy core. Default 0. "?wait_ms=5000":
    /// `kvkeep_open` waits so long for a daemon that is not there yet. Default 0. "?patience_ms=2000": so long a call
    /// that has no time of its own waits for a daemon that does not answer, then it is TIMEOUT. Default 2000.
    pub connect: *const c_char,
    /// Size of L1 in bytes, required when embedded. Rounded up to whole pages. At least 4096, at most the machine's
    /// memory and the limit of the process's control group and of those above it (cgroup v1 and v2; NO_MEMORY beyond).
    /// No memory is set aside for the rest of the process.
    pub l1_bytes: u64,
    /// KVKEEP_FLAG_…, or'ed.
    pub flags: u32,
    /// The node to bind L1 to when KVKEEP_FLAG_NUMA_NODE is given.
    pub numa_node: u32,
    /// "lru", "s3fifo", "mq" or "none". NULL: "lru".
    pub eviction_policy: *const c_char,
    /// Background eviction starts above this percentage of L1. 0: 80. 100: never.
    pub watermark_high_percent: u32,
    /// Background eviction stops at this percentage of L1, which is not above the high one. 0: 60.
    pub watermark_low_percent: u32,
    /// A kvkeep_store_mode.
    pub store_mode: u32,
    /// For KVKEEP_STORE_AFTER_USES: reads before an object is written, at most 65535. 0: 2.
    pub store_after_uses: u32,
    /// URLs of the backends, in the order they are asked; see `kvkeep_add_backend`. NULL if none.
    pub backend_urls: *const *const c_char,
    /// How many URLs.
    pub backend_count: usize,
    /// Most live sessions, at most 1048575. 0: 65536.
    pub sessions_max: u32,
    /// Most jobs not yet released. 0: 65536.
    pub jobs_max: u32,
    /// Most objects waiting to be written to L2; those beyond are dropped and counted. 0: 65536.
    pub writes_pending_max: u32,
    /// Default deadline of a session, renewed by any use. 0: 300000 (300 s).
    pub session_timeout_ms: u32,
    /// Deadline of one request to a backend; past it the backend is fenced until it answers. 0: 30000.
    pub backend_timeout_ms: u32,
    /// When L1 is full of objects that no backend has yet, or as many writes wait as `writes_pending_max` allows, a reservation to
    /// write waits so long for writes to end before L1 evicts such objects and drops their writes. `kvkeep_reserve_write` then blocks
    /// its caller up to so long; `kvkeep_submit_store` never blocks, and what it finds no memory for waits in the background.
    /// Objects that are loaded, or are temporary, do not wait, nor does anything with KVKEEP_STORE_AFTER_USES or
    /// KVKEEP_STORE_NEVER. 0: 0, or with `connect` that of the daemon (`--store-wait-ms`).
    pub store_wait_ms: u32,
    /// Most bytes being loaded from L2 at once, and never more than about 16384 objects; further loads wait in order of priority.
    /// 0: a quarter of L1, at most 1 GiB, so that what waits in a backend is read before `backend_timeout_ms`.
    pub loading_bytes_max: u64,
    /// Where log lines go. NULL: nowhere.
    pub log: kvkeep_log_callback,
    /// Passed to `log`.
    pub log_userdata: *mut c_void,
    /// A kvkeep_log_level; less important lines are left out. 0: KVKEEP_LOG_WARN.
    pub log_level: u32,
    /// Must be 0.
    pub reserved: u32,
    /// NULL: this cache is the process's alone. "unix:///path/of/the.sock": from `kvkeep_serve_clients` on, other processes `connect`
    /// to it, as to a daemon, as long as it is open; this process is the daemon then, and may have backends of its own
    /// (`kvkeep_add_backend_vtable`). "?http=127.0.0.1:9400": the daemon's page, metrics and health there. "?mode=0660": the socket's
    /// mode, 0600 by default. A file beside the socket, with ".lock" after its name, is locked; EXISTS where another process has
    /// it. Not with `connect`.
    pub listen: *const c_char,
    /// Gives the keys of backends whose URL has "key_from=". NULL: no URL may have it. Not with `connect`: keys are the daemon's.
    pub key_callback: kvkeep_key_callback,
    /// Passed to `key_callback`.
    pub key_userdata: *mut c_void,
}

/// How a space is opened. All texts are UTF-8, of 8192 bytes at most, and copied.
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct kvkeep_space_options {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// The model, required and not empty: name and revision, or a hash of the weights.
    pub model: *const c_char,
    /// Everything that the bytes depend on besides the model: dtype, shapes, parallelism. NULL: "". The shapes of pools
    /// are compared besides (`kvkeep_open_pool`).
    pub layout: *const c_char,
    /// Salt that keeps tenants apart. No secret: metrics and the daemon's HTTP port show it to operators. NULL: "".
    pub tenant: *const c_char,
    /// Tokens of a chunk. 0: 256.
    pub chunk_tokens: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Most bytes of L1 that objects of this space may take. 0: no bound but L1, or the quota of the space if it is open already.
    pub quota_bytes: u64,
    /// Which weights, where the model's name stays the same when they change: a count, a step, a hash. Spaces of two generations
    /// never meet, so that the former's objects need not be removed before they are out of reach. 0 is one like any other.
    pub generation: u64,
}

/// How a session begins.
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct kvkeep_session_options {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// The request's id, for people (logs, explain). UTF-8, copied, at most 255 bytes. NULL: "".
    pub request_id: *const c_char,
    /// Deadline, renewed by any use. 0: the cache's `session_timeout_ms`.
    pub timeout_ms: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// How the objects of one group count in a job, where it differs from the job's own mode (hybrid models).
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct kvkeep_group_rule {
    /// The `group` of the keys it is for.
    pub group: u32,
    /// KVKEEP_PREFETCH_PREFIX or KVKEEP_PREFETCH_WINDOW.
    pub mode: u32,
    /// For a window: how many chunks.
    pub window_chunks: u32,
    /// Must be 0.
    pub reserved: [u32; 5],
}

/// How a prefetch is done.
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct kvkeep_prefetch_options {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// Each key found is held by 1 + extra_count shares. 0 to 127.
    pub extra_count: i32,
    /// Objects of one chunk (world size times groups); the key count must be a multiple. Keys are chunk-major. 0: 1.
    pub objects_per_chunk: u32,
    /// A kvkeep_prefetch_mode.
    pub mode: u32,
    /// For KVKEEP_PREFETCH_WINDOW: how many chunks, at least 1.
    pub window_chunks: u32,
    /// Rules of single groups, copied; of two for one group the first holds. A job's length is the longest at which every group can
    /// continue. NULL if none.
    pub group_rules: *const kvkeep_group_rule,
    /// How many rules, at most 64.
    pub group_rule_count: usize,
    /// A kvkeep_prefetch_policy.
    pub policy: u32,
    /// Deadline of the job, from submit; its answer can be read for as long again, from its end. 0: the session's timeout.
    pub deadline_ms: u32,
    /// How long the backends are asked again for a missing chunk, in the background; one that is committed to L1 meanwhile is
    /// noticed at once. 0: they are asked once.
    pub lookup_timeout_ms: u32,
    /// Pause between two requests of that kind. 0: 10.
    pub lookup_interval_ms: u32,
    /// A kvkeep_lifetime, for objects that this job loads into L1.
    pub lifetime: u32,
    /// Jobs of higher priority load first. Default 0.
    pub priority: i32,
    /// A kvkeep_notify, for jobs without a callback.
    pub notify: u32,
    /// 1: the lookup's answer is reported as well, by the callback or the event descriptor; the job needs one of the two. It is a
    /// kvkeep_completion of kind KVKEEP_JOB_LOOKUP and status OK, whose `hit_chunks` are those of `kvkeep_query_lookup_hits`. It comes
    /// once, before the job's end. A job that ends before its answer (cancelled, or at its deadline) reports its end alone.
    pub notify_lookup: u32,
    /// 1: the job pauses with its lookup's answer, and loads nothing before `kvkeep_resume_job`. A job that has nothing to load does not
    /// pause, and need not be resumed. What was found stays in L1 by the session's shares, and in a backend by pins where it has pins
    /// ("fs://", "memory:", plug-ins). Elsewhere it may be gone when the job is resumed, which then falls short.
    /// While the job pauses, `kvkeep_delete` says LOCKED of these keys; a backend can be removed. The deadline runs on. A job that still
    /// pauses at its deadline ends: with KVKEEP_PREFETCH_POLICY_DEADLINE as TIMEOUT, else with what L1 had.
    pub pause_after_lookup: u32,
    /// Must be 0.
    pub reserved: [u32; 1],
}

/// The CPU's own memory, as the device of a pool. It is not 0, so that a device that was left out is refused where there is no
/// CUDA device, and pages of a GPU are never taken for the CPU's.
pub const KVKEEP_DEVICE_HOST: i32 = -1;

/// In place of a block's number: there is none.
pub const KVKEEP_BLOCK_NONE: i32 = -1;

/// What a call names, for `kvkeep_get_error`.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_subject {
    /// None of the others.
    KVKEEP_SUBJECT_CACHE = 0,
    /// A session.
    KVKEEP_SUBJECT_SESSION = 1,
    /// A job, and no session.
    KVKEEP_SUBJECT_JOB = 2,
    /// A pool, and neither of these.
    KVKEEP_SUBJECT_POOL = 3,
    /// A backend.
    KVKEEP_SUBJECT_BACKEND = 4,
    /// A space, and no session, job or pool.
    KVKEEP_SUBJECT_SPACE = 5,
}

/// Which tensor of its layer a segment is: for `parts` of kvkeep_pool_options. Numbers from 65536 on are the engine's own; those
/// between are kept for parts to come.
#[repr(C)]
#[allow(non_camel_case_types)]
pub enum kvkeep_part {
    /// Not said. The default.
    KVKEEP_PART_UNSAID = 0,
    /// K.
    KVKEEP_PART_KEY = 1,
    /// V.
    KVKEEP_PART_VALUE = 2,
}

/// A stretch of paged memory with a place for every block of a pool: a layer's K, its V, both fused, a latent, or the like.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct kvkeep_segment {
    /// Address of block 0; a multiple of 4.
    pub address: u64,
    /// Bytes of one block in this segment; a multiple of 4, at least 4.
    pub block_bytes: u64,
    /// Bytes from one block to the next; a multiple of 4. 0: block_bytes.
    pub block_stride: u64,
    /// The `group` of the keys whose objects hold this segment.
    pub group: u32,
    /// The layer, for `kvkeep_wait_layer`; layers are copied in rising order.
    pub layer: u32,
    /// Must be 0.
    pub reserved: [u64; 2],
}

/// How a pool is opened.
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct kvkeep_pool_options {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// KVKEEP_DEVICE_HOST, or the ordinal of a CUDA device.
    pub device: i32,
    /// The `rank` of the keys whose objects the pages hold. Where all ranks read one object (MLA), its rank, not the worker's.
    pub rank: u32,
    /// Blocks of each segment; their numbers go from 0 to one less.
    pub block_count: u32,
    /// Blocks of a chunk: the space's `chunk_tokens` divided by the tokens of a block, without a remainder. 0: 1.
    pub blocks_per_chunk: u32,
    /// The segments, copied, in the order in which their bytes lie in the objects.
    pub segments: *const kvkeep_segment,
    /// How many, at most 4096.
    pub segment_count: usize,
    /// A kvkeep_part for each segment, in the order of `segments`. Copied. It tells pools apart whose segments have the same
    /// sizes, as K before V from V before K. NULL: all KVKEEP_PART_UNSAID.
    pub parts: *const u32,
    /// Must be 0.
    pub reserved: u64,
}

/// How a store or a load is done.
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct kvkeep_transfer_options {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// The caller's stream that the copy follows: a CUstream, or 0 for the default stream. 0 for the host, which has none.
    pub stream: u64,
    /// For a load: so many tokens from the first key on (in each group) keep their pages as they are. A multiple of a block's
    /// tokens, since blocks are copied whole. 0 for a store.
    pub skip_first_tokens: u32,
    /// For a load: 1 returns one share of each key that the session holds, when the transfer is over, however it ended;
    /// keys that the session holds no share of are passed over. 0 for a store.
    pub return_shares: u32,
    /// A kvkeep_lifetime, for what a store commits or a load has to bring into L1 itself.
    pub lifetime: u32,
    /// For a load: what it has to bring into L1 itself is loaded before that of lower priority. Default 0.
    pub priority: i32,
    /// A kvkeep_notify, for transfers without a callback.
    pub notify: u32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<kvkeep_options>() == 152);
const _: () = assert!(size_of::<kvkeep_space_options>() == 56);
const _: () = assert!(size_of::<kvkeep_session_options>() == 24);
const _: () = assert!(size_of::<kvkeep_group_rule>() == 32);
const _: () = assert!(size_of::<kvkeep_prefetch_options>() == 80);
const _: () = assert!(size_of::<kvkeep_segment>() == 48);
const _: () = assert!(size_of::<kvkeep_pool_options>() == 56);
const _: () = assert!(size_of::<kvkeep_transfer_options>() == 40);
