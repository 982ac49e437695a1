"""A prefetch on its way."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from . import _ffi
from ._library import call, lib, prepared
from .completion import Completion
from .errors import KvkeepError, TimedOutError, error_for
from .landing import WAIT_SLICE_MS, cancel_and_wait

if TYPE_CHECKING:
    from .cache import Cache


class JobResult(NamedTuple):
    """The result of a job. Fields of the other kind of job are 0. `tier_keys[0]` counts L1, `tier_keys[i]` the i-th backend."""

    kind: _ffi.JobKind
    status: _ffi.Status
    hit_chunks: int
    lookup_chunks: int
    failed_keys: int
    tier_keys: tuple[int, ...]
    loaded_bytes: int
    lookup_us: int
    load_us: int
    total_us: int
    asked_keys: int
    copied_keys: int
    copied_bytes: int
    copy_us: int
    message: str
    failed_status: _ffi.Status = _ffi.Status.OK


def in_slices(timeout: Optional[float], wait: Callable[[int], int]) -> int:
    """Waits with `wait`, which takes milliseconds, at most `timeout` seconds."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = WAIT_SLICE_MS if end is None else round((end - time.monotonic()) * 1000)
        try:
            return wait(max(0, min(left, WAIT_SLICE_MS)))
        except TimedOutError:
            if left <= WAIT_SLICE_MS and end is not None:
                raise


class Job:
    """One prefetch. It lives until its release, its session's end or its deadline; any thread may ask it.

    `await job` gives its JobResult, on the event loop it was submitted for. A job that ended with an error
    raises the exception of its status, from `await` and from `wait`. A task that is cancelled while it awaits a job cancels the
    job, unless other tasks await it too, and goes on when the job has ended.
    """

    # Whether an engine's pages are copied: whoever stops waiting must know when they are not touched any more.
    _touches_pages = False

    def __init__(
        self,
        cache: Cache,
        id: int,
        key_count: int,
        future: Optional[asyncio.Future[Completion]],
        lookup: Optional[asyncio.Future[Completion]] = None,
    ) -> None:
        self.id = id
        self._lookup = lookup
        self._cache = cache
        self._key_count = key_count
        self._future = future
        # Tasks that await it and were not cancelled.
        self._awaiting = 0

    def lookup_hits(self) -> Optional[int]:
        """How many chunks will be hit, known before any byte is loaded; None until then."""
        chunks = ctypes.c_uint32()
        status = call(lib.kvkeep_query_lookup_hits, self._cache.pointer, self.id, ctypes.byref(chunks))
        return None if status == _ffi.Status.PENDING else chunks.value

    async def looked_up(self) -> int:
        """How many chunks will be hit, as soon as that is known. For jobs of an event loop with `notify_lookup`.

        Raises as `await job` does where the job ends with an error before its lookup is answered.
        """
        if self._lookup is None:
            raise RuntimeError("submit the job with notify_lookup=True on the event loop that awaits its lookup")
        completion = await asyncio.shield(self._lookup)
        if completion.status < 0:
            raise error_for(completion.status, completion.message)
        return completion.hit_chunks

    def resume(self) -> None:
        """Has a job that pauses after its lookup load what it found."""
        call(lib.kvkeep_resume_job, self._cache.pointer, self.id)

    def query(self) -> Optional[JobResult]:
        """The result, whatever its status; None until the job is done."""
        result = prepared(_ffi.kvkeep_job_result)
        status = call(lib.kvkeep_query_job, self._cache.pointer, self.id, ctypes.byref(result))
        if status == _ffi.Status.PENDING:
            return None
        return JobResult(
            _ffi.JobKind(result.kind),
            _ffi.Status(result.status),
            result.hit_chunks,
            result.lookup_chunks,
            result.failed_keys,
            tuple(result.tier_keys),
            result.loaded_bytes,
            result.lookup_us,
            result.load_us,
            result.total_us,
            result.asked_keys,
            result.copied_keys,
            result.copied_bytes,
            result.copy_us,
            result.message.decode(errors="replace"),
            _ffi.Status(result.failed_status),
        )

    def done(self) -> bool:
        """Whether the job has ended."""
        return self.query() is not None

    def prefix_lengths(self) -> Optional[list[int]]:
        """Every length in chunks at which all groups could continue, the longest first; None until the lookup is answered."""
        count, lengths = ctypes.c_size_t(), (ctypes.c_uint32 * self._key_count)()
        arguments = (self.id, lengths, len(lengths), ctypes.byref(count))
        if call(lib.kvkeep_query_prefix_lengths, self._cache.pointer, *arguments) == _ffi.Status.PENDING:
            return None
        return list(lengths[: count.value])

    def bitmap(self) -> Optional[list[bool]]:
        """For each key, whether the session holds shares of it; None until the job is done."""
        bits = (ctypes.c_uint8 * ((self._key_count + 7) // 8))()
        status = call(lib.kvkeep_query_bitmap, self._cache.pointer, self.id, bits, len(bits))
        if status == _ffi.Status.PENDING:
            return None
        return [bool(bits[i // 8] >> i % 8 & 1) for i in range(self._key_count)]

    def wait(self, timeout: Optional[float] = None) -> JobResult:
        """Blocks until the job is done, at most `timeout` seconds; then TimedOutError while `done()` is False.

        After TimedOutError the job goes on, and so does its copy: wait again, or cancel it and wait, before its pages are used
        anew. Any other exception that ends the wait, such as KeyboardInterrupt, cancels the job, and is raised when no page is
        touched any more.
        """
        self._in_slices(timeout, lambda ms: call(lib.kvkeep_wait_job, self._cache.pointer, self.id, ms))
        result = self.query()
        assert result is not None, "a job that was waited for is never pending"
        if result.status < 0:
            raise error_for(result.status, result.message or f"the job ended with {result.status.name}")
        return result

    def cancel(self) -> None:
        """Stops what has not started; waits for nothing. The job still completes."""
        call(lib.kvkeep_cancel_job, self._cache.pointer, self.id)

    def release(self) -> None:
        """Forgets the job; its shares stay the session's."""
        call(lib.kvkeep_release_job, self._cache.pointer, self.id)

    def _in_slices(self, timeout: Optional[float], wait: Callable[[int], int]) -> int:
        try:
            return in_slices(timeout, wait)
        except KvkeepError:
            raise
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Cancels the job for a caller that will not ask again, and blocks until its copy, if it has one, has landed."""
        if self._touches_pages:
            cancel_and_wait(self._cache.pointer, self.id)
        else:
            lib.kvkeep_cancel_job(self._cache.pointer, self.id)

    def __await__(self) -> Generator[object, None, JobResult]:
        if self._future is None:
            raise RuntimeError("a job is awaited on the event loop that it was submitted on or for")
        completion = yield from self._completion(self._future)
        if completion.status < 0:
            raise error_for(completion.status, completion.message)
        result = self.query()
        assert result is not None, "a completed job is never pending"
        return result

    def _completion(self, future: asyncio.Future[Completion]) -> Generator[object, None, Completion]:
        self._awaiting += 1
        cancelled: Optional[BaseException] = None
        try:
            while not future.done():
                try:
                    # Shielded, so that cancelling one task that awaits the job leaves the others waiting.
                    yield from asyncio.shield(future).__await__()
                except asyncio.CancelledError as error:
                    if future.cancelled():
                        raise
                    if cancelled is None:
                        cancelled = error
                        self._awaiting -= 1
                        if not self._awaiting:
                            lib.kvkeep_cancel_job(self._cache.pointer, self.id)
                        elif not self._touches_pages:
                            raise
                except GeneratorExit:
                    # The coroutine is closed, so that nobody can be resumed when the copy has landed.
                    self._abandon()
                    raise
        finally:
            if cancelled is None:
                self._awaiting -= 1
        if cancelled is not None:
            raise cancelled
        return future.result()

    def __repr__(self) -> str:
        return f"<kvkeep job {self.id}>"
