"""Which operators are linear: a table from operator to the function that lifts one node out of ONNX.

Lifting a node gives a `Lifted`: the tensor it acts on, its window, and a way to its equivalent kernel; or
a `Refusal` that says why the node is not linear. To add an operator, write one function and one row of `LIFTERS`.

Operators are read as https://onnx.ai/onnx/operators describes them, from opset 7 on; where versions differ in
more than types, the function says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from repfuse import kernel, window
from repfuse.constants import Constant
from repfuse.kernel import Array, EquivalentKernel
from repfuse.patterns import Op
from repfuse.view import Scope
from repfuse.window import Axis, Refusal, Window

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})

_FAR = 2**31 - 1
"""Exporters spell "to the end" of a Slice as this or anything larger."""

_LEAST_RANK = 3
"""Dimensions of the smallest tensor that a Conv takes: batch, channels and one spatial axis."""


@dataclass(frozen=True)
class Lifted:
    """A linear node.

    Attributes:
        source: The tensor that it acts on; all its other operands are constant.
        window: Its geometry.
        kernel: Gives its equivalent kernel; reads the weights, so it is called for chosen groups only.
        ops: What patterns call it: usually one op, none for an identity.
        weight_type: The `TensorProto` type of a Conv's weight; 0 for any other node.
        broadcast: What `source` must be for the constant operand not to enlarge it: `(channels, least number of
            dimensions)`, channels 0 for any; None where the operator's definition sees to that.
    """

    source: str
    window: Window
    kernel: Callable[[], EquivalentKernel]
    ops: tuple[Op, ...]
    weight_type: int = 0
    broadcast: tuple[int, int] | None = None


Lifter = Callable[[NodeProto, Scope], "Lifted | Refusal"]


def lift(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift a node, or say why it is not linear."""
    lifter = LIFTERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if lifter is None:
        return Refusal("is not linear")
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return Refusal("has attributes that its function's caller sets")
    if any(scope.consumers(name) or name in scope.kept for name in node.output[1:] if name):
        return Refusal("has a second output that is used")
    return lifter(node, scope)


def _conv(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Conv, versions 1, 11 and 22."""
    weight = _constant(node, 1, scope)
    bias = _constant(node, 2, scope)
    if weight is None:
        return Refusal("has a weight that is computed at run time or can be overridden by a caller")
    if bias is None and len(node.input) > 2 and node.input[2]:
        return Refusal("has a bias that is computed at run time or can be overridden by a caller")
    if weight.data_type not in FLOATS:
        return Refusal("has a weight that is not of a float type")
    if _is_dequantized(node.input[1], scope):
        return Refusal("has a quantized weight: fuse the float model and quantize afterwards")
    attributes = _attributes(node)
    outputs, per_group, *extents = weight.dims
    group = attributes.get("group", 1)
    axes = _axes(attributes, extents, scope, node.input[0])
    if isinstance(axes, Refusal):
        return axes
    if not extents or group < 1 or outputs % group or (bias and bias.dims != (outputs,)):
        return Refusal("has a weight, bias and group that do not fit together")
    shift = _vector(bias, outputs) if bias else np.zeros(outputs)
    channels = (outputs, per_group * group)
    geometry = Window(channels, group, axes, biased=bool(np.any(shift != 0)))
    op = _op("conv", geometry, depthwise=group == channels[1] > 1)
    return Lifted(
        node.input[0],
        geometry,
        lambda: EquivalentKernel(geometry, _values(weight), shift),
        (op,),
        weight.data_type,
    )


def _batch_normalization(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift BatchNormalization, versions 7, 9, 14 and 15: `(x - mean) / sqrt(var + epsilon) * scale + B`."""
    attributes = _attributes(node)
    if attributes.get("training_mode") or any(node.output[1:]) or not attributes.get("spatial", 1):
        return Refusal("is in training mode, so its statistics are those of the batch; export in eval mode")
    operands = [_constant(node, slot, scope) for slot in range(1, 5)]
    if not all(operand and len(operand.dims) == 1 and operand.data_type in FLOATS for operand in operands):
        return Refusal("has statistics or parameters that are computed at run time")
    sizes = {operand.size for operand in operands if operand}
    if len(sizes) != 1:
        return Refusal("has statistics and parameters of different sizes")
    scale, bias, mean, variance = (_values(operand).astype(np.float64) for operand in operands if operand)
    variance = variance + attributes.get("epsilon", 1e-5)
    if np.any(variance <= 0):
        return Refusal("has a negative variance")
    factor = scale / np.sqrt(variance)
    return _affine(node.input[0], factor, bias - mean * factor, 0, (Op("bn"),))


def _scale_or_shift(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Add, Sub, Mul and Div, versions 7, 13 and 14, with one constant operand."""
    operands = [scope.constants.find(name) for name in node.input]
    if len(operands) != 2 or operands.count(None) != 1:
        return Refusal("combines tensors that are both computed at run time")
    slot = operands.index(None)
    operand = operands[1 - slot]
    assert operand is not None
    found = _per_channel(operand)
    if found is None:
        return Refusal("has a constant that is neither a scalar nor one value for each channel")
    vector, rank = found
    one, zero = np.ones_like(vector), np.zeros_like(vector)
    ops: tuple[Op, ...]
    match node.op_type, slot:
        case "Add", _:
            scale, shift, ops = one, vector, (Op("shift"),)
        case "Sub", 0:
            scale, shift, ops = one, -vector, (Op("shift"),)
        case "Sub", _:
            scale, shift, ops = -one, vector, (Op("neg"), Op("shift"))
        case "Mul", _:
            scale, shift, ops = vector, zero, (Op("scale"),)
        case "Div", 0 if np.all(vector != 0):
            scale, shift, ops = 1 / vector, zero, (Op("scale"),)
        case _:
            return Refusal("divides by what is computed at run time, or by zero")
    lifted = _affine(node.input[slot], scale, shift, rank, ops)
    if isinstance(lifted, Refusal) or (vector.size == 1 and len(operand.dims) <= _LEAST_RANK):
        return lifted
    return replace(lifted, broadcast=(vector.size if vector.size > 1 else 0, len(operand.dims)))


def _neg(node: NodeProto, _: Scope) -> Lifted:
    return _affine_of_finite(node.input[0], -np.ones(1), np.zeros(1), 0, (Op("neg"),))


def _identity(node: NodeProto, _: Scope) -> Lifted:
    return Lifted(node.input[0], window.IDENTITY, kernel.identity, ())


def _dropout(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Dropout, versions 7, 10, 12, 13 and 22; from 12 on an input turns training on."""
    if len(node.input) > 2 and node.input[2]:
        mode = _constant(node, 2, scope)
        if mode is None or np.any(mode.read()):
            return Refusal("is in training mode; export in eval mode")
    return _identity(node, scope)


def _average_pool(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift AveragePool, versions 7, 10, 11, 19 and 22, where it divides by the same number everywhere."""
    attributes = _attributes(node)
    axes = _axes(attributes, attributes.get("kernel_shape", []), scope, node.input[0])
    if isinstance(axes, Refusal):
        return axes
    if any(axis.padded for axis in axes) and not attributes.get("count_include_pad", 0):
        return Refusal("divides by less at the border (count_include_pad is 0)")
    if attributes.get("ceil_mode", 0):
        extents = _extents(scope, node.input[0], len(axes))
        if not all(
            n and (n - 1 + axis.slack) % axis.stride == 0 for n, axis in zip(extents, axes, strict=True)
        ):
            return Refusal("rounds its output extent up (ceil_mode), so its last window is partial")
    geometry = Window(axes=axes)
    return Lifted(node.input[0], geometry, lambda: kernel.average(geometry), (_op("avgpool", geometry),))


def _divides(axis: Axis, extent: int | None) -> bool:
    """Whether the last window of a pooling ends where its input does, so that rounding does not matter."""
    return axis.stride == 1 or (extent is not None and (extent - 1 + axis.slack) % axis.stride == 0)


def _pad(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Pad with zeros; version 2 has attributes, 11 and later have inputs, 18 and later have axes."""
    attributes = _attributes(node)
    if attributes.get("mode", b"constant") != b"constant":
        return Refusal(f"pads by {attributes['mode'].decode(errors='replace')}, not with zeros")
    value = _constant(node, 2, scope)
    if (len(node.input) > 2 and node.input[2] and value is None) or attributes.get("value", 0) != 0:
        return Refusal("pads with a value other than zero")
    if value is not None and np.any(value.read() != 0):
        return Refusal("pads with a value other than zero")
    pads = _integers(node, 1, scope, attributes.get("pads"))
    if pads is None:
        return Refusal("has pads that are computed at run time")
    rank = len(pads) // 2
    axes: Sequence[int] | None = range(rank)
    if len(node.input) > 3 and node.input[3]:
        rank = len(scope.shape_of(node.input[0]) or ())
        axes = _integers(node, 3, scope)
    if axes is None or rank < 3 or len(pads) != 2 * len(axes) or any(not -rank <= a < rank for a in axes):
        return Refusal("has axes that cannot be told")
    by_axis = {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if any(any(by_axis.get(axis, ())) for axis in (0, 1)):
        return Refusal("pads the batch or the channels")
    moved = tuple(Axis(begin=b, end=e) for b, e in (by_axis.get(axis, (0, 0)) for axis in range(2, rank)))
    return _moved(node.input[0], moved, "pad")


def _slice(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Slice of rows and columns, which is negative padding; from version 10 on, bounds are inputs."""
    attributes = _attributes(node)
    starts, ends = (_integers(node, i, scope, attributes.get(key)) for i, key in ((1, "starts"), (2, "ends")))
    if starts is None or ends is None:
        return Refusal("has bounds that are computed at run time")
    axes = _integers(node, 3, scope, attributes.get("axes", range(len(starts))))
    steps = _integers(node, 4, scope, [1] * len(starts))
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return Refusal("has bounds that are computed at run time")
    if any(axis in (0, 1) for axis in axes) or any(step < 1 for step in steps):
        return Refusal("selects channels or images, or runs backwards")
    shape = scope.shape_of(node.input[0])
    if shape is None or len(shape) < 3 or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return Refusal("acts on a tensor of unknown rank")
    moved = [Axis()] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        crop = _crop(start, end, shape[axis])
        if crop is None:
            return Refusal("ends at a place that depends on an unknown extent")
        moved[axis] = Axis(stride=step, begin=-crop[0], end=-crop[1])
    if any(axis != Axis() for axis in moved[:2]):
        return Refusal("selects channels or images, or runs backwards")
    return _moved(node.input[0], tuple(moved[2:]), "slice")


LIFTERS: Mapping[str, Lifter] = {
    "Conv": _conv,
    "BatchNormalization": _batch_normalization,
    "Add": _scale_or_shift,
    "Sub": _scale_or_shift,
    "Mul": _scale_or_shift,
    "Div": _scale_or_shift,
    "Neg": _neg,
    "Identity": _identity,
    "Dropout": _dropout,
    "AveragePool": _average_pool,
    "Pad": _pad,
    "Slice": _slice,
}


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _constant(node: NodeProto, slot: int, scope: Scope) -> Constant | None:
    return scope.constants.find(node.input[slot]) if len(node.input) > slot else None


def _integers(
    node: NodeProto, slot: int, scope: Scope, default: Sequence[int] | None = None
) -> Sequence[int] | None:
    """The integers at an input, or those of an attribute where the operator's version has one instead."""
    if len(node.input) <= slot or not node.input[slot]:
        return default
    constant = _constant(node, slot, scope)
    return [int(value) for value in constant.read().reshape(-1)] if constant else None


def _values(constant: Constant) -> Array:
    """A constant's values in a type that numpy knows: bfloat16, which it does not, widens to float32."""
    values = constant.read()
    return values.astype(np.float32) if constant.data_type == TensorProto.BFLOAT16 else values


def _vector(constant: Constant, size: int) -> Array:
    return _values(constant).astype(np.float64).reshape(size)


def _per_channel(constant: Constant) -> tuple[Array, int] | None:
    """A constant that broadcasts as a scalar or along axis 1: its values, and the spatial axes it implies.

    A scalar implies none; but one of four axes or more could raise the rank of what it meets.
    """
    dims = constant.dims
    if constant.data_type not in FLOATS:
        return None
    if constant.size == 1:
        return _vector(constant, 1), len(dims) - 2 if len(dims) > _LEAST_RANK else 0
    axis = next(i for i, dim in enumerate(dims) if dim > 1) if constant.size else 0
    if not constant.size or dims[axis] != constant.size or axis > 1 or axis == len(dims) - 1:
        return None
    return _vector(constant, constant.size), len(dims) - 1 - axis


def _affine(source: str, scale: Array, shift: Array, rank: int, ops: tuple[Op, ...]) -> Lifted | Refusal:
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return Refusal("has a constant that is infinite or not a number")
    return _affine_of_finite(source, scale, shift, rank, ops)


def _affine_of_finite(source: str, scale: Array, shift: Array, rank: int, ops: tuple[Op, ...]) -> Lifted:
    made = kernel.affine(scale, shift, rank)
    return Lifted(source, made.window, lambda: made, ops)


def _moved(source: str, axes: tuple[Axis, ...], kind: str) -> Lifted:
    """An identity that pads, crops or strides."""
    geometry = Window(axes=axes)
    made = EquivalentKernel(geometry, np.ones((1, 1, *(1,) * len(axes))), np.zeros(1))
    return Lifted(source, geometry, lambda: made, (_op(kind, geometry),))


def _op(kind: str, geometry: Window, *, depthwise: bool = False) -> Op:
    axes = geometry.axes
    return Op(
        kind,
        tuple(axis.kernel for axis in axes),
        tuple(axis.stride for axis in axes),
        tuple(axis.dilation for axis in axes),
        depthwise,
    )


def _axes(
    attributes: Mapping[str, Any], extents: Sequence[int], scope: Scope, source: str
) -> tuple[Axis, ...] | Refusal:
    """The spatial axes of Conv and AveragePool, from their shared attributes and the kernel's extents."""
    rank = len(extents)
    strides = list(attributes.get("strides") or [1] * rank)
    dilations = list(attributes.get("dilations") or [1] * rank)
    pads = list(attributes.get("pads") or [0] * (2 * rank))
    declared = list(attributes.get("kernel_shape") or extents)
    if [len(strides), len(dilations), len(pads), declared] != [rank, rank, 2 * rank, list(extents)]:
        return Refusal("has strides, dilations, pads or a kernel_shape that do not fit its kernel")
    if min([*strides, *dilations, *extents], default=1) < 1:
        return Refusal("has a stride, dilation or kernel extent below 1")
    mode = attributes.get("auto_pad", b"NOTSET") or b"NOTSET"
    if mode == b"VALID":
        pads = [0] * (2 * rank)
    elif mode in (b"SAME_UPPER", b"SAME_LOWER"):
        same = _same_pads(
            mode,
            extents,
            strides,
            dilations,
            _extents(scope, source, rank) if max(strides, default=1) > 1 else (),
        )
        if same is None:
            return Refusal(
                f"has auto_pad {mode.decode()} and a stride, so its pads depend on an unknown extent"
            )
        pads = same
    elif mode != b"NOTSET":
        return Refusal("has an auto_pad that ONNX does not define")
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


def _extents(scope: Scope, tensor: str, rank: int) -> list[int | None]:
    """A tensor's static spatial extents, None for each that is not known."""
    shape = scope.shape_of(tensor) or ()
    if len(shape) != rank + 2:
        return [None] * rank
    return [extent if isinstance(extent, int) else None for extent in shape[2:]]


def _crop(start: int, end: int, extent: int | str | None) -> tuple[int, int] | None:
    """How many elements a Slice takes off at both ends; None where that depends on an unknown extent."""
    if isinstance(extent, int):
        first, last = (min(extent, max(0, i + extent if i < 0 else i)) for i in (start, end))
        return (first, extent - last) if first < last else None
    if start < 0 or 0 <= end < _FAR:
        return None
    return start, 0 if end >= 0 else -end


def _is_dequantized(name: str, scope: Scope) -> bool:
    position = scope.producer(name)
    return position is not None and scope.nodes[position].op_type == "DequantizeLinear"
