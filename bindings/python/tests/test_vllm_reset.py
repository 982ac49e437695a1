"""Weights that change under a running engine, over a real cache, without vLLM."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import kvkeep
from kvkeep.vllm import plan
from kvkeep.vllm.adapters import Adapters

from .support import CacheTest, some_keys
from .vllm_engine import BLOCK_TOKENS, Engine

CHUNK = 2 * BLOCK_TOKENS
PROMPT = list(range(3 * CHUNK + 3))


class EngineTest(CacheTest):
    def setUp(self) -> None:
        super().setUp()
        self.cache.close()
        self.cache = self.open(backends=[f"fs://{self.directory()}?capacity=64MiB"])

    def engine(self, **extra: object) -> Engine:
        engine = Engine(self.cache, **extra)
        self.addCleanup(lambda: [gpu.worker.close() for gpu in engine.gpus] if not self.cache.closed else None)
        return engine

    def check_nothing_is_held(self) -> None:
        self.assertEqual(self.cache.explain()["sessions"], [])
        self.assertEqual((self.cache.stats().l1_shares, self.cache.stats().l1_staged), (0, 0))

    def found(self, engine: Engine, name: str, adapter: object = None) -> int:
        """How much of the prompt is loaded; every page is checked to be of the weights of now."""
        request, found = engine.run(name, PROMPT, adapter)
        self.assertTrue(engine.right(request))
        engine.finish(request)
        return found


class Reset(EngineTest):
    def test_nothing_old_is_served_after_the_weights_have_changed(self) -> None:
        for workers in (1, 2):
            engine = self.engine(model=f"of {workers}", workers=workers)
            self.assertEqual((self.found(engine, "1"), self.found(engine, "2")), (0, 3 * CHUNK))
            self.cache.flush()
            for again in range(4):
                engine.change_weights()
                self.assertEqual(self.found(engine, f"{again} new"), 0)
                self.assertEqual(self.found(engine, f"{again} stored"), 3 * CHUNK)
            self.check_nothing_is_held()
        # What was left is not kept anywhere: one generation of each engine has objects, three chunks of each rank.
        self.cache.flush()
        self.assertEqual(self.cache.stats().l2_objects, 3 + 6)

    def test_an_engine_that_starts_anew_finds_nothing_old_either(self) -> None:
        engine = self.engine()
        self.found(engine, "1")
        engine.change_weights()
        self.assertEqual(self.found(self.engine(), "2"), 0)

    def test_other_engines_keep_theirs_where_it_is_said(self) -> None:
        engine, other = self.engine(reset="own"), self.engine()
        self.found(engine, "1")
        engine.change_weights()
        self.assertEqual((self.found(engine, "2"), self.found(other, "3")), (0, 3 * CHUNK))
        # What an engine with the old weights stores is not found by one with the new.
        engine = self.engine()
        engine.change_weights()
        self.assertEqual(self.found(other, "4"), 0)
        self.assertEqual(self.found(engine, "5"), 0)

    def test_what_was_computed_before_is_not_stored_after(self) -> None:
        engine = self.engine()
        request, _ = engine.run("long", PROMPT[: CHUNK + 1])
        engine.change_weights()
        # It goes on, with what the old weights gave in its blocks.
        request.tokens += PROMPT[CHUNK + 1 :]
        engine.allocate(request, 0, request.num_computed_tokens)
        engine.step({"long": request.num_tokens - request.num_computed_tokens})
        engine.finish(request)
        self.assertEqual(self.found(engine, "next"), 0)
        self.check_nothing_is_held()

    def test_a_preempted_request_is_computed_and_stored_anew(self) -> None:
        engine = self.engine()
        request, _ = engine.run("long", PROMPT)
        engine.change_weights()
        engine.step(preempted=("long",))
        request.num_computed_tokens = 0
        self.assertEqual(engine.ask(request), (0, False))
        engine.allocate(request, 0)
        engine.step({"long": request.num_tokens})
        self.assertTrue(engine.right(request))
        engine.finish(request)
        self.assertEqual(self.found(engine, "next"), 3 * CHUNK)
        self.check_nothing_is_held()

    def test_stores_that_the_workers_have_not_begun_are_dropped(self) -> None:
        engine = self.engine()
        request = engine.add("first", PROMPT)
        engine.ask(request)
        engine.allocate(request, 0)
        gpu = engine.gpus[0]
        # The step is scheduled before the reset and run after it.
        step = engine.scheduler.step({"first": request.num_tokens}, engine.tables)
        gpu.compute(request, 0, request.num_tokens)
        engine.change_weights()
        for call in (gpu.worker.settle, gpu.worker.begin_loads, gpu.worker.begin_stores):
            call(step)
        request.num_computed_tokens = request.num_tokens
        engine.finish(request)
        self.assertEqual(self.found(engine, "next"), 0)
        self.check_nothing_is_held()

    def test_loads_under_way_are_computed_instead(self) -> None:
        engine = self.engine()
        self.found(engine, "1")
        request = engine.add("2", PROMPT)
        found, _ = engine.ask(request)
        engine.allocate(request, found)
        gpu = engine.gpus[0]
        step = engine.scheduler.step({}, engine.tables)
        gpu.worker.begin_loads(step)
        for moving in gpu.worker._loads.values():
            moving.wait()
        engine.change_weights()
        while "2" not in engine.received:
            engine.step()
        self.assertEqual(engine.failed, set(request.blocks[:6]))
        # vLLM takes them back and asks again.
        request.num_computed_tokens = 0
        self.assertEqual(engine.ask(request), (0, False))
        engine.allocate(request, 0)
        engine.step({"2": request.num_tokens})
        engine.finish(request)
        self.assertEqual(self.found(engine, "3"), 3 * CHUNK)
        self.check_nothing_is_held()

    def test_pools_of_former_generations_are_closed(self) -> None:
        engine = self.engine()
        for i in range(3):
            engine.change_weights()
            self.found(engine, f"{i}")
        worker = engine.gpus[0].worker
        self.assertEqual((worker._retired, worker._outdated), ([], set()))
        former = worker._pools[0]
        worker.suspend()
        with self.assertRaises(kvkeep.NotFoundError):
            former.store(self.cache.space("m").session(), some_keys(1), [0] * former.blocks_per_chunk)
        # Opened again when it is used.
        self.assertEqual(self.found(engine, "again"), 3 * CHUNK)

    def test_a_cache_that_is_away_does_not_keep_the_old_alive(self) -> None:
        engine = self.engine()
        self.found(engine, "1")
        with (
            mock.patch.object(kvkeep.Space, "forget", side_effect=kvkeep.DisconnectedError("the daemon went away")),
            self.assertLogs("vllm.kvkeep", "WARNING"),
        ):
            engine.change_weights()
        self.assertEqual(self.found(engine, "2"), 0)


class Lora(EngineTest):
    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.write("first")

    def write(self, weights: str) -> None:
        # Of the same length, as retrained adapters are.
        (self.path / "adapter_model.safetensors").write_bytes(hashlib.sha256(weights.encode()).digest())
        (self.path / "adapter_config.json").write_text("{}")

    def adapter(self, number: int = 1, path: str = "") -> SimpleNamespace:
        return SimpleNamespace(lora_name="tuned", lora_int_id=number, lora_path=path or str(self.path))

    def test_a_retrained_adapter_is_another(self) -> None:
        engine = self.engine()
        self.assertEqual((self.found(engine, "1", self.adapter()), self.found(engine, "2", self.adapter())), (0, 3 * CHUNK))
        self.assertEqual(self.found(engine, "base"), 0)
        self.write("second")
        with self.assertLogs("vllm.kvkeep", "WARNING") as logged:
            # Whether the engine has loaded what is there now cannot be known: neither old nor new is served or stored.
            self.assertEqual([self.found(engine, f"3{i}", self.adapter()) for i in range(3)], [0] * 3)
        self.assertEqual(len(logged.output), 1)
        self.assertRegex(logged.output[0], "tuned.*changed.*lora_revisions")
        # Unloaded and loaded again, it has another number.
        reloaded = self.adapter(2)
        self.assertEqual((self.found(engine, "4", reloaded), self.found(engine, "5", reloaded)), (0, 3 * CHUNK))
        # What vLLM's own cache has under the same name is of either: nothing that follows it is stored.
        request = engine.add("6", [*PROMPT, *range(CHUNK)], reloaded)
        self.assertEqual(engine.ask(request, CHUNK), (0, False))
        engine.allocate(request, 0, CHUNK)
        engine.step({"6": request.num_tokens - CHUNK})
        engine.finish(request)
        request, found = engine.run("7", [*PROMPT, *range(CHUNK)], reloaded)
        self.assertEqual(found, 3 * CHUNK)
        engine.finish(request)

    def test_a_reset_takes_adapters_as_they_are(self) -> None:
        engine = self.engine(reset="own")
        self.found(engine, "1", self.adapter())
        self.write("second")
        engine.change_weights()
        self.assertEqual((self.found(engine, "2", self.adapter()), self.found(engine, "3", self.adapter())), (0, 3 * CHUNK))

    def test_a_copy_of_an_adapter_is_the_same(self) -> None:
        self.found(self.engine(), "1", self.adapter())
        with tempfile.TemporaryDirectory() as copy:
            for file in self.path.iterdir():
                (Path(copy) / file.name).write_bytes(file.read_bytes())
            # The path itself is in vLLM's hashes, where there are some.
            self.assertEqual(self.found(self.engine(), "2", self.adapter(7, copy)), 3 * CHUNK)

    def test_a_revision_that_the_user_gives(self) -> None:
        nowhere = self.adapter(path="nowhere/at-all")
        with self.assertLogs("vllm.kvkeep", "WARNING") as logged:
            self.assertEqual([self.found(self.engine(), f"{i}", nowhere) for i in range(2)], [0, 0])
        self.assertIn("not found on this machine", logged.output[0])
        for revision, expected in (("a", [0, 3 * CHUNK]), ("b", [0, 3 * CHUNK]), ("a", [3 * CHUNK] * 2)):
            engine = self.engine(lora_revisions={"tuned": revision})
            self.assertEqual([self.found(engine, f"{i}", nowhere) for i in range(2)], expected)

    def test_files_that_are_written_while_they_are_read(self) -> None:
        adapters = Adapters()
        stamps = iter([(("a", 1, 1, 1),), (("a", 1, 2, 1),)])
        with (
            mock.patch("kvkeep.vllm.adapters.stamp_of", side_effect=lambda _: next(stamps)),
            mock.patch("kvkeep.vllm.adapters.digest_of", return_value=b"d" * 32),
            self.assertLogs("vllm.kvkeep", "WARNING"),
        ):
            adapters.revision(self.adapter())
            adapters.wait()
            self.assertIsNone(adapters.revision(self.adapter()))


class Names(EngineTest):
    def test_requests_of_any_name_are_served(self) -> None:
        engine = self.engine()
        names = ["", "x" * 255, "y" * 256, "\u20ac" * 300, "a\0b", "\udc80", "z" * 100_000]
        self.assertEqual([self.found(engine, name) for name in names], [0] + [3 * CHUNK] * 6)
        short = [plan.session_name(name) for name in names]
        self.assertEqual(len(set(short)), len(names))
        self.assertEqual(short[:2], names[:2])
        self.assertTrue(all(len(name.encode()) <= 255 for name in short))
        self.assertTrue(short[2].startswith("y" * 100))
        self.assertNotEqual(plan.session_name("y" * 256 + "a"), plan.session_name("y" * 256 + "b"))

    def test_hashes_that_are_seeded_in_each_process_are_said(self) -> None:
        for algorithm, environment, said in (
            ("sha256", {}, False),
            ("sha256_cbor", {}, False),
            ("xxhash", {}, True),
            ("xxhash_cbor", {"PYTHONHASHSEED": "random"}, True),
            ("builtin", {}, True),
            ("xxhash", {"PYTHONHASHSEED": "0"}, False),
        ):
            with self.subTest(algorithm=algorithm):
                config = SimpleNamespace(prefix_caching_hash_algo=algorithm)
                self.assertEqual("PYTHONHASHSEED" in plan.unstable_hashes(config, environment), said)
