"""What rounding may change: the weights of new nodes, each once, and float64 itself.

A deviation is told in units in the last place (ulp), as the error per weight that would account for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from repfuse.proof.part import Array, Part, wide

ARITHMETIC = 2.0**-44
"""What float64 itself may lose, as a share of the largest value on the way: 500 roundings that all add up."""

KERNELS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Operators with a weight."""

_PRECISION = {"float16": (11, -24), "bfloat16": (8, -133), "float32": (24, -149), "float64": (53, -1074)}
"""Of each type: the bits of a significand, and the exponent of the smallest number."""


def rounded_off(added: Sequence[NodeProto], after: Part) -> Part:
    """New nodes with what was rounded off their weights at most in place of these; the shifts before them stay."""
    known = after.constants
    off = {name: half_ulp(known[name]) for name in _weights(added, known)}
    shifts = {name: np.abs(wide(known[name])) for name in _shifts(added).values()}
    return Part(added, {**known, **off, **shifts}, after.imports)


def shifted_off(added: Sequence[NodeProto], after: Part) -> Part | None:
    """New nodes that pass on what was rounded off the shifts before Convs at most; None without a shift.

    At each tap, in the padding or not: it is there that the shift matters, and elsewhere the bias makes up for it.
    """
    known, shifts = after.constants, _shifts(added)
    if not shifts:
        return None
    values = {name: np.zeros(known[name].shape) for name in _weights(added, known)}
    nodes = list(added)
    for number, node in enumerate(added):
        if node.input[0] in shifts:
            passed = nodes[number] = NodeProto()
            passed.CopyFrom(node)
            passed.input[2:] = [f"{node.output[0]}/off"]
            group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            shift = half_ulp(known[shifts[node.input[0]]])
            values[passed.input[2]] = _of_all_taps(np.abs(wide(known[node.input[1]])), shift, group)
    return Part(nodes, {**known, **values}, after.imports)


def _of_all_taps(weight: Array, values: Array, group: int) -> Array:
    """What a Conv gives for one value of each input channel, or one for all of them, at every tap."""
    rows = weight.reshape(group, len(weight) // group, weight.shape[1], -1).sum(axis=3)
    inputs = np.broadcast_to(values.reshape(-1), (group * weight.shape[1],)).reshape(group, -1, 1)
    return np.asarray((rows @ inputs).reshape(-1))


def _shifts(added: Sequence[NodeProto]) -> dict[str, str]:
    """The constants that are added before a weight, by what the Add gives."""
    read = {node.input[0] for node in added if node.op_type in KERNELS}
    return {
        node.output[0]: node.input[1] for node in added if node.op_type == "Add" and node.output[0] in read
    }


def to_the(power: int, part: Part) -> Part:
    """A part whose weights are raised to a power; shapes, axes and scales are not."""
    if power == 1:
        return part
    raised = {name: part.constants[name] ** power for name in _weights(part.nodes, part.constants)}
    return Part(part.nodes, {**part.constants, **raised}, part.imports)


def _weights(nodes: Sequence[NodeProto], constants: Mapping[str, Array]) -> set[str]:
    """Which constants nodes compute with: floats, but for those that say how large an output is."""
    computing = (node for node in nodes if node.op_type not in ("Resize", "Upsample"))
    read = {name for node in computing for name in node.input if name in constants}
    return {name for name in read if constants[name].dtype.kind in "fV"}


def units(expected: Array, actual: Array, bound: Array) -> float:
    """The largest deviation in units in the last place of each weight; infinite where shapes differ.

    Half a unit of each is what the bound stands for.
    """
    if expected.shape != actual.shape:
        return math.inf
    deviation = np.abs(expected - actual)
    with np.errstate(all="ignore"):  # zero by zero, where both sides are
        ulps = deviation / bound / 2
    return float(np.nan_to_num(np.max(ulps, where=deviation != 0, initial=0), nan=np.inf, posinf=np.inf))


def half_ulp(values: Array) -> Array:
    """Half the distance between neighbours of a value's type, the most that rounding to it can change."""
    bits, least = _PRECISION[values.dtype.name]
    # The exponent's bits alone are the power of two below a value; of numbers that have fewer digits, zero.
    exponent = np.asarray(np.inf, values.dtype).view(f"u{values.dtype.itemsize}")
    powers = wide((values.view(exponent.dtype) & exponent).view(values.dtype))
    powers *= 2.0**-bits
    return np.asarray(np.maximum(powers, 2.0 ** (least - 1), out=powers))


def largest_of_rows(values: Sequence[Array]) -> Any:
    """The largest magnitude that any of some tensors, batch first, has in each row; it broadcasts to all."""
    rows, axes = len(values[0]), values[-1].ndim - 1
    floats = (np.abs(value) for value in values if value.dtype.kind == "f" and value.size)
    # What has not so many rows is no value of the block's, but one that is the same for all of them.
    largest = [v.reshape(rows, -1).max(axis=1) if len(v) == rows else np.full(rows, v.max()) for v in floats]
    return np.max(largest, axis=0).reshape(-1, *[1] * axes)
