"""One open kvkeep."""

from __future__ import annotations

import ctypes
import json
import threading
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Callable, Optional, Union

from . import _ffi, _plugin
from ._keys import GiveKey, KeyCallback
from ._library import call, encoded, lib, milliseconds, number, prepared, text
from .backend import Backend
from .completion import Callbacks, Completion, Completions
from .errors import InvalidError
from .event import Event, copied
from .landing import Landings
from .session import Session
from .space import Space

Log = Callable[[_ffi.LogLevel, str], object]


class Cache:
    """A cache, embedded in this process. Any thread may use it, at once with any other, except for `close`.

    It is closed by `close`, at the end of a `with` block, when nothing refers to it any more, or before the
    interpreter exits. Spaces, sessions, jobs and memoryviews refer to it.
    """

    def __init__(
        self,
        l1_bytes: int = 0,
        *,
        connect: Optional[str] = None,
        listen: Optional[str] = None,
        backends: Iterable[str] = (),
        flags: int = 0,
        numa_node: int = 0,
        eviction_policy: Optional[str] = None,
        watermark_high_percent: int = 0,
        watermark_low_percent: int = 0,
        store_mode: _ffi.StoreMode = _ffi.StoreMode.WRITE_THROUGH,
        store_after_uses: int = 0,
        sessions_max: int = 0,
        jobs_max: int = 0,
        writes_pending_max: int = 0,
        session_timeout: float = 0,
        backend_timeout: float = 0,
        loading_bytes_max: int = 0,
        store_wait: float = 0,
        log: Optional[Log] = None,
        log_level: Union[_ffi.LogLevel, int] = 0,
        key_callback: Optional[GiveKey] = None,
    ) -> None:
        """Opens the cache; see kvkeep_options in kvkeep.h. Times are in seconds.

        `key_callback(name, number)` gives the 32 bytes of a key to a backend whose URL has `key_from=name`, and None where
        there is no key of this number; 0 is the newest.
        """
        urls = [encoded("a backend's URL", url) for url in backends]
        self.callbacks = Callbacks()
        told = _ffi.kvkeep_log_callback(_told(log, self.callbacks)) if log else _ffi.kvkeep_log_callback()
        self._keys = KeyCallback(key_callback)
        options = prepared(
            _ffi.kvkeep_options,
            connect=None if connect is None else encoded("connect", connect),
            listen=None if listen is None else encoded("listen", listen),
            l1_bytes=l1_bytes,
            flags=flags,
            numa_node=numa_node,
            eviction_policy=None if eviction_policy is None else encoded("eviction_policy", eviction_policy),
            watermark_high_percent=watermark_high_percent,
            watermark_low_percent=watermark_low_percent,
            store_mode=store_mode,
            store_after_uses=store_after_uses,
            backend_urls=(ctypes.c_char_p * len(urls))(*urls) if urls else None,
            backend_count=len(urls),
            sessions_max=sessions_max,
            jobs_max=jobs_max,
            writes_pending_max=writes_pending_max,
            session_timeout_ms=milliseconds("session_timeout", session_timeout),
            backend_timeout_ms=milliseconds("backend_timeout", backend_timeout),
            loading_bytes_max=loading_bytes_max,
            store_wait_ms=milliseconds("store_wait", store_wait),
            log=told,
            log_level=log_level,
            key_callback=self._keys.trampoline,
        )
        self.pointer = ctypes.c_void_p()
        self._keys.opening(lib.kvkeep_open, ctypes.byref(options), ctypes.byref(self.pointer))
        self.completions = Completions(self.pointer)
        self.landings = Landings(self.pointer)
        # The finalizer keeps what the library may call until close has returned, and runs at exit if not before.
        self._finalizer = weakref.finalize(self, _close, self.pointer, self.callbacks, told, self._keys)

    @property
    def closed(self) -> bool:
        """Whether `close` was done."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Cancels the jobs, writes out what was accepted, ends all sessions. Not from a callback. Twice is harmless."""
        if self.closed:
            return
        if self.callbacks.running:
            # Known before anything is stopped: what is awaited goes on.
            raise InvalidError("a cache cannot be closed in its own callback, which it waits for: use another thread")
        self.completions.stop()
        call(lib.kvkeep_close, self.pointer)
        self._finalizer.detach()
        self.completions.cancel_pending()

    def space(
        self,
        model: str,
        layout: str = "",
        tenant: str = "",
        *,
        chunk_tokens: int = 0,
        quota_bytes: int = 0,
        generation: int = 0,
    ) -> Space:
        """Opens a space. `chunk_tokens` of 0 is 256, `quota_bytes` of 0 is no bound but L1, or the one it has.

        `generation` says which weights, where the model's name stays the same when they change: spaces of two never meet.
        """
        options = prepared(
            _ffi.kvkeep_space_options,
            model=encoded("model", model),
            layout=encoded("layout", layout),
            tenant=encoded("tenant", tenant),
            chunk_tokens=chunk_tokens,
            quota_bytes=quota_bytes,
            generation=generation,
        )
        space = ctypes.c_uint64()
        call(lib.kvkeep_open_space, self.pointer, ctypes.byref(options), ctypes.byref(space))
        return Space(self, space.value)

    def session(self, id: int) -> Session:
        """A session that was begun elsewhere, by its number."""
        return Session(self, number(ctypes.c_uint64, "the session", id))

    def add_backend(self, backend: Union[str, Backend]) -> int:
        """Adds a backend below those already there and returns its number: by its URL, or a store written in Python.

        Blocks while it opens.
        """
        if isinstance(backend, Backend):
            return _plugin.add(self.pointer, backend)
        number = ctypes.c_uint64()
        self._keys.opening(lib.kvkeep_add_backend, self.pointer, encoded("url", backend), ctypes.byref(number))
        return number.value

    def serve_clients(self) -> None:
        """Lets other processes connect, where the cache was opened with `listen`. Call it when the backends are added."""
        call(lib.kvkeep_serve_clients, self.pointer)

    def remove_backend(self, backend: int) -> None:
        """Removes a backend; what it stored stays where it is. Blocks while it closes."""
        call(lib.kvkeep_remove_backend, self.pointer, number(ctypes.c_uint64, "the backend", backend))

    def flush(self, timeout: float = 60.0) -> None:
        """Waits until everything committed before is written to L2 or given up; TimedOutError after `timeout` s."""
        call(lib.kvkeep_flush, self.pointer, milliseconds("timeout", timeout))

    def clear(self, force: bool = False, space: int = 0) -> int:
        """Empties L1 of one space, or of all; with `force` also hides objects in use. How many went."""
        removed = ctypes.c_uint64()
        call(lib.kvkeep_clear, self.pointer, space, int(force), ctypes.byref(removed))
        return removed.value

    def forget(self, space: int = 0) -> int:
        """Forgets one space, or all, in every tier: nothing stored before is found from now on. How many objects of L1 went.

        Backends delete theirs in the background, which `flush` waits for.
        """
        removed = ctypes.c_uint64()
        call(lib.kvkeep_forget_space, self.pointer, space, ctypes.byref(removed))
        return removed.value

    def backends(self) -> list[_ffi.kvkeep_backend_state]:
        """The state of every backend, in the order in which they are asked, by the names in kvkeep.h."""
        count, states = ctypes.c_size_t(), (_ffi.kvkeep_backend_state * _ffi.KVKEEP_TIERS_MAX)()
        call(lib.kvkeep_query_backends, self.pointer, states, len(states), ctypes.byref(count))
        return list(states[: count.value])

    def arena(self) -> tuple[int, int]:
        """Address and bytes of L1 in this process, to register with a device or a network; see kvkeep_get_arena."""
        base, size = ctypes.c_void_p(), ctypes.c_size_t()
        call(lib.kvkeep_get_arena, self.pointer, ctypes.byref(base), ctypes.byref(size))
        return base.value or 0, size.value

    def event_fd(self) -> int:
        """Readable while `take_completions` has something to give. Owned by the library: do not close."""
        return self.completions.fd()

    def take_completions(self) -> list[Completion]:
        """The ends of jobs submitted with Notify.EVENT_FD and no loop, each once. Never blocks."""
        return self.completions.take()

    def read_events(self, next: int = 0, most: int = 1024) -> tuple[list[Event], int]:
        """Up to `most` events from number `next` on (0: from the oldest that is kept), and where to go on.

        Where that is further than events came, some were lost. Never blocks.
        """
        batch = (_ffi.kvkeep_event * max(most, 0))()
        cursor, count = ctypes.c_uint64(number(ctypes.c_uint64, "next", next)), ctypes.c_size_t()
        call(lib.kvkeep_read_events, self.pointer, ctypes.byref(cursor), batch, len(batch), ctypes.byref(count))
        return [copied(record) for record in batch[: count.value]], cursor.value

    def stats(self) -> _ffi.kvkeep_stats:
        """Everything counted, by the names in kvkeep.h."""
        stats = prepared(_ffi.kvkeep_stats)
        call(lib.kvkeep_query_stats, self.pointer, ctypes.byref(stats))
        return stats

    def misses(self) -> _ffi.kvkeep_miss_report:
        """How lookups in all spaces went, and why they missed keys, by the names in kvkeep.h."""
        report = prepared(_ffi.kvkeep_miss_report)
        call(lib.kvkeep_query_misses, self.pointer, 0, ctypes.byref(report))
        return report

    def explain_misses(self) -> Any:
        """How lookups went in all and in each space, with a sentence for each reason."""
        return json.loads(text(lib.kvkeep_explain_misses, self.pointer))

    def metrics(self) -> str:
        """Everything counted, as Prometheus text."""
        return text(lib.kvkeep_get_metrics, self.pointer)

    def explain(self) -> Any:
        """What every session holds that holds something."""
        return json.loads(text(lib.kvkeep_explain_session, self.pointer, 0))

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


def _told(log: Log, callbacks: Callbacks) -> Callable[[Optional[int], int, bytes], None]:
    def tell(_: Optional[int], level: int, message: bytes) -> None:
        callbacks.run(log, _ffi.LogLevel(level), message.decode("utf-8", "replace"))

    return tell


def _close(pointer: ctypes.c_void_p, *called: Any) -> None:
    # A cache collected inside a callback cannot be closed there. What the library may call goes along with the thread.
    if lib.kvkeep_close(pointer) == _ffi.Status.ERR_INVALID:
        threading.Thread(target=_close, args=(pointer, *called)).start()
