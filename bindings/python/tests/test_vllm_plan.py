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
from kvkeep.vllm import groups, layout, plan, settings

from .support import run_python


FULL, WINDOW, STATE = plan.Group(16), plan.Group(16, 40), plan.Group(32, 1)
NONE = -1


class Plans(unittest.TestCase):
    def test_a_chunk_is_the_least_with_whole_blocks_of_every_group(self) -> None:
        def chunk(tokens: int, *groups: plan.Group) -> int:
            return plan.grid(groups, groups[0].block_tokens, tokens).chunk_tokens

        self.assertEqual(chunk(256, FULL), 256)
        self.assertEqual(chunk(200, plan.Group(128)), 256)
        self.assertEqual(chunk(256, plan.Group(512)), 512)
        self.assertEqual(chunk(100, plan.Group(16), plan.Group(48)), 144)

    def test_workers_with_the_same_bytes_share_an_object(self) -> None:
        plain, shared = plan.grid([FULL], 16, 16, 4, 1), plan.grid([FULL, WINDOW], 16, 16, 8, 4)
        self.assertEqual((plain.objects_per_chunk, plain.extra_count), (4, 0))
        self.assertEqual((shared.objects_per_chunk, shared.extra_count), (4, 3))
        of_heads = plan.grid([FULL], 16, 16, 4, 2, 3)
        self.assertEqual((of_heads.objects_per_chunk, of_heads.workers), (6, 4))

    def test_a_chunk_is_named_by_its_last_block(self) -> None:
        blocks = [hashlib.sha256(bytes([i])).digest() for i in range(7)]
        self.assertEqual(plan.chunk_hashes(blocks, plan.Span(1, 3), 2), blocks[3] + blocks[5])
        self.assertEqual(plan.chunk_hashes([b"short"], plan.Span(0, 1), 1), hashlib.sha256(b"short").digest())

    def test_key_records_are_chunk_major(self) -> None:
        one, two = b"1" * 32, b"2" * 32
        keys = kvkeep.keys(plan.key_records(one + two, (4, 5)))
        self.assertEqual([tuple(key) for key in keys], [(one, 4, 0), (one, 5, 0), (two, 4, 0), (two, 5, 0)])
        keys = kvkeep.keys(plan.key_records(one, (4, 5), range(2)))
        self.assertEqual([tuple(key) for key in keys], [(one, 4, 0), (one, 4, 1), (one, 5, 0), (one, 5, 1)])

    def test_blocks_that_the_engine_has_are_not_touched(self) -> None:
        grid, ids = plan.grid([FULL], 16, 32), list(range(100, 110))

        def load(first: int, end: int) -> list[int]:
            chunks = plan.covering(first, end, grid).chunks
            (part,) = plan.load_parts([ids], bytes(32 * chunks), first, end, grid)
            return part.blocks

        self.assertEqual(load(0, 64), [100, 101, 102, 103])
        self.assertEqual(load(16, 64), [NONE, 101, 102, 103])
        self.assertEqual(load(48, 80), [NONE, 103, 104, NONE])
        self.assertEqual(load(32, 63), [102, 103])
        (part,) = plan.store_parts([ids], bytes(64), plan.Span(1, 3), grid)
        self.assertEqual(part.blocks, [102, 103, 104, 105])

    def test_of_a_window_the_last_blocks_move_from_the_end_back(self) -> None:
        grid = plan.grid([FULL, WINDOW], 16, 64)
        tables = [list(range(1, 9)), [0] * 5 + [16, 17, 18]]
        hashes = b"1" * 32 + b"2" * 32
        parts = plan.load_parts(tables, hashes, 0, 128, grid)
        self.assertEqual(parts, [plan.Part(0, hashes, tables[0]), plan.Part(1, b"2" * 32, [18, 17, 16, NONE])])
        # The first chunk's window has left, and the second's has what a prefix needs.
        self.assertEqual(plan.store_parts(tables, hashes, plan.Span(0, 2), grid), parts)
        # A window over two chunks, of which the engine has the first.
        grid = plan.grid([FULL, plan.Group(16, 100)], 16, 64)
        tables[1] = list(range(11, 19))
        self.assertEqual(plan.load_parts(tables, b"2" * 32, 64, 128, grid)[1], plan.Part(1, b"2" * 32, [18, 17, 16, 15]))
        self.assertEqual(
            plan.load_parts(tables, hashes, 0, 128, grid)[1], plan.Part(1, hashes, [14, 13, 12, NONE, 18, 17, 16, 15])
        )

    def test_of_states_the_last_moves(self) -> None:
        grid = plan.grid([FULL, STATE], 16, 64)
        tables = [list(range(1, 9)), [0, 0, 0, 14]]
        hashes = b"1" * 32 + b"2" * 32
        state = plan.Part(1, b"2" * 32, [14, NONE])
        self.assertEqual(plan.load_parts(tables, hashes, 0, 128, grid)[1], state)
        self.assertEqual(plan.store_parts(tables, hashes, plan.Span(0, 2), grid)[1], state)

    def test_states_that_the_engine_names_are_stored_by_their_token(self) -> None:
        grid = plan.grid([FULL, STATE._replace(named=True)], 16, 64)
        tables, hashes = [list(range(1, 9)), [0, 9, 0, 9]], b"1" * 32 + b"2" * 32
        self.assertEqual([part.group for part in plan.store_parts(tables, hashes, plan.Span(0, 2), grid)], [0])
        blocks = [bytes([i]) * 32 for i in range(8)]
        offers = [plan.Offer(1, 31, 64), plan.Offer(1, 32, 96), plan.Offer(1, 33, 192), plan.Offer(1, 0, 128)]
        self.assertEqual(plan.offered_parts(offers, blocks, grid), [plan.Part(1, blocks[3], [31, NONE])])


class Spec:
    """What is read of vLLM's descriptions of layers; subclasses have the names of its classes."""

    def __init__(self, block_size: int = 16, **given: object) -> None:
        self.block_size = block_size
        self.__dict__.update(given)


class FullAttentionSpec(Spec): ...


class MLAAttentionSpec(FullAttentionSpec): ...


class SlidingWindowSpec(Spec): ...


class MambaSpec(Spec): ...


class ChunkedLocalAttentionSpec(Spec): ...


class UniformTypeKVCacheSpecs(Spec): ...


class Groups(unittest.TestCase):
    def kept(self, *specs: Spec, left_out: Sequence[int] = (), host: bool = False) -> list[groups.Kept]:
        given = [SimpleNamespace(kv_cache_spec=spec, layer_names=[f"layer.{i}"], host_resident=host) for i, spec in enumerate(specs)]
        ids = tuple(i for i in range(len(specs)) if i not in left_out)
        return groups.kept_groups(SimpleNamespace(kv_cache_groups=given, prefix_cacheable_group_ids=ids))

    def test_kinds_of_layers(self) -> None:
        window = SlidingWindowSpec(sliding_window=1024, extra_retained_tokens=2)
        kept = self.kept(MLAAttentionSpec(64), window, MambaSpec(512, mamba_cache_mode="align"))
        self.assertEqual([each.group for each in kept], [(64, 0, False), (16, 1025, False), (512, 1, True)])
        (each,) = self.kept(MambaSpec(512, mamba_cache_mode="all"))
        self.assertEqual(each.group, (512, 1, False))
        kinds = {"a": MLAAttentionSpec(64), "b": FullAttentionSpec(64)}
        (each,) = self.kept(UniformTypeKVCacheSpecs(64, kv_cache_specs=kinds))
        self.assertEqual(each.group, (64, 0, False))

    def test_heads_are_known_where_all_layers_have_as_many(self) -> None:
        two, three = FullAttentionSpec(num_kv_heads=2), FullAttentionSpec(num_kv_heads=3)
        mixed = UniformTypeKVCacheSpecs(kv_cache_specs={"a": two, "b": three})
        kept = self.kept(two, mixed, MambaSpec(mamba_cache_mode="all"))
        self.assertEqual([each.heads for each in kept], [2, 0, 0])

    def test_groups_that_no_hash_finds_are_left_out(self) -> None:
        (each,) = self.kept(SlidingWindowSpec(sliding_window=8), FullAttentionSpec(), left_out=[0])
        self.assertEqual((each.place, each.layer_names), (1, ("layer.1",)))

    def test_what_cannot_be_served_is_refused_with_its_remedy(self) -> None:
        mixed = UniformTypeKVCacheSpecs(kv_cache_specs={"a": FullAttentionSpec(), "b": SlidingWindowSpec(sliding_window=8)})
        for why, refused in (
            ("--mamba-cache-mode align", lambda: self.kept(MambaSpec(mamba_cache_mode="none"))),
            ("ChunkedLocalAttentionSpec: set --disable-hybrid", lambda: self.kept(ChunkedLocalAttentionSpec())),
            ("of kind Spec", lambda: self.kept(Spec())),
            ("several kinds.*FullAttentionSpec", lambda: self.kept(mixed)),
            ("HiSparse", lambda: self.kept(FullAttentionSpec(), host=True)),
            ("nothing to keep", lambda: self.kept(FullAttentionSpec(), left_out=[0])),
        ):
            with self.subTest(why=why), self.assertRaisesRegex(ValueError, why):
                refused()


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
        self.assertEqual(layout.fingerprint([dense, elsewhere], 4, 16, [2], 40), f"{text}, the last 40 tokens")
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
            {"l1_bytes": 1 << 30},
            {"backends": ["memory:?capacity=1MiB"]},
        ):
            with self.subTest(wrong=wrong), self.assertRaises(ValueError):
                settings.settings({**given, **wrong})
        own = settings.settings({"l1_bytes": 1 << 30, "backends": ["fs:///d?capacity=1GiB"]})
        self.assertEqual((own.connect, own.l1_bytes), ("", 1 << 30))
        with self.assertRaisesRegex(ValueError, "on one host: start a `kvkeep serve` on each"):
            settings.settings({"l1_bytes": 1 << 30}, hosts=2)
        for wrong in ({}, {"l1_bytes": -1}, {"l1_bytes": 1, "backends": [1]}, {"l1_bytes": 1, "backends": "memory:"}):
            with self.subTest(wrong=wrong), self.assertRaises(ValueError):
                settings.settings(wrong)

    def test_the_package_needs_no_engine(self) -> None:
        done = run_python("import kvkeep, kvkeep.vllm, sys; print('vllm' in sys.modules, 'torch' in sys.modules)")
        self.assertEqual((done.returncode, done.stdout), (0, "False False\n"))
