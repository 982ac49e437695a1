"""SGLang's host memory as a kvkeep pool: where the pieces of its pages lie, read off the addresses that it gives itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Callable

from .._ffi import KVKEEP_DEVICE_HOST as DEVICE_HOST
from ..errors import InvalidError
from ..pages import Segment

# A range of token indices as SGLang's pools take it: a tensor, of which the tests have an imitation.
Indices = Callable[[int, int], Any]


class HostPages:
    """The pages of one host pool. Each has as many pieces as there are segments, one for K and V, or one for each layer."""

    def __init__(self, pool: Any, indices: Indices) -> None:
        self.device = DEVICE_HOST
        self._pool = pool
        self._page_tokens = int(pool.page_size)
        self.count = int(getattr(pool, "page_num", 0) or pool.size // self._page_tokens)
        try:
            addresses, sizes = pool.get_page_buffer_meta(indices(0, min(self.count, 2) * self._page_tokens))
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise InvalidError(
                f"SGLang gives no addresses of the pages of its {type(pool).__name__} ({error}): "
                "start it with --hicache-mem-layout page_first"
            ) from error
        pieces = len(addresses) // min(self.count, 2)
        strides = [second - first for first, second in zip(addresses, addresses[pieces:])] or [0] * pieces
        self.segments = [
            Segment(address, size, stride, layer=layer)
            for layer, (address, size, stride) in enumerate(zip(addresses, sizes, strides))
        ]
        # SGLang may move its pages about in a memory that several pools share; then it must be asked where each is.
        self._moves = getattr(pool, "shared_allocation_domain", None) is not None
        last = (self.count - 1) * self._page_tokens
        if not self._moves and self._numbers(indices(last, last + self._page_tokens)) != [self.count - 1]:
            raise InvalidError(f"the pages of SGLang's {type(pool).__name__} do not lie at equal distances")

    def blocks(self, indices: Any) -> list[int]:
        """The numbers of the pages that a call of SGLang's names by the indices of all their tokens."""
        if self._moves:
            return self._numbers(indices)
        return page_numbers(indices, self._page_tokens)

    def described(self) -> str:
        """Says which bytes an object has, in which order."""
        pool = self._pool
        sizes = itertools.groupby(segment.block_bytes for segment in self.segments)
        facts = [
            f"{pool.dtype}".replace("torch.", ""),
            str(getattr(pool, "layout", "")),
            f"page {self._page_tokens}",
            "+".join(f"{len(list(same))}x{size}" for size, same in sizes),
        ]
        if (first := getattr(pool, "start_layer", None)) is not None:
            facts.append(f"layers {first}-{pool.end_layer}")
        if tag := getattr(pool, "storage_format_tag", None):
            facts.append(str(tag))
        return ", ".join(facts)

    def _numbers(self, host_indices: Any) -> list[int]:
        addresses, _ = self._pool.get_page_buffer_meta(host_indices)
        pieces = len(self.segments)
        return [self._number(addresses[at : at + pieces]) for at in range(0, len(addresses), pieces)]

    def _number(self, addresses: Sequence[int]) -> int:
        first = self.segments[0]
        number = (addresses[0] - first.address) // first.block_stride if first.block_stride else 0
        expected = [segment.address + number * segment.block_stride for segment in self.segments]
        if list(addresses) != expected or not 0 <= number < self.count:
            raise InvalidError("a page lies where none was when its pool was registered")
        return number


def page_numbers(indices: Any, page_tokens: int) -> list[int]:
    """The numbers of pages by the indices of all their tokens, of which the first of each page is looked at."""
    if len(indices) % page_tokens:
        raise InvalidError(f"{len(indices)} indices are no whole pages of {page_tokens} tokens")
    numbers = [divmod(first, page_tokens) for first in indices[::page_tokens].tolist()]
    if any(rest for _, rest in numbers):
        raise InvalidError(f"indices do not begin at pages of {page_tokens} tokens")
    return [number for number, _ in numbers]
