"""Hints that come with a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import kvkeep
from kvkeep.vllm import hints, plan

from .support import CacheTest
from .vllm_engine import BLOCK_TOKENS, Engine, Request

CHUNK = 2 * BLOCK_TOKENS
PROMPT = list(range(3 * CHUNK + 3))


def hinted(kind: str, **payload: object) -> Any:
    return SimpleNamespace(actions=[SimpleNamespace(action_type=kind, payload=payload)])


class Hints(CacheTest):
    def engine(self) -> Engine:
        engine = Engine(self.cache)
        self.addCleanup(lambda: [gpu.worker.close() for gpu in engine.gpus])
        return engine

    def finish(self, engine: Engine, name: str, given: Any) -> list[kvkeep.KeyState]:
        """The states of the prompt's chunks when the request is over."""
        request = engine.run(name, PROMPT)[0]
        engine.scheduler._tracked[name].hints = hints.hints_of(SimpleNamespace(request_id=name, kv_hints=given))
        engine.finish(request)
        engine.step()
        return self.states(request)

    def states(self, request: Request) -> list[kvkeep.KeyState]:
        keys = kvkeep.keys(plan.key_records(plan.chunk_hashes(request.block_hashes, plan.Span(0, 3), 2), [0]))
        return self.cache.space("toy", "toy pages", chunk_tokens=CHUNK).query(keys)

    def test_what_is_hinted_at_and_what_is_not_understood(self) -> None:
        def read(*given: Any) -> list[hints.Hint]:
            return hints.hints_of(Request("1", [], kv_hints=SimpleNamespace(actions=[one.actions[0] for one in given])))

        self.assertEqual(read(hinted("prefetch")), [hints.Hint("prefetch", 100, 600)])
        self.assertEqual(read(hinted("retain", priority=3, ttl_s=1.5), hinted("demote"))[0], ("retain", 3, 1.5))
        wrong = [
            *(hinted("pin"), hinted("retain", priority=0), hinted("retain", priority=101), hinted("retain", priority="1")),
            *(hinted("retain", ttl_s=0), hinted("retain", ttl_s="long"), hinted("retain", ttl_s=None)),
        ]
        for one in wrong:
            self.assertEqual(read(one, hinted("demote")), [hints.Hint("demote")], one)
        self.assertEqual(hints.hints_of(Request("1", [])), [])

    def test_retained_chunks_stay_longer(self) -> None:
        retained: list[tuple[object, ...]] = []
        retain = kvkeep.Space.retain

        def noted(space: kvkeep.Space, keys: kvkeep.Keys, priority: int, ttl: float) -> kvkeep.Statuses:
            retained.append((len(keys), priority, ttl, retain(space, keys, priority, ttl).ok))
            return kvkeep.Statuses([], True)

        with mock.patch.object(kvkeep.Space, "retain", noted):
            self.finish(self.engine(), "first", hinted("retain", priority=50, ttl_s=1000))
        self.assertEqual(retained, [(3, 50, 1000, True)])

    def test_demoted_chunks_leave_memory_if_another_tier_has_them(self) -> None:
        engine = self.engine()
        states = self.finish(engine, "first", hinted("demote"))
        self.assertTrue(all(state.size for state in states), "no other tier is there")
        self.cache.add_backend("memory:?capacity=4MiB")
        self.cache.clear()
        # Stored anew, and written.
        self.finish(engine, "second", None)
        self.cache.flush()
        states = self.finish(engine, "third", hinted("demote"))
        self.assertEqual([state.size for state in states], [0, 0, 0])
        self.assertEqual(engine.run("fourth", PROMPT)[1], 3 * CHUNK)

    def test_prefetched_chunks_are_loaded_before_the_request_is_scheduled(self) -> None:
        self.cache.add_backend("memory:?capacity=4MiB")
        engine = self.engine()
        self.finish(engine, "first", None)
        self.cache.flush()
        self.cache.clear()
        request = engine.add("second", PROMPT)
        request.kv_hints = hinted("prefetch")
        engine.scheduler.arrived(request)
        lookup = engine.scheduler._tracked["second"].lookup
        assert lookup
        lookup._job.wait()
        self.assertTrue(all(state.size for state in self.states(request)))
        self.assertEqual(engine.ask(request), (3 * CHUNK, True))
        engine.scheduler.finished(request)
        # One without a hint asks for nothing yet.
        engine.scheduler.arrived(engine.add("third", PROMPT))
        self.assertEqual(engine.scheduler._tracked, {})
        self.assertEqual(self.cache.explain()["sessions"], [])
