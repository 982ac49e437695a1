"""Stores that are written in Python."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, Optional

import kvkeep

from .support import CacheTest, content, some_keys

SIZE = 4096


class Table(kvkeep.Backend):
    """The store of the guide, and a note of what it is asked."""

    def __init__(self) -> None:
        self.objects: dict[kvkeep.BackendKey, tuple[bytes, bytes]] = {}
        self.events: list[str] = []

    def open(self, address: int, size: int) -> None:
        self.arena = range(address, address + size)

    def lookup(self, key: kvkeep.BackendKey) -> Optional[int]:
        return len(self.objects[key][1]) if key in self.objects else None

    def load(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
        header[:], data[:] = self.objects[key]

    def store(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
        self.objects[key] = bytes(header), bytes(data)

    def remove(self, key: kvkeep.BackendKey) -> None:
        del self.objects[key]

    def close(self) -> None:
        self.events.append("closed")


class BackendTest(CacheTest):
    def setUp(self) -> None:
        self.lines: list[str] = []
        super().setUp()

    def open(self, l1_bytes: int = 4 << 20, **options: object) -> kvkeep.Cache:
        return super().open(l1_bytes, log=lambda _, line: self.lines.append(line), **options)

    def put_below(self, keys: kvkeep.Keys) -> None:
        with self.space.session("store") as session:
            self.store(session, keys, SIZE)
        self.cache.flush()
        self.cache.clear()

    def hits(self, keys: kvkeep.Keys) -> int:
        with self.space.session("load") as session:
            job = session.prefetch(keys, notify=kvkeep.Notify.POLL)
            result = job.wait(60)
            for index, view in enumerate(session.get_views(keys[: result.hit_chunks]) if result.hit_chunks else []):
                self.assertEqual(view, content(index, SIZE))
            return result.hit_chunks

    def test_it_finds_what_it_stored(self) -> None:
        table, keys = Table(), some_keys(8)
        number = self.cache.add_backend(table)
        self.put_below(keys)
        self.assertEqual(len(table.objects), 8)
        self.assertEqual({len(header) for header, _ in table.objects.values()}, {160})
        self.assertEqual(self.hits(keys), 8)
        self.assertEqual(self.cache.arena(), (table.arena.start, len(table.arena)))
        name = next(iter(table.objects))
        self.assertEqual(kvkeep.BackendKey.parse(name.text), name)
        self.assertEqual(self.cache.backends()[0].url, b"plugin:Table?threads=1&batch=32")
        self.cache.remove_backend(number)
        self.assertEqual(table.events, ["closed"])
        self.assertEqual(self.lines, [])

    def test_coroutines_run_side_by_side(self) -> None:
        class Slow(Table):
            together = 0
            most = 0

            async def lookup(self, key: kvkeep.BackendKey) -> Optional[int]:
                return super().lookup(key)

            async def load(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
                self.together += 1
                self.most = max(self.most, self.together)
                await asyncio.sleep(0)
                super().load(key, header, data)
                self.together -= 1

            async def store(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
                super().store(key, header, data)

            async def close(self) -> None:
                super().close()

        slow, keys = Slow(), some_keys(8)
        self.cache.add_backend(slow)
        self.put_below(keys)
        self.assertEqual(self.hits(keys), 8)
        self.assertEqual(slow.most, 8)
        self.cache.close()
        self.assertEqual(slow.events, ["closed"])

    def test_views_end_with_the_request(self) -> None:
        kept: list[memoryview] = []

        class Keeping(Table):
            def load(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
                super().load(key, header, data)
                kept.extend((header, data))

            def store(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
                super().store(key, header, data)
                kept.append(data)
                with self.refused():
                    data[0] = 0

            def refused(self) -> Any:
                return BackendTest().assertRaises(TypeError)

        keys = some_keys(2)
        self.cache.add_backend(Keeping())
        self.put_below(keys)
        self.assertEqual(self.hits(keys), 2)
        self.assertEqual(len(kept), 6)
        for view in kept:
            with self.assertRaises(ValueError):
                bytes(view)

    def test_an_exception_is_an_error_of_its_object_and_is_logged(self) -> None:
        class Failing(Table):
            def load(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
                if self.broken:
                    raise RuntimeError("the cable is out")
                super().load(key, header, data)

            broken = True

        failing, keys = Failing(), some_keys(4)
        self.cache.add_backend(failing)
        self.put_below(keys)
        self.assertEqual(self.hits(keys), 0)
        self.assertTrue(any("RuntimeError: the cable is out (" in line for line in self.lines), self.lines)
        self.assertEqual(self.cache.stats().corruptions, 0)
        failing.broken = False
        self.assertEqual(self.hits(keys), 4)

    def test_what_is_not_there_any_more_is_a_miss(self) -> None:
        table, keys = Table(), some_keys(4)
        self.cache.add_backend(table)
        self.put_below(keys)
        sizes = table.lookup
        table.lookup = lambda key: SIZE  # type: ignore[method-assign]
        table.objects.clear()
        self.assertEqual(self.hits(keys), 0)
        table.lookup = sizes  # type: ignore[method-assign]

    def test_wrong_bytes_are_a_miss_and_are_removed(self) -> None:
        table, keys = Table(), some_keys(4)
        self.cache.add_backend(table)
        self.put_below(keys)
        for name, (header, data) in table.objects.items():
            table.objects[name] = header, bytes(len(data))
        self.assertEqual(self.hits(keys), 0)
        self.cache.flush()
        self.assertGreater(self.cache.stats().corruptions, 0)

    def test_nonsense_is_an_error(self) -> None:
        for nonsense in ([1], [None] * 9, 7, ["x"] * 4, object()):
            with self.subTest(nonsense=nonsense):
                table, keys = Table(), some_keys(4)
                number = self.cache.add_backend(table)
                self.put_below(keys)
                table.lookup_many = lambda keys, in_order: nonsense  # type: ignore[method-assign, assignment]
                self.assertEqual(self.hits(keys), 0)
                self.cache.remove_backend(number)

    def test_a_store_that_does_not_open_is_refused_with_its_own_exception(self) -> None:
        class Closed(Table):
            async def open(self, address: int, size: int) -> None:  # type: ignore[override]
                raise ConnectionRefusedError("nobody answers at 127.0.0.1:1")

        with self.assertRaisesRegex(ConnectionRefusedError, "nobody answers"):
            self.cache.add_backend(Closed())
        self.assertEqual(self.cache.backends(), [])
        with self.assertRaises(kvkeep.InvalidError):
            table = Table()
            table.threads = 0
            self.cache.add_backend(table)

    def test_a_space_is_forgotten_and_usage_and_health_are_told(self) -> None:
        told, touched = threading.Event(), threading.Event()

        class Listing(Table):
            def list(self, space: Optional[bytes]) -> Any:
                return [key for key in self.objects if space in (None, key.space)]

            def usage(self) -> kvkeep.BackendUsage:
                return kvkeep.BackendUsage(objects=len(self.objects), bytes=1)

            def health(self) -> str:
                told.set()
                return "the store is warming up"

            def touch(self, keys: Any) -> None:
                self.events.append(f"touched {len(keys)}")
                touched.set()

            def unpin(self, keys: Any) -> None:
                self.events.append(f"unpinned {len(keys)}")

        listing, keys = Listing(), some_keys(4)
        self.cache.add_backend(listing)
        self.put_below(keys)
        self.assertEqual(self.hits(keys), 4)
        self.cache.flush()
        # The store is told on a thread of its own.
        self.assertTrue(touched.wait(60))
        self.assertIn("touched 4", listing.events)
        self.cache.backends()
        self.assertTrue(told.wait(60))
        self.space.forget()
        self.cache.flush()
        self.assertEqual(listing.objects, {})
        self.assertEqual(self.hits(keys), 0)

    def test_l1_learns_of_what_the_store_evicts(self) -> None:
        table, keys = Table(), some_keys(4)
        self.cache.add_backend(table)
        with self.space.session("store") as session:
            self.store(session, keys, SIZE)
        self.cache.flush()
        self.assertTrue(all(state.stored for state in self.space.query(keys)))
        gone = next(name for name in table.objects if name.hash == keys[0].hash)
        table.remove(gone)
        table.lost([gone])
        table.lost([])
        while self.space.query(keys)[0].stored:
            self.cache.flush()
        self.assertEqual([state.stored for state in self.space.query(keys)], [False, True, True, True])
        self.cache.close()
        table.lost([gone])

    def test_a_function_gives_the_keys_of_a_backend(self) -> None:
        def give(name: str, number: int) -> Optional[bytes]:
            asked.append((name, number))
            if name == "broken":
                raise PermissionError("the key service is sealed")
            return {("tenant", 0): b"n" * 32, ("tenant", 1): b"o" * 32, ("short", 0): b"s"}.get((name, number))

        asked: list[tuple[str, int]] = []
        with self.open(key_callback=give) as self.cache:
            self.space = self.cache.space("keys", chunk_tokens=16)
            self.cache.add_backend("memory:?key_from=tenant")
            self.assertEqual(asked, [("tenant", 0), ("tenant", 1), ("tenant", 2)])
            keys = some_keys(4)
            self.put_below(keys)
            self.assertEqual(self.hits(keys), 4)
            with self.assertRaisesRegex(kvkeep.NotFoundError, "no key for \"other\""):
                self.cache.add_backend("memory:?key_from=other")
            for name, cause in (("broken", PermissionError), ("short", ValueError)):
                with self.assertRaises(kvkeep.KvkeepError) as caught:
                    self.cache.add_backend(f"memory:?key_from={name}")
                self.assertIsInstance(caught.exception.__cause__, cause)
            self.assertEqual(len(self.cache.backends()), 1)

    def test_a_request_under_way_when_it_closes_is_ended(self) -> None:
        class Stuck(Table):
            async def load(self, key: kvkeep.BackendKey, header: memoryview, data: memoryview) -> None:
                entered.set()
                await asyncio.Event().wait()

        entered = threading.Event()
        stuck, keys = Stuck(), some_keys(2)
        self.cache.add_backend(stuck)
        self.put_below(keys)
        session = self.space.session("load")
        session.prefetch(keys, notify=kvkeep.Notify.POLL)
        self.assertTrue(entered.wait(60))
        self.cache.close()
        self.assertEqual(stuck.events, ["closed"])
        self.assertFalse([line for line in self.lines if "without completing" in line])


class BehindADaemonTest(CacheTest):
    def test_a_daemon_cannot_call_its_client(self) -> None:
        with self.assertRaisesRegex(kvkeep.UnsupportedError, "plugin:"):
            self.cache.add_backend(Table())


if "daemon_shim" in os.environ.get("KVKEEP_LIBRARY", ""):
    del BackendTest
else:
    del BehindADaemonTest
