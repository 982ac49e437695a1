"""Both sides of the connector over a real cache, without vLLM."""

from __future__ import annotations

from unittest import mock

import kvkeep
from kvkeep.vllm import scheduler
from kvkeep.vllm.trouble import Trouble

from .support import HANGING, CacheTest
from .vllm_engine import BLOCK_TOKENS, Engine

CHUNK = 2 * BLOCK_TOKENS
PROMPT = list(range(3 * CHUNK + 3))


class Sides(CacheTest):
    def engine(self, **options: object) -> Engine:
        engine = Engine(self.cache, **options)
        self.addCleanup(lambda: [gpu.worker.close() for gpu in engine.gpus] if not self.cache.closed else None)
        return engine

    def check_nothing_is_held(self) -> None:
        self.assertEqual(self.cache.explain()["sessions"], [])
        self.assertEqual((self.cache.stats().l1_shares, self.cache.stats().l1_staged), (0, 0))

    def store(self, engine: Engine, tokens: list[int] = PROMPT) -> None:
        engine.finish(engine.run("first", tokens)[0])

    def test_what_one_request_computed_another_loads(self) -> None:
        for load in ("async", "layered"):
            with self.subTest(load=load):
                engine = self.engine(load=load, model=load)
                first, found = engine.run("first", PROMPT)
                self.assertEqual(found, 0)
                engine.finish(first)
                second, found = engine.run("second", PROMPT[: 2 * CHUNK] + [7] * CHUNK)
                self.assertEqual((found, engine.right(second), engine.failed), (2 * CHUNK, True, set()))
                engine.finish(second)
                self.check_nothing_is_held()

    def test_a_whole_prompt_is_loaded_but_for_the_token_to_compute(self) -> None:
        for load, found in (("async", 2 * CHUNK), ("layered", 2 * CHUNK - 1)):
            with self.subTest(load=load):
                engine = self.engine(load=load, model=load)
                self.store(engine)
                again = engine.run("again", PROMPT[: 2 * CHUNK])
                self.assertEqual((again[1], engine.right(again[0])), (found, True))
                engine.finish(again[0])
                self.check_nothing_is_held()

    def test_decoded_chunks_are_stored_when_their_tokens_are_known(self) -> None:
        engine = self.engine()
        request, _ = engine.run("first", PROMPT[: CHUNK - 1])
        engine.allocate(request, 0, request.num_computed_tokens)
        # Scheduled ahead: the token's place is computed, the token not known.
        engine.step({"first": 1})
        self.assertFalse(engine.scheduler._tracked["first"].has_stores)
        request.tokens += [1, 2]
        engine.allocate(request, 0, request.num_computed_tokens)
        engine.step({"first": 1})
        engine.finish(request)
        self.assertEqual(engine.run("second", PROMPT[: CHUNK - 1] + [1, 2, 3])[1], CHUNK)

    def test_steps_keep_the_sessions_of_requests_alive(self) -> None:
        engine = self.engine()
        with mock.patch.multiple(scheduler, SESSION_TIMEOUT_S=0.3, RENEW_S=0.05):
            request, _ = engine.run("first", PROMPT)
            session = engine.scheduler._tracked["first"].session
            assert session is not None
            with self.cache.space("other").session("idle", 0.3):
                reclaimed = self.cache.stats().sessions_reclaimed
                while self.cache.stats().sessions_reclaimed == reclaimed:
                    engine.step()
            session.renew()
            engine.finish(request)
        self.check_nothing_is_held()

    def test_blocks_the_engine_has_are_left_alone(self) -> None:
        engine = self.engine()
        self.store(engine)
        request = engine.add("second", PROMPT)
        computed = CHUNK + BLOCK_TOKENS
        self.assertEqual(engine.ask(request, computed), (2 * CHUNK - BLOCK_TOKENS, True))
        engine.load(request, 2 * CHUNK - BLOCK_TOKENS, computed)
        gpu, own = engine.gpus[0], computed // BLOCK_TOKENS
        pages = [bytes(gpu.page(0, block)) for block in request.blocks]
        self.assertEqual(pages[:own], [bytes(64)] * own)
        self.assertEqual(pages[own:6], [gpu.expected(request, 0, index) for index in range(own, 6)])
        engine.finish(request)
        self.check_nothing_is_held()

    def test_what_the_engine_does_not_take_is_given_back(self) -> None:
        engine = self.engine()
        self.store(engine)
        request = engine.add("second", PROMPT)
        engine.ask(request)
        self.assertEqual(self.cache.stats().l1_shares, 3)
        engine.allocate(request, 0)
        self.assertEqual(self.cache.stats().l1_shares, 0)
        # Asked from the start, taken from the second chunk on: meanwhile another request has computed the first.
        engine.ask(request)
        self.assertEqual(engine.ask(request, CHUNK), (2 * CHUNK, True))
        engine.load(request, CHUNK, CHUNK)
        self.assertEqual(self.cache.stats().l1_shares, 0)
        # The engine has lost what it had: asked anew from the start.
        self.assertEqual(engine.ask(request, CHUNK), (2 * CHUNK, True))
        self.assertEqual(engine.ask(request, 0), (3 * CHUNK, True))
        engine.scheduler.finished(request)
        self.check_nothing_is_held()

    def test_an_abort_gives_everything_back(self) -> None:
        engine = self.engine()
        self.store(engine)
        asked = engine.add("asked", PROMPT)
        engine.ask(asked)
        self.assertFalse(engine.scheduler.finished(asked))
        loading = engine.add("loading", PROMPT)
        engine.allocate(loading, engine.ask(loading)[0])
        self.assertFalse(engine.scheduler.finished(loading), "its blocks are kept by vLLM until the load is over")
        while "loading" not in engine.received:
            engine.step()
        self.check_nothing_is_held()

    def test_a_lookup_that_hangs_is_asked_again_and_aborted(self) -> None:
        self.cache.close()
        self.cache = self.open(backends=[HANGING])
        engine = self.engine()
        request = engine.add("first", PROMPT)
        self.assertEqual([engine.scheduler.matched(request, 0) for _ in range(3)], [(None, False)] * 3)
        self.assertFalse(engine.scheduler.finished(request))
        self.check_nothing_is_held()

    def test_objects_that_cannot_be_loaded_are_computed_and_stored_again(self) -> None:
        directory = self.directory()
        self.cache.close()
        self.cache = self.open(backends=[f"fault:fs://{directory}?capacity=8MiB&fault.load_error=1"])
        engine = self.engine()
        self.store(engine)
        self.cache.flush()
        self.cache.clear()
        request = engine.add("second", PROMPT)
        found, beside = engine.ask(request)
        self.assertEqual((found, beside), (3 * CHUNK, True))
        engine.load(request, found)
        self.assertEqual(engine.failed, set(request.blocks[:6]))
        # vLLM takes back what failed and asks again.
        request.num_computed_tokens = 0
        self.assertEqual(engine.ask(request), (0, False))
        engine.allocate(request, 0)
        engine.step({"second": request.num_tokens})
        self.assertTrue(engine.right(request))
        engine.finish(request)
        third, found = engine.run("third", PROMPT)
        self.assertEqual(found, 3 * CHUNK)
        engine.finish(third)
        self.check_nothing_is_held()

    def test_preempted_blocks_are_not_used_before_their_stores_are_over(self) -> None:
        engine = self.engine()
        request, _ = engine.run("first", PROMPT)
        engine.step(preempted=("first",))
        # Whatever the blocks hold from here on, what was stored is what was there.
        for gpu in engine.gpus:
            for block in request.blocks:
                gpu.page(0, block)[:] = bytes(64)
        found, _ = engine.ask(request)
        self.assertEqual(found, 3 * CHUNK)
        engine.load(request, found)
        engine.step({"first": 3})
        self.assertTrue(engine.right(request))
        engine.finish(request)
        self.check_nothing_is_held()

    def test_every_rank_reads_its_own_object(self) -> None:
        engine = self.engine(workers=2)
        self.store(engine)
        request, found = engine.run("second", PROMPT)
        self.assertEqual((found, engine.right(request)), (3 * CHUNK, True))
        engine.finish(request)
        self.assertEqual(self.cache.stats().l1_objects, 6)
        self.check_nothing_is_held()

    def test_replicas_share_an_object(self) -> None:
        engine = self.engine(workers=4, replicas=2)
        self.store(engine)
        self.assertEqual(self.cache.stats().l1_objects, 6)
        request = engine.add("second", PROMPT)
        found, _ = engine.ask(request)
        self.assertEqual(self.cache.stats().l1_shares, 12)
        engine.load(request, found)
        self.assertEqual(self.cache.stats().l1_shares, 0)
        engine.step({"second": 3})
        self.assertTrue(engine.right(request))
        engine.finish(request)
        self.check_nothing_is_held()

    def test_without_a_cache_the_engine_computes(self) -> None:
        engine = self.engine()
        self.store(engine)
        asked = engine.add("asked", PROMPT)
        found, _ = engine.ask(asked)
        with self.assertLogs("vllm.kvkeep", "WARNING") as logged:
            self.cache.close()
            engine.load(asked, found)
            self.assertEqual(engine.failed, set(asked.blocks[:6]))
            self.assertEqual(engine.run("second", PROMPT)[1], 0)
            self.assertEqual(engine.run("third", PROMPT)[1], 0)
        self.assertEqual(len(logged.records), 2, "said once by each side")
        self.assertFalse(engine.scheduler.finished(asked))

    def test_a_trouble_is_said_once_while_it_lasts(self) -> None:
        trouble, error = Trouble(), kvkeep.KvkeepError("the disk is gone: mount it")
        with self.assertLogs("vllm.kvkeep", "WARNING") as logged:
            for _ in range(3):
                trouble.say(error, "no pages of %s", "first")
            trouble.over()
            trouble.say(error, "no pages of %s", "second")
        lines = [record.getMessage() for record in logged.records]
        self.assertEqual(lines, [f"no pages of {name}: {error}" for name in ("first", "second")])

    def test_a_load_whose_outcome_is_unknown_has_failed(self) -> None:
        engine = self.engine()
        self.store(engine)
        request = engine.add("second", PROMPT)
        engine.allocate(request, engine.ask(request)[0])
        side = engine.gpus[0].worker
        side.begin_loads(engine.scheduler.step({}, engine.tables))
        side._loads["second"].wait()
        side._loads["second"].release()
        self.assertEqual(side.over(), (set(), {"second"}))
        self.assertEqual(side.failed_blocks(), set(request.blocks[:6]))

    def test_what_is_being_stored_when_the_engine_ends_is_kept(self) -> None:
        engine = self.engine()
        engine.run("first", PROMPT)
        engine.scheduler.close()
        engine.gpus[0].worker.close()
        self.assertEqual(self.cache.stats().commits, 3)
        self.check_nothing_is_held()

    def test_a_failed_layered_load_is_told_with_its_step_and_stored_again(self) -> None:
        for stores_first in (True, False):
            with self.subTest(stores_first=stores_first):
                engine = self.engine(load="layered", model=f"toy {stores_first}")
                self.store(engine)
                request = engine.add("second", PROMPT[: 2 * CHUNK] + [7] * CHUNK)
                found, _ = engine.ask(request)
                engine.allocate(request, found)
                side, scheduler = engine.gpus[0].worker, engine.scheduler
                step = scheduler.step({"second": CHUNK}, engine.tables)
                side.begin_loads(step)
                # Of the first one, nobody knows how it went.
                side._layered[0].wait()
                side._layered[0].release()
                # Where a draft model runs after the other, what is over is asked before anything is stored.
                if stores_first:
                    side.begin_stores(step)
                sent, received = side.over()
                failed = side.failed_blocks()
                if not stores_first:
                    side.begin_stores(step)
                self.assertEqual((failed, side.failed_blocks()), (set(request.blocks[:4]), set()))
                scheduler.told(failed, received, sent)
                # vLLM computes what failed, and is not told to load it once more.
                request.num_computed_tokens = 0
                self.assertEqual(engine.ask(request), (0, False))
                self.cache.clear()
                engine.step({"second": request.num_tokens})
                engine.finish(request)
                self.assertEqual(engine.run("third", request.tokens)[1], 3 * CHUNK - 1)
                engine.finish(engine.requests["third"])
                self.check_nothing_is_held()

    def test_what_follows_a_failed_layered_load_is_not_stored(self) -> None:
        engine = self.engine(load="layered")
        self.store(engine)
        request = engine.add("second", PROMPT[:CHUNK] + [7] * CHUNK)
        found, _ = engine.ask(request)
        engine.allocate(request, found)
        kvkeep.Session(self.cache, engine.scheduler._tracked["second"].session.id).abort()
        before = self.cache.stats().commits
        engine.step({"second": CHUNK})
        self.assertEqual(engine.failed, set(request.blocks[:2]))
        self.assertEqual(self.cache.stats().commits, before)
