"""The connector under vLLM's own scheduler, block pool and managers; what is faked is the model: a page follows from its tokens."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import kvkeep

from .support import CacheTest

BLOCK, STATE_BLOCK, CHUNK, WINDOW, BLOCKS = 16, 32, 64, 40, 400


@unittest.skipUnless(importlib.util.find_spec("vllm"), "vLLM is not installed")
class Classes(CacheTest):
    def setUp(self) -> None:
        self.folder = Path(self.directory())
        self.served = self.open(16 << 20, listen=f"unix://{self.folder}/s")
        self.served.serve_clients()
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "vocab_size": 512,
            "max_position_embeddings": 4096,
            "torch_dtype": "bfloat16",
        }
        (self.folder / "config.json").write_text(json.dumps(config))

    def run_kinds(self, *kinds: str) -> None:
        first = Engine(self, kinds)
        tokens = [i * i % 500 + 3 for i in range(4 * CHUNK + 5)]
        self.assertEqual(first.run("first", tokens, 40), 0)
        first.close()
        # Another engine, which has nothing of its own.
        second = Engine(self, kinds)
        for name, end in (("whole", 4 * CHUNK + 5), ("shorter", 2 * CHUNK + 1), ("all but one", 3 * CHUNK)):
            found = second.run(name, tokens[:end] if end != 2 * CHUNK + 1 else tokens[:end] + [7] * 50, 3)
            plain = len(kinds) == 1
            self.assertEqual(found, end // CHUNK * CHUNK if plain else (end - 1) // CHUNK * CHUNK, name)
            second.forget()
        second.close()
        self.assertEqual(self.served.explain()["sessions"], [])

    def test_full_attention(self) -> None:
        self.run_kinds("full")

    def test_latents(self) -> None:
        self.run_kinds("latent")
        self.run_kinds("latent", "window")

    def test_windows(self) -> None:
        self.run_kinds("full", "window")

    def test_states(self) -> None:
        self.run_kinds("full", "state")

    def test_windows_and_states(self) -> None:
        self.run_kinds("full", "window", "state")

    def test_salts_and_adapters_do_not_mix(self) -> None:
        from vllm.lora.request import LoRARequest

        def adapter(name: str) -> Any:
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name / "adapter.safetensors").write_text(name)
            return {"lora_request": LoRARequest(name, 1 + "abc".index(name), str(self.folder / name))}

        tokens = [i * 13 % 500 + 3 for i in range(2 * CHUNK + 5)]
        kinds = [{}, {"cache_salt": "one"}, {"cache_salt": "two"}, adapter("a"), adapter("b"), {**adapter("a"), "cache_salt": "one"}]
        for found in (0, 2 * CHUNK):
            engine = Engine(self, ("full", "window"))
            for number, options in enumerate(kinds):
                self.assertEqual(engine.run(f"{number}", tokens, 3, **options), found, options)
            engine.close()

    def test_pictures_do_not_mix(self) -> None:
        from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        engine = Engine(self, ("full",))
        tokens = [7] * (2 * CHUNK + 5)

        def found(name: str, picture: str, at: int) -> int:
            position = PlaceholderRange(offset=at, length=8)
            feature = MultiModalFeatureSpec(data=None, modality="image", identifier=picture, mm_position=position)
            request = Request(
                name, list(tokens), SamplingParams(max_tokens=1), None, mm_features=[feature], block_hasher=engine.hasher
            )
            while (answer := engine.scheduler.connector.get_num_new_matched_tokens(request, 0)[0]) is None:
                pass
            engine.scheduler.connector.request_finished_all_groups(request, ([],))
            return answer

        with_picture = found("ask", "cat", CHUNK)
        self.assertEqual(with_picture, 0)
        engine.run("none", tokens, 1)
        # What comes before the picture is the same, and the picture is not.
        self.assertEqual([found(f"{at}", "cat", at) for at in (0, CHUNK - 1, CHUNK, 2 * CHUNK)], [0, 0, CHUNK, 2 * CHUNK])
        engine.close()

    def test_pages_are_let_go_for_sleep_and_opened_for_the_next_step(self) -> None:
        engine = Engine(self, ("full",))
        tokens = [i * 17 % 500 + 3 for i in range(2 * CHUNK + 5)]
        engine.run("first", tokens, 3)
        engine.forget()
        self.assertTrue(type(engine.worker).supports_sleep_mode(None))
        engine.worker.unregister_kv_caches()
        engine.pages.zero_()
        self.assertEqual(engine.worker._worker._pools, [])
        engine.worker.restore_kv_caches()
        self.assertEqual(engine.run("second", tokens, 3), 2 * CHUNK)
        engine.close()

    def test_events_and_counts_are_vllms_own(self) -> None:
        from prometheus_client import CollectorRegistry, Counter
        from vllm.distributed.kv_events import BlockRemoved, BlockStored

        engine = Engine(self, ("window", "full"))
        # Events are kept from the first question on.
        self.served.read_events()
        tokens = [i * 11 % 500 + 3 for i in range(2 * CHUNK + 5)]
        engine.run("first", tokens, 3)
        stored = [event for event in engine.events if isinstance(event, BlockStored) and event.medium == "CPU"]
        self.assertEqual(sorted(event.token_ids for event in stored), sorted([tokens[:CHUNK], tokens[CHUNK : 2 * CHUNK]]))
        for event in stored:
            self.assertEqual((event.block_size, len(event.block_hashes), event.group_idx), (BLOCK, 4, 1))
            self.assertEqual(event.parent_block_hash is None, event.token_ids == tokens[:CHUNK])
        engine.scheduler.connector.reset_cache()
        removed = [event for event in engine.scheduler.connector.take_events() if isinstance(event, BlockRemoved)]
        self.assertEqual({tuple(event.block_hashes) for event in removed}, {tuple(event.block_hashes) for event in stored})
        side = type(engine.worker)
        stats = side.build_kv_connector_stats()
        for taken in (engine.worker.get_kv_connector_stats(), side.build_kv_connector_stats({"loads": 3})):
            stats = stats.aggregate(taken)
        self.assertEqual((stats.is_empty(), stats.reduce()["kvkeep loads"], stats.reduce()["kvkeep stores"]), (False, 3, 2))
        registry = CollectorRegistry()
        exported = side.build_prom_metrics(
            mock.Mock(),
            {kind: lambda registry=registry, **given: Counter(registry=registry, **given) for kind in _metric_types()},
            ["engine"],
            {0: ["0"]},
        )
        exported.observe(stats.data)
        self.assertEqual(registry.get_sample_value("vllm:kvkeep_loads_total", {"engine": "0"}), 3)
        engine.close()

    def test_what_cannot_be_served_is_refused_with_its_reason(self) -> None:
        from kvkeep.vllm import connector, groups, plan, settings

        def grid(heads: int = 2, canonical: bool = True, mla: bool = False, chunked: bool = True, **parallel: int) -> plan.Grid:
            given = {
                **{"decode_context_parallel_size": 1, "prefill_context_parallel_size": 1},
                **{"tensor_parallel_size": 2, "pipeline_parallel_size": 1},
                **parallel,
            }
            config = SimpleNamespace(
                parallel_config=SimpleNamespace(**given),
                scheduler_config=SimpleNamespace(enable_chunked_prefill=chunked),
                model_config=SimpleNamespace(use_mla=mla),
                device_config=SimpleNamespace(device_type="cpu"),
            )
            kept = [groups.Kept(0, plan.Group(16), heads, ("layer",))]
            options = settings.settings({"connect": "unix:///s", "canonical": canonical})
            return connector._grid(config, SimpleNamespace(hash_block_size=16, kv_tp_replicas=1), kept, options)

        self.assertEqual((grid().ranks, grid(canonical=False).ranks), (4, 2))
        for why, options in (
            ("context parallelism", {"decode_context_parallel_size": 2}),
            ("context parallelism", {"prefill_context_parallel_size": 2}),
            ("MLA.*use a CPU with AMX, or a GPU", {"mla": True, "chunked": False}),
            ("leave canonical out", {"heads": 0}),
            ("leave canonical out", {"pipeline_parallel_size": 2}),
        ):
            with self.subTest(why=why), self.assertRaisesRegex(ValueError, why):
                grid(**options)

    def test_tensors_that_cannot_be_served_are_refused_with_the_remedy(self) -> None:
        import torch

        from kvkeep.vllm import connector, groups, plan

        kept = groups.Kept(0, plan.Group(16), 2, ("a", "b", "c"))
        heads_last = torch.zeros(4, 16, 2, 8).transpose(1, 2)
        with self.assertRaisesRegex(ValueError, "set VLLM_KV_CACHE_LAYOUT=LBHNC"):
            connector._caches(kept, {"a": heads_last}, 0)
        with self.assertRaisesRegex(ValueError, "every pipeline stage"):
            connector._caches(kept, {}, None)
        # Layers that share a tensor are one, and a state may have two.
        heads_first = torch.zeros(4, 2, 16, 8)
        caches, layers = connector._caches(kept, {"a": heads_first, "b": heads_first, "c": [heads_last, heads_last[:, :1]]}, None)
        self.assertEqual((len(caches), layers), (2, {"a": 0, "b": 0, "c": 1}))
        (of_head,), _ = connector._caches(kept, {"a": heads_first}, 1)
        self.assertEqual([part.block_bytes for part in of_head.segments], [16 * 8 * 4])

    def test_objects_that_were_lost_meanwhile_are_computed(self) -> None:
        first = Engine(self, ("full", "window"))
        tokens = [i * 7 % 500 + 3 for i in range(3 * CHUNK + 5)]
        first.run("first", tokens, 3)
        first.close()
        second = Engine(self, ("full", "window"))
        # Found, and gone before the workers load it.
        second.before_loads = lambda: self.served.clear(force=True)
        second.run("second", tokens, 3)
        self.assertEqual(second.failed, {"second"})
        second.close()
        self.assertEqual(self.served.explain()["sessions"], [])


def _metric_types() -> tuple[Any, ...]:
    from prometheus_client import Counter, Gauge, Histogram

    return Counter, Gauge, Histogram


class Engine:
    """vLLM's scheduler, and a worker whose model fills pages."""

    def __init__(self, test: Classes, kinds: tuple[str, ...]) -> None:
        import torch
        from vllm.config import (
            CacheConfig,
            DeviceConfig,
            KVEventsConfig,
            KVTransferConfig,
            ModelConfig,
            SchedulerConfig,
            VllmConfig,
        )
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import (
            FullAttentionSpec,
            KVCacheConfig,
            KVCacheGroupSpec,
            MambaSpec,
            MLAAttentionSpec,
            SlidingWindowSpec,
        )
        from vllm.v1.structured_output import StructuredOutputManager

        self.test, self.kinds = test, kinds
        transfer = KVTransferConfig(
            kv_connector="KvkeepConnector",
            kv_connector_module_path="kvkeep.vllm",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"connect": f"unix://{test.folder}/s", "chunk_tokens": CHUNK, "model": "toy"},
        )
        config = VllmConfig(
            model_config=ModelConfig(
                model=str(test.folder), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=1024
            ),
            cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True, mamba_cache_mode="align"),
            scheduler_config=SchedulerConfig(
                # Windows move on inside a chunk. States are where steps end, and only there.
                max_num_batched_tokens=CHUNK if "state" in kinds else 96,
                max_num_seqs=4,
                max_model_len=1024,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                async_scheduling=False,
            ),
            device_config=DeviceConfig("cpu"),
            kv_transfer_config=transfer,
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="null"),
        )
        attention = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 16, "dtype": torch.bfloat16}
        specs = {
            "full": lambda: FullAttentionSpec(**attention),
            "latent": lambda: MLAAttentionSpec(**attention),
            "window": lambda: SlidingWindowSpec(**attention, sliding_window=WINDOW),
            "state": lambda: MambaSpec(
                block_size=STATE_BLOCK, shapes=((512,),), dtypes=(torch.bfloat16,), mamba_cache_mode="align"
            ),
        }
        groups = [KVCacheGroupSpec([kind], specs[kind]()) for kind in kinds]
        kv_config = KVCacheConfig(BLOCKS, [], groups, hash_block_size=BLOCK)
        unit = STATE_BLOCK if "state" in kinds else BLOCK
        config.cache_config.num_gpu_blocks = BLOCKS
        self.scheduler = Scheduler(config, kv_config, StructuredOutputManager(config), unit, BLOCK, log_stats=True)
        # What vLLM would send to whoever listens.
        self.events: list[Any] = []
        self.scheduler.kv_event_publisher = mock.Mock(publish=lambda batch: self.events.extend(batch.events))
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        # Groups share their pages, as vLLM's do.
        self.pages = torch.zeros(BLOCKS, 512, dtype=torch.bfloat16)
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

        from kvkeep.vllm import connector

        alone = mock.Mock(rank_in_group=0)
        with mock.patch.multiple(connector, get_tp_group=lambda: alone, get_pp_group=lambda: alone):
            self.worker = connector.KvkeepConnector(config, KVConnectorRole.WORKER, kv_config)
            self.worker.register_kv_caches({kind: self.pages for kind in kinds})
        self.scheduler.connector.set_xfer_handshake_metadata_pp_aware({(0, 0): self.worker.get_handshake_metadata()})
        self.failed: set[str] = set()
        self.before_loads: Any = lambda: None

    def run(self, name: str, tokens: list[int], more: int, **options: Any) -> int:
        """A request to its end, and how much of it was loaded."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        sampling = SamplingParams(max_tokens=more, ignore_eos=True)
        sampling.update_from_generation_config({}, 2)
        request = Request(name, list(tokens), sampling, None, block_hasher=self.hasher, **options)
        self.scheduler.add_request(request)
        found = None
        while self.scheduler.has_requests():
            self.step()
            if found is None and request.prefill_stats is not None:
                found = request.prefill_stats.num_external_cached_tokens
        return found or 0

    def forget(self) -> None:
        self.test.assertTrue(self.scheduler.reset_prefix_cache())

    def close(self) -> None:
        self.scheduler.shutdown()
        self.worker.shutdown()

    def step(self) -> None:
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        output = self.scheduler.schedule()
        worker = self.worker
        worker.bind_connector_metadata(output.kv_connector_metadata)
        worker.handle_preemptions(output.kv_connector_metadata)
        if output.kv_connector_metadata.step.loads:
            self.before_loads()
        sampled = []
        for name, count in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            # The scheduler has counted what is about to be computed already.
            end = request.num_computed_tokens
            self.check_and_compute(request, end - count, end)
            sampled.append([end % 500 + 3] if end >= request.num_tokens else [])
        worker.start_load_kv(None)
        worker.wait_for_save()
        results = worker.get_transfer_results(output.finished_req_ids)
        self.failed |= results.failed_recving
        done = KVConnectorOutput(
            finished_sending=results.finished_sending,
            finished_recving=results.finished_recving,
            failed_recving=results.failed_recving,
            invalid_block_ids=worker.get_block_ids_with_load_errors(),
            kv_connector_worker_meta=worker.build_connector_worker_meta(),
        )
        worker.clear_connector_metadata()
        names = list(output.num_scheduled_tokens)
        places = {name: place for place, name in enumerate(names)}
        self.scheduler.update_from_output(
            output, ModelRunnerOutput(names, places, sampled, kv_connector_output=done)
        )

    def check_and_compute(self, request: Any, start: int, end: int) -> None:
        """All that a layer reads of the tokens before is as computing it gave; then those of the step are written."""
        tables = self.scheduler.kv_cache_manager.get_block_ids(request.request_id)
        tokens = request.all_token_ids
        for kind, table in zip(self.kinds, tables):
            size = STATE_BLOCK if kind == "state" else BLOCK
            first = {"full": 0, "latent": 0, "window": max(0, start - WINDOW + 1), "state": max(0, start - 1)}[kind]
            for place in range(first // size, -(-start // size)):
                upto = min((place + 1) * size, start)
                self.test.assertNotEqual(table[place], 0, (kind, place, start))
                self.check(kind, table[place], tokens, place * size, upto)
            for place in range((end - 1) // size if kind == "state" else start // size, -(-end // size)):
                self.write(kind, table[place], tokens, place * size, min((place + 1) * size, end))

    def content(self, kind: str, tokens: Any, upto: int) -> bytes:
        return hashlib.shake_128(repr((kind, list(tokens[:upto]))).encode()).digest(32)

    def write(self, kind: str, block: int, tokens: Any, first: int, end: int) -> None:
        # A page has 1024 bytes: of attention, 32 for each of a block's tokens and more; of a state, one that is as of its last.
        import torch

        page = self.pages[block].view(torch.uint8)
        for token in range(end - 1 if kind == "state" else first, end):
            at = 0 if kind == "state" else (token - first) * 32
            page[at : at + 32] = torch.frombuffer(bytearray(self.content(kind, tokens, token + 1)), dtype=torch.uint8)

    def check(self, kind: str, block: int, tokens: Any, first: int, end: int) -> None:
        import torch

        page = bytes(self.pages[block].view(torch.uint8).tolist())
        for token in range(end - 1 if kind == "state" else first, end):
            at = 0 if kind == "state" else (token - first) * 32
            expected = self.content(kind, tokens, token + 1)
            self.test.assertEqual(page[at : at + 32], expected, (kind, block, token))
