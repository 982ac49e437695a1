"""What an orchestrator hints at with a request: vLLM carries `kv_hints`, and leaves their meaning to the connector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..key import Keys
from ..key import keys as as_keys
from ..space import Space
from .trouble import log

# The prompt's chunks: begin to load them before the request is scheduled; keep them longer; leave L1 to others.
PREFETCH, RETAIN, DEMOTE = "prefetch", "retain", "demote"
PRIORITY, TTL_S, PRIORITY_MAX, TTL_S_MAX = 100, 600.0, 100, 4_000_000


class Hint(NamedTuple):
    """One that is understood."""

    kind: str
    # Of `RETAIN`: how strongly, from 1 to 100, and for how long.
    priority: int = PRIORITY
    ttl_s: float = TTL_S


def hints_of(request: Any) -> list[Hint]:
    """The hints of a request; those that are not understood are named in the log, and passed over."""
    found = []
    for action in getattr(getattr(request, "kv_hints", None), "actions", ()):
        try:
            found.append(_hint(action.action_type, dict(action.payload)))
        except (TypeError, ValueError) as error:
            log.debug("kvkeep passes over the hint %s of %s: %s", action.action_type, request.request_id, error)
    return found


def apply(hints: Iterable[Hint], space: Space, keys: Keys) -> None:
    """Follows the hints of a request that is over."""
    for hint in hints:
        if hint.kind == RETAIN:
            space.retain(keys, hint.priority, hint.ttl_s)
        elif hint.kind == DEMOTE:
            # What no other tier has would be lost.
            written = [key for key, state in zip(keys, space.query(keys)) if state.stored]
            if written:
                space.evict(as_keys(written))


def _hint(kind: str, payload: dict[str, Any]) -> Hint:
    if kind not in (PREFETCH, RETAIN, DEMOTE):
        raise ValueError(f"it is none of {PREFETCH}, {RETAIN}, {DEMOTE}")
    priority, ttl_s = payload.get("priority", PRIORITY), float(payload.get("ttl_s", TTL_S))
    if not isinstance(priority, int) or not 1 <= priority <= PRIORITY_MAX or not 0 < ttl_s <= TTL_S_MAX:
        raise ValueError(f"priority is from 1 to {PRIORITY_MAX}, and ttl_s from 0 to {TTL_S_MAX}")
    return Hint(kind, priority, ttl_s)
