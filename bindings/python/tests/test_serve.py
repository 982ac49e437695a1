"""A daemon that runs in Python: python3 -m kvkeep serve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Optional

import kvkeep

from .support import PACKAGE, WATCHDOG_S, CacheTest, content, some_keys

SIZE = 4096
STORE = """
import os
import kvkeep

class Folder(kvkeep.Backend):
    def __init__(self, path):
        self.path = path

    def file(self, key):
        return os.path.join(self.path, key.text)

    def lookup(self, key):
        return os.path.getsize(self.file(key)) - 160 if os.path.exists(self.file(key)) else None

    def load(self, key, header, data):
        with open(self.file(key), "rb") as file:
            assert file.readinto(header) == 160 and file.readinto(data) == len(data)

    def store(self, key, header, data):
        with open(self.file(key), "wb") as file:
            file.write(header)
            file.write(data)

    def remove(self, key):
        os.unlink(self.file(key))

class NoStore:
    pass
"""


@unittest.skipIf("daemon_shim" in os.environ.get("KVKEEP_LIBRARY", ""), "it is a daemon itself")
class ServeTest(CacheTest):
    def setUp(self) -> None:
        # A socket's path is short.
        self.folder = Path(self.directory())
        (self.folder / "folder_store.py").write_text(STORE)
        (self.folder / "objects").mkdir()

    def command(self, *arguments: str) -> list[str]:
        socket = str(self.folder / "s")
        return [sys.executable, "-X", "dev", "-m", "kvkeep", "serve", "--l1", "4MiB", "--socket", socket, *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        process = subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=environment, text=True, stderr=subprocess.PIPE
        )
        self.addCleanup(process.kill)
        return process

    def refusal(self, *arguments: str) -> str:
        process = self.start(*arguments)
        _, errors = process.communicate(timeout=WATCHDOG_S)
        self.assertEqual(process.returncode, 2, errors)
        return errors

    def connect(self) -> kvkeep.Cache:
        cache = kvkeep.Cache(connect=f"unix://{self.folder}/s?wait_ms={WATCHDOG_S * 1000}&patience_ms={WATCHDOG_S * 1000}")
        self.addCleanup(cache.close)
        return cache

    def run_once(self, keys: kvkeep.Keys, store: bool) -> Optional[int]:
        process = self.start("--backend", f"folder_store:Folder?path={self.folder / 'objects'}", "--log", "error")
        with self.connect() as client:
            space = client.space("model-1", chunk_tokens=16)
            with space.session("request") as session:
                if store:
                    self.store(session, keys, SIZE)
                    hits = None
                else:
                    hits = session.prefetch(keys, notify=kvkeep.Notify.POLL).wait(WATCHDOG_S).hit_chunks
                    for index, view in enumerate(session.get_views(keys[:hits])):
                        self.assertEqual(view, content(index, SIZE))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WATCHDOG_S)
        self.assertEqual((process.returncode, errors), (0, ""))
        return hits

    def test_a_python_store_serves_the_clients_of_a_node(self) -> None:
        keys = some_keys(8)
        self.run_once(keys, store=True)
        self.assertEqual(len(list((self.folder / "objects").iterdir())), 8)
        self.assertEqual(self.run_once(keys, store=False), 8)

    def test_what_cannot_be_served_is_said(self) -> None:
        self.assertIn("no size", self.refusal("--l1", "many"))
        self.assertIn("names no class", self.refusal("--backend", "folder_store"))
        self.assertIn("No module named 'missing'", self.refusal("--backend", "missing:Store"))
        self.assertIn("required positional argument", self.refusal("--backend", "folder_store:Folder"))
        self.assertIn("no kvkeep.Backend", self.refusal("--backend", "folder_store:NoStore"))
        self.assertIn("no backend has the scheme", self.refusal("--l2", "nfs:///x"))
        self.assertIn("no address", self.refusal("--http", "everywhere"))
