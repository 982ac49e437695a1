"""Python's numbers and buffers as C arrays."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Iterable
from typing import Any, Union, cast

from .errors import InvalidError

# Any buffer will do; there is no name for one before Python 3.12.
Numbers = Union[Iterable[int], Any]


def integers(kind: type[Any], name: str, values: Numbers) -> Any:
    """`values` as a C array. A writable buffer of that very type crosses uncopied."""
    code = "IL"[array.array("I").itemsize != 4] if ctypes.sizeof(kind) == 4 else "Q"
    signed = kind(-1).value < 0
    code = code.lower() if signed else code
    try:
        view = memoryview(cast(Any, values))
    except TypeError:
        view = None
    formats = ("i", "l", "q") if signed else ("I", "L", "Q")
    if view is None or view.format.lstrip("@=<") not in formats or view.itemsize != ctypes.sizeof(kind):
        try:
            view = memoryview(array.array(code, values))
        except OverflowError:
            raise InvalidError(f"{name} holds a number that does not fit {8 * ctypes.sizeof(kind)} bits") from None
    return records(kind, view)


def records(kind: type[Any], view: memoryview) -> Any:
    """The bytes of `view` as a C array of `kind`; only a read-only buffer is copied."""
    size = ctypes.sizeof(kind)
    if view.nbytes % size:
        raise InvalidError(f"a buffer of {view.nbytes} bytes is not made of records of {size} bytes")
    count = view.nbytes // size
    if view.readonly or not view.c_contiguous or not count:
        return (kind * count).from_buffer_copy(view.tobytes())
    return (kind * count).from_buffer(view)
