from __future__ import annotations

import asyncio
import gc
import signal
import threading
from typing import Any

import kvkeep
from kvkeep import Status

from .support import HANGING, WATCHDOG_S, CacheTest, some_keys


class Landing(CacheTest):
    """Whoever stops waiting for a copy has its pages back: nothing is copied any more."""

    # So large that a copy is under way when it is looked at.
    COUNT, BYTES = 16, 4 << 20

    def setUp(self) -> None:
        super().setUp()
        self.big = self.open(l1_bytes=160 << 20)
        space = self.big.space("big", chunk_tokens=16)
        self.memory = bytearray(2 * self.COUNT * self.BYTES)
        shaped = memoryview(self.memory).cast("B", (2 * self.COUNT, self.BYTES))
        self.pool = space.pool([kvkeep.pages(shaped)], blocks_per_chunk=1)
        self.big_space, self.keys = space, some_keys(self.COUNT)
        with space.session() as session:
            self.pool.store(session, self.keys, range(self.COUNT)).wait(WATCHDOG_S)

    def load(self, session: kvkeep.Session, **told: Any) -> kvkeep.Transfer:
        return self.pool.load(session, self.keys, range(self.COUNT, 2 * self.COUNT), **told)

    def is_over(self, job: int) -> bool:
        return kvkeep.Job(self.big, job, 0, None).done()

    def run_async(self, coroutine: Any) -> None:
        asyncio.run(asyncio.wait_for(coroutine, WATCHDOG_S))

    def test_a_cancelled_await_raises_when_the_copy_has_landed(self) -> None:
        async def main(times: int) -> None:
            session, begun = self.big_space.session(), []

            async def request() -> None:
                begun.append(self.load(session))
                await begun[0]

            task = asyncio.ensure_future(request())
            for _ in range(times):
                await asyncio.sleep(0)
                task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertTrue(begun[0].done())
            session.end()

        for times in (1, 2, 3):
            with self.subTest(cancelled=times):
                self.run_async(main(times))

    def test_a_timeout_of_asyncio_ends_the_copy(self) -> None:
        async def main() -> None:
            with self.big_space.session() as session:
                transfer = self.load(session)
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(transfer, 0.0001)
                self.assertTrue(transfer.done())

        self.run_async(main())

    def test_of_many_tasks_the_last_one_cancelled_cancels(self) -> None:
        self.big.add_backend(HANGING)

        async def main() -> None:
            with self.big_space.session() as session:
                transfer = self.pool.load(session, some_keys(1, "nowhere"), [0])

                async def ask() -> None:
                    await transfer

                first, second = (asyncio.ensure_future(ask()) for _ in range(2))
                await asyncio.sleep(0)
                first.cancel()
                await asyncio.sleep(0)
                # The pages are the second's as well: the first holds on, and takes nothing from it.
                self.assertEqual((first.done(), transfer.done()), (False, False))
                second.cancel()
                self.assertEqual(
                    [type(one) for one in await asyncio.gather(first, second, return_exceptions=True)],
                    [asyncio.CancelledError] * 2,
                )
                self.assertTrue(transfer.done())

        self.run_async(main())

    def test_a_coroutine_that_is_closed_leaves_no_copy(self) -> None:
        async def main() -> None:
            session, begun = self.big_space.session(), []

            async def request() -> None:
                begun.append(self.load(session))
                await begun[0]

            closed = request()
            closed.send(None)
            closed.close()
            self.assertTrue(begun[0].done())

        self.run_async(main())

    def test_a_block_left_by_an_exception_leaves_no_copy(self) -> None:
        begun: list[kvkeep.Transfer] = []
        told: list[kvkeep.Completion] = []
        with self.assertRaises(KeyError), self.big_space.session() as session:
            begun.append(self.load(session))
            begun.append(self.pool.store(session, some_keys(1, "new"), [0], callback=told.append))
            raise KeyError
        self.assertEqual([transfer.done() for transfer in begun], [True, True])

        async def main() -> None:
            with self.assertRaises(KeyError):
                async with self.big_space.session() as session:
                    begun.append(self.load(session))
                    raise KeyError
            self.assertTrue(begun[-1].done())
            async with self.big_space.session() as session:
                await self.load(session)

        self.run_async(main())

    def test_a_cancelled_task_leaves_its_session_when_the_copy_has_landed(self) -> None:
        async def main() -> None:
            begun: list[kvkeep.Transfer] = []

            async def request() -> None:
                async with self.big_space.session() as session:
                    begun.append(self.load(session))
                    await asyncio.Event().wait()

            task = asyncio.ensure_future(request())
            for _ in range(3):
                await asyncio.sleep(0)
                task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertTrue(begun[0].done())

        self.run_async(main())

    def test_a_transfer_that_is_dropped_leaves_no_copy(self) -> None:
        session = self.big_space.session()
        with self.assertWarns(ResourceWarning):
            number = self.load(session).id
            gc.collect()
        self.assertTrue(self.is_over(number))
        # One that tells its end otherwise goes on.
        ended = threading.Event()
        self.load(session, callback=lambda completion: completion.status == Status.OK and ended.set())
        self.assertTrue(ended.wait(WATCHDOG_S))

    def test_a_release_waits_for_the_copy(self) -> None:
        with self.big_space.session() as session:
            transfer = self.load(session)
            transfer.release()
            self.assertEqual(self.big.stats().l1_shares, 0)
            with self.assertRaises(kvkeep.NotFoundError):
                transfer.done()

    def test_an_interrupted_wait_leaves_no_copy(self) -> None:
        self.big.add_backend(HANGING)
        with self.big_space.session() as session:
            keys = some_keys(1, "nowhere")
            for wait in (kvkeep.Transfer.wait, lambda transfer: transfer.wait_layer(0)):
                transfer = self.pool.load(session, keys, [0])
                with self.assertRaises(TimeoutError):
                    transfer.wait(0.01)
                # A timeout leaves it running; what no caller expects does not.
                self.assertFalse(transfer.done())
                before = signal.signal(signal.SIGALRM, interrupt)
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                try:
                    with self.assertRaises(KeyboardInterrupt):
                        wait(transfer)
                finally:
                    signal.signal(signal.SIGALRM, before)
                self.assertTrue(transfer.done())

    def test_a_pool_left_in_a_coroutine_waits_beside_the_loop(self) -> None:
        async def main() -> None:
            session = self.big_space.session()
            async with self.pool:
                transfer = self.load(session)
            self.assertTrue(transfer.done())
            session.end()

        self.run_async(main())

    def test_transfers_that_are_over_are_not_remembered(self) -> None:
        with self.space.session() as session:
            pool = self.space.pool([kvkeep.pages(memoryview(bytearray(16)).cast("B", (1, 16)))])
            for _ in range(300):
                pool.store(session, some_keys(1), [0]).wait(WATCHDOG_S)
                with self.assertRaises(kvkeep.InvalidError):
                    pool.store(session, some_keys(1), [1])
            self.assertLess(len(self.cache.landings._expected), 70)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
