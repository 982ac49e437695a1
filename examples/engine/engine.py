"""A toy engine with a paged KV cache, in Python with asyncio. engine.cpp and engine.go are the same engine: they find what it has stored,
and print the same lines.

    engine.py DIRECTORY            the first run: computes, stores, preempts a request and takes it up again
    engine.py DIRECTORY again      a later process, also one in another language: finds below L1 what was stored

In place of a directory it takes the URL of another backend, or the socket of a daemon, "unix:///tmp/kvkeep.sock".
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import Optional

import kvkeep

LAYERS, BLOCKS, BLOCK_TOKENS, CHUNK_BLOCKS, ENTRY_BYTES = 4, 23, 16, 4, 32
CHUNK_TOKENS = CHUNK_BLOCKS * BLOCK_TOKENS
# A real engine waits no longer than it would compute.
PATIENCE_S = 30


def states(tokens: list[int]) -> list[int]:
    """A number for each token that depends on all tokens up to it."""
    state, all_states = 2166136261, []
    for token in tokens:
        state = (state ^ token) * 16777619 & 0xFFFFFFFF
        all_states.append(state)
    return all_states


def entry(state: int, layer: int, part: int) -> bytes:
    """The K (part 0) or V (part 1) of a token in a layer."""
    return bytes((state >> 8 * (i % 4)) + layer * 29 + part * 13 + i & 255 for i in range(ENTRY_BYTES))


def sample(first_bytes: list[int]) -> int:
    """The next token, from a byte of each token's entry."""
    return sum(byte * (i + 1) for i, byte in enumerate(first_bytes)) % 32000


class Request:
    def __init__(self, name: str, prompt: list[int], left: int, aborts: bool = False) -> None:
        self.name, self.tokens, self.prompt_tokens, self.left, self.aborts = name, list(prompt), len(prompt), left, aborts
        self.session: Optional[kvkeep.Session] = None
        self.blocks: list[int] = []
        # Tokens whose entries are in the pages, those that the session knows, those that a preemption saved, and chunks that are stored.
        self.computed = self.named = self.saved = self.stored = 0
        self.said: list[str] = []


class Engine:
    def __init__(self, space: kvkeep.Space) -> None:
        size = BLOCK_TOKENS * ENTRY_BYTES
        self.pages = [[memoryview(bytearray(BLOCKS * size)).cast("B", (BLOCKS, size)) for _ in "KV"] for _ in range(LAYERS)]
        parts = (kvkeep.Part.KEY, kvkeep.Part.VALUE)
        tensors = [kvkeep.pages(page, layer=i, part=part) for i, of in enumerate(self.pages) for page, part in zip(of, parts)]
        self.space, self.pool = space, space.pool(tensors, blocks_per_chunk=CHUNK_BLOCKS)
        self.flat = [[page.cast("B") for page in of] for of in self.pages]
        self.free = list(range(BLOCKS))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    async def run(self, *requests: Request) -> None:
        """The scheduler: admits as many requests as there are blocks for, then computes a token of each, and so on."""
        self.waiting.extend(requests)
        while self.waiting or self.running:
            while self.waiting and len(self.free) >= self.needs(self.waiting[0]):
                await self.admit(self.waiting.popleft())
            for request in list(self.running):
                if request in self.running and await self.has_room(request):
                    self.compute(request)
                    request.tokens.append(sample([self.at(request, i)[0] for i in range(request.computed)]))
                    request.left -= 1
                    if request.left == 0:
                        await self.finish(request)

    def needs(self, request: Request) -> int:
        return -(-len(request.tokens) // BLOCK_TOKENS)

    async def admit(self, request: Request) -> None:
        request.blocks = [self.free.pop() for _ in range(self.needs(request))]
        self.running.append(request)
        request.session, request.computed, request.named, request.stored = None, 0, 0, 0
        try:
            await self.load(request)
        except (kvkeep.KvkeepError, asyncio.TimeoutError) as error:
            # The cache only saves work.
            print(f"{request.name} goes on without the cache: {error}", file=sys.stderr)
        # Of a prompt that is found whole, the last token is computed for what comes after it.
        request.computed = min(request.computed, len(request.tokens) - 1)
        request.said.append(f"{request.computed} cached")

    async def load(self, request: Request) -> None:
        """Looks the prompt up, and brings what is known of it into the pages."""
        request.session = session = self.space.session(request.name)
        known = request.saved or len(request.tokens)
        count = session.append_tokens(request.tokens[:known])
        keys = list(session.keys(0, count)) if count else []
        if request.saved % CHUNK_TOKENS:
            keys += session.tail_keys(request.saved % CHUNK_TOKENS)
        request.named = known
        if not keys:
            return
        job = session.prefetch(keys, deadline=PATIENCE_S, notify_lookup=True, pause_after_lookup=True)
        hits = await job.looked_up()
        # A scheduler would now decide whether to load at all: job.cancel(), if computing is quicker.
        job.resume()
        if hits == 0:
            return
        # The load joins the prefetch, and returns the shares that it took.
        load = self.pool.load(session, keys[:hits], self.blocks_of(request, hits, 0, known), return_shares=True)
        # Where time runs out, the load is cancelled, and this goes on when its copy has landed.
        await asyncio.wait_for(load, PATIENCE_S)
        statuses = load.blocks() or []
        good = next((i for i, status in enumerate(statuses) if status != kvkeep.Status.OK), len(statuses)) // CHUNK_BLOCKS
        request.computed, request.stored = min(good * CHUNK_TOKENS, known), min(good, count)
        for i, state in enumerate(states(request.tokens[: request.computed])):
            for layer in range(LAYERS):
                for part in range(2):
                    assert self.at(request, i, layer, part) == entry(state, layer, part), f"token {i} of {request.name} is wrong"

    def blocks_of(self, request: Request, count: int, first: int, tokens: int) -> list[Optional[int]]:
        """The blocks of `count` chunks from `first` on; those that `tokens` tokens do not reach are none."""
        used = -(-tokens // BLOCK_TOKENS)
        return [request.blocks[i] if i < used else None for i in range(first * CHUNK_BLOCKS, (first + count) * CHUNK_BLOCKS)]

    def at(self, request: Request, i: int, layer: Optional[int] = None, part: Optional[int] = None) -> memoryview:
        """The place of token i in a layer's K or V, or, for `sample`, in one that i chooses."""
        page = self.flat[i % LAYERS if layer is None else layer][i % 2 if part is None else part]
        start = (request.blocks[i // BLOCK_TOKENS] * BLOCK_TOKENS + i % BLOCK_TOKENS) * ENTRY_BYTES
        return page[start : start + ENTRY_BYTES]

    async def has_room(self, request: Request) -> bool:
        """Takes a block where one is needed. Without a free one, the request that was admitted last gives its blocks up."""
        while self.needs(request) > len(request.blocks):
            if self.free:
                request.blocks.append(self.free.pop())
                continue
            victim = self.running[-1]
            victim.saved = victim.computed
            await self.leave(victim, with_tail=True)
            victim.said.append("preempted")
            self.waiting.appendleft(victim)
            if victim is request:
                return False
        return True

    def compute(self, request: Request) -> None:
        """Stands for the forward pass."""
        for i, state in enumerate(states(request.tokens)):
            if i >= request.computed:
                for layer in range(LAYERS):
                    for part in range(2):
                        self.at(request, i, layer, part)[:] = entry(state, layer, part)
        request.computed = len(request.tokens)

    async def leave(self, request: Request, with_tail: bool = False) -> None:
        """Stores what is not stored yet, and frees the blocks, which are the library's until the store is done."""
        session = request.session
        try:
            if session is not None and request.aborts:
                # Nothing of it is under way. A transfer that were, would be awaited before its pages are freed.
                session.abort()
            elif session is not None:
                if request.computed > request.named:
                    session.append_tokens(request.tokens[request.named : request.computed])
                chunks, tail = divmod(request.computed, CHUNK_TOKENS)
                first = request.stored
                keys = list(session.keys(first, chunks - first)) if chunks > first else []
                if with_tail and tail:
                    keys += session.tail_keys(tail)
                if keys:
                    store = self.pool.store(session, keys, self.blocks_of(request, len(keys), first, request.computed))
                    await asyncio.wait_for(store, PATIENCE_S)
                session.end()
        except (kvkeep.KvkeepError, asyncio.TimeoutError) as error:
            print(f"{request.name} is not stored: {error}", file=sys.stderr)
        self.free += request.blocks
        request.blocks = []
        self.running.remove(request)

    async def finish(self, request: Request) -> None:
        await self.leave(request)
        expected = request.tokens[: request.prompt_tokens]
        while len(expected) < len(request.tokens):
            expected.append(sample([entry(state, i % LAYERS, i % 2)[0] for i, state in enumerate(states(expected))]))
        end = "aborted" if request.aborts else "output right" if expected == request.tokens else "OUTPUT WRONG"
        print(f"{request.name}: {request.prompt_tokens} prompt tokens, {', '.join(request.said)}, {end}")


async def main(place: str) -> None:
    if place.startswith("unix:"):
        cache = kvkeep.Cache(connect=place)
    else:
        cache = kvkeep.Cache(1 << 20, backends=[place if "://" in place else f"fs://{place}?capacity=1GiB"])
    with cache:
        engine = Engine(cache.space("toy-engine@1", "bytes layers=4 entry=32", chunk_tokens=CHUNK_TOKENS))
        a, d, e = ([i * step % 32000 for i in range(200)] for step in (7, 11, 13))
        await engine.run(Request("A", a, 8))
        # B goes on otherwise behind two chunks of A; C is found whole.
        await engine.run(Request("B", a[:128] + d[128:], 8), Request("C", a[:192], 8))
        # There are blocks for the beginning of both, not for their ends.
        await engine.run(Request("D", d[:150], 60), Request("E", e[:150], 60))
        await engine.run(Request("F", d[:150], 2, aborts=True))
        cache.flush()
        stats = cache.stats()
        assert stats.l1_shares == 0, "something is still held"
        print(f"{stats.loads} objects loaded from below")
        engine.pool.close()


if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["again"]):
    sys.exit("usage: engine.py DIRECTORY|URL|unix:///SOCKET [again]")
asyncio.run(main(sys.argv[1]))
