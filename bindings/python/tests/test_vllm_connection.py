"""The cache of an engine: a daemon that comes later, or one that the engine brings."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import kvkeep
from kvkeep.vllm import connection
from kvkeep.vllm.connection import Connection
from kvkeep.vllm.settings import settings

from .support import CacheTest, content, some_keys
from .vllm_engine import Engine


class Connections(CacheTest):
    def setUp(self) -> None:
        # A socket's path is short.
        self.folder = Path(self.directory())
        self.url = f"unix://{self.folder}/s"
        self.now = 0.0

    def connect(self, owns: bool = False, **extra: object) -> Connection:
        opened = Connection(settings(extra or {"connect": f"{self.url}?wait_ms=1"}), "engine", owns, lambda: self.now)
        self.addCleanup(opened.close)
        return opened

    def test_without_a_daemon_the_engine_starts_and_says_so_and_uses_one_that_comes(self) -> None:
        with self.assertLogs("vllm.kvkeep", "WARNING") as logged:
            opened = self.connect()
        self.assertIn("starts without kvkeep", logged.output[0])
        self.assertIn(str(self.folder), logged.output[0])
        daemon = self.open(listen=self.url)
        daemon.serve_clients()
        # Not tried at each step.
        with self.assertRaises(kvkeep.DisconnectedError):
            opened.space("model")
        self.now += connection.RETRY_S
        with self.assertLogs("vllm.kvkeep", "INFO"):
            self.assertEqual(opened.space("model").id, opened.space("model").id)
        opened.close()
        with self.assertRaises(kvkeep.DisconnectedError):
            opened.space("model")

    def test_a_daemon_is_not_waited_for_while_the_engine_runs(self) -> None:
        self.assertEqual(connection.without_wait("unix:///s?wait_ms=9&patience_ms=5"), "unix:///s?patience_ms=5")
        self.assertEqual(connection.without_wait("unix:///s?wait_ms=9"), "unix:///s")
        self.assertEqual(connection.without_wait("unix:///s"), "unix:///s")

    def test_what_no_time_mends_is_an_error_at_start(self) -> None:
        with self.assertRaises(kvkeep.InvalidError):
            self.connect(connect="unix:///s?no_such_parameter=1")

    def test_the_processes_of_an_engine_share_the_cache_that_it_brings(self) -> None:
        with mock.patch.dict("os.environ", XDG_RUNTIME_DIR=str(self.folder)):
            given = {"l1_bytes": 4 << 20, "backends": ["memory:?capacity=1MiB"]}
            worker, scheduler = self.connect(owns=True, **given), self.connect(**given)
        keys = some_keys(2)
        space = worker.space("model")
        with space.session("store") as session:
            self.store(session, keys)
        with scheduler.space("model").session("load") as session:
            self.assertEqual(session.prefetch(keys).wait().hit_chunks, 2)
            views = session.get_views(keys)
            self.assertEqual([bytes(view) for view in views], [content(i, 4096) for i in range(2)])
            del views
        scheduler.close()
        worker.close()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_an_engine_computes_until_its_cache_is_there(self) -> None:
        cache = self.open()
        engine, away = Engine(cache), kvkeep.DisconnectedError("no daemon")
        with (
            mock.patch.object(kvkeep.Cache, "space", side_effect=away),
            self.assertLogs("vllm.kvkeep", "WARNING"),
        ):
            self.assertEqual(engine.run("first", list(range(30)))[1], 0)
            engine.finish(engine.requests["first"])
            late = Engine(cache)
        for name, found in (("second", 0), ("third", 24)):
            self.assertEqual(late.run(name, list(range(30)))[1], found)
            late.finish(late.requests[name])
        for gpu in (*engine.gpus, *late.gpus):
            gpu.worker.close()
