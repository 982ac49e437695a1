"""The scheduler's side: answers what is there, says what to load and store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from .._ffi import PrefetchMode
from .._quietly import quietly
from .._trouble import Troubles
from ..errors import KvkeepError, TimedOutError
from ..key import keys as as_keys
from ..session import GroupRule, Session
from ..space import Space
from .plan import Chain, Grid, Load, Step, chain_of, loads, stores
from .settings import Settings

log = logging.getLogger("tensorrt_llm.kvkeep")

# Holds shares from the answer until the workers have loaded; nothing is lost when it ends later.
SESSION_TIMEOUT_S = 600
# What a deadline may be passed by before the answer is not waited for any more.
GRACE_S = 1.0


class Offer:
    """Blocks [first, end) of a request, whose objects are in L1 and held by a session."""

    def __init__(self, session: Session, first: int, end: int) -> None:
        self.session, self.first, self.end = session, first, end


class Tracked:
    """A request from its first question on."""

    def __init__(self, salt: Optional[str]) -> None:
        self.salt = salt
        self.offer: Optional[Offer] = None
        # A session whose shares the workers return when they have loaded.
        self.loading: Optional[Session] = None
        self.forget_pages()

    def forget_pages(self) -> None:
        """Its allocation is gone: it begins anew."""
        self.chain: Optional[Chain] = None
        self.tables: list[list[int]] = []
        self.stored = 0

    def end(self) -> None:
        """Returns what it holds."""
        for session in (self.loading, self.offer.session if self.offer else None):
            if session is not None:
                quietly(session.end)
        self.loading = self.offer = None


class Scheduler:
    """All requests that are on their way. Requests and step records are TensorRT-LLM's; few of their attributes are read."""

    def __init__(self, space: Space, grid: Grid, chosen: Settings) -> None:
        self._space, self._grid, self._settings = space, grid, chosen
        self._rules = [
            GroupRule(group.number, PrefetchMode.WINDOW, group.window) for group in grid.groups if group.window
        ]
        self._tracked: dict[int, Tracked] = {}
        self._troubles = Troubles(log)

    def matched(self, request: Any, computed: int) -> tuple[int, bool]:
        """How many tokens beyond `computed` can be loaded before the model runs. What is offered is held in L1 already: the
        engine has no way to compute what could not be loaded."""
        if (former := self._tracked.pop(request.request_id, None)) is not None:
            former.end()
        if is_more_than_tokens(request):
            return 0, False
        tracked = self._tracked[request.request_id] = Tracked(request.cache_salt)
        size = self._grid.block_tokens
        tokens = request.get_tokens(0)
        # A step must compute at least one token.
        first, end = computed // size, (len(tokens) - 1) // size
        if computed % size or end <= first:
            return 0, False
        try:
            hashes = chain_of(tokens, size, tracked.salt).hashes[first:end]
            tracked.offer = self._look_up(request.request_id, hashes, first)
        except KvkeepError as error:
            self._troubles.say(error, "kvkeep cannot be used now, and prompts are computed")
        offer = tracked.offer
        return (0 if offer is None else (offer.end - offer.first) * size), False

    def cancelled(self, request: Any, start: int, end: int) -> None:
        """The engine will compute tokens [start, end) of what was offered."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.offer is None:
            return
        offer, size = tracked.offer, self._grid.block_tokens
        if start <= offer.first * size:
            offer.first = max(offer.first, -(-end // size))
        else:
            offer.end = min(offer.end, start // size)
        if offer.first >= offer.end:
            tracked.end()

    def step(self, new: Iterable[Any], cached: Iterable[Any]) -> Step:
        """What the workers have to do in a step. Of each request: tokens and pages that came since, and how far it is."""
        step = Step()
        for data in new:
            if tracked := self._tracked.get(data.request_id):
                tracked.forget_pages()
                self._go_on(tracked, data)
                self._load(step, tracked)
                self._store(step, tracked, data, is_new=True)
        for data in cached:
            if (tracked := self._tracked.get(data.request_id)) and tracked.chain:
                self._go_on(tracked, data)
                self._store(step, tracked, data, is_new=False)
        return step

    def reset(self, request: Any) -> None:
        """The request's pages are another's now. It will be a new one."""
        if tracked := self._tracked.get(request.request_id):
            tracked.forget_pages()

    def finished(self, request: Any) -> bool:
        """The request is over, however it ended. Its blocks are stored already, so that none must be kept."""
        if tracked := self._tracked.pop(request.request_id, None):
            tracked.end()
        return False

    def close(self) -> None:
        """Returns what all requests hold."""
        for tracked in self._tracked.values():
            tracked.end()
        self._tracked.clear()

    def _look_up(self, request: int, hashes: Sequence[bytes], first: int) -> Optional[Offer]:
        """Brings to L1 what can be brought in time, for every rank and group, and holds it."""
        ranks, groups = range(self._grid.ranks), self._grid.groups
        names = as_keys((one, rank, group.number) for one in hashes for rank in ranks for group in groups)
        session = self._space.session(f"trtllm {request}", SESSION_TIMEOUT_S)
        try:
            job = session.prefetch(
                names,
                objects_per_chunk=len(ranks) * len(groups),
                group_rules=self._rules,
                deadline=self._settings.wait_ms / 1000,
            )
            try:
                hits = job.wait(self._settings.wait_ms / 1000 + GRACE_S).hit_chunks
            except TimedOutError:
                hits = 0
            if hits:
                return Offer(session, first, first + hits)
        except BaseException:
            session.abort()
            raise
        session.abort()
        return None

    def _go_on(self, tracked: Tracked, data: Any) -> None:
        if tracked.chain is None:
            tracked.chain = Chain(self._grid.block_tokens, tracked.salt)
            tracked.tables = [[] for _ in self._grid.groups]
        tracked.chain.extend(data.new_tokens)
        by_group = getattr(data, "new_block_ids_by_layer_group", None) or [data.new_block_ids]
        for table, pages in zip(tracked.tables, by_group):
            table.extend(pages)

    def _load(self, step: Step, tracked: Tracked) -> None:
        offer, tracked.offer = tracked.offer, None
        if offer is None or tracked.chain is None:
            return
        if any(len(table) < offer.end for table in tracked.tables):
            # The engine takes these blocks for computed.
            raise RuntimeError(f"TensorRT-LLM gave no pages for all of {offer.end} blocks that kvkeep offered")
        tracked.loading = offer.session
        hashes, tables = tracked.chain.hashes, tracked.tables
        step.loads.append(Load(offer.session.id, loads(self._grid, hashes, tables, offer.first, offer.end)))
        # What the engine's own cache had of the prompt. Of what is loaded, windows have only what they need.
        step.stores += stores(self._grid, hashes, tables, 0, offer.first, fresh=0)
        tracked.stored = offer.end

    def _store(self, step: Step, tracked: Tracked, data: Any, is_new: bool) -> None:
        """Blocks whose last token this step computes. Where the engine counts tokens that were loaded apart, they follow later."""
        if tracked.chain is None:
            return
        size, hashes = self._grid.block_tokens, tracked.chain.hashes
        end = min((data.computed_position + data.num_scheduled_tokens) // size, len(hashes))
        if end > tracked.stored:
            fresh = 0 if is_new else data.computed_position // size
            step.stores += stores(self._grid, hashes, tracked.tables, tracked.stored, end, fresh)
            tracked.stored = end


def is_more_than_tokens(request: Any) -> bool:
    """Whether a request's blocks depend on more than its tokens and salt: they are computed, and not stored."""
    names = ("lora_task_id", "multimodal_hashes", "multimodal_embedding", "prompt_embedding_table", "mrope_rotary_cos_sin")
    return any(getattr(request, name, None) is not None for name in names)


