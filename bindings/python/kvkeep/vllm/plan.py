"""Which chunks of a request are moved, from and to which blocks. Pure: numbers in, numbers out."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .._ffi import KVKEEP_BLOCK_NONE

HASH_BYTES = 32
REQUEST_ID_BYTES_MAX = 255
KEPT_ID_BYTES = 200
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


def chunk_hashes(block_hashes: Sequence[bytes], span: Span, blocks_per_chunk: int, revision: bytes = b"") -> bytes:
    """The hashes of chunks, one after another.

    vLLM chains its block hashes and seeds them with all that changes the meaning of a token (adapter, pictures, salt),
    so the hash of a chunk's last block names the chunk and everything before it. A `revision` says which weights an adapter has.
    """
    last = blocks_per_chunk - 1
    hashes = (sized(block_hashes[index * blocks_per_chunk + last]) for index in range(span.first, span.end))
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
