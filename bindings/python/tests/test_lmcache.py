"""LMCache's protocol for a native client, driven without LMCache."""

from __future__ import annotations

import hashlib
import select
import threading
import unittest
from typing import Any, Optional
from unittest import mock

import kvkeep
from kvkeep.lmcache import KvkeepClient, client

from .support import HANGING, WATCHDOG_S, CacheTest, content

SIZE = 4096


def names(count: int, model: str = "org/model", salt: str = "") -> list[str]:
    return [f"{model}@{0x1020304:08x}@0@{index:064x}" + (f"@{salt}" if salt else "") for index in range(count)]


class Adapter:
    """LMCache's side: submits, polls the descriptor, and takes each end once."""

    def __init__(self, served: KvkeepClient) -> None:
        self.client = served
        self.ended: dict[int, tuple[bool, str, Optional[list[bool]]]] = {}

    def wait(self, number: int) -> tuple[bool, str, Optional[list[bool]]]:
        poller = select.poll()
        poller.register(self.client.event_fd(), select.POLLIN)
        while number not in self.ended:
            if not poller.poll(WATCHDOG_S * 1000):
                raise AssertionError(f"operation {number} did not end")
            for id, ok, error, found in self.client.drain_completions():
                assert id not in self.ended, f"operation {id} ended twice"
                self.ended[id] = (ok, error, found)
        return self.ended[number]

    def set(self, keys: list[str], bufs: list[Any]) -> tuple[bool, str, Optional[list[bool]]]:
        return self.wait(self.client.submit_batch_set(keys, bufs))

    def get(self, keys: list[str], bufs: list[Any]) -> list[bool]:
        ok, error, found = self.wait(self.client.submit_batch_get(keys, bufs))
        assert ok and found is not None, error
        return found

    def exists(self, keys: list[str]) -> list[bool]:
        ok, error, found = self.wait(self.client.submit_batch_exists(keys))
        assert ok and found is not None, error
        return found


class Lmcache(unittest.TestCase):
    def adapter(self, **params: Any) -> Adapter:
        served = KvkeepClient(**{"l1_bytes": 8 << 20, **params})
        self.addCleanup(served.close)
        return Adapter(served)

    def bufs(self, count: int, size: int = SIZE) -> list[memoryview]:
        return [memoryview(bytearray(size)) for _ in range(count)]

    def stored(self, adapter: Adapter, keys: list[str]) -> None:
        bufs = [memoryview(bytearray(content(index, SIZE + index))) for index in range(len(keys))]
        self.assertEqual(adapter.set(keys, bufs), (True, "", [True] * len(keys)))

    def test_objects_of_any_length_come_back(self) -> None:
        adapter, keys = self.adapter(), names(9)
        self.stored(adapter, keys)
        bufs = [memoryview(bytearray(SIZE + index)) for index in range(9)]
        self.assertEqual(adapter.get(keys, bufs), [True] * 9)
        for index, buf in enumerate(bufs):
            self.assertEqual(buf, content(index, SIZE + index))
        self.assertEqual(adapter.client._cache.explain()["sessions"], [])

    def test_keys_fail_alone(self) -> None:
        adapter, keys = self.adapter(), names(6)
        self.stored(adapter, keys[::2])
        self.assertEqual(adapter.exists(keys), [True, False] * 3)
        bufs = [memoryview(bytearray(SIZE + index // 2)) for index in range(6)]
        # One buffer is too short and one too long for what is there.
        bufs[2], bufs[4] = memoryview(bytearray(SIZE)), memoryview(bytearray(SIZE + 9))
        self.assertEqual(adapter.get(keys, bufs), [True] + [False] * 5)
        self.assertEqual([bytes(buf[:1]) for buf in bufs[1:]], [b"\0"] * 5)
        self.assertEqual(adapter.client._cache.stats().l1_shares, 0)

    def test_keys_that_differ_anywhere_never_meet(self) -> None:
        adapter = self.adapter()
        for count, keys in enumerate((names(1), names(1, "org/other"), names(1, salt="user-1"), names(1, salt="user-2"))):
            self.assertEqual(adapter.exists(keys), [False])
            adapter.set(keys, [memoryview(bytearray([count] * SIZE))])
        mixed = names(1, "org/other") + names(1, salt="user-2") + names(1) + names(1, salt="user-1")
        bufs = self.bufs(4)
        self.assertEqual(adapter.get(mixed, bufs), [True] * 4)
        self.assertEqual([buf[0] for buf in bufs], [1, 3, 0, 2])

    def test_spaces_of_two_layouts_or_generations_never_meet(self) -> None:
        directory = CacheTest.directory(self)
        backend = f"fs://{directory}?capacity=8MiB"
        for one in ({}, {"layout": "fp8"}, {"generation": 1}, {"tenant": "t"}):
            adapter = self.adapter(backends=backend, **one)
            self.assertEqual(adapter.exists(names(1)), [False], one)
            self.stored(adapter, names(1))
            adapter.client.close()
        self.assertEqual(self.adapter(backends=[backend]).exists(names(1)), [True])

    def test_a_batch_of_many_parts_ends_once(self) -> None:
        with mock.patch.object(client, "PART_BYTES", 3 * SIZE), mock.patch.object(client, "PART_KEYS", 5):
            adapter, keys = self.adapter(), names(50) + names(50, "org/other")
            self.stored(adapter, keys)
            bufs = [memoryview(bytearray(SIZE + index)) for index in range(100)]
            self.assertEqual(adapter.get(keys, bufs), [True] * 100)
            self.assertTrue(all(buf == content(index, SIZE + index) for index, buf in enumerate(bufs)))
            self.assertEqual(adapter.exists(keys + names(1, "none")), [True] * 100 + [False])
            self.assertEqual(len(adapter.ended), 3)

    def test_a_batch_larger_than_l1_streams_to_the_backend_and_back(self) -> None:
        backend = f"fs://{CacheTest.directory(self)}?capacity=64MiB"
        with mock.patch.object(client, "PART_BYTES", 256 << 10):
            adapter, keys = self.adapter(l1_bytes=2 << 20, backends=[backend]), names(64)
            for first in range(0, 64, 8):
                self.stored_at(adapter, keys, first, first + 8)
                adapter.client._cache.flush()
            bufs = self.bufs(64, 128 << 10)
            self.assertEqual(adapter.exists(keys), [True] * 64)
            self.assertEqual(adapter.get(keys, bufs), [True] * 64)
            self.assertEqual([buf[0] for buf in bufs], list(range(64)))

    def stored_at(self, adapter: Adapter, keys: list[str], first: int, last: int) -> None:
        bufs = [memoryview(bytearray([index]) * (128 << 10)) for index in range(first, last)]
        self.assertTrue(adapter.set(keys[first:last], bufs)[0])

    def test_a_store_that_does_not_fit_says_why(self) -> None:
        adapter = self.adapter(l1_bytes=1 << 20)
        with self.assertLogs("lmcache.kvkeep", "WARNING") as logged:
            ok, error, found = adapter.set(names(2), [memoryview(bytearray(SIZE)), memoryview(bytearray(2 << 20))])
            self.assertEqual((ok, found), (False, [True, False]))
            self.assertIn("L1", error)
            adapter.set(names(3)[2:], [memoryview(bytearray(2 << 20))])
        self.assertEqual(len(logged.output), len(set(logged.output)))

    def test_an_object_of_another_length_is_not_stored_over(self) -> None:
        adapter = self.adapter()
        self.stored(adapter, names(1))
        self.assertEqual(adapter.set(names(1), self.bufs(1)), (True, "", [True]))
        with self.assertLogs("lmcache.kvkeep", "WARNING"):
            ok, error, found = adapter.set(names(1), self.bufs(1, SIZE + 1))
        self.assertEqual((ok, found), (False, [False]))
        self.assertIn('"layout" of adapter_params', error)

    def test_read_only_and_typed_buffers_are_stored(self) -> None:
        adapter = self.adapter()
        self.assertTrue(adapter.set(names(2), [b"x" * 64, memoryview(bytearray(64)).cast("I")])[0])
        bufs = self.bufs(2, 64)
        self.assertEqual(adapter.get(names(2), bufs), [True, True])
        self.assertEqual(bufs[0], b"x" * 64)

    def test_a_deleted_key_is_gone_and_so_is_one_that_never_was(self) -> None:
        adapter, keys = self.adapter(), names(3)
        self.stored(adapter, keys)
        space = adapter.client._space("org/model")
        with space.session("reader") as reader:
            held = kvkeep.keys([hashlib.sha256(keys[1].encode()).digest()])
            self.assertTrue(reader.reserve_read(held).ok)
            number = adapter.client.submit_batch_delete([*keys, "org/model@none"])
            self.assertEqual(adapter.wait(number), (True, "", [True, False, True, True]))
        self.assertEqual(adapter.exists(keys), [False, True, False])

    def test_an_empty_batch_ends_at_once(self) -> None:
        adapter = self.adapter()
        for submit in (adapter.client.submit_batch_exists, adapter.client.submit_batch_delete):
            self.assertEqual(adapter.wait(submit([])), (True, "", []))
        self.assertEqual(adapter.get([], []), [])
        self.assertEqual(adapter.client.drain_completions(), [])

    def test_submits_from_many_threads_end_once_each(self) -> None:
        adapter, numbers, lock = self.adapter(), [], threading.Lock()

        def submit(salt: int) -> None:
            keys = names(3, salt=str(salt))
            for _ in range(20):
                new = [adapter.client.submit_batch_set(keys, self.bufs(3)), adapter.client.submit_batch_exists(keys)]
                with lock:
                    numbers.extend(new)

        threads = [threading.Thread(target=submit, args=(salt,)) for salt in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in numbers:
            adapter.wait(number)
        self.assertEqual(sorted(adapter.ended), list(range(1, 161)))
        self.assertEqual(len(set(numbers)), 160)

    def test_close_ends_what_is_under_way(self) -> None:
        adapter = self.adapter(backends=[HANGING], threads=1)
        buf = memoryview(bytearray(SIZE))
        numbers = [adapter.client.submit_batch_get(names(1), [buf]) for _ in range(3)]
        numbers.append(adapter.client.submit_batch_exists(names(1)))
        adapter.client.close()
        adapter.client.close()
        ended = {id: (ok, found) for id, ok, _, found in adapter.client.drain_completions()}
        self.assertEqual(ended, {number: (False, [False]) for number in numbers})
        with self.assertRaises(kvkeep.ClosedError):
            adapter.client.submit_batch_exists(names(1))

    def test_what_breaks_completes_as_well(self) -> None:
        adapter = self.adapter()
        with mock.patch.object(client, "copy_in", side_effect=RuntimeError("broken")), self.assertLogs("lmcache.kvkeep"):
            ok, error, found = adapter.set(names(1), self.bufs(1))
        self.assertEqual((ok, error, found), (False, "RuntimeError: broken", [False]))
        self.assertEqual(adapter.client._cache.stats().l1_staged, 0)
        self.assertEqual(adapter.exists(names(1)), [False])

    def test_what_cannot_be_meant_is_refused(self) -> None:
        for params, text in (
            ({}, '"connect"'),
            ({"connect": "unix:///nowhere.sock", "l1_bytes": 1 << 20}, '"connect"'),
            ({"l1_bytes": 1 << 20, "threads": 0}, "threads"),
        ):
            with self.assertRaisesRegex(kvkeep.InvalidError, text):
                KvkeepClient(**params)
        with self.assertRaisesRegex(kvkeep.KvkeepError, "nowhere.sock"):
            KvkeepClient(connect="unix:///nowhere.sock")
        with self.assertRaisesRegex(kvkeep.InvalidError, "2 keys, but 1 buffers"):
            self.adapter().client.submit_batch_set(names(2), self.bufs(1))
