"""Reading a node: its constant operands, and how a Conv or a pooling moves over its input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from repfuse.algebra.kernel import Array
from repfuse.algebra.window import Axis, Layout, Refusal
from repfuse.graph.constants import Constant
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})

_FAR = 2**31 - 1
"""Exporters spell "to the end" of a Slice as this or anything larger."""


def constant_at(node: Node, slot: int, scope: Scope) -> Constant | None:
    """The constant at an input; None where the input is left out or not constant."""
    return scope.constants.find(node.input[slot]) if len(node.input) > slot else None


def integers_at(
    node: Node, slot: int, scope: Scope, default: Sequence[int] | None = None
) -> Sequence[int] | None:
    """The integers at an input, or those of an attribute where the operator's version has one instead."""
    if len(node.input) <= slot or not node.input[slot]:
        return default
    constant = constant_at(node, slot, scope)
    return [int(value) for value in constant.read().reshape(-1)] if constant else None


def values_of(constant: Constant) -> Array:
    """A constant's values in a type that numpy knows: bfloat16, which it does not, widens to float32."""
    values = constant.read()
    return values.astype(np.float32) if constant.data_type == TensorProto.BFLOAT16 else values


def vector_of(constant: Constant, size: int) -> Array:
    """A constant's values in float64, shape `(size,)`."""
    return values_of(constant).astype(np.float64).reshape(size)


def per_channel(constant: Constant) -> tuple[Array, int | None] | None:
    """A constant that broadcasts as a scalar or along one axis, 1 or the last.

    Returns:
        Its values, and how many axes follow that axis: 0 for the last one, None for a scalar; or None if it is
        no such constant.
    """
    dims = constant.dims
    if constant.data_type not in FLOATS or not constant.size:
        return None
    if constant.size == 1:
        return vector_of(constant, 1), None
    axis = next(i for i, dim in enumerate(dims) if dim > 1)
    behind = len(dims) - 1 - axis
    if dims[axis] != constant.size or (axis > 1 and behind):
        return None
    return vector_of(constant, constant.size), behind


def last_axis(scope: Scope, tensor: str) -> Layout:
    """The layout of an op that acts along a tensor's last axis."""
    return Layout.FLAT if len(scope.shape_of(tensor) or ()) == 2 else Layout.LAST


def spatial_axes(
    attributes: Mapping[str, Any], extents: Sequence[int], scope: Scope, source: str
) -> tuple[Axis, ...] | Refusal:
    """The spatial axes of Conv and AveragePool, from their shared attributes and the kernel's extents."""
    rank = len(extents)
    strides = list(attributes.get("strides") or [1] * rank)
    dilations = list(attributes.get("dilations") or [1] * rank)
    pads = list(attributes.get("pads") or [0] * (2 * rank))
    declared = list(attributes.get("kernel_shape") or extents)
    if [len(strides), len(dilations), len(pads), declared] != [rank, rank, 2 * rank, list(extents)]:
        return Refusal(
            "has strides, dilations, pads or a kernel_shape that do not fit its kernel", invalid=True
        )
    if min([*strides, *dilations, *extents], default=1) < 1:
        return Refusal("has a stride, dilation or kernel extent below 1", invalid=True)
    mode = attributes.get("auto_pad", b"NOTSET") or b"NOTSET"
    if mode == b"VALID":
        pads = [0] * (2 * rank)
    elif mode in (b"SAME_UPPER", b"SAME_LOWER"):
        same = _same_pads(
            mode,
            extents,
            strides,
            dilations,
            static_extents(scope, source, rank) if max(strides, default=1) > 1 else (),
        )
        if same is None:
            return Refusal(
                f"has auto_pad {mode.decode()} and a stride, so its pads depend on an unknown extent"
            )
        pads = same
    elif mode != b"NOTSET":
        return Refusal("has an auto_pad that ONNX does not define", invalid=True)
    columns = zip(extents, strides, dilations, pads[:rank], pads[rank:], strict=True)
    return tuple(Axis(*column) for column in columns)


def _same_pads(
    mode: bytes,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    extents: Sequence[int | None],
) -> list[int] | None:
    """The pads that auto_pad SAME_* stands for: as many outputs as `ceil(extent / stride)`."""
    begins, ends = [], []
    for index, (taps, stride, dilation) in enumerate(zip(kernel_shape, strides, dilations, strict=True)):
        total = dilation * (taps - 1)
        if stride > 1:
            extent = extents[index]
            if extent is None:
                return None
            total = max(0, (math.ceil(extent / stride) - 1) * stride + total + 1 - extent)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == b"SAME_UPPER" else large)
        ends.append(large if mode == b"SAME_UPPER" else small)
    return begins + ends


def static_extents(scope: Scope, tensor: str, rank: int) -> list[int | None]:
    """A tensor's static spatial extents, None for each that is not known."""
    shape = scope.shape_of(tensor) or ()
    if len(shape) != rank + 2:
        return [None] * rank
    return [extent if isinstance(extent, int) else None for extent in shape[2:]]


def cropped(start: int, end: int, extent: int | str | None) -> tuple[int, int] | None:
    """How many elements a Slice takes off at both ends; None where that depends on an unknown extent."""
    if isinstance(extent, int):
        first, last = (min(extent, max(0, i + extent if i < 0 else i)) for i in (start, end))
        return (first, extent - last) if first < last else None
    if start < 0 or 0 <= end < _FAR:
        return None
    return start, 0 if end >= 0 else -end
