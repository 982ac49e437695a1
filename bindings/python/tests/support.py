"""What the tests share."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import kvkeep

PACKAGE = Path(kvkeep.__file__).resolve().parent
BINDING = Path(__file__).resolve().parents[1]
ROOT = BINDING.parents[1]
# Far beyond what anything here needs: a watchdog, not an expectation.
WATCHDOG_S = 60
# A lookup that never answers, so that a job stays pending until something ends it.
HANGING = "fault:memory:?capacity=1MiB&fault.lookup_hang=1"


def some_keys(count: int, salt: str = "") -> kvkeep.Keys:
    return kvkeep.keys(hashlib.sha256(f"{salt}{i}".encode()).digest() for i in range(count))


def content(index: int, size: int) -> bytes:
    return bytes((index * 7 + i) % 251 for i in range(size))


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `script` in an interpreter of its own, with this one's library and package."""
    inherited = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], env=inherited, text=True, capture_output=True, timeout=WATCHDOG_S
    )


class CacheTest(unittest.TestCase):
    """A test with a small cache open."""

    def setUp(self) -> None:
        self.cache = self.open()
        self.space = self.cache.space("model-1", layout="fp16", chunk_tokens=16)

    def open(self, l1_bytes: int = 4 << 20, **options: object) -> kvkeep.Cache:
        cache = kvkeep.Cache(l1_bytes, **options)
        self.addCleanup(cache.close)
        return cache

    def directory(self) -> str:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return directory.name

    def stored_below(self, keys: kvkeep.Keys) -> str:
        """The URL of a directory that has objects of these keys, of the space "m"."""
        url = f"fs://{self.directory()}?capacity=64MiB"
        with kvkeep.Cache(4 << 20, backends=[url]) as cache, cache.space("m").session() as session:
            self.store(session, keys)
            cache.flush()
        return url

    def store(self, session: kvkeep.Session, keys: kvkeep.Keys, size: int = 4096) -> None:
        views = session.reserve_write(keys, size)
        for index, view in enumerate(views):
            view[:] = content(index, size)
        self.assertTrue(session.finish_write(keys).ok)
