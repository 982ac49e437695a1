from __future__ import annotations

import array
import asyncio
import ctypes
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import kvkeep
from kvkeep import Segment, Status
from kvkeep.pages import packed

from .support import HANGING, WATCHDOG_S, CacheTest, some_keys

BLOCKS, PER_CHUNK, TOKENS = 12, 2, 8


class Memory:
    """Bytes at an address, as the tensors below see them."""

    def __init__(self, shape: tuple[int, ...], item_bytes: int = 4) -> None:
        self.shape, self.item_bytes = shape, item_bytes
        size = item_bytes
        for length in shape:
            size *= length
        self.bytes = (ctypes.c_uint8 * size)(*(i * 7 % 251 for i in range(size)))
        self.address = ctypes.addressof(self.bytes)
        self.strides = packed(shape, item_bytes)


class LikeTorch(Memory):
    """What torch's tensors have and this package uses."""

    device = SimpleNamespace(type="cpu", index=None)

    def data_ptr(self) -> int:
        return self.address

    def element_size(self) -> int:
        return self.item_bytes

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.item_bytes for step in self.strides)


class LikeCupy(Memory):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "<f4", "data": (self.address, False), "version": 3, "strides": None}


class DlpackTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("type", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class LikeNothingElse(Memory):
    """A producer of DLPack alone."""

    device = (1, 0)

    def __dlpack__(self) -> object:
        rank = len(self.shape)
        self.tensor = DlpackTensor(self.address - 16, self.device, rank, (2, 32, 1, 0))
        self.tensor.shape = self.lengths = (ctypes.c_int64 * rank)(*self.shape)
        self.tensor.byte_offset = 16
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


class Reading(CacheTest):
    """Segments as they are read off tensors."""

    def test_axes(self) -> None:
        # The layout, the axes, and where its pieces begin, how long and how far apart they are, in elements.
        for shape, axes, pieces in (
            # Blocks first, K and V fused.
            ((5, 2, 4, 3), {}, ([0], 24, 24)),
            # K and V in halves.
            ((2, 5, 4, 3), {"block_axis": 1}, ([0, 60], 12, 12)),
            # Heads outermost, too.
            ((2, 3, 5, 4), {"block_axis": 2}, ([0, 20, 40, 60, 80, 100], 4, 4)),
            # One latent.
            ((5, 7), {}, ([0], 7, 7)),
            # One block, so that halves lie in one piece.
            ((2, 1, 6), {"block_axis": 1}, ([0], 12, 0)),
        ):
            with self.subTest(shape=shape):
                tensor = LikeTorch(shape)
                read = kvkeep.pages(tensor, layer=3, group=2, **axes)
                begins, bytes_of, stride = pieces
                expected = [Segment(tensor.address + 4 * at, 4 * bytes_of, 4 * stride, 2, 3) for at in begins]
                blocks = shape[axes.get("block_axis", 0)]
                self.assertEqual((read.segments, read.block_count, read.device), (expected, blocks, -1))

    def test_all_layers_of_a_block_in_one_tensor(self) -> None:
        tensor = LikeTorch((5, 3, 2, 4))
        whole = kvkeep.pages(tensor)
        self.assertEqual(whole.segments, [Segment(tensor.address, 96, 96)])
        apart = kvkeep.pages(tensor, layer_axis=1, layer=10)
        self.assertEqual(apart.segments, [Segment(tensor.address + 32 * i, 32, 96, 0, 10 + i) for i in range(3)])

    def test_permuted_axes_are_bytes_as_they_lie(self) -> None:
        tensor = LikeTorch((5, 4, 3))
        permuted = LikeTorch((5, 3, 4))
        permuted.address, permuted.strides = tensor.address, (48, 4, 12)
        self.assertEqual(kvkeep.pages(permuted).segments, kvkeep.pages(tensor).segments)

    def test_every_protocol_says_the_same(self) -> None:
        torch = LikeTorch((5, 4, 3))
        expected = [Segment(torch.address, 48, 48)]
        self.assertEqual(kvkeep.pages(torch).segments, expected)
        for kind in (LikeCupy, LikeNothingElse):
            other = kind((5, 4, 3))
            other.address, other.bytes = torch.address, torch.bytes
            self.assertEqual(kvkeep.pages(other).segments, expected)
        buffer = memoryview(torch.bytes).cast("B").cast("f", (5, 4, 3))
        self.assertEqual(kvkeep.pages(buffer).segments, expected)
        self.assertEqual(kvkeep.pages(buffer[1:3]).segments, [Segment(torch.address + 48, 48, 48)])

    def test_devices(self) -> None:
        gpu = LikeTorch((5, 4))
        gpu.device = SimpleNamespace(type="cuda", index=3)
        self.assertEqual(kvkeep.pages(gpu).device, 3)
        gpu.device = SimpleNamespace(type="cuda", index=None)
        self.assertEqual(kvkeep.pages(gpu).device, 0)
        self.assertIsNone(kvkeep.pages(LikeCupy((5, 4))).device)
        packed_tensor = LikeNothingElse((5, 4))
        for device, known in (((2, 6), 6), ((3, 0), -1), ((13, 1), 1)):
            packed_tensor.device = device
            self.assertEqual(kvkeep.pages(packed_tensor).device, known)
        for stranger in (SimpleNamespace(type="mps", index=0), SimpleNamespace(type="meta", index=None)):
            gpu.device = stranger
            with self.assertRaisesRegex(kvkeep.InvalidError, stranger.type):
                kvkeep.pages(gpu)
        packed_tensor.device = (8, 0)
        with self.assertRaisesRegex(kvkeep.InvalidError, "device 8"):
            kvkeep.pages(packed_tensor)

    def test_what_is_no_tensor_of_pages(self) -> None:
        repeated = LikeTorch((5, 4))
        repeated.strides = (0, 4)
        interface = {"shape": (5, 4), "typestr": "<f4", "data": (4096, True), "version": 3}
        for tensor, axes, words in (
            (repeated, {}, r"shape \(5, 4\) and strides \(0, 4\) \(bytes\) repeats"),
            (LikeTorch((5, 4)), {"block_axis": 2}, r"block_axis 2 must be 1 of the 2 axes.* shape \(5, 4\)"),
            (LikeTorch((5, 4)), {"layer_axis": 0}, r"block_axis 0 and layer_axis 0 must be 2 of .* shape \(5, 4\)"),
            (LikeTorch(()), {}, "0 axes"),
            (LikeTorch((0, 4)), {}, r"no elements: its shape is \(0, 4\)"),
            (b"read only", {}, r"shape \(9,\) is read-only"),
            (SimpleNamespace(__cuda_array_interface__=interface), {}, r"shape \(5, 4\) is read-only"),
            ([1, 2], {}, "list is no tensor"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kvkeep.InvalidError, words):
                kvkeep.pages(tensor, **axes)

    def test_pools_need_what_tensors_agree_on(self) -> None:
        for tensors, options, words in (
            ([LikeTorch((5, 4)), LikeTorch((6, 4))], {}, r"block_count .* 5 \(.*shape \(5, 4\)\), 6 \(.*shape \(6, 4\)\)"),
            ([LikeTorch((5, 4))], {"block_count": 4}, r"block_count .* 4 \(as given\), 5 \(.*shape \(5, 4\)\)"),
            ([LikeTorch((5, 4))], {"device": 0}, r"device .* -1 \(.*shape \(5, 4\)\), 0 \(as given\)"),
            ([LikeCupy((5, 4))], {}, r"shape \(5, 4\) does not say .*: pass device"),
            ([LikeTorch((5, 4)), LikeTorch((5, 3), 1)], {}, r"segments\[1\] .* \(segments\[1\] is of a tensor of shape \(5, 3\)\)"),
            ([], {}, "segments"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kvkeep.InvalidError, words):
                self.space.pool([kvkeep.pages(tensor) for tensor in tensors], **options)
        with self.assertRaisesRegex(kvkeep.InvalidError, "address"):
            self.space.pool([Segment(1 << 64, 4)], block_count=1)


class Transfers(CacheTest):
    def setUp(self) -> None:
        super().setUp()
        # Two layers, K and V in halves, blocks of 8 tokens.
        self.layers = [LikeTorch((2, BLOCKS, 16)) for _ in range(2)]
        self.before = [bytes(layer.bytes) for layer in self.layers]
        self.pool = self.open_pool(self.space)

    def open_pool(self, space: kvkeep.Space) -> kvkeep.Pool:
        tensors = [kvkeep.pages(layer, layer=i, block_axis=1) for i, layer in enumerate(self.layers)]
        return space.pool(tensors, blocks_per_chunk=PER_CHUNK)

    def block(self, source: list[Any], block: int) -> list[bytes]:
        at = [(half * BLOCKS + block) * 64 for half in range(2)]
        return [bytes(layer[i : i + 64]) for layer in source for i in at]

    def loaded(self, block: int) -> list[bytes]:
        return self.block([layer.bytes for layer in self.layers], block)

    def test_blocks_go_and_come_back_elsewhere(self) -> None:
        keys = some_keys(3)
        with self.space.session() as session:
            stored = self.pool.store(session, keys, range(6)).wait(WATCHDOG_S)
            self.assertEqual((stored.status, stored.copied_keys, stored.copied_bytes), (Status.OK, 3, 6 * 256))
            transfer = self.pool.load(session, keys, array.array("i", range(11, 5, -1)))
            self.assertEqual(transfer.wait_layer(1, WATCHDOG_S), Status.OK)
            self.assertEqual(transfer.wait(WATCHDOG_S).status, Status.OK)
            self.assertEqual(list(transfer.blocks()), [Status.OK] * 6)
            self.assertTrue(transfer.blocks().ok)
            for block in range(6):
                self.assertEqual(self.loaded(11 - block), self.block(self.before, block))
            transfer.release()
            with self.assertRaises(kvkeep.NotFoundError):
                transfer.blocks()

    def test_awaited(self) -> None:
        keys = some_keys(4)

        async def main() -> None:
            with self.space.session() as session:
                await self.pool.store(session, keys, range(8))
                views = session.reserve_read(keys)
                self.assertTrue(views.ok)
                self.assertEqual(bytes(views[1]), b"".join(self.half(half) for half in range(4)))
                result = await self.pool.load(session, keys[:1], [8, 9], return_shares=True)
                self.assertEqual((result.copied_keys, self.cache.stats().l1_shares), (1, 3))
                # Two at once.
                loads = [
                    self.pool.load(session, keys[i : i + 1], [6 + 2 * i, 7 + 2 * i], return_shares=True) for i in (1, 2)
                ]
                self.assertEqual([result.copied_keys for result in await asyncio.gather(*loads)], [1, 1])
                self.assertEqual(self.cache.stats().l1_shares, 1)
                for block in range(2, 6):
                    self.assertEqual(self.loaded(6 + block), self.block(self.before, block))

        asyncio.run(asyncio.wait_for(main(), WATCHDOG_S))

    def half(self, segment: int) -> bytes:
        """What the second object has of a segment: its blocks 2 and 3."""
        layer, half = divmod(segment, 2)
        at = (half * BLOCKS + 2) * 64
        return self.before[layer][at : at + 128]

    def test_a_partial_chunk_and_tokens_that_are_there(self) -> None:
        keys = some_keys(2)
        with self.space.session() as session:
            self.pool.store(session, keys, [0, 1, 2, None]).wait(WATCHDOG_S)
            transfer = self.pool.load(session, keys, [6, 7, 8, 9], skip_first_tokens=TOKENS)
            result = transfer.wait(WATCHDOG_S)
            self.assertEqual((result.status, result.failed_keys), (Status.PARTIAL, 0))
            self.assertEqual(list(transfer.blocks()), [Status.OK] * 3 + [Status.ERR_NOT_FOUND])
            self.assertEqual(self.loaded(6), self.block(self.before, 6))
            self.assertEqual(self.loaded(8), self.block(self.before, 2))

    def test_a_callback_is_told(self) -> None:
        told: list[kvkeep.Completion] = []
        with self.space.session() as session:
            transfer = self.pool.store(session, some_keys(1), [0, 1], callback=told.append)
            transfer.wait(WATCHDOG_S)
            # Callbacks run in the order in which jobs ended.
            self.cache.close()
        self.assertEqual([(one.job, one.status, one.copied_keys) for one in told], [(transfer.id, Status.OK, 1)])

    def test_what_is_refused(self) -> None:
        with self.space.session() as session:
            keys = some_keys(1)
            for blocks, words in (([0], "block_count is 1"), ([0, 12], "block_ids"), ([0, 1 << 31], "32 bits")):
                with self.subTest(words=words), self.assertRaisesRegex(kvkeep.InvalidError, words):
                    self.pool.load(session, keys, blocks)
            with self.assertRaisesRegex(kvkeep.InvalidError, "stream"):
                self.pool.store(session, keys, [0, 1], stream=7)
            transfer = self.pool.store(session, keys, [0, 1])
            with self.assertRaisesRegex(kvkeep.InvalidError, "layer 9"):
                transfer.wait_layer(9)
            with self.assertRaisesRegex(kvkeep.InvalidError, "stream"):
                transfer.stream_wait_layer(0, 7)
            self.assertEqual(transfer.stream_wait_layer(0, 0, WATCHDOG_S), Status.OK)
            with self.assertRaisesRegex(kvkeep.InvalidError, "looks nothing up"):
                transfer.lookup_hits()
            self.pool.close()
            self.pool.close()
            with self.assertRaises(kvkeep.NotFoundError):
                self.pool.store(session, keys, [0, 1])

    def test_pages_of_another_layout_are_none_of_ones_own(self) -> None:
        url = f"fs://{self.directory()}?capacity=64MiB"
        k, v = kvkeep.Part.KEY, kvkeep.Part.VALUE

        def opened(page: int, *parts: int) -> tuple[kvkeep.Cache, kvkeep.Pool, kvkeep.Session, list[bytearray]]:
            cache = self.open(backends=[url])
            space = cache.space("halves", chunk_tokens=64)
            pages = {part: bytearray(4 * page) for part in (k, v)}
            tensors = [kvkeep.pages(memoryview(pages[part]).cast("B", (4, page)), part=part) for part in parts]
            return cache, space.pool(tensors, blocks_per_chunk=4), space.session("r"), list(pages.values())

        keys = some_keys(1)
        cache, pool, session, pages = opened(4096, k, v)
        for tensor, first in zip(pages, (0x10, 0x20)):
            tensor[:] = b"".join(bytes([first + block]) * 4096 for block in range(4))
        self.assertEqual(pool.store(session, keys, range(4)).wait(WATCHDOG_S).status, Status.OK)
        cache.flush(WATCHDOG_S)
        with self.assertRaisesRegex(kvkeep.InvalidError, "earlier pool"):
            cache.space("halves", chunk_tokens=64).pool(
                [Segment(4096, 4096, part=v), Segment(1 << 20, 4096, part=k)], blocks_per_chunk=4, block_count=4
            )
        cache.close()
        for page, parts in ((8192, (k, v)), (4096, (v, k))):
            cache, pool, session, pages = opened(page, *parts)
            transfer = pool.load(session, keys, range(4))
            transfer.wait(WATCHDOG_S)
            self.assertEqual(list(transfer.blocks() or ()), [Status.ERR_IO] * 4)
            self.assertTrue(all(not any(tensor) for tensor in pages))
            cache.close()

    def test_a_hanging_load_is_cancelled(self) -> None:
        self.cache.add_backend(HANGING)
        with self.space.session() as session:
            transfer = self.pool.load(session, some_keys(1), [0, 1])
            with self.assertRaises(kvkeep.TimedOutError):
                transfer.wait_layer(0, 0.01)
            self.assertIsNone(transfer.blocks())
            transfer.cancel()
            with self.assertRaises(kvkeep.CancelledError):
                transfer.wait(WATCHDOG_S)
            self.assertEqual(set(transfer.blocks()), {Status.ERR_CANCELLED})

    def test_a_pool_keeps_its_pages_and_goes_when_nobody_has_it(self) -> None:
        pages = (ctypes.c_uint32 * 16)()
        kept = weakref.ref(pages)
        with self.cache.space("other").session() as session:
            pool = self.cache.space("other").pool([kvkeep.pages(pages)])
            del pages
            gc.collect()
            self.assertIsNotNone(kept())
            number = pool.id
            del pool
            gc.collect()
            self.assertIsNone(kept())
            self.assertGreater(self.cache.space("other").pool([Segment(4096, 4)], block_count=1).id, number)
            del session

    def test_a_gpu_is_named_to_the_library(self) -> None:
        gpu = LikeTorch((BLOCKS, 16))
        gpu.device = SimpleNamespace(type="cuda", index=99)
        # Where there is a driver, it has no such device.
        with self.assertRaises((kvkeep.UnsupportedError, kvkeep.InvalidError)) as raised:
            self.cache.space("gpu").pool([kvkeep.pages(gpu)])
        self.assertRegex(str(raised.exception), "libcuda|NVIDIA|device is 99")
