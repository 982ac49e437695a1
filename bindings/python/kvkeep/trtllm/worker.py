"""A worker's side: moves what it is told to, and fails aloud where a page could not be loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from .._ffi import KVKEEP_DEVICE_HOST as DEVICE_HOST
from .._ffi import Status
from .._trouble import Troubles
from ..cache import Cache
from ..errors import CorruptError, InvalidError, KvkeepError, TimedOutError
from ..key import Keys
from ..key import keys as as_keys
from ..pages import Segment
from ..pool import Pool, Transfer
from ..space import Space
from .plan import NO_PAGE, Group, Load, Move, Step

log = logging.getLogger("tensorrt_llm.kvkeep")

# Parts of the engine's own begin there.
PARTS = 1 << 16


class Paged(NamedTuple):
    """One layer group's pages."""

    group: Group
    segments: list[Segment]
    page_count: int


def paged(layout: Any) -> list[Paged]:
    """The layer groups of TensorRT-LLM's `KvCacheLayout`. A region is a segment; what it holds of several layers is waited for
    with the first of them. Bytes that all ranks have alike are stored by each rank with its own."""
    found = []
    for group in layout.groups:
        regions = [*group.regions, *group.replicated_regions]
        segments = [
            Segment(
                region.base,
                region.size,
                region.stride,
                group.layer_group_id,
                min((buffer.layer_id for buffer in region.buffers), default=0),
                PARTS + number,
            )
            for number, region in enumerate(regions)
        ]
        window = 0 if group.window_size is None else -(-group.window_size // layout.tokens_per_block)
        found.append(
            Paged(Group(group.layer_group_id, window), segments, min((region.num_slots for region in regions), default=0))
        )
    return found


class Worker:
    """The transfers of one worker. Each step calls `begin_loads`, `wait_layer` before each layer, and `store` after the model."""

    def __init__(
        self, space: Space, cache: Cache, groups: Sequence[Paged], rank: int, save_ms: int, device: int = DEVICE_HOST
    ) -> None:
        self._space, self._cache, self._rank, self._save_s = space, cache, rank, save_ms / 1000
        self._pools: dict[int, Pool] = {}
        self._layers: dict[int, list[int]] = {}
        for one in groups:
            number = one.group.number
            self._pools[number] = space.pool(one.segments, block_count=one.page_count, rank=rank, device=device)
            self._layers[number] = sorted({segment.layer for segment in one.segments})
        # With the layers that were not waited for yet.
        self._loading: list[tuple[list[int], Transfer]] = []
        self._troubles = Troubles(log)

    def begin_loads(self, loads: Sequence[Load], stream: int = 0) -> None:
        """Begins the step's loads, behind what is on the stream."""
        for load in loads:
            session = self._cache.session(load.session)
            for move in load.moves:
                self._check(move)
                pool, keys = self._pools[move.group], self._keys(move)
                transfer = pool.load(session, keys, move.pages, stream=stream, return_shares=True)
                self._loading.append((list(self._layers[move.group]), transfer))

    def wait_layer(self, layer: int, stream: int = 0) -> None:
        """Has the stream wait until a layer's pages are there. Raises where one is not: the engine would read it all the same."""
        for layers, transfer in self._loading:
            # Layers run in order, and a segment may hold several.
            while layers and layers[0] <= layer:
                if transfer.stream_wait_layer(layers.pop(0), stream) != Status.OK:
                    self._give_up(transfer)

    def store(self, moves: Sequence[Move], stream: int = 0) -> None:
        """Ends the loads, and stores the step's blocks. Returns when no page is touched any more: the engine may use them anew."""
        loading, self._loading = self._loading, []
        for _, transfer in loading:
            transfer.wait()
            if not (transfer.blocks() or Lost()).ok:
                self._give_up(transfer)
        if not moves:
            return
        try:
            with self._space.session("trtllm store") as session:
                storing = []
                for move in moves:
                    self._check(move)
                    pool = self._pools[move.group]
                    storing.append(pool.store(session, self._keys(move), move.pages, stream=stream))
                for transfer in storing:
                    self._land(transfer)
        except KvkeepError as error:
            self._troubles.say(error, "kvkeep does not store")

    def close(self) -> None:
        """Waits until no page is touched any more. Twice is harmless."""
        for pool in self._pools.values():
            pool.close()

    def _land(self, transfer: Transfer) -> None:
        try:
            transfer.wait(self._save_s)
        except TimedOutError:
            transfer.cancel()
            try:
                transfer.wait()
            except KvkeepError as error:
                self._troubles.say(error, "kvkeep dropped a store that took longer than save_ms")

    def _give_up(self, transfer: Transfer) -> None:
        self._loading.clear()
        try:
            transfer.cancel()
            transfer.wait()
        except KvkeepError as error:
            why = str(error)
        else:
            why = "see the daemon's log"
        raise CorruptError(
            f"kvkeep could not load pages that it had offered ({why}), and TensorRT-LLM cannot compute them any more: "
            "start the requests of this step again"
        )

    def _keys(self, move: Move) -> Keys:
        return as_keys((one, self._rank, move.group) for one in move.hashes)

    def _check(self, move: Move) -> None:
        if move.group not in self._pools:
            raise InvalidError(f"TensorRT-LLM registered no layer group {move.group}")
        if NO_PAGE in move.pages:
            raise InvalidError("a block without a page cannot be moved")


class Lost:
    """In place of statuses that are not known."""

    ok = False
