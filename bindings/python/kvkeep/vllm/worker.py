"""A worker's side: moves what it is told to, and says what is over and what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Callable, NamedTuple, Optional

from .._ffi import Notify, Status
from ..errors import KvkeepError, NotFoundError
from ..key import keys as as_keys
from ..pool import Pool, Transfer
from .plan import key_records
from .quietly import quietly
from .step import Move, Step
from .trouble import Trouble


class Moving(NamedTuple):
    """A transfer of these blocks."""

    transfer: Transfer
    blocks: list[int]

    def done(self) -> bool:
        """Whether no page is touched any more. One that nobody asked about for long is forgotten by then."""
        try:
            return self.transfer.done()
        except NotFoundError:
            return True

    def release(self) -> None:
        """Forgets it."""
        quietly(self.transfer.release)

    def wait(self) -> None:
        """Blocks until it is done, however it ends."""
        quietly(self.transfer.wait)

    def wait_layer(self, layer: int, stream: int) -> None:
        """Has the stream wait until a layer is done, or will not be, which `failed` tells."""
        quietly(self.transfer.stream_wait_layer, layer, stream)

    def all_blocks(self) -> set[int]:
        """The blocks that it is of."""
        return {block for block in self.blocks if block >= 0}

    def failed(self) -> set[int]:
        """The blocks that are not as they should be, once it is done; all, if that cannot be known any more."""
        try:
            statuses = self.transfer.blocks() or ()
        except KvkeepError:
            return self.all_blocks()
        return {block for block, status in zip(self.blocks, statuses) if status != Status.OK}


class Worker:
    """The transfers of one worker. Each step calls, in this order: `settle`, `begin_loads`, while the model runs
    `wait_layer`, then `begin_stores`, `over` and `failed_blocks`; before a draft model runs, `begin_stores` comes last."""

    def __init__(
        self,
        open_pool: Callable[[int], Pool],
        rank: int,
        layers: Mapping[str, int],
        *,
        stores: bool = True,
        steps_ahead: int = 1,
        stream: Callable[[], int] = lambda: 0,
        generation: int = 0,
    ) -> None:
        self._open_pool = open_pool
        self._generation = generation
        self._pool: Optional[Pool] = open_pool(generation)
        # Pools of former generations whose transfers are not all over.
        self._retired: list[Pool] = []
        # Loads of a former generation: their blocks are not as they should be, however they end.
        self._outdated: set[str] = set()
        self._rank = rank
        self._layers = layers
        self._stores_here = stores
        self._stream = stream
        self._loads: dict[str, Moving] = {}
        self._layered: list[Moving] = []
        self._stores: dict[str, list[Moving]] = {}
        self._held: set[str] = set()
        self._received: set[str] = set()
        self._failed: set[int] = set()
        # Steps that are scheduled before the answer to one is known: what they compute may come from what failed in it.
        self._steps_ahead = steps_ahead
        self._distrusted_steps = 0
        self._trouble = Trouble()

    def settle(self, step: Step) -> None:
        """Before the step writes any block: waits for the stores of blocks that are about to be used anew."""
        self._turn_to(step.generation)
        for name in step.preempted:
            for moving in self._stores.pop(name, ()):
                moving.wait()
                moving.release()

    def begin_loads(self, step: Step) -> None:
        """Begins the loads."""
        self._turn_to(step.generation)
        for move in step.loads:
            if moving := self._load(move):
                self._loads[move.request] = moving
            else:
                self._failed.update(block for block in move.blocks if block >= 0)
                self._received.add(move.request)
        for move in step.layered:
            if moving := self._load(move):
                self._layered.append(moving)
            else:
                self._fail(block for block in move.blocks if block >= 0)

    def wait_layer(self, name: str) -> None:
        """Before a layer reads its pages: waits until those that this step loads are there."""
        for moving in self._layered if name in self._layers else ():
            moving.wait_layer(self._layers[name], self._stream())

    def begin_stores(self, step: Step) -> None:
        """When the model has run: begins the stores."""
        self._finish_layered()
        self._held |= step.held
        if self._distrusted_steps:
            self._distrusted_steps -= 1
            return
        if self._stores_here:
            for move in step.stores:
                if stored := self._begin(Pool.store, move):
                    self._stores.setdefault(move.request, []).append(stored)

    def over(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks need not be kept any more, and requests that are loaded; each once."""
        self._finish_layered()
        for name, moving in list(self._loads.items()):
            if moving.done():
                self._failed |= moving.all_blocks() if name in self._outdated else moving.failed()
                self._outdated.discard(name)
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

    def close(self) -> None:
        """Lets stores finish, cancels loads, and waits until no page is touched any more."""
        for all_of_it in self._stores.values():
            for moving in all_of_it:
                moving.wait()
        self.suspend()

    def suspend(self) -> None:
        """Cancels what is under way, waits until no page is touched any more, and lets go of the pages until they are used next."""
        for pool in (*self._retired, *([self._pool] if self._pool else ())):
            quietly(pool.close)
        self._retired.clear()
        self._pool = None

    def _turn_to(self, generation: int) -> None:
        """The cache was reset: what is under way is a former generation's."""
        if generation != self._generation:
            self._generation = generation
            self._outdated |= set(self._loads)
            if self._pool:
                self._retired.append(self._pool)
                self._pool = None

    def _close_retired(self) -> None:
        if self._retired:
            stores = (moving for all_of_it in self._stores.values() for moving in all_of_it)
            used = {moving.transfer.pool.id for moving in (*self._loads.values(), *self._layered, *stores)}
            for pool in [pool for pool in self._retired if pool.id not in used]:
                quietly(pool.close)
                self._retired.remove(pool)

    def _load(self, move: Move) -> Optional[Moving]:
        return self._begin(Pool.load, move, return_shares=True)

    def _begin(self, submit: Callable[..., Transfer], move: Move, **options: bool) -> Optional[Moving]:
        keys = as_keys(key_records(move.hashes, (self._rank,)))
        try:
            if self._pool is None:
                self._pool = self._open_pool(self._generation)
            session = self._pool.cache.session(move.session)
            transfer = submit(self._pool, session, keys, move.blocks, stream=self._stream(), notify=Notify.POLL, **options)
        except NotFoundError:
            # The request was aborted meanwhile, and its session with it.
            return None
        except KvkeepError as error:
            self._trouble.say(error, "kvkeep cannot move pages of %s", move.request)
            return None
        self._trouble.over()
        return Moving(transfer, move.blocks)

    def _finish_layered(self) -> None:
        """When the model has run: says how the loads went that it waited for."""
        for moving in self._layered:
            moving.wait()
            self._fail(moving.failed())
            moving.release()
        self._layered.clear()

    def _fail(self, blocks: Iterable[int]) -> None:
        """Blocks that the step in progress has read, or is about to."""
        if blocks := set(blocks):
            self._failed |= blocks
            self._distrusted_steps = self._steps_ahead

    @staticmethod
    def _drop_if_done(moving: Moving) -> bool:
        if moving.done():
            moving.release()
            return True
        return False
