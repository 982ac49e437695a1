"""Where the bytes of blocks lie in vLLM's tensors. Pure: shapes and strides in, segments out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """A stretch with a place for each block, as kvkeep's pools know it."""

    address: int
    block_bytes: int
    block_stride: int
    layer: int


class Cache(NamedTuple):
    """One layer's tensor: axis 0 counts blocks, strides are in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item_bytes: int
    dtype: str


def segments(cache: Cache, layer: int, block_count: int) -> list[Segment]:
    """The stretches of a layer, in an order that follows from the shape alone.

    Kernels may want smaller blocks than the scheduler's: axis 0 then counts parts of a block.
    """
    parts, rest = divmod(cache.shape[0], block_count)
    if rest or not parts:
        raise ValueError(f"a KV cache of {cache.shape[0]} blocks, where the scheduler counts {block_count}")
    run, outer = _runs([(parts, cache.strides[0]), *zip(cache.shape[1:], cache.strides[1:])], cache.item_bytes)
    steps = [range(0, size * stride, stride) for size, stride in outer]
    return [
        Segment(cache.address + sum(offsets), run, parts * cache.strides[0], layer)
        for offsets in itertools.product(*steps)
    ]


def _runs(axes: list[tuple[int, int]], item_bytes: int) -> tuple[int, list[tuple[int, int]]]:
    """The bytes that lie together, and the axes that this leaves."""
    run, outer = item_bytes, [axis for axis in axes if axis[0] > 1]
    for axis in sorted(outer, key=lambda axis: axis[1]):
        if axis[1] != run:
            break
        run *= axis[0]
        outer.remove(axis)
    return run, outer


def fingerprint(caches: Sequence[Cache], block_count: int, block_tokens: int) -> str:
    """Says which bytes an object has, in which order; equal for all workers that may read each other's objects."""
    groups = itertools.groupby(_described(cache, block_count) for cache in caches)
    layers = ", ".join(f"{len(list(same))} x {text}" for text, same in groups)
    return f"{layers}; {block_tokens} tokens a block"


def _described(cache: Cache, block_count: int) -> str:
    parts, axes = cache.shape[0] // block_count, range(1, len(cache.shape))
    order = sorted(axes, key=lambda axis: (-cache.strides[axis], axis))
    run, _ = _runs([(parts, cache.strides[0]), *zip(cache.shape[1:], cache.strides[1:])], cache.item_bytes)
    sizes = "x".join(map(str, (parts, *cache.shape[1:])))
    return f"{cache.dtype}[{sizes}] as {''.join(map(str, order))} in {run}"
