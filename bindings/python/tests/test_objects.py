from __future__ import annotations

import array
import ctypes
import gc
import weakref
from collections.abc import Sequence

import kvkeep
from kvkeep import Status

from .support import CacheTest, content, some_keys


class Objects(CacheTest):
    def test_round_trip(self) -> None:
        keys = some_keys(8)
        with self.space.session("writer") as writer:
            self.store(writer, keys)
        with self.space.session("reader") as reader:
            views = reader.reserve_read(keys)
            self.assertTrue(views.ok)
            for index, view in enumerate(views):
                self.assertEqual(view, content(index, 4096))
            self.assertTrue(reader.finish_read(keys).ok)
        self.assertEqual(self.cache.stats().l1_shares, 0)

    def test_views_are_l1_itself(self) -> None:
        keys = some_keys(2)
        session = self.space.session()
        staged = session.reserve_write(keys, [64, 4096])
        for index, view in enumerate(staged):
            self.assertFalse(view.readonly)
            self.assertEqual(ctypes.addressof(ctypes.c_char.from_buffer(view)), staged.address(index))
        self.assertEqual(staged.address(1) % 4096, 0)
        staged[0][:] = b"x" * 64
        views = session.finish_write_and_reserve_read(keys)
        self.assertEqual(views.address(0), staged.address(0))
        self.assertEqual(ctypes.addressof(views[0].obj), views.address(0))
        self.assertTrue(views[0].readonly)
        self.assertEqual(bytes(views[0]), b"x" * 64)
        with self.assertRaises(TypeError):
            views[0][0] = 1

    def test_a_view_keeps_the_cache_open(self) -> None:
        cache = kvkeep.Cache(1 << 20)
        session = cache.space("m").session()
        view = session.reserve_write(some_keys(1), 64)[0]
        kept = weakref.ref(cache)
        del cache, session
        gc.collect()
        view[0] = 1
        self.assertIsNotNone(kept())
        del view
        gc.collect()
        self.assertIsNone(kept())

    def test_extra_count_is_taken_and_returned(self) -> None:
        keys = some_keys(2)
        session = self.space.session()
        self.store(session, keys)
        session.reserve_read(keys, extra_count=2)
        self.assertEqual(self.cache.stats().l1_shares, 6)
        worker = self.cache.session(session.id)
        self.assertTrue(worker.finish_read(keys, extra_count=1).ok)
        self.assertEqual(list(worker.finish_read(keys, extra_count=1)), [Status.ERR_NOT_HELD] * 2)
        self.assertTrue(worker.finish_read(keys).ok)
        self.assertEqual(kvkeep.extra_count(8, 1), 7)

    def test_temporaries_go_with_their_last_share(self) -> None:
        keys = some_keys(2)
        session = self.space.session()
        session.reserve_write(keys, 64, kvkeep.Lifetime.TEMPORARY)
        session.finish_write_and_reserve_read(keys)
        self.assertTrue(session.finish_read(keys).ok)
        self.assertEqual(session.reserve_read(keys).statuses, [Status.ERR_NOT_FOUND] * 2)

    def test_one_key_fails_alone(self) -> None:
        keys = some_keys(3)
        session = self.space.session()
        self.store(session, keys[:1])
        views = session.reserve_write(keys, 64)
        self.assertFalse(views.ok)
        self.assertEqual(views.statuses, [Status.ERR_EXISTS, Status.OK, Status.OK])
        self.assertIsNone(views[0])
        self.assertEqual(views.address(0), 0)
        statuses = session.abort_write(keys)
        self.assertEqual(list(statuses), [Status.ERR_NOT_FOUND, Status.OK, Status.OK])

    def test_statuses_are_a_sequence(self) -> None:
        keys = some_keys(3)
        session = self.space.session()
        session.reserve_write(keys[:2], 64)
        statuses = session.finish_write(keys)
        self.assertIsInstance(statuses, Sequence)
        expected = [Status.OK, Status.OK, Status.ERR_NOT_FOUND]
        self.assertEqual((list(statuses), statuses), (expected, expected))
        self.assertNotEqual(statuses, expected[:2])
        self.assertEqual((statuses[-1], statuses.count(Status.OK)), (Status.ERR_NOT_FOUND, 2))
        self.assertEqual(statuses.index(Status.ERR_NOT_FOUND), 2)
        self.assertIn(Status.OK, statuses)
        self.assertEqual((statuses[:2], statuses[:2].ok, statuses[1:].ok, statuses.ok), (expected[:2], True, False, False))
        self.assertEqual(list(reversed(statuses)), expected[::-1])

    def test_the_end_of_a_prompt_has_a_key_of_its_own(self) -> None:
        session = self.space.session()
        self.assertEqual(session.append_tokens(range(21)), 1)
        tail = session.tail_keys(5, first_rank=3, rank_count=2, group_count=2)
        self.assertEqual([(key.rank, key.group) for key in tail], [(3, 0), (3, 1), (4, 0), (4, 1)])
        self.assertEqual(len({key.hash for key in tail}), 1)
        self.assertNotIn(session.tail_keys(4)[0].hash, [tail[0].hash, session.keys(0, 1)[0].hash])
        for refused in (0, 6, -1, 1 << 32):
            with self.assertRaises(kvkeep.InvalidError):
                session.tail_keys(refused)
        # Refused before memory is taken for them.
        for many in (lambda: session.tail_keys(5, rank_count=(1 << 32) - 1), lambda: session.keys(0, 1 << 21)):
            with self.assertRaisesRegex(kvkeep.InvalidError, "at most 1048576"):
                many()

    def test_tokens_become_keys(self) -> None:
        session = self.space.session()
        self.assertEqual(session.append_tokens(range(40)), 2)
        self.assertEqual(session.append_tokens(array.array("I", range(40, 48))), 3)
        keys = session.keys(0, 3, rank_count=2)
        self.assertEqual([key.rank for key in keys], [0, 1] * 3)
        self.store(session, keys, 64)
        session.reserve_read(keys)
        self.assertEqual(session.finish_read_tokens(16, 48, rank_count=2), 4)
        self.assertTrue(session.finish_read(keys[:2]).ok)

    def test_a_space_rules_its_keys(self) -> None:
        keys = some_keys(2)
        session = self.space.session("who")
        self.store(session, keys)
        self.assertTrue(self.space.touch(keys).ok)
        self.assertTrue(self.space.retain(keys, 100, 1000).ok)
        session.reserve_read(keys)
        there = self.space.query(keys)
        self.assertEqual(there[0]._replace(size=0), kvkeep.KeyState(True, 0, 1, False, False, False, False))
        self.assertEqual([state.size for state in there], [4096] * 2)
        self.assertEqual(self.space.query(some_keys(3)[2:]), [kvkeep.KeyState(False, 0, 0, False, False, False, False)])
        usage = self.space.usage()
        self.assertEqual((usage.objects, usage.used_bytes, usage.quota_bytes), (2, 8192, 0))
        self.assertEqual(list(self.space.delete(keys)), [Status.ERR_LOCKED] * 2)
        self.assertEqual(list(self.space.evict(keys)), [Status.ERR_LOCKED] * 2)
        self.assertIn("who", str(self.space.explain(keys[0])))
        self.assertIn("who", str(session.explain()))
        self.assertIn("who", str(self.cache.explain()))
        session.finish_read(keys)
        self.assertTrue(self.space.evict(keys[:1]).ok)
        self.assertEqual(self.cache.stats().evictions, 1)
        self.assertEqual(self.space.clear(), 1)
        self.assertIn("# TYPE", self.cache.metrics())
        session.reserve_read(some_keys(3))
        misses = self.space.misses()
        self.assertEqual((misses.asked, misses.hits, misses.misses), (5, 2, 3))
        self.assertEqual(list(misses.reasons)[:3], [1, 0, 1])
        self.assertEqual((self.cache.misses().asked, self.cache.explain_misses()["all"]["misses"]), (5, 3))

    def test_events_are_told_to_any_reader(self) -> None:
        self.assertEqual(self.cache.read_events(), ([], 1))
        keys = some_keys(2)
        session = self.space.session()
        self.store(session, keys, 64)
        self.space.clear()
        first, next = self.cache.read_events(1, most=3)
        self.assertEqual(next, 4)
        self.assertEqual([event.sequence for event in first], [1, 2, 3])
        self.assertEqual([event.key for event in first[:2]], list(keys))
        stored = kvkeep.EventKind.STORED
        self.assertEqual([event.kind for event in first], [stored, stored, kvkeep.EventKind.REMOVED])
        told = (first[0].space, first[0].backend, first[0].size, first[0].tier)
        self.assertEqual(told, (self.space.id, 0, 64, 0))
        self.assertEqual(len(self.cache.read_events(next)[0]), 1)
        self.assertEqual(len(self.cache.read_events()[0]), 4)
        for bad in ({"next": 6}, {"next": -1}, {"most": 0}):
            with self.assertRaises(kvkeep.InvalidError):
                self.cache.read_events(**bad)

    def test_a_block_that_raises_aborts_its_session(self) -> None:
        keys = some_keys(1)
        with self.assertRaises(ZeroDivisionError), self.space.session() as session:
            self.store(session, keys)
            session.reserve_read(keys)
            raise ZeroDivisionError
        self.assertEqual((self.cache.stats().l1_shares, self.cache.stats().sessions), (0, 0))

    def test_a_session_may_end_inside_its_block(self) -> None:
        with self.space.session() as session:
            session.end()
        with self.assertRaises(kvkeep.NotFoundError):
            session.end()
