"""Mooncake as a backend, against a real master on loopback. `make test-mooncake` installs it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import kvkeep
from kvkeep.mooncake import MooncakeBackend

from .support import PACKAGE, ROOT, WATCHDOG_S, CacheTest, content, some_keys

SIZE = 64 << 10
SEGMENT = 64 << 20


def master_program() -> Optional[str]:
    """The master that the package of the client brings."""
    package = importlib.util.find_spec("mooncake")
    places = list(package.submodule_search_locations or ()) if package else []
    return shutil.which("mooncake_master", path=os.pathsep.join(places))


MASTER = master_program()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Master:
    """A mooncake_master of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.log = tempfile.TemporaryFile()
        assert MASTER is not None
        os.chmod(MASTER, 0o755)
        options = [f"--rpc_port={self.port}", f"--metrics_port={free_port()}", "--default_kv_lease_ttl=500"]
        self.process = subprocess.Popen([MASTER, *options], stdout=self.log, stderr=self.log)
        until = time.monotonic() + WATCHDOG_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None or time.monotonic() > until:
                self.log.seek(0)
                raise AssertionError(self.log.read().decode()[-2000:])
            time.sleep(0.05)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()


@unittest.skipUnless(MASTER, "the package mooncake is not installed")
class MooncakeTest(CacheTest):
    master: Master

    @classmethod
    def setUpClass(cls) -> None:
        cls.master = Master()
        cls.addClassCleanup(cls.master.kill)

    def open(self, l1_bytes: int = 16 << 20, **options: object) -> kvkeep.Cache:
        return super().open(l1_bytes, **options)

    def put_below(self, keys: kvkeep.Keys) -> None:
        with self.space.session("store") as session:
            self.store(session, keys, SIZE)
        self.cache.flush()
        self.cache.clear()

    def hits(self, keys: kvkeep.Keys) -> int:
        with self.space.session("load") as session:
            result = session.prefetch(keys, notify=kvkeep.Notify.POLL).wait(WATCHDOG_S)
            for index, view in enumerate(session.get_views(keys[: result.hit_chunks]) if result.hit_chunks else []):
                self.assertEqual(view, content(index, SIZE))
            return result.hit_chunks

    def backend(self, kind: type[MooncakeBackend] = MooncakeBackend, **options: Any) -> MooncakeBackend:
        return kind(self.master.address, segment_bytes=SEGMENT, **options)

    def test_it_finds_what_it_stored_and_forgets_a_space(self) -> None:
        keys = some_keys(40, self.id())
        self.cache.add_backend(self.backend())
        self.put_below(keys)
        self.assertEqual(self.cache.stats().stores, 40)
        self.assertEqual(self.hits(keys), 40)
        self.cache.clear()
        with self.space.session("store") as session:
            self.store(session, keys, SIZE)
        self.cache.flush()
        self.assertEqual(self.cache.stats().stores_already, 40)
        self.space.delete(keys[:1])
        self.cache.flush()
        self.assertEqual(self.hits(keys), 0)
        self.space.forget()
        self.cache.flush()
        self.assertEqual(self.hits(keys[1:]), 0)

    def test_what_was_evicted_after_its_lookup_is_a_miss(self) -> None:
        class Evicting(MooncakeBackend):
            def load_many(self, objects: Any) -> Any:
                self._client.batch_remove([self._name(item.key) for item in objects], True)
                return super().load_many(objects)

        keys = some_keys(4, self.id())
        self.cache.add_backend(self.backend(Evicting))
        self.put_below(keys)
        self.assertEqual(self.hits(keys), 0)
        stats = self.cache.stats()
        self.assertEqual((stats.corruptions, stats.loads), (0, 0))
        self.assertGreater(stats.load_failures, 0)

    def test_other_bytes_of_a_key_are_a_miss(self) -> None:
        class Foreign(MooncakeBackend):
            def store_many(self, objects: Any) -> Any:
                for item in objects:
                    self._client.put(self._name(item.key), bytes(160 + len(item.data)))
                return [None] * len(objects)

        keys = some_keys(2, self.id())
        self.cache.add_backend(self.backend(Foreign))
        self.put_below(keys)
        self.assertEqual(self.hits(keys), 0)
        self.assertGreater(self.cache.stats().corruptions, 0)

    def test_a_full_store_drops_the_write(self) -> None:
        keys = some_keys(40, self.id())
        self.cache.add_backend(MooncakeBackend(self.master.address, segment_bytes=0))
        self.put_below(keys)
        stats = self.cache.stats()
        self.assertEqual((stats.stores, stats.dropped_failed), (0, 40))

    def test_a_master_that_is_killed_makes_misses(self) -> None:
        master = Master()
        keys = some_keys(4, self.id())
        self.cache = self.open(backend_timeout=2)
        self.space = self.cache.space("model-1", layout="fp16", chunk_tokens=16)
        self.cache.add_backend(MooncakeBackend(master.address, segment_bytes=SEGMENT))
        self.put_below(keys)
        self.assertEqual(self.hits(keys), 4)
        self.cache.clear()
        master.kill()
        self.assertEqual(self.hits(keys), 0)
        with self.space.session("store") as session:
            self.store(session, some_keys(4, "later"), SIZE)
        self.cache.close()

    def test_two_processes_share_a_store(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])}
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "prefill_decode.py"), f"mooncake:{self.master.address}"],
            env=environment,
            text=True,
            capture_output=True,
            timeout=WATCHDOG_S,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr[-2000:])
        self.assertIn("16 of 16 chunks", done.stdout)


class MooncakeErrorsTest(CacheTest):
    def test_an_address_that_is_none_is_refused(self) -> None:
        for address in ("", "localhost", "a:b", "http://127.0.0.1:1", "127.0.0.1:"):
            with self.assertRaisesRegex(kvkeep.InvalidError, "host:port"):
                MooncakeBackend(address)

    @unittest.skipIf("daemon_shim" in os.environ.get("KVKEEP_LIBRARY", ""), "a daemon cannot call its client")
    def test_without_the_package_the_remedy_is_named(self) -> None:
        with mock.patch.dict(sys.modules, {"mooncake": None}):
            with self.assertRaisesRegex(kvkeep.UnsupportedError, "pip install mooncake"):
                self.cache.add_backend(MooncakeBackend("127.0.0.1:1"))

    @unittest.skipUnless(MASTER, "the package mooncake is not installed")
    def test_a_master_that_is_not_there_is_an_error(self) -> None:
        with self.assertRaisesRegex(kvkeep.IoError, "no Mooncake master answers"):
            self.cache.add_backend(MooncakeBackend(f"127.0.0.1:{free_port()}", segment_bytes=SEGMENT))
        self.assertEqual(self.cache.backends(), [])


class DirectoryTest(CacheTest):
    def test_two_processes_share_a_directory(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "prefill_decode.py"), f"fs://{Path(self.directory())}"],
            env=environment,
            text=True,
            capture_output=True,
            timeout=WATCHDOG_S,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr[-2000:])
        self.assertIn("16 of 16 chunks", done.stdout)
