"""Where an engine's pages lie: read off its tensors, or said in plain numbers."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from . import _ffi
from .errors import InvalidError


class Segment(NamedTuple):
    """A stretch of memory with a place for every block of a pool; a `block_stride` of 0 is `block_bytes`. `part` tells the
    tensors of one layer apart: Part.KEY, Part.VALUE, or a number of the engine's own from 65536 on."""

    address: int
    block_bytes: int
    block_stride: int = 0
    group: int = 0
    layer: int = 0
    part: int = _ffi.Part.UNSAID


class Pages(NamedTuple):
    """What `pages` read off a tensor."""

    segments: list[Segment]
    block_count: int
    device: Optional[int]
    memory: object
    shape: tuple[int, ...] = ()


class Tensor(NamedTuple):
    """A tensor as numbers; strides are in bytes. `device` is None where the object does not say which GPU it is on."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item_bytes: int
    device: Optional[int]
    memory: object


def pages(
    tensor: Any,
    *,
    layer: int = 0,
    group: int = 0,
    block_axis: int = 0,
    layer_axis: Optional[int] = None,
    part: int = _ffi.Part.UNSAID,
) -> Pages:
    """The segments of a tensor: one of torch, or anything with `__cuda_array_interface__`, DLPack or a buffer.

    `block_axis` counts the blocks. What else of a block lies in one piece is one segment; where it does not (K and V in
    halves of one tensor, heads outermost), each piece is one, in the order of the axes. With a `layer_axis` the tensor
    holds several layers, numbered from `layer` on. Where K and V are tensors of their own, `part` says which one it is, so that
    a process that registers them in another order is refused.
    """
    read = described(tensor)
    rank = len(read.shape)
    named = [block_axis] if layer_axis is None else [block_axis, layer_axis]
    if len(set(named)) < len(named) or not all(0 <= axis < rank for axis in named):
        said = f"block_axis {block_axis}" + ("" if layer_axis is None else f" and layer_axis {layer_axis}")
        raise InvalidError(f"{said} must be {len(named)} of the {rank} axes, counted from 0, of a tensor of shape {read.shape}")
    if any(step <= 0 < size - 1 for size, step in zip(read.shape, read.strides)):
        raise InvalidError(
            f"the tensor of shape {read.shape} and strides {read.strides} (bytes) repeats or reverses an axis: "
            "pass the tensor that owns the pages"
        )
    if 0 in read.shape:
        raise InvalidError(f"the tensor has no elements: its shape is {read.shape}")
    axes = [axis for axis in range(rank) if axis not in named and read.shape[axis] > 1]
    piece, inside = read.item_bytes, set()
    for axis in sorted(axes, key=lambda axis: read.strides[axis]):
        if read.strides[axis] != piece:
            break
        piece *= read.shape[axis]
        inside.add(axis)
    outside = [[i * read.strides[axis] for i in range(read.shape[axis])] for axis in axes if axis not in inside]
    count = read.shape[block_axis]
    stride = read.strides[block_axis] if count > 1 else 0
    layers = range(1) if layer_axis is None else range(read.shape[layer_axis])
    segments = [
        Segment(
            read.address + i * (0 if layer_axis is None else read.strides[layer_axis]) + sum(offsets),
            piece,
            stride,
            group,
            layer + i,
            part,
        )
        for i in layers
        for offsets in itertools.product(*outside)
    ]
    return Pages(segments, count, read.device, read.memory, read.shape)


def described(tensor: Any) -> Tensor:
    """A tensor as numbers, by what it has: torch's methods, the CUDA array interface, DLPack, the buffer protocol."""
    if all(hasattr(tensor, name) for name in ("data_ptr", "element_size", "stride")):
        return _of_torch(tensor)
    if (interface := getattr(tensor, "__cuda_array_interface__", None)) is not None:
        return _of_cuda(tensor, interface)
    if hasattr(tensor, "__dlpack__"):
        return _of_dlpack(tensor)
    return _of_buffer(tensor)


def packed(shape: Sequence[int], item_bytes: int) -> tuple[int, ...]:
    """The strides of a tensor without gaps, last axis innermost."""
    sizes = itertools.accumulate(reversed(shape[1:]), lambda step, size: step * size, initial=item_bytes)
    return tuple(sizes)[::-1][-len(shape) :] if shape else ()


def _of_torch(tensor: Any) -> Tensor:
    item = tensor.element_size()
    kind, index = tensor.device.type, tensor.device.index
    if kind not in ("cpu", "cuda"):
        raise InvalidError(f"the tensor of shape {tuple(tensor.shape)} is on {kind}: pages must be on the CPU or on a CUDA device")
    device = _ffi.KVKEEP_DEVICE_HOST if kind == "cpu" else index or 0
    strides = tuple(step * item for step in tensor.stride())
    return Tensor(tensor.data_ptr(), tuple(tensor.shape), strides, item, device, tensor)


def _of_cuda(tensor: Any, interface: dict[str, Any]) -> Tensor:
    item, shape = int(interface["typestr"][2:]), tuple(interface["shape"])
    strides = tuple(interface.get("strides") or packed(shape, item))
    address, read_only = interface["data"]
    if read_only:
        raise InvalidError(f"the tensor of shape {shape} is read-only: pages are written to by loads")
    device = None
    if hasattr(tensor, "__dlpack_device__"):
        device = _dlpack_device(*tensor.__dlpack_device__())
    return Tensor(address, shape, strides, item, device, tensor)


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


# Of DLPack's kinds of device: plain and page-locked memory of the CPU, memory of a GPU, managed memory.
_DL_HOST, _DL_CUDA = (1, 3), (2, 13)


def _dlpack_device(kind: int, index: int) -> int:
    if kind not in (*_DL_HOST, *_DL_CUDA):
        raise InvalidError(f"the tensor is on DLPack's device {kind}: pages must be on the CPU or on a CUDA device")
    return _ffi.KVKEEP_DEVICE_HOST if kind in _DL_HOST else index


def _of_dlpack(tensor: Any) -> Tensor:
    # The capsule is not consumed, only read: it frees what it holds when it goes.
    capsule = tensor.__dlpack__()
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    held = _DLTensor.from_address(pointer_of(capsule, b"dltensor"))
    bits = held.bits * held.lanes
    if bits % 8:
        shape = tuple(held.shape[: held.ndim])
        raise InvalidError(f"the tensor of shape {shape} has elements of {bits} bits: pass a view of it as bytes")
    shape, item = tuple(held.shape[: held.ndim]), bits // 8
    strides = tuple(step * item for step in held.strides[: held.ndim]) if held.strides else packed(shape, item)
    address = (held.data or 0) + held.byte_offset
    return Tensor(address, shape, strides, item, _dlpack_device(held.device_type, held.device_id), (tensor, capsule))


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_STRIDED_AND_WRITABLE = 0x18 | 0x1


def _of_buffer(tensor: Any) -> Tensor:
    try:
        view = memoryview(tensor)
    except TypeError:
        raise InvalidError(
            f"{type(tensor).__name__} is no tensor: "
            "it has neither data_ptr, __cuda_array_interface__, __dlpack__ nor a buffer"
        ) from None
    if view.readonly:
        raise InvalidError(f"the buffer of shape {view.shape} is read-only: pages are written to by loads")
    raw = _Buffer()
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
    release.argtypes, release.restype = [ctypes.POINTER(_Buffer)], None
    get(view, ctypes.byref(raw), _STRIDED_AND_WRITABLE)
    address = raw.buf or 0
    release(ctypes.byref(raw))
    # The memoryview keeps the memory where it is.
    shape, strides = view.shape or (), view.strides or ()
    return Tensor(address, shape, strides, view.itemsize, _ffi.KVKEEP_DEVICE_HOST, view)
