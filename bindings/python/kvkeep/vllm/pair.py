"""Two engines that share a request: one computes its prompt, the other one, which a router asks afterwards, goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

# How long the other engine asks for a prompt again, where nothing else is said: stores may be under way when it is asked.
PATIENCE_MS = 10_000
PATIENCE_MAX_MS = (1 << 32) - 1


def for_the_other(request: Any, patience_ms: int) -> Optional[dict[str, Any]]:
    """What a router hands on to the engine that goes on with a request, if it was told that another one will."""
    if not _given(request).get("do_remote_decode"):
        return None
    return {"do_remote_decode": False, "do_remote_prefill": True, "lookup_timeout_ms": patience_ms or PATIENCE_MS}


def patience_of(request: Any, patience_ms: int) -> int:
    """How long a request's prompt is asked for again: as its router says, else as is set."""
    asked = _given(request).get("lookup_timeout_ms")
    if isinstance(asked, int) and not isinstance(asked, bool) and 0 <= asked <= PATIENCE_MAX_MS:
        return asked
    return patience_ms


def _given(request: Any) -> Mapping[str, Any]:
    return getattr(request, "kv_transfer_params", None) or {}
