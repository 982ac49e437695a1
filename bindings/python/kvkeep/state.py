"""What L1 says of keys."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import _ffi


class KeyState(NamedTuple):
    """What L1 says of one key; see kvkeep_key_state. False and 0 throughout where it is absent."""

    ready: bool
    size: int
    shares: int
    temporary: bool
    evictable: bool
    stored: bool
    storing: bool


def copied(record: Any) -> KeyState:
    """The record as Python's own."""
    kinds = (
        _ffi.KVKEEP_KEY_TEMPORARY,
        _ffi.KVKEEP_KEY_EVICTABLE,
        _ffi.KVKEEP_KEY_STORED,
        _ffi.KVKEEP_KEY_STORING,
    )
    ready = record.state == _ffi.ObjectState.READY
    return KeyState(ready, record.size, record.shares, *(bool(record.flags & kind) for kind in kinds))
