"""Pools of pages, and what goes between them and L1."""

from __future__ import annotations

import asyncio
import ctypes
import re
import warnings
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from . import _ffi
from ._array import Numbers, integers
from ._library import call, lib, number, prepared
from .completion import Completion, Telling
from .errors import InvalidError, KvkeepError, NotFoundError
from .job import Job
from .key import AnyKeys
from .key import keys as as_keys
from .landing import cancel_and_wait, hold_on, is_over
from .pages import Pages, Segment
from .view import Statuses

if TYPE_CHECKING:
    from .cache import Cache
    from .session import Session

# Numbers of blocks; None, like BLOCK_NONE, stands for no block.
Blocks = Union[Iterable[Optional[int]], Numbers]


class Transfer(Job):
    """One store or load. Awaited and waited for like any job; `copied_keys` of its result counts objects, and its status
    is PARTIAL where blocks have a status of their own.

    Pages are the library's until the transfer is done. Every way out of waiting for it, but a timeout, keeps to that: a cancelled
    `await` cancels the transfer and raises when the copy has landed, and so does an interrupted `wait`. One that nothing refers to
    any more before it is done is cancelled, and the last reference goes when the copy has landed, with a ResourceWarning; but one
    with a callback, or with Notify.EVENT_FD, goes on.
    """

    _touches_pages = True

    def __init__(
        self, pool: Pool, id: int, block_count: int, future: Optional[asyncio.Future[Completion]], owned: bool
    ) -> None:
        super().__init__(pool.cache, id, 0, future)
        self._pool = pool
        self._block_count = block_count
        # Whether its end is known to nobody when this object is gone.
        self._owned = owned

    @property
    def pool(self) -> Pool:
        """The pool of its pages."""
        return self._pool

    def wait_layer(self, layer: int, timeout: Optional[float] = None) -> _ffi.Status:
        """Blocks until every page of `layer` is copied: OK, or PARTIAL where some objects could not be had."""
        layer = number(ctypes.c_uint32, "layer", layer)
        pointer = self._cache.pointer
        return _ffi.Status(self._in_slices(timeout, lambda ms: call(lib.kvkeep_wait_layer, pointer, self.id, layer, ms)))

    def stream_wait_layer(self, layer: int, stream: int, timeout: Optional[float] = None) -> _ffi.Status:
        """Makes a CUDA stream wait until every page of `layer` is copied, and returns when the copies are queued: what is put on
        the stream from now on may use the pages. OK, or PARTIAL where some objects could not be had."""
        layer, stream = number(ctypes.c_uint32, "layer", layer), number(ctypes.c_uint64, "stream", stream)
        pointer = self._cache.pointer
        wait = lib.kvkeep_stream_wait_layer
        return _ffi.Status(self._in_slices(timeout, lambda ms: call(wait, pointer, self.id, layer, stream, ms)))

    def blocks(self) -> Optional[Statuses]:
        """What became of each block, in the order in which they were given; None until the transfer is done."""
        statuses = (ctypes.c_int32 * self._block_count)()
        status = call(lib.kvkeep_query_blocks, self._cache.pointer, self.id, statuses, len(statuses))
        if status == _ffi.Status.PENDING:
            return None
        return Statuses(statuses, not any(statuses))

    def release(self) -> None:
        """Forgets the transfer. One that is not done is cancelled, and its copy waited for, since nobody could ask later."""
        if not is_over(self._cache.pointer, self.id):
            self._abandon()
        super().release()

    def __del__(self) -> None:
        # What failed to be made owns nothing; a library that is gone copies nothing.
        if not getattr(self, "_owned", False) or is_over is None:
            return
        pointer = self._cache.pointer
        if not is_over(pointer, self.id):
            cancel_and_wait(pointer, self.id)
            warnings.warn(f"{self!r} was dropped before it was done, and cancelled", ResourceWarning, source=self)

    def __repr__(self) -> str:
        return f"<kvkeep transfer {self.id}>"


class Pool:
    """An engine's paged memory, registered once. Any thread may use it; it is closed by `close`, at the end of a `with`
    block, or when nothing refers to it any more, and keeps the memory of its pages until then."""

    def __init__(
        self,
        cache: Cache,
        space: int,
        segments: list[Union[Segment, Pages]],
        blocks_per_chunk: int,
        block_count: int,
        rank: int,
        device: Optional[int],
    ) -> None:
        tensors = [given for given in segments if isinstance(given, Pages)]
        plain = [
            segment for given in segments for segment in (given.segments if isinstance(given, Pages) else [given])
        ]
        block_count = _agreed("block_count", block_count or None, [(pages.block_count, pages) for pages in tensors], 0)
        if device is None:
            for pages in tensors:
                if pages.device is None:
                    raise InvalidError(f"the tensor of shape {pages.shape} does not say on which GPU it is: pass device")
        known = [(pages.device, pages) for pages in tensors if pages.device is not None]
        device = _agreed("device", device, known, _ffi.KVKEEP_DEVICE_HOST)
        array = (_ffi.kvkeep_segment * len(plain))()
        for place, segment in zip(array, plain):
            for name, kind, *_ in _ffi.kvkeep_segment._fields_:
                if name != "reserved":
                    setattr(place, name, number(kind, name, getattr(segment, name)))
        parts = (ctypes.c_uint32 * len(plain))(*(number(ctypes.c_uint32, "part", segment.part) for segment in plain))
        options = prepared(
            _ffi.kvkeep_pool_options,
            device=device,
            rank=rank,
            block_count=block_count,
            blocks_per_chunk=blocks_per_chunk,
            segments=array,
            segment_count=len(array),
            parts=parts,
        )
        pool = ctypes.c_uint64()
        try:
            call(lib.kvkeep_open_pool, cache.pointer, space, ctypes.byref(options), ctypes.byref(pool))
        except InvalidError as error:
            raise InvalidError(_with_shape(str(error), segments)) from None
        self.id = pool.value
        self.cache = cache
        self.blocks_per_chunk = blocks_per_chunk or 1
        # Closing comes before the memory is let go.
        memory = [pages.memory for pages in tensors]
        self._finalizer = weakref.finalize(self, _close, cache.pointer, self.id, memory)

    def store(
        self,
        session: Session,
        keys: AnyKeys,
        blocks: Blocks,
        *,
        stream: int = 0,
        lifetime: _ffi.Lifetime = _ffi.Lifetime.CACHED,
        callback: Optional[Callable[[Completion], object]] = None,
        loop: Optional[asyncio.AbstractEventLoop] = None,
        notify: Optional[_ffi.Notify] = None,
    ) -> Transfer:
        """Stores an object for each key from its blocks, `blocks_per_chunk` of them for each key; never waits.

        The end is told as that of `Session.prefetch`: in a coroutine, await the transfer.
        """
        told = callback, loop, notify
        return self._submit(
            lib.kvkeep_submit_store, session, keys, blocks, told, stream=stream, lifetime=lifetime
        )

    def load(
        self,
        session: Session,
        keys: AnyKeys,
        blocks: Blocks,
        *,
        stream: int = 0,
        skip_first_tokens: int = 0,
        return_shares: bool = False,
        lifetime: _ffi.Lifetime = _ffi.Lifetime.CACHED,
        priority: int = 0,
        callback: Optional[Callable[[Completion], object]] = None,
        loop: Optional[asyncio.AbstractEventLoop] = None,
        notify: Optional[_ffi.Notify] = None,
    ) -> Transfer:
        """Loads each key's object into its blocks, from whatever tier has it; never waits."""
        return self._submit(
            lib.kvkeep_submit_load,
            session,
            keys,
            blocks,
            (callback, loop, notify),
            stream=stream,
            skip_first_tokens=skip_first_tokens,
            return_shares=int(return_shares),
            lifetime=lifetime,
            priority=priority,
        )

    def close(self) -> None:
        """Cancels what is under way and waits until it has landed. Twice is harmless."""
        if self._finalizer.alive:
            # The memory is let go only after the call, whatever interrupts it.
            try:
                call(lib.kvkeep_close_pool, self.cache.pointer, self.id)
            except NotFoundError:
                pass
            self._finalizer.detach()

    def _submit(
        self, function: Any, session: Session, keys: AnyKeys, blocks: Blocks, told: tuple[Any, ...], **options: int
    ) -> Transfer:
        batch = as_keys(keys)
        if isinstance(blocks, (list, tuple)):
            blocks = [_ffi.KVKEEP_BLOCK_NONE if block is None else block for block in blocks]
        ids = integers(ctypes.c_int32, "blocks", blocks)
        telling = Telling.chosen(*told)
        prepared_options = prepared(_ffi.kvkeep_transfer_options, notify=telling.notify, **options)
        asked = (self.id, session.id, batch.array, len(batch), ids, len(ids), ctypes.byref(prepared_options))
        landings = self.cache.landings
        place = landings.expect(session.id)
        try:
            submitted = telling.submit(
                self.cache, lambda *told: call(function, self.cache.pointer, *asked, *told), place
            )
        except KvkeepError:
            landings.forget(place)
            raise
        return Transfer(self, submitted.job, len(ids), submitted.end, telling.asks)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await hold_on(self.close)

    def __repr__(self) -> str:
        return f"<kvkeep pool {self.id}>"


def _agreed(name: str, given: Optional[int], read: list[tuple[int, Pages]], default: int) -> int:
    values = {value: f"that of a tensor of shape {pages.shape}" for value, pages in reversed(read)}
    if given is not None:
        values.setdefault(given, "as given")
    if len(values) > 1:
        said = ", ".join(f"{value} ({whose})" for value, whose in sorted(values.items()))
        raise InvalidError(f"{name} is to be one number, but there are {said}: open a pool for each")
    return next(iter(values), default)


def _with_shape(message: str, given: list[Union[Segment, Pages]]) -> str:
    """The library's message, with the shape of the tensor whose segment it names."""
    found = re.search(r"segments\[(\d+)\]", message)
    of_each: list[Optional[tuple[int, ...]]] = []
    for one in given:
        of_each += [one.shape] * len(one.segments) if isinstance(one, Pages) else [None]
    if not found or (shape := of_each[int(found[1])]) is None:
        return message
    return f"{message} ({found[0]} is of a tensor of shape {shape})"


def _close(pointer: ctypes.c_void_p, pool: int, memory: list[object]) -> None:
    # Where the cache is closed already, its pools went with it.
    lib.kvkeep_close_pool(pointer, pool)
    memory.clear()
