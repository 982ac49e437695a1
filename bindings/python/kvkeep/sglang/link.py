"""Loads and offloads between SGLang's device pools and kvkeep, without SGLang's own types."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, NamedTuple

from .._ffi import Status
from .._quietly import quietly
from ..errors import KvkeepError
from ..pool import Transfer
from ..session import Session
from .store import HOLD_S, Restorable, Store, Window

log = logging.getLogger("sglang.kvkeep")

# Makes the work that is queued from now on wait until a layer of a transfer is copied.
WaitLayer = Callable[[Transfer, int], object]
# Blocks until pages may be touched: what was queued before has written or read them.
Ready = Callable[[], object]


class Asked(NamedTuple):
    """Pages of one pool."""

    name: str
    keys: Sequence[str]
    indices: Any


class Loading(NamedTuple):
    """A load that has begun."""

    name: str
    session: Session
    transfer: Transfer


class Batch(NamedTuple):
    """Loads that have been begun together, of these requests."""

    begun: Future[list[Loading]]
    requests: list[str]


class Link:
    """What SGLang's tree asks of a linker. It calls from one thread; copies go on beside it.

    What a lookup has found is held until its request has loaded it: SGLang gives up requests whose loads fail.
    """

    def __init__(self, store: Store, layers: dict[str, set[int]], wait_layer: WaitLayer) -> None:
        self._store = store
        self._layers = layers
        self._wait_layer = wait_layer
        self._queued: dict[str, Sequence[Asked]] = {}
        self._batches: dict[int, Batch] = {}
        # When they were looked up, and what holds it.
        self._holds: dict[str, tuple[float, list[Session]]] = {}
        self._last = -1
        self._results: deque[bool] = deque()
        self._loader = ThreadPoolExecutor(1, "kvkeep-load")
        self._offloader = ThreadPoolExecutor(1, "kvkeep-offload")

    def lookup(self, request: str, keys: Sequence[str], windows: Sequence[Window]) -> Restorable:
        """At which lengths every pool can continue."""
        self._let_go([request])
        now = time.monotonic()
        # Those that their requests never loaded hold nothing any more. The oldest come first.
        self._let_go([name for name, (when, _) in self._holds.items() if now - when > HOLD_S])
        found, sessions = self._store.hold(keys, windows)
        self._holds[request] = now, sessions
        if not found.lengths:
            self._let_go([request])
        return found

    def queue_load(self, request: str, asked: Sequence[Asked]) -> bool:
        """Notes a load, which `start` begins."""
        if not asked:
            return False
        self._queued[request] = asked
        return True

    def cancel(self, request: str) -> bool:
        """Drops a load that has not begun."""
        self._let_go([request])
        return self._queued.pop(request, None) is not None

    def start(self, ready: Ready) -> int:
        """Begins all noted loads as one batch; its number, or -1 where there are none."""
        if not self._queued:
            return -1
        asked = [one for request in self._queued.values() for one in request]
        requests = list(self._queued)
        self._queued.clear()
        self._last += 1
        self._batches[self._last] = Batch(self._loader.submit(self._begin, asked, ready), requests)
        return self._last

    def wait_until(self, batch: int, layer: int) -> None:
        """Until a layer of a batch is copied, or will not be: `finish` says which."""
        started = self._batches.get(batch)
        if started is None or started.begun.exception() is not None:
            return
        for loading in started.begun.result():
            if layer in self._layers[loading.name]:
                quietly(self._wait_layer, loading.transfer, layer)

    def finish(self, batch: int) -> bool:
        """Blocks until a batch touches no page any more; whether all of it is there."""
        started = self._batches.pop(batch, None)
        if started is None:
            return True
        whole = True
        if (error := started.begun.exception()) is not None:
            log.warning("kvkeep did not load what it had found for SGLang: %s", error)
            whole = False
        for loading in started.begun.result() if whole else ():
            whole = self._land(loading) and whole
        self._let_go(started.requests)
        return whole

    def offload(self, asked: Sequence[Asked], ready: Ready) -> bool:
        """Notes pages to be stored. They are all stored, or the result is False."""
        if not asked:
            return False
        self._offloader.submit(self._store_all, list(asked), ready)
        return True

    def completed(self) -> int:
        """How many offloads are over whose results were not taken."""
        return len(self._results)

    def pop(self) -> bool:
        """The result of the oldest offload that is over."""
        return self._results.popleft()

    def reset(self) -> None:
        """Waits for all copies, and forgets their results."""
        self._queued.clear()
        for batch in list(self._batches):
            self.finish(batch)
        self._offloader.submit(int).result()
        self._let_go(list(self._holds))
        self._results.clear()
        self._last = -1

    def close(self) -> None:
        """Cuts loads short, waits until no page is touched any more, and lets go of the pages. Twice is harmless."""
        self._queued.clear()
        for begun, _ in self._batches.values():
            for loading in [] if begun.exception() else begun.result():
                quietly(loading.transfer.cancel)
        for batch in list(self._batches):
            self.finish(batch)
        self._let_go(list(self._holds))
        self._loader.shutdown()
        self._offloader.shutdown()
        self._store.close()

    def _let_go(self, requests: Sequence[str]) -> None:
        """Gives back what was held for requests."""
        for request in requests:
            _, sessions = self._holds.pop(request, (0.0, []))
            for session in sessions:
                quietly(session.end)

    def _begin(self, asked: Sequence[Asked], ready: Ready) -> list[Loading]:
        ready()
        begun: list[Loading] = []
        try:
            for one in asked:
                begun.append(Loading(one.name, *self._store.begin_load(one.name, one.keys, one.indices)))
        except BaseException:
            for loading in begun:
                self._land(loading)
            raise
        return begun

    def _land(self, loading: Loading) -> bool:
        """Blocks until a load is over; whether all its pages are there."""
        try:
            loading.transfer.wait()
            blocks = loading.transfer.blocks() or ()
            whole = all(status == Status.OK for status in blocks)
            loading.session.end()
            return whole
        except KvkeepError as error:
            log.warning("kvkeep did not load pages %s of SGLang: %s", loading.name, error)
            return False

    def _store_all(self, asked: Sequence[Asked], ready: Ready) -> None:
        stored = False
        try:
            ready()
            stored = all([all(self._store.set(one.name, one.keys, one.indices)) for one in asked])
        except Exception:
            log.exception("kvkeep did not store pages of SGLang")
        finally:
            self._results.append(stored)
