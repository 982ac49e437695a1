"""What became of chunks in the tiers, told by vLLM's block hashes and tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Optional

from .._ffi import EventKind
from ..cache import Cache
from ..errors import InvalidError
from ..event import Event
from .plan import HASH_BYTES, Grid, Span

KNOWN_MAX = 65536
READ_AT_ONCE = 4096


class Chunk(NamedTuple):
    """What a chunk is to vLLM."""

    hashes: tuple[bytes, ...]
    # The hash before its first; None at the beginning.
    parent: Optional[bytes]
    tokens: tuple[int, ...]
    lora: Any


class News(NamedTuple):
    """A chunk of a group is in L1, or in storage, from now on, or no more."""

    chunk: Chunk
    group: int
    is_stored: bool
    is_storage: bool


class Events:
    """Chunks that this engine stored, and where they are. Those of other engines are told by them."""

    def __init__(self, grid: Grid, known_max: int = KNOWN_MAX) -> None:
        self._grid = grid
        self._known_max = known_max
        # The chunks by the hashes of their keys, with the tiers that have them: (group, whether it is storage).
        self._known: OrderedDict[bytes, tuple[Chunk, set[tuple[int, bool]]]] = OrderedDict()
        self._next = 0

    def note(self, request: Any, span: Span, hashes: bytes) -> None:
        """Chunks that are about to be stored, and the hashes of their keys."""
        per_chunk, tokens = self._grid.hashes_per_chunk, self._grid.chunk_tokens
        for offset, index in enumerate(range(span.first, span.end)):
            first = index * per_chunk
            key = hashes[offset * HASH_BYTES : (offset + 1) * HASH_BYTES]
            if key not in self._known:
                chunk = Chunk(
                    tuple(request.block_hashes[first : first + per_chunk]),
                    request.block_hashes[first - 1] if first else None,
                    tuple(request.all_token_ids[index * tokens : (index + 1) * tokens]),
                    request.lora_request,
                )
                self._known[key] = (chunk, set())
            self._known.move_to_end(key)
        while len(self._known) > self._known_max:
            self._known.popitem(last=False)

    def read(self, cache: Cache, space: int) -> Iterator[News]:
        """What has happened since."""
        try:
            events, self._next = cache.read_events(self._next, READ_AT_ONCE)
        except InvalidError:
            # Another run of the daemon, whose memory is empty.
            self._next = 0
            yield from self._gone(storage=False)
            return
        yield from self._told(event for event in events if event.space == space)

    def forget(self) -> list[News]:
        """Nothing that was stored is there any more."""
        gone = [*self._gone(storage=False), *self._gone(storage=True)]
        self._known.clear()
        return gone

    def _told(self, events: Iterable[Event]) -> Iterator[News]:
        for event in events:
            group, known = event.key.group, self._known.get(event.key.hash)
            # All ranks store the same chunks. A window's objects are of no use without those of the layers that need whole prefixes.
            if known is None or event.key.rank or self._grid.groups[group].reach:
                continue
            chunk, tiers = known
            tier, is_stored = (group, event.tier > 0), event.kind == EventKind.STORED
            if (tier in tiers) != is_stored:
                (tiers.add if is_stored else tiers.discard)(tier)
                yield News(chunk, *_place(tier, is_stored))

    def _gone(self, storage: bool) -> Iterator[News]:
        for chunk, tiers in self._known.values():
            for tier in [tier for tier in tiers if tier[1] == storage]:
                tiers.discard(tier)
                yield News(chunk, *_place(tier, False))


def _place(tier: tuple[int, bool], is_stored: bool) -> tuple[int, bool, bool]:
    return tier[0], is_stored, tier[1]
