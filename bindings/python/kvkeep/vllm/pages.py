"""A worker's pages as a pool, and the transfers between them and kvkeep."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .. import _ffi
from .._library import call, lib, prepared
from ..cache import Cache
from ..key import Keys
from ..space import Space
from .layout import Segment

# A wait is cut into slices, so that a signal is seen between them.
WAIT_SLICE_MS = 500


class Transfer:
    """One store or load on its way; `blocks` are those it was given."""

    def __init__(self, cache: Cache, id: int, blocks: Sequence[int]) -> None:
        self.id = id
        self.blocks = blocks
        self._cache = cache

    def done(self) -> bool:
        """Whether no page is touched any more."""
        result = prepared(_ffi.kvkeep_prefetch_result)
        return (
            call(lib.kvkeep_query_prefetch, self._cache.pointer, self.id, ctypes.byref(result)) != _ffi.Status.PENDING
        )

    def wait(self) -> None:
        """Blocks until it is done."""
        while lib.kvkeep_wait(self._cache.pointer, self.id, WAIT_SLICE_MS) == _ffi.Status.ERR_TIMEOUT:
            pass

    def wait_layer(self, layer: int) -> None:
        """Blocks until a layer is done, or will not be."""
        while lib.kvkeep_wait_layer(self._cache.pointer, self.id, layer, WAIT_SLICE_MS) == _ffi.Status.ERR_TIMEOUT:
            pass

    def failed_blocks(self) -> set[int]:
        """The blocks that are not as they should be, once it is done."""
        statuses = (ctypes.c_int32 * len(self.blocks))()
        call(lib.kvkeep_query_blocks, self._cache.pointer, self.id, statuses, len(statuses))
        return {block for block, status in zip(self.blocks, statuses) if status != _ffi.Status.OK}

    def release(self) -> None:
        """Forgets it."""
        lib.kvkeep_release_job(self._cache.pointer, self.id)


class Pages:
    """A pool by its number."""

    def __init__(
        self,
        cache: Cache,
        space: Space,
        segments: Sequence[Segment],
        *,
        block_count: int,
        blocks_per_chunk: int,
        rank: int,
        device: int = _ffi.KVKEEP_DEVICE_HOST,
    ) -> None:
        array = (_ffi.kvkeep_segment * len(segments))(
            *(
                _ffi.kvkeep_segment(part.address, part.block_bytes, part.block_stride, 0, part.layer)
                for part in segments
            )
        )
        options = prepared(
            _ffi.kvkeep_pool_options,
            device=device,
            rank=rank,
            block_count=block_count,
            blocks_per_chunk=blocks_per_chunk,
            segments=array,
            segment_count=len(array),
        )
        pool = ctypes.c_uint64()
        call(lib.kvkeep_open_pool, cache.pointer, space.id, ctypes.byref(options), ctypes.byref(pool))
        self.rank = rank
        self._cache = cache
        self._id = pool.value

    def store(self, session: int, keys: Keys, blocks: Sequence[int], stream: int) -> Transfer:
        """Begins to store blocks under keys of the pool's rank."""
        return self._submit(lib.kvkeep_submit_store, session, keys, blocks, stream=stream)

    def load(self, session: int, keys: Keys, blocks: Sequence[int], stream: int) -> Transfer:
        """Begins to load keys into blocks; gives back one share of each that the session holds."""
        return self._submit(lib.kvkeep_submit_load, session, keys, blocks, stream=stream, return_shares=1)

    def close(self) -> None:
        """Cancels what is on its way and waits until no page is touched any more."""
        lib.kvkeep_close_pool(self._cache.pointer, self._id)

    def _submit(self, submit: object, session: int, keys: Keys, blocks: Sequence[int], **options: int) -> Transfer:
        numbers = (ctypes.c_int32 * len(blocks))(*blocks)
        job = ctypes.c_uint64()
        call(
            submit,
            *(self._cache.pointer, self._id, session, keys.array, len(keys), numbers, len(numbers)),
            *(ctypes.byref(prepared(_ffi.kvkeep_transfer_options, **options)), ctypes.byref(job)),
            *(_ffi.kvkeep_callback(), None),
        )
        return Transfer(self._cache, job.value, blocks)
