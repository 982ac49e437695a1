"""Ends of jobs: what they say, and their way from the library to whoever asked."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import threading
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from . import _ffi
from ._library import call, lib
from .errors import ClosedError, KvkeepError

if TYPE_CHECKING:
    from .cache import Cache

DRAIN_BATCH = 64


class Completion(NamedTuple):
    """What became of one job; `message` is empty on success. Fields of the other kind of job are 0.

    Of kind LOOKUP it is no end, but the answer of a prefetch's lookup.

    `kind` is None where the cache was closed before the library told of the job.
    """

    job: int
    session: int
    status: _ffi.Status
    hit_chunks: int
    loaded_bytes: int
    message: str
    kind: Optional[_ffi.JobKind] = None
    copied_keys: int = 0
    copied_bytes: int = 0


def copied(record: Any) -> Completion:
    """The record as Python's own; the library's is valid during the call only."""
    return Completion(
        record.job,
        record.session,
        _ffi.Status(record.status),
        record.hit_chunks,
        record.loaded_bytes,
        record.message.decode("utf-8", "replace"),
        _ffi.JobKind(record.kind),
        record.copied_keys,
        record.copied_bytes,
    )


class Callbacks:
    """Python functions that wait for a job's end. It refers to no cache, and must outlive the library's close."""

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[[Completion], object]] = {}
        self._numbers = itertools.count(1)
        self._here = threading.local()
        self.trampoline = _ffi.kvkeep_callback(self._run)

    def add(self, function: Callable[[Completion], object]) -> int:
        """The userdata under which `function` will be called."""
        number = next(self._numbers)
        self._waiting[number] = function
        return number

    def forget(self, number: int) -> None:
        """For a job that was refused: no completion will come."""
        del self._waiting[number]

    @property
    def running(self) -> bool:
        """Whether the caller is called back by the library."""
        return getattr(self._here, "running", False)

    def run(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls what the library calls back."""
        outer, self._here.running = self.running, True
        try:
            function(*arguments)
        finally:
            self._here.running = outer

    def _run(self, number: int, record: Any) -> None:
        # What the function raises is reported by ctypes through sys.unraisablehook.
        completion = copied(record.contents)
        take = self._waiting.__getitem__ if completion.kind == _ffi.JobKind.LOOKUP else self._waiting.pop
        self.run(take(number), completion)


class Completions:
    """Brings the completions of the cache's event descriptor to the event loops whose jobs they end."""

    def __init__(self, pointer: ctypes.c_void_p) -> None:
        self._pointer = pointer
        self._pending: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[Completion]]] = {}
        self._lookups: dict[int, asyncio.Future[Completion]] = {}
        self._awaited: dict[asyncio.AbstractEventLoop, int] = {}
        self._unclaimed: list[Completion] = []
        # Held over submit and take, so that a job is known here before its completion is.
        self.lock = threading.Lock()

    def fd(self) -> int:
        """The descriptor that is readable while there is something to take."""
        fd = ctypes.c_int32()
        call(lib.kvkeep_get_event_fd, self._pointer, ctypes.byref(fd))
        return fd.value

    def expect(self, job: int, loop: asyncio.AbstractEventLoop, cache: object) -> asyncio.Future[Completion]:
        """A future of `loop` for the end of `job`. The caller holds the lock; `cache` is kept open until then."""
        future: asyncio.Future[Completion] = loop.create_future()
        self._pending[job] = (loop, future)
        self._in(loop, self._watch, loop, cache)
        return future

    def expect_lookup(self, job: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Completion]:
        """A future of `loop` for the answer of the lookup of `job`, or its end before that. The caller holds the lock."""
        self._lookups[job] = loop.create_future()
        return self._lookups[job]

    def take(self) -> list[Completion]:
        """Delivers what has come to its loops and returns the rest."""
        batch = (_ffi.kvkeep_completion * DRAIN_BATCH)()
        count = ctypes.c_size_t(DRAIN_BATCH)
        with self.lock:
            while count.value == DRAIN_BATCH:
                call(lib.kvkeep_take_completions, self._pointer, batch, DRAIN_BATCH, ctypes.byref(count))
                for completion in map(copied, batch[: count.value]):
                    self._deliver(completion)
            rest, self._unclaimed = self._unclaimed, []
        return rest

    def stop(self) -> None:
        """Before close: takes what has come and lets go of the descriptor, which closes with the cache."""
        self._on_readable()
        fd = self.fd()
        for loop in list(self._awaited):
            self._in(loop, loop.remove_reader, fd)
        self._awaited.clear()

    def cancel_pending(self) -> None:
        """After close: ends the jobs whose completions can no longer be drained."""
        with self.lock:
            for job in list(self._pending):
                self._deliver(Completion(job, 0, _ffi.Status.ERR_CANCELLED, 0, 0, "the cache was closed"))

    def _watch(self, loop: asyncio.AbstractEventLoop, cache: object) -> None:
        if loop not in self._awaited:
            try:
                loop.add_reader(self.fd(), self._on_readable, cache)
            except ClosedError:
                return
        self._awaited[loop] = self._awaited.get(loop, 0) + 1

    def _on_readable(self, *_: object) -> None:
        try:
            rest = self.take()
        except ClosedError:
            return
        with self.lock:
            self._unclaimed[:0] = rest

    def _deliver(self, completion: Completion) -> None:
        if lookup := self._lookups.pop(completion.job, None):
            self._in(lookup.get_loop(), _answer, lookup, completion)
        if completion.kind == _ffi.JobKind.LOOKUP and (lookup or completion.job in self._pending):
            return
        if expected := self._pending.pop(completion.job, None):
            loop, future = expected
            self._in(loop, self._resolve, loop, future, completion)
        else:
            self._unclaimed.append(completion)

    def _resolve(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Completion], completion: Completion
    ) -> None:
        if not future.done():
            future.set_result(completion)
        if loop in self._awaited:
            self._awaited[loop] -= 1
            if not self._awaited[loop]:
                del self._awaited[loop]
                loop.remove_reader(self.fd())

    def _in(self, loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
        """Runs `function` on the loop's own thread; at once where that is this one."""
        if running_loop() is loop:
            function(*arguments)
            return
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop was closed before its jobs ended: nobody is left to tell.
            self._awaited.pop(loop, None)


class Submitted(NamedTuple):
    """The number of a job, and what to await where it tells a loop."""

    job: int
    end: Optional[asyncio.Future[Completion]] = None
    lookup: Optional[asyncio.Future[Completion]] = None


def _answer(lookup: asyncio.Future[Completion], completion: Completion) -> None:
    if not lookup.done():
        lookup.set_result(completion)


class Telling(NamedTuple):
    """In which one way a job tells its end."""

    callback: Optional[Callable[[Completion], object]]
    loop: Optional[asyncio.AbstractEventLoop]
    notify: _ffi.Notify
    # Whether the lookup's answer is told, too.
    lookup: bool

    @classmethod
    def chosen(
        cls,
        callback: Optional[Callable[[Completion], object]],
        loop: Optional[asyncio.AbstractEventLoop],
        notify: Optional[_ffi.Notify],
        lookup: bool = False,
    ) -> Telling:
        """To `callback`; else to `loop`, by default the one that runs here; else as `notify` says, by default not."""
        if callback is None and notify is None:
            loop = loop or running_loop()
        elif loop is not None:
            raise ValueError("a job tells its end in one way: give callback, loop or notify")
        return cls(callback, loop, _ffi.Notify.EVENT_FD if loop else notify or _ffi.Notify.POLL, lookup)

    @property
    def asks(self) -> bool:
        """Whether the end is told to nobody who does not ask the job itself."""
        return self.callback is None and (self.loop is not None or self.notify == _ffi.Notify.POLL)

    def submit(
        self, cache: Cache, submit: Callable[[Any, Any, Optional[int]], int], job: Optional[ctypes.c_uint64] = None
    ) -> Submitted:
        """Calls `submit` with where the job's number goes, callback and userdata."""
        job = ctypes.c_uint64() if job is None else job
        if self.callback is not None:
            userdata = cache.callbacks.add(self.callback)
            try:
                submit(ctypes.byref(job), cache.callbacks.trampoline, userdata)
            except KvkeepError:
                cache.callbacks.forget(userdata)
                raise
            return Submitted(job.value)
        with cache.completions.lock:
            submit(ctypes.byref(job), _ffi.kvkeep_callback(), None)
            if self.loop is None:
                return Submitted(job.value)
            lookup = cache.completions.expect_lookup(job.value, self.loop) if self.lookup else None
            return Submitted(job.value, cache.completions.expect(job.value, self.loop, cache), lookup)


def running_loop() -> Optional[asyncio.AbstractEventLoop]:
    """The event loop of this thread, if one runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
