"""What must hold of the external linker over SGLang's own device pool entries, on CPU tensors. A part of check.py."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import kvkeep.sglang.linker as module
import torch
from daemon import WATCHDOG_S
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.hybrid_cache.linker_pool_assembler import DevicePoolEntry, DevicePoolGroup
from sglang.srt.mem_cache.unified_cache import unified_cache_linker
from sglang.srt.mem_cache.unified_cache.linker_factory import create_unified_cache_linker

LAYERS, PAGE, PAGES = 3, 16, 64


class Event:
    """torch's CPU module has no events; what is computed is computed."""

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def group() -> DevicePoolGroup:
    """K and V in three layers, and windows of two more, whose rows are tokens."""
    entries = []
    for name, heads in ((PoolName.KV, 2), (PoolName.SWA, 1)):
        entries.append(
            DevicePoolEntry(
                name=name,
                indices_from_pool=name,
                device_pool=None,
                components=[[torch.zeros(PAGES * PAGE, heads, 8) for _ in range(LAYERS)] for _ in range(2)],
                layer_mapping={layer: layer for layer in range(LAYERS)},
                page_size=PAGE,
                rows_are_pages=False,
            )
        )
    return DevicePoolGroup(entries, LAYERS, PAGE)


def linker(url: str, pools: DevicePoolGroup, rank: int = 0) -> Any:
    params = SimpleNamespace(
        page_size=PAGE,
        token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: None),
        pp_rank=rank,
        pp_size=2,
        attn_cp_rank=0,
        attn_cp_size=1,
        attn_tp_cache_group=None,
        tp_cache_group=None,
    )
    module.resolve_hybrid_device_pool_group = lambda **_: pools
    config = {
        "linker": "KvkeepLinker",
        "linker_module_path": "kvkeep.sglang.linker",
        "linker_extra_config": {"connect": url, "model": "toy"},
    }
    return create_unified_cache_linker(
        SimpleNamespace(enable_linker_mla_dedup=False), params, backend="dynamic", config=config, components=set()
    )


def indices(*pages: int) -> torch.Tensor:
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def page_bytes(pools: DevicePoolGroup, name: PoolName, page: int) -> list[torch.Tensor]:
    return [buffer[page * PAGE : (page + 1) * PAGE].clone() for buffer in pools.entry_map[name].kv_buffer]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right))


def asked(keys: list[str], first: int, window: int) -> list[PoolTransfer]:
    """K and V of all keys in pages from `first` on; the window is the last two keys."""
    kv = PoolTransfer(PoolName.KV, device_indices=indices(*range(first, first + len(keys))), keys=keys)
    swa = PoolTransfer(PoolName.SWA, device_indices=indices(window, window + 1), keys=keys[-2:])
    swa.hit_policy = PoolHitPolicy.TRAILING_PAGES
    return [kv, swa]


def result(of: Any) -> bool:
    deadline = time.monotonic() + WATCHDOG_S
    while not of.num_completed_offloads():
        if time.monotonic() > deadline:
            raise RuntimeError("an offload never ends")
        time.sleep(0.001)
    return of.pop_completed_offload()


def linkers(items: Any, url: str) -> None:
    unified_cache_linker.device_module = SimpleNamespace(Event=Event)
    module.get_device_module = lambda: SimpleNamespace(Event=Event)
    torch.manual_seed(1)
    theirs, mine = group(), group()
    for entry in theirs.entries:
        for buffer in entry.kv_buffer:
            buffer.normal_()
    writer, reader, stage = linker(url, theirs), linker(url, mine), linker(url, group(), rank=1)
    keys = [f"page {number}" for number in range(6)]
    lookup = [PoolTransfer(PoolName.KV, keys=keys), PoolTransfer(PoolName.SWA, keys=["", ""])]
    lookup[1].hit_policy = PoolHitPolicy.TRAILING_PAGES
    items.check("linker: nothing is there", reader.lookup("r", lookup), [])
    items.check("linker: a node is offloaded", (writer.offload(asked(keys[:3], 1, 1)), result(writer)), (True, True))
    items.check("linker: and another", (writer.offload(asked(keys[3:], 4, 3)), result(writer)), (True, True))
    items.check("linker: where it can continue", reader.lookup("r", lookup), [3, 6])
    items.check("linker: another stage has nothing", stage.lookup("r", lookup), [])

    items.check("linker: a load is queued", reader.load("r", asked(keys, 20, 30)), True)
    index = reader.start_layer_wise_loading()
    counter = reader.layer_done_counter
    counter.set_consumer(index)
    for layer in range(LAYERS):
        counter.wait_until(layer)
    items.check("linker: it lands", reader.finish_layer_wise_loading(index), True)
    kv = [same(page_bytes(theirs, PoolName.KV, 1 + at), page_bytes(mine, PoolName.KV, 20 + at)) for at in range(6)]
    swa = [same(page_bytes(theirs, PoolName.SWA, 3 + at), page_bytes(mine, PoolName.SWA, 30 + at)) for at in range(2)]
    items.check("linker: the same bytes", (kv, swa), ([True] * 6, [True] * 2))

    reader.load("gone", [PoolTransfer(PoolName.KV, device_indices=indices(40), keys=["never stored"])])
    index = reader.start_layer_wise_loading()
    counter.set_consumer(index)
    counter.wait_until(0)
    items.check("linker: what is gone fails", reader.finish_layer_wise_loading(index), False)
    reader.load("cancelled", asked(keys, 20, 30))
    cancelled = reader.cancel_queued_load("cancelled"), reader.cancel_queued_load("cancelled")
    items.check("linker: a queued load is cancelled", (cancelled, reader.start_layer_wise_loading()), ((True, False), -1))
    writer.reset()
    for one in (writer, reader, stage):
        one.close()
