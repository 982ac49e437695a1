"""The external linker that SGLang loads: translates between its interface and the link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.hybrid_cache.linker_pool_assembler import resolve_hybrid_device_pool_group
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import UnifiedCacheLinker
from sglang.srt.runtime_context import get_model
from sglang.srt.utils import get_device_module

from ..pool import Transfer
from .device_pool import DevicePages
from .link import Asked, Link
from .settings import settings
from .storage import kv_dtype, window_of
from .store import Place, Store, Window

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
    from sglang.srt.server_args import ServerArgs

WHERE = "linker_extra_config of --unified-cache-external-linker-config"
# SGLang asks from its scheduler, which stands still meanwhile.
LOOKUP_MS = 50


class LayerCounter:
    """How SGLang's pools wait for the layers of the batch that they work on."""

    def __init__(self, link: Link) -> None:
        self.consumer_index = -1
        self._link = link

    def set_consumer(self, index: int) -> None:
        """The batch that is worked on next; -1: none that loads."""
        self.consumer_index = index

    def wait_until(self, threshold: int) -> None:
        """In front of each layer."""
        self._link.wait_until(self.consumer_index, threshold)


class KvkeepLinker(UnifiedCacheLinker):
    """Finds, loads and stores pages of SGLang's device memory in a kvkeep daemon that engines share."""

    def __init__(
        self,
        server_args: ServerArgs,
        params: CacheInitParams,
        *,
        components: set[ComponentType],
        extra_config: Optional[dict[str, Any]] = None,
        forward_stream: Any = None,
    ) -> None:
        self.forward_stream = forward_stream
        self._group = resolve_hybrid_device_pool_group(
            kvcache=params.token_to_kv_pool_allocator.get_kvcache(),
            page_size=params.page_size,
            params=params,
            components=components,
        )
        self.pools = self._group.entry_map
        rank, size = tensor_parallel(params)
        place = Place(
            *(rank, size, params.pp_rank, params.pp_size, params.attn_cp_rank, params.attn_cp_size),
            self._group.rank_replicated,
            kv_dtype(),
        )
        chosen = settings(extra_config or {}, WHERE)
        self._store = Store(chosen.open(), chosen, chosen.model or get_model().model_path, place, LOOKUP_MS)
        pages = {str(name): DevicePages(entry) for name, entry in self.pools.items()}
        for name, one in pages.items():
            self._store.register(name, one, place.replicated)
        self._link = Link(self._store, {name: one.layers for name, one in pages.items()}, wait_layer)
        self.layer_done_counter = LayerCounter(self._link)
        if PoolName.MAMBA in self.pools:
            params.req_to_token_pool.register_layer_transfer_counter(self.layer_done_counter)

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        """Every length in pages at which all pools can continue."""
        expanded = self._group.resolve_transfers(transfers)
        keys = next((list(one.keys or ()) for one in transfers if one.name == PoolName.KV), [])
        if not expanded or not keys:
            return []
        return self._link.lookup(rid, keys, [Window(str(one.name), window_of(one)) for one in expanded]).lengths

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        """Notes a load, which `start_layer_wise_loading` begins."""
        expanded = self._group.resolve_transfers(transfers, allow_partial=True, allow_missing_kv=True)
        return self._link.queue_load(rid, asked(expanded))

    def start_layer_wise_loading(self) -> int:
        """Begins all noted loads as one batch; its number, or -1 where there are none."""
        return self._link.start(synchronizing([recorded()]))

    def finish_layer_wise_loading(self, counter_index: int) -> bool:
        """Blocks until a batch touches no page any more; whether all of it is there."""
        return self._link.finish(counter_index)

    def cancel_queued_load(self, rid: str) -> bool:
        """Drops a load that has not begun."""
        return self._link.cancel(rid)

    def offload(self, transfers: list[PoolTransfer], session_id: Optional[str] = None) -> bool:
        """Notes pages to be stored, of all pools or of none."""
        expanded = self._group.resolve_transfers(transfers, allow_partial=True)
        return self._link.offload(asked(expanded), synchronizing(self.record_offload_ready()))

    def num_completed_offloads(self) -> int:
        """How many offloads are over whose results were not taken."""
        return self._link.completed()

    def pop_completed_offload(self) -> bool:
        """The result of the oldest offload that is over."""
        return self._link.pop()

    def reset(self) -> None:
        """Waits for all copies, and forgets their results. What is stored stays."""
        self._link.reset()

    def close(self) -> None:
        """Waits for all copies, and lets go of the pages."""
        self._link.close()


def asked(transfers: Sequence[PoolTransfer]) -> list[Asked]:
    """What SGLang's group of pools calls host indices are those of its device pools."""
    return [Asked(str(one.name), list(one.keys or ()), one.host_indices) for one in transfers]


def tensor_parallel(params: CacheInitParams) -> tuple[int, int]:
    """This process's rank among those that share a request's heads, and how many there are."""
    group = params.attn_tp_cache_group or params.tp_cache_group
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(group=group), torch.distributed.get_world_size(group=group)


def recorded() -> Any:
    """An event at the end of what is queued on the current stream."""
    event = get_device_module().Event()
    event.record()
    return event


def synchronizing(events: Sequence[Any]) -> Any:
    """Blocks until all events have come."""
    return lambda: [event.synchronize() for event in events]


def wait_layer(transfer: Transfer, layer: int) -> None:
    """Makes the current stream wait for a layer; on the CPU, the caller."""
    if torch.cuda.is_available():
        transfer.stream_wait_layer(layer, torch.cuda.current_stream().cuda_stream)
    else:
        transfer.wait_layer(layer)
