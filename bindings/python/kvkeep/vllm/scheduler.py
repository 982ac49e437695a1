"""The scheduler's side: answers what is there, says what to load and store, and never waits."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from .._ffi import Notify, PrefetchMode
from ..errors import KvkeepError
from ..key import Keys
from ..key import keys as as_keys
from ..session import GroupRule, Session
from ..space import Space
from .adapters import Adapters
from .events import Events, News
from .hints import PREFETCH, apply, hints_of
from .lending import Lending
from .pair import patience_of
from .plan import (
    Grid,
    Offer,
    Part,
    Span,
    chunk_hashes,
    covering,
    key_records,
    load_parts,
    offered_parts,
    session_name,
    store_parts,
)
from .request import Load, Lookup, Tracked
from .settings import Settings
from .step import Move, Step
from .trouble import Trouble, log

Tables = Sequence[Sequence[int]]

UNUSED = "kvkeep cannot be used now, and prompts are computed"
# A request may decode for long between two chunks, and a session that holds nothing ends at its deadline. Its steps renew it.
SESSION_TIMEOUT_S = 600
RENEW_S = 60.0


class Scheduler:
    """All requests that are on their way. Requests are vLLM's; of them, only numbers and block hashes are read."""

    def __init__(
        self,
        open_space: Callable[[int], Space],
        grid: Grid,
        settings: Settings,
        *,
        loads: bool = True,
        stores: bool = True,
        lending: Optional[Lending] = None,
        events: Optional[Events] = None,
    ) -> None:
        self._open_space = open_space
        self._settings = settings
        self._generation = settings.generation
        # No other engine has these. Of two, one is in use and the other forgotten, so that spaces do not become more with each reset.
        self._own_generations = [fresh_generation(), fresh_generation()]
        # Opened when it is used first: the cache may not be there yet.
        self._space: Optional[Space] = None
        self._adapters = Adapters(settings.lora_revisions)
        self._grid = grid
        self._rules = [
            GroupRule(number, PrefetchMode.WINDOW, grid.window_chunks(number))
            for number, group in enumerate(grid.groups)
            if group.reach
        ]
        # Blocks that leave a request before it ends are kept for its stores.
        self._lending = lending if any(group.reach for group in grid.groups) else None
        self._events = events
        # What happened to chunks and was not told yet.
        self._news: list[News] = []
        self._counts: Counter[str] = Counter()
        # Of several groups, vLLM does not take the blocks that a step could not load.
        self._layered = settings.load == "layered" and grid.is_plain
        self._loads, self._stores = loads, stores
        self._tracked: dict[str, Tracked] = {}
        # Finished requests whose sessions end when the workers have stored.
        self._ending: dict[str, Tracked] = {}
        self._next = Step()
        self._trouble = Trouble()

    def arrived(self, request: Any) -> None:
        """A request is there, and waits to be scheduled."""
        if any(hint.kind == PREFETCH for hint in hints_of(request)):
            self.matched(request, 0)

    def matched(self, request: Any, computed: int) -> tuple[Optional[int], bool]:
        """How many tokens beyond `computed` can be loaded, and whether beside the steps; None: ask again."""
        tracked = self._of(request)
        tracked.computed = computed
        if not tracked.load:
            # It waits to be scheduled, so all that it has is what vLLM's own cache has now.
            tracked.is_outdated = False
        if computed and self._adapters.is_retrained(request.lora_request):
            # These blocks may be of the adapter's former weights, and whatever follows them would be.
            tracked.is_outdated = True
        if not self._loads or tracked.computes_itself or tracked.load or tracked.is_outdated or tracked.revision is None:
            return 0, False
        if tracked.lookup and computed < tracked.lookup.span.first * self._grid.chunk_tokens:
            tracked.drop_lookup()
        try:
            if tracked.lookup is None:
                self._look_up(tracked)
            if tracked.lookup is None:
                return 0, False
            hits = tracked.lookup.hits(loaded=self._layered)
        except KvkeepError as error:
            self._trouble.say(error, UNUSED)
            tracked.drop_lookup()
            tracked.computes_itself = True
            return 0, False
        if hits is None:
            return None, False
        end = (tracked.lookup.span.first + hits) * self._grid.chunk_tokens
        if self._layered:
            # A step must compute at least one token; one beside the steps is taken back by vLLM itself.
            end = min(end, request.num_tokens - 1)
        found = max(0, end - computed)
        if not tracked.is_counted:
            tracked.is_counted = True
            self._counts.update(asked_tokens=request.num_tokens - computed, found_tokens=found)
        return found, found > 0 and not self._layered

    def allocated(self, request: Any, tables: Tables, external: int) -> None:
        """vLLM takes `external` of the tokens offered, into these blocks; the rest is given back."""
        tracked = self._of(request)
        lookup, session = tracked.lookup, tracked.session
        if lookup is None or session is None or external <= 0:
            tracked.drop_lookup()
            return
        tracked.lookup = None
        first, end = tracked.computed, tracked.computed + external
        span = covering(first, end, self._grid)
        hashes = self._hashes(tracked, span)
        parts = load_parts(tables, hashes, first, end, self._grid)
        move = Move(request.request_id, session.id, parts)
        tracked.stored, tracked.used, tracked.failed_chunk = max(tracked.stored, span.end), True, None
        if self._grid.is_plain:
            per_chunk, blocks = self._grid.blocks_per_chunk(0), [block for part in parts for block in part.blocks]
            tracked.chunk_of = {
                block: span.first + index // per_chunk for index, block in enumerate(blocks) if block >= 0
            }
        if self._layered:
            # All is in L1 already, and the step that loads it is this one.
            lookup.close(span)
            self._next.layered.append(move)
            return
        tracked.load = Load(lookup, span)
        self._next.loads.append(move)

    def step(
        self,
        scheduled: Mapping[str, int],
        tables_of: Callable[[str], Tables],
        preempted: Iterable[str] = (),
        offers: Mapping[str, Iterable[Offer]] = {},
    ) -> Step:
        """What the workers have to do in a step that computes so many tokens of these requests, where the engine has a table of
        blocks for each group, and offers blocks that it names."""
        step, self._next = self._next, Step()
        step.generation = self._generation
        now = time.monotonic()
        for alive in (*self._tracked.values(), *self._ending.values()):
            alive.renew(now, RENEW_S)
        for name in preempted:
            step.preempted.add(name)
            if tracked := self._tracked.get(name):
                tracked.load_is_over()
        if self._stores:
            for name, count in scheduled.items():
                tracked = self._tracked.get(name)
                if tracked and tracked.may_store():
                    self._store(step, tracked, count, tables_of)
            for name, named in offers.items():
                tracked = self._tracked.get(name)
                if tracked and tracked.may_store():
                    hashes, revision = tracked.request.block_hashes, tracked.revision or b""
                    self._move(step, tracked, offered_parts(named, hashes, self._grid, revision))
        return step

    def told(
        self,
        invalid: Iterable[int] = (),
        received: Iterable[str] = (),
        sent: Iterable[str] = (),
        *,
        failed: Iterable[str] = (),
        stored: Mapping[int, int] = {},
    ) -> None:
        """What all workers have done: blocks or requests that could not be loaded, loads and held stores that are over, and of
        stores, how many workers have said that they are over."""
        for name in failed:
            if losing := self._tracked.get(name):
                losing.note_failure()
        if self._lending:
            self._lending.take_back(stored)
        if invalid := set(invalid):
            for tracked in self._tracked.values():
                tracked.note_failed(invalid)
        for name in received:
            if found := self._tracked.get(name):
                found.load_is_over()
        for name in sent:
            if ending := self._ending.pop(name, None):
                self._end(ending)

    def counts(self) -> dict[str, int]:
        """What was counted since it was asked last, by the names in `metrics`."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    def news(self) -> list[News]:
        """What became of the chunks that were stored here, since it was asked last."""
        news, self._news = self._news, []
        if self._events and self._space:
            try:
                news += self._events.read(self._space.cache, self._space.id)
            except KvkeepError as error:
                self._trouble.say(error, UNUSED)
        return news

    def finished(self, request: Any) -> bool:
        """The request is over, however it ended. Whether its blocks must be kept until it is among the sent ones."""
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return False
        if tracked.load:
            # Its blocks are kept until the load is over, which this hastens.
            tracked.abort()
            return False
        tracked.drop_lookup()
        if tracked.has_stores:
            self._next.held.add(request.request_id)
            self._ending[request.request_id] = tracked
            return True
        self._end(tracked)
        return False

    def reset(self) -> None:
        """The weights have changed, or may have: nothing stored before is found, and nothing computed before is stored.

        From here on it is another generation of the space, which no other engine has. Sessions are aborted, so that what the
        workers still store or load with them is dropped.
        """
        for tracked in (*self._tracked.values(), *self._ending.values()):
            tracked.reset()
        former, self._space = self._space, None
        try:
            if self._settings.reset == "all" or self._generation != self._settings.generation:
                (former or self._open_space(self._generation)).forget()
        except KvkeepError as error:
            log.warning("kvkeep is not reset for other engines, but this one begins anew: %s", error)
            self._own_generations = [fresh_generation(), fresh_generation()]
        if self._events:
            self._news += self._events.forget()
        self._own_generations.reverse()
        self._generation = self._own_generations[0]
        self._adapters.reset()

    def close(self) -> None:
        """Returns what all requests hold; what the workers still store is kept."""
        for tracked in (*self._tracked.values(), *self._ending.values()):
            tracked.end()
        self._tracked.clear()
        self._ending.clear()

    def _of(self, request: Any) -> Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            revision = self._adapters.revision(request.lora_request)
            tracked = self._tracked[request.request_id] = Tracked(request, revision)
        return tracked

    def _end(self, tracked: Tracked) -> None:
        """Gives back what a request holds. Its prompt's chunks are stored, and follow its hints."""
        tracked.end()
        span = Span(0, min(tracked.stored, tracked.request.num_prompt_tokens // self._grid.chunk_tokens) if tracked.hints else 0)
        if span.chunks and self._space:
            try:
                apply(tracked.hints, self._space, self._keys(tracked, span))
            except KvkeepError as error:
                self._trouble.say(error, "kvkeep cannot follow the hints of %s", tracked.request.request_id)

    def _keys(self, tracked: Tracked, span: Span) -> Keys:
        """The keys of chunks, for all ranks and groups."""
        return as_keys(key_records(self._hashes(tracked, span), range(self._grid.ranks), range(len(self._grid.groups))))

    def _session(self, tracked: Tracked) -> Session:
        if tracked.session is None:
            if self._space is None:
                self._space = self._open_space(self._generation)
            tracked.session = self._space.session(session_name(tracked.request.request_id), SESSION_TIMEOUT_S)
            self._trouble.over()
        return tracked.session

    def _look_up(self, tracked: Tracked) -> None:
        """Asks for the full chunks that vLLM does not have itself."""
        grid, request = self._grid, tracked.request
        end = len(request.block_hashes) // grid.hashes_per_chunk
        if self._rules:
            # The last token is computed in any case, and needs what lies before it: a window's pages, or a state without it.
            end = min(end, (request.num_tokens - 1) // grid.chunk_tokens)
        span = Span(tracked.computed // grid.chunk_tokens, end)
        if span.chunks <= 0:
            return
        keys = self._keys(tracked, span)
        session = self._session(tracked)
        job = session.prefetch(
            keys,
            extra_count=grid.extra_count,
            objects_per_chunk=grid.objects_per_chunk,
            group_rules=self._rules,
            lookup_timeout=patience_of(request, self._settings.lookup_timeout_ms) / 1000,
            notify=Notify.POLL,
        )
        tracked.lookup = Lookup(session, job, span, keys, grid.extra_count)

    def _store(self, step: Step, tracked: Tracked, count: int, tables_of: Callable[[str], Tables]) -> None:
        """Has the chunks stored that are whole after this step and were not before."""
        grid, request = self._grid, tracked.request
        # A token scheduled ahead of the one before it is not known yet, nor is its block's hash.
        known = min(request.num_computed_tokens + count, request.num_tokens)
        whole = known // grid.chunk_tokens
        if whole <= tracked.stored:
            return
        whole = min(whole, len(request.block_hashes) // grid.hashes_per_chunk)
        span = Span(tracked.stored, whole)
        if span.chunks <= 0:
            return
        tracked.stored = whole
        hashes = self._hashes(tracked, span)
        if self._events:
            self._events.note(request, span, hashes)
        self._move(step, tracked, store_parts(tables_of(request.request_id), hashes, span, grid))

    def _move(self, step: Step, tracked: Tracked, parts: list[Part]) -> None:
        """Has blocks of a request stored."""
        if not parts:
            return
        try:
            session = self._session(tracked)
        except KvkeepError as error:
            self._trouble.say(error, UNUSED)
            return
        tracked.has_stores = tracked.used = True
        number = self._lending.lend(parts) if self._lending else 0
        step.stores.append(Move(tracked.request.request_id, session.id, parts, number))

    def _hashes(self, tracked: Tracked, span: Span) -> bytes:
        hashes, revision = tracked.request.block_hashes, tracked.revision or b""
        return chunk_hashes(hashes, span, self._grid.hashes_per_chunk, revision)


def fresh_generation() -> int:
    """One that nobody has had."""
    return secrets.randbits(64) or 1
