"""SGLang's storage over a real cache, without SGLang."""

from __future__ import annotations

import random
import threading
from typing import Any
from unittest import mock

import kvkeep
from kvkeep.sglang.host_pool import HostPages
from kvkeep.sglang.settings import settings
from kvkeep.sglang.store import Place, Store, Window

from .sglang_host import (
    ALONE,
    CrookedPool,
    HostPool,
    Indices,
    MHAHostPool,
    MovingPool,
    hashes,
    indices,
    of_pages,
    store,
)
from .support import HANGING, CacheTest


class Sglang(CacheTest):
    def store(self, place: Place = ALONE, pool: Any = None, **chosen: Any) -> Store:
        made = store(self.cache, place, **chosen)
        made.register_host("kv", pool or HostPool(64), indices)
        return made

    def test_pages_come_back_at_other_places_and_in_other_processes(self) -> None:
        keys, first, second = hashes(8), HostPool(64), HostPool(16)
        filled = [first.fill(page, 3 * page) for page in range(8)]
        writer, reader = self.store(pool=first), self.store(pool=second)
        self.assertEqual(reader.prefix(keys), 0)
        self.assertEqual(writer.set("kv", keys, of_pages(*range(8))), [True] * 8)
        self.assertEqual(reader.prefix([*keys, "none"]), 8)
        self.assertEqual(reader.get("kv", keys, of_pages(*range(15, 7, -1))), [True] * 8)
        self.assertEqual([second.page(15 - index) for index in range(8)], filled)
        self.assertEqual(self.cache.explain()["sessions"], [])

    def test_lists_are_full_whatever_is_missing(self) -> None:
        keys, made = hashes(6), self.store()
        made.set("kv", keys[::2], of_pages(0, 1, 2))
        self.assertEqual(made.get("kv", keys, of_pages(*range(6))), [True, False] * 3)
        self.assertEqual(made.prefix(keys), 1)
        self.assertEqual(made.get("kv", [], Indices()), [])
        with self.assertLogs("sglang.kvkeep", "WARNING"):
            self.assertEqual(made.get("swa", keys, of_pages(*range(6))), [False] * 6)
            self.assertEqual(made.set("kv", keys, of_pages(0)), [False] * 6)
            self.assertEqual(made.set("kv", keys, Indices(range(23))), [False] * 6)
            self.assertEqual(made.set("kv", keys, Indices(range(1, 25))), [False] * 6)

    def test_a_key_named_twice_is_served_once(self) -> None:
        keys, pool = hashes(2), HostPool(8)
        made = self.store(pool=pool)
        filled = pool.fill(0, 5)
        self.assertEqual(made.set("kv", [keys[0], keys[0], keys[1]], of_pages(0, 1, 2)), [True, False, True])
        self.assertEqual(made.get("kv", [keys[0], keys[0]], of_pages(4, 5)), [True, False])
        self.assertEqual(pool.page(4), filled)

    def test_what_differs_anywhere_never_meets(self) -> None:
        keys, differing = hashes(1), [
            {},
            {"model": "other"},
            {"tenant": "t"},
            {"generation": 1},
            {"place": ALONE._replace(tp_size=2)},
            {"place": ALONE._replace(tp_size=2, tp_rank=1)},
            {"place": ALONE._replace(pp_size=2)},
            {"place": ALONE._replace(pp_size=2, pp_rank=1)},
            {"place": ALONE._replace(cp_size=2, cp_rank=1)},
            {"place": ALONE._replace(kv_dtype="fp8_e4m3")},
            {"place": ALONE._replace(kv_dtype="fp8_e5m2")},
            {"pool": HostPool(64, layout="layer_first")},
            {"pool": HostPool(64, pieces=4)},
            {"pool": HostPool(64, piece_bytes=256)},
        ]
        fp8, tagged = HostPool(64), HostPool(64)
        fp8.dtype, tagged.storage_format_tag = "torch.float8_e4m3fn", "packed"
        for one in (*differing, {"pool": fp8}, {"pool": tagged}):
            made = self.store(**one)
            self.assertEqual(made.prefix(keys), 0, one)
            self.assertEqual(made.set("kv", keys, of_pages(0)), [True])

    def test_ranks_that_have_the_same_bytes_share_them_and_one_writes(self) -> None:
        keys, ranks = hashes(2), [self.store(ALONE._replace(tp_rank=rank, tp_size=2, replicated=True)) for rank in (0, 1)]
        self.assertEqual(ranks[1].set("kv", keys, of_pages(0, 1)), [True, True])
        self.assertEqual(ranks[0].prefix(keys), 0)
        self.assertEqual(ranks[0].set("kv", keys, of_pages(0, 1)), [True, True])
        self.assertEqual(ranks[1].prefix(keys), 2)
        # Another number of ranks has them as well.
        self.assertEqual(self.store(ALONE._replace(tp_rank=3, tp_size=4, replicated=True)).prefix(keys), 2)
        for name, pool in (("mamba", HostPool(8)), ("draft", MHAHostPool(8))):
            for rank in ranks:
                rank.register_host(name, pool, indices)
            self.assertEqual(ranks[1].set(name, keys, of_pages(0, 1)), [True, True])
            self.assertEqual(ranks[0].get(name, keys, of_pages(2, 3)), [False, False])
            self.assertEqual(ranks[1].get(name, keys, of_pages(2, 3)), [True, True])

    def test_restorable_lengths_are_those_at_which_every_pool_can_continue(self) -> None:
        chance = random.Random(7)
        for round in range(12):
            keys = hashes(9, f"round {round}")
            made = self.store()
            stored = {}
            for name in ("kv", "swa", "mamba", "indexer"):
                if name != "kv":
                    made.register_host(name, HostPool(32), indices)
                least = {"kv": 0.95, "indexer": 0.95}.get(name, 0.6)
                stored[name] = {index for index in range(9) if chance.random() < least}
                mine = sorted(stored[name])
                if mine:
                    made.set(name, [keys[index] for index in mine], of_pages(*mine))
            windows = [Window("kv", 0), Window("indexer", 0), Window("swa", 3), Window("mamba", 1)]
            expected = [
                length
                for length in range(1, 10)
                if all(index in stored["kv"] and index in stored["indexer"] for index in range(length))
                and all(index in stored["swa"] for index in range(max(0, length - 3), length))
                and length - 1 in stored["mamba"]
            ]
            found = made.restorable(keys, windows)
            self.assertEqual(found.lengths, expected, stored)
            kv = next((index for index in range(9) if index not in stored["kv"]), 9)
            self.assertEqual(found.by_pool.get("kv", 0), kv)

    def test_a_hole_in_a_trailing_pool_is_no_maximum(self) -> None:
        keys, made = hashes(8), self.store()
        made.register_host("mamba", HostPool(8), indices)
        made.set("kv", keys, of_pages(*range(8)))
        made.set("mamba", [keys[3], keys[6]], of_pages(0, 1))
        found = made.restorable(keys, [Window("kv", 0), Window("mamba", 1)])
        self.assertEqual((found.lengths, found.by_pool), ([4, 7], {"kv": 8, "mamba": 7}))

    def test_128_pages_go_in_one_call(self) -> None:
        keys, pool = hashes(128), HostPool(256)
        made = self.store(pool=pool)
        filled = [pool.fill(page, page) for page in range(128)]
        self.assertEqual(made.set("kv", keys, of_pages(*range(128))), [True] * 128)
        self.assertEqual(made.get("kv", keys, of_pages(*range(128, 256))), [True] * 128)
        self.assertEqual([pool.page(128 + page) for page in range(128)], filled)

    def test_pages_that_move_are_asked_for(self) -> None:
        keys, pool = hashes(4), MovingPool(16)
        made = self.store(pool=pool)
        filled = [pool.fill(page, 9 * page) for page in range(4)]
        self.assertEqual(made.set("kv", keys, of_pages(0, 1, 2, 3)), [True] * 4)
        self.assertEqual(made.get("kv", keys, of_pages(12, 13, 14, 15)), [True] * 4)
        self.assertEqual([pool.page(page) for page in range(12, 16)], filled)

    def test_what_cannot_be_registered_says_why(self) -> None:
        with self.assertRaisesRegex(kvkeep.InvalidError, "equal distances|none was"):
            HostPages(CrookedPool(16), indices)
        unsupported = HostPool(8)
        unsupported.get_page_buffer_meta = mock.Mock(side_effect=ValueError("Unsupported layout: layer_first"))
        with self.assertRaisesRegex(kvkeep.InvalidError, "--hicache-mem-layout page_first"):
            self.store(pool=unsupported)
        with self.assertRaisesRegex(kvkeep.InvalidError, '"model"'):
            store(self.cache, model="")

    def test_threads_store_load_and_look_up_at_once(self) -> None:
        pool, errors = HostPool(256), []
        made = self.store(pool=pool)

        def work(thread: int) -> None:
            for round in range(10):
                keys, pages = hashes(8, f"{thread} {round}"), range(64 * thread, 64 * thread + 8)
                filled = [pool.fill(page, page + round) for page in pages]
                ok = made.set("kv", keys, of_pages(*pages)) == [True] * 8 and made.prefix(keys) == 8
                ok = ok and made.get("kv", keys, of_pages(*(page + 32 for page in pages))) == [True] * 8
                if not ok or [pool.page(page + 32) for page in pages] != filled:
                    errors.append((thread, round))

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])

    def test_clear_forgets_and_close_lets_go(self) -> None:
        keys = hashes(2)
        made, other = self.store(), self.store(model="other")
        for one in (made, other):
            one.set("kv", keys, of_pages(0, 1))
        made.clear()
        self.assertEqual((made.prefix(keys), other.prefix(keys)), (0, 2))
        made.set("kv", keys, of_pages(0, 1))
        self.assertEqual(made.prefix(keys), 2)
        made.close()
        made.close()
        self.assertTrue(self.cache.closed)

    def test_a_cache_that_went_away_is_a_miss(self) -> None:
        keys, made = hashes(2), self.store()
        made.set("kv", keys, of_pages(0, 1))
        self.cache.close()
        with self.assertLogs("sglang.kvkeep", "WARNING") as logged:
            self.assertEqual(made.get("kv", keys, of_pages(0, 1)), [False, False])
            self.assertEqual(made.set("kv", keys, of_pages(0, 1)), [False, False])
            self.assertEqual(made.prefix(keys), 0)
            self.assertEqual(made.restorable(keys, [Window("kv", 0), Window("mamba", 1)]).lengths, [])
        self.assertEqual(len(logged.output), 1)

    def test_a_lookup_that_is_not_answered_in_time_is_a_miss(self) -> None:
        # Without a bound of its own, it would be asked for longer than this test may take.
        self.cache = self.open(backends=[HANGING], backend_timeout=3600)
        made = self.store(lookup_ms=20)
        made.register_host("mamba", HostPool(8), indices)
        with self.assertLogs("sglang.kvkeep", "WARNING"):
            self.assertEqual(made.prefix(hashes(2)), 0)
            self.assertEqual(made.restorable(hashes(2), [Window("mamba", 1)]).lengths, [])

    def test_settings_that_cannot_be_meant_are_refused(self) -> None:
        given = {"backend_name": "kvkeep", "connect": "unix:///a.sock", "generation": 3}
        self.assertEqual(settings(given, "option").generation, 3)
        for extra, text in (
            ({}, '"connect"'),
            ({"connect": "unix:///a.sock", "l1_bytes": 1}, '"connect"'),
            ({"connect": 1}, "connect is 1"),
            ({"l1_bytes": True}, "l1_bytes is True"),
            ({"l1_bytes": 1, "lookup_ms": -1}, "lookup_ms"),
        ):
            with self.assertRaisesRegex(kvkeep.InvalidError, text):
                settings(extra, "option")
