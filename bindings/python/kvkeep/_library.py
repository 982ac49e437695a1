"""Finds the shared library, declares its functions, and turns its errors into exceptions."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from . import _ffi
from .errors import InvalidError, error_for

S = TypeVar("S", bound=ctypes.Structure)


def _candidates() -> list[str]:
    """Where the library may be, in the order tried. One named by the user is the only one."""
    if named := os.environ.get("KVKEEP_LIBRARY"):
        return [named]
    package = Path(__file__).resolve().parent
    places = [package / "libkvkeep.so"]
    root = package.parents[2] if len(package.parents) > 2 else package
    if (root / "include" / "kvkeep.h").exists():
        places.append(root / "target" / "release" / "libkvkeep.so")
    soname = f"libkvkeep.so.{_ffi.KVKEEP_VERSION_MAJOR}.{_ffi.KVKEEP_VERSION_MINOR}"
    return [str(place) for place in places if place.exists()] + [soname]


def _load() -> ctypes.CDLL:
    refusals = []
    for path in _candidates():
        try:
            # CDLL, which gives up the interpreter lock in calls: a callback may be waiting for it.
            library = ctypes.CDLL(path)
        except OSError as error:
            refusals.append(str(error))
            continue
        try:
            for name, (restype, argtypes) in _ffi.FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = restype, argtypes
        except AttributeError as error:
            raise ImportError(f"{path} is older than this package: {error}") from None
        if library.kvkeep_abi_version() != _ffi.KVKEEP_ABI_VERSION:
            raise ImportError(f"{path} has another ABI than this package: {library.kvkeep_abi_version()}")
        return library
    raise ImportError("libkvkeep.so is not found; set KVKEEP_LIBRARY to its path. Tried: " + "; ".join(refusals))


lib = _load()


def call(function: Any, *arguments: Any) -> int:
    """Calls a function that returns a status and raises where it is an error."""
    status: int = function(*arguments)
    if status < 0:
        raise error_for(status, lib.kvkeep_last_error().decode("utf-8", "replace"))
    return status


def prepared(kind: type[S], **fields: Any) -> S:
    """A versioned struct with `fields` set. ctypes would cut a number that does not fit, so that is checked."""
    struct = kind(ctypes.sizeof(kind), _ffi.KVKEEP_ABI_VERSION)
    for name, value in fields.items():
        setattr(struct, name, value)
        if isinstance(value, int) and getattr(struct, name) != value:
            raise InvalidError(f"{name} is {value}, which does not fit the field")
    return struct


def number(kind: type[Any], name: str, value: int) -> int:
    """`value` if it fits the C type `kind`: ctypes would cut it."""
    if kind(value).value != value:
        raise InvalidError(f"{name} is {value}, which does not fit {8 * ctypes.sizeof(kind)} bits")
    return value


def milliseconds(name: str, seconds: float) -> int:
    """A time as C takes it: no time that is not 0 becomes 0, which is a default."""
    # Rounded, since 0.007 * 1000 is above 7.
    ms = round(seconds * 1000, 6)
    if not 0 <= ms <= 0xFFFFFFFF:
        raise InvalidError(f"{name} is {seconds}, but it is in seconds, and must be 0 to {0xFFFFFFFF // 1000}")
    return math.ceil(ms)


def encoded(name: str, text: str) -> bytes:
    """`text` for C, which would stop at a NUL."""
    if "\0" in text:
        raise InvalidError(f"{name} holds a NUL character")
    return text.encode("utf-8", "surrogateescape")


def text(function: Any, *arguments: Any) -> str:
    """What a function writes into a buffer of the caller, whatever its length."""
    length, capacity = ctypes.c_size_t(), 4096
    while True:
        buffer = ctypes.create_string_buffer(capacity)
        if call(function, *arguments, buffer, capacity, ctypes.byref(length)) == _ffi.Status.OK:
            return buffer.value.decode("utf-8")
        capacity = length.value + 1
