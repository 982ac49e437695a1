"""The classes that SGLang and TensorRT-LLM load, over imitations of the modules that they import. `make e2e-sglang` has the real
ones of SGLang."""

from __future__ import annotations

import abc
import enum
import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Optional
from unittest import mock

import kvkeep

from .sglang_device import LAYERS, Entry
from .sglang_host import HostPool, MHAHostPool, hashes, indices, of_pages
from .support import CacheTest
from .trtllm_engine import BLOCK_TOKENS, Gpu, Request, RequestData


class PoolName(str, enum.Enum):
    KV = "kv"
    SWA = "swa"
    MAMBA = "mamba"

    def __str__(self) -> str:
        return self.value


class PoolHitPolicy(str, enum.Enum):
    ALL_PAGES = "all_pages"
    TRAILING_PAGES = "trailing_pages"
    BLOCK_GROUPS = "block_groups"


@dataclass
class PoolTransfer:
    name: PoolName
    host_indices: Any = None
    keys: Optional[list[str]] = None
    hit_policy: PoolHitPolicy = PoolHitPolicy.ALL_PAGES


@dataclass
class PoolTransferResult:
    kv_hit_pages: int
    extra_pool_hit_pages: dict[str, int]
    restorable_prefix_pages: Optional[list[int]] = None


class HiCacheStorage(abc.ABC):
    def register_mem_pool_host(self, pool: Any) -> None:
        self.mem_pool_host = pool

    def register_mem_host_pool_v2(self, pool: Any, name: Any) -> None:
        pass

    @abc.abstractmethod
    def get(self, key: str) -> Any: ...

    @abc.abstractmethod
    def batch_get(self, keys: list[str]) -> Any: ...

    @abc.abstractmethod
    def set(self, key: str) -> bool: ...

    @abc.abstractmethod
    def batch_set(self, keys: list[str]) -> bool: ...

    @abc.abstractmethod
    def exists(self, key: str) -> bool: ...


class UnifiedCacheLinker(abc.ABC):
    def record_offload_ready(self) -> list[Any]:
        return [Event()]


class Event:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class DevicePools:
    """SGLang's group of device pools, where every pool has indices of its own."""

    rank_replicated = False

    def __init__(self, *entries: Entry) -> None:
        self.entry_map = {PoolName(entry.name): entry for entry in entries}

    def resolve_transfers(self, transfers: list[PoolTransfer], **_: bool) -> list[PoolTransfer]:
        return [one for one in transfers if one.keys]


class Connector(abc.ABC):
    """What TensorRT-LLM's two base classes have in common."""

    def __init__(self, llm_args: Any) -> None:
        self._llm_args, self._metadata = llm_args, None

    def bind_connector_meta(self, metadata: object) -> None:
        self._metadata = metadata

    def get_connector_meta(self) -> object:
        return self._metadata


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(members)
    return made


class EngineClasses(CacheTest):
    def load(self, ours: str, *theirs: ModuleType) -> Any:
        """Our module, imported while theirs are there; afterwards as if it had never been."""
        parents = {one.__name__.rsplit(".", depth)[0] for one in theirs for depth in range(one.__name__.count(".") + 1)}
        there = {**{name: ModuleType(name) for name in parents}, **{one.__name__: one for one in theirs}}
        patched = mock.patch.dict(sys.modules, there)
        patched.start()
        self.addCleanup(patched.stop)
        sys.modules.pop(ours, None)
        loaded = importlib.import_module(ours)
        self.addCleanup(sys.modules.pop, ours, None)
        return loaded

    def of_sglang(self) -> list[ModuleType]:
        named = (HiCacheStorage, PoolHitPolicy, PoolName, PoolTransfer, PoolTransferResult)
        unset = mock.Mock(side_effect=ValueError("Global server args is not set yet!"))
        off = SimpleNamespace(is_available=lambda: False)
        return [
            module("torch", arange=indices, Tensor=object, distributed=off, cuda=off),
            module(
                "sglang.srt.mem_cache.hicache_storage",
                **{one.__name__: one for one in named},
                HiCacheStorageConfig=object,
                HiCacheStorageExtraInfo=object,
            ),
            module("sglang.srt.runtime_context", get_server_args=unset, get_model=lambda: SimpleNamespace(model_path="toy")),
        ]

    def test_the_linker_of_sglang(self) -> None:
        entries = Entry("kv", 32, 2, {layer: layer for layer in range(LAYERS)}), Entry("mamba", 16, 1, {2: (0, 1, 2)}, by_page=True)
        pools = DevicePools(*entries)
        place = "sglang.srt.mem_cache"
        made = self.load(
            "kvkeep.sglang.linker",
            *self.of_sglang(),
            module(f"{place}.hybrid_cache.linker_pool_assembler", resolve_hybrid_device_pool_group=lambda **_: pools),
            module(f"{place}.unified_cache.unified_cache_linker", UnifiedCacheLinker=UnifiedCacheLinker),
            module("sglang.srt.utils", get_device_module=lambda: SimpleNamespace(Event=Event)),
        )
        self.addCleanup(sys.modules.pop, "kvkeep.sglang.storage", None)
        registered = mock.Mock()
        facts = {"pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1, "page_size": 4}
        allocator = SimpleNamespace(get_kvcache=lambda: None)
        params = SimpleNamespace(
            **facts,
            token_to_kv_pool_allocator=allocator,
            req_to_token_pool=SimpleNamespace(register_layer_transfer_counter=registered),
            attn_tp_cache_group=None,
            tp_cache_group=None,
        )
        linker = made.KvkeepLinker(None, params, components=set(), extra_config={"l1_bytes": 1 << 20})
        self.addCleanup(linker.close)
        registered.assert_called_once_with(linker.layer_done_counter)
        keys, (kv, state) = hashes(3), entries
        filled = kv.fill(1, 5)
        transfers = [
            PoolTransfer(PoolName.KV, of_pages(1, 2, 3), keys),
            PoolTransfer(PoolName.MAMBA, of_pages(1), keys[-1:], PoolHitPolicy.TRAILING_PAGES),
        ]
        self.assertEqual(linker.lookup("request", transfers), [])
        self.assertTrue(linker.offload(transfers, session_id="a"))
        linker._link._offloader.submit(int).result()
        self.assertEqual((linker.num_completed_offloads(), linker.pop_completed_offload()), (1, True))
        self.assertEqual(linker.lookup("request", transfers), [3])
        transfers[0].host_indices = of_pages(10, 11, 12)
        self.assertTrue(linker.load("request", transfers))
        batch = linker.start_layer_wise_loading()
        linker.layer_done_counter.set_consumer(batch)
        for layer in range(LAYERS):
            linker.layer_done_counter.wait_until(layer)
        self.assertEqual(kv.page(10), filled)
        self.assertTrue(linker.finish_layer_wise_loading(batch))
        self.assertTrue(linker.load("request", transfers))
        self.assertTrue(linker.cancel_queued_load("request"))
        linker.reset()
        self.assertEqual(linker.start_layer_wise_loading(), -1)

    def test_the_storage_of_sglang(self) -> None:
        made = self.load("kvkeep.sglang.storage", *self.of_sglang())
        facts = {"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1, "dcp_size": 1}
        extra = {"interface_v1": 1, "l1_bytes": 1 << 20, "backend_name": "kvkeep"}
        config = SimpleNamespace(**facts, is_mla_model=True, model_name="toy", extra_config=extra)
        storage = made.KvkeepStorage(config, {})
        self.addCleanup(storage.close)
        kv, keys = HostPool(32), hashes(4)
        storage.register_mem_pool_host(kv)
        storage.register_mem_host_pool_v2(kv, PoolName.KV)
        storage.register_mem_host_pool_v2(MHAHostPool(8), PoolName.SWA)
        filled = kv.fill(0, 7)
        self.assertEqual(storage.batch_set_v1(keys, of_pages(0, 1, 2, 3)), [True] * 4)
        self.assertEqual((storage.batch_exists([*keys, "none"]), storage.exists("none")), (4, False))
        self.assertEqual(storage.batch_get_v1(keys[:1], of_pages(9)), [True])
        self.assertEqual(kv.page(9), filled)
        swa = PoolTransfer(PoolName.SWA, of_pages(1), keys[2:3])
        self.assertEqual(storage.batch_set_v2([swa]), {"swa": [True]})
        self.assertEqual(storage.batch_get_v2([swa]), {"swa": [True]})
        window = PoolTransfer(PoolName.SWA, keys=[""], hit_policy=PoolHitPolicy.TRAILING_PAGES)
        unsaid = PoolTransfer(PoolName.MAMBA, hit_policy=PoolHitPolicy.BLOCK_GROUPS)
        found = storage.batch_exists_v2(keys, [window, unsaid])
        self.assertEqual(found, PoolTransferResult(3, {"kv": 4, "swa": 3}, [3]))
        storage.clear()
        self.assertEqual(storage.batch_exists_v2(keys, [window]), PoolTransferResult(0, {}, []))
        for refused in (storage.get, storage.set, storage.batch_get, storage.batch_set):
            with self.assertRaisesRegex(kvkeep.UnsupportedError, '"interface_v1": 1'):
                refused(["key"])
        for change, text in (({"extra_config": {}}, "interface_v1"), ({"dcp_size": 2}, "decode context parallelism")):
            with self.assertRaisesRegex(kvkeep.KvkeepError, text):
                made.KvkeepStorage(SimpleNamespace(**{**vars(config), **change}), {})

    def test_the_connector_of_tensorrt_llm(self) -> None:
        made = self.load(
            "kvkeep.trtllm.connector",
            module(
                "tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector",
                KvCacheConnectorScheduler=Connector,
                KvCacheConnectorWorker=Connector,
                SchedulerOutput=object,
            ),
            module("tensorrt_llm._utils", mpi_rank=lambda: 0),
            module("torch", cuda=SimpleNamespace(current_device=lambda: kvkeep.DEVICE_HOST)),
        )
        made.Cache = mock.Mock(return_value=self.cache)
        args = SimpleNamespace(
            kv_connector_config=SimpleNamespace(server_url="unix:///unused"),
            kv_cache_config=SimpleNamespace(dtype="auto", tokens_per_block=BLOCK_TOKENS),
            dtype="bfloat16",
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            model="toy",
        )
        worker, scheduler = made.KvkeepWorker(args), made.KvkeepScheduler(args)
        made.Cache.assert_called_with(connect="unix:///unused")
        stream, gpu, tokens = SimpleNamespace(cuda_stream=0), Gpu(0, (None,)), list(range(3 * BLOCK_TOKENS + 1))
        with self.assertRaisesRegex(kvkeep.UnsupportedError, "needs a worker in its process"):
            scheduler.get_num_new_matched_tokens(Request(1, tokens), 0)
        with self.assertRaisesRegex(kvkeep.UnsupportedError, "has not registered"):
            worker.wait_for_layer_load(0, stream)
        worker.register_kv_cache_layout(gpu.layout)

        def serve(number: int, pages: list[int]) -> tuple[int, bool]:
            request = Request(number, tokens)
            offered = scheduler.get_num_new_matched_tokens(request, 0)
            scheduler.update_state_after_alloc(request, pages)
            scheduler.update_state_after_alloc_by_layer_group(request, [pages])
            data = RequestData(number, tokens, pages, 0, len(tokens) - offered[0])
            output = SimpleNamespace(new_requests=[data], cached_requests=[])
            worker.bind_connector_meta(scheduler.build_connector_meta(output))
            worker.start_load_kv(stream)
            for layer in range(2):
                worker.wait_for_layer_load(layer, stream)
                worker.save_kv_layer(layer, stream)
            worker.wait_for_save(stream)
            self.assertEqual(worker.get_finished([], []), ([], []))
            self.assertFalse(scheduler.request_finished(request, pages))
            self.assertFalse(scheduler.request_finished_by_layer_group(request, [pages]))
            return offered

        for page in range(4):
            gpu.write(0, page, bytes([page + 1]) * 128)
        self.assertEqual(serve(1, [0, 1, 2, 3]), (0, False))
        self.assertEqual(serve(2, [10, 11, 12, 13]), (3 * BLOCK_TOKENS, False))
        self.assertEqual([gpu.page(0, page)[0] for page in (10, 11, 12, 13)], [1, 2, 3, 0])
        request = Request(3, tokens)
        scheduler.get_num_new_matched_tokens(request, 0)
        scheduler.cancel_load(request, 0, len(tokens))
        scheduler.request_reset(request)
        self.assertEqual(self.cache.stats().l1_shares, 0)
        worker.bind_connector_meta(None)
        worker.start_load_kv(stream)
        worker.wait_for_save(stream)


