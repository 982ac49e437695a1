"""Blocks that an engine may free while they are stored, kept for as long."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Callable

from .plan import Part

Blocks = list[int]


class Lending:
    """Blocks lent to stores, each until all `workers` have said that they need it no more."""

    def __init__(self, workers: int, keep: Callable[[Blocks], object], free: Callable[[Blocks], object]) -> None:
        self._workers = workers
        self._keep, self._free = keep, free
        self._numbers = itertools.count(1)
        # How many workers have still to say it, and the blocks.
        self._lent: dict[int, tuple[int, Blocks]] = {}

    def lend(self, parts: Iterable[Part]) -> int:
        """Keeps the blocks of a store; its number."""
        blocks = [block for part in parts for block in part.blocks if block >= 0]
        self._keep(blocks)
        number = next(self._numbers)
        self._lent[number] = (self._workers, blocks)
        return number

    def take_back(self, said: Mapping[int, int]) -> None:
        """How many workers have said it of which stores."""
        for number, workers in said.items():
            if lent := self._lent.pop(number, None):
                left, blocks = lent[0] - workers, lent[1]
                if left > 0:
                    self._lent[number] = (left, blocks)
                else:
                    # From the last on, so that of equal use the end of a prompt goes first.
                    self._free(blocks[::-1])
