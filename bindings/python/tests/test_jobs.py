from __future__ import annotations

import asyncio
import gc
import select
import threading
import weakref

import kvkeep
from kvkeep import Status

from .support import HANGING, WATCHDOG_S, CacheTest, content, some_keys


class Jobs(CacheTest):
    def test_wait_and_query(self) -> None:
        keys = some_keys(5)
        session = self.space.session()
        self.store(session, keys[:3])
        job = session.prefetch(keys)
        result = job.wait(WATCHDOG_S)
        self.assertEqual((result.status, result.hit_chunks, result.tier_keys[0]), (Status.OK, 3, 3))
        self.assertEqual((job.lookup_hits(), job.query(), job.done()), (3, result, True))
        self.assertEqual(job.bitmap(), [True, True, True, False, False])
        self.assertEqual(job.prefix_lengths(), [3, 2, 1])
        job.release()
        with self.assertRaises(kvkeep.NotFoundError):
            job.query()
        self.assertTrue(session.finish_read(keys[:3]).ok)

    def test_options_reach_the_library(self) -> None:
        keys = some_keys(4)
        session = self.space.session()
        self.store(session, kvkeep.keys([keys[1], keys[2]]))
        any_chunk = session.prefetch(keys, mode=kvkeep.PrefetchMode.EACH, extra_count=3).wait(WATCHDOG_S)
        self.assertEqual(any_chunk.hit_chunks, 2)
        self.assertEqual(self.cache.stats().l1_shares, 8)
        rules = [kvkeep.GroupRule(0, kvkeep.PrefetchMode.WINDOW, 2)]
        windowed = session.prefetch(keys[:3], group_rules=rules).wait(WATCHDOG_S)
        self.assertEqual(windowed.hit_chunks, 3)
        with self.assertRaises(kvkeep.InvalidError):
            session.prefetch(keys, objects_per_chunk=3)

    def test_a_callback_is_told_once(self) -> None:
        session = self.space.session()
        self.store(session, some_keys(2))
        told: list[kvkeep.Completion] = []
        threads: list[int] = []
        done = threading.Semaphore(0)

        def callback(completion: kvkeep.Completion) -> None:
            told.append(completion)
            threads.append(threading.get_ident())
            done.release()

        jobs = [session.prefetch(some_keys(2), callback=callback) for _ in range(20)]
        for _ in jobs:
            self.assertTrue(done.acquire(timeout=WATCHDOG_S))
        self.assertEqual(sorted(completion.job for completion in told), sorted(job.id for job in jobs))
        self.assertEqual({completion.hit_chunks for completion in told}, {2})
        self.assertNotIn(threading.get_ident(), threads)
        self.assertEqual(told[0]._replace(job=0), (0, session.id, Status.OK, 2, 0, "", kvkeep.JobKind.PREFETCH, 0, 0))

    def test_a_callback_is_told_of_the_lookup_and_of_the_end(self) -> None:
        url = self.stored_below(some_keys(2))
        told: list[kvkeep.Completion] = []
        seen = threading.Semaphore(0)

        def callback(completion: kvkeep.Completion) -> None:
            told.append(completion)
            seen.release()

        with kvkeep.Cache(4 << 20, backends=[url]) as cache, cache.space("m").session() as session:
            job = session.prefetch(some_keys(3), callback=callback, notify_lookup=True, pause_after_lookup=True)
            self.assertTrue(seen.acquire(timeout=WATCHDOG_S))
            self.assertEqual((len(told), job.query(), cache.stats().loads), (1, None, 0))
            job.resume()
            self.assertTrue(seen.acquire(timeout=WATCHDOG_S))
        self.assertEqual([completion.kind for completion in told], [kvkeep.JobKind.LOOKUP, kvkeep.JobKind.PREFETCH])
        self.assertEqual({completion.hit_chunks for completion in told}, {2})

    def test_a_callback_may_call_back(self) -> None:
        session = self.space.session()
        second = threading.Event()
        session.prefetch(
            some_keys(1), callback=lambda _: session.prefetch(some_keys(1), callback=lambda _: second.set())
        )
        self.assertTrue(second.wait(WATCHDOG_S))

    def test_a_refused_job_calls_nothing(self) -> None:
        def callback(completion: kvkeep.Completion) -> None:
            raise AssertionError("told of a job that was refused")

        kept = weakref.ref(callback)
        with self.assertRaises(kvkeep.InvalidError):
            self.space.session().prefetch(some_keys(1), extra_count=128, callback=callback)
        del callback
        gc.collect()
        self.assertIsNone(kept())

    def test_cancel(self) -> None:
        self.cache.add_backend(HANGING)
        told: list[kvkeep.Completion] = []
        done = threading.Event()
        job = self.space.session().prefetch(
            some_keys(1), callback=lambda completion: (told.append(completion), done.set())
        )
        with self.assertRaises(kvkeep.TimedOutError):
            job.wait(0.01)
        self.assertIsNone(job.query())
        self.assertIsNone(job.lookup_hits())
        self.assertIsNone(job.bitmap())
        job.cancel()
        with self.assertRaises(kvkeep.CancelledError):
            job.wait(WATCHDOG_S)
        self.assertTrue(done.wait(WATCHDOG_S))
        self.assertEqual(told[0].status, Status.ERR_CANCELLED)
        self.assertTrue(told[0].message)

    def test_the_descriptor_is_drained_by_hand(self) -> None:
        session = self.space.session()
        jobs = [session.prefetch(some_keys(2), notify=kvkeep.Notify.EVENT_FD) for _ in range(100)]
        drained: list[int] = []
        while len(drained) < len(jobs):
            self.assertTrue(select.select([self.cache.event_fd()], [], [], WATCHDOG_S)[0])
            drained += [completion.job for completion in self.cache.take_completions()]
        self.assertEqual(sorted(drained), [job.id for job in jobs])
        self.assertFalse(select.select([self.cache.event_fd()], [], [], 0)[0])

    def test_a_new_cache_finds_what_an_old_one_wrote(self) -> None:
        keys = some_keys(6)
        url = self.stored_below(keys)
        with kvkeep.Cache(4 << 20, backends=[url]) as cache, cache.space("m").session() as session:
            result = session.prefetch(keys).wait(WATCHDOG_S)
            self.assertEqual((result.hit_chunks, result.tier_keys[1]), (6, 6))
            for index, view in enumerate(session.get_views(keys)):
                self.assertEqual(view, content(index, 4096))


class Awaited(CacheTest):
    def run_async(self, coroutine: object) -> None:
        async def watched() -> None:
            await asyncio.wait_for(coroutine, WATCHDOG_S)

        asyncio.run(watched())

    def test_a_hundred_jobs(self) -> None:
        keys = some_keys(100)
        url = self.stored_below(keys)

        async def main() -> None:
            with kvkeep.Cache(4 << 20, backends=[url]) as cache, cache.space("m").session() as session:
                jobs = [session.prefetch(keys[i : i + 1]) for i in range(100)]
                results = await asyncio.gather(*jobs)
                self.assertEqual([result.hit_chunks for result in results], [1] * 100)
                self.assertEqual(sum(result.tier_keys[1] for result in results), 100)
                self.assertFalse(cache.completions._pending or cache.completions._awaited)

        self.run_async(main())

    def test_a_lookup_is_awaited_before_anything_is_loaded(self) -> None:
        keys = some_keys(4)
        url = self.stored_below(keys)

        async def main() -> None:
            with kvkeep.Cache(4 << 20, backends=[url]) as cache, cache.space("m").session() as session:
                job = session.prefetch(keys, notify_lookup=True, pause_after_lookup=True)
                self.assertEqual(await job.looked_up(), 4)
                self.assertEqual((job.query(), cache.stats().loads), (None, 0))
                job.resume()
                self.assertEqual((await job).hit_chunks, 4)
                self.assertEqual(await job.looked_up(), 4)
                cache.add_backend(HANGING)
                lost = session.prefetch(some_keys(5), notify_lookup=True)
                lost.cancel()
                with self.assertRaises(kvkeep.CancelledError):
                    await lost.looked_up()
                quiet = session.prefetch(keys)
                with self.assertRaisesRegex(RuntimeError, "notify_lookup=True"):
                    await quiet.looked_up()
                await quiet
                self.assertFalse(cache.completions._pending or cache.completions._lookups)

        self.run_async(main())

    def test_many_tasks_await_one_job(self) -> None:
        async def main() -> None:
            job = self.space.session().prefetch(some_keys(1))

            async def ask() -> kvkeep.JobResult:
                return await job

            impatient = asyncio.ensure_future(ask())
            others = [asyncio.ensure_future(ask()) for _ in range(3)]
            await asyncio.sleep(0)
            impatient.cancel()
            self.assertEqual({result.hit_chunks for result in await asyncio.gather(*others)}, {0})

        self.run_async(main())

    def test_a_cancelled_job_raises_what_it_says(self) -> None:
        self.cache.add_backend(HANGING)

        async def main() -> None:
            job = self.space.session().prefetch(some_keys(1))
            job.cancel()
            with self.assertRaises(kvkeep.CancelledError) as cancelled:
                await job
            self.assertTrue(str(cancelled.exception))

        self.run_async(main())

    def test_close_ends_what_is_awaited(self) -> None:
        cache = self.open(backends=[HANGING])

        async def main() -> None:
            job = cache.space("m").session().prefetch(some_keys(1))
            await asyncio.get_running_loop().run_in_executor(None, cache.close)
            with self.assertRaises(kvkeep.CancelledError):
                await job

        self.run_async(main())

    def test_a_close_that_a_callback_is_refused_stops_nothing(self) -> None:
        cache = self.open(backends=[HANGING])
        session = cache.space("m").session()
        refused: list[BaseException] = []
        done = threading.Event()

        def close(_: kvkeep.Completion) -> None:
            try:
                cache.close()
            except kvkeep.InvalidError as error:
                refused.append(error)
            done.set()

        async def main() -> None:
            job = session.prefetch(some_keys(1))
            session.prefetch(some_keys(1), callback=close).cancel()
            await asyncio.get_running_loop().run_in_executor(None, done.wait, WATCHDOG_S)
            self.assertEqual((len(refused), cache.closed), (1, False))
            job.cancel()
            with self.assertRaises(kvkeep.CancelledError):
                await job

        self.run_async(main())

    def test_a_job_submitted_elsewhere_for_a_loop(self) -> None:
        session = self.space.session()

        async def main() -> None:
            loop = asyncio.get_running_loop()
            job = await loop.run_in_executor(None, lambda: session.prefetch(some_keys(1), loop=loop))
            self.assertEqual((await job).hit_chunks, 0)

        self.run_async(main())

    def test_two_loops_share_the_descriptor(self) -> None:
        failures: list[BaseException] = []

        async def main() -> None:
            session = self.space.session()
            for _ in range(50):
                await asyncio.gather(*(session.prefetch(some_keys(2)) for _ in range(4)))

        def loop() -> None:
            try:
                self.run_async(main())
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=loop) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_a_loop_that_is_gone_harms_nobody(self) -> None:
        self.cache.add_backend(HANGING)

        async def leave() -> kvkeep.Job:
            return self.space.session().prefetch(some_keys(1))

        left = asyncio.run(leave())
        left.cancel()
        self.run_async(self.wait_for_one())
        self.assertFalse(self.cache.completions._pending or self.cache.completions._awaited)

    async def wait_for_one(self) -> None:
        job = self.space.session().prefetch(some_keys(1))
        job.cancel()
        with self.assertRaises(kvkeep.CancelledError):
            await job

    def test_a_polled_job_is_not_awaited(self) -> None:
        job = self.space.session().prefetch(some_keys(1))

        async def main() -> None:
            with self.assertRaises(RuntimeError):
                await job

        self.run_async(main())

        async def two_ways() -> None:
            with self.assertRaises(ValueError):
                self.space.session().prefetch(some_keys(1), callback=print, loop=asyncio.get_running_loop())

        self.run_async(two_ways())
