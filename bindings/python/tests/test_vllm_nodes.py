"""The connector on two nodes that share only a store: an engine that computes prompts, and one that is asked for them too early."""

from __future__ import annotations

import kvkeep
from kvkeep.vllm import pair, plan

from .support import CacheTest
from .vllm_engine import BLOCK_TOKENS, Engine, Request

CHUNK = 2 * BLOCK_TOKENS
PROMPT = list(range(3 * CHUNK + 3))


class NodesTest(CacheTest):
    def setUp(self) -> None:
        self.store_url = f"fs://{self.directory()}?capacity=64MiB"
        self.prefill_cache, self.decode_cache = self.node(), self.node()

    def node(self) -> kvkeep.Cache:
        cache = self.open()
        cache.add_backend(self.store_url)
        return cache

    def engine(self, cache: kvkeep.Cache, lookup_timeout_ms: int = 0) -> Engine:
        engine = Engine(cache, lookup_timeout_ms=lookup_timeout_ms)
        self.addCleanup(lambda: [gpu.worker.close() for gpu in engine.gpus] if not cache.closed else None)
        return engine

    def test_a_prompt_is_awaited_until_the_other_node_has_stored_it(self) -> None:
        prefill, decode = self.engine(self.prefill_cache), self.engine(self.decode_cache, 60_000)
        request = decode.add("decode", PROMPT)
        # Not known yet, and the scheduler is not held up.
        self.assertIsNone(decode.scheduler.matched(request, 0)[0])
        prefill.finish(prefill.run("prefill", PROMPT)[0])
        self.prefill_cache.flush()
        found, beside = decode.ask(request)
        self.assertEqual((found, beside), (3 * CHUNK, True))
        decode.load(request, found)
        decode.step({"decode": request.num_tokens - request.num_computed_tokens})
        self.assertTrue(decode.right(request))
        self.assertEqual(decode.failed, set())
        decode.finish(request)
        self.assertEqual(self.decode_cache.explain()["sessions"], [])

    def test_a_router_says_how_long_a_request_waits_for_the_other_node(self) -> None:
        asked = Request("prefill", PROMPT, kv_transfer_params={"do_remote_decode": True})
        told = pair.for_the_other(asked, 0)
        self.assertEqual(
            told, {"do_remote_decode": False, "do_remote_prefill": True, "lookup_timeout_ms": pair.PATIENCE_MS}
        )
        self.assertIsNone(pair.for_the_other(Request("alone", PROMPT), 0))
        decode = self.engine(self.decode_cache)
        request = decode.add("decode", PROMPT)
        request.kv_transfer_params = told
        self.assertIsNone(decode.scheduler.matched(request, 0)[0])
        prefill = self.engine(self.prefill_cache)
        prefill.finish(prefill.run("prefill", PROMPT)[0])
        self.prefill_cache.flush()
        self.assertEqual(decode.ask(request), (3 * CHUNK, True))
        decode.scheduler.finished(request)
        for wrong in (None, "1", -1, True, 1 << 32):
            self.assertEqual(pair.patience_of(Request("1", [], kv_transfer_params={"lookup_timeout_ms": wrong}), 7), 7)

    def test_states_that_the_other_node_has_not_do_not_hold_up_a_prompt(self) -> None:
        groups = (plan.Group(BLOCK_TOKENS), plan.Group(BLOCK_TOKENS, 1))
        prefill = Engine(self.prefill_cache, groups=groups)
        decode = Engine(self.decode_cache, groups=groups, lookup_timeout_ms=3_600_000)
        tokens = PROMPT[: 2 * CHUNK + 1]
        request = decode.add("decode", tokens)
        prefill.finish(prefill.run("prefill", tokens)[0])
        space = self.prefill_cache.space("toy", "toy pages", chunk_tokens=CHUNK)
        state = plan.key_records(plan.chunk_hashes(request.block_hashes, plan.Span(0, 1), 2), [0], [1])
        space.delete(kvkeep.keys(state))
        self.prefill_cache.flush()
        self.assertEqual(decode.ask(request), (2 * CHUNK, True))
        decode.scheduler.finished(request)
        for gpu in (*prefill.gpus, *decode.gpus):
            gpu.worker.close()

    def test_a_prompt_that_nobody_computes_is_a_miss_when_the_time_is_up(self) -> None:
        decode = self.engine(self.decode_cache, 100)
        request = decode.add("decode", PROMPT)
        self.assertIsNone(decode.scheduler.matched(request, 0)[0])
        self.assertEqual(decode.ask(request), (0, False))
        decode.allocate(request, 0)
        decode.step({"decode": request.num_tokens})
        self.assertTrue(decode.right(request))
        decode.finish(request)
        self.assertEqual(self.decode_cache.explain()["sessions"], [])
