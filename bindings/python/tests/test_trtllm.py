"""TensorRT-LLM's connector over a real cache, without TensorRT-LLM: an engine imitates its documented calls."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from unittest import mock

import kvkeep
from kvkeep.trtllm.plan import NO_PAGE, Load, Move, Step, chain_of
from kvkeep.trtllm.settings import VARIABLE, settings
from kvkeep.trtllm.worker import paged

from .support import HANGING, CacheTest
from .trtllm_engine import BLOCK_TOKENS, Engine, Gpu, Request

PROMPT = list(range(100, 100 + 6 * BLOCK_TOKENS + 2))
FULL = 6 * BLOCK_TOKENS


class Trtllm(CacheTest):
    def engine(self, **options: object) -> Engine:
        engine = Engine(self.cache, **options)
        self.addCleanup(lambda: [worker.close() for worker in engine.workers] if not self.cache.closed else None)
        return engine

    def check_nothing_is_held(self) -> None:
        self.assertEqual(self.cache.explain()["sessions"], [])
        self.assertEqual((self.cache.stats().l1_shares, self.cache.stats().l1_staged), (0, 0))

    def serve(self, engine: Engine, number: int, tokens: list[int], **how: object) -> int:
        request = Request(number, list(tokens), how.pop("salt", None))
        loaded = engine.run(request, **how)
        self.assertEqual(engine.wrong(request), [])
        engine.finish(request)
        self.check_nothing_is_held()
        return loaded

    def test_what_one_request_computed_another_engine_loads(self) -> None:
        first, second = self.engine(), self.engine()
        self.assertEqual(self.serve(first, 1, PROMPT), 0)
        self.assertEqual(self.serve(second, 1, PROMPT), FULL)
        self.assertEqual(self.serve(second, 2, PROMPT[: 3 * BLOCK_TOKENS] + [7] * 9), 3 * BLOCK_TOKENS)

    def test_one_token_is_always_left_to_compute(self) -> None:
        engine = self.engine()
        self.serve(engine, 1, PROMPT[:FULL])
        self.assertEqual(self.serve(engine, 2, PROMPT[:FULL]), FULL - BLOCK_TOKENS)
        self.assertEqual(self.serve(engine, 3, PROMPT[:1]), 0)

    def test_chunks_and_decoded_blocks_are_stored_once_they_are_computed(self) -> None:
        engine = self.engine()
        self.serve(engine, 1, PROMPT, chunk=5, decode=[1, 2, 3, 4, 5, 6])
        self.assertEqual(self.serve(engine, 2, [*PROMPT, 1, 2, 3, 4, 5, 6, 7]), FULL + 2 * BLOCK_TOKENS)
        # After a load, what is computed is stored as soon as the engine counts what was loaded.
        self.serve(engine, 3, [*PROMPT[:FULL], *range(20)], decode=[1])
        self.assertEqual(self.serve(engine, 4, [*PROMPT[:FULL], *range(20), 2]), FULL + 20)

    def test_what_the_engine_has_itself_is_not_loaded(self) -> None:
        engine = self.engine()
        self.serve(engine, 1, PROMPT)
        self.assertEqual(self.serve(engine, 2, PROMPT, local=2 * BLOCK_TOKENS), FULL - 2 * BLOCK_TOKENS)
        self.assertEqual(self.serve(engine, 3, PROMPT, local=3), 0)

    def test_an_offer_that_is_taken_in_part_is_given_back_in_part(self) -> None:
        engine = self.engine()
        self.serve(engine, 1, PROMPT)
        self.assertEqual(self.serve(engine, 2, PROMPT, honour=3 * BLOCK_TOKENS), 3 * BLOCK_TOKENS)
        self.assertEqual(self.serve(engine, 3, PROMPT, honour=0), 0)

    def test_what_the_engine_will_compute_is_not_loaded(self) -> None:
        engine = self.engine()
        self.serve(engine, 1, PROMPT)
        for start, end, left in ((3 * BLOCK_TOKENS, FULL, (0, 3)), (0, BLOCK_TOKENS + 1, (2, 6)), (0, FULL, None)):
            request = Request(2, PROMPT)
            engine.scheduler.matched(request, 0)
            engine.scheduler.cancelled(request, start, end)
            data = SimpleNamespace(request_id=2, new_tokens=PROMPT, new_block_ids=list(range(7)), computed_position=0)
            data.num_scheduled_tokens = 1
            loads = engine.scheduler.step([data], []).loads
            pages = [move.pages for load in loads for move in load.moves]
            self.assertEqual(pages, [] if left is None else [tuple(range(*left))])
            engine.scheduler.finished(request)
            self.check_nothing_is_held()

    def test_a_layer_waits_for_all_segments_up_to_it(self) -> None:
        engine = self.engine(ranks=1)
        self.serve(engine, 1, PROMPT)
        request = Request(2, PROMPT)
        engine.scheduler.matched(request, 0)
        data = SimpleNamespace(request_id=2, new_tokens=PROMPT, new_block_ids=list(range(7)), computed_position=0)
        data.num_scheduled_tokens = 2
        step, worker = engine.scheduler.step([data], []), engine.workers[0]
        real = kvkeep.Transfer.stream_wait_layer
        for first, expected in ((0, [[0], [1], []]), (40, [[0, 1], [], []])):
            with mock.patch.object(kvkeep.Transfer, "stream_wait_layer", autospec=True, side_effect=real) as waited:
                worker.begin_loads(step.loads)
                found = []
                for layer in range(first, first + 3):
                    waited.reset_mock()
                    worker.wait_layer(layer)
                    found.append([call.args[1] for call in waited.call_args_list])
                self.assertEqual(found, expected)
            worker.store([])
        engine.scheduler.finished(request)

    def test_salts_tenants_models_and_generations_never_meet(self) -> None:
        for one in ({}, {"model": "other"}, {"tenant": "t"}, {"generation": 1}):
            engine = self.engine(**one)
            for salt in (None, "", "a", "b"):
                self.assertEqual(self.serve(engine, 1, PROMPT, salt=salt), 0)
                self.assertEqual(self.serve(engine, 2, PROMPT, salt=salt), FULL)

    def test_windows_load_what_they_need_and_pages_that_are_none_are_left_alone(self) -> None:
        windows = (None, 2 * BLOCK_TOKENS)
        first, second = self.engine(windows=windows), self.engine(windows=windows)
        long = list(range(18 * BLOCK_TOKENS + 1))
        self.assertEqual(self.serve(first, 1, long, chunk=8), 0)
        request = Request(2, [*long, 7])
        self.assertEqual(second.run(request), 18 * BLOCK_TOKENS)
        self.assertIn(NO_PAGE, second.tables[2][1])
        self.assertEqual(second.wrong(request), [])
        second.finish(request)
        self.check_nothing_is_held()

    def test_a_window_that_is_gone_shortens_the_answer(self) -> None:
        windows = (None, 2 * BLOCK_TOKENS)
        engine = self.engine(windows=windows)
        self.serve(engine, 1, PROMPT)
        space = engine.scheduler._space
        lost = chain_of(PROMPT, BLOCK_TOKENS, None).hashes[5]
        self.assertTrue(space.delete([(lost, rank, 1) for rank in (0, 1)]).ok)
        self.assertEqual(self.serve(engine, 2, PROMPT), 5 * BLOCK_TOKENS)

    def test_pages_that_a_window_may_have_passed_are_not_stored(self) -> None:
        engine = self.engine(windows=(None, 2 * BLOCK_TOKENS))
        self.serve(engine, 1, PROMPT)
        request = Request(2, [*PROMPT[:FULL], *range(3 * BLOCK_TOKENS)])
        engine.scheduler.matched(request, 0)
        table = list(range(12))
        new = SimpleNamespace(request_id=2, new_tokens=request.tokens, new_block_ids=[], computed_position=0)
        new.num_scheduled_tokens, new.new_block_ids_by_layer_group = 3 * BLOCK_TOKENS, [table, table]
        self.assertEqual(engine.scheduler.step([new], []).stores, [])
        later = SimpleNamespace(request_id=2, new_tokens=[1], new_block_ids=[], new_block_ids_by_layer_group=[[], []])
        later.computed_position, later.num_scheduled_tokens = len(request.tokens), 1
        stores = engine.scheduler.step([], [later]).stores
        self.assertEqual([(move.group, len(move.pages)) for move in stores], [(0, 3)])
        engine.scheduler.finished(request)

    def test_a_request_that_is_reset_begins_anew(self) -> None:
        engine = self.engine()
        request = Request(1, PROMPT)
        engine.scheduler.matched(request, 0)
        data = SimpleNamespace(request_id=1, new_tokens=PROMPT, new_block_ids=[1, 2, 3, 4, 5, 6, 7], computed_position=0)
        data.num_scheduled_tokens = 2 * BLOCK_TOKENS
        self.assertEqual(engine.scheduler.step([data], []).stores[0].pages, (1, 2))
        engine.scheduler.reset(request)
        self.assertEqual(engine.scheduler.step([], [data]), Step())
        again = SimpleNamespace(**{**vars(data), "new_block_ids": [11, 12, 13, 14, 15, 16, 17]})
        self.assertEqual(engine.scheduler.step([again], []).stores[0].pages, (11, 12))
        engine.scheduler.finished(request)
        self.check_nothing_is_held()

    def test_requests_that_are_more_than_tokens_are_computed_and_not_stored(self) -> None:
        engine = self.engine()
        request = Request(1, PROMPT)
        request.lora_task_id = 3
        self.assertEqual(engine.run(request), 0)
        engine.finish(request)
        self.assertEqual(self.cache.stats().l1_objects, 0)

    def test_a_request_that_never_runs_gives_back_what_it_was_offered(self) -> None:
        engine = self.engine()
        self.serve(engine, 1, PROMPT)
        request = Request(2, PROMPT)
        self.assertEqual(engine.scheduler.matched(request, 0), (FULL, False))
        self.assertGreater(self.cache.stats().l1_shares, 0)
        # Asked once more, the former answer is given back.
        self.assertEqual(engine.scheduler.matched(request, 0), (FULL, False))
        engine.scheduler.finished(request)
        self.check_nothing_is_held()
        engine.scheduler.matched(request, 0)
        engine.scheduler.close()
        self.check_nothing_is_held()

    def test_a_backend_that_never_answers_is_not_waited_for(self) -> None:
        self.cache.add_backend(HANGING)
        engine = self.engine(wait_ms=5)
        self.assertEqual(engine.scheduler.matched(Request(1, PROMPT), 0), (0, False))

    def test_a_page_that_cannot_be_loaded_fails_aloud(self) -> None:
        engine = self.engine(ranks=1)
        with engine.scheduler._space.session() as session:
            move = Move(0, (bytes(32),), (1,))
            engine.workers[0].begin_loads([Load(session.id, [move])])
            with self.assertRaisesRegex(kvkeep.CorruptError, "start the requests of this step again"):
                engine.workers[0].store([])
            engine.workers[0].begin_loads([Load(session.id, [move])])
            with self.assertRaises(kvkeep.CorruptError):
                for layer in range(2):
                    engine.workers[0].wait_layer(layer)
                engine.workers[0].store([])
            engine.workers[0].store([])

    def test_pages_that_are_none_or_of_no_group_are_refused(self) -> None:
        engine = self.engine(ranks=1)
        with self.assertLogs("tensorrt_llm.kvkeep", "WARNING"):
            engine.workers[0].store([Move(0, (bytes(32),), (NO_PAGE,))])
            engine.workers[0].store([Move(5, (bytes(32),), (1,))])
        self.assertEqual(self.cache.stats().l1_objects, 0)

    def test_an_offer_without_pages_is_refused(self) -> None:
        engine = self.engine()
        self.serve(engine, 1, PROMPT)
        request = Request(2, PROMPT)
        engine.scheduler.matched(request, 0)
        data = SimpleNamespace(request_id=2, new_tokens=PROMPT, new_block_ids=[1], computed_position=0)
        data.num_scheduled_tokens = 2
        with self.assertRaisesRegex(RuntimeError, "no pages for all of 6 blocks"):
            engine.scheduler.step([data], [])
        engine.scheduler.finished(request)

    def test_a_cache_that_went_away_means_that_prompts_are_computed(self) -> None:
        engine = self.engine()
        self.cache.close()
        with self.assertLogs("tensorrt_llm.kvkeep", "WARNING") as logged:
            self.assertEqual(engine.scheduler.matched(Request(1, PROMPT), 0), (0, False))
            self.assertEqual(engine.scheduler.matched(Request(2, PROMPT), 0), (0, False))
            engine.workers[0].store([Move(0, (bytes(32),), (1,))])
        self.assertEqual(len(logged.output), 2)

    def test_a_step_crosses_processes(self) -> None:
        step = Step([Load(3, [Move(0, (bytes(32),), (1,))])], [Move(1, (bytes(32),), (2,))])
        self.assertEqual(pickle.loads(pickle.dumps(step)), step)

    def test_regions_are_segments(self) -> None:
        gpu = Gpu(0, (None, 6))
        full, window = paged(gpu.layout)
        self.assertEqual((full.group.window, window.group.window, full.page_count), (0, 2, 64))
        self.assertEqual([segment.layer for segment in window.segments], [10, 11])
        self.assertEqual([segment.group for segment in window.segments], [1, 1])

    def test_settings_that_cannot_be_meant_are_refused(self) -> None:
        given = settings("unix:///a.sock", {VARIABLE: '{"wait_ms": 5, "tenant": "t"}'})
        self.assertEqual((given.connect, given.wait_ms, given.tenant), ("unix:///a.sock", 5, "t"))
        for url, text, expected in (
            ("", "{}", "server_url"),
            ("unix:///a.sock", "{", "no JSON"),
            ("unix:///a.sock", "[]", "no JSON object"),
            ("unix:///a.sock", '{"other": 1}', "other"),
            ("unix:///a.sock", '{"wait_ms": "5"}', "not of type int"),
            ("unix:///a.sock", '{"wait_ms": 0}', "at least 1"),
        ):
            with self.assertRaisesRegex(kvkeep.InvalidError, expected):
                settings(url, {VARIABLE: text})

    def test_a_store_that_takes_too_long_is_dropped(self) -> None:
        engine = self.engine(ranks=1)
        engine.workers[0]._save_s = 0.0
        # Cancelled when it was done already, or before: either way no page is read any more.
        with mock.patch.object(kvkeep.Transfer, "wait", autospec=True, side_effect=slow(kvkeep.Transfer.wait)) as waited:
            engine.workers[0].store([Move(0, (bytes(32),), (1,))])
        self.assertEqual(waited.call_count, 2)
        self.check_nothing_is_held()


def slow(wait):  # type: ignore[no-untyped-def]
    """A wait that times out if it may."""

    def timed(transfer: kvkeep.Transfer, timeout: object = None) -> object:
        if timeout is not None:
            raise kvkeep.TimedOutError("not yet")
        return wait(transfer)

    return timed
