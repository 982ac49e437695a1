"""Keys of encrypted backends, given by a Python function."""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Callable, Optional

from . import _ffi
from ._library import call
from .backend import status_of
from .errors import KvkeepError

GiveKey = Callable[[str, int], Optional[bytes]]

KEY_BYTES = 32


class KeyCallback:
    """The function as the library calls it. It must outlive the library's close."""

    def __init__(self, give: Optional[GiveKey]) -> None:
        self._give = give
        # Threads may open backends at once.
        self._here = threading.local()
        self.trampoline = _ffi.kvkeep_key_callback(self._fill) if give else _ffi.kvkeep_key_callback()

    def opening(self, function: Any, *arguments: Any) -> None:
        """Calls a function of the library that opens backends. Its error has the callback's exception as its cause."""
        self._here.failure = None
        try:
            call(function, *arguments)
        except KvkeepError as error:
            raise error from self._here.failure
        finally:
            self._here.failure = None

    def _fill(self, _: Optional[int], name: bytes, number: int, key: Any) -> int:
        try:
            given = self._give(name.decode(), number) if self._give else None
            if given is None:
                return int(_ffi.Status.ERR_NOT_FOUND)
            if len(given) != KEY_BYTES:
                raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(given)}")
            ctypes.memmove(key, bytes(given), KEY_BYTES)
            return int(_ffi.Status.OK)
        except Exception as error:
            self._here.failure = error
            # NOT_FOUND would end the list of keys.
            status = status_of(error)
            return int(_ffi.Status.ERR_INVALID) if status == _ffi.Status.ERR_NOT_FOUND else status
