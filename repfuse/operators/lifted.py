"""What lifting a node gives: the tensor that it acts on, its window, and a way to its equivalent kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from repfuse.algebra import kernel
from repfuse.algebra.kernel import Array, EquivalentKernel
from repfuse.algebra.window import Axis, Layout, Refusal, Window
from repfuse.families.patterns import Op

SELECT = Op("select")
"""What a choice of channels is called."""


@dataclass(frozen=True)
class Lifted:
    """A linear node.

    Attributes:
        source: The tensor that it acts on; all its other operands are constant.
        window: Its geometry.
        kernel: Gives its equivalent kernel; reads the weights, so it is called for chosen groups only.
        ops: What patterns call it: usually one op, none for an identity.
        weight_type: The `TensorProto` type of the weight of a Conv, Gemm or MatMul; 0 for any other node.
        broadcast: What `source` must be for the constant operand not to enlarge it: `(channels, least number of
            dimensions)`, channels 0 for any; None where the operator's definition sees to that.
        inside: Positions of nodes between `source` and this one that are lifted with it.
        quantized: Whether the weight is stored quantized, so that merging makes it larger.
    """

    source: str
    window: Window
    kernel: Callable[[], EquivalentKernel]
    ops: tuple[Op, ...]
    weight_type: int = 0
    broadcast: tuple[int, int] | None = None
    inside: frozenset[int] = frozenset()
    quantized: bool = False


def affine(
    source: str,
    scale: Array,
    shift: Array,
    rank: int,
    ops: tuple[Op, ...],
    layout: Layout = Layout.ANY,
) -> Lifted | Refusal:
    """`scale * x + shift`; see `kernel.affine`."""
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return Refusal("has a constant that is infinite or not a number")
    return affine_of_finite(source, scale, shift, rank, ops, layout)


def affine_of_finite(
    source: str,
    scale: Array,
    shift: Array,
    rank: int,
    ops: tuple[Op, ...],
    layout: Layout = Layout.ANY,
) -> Lifted:
    """`affine` where the constants are known to be finite."""
    made = kernel.affine(scale, shift, rank, layout)
    return Lifted(source, made.window, lambda: made, ops)


def moved(source: str, axes: tuple[Axis, ...], kind: str) -> Lifted:
    """An identity that pads, crops or strides."""
    geometry = Window(axes=axes)
    made = EquivalentKernel(geometry, np.ones((1, 1, *(1,) * len(axes))), np.zeros(1))
    return Lifted(source, geometry, lambda: made, (op_of(kind, geometry),))


def selected(source: str, indices: Sequence[int], channels: int) -> Lifted:
    """Some channels out of `channels`: a pointwise kernel with a single one in each row."""
    geometry = Window((len(indices), channels), 1)

    def read() -> EquivalentKernel:
        return EquivalentKernel(geometry, np.eye(channels)[list(indices)], np.zeros(len(indices)))

    return Lifted(source, geometry, read, (SELECT,))


def op_of(kind: str, geometry: Window, *, depthwise: bool = False, computed: bool = False) -> Op:
    """What patterns call an op of this kind and geometry."""
    axes = geometry.axes
    return Op(
        kind,
        tuple(axis.kernel for axis in axes),
        tuple(axis.stride for axis in axes),
        tuple(axis.dilation for axis in axes),
        depthwise,
        computed,
    )
