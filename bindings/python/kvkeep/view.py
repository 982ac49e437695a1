"""What a batch gave, key by key."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, Optional, Union, overload

from ._ffi import Status


class Statuses(Sequence[Status]):
    """One status for each key of a batch; `ok` where all of them are OK. A slice is a Statuses, too."""

    __slots__ = ("array", "ok")

    def __init__(self, array: Any, ok: bool) -> None:
        self.array = array
        self.ok = ok

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> Status: ...

    @overload
    def __getitem__(self, index: slice) -> Statuses: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[Status, Statuses]:
        if isinstance(index, slice):
            part = self.array[index]
            return Statuses(part, not any(part))
        return Status(self.array[index])

    def __iter__(self) -> Iterator[Status]:
        return map(Status, self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Statuses({[status.name for status in self]})"


class Views:
    """The bytes of a batch of objects, where they are in L1: no copy is made.

    `views[i]` is a memoryview, writable for staged objects and read-only for others, or None where key i failed
    (`status(i)` says why). It keeps the cache open, but its bytes are the caller's only until the shares or the
    staging are given back: afterwards the memory may hold another object.
    """

    __slots__ = ("_cache", "_writable", "array", "ok")

    def __init__(self, cache: Any, array: Any, ok: bool, writable: bool) -> None:
        self._cache = cache
        self._writable = writable
        self.array = array
        self.ok = ok

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Optional[memoryview]:
        view = self.array[index]
        if view.status != Status.OK:
            return None
        block = (ctypes.c_uint8 * view.size).from_address(view.data)
        block.cache = self._cache
        data = memoryview(block).cast("B")
        return data if self._writable else data.toreadonly()

    def __iter__(self) -> Iterator[Optional[memoryview]]:
        return (self[i] for i in range(len(self)))

    def status(self, index: int) -> Status:
        """The status of one key."""
        return Status(self.array[index].status)

    @property
    def statuses(self) -> list[Status]:
        """The status of each key."""
        return [Status(view.status) for view in self.array]

    def address(self, index: int) -> int:
        """Where the bytes of one key begin, for a copy engine; 0 where the key failed."""
        return self.array[index].data or 0
