"""Where the bytes of blocks lie in vLLM's tensors, whose axis 0 counts blocks, and how to name that."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InvalidError
from ..pages import Segment, Tensor


class Layer(NamedTuple):
    """A tensor with the segments that kvkeep read off it."""

    tensor: Tensor
    segments: list[Segment]
    dtype: str


def parts(layer: Layer, block_count: int) -> int:
    """Kernels may want smaller blocks than the scheduler counts: how many of the tensor's make one of the scheduler's."""
    count, rest = divmod(layer.tensor.shape[0], block_count)
    if rest or not count:
        raise InvalidError(f"a KV cache of {layer.tensor.shape[0]} blocks, where the scheduler counts {block_count}")
    return count


def joined(layer: Layer, block_count: int) -> list[Segment]:
    """The segments of the scheduler's blocks."""
    count = parts(layer, block_count)
    step = layer.tensor.strides[0]
    if all(part.block_bytes == step for part in layer.segments):
        return [part._replace(block_bytes=count * step, block_stride=count * step) for part in layer.segments]
    return [
        part._replace(address=part.address + i * step, block_stride=count * step)
        for part in layer.segments
        for i in range(count)
    ]


def fingerprint(
    layers: Sequence[Layer], block_count: int, block_tokens: int, stages: Sequence[int], reach: int = 0
) -> str:
    """Says which bytes objects of a group have, in which order; equal for all workers of an engine, and all that may read them.

    `stages` counts the layers of each pipeline stage; where there is one, its tensors are counted.
    """
    described = itertools.groupby(_described(layer, block_count) for layer in layers)
    groups = [(text, len(list(same))) for text, same in described]
    if len(stages) > 1 and len(groups) == 1:
        # Stages may differ in how many they have, and each must say the same of all.
        each = f"{'+'.join(map(str, stages))} x {groups[0][0]}"
    else:
        each = ", ".join(f"{count} x {text}" for text, count in groups)
    tail = f", the last {reach} tokens" if reach else ""
    return f"{each}; {block_tokens} tokens a block{tail}"


def _described(layer: Layer, block_count: int) -> str:
    shape, strides = layer.tensor.shape, layer.tensor.strides
    order = sorted(range(1, len(shape)), key=lambda axis: (-strides[axis], axis))
    sizes = "x".join(map(str, (parts(layer, block_count), *shape[1:])))
    return f"{layer.dtype}[{sizes}] as {''.join(map(str, order))} in {layer.segments[0].block_bytes}"
