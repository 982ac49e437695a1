"""Names of blocks, and what a step has to load and store: plain records, which go from the scheduler to the workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

# In place of a page: the block has none in its group. As a subscript it would be the last page, another request's.
NO_PAGE = -1


class Group(NamedTuple):
    """Layers that share page numbers. `window` is how many of the last blocks they need; 0: all."""

    number: int
    window: int = 0


class Grid(NamedTuple):
    """What the scheduler must know of the workers' caches."""

    block_tokens: int
    groups: tuple[Group, ...]
    # Workers, each with objects of its own.
    ranks: int = 1


class Move(NamedTuple):
    """Pages of one group, and the names of the blocks that they hold."""

    group: int
    hashes: tuple[bytes, ...]
    pages: tuple[int, ...]


@dataclass
class Load:
    """A request's load, from the shares of a session."""

    session: int
    moves: list[Move]


@dataclass
class Step:
    """What the workers do in one step."""

    loads: list[Load] = field(default_factory=list)
    stores: list[Move] = field(default_factory=list)


class Chain:
    """The hashes of a sequence's full blocks, each of all tokens up to its end, and of what else changes their meaning."""

    def __init__(self, block_tokens: int, salt: Optional[str]) -> None:
        seed = b"no salt" if salt is None else b"salt" + salt.encode("utf-8", "surrogateescape")
        self._last = hashlib.sha256(b"kvkeep trtllm" + seed).digest()
        self._block_tokens = block_tokens
        self._rest: list[int] = []
        self.hashes: list[bytes] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens."""
        self._rest.extend(tokens)
        size = self._block_tokens
        whole = len(self._rest) // size * size
        for first in range(0, whole, size):
            text = b"".join(token.to_bytes(8, "little", signed=True) for token in self._rest[first : first + size])
            self._last = hashlib.sha256(self._last + text).digest()
            self.hashes.append(self._last)
        del self._rest[:whole]


def chain_of(tokens: Sequence[int], block_tokens: int, salt: Optional[str]) -> Chain:
    """The chain of a sequence."""
    chain = Chain(block_tokens, salt)
    chain.extend(tokens)
    return chain


def loads(
    grid: Grid, hashes: Sequence[bytes], tables: Sequence[Sequence[int]], first: int, end: int
) -> list[Move]:
    """Of blocks [first, end), those that each group reads when a request goes on at `end`."""
    begins = [max(first, end - group.window) if group.window else first for group in grid.groups]
    return _moves(grid, hashes, tables, begins, end)


def stores(
    grid: Grid, hashes: Sequence[bytes], tables: Sequence[Sequence[int]], first: int, end: int, fresh: int
) -> list[Move]:
    """Of blocks [first, end), those that each group still has. A window moves on, and pages that it has passed are given to
    others without a word: of its blocks, those from `fresh` on, which this step computes, are the request's for certain."""
    begins = [max(first, fresh) if group.window else first for group in grid.groups]
    return _moves(grid, hashes, tables, begins, end)


def _moves(
    grid: Grid, hashes: Sequence[bytes], tables: Sequence[Sequence[int]], begins: Sequence[int], end: int
) -> list[Move]:
    found = []
    for group, table, begin in zip(grid.groups, tables, begins):
        blocks = [block for block in range(begin, min(end, len(table))) if table[block] != NO_PAGE]
        if blocks:
            found.append(
                Move(group.number, tuple(hashes[block] for block in blocks), tuple(table[block] for block in blocks))
            )
    return found
