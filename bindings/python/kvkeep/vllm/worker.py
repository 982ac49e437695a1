"""A worker's side: moves what it is told to, and says what is over and what failed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Callable, NamedTuple, Optional

from .._ffi import Notify, Status
from .._quietly import quietly
from ..errors import DisconnectedError, KvkeepError, NotFoundError
from ..key import keys as as_keys
from ..pool import Pool, Transfer
from .plan import Part, key_records
from .step import Move, Step
from .trouble import Trouble


_PAST = {"load": "loaded", "store": "stored"}


class Moving(NamedTuple):
    """The transfers of a move: one for each of its parts and each rank whose objects the worker has."""

    move: Move
    parts: list[Part]
    transfers: list[Transfer]

    def done(self) -> bool:
        """Whether no page is touched any more."""
        return all(map(_is_over, self.transfers))

    def release(self) -> None:
        """Forgets it."""
        for transfer in self.transfers:
            quietly(transfer.release)

    def wait(self) -> None:
        """Blocks until it is done, however it ends."""
        for transfer in self.transfers:
            quietly(transfer.wait)

    def wait_layer(self, layer: int, stream: int) -> None:
        """Has the stream wait until a layer is done, or will not be, which `failed` tells."""
        for transfer in self.transfers:
            quietly(transfer.stream_wait_layer, layer, stream)

    def failed(self) -> set[int]:
        """The blocks that are not as they should be, once it is done; all of a part, if that cannot be known any more."""
        failed = set()
        for part, transfer in zip(self.parts, self.transfers):
            try:
                statuses = transfer.blocks() or ()
            except KvkeepError:
                failed |= _blocks(part)
            else:
                failed |= {block for block, status in zip(part.blocks, statuses) if status != Status.OK}
        return failed

    def all_blocks(self) -> set[int]:
        """The blocks that it is of."""
        return _all_blocks(self.move)


def _is_over(transfer: Transfer) -> bool:
    """Whether it touches no page any more. One that nobody asked about for long is forgotten by then."""
    try:
        return transfer.done()
    except NotFoundError:
        return True


def _blocks(part: Part) -> set[int]:
    return {block for block in part.blocks if block >= 0}


def _all_blocks(move: Move) -> set[int]:
    return set().union(*map(_blocks, move.parts))


class Worker:
    """The transfers of one worker. Each step calls, in this order: `settle`, `begin_loads`, while the model runs
    `wait_layer`, then `begin_stores`, `over` and `failed_blocks`; before a draft model runs, `begin_stores` comes last."""

    def __init__(
        self,
        open_pools: Callable[[int], list[Pool]],
        ranks: Sequence[int],
        layers: Mapping[str, int],
        *,
        names_blocks: bool = True,
        stores: bool = True,
        steps_ahead: int = 1,
        stream: Callable[[], int] = lambda: 0,
        generation: int = 0,
    ) -> None:
        self._open_pools = open_pools
        self._generation = generation
        # For each group, a pool for each rank; none where they are not open.
        self._pools: list[Pool] = []
        # Pools of former generations whose transfers are not all over.
        self._retired: list[Pool] = []
        # Loads of a former generation: their blocks are not as they should be, however they end.
        self._outdated: set[str] = set()
        # Whether a load that failed is told by its blocks; else by its request.
        self._names_blocks = names_blocks
        self._ranks = ranks
        self._layers = layers
        self._stores_here = stores
        self._stream = stream
        self._loads: dict[str, Moving] = {}
        self._layered: list[Moving] = []
        self._stores: dict[str, list[Moving]] = {}
        self._held: set[str] = set()
        self._received: set[str] = set()
        self._failed: set[int] = set()
        self._failed_requests: set[str] = set()
        self._stored: set[int] = set()
        self._counts: Counter[str] = Counter()
        # Steps that are scheduled before the answer to one is known: what they compute may come from what failed in it.
        self._steps_ahead = steps_ahead
        self._distrusted_steps = 0
        self._trouble = Trouble()
        try:
            self._pools = open_pools(generation)
        except DisconnectedError:
            # Tried again by the first step that needs them.
            pass

    def settle(self, step: Step) -> None:
        """Before the step writes any block: waits for the stores of blocks that are about to be used anew."""
        self._turn_to(step.generation)
        for name in step.preempted:
            for moving in self._stores.pop(name, ()):
                moving.wait()
                self._is_stored(moving.move)
                moving.release()

    def begin_loads(self, step: Step) -> None:
        """Begins the loads."""
        self._turn_to(step.generation)
        for move in step.loads:
            if moving := self._load(move):
                self._loads[move.request] = moving
            else:
                self._lose(move.request, _all_blocks(move))
                self._received.add(move.request)
        for move in step.layered:
            if moving := self._load(move):
                self._layered.append(moving)
            else:
                self._fail(_all_blocks(move))

    def wait_layer(self, name: str) -> None:
        """Before a layer reads its pages: waits until those that this step loads are there."""
        for moving in self._layered if name in self._layers else ():
            moving.wait_layer(self._layers[name], self._stream())

    def begin_stores(self, step: Step) -> None:
        """When the model has run: begins the stores."""
        self._finish_layered()
        self._held |= step.held
        begins = self._stores_here and not self._distrusted_steps
        self._distrusted_steps = max(0, self._distrusted_steps - 1)
        for move in step.stores:
            if begins and (stored := self._begin(Pool.store, move)):
                self._stores.setdefault(move.request, []).append(stored)
            else:
                self._is_stored(move)

    def over(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks need not be kept any more, and requests that are loaded; each once."""
        self._finish_layered()
        for name, moving in list(self._loads.items()):
            if moving.done():
                self._lose(name, moving.all_blocks() if name in self._outdated else moving.failed())
                self._outdated.discard(name)
                self._count("load", moving)
                moving.release()
                del self._loads[name]
                self._received.add(name)
        for name, all_of_it in list(self._stores.items()):
            left = [moving for moving in all_of_it if not self._drop_if_done(moving)]
            if left:
                self._stores[name] = left
            else:
                del self._stores[name]
        self._close_retired()
        sent = {name for name in self._held if name not in self._stores}
        self._held -= sent
        received, self._received = self._received, set()
        return sent, received

    def failed_blocks(self) -> set[int]:
        """Blocks that could not be loaded, each once."""
        self._finish_layered()
        failed, self._failed = self._failed, set()
        return failed

    def failed_requests(self) -> set[str]:
        """Requests that could not be loaded as they should, each once, and not later than they are over."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def stored(self) -> set[int]:
        """Numbers of stores that need their blocks no more, each once."""
        stored, self._stored = self._stored, set()
        return stored

    def counts(self) -> dict[str, int]:
        """What was counted since it was asked last, by the names in `metrics`."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    def close(self) -> None:
        """Lets stores finish, cancels loads, and waits until no page is touched any more."""
        for all_of_it in self._stores.values():
            for moving in all_of_it:
                moving.wait()
        self.suspend()

    def suspend(self) -> None:
        """Cancels what is under way, waits until no page is touched any more, and lets go of the pages until they are used next."""
        for pool in (*self._retired, *self._pools):
            quietly(pool.close)
        self._retired, self._pools = [], []

    def _turn_to(self, generation: int) -> None:
        """The cache was reset: what is under way is a former generation's."""
        if generation != self._generation:
            self._generation = generation
            self._outdated |= set(self._loads)
            self._retired += self._pools
            self._pools = []

    def _close_retired(self) -> None:
        if self._retired:
            stores = (moving for all_of_it in self._stores.values() for moving in all_of_it)
            moving = (*self._loads.values(), *self._layered, *stores)
            used = {transfer.pool.id for one in moving for transfer in one.transfers}
            for pool in [pool for pool in self._retired if pool.id not in used]:
                quietly(pool.close)
                self._retired.remove(pool)

    def _load(self, move: Move) -> Optional[Moving]:
        return self._begin(Pool.load, move, return_shares=True)

    def _begin(self, submit: Callable[..., Transfer], move: Move, **options: bool) -> Optional[Moving]:
        moving = Moving(move, [], [])
        try:
            if not self._pools:
                self._pools = self._open_pools(self._generation)
            for part, (place, rank) in itertools.product(move.parts, enumerate(self._ranks)):
                pool = self._pools[part.group * len(self._ranks) + place]
                keys, session = as_keys(key_records(part.hashes, (rank,), (part.group,))), pool.cache.session(move.session)
                told = {"stream": self._stream(), "notify": Notify.POLL, **options}
                moving.transfers.append(submit(pool, session, keys, part.blocks, **told))
                moving.parts.append(part)
        except KvkeepError as error:
            moving.release()
            # A request that was aborted meanwhile has no session any more.
            if not isinstance(error, NotFoundError):
                self._trouble.say(error, "kvkeep cannot move pages of %s", move.request)
            return None
        self._trouble.over()
        return moving

    def _finish_layered(self) -> None:
        """When the model has run: says how the loads went that it waited for."""
        for moving in self._layered:
            moving.wait()
            self._fail(moving.failed())
            self._count("load", moving)
            moving.release()
        self._layered.clear()

    def _fail(self, blocks: Iterable[int]) -> None:
        """Blocks that the step in progress has read, or is about to."""
        if blocks := set(blocks):
            self._counts["lost_loads"] += 1
            self._failed |= blocks
            self._distrusted_steps = self._steps_ahead

    def _count(self, kind: str, moving: Moving) -> None:
        self._counts[f"{kind}s"] += 1
        for transfer in moving.transfers:
            try:
                result = transfer.query()
            except KvkeepError:
                # Its daemon has ended.
                continue
            if result:
                self._counts[f"{_PAST[kind]}_bytes"] += result.copied_bytes
                self._counts[f"{kind}_us"] += result.total_us

    def _lose(self, name: str, blocks: set[int]) -> None:
        """Blocks of a load beside the steps that are not as they should be."""
        self._counts["lost_loads"] += bool(blocks)
        if self._names_blocks:
            self._failed |= blocks
        elif blocks:
            self._failed_requests.add(name)

    def _is_stored(self, move: Move) -> None:
        """No page of a store is read any more, or none will be."""
        if move.number:
            self._stored.add(move.number)

    def _drop_if_done(self, moving: Moving) -> bool:
        if moving.done():
            self._is_stored(moving.move)
            self._count("store", moving)
            moving.release()
            return True
        return False
