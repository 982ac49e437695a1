"""Which weights a LoRA adapter has: a digest of its files, taken when the engine has just loaded them.

vLLM names an adapter by its name and path, so that one retrained in place would be served what the former one computed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

log = logging.getLogger("vllm.kvkeep")

SUFFIXES = (".safetensors", ".bin", ".pt", ".json")
PIECE_BYTES = 1 << 20
# A digest that takes longer is gone on with beside the steps. Requests until then are computed.
PATIENCE_S = 0.05

Stamp = tuple[tuple[str, int, int, int], ...]


def files_of(path: str) -> Optional[Path]:
    """The directory of an adapter's files on this machine, if it has one."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, local_files_only=True))
    except Exception:
        # Whatever keeps a path from naming a repository that was downloaded.
        return None


def stamp_of(directory: Path) -> Stamp:
    """What tells that a file was written since: names, sizes, and times of the last change."""
    found = []
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.name.endswith(SUFFIXES):
            stat = entry.stat()
            found.append((entry.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


def digest_of(directory: Path) -> bytes:
    """A digest of the contents, the same for every copy of the files."""
    whole = hashlib.sha256()
    for name, *_ in stamp_of(directory):
        part = hashlib.sha256()
        with open(directory / name, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                part.update(piece)
        whole.update(len(name).to_bytes(8, "little") + name.encode("utf-8", "surrogateescape") + part.digest())
    return whole.digest()


class Adapter:
    """One adapter as the engine loaded it."""

    def __init__(self, path: str) -> None:
        self.digest: Optional[bytes] = None
        self.trouble = ""
        self._path = path
        self._directory: Optional[Path] = None
        self._stamp: Stamp = ()
        self._reading = threading.Thread(target=self._read, name="kvkeep-adapter", daemon=True)
        self._reading.start()
        self._reading.join(PATIENCE_S)

    def _read(self) -> None:
        try:
            directory = files_of(self._path)
            if directory is None:
                self.trouble = "its files are not found on this machine"
                return
            before = stamp_of(directory)
            digest = digest_of(directory)
            if not before:
                self.trouble = f"{directory} has no weights"
            elif before != stamp_of(directory):
                self.trouble = "its files were written meanwhile"
            else:
                self._directory, self._stamp, self.digest = directory, before, digest
        except OSError as error:
            self.trouble = f"its files cannot be read: {error}"

    def unchanged(self) -> bool:
        """Whether the files are still those that the digest is of."""
        try:
            return self._directory is not None and stamp_of(self._directory) == self._stamp
        except OSError:
            return False

    def wait(self) -> None:
        """Until its files are read."""
        self._reading.join()


class Adapters:
    """The adapters of one engine. `given` has revisions that the user says, by the adapters' names."""

    def __init__(self, given: Optional[Mapping[str, str]] = None) -> None:
        self._given = dict(given or {})
        self._known: dict[tuple[str, int, str], Adapter] = {}
        # Digests of each name and path: vLLM's own cache does not tell them apart.
        self._digests: dict[tuple[str, str], set[bytes]] = {}
        self._said: set[str] = set()

    def revision(self, adapter: Any) -> Optional[bytes]:
        """What is to stand in the keys of requests with an adapter (None: with the model alone); None if that is not known."""
        if adapter is None:
            return b""
        name, path = adapter.lora_name, adapter.lora_path
        if (given := self._given.get(name)) is not None:
            return hashlib.sha256(b"given" + given.encode("utf-8", "surrogateescape")).digest()
        key = (name, adapter.lora_int_id, path)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Adapter(path)
        if known.digest is None:
            if known.trouble:
                self._say(name, known.trouble)
            return None
        if not known.unchanged():
            self._say(name, "its files have changed since it was loaded")
            return None
        self._digests.setdefault((name, path), set()).add(known.digest)
        return known.digest

    def is_retrained(self, adapter: Any) -> bool:
        """Whether vLLM's own cache may have blocks of other weights under the adapter's name and path."""
        return adapter is not None and len(self._digests.get((adapter.lora_name, adapter.lora_path), ())) > 1

    def reset(self) -> None:
        """vLLM has emptied its own cache, and loads adapters as their files are now."""
        self._known.clear()
        self._digests.clear()
        self._said.clear()

    def wait(self) -> None:
        """Until all files are read."""
        for known in self._known.values():
            known.wait()

    def _say(self, name: str, why: str) -> None:
        if name not in self._said:
            self._said.add(name)
            log.warning(
                "kvkeep does not serve the adapter %s: %s. Unload it and load it again, reset the prefix cache with "
                'reset_connector, or name its revision in "lora_revisions".',
                name,
                why,
            )
