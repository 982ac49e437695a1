"""An engine as small as can be: it schedules like vLLM, and a page's content follows from its tokens."""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

import kvkeep
from kvkeep.vllm import plan, scheduler, settings, worker
from kvkeep.vllm.events import Events
from kvkeep.vllm.lending import Lending

BLOCK_TOKENS = 4
LAYERS = 2
PAGE_BYTES = 64
BLOCKS = 64


@dataclass
class Request:
    """What the connector reads of vLLM's requests, and the blocks."""

    request_id: str
    tokens: list[int]
    num_computed_tokens: int = 0
    tables: list[list[int]] = field(default_factory=list)
    lora_request: Optional[Any] = None
    kv_hints: Optional[Any] = None
    kv_transfer_params: Optional[dict[str, Any]] = None

    @property
    def blocks(self) -> list[int]:
        """Those of the first group."""
        return self.tables[0]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.tokens)

    @property
    def all_token_ids(self) -> list[int]:
        return self.tokens

    @property
    def block_hashes(self) -> list[bytes]:
        hashes, parent = [], b""
        for end in range(BLOCK_TOKENS, len(self.tokens) + 1, BLOCK_TOKENS):
            parent = hashlib.sha256(parent + repr(self.tokens[end - BLOCK_TOKENS : end]).encode()).digest()
            hashes.append(parent)
        return hashes


class Gpu:
    """A worker's memory: a page for each layer and block, which the groups share as vLLM's do, with a piece for each rank."""

    def __init__(self, open_space: Callable[[int], kvkeep.Space], grid: plan.Grid, ranks: range, stores: bool) -> None:
        self.ranks, self.grid = ranks, grid
        self.page_bytes = page_bytes = PAGE_BYTES * len(ranks)
        self.memory = (ctypes.c_uint8 * (LAYERS * BLOCKS * page_bytes))()
        base = ctypes.addressof(self.memory)

        def open_pools(generation: int) -> list[kvkeep.Pool]:
            space = open_space(generation)
            return [
                space.pool(
                    [
                        kvkeep.Segment(
                            base + layer * BLOCKS * page_bytes + piece * PAGE_BYTES, PAGE_BYTES, page_bytes, group, layer
                        )
                        for layer in range(LAYERS)
                    ],
                    block_count=BLOCKS,
                    blocks_per_chunk=grid.blocks_per_chunk(group),
                    rank=rank,
                )
                for group in range(len(grid.groups))
                for piece, rank in enumerate(ranks)
            ]

        # What computing gives depends on the weights.
        self.weights = 0
        layers = {f"layer.{i}": i for i in range(LAYERS)}
        self.worker = worker.Worker(open_pools, ranks, layers, names_blocks=len(grid.groups) == 1, stores=stores)

    def page(self, layer: int, block: int) -> memoryview:
        start = (layer * BLOCKS + block) * self.page_bytes
        return memoryview(self.memory).cast("B")[start : start + self.page_bytes]

    def expected(self, request: Request, layer: int, index: int, group: int = 0) -> bytes:
        end = (index + 1) * self.grid.groups[group].block_tokens
        known = [repr((self.weights, rank, group, layer, request.tokens[:end])).encode() for rank in self.ranks]
        return b"".join(hashlib.shake_128(of_rank).digest(PAGE_BYTES) for of_rank in known)

    def compute(self, request: Request, first_token: int, end_token: int) -> None:
        for number, (group, table) in enumerate(zip(self.grid.groups, request.tables)):
            for index in range(first_token // group.block_tokens, -(-end_token // group.block_tokens)):
                for layer in range(LAYERS if table[index] else 0):
                    self.page(layer, table[index])[:] = self.expected(request, layer, index, number)


class Engine:
    """A scheduler's side and its workers', over one cache."""

    def __init__(
        self,
        cache: kvkeep.Cache,
        *,
        groups: tuple[plan.Group, ...] = (plan.Group(BLOCK_TOKENS),),
        workers: int = 1,
        replicas: int = 1,
        heads: int = 1,
        model: str = "toy",
        **extra: Any,
    ) -> None:
        self.grid = plan.grid(groups, BLOCK_TOKENS, 2 * BLOCK_TOKENS, workers, replicas, heads)

        def open_space(generation: int) -> kvkeep.Space:
            return cache.space(model, "toy pages", chunk_tokens=self.grid.chunk_tokens, generation=generation)

        given = settings.settings({"connect": "unix:///not/used", **extra})
        self.requests: dict[str, Request] = {}
        # Block 0 is nobody's.
        self.free = list(range(1, BLOCKS))
        # How many requests and stores have a block.
        self.users: Counter[int] = Counter()
        lending = Lending(workers, self.users.update, self.give_back)
        self.scheduler = scheduler.Scheduler(open_space, self.grid, given, lending=lending, events=Events(self.grid))
        self.gpus = [
            Gpu(open_space, self.grid, range(i // replicas * heads, (i // replicas + 1) * heads), i % replicas == 0)
            for i in range(workers)
        ]
        self.failed: set[int] = set()
        self.failed_requests: set[str] = set()
        self.received: set[str] = set()
        self.sent: set[str] = set()

    def take(self) -> int:
        """A block that nobody has."""
        block = self.free.pop(0)
        self.users[block] = 1
        return block

    def give_back(self, blocks: list[int]) -> None:
        """Of each, one has it no more."""
        self.users.subtract(blocks)
        self.free += [block for block in blocks if not self.users[block]]

    def add(self, name: str, tokens: list[int], adapter: Optional[Any] = None) -> Request:
        request = self.requests[name] = Request(name, tokens, lora_request=adapter)
        return request

    def change_weights(self) -> None:
        """New weights in the memory of the old ones, and the cache reset as vLLM does it."""
        for gpu in self.gpus:
            gpu.weights += 1
        self.scheduler.reset()

    def ask(self, request: Request, computed: int = 0) -> tuple[int, bool]:
        """Asks as often as the scheduler wants to be asked."""
        while True:
            found, beside = self.scheduler.matched(request, computed)
            if found is not None:
                return found, beside

    def allocate(self, request: Request, external: int, computed: int = 0) -> None:
        request.tables = request.tables or [[] for _ in self.grid.groups]
        for group, table in zip(self.grid.groups, request.tables):
            if not table and group.reach:
                # What no layer will read any more has no block.
                table += [0] * (max(0, computed + external - group.reach) // group.block_tokens)
            while len(table) * group.block_tokens < request.num_tokens:
                table.append(self.take())
        self.scheduler.allocated(request, request.tables, external)
        request.num_computed_tokens = computed + external

    def step(self, scheduled: Optional[dict[str, int]] = None, preempted: tuple[str, ...] = ()) -> None:
        """One step of all; without requests, one that only moves."""
        scheduled = scheduled or {}
        for name in scheduled:
            self.slide(self.requests[name])
        offers = {name: self.offers(name, count) for name, count in scheduled.items()}
        step = self.scheduler.step(scheduled, self.tables, preempted, offers)
        received, sent = [], []
        failed: set[int] = set()
        stored: Counter[int] = Counter()
        for gpu in self.gpus:
            gpu.worker.settle(step)
            gpu.worker.begin_loads(step)
            for layer in range(LAYERS):
                gpu.worker.wait_layer(f"layer.{layer}")
            for name, count in scheduled.items():
                request = self.requests[name]
                gpu.compute(request, request.num_computed_tokens, request.num_computed_tokens + count)
            gpu.worker.begin_stores(step)
            done = gpu.worker.over()
            sent.append(done[0])
            received.append(done[1])
            failed |= gpu.worker.failed_blocks()
            stored.update(gpu.worker.stored())
        self._tell(failed, received, sent, stored)
        for name, count in scheduled.items():
            self.requests[name].num_computed_tokens += count

    def tables(self, name: str) -> list[list[int]]:
        return self.requests[name].tables

    def offers(self, name: str, count: int) -> list[plan.Offer]:
        """The blocks of states that a step of so many tokens writes where blocks end."""
        request = self.requests[name]
        computed = request.num_computed_tokens
        return [
            plan.Offer(number, block, (index + 1) * group.block_tokens)
            for number, group in enumerate(self.grid.groups)
            if group.named
            for index, block in enumerate(request.tables[number])
            if computed < (index + 1) * group.block_tokens <= computed + count
        ]

    def slide(self, request: Request) -> None:
        """Frees what no layer will read any more."""
        for group, table in zip(self.grid.groups, request.tables):
            if group.reach:
                for index in range(max(0, request.num_computed_tokens - group.reach) // group.block_tokens):
                    if table[index]:
                        self.give_back([table[index]])
                        table[index] = 0

    def _tell(
        self, failed: set[int], received: list[set[str]], sent: list[set[str]], stored: Counter[int]
    ) -> None:
        # vLLM tells what all workers have said; here they are waited for, so that one step's answers are whole.
        for gpu, mine in zip(self.gpus, received):
            while mine != set.union(*received):
                mine |= gpu.worker.over()[1]
                failed |= gpu.worker.failed_blocks()
        for gpu, mine in zip(self.gpus, sent):
            while mine != set.union(*sent):
                mine |= gpu.worker.over()[0]
        for gpu in self.gpus:
            stored.update(gpu.worker.stored())
            self.failed_requests |= gpu.worker.failed_requests()
        self.failed |= failed
        self.received |= received[0]
        self.sent |= sent[0]
        self.scheduler.told(failed, received[0], sent[0], failed=self.failed_requests, stored=stored)

    def load(self, request: Request, external: int, computed: int = 0) -> None:
        """Takes what was offered and steps until it is there."""
        self.allocate(request, external, computed)
        while request.request_id not in self.received:
            self.step()
        self.received.discard(request.request_id)

    def finish(self, request: Request) -> None:
        """Ends a request and steps until its blocks are free."""
        held = self.scheduler.finished(request)
        while held and request.request_id not in self.sent:
            self.step()
        # Another request may have the name later.
        self.sent.discard(request.request_id)
        self.give_back([block for table in request.tables for block in table if block])

    def run(self, name: str, tokens: list[int], adapter: Optional[Any] = None) -> tuple[Request, int]:
        """A request from its arrival until its prompt is computed; and how much of it was loaded."""
        request = self.add(name, tokens, adapter)
        found, beside = self.ask(request)
        if beside:
            self.load(request, found)
            request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)
        else:
            self.allocate(request, found)
        self.step({name: request.num_tokens - request.num_computed_tokens})
        return request, found

    def right(self, request: Request) -> bool:
        """Whether every page of every worker that is read any more is what computing it gives."""
        return all(
            bytes(gpu.page(layer, block)) == gpu.expected(request, layer, index, group)
            for gpu in self.gpus
            for layer in range(LAYERS)
            for group, table in enumerate(request.tables)
            for index, block in enumerate(table)
            if block
        )
