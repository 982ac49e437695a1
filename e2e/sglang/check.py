"""check.py KVKEEP DIRECTORY RUN: what must hold of SGLang's own classes over one daemon, each item with a line of its own."""

from __future__ import annotations

import logging
import queue
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import kvkeep
import torch
from daemon import WATCHDOG_S, Daemon
from items import Items
from linker import linkers
from sglang.srt.managers.cache_controller import HiCacheController, PrefetchOperation, StorageOperation
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo, MLABufferInfo
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.pool_host import base
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.storage import StorageBackendFactory
from sglang.srt.mem_cache.utils import get_storage_hash_str

LAYERS, PAGE, HEADS, WIDTH = 3, 16, 2, 8
PAGES = 200
CPU = torch.device("cpu")

# Its reserve for the system is more than a small machine has.
base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0


def mha(layout: str, dtype: torch.dtype = torch.float16, heads: int = HEADS) -> MHATokenToKVPoolHost:
    k, v = (tuple(torch.zeros(PAGE, heads, WIDTH, dtype=dtype) for _ in range(LAYERS)) for _ in range(2))
    k_data_ptrs, v_data_ptrs = (torch.tensor([one.data_ptr() for one in side], dtype=torch.uint64) for side in (k, v))
    info = MHABufferInfo(
        buffers=KVBuffers(k=k, v=v, k_data_ptrs=k_data_ptrs, v_data_ptrs=v_data_ptrs, layout=KVBufferLayout.NHD),
        page_size=PAGE,
        head_num=heads,
        head_dim=WIDTH,
        v_head_dim=WIDTH,
        dtype=dtype,
        device=CPU,
    )
    return MHATokenToKVPoolHost(
        info, 1.0, 0, PAGE, layout, False, device_capacity_tokens=PAGES * PAGE, start_layer=0, end_layer=LAYERS
    )


def mla(layout: str) -> MLATokenToKVPoolHost:
    layers = tuple(torch.zeros(PAGE, 1, WIDTH + 4, dtype=torch.float16) for _ in range(LAYERS))
    info = MLABufferInfo(
        buffers=layers,
        data_ptrs=torch.tensor([tensor.data_ptr() for tensor in layers], dtype=torch.uint64),
        layer_indices=tuple(range(LAYERS)),
        device_layer_num=LAYERS,
        page_size=PAGE,
        kv_lora_rank=WIDTH,
        qk_rope_head_dim=4,
        kv_cache_dim=WIDTH + 4,
        dtype=torch.float16,
        device=CPU,
        packed_fp8=False,
    )
    return MLATokenToKVPoolHost(
        info,
        1.0,
        0,
        PAGE,
        layout,
        False,
        device_capacity_tokens=PAGES * PAGE,
        start_layer=0,
        end_layer=LAYERS,
        target_layer_num=LAYERS,
    )


def config(url: str, **differing: Any) -> HiCacheStorageConfig:
    extra = {
        "backend_name": "kvkeep",
        "module_path": "kvkeep.sglang",
        "class_name": "KvkeepStorage",
        "interface_v1": 1,
        "connect": url,
    }
    facts = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": True,
        "model_name": "toy/model",
        "extra_config": extra,
    }
    return HiCacheStorageConfig(**{**facts, **differing})


class Engine:
    """SGLang's controller over a host pool: its own code for lookup, load and store, without its threads and its GPU."""

    def __init__(self, url: str, pool: Any, **differing: Any) -> None:
        self.pool = pool
        self.backend = StorageBackendFactory.create_backend("dynamic", config(url, **differing), pool)
        self.backend.register_mem_pool_host(pool)
        self.backend.register_mem_host_pool_v2(pool, PoolName.KV)
        self.backend.on_host_pools_registered()
        controller = HiCacheController.__new__(HiCacheController)
        controller.storage_backend, controller.page_size = self.backend, PAGE
        controller.storage_host_pool = controller.mem_pool_host = pool
        controller.prefetch_sync_queue = queue.Queue()
        controller.page_get_func, controller.page_set_func = controller._page_get_zero_copy, controller._page_set_zero_copy
        self.controller = controller

    def store(self, tokens: RadixKey, seed: int) -> int:
        """Fills pages and backs them up; the tokens that were."""
        hashes = get_storage_hash_str(tokens, None, page_size=PAGE)
        indices = self.pool.alloc(len(hashes) * PAGE)
        for number in range(len(hashes)):
            self.pool.set_from_flat_data_page(int(indices[number * PAGE]), self.content(number, seed))
        operation = StorageOperation(indices, tokens, hash_value=hashes)
        self.controller._page_backup(operation)
        self.pool.free(indices)
        return operation.completed_tokens

    def load(self, tokens: RadixKey, seed: int) -> tuple[int, int, int]:
        """Looks up and prefetches: tokens found, tokens loaded, pages with wrong bytes."""
        operation = PrefetchOperation("request", tokens)
        operation.hash_value, found = self.controller._storage_hit_query(operation)
        operation.host_indices = indices = self.pool.alloc(max(found, PAGE))
        loaded = self.controller._page_transfer(operation) * PAGE
        wrong = sum(
            not torch.equal(self.pool.get_data_page(int(indices[number * PAGE])).flatten(), self.content(number, seed))
            for number in range(loaded // PAGE)
        )
        self.pool.free(indices)
        return found, loaded, wrong

    def content(self, number: int, seed: int) -> torch.Tensor:
        like = self.pool.get_dummy_flat_data_page().flatten()
        return ((torch.arange(like.numel()) * (seed + 3) + number * 7) % 509).to(like.dtype)


def tokens(pages: int, salt: int = 0, **namespace: str) -> RadixKey:
    return RadixKey([salt * 1000 + token for token in range(pages * PAGE)], **namespace)


def layouts(items: Items, url: str) -> None:
    for name, pool, replicated in (
        ("MHA page_first", lambda: mha("page_first"), False),
        ("MHA page_first_direct", lambda: mha("page_first_direct"), False),
        ("MHA layer_first", lambda: mha("layer_first"), False),
        ("MLA page_first", lambda: mla("page_first"), True),
        ("MLA layer_first", lambda: mla("layer_first"), True),
    ):
        writer, reader = (Engine(url, pool(), is_mla_model=replicated) for _ in range(2))
        prompt = tokens(150)
        items.check(f"{name}: nothing is there", reader.load(prompt, 1), (0, 0, 0))
        items.check(f"{name}: 150 pages are stored", writer.store(prompt, 1), 150 * PAGE)
        items.check(f"{name}: another engine loads them", reader.load(prompt, 1), (150 * PAGE, 150 * PAGE, 0))
        items.check(f"{name}: a salted prompt finds nothing", reader.load(tokens(150, extra_key="salt"), 1), (0, 0, 0))
        for one in (writer, reader):
            one.backend.close()


def identities(items: Items, url: str) -> None:
    prompt = tokens(4, 1)
    for seed, (name, pool, differing) in enumerate(
        (
            ("fp16", mha("page_first"), {}),
            ("bf16", mha("page_first", torch.bfloat16), {}),
            ("other heads", mha("page_first", heads=1), {}),
            ("other layout", mha("page_first_direct"), {}),
            ("other model", mha("page_first"), {"model_name": "toy/other"}),
            ("tp 2, rank 0", mha("page_first"), {"tp_size": 2}),
            ("tp 2, rank 1", mha("page_first"), {"tp_size": 2, "tp_rank": 1}),
            ("pp 2", mha("page_first"), {"pp_size": 2}),
        )
    ):
        engine = Engine(url, pool, **differing)
        before, stored = engine.load(prompt, seed)[0], engine.store(prompt, seed)
        items.check(f"{name}: apart from all others", (before, stored, engine.load(prompt, seed)[2]), (0, 4 * PAGE, 0))
        engine.backend.close()
    ranks = [Engine(url, mla("page_first"), is_mla_model=True, tp_size=2, tp_rank=rank) for rank in (0, 1)]
    prompt = tokens(4, 2)
    ranks[1].store(prompt, 1)
    items.check("MLA: a rank that does not write stores nothing", ranks[0].load(prompt, 1)[0], 0)
    ranks[0].store(prompt, 1)
    items.check("MLA: the other rank has what one wrote", ranks[1].load(prompt, 1), (4 * PAGE, 4 * PAGE, 0))
    for rank in ranks:
        rank.backend.close()


def windows(items: Items, url: str) -> None:
    engine = Engine(url, mha("page_first"))
    swa = mha("page_first", heads=1)
    engine.backend.register_mem_host_pool_v2(swa, PoolName.SWA)
    prompt = tokens(8, 3)
    engine.store(prompt, 1)
    hashes = get_storage_hash_str(prompt, None, page_size=PAGE)
    held = [2, 3, 6]
    indices = swa.alloc(len(held) * PAGE)
    mine = PoolTransfer(PoolName.SWA, host_indices=indices, keys=[hashes[page] for page in held])
    items.check("a sidecar is stored", engine.backend.batch_set_v2([mine]), {PoolName.SWA: [True] * 3})
    items.check("a sidecar is loaded", engine.backend.batch_get_v2([mine]), {PoolName.SWA: [True] * 3})
    asked = PoolTransfer(PoolName.SWA, keys=["", ""], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    found = engine.backend.batch_exists_v2(hashes, [asked])
    items.check("a window of two: where it can continue", (found.restorable_prefix_pages, found.kv_hit_pages), ([4], 4))
    items.check("each pool's own reach", found.extra_pool_hit_pages, {PoolName.KV: 8, PoolName.SWA: 4})
    asked = PoolTransfer(PoolName.SWA, keys=[""], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    found = engine.backend.batch_exists_v2(hashes, [asked])
    items.check("a window of one: where it can continue", found.restorable_prefix_pages, [3, 4, 7])
    asked = PoolTransfer(PoolName.SWA, hit_policy=PoolHitPolicy.ALL_PAGES)
    items.check("all pages: nothing", engine.backend.batch_exists_v2(hashes, [asked]).kv_hit_pages, 0)
    engine.backend.close()


def failures(items: Items, daemon: Daemon) -> None:
    engine, prompt = Engine(daemon.url, mha("page_first")), tokens(100, 4)
    engine.store(prompt, 1)
    with kvkeep.Cache(connect=daemon.url) as cache:
        cache.flush(WATCHDOG_S)
    daemon.kill()
    items.check("a daemon killed: misses", engine.load(prompt, 1)[1:], (0, 0))
    daemon.start()
    while engine.load(prompt, 1) == (0, 0, 0):
        pass
    items.check("a daemon back: all is loaded from disk", engine.load(prompt, 1), (100 * PAGE, 100 * PAGE, 0))
    daemon.stop()
    daemon.corrupt(1)
    daemon.start()
    found = engine.load(prompt, 1)
    while found == (0, 0, 0):
        found = engine.load(prompt, 1)
    items.check("damaged pages are no pages", found[1:], (0, 0))
    engine.backend.clear()
    items.check("cleared: nothing is there", engine.load(prompt, 1), (0, 0, 0))
    engine.store(prompt, 2)
    items.check("cleared: stored anew", engine.load(prompt, 2), (100 * PAGE, 100 * PAGE, 0))
    items.check("nothing is held in the end", (daemon.stats()["l1_shares"], daemon.explained()), (0, "no session holds anything"))
    engine.backend.close()


def main(command: str, directory: Path, run: Path) -> int:
    shutil.rmtree(directory / "objects", ignore_errors=True)
    daemon, items = Daemon(command, directory / "objects", run), Items()
    try:
        layouts(items, daemon.url)
        identities(items, daemon.url)
        windows(items, daemon.url)
        linkers(items, daemon.url)
        failures(items, daemon)
    finally:
        daemon.stop()
    return len(items.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])) and 1)
