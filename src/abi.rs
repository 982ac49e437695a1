//! Plain data that crosses the ABI uncopied: what calls fill in for their callers.

use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

/// One object's bytes in L1, as a reservation returns it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// First byte, NULL unless `status` is OK. Write only what `kvkeep_reserve_write` returned; read otherwise.
    /// Aligned to 4096 when `size` is a multiple of 4096, else to 64.
    pub data: *mut std::ffi::c_void,
    /// Length of the object in bytes.
    pub size: u64,
    /// A kvkeep_status for this key alone.
    pub status: i32,
    /// Always 0.
    pub reserved: u32,
}

impl View {
    /// A view of nothing that says why.
    pub fn none(status: crate::error::Status) -> View {
        View { data: std::ptr::null_mut(), size: 0, status: status as i32, reserved: 0 }
    }
}

/// Whether L1 has an object.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectState {
    /// It has not. Staging is its session's alone: what is only staged, or on its way from a backend, is absent.
    KVKEEP_OBJECT_ABSENT = 0,
    /// Committed: every session can take shares of it and read it.
    KVKEEP_OBJECT_READY = 1,
}

/// In a key's state: it is dropped when its last share is returned.
pub const KVKEEP_KEY_TEMPORARY: u32 = 1;
/// In a key's state: eviction may take it now. It is under no copy or transfer, and its shares, if it has any, are of sessions past
/// their deadlines.
pub const KVKEEP_KEY_EVICTABLE: u32 = 2;
/// In a key's state: a backend has it, as far as L1 knows. Cleared when the last backend that had it evicts, deletes or
/// quarantines it, or is removed; L1 then writes it again before it evicts it.
pub const KVKEEP_KEY_STORED: u32 = 4;
/// In a key's state: it waits to be written to the backends, or is being written.
pub const KVKEEP_KEY_STORING: u32 = 8;

/// The state of one key in L1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct KeyState {
    /// Length of the object in bytes; 0 if absent.
    pub size: u64,
    /// A kvkeep_object_state.
    pub state: u32,
    /// Shares of it, held by all sessions.
    pub shares: u32,
    /// KVKEEP_KEY_…, or'ed; 0 if absent.
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Length of `tier_keys` in a result: L1 and seven backends, the most that a cache has today. `kvkeep_query_backends` bounds nothing.
pub const KVKEEP_TIERS_MAX: usize = 8;

/// Most keys in one call.
pub const KVKEEP_KEYS_MAX: usize = 1 << 20;

/// Largest extra_count.
pub const KVKEEP_EXTRA_COUNT_MAX: i32 = 127;

/// Length of the message inside a completion, its NUL included.
pub const KVKEEP_MESSAGE_BYTES: usize = 128;

/// Buckets of a histogram.
pub const KVKEEP_HISTOGRAM_BUCKETS: usize = 26;

/// The kind of a job.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// It looks keys up and loads into L1 what L1 lacks: `kvkeep_submit_prefetch`.
    KVKEEP_JOB_PREFETCH = 1,
    /// A transfer into an engine's pages: `kvkeep_submit_load`.
    KVKEEP_JOB_LOAD = 2,
    /// A transfer from an engine's pages: `kvkeep_submit_store`.
    KVKEEP_JOB_STORE = 3,
    /// Of a completion alone: not the end of the job, but the answer of its lookup (`notify_lookup`).
    KVKEEP_JOB_LOOKUP = 4,
}

/// The end of one job, or of kind KVKEEP_JOB_LOOKUP the answer of its lookup; complete in itself, valid on any thread. Fields of the
/// other kind of job are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Completion {
    /// The job.
    pub job: u64,
    /// Its session.
    pub session: u64,
    /// A kvkeep_status: OK, PARTIAL (transfers only), or why it ended early (TIMEOUT, CANCELLED, EXPIRED, DISCONNECTED,
    /// DEVICE of transfers only, INTERNAL).
    pub status: i32,
    /// Of a prefetch: chunks the session now holds shares of, in the unit of `kvkeep_query_lookup_hits`; of a lookup: chunks that
    /// will be hit.
    pub hit_chunks: u32,
    /// Of a prefetch: bytes loaded into L1.
    pub loaded_bytes: u64,
    /// NUL-terminated UTF-8: empty if nothing fell short, else the shortfall and its cause.
    pub message: [std::ffi::c_char; KVKEEP_MESSAGE_BYTES],
    /// A kvkeep_job_kind.
    pub kind: u32,
    /// Of a transfer: objects that are where they were to go. A store counts those too that were there already.
    pub copied_keys: u32,
    /// Of a transfer: bytes copied. Of what was there already none.
    pub copied_bytes: u64,
    /// Always 0.
    pub reserved: [u64; 4],
}

/// The result of a job. The caller sets `struct_size` and `abi_version` (KVKEEP_INIT). Fields of the other kind of job are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct JobResult {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// A kvkeep_status, as in the completion.
    pub status: i32,
    /// Of a prefetch: chunks the session holds shares of. PREFIX and WINDOW: the length the engine may continue from. EACH: how
    /// many.
    pub hit_chunks: u32,
    /// Of a prefetch: chunks that the lookup promised, before any byte was loaded.
    pub lookup_chunks: u32,
    /// Objects that the job planned to load or copy and could not (failed, corrupt, no memory, late).
    pub failed_keys: u32,
    /// Of a prefetch: objects of the answer by where they were found: `[0]` L1, `[i]` the backend with place i. Places rise from 1 in
    /// the order in which backends are added; once one was removed and none is left above the others, a new backend takes the
    /// lowest free.
    pub tier_keys: [u32; KVKEEP_TIERS_MAX],
    /// Of a prefetch: bytes loaded into L1. An object that several jobs wait for is loaded once and counts for one of them, the
    /// first that is still there.
    pub loaded_bytes: u64,
    /// Of a prefetch: microseconds from submit to the lookup's answer.
    pub lookup_us: u64,
    /// Of a prefetch: microseconds from the lookup's answer to the end.
    pub load_us: u64,
    /// Microseconds from submit to the end.
    pub total_us: u64,
    /// NUL-terminated UTF-8: empty if nothing fell short, else the shortfall and its cause.
    pub message: [std::ffi::c_char; KVKEEP_MESSAGE_BYTES],
    /// A kvkeep_job_kind.
    pub kind: u32,
    /// Keys that the job was submitted with.
    pub asked_keys: u32,
    /// Of a transfer: objects that are where they were to go. A store counts those too that were there already.
    pub copied_keys: u32,
    /// Of a prefetch: why the last of `failed_keys` was not loaded, a kvkeep_status: NO_MEMORY (L1 had no room for it), QUOTA (its
    /// space had none), else the error of its backend. 0 where none failed.
    pub failed_status: i32,
    /// Of a transfer: bytes copied. Of what was there already none.
    pub copied_bytes: u64,
    /// Of a transfer: microseconds from its first copy to the end.
    pub copy_us: u64,
}

impl Default for JobResult {
    fn default() -> JobResult {
        JobResult::new_zeroed()
    }
}

impl JobResult {
    /// Of the answer of a prefetch's lookup.
    pub fn of_lookup(chunks: u32) -> JobResult {
        JobResult { hit_chunks: chunks, kind: JobKind::KVKEEP_JOB_LOOKUP as u32, ..JobResult::default() }
    }

    /// The completion of the job whose result this is.
    pub fn completion(&self, job: u64, session: u64) -> Completion {
        let JobResult { status, hit_chunks, loaded_bytes, message, kind, copied_keys, copied_bytes, .. } = *self;
        let reserved = [0; 4];
        Completion {
            job,
            session,
            status,
            hit_chunks,
            loaded_bytes,
            message,
            kind,
            copied_keys,
            copied_bytes,
            reserved,
        }
    }
}

/// The part of L1 that a space takes. The caller sets `struct_size` and `abi_version`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SpaceUsage {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// Its committed objects.
    pub objects: u64,
    /// Bytes that its quota counts: objects, staging, loads on their way, and what was removed and is still in use.
    pub used_bytes: u64,
    /// Its quota; 0: no bound but L1.
    pub quota_bytes: u64,
}

/// Length of a request id, its NUL included.
pub const KVKEEP_REQUEST_ID_BYTES: usize = 256;

/// The state of a session. The caller sets `struct_size` and `abi_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SessionState {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// Its space.
    pub space: u64,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Milliseconds until its deadline, negative past it.
    pub expires_in_ms: i64,
    /// Shares that it holds.
    pub shares: u64,
    /// Shares that were revoked after its deadline, of keys that it did not use since.
    pub revoked_shares: u64,
    /// Keys that it stages.
    pub staged_keys: u64,
    /// Its prefetches that are not done.
    pub jobs: u32,
    /// The process that began it.
    pub owner_pid: u32,
    /// The `request_id` that it began with, NUL-terminated UTF-8.
    pub request_id: [std::ffi::c_char; KVKEEP_REQUEST_ID_BYTES],
}

impl Default for SessionState {
    fn default() -> SessionState {
        SessionState::new_zeroed()
    }
}

/// A text as C has it in an array: as much as fits, and a NUL.
pub fn chars<const N: usize>(text: &str) -> [std::ffi::c_char; N] {
    let mut bytes = [0; N];
    let fits = text.floor_char_boundary(N - 1);
    bytes.iter_mut().zip(text[..fits].bytes()).for_each(|(place, byte)| *place = byte as std::ffi::c_char);
    bytes
}

/// The text in a NUL-terminated array.
pub fn text_of(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&char| char as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Latencies in microseconds. Bucket i counts those of at most 2^i us that no bucket before it counts; the last
/// counts all others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Histogram {
    /// Samples.
    pub count: u64,
    /// Their sum in microseconds.
    pub sum_us: u64,
    /// Samples by size.
    pub buckets: [u64; KVKEEP_HISTOGRAM_BUCKETS],
}

/// Everything a cache counts. Counters only grow; gauges are marked. The caller sets `struct_size` and `abi_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Stats {
    /// sizeof of the caller's struct.
    pub struct_size: u32,
    /// KVKEEP_ABI_VERSION of the caller's header.
    pub abi_version: u32,
    /// Gauge: size of L1 in bytes.
    pub l1_bytes: u64,
    /// Gauge: bytes of L1 given to objects, staging and transfers.
    pub l1_used_bytes: u64,
    /// Gauge: bytes of L1 in use (shares, staging, transfers). They cannot be evicted, but for those under shares of sessions that
    /// are past their deadline.
    pub l1_locked_bytes: u64,
    /// Gauge: committed objects in L1.
    pub l1_objects: u64,
    /// Gauge: staged objects of all sessions, loads in flight included.
    pub l1_staged: u64,
    /// Gauge: shares held by all sessions.
    pub l1_shares: u64,
    /// Gauge: live sessions.
    pub sessions: u64,
    /// Gauge: prefetches not yet released. This and the counters of jobs below leave transfers out.
    pub jobs: u64,
    /// Gauge: writes to L2 that wait or are under way: one for each backend that an object is to go to, and one for an object that was
    /// not sent to any yet.
    pub writes_pending: u64,
    /// Keys that requests asked for and L1 had. Those that a prefetch needs (as in `prefetch_asked_chunks`) count when its lookup is
    /// answered, those that `kvkeep_reserve_read` or a load names in its call. A request asks once: reading what it holds, or loading
    /// what it prefetches, counts nothing more. The hit rate of L1 is `read_hits / (read_hits + read_misses)`.
    pub read_hits: u64,
    /// Keys that requests asked for and L1 had not: `l2_hits` + `l2_misses`.
    pub read_misses: u64,
    /// Objects committed by their writers.
    pub commits: u64,
    /// Commits that found the object already there and discarded their copy.
    pub commits_discarded: u64,
    /// Objects evicted from L1.
    pub evictions: u64,
    /// Bytes evicted from L1.
    pub evicted_bytes: u64,
    /// Reservations refused for want of memory or quota.
    pub refusals: u64,
    /// Sessions ended by their deadline because nobody came back.
    pub sessions_reclaimed: u64,
    /// Shares taken from sessions past their deadline.
    pub shares_revoked: u64,
    /// Prefetches released by their deadline because nobody read them.
    pub jobs_reclaimed: u64,
    /// Prefetches accepted.
    pub jobs_submitted: u64,
    /// Prefetches completed, whatever their status.
    pub jobs_completed: u64,
    /// Prefetches that ended cancelled.
    pub jobs_cancelled: u64,
    /// Chunks that prefetches found and took shares of, all tiers. Of a window, those in it: what lies before it counts neither here
    /// nor below.
    pub prefetch_hit_chunks: u64,
    /// Chunks that prefetches needed: those of their answers, `prefetch_hit_chunks`, and those that were missing beyond. Counted
    /// together when a job ends; one that ends cancelled counts in neither.
    pub prefetch_asked_chunks: u64,
    /// Objects loaded from L2.
    pub loads: u64,
    /// Bytes loaded from L2.
    pub loaded_bytes: u64,
    /// Loads that failed, corrupt ones not counted.
    pub load_failures: u64,
    /// Objects whose bytes or identity were wrong: treated as a miss and quarantined.
    pub corruptions: u64,
    /// Requests to a backend that passed their deadline; the backend is fenced until it answers.
    pub backend_timeouts: u64,
    /// Objects written to L2.
    pub stores: u64,
    /// Bytes written to L2.
    pub stored_bytes: u64,
    /// Writes not needed because the L2 had the object.
    pub stores_already: u64,
    /// Writes and deletions tried again.
    pub store_retries: u64,
    /// Writes given up, and deletions: the sum of the `dropped_…` below.
    pub stores_dropped: u64,
    /// Gauge: objects in all backends, where they know.
    pub l2_objects: u64,
    /// Gauge: bytes in all backends, where they know.
    pub l2_bytes: u64,
    /// Objects evicted by the backends themselves.
    pub l2_evictions: u64,
    /// Gauge: clients connected to the daemon; 0 when embedded.
    pub clients: u64,
    /// Clients that went without closing; their shares were returned.
    pub clients_lost: u64,
    /// Submit to lookup answer.
    pub lookup_latency: Histogram,
    /// Submit to completion.
    pub prefetch_latency: Histogram,
    /// One object read from L2, from request to verified.
    pub load_latency: Histogram,
    /// One object written to L2, from request to stored.
    pub store_latency: Histogram,
    /// Time inside calls that a scheduler makes (submit, query).
    pub call_latency: Histogram,
    /// Of `read_misses`, keys that a backend had.
    pub l2_hits: u64,
    /// Of `read_misses`, keys that no backend had. `kvkeep_reserve_read` asks none. Behind the first gap of a prefix a backend need
    /// not be asked: what it has there counts as missing too.
    pub l2_misses: u64,
    /// Gauge: pins on objects in all backends, by which jobs keep them from being evicted until they are loaded. 0 when there is no job.
    pub l2_pins: u64,
    /// Uses that were not passed on to backends because too many waited.
    pub uses_dropped: u64,
    /// Gauge: the bound of `writes_pending`, as the cache was opened with.
    pub writes_pending_max: u64,
    /// Gauge: of `stores_dropped`, those of the last minute. While there are any, or more than half of `writes_pending_max` is pending,
    /// the backends do not keep up.
    pub stores_dropped_recently: u64,
    /// Gauge: `fs` backends that read and write with threads because the kernel refuses io_uring.
    pub io_uring_refused: u64,
    /// Gauge: 1 where the kernel refused to join pages of L1 to huge ones: transfers to disks and GPUs are slower.
    pub huge_pages_refused: u64,
    /// Times that the driver of a GPU refused to register L1 in a process of the cache: its copies are slower.
    pub registrations_refused: u64,
    /// Of `registrations_refused`, those for want of lockable memory: the limit on it (`ulimit -l`) is too small for L1.
    pub memlock_refused: u64,
    /// Writes asked for: one for each backend that an object is to go to, and one for an object that is not sent to any. Always
    /// `writes_asked` = `stores` + `stores_already` + `stores_dropped` - `dropped_deletions` + `writes_withdrawn` + `writes_pending`.
    /// With KVKEEP_STORE_WRITE_THROUGH and one backend a commit asks for one write, unless it is counted by `commits_discarded` or
    /// `commits_temporary`; so does a commit that has a temporary object kept, and an object that was stored and that the backend lost.
    pub writes_asked: u64,
    /// Gauge: deletions that backends have not answered, as far as they are sent together: those of one call to one backend, and one
    /// for a space that a backend is to forget.
    pub deletions_pending: u64,
    /// Writes not made because their object was deleted, cleared or forgotten first.
    pub writes_withdrawn: u64,
    /// Commits of temporary objects, which are not written. Those that were discarded are not among them.
    pub commits_temporary: u64,
    /// Writes dropped because as many waited as `writes_pending_max` allows.
    pub dropped_queue: u64,
    /// Writes dropped because L1 evicted their objects before a backend had them.
    pub dropped_evicted: u64,
    /// Writes dropped because a backend refused them, failed to the end, or did not answer in time.
    pub dropped_failed: u64,
    /// Writes dropped because their backend was fenced, failing in a row or removed, or there was none.
    pub dropped_fenced: u64,
    /// Writes dropped because the cache closed, for the log alone: no call can ask for them afterwards.
    pub dropped_closed: u64,
    /// Deletions given up.
    pub dropped_deletions: u64,
    /// Writes dropped because those before them took longer than the `store_latency_max_ms` of their backend.
    pub dropped_slow: u64,
    /// Tokens that need not be computed: those of the chunks in `prefetch_hit_chunks`, of jobs whose first key has rank 0 and group 0, and of
    /// the keys of rank 0 and group 0 in `read_hits` that no prefetch asked for. A chunk has as many as its space says (`chunk_tokens`).
    pub saved_tokens: u64,
    /// Gauge: milliseconds for which the object has been shared without a pause that is shared longest; 0 where none is. Up to a second late.
    pub oldest_share_ms: u64,
    /// Gauge: milliseconds since the oldest write of `writes_pending` was asked for; 0 where none is pending.
    pub oldest_write_ms: u64,
    /// Gauge: when the cache was opened, in milliseconds since 1970.
    pub opened_ms: u64,
    /// Bytes of the objects that need not be computed: those that prefetches found and took shares of, and the keys in `read_hits`
    /// that no prefetch asked for.
    pub saved_bytes: u64,
}

const _: () = assert!(size_of::<View>() == 24);
const _: () = assert!(size_of::<KeyState>() == 24);
const _: () = assert!(size_of::<Completion>() == 208);
const _: () = assert!(size_of::<JobResult>() == 248);
const _: () = assert!(size_of::<SpaceUsage>() == 32);
const _: () = assert!(size_of::<SessionState>() == 320);
const _: () = assert!(size_of::<Histogram>() == 224);
const _: () = assert!(size_of::<Stats>() == 8 + 39 * 8 + 5 * 224 + 26 * 8);
