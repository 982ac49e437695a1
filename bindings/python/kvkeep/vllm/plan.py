"""Which chunks of a request are moved, from and to which blocks. Pure: numbers in, numbers out."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .._ffi import KVKEEP_BLOCK_NONE as NONE

HASH_BYTES = 32
REQUEST_ID_BYTES_MAX = 255
KEPT_ID_BYTES = 200
RANK_AND_GROUP = struct.Struct("=II")
# What stands in vLLM's tables of blocks where there is none.
NULL_BLOCK = 0


class Group(NamedTuple):
    """Layers whose pages have the same block numbers, and how much of a prefix they need."""

    block_tokens: int
    # How many tokens before the end of a prefix are read of it: those of a sliding window, or the last alone, whose block has a
    # state layer's snapshot. 0: all.
    reach: int = 0
    # Whether the engine names the blocks to store, each with its token, because they do not lie by position.
    named: bool = False


class Grid(NamedTuple):
    """How tokens are cut into blocks and chunks, and how a chunk's bytes are spread over groups and workers."""

    chunk_tokens: int
    groups: tuple[Group, ...]
    # Tokens of each hash that the engine makes.
    hash_tokens: int
    # Objects of a chunk and a group: workers that hold different bytes, or heads.
    ranks: int = 1
    # Workers that hold, and read, the same bytes (MLA, or fewer heads than workers).
    replicas: int = 1
    workers: int = 1

    @property
    def hashes_per_chunk(self) -> int:
        """Hashes of a chunk."""
        return self.chunk_tokens // self.hash_tokens

    @property
    def objects_per_chunk(self) -> int:
        """Objects of a chunk: one of each group for each rank."""
        return self.ranks * len(self.groups)

    @property
    def extra_count(self) -> int:
        """Readers of an object besides the first."""
        return self.replicas - 1

    @property
    def is_plain(self) -> bool:
        """Whether there is one group, which needs whole prefixes."""
        return len(self.groups) == 1 and not self.groups[0].reach

    def blocks_per_chunk(self, group: int) -> int:
        """Blocks of a chunk."""
        return self.chunk_tokens // self.groups[group].block_tokens

    def window_chunks(self, group: int) -> int:
        """How many chunks before its end a prefix needs; 0: all."""
        return -(-self.groups[group].reach // self.chunk_tokens)


def grid(
    groups: Sequence[Group], hash_tokens: int, chunk_tokens: int, workers: int = 1, replicas: int = 1, heads: int = 1
) -> Grid:
    """The grid whose chunk is the least that has `chunk_tokens` and whole blocks of every group. Each worker has an object for
    each of its `heads`."""
    unit = math.lcm(hash_tokens, *(group.block_tokens for group in groups))
    ranks = workers // replicas * heads
    return Grid(-(-chunk_tokens // unit) * unit, tuple(groups), hash_tokens, ranks, replicas, workers)


class Span(NamedTuple):
    """Chunks [first, end)."""

    first: int
    end: int

    @property
    def chunks(self) -> int:
        """How many."""
        return self.end - self.first


def chunk_hashes(block_hashes: Sequence[bytes], span: Span, hashes_per_chunk: int, revision: bytes = b"") -> bytes:
    """The hashes of chunks, one after another.

    vLLM chains its block hashes and seeds them with all that changes the meaning of a token (adapter, pictures, salt),
    so the hash of a chunk's last block names the chunk and everything before it. A `revision` says which weights an adapter has.
    """
    last = hashes_per_chunk - 1
    hashes = (sized(block_hashes[index * hashes_per_chunk + last]) for index in range(span.first, span.end))
    if revision:
        hashes = (hashlib.sha256(b"kvkeep adapter" + revision + one).digest() for one in hashes)
    return b"".join(hashes)


def sized(digest: bytes) -> bytes:
    """A hash of 32 bytes; vLLM's faster algorithms give others."""
    return bytes(digest) if len(digest) == HASH_BYTES else hashlib.sha256(digest).digest()


def unstable_hashes(cache_config: Any, environment: Mapping[str, str]) -> str:
    """What to say where vLLM's block hashes are others in each process, so that none finds what another stored."""
    algorithm = str(getattr(cache_config, "prefix_caching_hash_algo", "sha256"))
    if algorithm.startswith("sha256") or environment.get("PYTHONHASHSEED") not in (None, "random"):
        return ""
    return (
        f"kvkeep will find nothing that another engine or an earlier run has stored: prefix_caching_hash_algo is {algorithm}, which "
        "is seeded anew in each process. Set PYTHONHASHSEED to one number for all engines, or use sha256."
    )


def session_name(request_id: str) -> str:
    """A request's id as kvkeep takes it: text without NUL of at most 255 bytes. One that is not so keeps its beginning."""
    encoded = str(request_id).encode("utf-8", "surrogatepass")
    name = encoded.decode("utf-8", "replace").replace("\0", "\ufffd")
    if len(name.encode()) <= REQUEST_ID_BYTES_MAX and name == request_id:
        return name
    head = name.encode()[:KEPT_ID_BYTES].decode("utf-8", "ignore")
    return f"{head}… {hashlib.sha256(encoded).hexdigest()[:16]}"


def key_records(hashes: bytes, ranks: Iterable[int], groups: Iterable[int] = (0,)) -> bytearray:
    """kvkeep's keys, chunk-major: for each chunk, for each rank, for each group."""
    numbers = list(groups)
    tails = [RANK_AND_GROUP.pack(rank, group) for rank in ranks for group in numbers]
    records = bytearray()
    for start in range(0, len(hashes), HASH_BYTES):
        for tail in tails:
            records += hashes[start : start + HASH_BYTES] + tail
    return records


def covering(first_token: int, end_token: int, grid: Grid) -> Span:
    """The chunks that have a token of [first_token, end_token)."""
    return Span(first_token // grid.chunk_tokens, -(-end_token // grid.chunk_tokens))


class Part(NamedTuple):
    """Chunks of one group and their blocks: for each hash of 32 bytes, as many as a chunk has of them.

    Where a prefix needs the end of a chunk only, its blocks are listed from the last one back: those before are missing at the end,
    and the object is that much shorter.
    """

    group: int
    hashes: bytes
    blocks: list[int]


def load_parts(
    tables: Sequence[Sequence[int]], hashes: bytes, first_token: int, end_token: int, grid: Grid
) -> list[Part]:
    """What has to be loaded so that a prefix which ends with `end_token` can go on, where the engine has all before `first_token`.

    `tables` has a table of blocks for each group, `hashes` those of the chunks that cover the tokens.
    """
    span = covering(first_token, end_token, grid)
    parts = []
    for number, (group, table) in enumerate(zip(grid.groups, tables)):
        start = max(first_token, end_token - group.reach) if group.reach else first_token
        wanted = range(start // group.block_tokens, -(-end_token // group.block_tokens))
        count = grid.blocks_per_chunk(number)
        chosen = _Chosen(number, hashes)
        for index in range(start // grid.chunk_tokens, span.end):
            places = range(index * count, (index + 1) * count)
            if places[0] in wanted and places[-1] in wanted and len(table) > places[-1]:
                listed = list(table[places[0] : places[-1] + 1])
            else:
                listed = [table[place] if place in wanted and place < len(table) else NULL_BLOCK for place in places]
            if NULL_BLOCK in listed:
                listed = [NONE if block == NULL_BLOCK else block for block in listed]
            if group.reach:
                listed.reverse()
            if listed.count(NONE) < count:
                chosen.add(index - span.first, listed)
        parts += chosen.parts()
    return parts


def store_parts(tables: Sequence[Sequence[int]], hashes: bytes, span: Span, grid: Grid) -> list[Part]:
    """What can be stored of whole chunks: of each group, those whose blocks the engine still has. Those that it names are left out."""
    parts = []
    for number, (group, table) in enumerate(zip(grid.groups, tables)):
        if group.named:
            continue
        count = grid.blocks_per_chunk(number)
        kept = min(count, -(-group.reach // group.block_tokens)) if group.reach else count
        chosen = _Chosen(number, hashes)
        for index in range(span.first, span.end):
            end = (index + 1) * count
            needed = list(table[end - kept : end])
            if len(needed) == kept and NULL_BLOCK not in needed:
                if group.reach:
                    needed.reverse()
                chosen.add(index - span.first, needed + [NONE] * (count - kept))
        parts += chosen.parts()
    return parts


class Offer(NamedTuple):
    """A block that the engine names: it has the state after so many tokens."""

    group: int
    block: int
    tokens: int


def offered_parts(
    offers: Iterable[Offer], block_hashes: Sequence[bytes], grid: Grid, revision: bytes = b""
) -> list[Part]:
    """What of the blocks that the engine names is at the end of a chunk."""
    parts = []
    for offer in offers:
        chunk, rest = divmod(offer.tokens, grid.chunk_tokens)
        if rest or not 0 < chunk * grid.hashes_per_chunk <= len(block_hashes) or offer.block == NULL_BLOCK:
            continue
        hashes = chunk_hashes(block_hashes, Span(chunk - 1, chunk), grid.hashes_per_chunk, revision)
        parts.append(Part(offer.group, hashes, [offer.block] + [NONE] * (grid.blocks_per_chunk(offer.group) - 1)))
    return parts


class _Chosen:
    """The chunks of a group that are taken."""

    def __init__(self, number: int, hashes: bytes) -> None:
        self._number, self._hashes = number, hashes
        self._taken = bytearray()
        self._blocks: list[int] = []

    def add(self, offset: int, blocks: list[int]) -> None:
        """Takes the chunk whose hash is so many hashes from the first."""
        self._taken += self._hashes[offset * HASH_BYTES : (offset + 1) * HASH_BYTES]
        self._blocks += blocks

    def parts(self) -> list[Part]:
        """The part, if there is any."""
        return [Part(self._number, bytes(self._taken), self._blocks)] if self._taken else []
