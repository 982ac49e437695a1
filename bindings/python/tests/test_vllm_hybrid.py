"""Models whose layers are in several groups, over a real cache: what is answered, loaded and stored against a model of it all."""

from __future__ import annotations

import itertools
import random
from typing import Optional

import kvkeep
from kvkeep.vllm import plan

from .support import CacheTest
from .vllm_engine import BLOCK_TOKENS, Engine

FULL = plan.Group(BLOCK_TOKENS)
# Windows of a part of a chunk and of more than one; states by their place and by name; blocks of two sizes.
GROUPS = {
    "window": (FULL, plan.Group(BLOCK_TOKENS, 6)),
    "windows": (plan.Group(BLOCK_TOKENS, 3), FULL, plan.Group(2 * BLOCK_TOKENS, 19)),
    "states": (FULL, plan.Group(2 * BLOCK_TOKENS, 1)),
    "named states": (FULL, plan.Group(2 * BLOCK_TOKENS, 1, True)),
    "all": (FULL, plan.Group(BLOCK_TOKENS, 9), plan.Group(4 * BLOCK_TOKENS, 1, True)),
    "windows alone": (plan.Group(BLOCK_TOKENS, 9),),
}


class Hybrid(CacheTest):
    def engine(self, name: str, **options: object) -> Engine:
        engine = Engine(self.cache, groups=GROUPS[name], model=name, **options)
        self.addCleanup(lambda: [gpu.worker.close() for gpu in engine.gpus])
        return engine

    def check_nothing_is_held(self, engine: Engine) -> None:
        self.assertEqual(self.cache.explain()["sessions"], [])
        self.assertEqual((self.cache.stats().l1_shares, self.cache.stats().l1_staged), (0, 0))
        self.assertEqual(sum(engine.users.values()), 0)

    def run_in_pieces(self, engine: Engine, name: str, tokens: list[int], pieces: list[int]) -> None:
        request = engine.add(name, tokens)
        found, _ = engine.ask(request)
        if found:
            engine.load(request, found)
        else:
            engine.allocate(request, 0)
        for piece in itertools.cycle(pieces):
            if request.num_computed_tokens == request.num_tokens:
                break
            engine.step({name: min(piece, request.num_tokens - request.num_computed_tokens)})
        self.assertTrue(engine.right(request))
        engine.finish(request)
        self.check_nothing_is_held(engine)

    def test_what_one_request_computed_another_loads(self) -> None:
        for name in GROUPS:
            with self.subTest(name=name):
                engine = self.engine(name)
                chunk = engine.grid.chunk_tokens
                tokens = list(range(4 * chunk + 3))
                self.run_in_pieces(engine, "first", tokens, [4 * chunk + 3])
                for whole, more in ((4, 3), (3, 1), (2, 0), (1, 2)):
                    request, found = engine.run(f"{whole}", tokens[: whole * chunk + more])
                    # Without a token more, the last one of the prompt would be computed from pages that are not there.
                    self.assertEqual(found, (whole - (more == 0)) * chunk)
                    self.assertTrue(engine.right(request))
                    engine.finish(request)
                    self.check_nothing_is_held(engine)

    def test_prompts_computed_in_pieces_are_stored_as_far_as_windows_have_not_left(self) -> None:
        for name, piece in itertools.product(GROUPS, (1, 5, 8, 11)):
            with self.subTest(name=name, piece=piece):
                engine = self.engine(name, tenant=str(piece))
                # States lie at the ends of pieces only: those are at the ends of chunks.
                chunk = engine.grid.chunk_tokens
                pieces = [chunk] if any(group.reach == 1 for group in engine.grid.groups) else [piece]
                tokens = list(range(3 * chunk + 2))
                self.run_in_pieces(engine, "first", tokens, pieces)
                request, found = engine.run("second", tokens)
                self.assertEqual((found, engine.right(request)), (3 * chunk, True))
                engine.finish(request)

    def test_the_answer_is_the_longest_length_at_which_all_groups_can_go_on(self) -> None:
        chunks, choice = 4, random.Random(7)
        for name in GROUPS:
            engine = self.engine(name)
            grid, chunk = engine.grid, engine.grid.chunk_tokens
            tokens = list(range(chunks * chunk + 1))
            self.run_in_pieces(engine, "first", tokens, [len(tokens)])
            hashes = plan.chunk_hashes(engine.requests["first"].block_hashes, plan.Span(0, chunks), grid.hashes_per_chunk)
            space = self.cache.space(name, "toy pages", chunk_tokens=chunk)
            keys = kvkeep.keys(plan.key_records(hashes, range(1), range(len(grid.groups))))
            places = list(itertools.product(range(chunks), range(len(grid.groups))))
            for case in range(25):
                lost = [place for place in places if choice.random() < 0.25]
                for place in lost:
                    space.delete(keys[places.index(place) : places.index(place) + 1])
                with self.subTest(name=name, lost=lost):
                    expected = next(
                        (
                            length
                            for length in range(chunks, 0, -1)
                            if not any(
                                number == group and self.needs(grid, group, length, index)
                                for index, number in lost
                                for group in range(len(grid.groups))
                            )
                        ),
                        0,
                    )
                    request = engine.add(f"case {case}", tokens)
                    self.assertEqual(engine.ask(request)[0], expected * chunk)
                    engine.scheduler.finished(request)
                # Computed and stored again, as far as it is lost.
                engine.step()
                self.run_in_pieces(engine, f"again {case}", tokens, [len(tokens)])
                self.store_all(engine, tokens)

    def store_all(self, engine: Engine, tokens: list[int]) -> None:
        """Has all of it stored, as a request that was told of nothing stores it."""
        request = engine.add("whole", tokens)
        engine.allocate(request, 0)
        engine.step({"whole": len(tokens)})
        engine.finish(request)

    @staticmethod
    def needs(grid: plan.Grid, group: int, length: int, index: int) -> bool:
        """Whether a prefix of `length` chunks needs a group's chunk."""
        reach: Optional[int] = grid.groups[group].reach
        first = max(0, length * grid.chunk_tokens - reach) // grid.chunk_tokens if reach else 0
        return first <= index < length

    def test_a_load_that_fails_is_told_by_its_request_and_computed(self) -> None:
        for name in ("window", "all"):
            with self.subTest(name=name):
                engine = self.engine(name)
                tokens = list(range(3 * engine.grid.chunk_tokens + 1))
                self.run_in_pieces(engine, "first", tokens, [len(tokens)])
                request = engine.add("second", tokens)
                found, _ = engine.ask(request)
                engine.allocate(request, found)
                kvkeep.Session(self.cache, engine.scheduler._tracked["second"].session.id).abort()
                while "second" not in engine.received:
                    engine.step()
                self.assertEqual((engine.failed_requests, engine.failed), ({"second"}, set()))
                request.num_computed_tokens = 0
                self.assertEqual(engine.ask(request), (0, False))
                engine.step({"second": len(tokens)})
                engine.finish(request)
                self.check_nothing_is_held(engine)

    def test_blocks_that_leave_a_window_are_kept_while_they_are_stored(self) -> None:
        engine = self.engine("window")
        chunk = engine.grid.chunk_tokens
        request = engine.add("first", list(range(3 * chunk)))
        engine.allocate(request, 0)
        step = engine.scheduler.step({"first": chunk}, engine.tables)
        (move,) = step.stores
        lent = {block for part in move.parts for block in part.blocks if block >= 0}
        request.num_computed_tokens = 3 * chunk
        engine.slide(request)
        self.assertEqual(lent & set(engine.free), set())
        engine.scheduler.told(stored={move.number: 1})
        self.assertNotEqual(lent & set(engine.free), set())
        engine.finish(request)

    def test_engines_of_any_tensor_parallelism_share_objects_of_heads(self) -> None:
        kinds = [{"workers": 1, "heads": 4}, {"workers": 2, "heads": 2}, {"workers": 4}, {"workers": 8, "replicas": 2}]
        for turn, kind in enumerate(kinds):
            engines = [self.engine("window", tenant=str(turn), **each) for each in (kind, *kinds)]
            tokens = [turn, *range(2, 3 * engines[0].grid.chunk_tokens + 2)]
            self.run_in_pieces(engines[0], "first", tokens, [5])
            for engine in engines[1:]:
                request, found = engine.run("second", tokens)
                self.assertEqual((found, engine.right(request)), (len(tokens) - 1, True))
                engine.finish(request)
                self.check_nothing_is_held(engine)

    def test_several_workers_say_when_they_have_stored(self) -> None:
        engine = self.engine("window", workers=4, replicas=2)
        tokens = list(range(3 * engine.grid.chunk_tokens + 1))
        self.run_in_pieces(engine, "first", tokens, [5])
        request, found = engine.run("second", tokens)
        self.assertEqual((found, engine.right(request)), (len(tokens) - 1, True))
        engine.finish(request)
        self.check_nothing_is_held(engine)
