"""SGLang's device memory as a kvkeep pool, read off the entries that SGLang makes of it for external linkers."""

from __future__ import annotations

import itertools
from typing import Any

from ..errors import InvalidError
from ..pages import Segment, described
from .host_pool import page_numbers


class DevicePages:
    """The pages of one device pool: a piece for each of its buffers, and with which layer each is waited for."""

    def __init__(self, entry: Any) -> None:
        self._page_tokens = int(entry.page_size)
        buffers = [described(buffer) for buffer in entry.kv_buffer]
        devices = {buffer.device for buffer in buffers}
        if len(devices) != 1 or None in devices:
            raise InvalidError(f"the buffers of SGLang's pool {entry.name} are on several devices: {devices}")
        self.device: int = next(iter(device for device in devices if device is not None))
        layers = layers_of(entry.layer_mapping)
        pieces = [
            (part, number, *piece) for part, component in enumerate(entry.buffer_meta) for number, piece in enumerate(component)
        ]
        # A row is a token, or a page, as the size of a piece tells.
        spans = {size // (buffer.item_bytes * row_items(buffer.shape)) for (*_, size), buffer in zip(pieces, buffers)}
        if len(spans) != 1:
            raise InvalidError(f"the pages of SGLang's pool {entry.name} have several lengths: {sorted(spans)}")
        span = spans.pop()
        self.count = min(buffer.shape[0] for buffer in buffers) // span
        self.segments = [
            # Parts of the engine's own begin there.
            Segment(base, size, stride * span, layer=layers.get(number, max(layers.values())), part=(1 << 16) + part)
            for part, number, base, stride, size in pieces
        ]
        self.layers = {segment.layer for segment in self.segments}
        self._facts = [
            str(getattr(entry.kv_buffer[0], "dtype", "")).replace("torch.", ""),
            f"device page {self._page_tokens}",
            "+".join(
                f"{len(list(same))}x{size}" for size, same in itertools.groupby(one.block_bytes for one in self.segments)
            ),
        ]

    def blocks(self, indices: Any) -> list[int]:
        """The numbers of the pages that a call of SGLang's names by the indices of all their tokens."""
        return page_numbers(indices, self._page_tokens)

    def described(self) -> str:
        """Says which bytes an object has, in which order."""
        return ", ".join(self._facts)


def layers_of(mapping: dict[int, Any]) -> dict[int, int]:
    """The layer with which each buffer is waited for: the first that needs it."""
    layers: dict[int, int] = {}
    for layer, numbers in sorted(mapping.items()):
        for number in [numbers] if isinstance(numbers, int) else numbers:
            layers.setdefault(number, layer)
    return layers


def row_items(shape: tuple[int, ...]) -> int:
    """How many items a row has."""
    items = 1
    for length in shape[1:]:
        items *= length
    return items
