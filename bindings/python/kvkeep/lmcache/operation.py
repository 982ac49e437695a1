"""Operations of LMCache on their way: numbered, made of parts, each completed once."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

# A completion as LMCache takes it: number, whether all went well, why not, and what became of each key.
Done = tuple[int, bool, str, list[bool]]


class Part(NamedTuple):
    """Keys of one operation that are of one model, and where they stand in it."""

    model: str
    places: list[int]


class Operation:
    """One batch. Its parts end on any thread; `found` is written at places that only one part has."""

    def __init__(self, id: int, keys: list[str], parts: int) -> None:
        self.id = id
        self.keys = keys
        self.found = [False] * len(keys)
        self.parts_left = parts
        self.error = ""


class Operations:
    """Counts operations, and tells LMCache by a descriptor of those that are over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self._done: list[Done] = []
        self._readable, self._writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closed = False

    @property
    def fd(self) -> int:
        """Readable while there is something to take."""
        return self._readable

    def begin(self, keys: list[str], parts: int) -> Operation:
        """Numbers an operation. One without parts is over at once."""
        with self._lock:
            self._last += 1
            operation = Operation(self._last, keys, parts)
            if not parts:
                self._end(operation)
            return operation

    def end_part(self, operation: Operation, error: str) -> None:
        """One part is over; the last one to be completes the operation."""
        with self._lock:
            operation.error = operation.error or error
            operation.parts_left -= 1
            if not operation.parts_left:
                self._end(operation)

    def take(self) -> list[Done]:
        """What is over and was not taken yet, each once; clears the descriptor."""
        with self._lock:
            done, self._done = self._done, []
            if done and not self._closed:
                os.read(self._readable, 1)
        return done

    def close(self) -> None:
        """Gives the descriptors back. Twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._readable)
                os.close(self._writable)

    def _end(self, operation: Operation) -> None:
        self._done.append((operation.id, not operation.error, operation.error, operation.found))
        # One byte stands for all that is to be taken.
        if len(self._done) == 1 and not self._closed:
            os.write(self._writable, b"\0")
