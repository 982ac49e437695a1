"""An engine of two workers that calls the connector as TensorRT-LLM's documents say, over pages in plain memory."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import kvkeep
from kvkeep.trtllm.plan import NO_PAGE, Grid, Step
from kvkeep.trtllm.scheduler import Scheduler
from kvkeep.trtllm.settings import Settings
from kvkeep.trtllm.worker import Worker, paged

BLOCK_TOKENS, PAGES, LAYERS, PIECE = 4, 64, 2, 64


@dataclass
class Buffer:
    layer_id: int


@dataclass
class Region:
    base: int
    size: int
    stride: int
    num_slots: int
    buffers: tuple[Buffer, ...]


@dataclass
class LayerGroup:
    layer_group_id: int
    window_size: Optional[int]
    regions: tuple[Region, ...]
    replicated_regions: tuple[Region, ...] = ()


@dataclass
class Layout:
    groups: tuple[LayerGroup, ...]
    tokens_per_block: int = BLOCK_TOKENS


@dataclass
class Request:
    request_id: int
    tokens: list[int]
    cache_salt: Optional[str] = None

    def get_tokens(self, beam: int) -> list[int]:
        return self.tokens


@dataclass
class RequestData:
    request_id: int
    new_tokens: list[int]
    new_block_ids: list[int]
    computed_position: int
    num_scheduled_tokens: int
    new_block_ids_by_layer_group: list[list[int]] = field(default_factory=list)


class Gpu:
    """One rank's pages."""

    def __init__(self, rank: int, windows: Sequence[Optional[int]]) -> None:
        self.rank = rank
        self.memory = [[(ctypes.c_uint8 * (PAGES * PIECE))() for _ in range(LAYERS)] for _ in windows]
        self.layout = Layout(
            tuple(
                LayerGroup(
                    number,
                    window,
                    tuple(
                        Region(ctypes.addressof(one), PIECE, PIECE, PAGES, (Buffer(10 * number + layer),))
                        for layer, one in enumerate(self.memory[number])
                    ),
                )
                for number, window in enumerate(windows)
            )
        )

    def page(self, group: int, page: int) -> bytes:
        return b"".join(bytes(one[page * PIECE : (page + 1) * PIECE]) for one in self.memory[group])

    def write(self, group: int, page: int, content: bytes) -> None:
        for layer, one in enumerate(self.memory[group]):
            one[page * PIECE : (page + 1) * PIECE] = content[layer * PIECE : (layer + 1) * PIECE]

    def content(self, group: int, tokens: Sequence[int], salt: Optional[str]) -> bytes:
        """What a block holds that ends these tokens."""
        seed = hashlib.sha256(repr((self.rank, group, tuple(tokens), salt)).encode()).digest()
        return (seed * (LAYERS * PIECE))[: LAYERS * PIECE]


class Engine:
    """Runs requests one by one: `windows` has a window in tokens, or None, for each layer group."""

    def __init__(self, cache: kvkeep.Cache, windows: Sequence[Optional[int]] = (None,), ranks: int = 2, **options: Any) -> None:
        chosen = Settings("unix:///unused", **{"model": "toy", **options})
        space = cache.space(chosen.model, "toy", chosen.tenant, generation=chosen.generation)
        self.windows = windows
        self.gpus = [Gpu(rank, windows) for rank in range(ranks)]
        groups = paged(self.gpus[0].layout)
        self.workers = [
            Worker(space, cache, paged(gpu.layout), gpu.rank, chosen.save_ms) for gpu in self.gpus
        ]
        self.scheduler = Scheduler(space, Grid(BLOCK_TOKENS, tuple(one.group for one in groups), ranks), chosen)
        self._free = [[page for page in range(PAGES)] for _ in windows]
        self.tables: dict[int, list[list[int]]] = {}

    def run(
        self, request: Request, *, local: int = 0, chunk: int = 1 << 20, decode: Sequence[int] = (), honour: Optional[int] = None
    ) -> int:
        """Computes a prompt in chunks, then decodes tokens; how many were loaded. `local` tokens are in the engine's cache."""
        self.tables[request.request_id] = tables = [[] for _ in self.windows]
        offered, beside = self.scheduler.matched(request, local)
        assert not beside and (offered == 0 or local + offered < len(request.tokens))
        loaded = offered if honour is None else min(honour, offered)
        if loaded < offered:
            self.scheduler.cancelled(request, local + loaded, local + offered)
        position, sent, first = local + loaded, 0, True
        self._allocate(tables, position, local)
        self._compute(request, tables, 0, local)
        while position < len(request.tokens):
            scheduled = min(chunk, len(request.tokens) - position)
            before = [len(table) for table in tables] if not first else [0 for _ in tables]
            self._allocate(tables, position + scheduled, local)
            # Of a new request, what the connector loads is not counted.
            counted = position - loaded if first else position
            data = self._data(request, request.tokens[sent:], tables, before, counted, scheduled)
            step = self.scheduler.step([data] if first else [], [] if first else [data])
            self._forward(step, request, tables, position, position + scheduled)
            position, sent, first = position + scheduled, len(request.tokens), False
        for token in decode:
            request.tokens.append(token)
            before = [len(table) for table in tables]
            self._allocate(tables, len(request.tokens), local)
            data = self._data(request, [token], tables, before, len(request.tokens) - 1, 1)
            step = self.scheduler.step([], [data])
            self._forward(step, request, tables, len(request.tokens) - 1, len(request.tokens))
        return loaded

    def finish(self, request: Request) -> None:
        assert self.scheduler.finished(request) is False
        for free, table in zip(self._free, self.tables.pop(request.request_id)):
            free.extend(page for page in table if page != NO_PAGE)

    def wrong(self, request: Request) -> list[tuple[int, int, int]]:
        """Blocks that do not hold what a computation would have left, of those that the next token reads."""
        found, salt = [], request.cache_salt
        full = len(request.tokens) // BLOCK_TOKENS
        for group, (window, table) in enumerate(zip(self.windows, self.tables[request.request_id])):
            begin = 0 if window is None else max(0, full - -(-window // BLOCK_TOKENS))
            for block in range(begin, full):
                for gpu in self.gpus:
                    expected = gpu.content(group, request.tokens[: (block + 1) * BLOCK_TOKENS], salt)
                    if gpu.page(group, table[block]) != expected:
                        found.append((gpu.rank, group, block))
        return found

    def _allocate(self, tables: list[list[int]], tokens: int, local: int) -> None:
        for free, table, window in zip(self._free, tables, self.windows):
            while len(table) * BLOCK_TOKENS < tokens:
                passed = window is not None and (len(table) + 1) * BLOCK_TOKENS <= tokens - window - 2 * BLOCK_TOKENS
                table.append(NO_PAGE if passed else free.pop(0))

    def _compute(self, request: Request, tables: list[list[int]], first: int, end: int) -> None:
        for block in range(first // BLOCK_TOKENS, end // BLOCK_TOKENS):
            for gpu in self.gpus:
                for group, table in enumerate(tables):
                    if table[block] != NO_PAGE:
                        tokens = request.tokens[: (block + 1) * BLOCK_TOKENS]
                        gpu.write(group, table[block], gpu.content(group, tokens, request.cache_salt))

    def _data(
        self, request: Request, new: list[int], tables: list[list[int]], before: list[int], position: int, scheduled: int
    ) -> RequestData:
        deltas = [table[count:] for table, count in zip(tables, before)]
        several = len(deltas) > 1
        return RequestData(
            request.request_id, list(new), [] if several else deltas[0], position, scheduled, deltas if several else []
        )

    def _forward(self, step: Step, request: Request, tables: list[list[int]], first: int, end: int) -> None:
        for worker in self.workers:
            worker.begin_loads(step.loads)
            for layer in range(10 * len(self.windows) + LAYERS):
                worker.wait_layer(layer)
        self._compute(request, tables, first, end)
        for worker in self.workers:
            worker.store(step.stores)
