/*
 * kvkeep: the KV cache of language-model requests, kept outside the GPU.
 *
 * This header is the specification. It is generated from the library's source: do not edit.
 *
 * Nouns, from the outside in.
 *
 *   cache     One open kvkeep: L1, memory that is mapped into this process, over up to seven backends, together called L2.
 *   tier      L1, or one backend.
 *   space     A namespace in a cache: a model, a layout of its bytes, a tenant. Objects of two spaces never meet.
 *   session   One request's use of a space: its tokens, the shares it holds, its staged writes, its jobs, its deadline.
 *   chunk     A run of tokens of a sequence that is cached as one; its length is the `chunk_tokens` of the space.
 *   rank      The slice of the KV cache that one worker has (tensor or pipeline parallel).
 *   group     Layers that are cached alike (full attention, sliding window, state).
 *   key       The name of an object in its space: the hash of all tokens up to the end of a chunk, a rank, a group.
 *   object    The bytes under one key: one chunk, for one rank and one group. Once committed they never change.
 *   share     A counted read lock on an object in L1, which a session takes and returns. Bytes under a share stay in place.
 *   job       Work that goes on after the call that submits it: a prefetch, which brings objects into L1, or a transfer,
 *             which copies them between L1 and an engine's pages: a load to the pages, a store from them.
 *   pool      Paged memory of an engine, as it is registered for transfers.
 *   block     A page of a pool. A chunk is a whole number of blocks. A block has one piece in each segment.
 *   segment   A stretch of a pool's memory with a place for every block: one tensor of one layer.
 *
 * A cache has spaces, a space has sessions and objects, a chunk has one object for each rank and group. An object that goes to or
 * from a pool has the pieces of its blocks, segment by segment.
 *
 * Verbs. A session stages what it writes (kvkeep_reserve_write), then commits it (kvkeep_finish_write) or drops it
 * (kvkeep_abort_write). It takes shares (kvkeep_reserve_read, and jobs) and returns them (kvkeep_finish_read). Sessions begin and
 * end; jobs are submitted, may be cancelled, and are released; caches, spaces and pools are opened and closed. A function query_
 * answers about a state, in a struct or for each item; a function get_ hands out something to use: views, keys, a descriptor,
 * a text. A sentence without a subject speaks of the function.
 *
 * Conventions. A function is kvkeep_verb_noun, or kvkeep_verb where it works on keys, handle first, outputs last, callback and
 * userdata at the end. The length of an array is a size_t and is called after the array: a _count of elements that are read or
 * all written, a _capacity where the function fills in as many as there are and says how many in a _count. Unless it says
 * otherwise, a function returns a kvkeep_status: 0 is success, a positive number is not an error, a negative one is, and then
 * kvkeep_last_error() says cause and remedy. A call that returns an error has changed nothing, but for TIMEOUT, DISCONNECTED and
 * INTERNAL, where the function says what goes on or may have happened. "Errors" names the errors that are particular to a
 * function. Any function may also return INVALID (its arguments), VERSION (its structs), CLOSED (also a call that waits while the
 * cache is closed), INTERNAL, and with a daemon DISCONNECTED, TIMEOUT, LIMIT and PERMISSION (a client that is read-only, or that
 * the daemon does not grant it). Bad input (NULL, zero or huge counts, unknown numbers, closed handles, text that is not
 * UTF-8) is an error, never undefined; only a pointer that does not point to as much as its type and count say is beyond
 * checking. Memory that the caller passes stays the caller's and is not kept after the call, unless said. The caller frees
 * nothing that the library returns. Times are in milliseconds or microseconds as the name says, sizes in bytes. Sessions,
 * jobs, spaces and backends are numbers, never 0, and never reused while the cache is open; those of a daemon's sessions and
 * jobs are not given again in its next 65534 runs. If the system refuses memory to the library itself, the call is NO_MEMORY
 * where it may need much: L1, the events that are kept, a session's tokens, the keys of a job or a transfer. Elsewhere (a
 * batch's lists, some hundred bytes a key; pieces of tables, some hundred kilobytes) a refusal ends the process.
 */


#ifndef KVKEEP_H
#define KVKEEP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Version of the library that this header was made with. Of two, the later has the greater number. */
#define KVKEEP_VERSION_MAJOR 0
#define KVKEEP_VERSION_MINOR 1
#define KVKEEP_VERSION_PATCH 0
#define KVKEEP_VERSION "0.1.0"
#define KVKEEP_VERSION_NUMBER (KVKEEP_VERSION_MAJOR * 1000000 + KVKEEP_VERSION_MINOR * 1000 + KVKEEP_VERSION_PATCH)

/* Stands before every function, which the library exports. A program that wraps the library may define it first. */
#ifndef KVKEEP_API
#if defined(__GNUC__)
#define KVKEEP_API __attribute__((visibility("default")))
#else
#define KVKEEP_API
#endif
#endif

/* Prepares a versioned struct: zeroes it and tells the library which one the caller was built with. */
#define KVKEEP_INIT(s) \
    (memset((s), 0, sizeof *(s)), (s)->struct_size = (uint32_t)sizeof *(s), (s)->abi_version = KVKEEP_ABI_VERSION, (void)0)


/// ---- Version ----
///
/// The ABI version changes only when a caller built before could break. While the major version is 0, the minor
/// version is part of the SONAME.
///
/// Version of the ABI that this header describes.
#define KVKEEP_ABI_VERSION 1

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
#define KVKEEP_FLAG_HUGE_PAGES 1

/// Bind L1 to the node in `numa_node`.
#define KVKEEP_FLAG_NUMA_NODE 2

/// Do not touch L1's pages in the background after opening; each first use of a page then pays for it.
#define KVKEEP_FLAG_NO_PREFAULT 4

/// Neither compute nor verify checksums of L2 objects, which miss one random corruption in 2^32 (CRC-32C). Identity and length are
/// always verified.
#define KVKEEP_FLAG_NO_CHECKSUM 8

/// For a daemon's client: its L1 is mapped so that this process cannot write it; calls that write are PERMISSION.
#define KVKEEP_FLAG_READ_ONLY 16

/// `l1_bytes` is a percentage, 1 to 100, of the machine's memory or of the control group's limit, whichever is less.
#define KVKEEP_FLAG_L1_PERCENT 32

/// The CPU's own memory, as the device of a pool. It is not 0, so that a device that was left out is refused where there is no
/// CUDA device, and pages of a GPU are never taken for the CPU's.
#define KVKEEP_DEVICE_HOST -1

/// In place of a block's number: there is none.
#define KVKEEP_BLOCK_NONE -1

/// In a key's state: it is dropped when its last share is returned.
#define KVKEEP_KEY_TEMPORARY 1

/// In a key's state: eviction may take it now. It is under no copy or transfer, and its shares, if it has any, are of sessions past
/// their deadlines.
#define KVKEEP_KEY_EVICTABLE 2

/// In a key's state: a backend has it, as far as L1 knows. Cleared when the last backend that had it evicts, deletes or
/// quarantines it, or is removed; L1 then writes it again before it evicts it.
#define KVKEEP_KEY_STORED 4

/// In a key's state: it waits to be written to the backends, or is being written.
#define KVKEEP_KEY_STORING 8

/// Length of `tier_keys` in a result: L1 and seven backends, the most that a cache has today. `kvkeep_query_backends` bounds nothing.
#define KVKEEP_TIERS_MAX 8

/// Most keys in one call.
#define KVKEEP_KEYS_MAX (1 << 20)

/// Largest extra_count.
#define KVKEEP_EXTRA_COUNT_MAX 127

/// Length of the message inside a completion, its NUL included.
#define KVKEEP_MESSAGE_BYTES 128

/// Buckets of a histogram.
#define KVKEEP_HISTOGRAM_BUCKETS 26

/// Length of a request id, its NUL included.
#define KVKEEP_REQUEST_ID_BYTES 256

/// Length of the URL inside a backend's state, its NUL included.
#define KVKEEP_URL_BYTES 512

/// Length of `reasons` in a kvkeep_miss_report. Later versions of the library may know more reasons than this one.
#define KVKEEP_MISS_REASONS_MAX 16

/// Most events that are kept for readers.
#define KVKEEP_EVENTS_MAX (1 << 16)

/// Bytes of the header that a backend stores beside each payload.
#define KVKEEP_OBJECT_HEADER_BYTES 160

/// In the flags of a lookup: the caller wants a prefix, so that every key after the first absent one may be answered NOT_FOUND
/// without a look.
#define KVKEEP_LOOKUP_IN_ORDER 1

/// The result of a call, and of each key of a batch. 0 is success, a positive number is not an error, a
/// negative one is. Numbers are never reused.
typedef enum {
    /// The call did what it was asked.
    KVKEEP_OK = 0,
    /// Not known yet: ask again, or wait for the completion.
    KVKEEP_PENDING = 1,
    /// The batch was carried out and at least one key has a status of its own that is not OK.
    KVKEEP_PARTIAL = 2,
    /// An argument is outside what the function takes; nothing was changed.
    KVKEEP_ERR_INVALID = -1,
    /// The handle was never given out, is closed, or was opened by the parent of a fork.
    KVKEEP_ERR_CLOSED = -2,
    /// No such key, session, space, job, pool or backend (or the key is only staged).
    KVKEEP_ERR_NOT_FOUND = -3,
    /// The key is ready already, or staged by the same session.
    KVKEEP_ERR_EXISTS = -4,
    /// The session does not hold as many shares of the key; nothing was changed.
    KVKEEP_ERR_NOT_HELD = -5,
    /// The session passed its deadline and was ended, or shares of it were revoked.
    KVKEEP_ERR_EXPIRED = -6,
    /// The object is shared, or under a copy or a transfer.
    KVKEEP_ERR_LOCKED = -7,
    /// L1 is full of memory in use, or the system refuses memory.
    KVKEEP_ERR_NO_MEMORY = -8,
    /// The space's quota is full of memory in use.
    KVKEEP_ERR_QUOTA = -9,
    /// A bound is reached: of sessions, jobs, spaces, backends, pools, or of another thing that the message names.
    KVKEEP_ERR_LIMIT = -10,
    /// The deadline passed first, or a daemon's client got no answer in time.
    KVKEEP_ERR_TIMEOUT = -11,
    /// Cancelled by the caller, by its session's abort, or by close.
    KVKEEP_ERR_CANCELLED = -12,
    /// The operating system or a backend failed.
    KVKEEP_ERR_IO = -13,
    /// Stored bytes do not match their identity or checksum.
    KVKEEP_ERR_CORRUPT = -14,
    /// This build, kernel or backend cannot do it.
    KVKEEP_ERR_UNSUPPORTED = -15,
    /// The header the caller was built with does not fit the library that was loaded.
    KVKEEP_ERR_VERSION = -16,
    /// Not allowed, by file mode, a read-only file system, peer credentials or KVKEEP_FLAG_READ_ONLY.
    KVKEEP_ERR_PERMISSION = -17,
    /// The daemon went away; all that it held for this connection is lost.
    KVKEEP_ERR_DISCONNECTED = -18,
    /// A bug in kvkeep was caught; the cache refuses further work. Pools still close, jobs can be waited for, cancelled and
    /// released, and completions taken.
    KVKEEP_ERR_INTERNAL = -19,
    /// A GPU or its driver failed.
    KVKEEP_ERR_DEVICE = -20,
} kvkeep_status;

/// When a committed object is written to the L2 backends.
typedef enum {
    /// After its commit, in the background. The default.
    KVKEEP_STORE_WRITE_THROUGH = 0,
    /// When background eviction chooses it. Inline eviction prefers objects already written, and drops others
    /// unwritten.
    KVKEEP_STORE_WRITE_BACK = 1,
    /// After it was read `store_after_uses` times.
    KVKEEP_STORE_AFTER_USES = 2,
    /// Never.
    KVKEEP_STORE_NEVER = 3,
} kvkeep_store_mode;

/// How long an object lives.
typedef enum {
    /// Until it is evicted or deleted. The default.
    KVKEEP_LIFETIME_CACHED = 0,
    /// Until its last share is returned; it is never written to L2. A job that returns shares itself (of chunks beyond its answer,
    /// or because it is cancelled) has not read the object: one that was committed so and that nobody has read yet stays.
    KVKEEP_LIFETIME_TEMPORARY = 1,
} kvkeep_lifetime;

/// Which chunks of a job count as hits.
typedef enum {
    /// The longest run from the first chunk; a gap ends it and nothing beyond is loaded.
    KVKEEP_PREFETCH_PREFIX = 0,
    /// The longest length whose last `window_chunks` chunks are there (sliding window and state groups).
    KVKEEP_PREFETCH_WINDOW = 1,
    /// Each chunk for itself.
    KVKEEP_PREFETCH_EACH = 2,
} kvkeep_prefetch_mode;

/// The effect of a job's deadline.
typedef enum {
    /// At the deadline the job ends with what is loaded by then. The default.
    KVKEEP_PREFETCH_POLICY_BEST_EFFORT = 0,
    /// The job ends when everything that was planned is loaded or failed, however long the backends take; one that pauses ends at its
    /// deadline.
    KVKEEP_PREFETCH_POLICY_WAIT = 1,
    /// Not done by the deadline: TIMEOUT, and nothing is held.
    KVKEEP_PREFETCH_POLICY_DEADLINE = 2,
} kvkeep_prefetch_policy;

/// How a job without a callback reports its end.
typedef enum {
    /// By `kvkeep_query_job` or `kvkeep_wait_job` only.
    KVKEEP_NOTIFY_POLL = 0,
    /// By `kvkeep_take_completions`, the descriptor of `kvkeep_get_event_fd` becoming readable.
    KVKEEP_NOTIFY_EVENT_FD = 1,
} kvkeep_notify;

/// Which tensor of its layer a segment is: for `parts` of kvkeep_pool_options. Numbers from 65536 on are the engine's own; those
/// between are kept for parts to come.
typedef enum {
    /// Not said. The default.
    KVKEEP_PART_UNSAID = 0,
    /// K.
    KVKEEP_PART_KEY = 1,
    /// V.
    KVKEEP_PART_VALUE = 2,
} kvkeep_part;

/// What a call names, for `kvkeep_get_error`.
typedef enum {
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
} kvkeep_subject;

/// The kind of a job.
typedef enum {
    /// It looks keys up and loads into L1 what L1 lacks: `kvkeep_submit_prefetch`.
    KVKEEP_JOB_PREFETCH = 1,
    /// A transfer into an engine's pages: `kvkeep_submit_load`.
    KVKEEP_JOB_LOAD = 2,
    /// A transfer from an engine's pages: `kvkeep_submit_store`.
    KVKEEP_JOB_STORE = 3,
    /// Of a completion alone: not the end of the job, but the answer of its lookup (`notify_lookup`).
    KVKEEP_JOB_LOOKUP = 4,
} kvkeep_job_kind;

/// Whether a backend is used.
typedef enum {
    /// It answers.
    KVKEEP_BACKEND_GOOD = 0,
    /// It is used, and `message` names what slows or bounds it.
    KVKEEP_BACKEND_NOTED = 1,
    /// It is not used until it has answered the requests that passed their deadline.
    KVKEEP_BACKEND_FENCED = 2,
    /// It fails, and may come back.
    KVKEEP_BACKEND_BAD = 3,
    /// So many of its requests failed in a row (`breaker_errors` of its URL) that it gets no more for a pause, then one that decides.
    /// Until then its objects are misses; or only its writes failed, and are dropped.
    KVKEEP_BACKEND_OPEN = 4,
} kvkeep_backend_health;

/// Why a lookup missed a key.
typedef enum {
    /// It was never stored and never asked for since the cache was opened; or that was so long ago that it is forgotten.
    KVKEEP_MISS_NEVER_SEEN = 0,
    /// It was asked for before, and not committed since: the engine does not store it, or has not yet.
    KVKEEP_MISS_NOT_STORED = 1,
    /// A tier evicted it, the last one that had it: `evicted` has which. A backend whose evictions are not heard of (Redis, S3) counts
    /// here when it has lost what was stored in it, and so does one that was removed.
    KVKEEP_MISS_EVICTED = 2,
    /// It was not written to a backend because too many writes waited (`dropped_queue`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_QUEUE = 3,
    /// L1 evicted it before it was written (`dropped_evicted`).
    KVKEEP_MISS_DROPPED_EVICTED = 4,
    /// A backend refused it or failed to store it (`dropped_failed`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_FAILED = 5,
    /// The backends were fenced, failing or gone when it was to be written (`dropped_fenced`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_FENCED = 6,
    /// It was not written because writes took too long (`dropped_slow`), and L1 has it no more.
    KVKEEP_MISS_DROPPED_SLOW = 7,
    /// Its bytes were found corrupt in a backend, which has put it aside: `quarantined` has which.
    KVKEEP_MISS_QUARANTINED = 8,
    /// An object of the same hash, rank and group is or was in another space: this one has another model, layout, tenant, chunk size
    /// or generation.
    KVKEEP_MISS_OTHER_SPACE = 9,
    /// The caller deleted it, cleared it, or had its space forgotten.
    KVKEEP_MISS_DELETED = 10,
    /// It was temporary, was read, and no backend had it.
    KVKEEP_MISS_TEMPORARY = 11,
    /// A backend that may have it was fenced, failing or late, or forgets the space, so that it was not asked or gave no answer.
    KVKEEP_MISS_UNREACHABLE = 12,
    /// A backend that may have it was not asked: an earlier key of the prefix was missing, and backends answer only by I/O; or
    /// `kvkeep_reserve_read`, which looks in L1 alone, came without a prefetch or after its shares were returned.
    KVKEEP_MISS_BEHIND_MISS = 13,
} kvkeep_miss_reason;

/// A change of an object in one tier.
typedef enum {
    /// It is there from now on: committed to L1, or written to a backend.
    KVKEEP_EVENT_STORED = 1,
    /// It is not there any more: evicted, deleted, cleared, dropped with its last share, or quarantined.
    KVKEEP_EVENT_REMOVED = 2,
} kvkeep_event_kind;

/// How important a line of the log is.
typedef enum {
    /// Something failed that a person should look at.
    KVKEEP_LOG_ERROR = 1,
    /// Something was refused, dropped or retried. The default.
    KVKEEP_LOG_WARN = 2,
    /// A cache was opened or closed, or a backend added or removed.
    KVKEEP_LOG_INFO = 3,
} kvkeep_log_level;

/// Whether L1 has an object.
typedef enum {
    /// It has not. Staging is its session's alone: what is only staged, or on its way from a backend, is absent.
    KVKEEP_OBJECT_ABSENT = 0,
    /// Committed: every session can take shares of it and read it.
    KVKEEP_OBJECT_READY = 1,
} kvkeep_object_state;

/// One open cache. Opaque.
typedef struct kvkeep kvkeep;

/// Gets one line of text, valid during the call. Runs on any library thread, or inside a call that opens or closes a
/// cache or a pool; must not call into kvkeep.
typedef void (*kvkeep_log_callback)(void *userdata, int32_t level, const char *message);

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
typedef int32_t (*kvkeep_key_callback)(void *userdata, const char *name, uint32_t number, uint8_t *key);

/// How a cache is opened.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// NULL: embedded, in this process. "unix:///path/of/the.sock": a client of the daemon that serves this socket
    /// (`kvkeep serve`), whose L1 is mapped here. A client leaves everything below 0 or NULL (INVALID otherwise), except
    /// the flags READ_ONLY and NO_PREFAULT, `session_timeout_ms` (0: the daemon's) and the log: all else is the
    /// daemon's. "unix:///path?spin_us=50": a call looks for its answer so long before it sleeps, and the
    /// daemon for the next call (at most 50 us): quicker, at the price of a busy core. Default 0. "?wait_ms=5000":
    /// `kvkeep_open` waits so long for a daemon that is not there yet. Default 0. "?patience_ms=2000": so long a call
    /// that has no time of its own waits for a daemon that does not answer, then it is TIMEOUT. Default 2000.
    const char *connect;
    /// Size of L1 in bytes, required when embedded. Rounded up to whole pages. At least 4096, at most the machine's
    /// memory and the limit of the process's control group and of those above it (cgroup v1 and v2; NO_MEMORY beyond).
    /// No memory is set aside for the rest of the process.
    uint64_t l1_bytes;
    /// KVKEEP_FLAG_…, or'ed.
    uint32_t flags;
    /// The node to bind L1 to when KVKEEP_FLAG_NUMA_NODE is given.
    uint32_t numa_node;
    /// "lru", "s3fifo", "mq" or "none". NULL: "lru".
    const char *eviction_policy;
    /// Background eviction starts above this percentage of L1. 0: 80. 100: never.
    uint32_t watermark_high_percent;
    /// Background eviction stops at this percentage of L1, which is not above the high one. 0: 60.
    uint32_t watermark_low_percent;
    /// A kvkeep_store_mode.
    uint32_t store_mode;
    /// For KVKEEP_STORE_AFTER_USES: reads before an object is written, at most 65535. 0: 2.
    uint32_t store_after_uses;
    /// URLs of the backends, in the order they are asked; see `kvkeep_add_backend`. NULL if none.
    const char *const *backend_urls;
    /// How many URLs.
    size_t backend_count;
    /// Most live sessions, at most 1048575. 0: 65536.
    uint32_t sessions_max;
    /// Most jobs not yet released. 0: 65536.
    uint32_t jobs_max;
    /// Most objects waiting to be written to L2; those beyond are dropped and counted. 0: 65536.
    uint32_t writes_pending_max;
    /// Default deadline of a session, renewed by any use. 0: 300000 (300 s).
    uint32_t session_timeout_ms;
    /// Deadline of one request to a backend; past it the backend is fenced until it answers. 0: 30000.
    uint32_t backend_timeout_ms;
    /// When L1 is full of objects that no backend has yet, or as many writes wait as `writes_pending_max` allows, a reservation to
    /// write waits so long for writes to end before L1 evicts such objects and drops their writes. `kvkeep_reserve_write` then blocks
    /// its caller up to so long; `kvkeep_submit_store` never blocks, and what it finds no memory for waits in the background.
    /// Objects that are loaded, or are temporary, do not wait, nor does anything with KVKEEP_STORE_AFTER_USES or
    /// KVKEEP_STORE_NEVER. 0: 0, or with `connect` that of the daemon (`--store-wait-ms`).
    uint32_t store_wait_ms;
    /// Most bytes being loaded from L2 at once, and never more than about 16384 objects; further loads wait in order of priority.
    /// 0: a quarter of L1, at most 1 GiB, so that what waits in a backend is read before `backend_timeout_ms`.
    uint64_t loading_bytes_max;
    /// Where log lines go. NULL: nowhere.
    kvkeep_log_callback log;
    /// Passed to `log`.
    void *log_userdata;
    /// A kvkeep_log_level; less important lines are left out. 0: KVKEEP_LOG_WARN.
    uint32_t log_level;
    /// Must be 0.
    uint32_t reserved;
    /// NULL: this cache is the process's alone. "unix:///path/of/the.sock": from `kvkeep_serve_clients` on, other processes `connect`
    /// to it, as to a daemon, as long as it is open; this process is the daemon then, and may have backends of its own
    /// (`kvkeep_add_backend_vtable`). "?http=127.0.0.1:9400": the daemon's page, metrics and health there. "?mode=0660": the socket's
    /// mode, 0600 by default. A file beside the socket, with ".lock" after its name, is locked; EXISTS where another process has
    /// it. Not with `connect`.
    const char *listen;
    /// Gives the keys of backends whose URL has "key_from=". NULL: no URL may have it. Not with `connect`: keys are the daemon's.
    kvkeep_key_callback key_callback;
    /// Passed to `key_callback`.
    void *key_userdata;
} kvkeep_options;

/// How a space is opened. All texts are UTF-8, of 8192 bytes at most, and copied.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// The model, required and not empty: name and revision, or a hash of the weights.
    const char *model;
    /// Everything that the bytes depend on besides the model: dtype, shapes, parallelism. NULL: "". The shapes of pools
    /// are compared besides (`kvkeep_open_pool`).
    const char *layout;
    /// Salt that keeps tenants apart. No secret: metrics and the daemon's HTTP port show it to operators. NULL: "".
    const char *tenant;
    /// Tokens of a chunk. 0: 256.
    uint32_t chunk_tokens;
    /// Must be 0.
    uint32_t reserved;
    /// Most bytes of L1 that objects of this space may take. 0: no bound but L1, or the quota of the space if it is open already.
    uint64_t quota_bytes;
    /// Which weights, where the model's name stays the same when they change: a count, a step, a hash. Spaces of two generations
    /// never meet, so that the former's objects need not be removed before they are out of reach. 0 is one like any other.
    uint64_t generation;
} kvkeep_space_options;

/// A parameter of a backend's URL, percent-decoded.
typedef struct {
    /// Its name; NUL-terminated UTF-8.
    const char *name;
    /// Its value; NUL-terminated UTF-8.
    const char *value;
} kvkeep_backend_parameter;

/// Names an object inside a space. Plain data, 40 bytes, so that arrays of it cross the ABI uncopied.
///
/// Below L1, whole keys are compared. L1 knows a key by a fingerprint: 80 bits of a universal hash of all its bytes, which each process
/// seeds from the operating system's randomness. Two keys have one fingerprint with a chance of at most 2^-79, also if a caller
/// chooses them, and a call that looks a key up gets the object of another key with a chance of less than 2^-80.
typedef struct {
    /// Hash of all tokens up to the end of the chunk.
    uint8_t hash[32];
    /// Slice of the KV cache (tensor or pipeline parallel rank) that the object holds.
    uint32_t rank;
    /// Set of layers cached alike (full attention, sliding window, state).
    uint32_t group;
} kvkeep_key;

/// The name of an object below L1, the same in every process and after every restart. 56 bytes without padding, so that its bytes
/// may serve as a name.
typedef struct {
    /// The tag of its space: a fingerprint of model, layout, tenant, chunk size and generation.
    uint8_t space[16];
    /// Its key in the space.
    kvkeep_key key;
} kvkeep_backend_key;

/// The answer to one request. Prepare it with KVKEEP_INIT and set the fields that the request asks for. It is read during the
/// call of `complete` only.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// A kvkeep_status: OK, or the error that the whole request met; then nothing else is read but `message`. Of a health request, OK
    /// means that the backend answers its requests.
    int32_t status;
    /// Must be 0.
    uint32_t reserved;
    /// For people: the cause of an error, or of a health request what slows or bounds the backend. UTF-8. NULL: nothing to say.
    const char *message;
    /// A kvkeep_status for each key or object of the request, in its order. Of a lookup: OK or NOT_FOUND. Of a load: OK, NOT_FOUND
    /// or an error. Of a store: OK, EXISTS (it was there already) or an error. Of a removal: OK, NOT_FOUND or an error. NULL: all OK.
    const int32_t *statuses;
    /// Of a lookup: for each key that is OK, the bytes of its payload. Of a load: for each object, the bytes of payload that were
    /// read; NULL: as many as were asked for. Otherwise not read.
    const uint64_t *sizes;
    /// Elements of `statuses` and of `sizes`: as many as the request has keys or objects.
    size_t count;
    /// Of a list: names of objects, at most KVKEEP_KEYS_MAX. NULL if none.
    const kvkeep_backend_key *keys;
    /// How many names.
    size_t key_count;
    /// Of a list: where the next one is to go on, in the plug-in's own numbers. 0: these were the last.
    uint64_t next_cursor;
    /// Of a usage request: objects that the backend has, 0 where it does not know.
    uint64_t objects;
    /// Of a usage request: bytes that they take.
    uint64_t bytes;
    /// Of a usage request: most bytes that it may take; 0: no bound of its own.
    uint64_t capacity_bytes;
    /// Of a usage request: objects that it has evicted since it was opened.
    uint64_t evictions;
} kvkeep_backend_answer;

/// Completes a request: exactly once, from any thread, also from inside the call that made the request. Afterwards the plug-in uses
/// nothing of the request any more: not its arrays, headers or payloads. Waits for no I/O. Returns OK; or INVALID where there is no
/// such request, because it was completed before or never made: nothing was changed then; or INVALID or VERSION where the answer
/// is none: the request has then ended with an error. Each refusal is counted and logged; `kvkeep_last_error` is not set.
typedef kvkeep_status (*kvkeep_backend_complete)(uint64_t request, const kvkeep_backend_answer *answer);

/// Writes a line to the cache's log. `backend` is the number in the host, `level` a kvkeep_log_level. Any thread.
typedef void (*kvkeep_backend_log)(uint64_t backend, int32_t level, const char *message);

/// Tells that the backend has lost objects by itself, because it evicted them or another process deleted them: L1 then does not take
/// them for stored any more. Of removals, and of loads that are NOT_FOUND, kvkeep knows already. Any thread.
typedef void (*kvkeep_backend_lost)(uint64_t backend, const kvkeep_backend_key *keys, size_t key_count);

/// The library, as a plug-in sees it. Functions are called by these pointers, not by name: the process may have the library linked
/// into its program, where a plug-in cannot find its functions.
typedef struct {
    /// sizeof of the library's struct: a field beyond it is not there.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the library.
    uint32_t abi_version;
    /// The number to pass to `log` and `lost`.
    uint64_t backend;
    /// First byte of L1 in this process, so that it can be registered with a device or a network. Payloads lie in it, except where
    /// "fault:" tears a store.
    void *arena;
    /// Its length in bytes.
    uint64_t arena_bytes;
    /// Completes a request.
    kvkeep_backend_complete complete;
    /// Writes a line to the log.
    kvkeep_backend_log log;
    /// Tells of objects that are gone.
    kvkeep_backend_lost lost;
} kvkeep_backend_host;

/// Opens a backend and sets `*backend`, which the other functions get; it may stay NULL. `parameters` are those of the URL that
/// kvkeep does not know itself; one that the plug-in does not know should be INVALID. They are valid during the call; `host` is
/// until close returns. Returns a kvkeep_status; on failure, writes cause and remedy as NUL-terminated UTF-8 into `message` of
/// `message_bytes` bytes; close is not called then. Runs inside the call that opens the backend, and may block.
typedef int32_t (*kvkeep_backend_open)(void *userdata,
                                       const kvkeep_backend_parameter *parameters,
                                       size_t parameter_count,
                                       const kvkeep_backend_host *host,
                                       void **backend,
                                       char *message,
                                       size_t message_bytes);

/// Asks which objects are there, and pins those that are: until unpin, the backend should not evict them. A store that has no pins
/// leaves unpin NULL: where an object is gone when it is loaded, its load is NOT_FOUND. `flags` are KVKEEP_LOOKUP_…, or'ed.
typedef void (*kvkeep_backend_lookup)(void *backend,
                                      uint64_t request,
                                      const kvkeep_backend_key *keys,
                                      size_t key_count,
                                      uint32_t flags,
                                      uint32_t timeout_ms);

/// One object of a load or a store.
typedef struct {
    /// Its name.
    kvkeep_backend_key key;
    /// KVKEEP_OBJECT_HEADER_BYTES bytes: a load writes what was stored, a store reads. They say whose the payload is and have its
    /// checksum; kvkeep makes and verifies them. Not in the arena.
    void *header;
    /// The payload in L1, aligned to 64: a load writes it, a store reads it.
    void *data;
    /// Bytes of the payload. For a load, those that the lookup answered.
    uint64_t size;
    /// Always 0.
    uint64_t reserved[2];
} kvkeep_backend_object;

/// Reads objects: of each, the header and exactly `size` bytes of payload. An object that is longer or shorter is answered with its
/// own length in `sizes`, and is then deleted.
typedef void (*kvkeep_backend_load)(void *backend,
                                    uint64_t request,
                                    const kvkeep_backend_object *objects,
                                    size_t object_count,
                                    uint32_t timeout_ms);

/// Writes objects: of each, header and payload. No lookup may find an object before it is whole. One that is there already is EXISTS
/// and is not written again.
typedef void (*kvkeep_backend_store)(void *backend,
                                     uint64_t request,
                                     const kvkeep_backend_object *objects,
                                     size_t object_count,
                                     uint32_t timeout_ms);

/// Tells of keys, and is owed no answer: to touch, that they were used, the last one last; to unpin, that each has one pin less. `keys`
/// is valid during the call. NULL: the backend does not care.
typedef void (*kvkeep_backend_tell)(void *backend, const kvkeep_backend_key *keys, size_t key_count);

/// Deletes objects, pinned or not. kvkeep neither finds them here nor stores them anew before it is completed, however long that takes.
typedef void (*kvkeep_backend_remove)(void *backend,
                                      uint64_t request,
                                      const kvkeep_backend_key *keys,
                                      size_t key_count,
                                      uint32_t timeout_ms);

/// Lists objects of one space, whose tag has 16 bytes, or for NULL of all, from `cursor` on: 0, or the `next_cursor` of the answer
/// before. It is asked when a space is forgotten; what it lists is removed before it is asked for more. NULL: the backend cannot list,
/// and can forget a space only as far as its objects are removed by key; the space's `generation` then serves instead.
typedef void (*kvkeep_backend_list)(void *backend,
                                    uint64_t request,
                                    const uint8_t *space,
                                    uint64_t cursor,
                                    uint32_t timeout_ms);

/// Asks for usage or health, now and then. NULL: usage is 0, and health is good.
typedef void (*kvkeep_backend_query)(void *backend, uint64_t request, uint32_t timeout_ms);

/// Closes a backend, once, when no other call of it runs or will begin. Requests may still be under way: the plug-in completes each
/// before it returns, and afterwards calls the host no more. The memory of a request that it does not complete stays reserved until
/// the process exits. May block; a cache that closes waits for it up to `backend_timeout_ms`.
typedef void (*kvkeep_backend_close)(void *backend);

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
typedef struct {
    /// sizeof of the plug-in's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the plug-in's header.
    uint32_t abi_version;
    /// What the store is called, for people: 1 to 63 bytes of UTF-8, copied.
    const char *name;
    /// Passed to `open`.
    void *userdata;
    /// Opens the backend.
    kvkeep_backend_open open;
    /// Looks keys up, and pins what is there.
    kvkeep_backend_lookup lookup;
    /// Reads objects.
    kvkeep_backend_load load;
    /// Writes objects.
    kvkeep_backend_store store;
    /// Notes uses. May be NULL.
    kvkeep_backend_tell touch;
    /// Takes pins off. May be NULL.
    kvkeep_backend_tell unpin;
    /// Deletes objects.
    kvkeep_backend_remove remove;
    /// Lists objects. May be NULL.
    kvkeep_backend_list list;
    /// Counts what the backend has. May be NULL.
    kvkeep_backend_query usage;
    /// Says whether the backend can be used. May be NULL.
    kvkeep_backend_query health;
    /// Closes the backend.
    kvkeep_backend_close close;
} kvkeep_backend_vtable;

/// How a session begins.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// The request's id, for people (logs, explain). UTF-8, copied, at most 255 bytes. NULL: "".
    const char *request_id;
    /// Deadline, renewed by any use. 0: the cache's `session_timeout_ms`.
    uint32_t timeout_ms;
    /// Must be 0.
    uint32_t reserved;
} kvkeep_session_options;

/// One object's bytes in L1, as a reservation returns it.
typedef struct {
    /// First byte, NULL unless `status` is OK. Write only what `kvkeep_reserve_write` returned; read otherwise.
    /// Aligned to 4096 when `size` is a multiple of 4096, else to 64.
    void *data;
    /// Length of the object in bytes.
    uint64_t size;
    /// A kvkeep_status for this key alone.
    int32_t status;
    /// Always 0.
    uint32_t reserved;
} kvkeep_view;

/// The state of one key in L1.
typedef struct {
    /// Length of the object in bytes; 0 if absent.
    uint64_t size;
    /// A kvkeep_object_state.
    uint32_t state;
    /// Shares of it, held by all sessions.
    uint32_t shares;
    /// KVKEEP_KEY_…, or'ed; 0 if absent.
    uint32_t flags;
    /// Always 0.
    uint32_t reserved;
} kvkeep_key_state;

/// How the objects of one group count in a job, where it differs from the job's own mode (hybrid models).
typedef struct {
    /// The `group` of the keys it is for.
    uint32_t group;
    /// KVKEEP_PREFETCH_PREFIX or KVKEEP_PREFETCH_WINDOW.
    uint32_t mode;
    /// For a window: how many chunks.
    uint32_t window_chunks;
    /// Must be 0.
    uint32_t reserved[5];
} kvkeep_group_rule;

/// How a prefetch is done.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// Each key found is held by 1 + extra_count shares. 0 to 127.
    int32_t extra_count;
    /// Objects of one chunk (world size times groups); the key count must be a multiple. Keys are chunk-major. 0: 1.
    uint32_t objects_per_chunk;
    /// A kvkeep_prefetch_mode.
    uint32_t mode;
    /// For KVKEEP_PREFETCH_WINDOW: how many chunks, at least 1.
    uint32_t window_chunks;
    /// Rules of single groups, copied; of two for one group the first holds. A job's length is the longest at which every group can
    /// continue. NULL if none.
    const kvkeep_group_rule *group_rules;
    /// How many rules, at most 64.
    size_t group_rule_count;
    /// A kvkeep_prefetch_policy.
    uint32_t policy;
    /// Deadline of the job, from submit; its answer can be read for as long again, from its end. 0: the session's timeout.
    uint32_t deadline_ms;
    /// How long the backends are asked again for a missing chunk, in the background; one that is committed to L1 meanwhile is
    /// noticed at once. 0: they are asked once.
    uint32_t lookup_timeout_ms;
    /// Pause between two requests of that kind. 0: 10.
    uint32_t lookup_interval_ms;
    /// A kvkeep_lifetime, for objects that this job loads into L1.
    uint32_t lifetime;
    /// Jobs of higher priority load first. Default 0.
    int32_t priority;
    /// A kvkeep_notify, for jobs without a callback.
    uint32_t notify;
    /// 1: the lookup's answer is reported as well, by the callback or the event descriptor; the job needs one of the two. It is a
    /// kvkeep_completion of kind KVKEEP_JOB_LOOKUP and status OK, whose `hit_chunks` are those of `kvkeep_query_lookup_hits`. It comes
    /// once, before the job's end. A job that ends before its answer (cancelled, or at its deadline) reports its end alone.
    uint32_t notify_lookup;
    /// 1: the job pauses with its lookup's answer, and loads nothing before `kvkeep_resume_job`. A job that has nothing to load does not
    /// pause, and need not be resumed. What was found stays in L1 by the session's shares, and in a backend by pins where it has pins
    /// ("fs://", "memory:", plug-ins). Elsewhere it may be gone when the job is resumed, which then falls short.
    /// While the job pauses, `kvkeep_delete` says LOCKED of these keys; a backend can be removed. The deadline runs on. A job that still
    /// pauses at its deadline ends: with KVKEEP_PREFETCH_POLICY_DEADLINE as TIMEOUT, else with what L1 had.
    uint32_t pause_after_lookup;
    /// Must be 0.
    uint32_t reserved[1];
} kvkeep_prefetch_options;

/// The end of one job, or of kind KVKEEP_JOB_LOOKUP the answer of its lookup; complete in itself, valid on any thread. Fields of the
/// other kind of job are 0.
typedef struct {
    /// The job.
    uint64_t job;
    /// Its session.
    uint64_t session;
    /// A kvkeep_status: OK, PARTIAL (transfers only), or why it ended early (TIMEOUT, CANCELLED, EXPIRED, DISCONNECTED,
    /// DEVICE of transfers only, INTERNAL).
    int32_t status;
    /// Of a prefetch: chunks the session now holds shares of, in the unit of `kvkeep_query_lookup_hits`; of a lookup: chunks that
    /// will be hit.
    uint32_t hit_chunks;
    /// Of a prefetch: bytes loaded into L1.
    uint64_t loaded_bytes;
    /// NUL-terminated UTF-8: empty if nothing fell short, else the shortfall and its cause.
    char message[KVKEEP_MESSAGE_BYTES];
    /// A kvkeep_job_kind.
    uint32_t kind;
    /// Of a transfer: objects that are where they were to go. A store counts those too that were there already.
    uint32_t copied_keys;
    /// Of a transfer: bytes copied. Of what was there already none.
    uint64_t copied_bytes;
    /// Always 0.
    uint64_t reserved[4];
} kvkeep_completion;

/// Gets the completion of a job, valid during the call only. Runs on the library thread "kvkeep-callback", never inside a
/// call of the submitter, with no lock held, exactly once; with `notify_lookup` once more before, of kind KVKEEP_JOB_LOOKUP, so that
/// `userdata` is needed until the other call. May call any function but `kvkeep_close`; must not throw.
typedef void (*kvkeep_callback)(void *userdata, const kvkeep_completion *completion);

/// The result of a job. The caller sets `struct_size` and `abi_version` (KVKEEP_INIT). Fields of the other kind of job are 0.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// A kvkeep_status, as in the completion.
    int32_t status;
    /// Of a prefetch: chunks the session holds shares of. PREFIX and WINDOW: the length the engine may continue from. EACH: how
    /// many.
    uint32_t hit_chunks;
    /// Of a prefetch: chunks that the lookup promised, before any byte was loaded.
    uint32_t lookup_chunks;
    /// Objects that the job planned to load or copy and could not (failed, corrupt, no memory, late).
    uint32_t failed_keys;
    /// Of a prefetch: objects of the answer by where they were found: `[0]` L1, `[i]` the backend with place i. Places rise from 1 in
    /// the order in which backends are added; once one was removed and none is left above the others, a new backend takes the
    /// lowest free.
    uint32_t tier_keys[KVKEEP_TIERS_MAX];
    /// Of a prefetch: bytes loaded into L1. An object that several jobs wait for is loaded once and counts for one of them, the
    /// first that is still there.
    uint64_t loaded_bytes;
    /// Of a prefetch: microseconds from submit to the lookup's answer.
    uint64_t lookup_us;
    /// Of a prefetch: microseconds from the lookup's answer to the end.
    uint64_t load_us;
    /// Microseconds from submit to the end.
    uint64_t total_us;
    /// NUL-terminated UTF-8: empty if nothing fell short, else the shortfall and its cause.
    char message[KVKEEP_MESSAGE_BYTES];
    /// A kvkeep_job_kind.
    uint32_t kind;
    /// Keys that the job was submitted with.
    uint32_t asked_keys;
    /// Of a transfer: objects that are where they were to go. A store counts those too that were there already.
    uint32_t copied_keys;
    /// Of a prefetch: why the last of `failed_keys` was not loaded, a kvkeep_status: NO_MEMORY (L1 had no room for it), QUOTA (its
    /// space had none), else the error of its backend. 0 where none failed.
    int32_t failed_status;
    /// Of a transfer: bytes copied. Of what was there already none.
    uint64_t copied_bytes;
    /// Of a transfer: microseconds from its first copy to the end.
    uint64_t copy_us;
} kvkeep_job_result;

/// A stretch of paged memory with a place for every block of a pool: a layer's K, its V, both fused, a latent, or the like.
typedef struct {
    /// Address of block 0; a multiple of 4.
    uint64_t address;
    /// Bytes of one block in this segment; a multiple of 4, at least 4.
    uint64_t block_bytes;
    /// Bytes from one block to the next; a multiple of 4. 0: block_bytes.
    uint64_t block_stride;
    /// The `group` of the keys whose objects hold this segment.
    uint32_t group;
    /// The layer, for `kvkeep_wait_layer`; layers are copied in rising order.
    uint32_t layer;
    /// Must be 0.
    uint64_t reserved[2];
} kvkeep_segment;

/// How a pool is opened.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// KVKEEP_DEVICE_HOST, or the ordinal of a CUDA device.
    int32_t device;
    /// The `rank` of the keys whose objects the pages hold. Where all ranks read one object (MLA), its rank, not the worker's.
    uint32_t rank;
    /// Blocks of each segment; their numbers go from 0 to one less.
    uint32_t block_count;
    /// Blocks of a chunk: the space's `chunk_tokens` divided by the tokens of a block, without a remainder. 0: 1.
    uint32_t blocks_per_chunk;
    /// The segments, copied, in the order in which their bytes lie in the objects.
    const kvkeep_segment *segments;
    /// How many, at most 4096.
    size_t segment_count;
    /// A kvkeep_part for each segment, in the order of `segments`. Copied. It tells pools apart whose segments have the same
    /// sizes, as K before V from V before K. NULL: all KVKEEP_PART_UNSAID.
    const uint32_t *parts;
    /// Must be 0.
    uint64_t reserved;
} kvkeep_pool_options;

/// How a store or a load is done.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// The caller's stream that the copy follows: a CUstream, or 0 for the default stream. 0 for the host, which has none.
    uint64_t stream;
    /// For a load: so many tokens from the first key on (in each group) keep their pages as they are. A multiple of a block's
    /// tokens, since blocks are copied whole. 0 for a store.
    uint32_t skip_first_tokens;
    /// For a load: 1 returns one share of each key that the session holds, when the transfer is over, however it ended;
    /// keys that the session holds no share of are passed over. 0 for a store.
    uint32_t return_shares;
    /// A kvkeep_lifetime, for what a store commits or a load has to bring into L1 itself.
    uint32_t lifetime;
    /// For a load: what it has to bring into L1 itself is loaded before that of lower priority. Default 0.
    int32_t priority;
    /// A kvkeep_notify, for transfers without a callback.
    uint32_t notify;
    /// Must be 0.
    uint32_t reserved;
} kvkeep_transfer_options;

/// Latencies in microseconds. Bucket i counts those of at most 2^i us that no bucket before it counts; the last
/// counts all others.
typedef struct {
    /// Samples.
    uint64_t count;
    /// Their sum in microseconds.
    uint64_t sum_us;
    /// Samples by size.
    uint64_t buckets[KVKEEP_HISTOGRAM_BUCKETS];
} kvkeep_histogram;

/// Everything a cache counts. Counters only grow; gauges are marked. The caller sets `struct_size` and `abi_version`.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// Gauge: size of L1 in bytes.
    uint64_t l1_bytes;
    /// Gauge: bytes of L1 given to objects, staging and transfers.
    uint64_t l1_used_bytes;
    /// Gauge: bytes of L1 in use (shares, staging, transfers). They cannot be evicted, but for those under shares of sessions that
    /// are past their deadline.
    uint64_t l1_locked_bytes;
    /// Gauge: committed objects in L1.
    uint64_t l1_objects;
    /// Gauge: staged objects of all sessions, loads in flight included.
    uint64_t l1_staged;
    /// Gauge: shares held by all sessions.
    uint64_t l1_shares;
    /// Gauge: live sessions.
    uint64_t sessions;
    /// Gauge: prefetches not yet released. This and the counters of jobs below leave transfers out.
    uint64_t jobs;
    /// Gauge: writes to L2 that wait or are under way: one for each backend that an object is to go to, and one for an object that was
    /// not sent to any yet.
    uint64_t writes_pending;
    /// Keys that requests asked for and L1 had. Those that a prefetch needs (as in `prefetch_asked_chunks`) count when its lookup is
    /// answered, those that `kvkeep_reserve_read` or a load names in its call. A request asks once: reading what it holds, or loading
    /// what it prefetches, counts nothing more. The hit rate of L1 is `read_hits / (read_hits + read_misses)`.
    uint64_t read_hits;
    /// Keys that requests asked for and L1 had not: `l2_hits` + `l2_misses`.
    uint64_t read_misses;
    /// Objects committed by their writers.
    uint64_t commits;
    /// Commits that found the object already there and discarded their copy.
    uint64_t commits_discarded;
    /// Objects evicted from L1.
    uint64_t evictions;
    /// Bytes evicted from L1.
    uint64_t evicted_bytes;
    /// Reservations refused for want of memory or quota.
    uint64_t refusals;
    /// Sessions ended by their deadline because nobody came back.
    uint64_t sessions_reclaimed;
    /// Shares taken from sessions past their deadline.
    uint64_t shares_revoked;
    /// Prefetches released by their deadline because nobody read them.
    uint64_t jobs_reclaimed;
    /// Prefetches accepted.
    uint64_t jobs_submitted;
    /// Prefetches completed, whatever their status.
    uint64_t jobs_completed;
    /// Prefetches that ended cancelled.
    uint64_t jobs_cancelled;
    /// Chunks that prefetches found and took shares of, all tiers. Of a window, those in it: what lies before it counts neither here
    /// nor below.
    uint64_t prefetch_hit_chunks;
    /// Chunks that prefetches needed: those of their answers, `prefetch_hit_chunks`, and those that were missing beyond. Counted
    /// together when a job ends; one that ends cancelled counts in neither.
    uint64_t prefetch_asked_chunks;
    /// Objects loaded from L2.
    uint64_t loads;
    /// Bytes loaded from L2.
    uint64_t loaded_bytes;
    /// Loads that failed, corrupt ones not counted.
    uint64_t load_failures;
    /// Objects whose bytes or identity were wrong: treated as a miss and quarantined.
    uint64_t corruptions;
    /// Requests to a backend that passed their deadline; the backend is fenced until it answers.
    uint64_t backend_timeouts;
    /// Objects written to L2.
    uint64_t stores;
    /// Bytes written to L2.
    uint64_t stored_bytes;
    /// Writes not needed because the L2 had the object.
    uint64_t stores_already;
    /// Writes and deletions tried again.
    uint64_t store_retries;
    /// Writes given up, and deletions: the sum of the `dropped_…` below.
    uint64_t stores_dropped;
    /// Gauge: objects in all backends, where they know.
    uint64_t l2_objects;
    /// Gauge: bytes in all backends, where they know.
    uint64_t l2_bytes;
    /// Objects evicted by the backends themselves.
    uint64_t l2_evictions;
    /// Gauge: clients connected to the daemon; 0 when embedded.
    uint64_t clients;
    /// Clients that went without closing; their shares were returned.
    uint64_t clients_lost;
    /// Submit to lookup answer.
    kvkeep_histogram lookup_latency;
    /// Submit to completion.
    kvkeep_histogram prefetch_latency;
    /// One object read from L2, from request to verified.
    kvkeep_histogram load_latency;
    /// One object written to L2, from request to stored.
    kvkeep_histogram store_latency;
    /// Time inside calls that a scheduler makes (submit, query).
    kvkeep_histogram call_latency;
    /// Of `read_misses`, keys that a backend had.
    uint64_t l2_hits;
    /// Of `read_misses`, keys that no backend had. `kvkeep_reserve_read` asks none. Behind the first gap of a prefix a backend need
    /// not be asked: what it has there counts as missing too.
    uint64_t l2_misses;
    /// Gauge: pins on objects in all backends, by which jobs keep them from being evicted until they are loaded. 0 when there is no job.
    uint64_t l2_pins;
    /// Uses that were not passed on to backends because too many waited.
    uint64_t uses_dropped;
    /// Gauge: the bound of `writes_pending`, as the cache was opened with.
    uint64_t writes_pending_max;
    /// Gauge: of `stores_dropped`, those of the last minute. While there are any, or more than half of `writes_pending_max` is pending,
    /// the backends do not keep up.
    uint64_t stores_dropped_recently;
    /// Gauge: `fs` backends that read and write with threads because the kernel refuses io_uring.
    uint64_t io_uring_refused;
    /// Gauge: 1 where the kernel refused to join pages of L1 to huge ones: transfers to disks and GPUs are slower.
    uint64_t huge_pages_refused;
    /// Times that the driver of a GPU refused to register L1 in a process of the cache: its copies are slower.
    uint64_t registrations_refused;
    /// Of `registrations_refused`, those for want of lockable memory: the limit on it (`ulimit -l`) is too small for L1.
    uint64_t memlock_refused;
    /// Writes asked for: one for each backend that an object is to go to, and one for an object that is not sent to any. Always
    /// `writes_asked` = `stores` + `stores_already` + `stores_dropped` - `dropped_deletions` + `writes_withdrawn` + `writes_pending`.
    /// With KVKEEP_STORE_WRITE_THROUGH and one backend a commit asks for one write, unless it is counted by `commits_discarded` or
    /// `commits_temporary`; so does a commit that has a temporary object kept, and an object that was stored and that the backend lost.
    uint64_t writes_asked;
    /// Gauge: deletions that backends have not answered, as far as they are sent together: those of one call to one backend, and one
    /// for a space that a backend is to forget.
    uint64_t deletions_pending;
    /// Writes not made because their object was deleted, cleared or forgotten first.
    uint64_t writes_withdrawn;
    /// Commits of temporary objects, which are not written. Those that were discarded are not among them.
    uint64_t commits_temporary;
    /// Writes dropped because as many waited as `writes_pending_max` allows.
    uint64_t dropped_queue;
    /// Writes dropped because L1 evicted their objects before a backend had them.
    uint64_t dropped_evicted;
    /// Writes dropped because a backend refused them, failed to the end, or did not answer in time.
    uint64_t dropped_failed;
    /// Writes dropped because their backend was fenced, failing in a row or removed, or there was none.
    uint64_t dropped_fenced;
    /// Writes dropped because the cache closed, for the log alone: no call can ask for them afterwards.
    uint64_t dropped_closed;
    /// Deletions given up.
    uint64_t dropped_deletions;
    /// Writes dropped because those before them took longer than the `store_latency_max_ms` of their backend.
    uint64_t dropped_slow;
    /// Tokens that need not be computed: those of the chunks in `prefetch_hit_chunks`, of jobs whose first key has rank 0 and group 0, and of
    /// the keys of rank 0 and group 0 in `read_hits` that no prefetch asked for. A chunk has as many as its space says (`chunk_tokens`).
    uint64_t saved_tokens;
    /// Gauge: milliseconds for which the object has been shared without a pause that is shared longest; 0 where none is. Up to a second late.
    uint64_t oldest_share_ms;
    /// Gauge: milliseconds since the oldest write of `writes_pending` was asked for; 0 where none is pending.
    uint64_t oldest_write_ms;
    /// Gauge: when the cache was opened, in milliseconds since 1970.
    uint64_t opened_ms;
    /// Bytes of the objects that need not be computed: those that prefetches found and took shares of, and the keys in `read_hits`
    /// that no prefetch asked for.
    uint64_t saved_bytes;
} kvkeep_stats;

/// The part of L1 that a space takes. The caller sets `struct_size` and `abi_version`.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// Its committed objects.
    uint64_t objects;
    /// Bytes that its quota counts: objects, staging, loads on their way, and what was removed and is still in use.
    uint64_t used_bytes;
    /// Its quota; 0: no bound but L1.
    uint64_t quota_bytes;
} kvkeep_space_usage;

/// How lookups of a space, or of all, went since it was opened. The caller sets `struct_size` and `abi_version`.
///
/// A lookup is a prefetch or a `kvkeep_reserve_read`. Each counts a key once, unless its session holds it already, as `read_hits`,
/// `l2_hits` and `l2_misses` of the statistics do: `asked` is `hits` + `misses`, and `misses` the sum of `reasons`. A request that
/// prefetches keys and then reads those that are missing, too, counts them twice.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// Keys that lookups asked for.
    uint64_t asked;
    /// Of these, keys that a tier had.
    uint64_t hits;
    /// Of these, keys that none had.
    uint64_t misses;
    /// Estimate: keys that would have been hits in a cache without an end, which loses nothing but what is deleted. Exact while no more than 32,768
    /// keys were missed and lost, a sample of them from then on.
    uint64_t endless_hits;
    /// `hits` by tier: `[0]` L1, `[i]` the backend with place i.
    uint64_t tier_hits[KVKEEP_TIERS_MAX];
    /// `misses` by reason: `[r]` those of the kvkeep_miss_reason r.
    uint64_t reasons[KVKEEP_MISS_REASONS_MAX];
    /// Of the reason EVICTED, by the tier that evicted it.
    uint64_t evicted[KVKEEP_TIERS_MAX];
    /// Of the reason QUARANTINED, by the backend that had it.
    uint64_t quarantined[KVKEEP_TIERS_MAX];
} kvkeep_miss_report;

/// The state of a session. The caller sets `struct_size` and `abi_version`.
typedef struct {
    /// sizeof of the caller's struct.
    uint32_t struct_size;
    /// KVKEEP_ABI_VERSION of the caller's header.
    uint32_t abi_version;
    /// Its space.
    uint64_t space;
    /// Milliseconds since it began.
    uint64_t age_ms;
    /// Milliseconds until its deadline, negative past it.
    int64_t expires_in_ms;
    /// Shares that it holds.
    uint64_t shares;
    /// Shares that were revoked after its deadline, of keys that it did not use since.
    uint64_t revoked_shares;
    /// Keys that it stages.
    uint64_t staged_keys;
    /// Its prefetches that are not done.
    uint32_t jobs;
    /// The process that began it.
    uint32_t owner_pid;
    /// The `request_id` that it began with, NUL-terminated UTF-8.
    char request_id[KVKEEP_REQUEST_ID_BYTES];
} kvkeep_session_state;

/// The state of one backend. Counters only grow; gauges are marked. Of reads, `loaded_bytes / load_busy_us / 1000` is the rate in
/// GB/s while there was anything to read, `load_us / loads` the mean latency; so it is of writes. Its hit rate is
/// `found_keys / asked_keys`. Loading n bytes from it takes about `load_latency_us + n * 1000000 / load_bytes_per_s` microseconds,
/// as far as its loads of late can tell: an engine that computes them sooner need not load them.
typedef struct {
    /// The number that `kvkeep_add_backend` gave.
    uint64_t backend;
    /// Its place, as in `tier_keys` of a result.
    uint32_t place;
    /// A kvkeep_backend_health.
    uint32_t health;
    /// Gauge: objects that it has, where it knows.
    uint64_t objects;
    /// Gauge: bytes that it has, where it knows.
    uint64_t bytes;
    /// Most bytes it may take; 0: no bound of its own.
    uint64_t capacity_bytes;
    /// Objects that it has evicted.
    uint64_t evictions;
    /// Objects loaded from it.
    uint64_t loads;
    /// Their bytes.
    uint64_t loaded_bytes;
    /// Microseconds from their requests until they were verified, summed.
    uint64_t load_us;
    /// Microseconds in which it had a load to do.
    uint64_t load_busy_us;
    /// Objects written to it.
    uint64_t stores;
    /// Their bytes.
    uint64_t stored_bytes;
    /// Microseconds from their requests until they were stored, summed.
    uint64_t store_us;
    /// Microseconds in which it had a write to do.
    uint64_t store_busy_us;
    /// Writes to it that were dropped.
    uint64_t stores_dropped;
    /// Gauge: writes to it that have not ended.
    uint64_t writes_pending;
    /// Keys that prefetches asked it for, counted each time.
    uint64_t asked_keys;
    /// Of these, the keys that it had.
    uint64_t found_keys;
    /// Gauge: microseconds until the first byte of a load is there. With `load_bytes_per_s` by its loads of late, the newest
    /// counting most; by its writes, as long as nothing was loaded from it.
    uint64_t load_latency_us;
    /// Gauge: bytes that it loads a second from then on; 0 where nothing was measured.
    uint64_t load_bytes_per_s;
    /// How often its circuit breakers opened: one for lookups and loads, one for writes.
    uint64_t breaker_opened;
    /// Always 0.
    uint64_t reserved[3];
    /// Its URL without passwords, keys and tokens, NUL-terminated UTF-8, cut where it is longer.
    char url[KVKEEP_URL_BYTES];
    /// NUL-terminated UTF-8: empty for GOOD, else the reason.
    char message[KVKEEP_MESSAGE_BYTES];
} kvkeep_backend_state;

/// A change of one object in one tier.
typedef struct {
    /// Its number, from 1 on. Numbers rise by one; where they skip some, events were lost.
    uint64_t sequence;
    /// When it was recorded, in microseconds since 1970.
    uint64_t time_us;
    /// The object's space.
    uint64_t space;
    /// Number of the backend, 0 for L1.
    uint64_t backend;
    /// Length of the object in bytes.
    uint64_t size;
    /// The object's key.
    kvkeep_key key;
    /// A kvkeep_event_kind.
    uint32_t kind;
    /// 0 for L1, else the place of the backend, as in `tier_keys` of a result.
    uint32_t tier;
    /// Always 0.
    uint64_t reserved[4];
} kvkeep_event;

/// The function "kvkeep_plugin" that a shared library for "plugin:/path/library.so" exports: gives its vtable, which is copied. The
/// library stays loaded until the process exits.
typedef const kvkeep_backend_vtable *(*kvkeep_plugin_entry)(void);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// Version of the library, as "major.minor.patch". Static; never NULL. Any thread.
/// Since: 0.1.
KVKEEP_API const char *kvkeep_version(void);

/// ABI version of the library that was loaded; compare with KVKEEP_ABI_VERSION. Any thread.
/// Since: 0.1.
KVKEEP_API uint32_t kvkeep_abi_version(void);

/// Name of a kvkeep_status, such as "KVKEEP_ERR_NOT_HELD"; "unknown status" for a number that is none. Static; never
/// NULL. Any thread.
/// Since: 0.1.
KVKEEP_API const char *kvkeep_status_name(int32_t status);

/// Message of the last call on this thread that returned an error or PARTIAL: the cause, then the remedy. Of PARTIAL it says how many
/// keys fell short, the first of them and its reason; of keys without memory, who holds it; of a key that is only staged, by whom (where
/// at most 1024 sessions live). UTF-8, never NULL, "" if none failed, at most 2047 bytes. The library owns it; it is valid until the
/// next kvkeep call on this thread, and as long as the thread runs: destructors of its thread-local objects may read it, too. `kvkeep_get_error` serves hosts whose next call may run on another thread.
/// Since: 0.1.
KVKEEP_API
const char *kvkeep_last_error(void);

/// The `extra_count` of a model: readers of an object besides the one that every share count includes. `world_size` is the
/// number of objects of a chunk. Any thread.
///
/// | the model                                                            | the numbers                | result           |
/// |----------------------------------------------------------------------|----------------------------|------------------|
/// | one worker                                                           | tp_size <= 1               | 0                |
/// | each rank stores an object of its own                                | 1 < tp_size <= world_size  | 0                |
/// | MLA: all ranks read one object, and world_size is divided by tp_size | tp_size > world_size       | tp_size - 1      |
/// | MLA with pipeline parallelism: the caller counts the readers itself  | may be those of the second | may be too small |
/// Since: 0.1.
KVKEEP_API
int kvkeep_extra_count(int tp_size,
                       int world_size);

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
KVKEEP_API
kvkeep_status kvkeep_open(const kvkeep_options *options,
                          kvkeep **cache);

/// Closes a cache: refuses new calls, cancels its jobs (each still completes once; callbacks have returned when this
/// does), lets calls under way end (those that wait stop waiting), gives accepted writes to L2 up to `backend_timeout_ms`, ends all
/// sessions without touching, and frees L1. Memory that a session still holds shares or staging of, or that a hung backend may
/// still write, stays mapped until the process exits (logged). A client's sessions and jobs end the same way; the daemon and its L1
/// go on, and what a view still shows may be replaced. With `listen`, clients are disconnected first. Completions for the event descriptor that nobody took before are gone.
/// Blocks. Not from a callback (INVALID). NULL is OK; a handle closed before is CLOSED.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_close(kvkeep *cache);

/// Opens a space and sets `*space` to its number, valid until the space or the cache is closed. Opening the same model, layout,
/// tenant, chunk size and generation again, in whichever process, gives the same number. It sets the quota anew if `quota_bytes`
/// is not 0; 0, or a read-only client, leaves the quota of an open space as it is, and `kvkeep_set_quota` takes it away. Objects of
/// two spaces never meet, in any tier.
/// Errors: INVALID (also for a space whose number, the first 8 bytes of its tag, is that of another open space: a coincidence
/// of one in 2^64), LIMIT (65536 spaces).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_open_space(kvkeep *cache,
                                const kvkeep_space_options *options,
                                uint64_t *space);

/// Closes a space that is used no more: its number is not valid any more, and its objects leave L1, written or not: `kvkeep_flush`
/// first has those written that wait for it. Backends keep theirs, and opening the space again finds them. A daemon closes the space
/// when the last client that has it open and is connected closes it; until then its number and its objects stay. Never
/// blocks on I/O.
/// Errors: NOT_FOUND (space), LOCKED (a session of it is live, or a pool of it is open), PERMISSION (a read-only client).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_close_space(kvkeep *cache,
                                 uint64_t space);

/// Sets the most bytes of L1 that objects of a space may take, for all clients of a daemon, as opening it again with one does. 0: no bound but
/// L1. Objects above it are evicted at once, but for those in use or still to be written to L2: the space stays above its quota until
/// its next reservation or load evicts them. A client that connects to a new run of the daemon sets the quota that it set last, or
/// opened the space with; where clients differ, the last to connect has its way. Never blocks on I/O.
/// Errors: NOT_FOUND (space), PERMISSION (a read-only client).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_set_quota(kvkeep *cache,
                               uint64_t space,
                               uint64_t quota_bytes);

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
KVKEEP_API
kvkeep_status kvkeep_add_backend(kvkeep *cache,
                                 const char *url,
                                 uint64_t *backend);

/// Adds a backend whose functions the caller has, as `kvkeep_add_backend` adds one by its URL. `vtable` and `parameters` are copied; the
/// functions must be there until the backend is closed. `parameters` are written as in a URL, percent-encoded: "host=a&threads=4".
/// NULL: none. Three of them are not the plug-in's own: `threads`, from which it is called (1 by default, at most 64), `batch`, the
/// most objects of one load or store (32 by default), and `depth`, the most objects that it loads and stores at once (1024 by default).
/// A shared library that exports its vtable is added by `kvkeep_add_backend` with "plugin:/path/to/library.so?name=value", in a daemon
/// too.
/// Errors: INVALID (a function that is missing, named in the message; the parameters), VERSION (the vtable is of another ABI),
/// UNSUPPORTED (a client of a daemon), LIMIT (seven backends), the error that the plug-in's `open` returned, and that of `key_callback`.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_add_backend_vtable(kvkeep *cache,
                                        const kvkeep_backend_vtable *vtable,
                                        const char *parameters,
                                        uint64_t *backend);

/// Lets other processes connect to a cache that was opened with `listen`. Call it when the backends are added: objects that are
/// committed before are not written to a backend that comes later.
/// Errors: INVALID (opened without `listen`), EXISTS (called before), PERMISSION, IO.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_serve_clients(kvkeep *cache);

/// Removes a backend: no new job asks it, objects that jobs have found in it are loaded, everything else it accepted is
/// answered, then it is closed. Its stored objects stay where they are. Blocks until then, at most `backend_timeout_ms`; a backend
/// that hangs longer is left fenced.
/// Errors: NOT_FOUND, TIMEOUT (it did not close in time).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_remove_backend(kvkeep *cache,
                                    uint64_t backend);

/// Waits until everything committed before is written to L2 or given up, and deletions have reached it. Blocks up to
/// `timeout_ms`.
/// Errors: TIMEOUT (the message says how many objects are left).
/// Since: 0.1.
KVKEEP_API kvkeep_status kvkeep_flush(kvkeep *cache, uint32_t timeout_ms);

/// Prepares a versioned struct as KVKEEP_INIT does, for hosts that have no macros: zeroes `struct_size` bytes, and fills in
/// `struct_size` and `abi_version`, which is the KVKEEP_ABI_VERSION of the header that the host's own declarations were made from. Any
/// struct whose first fields these are; whether a version of it has this size is checked where it is used. Any thread.
/// Errors: INVALID (NULL, not aligned to 8 bytes, a size that no such struct has), VERSION (the library has another ABI version).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_init_struct(void *versioned,
                                 size_t struct_size,
                                 uint32_t abi_version);

/// Writes the message that `kvkeep_last_error` had after the newest call that named a subject and returned an error or PARTIAL,
/// whichever thread made that call: for hosts whose next call may run on another thread (goroutines, virtual threads).
/// `subject` is a kvkeep_subject, and `number` its number. A call names the first of session, job, pool, backend and space that is
/// among its arguments; one without any of them names KVKEEP_SUBJECT_CACHE, whose number is 0. While one task at a time uses a
/// subject, the message is that of the task's own call. Where `cache` is NULL, the subject is KVKEEP_SUBJECT_CACHE, and the call is
/// the newest `kvkeep_open` of this process that was refused. `buffer`, `buffer_bytes` and `length` are as in "Seen from outside".
/// Never blocks. Any thread.
/// Errors: NOT_FOUND (no call of the subject has failed, or calls of 256 other subjects have since), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_get_error(kvkeep *cache,
                               uint32_t subject,
                               uint64_t number,
                               char *buffer,
                               size_t buffer_bytes,
                               size_t *length);

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
KVKEEP_API
kvkeep_status kvkeep_begin_session(kvkeep *cache,
                                   uint64_t space,
                                   const kvkeep_session_options *options,
                                   uint64_t *session);

/// Ends a session: returns its shares, drops its staging, cancels and releases its jobs, and touches every key it
/// used, the last used first, so that the first chunk of a prefix is the most recent. Never blocks. Errors: NOT_FOUND
/// (unknown, or ended before).
/// Since: 0.1.
KVKEEP_API kvkeep_status kvkeep_end_session(kvkeep *cache, uint64_t session);

/// As `kvkeep_end_session`, but touches nothing. Never blocks. Errors: NOT_FOUND.
/// Since: 0.1.
KVKEEP_API kvkeep_status kvkeep_abort_session(kvkeep *cache, uint64_t session);

/// Renews the deadline of a session, and does nothing else: for a request that goes on without using the cache. Keys whose
/// shares were revoked before stay EXPIRED. Never blocks on I/O.
/// Errors: NOT_FOUND (unknown, or ended before), EXPIRED (ended by its deadline).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_renew_session(kvkeep *cache,
                                   uint64_t session);

/// Appends `token_count` token ids to the session's sequence and hashes every chunk that is now full. Sets `*chunk_count`
/// to the full chunks so far, unless NULL. The hash of chunk i is BLAKE3(hash of chunk i-1 || its token ids as
/// little-endian u32); before the first stands BLAKE3("kvkeep space" || the space's 16-byte tag), where the tag is
/// the first half of BLAKE3 over model, layout and tenant, each preceded by its length as little-endian u64, and
/// chunk tokens as little-endian u32; a generation that is not 0 follows as little-endian u64.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID, NO_MEMORY (the system refuses it), LIMIT (2^26 tokens a session; 4 GiB of
/// hashes of all sessions, which are 32 bytes a chunk).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_append_tokens(kvkeep *cache,
                                   uint64_t session,
                                   const uint32_t *tokens,
                                   size_t token_count,
                                   size_t *chunk_count);

/// Writes the keys of `chunk_count` full chunks from `first_chunk` on, chunk-major: for each chunk, for each of
/// `rank_count` ranks from `first_rank` on, for each group from 0 to `group_count` - 1. `keys` has room for
/// `key_count` keys, which must be chunk_count * rank_count * group_count.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID (a chunk that is not full yet, a wrong count).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_get_session_keys(kvkeep *cache,
                                      uint64_t session,
                                      uint64_t first_chunk,
                                      size_t chunk_count,
                                      uint32_t first_rank,
                                      uint32_t rank_count,
                                      uint32_t group_count,
                                      kvkeep_key *keys,
                                      size_t key_count);

/// Writes the keys of the session's last chunk, which is not full, cut after its first `tail_tokens` tokens: one for each of
/// `rank_count` ranks from `first_rank` on, for each group from 0 to `group_count` - 1. `keys` has room for `key_count` keys, which
/// must be rank_count * group_count. The hash is made as that of a full chunk, of so many tokens: each length has a key of its own,
/// and an object stored under it is found by the very tokens it has, no others. Such a key stands behind those of the full chunks, in a
/// prefetch as in a transfer (`kvkeep_submit_store` says how an object is shorter than a chunk). The session keeps the tokens of its last
/// chunk until more are appended that fill it.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID (`tail_tokens` of 0, or more than the chunk has; a wrong count).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_get_tail_keys(kvkeep *cache,
                                   uint64_t session,
                                   uint32_t tail_tokens,
                                   uint32_t first_rank,
                                   uint32_t rank_count,
                                   uint32_t group_count,
                                   kvkeep_key *keys,
                                   size_t key_count);

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
KVKEEP_API
kvkeep_status kvkeep_reserve_write(kvkeep *cache,
                                   uint64_t session,
                                   const kvkeep_key *keys,
                                   size_t key_count,
                                   const uint64_t *sizes,
                                   uint32_t lifetime,
                                   kvkeep_view *views);

/// Commits staged keys: from now on every session can read them and they never change. If another session committed
/// the key first, this copy is discarded and the result is still OK (a temporary object becomes a kept one if this
/// one was to be kept). For eviction the last key of a call came first, so that a prompt goes from its end.
/// Per key: NOT_FOUND (not staged by this session), CANCELLED (its space was forgotten since). Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_finish_write(kvkeep *cache,
                                  uint64_t session,
                                  const kvkeep_key *keys,
                                  size_t key_count,
                                  int32_t *statuses);

/// Drops staged keys. The views must not be used any more.
/// Per key: NOT_FOUND (not staged by this session). Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_abort_write(kvkeep *cache,
                                 uint64_t session,
                                 const kvkeep_key *keys,
                                 size_t key_count,
                                 int32_t *statuses);

/// Commits staged keys and takes 1 + extra_count shares of each in one step, so that eviction cannot come between.
/// Views are for reading, of whichever copy was committed first.
/// Per key: NOT_FOUND (not staged by this session), CANCELLED (its space was forgotten since). Errors: NOT_FOUND (session), INVALID
/// (extra_count outside 0 to 127).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_finish_write_and_reserve_read(kvkeep *cache,
                                                   uint64_t session,
                                                   const kvkeep_key *keys,
                                                   size_t key_count,
                                                   int32_t extra_count,
                                                   kvkeep_view *views);

/// Takes 1 + extra_count shares of each ready key and returns views to read. The bytes stay where they are until the
/// shares are returned.
/// Per key: NOT_FOUND (absent from L1, or only staged), LIMIT (the object would have 2^24 shares). Errors: NOT_FOUND
/// (session), INVALID (extra_count outside 0 to 127).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_reserve_read(kvkeep *cache,
                                  uint64_t session,
                                  const kvkeep_key *keys,
                                  size_t key_count,
                                  int32_t extra_count,
                                  kvkeep_view *views);

/// Returns 1 + extra_count shares of each key, whichever of the session's readers took them. When the last share of an
/// object is returned, a temporary object is dropped and any other is touched, once; of one call the last key first. Shares of
/// chunks that the engine decides to compute itself are returned by this call too, with the job's extra_count, for all readers
/// together.
/// Per key: NOT_HELD (the session holds fewer shares; none is returned), EXPIRED (they were revoked after the
/// deadline). Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_finish_read(kvkeep *cache,
                                 uint64_t session,
                                 const kvkeep_key *keys,
                                 size_t key_count,
                                 int32_t extra_count,
                                 int32_t *statuses);

/// As `kvkeep_finish_read`, for the session's chunks whose tokens lie wholly within [first_token, last_token) of the
/// tokens it appended, and ranks and groups as in `kvkeep_get_session_keys`. Sets `*returned_count` to the keys whose shares
/// were returned, unless NULL; chunks the session holds no shares of are passed over.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID (extra_count; an empty or unknown range).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_finish_read_tokens(kvkeep *cache,
                                        uint64_t session,
                                        uint64_t first_token,
                                        uint64_t last_token,
                                        uint32_t first_rank,
                                        uint32_t rank_count,
                                        uint32_t group_count,
                                        int32_t extra_count,
                                        uint64_t *returned_count);

/// Fills in views again, for keys whose shares the session holds; takes none.
/// Per key: NOT_HELD, EXPIRED. Errors: NOT_FOUND (session), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_get_views(kvkeep *cache,
                               uint64_t session,
                               const kvkeep_key *keys,
                               size_t key_count,
                               kvkeep_view *views);

/// Marks ready keys as used now, in L1 and in backends that have them, last key first, so that the first is the most
/// recent.
/// Per key: NOT_FOUND (not in L1). Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_touch(kvkeep *cache,
                           uint64_t space,
                           const kvkeep_key *keys,
                           size_t key_count,
                           int32_t *statuses);

/// Fills in `states[i]` with the state of `keys[i]` in L1, all of them at one instant. Takes no shares, touches nothing and
/// renews no deadline. Backends are not asked. An answer may be out of date when the call returns: only shares keep an object.
/// The call is OK whatever the states are.
/// Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_keys(kvkeep *cache,
                                uint64_t space,
                                const kvkeep_key *keys,
                                size_t key_count,
                                kvkeep_key_state *states);

/// Keeps keys longer: until `ttl_ms` from now, eviction passes each over up to ceil(priority / 25) times before it
/// takes it. A bias, never a hard pin. `priority` is 0 (removes the bias) to 100.
/// Per key: NOT_FOUND (not ready in L1). Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_retain(kvkeep *cache,
                            uint64_t space,
                            const kvkeep_key *keys,
                            size_t key_count,
                            uint32_t priority,
                            uint32_t ttl_ms,
                            int32_t *statuses);

/// Evicts keys from L1 alone, at once and whatever the policy would choose; backends keep what they have. An object that is
/// still to be written is dropped unwritten, and counted by `stores_dropped`: `kvkeep_flush` first has those written
/// that wait for it. It counts as an eviction, with an event of its removal from L1.
/// Per key: NOT_FOUND (not ready in L1), LOCKED (shared, or under a copy or a transfer). Errors: NOT_FOUND (space), INVALID,
/// PERMISSION (a read-only client).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_evict(kvkeep *cache,
                           uint64_t space,
                           const kvkeep_key *keys,
                           size_t key_count,
                           int32_t *statuses);

/// Deletes keys from L1 at once, and from every backend in the background (lookups through this cache miss at once;
/// `kvkeep_flush` waits for the backends). A backend that fails, or has no room for more work, is asked again; a deletion that is
/// given up is logged, and counted by `stores_dropped`.
/// Per key: LOCKED (shared, under a copy or a transfer, or found by a job that will load it; deleted nowhere), NOT_FOUND (in no
/// tier that knows without I/O; named before in the same call). A backend that knows by I/O alone (Redis, S3, a plug-in) deletes
/// what it has of NOT_FOUND keys all the same. Errors: NOT_FOUND (space), INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_delete(kvkeep *cache,
                            uint64_t space,
                            const kvkeep_key *keys,
                            size_t key_count,
                            int32_t *statuses);

/// Empties L1 of a space's committed objects (of every space for `space` 0); backends keep theirs. Without `force`
/// objects in use stay, and the result is PARTIAL if there are any. With `force` (1) jobs of the space are cancelled
/// and objects in use are hidden from new lookups at once; their memory is freed when the last share is returned. A session that
/// comes to hold a key from before and from after holds two copies: the shares of one return are of one copy, so that more than it
/// holds of either are NOT_HELD, and where either may be meant, both stay until it has returned all its shares of the key. Staged
/// writes stay. Sets `*removed_count` to the objects gone or hidden, unless NULL.
/// Errors: NOT_FOUND (space), INVALID (force neither 0 nor 1).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_clear(kvkeep *cache,
                           uint64_t space,
                           uint32_t force,
                           uint64_t *removed_count);

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
KVKEEP_API
kvkeep_status kvkeep_forget_space(kvkeep *cache,
                                  uint64_t space,
                                  uint64_t *removed_count);

/// ---- Prefetch ----
///
/// A job looks its keys up in every tier, then loads into L1 what L1 lacks. Nothing here waits for I/O, except
/// `kvkeep_wait_job`. A job is named by a number that is never reused. It lives until `kvkeep_release_job`, the end of
/// its session, or, once it is done, until its `deadline_ms` have passed again, whichever is first; then every query says
/// NOT_FOUND. The shares it took belong to the session and outlive it. Every accepted job completes exactly once.
///
/// Submits a job for `key_count` keys (copied) and sets `*job`. L1 hits, and backends whose index needs no I/O, are
/// answered inside the call; if nothing is left to load, the job is done when it returns. `options` may be NULL.
/// `callback` may be NULL: the job then reports by `notify` of the options. A callback may run before this returns,
/// on the library's thread; `*job` is set by then.
/// Errors: NOT_FOUND (session), EXPIRED, INVALID, NO_MEMORY (the system refuses it), LIMIT (`jobs_max` jobs not released, or as
/// many completions not taken yet); then no completion comes.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_submit_prefetch(kvkeep *cache,
                                     uint64_t session,
                                     const kvkeep_key *keys,
                                     size_t key_count,
                                     const kvkeep_prefetch_options *options,
                                     uint64_t *job,
                                     kvkeep_callback callback,
                                     void *userdata);

/// Has a job that was submitted with `pause_after_lookup` load what it found, or will find. Any other job stays as it is: OK. Waits for
/// nothing. Any thread, also the job's own callback; of several at once one resumes the job.
/// Errors: NOT_FOUND (never given, or released), INVALID (a transfer).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_resume_job(kvkeep *cache,
                                uint64_t job);

/// Sets `*chunks` to how many chunks will be hit, as soon as every tier has answered the lookup and before any byte is loaded. L1 and a
/// directory that no other process has open ("fs://", but for `shared=true`) answer within the submission; a directory that others have open,
/// for keys that its index lacks, after it was asked; a server or a plug-in after it has answered.
/// PENDING until known: `*chunks` then is how many will be hit at least; in a daemon's client that number is of the submission, and does
/// not grow. `notify_lookup` of the options reports the answer in place of asking. The loads may still fall short of it: the result of the job is final. May be
/// called again, from any thread.
/// Errors: NOT_FOUND (never given, or released), INVALID (a transfer).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_lookup_hits(kvkeep *cache,
                                       uint64_t job,
                                       uint32_t *chunks);

/// Fills in `result`, prepared by KVKEEP_INIT, with the result of a job that is done; PENDING until then. OK however the job
/// ended: its own status is in the result. May be called again, from any thread.
/// Errors: NOT_FOUND (never given, or released).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_job(kvkeep *cache,
                               uint64_t job,
                               kvkeep_job_result *result);

/// Every prefix length in chunks at which all groups of the job could continue, as soon as every tier has answered the lookup: for
/// hosts whose ranks or groups ask by jobs of their own, and go on at the greatest length that all have. Fills in `lengths` with
/// the first `length_capacity` of them, the longest first, and sets `*length_count` to how many there are; PARTIAL where they do not
/// fit. `lengths` may be NULL when `length_capacity` is 0. The job loads what its longest length needs, `kvkeep_query_lookup_hits`;
/// for a shorter one, submit its chunks alone. Once the job is done, lengths that need an object which could not be loaded are not
/// among them; of a job that ended early there are none. PENDING until known. Does not consume; any thread.
/// Errors: NOT_FOUND (never given, or released), INVALID (a transfer; KVKEEP_PREFETCH_EACH).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_prefix_lengths(kvkeep *cache,
                                          uint64_t job,
                                          uint32_t *lengths,
                                          size_t length_capacity,
                                          size_t *length_count);

/// Fills in `bitmap` with the keys of a done job that the session holds shares of: bit i % 8 of byte i / 8 is key i. `bitmap` has
/// `bitmap_bytes` bytes, at least (key_count + 7) / 8 of them; the function zeroes those beyond. PENDING until the job is done.
/// Errors: NOT_FOUND, INVALID (too small; a transfer).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_bitmap(kvkeep *cache,
                                  uint64_t job,
                                  uint8_t *bitmap,
                                  size_t bitmap_bytes);

/// Blocks until the job is done, at most `timeout_ms`; 0 only asks. OK however the job ended: its result is then there to query.
/// Any number of threads may wait, whatever other way the job reports by. After TIMEOUT the job goes on: a transfer still touches
/// its pages, until it was cancelled and waited for again.
/// Errors: TIMEOUT, NOT_FOUND (never given, or released, also while waiting).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_wait_job(kvkeep *cache,
                              uint64_t job,
                              uint32_t timeout_ms);

/// Stops the work that has not begun, returns the job's shares, and completes it as CANCELLED; waits for nothing. An object
/// under a transfer stays in use until its bytes have landed; then nobody holds it: it can be evicted, or, if it was to be
/// temporary, is freed. A job that is done already stays as it is, and its shares stay the session's: OK.
/// Errors: NOT_FOUND.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_cancel_job(kvkeep *cache,
                                uint64_t job);

/// Releases a job; one that is not done is cancelled first. Its shares stay the session's. A transfer that is not done touches its
/// pages until its completion, which after this only a callback or the event descriptor reports: wait before. Errors: NOT_FOUND.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_release_job(kvkeep *cache,
                                 uint64_t job);

/// Sets `*fd` to a descriptor that is readable while `kvkeep_take_completions` has something to give. Owned by the
/// library, valid until close: poll it, do not read or close it. Any thread.
/// Since: 0.1.
KVKEEP_API kvkeep_status kvkeep_get_event_fd(kvkeep *cache, int32_t *fd);

/// Takes up to `completion_capacity` (1 to KVKEEP_KEYS_MAX) completions of jobs submitted with KVKEEP_NOTIFY_EVENT_FD, oldest first
/// (with `notify_lookup` two of a job, told apart by their kind), and sets `*completion_count`, to 0 where there is none. Each is given exactly once. Never blocks. Any thread.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_take_completions(kvkeep *cache,
                                      kvkeep_completion *completions,
                                      size_t completion_capacity,
                                      size_t *completion_count);

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
KVKEEP_API
kvkeep_status kvkeep_open_pool(kvkeep *cache,
                               uint64_t space,
                               const kvkeep_pool_options *options,
                               uint64_t *pool);

/// Closes a pool: cancels its transfers and waits until the copies in flight have landed (never for I/O, but for the work that
/// is before them on the caller's stream). Its pages are not touched any more when this returns. Errors: NOT_FOUND.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_close_pool(kvkeep *cache,
                                uint64_t pool);

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
KVKEEP_API
kvkeep_status kvkeep_submit_store(kvkeep *cache,
                                  uint64_t pool,
                                  uint64_t session,
                                  const kvkeep_key *keys,
                                  size_t key_count,
                                  const int32_t *block_ids,
                                  size_t block_count,
                                  const kvkeep_transfer_options *options,
                                  uint64_t *job,
                                  kvkeep_callback callback,
                                  void *userdata);

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
KVKEEP_API
kvkeep_status kvkeep_submit_load(kvkeep *cache,
                                 uint64_t pool,
                                 uint64_t session,
                                 const kvkeep_key *keys,
                                 size_t key_count,
                                 const int32_t *block_ids,
                                 size_t block_count,
                                 const kvkeep_transfer_options *options,
                                 uint64_t *job,
                                 kvkeep_callback callback,
                                 void *userdata);

/// Blocks until every page of `layer` (a segment's number) is copied, at most `timeout_ms`: a load's may be used then, a
/// store's overwritten, though other layers are not done. PARTIAL if some objects could not be had: wait for the whole and ask
/// which. Any number of threads may wait.
/// Errors: TIMEOUT, NOT_FOUND (released), CANCELLED, DISCONNECTED, DEVICE, INVALID (not the number of a transfer; a layer of none of
/// the pool's segments).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_wait_layer(kvkeep *cache,
                                uint64_t job,
                                uint32_t layer,
                                uint32_t timeout_ms);

/// Makes `stream` wait until every page of `layer` is copied, so that what is put on it from now on may use a load's pages, or
/// overwrite a store's. The caller itself waits, at most `timeout_ms`, only until the copies are in the device's own queue: at
/// once for what L1 has, and for the rest when that has been loaded. The layer with the greatest number ends a transfer. On the
/// host, `stream` is 0 and this is `kvkeep_wait_layer`. PARTIAL if some objects could not be had by then; whether the device
/// failed later shows in the completion.
/// Errors: as for `kvkeep_wait_layer`; also INVALID for a stream that on the host is not 0, or on a CUDA device is none or is
/// capturing a graph, and NOT_FOUND for a CUDA device's pool that was closed.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_stream_wait_layer(kvkeep *cache,
                                       uint64_t job,
                                       uint32_t layer,
                                       uint64_t stream,
                                       uint32_t timeout_ms);

/// Fills in a kvkeep_status for each block number that the transfer was given, in that order. `status_count` is the
/// `block_count` it was submitted with. Blocks passed over are OK. PENDING until the transfer is done. `statuses` is written only
/// when this returns OK. Does not consume; any thread.
/// Errors: NOT_FOUND (released), INVALID (not the number of a transfer; a wrong count).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_blocks(kvkeep *cache,
                                  uint64_t job,
                                  int32_t *statuses,
                                  size_t status_count);

/// ---- Seen from outside ----
///
/// Texts are written as NUL-terminated UTF-8 into the caller's buffer of `buffer_bytes` bytes; `*length` is set to the
/// length the whole text has without the NUL. Where it does not fit, what fits is written and the result is PARTIAL:
/// ask again with length + 1 bytes. `buffer` may be NULL when `buffer_bytes` is 0.
///
/// Fills in `stats`, prepared by KVKEEP_INIT. Counters are read one after another, not at one instant. Never blocks
/// on I/O.
/// Since: 0.1.
KVKEEP_API kvkeep_status kvkeep_query_stats(kvkeep *cache, kvkeep_stats *stats);

/// Fills in `usage`, prepared by KVKEEP_INIT, with what a space takes of L1 and may take, all of it at one instant. Never
/// blocks on I/O.
/// Errors: NOT_FOUND (space), INVALID, VERSION (`abi_version` is another's).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_space(kvkeep *cache,
                                 uint64_t space,
                                 kvkeep_space_usage *usage);

/// Fills in `report`, prepared by KVKEEP_INIT, with how lookups went in a space since it was opened, and why they missed keys; `space` 0:
/// in all spaces, those too that were closed since. Why a key is missing is known from a memory that holds the newest objects which
/// tiers lost, backends stored, or lookups missed: one for each 2 KiB of L1, from 65,536 to 1,048,576, in eight bytes each. The older
/// ones are forgotten, and count as never seen. The memory begins empty when the cache is opened; in a daemon it is the daemon's, for
/// all of its clients. It is asked only for a key that is missed. Never blocks on I/O.
/// Errors: NOT_FOUND (space), INVALID, VERSION (`abi_version` is another's).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_misses(kvkeep *cache,
                                  uint64_t space,
                                  kvkeep_miss_report *report);

/// Fills in `state`, prepared by KVKEEP_INIT, with the state of a session, all of it at one instant. Renews no deadline. Never
/// blocks on I/O.
/// Errors: NOT_FOUND (unknown, or ended before), EXPIRED (ended by its deadline), INVALID, VERSION (`abi_version` is another's).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_session(kvkeep *cache,
                                   uint64_t session,
                                   kvkeep_session_state *state);

/// Fills in `backends` with the states of the first `backend_capacity` backends, in the order in which they are asked, and sets
/// `*backend_count` to how many there are. PARTIAL where they do not fit. `backends` may be NULL when `backend_capacity` is 0.
/// Never blocks on I/O.
/// Errors: INVALID.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_query_backends(kvkeep *cache,
                                    kvkeep_backend_state *backends,
                                    size_t backend_capacity,
                                    size_t *backend_count);

/// Sets `*base` and `*bytes` to the memory of L1 (the arena) in this process, for hosts that register its memory with a device or a
/// network. The bytes of an object may be used there only under a share of it. It stays in place until close; a daemon's client has
/// another one after it has connected to another run of the daemon, and the former stays mapped for one session timeout. With
/// KVKEEP_FLAG_READ_ONLY it cannot be written.
/// Errors: DISCONNECTED (a daemon's client, without its daemon).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_get_arena(kvkeep *cache,
                               void **base,
                               size_t *bytes);

/// Writes every counter as Prometheus text (exposition format 0.0.4).
/// Since: 0.1.
KVKEEP_API kvkeep_status kvkeep_get_metrics(kvkeep *cache, char *buffer, size_t buffer_bytes, size_t *length);

/// Writes, as JSON, why a key is where it is: tier, state, size, the holders of its shares and since when, and why it cannot be
/// evicted.
/// Errors: NOT_FOUND (space). A key that is nowhere is OK: its state is "absent".
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_explain_key(kvkeep *cache,
                                 uint64_t space,
                                 const kvkeep_key *key,
                                 char *buffer,
                                 size_t buffer_bytes,
                                 size_t *length);

/// Writes, as JSON, how lookups went: `all` of them, and `spaces` with the names and the `lookups` of each open space (of very many,
/// of those that take most of L1). Each has the numbers of a kvkeep_miss_report, and for each reason that there was its name, its place
/// of a tier, its misses and a sentence for people, that of most misses first.
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_explain_misses(kvkeep *cache,
                                    char *buffer,
                                    size_t buffer_bytes,
                                    size_t *length);

/// Writes, as JSON, the state of a session (for `session` 0: of every session that holds something, that with most bytes first):
/// owner, request id, age, idle time, deadline, bytes of L1 that it holds (objects that others share count whole), how long the
/// longest shared of them has been shared, shares per key, staged keys, jobs.
/// Errors: NOT_FOUND (session).
/// Since: 0.1.
KVKEEP_API
kvkeep_status kvkeep_explain_session(kvkeep *cache,
                                     uint64_t session,
                                     char *buffer,
                                     size_t buffer_bytes,
                                     size_t *length);

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
KVKEEP_API
kvkeep_status kvkeep_read_events(kvkeep *cache,
                                 uint64_t *next_sequence,
                                 kvkeep_event *events,
                                 size_t event_capacity,
                                 size_t *event_count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KVKEEP_H */
