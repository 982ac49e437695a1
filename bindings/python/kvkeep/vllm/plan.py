"""Which chunks of a request are moved, from and to which blocks. Pure: numbers in, numbers out."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .._ffi import KVKEEP_BLOCK_NONE

HASH_BYTES = 32
RANK_AND_GROUP = struct.Struct("=II")


class Grid(NamedTuple):
    """How tokens are cut into blocks and chunks, and how a chunk's bytes are spread over the workers."""

    block_tokens: int
    blocks_per_chunk: int
    # Objects of a chunk: the workers that hold different bytes.
    ranks: int = 1
    # Workers that hold, and read, the same bytes (MLA, or fewer heads than workers).
    replicas: int = 1

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return self.block_tokens * self.blocks_per_chunk

    @property
    def extra_count(self) -> int:
        """Readers of an object besides the first."""
        return self.replicas - 1


def grid(block_tokens: int, chunk_tokens: int, workers: int, replicas: int) -> Grid:
    """The grid whose chunk is the least multiple of a block that has `chunk_tokens`."""
    return Grid(block_tokens, -(-chunk_tokens // block_tokens), workers // replicas, replicas)


class Span(NamedTuple):
    """Chunks [first, end)."""

    first: int
    end: int

    @property
    def chunks(self) -> int:
        """How many."""
        return self.end - self.first


def chunk_hashes(block_hashes: Sequence[bytes], span: Span, blocks_per_chunk: int) -> bytes:
    """The hashes of chunks, one after another.

    vLLM chains its block hashes and seeds them with all that changes the meaning of a token (adapter, pictures, salt),
    so the hash of a chunk's last block names the chunk and everything before it.
    """
    last = blocks_per_chunk - 1
    return b"".join(sized(block_hashes[index * blocks_per_chunk + last]) for index in range(span.first, span.end))


def sized(digest: bytes) -> bytes:
    """A hash of 32 bytes; vLLM's faster algorithms give others."""
    return bytes(digest) if len(digest) == HASH_BYTES else hashlib.sha256(digest).digest()


def key_records(hashes: bytes, ranks: Iterable[int]) -> bytearray:
    """kvkeep's keys, chunk-major: for each chunk, for each rank."""
    tails = [RANK_AND_GROUP.pack(rank, 0) for rank in ranks]
    records = bytearray()
    for start in range(0, len(hashes), HASH_BYTES):
        for tail in tails:
            records += hashes[start : start + HASH_BYTES] + tail
    return records


def covering(first_token: int, end_token: int, grid: Grid) -> Span:
    """The chunks that have a token of [first_token, end_token)."""
    return Span(first_token // grid.chunk_tokens, -(-end_token // grid.chunk_tokens))


def load_blocks(block_ids: Sequence[int], first_token: int, end_token: int, grid: Grid) -> list[int]:
    """The blocks of the chunks that cover the tokens; those that have none of them are not to be touched."""
    span = covering(first_token, end_token, grid)
    wanted = range(first_token // grid.block_tokens, -(-end_token // grid.block_tokens))
    return [
        block_ids[index] if index in wanted else KVKEEP_BLOCK_NONE
        for index in range(span.first * grid.blocks_per_chunk, span.end * grid.blocks_per_chunk)
    ]


def store_blocks(block_ids: Sequence[int], span: Span, grid: Grid) -> list[int]:
    """The blocks of whole chunks."""
    return list(block_ids[span.first * grid.blocks_per_chunk : span.end * grid.blocks_per_chunk])
