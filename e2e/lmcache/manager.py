"""manager.py URL store|load: LMCache's storage manager in a process of its own, with 1,000 objects of known bytes.

It prints a line of JSON for each batch that is stored, or for what was loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from contextlib import contextmanager
from collections.abc import Iterator

logging.disable(logging.INFO)

import torch
from lmcache.v1.distributed.api import GroupedObjectKeys, MemoryLayoutDesc, ObjectKey, PrefetchTaskSpec
from lmcache.v1.distributed.config import (
    EvictionConfig,
    L1ManagerConfig,
    L1MemoryManagerConfig,
    StorageManagerConfig,
)
from lmcache.v1.distributed.l2_adapters.config import L2AdaptersConfig
from lmcache.v1.distributed.l2_adapters.native_plugin_l2_adapter import NativePluginL2AdapterConfig
from lmcache.v1.distributed.storage_manager import StorageManager

COUNT, BATCH = 1000, 50
FLOATS = 16 << 10
WATCHDOG_S = 300
LAYOUT = MemoryLayoutDesc([torch.Size([FLOATS])], [torch.float32])
KEYS = [
    ObjectKey(hashlib.sha256(str(index).encode()).digest(), "toy/model", 0x01000100, index % 2, "salt" if index % 3 else "")
    for index in range(COUNT)
]


def content(index: int) -> torch.Tensor:
    return torch.arange(FLOATS, dtype=torch.float32) + index * 7


def open_manager(url: str) -> StorageManager:
    adapter = {
        "type": "native_plugin",
        "module_path": "kvkeep.lmcache",
        "class_name": "KvkeepClient",
        "adapter_params": {"connect": url},
    }
    return StorageManager(
        StorageManagerConfig(
            L1ManagerConfig(L1MemoryManagerConfig(256 << 20, use_lazy=False, shm_name="")),
            EvictionConfig("LRU"),
            L2AdaptersConfig([NativePluginL2AdapterConfig.from_dict(adapter)]),
        )
    )


def store(manager: StorageManager) -> None:
    for first in range(0, COUNT, BATCH):
        keys = KEYS[first : first + BATCH]
        for key, object in manager.reserve_write(keys, LAYOUT).items():
            object.tensor.copy_(content(KEYS.index(key)))
        manager.finish_write(keys)
        awaited(manager, first + BATCH)
        say(stored=first + BATCH)


def awaited(manager: StorageManager, objects: int) -> None:
    """Until LMCache counts so many objects in its second level."""
    deadline = time.monotonic() + WATCHDOG_S
    while manager.report_status()["store_controller"]["in_flight_task_count"] or used(manager) < objects * FLOATS * 4:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{used(manager)} bytes stored: {manager.report_status()}")
        time.sleep(0.005)


def used(manager: StorageManager) -> int:
    return sum(adapter.get_usage().total_bytes_used for adapter in manager._l2_adapters.values())


def load(manager: StorageManager) -> None:
    """Loads in several requests, and compares every byte of what LMCache says was hit."""
    hits = wrong = 0
    for first in range(0, COUNT, BATCH):
        for group in (0, 1):
            indexes = [index for index in range(first, first + BATCH) if index % 2 == group]
            with loaded(manager, indexes, group) as objects:
                hits += len(objects)
                wrong += sum(not torch.equal(object.tensor, content(index)) for index, object in objects.items())
        say(loading=first + BATCH)
    say(hits=hits, wrong=wrong)


@contextmanager
def loaded(manager: StorageManager, indexes: list[int], group: int) -> Iterator[dict[int, object]]:
    keys = [KEYS[index] for index in indexes]
    spec = PrefetchTaskSpec([GroupedObjectKeys(keys, group, LAYOUT)], fetching_policy="full")
    handle = manager.submit_prefetch_task(spec)
    if not manager.wait_prefetch_status(handle, WATCHDOG_S):
        raise RuntimeError("a load never ends")
    result = manager.query_prefetch_status(handle)
    found = [i for i in range(len(keys)) if result.hit_cells[0].test(i)]
    hit = [keys[i] for i in found]
    if not hit:
        yield {}
        return
    with manager.read_prefetched_results(hit, result.l1_owners) as objects:
        yield dict(zip([indexes[i] for i in found], objects or []))
    manager.finish_read_prefetched(hit, l1_owners=result.l1_owners)


def say(**what: int) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    opened = open_manager(sys.argv[1])
    {"store": store, "load": load}[sys.argv[2]](opened)
    opened.close()
