"""Lifting the operators that scale and shift channels, and those that do nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repfuse.algebra import kernel, window
from repfuse.algebra.window import Layout, Refusal
from repfuse.families.patterns import Op
from repfuse.graph.operands import FLOATS, constant_at, last_axis, per_channel, values_of
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.operators.lifted import Lifted, affine, affine_of_finite

_EPSILON = float(np.float32(1e-5))
"""BatchNormalization's default: attributes are of single precision."""


def batch_normalization(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift BatchNormalization, versions 7, 9, 14 and 15: `(x - mean) / sqrt(var + epsilon) * scale + B`."""
    attributes = node.attributes
    if attributes.get("training_mode") or any(node.output[1:]) or not attributes.get("spatial", 1):
        return Refusal("is in training mode, so its statistics are those of the batch; export in eval mode")
    operands = [constant_at(node, slot, scope) for slot in range(1, 5)]
    if not all(operand and len(operand.dims) == 1 and operand.data_type in FLOATS for operand in operands):
        return Refusal("has statistics or parameters that are computed at run time")
    sizes = {operand.size for operand in operands if operand}
    if len(sizes) != 1:
        return Refusal("has statistics and parameters of different sizes", invalid=True)
    scale, bias, mean, variance = (values_of(operand).astype(np.float64) for operand in operands if operand)
    variance = variance + attributes.get("epsilon", _EPSILON)
    if (variance <= 0).any():
        return Refusal("has a negative variance", invalid=True)
    factor = scale / np.sqrt(variance)
    lifted = affine(node.input[0], factor, bias - mean * factor, 0, (Op("bn"),))
    return replace(lifted, invalid=True) if isinstance(lifted, Refusal) else lifted


def scale_or_shift(node: Node, scope: Scope) -> Lifted | Refusal:
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
    vector, behind = found
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
        case "Div", 0 if vector.all():
            scale, shift, ops = 1 / vector, zero, (Op("scale"),)
        case _:
            return Refusal("divides by what is computed at run time, or by zero")
    layout = last_axis(scope, node.input[slot]) if behind == 0 else Layout.ANY
    lifted = affine(node.input[slot], scale, shift, behind or 0, ops, layout)
    if isinstance(lifted, Refusal) or (vector.size == 1 and len(operand.dims) < 2):
        return lifted
    return replace(lifted, broadcast=(vector.size if vector.size > 1 else 0, len(operand.dims)))


def neg(node: Node, _: Scope) -> Lifted:
    """Lift Neg, versions 6 and 13."""
    return affine_of_finite(node.input[0], -np.ones(1), np.zeros(1), 0, (Op("neg"),))


def identity(node: Node, _: Scope) -> Lifted:
    """Lift Identity, of any version."""
    return Lifted(node.input[0], window.IDENTITY, kernel.identity, ())


def cast(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Cast, of any version, to the type that its operand has: Keras's layers end in such."""
    to = node.attributes.get("to")
    unchanged = to in FLOATS and scope.type_of(node.input[0]) == to
    return identity(node, scope) if unchanged else Refusal("is not linear")


def dropout(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Dropout, versions 7, 10, 12, 13 and 22; from 12 on an input turns training on."""
    if len(node.input) > 2 and node.input[2]:
        mode = constant_at(node, 2, scope)
        if mode is None or np.any(mode.read()):
            return Refusal("is in training mode; export in eval mode")
    return identity(node, scope)


def leaky_relu(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift LeakyRelu, of any version, with a slope of 1."""
    return identity(node, scope) if node.attributes.get("alpha") == 1 else Refusal("is not linear")


def prelu(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift PRelu, versions 7, 9 and 16, with slopes of 1; they never enlarge what they meet."""
    slopes = constant_at(node, 1, scope)
    return identity(node, scope) if slopes and np.all(slopes.read() == 1) else Refusal("is not linear")


def clip(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Clip without bounds; before version 11 these are attributes, then inputs."""
    bounded = any(node.input[1:]) or {"min", "max"} & node.attributes.keys()
    return Refusal("is not linear") if bounded else identity(node, scope)
