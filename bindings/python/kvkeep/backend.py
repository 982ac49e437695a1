"""A store that is written in Python, as a backend below L1."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import traceback
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

from . import _ffi
from .errors import IoError, KvkeepError


class BackendKey(NamedTuple):
    """The name of an object below L1, the same in every process."""

    space: bytes
    hash: bytes
    rank: int
    group: int

    @property
    def text(self) -> str:
        """The name in letters, digits and hyphens, for stores whose keys are texts or files."""
        return f"{self.space.hex()}-{self.hash.hex()}-{self.rank}-{self.group}"

    @classmethod
    def parse(cls, text: str) -> BackendKey:
        """The key of which `text` is the name."""
        space, digest, rank, group = text.split("-")
        return cls(bytes.fromhex(space), bytes.fromhex(digest), int(rank), int(group))


class BackendObject:
    """One object of a load or a store.

    `header` has 160 bytes and goes beside the payload `data`, which is L1 itself. A load writes both, a store reads both. They
    are released when the request ends: a slice or an array over them must not be used afterwards.
    """

    __slots__ = ("address", "data", "header", "key")

    def __init__(self, key: BackendKey, record: Any, writable: bool) -> None:
        self.key = key
        # Where the payload begins: inside of the arena that `open` was told of.
        self.address: int = record.data
        self.header = _view(record.header, _ffi.KVKEEP_OBJECT_HEADER_BYTES, writable)
        self.data = _view(record.data, record.size, writable)

    def release(self) -> Optional[Exception]:
        """Ends the views. An error if something holds on to them."""
        try:
            self.header.release()
            self.data.release()
        except BufferError:
            return IoError("the backend keeps an array over memory of L1: drop it before the method returns")
        return None


class BackendUsage(NamedTuple):
    """What a backend has. A number that it does not know is 0."""

    objects: int = 0
    bytes: int = 0
    capacity_bytes: int = 0
    evictions: int = 0


# What a method gives for one key or object: a value, or the reason why there is none.
Outcome = Union[int, None, BaseException]
Outcomes = Union[Sequence[Outcome], Awaitable[Sequence[Outcome]]]


class Backend:
    """A store to subclass, for `Cache.add_backend`. `lookup`, `load`, `store` and `remove` are its own; the rest may be left.

    Methods are called from `threads` threads of the library; one that blocks delays this backend only. Each may be `async def`
    instead: then they run on an event loop of the backend, many at once. KeyError says that the object is not there, FileExistsError
    that it was there before. Any other exception is an error of its object, and the log has it. Identity and checksum are verified
    above the backend: what it gives in error is a miss.
    """

    threads: int = 1
    batch: int = 32
    # Set while it is open.
    _lost: Optional[Callable[[Sequence[BackendKey]], None]] = None

    def open(self, address: int, size: int) -> Any:
        """L1 is at `address` and has `size` bytes: register it here where a network or a device asks for that."""

    def lookup(self, key: BackendKey) -> Any:
        """How many bytes of payload the object has, or None. It must stay until `unpin`, or its load raise KeyError."""
        raise NotImplementedError

    def load(self, key: BackendKey, header: memoryview, data: memoryview) -> Any:
        """Fills both in with what was stored."""
        raise NotImplementedError

    def store(self, key: BackendKey, header: memoryview, data: memoryview) -> Any:
        """Keeps a copy of both. No lookup may find half of an object."""
        raise NotImplementedError

    def remove(self, key: BackendKey) -> Any:
        """Deletes the object."""
        raise NotImplementedError

    def lookup_many(self, keys: Sequence[BackendKey], in_order: bool) -> Outcomes:
        """`lookup` of each. With `in_order`, all after the first that is absent may be None unseen."""
        return each(self.lookup, [(key,) for key in keys])

    def load_many(self, objects: Sequence[BackendObject]) -> Outcomes:
        """`load` of each: None where it went well, else the exception. Override it where the store has a call for many."""
        return each(self.load, [(item.key, item.header, item.data) for item in objects])

    def store_many(self, objects: Sequence[BackendObject]) -> Outcomes:
        """`store` of each, as `load_many`."""
        return each(self.store, [(item.key, item.header, item.data) for item in objects])

    def remove_many(self, keys: Sequence[BackendKey]) -> Outcomes:
        """`remove` of each, as `load_many`."""
        return each(self.remove, [(key,) for key in keys])

    def touch(self, keys: Sequence[BackendKey]) -> Any:
        """The objects were used, the last one last."""

    def unpin(self, keys: Sequence[BackendKey]) -> Any:
        """Each object that a lookup found is not waited for any more."""

    def list(self, space: Optional[bytes]) -> Any:
        """The keys of a space, or of all for None; without it, the backend cannot forget a space."""
        raise NotImplementedError

    def usage(self) -> Any:
        """A BackendUsage."""
        return BackendUsage()

    def health(self) -> Any:
        """None, or what slows the backend down. An exception says that it does not work."""

    def lost(self, keys: Sequence[BackendKey]) -> None:
        """For the store to call when it has evicted objects by itself: L1 then does not take them for stored any more."""
        if self._lost is not None:
            self._lost(keys)

    def close(self) -> Any:
        """Called once, when no other method runs or will run."""


def each(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Outcomes:
    """The outcome of each call: all at once where the function is asynchronous."""
    if inspect.iscoroutinefunction(function):
        return _gathered(function, arguments)
    outcomes: list[Outcome] = []
    for given in arguments:
        try:
            outcomes.append(function(*given))
        except Exception as error:
            outcomes.append(error)
    return outcomes


async def _gathered(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Sequence[Outcome]:
    outcomes: Sequence[Outcome] = await asyncio.gather(
        *(function(*given) for given in arguments), return_exceptions=True
    )
    return outcomes


def status_of(error: Optional[BaseException]) -> int:
    """The kvkeep_status that an exception of a backend stands for."""
    if error is None:
        return int(_ffi.Status.OK)
    if isinstance(error, KvkeepError):
        return int(error.status)
    if isinstance(error, asyncio.CancelledError):
        return int(_ffi.Status.ERR_CANCELLED)
    if isinstance(error, (KeyError, FileNotFoundError)):
        return int(_ffi.Status.ERR_NOT_FOUND)
    if isinstance(error, FileExistsError):
        return int(_ffi.Status.ERR_EXISTS)
    if isinstance(error, MemoryError):
        return int(_ffi.Status.ERR_NO_MEMORY)
    if isinstance(error, NotImplementedError):
        return int(_ffi.Status.ERR_UNSUPPORTED)
    return int(_ffi.Status.ERR_IO)


def words_of(error: BaseException) -> str:
    """An exception in one line, with where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _view(address: Optional[int], size: int, writable: bool) -> memoryview:
    data = memoryview((ctypes.c_uint8 * size).from_address(address or 0)).cast("B")
    return data if writable else data.toreadonly()
