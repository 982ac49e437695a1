"""What the connector tells vLLM of chunks and transfers, over a real cache."""

from __future__ import annotations

from unittest import mock

import kvkeep
from kvkeep.vllm import plan
from kvkeep.vllm.events import Chunk, Events, News

from .support import CacheTest
from .vllm_engine import BLOCK_TOKENS, Engine

CHUNK = 2 * BLOCK_TOKENS
PROMPT = list(range(3 * CHUNK + 3))


class Told(CacheTest):
    def engine(self, **options: object) -> Engine:
        engine = Engine(self.cache, **options)
        self.addCleanup(lambda: [gpu.worker.close() for gpu in engine.gpus])
        # Events are kept from the first question on.
        self.cache.read_events()
        return engine

    def chunk(self, engine: Engine, index: int) -> Chunk:
        hashes = engine.requests["first"].block_hashes
        return Chunk(
            tuple(hashes[2 * index : 2 * index + 2]),
            hashes[2 * index - 1] if index else None,
            tuple(PROMPT[index * CHUNK : (index + 1) * CHUNK]),
            None,
        )

    def all_news(self, engine: Engine, group: int, is_stored: bool, is_storage: bool) -> set[News]:
        return {News(self.chunk(engine, index), group, is_stored, is_storage) for index in range(3)}

    def test_chunks_are_told_where_they_come_and_go_with_their_tokens(self) -> None:
        self.cache.add_backend("memory:?capacity=4MiB")
        engine = self.engine()
        engine.finish(engine.run("first", PROMPT)[0])
        self.cache.flush()
        stored = self.all_news(engine, 0, True, False) | self.all_news(engine, 0, True, True)
        self.assertEqual(set(engine.scheduler.news()), stored)
        self.assertEqual(engine.scheduler.news(), [])
        # Stored once more, and told no more.
        engine.finish(engine.run("first", PROMPT)[0])
        self.assertEqual(engine.scheduler.news(), [])
        self.cache.clear()
        self.assertEqual(set(engine.scheduler.news()), self.all_news(engine, 0, False, False))
        gone = self.all_news(engine, 0, False, True)
        engine.scheduler.reset()
        self.assertEqual(set(engine.scheduler.news()), gone)

    def test_chunks_of_several_workers_and_groups_are_told_once(self) -> None:
        groups = (plan.Group(BLOCK_TOKENS, 6), plan.Group(BLOCK_TOKENS))
        engine = self.engine(groups=groups, workers=2)
        engine.finish(engine.run("first", PROMPT)[0])
        news = engine.scheduler.news()
        self.assertEqual((len(news), set(news)), (3, self.all_news(engine, 1, True, False)))

    def test_another_run_of_the_daemon_has_nothing_in_memory(self) -> None:
        engine = self.engine()
        engine.finish(engine.run("first", PROMPT)[0])
        engine.scheduler.news()
        with mock.patch.object(kvkeep.Cache, "read_events", side_effect=kvkeep.InvalidError("no event has that number")):
            self.assertEqual(set(engine.scheduler.news()), self.all_news(engine, 0, False, False))

    def test_what_is_remembered_is_bounded(self) -> None:
        engine = self.engine()
        request = engine.add("first", PROMPT)
        events = Events(engine.grid, known_max=2)
        hashes = plan.chunk_hashes(request.block_hashes, plan.Span(0, 3), 2)
        events.note(request, plan.Span(0, 3), hashes)
        self.assertEqual(list(events._known), [hashes[32:64], hashes[64:]])

    def test_transfers_and_tokens_are_counted(self) -> None:
        engine = self.engine()
        engine.finish(engine.run("first", PROMPT)[0])
        worker = engine.gpus[0].worker
        counts = worker.counts()
        self.assertEqual((counts["stores"], counts["stored_bytes"]), (1, 3 * 2 * 2 * 64))
        self.assertEqual(engine.scheduler.counts(), {"asked_tokens": len(PROMPT), "found_tokens": 0})
        engine.finish(engine.run("second", PROMPT)[0])
        counts = worker.counts()
        self.assertEqual((counts["loads"], counts["loaded_bytes"], counts["lost_loads"]), (1, 3 * 2 * 2 * 64, 0))
        self.assertEqual(engine.scheduler.counts(), {"asked_tokens": len(PROMPT), "found_tokens": 3 * CHUNK})
        self.assertEqual((worker.counts(), engine.scheduler.counts()), ({}, {}))
        lost = engine.add("lost", PROMPT)
        engine.allocate(lost, engine.ask(lost)[0])
        kvkeep.Session(self.cache, engine.scheduler._tracked["lost"].session.id).abort()
        while "lost" not in engine.received:
            engine.step()
        self.assertEqual(worker.counts()["lost_loads"], 1)
        engine.finish(lost)
