"""Imitations of SGLang's device pools, as it describes them to linkers, in plain memory."""

from __future__ import annotations

import ctypes
from typing import Any

from .sglang_host import PAGE_TOKENS

LAYERS = 3


class Device:
    type, index = "cpu", None


class Buffer:
    """As much of a tensor on the CPU as is asked for: rows of bytes, with a gap after each where `gap` is given."""

    device, dtype = Device(), "torch.uint8"

    def __init__(self, rows: int, width: int, gap: int = 0) -> None:
        self.shape, self._step = (rows, width), width + gap
        self.memory = (ctypes.c_uint8 * (rows * self._step))()
        self.nbytes = rows * width

    def data_ptr(self) -> int:
        return ctypes.addressof(self.memory)

    def element_size(self) -> int:
        return 1

    def stride(self) -> tuple[int, int]:
        return self._step, 1


class Entry:
    """A device pool as SGLang describes it to linkers. Rows are tokens (K and V), or whole pages (states)."""

    def __init__(self, name: str, pages: int, parts: int, mapping: dict[int, Any], by_page: bool = False) -> None:
        self.name, self.layer_mapping, self.pages = name, mapping, pages
        self.page_size = PAGE_TOKENS
        self.span = 1 if by_page else PAGE_TOKENS
        self.components = [[Buffer(pages * self.span, 32) for _ in range(LAYERS)] for _ in range(parts)]
        self.kv_buffer = [buffer for component in self.components for buffer in component]
        self.buffer_meta = [
            [(one.data_ptr(), one.stride()[0], one.shape[1] * self.span) for one in component]
            for component in self.components
        ]

    def page(self, number: int) -> bytes:
        size = 32 * self.span
        return b"".join(bytes(one.memory[number * size : (number + 1) * size]) for one in self.kv_buffer)

    def fill(self, number: int, value: int) -> bytes:
        size = 32 * self.span
        for at, one in enumerate(self.kv_buffer):
            one.memory[number * size : (number + 1) * size] = [(value + 31 * at + i) % 251 for i in range(size)]
        return self.page(number)
