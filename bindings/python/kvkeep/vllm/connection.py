"""The cache that an engine uses: a daemon's, which may come later than the engine, or one that the engine brings itself."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Optional

from ..cache import Cache
from ..errors import DisconnectedError, TimedOutError
from ..space import Space
from .settings import Settings
from .trouble import log

RETRY_S = 5.0
# How long the processes of one engine wait for the one that has the cache.
OWN_WAIT_MS = 60_000


class Connection:
    """A cache that is opened as soon as it can be. Until then, what needs it raises DisconnectedError at once."""

    def __init__(self, settings: Settings, engine: str, owns: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """`engine` names the engine among those of this machine; of its processes, one `owns` the cache that it brings."""
        self._open: Callable[[bool], Cache]
        self._own: Optional[Path] = None
        if settings.connect:
            self._open = lambda patient: Cache(connect=settings.connect if patient else without_wait(settings.connect))
        elif owns:
            self._own = socket = own_socket(engine)
            self._open = lambda _: _own_cache(settings, socket)
        else:
            wait = f"unix://{own_socket(engine)}?wait_ms="
            self._open = lambda patient: Cache(connect=f"{wait}{OWN_WAIT_MS if patient else 0}")
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: Optional[Cache] = None
        self._closed = False
        self._next_try = 0.0
        self._error: Exception = DisconnectedError("kvkeep is closed")
        try:
            self._try(patient=True)
        except DisconnectedError as error:
            log.warning(
                "The engine starts without kvkeep, and computes all prompts until kvkeep answers, which is tried every %d s: %s",
                RETRY_S,
                error,
            )

    def cache(self) -> Cache:
        """The cache, or DisconnectedError. Waits for nothing."""
        with self._lock:
            if self._cache is None:
                if self._closed or self._clock() < self._next_try:
                    raise self._error
                self._try(patient=False)
                log.info("kvkeep answers now")
            assert self._cache is not None
            return self._cache

    def space(self, *names: str, **options: Any) -> Space:
        """A space of the cache, or DisconnectedError."""
        return self.cache().space(*names, **options)

    def close(self) -> None:
        """Closes the cache, and one that the engine brought with it."""
        with self._lock:
            self._closed = True
            if cache := self._cache:
                self._cache = None
                cache.close()
            if self._own:
                shutil.rmtree(self._own.parent, ignore_errors=True)

    def _try(self, patient: bool) -> None:
        try:
            self._cache = self._open(patient)
        except (DisconnectedError, TimedOutError) as error:
            self._error = DisconnectedError(str(error))
            self._next_try = self._clock() + RETRY_S
            raise self._error from error


def without_wait(url: str) -> str:
    """The URL of a daemon, without what says that it is waited for."""
    place, _, query = url.partition("?")
    left = [pair for pair in query.split("&") if pair and not re.match("wait_ms=", pair)]
    return f"{place}?{'&'.join(left)}" if left else place


def own_socket(engine: str) -> Path:
    """Where the processes of an engine meet; the path is short, as a socket's has to be."""
    digest = hashlib.sha256(engine.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"kvkeep-{os.getuid()}-{digest}" / "s"


def _own_cache(settings: Settings, socket: Path) -> Cache:
    socket.parent.mkdir(mode=0o700, exist_ok=True)
    cache = Cache(settings.l1_bytes, listen=f"unix://{socket}", backends=settings.backends)
    cache.serve_clients()
    return cache
