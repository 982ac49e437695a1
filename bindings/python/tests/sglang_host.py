"""Imitations of SGLang's host pools, over plain memory: pages by the indices of their tokens, and the addresses of their pieces."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

from kvkeep.sglang.settings import Settings
from kvkeep.sglang.store import Place, Store

from .support import WATCHDOG_S

PAGE_TOKENS = 4


class Indices(list[int]):
    """As much of a tensor as is asked for."""

    def tolist(self) -> list[int]:
        return list(self)

    def __getitem__(self, place: Any) -> Any:
        return Indices(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)


def indices(first: int, last: int) -> Indices:
    return Indices(range(first, last))


def of_pages(*pages: int, page_tokens: int = PAGE_TOKENS) -> Indices:
    return Indices(token for page in pages for token in range(page * page_tokens, (page + 1) * page_tokens))


def hashes(count: int, salt: str = "") -> list[str]:
    return [hashlib.sha256(f"{salt}{index}".encode()).hexdigest() for index in range(count)]


class HostPool:
    """Pages whose pieces lie at equal distances, in `buffers` of equal size."""

    dtype = "torch.bfloat16"

    def __init__(self, pages: int, pieces: int = 2, piece_bytes: int = 512, layout: str = "page_first") -> None:
        self.page_size, self.page_num, self.layout = PAGE_TOKENS, pages, layout
        self.size = pages * PAGE_TOKENS
        self.piece_bytes = piece_bytes
        self.buffers = [(ctypes.c_uint8 * (pages * piece_bytes))() for _ in range(pieces)]

    def get_page_buffer_meta(self, token_indices: Any) -> tuple[list[int], list[int]]:
        pages = [first // self.page_size for first in token_indices.tolist()[:: self.page_size]]
        found = [
            ctypes.addressof(buffer) + self.at(page) * self.piece_bytes for page in pages for buffer in self.buffers
        ]
        return found, [self.piece_bytes] * len(found)

    def at(self, page: int) -> int:
        """Where a page lies."""
        return page

    def page(self, number: int) -> bytes:
        at = self.at(number) * self.piece_bytes
        return b"".join(bytes(buffer[at : at + self.piece_bytes]) for buffer in self.buffers)

    def fill(self, number: int, value: int) -> bytes:
        at = self.at(number) * self.piece_bytes
        for piece, buffer in enumerate(self.buffers):
            buffer[at : at + self.piece_bytes] = [(value + piece + i) % 251 for i in range(self.piece_bytes)]
        return self.page(number)


class MHAHostPool(HostPool):
    """One that is cut by heads."""


class MovingPool(HostPool):
    """One whose pages lie in an order of their own."""

    shared_allocation_domain = "an arena"

    def at(self, page: int) -> int:
        return page if page < 2 else self.page_num + 1 - page


class CrookedPool(HostPool):
    def at(self, page: int) -> int:
        return page if page < 2 else self.page_num + 1 - page


ALONE = Place(0, 1, 0, 1, 0, 1)


def store(cache: Any, place: Place = ALONE, model: str = "toy", **chosen: Any) -> Store:
    return Store(cache, Settings(l1_bytes=1, **chosen), model, place, WATCHDOG_S * 1000)
