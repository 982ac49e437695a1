"""Transfers that may still touch pages, and how to wait for them whatever interrupts the caller."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from typing import Callable, Optional

from . import _ffi
from ._library import lib

# A wait is cut into slices so that Ctrl-C is seen between them.
WAIT_SLICE_MS = 500
PRUNE_ABOVE = 64


def is_over(pointer: ctypes.c_void_p, job: int) -> bool:
    """Whether a job has ended: of a transfer, whether it touches no page any more."""
    return bool(lib.kvkeep_wait_job(pointer, job, 0) != _ffi.Status.ERR_TIMEOUT)


def wait_until_over(pointer: ctypes.c_void_p, job: int) -> None:
    """Blocks until a job has ended. An exception that comes meanwhile, such as that of Ctrl-C, is raised only then."""
    interruption: Optional[BaseException] = None
    over = False
    while not over:
        try:
            over = lib.kvkeep_wait_job(pointer, job, WAIT_SLICE_MS) != _ffi.Status.ERR_TIMEOUT
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


def cancel_and_wait(pointer: ctypes.c_void_p, job: int) -> None:
    """Cancels a job and blocks until it has ended. A job that is gone has ended."""
    lib.kvkeep_cancel_job(pointer, job)
    wait_until_over(pointer, job)


async def hold_on(wait: Callable[[], object]) -> None:
    """Runs a blocking wait beside the event loop. Cancelling the task does not cut it short, and is raised after it."""
    waiting = asyncio.get_running_loop().run_in_executor(None, wait)
    cancelled: Optional[BaseException] = None
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError as error:
            if waiting.cancelled():
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
    waiting.result()


class Landings:
    """The transfers that were submitted through one cache and may not have ended, by session."""

    def __init__(self, pointer: ctypes.c_void_p) -> None:
        self._pointer = pointer
        self._lock = threading.Lock()
        self._expected: list[tuple[int, ctypes.c_uint64]] = []
        self._prune_above = PRUNE_ABOVE

    def expect(self, session: int) -> ctypes.c_uint64:
        """Where the submission writes the number of a transfer. Known before the call, so that no exception falls between."""
        job = ctypes.c_uint64()
        with self._lock:
            self._expected.append((session, job))
            if len(self._expected) > self._prune_above:
                self._expected = [
                    one for one in self._expected if one[1] is job or not one[1] or not is_over(self._pointer, one[1].value)
                ]
                self._prune_above = max(PRUNE_ABOVE, 2 * len(self._expected))
        return job

    def forget(self, job: ctypes.c_uint64) -> None:
        """For a transfer that was refused."""
        with self._lock:
            self._expected = [one for one in self._expected if one[1] is not job]

    def cancel(self, session: int) -> None:
        """Cancels the transfers of a session that was left by an exception, and blocks until they touch no page any more."""
        with self._lock:
            mine = [job for number, job in self._expected if number == session]
        for job in mine:
            if job:
                cancel_and_wait(self._pointer, job.value)
        with self._lock:
            self._expected = [one for one in self._expected if one[0] != session]
