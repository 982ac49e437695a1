"""Python stores as the library sees them: a vtable whose functions call a Backend."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import itertools
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Callable, Optional

from . import _ffi
from ._library import call, encoded, lib, prepared
from .backend import Backend, BackendKey, BackendObject, BackendUsage, status_of, words_of
from .errors import InvalidError, KvkeepError

OPTIONAL = ("touch", "unpin", "list", "usage", "health")
LOG_ERROR = int(_ffi.LogLevel.ERROR)
# No line of the log for what is in the nature of a cache.
QUIET = (_ffi.Status.ERR_NOT_FOUND, _ffi.Status.ERR_EXISTS, _ffi.Status.ERR_CANCELLED)


class Plugin:
    """One Backend that is open below a cache."""

    def __init__(self, store: Backend) -> None:
        self.store = store
        self.failure: Optional[BaseException] = None
        self._host: Any = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._thread: Optional[threading.Thread] = None
        self._lock = threading.Lock()

    def open(self, host: Any) -> int:
        self._host = host
        self.store._lost = self.lost
        try:
            self.await_result(self.store.open(int(host.arena or 0), int(host.arena_bytes)))
        except Exception as error:
            self.failure = error
            return status_of(error)
        return int(_ffi.Status.OK)

    def lost(self, keys: Sequence[BackendKey]) -> None:
        """Tells the library of objects that the store has lost."""
        if keys:
            self._host.lost(self._host.backend, _records(keys), len(keys))

    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of a store with coroutines, on a thread of its own."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="kvkeep-backend", daemon=True)
                self._thread.start()
            return self._loop

    def await_result(self, result: Any) -> Any:
        """What a method gave, waited for where it is a coroutine's."""
        if not inspect.isawaitable(result):
            return result
        return asyncio.run_coroutine_threadsafe(_coroutine(result), self.loop()).result()

    def ask(self, request: int, method: Callable[..., Any], arguments: tuple[Any, ...], answer: Callable[..., None]) -> None:
        """Calls a method, and completes the request with its outcome, once, whatever happens."""
        try:
            result = method(*arguments)
        except Exception as error:
            self.complete(request, answer, None, error)
            return
        if inspect.isawaitable(result):
            asyncio.run_coroutine_threadsafe(self._answer_later(request, result, answer), self.loop())
        else:
            self.complete(request, answer, result, None)

    async def _answer_later(self, request: int, result: Any, answer: Callable[..., None]) -> None:
        try:
            outcome = await result
        except BaseException as error:
            self.complete(request, answer, None, error)
            return
        self.complete(request, answer, outcome, None)

    def complete(
        self, request: int, answer: Callable[..., None], outcome: Any, error: Optional[BaseException]
    ) -> None:
        record = prepared(_ffi.kvkeep_backend_answer)
        # What the record points to lives until complete has returned.
        kept: list[Any] = []
        try:
            answer(record, kept, outcome, error)
            error = None
        except BaseException as refused:
            error = refused
        if error is not None:
            record = prepared(_ffi.kvkeep_backend_answer, status=status_of(error) or int(_ffi.Status.ERR_IO))
            record.message = words_of(error).encode("utf-8", "replace")
            self.note(error)
        self._host.complete(request, ctypes.byref(record))

    def note(self, error: BaseException) -> None:
        """Logs an exception. The library bounds how many lines of one kind there are."""
        if status_of(error) in QUIET:
            return
        self._host.log(self._host.backend, LOG_ERROR, words_of(error).encode("utf-8", "replace"))

    def close(self) -> None:
        self.store._lost = None
        try:
            self.await_result(self.store.close())
        except Exception as error:
            self.note(error)
        if self._loop is not None and self._thread is not None:
            # What is under way completes its requests as cancelled.
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _coroutine(awaitable: Any) -> Any:
    return await awaitable


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


# Open backends by the number that the library passes back. The functions below are there as long as the interpreter.
_OPEN: dict[int, Plugin] = {}
_NUMBERS = itertools.count(1)


def _name(record: Any) -> BackendKey:
    return BackendKey(bytes(record.space), bytes(record.key.hash), record.key.rank, record.key.group)


def _names(keys: Any, count: int) -> list[BackendKey]:
    return [_name(keys[index]) for index in range(count)]


def _records(names: Sequence[BackendKey]) -> Any:
    keys = (_ffi.kvkeep_backend_key * len(names))()
    for place, name in zip(keys, names):
        place.space[:], place.key.hash[:] = name.space, name.hash
        place.key.rank, place.key.group = name.rank, name.group
    return keys


def _outcomes(plugin: Plugin, outcome: Any, error: Optional[BaseException], count: int) -> Sequence[Any]:
    """One outcome for each key or object."""
    if error is not None:
        raise error
    outcomes = [None] * count if outcome is None else list(outcome)
    if len(outcomes) != count:
        raise InvalidError(f"the backend answered for {len(outcomes)} of {count}: give one outcome for each")
    for item in outcomes:
        if isinstance(item, BaseException):
            plugin.note(item)
    return outcomes


def _answered(plugin: Plugin, count: int, objects: Sequence[BackendObject] = ()) -> Callable[..., None]:
    """Answers a request by the exception of each key or object."""

    def answer(record: Any, kept: list[Any], outcome: Any, error: Optional[BaseException]) -> None:
        held = [item.release() for item in objects]
        outcomes = _outcomes(plugin, outcome, error, count)
        errors = [item if isinstance(item, BaseException) else None for item in outcomes]
        errors = [own or other for own, other in itertools.zip_longest(errors, held)] if objects else errors
        statuses = (ctypes.c_int32 * count)(*map(status_of, errors))
        kept.append(statuses)
        record.statuses, record.count = statuses, count
        reasons = [words_of(item) for item in errors if item is not None]
        record.message = reasons[0].encode("utf-8", "replace") if reasons else None

    return answer


def _open(userdata: int, parameters: Any, parameter_count: int, host: Any, backend: Any, message: Any, size: int) -> int:
    backend[0] = userdata
    return _OPEN[userdata].open(host.contents)


def _lookup(backend: int, request: int, keys: Any, count: int, flags: int, timeout_ms: int) -> None:
    plugin = _OPEN[backend]

    def answer(record: Any, kept: list[Any], outcome: Any, error: Optional[BaseException]) -> None:
        outcomes = _outcomes(plugin, outcome, error, count)
        sizes = (ctypes.c_uint64 * count)(*(item if isinstance(item, int) else 0 for item in outcomes))
        found = (_ffi.Status.OK if size else _ffi.Status.ERR_NOT_FOUND for size in sizes)
        statuses = (ctypes.c_int32 * count)(*found)
        kept += [sizes, statuses]
        record.sizes, record.statuses, record.count = sizes, statuses, count

    in_order = bool(flags & _ffi.KVKEEP_LOOKUP_IN_ORDER)
    plugin.ask(request, plugin.store.lookup_many, (_names(keys, count), in_order), answer)


def _load(backend: int, request: int, objects: Any, count: int, timeout_ms: int) -> None:
    plugin = _OPEN[backend]
    items = [BackendObject(_name(objects[i].key), objects[i], True) for i in range(count)]
    plugin.ask(request, plugin.store.load_many, (items,), _answered(plugin, count, items))


def _store(backend: int, request: int, objects: Any, count: int, timeout_ms: int) -> None:
    plugin = _OPEN[backend]
    items = [BackendObject(_name(objects[i].key), objects[i], False) for i in range(count)]
    plugin.ask(request, plugin.store.store_many, (items,), _answered(plugin, count, items))


def _remove(backend: int, request: int, keys: Any, count: int, timeout_ms: int) -> None:
    plugin = _OPEN[backend]
    plugin.ask(request, plugin.store.remove_many, (_names(keys, count),), _answered(plugin, count))


def _list(backend: int, request: int, space: Any, cursor: int, timeout_ms: int) -> None:
    plugin = _OPEN[backend]

    def answer(record: Any, kept: list[Any], outcome: Any, error: Optional[BaseException]) -> None:
        if error is not None:
            raise error
        names = list(itertools.islice(outcome, _ffi.KVKEEP_KEYS_MAX))
        keys = _records(names)
        kept.append(keys)
        record.keys, record.key_count = keys, len(names)
        # They are removed before the next list, which therefore begins anew.
        record.next_cursor = cursor + 1 if len(names) == _ffi.KVKEEP_KEYS_MAX else 0

    plugin.ask(request, plugin.store.list, (ctypes.string_at(space, 16) if space else None,), answer)


def _usage(backend: int, request: int, timeout_ms: int) -> None:
    plugin = _OPEN[backend]

    def answer(record: Any, kept: list[Any], outcome: Any, error: Optional[BaseException]) -> None:
        if error is not None:
            raise error
        for name, value in BackendUsage(*outcome)._asdict().items():
            setattr(record, name, value)

    plugin.ask(request, plugin.store.usage, (), answer)


def _health(backend: int, request: int, timeout_ms: int) -> None:
    plugin = _OPEN[backend]

    def answer(record: Any, kept: list[Any], outcome: Any, error: Optional[BaseException]) -> None:
        if error is not None:
            raise error
        record.message = None if outcome is None else str(outcome).encode("utf-8", "replace")

    plugin.ask(request, plugin.store.health, (), answer)


def _tell(backend: int, method: str, keys: Any, count: int) -> None:
    plugin = _OPEN[backend]
    try:
        plugin.await_result(getattr(plugin.store, method)(_names(keys, count)))
    except Exception as error:
        plugin.note(error)


def _close(backend: int) -> None:
    _OPEN.pop(backend).close()


def _touch(backend: int, keys: Any, count: int) -> None:
    _tell(backend, "touch", keys, count)


def _unpin(backend: int, keys: Any, count: int) -> None:
    _tell(backend, "unpin", keys, count)


_FUNCTIONS = {
    "open": _ffi.kvkeep_backend_open(_open),
    "lookup": _ffi.kvkeep_backend_lookup(_lookup),
    "load": _ffi.kvkeep_backend_load(_load),
    "store": _ffi.kvkeep_backend_store(_store),
    "touch": _ffi.kvkeep_backend_tell(_touch),
    "unpin": _ffi.kvkeep_backend_tell(_unpin),
    "remove": _ffi.kvkeep_backend_remove(_remove),
    "list": _ffi.kvkeep_backend_list(_list),
    "usage": _ffi.kvkeep_backend_query(_usage),
    "health": _ffi.kvkeep_backend_query(_health),
    "close": _ffi.kvkeep_backend_close(_close),
}


def add(pointer: ctypes.c_void_p, store: Backend) -> int:
    """Adds a Python store to a cache. Returns the backend's number."""
    plugin, number = Plugin(store), next(_NUMBERS)
    # What the store does not have is NULL.
    wanted = {
        name: function
        for name, function in _FUNCTIONS.items()
        if name not in OPTIONAL or getattr(type(store), name) is not getattr(Backend, name)
    }
    name = encoded("the name of the backend's class", type(store).__name__)
    vtable = prepared(_ffi.kvkeep_backend_vtable, name=name[:63], userdata=number, **wanted)
    parameters = f"threads={store.threads}&batch={store.batch}".encode()
    backend = ctypes.c_uint64()
    _OPEN[number] = plugin
    try:
        call(lib.kvkeep_add_backend_vtable, pointer, ctypes.byref(vtable), parameters, ctypes.byref(backend))
    except KvkeepError as error:
        # It was never opened, or did not open; one that was closed again is gone already.
        _OPEN.pop(number, None)
        raise plugin.failure or error from None
    return backend.value
