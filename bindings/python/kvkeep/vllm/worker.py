"""A worker's side: moves what it is told to, and says what is over and what failed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Callable, Optional

from ..errors import KvkeepError, NotFoundError
from ..key import keys as as_keys
from .pages import Pages, Transfer
from .plan import key_records
from .step import Move, Step

log = logging.getLogger("vllm.kvkeep")


class Worker:
    """The transfers of one worker. Each step calls, in this order: `settle`, `begin_loads`, while the model runs
    `wait_layer`, then `begin_stores`, `over` and `failed_blocks`."""

    def __init__(
        self,
        pages: Pages,
        layers: Mapping[str, int],
        *,
        stores: bool = True,
        steps_ahead: int = 1,
        stream: Callable[[], int] = lambda: 0,
    ) -> None:
        self._pages = pages
        self._layers = layers
        self._stores_here = stores
        self._stream = stream
        self._loads: dict[str, Transfer] = {}
        self._layered: list[Transfer] = []
        self._stores: dict[str, list[Transfer]] = {}
        self._held: set[str] = set()
        self._received: set[str] = set()
        self._failed: set[int] = set()
        # Steps that are scheduled before the answer to one is known: what they compute may come from what failed in it.
        self._steps_ahead = steps_ahead
        self._distrusted_steps = 0
        self._trouble = ""

    def settle(self, step: Step) -> None:
        """Before the step writes any block: waits for the stores of blocks that are about to be used anew."""
        for name in step.preempted:
            for transfer in self._stores.pop(name, ()):
                transfer.wait()
                transfer.release()

    def begin_loads(self, step: Step) -> None:
        """Begins the loads."""
        for move in step.loads:
            if load := self._begin(self._pages.load, move):
                self._loads[move.request] = load
            else:
                self._failed.update(block for block in move.blocks if block >= 0)
                self._received.add(move.request)
        for move in step.layered:
            if transfer := self._begin(self._pages.load, move):
                self._layered.append(transfer)
            else:
                self._fail(block for block in move.blocks if block >= 0)

    def wait_layer(self, name: str) -> None:
        """Before a layer reads its pages: waits until those that this step loads are there."""
        for transfer in self._layered:
            transfer.wait_layer(self._layers[name])

    def begin_stores(self, step: Step) -> None:
        """When the model has run: begins the stores."""
        for load in self._layered:
            load.wait()
            self._fail(load.failed_blocks())
            load.release()
        self._layered.clear()
        self._held |= step.held
        if self._distrusted_steps:
            self._distrusted_steps -= 1
            return
        if self._stores_here:
            for move in step.stores:
                if transfer := self._begin(self._pages.store, move):
                    self._stores.setdefault(move.request, []).append(transfer)

    def over(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks need not be kept any more, and requests that are loaded; each once."""
        for name, transfer in list(self._loads.items()):
            if transfer.done():
                self._failed |= transfer.failed_blocks()
                transfer.release()
                del self._loads[name]
                self._received.add(name)
        for name, transfers in list(self._stores.items()):
            left = [transfer for transfer in transfers if not self._drop_if_done(transfer)]
            if left:
                self._stores[name] = left
            else:
                del self._stores[name]
        sent = {name for name in self._held if name not in self._stores}
        self._held -= sent
        received, self._received = self._received, set()
        return sent, received

    def failed_blocks(self) -> set[int]:
        """Blocks that could not be loaded, each once."""
        failed, self._failed = self._failed, set()
        return failed

    def close(self) -> None:
        """Lets stores finish, cancels loads, and waits until no page is touched any more."""
        for transfers in self._stores.values():
            for transfer in transfers:
                transfer.wait()
        self._pages.close()

    def _begin(self, submit: Callable[..., Transfer], move: Move) -> Optional[Transfer]:
        keys = as_keys(key_records(move.hashes, (self._pages.rank,)))
        try:
            transfer = submit(move.session, keys, move.blocks, self._stream())
        except NotFoundError:
            # The request was aborted meanwhile, and its session with it.
            return None
        except KvkeepError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("kvkeep cannot move pages of %s: %s", move.request, error)
            return None
        self._trouble = ""
        return transfer

    def _fail(self, blocks: Iterable[int]) -> None:
        """Blocks that the step in progress has read, or is about to."""
        if blocks := set(blocks):
            self._failed |= blocks
            self._distrusted_steps = self._steps_ahead

    @staticmethod
    def _drop_if_done(transfer: Transfer) -> bool:
        if transfer.done():
            transfer.release()
            return True
        return False
