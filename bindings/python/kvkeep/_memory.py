"""Copies between memory of others and L1, which other threads of the interpreter run beside."""

from __future__ import annotations

import ctypes
from typing import Any


def copy_in(address: int, source: Any) -> None:
    """Copies a contiguous buffer to `address`, where that many bytes must be."""
    view = memoryview(source).cast("B")
    if view.readonly:
        # There is no address to be had of it: this copy holds the interpreter's lock.
        ctypes.memmove(address, view.tobytes(), view.nbytes)
    else:
        # Unlike a memoryview's own copy, memmove runs without the interpreter's lock.
        ctypes.memmove(address, ctypes.addressof(ctypes.c_char.from_buffer(view)), view.nbytes)


def copy_out(target: Any, address: int) -> None:
    """Fills a writable contiguous buffer from `address`."""
    view = memoryview(target).cast("B")
    ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(view)), address, view.nbytes)
