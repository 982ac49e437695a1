"""A namespace: model, layout and tenant."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Optional, Union

from . import _ffi
from ._library import call, encoded, lib, milliseconds, number, prepared, text
from .key import AnyKeys, Key
from .key import keys as as_keys
from .pages import Pages, Segment
from .pool import Pool
from .session import Session
from .state import KeyState, copied
from .view import Statuses

if TYPE_CHECKING:
    from .cache import Cache


class Space:
    """A space by its number, valid until the cache is closed. Any thread may use it."""

    def __init__(self, cache: Cache, id: int) -> None:
        self.id = id
        self._cache = cache

    @property
    def cache(self) -> Cache:
        """The cache that it is of."""
        return self._cache

    def session(self, request_id: str = "", timeout: float = 0) -> Session:
        """Begins a session that expires `timeout` seconds after its last use; 0: the cache's `session_timeout`."""
        options = prepared(
            _ffi.kvkeep_session_options,
            request_id=encoded("request_id", request_id),
            timeout_ms=milliseconds("timeout", timeout),
        )
        session = ctypes.c_uint64()
        call(lib.kvkeep_begin_session, self._cache.pointer, self.id, ctypes.byref(options), ctypes.byref(session))
        return Session(self._cache, session.value)

    def pool(
        self,
        segments: Iterable[Union[Segment, Pages]],
        *,
        blocks_per_chunk: int = 1,
        block_count: int = 0,
        rank: int = 0,
        device: Optional[int] = None,
    ) -> Pool:
        """Registers an engine's pages. What `pages` made brings `block_count` and `device` along; a Segment does not.

        `device` is DEVICE_HOST, where nothing says otherwise, or a CUDA ordinal. The memory of pages is kept until
        the pool is closed; that of plain segments is the caller's to keep.
        """
        return Pool(self._cache, self.id, list(segments), blocks_per_chunk, block_count, rank, device)

    def touch(self, keys: AnyKeys) -> Statuses:
        """Marks ready keys as used now, last key first."""
        return self._batch(lib.kvkeep_touch, keys)

    def query(self, keys: AnyKeys) -> list[KeyState]:
        """What L1 says of each key, at one instant; takes no shares and touches nothing."""
        batch = as_keys(keys)
        states = (_ffi.kvkeep_key_state * len(batch))()
        call(lib.kvkeep_query_keys, self._cache.pointer, self.id, batch.array, len(batch), states)
        return [copied(state) for state in states]

    def retain(self, keys: AnyKeys, priority: int, ttl: float) -> Statuses:
        """Keeps keys longer: a bias of 0 to 100 for `ttl` seconds, never a hard pin."""
        bias = number(ctypes.c_uint32, "priority", priority), milliseconds("ttl", ttl)
        return self._batch(lib.kvkeep_retain, keys, *bias)

    def evict(self, keys: AnyKeys) -> Statuses:
        """Drops keys from L1 alone, written or not, whatever the policy would choose; backends keep what they have."""
        return self._batch(lib.kvkeep_evict, keys)

    def delete(self, keys: AnyKeys) -> Statuses:
        """Deletes keys from L1 at once, and from every backend in the background."""
        return self._batch(lib.kvkeep_delete, keys)

    def usage(self) -> _ffi.kvkeep_space_usage:
        """What the space takes of L1, and its quota, by the names in kvkeep.h."""
        usage = prepared(_ffi.kvkeep_space_usage)
        call(lib.kvkeep_query_space, self._cache.pointer, self.id, ctypes.byref(usage))
        return usage

    def misses(self) -> _ffi.kvkeep_miss_report:
        """How lookups in the space went, and why they missed keys, by the names in kvkeep.h."""
        report = prepared(_ffi.kvkeep_miss_report)
        call(lib.kvkeep_query_misses, self._cache.pointer, self.id, ctypes.byref(report))
        return report

    def close(self) -> None:
        """Closes the space, once no session and no pool of it is left. Its objects leave L1; backends keep theirs."""
        call(lib.kvkeep_close_space, self._cache.pointer, self.id)

    def set_quota(self, quota_bytes: int) -> None:
        """Bounds the part of L1 that the space's objects may take; 0: by L1 alone."""
        call(lib.kvkeep_set_quota, self._cache.pointer, self.id, number(ctypes.c_uint64, "quota_bytes", quota_bytes))

    def clear(self, force: bool = False) -> int:
        """Empties L1 of the space's objects; with `force` also hides those in use. How many went."""
        return self._cache.clear(force, self.id)

    def forget(self) -> int:
        """Forgets the space in every tier, as when its weights have changed. How many objects of L1 went."""
        return self._cache.forget(self.id)

    def explain(self, key: Key) -> dict[str, Any]:
        """Why a key is where it is: tier, state, who holds it, why it cannot be evicted."""
        array = as_keys([key]).array
        explained: dict[str, Any] = json.loads(text(lib.kvkeep_explain_key, self._cache.pointer, self.id, array))
        return explained

    def _batch(self, function: Any, keys: AnyKeys, *arguments: int) -> Statuses:
        batch = as_keys(keys)
        statuses = (ctypes.c_int32 * len(batch))()
        status = call(function, self._cache.pointer, self.id, batch.array, len(batch), *arguments, statuses)
        return Statuses(statuses, status == _ffi.Status.OK)

    def __repr__(self) -> str:
        return f"<kvkeep space {self.id}>"
