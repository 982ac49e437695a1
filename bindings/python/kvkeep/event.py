"""What became of objects, tier by tier."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import _ffi
from .key import Key


class Event(NamedTuple):
    """What became of one object in one tier; see kvkeep_event."""

    sequence: int
    time_us: int
    space: int
    backend: int
    size: int
    key: Key
    kind: _ffi.EventKind
    tier: int


def copied(record: Any) -> Event:
    """The record as Python's own."""
    key = Key(bytes(record.key.hash), record.key.rank, record.key.group)
    kind = _ffi.EventKind(record.kind)
    return Event(record.sequence, record.time_us, record.space, record.backend, record.size, key, kind, record.tier)
