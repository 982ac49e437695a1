"""The client that LMCache's adapter asks: batches of named buffers, whose ends a descriptor tells."""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

from .._asking import answer
from .._ffi import PrefetchMode, Status
from .._library import lib
from .._memory import copy_in, copy_out
from .._trouble import Troubles
from ..cache import Cache
from ..errors import ClosedError, InvalidError, KvkeepError, TimedOutError
from ..job import Job
from ..key import Keys
from ..key import keys as as_keys
from ..space import Space
from .operation import Done, Operation, Operations, Part

# LMCache's own name, so that its logging settings hold.
log = logging.getLogger("lmcache.kvkeep")

# Most bytes of one part: a batch is cut so that several threads copy, and L1 need not hold all of it at once.
PART_BYTES = 32 << 20
PART_KEYS = 4096
# How often a part that waits looks whether the client is being closed.
LOOK_S = 0.1

Run = Callable[[Space, Keys, Sequence[Any]], "tuple[list[bool], str]"]


class KvkeepClient:
    """Stores and loads LMCache's objects in a kvkeep daemon (`connect`), or in a cache of this process (`l1_bytes`, `backends`).

    Any thread may call any method. `submit_batch_…` returns the number of an operation and waits for nothing: `drain_completions`
    gives its end, once, and `event_fd` is readable until then. LMCache's keys name the model, the slice and the group; say in
    `layout` and `generation` what they leave out: the dtype, where it changes under one name, and the weights.
    """

    def __init__(
        self,
        *,
        connect: str = "",
        l1_bytes: int = 0,
        backends: Iterable[str] = (),
        layout: str = "",
        tenant: str = "",
        generation: int = 0,
        threads: int = 4,
    ) -> None:
        if bool(connect) == bool(l1_bytes):
            raise InvalidError(
                'adapter_params needs either "connect", the socket of a `kvkeep serve` ("unix:///…"), '
                'or "l1_bytes", the memory of a cache of this process'
            )
        if threads < 1:
            raise InvalidError(f"adapter_params: threads is {threads}, which is not at least 1")
        if isinstance(backends, str):
            backends = [backends]
        self._cache = Cache(connect=connect) if connect else Cache(l1_bytes, backends=backends)
        self._layout, self._tenant, self._generation = layout, tenant, generation
        self._spaces: dict[str, Space] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._troubles = Troubles(log)
        self._operations = Operations()
        # Lookups, which a request waits for, do not stand behind copies, nor loads behind stores.
        self._lookups = ThreadPoolExecutor(1, "kvkeep-lookup")
        self._loads = ThreadPoolExecutor(threads, "kvkeep-load")
        self._stores = ThreadPoolExecutor(threads, "kvkeep-store")

    def event_fd(self) -> int:
        """Readable while `drain_completions` has something to give. Owned by the client."""
        return self._operations.fd

    def submit_batch_get(self, keys: Sequence[str], bufs: Sequence[Any]) -> int:
        """Fills each buffer with the object of its key. A key fails alone: absent, or of another length than its buffer."""
        return self._submit(self._loads, self._get, keys, bufs)

    def submit_batch_set(self, keys: Sequence[str], bufs: Sequence[Any]) -> int:
        """Stores each buffer under its key. One that is there already stays. It went well only where every key did."""
        return self._submit(self._stores, self._set, keys, bufs)

    def submit_batch_exists(self, keys: Sequence[str]) -> int:
        """Asks every tier which keys are there."""
        return self._submit(self._lookups, self._exists, keys)

    def submit_batch_delete(self, keys: Sequence[str]) -> int:
        """Deletes keys in every tier. A key that is being read stays."""
        return self._submit(self._lookups, self._delete, keys)

    def drain_completions(self) -> list[Done]:
        """The ends of operations, each once: number, whether all went well, why not, and what became of each key."""
        return self._operations.take()

    def close(self) -> None:
        """Ends what is under way, and returns when no buffer is touched any more. Operations that it cut short have an error.

        Twice is harmless.
        """
        with self._lock:
            closed, self._closing = self._closing, True
        for executor in (self._lookups, self._loads, self._stores):
            executor.shutdown()
        if not closed:
            self._cache.close()
            self._operations.close()

    def _submit(self, executor: ThreadPoolExecutor, run: Run, keys: Sequence[str], bufs: Sequence[Any] = ()) -> int:
        keys = list(keys)
        views = [memoryview(buf) for buf in bufs]
        if bufs and len(views) != len(keys):
            raise InvalidError(f"{len(keys)} keys, but {len(views)} buffers")
        parts = cut(keys, [view.nbytes for view in views])
        # Under the lock, so that close waits for what was accepted.
        with self._lock:
            if self._closing:
                raise ClosedError("the kvkeep client is closed")
            operation = self._operations.begin(keys, len(parts))
            for part in parts:
                executor.submit(self._run, operation, part, run, views)
        return operation.id

    def _run(self, operation: Operation, part: Part, run: Run, views: Sequence[memoryview]) -> None:
        """Runs one part. Whatever happens, it ends."""
        error = ""
        try:
            self._check_open()
            keys = as_keys(hashlib.sha256(operation.keys[place].encode()).digest() for place in part.places)
            mine = [views[place] for place in part.places] if views else ()
            found, error = run(self._space(part.model), keys, mine)
            for place, one in zip(part.places, found):
                operation.found[place] = one
        except KvkeepError as refused:
            error = str(refused)
        except Exception as broken:
            log.exception("kvkeep failed for a batch of LMCache")
            error = f"{type(broken).__name__}: {broken}"
        finally:
            if error and not self._closing:
                self._troubles.say(error, "kvkeep does not serve LMCache")
            self._operations.end_part(operation, error)

    def _get(self, space: Space, keys: Keys, bufs: Sequence[Any]) -> tuple[list[bool], str]:
        found = [False] * len(keys)
        with space.session("lmcache get") as session:
            self._wait(session.prefetch(keys, mode=PrefetchMode.EACH))
            views = session.get_views(keys)
            held = [place for place in range(len(keys)) if views.status(place) == Status.OK]
            whole = []
            for place in held:
                if views.array[place].size == bufs[place].nbytes:
                    copy_out(bufs[place], views.address(place))
                    whole.append(place)
            if held:
                # A share that was revoked meanwhile, because this process had stopped, was of bytes that may have changed.
                returned = dict(zip(held, session.finish_read([keys[place] for place in held])))
                for place in whole:
                    found[place] = returned[place] == Status.OK
        return found, ""

    def _set(self, space: Space, keys: Keys, bufs: Sequence[Any]) -> tuple[list[bool], str]:
        stored = [False] * len(keys)
        with space.session("lmcache set") as session:
            views = session.reserve_write(keys, [buf.nbytes for buf in bufs])
            why, staged = "", []
            if not views.ok and set(views.statuses) - {Status.OK, Status.ERR_EXISTS}:
                why = lib.kvkeep_last_error().decode("utf-8", "replace")
            for place, buf in enumerate(bufs):
                status = views.status(place)
                if status == Status.OK:
                    copy_in(views.address(place), buf)
                    staged.append(place)
                elif status == Status.ERR_EXISTS:
                    stored[place] = True
            if staged:
                for place, status in zip(staged, session.finish_write([keys[place] for place in staged])):
                    stored[place] = status == Status.OK
        there = [place for place in range(len(keys)) if stored[place]]
        for place, state in zip(there, space.query([keys[place] for place in there]) if there else ()):
            if state.ready and state.size != bufs[place].nbytes:
                stored[place] = False
                why = (
                    f"an object of {state.size} bytes is there under the key of one of {bufs[place].nbytes}: "
                    'name what has changed in "layout" of adapter_params'
                )
        return stored, "" if all(stored) else why or "objects were not committed: the cache was cleared meanwhile"

    def _exists(self, space: Space, keys: Keys, _: Sequence[Any]) -> tuple[list[bool], str]:
        found = [False] * len(keys)
        with space.session("lmcache exists") as session:
            # With a window of one chunk, a length is one at whose end an object is. Of all these the job loads the last alone.
            job = session.prefetch(keys, mode=PrefetchMode.WINDOW, window_chunks=1)
            for length in answer(job, job.prefix_lengths, self._check_open):
                found[length - 1] = True
        return found, ""

    def _delete(self, space: Space, keys: Keys, _: Sequence[Any]) -> tuple[list[bool], str]:
        # What is gone already is deleted: else LMCache would count its bytes for ever.
        return [status in (Status.OK, Status.ERR_NOT_FOUND) for status in space.delete(keys)], ""

    def _space(self, model: str) -> Space:
        with self._lock:
            space = self._spaces.get(model)
        if space is None:
            # Opened twice, it is the same one.
            space = self._cache.space(
                model, f"lmcache {self._layout}".strip(), self._tenant, generation=self._generation
            )
            with self._lock:
                self._spaces[model] = space
        return space

    def _wait(self, job: Job) -> None:
        """Until the job has ended, however it did; raises when the client is being closed."""
        is_over = False
        while not is_over:
            self._check_open()
            try:
                job.wait(LOOK_S)
                is_over = True
            except KvkeepError as error:
                is_over = job.done()
                if not is_over and not isinstance(error, TimedOutError):
                    raise

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError("the kvkeep client was closed before this was done")


def model_of(key: str) -> str:
    """The model in a key of LMCache's, whose fields are parted by @."""
    return key.partition("@")[0] or "lmcache"


def cut(keys: Sequence[str], sizes: Sequence[int]) -> list[Part]:
    """The parts of a batch, of one model each, of at most PART_BYTES and PART_KEYS. Keys without sizes count by their number."""
    parts = []
    order = sorted(range(len(keys)), key=lambda place: model_of(keys[place]))
    for model, places in itertools.groupby(order, key=lambda place: model_of(keys[place])):
        part, filled = Part(model, []), 0
        for place in places:
            size = sizes[place] if sizes else 0
            if part.places and (filled + size > PART_BYTES or len(part.places) == PART_KEYS):
                parts.append(part)
                part, filled = Part(model, []), 0
            part.places.append(place)
            filled += size
        parts.append(part)
    return parts


