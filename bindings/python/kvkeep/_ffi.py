"""The C ABI as ctypes sees it. Generated from include/kvkeep.h by generate.py: do not edit."""

from __future__ import annotations

import builtins
import enum
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_uint8,
    c_void_p,
)
from typing import Any, Optional

KVKEEP_VERSION_MAJOR = 0
KVKEEP_VERSION_MINOR = 1
KVKEEP_VERSION_PATCH = 0
KVKEEP_VERSION = "0.1.0"
KVKEEP_VERSION_NUMBER = (KVKEEP_VERSION_MAJOR * 1000000 + KVKEEP_VERSION_MINOR * 1000 + KVKEEP_VERSION_PATCH)
KVKEEP_ABI_VERSION = 1
KVKEEP_FLAG_HUGE_PAGES = 1
KVKEEP_FLAG_NUMA_NODE = 2
KVKEEP_FLAG_NO_PREFAULT = 4
KVKEEP_FLAG_NO_CHECKSUM = 8
KVKEEP_FLAG_READ_ONLY = 16
KVKEEP_FLAG_L1_PERCENT = 32
KVKEEP_DEVICE_HOST = -1
KVKEEP_BLOCK_NONE = -1
KVKEEP_KEY_TEMPORARY = 1
KVKEEP_KEY_EVICTABLE = 2
KVKEEP_KEY_STORED = 4
KVKEEP_KEY_STORING = 8
KVKEEP_TIERS_MAX = 8
KVKEEP_KEYS_MAX = (1 << 20)
KVKEEP_EXTRA_COUNT_MAX = 127
KVKEEP_MESSAGE_BYTES = 128
KVKEEP_HISTOGRAM_BUCKETS = 26
KVKEEP_REQUEST_ID_BYTES = 256
KVKEEP_URL_BYTES = 512
KVKEEP_MISS_REASONS_MAX = 16
KVKEEP_EVENTS_MAX = (1 << 16)
KVKEEP_OBJECT_HEADER_BYTES = 160
KVKEEP_LOOKUP_IN_ORDER = 1


class Status(enum.IntEnum):
    OK = 0
    PENDING = 1
    PARTIAL = 2
    ERR_INVALID = -1
    ERR_CLOSED = -2
    ERR_NOT_FOUND = -3
    ERR_EXISTS = -4
    ERR_NOT_HELD = -5
    ERR_EXPIRED = -6
    ERR_LOCKED = -7
    ERR_NO_MEMORY = -8
    ERR_QUOTA = -9
    ERR_LIMIT = -10
    ERR_TIMEOUT = -11
    ERR_CANCELLED = -12
    ERR_IO = -13
    ERR_CORRUPT = -14
    ERR_UNSUPPORTED = -15
    ERR_VERSION = -16
    ERR_PERMISSION = -17
    ERR_DISCONNECTED = -18
    ERR_INTERNAL = -19
    ERR_DEVICE = -20


class StoreMode(enum.IntEnum):
    WRITE_THROUGH = 0
    WRITE_BACK = 1
    AFTER_USES = 2
    NEVER = 3


class Lifetime(enum.IntEnum):
    CACHED = 0
    TEMPORARY = 1


class PrefetchMode(enum.IntEnum):
    PREFIX = 0
    WINDOW = 1
    EACH = 2


class PrefetchPolicy(enum.IntEnum):
    BEST_EFFORT = 0
    WAIT = 1
    DEADLINE = 2


class Notify(enum.IntEnum):
    POLL = 0
    EVENT_FD = 1


class Part(enum.IntEnum):
    UNSAID = 0
    KEY = 1
    VALUE = 2


class Subject(enum.IntEnum):
    CACHE = 0
    SESSION = 1
    JOB = 2
    POOL = 3
    BACKEND = 4
    SPACE = 5


class JobKind(enum.IntEnum):
    PREFETCH = 1
    LOAD = 2
    STORE = 3
    LOOKUP = 4


class BackendHealth(enum.IntEnum):
    GOOD = 0
    NOTED = 1
    FENCED = 2
    BAD = 3
    OPEN = 4


class MissReason(enum.IntEnum):
    NEVER_SEEN = 0
    NOT_STORED = 1
    EVICTED = 2
    DROPPED_QUEUE = 3
    DROPPED_EVICTED = 4
    DROPPED_FAILED = 5
    DROPPED_FENCED = 6
    DROPPED_SLOW = 7
    QUARANTINED = 8
    OTHER_SPACE = 9
    DELETED = 10
    TEMPORARY = 11
    UNREACHABLE = 12
    BEHIND_MISS = 13


class EventKind(enum.IntEnum):
    STORED = 1
    REMOVED = 2


class LogLevel(enum.IntEnum):
    ERROR = 1
    WARN = 2
    INFO = 3


class ObjectState(enum.IntEnum):
    ABSENT = 0
    READY = 1


kvkeep_log_callback = CFUNCTYPE(None, c_void_p, c_int32, c_char_p)


kvkeep_key_callback = CFUNCTYPE(c_int32, c_void_p, c_char_p, c_uint32, POINTER(c_uint8))


kvkeep_backend_log = CFUNCTYPE(None, c_uint64, c_int32, c_char_p)


kvkeep_backend_list = CFUNCTYPE(None, c_void_p, c_uint64, POINTER(c_uint8), c_uint64, c_uint32)


kvkeep_backend_query = CFUNCTYPE(None, c_void_p, c_uint64, c_uint32)


kvkeep_backend_close = CFUNCTYPE(None, c_void_p)


class kvkeep_space_options(Structure):
    struct_size: int
    abi_version: int
    model: Optional[builtins.bytes]
    layout: Optional[builtins.bytes]
    tenant: Optional[builtins.bytes]
    chunk_tokens: int
    reserved: int
    quota_bytes: int
    generation: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("model", c_char_p),
        ("layout", c_char_p),
        ("tenant", c_char_p),
        ("chunk_tokens", c_uint32),
        ("reserved", c_uint32),
        ("quota_bytes", c_uint64),
        ("generation", c_uint64),
    ]


class kvkeep_backend_parameter(Structure):
    name: Optional[builtins.bytes]
    value: Optional[builtins.bytes]
    _fields_ = [
        ("name", c_char_p),
        ("value", c_char_p),
    ]


class kvkeep_key(Structure):
    hash: Any
    rank: int
    group: int
    _fields_ = [
        ("hash", c_uint8 * 32),
        ("rank", c_uint32),
        ("group", c_uint32),
    ]


class kvkeep_session_options(Structure):
    struct_size: int
    abi_version: int
    request_id: Optional[builtins.bytes]
    timeout_ms: int
    reserved: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("request_id", c_char_p),
        ("timeout_ms", c_uint32),
        ("reserved", c_uint32),
    ]


class kvkeep_view(Structure):
    data: Any
    size: int
    status: int
    reserved: int
    _fields_ = [
        ("data", c_void_p),
        ("size", c_uint64),
        ("status", c_int32),
        ("reserved", c_uint32),
    ]


class kvkeep_key_state(Structure):
    size: int
    state: int
    shares: int
    flags: int
    reserved: int
    _fields_ = [
        ("size", c_uint64),
        ("state", c_uint32),
        ("shares", c_uint32),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


class kvkeep_group_rule(Structure):
    group: int
    mode: int
    window_chunks: int
    reserved: Any
    _fields_ = [
        ("group", c_uint32),
        ("mode", c_uint32),
        ("window_chunks", c_uint32),
        ("reserved", c_uint32 * 5),
    ]


class kvkeep_completion(Structure):
    job: int
    session: int
    status: int
    hit_chunks: int
    loaded_bytes: int
    message: builtins.bytes
    kind: int
    copied_keys: int
    copied_bytes: int
    reserved: Any
    _fields_ = [
        ("job", c_uint64),
        ("session", c_uint64),
        ("status", c_int32),
        ("hit_chunks", c_uint32),
        ("loaded_bytes", c_uint64),
        ("message", c_char * KVKEEP_MESSAGE_BYTES),
        ("kind", c_uint32),
        ("copied_keys", c_uint32),
        ("copied_bytes", c_uint64),
        ("reserved", c_uint64 * 4),
    ]


class kvkeep_job_result(Structure):
    struct_size: int
    abi_version: int
    status: int
    hit_chunks: int
    lookup_chunks: int
    failed_keys: int
    tier_keys: Any
    loaded_bytes: int
    lookup_us: int
    load_us: int
    total_us: int
    message: builtins.bytes
    kind: int
    asked_keys: int
    copied_keys: int
    failed_status: int
    copied_bytes: int
    copy_us: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("status", c_int32),
        ("hit_chunks", c_uint32),
        ("lookup_chunks", c_uint32),
        ("failed_keys", c_uint32),
        ("tier_keys", c_uint32 * KVKEEP_TIERS_MAX),
        ("loaded_bytes", c_uint64),
        ("lookup_us", c_uint64),
        ("load_us", c_uint64),
        ("total_us", c_uint64),
        ("message", c_char * KVKEEP_MESSAGE_BYTES),
        ("kind", c_uint32),
        ("asked_keys", c_uint32),
        ("copied_keys", c_uint32),
        ("failed_status", c_int32),
        ("copied_bytes", c_uint64),
        ("copy_us", c_uint64),
    ]


class kvkeep_segment(Structure):
    address: int
    block_bytes: int
    block_stride: int
    group: int
    layer: int
    reserved: Any
    _fields_ = [
        ("address", c_uint64),
        ("block_bytes", c_uint64),
        ("block_stride", c_uint64),
        ("group", c_uint32),
        ("layer", c_uint32),
        ("reserved", c_uint64 * 2),
    ]


class kvkeep_transfer_options(Structure):
    struct_size: int
    abi_version: int
    stream: int
    skip_first_tokens: int
    return_shares: int
    lifetime: int
    priority: int
    notify: int
    reserved: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("stream", c_uint64),
        ("skip_first_tokens", c_uint32),
        ("return_shares", c_uint32),
        ("lifetime", c_uint32),
        ("priority", c_int32),
        ("notify", c_uint32),
        ("reserved", c_uint32),
    ]


class kvkeep_histogram(Structure):
    count: int
    sum_us: int
    buckets: Any
    _fields_ = [
        ("count", c_uint64),
        ("sum_us", c_uint64),
        ("buckets", c_uint64 * KVKEEP_HISTOGRAM_BUCKETS),
    ]


class kvkeep_space_usage(Structure):
    struct_size: int
    abi_version: int
    objects: int
    used_bytes: int
    quota_bytes: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("objects", c_uint64),
        ("used_bytes", c_uint64),
        ("quota_bytes", c_uint64),
    ]


class kvkeep_miss_report(Structure):
    struct_size: int
    abi_version: int
    asked: int
    hits: int
    misses: int
    endless_hits: int
    tier_hits: Any
    reasons: Any
    evicted: Any
    quarantined: Any
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("asked", c_uint64),
        ("hits", c_uint64),
        ("misses", c_uint64),
        ("endless_hits", c_uint64),
        ("tier_hits", c_uint64 * KVKEEP_TIERS_MAX),
        ("reasons", c_uint64 * KVKEEP_MISS_REASONS_MAX),
        ("evicted", c_uint64 * KVKEEP_TIERS_MAX),
        ("quarantined", c_uint64 * KVKEEP_TIERS_MAX),
    ]


class kvkeep_session_state(Structure):
    struct_size: int
    abi_version: int
    space: int
    age_ms: int
    expires_in_ms: int
    shares: int
    revoked_shares: int
    staged_keys: int
    jobs: int
    owner_pid: int
    request_id: builtins.bytes
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("space", c_uint64),
        ("age_ms", c_uint64),
        ("expires_in_ms", c_int64),
        ("shares", c_uint64),
        ("revoked_shares", c_uint64),
        ("staged_keys", c_uint64),
        ("jobs", c_uint32),
        ("owner_pid", c_uint32),
        ("request_id", c_char * KVKEEP_REQUEST_ID_BYTES),
    ]


class kvkeep_backend_state(Structure):
    backend: int
    place: int
    health: int
    objects: int
    bytes: int
    capacity_bytes: int
    evictions: int
    loads: int
    loaded_bytes: int
    load_us: int
    load_busy_us: int
    stores: int
    stored_bytes: int
    store_us: int
    store_busy_us: int
    stores_dropped: int
    writes_pending: int
    asked_keys: int
    found_keys: int
    load_latency_us: int
    load_bytes_per_s: int
    breaker_opened: int
    reserved: Any
    url: builtins.bytes
    message: builtins.bytes
    _fields_ = [
        ("backend", c_uint64),
        ("place", c_uint32),
        ("health", c_uint32),
        ("objects", c_uint64),
        ("bytes", c_uint64),
        ("capacity_bytes", c_uint64),
        ("evictions", c_uint64),
        ("loads", c_uint64),
        ("loaded_bytes", c_uint64),
        ("load_us", c_uint64),
        ("load_busy_us", c_uint64),
        ("stores", c_uint64),
        ("stored_bytes", c_uint64),
        ("store_us", c_uint64),
        ("store_busy_us", c_uint64),
        ("stores_dropped", c_uint64),
        ("writes_pending", c_uint64),
        ("asked_keys", c_uint64),
        ("found_keys", c_uint64),
        ("load_latency_us", c_uint64),
        ("load_bytes_per_s", c_uint64),
        ("breaker_opened", c_uint64),
        ("reserved", c_uint64 * 3),
        ("url", c_char * KVKEEP_URL_BYTES),
        ("message", c_char * KVKEEP_MESSAGE_BYTES),
    ]


kvkeep_callback = CFUNCTYPE(None, c_void_p, POINTER(kvkeep_completion))


class kvkeep_options(Structure):
    struct_size: int
    abi_version: int
    connect: Optional[builtins.bytes]
    l1_bytes: int
    flags: int
    numa_node: int
    eviction_policy: Optional[builtins.bytes]
    watermark_high_percent: int
    watermark_low_percent: int
    store_mode: int
    store_after_uses: int
    backend_urls: Any
    backend_count: int
    sessions_max: int
    jobs_max: int
    writes_pending_max: int
    session_timeout_ms: int
    backend_timeout_ms: int
    store_wait_ms: int
    loading_bytes_max: int
    log: Any
    log_userdata: Any
    log_level: int
    reserved: int
    listen: Optional[builtins.bytes]
    key_callback: Any
    key_userdata: Any
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("connect", c_char_p),
        ("l1_bytes", c_uint64),
        ("flags", c_uint32),
        ("numa_node", c_uint32),
        ("eviction_policy", c_char_p),
        ("watermark_high_percent", c_uint32),
        ("watermark_low_percent", c_uint32),
        ("store_mode", c_uint32),
        ("store_after_uses", c_uint32),
        ("backend_urls", POINTER(c_char_p)),
        ("backend_count", c_size_t),
        ("sessions_max", c_uint32),
        ("jobs_max", c_uint32),
        ("writes_pending_max", c_uint32),
        ("session_timeout_ms", c_uint32),
        ("backend_timeout_ms", c_uint32),
        ("store_wait_ms", c_uint32),
        ("loading_bytes_max", c_uint64),
        ("log", kvkeep_log_callback),
        ("log_userdata", c_void_p),
        ("log_level", c_uint32),
        ("reserved", c_uint32),
        ("listen", c_char_p),
        ("key_callback", kvkeep_key_callback),
        ("key_userdata", c_void_p),
    ]


class kvkeep_backend_key(Structure):
    space: Any
    key: Any
    _fields_ = [
        ("space", c_uint8 * 16),
        ("key", kvkeep_key),
    ]


class kvkeep_prefetch_options(Structure):
    struct_size: int
    abi_version: int
    extra_count: int
    objects_per_chunk: int
    mode: int
    window_chunks: int
    group_rules: Any
    group_rule_count: int
    policy: int
    deadline_ms: int
    lookup_timeout_ms: int
    lookup_interval_ms: int
    lifetime: int
    priority: int
    notify: int
    notify_lookup: int
    pause_after_lookup: int
    reserved: Any
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("extra_count", c_int32),
        ("objects_per_chunk", c_uint32),
        ("mode", c_uint32),
        ("window_chunks", c_uint32),
        ("group_rules", POINTER(kvkeep_group_rule)),
        ("group_rule_count", c_size_t),
        ("policy", c_uint32),
        ("deadline_ms", c_uint32),
        ("lookup_timeout_ms", c_uint32),
        ("lookup_interval_ms", c_uint32),
        ("lifetime", c_uint32),
        ("priority", c_int32),
        ("notify", c_uint32),
        ("notify_lookup", c_uint32),
        ("pause_after_lookup", c_uint32),
        ("reserved", c_uint32 * 1),
    ]


class kvkeep_pool_options(Structure):
    struct_size: int
    abi_version: int
    device: int
    rank: int
    block_count: int
    blocks_per_chunk: int
    segments: Any
    segment_count: int
    parts: Any
    reserved: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("device", c_int32),
        ("rank", c_uint32),
        ("block_count", c_uint32),
        ("blocks_per_chunk", c_uint32),
        ("segments", POINTER(kvkeep_segment)),
        ("segment_count", c_size_t),
        ("parts", POINTER(c_uint32)),
        ("reserved", c_uint64),
    ]


class kvkeep_stats(Structure):
    struct_size: int
    abi_version: int
    l1_bytes: int
    l1_used_bytes: int
    l1_locked_bytes: int
    l1_objects: int
    l1_staged: int
    l1_shares: int
    sessions: int
    jobs: int
    writes_pending: int
    read_hits: int
    read_misses: int
    commits: int
    commits_discarded: int
    evictions: int
    evicted_bytes: int
    refusals: int
    sessions_reclaimed: int
    shares_revoked: int
    jobs_reclaimed: int
    jobs_submitted: int
    jobs_completed: int
    jobs_cancelled: int
    prefetch_hit_chunks: int
    prefetch_asked_chunks: int
    loads: int
    loaded_bytes: int
    load_failures: int
    corruptions: int
    backend_timeouts: int
    stores: int
    stored_bytes: int
    stores_already: int
    store_retries: int
    stores_dropped: int
    l2_objects: int
    l2_bytes: int
    l2_evictions: int
    clients: int
    clients_lost: int
    lookup_latency: Any
    prefetch_latency: Any
    load_latency: Any
    store_latency: Any
    call_latency: Any
    l2_hits: int
    l2_misses: int
    l2_pins: int
    uses_dropped: int
    writes_pending_max: int
    stores_dropped_recently: int
    io_uring_refused: int
    huge_pages_refused: int
    registrations_refused: int
    memlock_refused: int
    writes_asked: int
    deletions_pending: int
    writes_withdrawn: int
    commits_temporary: int
    dropped_queue: int
    dropped_evicted: int
    dropped_failed: int
    dropped_fenced: int
    dropped_closed: int
    dropped_deletions: int
    dropped_slow: int
    saved_tokens: int
    oldest_share_ms: int
    oldest_write_ms: int
    opened_ms: int
    saved_bytes: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("l1_bytes", c_uint64),
        ("l1_used_bytes", c_uint64),
        ("l1_locked_bytes", c_uint64),
        ("l1_objects", c_uint64),
        ("l1_staged", c_uint64),
        ("l1_shares", c_uint64),
        ("sessions", c_uint64),
        ("jobs", c_uint64),
        ("writes_pending", c_uint64),
        ("read_hits", c_uint64),
        ("read_misses", c_uint64),
        ("commits", c_uint64),
        ("commits_discarded", c_uint64),
        ("evictions", c_uint64),
        ("evicted_bytes", c_uint64),
        ("refusals", c_uint64),
        ("sessions_reclaimed", c_uint64),
        ("shares_revoked", c_uint64),
        ("jobs_reclaimed", c_uint64),
        ("jobs_submitted", c_uint64),
        ("jobs_completed", c_uint64),
        ("jobs_cancelled", c_uint64),
        ("prefetch_hit_chunks", c_uint64),
        ("prefetch_asked_chunks", c_uint64),
        ("loads", c_uint64),
        ("loaded_bytes", c_uint64),
        ("load_failures", c_uint64),
        ("corruptions", c_uint64),
        ("backend_timeouts", c_uint64),
        ("stores", c_uint64),
        ("stored_bytes", c_uint64),
        ("stores_already", c_uint64),
        ("store_retries", c_uint64),
        ("stores_dropped", c_uint64),
        ("l2_objects", c_uint64),
        ("l2_bytes", c_uint64),
        ("l2_evictions", c_uint64),
        ("clients", c_uint64),
        ("clients_lost", c_uint64),
        ("lookup_latency", kvkeep_histogram),
        ("prefetch_latency", kvkeep_histogram),
        ("load_latency", kvkeep_histogram),
        ("store_latency", kvkeep_histogram),
        ("call_latency", kvkeep_histogram),
        ("l2_hits", c_uint64),
        ("l2_misses", c_uint64),
        ("l2_pins", c_uint64),
        ("uses_dropped", c_uint64),
        ("writes_pending_max", c_uint64),
        ("stores_dropped_recently", c_uint64),
        ("io_uring_refused", c_uint64),
        ("huge_pages_refused", c_uint64),
        ("registrations_refused", c_uint64),
        ("memlock_refused", c_uint64),
        ("writes_asked", c_uint64),
        ("deletions_pending", c_uint64),
        ("writes_withdrawn", c_uint64),
        ("commits_temporary", c_uint64),
        ("dropped_queue", c_uint64),
        ("dropped_evicted", c_uint64),
        ("dropped_failed", c_uint64),
        ("dropped_fenced", c_uint64),
        ("dropped_closed", c_uint64),
        ("dropped_deletions", c_uint64),
        ("dropped_slow", c_uint64),
        ("saved_tokens", c_uint64),
        ("oldest_share_ms", c_uint64),
        ("oldest_write_ms", c_uint64),
        ("opened_ms", c_uint64),
        ("saved_bytes", c_uint64),
    ]


class kvkeep_event(Structure):
    sequence: int
    time_us: int
    space: int
    backend: int
    size: int
    key: Any
    kind: int
    tier: int
    reserved: Any
    _fields_ = [
        ("sequence", c_uint64),
        ("time_us", c_uint64),
        ("space", c_uint64),
        ("backend", c_uint64),
        ("size", c_uint64),
        ("key", kvkeep_key),
        ("kind", c_uint32),
        ("tier", c_uint32),
        ("reserved", c_uint64 * 4),
    ]


kvkeep_backend_lost = CFUNCTYPE(None, c_uint64, POINTER(kvkeep_backend_key), c_size_t)


kvkeep_backend_lookup = CFUNCTYPE(None, c_void_p, c_uint64, POINTER(kvkeep_backend_key), c_size_t, c_uint32, c_uint32)


kvkeep_backend_tell = CFUNCTYPE(None, c_void_p, POINTER(kvkeep_backend_key), c_size_t)


kvkeep_backend_remove = CFUNCTYPE(None, c_void_p, c_uint64, POINTER(kvkeep_backend_key), c_size_t, c_uint32)


class kvkeep_backend_answer(Structure):
    struct_size: int
    abi_version: int
    status: int
    reserved: int
    message: Optional[builtins.bytes]
    statuses: Any
    sizes: Any
    count: int
    keys: Any
    key_count: int
    next_cursor: int
    objects: int
    bytes: int
    capacity_bytes: int
    evictions: int
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("status", c_int32),
        ("reserved", c_uint32),
        ("message", c_char_p),
        ("statuses", POINTER(c_int32)),
        ("sizes", POINTER(c_uint64)),
        ("count", c_size_t),
        ("keys", POINTER(kvkeep_backend_key)),
        ("key_count", c_size_t),
        ("next_cursor", c_uint64),
        ("objects", c_uint64),
        ("bytes", c_uint64),
        ("capacity_bytes", c_uint64),
        ("evictions", c_uint64),
    ]


class kvkeep_backend_object(Structure):
    key: Any
    header: Any
    data: Any
    size: int
    reserved: Any
    _fields_ = [
        ("key", kvkeep_backend_key),
        ("header", c_void_p),
        ("data", c_void_p),
        ("size", c_uint64),
        ("reserved", c_uint64 * 2),
    ]


kvkeep_backend_complete = CFUNCTYPE(c_int, c_uint64, POINTER(kvkeep_backend_answer))


kvkeep_backend_load = CFUNCTYPE(None, c_void_p, c_uint64, POINTER(kvkeep_backend_object), c_size_t, c_uint32)


kvkeep_backend_store = CFUNCTYPE(None, c_void_p, c_uint64, POINTER(kvkeep_backend_object), c_size_t, c_uint32)


class kvkeep_backend_host(Structure):
    struct_size: int
    abi_version: int
    backend: int
    arena: Any
    arena_bytes: int
    complete: Any
    log: Any
    lost: Any
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("backend", c_uint64),
        ("arena", c_void_p),
        ("arena_bytes", c_uint64),
        ("complete", kvkeep_backend_complete),
        ("log", kvkeep_backend_log),
        ("lost", kvkeep_backend_lost),
    ]


kvkeep_backend_open = CFUNCTYPE(c_int32, c_void_p, POINTER(kvkeep_backend_parameter), c_size_t, POINTER(kvkeep_backend_host), POINTER(c_void_p), c_char_p, c_size_t)


class kvkeep_backend_vtable(Structure):
    struct_size: int
    abi_version: int
    name: Optional[builtins.bytes]
    userdata: Any
    open: Any
    lookup: Any
    load: Any
    store: Any
    touch: Any
    unpin: Any
    remove: Any
    list: Any
    usage: Any
    health: Any
    close: Any
    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("name", c_char_p),
        ("userdata", c_void_p),
        ("open", kvkeep_backend_open),
        ("lookup", kvkeep_backend_lookup),
        ("load", kvkeep_backend_load),
        ("store", kvkeep_backend_store),
        ("touch", kvkeep_backend_tell),
        ("unpin", kvkeep_backend_tell),
        ("remove", kvkeep_backend_remove),
        ("list", kvkeep_backend_list),
        ("usage", kvkeep_backend_query),
        ("health", kvkeep_backend_query),
        ("close", kvkeep_backend_close),
    ]


kvkeep_plugin_entry = CFUNCTYPE(POINTER(kvkeep_backend_vtable))


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "kvkeep_version": (
        c_char_p,
        (
        ),
    ),
    "kvkeep_abi_version": (
        c_uint32,
        (
        ),
    ),
    "kvkeep_status_name": (
        c_char_p,
        (
            c_int32,
        ),
    ),
    "kvkeep_last_error": (
        c_char_p,
        (
        ),
    ),
    "kvkeep_extra_count": (
        c_int,
        (
            c_int,
            c_int,
        ),
    ),
    "kvkeep_open": (
        c_int,
        (
            POINTER(kvkeep_options),
            POINTER(c_void_p),
        ),
    ),
    "kvkeep_close": (
        c_int,
        (
            c_void_p,
        ),
    ),
    "kvkeep_open_space": (
        c_int,
        (
            c_void_p,
            POINTER(kvkeep_space_options),
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_close_space": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_set_quota": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint64,
        ),
    ),
    "kvkeep_add_backend": (
        c_int,
        (
            c_void_p,
            c_char_p,
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_add_backend_vtable": (
        c_int,
        (
            c_void_p,
            POINTER(kvkeep_backend_vtable),
            c_char_p,
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_serve_clients": (
        c_int,
        (
            c_void_p,
        ),
    ),
    "kvkeep_remove_backend": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_flush": (
        c_int,
        (
            c_void_p,
            c_uint32,
        ),
    ),
    "kvkeep_init_struct": (
        c_int,
        (
            c_void_p,
            c_size_t,
            c_uint32,
        ),
    ),
    "kvkeep_get_error": (
        c_int,
        (
            c_void_p,
            c_uint32,
            c_uint64,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_begin_session": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_session_options),
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_end_session": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_abort_session": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_renew_session": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_append_tokens": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(c_uint32),
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_get_session_keys": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint64,
            c_size_t,
            c_uint32,
            c_uint32,
            c_uint32,
            POINTER(kvkeep_key),
            c_size_t,
        ),
    ),
    "kvkeep_get_tail_keys": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint32,
            c_uint32,
            c_uint32,
            c_uint32,
            POINTER(kvkeep_key),
            c_size_t,
        ),
    ),
    "kvkeep_reserve_write": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_uint64),
            c_uint32,
            POINTER(kvkeep_view),
        ),
    ),
    "kvkeep_finish_write": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_abort_write": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_finish_write_and_reserve_read": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            c_int32,
            POINTER(kvkeep_view),
        ),
    ),
    "kvkeep_reserve_read": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            c_int32,
            POINTER(kvkeep_view),
        ),
    ),
    "kvkeep_finish_read": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            c_int32,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_finish_read_tokens": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint64,
            c_uint64,
            c_uint32,
            c_uint32,
            c_uint32,
            c_int32,
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_get_views": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(kvkeep_view),
        ),
    ),
    "kvkeep_touch": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_query_keys": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(kvkeep_key_state),
        ),
    ),
    "kvkeep_retain": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            c_uint32,
            c_uint32,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_evict": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_delete": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_clear": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint32,
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_forget_space": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_submit_prefetch": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(kvkeep_prefetch_options),
            POINTER(c_uint64),
            kvkeep_callback,
            c_void_p,
        ),
    ),
    "kvkeep_resume_job": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_query_lookup_hits": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(c_uint32),
        ),
    ),
    "kvkeep_query_job": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_job_result),
        ),
    ),
    "kvkeep_query_prefix_lengths": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(c_uint32),
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_query_bitmap": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(c_uint8),
            c_size_t,
        ),
    ),
    "kvkeep_wait_job": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint32,
        ),
    ),
    "kvkeep_cancel_job": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_release_job": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_get_event_fd": (
        c_int,
        (
            c_void_p,
            POINTER(c_int32),
        ),
    ),
    "kvkeep_take_completions": (
        c_int,
        (
            c_void_p,
            POINTER(kvkeep_completion),
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_open_pool": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_pool_options),
            POINTER(c_uint64),
        ),
    ),
    "kvkeep_close_pool": (
        c_int,
        (
            c_void_p,
            c_uint64,
        ),
    ),
    "kvkeep_submit_store": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_int32),
            c_size_t,
            POINTER(kvkeep_transfer_options),
            POINTER(c_uint64),
            kvkeep_callback,
            c_void_p,
        ),
    ),
    "kvkeep_submit_load": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint64,
            POINTER(kvkeep_key),
            c_size_t,
            POINTER(c_int32),
            c_size_t,
            POINTER(kvkeep_transfer_options),
            POINTER(c_uint64),
            kvkeep_callback,
            c_void_p,
        ),
    ),
    "kvkeep_wait_layer": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint32,
            c_uint32,
        ),
    ),
    "kvkeep_stream_wait_layer": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_uint32,
            c_uint64,
            c_uint32,
        ),
    ),
    "kvkeep_query_blocks": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(c_int32),
            c_size_t,
        ),
    ),
    "kvkeep_query_stats": (
        c_int,
        (
            c_void_p,
            POINTER(kvkeep_stats),
        ),
    ),
    "kvkeep_query_space": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_space_usage),
        ),
    ),
    "kvkeep_query_misses": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_miss_report),
        ),
    ),
    "kvkeep_query_session": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_session_state),
        ),
    ),
    "kvkeep_query_backends": (
        c_int,
        (
            c_void_p,
            POINTER(kvkeep_backend_state),
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_get_arena": (
        c_int,
        (
            c_void_p,
            POINTER(c_void_p),
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_get_metrics": (
        c_int,
        (
            c_void_p,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_explain_key": (
        c_int,
        (
            c_void_p,
            c_uint64,
            POINTER(kvkeep_key),
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_explain_misses": (
        c_int,
        (
            c_void_p,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_explain_session": (
        c_int,
        (
            c_void_p,
            c_uint64,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
    "kvkeep_read_events": (
        c_int,
        (
            c_void_p,
            POINTER(c_uint64),
            POINTER(kvkeep_event),
            c_size_t,
            POINTER(c_size_t),
        ),
    ),
}
