"""kvkeep: the KV cache of language-model requests, kept outside the GPU.

A thin layer over the library's C ABI: the header kvkeep.h is the specification, and the names here are its names.
"""

from . import _ffi
from ._ffi import (
    EventKind,
    JobKind,
    Lifetime,
    LogLevel,
    Notify,
    Part,
    PrefetchMode,
    PrefetchPolicy,
    Status,
    StoreMode,
)
from ._library import lib as _lib
from .backend import Backend, BackendKey, BackendObject, BackendUsage
from .cache import Cache
from .completion import Completion
from .errors import (
    AccessError,
    CancelledError,
    ClosedError,
    CorruptError,
    DeviceError,
    DisconnectedError,
    ExistsError,
    ExpiredError,
    InternalError,
    InvalidError,
    IoError,
    KvkeepError,
    LimitError,
    LockedError,
    NoMemoryError,
    NotFoundError,
    NotHeldError,
    QuotaError,
    TimedOutError,
    UnsupportedError,
    VersionError,
)
from .event import Event
from .job import Job, JobResult
from .key import Key, Keys, keys
from .pages import Pages, Segment, pages
from .pool import Pool, Transfer
from .session import GroupRule, Session
from .space import Space
from .state import KeyState
from .view import Statuses, Views

BLOCK_NONE = _ffi.KVKEEP_BLOCK_NONE
DEVICE_HOST = _ffi.KVKEEP_DEVICE_HOST
FLAG_HUGE_PAGES = _ffi.KVKEEP_FLAG_HUGE_PAGES
FLAG_L1_PERCENT = _ffi.KVKEEP_FLAG_L1_PERCENT
FLAG_NO_CHECKSUM = _ffi.KVKEEP_FLAG_NO_CHECKSUM
FLAG_NO_PREFAULT = _ffi.KVKEEP_FLAG_NO_PREFAULT
FLAG_NUMA_NODE = _ffi.KVKEEP_FLAG_NUMA_NODE
FLAG_READ_ONLY = _ffi.KVKEEP_FLAG_READ_ONLY

__version__: str = _lib.kvkeep_version().decode()


def extra_count(tp_size: int, world_size: int) -> int:
    """Extra readers of an object besides the one every share count includes (MLA and tensor parallelism)."""
    count: int = _lib.kvkeep_extra_count(tp_size, world_size)
    return count


__all__ = [
    "AccessError",
    "BLOCK_NONE",
    "Backend",
    "BackendKey",
    "BackendObject",
    "BackendUsage",
    "Cache",
    "CancelledError",
    "ClosedError",
    "Completion",
    "CorruptError",
    "DEVICE_HOST",
    "DeviceError",
    "DisconnectedError",
    "Event",
    "EventKind",
    "ExistsError",
    "ExpiredError",
    "FLAG_HUGE_PAGES",
    "FLAG_L1_PERCENT",
    "FLAG_NO_CHECKSUM",
    "FLAG_NO_PREFAULT",
    "FLAG_NUMA_NODE",
    "FLAG_READ_ONLY",
    "GroupRule",
    "InternalError",
    "InvalidError",
    "IoError",
    "Job",
    "JobKind",
    "JobResult",
    "Key",
    "KeyState",
    "Keys",
    "KvkeepError",
    "Lifetime",
    "LimitError",
    "LockedError",
    "LogLevel",
    "NoMemoryError",
    "NotFoundError",
    "NotHeldError",
    "Notify",
    "Pages",
    "Part",
    "Pool",
    "PrefetchMode",
    "PrefetchPolicy",
    "QuotaError",
    "Segment",
    "Session",
    "Space",
    "Status",
    "Statuses",
    "StoreMode",
    "TimedOutError",
    "Transfer",
    "UnsupportedError",
    "VersionError",
    "Views",
    "extra_count",
    "keys",
    "pages",
]
