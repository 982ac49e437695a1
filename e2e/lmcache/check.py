"""check.py KVKEEP DIRECTORY RUN: what must hold of LMCache's storage manager over one daemon, each item with a line of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable

import kvkeep
from daemon import WATCHDOG_S, Daemon
from items import Items

HERE = Path(__file__).resolve().parent
COUNT = 1000


class Manager:
    """A process with LMCache's storage manager. `lines` are what it said until it ended."""

    def __init__(self, url: str, task: str, log: Path) -> None:
        self._log = log.open("a")
        command = [sys.executable, str(HERE / "manager.py"), url, task]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        self._watchdog = threading.Timer(WATCHDOG_S, self._process.kill)
        self._watchdog.start()
        self.lines: list[dict[str, int]] = []

    def until(self, true: Callable[[dict[str, int]], bool]) -> None:
        """Reads until a line is as wanted, or the last."""
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self.lines.append(json.loads(text))
            if true(self.lines[-1]):
                return

    def kill(self) -> None:
        self._process.kill()
        self._ended()

    def result(self) -> dict[str, int]:
        """Its last line, and whether it ended well."""
        self.until(lambda line: False)
        return {**(self.lines[-1] if self.lines else {}), "code": self._ended()}

    def _ended(self) -> int:
        code = self._process.wait(WATCHDOG_S)
        self._watchdog.cancel()
        return code


def flushed(url: str) -> None:
    with kvkeep.Cache(connect=url) as cache:
        cache.flush(WATCHDOG_S)


def main(command: str, directory: Path, run: Path) -> int:
    objects, log = directory / "objects", directory / "lmcache.log"
    shutil.rmtree(objects, ignore_errors=True)
    daemon, items = Daemon(command, objects, run), Items()
    whole = {"hits": COUNT, "wrong": 0, "code": 0}
    try:
        writer = Manager(daemon.url, "store", log)
        writer.until(lambda line: line["stored"] >= 300)
        writer.kill()
        stored = writer.lines[-1]["stored"]
        found = Manager(daemon.url, "load", log).result()
        items.check("a writer killed: no wrong byte", (found["wrong"], found["code"]), (0, 0))
        items.check("a writer killed: what it had stored is there", found["hits"] >= stored, True)

        items.check("all are stored", Manager(daemon.url, "store", log).result(), {"stored": COUNT, "code": 0})
        items.check("another process loads all", Manager(daemon.url, "load", log).result(), whole)
        flushed(daemon.url)

        reader = Manager(daemon.url, "load", log)
        reader.until(lambda line: line.get("loading", 0) >= 300)
        daemon.kill()
        found = reader.result()
        items.check("a daemon killed during loads: no wrong byte, and no hang", (found["wrong"], found["code"]), (0, 0))
        items.check("a daemon killed during loads: the rest are misses", 300 <= found["hits"] <= COUNT, True)
        daemon.start()
        items.check("a daemon killed: all are loaded from disk", Manager(daemon.url, "load", log).result(), whole)

        reader = Manager(daemon.url, "load", log)
        reader.until(lambda line: line.get("loading", 0) >= 300)
        daemon.kill()
        daemon.start()
        found = reader.result()
        items.check("a daemon restarted during loads: no wrong byte", (found["wrong"], found["code"]), (0, 0))

        reader = Manager(daemon.url, "load", log)
        reader.until(lambda line: line.get("loading", 0) >= 300)
        reader.kill()

        flushed(daemon.url)
        daemon.stop()
        damaged = daemon.corrupt(10)
        daemon.start()
        found = Manager(daemon.url, "load", log).result()
        items.check("damaged objects are misses", found, {"hits": COUNT - damaged, "wrong": 0, "code": 0})
        items.check("the daemon noticed", daemon.stats()["corruptions"], damaged)
        items.check("nothing is held in the end", (daemon.stats()["l1_shares"], daemon.explained()), (0, "no session holds anything"))
    finally:
        daemon.stop()
    return len(items.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])) and 1)
