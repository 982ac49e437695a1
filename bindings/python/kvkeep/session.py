"""One request's hold on the cache."""

from __future__ import annotations

import asyncio
import ctypes
import json
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union

from . import _ffi
from ._array import Numbers, integers
from ._library import call, lib, milliseconds, number, prepared, text
from .completion import Completion, Telling
from .errors import InvalidError
from .job import Job
from .key import AnyKeys, Keys
from .key import keys as as_keys
from .landing import hold_on
from .view import Statuses, Views

if TYPE_CHECKING:
    from .cache import Cache


class GroupRule(NamedTuple):
    """How the objects of one group count in a job, where it differs from the job's own mode."""

    group: int
    mode: _ffi.PrefetchMode = _ffi.PrefetchMode.PREFIX
    window_chunks: int = 0


class Session:
    """A session by its number, which any thread may use.

    As a context manager it ends, and its transfers finish after it; on an exception, that of a cancelled task among them, it
    aborts, and the block is left when its transfers touch no page any more. `async with` waits for that beside the event loop.
    """

    def __init__(self, cache: Cache, id: int) -> None:
        self.id = id
        self._cache = cache

    def append_tokens(self, tokens: Numbers) -> int:
        """Appends token ids and returns how many chunks are full so far."""
        array = integers(ctypes.c_uint32, "tokens", tokens)
        chunks = ctypes.c_uint64()
        call(lib.kvkeep_append_tokens, self._cache.pointer, self.id, array, len(array), ctypes.byref(chunks))
        return chunks.value

    def keys(
        self, first_chunk: int, chunk_count: int, *, first_rank: int = 0, rank_count: int = 1, group_count: int = 1
    ) -> Keys:
        """The keys of full chunks, chunk-major: for each chunk, for each rank, for each group."""
        count = _key_count(chunk_count * rank_count * group_count)
        array = (_ffi.kvkeep_key * count)()
        call(
            lib.kvkeep_get_session_keys,
            *(self._cache.pointer, self.id, number(ctypes.c_uint64, "first_chunk", first_chunk), chunk_count),
            *(number(ctypes.c_uint32, "first_rank", first_rank), rank_count, group_count, array, count),
        )
        return Keys(array)

    def tail_keys(self, tail_tokens: int, *, first_rank: int = 0, rank_count: int = 1, group_count: int = 1) -> Keys:
        """The keys of the last chunk, which is not full, cut after its first `tail_tokens` tokens; see kvkeep_get_tail_keys."""
        count = _key_count(rank_count * group_count)
        array = (_ffi.kvkeep_key * count)()
        ranks = [number(ctypes.c_uint32, "a rank or group", n) for n in (first_rank, rank_count, group_count)]
        tokens = number(ctypes.c_uint32, "tail_tokens", tail_tokens)
        call(lib.kvkeep_get_tail_keys, self._cache.pointer, self.id, tokens, *ranks, array, count)
        return Keys(array)

    def reserve_write(
        self,
        keys: AnyKeys,
        sizes: Union[int, Numbers],
        lifetime: _ffi.Lifetime = _ffi.Lifetime.CACHED,
    ) -> Views:
        """Reserves bytes to write to: `sizes` for each key, or one size for all."""
        batch = as_keys(keys)
        array = integers(ctypes.c_uint64, "sizes", [sizes] * len(batch) if isinstance(sizes, int) else sizes)
        if len(array) != len(batch):
            raise ValueError(f"{len(batch)} keys, but {len(array)} sizes")
        return self._views(lib.kvkeep_reserve_write, batch, array, lifetime, writable=True)

    def finish_write(self, keys: AnyKeys) -> Statuses:
        """Commits staged keys: from now on every session can read them."""
        return self._statuses(lib.kvkeep_finish_write, keys)

    def abort_write(self, keys: AnyKeys) -> Statuses:
        """Gives staged keys back unwritten."""
        return self._statuses(lib.kvkeep_abort_write, keys)

    def finish_write_and_reserve_read(self, keys: AnyKeys, extra_count: int = 0) -> Views:
        """Commits staged keys and takes 1 + extra_count shares of each in one step."""
        return self._views(lib.kvkeep_finish_write_and_reserve_read, as_keys(keys), shares(extra_count))

    def reserve_read(self, keys: AnyKeys, extra_count: int = 0) -> Views:
        """Takes 1 + extra_count shares of each ready key."""
        return self._views(lib.kvkeep_reserve_read, as_keys(keys), shares(extra_count))

    def finish_read(self, keys: AnyKeys, extra_count: int = 0) -> Statuses:
        """Returns 1 + extra_count shares of each key."""
        return self._statuses(lib.kvkeep_finish_read, keys, shares(extra_count))

    def get_views(self, keys: AnyKeys) -> Views:
        """Views again, for keys whose shares the session holds; takes none."""
        return self._views(lib.kvkeep_get_views, as_keys(keys))

    def finish_read_tokens(
        self,
        first_token: int,
        last_token: int,
        *,
        first_rank: int = 0,
        rank_count: int = 1,
        group_count: int = 1,
        extra_count: int = 0,
    ) -> int:
        """Returns the shares of the chunks wholly within [first_token, last_token); the number of keys given back."""
        returned = ctypes.c_uint64()
        tokens = [number(ctypes.c_uint64, "a token", token) for token in (first_token, last_token)]
        ranks = [number(ctypes.c_uint32, "a rank or group", n) for n in (first_rank, rank_count, group_count)]
        call(
            lib.kvkeep_finish_read_tokens,
            *(self._cache.pointer, self.id, *tokens, *ranks, shares(extra_count), ctypes.byref(returned)),
        )
        return returned.value

    def prefetch(
        self,
        keys: AnyKeys,
        *,
        extra_count: int = 0,
        objects_per_chunk: int = 1,
        mode: _ffi.PrefetchMode = _ffi.PrefetchMode.PREFIX,
        window_chunks: int = 0,
        group_rules: Iterable[GroupRule] = (),
        policy: _ffi.PrefetchPolicy = _ffi.PrefetchPolicy.BEST_EFFORT,
        deadline: float = 0,
        lookup_timeout: float = 0,
        lookup_interval: float = 0,
        lifetime: _ffi.Lifetime = _ffi.Lifetime.CACHED,
        priority: int = 0,
        callback: Optional[Callable[[Completion], object]] = None,
        loop: Optional[asyncio.AbstractEventLoop] = None,
        notify: Optional[_ffi.Notify] = None,
        notify_lookup: bool = False,
        pause_after_lookup: bool = False,
    ) -> Job:
        """Looks keys up in every tier and loads into L1 what L1 lacks; never waits. Times are in seconds, 0 is the default.

        The end is told to `callback`, on a library thread; else to `loop`, by default the one that runs here, so that
        the job can be awaited there; else as `notify` says, by default not at all: poll or wait. With `notify_lookup` the answer
        of the lookup is told in the same way before it (`await job.looked_up()` on a loop). With `pause_after_lookup` nothing is
        loaded before `job.resume()`.
        """
        batch = as_keys(keys)
        rules = [_ffi.kvkeep_group_rule(*rule) for rule in group_rules]
        telling = Telling.chosen(callback, loop, notify, notify_lookup)
        options = prepared(
            _ffi.kvkeep_prefetch_options,
            extra_count=extra_count,
            objects_per_chunk=objects_per_chunk,
            mode=mode,
            window_chunks=window_chunks,
            group_rules=(_ffi.kvkeep_group_rule * len(rules))(*rules) if rules else None,
            group_rule_count=len(rules),
            policy=policy,
            deadline_ms=milliseconds("deadline", deadline),
            lookup_timeout_ms=milliseconds("lookup_timeout", lookup_timeout),
            lookup_interval_ms=milliseconds("lookup_interval", lookup_interval),
            lifetime=lifetime,
            priority=priority,
            notify=telling.notify,
            notify_lookup=notify_lookup,
            pause_after_lookup=pause_after_lookup,
        )
        asked = self._cache.pointer, self.id, batch.array, len(batch), ctypes.byref(options)
        submitted = telling.submit(self._cache, lambda *told: call(lib.kvkeep_submit_prefetch, *asked, *told))
        return Job(self._cache, submitted.job, len(batch), submitted.end, submitted.lookup)

    def explain(self) -> dict[str, Any]:
        """What the session holds: owner, age, deadline, shares, staged keys, jobs."""
        explained: dict[str, Any] = json.loads(text(lib.kvkeep_explain_session, self._cache.pointer, self.id))
        return explained

    def state(self) -> _ffi.kvkeep_session_state:
        """What the session holds now, by the names in kvkeep.h. Renews no deadline."""
        state = prepared(_ffi.kvkeep_session_state)
        call(lib.kvkeep_query_session, self._cache.pointer, self.id, ctypes.byref(state))
        return state

    def renew(self) -> None:
        """Renews the deadline, and does nothing else."""
        call(lib.kvkeep_renew_session, self._cache.pointer, self.id)

    def end(self) -> None:
        """Returns what is left and touches every key the session used."""
        call(lib.kvkeep_end_session, self._cache.pointer, self.id)

    def abort(self) -> None:
        """Returns what is left and touches nothing. Its transfers are cancelled: wait for them before their pages are used anew."""
        call(lib.kvkeep_abort_session, self._cache.pointer, self.id)

    def _views(self, function: Any, batch: Keys, *arguments: Any, writable: bool = False) -> Views:
        views = (_ffi.kvkeep_view * len(batch))()
        status = call(function, self._cache.pointer, self.id, batch.array, len(batch), *arguments, views)
        return Views(self._cache, views, status == _ffi.Status.OK, writable)

    def _statuses(self, function: Any, keys: AnyKeys, *arguments: Any) -> Statuses:
        batch = as_keys(keys)
        statuses = (ctypes.c_int32 * len(batch))()
        status = call(function, self._cache.pointer, self.id, batch.array, len(batch), *arguments, statuses)
        return Statuses(statuses, status == _ffi.Status.OK)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._leave(kind is None)
        if kind is not None:
            self._cache.landings.cancel(self.id)

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._leave(kind is None)
        if kind is not None:
            await hold_on(lambda: self._cache.landings.cancel(self.id))

    def _leave(self, well: bool) -> None:
        # A session that ended inside the block, by hand or by its deadline, has nothing left to end.
        function = lib.kvkeep_end_session if well else lib.kvkeep_abort_session
        function(self._cache.pointer, self.id)

    def __repr__(self) -> str:
        return f"<kvkeep session {self.id}>"


def shares(extra_count: int) -> int:
    """`extra_count` as C sees it."""
    return number(ctypes.c_int32, "extra_count", extra_count)


def _key_count(count: int) -> int:
    """Bounds the memory for keys before it is taken."""
    if not 0 <= count <= _ffi.KVKEEP_KEYS_MAX:
        raise InvalidError(f"{count} keys: at most {_ffi.KVKEEP_KEYS_MAX} can be asked for in one call")
    return count
