from __future__ import annotations

import kvkeep
from kvkeep import Status

from .support import WATCHDOG_S, CacheTest, some_keys


class Forgetting(CacheTest):
    """Weights that change under a model's name."""

    def found(self, space: kvkeep.Space, keys: kvkeep.Keys) -> int:
        with space.session() as session:
            return session.prefetch(keys).wait(WATCHDOG_S).hit_chunks

    def test_generations_and_forgetting(self) -> None:
        cache = self.open(backends=[f"fs://{self.directory()}?capacity=64MiB"])
        space, keys = cache.space("m"), some_keys(6)
        with space.session() as session:
            self.store(session, keys)
        cache.flush()
        later = cache.space("m", generation=1)
        self.assertEqual((self.found(space, keys), self.found(later, keys)), (6, 0))
        with later.session() as session, space.session() as staging:
            self.store(session, keys)
            staging.reserve_write(some_keys(1, "staged"), 64)
            self.assertEqual(space.forget(), 6)
            self.assertEqual(list(staging.finish_write(some_keys(1, "staged"))), [Status.ERR_CANCELLED])
        self.assertEqual((self.found(space, keys), self.found(later, keys)), (0, 6))
        cache.flush()
        self.assertEqual(cache.stats().l2_objects, 6)
        with self.assertRaises(kvkeep.NotFoundError):
            cache.forget(12345)
        self.assertEqual(cache.forget(), 6)
        cache.flush()
        self.assertEqual((self.found(later, keys), cache.stats().l2_objects), (0, 0))
