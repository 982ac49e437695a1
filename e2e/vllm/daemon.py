"""A `kvkeep serve` that is stopped, killed and started again, and what stands in its directory."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import kvkeep

# Far beyond what anything here needs: a watchdog, not an expectation.
WATCHDOG_S = 300
HEADER_BYTES = 4096


class Daemon:
    """The daemon of one directory and socket."""

    def __init__(self, command: str, directory: Path, run: Path) -> None:
        self.url = f"unix://{run}/kvkeep.sock"
        self._command = command
        self._socket = run / "kvkeep.sock"
        self._directory = directory
        self._log = (directory.parent / "daemon.log").open("w")
        directory.mkdir()
        self.start()

    def start(self) -> None:
        backend = f"fs://{self._directory}?capacity=1GiB"
        arguments = ["serve", "--l1", "64MiB", "--l2", backend, "--socket", str(self._socket)]
        self._process = subprocess.Popen([self._command, *arguments], stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + WATCHDOG_S
        while subprocess.run([self._command, "stat", self.url], capture_output=True).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("the daemon does not start; see daemon.log")
            time.sleep(0.05)

    def stop(self) -> None:
        """As a service manager does: what is not stored yet is."""
        self._process.terminate()
        self._process.wait(WATCHDOG_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(WATCHDOG_S)

    def stats(self) -> dict[str, int]:
        with kvkeep.Cache(connect=self.url) as cache:
            stats = cache.stats()
            names = ("l1_objects", "loads", "corruptions", "l1_shares", "writes_pending", "deletions_pending", "l2_objects")
            return {name: getattr(stats, name) for name in names}

    def explained(self) -> str:
        """What `kvkeep explain` prints."""
        done = subprocess.run([self._command, "explain", self.url], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def corrupt(self, of: int) -> int:
        """Turns a bit in the payload of every `of`-th object; how many there were to turn."""
        objects = sorted(p for p in self._directory.rglob("*") if p.is_file() and p.stat().st_size > HEADER_BYTES)
        for path in objects[::of]:
            with path.open("r+b") as file:
                file.seek(HEADER_BYTES + 1000)
                byte = file.read(1)[0]
                file.seek(HEADER_BYTES + 1000)
                file.write(bytes([byte ^ 4]))
        return len(objects[::of])
