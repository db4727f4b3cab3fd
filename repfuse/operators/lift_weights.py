"""Lifting the operators that have weights: Conv, ConvTranspose, Gemm and MatMul."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from repfuse.algebra import kernel
from repfuse.algebra.kernel import EquivalentKernel
from repfuse.algebra.window import Layout, Refusal, Window
from repfuse.graph.constants import Constant
from repfuse.graph.operands import FLOATS, constant_at, last_axis, spatial_axes, values_of, vector_of
from repfuse.graph.quantized import stores_quantized
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.operators.lifted import Lifted, op_of

_Lifter = Callable[[Node, Scope], Lifted | Refusal]


def _perhaps_quantized(lifter: _Lifter) -> _Lifter:
    """Let a weight be stored quantized: it is evaluated, as any expression, and called a plain weight."""

    @functools.wraps(lifter)
    def lifted(node: Node, scope: Scope) -> Lifted | Refusal:
        quantized = stores_quantized(node, scope)
        if isinstance(quantized, Refusal):
            return quantized
        found = lifter(node, scope)
        if isinstance(found, Refusal) or not quantized:
            return found
        return replace(found, ops=tuple(replace(op, computed=False) for op in found.ops), quantized=True)

    return lifted


@_perhaps_quantized
def conv(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Conv, versions 1, 11 and 22."""
    operands = _weight_and_bias(node, scope)
    if isinstance(operands, Refusal):
        return operands
    weight, bias = operands
    attributes = node.attributes
    outputs, per_group, *extents = weight.dims
    group = attributes.get("group", 1)
    axes = spatial_axes(attributes, extents, scope, node.input[0])
    if isinstance(axes, Refusal):
        return axes
    if not extents or group < 1 or outputs % group or (bias and bias.dims != (outputs,)):
        return Refusal("has a weight, bias and group that do not fit together", invalid=True)
    shift = vector_of(bias, outputs) if bias else np.zeros(outputs)
    channels = (outputs, per_group * group)
    geometry = Window(channels, group, axes, biased=bool(shift.any()))
    computed = scope.constants.computes(node.input[1])
    op = op_of("conv", geometry, depthwise=group == channels[1] > 1, computed=computed)
    return Lifted(
        node.input[0],
        geometry,
        lambda: EquivalentKernel(geometry, values_of(weight), shift),
        (op,),
        weight.data_type,
    )


@_perhaps_quantized
def conv_transpose(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift ConvTranspose, versions 1, 11 and 22, whose weight has its inputs first."""
    operands = _weight_and_bias(node, scope)
    if isinstance(operands, Refusal):
        return operands
    weight, bias = operands
    attributes = node.attributes
    if attributes.get("output_shape") or attributes.get("auto_pad", b"NOTSET") not in (b"", b"NOTSET"):
        return Refusal("has an output_shape or auto_pad, from which its padding would have to be found")
    inputs, per_group, *extents = weight.dims
    group = attributes.get("group", 1)
    axes = spatial_axes(attributes, extents, scope, node.input[0])
    if isinstance(axes, Refusal):
        return axes
    outputs = per_group * group
    appended = tuple(attributes.get("output_padding") or [0] * len(extents))
    fits = group >= 1 and inputs % group == 0 and len(appended) == len(extents) > 0
    if not fits or (bias and bias.dims != (outputs,)):
        return Refusal("has a weight, bias and group that do not fit together", invalid=True)
    shift = vector_of(bias, outputs) if bias else np.zeros(outputs)
    geometry = Window((outputs, inputs), group, axes, biased=bool(shift.any()), output_padding=appended)
    return Lifted(
        node.input[0],
        geometry,
        lambda: EquivalentKernel(geometry, kernel.outputs_first(values_of(weight), group), shift),
        (op_of("convtranspose", geometry),),
        weight.data_type,
    )


def _weight_and_bias(node: Node, scope: Scope) -> tuple[Constant, Constant | None] | Refusal:
    """The constant operands of a Conv or ConvTranspose."""
    weight = constant_at(node, 1, scope)
    bias = constant_at(node, 2, scope)
    if weight is None:
        return Refusal("has a weight that is computed at run time or can be overridden by a caller")
    if bias is None and len(node.input) > 2 and node.input[2]:
        return Refusal("has a bias that is computed at run time or can be overridden by a caller")
    if weight.data_type not in FLOATS:
        return Refusal("has a weight that is not of a float type")
    if len(weight.dims) < 2:
        return Refusal("has a weight, bias and group that do not fit together", invalid=True)
    return weight, bias


@_perhaps_quantized
def gemm(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Gemm, versions 7, 9, 11 and 13: `alpha * A * B + beta * C`, a kernel without spatial axes."""
    attributes = node.attributes
    weight, bias = constant_at(node, 1, scope), constant_at(node, 2, scope)
    if weight is None or (bias is None and len(node.input) > 2 and node.input[2]):
        return Refusal("has a weight or bias that is computed at run time or can be overridden by a caller")
    if weight.data_type not in FLOATS or attributes.get("transA"):
        return Refusal("has a weight that is not of a float type, or a transposed input")
    if len(weight.dims) != 2 or (bias and bias.data_type != weight.data_type):
        return Refusal("has a weight and bias that do not fit together", invalid=True)
    transposed = bool(attributes.get("transB"))
    inputs, outputs = weight.dims[::-1] if transposed else weight.dims
    shift = np.zeros(outputs)
    if bias:
        if bias.size not in (1, outputs) or (bias.size > 1 and bias.dims[-1] != outputs):
            return Refusal("has a bias that differs from row to row")
        shift = shift + vector_of(bias, bias.size) * attributes.get("beta", 1.0)
    geometry = Window((outputs, inputs), 1, biased=bool(shift.any()), layout=Layout.FLAT)

    def read() -> EquivalentKernel:
        values, alpha = values_of(weight) if transposed else values_of(weight).T, attributes.get("alpha", 1.0)
        return EquivalentKernel(geometry, values if alpha == 1 else values * np.float64(alpha), shift)

    return Lifted(node.input[0], geometry, read, (op_of("gemm", geometry),), weight.data_type)


@_perhaps_quantized
def matmul(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift MatMul, versions 1, 9 and 13, of a tensor of any rank and a constant matrix: a Gemm for each row."""
    left, weight = (constant_at(node, slot, scope) for slot in (0, 1))
    if left is not None:
        return Refusal("multiplies a constant by a tensor: it mixes positions, not channels")
    if weight is None:
        return Refusal("combines tensors that are both computed at run time")
    if weight.data_type not in FLOATS:
        return Refusal("has a weight that is not of a float type")
    if len(weight.dims) != 2:
        return Refusal("has a weight that is not a matrix")
    inputs, outputs = weight.dims
    geometry = Window((outputs, inputs), 1, layout=last_axis(scope, node.input[0]))
    return Lifted(
        node.input[0],
        geometry,
        lambda: EquivalentKernel(geometry, values_of(weight).T, np.zeros(outputs)),
        (op_of("gemm", geometry),),
        weight.data_type,
    )
