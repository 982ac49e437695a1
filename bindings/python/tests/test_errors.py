from __future__ import annotations

import array
import os
import warnings

import kvkeep
from kvkeep import Status, _ffi
from kvkeep._library import milliseconds
from kvkeep.errors import BY_STATUS

from .support import CacheTest, some_keys


class Errors(CacheTest):
    def test_every_error_status_has_its_exception(self) -> None:
        self.assertEqual({status for status in Status if status < 0}, set(BY_STATUS))
        for kind in BY_STATUS.values():
            self.assertIs(getattr(kvkeep, kind.__name__), kind)

    def test_a_refusal_says_why(self) -> None:
        with self.assertRaises(kvkeep.InvalidError) as refused:
            kvkeep.Cache(1 << 20, eviction_policy="best")
        self.assertIn("best", str(refused.exception))
        self.assertEqual(refused.exception.status, Status.ERR_INVALID)
        self.assertIsInstance(refused.exception, ValueError)
        with self.assertRaises(kvkeep.InvalidError):
            kvkeep.Cache(0)
        with self.assertRaises(kvkeep.InvalidError) as refused:
            self.cache.add_backend("tape:///dev/st0")
        self.assertIn("tape", str(refused.exception))
        with self.assertRaises(kvkeep.NotFoundError):
            self.cache.remove_backend(12345)

    def test_numbers_are_never_cut(self) -> None:
        session = self.space.session()
        keys = some_keys(1)
        self.store(session, keys)
        for refused in (
            lambda: session.reserve_read(keys, extra_count=128),
            lambda: session.reserve_read(keys, extra_count=1 << 32),
            lambda: session.prefetch(keys, extra_count=1 << 32),
            lambda: session.append_tokens([-1]),
            lambda: session.append_tokens(array.array("q", [1 << 32])),
            lambda: session.reserve_write(keys, -1),
            lambda: session.keys(0, 1 << 40),
            lambda: session.finish_read_tokens(0, -1),
            lambda: self.space.session(timeout=1 << 32),
            lambda: self.space.retain(keys, 1 << 32, 1),
            lambda: self.cache.flush(-1),
            lambda: kvkeep.Cache(1 << 64),
        ):
            with self.assertRaises(kvkeep.InvalidError):
                refused()
        self.assertEqual(self.cache.stats().l1_shares, 0)

    def test_times_are_in_seconds(self) -> None:
        for seconds, ms in ((0, 0), (1e-9, 1), (0.007, 7), (0.0071, 8), (30, 30_000), (4294967.295, 0xFFFFFFFF)):
            self.assertEqual(milliseconds("t", seconds), ms)
        for refused in (-1, -1e-3, 4294967.296, float("inf"), float("nan")):
            with self.assertRaisesRegex(kvkeep.InvalidError, "timeout is .* in seconds"):
                self.space.session(timeout=refused)
        state = self.space.session("short", 2.5).state()
        self.assertTrue(0 < state.expires_in_ms <= 2500)
        cache = self.open(session_timeout=1.5)
        self.assertTrue(0 < cache.space("m").session().state().expires_in_ms <= 1500)

    def test_every_flag_has_its_name(self) -> None:
        for name, value in vars(_ffi).items():
            if name.startswith("KVKEEP_FLAG_"):
                short = name.removeprefix("KVKEEP_")
                self.assertEqual(getattr(kvkeep, short), value)
                self.assertIn(short, kvkeep.__all__)

    def test_bad_batches(self) -> None:
        session = self.space.session()
        with self.assertRaises(kvkeep.InvalidError):
            session.reserve_read([])
        with self.assertRaises(ValueError):
            session.reserve_write(some_keys(2), [1])
        with self.assertRaises(kvkeep.InvalidError):
            self.space.session("a\0b")

    def test_use_after_close(self) -> None:
        session = self.space.session()
        job = session.prefetch(some_keys(1))
        self.assertFalse(self.cache.closed)
        self.cache.close()
        self.cache.close()
        self.assertTrue(self.cache.closed)
        for refused in (
            self.cache.stats,
            self.cache.metrics,
            self.cache.event_fd,
            self.cache.take_completions,
            self.cache.read_events,
            self.space.session,
            session.end,
            job.query,
            job.wait,
            job.cancel,
            lambda: session.reserve_read(some_keys(1)),
            lambda: session.prefetch(some_keys(1)),
        ):
            with self.assertRaises(kvkeep.ClosedError) as closed:
                refused()
            self.assertTrue(str(closed.exception))

    def test_the_log_is_told(self) -> None:
        lines: list[tuple[kvkeep.LogLevel, str]] = []
        cache = kvkeep.Cache(
            1 << 20, log=lambda level, line: lines.append((level, line)), log_level=kvkeep.LogLevel.INFO
        )
        cache.close()
        self.assertTrue(lines)

    def test_a_forked_child_has_no_cache(self) -> None:
        with warnings.catch_warnings():
            # Python warns of forks beside threads, which is what this is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                self.cache.stats()
            except kvkeep.ClosedError:
                os._exit(0)
            os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertEqual(self.cache.stats().l1_objects, 0)
