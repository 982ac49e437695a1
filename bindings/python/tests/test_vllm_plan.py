"""The connector's pure parts, without vLLM."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
import unittest
from collections.abc import Sequence
from types import SimpleNamespace

import kvkeep
from kvkeep.pages import described
from kvkeep.vllm import layout, plan, settings

from .support import run_python


class Plans(unittest.TestCase):
    def test_a_chunk_is_the_least_multiple_of_a_block(self) -> None:
        self.assertEqual(plan.grid(16, 256, 1, 1).chunk_tokens, 256)
        self.assertEqual(plan.grid(128, 200, 1, 1).blocks_per_chunk, 2)
        self.assertEqual(plan.grid(512, 256, 1, 1).chunk_tokens, 512)

    def test_workers_with_the_same_bytes_share_an_object(self) -> None:
        plain, shared = plan.grid(16, 16, 4, 1), plan.grid(16, 16, 8, 4)
        self.assertEqual((plain.ranks, plain.extra_count), (4, 0))
        self.assertEqual((shared.ranks, shared.extra_count), (2, 3))

    def test_a_chunk_is_named_by_its_last_block(self) -> None:
        blocks = [hashlib.sha256(bytes([i])).digest() for i in range(7)]
        self.assertEqual(plan.chunk_hashes(blocks, plan.Span(1, 3), 2), blocks[3] + blocks[5])
        self.assertEqual(plan.chunk_hashes([b"short"], plan.Span(0, 1), 1), hashlib.sha256(b"short").digest())

    def test_key_records_are_chunk_major(self) -> None:
        one, two = b"1" * 32, b"2" * 32
        keys = kvkeep.keys(plan.key_records(one + two, (4, 5)))
        self.assertEqual([tuple(key) for key in keys], [(one, 4, 0), (one, 5, 0), (two, 4, 0), (two, 5, 0)])

    def test_blocks_that_the_engine_has_are_not_touched(self) -> None:
        grid = plan.Grid(block_tokens=16, blocks_per_chunk=2)
        ids = list(range(100, 110))
        self.assertEqual(plan.load_blocks(ids, 0, 64, grid), [100, 101, 102, 103])
        self.assertEqual(plan.load_blocks(ids, 16, 64, grid), [-1, 101, 102, 103])
        self.assertEqual(plan.load_blocks(ids, 48, 80, grid), [-1, 103, 104, -1])
        self.assertEqual(plan.load_blocks(ids, 32, 63, grid), [102, 103])
        self.assertEqual(plan.store_blocks(ids, plan.Span(1, 3), grid), [102, 103, 104, 105])


class Torch:
    """A tensor as torch shows it, of which only the place is asked."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.shape, self._strides = shape, strides
        self.device = SimpleNamespace(type="cpu", index=None)

    def data_ptr(self) -> int:
        return 0

    def element_size(self) -> int:
        return 2

    def stride(self) -> tuple[int, ...]:
        return tuple(stride // 2 for stride in self._strides)


def layer(shape: tuple[int, ...], strides: Sequence[int]) -> layout.Layer:
    tensor = Torch(shape, tuple(strides))
    return layout.Layer(described(tensor), kvkeep.pages(tensor, layer=3).segments, "bfloat16")


class Layouts(unittest.TestCase):
    """Tensors are stretches of a bytes object; a segment must find the same bytes as indexing does."""

    def check(self, shape: tuple[int, ...], order: tuple[int, ...], blocks: int, runs: int) -> None:
        item, strides, step = 2, [0] * len(shape), 2
        for axis in reversed(order):
            strides[axis], step = step, step * shape[axis]
        memory = b"".join(struct.pack("=H", i) for i in range(math.prod(shape)))
        parts = layout.joined(layer(shape, strides), blocks)
        self.assertEqual((len(parts), {part.layer for part in parts}), (runs, {3}))
        ratio = shape[0] // blocks
        for block in range(blocks):
            found = b"".join(
                memory[start : start + part.block_bytes]
                for part in parts
                for start in [part.address + block * part.block_stride]
            )
            axes = [range(block * ratio, (block + 1) * ratio), *map(range, shape[1:])]
            indexed = [
                sum(map(lambda i, stride: i * stride, place, strides)) // item for place in itertools.product(*axes)
            ]
            values = struct.unpack(f"={len(found) // item}H", found)
            self.assertEqual(sorted(values), sorted(indexed), block)

    def test_dense_blocks_are_one_segment(self) -> None:
        self.check((6, 2, 4, 8), (0, 1, 2, 3), 6, 1)
        self.check((6, 2, 4, 8), (0, 2, 1, 3), 6, 1)

    def test_blocks_inside_heads_are_a_segment_for_each_head(self) -> None:
        self.check((6, 2, 4, 8), (1, 0, 2, 3), 6, 2)

    def test_kernel_blocks_that_are_parts_of_a_block(self) -> None:
        self.check((12, 2, 4, 8), (0, 1, 2, 3), 6, 1)
        self.check((12, 2, 4, 8), (1, 0, 2, 3), 6, 2)

    def test_layers_that_share_a_block(self) -> None:
        # Block-outermost: between two blocks of a layer lie those of the others.
        self.assertEqual(layout.joined(layer((4, 2, 8), (96, 16, 2)), 4), [kvkeep.Segment(0, 32, 96, layer=3)])

    def test_a_tensor_of_other_blocks_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            layout.joined(layer((7, 8), (16, 2)), 2)

    def test_the_fingerprint_says_what_an_object_has_and_not_where(self) -> None:
        dense, elsewhere = layer((4, 2, 8), (32, 16, 2)), layer((4, 2, 8), (96, 16, 2))
        text = layout.fingerprint([dense, elsewhere], 4, 16, [2])
        self.assertEqual(text, "2 x bfloat16[1x2x8] as 12 in 32; 16 tokens a block")
        others = [dense._replace(dtype="float16"), layer((4, 2, 8), (32, 2, 4)), layer((4, 8, 2), (32, 4, 2))]
        for other in others:
            self.assertNotEqual(layout.fingerprint([dense, other], 4, 16, [2]), text)

    def test_the_fingerprint_of_all_stages_is_one_and_names_how_layers_are_split(self) -> None:
        dense = layer((4, 2, 8), (32, 16, 2))
        texts = [layout.fingerprint([dense] * count, 4, 16, [3, 2]) for count in (3, 2)]
        self.assertEqual(texts, ["3+2 x bfloat16[1x2x8] as 12 in 32; 16 tokens a block"] * 2)
        self.assertNotEqual(layout.fingerprint([dense] * 3, 4, 16, [2, 3]), texts[0])


class Options(unittest.TestCase):
    def test_what_cannot_be_meant_is_refused(self) -> None:
        given = {"connect": "unix:///run/kvkeep.sock"}
        self.assertEqual(settings.settings({**given, "chunk_tokens": 64}).chunk_tokens, 64)
        for wrong in (
            {"chunk": 1},
            {"chunk_tokens": "1"},
            {"load": "later"},
            {"reset": "none"},
            {"generation": -1},
            {"generation": 1 << 64},
            {"generation": True},
            {"lora_revisions": "a"},
            {"lora_revisions": {"a": 1}},
        ):
            with self.subTest(wrong=wrong), self.assertRaises(ValueError):
                settings.settings({**given, **wrong})
        with self.assertRaises(ValueError):
            settings.settings({})

    def test_the_package_needs_no_engine(self) -> None:
        done = run_python("import kvkeep, kvkeep.vllm, sys; print('vllm' in sys.modules, 'torch' in sys.modules)")
        self.assertEqual((done.returncode, done.stdout), (0, "False False\n"))
