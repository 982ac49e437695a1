"""Stores, loads and looks up SGLang's pages, without SGLang's own types."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple, Optional, Protocol

from .._asking import answer
from .._ffi import PrefetchMode, Status
from .._quietly import quietly
from .._trouble import Troubles
from ..cache import Cache
from ..errors import InvalidError, KvkeepError, TimedOutError
from ..job import Job
from ..key import Keys
from ..key import keys as as_keys
from ..pages import Segment
from ..pool import Pool, Transfer
from ..session import Session
from ..space import Space
from .host_pool import HostPages, Indices
from .settings import Settings

# Under SGLang's own name, so that its logging settings hold.
log = logging.getLogger("sglang.kvkeep")

KV = "kv"
# How long a lookup holds what it found, where nobody says that it is not needed any more.
HOLD_S = 30
UNSERVED = "kvkeep does not serve %s of SGLang's pages %s"


class Place(NamedTuple):
    """Which part of the model this process has, as far as its pages depend on it."""

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    # All tensor-parallel ranks have the same bytes of what is not cut by heads.
    replicated: bool = False
    # SGLang's option, where it is given: pools say "uint8" of more than one type.
    kv_dtype: str = "auto"


class Window(NamedTuple):
    """A pool, and how many of the last pages of a prefix it must have; 0: all of them."""

    name: str
    pages: int


class Restorable(NamedTuple):
    """Prefix lengths in pages that every pool can continue at, ascending; and what each pool has by itself."""

    lengths: list[int]
    by_pool: dict[str, int]


class Pages(Protocol):
    """The pages of one of SGLang's pools."""

    segments: list[Segment]
    count: int
    device: int

    def blocks(self, indices: Any) -> list[int]:
        """The numbers of the pages that SGLang names by the indices of their tokens."""

    def described(self) -> str:
        """Says which bytes an object has, in which order."""


class Held(NamedTuple):
    """A pool of SGLang's, as kvkeep has it."""

    pages: Pages
    space: Space
    pool: Pool
    rank: int
    # Of ranks with the same bytes, one stores them.
    writes: bool


class Store:
    """The pages of one SGLang process. Any thread may use it."""

    def __init__(self, cache: Cache, chosen: Settings, model: str, place: Place, lookup_ms: int) -> None:
        self._cache = cache
        self._settings = chosen
        self._model = chosen.model or model
        if not self._model:
            raise InvalidError('SGLang does not name the model: name the weights in "model"')
        self._place = place
        self._lookup_ms = chosen.lookup_ms or lookup_ms
        self.held: dict[str, Held] = {}
        self._troubles = Troubles(log)

    def register(self, name: str, pages: Pages, replicated: bool) -> None:
        """Opens a pool of SGLang's under its name; twice, it is the later one. `replicated`: ranks have the same bytes of it."""
        place = self._place
        parallel = f"tp {'any' if replicated else place.tp_size}, pp {place.pp_size}, cp {place.cp_size}, kv {place.kv_dtype}"
        space = self._cache.space(
            self._model,
            f"sglang {name}: {pages.described()}, {parallel}",
            self._settings.tenant,
            generation=self._settings.generation,
        )
        rank = place.pp_rank * place.cp_size + place.cp_rank
        if not replicated:
            rank = rank * place.tp_size + place.tp_rank
        pool = space.pool(pages.segments, block_count=pages.count, rank=rank, device=pages.device)
        former = self.held.get(name)
        self.held[name] = Held(pages, space, pool, rank, not replicated or place.tp_rank == 0)
        if former is not None:
            former.pool.close()

    def register_host(self, name: str, host_pool: Any, indices: Indices) -> None:
        """Opens a pool of host memory. In a model whose ranks have the same K and V, states are still each rank's own."""
        own = name == "mamba" or is_cut_by_heads(host_pool)
        self.register(name, HostPages(host_pool, indices), self._place.replicated and not own)

    def has(self, name: str) -> bool:
        """Whether a pool of that name is registered."""
        return name in self.held

    def begin_load(self, name: str, keys: Sequence[str], indices: Any) -> tuple[Session, Transfer]:
        """Begins to load pages, in a session that the caller ends. Raises what keeps it from that."""
        held = self._of(name)
        session = held.space.session("sglang load")
        try:
            return session, held.pool.load(session, named(keys, held.rank), held.pages.blocks(indices))
        except BaseException:
            session.abort()
            raise

    def get(self, name: str, keys: Sequence[str], indices: Any) -> list[bool]:
        """Loads pages; which of them are there now. Blocks until no page is touched any more."""
        return self._transfer("get", Pool.load, name, keys, indices)

    def set(self, name: str, keys: Sequence[str], indices: Any) -> list[bool]:
        """Stores pages; which of them are stored, now or before. Blocks until no page is read any more."""
        if name in self.held and not self.held[name].writes:
            return [True] * len(keys)
        return self._transfer("set", Pool.store, name, keys, indices)

    def prefix(self, keys: Sequence[str]) -> int:
        """How many pages of K and V are there from the first on. What is found begins to be loaded into L1."""
        return self.restorable(keys, [Window(KV, 0)]).by_pool.get(KV, 0)

    def restorable(self, keys: Sequence[str], windows: Iterable[Window]) -> Restorable:
        """At which lengths every pool can continue, and how far each reaches, within what the first one has."""
        found, holds = self.hold(keys, windows)
        for session in holds:
            quietly(session.end)
        return found

    def hold(self, keys: Sequence[str], windows: Iterable[Window]) -> tuple[Restorable, list[Session]]:
        """As `restorable`. Until the caller ends the sessions, or HOLD_S have passed, what the longest length needs is brought
        to L1 and stays there."""
        by_pool: dict[str, int] = {}
        lengths, reach = set(range(1, len(keys) + 1)), len(keys)
        holds: list[tuple[Window, Session, Held]] = []
        for asked in windows:
            if not lengths:
                break
            ask: Callable[[Job], Optional[Any]] = Job.prefix_lengths if asked.pages else Job.lookup_hits
            answered, session = self._ask(asked.name, keys[:reach], ask, asked.pages)
            mine = set(answered or ()) if asked.pages else set(range(1, (answered or 0) + 1))
            if session is not None:
                holds.append((asked, session, self.held[asked.name]))
            if not by_pool:
                reach = max(mine, default=0)
            if mine:
                by_pool[asked.name] = max(mine)
            lengths &= mine
        if longest := max(lengths, default=0):
            for (name, window), session, held in holds:
                # Its job loads what its own longest length needs.
                if window and by_pool[name] != longest:
                    needed = named(keys[max(0, longest - window) : longest], held.rank)
                    quietly(session.prefetch, needed, mode=PrefetchMode.EACH)
        return Restorable(sorted(lengths), by_pool), [session for _, session, _ in holds]

    def clear(self) -> None:
        """Forgets what this model stored, in every tier."""
        for held in self.held.values():
            held.space.forget()

    def close(self) -> None:
        """Waits until no page is touched any more. Twice is harmless."""
        for held in self.held.values():
            if not self._cache.closed:
                held.pool.close()
        self.held.clear()
        self._cache.close()

    def _transfer(
        self, verb: str, submit: Callable[..., Any], name: str, keys: Sequence[str], indices: Any
    ) -> list[bool]:
        done = [False] * len(keys)
        # A key stands once in a transfer.
        first: dict[str, int] = {}
        for place, key in enumerate(keys):
            first.setdefault(key, place)
        places = list(first.values())
        try:
            held = self._of(name)
            blocks = held.pages.blocks(indices)
            if len(blocks) != len(keys):
                raise InvalidError(f"SGLang names {len(keys)} pages, and the indices of {len(blocks)}")
            if not keys:
                return done
            with held.space.session(f"sglang {verb}") as session:
                transfer = submit(held.pool, session, named([keys[i] for i in places], held.rank), [blocks[i] for i in places])
                transfer.wait()
                for place, status in zip(places, transfer.blocks() or ()):
                    done[place] = status == Status.OK
        except KvkeepError as error:
            self._troubles.say(error, UNSERVED, verb, name)
        return done

    def _ask(
        self, name: str, keys: Sequence[str], ask: Callable[[Job], Optional[Any]], window: int
    ) -> tuple[Any, Optional[Session]]:
        """The answer of a lookup, and the session that holds what it found; None where there is none."""
        if not keys:
            return None, None
        session: Optional[Session] = None
        try:
            held = self._of(name)
            session = held.space.session("sglang lookup", HOLD_S)
            wanted = named(keys, held.rank)
            if window:
                job = session.prefetch(wanted, mode=PrefetchMode.WINDOW, window_chunks=window)
            else:
                job = session.prefetch(wanted)
            return answer(job, lambda: ask(job), in_time(self._lookup_ms)), session
        except KvkeepError as error:
            self._troubles.say(error, UNSERVED, "lookups", name)
            if session is not None:
                quietly(session.abort)
            return None, None

    def _of(self, name: str) -> Held:
        if name not in self.held:
            raise InvalidError(f"SGLang registered no pool {name!r}")
        return self.held[name]


def named(keys: Sequence[str], rank: int) -> Keys:
    """SGLang's page hashes, and whatever else it takes for names, as keys."""
    return as_keys((hashlib.sha256(key.encode()).digest(), rank, 0) for key in keys)


def in_time(most_ms: int) -> Callable[[], None]:
    """Raises when so much time has passed."""
    end = time.monotonic() + most_ms / 1000

    def check() -> None:
        if time.monotonic() > end:
            raise TimedOutError(f"a lookup was not answered in {most_ms} ms, and is taken for a miss")

    return check


def is_cut_by_heads(host_pool: Any) -> bool:
    """Whether tensor-parallel ranks have different heads of it, also in a model whose other pools are replicated (a draft)."""
    return any("MHA" in kind.__name__ for kind in type(host_pool).__mro__)
