"""One request as the scheduler's side follows it: its session, what it asked for, what it loads, what is stored of it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Optional

from .._quietly import quietly
from ..job import Job
from ..key import Keys
from ..session import Session
from .hints import hints_of
from .plan import Span


class Lookup:
    """A prefetch of the chunks of `span`; its keys are chunk-major."""

    def __init__(self, session: Session, job: Job, span: Span, keys: Keys, extra_count: int) -> None:
        self.span = span
        # Chunks found, once asked and known.
        self.found: Optional[int] = None
        self._session = session
        self._job = job
        self._keys = keys
        self._extra_count = extra_count

    def hits(self, *, loaded: bool) -> Optional[int]:
        """Chunks found, as soon as that is known, or once they are `loaded`; None until then."""
        if self.found is not None:
            return self.found
        if loaded:
            result = self._job.query()
            self.found = None if result is None else result.hit_chunks
        else:
            self.found = self._job.lookup_hits()
        return self.found

    def close(self, kept: Optional[Span] = None) -> None:
        """Forgets the prefetch and returns the shares of what it found outside `kept`, for all workers."""
        # What is not done yet is cancelled by this, and returns its shares itself.
        quietly(self._job.release)
        first, end = self.span
        if self.found is not None:
            end = first + self.found
        kept = kept or Span(end, end)
        for part in (Span(first, min(kept.first, end)), Span(max(kept.end, first), end)):
            if part.chunks > 0:
                quietly(self._session.finish_read, self._keys_of(part), self._extra_count)

    def _keys_of(self, part: Span) -> Keys:
        per_chunk = len(self._keys) // self.span.chunks
        return self._keys[(part.first - self.span.first) * per_chunk : (part.end - self.span.first) * per_chunk]


class Load(NamedTuple):
    """A load that the workers have begun, and the prefetch behind it."""

    lookup: Lookup
    kept: Span


class Tracked:
    """A request between its arrival and its end."""

    def __init__(self, request: Any, revision: Optional[bytes] = b"") -> None:
        self.request = request
        # Which weights its adapter has; None: not known, so that nothing is loaded or stored.
        self.revision = revision
        # Whether its blocks are of weights that the cache was reset for: it stores nothing until it is computed anew.
        self.is_outdated = False
        self.hints = hints_of(request)
        self.session: Optional[Session] = None
        # When its session was renewed last.
        self.renewed = time.monotonic()
        self.lookup: Optional[Lookup] = None
        # How many tokens vLLM had itself when it asked last.
        self.computed = 0
        self.load: Optional[Load] = None
        # The chunk of each block that was loaded last, where blocks tell which request they are of.
        self.chunk_of: dict[int, int] = {}
        # The first of the chunks loaded that were not what they should be.
        self.failed_chunk: Optional[int] = None
        # Whether it is not to be asked for any more: it did not go well once.
        self.computes_itself = False
        # Chunks from the first on that are stored, or were loaded.
        self.stored = 0
        # Whether the workers were told to store something.
        self.has_stores = False
        # Whether what was found for it is counted.
        self.is_counted = False
        # Whether it used the cache at all.
        self.used = False

    def may_store(self) -> bool:
        """Whether its blocks are of weights that are known, and in use."""
        return not self.is_outdated and self.revision is not None

    def renew(self, now: float, every: float) -> None:
        """Keeps its session alive, where that was not done for `every` seconds."""
        if self.session and now - self.renewed >= every:
            self.renewed = now
            quietly(self.session.renew)

    def drop_lookup(self) -> None:
        """Gives back all that the prefetch holds or is about to."""
        if lookup := self.lookup:
            self.lookup = None
            lookup.close()

    def load_is_over(self) -> None:
        """After the last worker: what was found and not retrieved is given back."""
        self.chunk_of = {}
        if load := self.load:
            self.load = None
            load.lookup.close(load.kept)
            if self.failed_chunk is not None:
                self.computes_itself = True

    def note_failed(self, blocks: set[int]) -> None:
        """Blocks, of whichever request, that could not be loaded."""
        if hit := [self.chunk_of[block] for block in blocks if block in self.chunk_of]:
            self.failed_chunk = min(hit) if self.failed_chunk is None else min(*hit, self.failed_chunk)
            self.stored = min(self.stored, self.failed_chunk)
            # One that a step waits for is over with this; one beside the steps, when the last worker says so.
            self.computes_itself |= self.load is None

    def note_failure(self) -> None:
        """Something of what it loads could not be had, and the engine computes all of it."""
        self.failed_chunk = self.stored = 0

    def reset(self) -> None:
        """Nothing that it has computed or loaded so far counts."""
        self.drop_lookup()
        self.abort()
        self.is_outdated, self.stored, self.chunk_of, self.failed_chunk = True, 0, {}, None

    def end(self) -> None:
        """Returns what is left. What was used counts as used now."""
        if session := self.session:
            self.session = None
            quietly(session.end if self.used else session.abort)

    def abort(self) -> None:
        """Returns what is left and cancels what is on its way."""
        if session := self.session:
            self.session = None
            quietly(session.abort)
