"""A negative status of the library as an exception, one class for each."""

from __future__ import annotations

from ._ffi import Status


class KvkeepError(Exception):
    """What every error of the library is. `status` is its number, the text says cause and remedy."""

    status: int = Status.ERR_INTERNAL


class InvalidError(KvkeepError, ValueError):
    status = Status.ERR_INVALID


class ClosedError(KvkeepError):
    status = Status.ERR_CLOSED


class NotFoundError(KvkeepError, LookupError):
    status = Status.ERR_NOT_FOUND


class ExistsError(KvkeepError):
    status = Status.ERR_EXISTS


class NotHeldError(KvkeepError):
    status = Status.ERR_NOT_HELD


class ExpiredError(KvkeepError):
    status = Status.ERR_EXPIRED


class LockedError(KvkeepError):
    status = Status.ERR_LOCKED


class NoMemoryError(KvkeepError, MemoryError):
    status = Status.ERR_NO_MEMORY


class QuotaError(KvkeepError):
    status = Status.ERR_QUOTA


class LimitError(KvkeepError):
    status = Status.ERR_LIMIT


class TimedOutError(KvkeepError, TimeoutError):
    status = Status.ERR_TIMEOUT


class CancelledError(KvkeepError):
    status = Status.ERR_CANCELLED


class IoError(KvkeepError, OSError):
    status = Status.ERR_IO


class CorruptError(KvkeepError):
    status = Status.ERR_CORRUPT


class UnsupportedError(KvkeepError):
    status = Status.ERR_UNSUPPORTED


class VersionError(KvkeepError):
    status = Status.ERR_VERSION


class AccessError(KvkeepError, PermissionError):
    status = Status.ERR_PERMISSION


class DisconnectedError(KvkeepError, ConnectionError):
    status = Status.ERR_DISCONNECTED


class InternalError(KvkeepError):
    status = Status.ERR_INTERNAL


class DeviceError(KvkeepError):
    status = Status.ERR_DEVICE


BY_STATUS = {int(kind.status): kind for kind in KvkeepError.__subclasses__()}


def error_for(status: int, message: str) -> KvkeepError:
    """The exception of `status`; a number that a newer library added keeps its number."""
    error = BY_STATUS.get(status, KvkeepError)(message)
    error.status = status
    return error
