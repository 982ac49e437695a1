"""Names of objects, and arrays of them that cross into the library uncopied."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Union, cast, overload

from . import _ffi
from ._array import records
from ._library import number
from .errors import InvalidError

KEY_BYTES = ctypes.sizeof(_ffi.kvkeep_key)


class Key(NamedTuple):
    """Names an object inside a space."""

    hash: bytes
    rank: int = 0
    group: int = 0


class Keys:
    """A C array of keys. It has the buffer protocol through `array`; slices share its memory."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> Key: ...

    @overload
    def __getitem__(self, index: slice) -> Keys: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[Key, Keys]:
        if isinstance(index, int):
            item = self.array[index]
            return Key(bytes(item.hash), item.rank, item.group)
        start, stop, step = index.indices(len(self))
        if step != 1 or stop <= start:
            return keys(self[i] for i in range(start, stop, step))
        kind = _ffi.kvkeep_key * (stop - start)
        return Keys(kind.from_buffer(self.array, start * KEY_BYTES))

    def __iter__(self) -> Iterator[Key]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and bytes(self) == bytes(other)

    def __bytes__(self) -> bytes:
        return bytes(self.array)

    def __repr__(self) -> str:
        return f"<{len(self)} kvkeep keys>"


AnyKeys = Union[Keys, Iterable[Union[Key, bytes, tuple[bytes, int, int]]], Any]


def keys(source: AnyKeys) -> Keys:
    """Keys from hashes of 32 bytes, from (hash, rank, group), or from any buffer of 40-byte records.

    A writable buffer is not copied: what is written to it later is seen by the library's next call.
    """
    if isinstance(source, Keys):
        return source
    try:
        view = memoryview(cast(Any, source))
    except TypeError:
        return Keys(_filled([item if isinstance(item, tuple) else (item,) for item in source]))
    return Keys(records(_ffi.kvkeep_key, view))


def _filled(items: list[Any]) -> Any:
    array = (_ffi.kvkeep_key * len(items))()
    for place, (digest, *rest) in zip(array, items):
        digest = bytes(digest)
        if len(digest) != 32:
            raise InvalidError(f"the hash of a key has 32 bytes, not {len(digest)}")
        rank, group = (*rest, 0, 0)[:2]
        place.hash[:] = digest
        place.rank = number(ctypes.c_uint32, "rank", rank)
        place.group = number(ctypes.c_uint32, "group", group)
    return array
