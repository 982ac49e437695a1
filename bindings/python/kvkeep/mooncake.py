"""Mooncake Store as a backend: objects of one cache are found by every other that has the same master.

It needs the package mooncake-transfer-engine (on a machine without CUDA, mooncake-transfer-engine-non-cuda). L1 is registered
with the transfer engine, and payloads go straight from L1 into the store's memory and back.
"""

from __future__ import annotations

import ctypes
import mmap
import queue
import re
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from . import _ffi
from .backend import Backend, BackendKey, BackendObject, Outcome
from .errors import CorruptError, InvalidError, IoError, LockedError, NoMemoryError, UnsupportedError

HEADER_BYTES = _ffi.KVKEEP_OBJECT_HEADER_BYTES
# Bytes from one header to the next in the memory that is registered for them.
HEADER_STRIDE = 256
CONNECT_SECONDS = 5

# Numbers of Mooncake that mean something else than that a request failed.
NO_SPACE, NOT_FOUND, EXISTS, LEASED = -200, -704, -705, -706


class Headers:
    """Registered memory for the headers of one request: the library's own are not in L1."""

    def __init__(self, memory: mmap.mmap, address: int, offset: int) -> None:
        self._memory, self._address, self._offset = memory, address, offset

    def place(self, index: int) -> int:
        return self._address + self._at(index)

    def read(self, index: int, header: memoryview) -> None:
        header[:] = self._memory[self._at(index) : self._at(index) + HEADER_BYTES]

    def write(self, index: int, header: memoryview) -> None:
        self._memory[self._at(index) : self._at(index) + HEADER_BYTES] = bytes(header)

    def _at(self, index: int) -> int:
        return self._offset + index * HEADER_STRIDE


class Parts(NamedTuple):
    """Names of objects, where header and payload of each lie, and how long both are."""

    names: list[str]
    places: list[list[int]]
    sizes: list[list[int]]

    @classmethod
    def of(cls, names: list[str], objects: Sequence[BackendObject], headers: Headers) -> Parts:
        places = [[headers.place(index), item.address] for index, item in enumerate(objects)]
        return cls(names, places, [[HEADER_BYTES, len(item.data)] for item in objects])


class MooncakeBackend(Backend):
    """A client of a Mooncake master, with `segment_bytes` of this process's memory in the store.

    `host` is this machine as others reach it, `master` the master's host:port. Mooncake gives what it finds a lease and evicts nothing
    before it ends; a load after that fails, which is a miss. Objects that are evicted in the store are misses, too.
    """

    threads = 4

    def __init__(
        self,
        master: str,
        *,
        host: str = "127.0.0.1",
        metadata: str = "P2PHANDSHAKE",
        segment_bytes: int = 1 << 30,
        local_bytes: int = 64 << 20,
        protocol: str = "tcp",
        devices: str = "",
        prefix: str = "kvkeep",
        replicas: int = 1,
    ) -> None:
        if not re.fullmatch(r"[^:/\s]+:\d+", master):
            raise InvalidError(f"the master is {master!r}, not host:port; write 127.0.0.1:50051")
        self._setup = {
            "local_hostname": host,
            "metadata_server": metadata,
            # A command line gives numbers as texts.
            "global_segment_size": int(segment_bytes),
            "local_buffer_size": int(local_bytes),
            "protocol": protocol,
            "rdma_devices": devices,
            "master_server_addr": master,
        }
        self._prefix, self._replicas = prefix, int(replicas)
        self._client: Any = None
        self._config: Any = None
        # Not thread-local: Python forgets a library's thread as soon as a call of it has ended.
        self._headers: queue.SimpleQueue[Headers] = queue.SimpleQueue()

    def open(self, address: int, size: int) -> None:
        try:
            from mooncake import store
        except ImportError as error:
            raise UnsupportedError(
                f"Mooncake's client cannot be loaded ({error}): pip install mooncake-transfer-engine-non-cuda"
            ) from None
        client = store.MooncakeDistributedStore()
        host, port = str(self._setup["master_server_addr"]).split(":")
        try:
            # The client itself would try for minutes.
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise IoError(f"no Mooncake master answers at {host}:{port} ({error}): start mooncake_master, or name its port") from None
        if (refusal := client.setup(**self._setup)) != 0:
            raise IoError(f"the Mooncake master at {host}:{port} refused this client (error {refusal}): see its log")
        if (refusal := client.register_buffer(address, size)) != 0:
            client.close()
            raise IoError(f"Mooncake did not register L1 of {size} bytes (error {refusal}): raise the limit on locked memory")
        one = self.batch * HEADER_STRIDE
        self._memory = mmap.mmap(-1, self.threads * one)
        headers = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if (refusal := client.register_buffer(headers, len(self._memory))) != 0:
            client.close()
            raise IoError(f"Mooncake did not register memory for headers (error {refusal})")
        for index in range(self.threads):
            self._headers.put(Headers(self._memory, headers, index * one))
        self._client, self._config = client, store.ReplicateConfig()
        self._config.replica_num = self._replicas

    def lookup(self, key: BackendKey) -> Any:
        return self.lookup_many([key], True)[0]

    def lookup_many(self, keys: Sequence[BackendKey], in_order: bool) -> list[Outcome]:
        names = [self._name(key) for key in keys]
        found = self._client.batch_get_replica_desc(names)
        return [self._size(found.get(name)) for name in names]

    def load_many(self, objects: Sequence[BackendObject]) -> list[Outcome]:
        headers = self._headers.get()
        try:
            names, places, sizes = Parts.of([self._name(item.key) for item in objects], objects, headers)
            outcomes: list[Outcome] = []
            for index, count in enumerate(self._client.batch_get_into_multi_buffers(names, places, sizes)):
                whole = count == sum(sizes[index])
                outcomes.append(None if whole else _error(names[index], count))
                if whole:
                    headers.read(index, objects[index].header)
            return outcomes
        finally:
            self._headers.put(headers)

    def store_many(self, objects: Sequence[BackendObject]) -> list[Outcome]:
        headers = self._headers.get()
        try:
            names, places, sizes = Parts.of([self._name(item.key) for item in objects], objects, headers)
            for index, item in enumerate(objects):
                headers.write(index, item.header)
            new = [index for index, exists in enumerate(self._client.batch_is_exist(names)) if exists != 1]
            outcomes: list[Outcome] = [FileExistsError(name) for name in names]
            if new:
                chosen = [[values[index] for index in new] for values in (names, places, sizes)]
                for index, written in zip(new, self._client.batch_put_from_multi_buffers(*chosen, self._config)):
                    outcomes[index] = None if written == 0 else _error(names[index], written)
            return outcomes
        finally:
            self._headers.put(headers)

    def remove_many(self, keys: Sequence[BackendKey]) -> list[Outcome]:
        names = [self._name(key) for key in keys]
        removed = self._client.batch_remove(names, True)
        return [None if status == 0 else _error(name, status) for name, status in zip(names, removed)]

    def list(self, space: Optional[bytes]) -> list[BackendKey]:
        """Removes the objects itself and lists none: Mooncake has no list, but removes by a pattern."""
        pattern = f"^{re.escape(self._prefix)}-{space.hex() if space else '[0-9a-f]{32}'}-"
        if (removed := self._client.remove_by_regex(pattern, True)) < 0:
            raise IoError(f"Mooncake did not remove the objects of a space (error {removed})")
        return []

    def health(self) -> None:
        if (status := self._client.health_check()) != 0:
            raise IoError(f"the Mooncake client is not connected to its master (error {status})")

    def close(self) -> None:
        self._client.close()

    def _name(self, key: BackendKey) -> str:
        return f"{self._prefix}-{key.text}"

    def _size(self, replicas: Optional[Sequence[Any]]) -> Optional[int]:
        """Bytes of payload of an object that is whole somewhere."""
        for replica in replicas or ():
            if replica.is_memory_replica():
                whole = replica.get_memory_descriptor().buffer_descriptor.size
            else:
                whole = replica.get_disk_descriptor().object_size
            if whole > HEADER_BYTES:
                return int(whole) - HEADER_BYTES
        return None


def _error(name: str, status: int) -> Exception:
    """What a number of Mooncake's says of an object."""
    if status >= 0:
        return CorruptError(f"Mooncake has {status} bytes of {name}")
    if status == NOT_FOUND:
        return KeyError(name)
    if status == EXISTS:
        return FileExistsError(name)
    if status == LEASED:
        return LockedError(f"{name} has a lease: it can be removed when the lease ends")
    if status == NO_SPACE:
        return NoMemoryError("Mooncake has no room: give it more segments, or wait until it has evicted")
    return IoError(f"Mooncake failed for {name} (error {status})")
