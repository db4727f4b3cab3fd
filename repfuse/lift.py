"""Which operators are linear: a table from operator to the function that lifts one node out of ONNX.

Lifting a node gives a `Lifted`: the tensor it acts on, its window, and a way to its equivalent kernel; or
a `Refusal` that says why the node is not linear. To add an operator, write one function and one row of `LIFTERS`.

Operators are read as https://onnx.ai/onnx/operators describes them, from opset 7 on; where versions differ in
more than types, the function says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from repfuse import kernel, window
from repfuse.kernel import Array, EquivalentKernel
from repfuse.operands import (
    FLOATS,
    attributes_of,
    constant_at,
    cropped,
    integers_at,
    per_channel,
    spatial_axes,
    static_extents,
    values_of,
    vector_of,
)
from repfuse.patterns import Op
from repfuse.view import Scope
from repfuse.window import Axis, Refusal, Window

_EPSILON = float(np.float32(1e-5))
"""BatchNormalization's default: attributes are of single precision."""


@dataclass(frozen=True)
class Lifted:
    """A linear node.

    Attributes:
        source: The tensor that it acts on; all its other operands are constant.
        window: Its geometry.
        kernel: Gives its equivalent kernel; reads the weights, so it is called for chosen groups only.
        ops: What patterns call it: usually one op, none for an identity.
        weight_type: The `TensorProto` type of the weight of a Conv or Gemm; 0 for any other node.
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
    weight = constant_at(node, 1, scope)
    bias = constant_at(node, 2, scope)
    if _is_dequantized(node.input[1], scope):
        return Refusal("has a quantized weight: fuse the float model and quantize afterwards")
    if weight is None:
        return Refusal("has a weight that is computed at run time or can be overridden by a caller")
    if bias is None and len(node.input) > 2 and node.input[2]:
        return Refusal("has a bias that is computed at run time or can be overridden by a caller")
    if weight.data_type not in FLOATS:
        return Refusal("has a weight that is not of a float type")
    attributes = attributes_of(node)
    outputs, per_group, *extents = weight.dims
    group = attributes.get("group", 1)
    axes = spatial_axes(attributes, extents, scope, node.input[0])
    if isinstance(axes, Refusal):
        return axes
    if not extents or group < 1 or outputs % group or (bias and bias.dims != (outputs,)):
        return Refusal("has a weight, bias and group that do not fit together")
    shift = vector_of(bias, outputs) if bias else np.zeros(outputs)
    channels = (outputs, per_group * group)
    geometry = Window(channels, group, axes, biased=bool(np.any(shift != 0)))
    op = _op("conv", geometry, depthwise=group == channels[1] > 1)
    return Lifted(
        node.input[0],
        geometry,
        lambda: EquivalentKernel(geometry, values_of(weight), shift),
        (op,),
        weight.data_type,
    )


def _gemm(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Gemm, versions 7, 9, 11 and 13: `alpha * A * B + beta * C`, a kernel without spatial axes."""
    attributes = attributes_of(node)
    weight, bias = constant_at(node, 1, scope), constant_at(node, 2, scope)
    if weight is None or (bias is None and len(node.input) > 2 and node.input[2]):
        return Refusal("has a weight or bias that is computed at run time or can be overridden by a caller")
    if weight.data_type not in FLOATS or _is_dequantized(node.input[1], scope) or attributes.get("transA"):
        return Refusal("has a weight that is not of a float type, or a transposed input")
    if len(weight.dims) != 2 or (bias and bias.data_type != weight.data_type):
        return Refusal("has a weight and bias that do not fit together")
    transposed = bool(attributes.get("transB"))
    inputs, outputs = weight.dims[::-1] if transposed else weight.dims
    shift = np.zeros(outputs)
    if bias:
        if bias.size not in (1, outputs) or (bias.size > 1 and bias.dims[-1] != outputs):
            return Refusal("has a bias that differs from row to row")
        shift = shift + vector_of(bias, bias.size) * attributes.get("beta", 1.0)
    geometry = Window((outputs, inputs), 1, biased=bool(np.any(shift != 0)), vector=True)

    def read() -> EquivalentKernel:
        values = values_of(weight) if transposed else values_of(weight).T
        return EquivalentKernel(geometry, values * np.float64(attributes.get("alpha", 1.0)), shift)

    return Lifted(node.input[0], geometry, read, (_op("gemm", geometry),), weight.data_type)


def _batch_normalization(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift BatchNormalization, versions 7, 9, 14 and 15: `(x - mean) / sqrt(var + epsilon) * scale + B`."""
    attributes = attributes_of(node)
    if attributes.get("training_mode") or any(node.output[1:]) or not attributes.get("spatial", 1):
        return Refusal("is in training mode, so its statistics are those of the batch; export in eval mode")
    operands = [constant_at(node, slot, scope) for slot in range(1, 5)]
    if not all(operand and len(operand.dims) == 1 and operand.data_type in FLOATS for operand in operands):
        return Refusal("has statistics or parameters that are computed at run time")
    sizes = {operand.size for operand in operands if operand}
    if len(sizes) != 1:
        return Refusal("has statistics and parameters of different sizes")
    scale, bias, mean, variance = (values_of(operand).astype(np.float64) for operand in operands if operand)
    variance = variance + attributes.get("epsilon", _EPSILON)
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
    found = per_channel(operand)
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
    if isinstance(lifted, Refusal) or (vector.size == 1 and len(operand.dims) < 2):
        return lifted
    return replace(lifted, broadcast=(vector.size if vector.size > 1 else 0, len(operand.dims)))


def _neg(node: NodeProto, _: Scope) -> Lifted:
    return _affine_of_finite(node.input[0], -np.ones(1), np.zeros(1), 0, (Op("neg"),))


def _identity(node: NodeProto, _: Scope) -> Lifted:
    return Lifted(node.input[0], window.IDENTITY, kernel.identity, ())


def _dropout(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Dropout, versions 7, 10, 12, 13 and 22; from 12 on an input turns training on."""
    if len(node.input) > 2 and node.input[2]:
        mode = constant_at(node, 2, scope)
        if mode is None or np.any(mode.read()):
            return Refusal("is in training mode; export in eval mode")
    return _identity(node, scope)


def _average_pool(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift AveragePool, versions 7, 10, 11, 19 and 22, where it divides by the same number everywhere."""
    attributes = attributes_of(node)
    axes = spatial_axes(attributes, attributes.get("kernel_shape", []), scope, node.input[0])
    if isinstance(axes, Refusal):
        return axes
    if any(axis.padded for axis in axes) and not attributes.get("count_include_pad", 0):
        return Refusal("divides by less at the border (count_include_pad is 0)")
    if attributes.get("ceil_mode", 0):
        extents = static_extents(scope, node.input[0], len(axes))
        if not all(_divides(axis, extent) for axis, extent in zip(axes, extents, strict=True)):
            return Refusal("rounds its output extent up (ceil_mode), so its last window is partial")
    geometry = Window(axes=axes)
    return Lifted(node.input[0], geometry, lambda: kernel.average(geometry), (_op("avgpool", geometry),))


def _divides(axis: Axis, extent: int | None) -> bool:
    """Whether the last window of a pooling ends where its input does, so that rounding does not matter."""
    return axis.stride == 1 or (extent is not None and (extent - 1 + axis.slack) % axis.stride == 0)


def _pad(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Pad with zeros; version 2 has attributes, 11 and later have inputs, 18 and later have axes."""
    attributes = attributes_of(node)
    if attributes.get("mode", b"constant") != b"constant":
        return Refusal(f"pads by {attributes['mode'].decode(errors='replace')}, not with zeros")
    value = constant_at(node, 2, scope)
    if (len(node.input) > 2 and node.input[2] and value is None) or attributes.get("value", 0) != 0:
        return Refusal("pads with a value other than zero")
    if value is not None and np.any(value.read() != 0):
        return Refusal("pads with a value other than zero")
    pads = integers_at(node, 1, scope, attributes.get("pads"))
    if pads is None:
        return Refusal("has pads that are computed at run time")
    rank = len(pads) // 2
    axes: Sequence[int] | None = range(rank)
    if len(node.input) > 3 and node.input[3]:
        rank = len(scope.shape_of(node.input[0]) or ())
        axes = integers_at(node, 3, scope)
    if axes is None or rank < 3 or len(pads) != 2 * len(axes) or any(not -rank <= a < rank for a in axes):
        return Refusal("has axes that cannot be told")
    by_axis = {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if any(any(by_axis.get(axis, ())) for axis in (0, 1)):
        return Refusal("pads the batch or the channels")
    moved = tuple(Axis(begin=b, end=e) for b, e in (by_axis.get(axis, (0, 0)) for axis in range(2, rank)))
    return _moved(node.input[0], moved, "pad")


def _slice(node: NodeProto, scope: Scope) -> Lifted | Refusal:
    """Lift Slice of rows and columns, which is negative padding; from version 10 on, bounds are inputs."""
    attributes = attributes_of(node)
    starts, ends = (
        integers_at(node, i, scope, attributes.get(key)) for i, key in ((1, "starts"), (2, "ends"))
    )
    if starts is None or ends is None:
        return Refusal("has bounds that are computed at run time")
    axes = integers_at(node, 3, scope, attributes.get("axes", range(len(starts))))
    steps = integers_at(node, 4, scope, [1] * len(starts))
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return Refusal("has bounds that are computed at run time")
    if any(axis in (0, 1) for axis in axes) or any(step < 1 for step in steps):
        return Refusal("selects channels or images, or runs backwards")
    shape = scope.shape_of(node.input[0])
    if shape is None or len(shape) < 3 or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return Refusal("acts on a tensor of unknown rank")
    moved = [Axis()] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        crop = cropped(start, end, shape[axis])
        if crop is None:
            return Refusal("ends at a place that depends on an unknown extent")
        moved[axis] = Axis(stride=step, begin=-crop[0], end=-crop[1])
    if any(axis != Axis() for axis in moved[:2]):
        return Refusal("selects channels or images, or runs backwards")
    return _moved(node.input[0], tuple(moved[2:]), "slice")


LIFTERS: Mapping[str, Lifter] = {
    "Conv": _conv,
    "Gemm": _gemm,
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


def _is_dequantized(name: str, scope: Scope) -> bool:
    """Whether a weight comes out of a DequantizeLinear, perhaps rearranged on the way."""
    position = scope.producer(name)
    while position is not None and scope.nodes[position].op_type in _REARRANGING:
        position = scope.producer(scope.nodes[position].input[0])
    return position is not None and scope.nodes[position].op_type == "DequantizeLinear"


_REARRANGING = {"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
