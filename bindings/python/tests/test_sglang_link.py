"""SGLang's external linker over a real cache, without SGLang: its device pools are imitated in plain memory."""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

import kvkeep
from kvkeep.sglang import link
from kvkeep.sglang.device_pool import DevicePages
from kvkeep.sglang.link import Asked, Link
from kvkeep.sglang.store import Store, Window, named

from .sglang_device import LAYERS, Entry
from .sglang_host import hashes, of_pages, store
from .support import HANGING, WATCHDOG_S, CacheTest

def nothing() -> None:
    """Pages are ready at once."""


class Worker:
    """One process of an engine: K and V of all layers, and a state that is needed before the last layer."""

    def __init__(self, cache: kvkeep.Cache, **chosen: Any) -> None:
        self.kv = Entry("kv", 32, 2, {layer: layer for layer in range(LAYERS)})
        self.state = Entry("mamba", 16, 1, {2: (0, 1, 2)}, by_page=True)
        self.store: Store = store(cache, **chosen)
        pages = {entry.name: DevicePages(entry) for entry in (self.kv, self.state)}
        for name, one in pages.items():
            self.store.register(name, one, False)
        self.layers = {name: one.layers for name, one in pages.items()}
        self.waited: list[tuple[int, int]] = []
        self.link = Link(self.store, self.layers, self.wait_layer)

    def wait_layer(self, transfer: Any, layer: int) -> None:
        transfer.wait_layer(layer, WATCHDOG_S)
        self.waited.append((transfer.id, layer))

    def lengths(self, keys: list[str]) -> list[int]:
        return self.store.restorable(keys, [Window("kv", 0), Window("mamba", 1)]).lengths

    def offload(self, keys: list[str], pages: range, state: int) -> bool:
        asked = [Asked("kv", keys, of_pages(*pages)), Asked("mamba", keys[-1:], of_pages(state))]
        assert self.link.offload(asked, nothing)
        return self.result()

    def result(self) -> bool:
        waiting = threading.Event()
        for _ in range(WATCHDOG_S * 100):
            if self.link.completed():
                return self.link.pop()
            waiting.wait(0.01)
        raise AssertionError("an offload never ends")


class SglangLink(CacheTest):
    def worker(self, **chosen: Any) -> Worker:
        made = Worker(self.cache, **chosen)
        self.addCleanup(lambda: made.link.close())
        return made

    def test_what_one_offloads_another_loads_layer_by_layer(self) -> None:
        first, second, keys = self.worker(), self.worker(), hashes(5)
        filled = [first.kv.fill(page, page) for page in range(1, 6)]
        state = first.state.fill(3, 9)
        self.assertTrue(first.offload(keys, range(1, 6), 3))
        self.assertEqual(second.lengths(keys), [5])
        asked = [Asked("kv", keys, of_pages(*range(10, 15))), Asked("mamba", keys[-1:], of_pages(7))]
        self.assertTrue(second.link.queue_load("request", asked))
        batch = second.link.start(nothing)
        for layer in range(LAYERS):
            second.link.wait_until(batch, layer)
        self.assertEqual([second.kv.page(page) for page in range(10, 15)], filled)
        self.assertEqual(second.state.page(7), state)
        # The state is waited for with the one layer that needs it.
        self.assertEqual([layer for _, layer in second.waited], [0, 1, 2, 2])
        self.assertTrue(second.link.finish(batch))
        self.assertEqual(self.cache.explain()["sessions"], [])

    def test_lengths_are_those_that_were_offloaded_with_a_state(self) -> None:
        worker, keys = self.worker(), hashes(9)
        self.assertTrue(worker.offload(keys[:3], range(1, 4), 1))
        self.assertTrue(worker.offload(keys[3:8], range(4, 9), 2))
        self.assertEqual(worker.lengths(keys), [3, 8])

    def test_requests_of_one_batch_may_share_keys(self) -> None:
        worker, keys = self.worker(), hashes(3)
        filled = [worker.kv.fill(page, page) for page in range(1, 4)]
        self.assertTrue(worker.offload(keys, range(1, 4), 1))
        worker.link.queue_load("a", [Asked("kv", keys, of_pages(10, 11, 12))])
        worker.link.queue_load("b", [Asked("kv", keys[:2], of_pages(20, 21))])
        self.assertTrue(worker.link.finish(worker.link.start(nothing)))
        self.assertEqual([worker.kv.page(page) for page in (10, 11, 12)], filled)
        self.assertEqual([worker.kv.page(page) for page in (20, 21)], filled[:2])

    def test_what_a_lookup_found_is_held_until_it_is_loaded(self) -> None:
        worker, keys, windows = self.worker(), hashes(5), [Window("kv", 0), Window("mamba", 1)]
        self.assertTrue(worker.offload(keys[:3], range(1, 4), 1))
        self.assertTrue(worker.link.offload([Asked("mamba", keys[4:], of_pages(2))], nothing))
        self.assertTrue(worker.result())
        self.assertEqual(worker.link.lookup("request", keys, windows).lengths, [3])
        # Neither a full L1 nor a deletion takes it, and of the state, what the shorter length needs.
        held = worker.store.held
        for name, kept in (("kv", keys[:3]), ("mamba", keys[2:3])):
            statuses = held[name].space.evict(named(kept, held[name].rank))
            self.assertEqual(list(statuses), [kvkeep.Status.ERR_LOCKED] * len(kept))
        worker.link.queue_load("request", [Asked("kv", keys[:3], of_pages(5, 6, 7)), Asked("mamba", keys[2:3], of_pages(8))])
        self.assertTrue(worker.link.finish(worker.link.start(nothing)))
        self.assertEqual(self.cache.explain()["sessions"], [])

    def test_what_a_lookup_found_is_given_back(self) -> None:
        worker, keys, windows = self.worker(), hashes(3), [Window("kv", 0), Window("mamba", 1)]
        self.assertTrue(worker.offload(keys, range(1, 4), 1))
        for give_back in (lambda: worker.link.cancel("request"), worker.link.reset):
            # Asked again, only the later answer is held.
            for _ in range(2):
                self.assertEqual(worker.link.lookup("request", keys, windows).lengths, [3])
            self.assertEqual(self.cache.stats().l1_shares, 4)
            give_back()
            self.assertEqual(self.cache.stats().l1_shares, 0)
        worker.link.lookup("forgotten", keys, windows)
        with mock.patch.object(link, "HOLD_S", -1):
            worker.link.lookup("other", hashes(1, "none"), windows)
        self.assertEqual(self.cache.stats().l1_shares, 0)

    def test_what_is_gone_fails_its_batch_and_waits_for_nothing(self) -> None:
        worker, keys = self.worker(), hashes(2)
        worker.link.queue_load("request", [Asked("kv", keys, of_pages(1, 2))])
        batch = worker.link.start(nothing)
        for layer in range(LAYERS):
            worker.link.wait_until(batch, layer)
        self.assertFalse(worker.link.finish(batch))
        self.assertTrue(worker.link.finish(batch))
        self.assertEqual(self.cache.explain()["sessions"], [])

    def test_a_queued_load_can_be_cancelled(self) -> None:
        worker = self.worker()
        self.assertFalse(worker.link.queue_load("nothing", []))
        worker.link.queue_load("request", [Asked("kv", hashes(1), of_pages(1))])
        self.assertTrue(worker.link.cancel("request"))
        self.assertFalse(worker.link.cancel("request"))
        self.assertEqual(worker.link.start(nothing), -1)
        worker.link.wait_until(-1, 0)
        self.assertTrue(worker.link.finish(-1))

    def test_what_is_never_ready_fails(self) -> None:
        worker, keys = self.worker(), hashes(1)

        def broken() -> None:
            raise RuntimeError("a stream failed")

        worker.link.queue_load("request", [Asked("kv", keys, of_pages(1))])
        batch = worker.link.start(broken)
        worker.link.wait_until(batch, 0)
        with self.assertLogs("sglang.kvkeep", "WARNING"):
            self.assertFalse(worker.link.finish(batch))
        self.assertFalse(worker.link.offload([], nothing))
        with self.assertLogs("sglang.kvkeep", "ERROR"):
            worker.link.offload([Asked("kv", keys, of_pages(1))], broken)
            self.assertFalse(worker.result())
        self.assertEqual(worker.lengths(keys), [])

    def test_one_pool_that_is_not_stored_fails_the_offload(self) -> None:
        worker, keys = self.worker(), hashes(1)
        asked = [Asked("kv", keys, of_pages(1)), Asked("mamba", keys, of_pages(99))]
        with self.assertLogs("sglang.kvkeep", "WARNING"):
            worker.link.offload(asked, nothing)
            self.assertFalse(worker.result())
        self.assertEqual(worker.lengths(keys), [])

    def test_a_load_that_cannot_begin_lands_what_had_begun(self) -> None:
        worker, keys = self.worker(), hashes(1)
        self.assertTrue(worker.offload(keys, range(1, 2), 1))
        worker.link.queue_load("request", [Asked("kv", keys, of_pages(2)), Asked("other", keys, of_pages(2))])
        batch = worker.link.start(nothing)
        with self.assertLogs("sglang.kvkeep", "WARNING"):
            self.assertFalse(worker.link.finish(batch))
        self.assertEqual(self.cache.explain()["sessions"], [])

    def test_reset_waits_for_all_and_forgets_results(self) -> None:
        worker, keys = self.worker(), hashes(4)
        gate = threading.Event()
        worker.link.offload([Asked("kv", keys, of_pages(1, 2, 3, 4))], lambda: gate.wait(WATCHDOG_S))
        worker.link.queue_load("request", [Asked("kv", keys, of_pages(5, 6, 7, 8))])
        worker.link.start(nothing)
        worker.link.queue_load("later", [Asked("kv", keys, of_pages(5, 6, 7, 8))])
        threading.Timer(0.05, gate.set).start()
        worker.link.reset()
        self.assertEqual((worker.link.completed(), worker.link.start(nothing)), (0, -1))
        self.assertEqual(worker.store.prefix(keys), 4)

    def test_close_cuts_a_load_short_that_never_ends(self) -> None:
        self.cache.add_backend(HANGING)
        worker = self.worker()
        worker.link.queue_load("request", [Asked("kv", hashes(1), of_pages(1))])
        worker.link.start(nothing)
        with self.assertLogs("sglang.kvkeep", "WARNING"):
            worker.link.close()
        self.assertTrue(self.cache.closed)

    def test_buffers_that_cannot_be_described_are_refused(self) -> None:
        entry = Entry("kv", 4, 1, {0: 0})
        entry.buffer_meta[0][1] = (*entry.buffer_meta[0][1][:2], 64)
        with self.assertRaisesRegex(kvkeep.InvalidError, "several lengths"):
            DevicePages(entry)
