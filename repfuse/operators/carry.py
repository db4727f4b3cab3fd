"""Ops that move elements or average them, and leave channels what they are: Transpose, average pooling, Resize ...

Such an op does the same to each channel and maps a constant to itself. So a pointwise op, however it mixes
channels, gives the same before it and behind it, if it then acts along the axis to which the channels went:

    carry(W x + b) = W carry(x) + b

That lets a kernel pass: a BatchNormalization before GlobalAveragePool and Flatten goes into the Gemm behind them,
one behind a Reshape into the MatMul before it. The op itself stays, and is put on what the kernel leaves it. Behind
a pooling that halves images, a pointwise Conv has a quarter of the work; before a Resize that doubles them as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from repfuse.algebra.window import Axis, Layout, Refusal, Window
from repfuse.graph.operands import constant_at, integers_at
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.model.shapes import Shape
from repfuse.operators.lifted import Lifted


@dataclass(frozen=True)
class Carry:
    """An op that carries channels from one axis to another.

    Attributes:
        source: The tensor that it acts on.
        places: Where each axis goes that stays whole: from its number to that in the output.
        ranks: How many axes its input has, and its output.
        density: How many elements it reads for each that it gives.
        extents: Those that it was told, in which the number of channels may be replaced; else empty.
        told: The input that tells them.
        rigid: Whether it would fail for another number of channels.
        arithmetic: What computing an element costs, in multiply-adds, beside reading and writing.
    """

    source: str
    places: Mapping[int, int]
    ranks: tuple[int, int]
    density: float = 1.0
    extents: tuple[int, ...] = ()
    told: int = 1
    rigid: bool = False
    arithmetic: float = 0.0

    def through(self, window: Window) -> Window | Refusal:
        """A pointwise op before the carrying one, as it acts behind it."""
        return _moved(window, self.places, *self.ranks)

    def back(self, window: Window) -> Window | Refusal:
        """A pointwise op behind the carrying one, as it acts before it."""
        return _moved(window, {to: at for at, to in self.places.items()}, *self.ranks[::-1])


def axis_of(window: Window, rank: int) -> int:
    """The axis that holds a window's channels in a tensor of so many axes."""
    return 1 if window.layout is Layout.SECOND else rank - 1


def _moved(window: Window, places: Mapping[int, int], before: int, after: int) -> Window | Refusal:
    if not window.pointwise:
        return Refusal("has taps, and cannot pass an op that moves or averages elements")
    if window.channels is None:
        return replace(window, axes=(), layout=Layout.ANY)
    if window.axes and len(window.axes) != before - 2:
        return Refusal(f"acts on {len(window.axes)} spatial axes, and the tensor has {before - 2}")
    axis = places.get(axis_of(window, before))
    if axis == 1:
        flat = after == 2
        return replace(
            window,
            axes=() if flat else (Axis(),) * (after - 2),
            layout=Layout.FLAT if flat else Layout.SECOND,
        )
    if axis is not None and axis == after - 1 > 0:
        return replace(window, axes=(), layout=Layout.LAST)
    return Refusal("has channels that an op takes apart or moves to an axis on which no kernel acts")


def carry(node: Node, scope: Scope) -> Carry | None:
    """Read a node as an op that carries channels; None if it is none, or shapes do not show it."""
    reader = CARRIERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if reader is None or node.refers or not node.input[0]:
        return None
    before, after = scope.shape_of(node.input[0]), scope.shape_of(node.output[0])
    if before is None or after is None or len(before) < 2 or len(after) < 2:
        return None
    return reader(node, scope, before, after)


def _transpose(node: Node, _: Scope, before: Shape, after: Shape) -> Carry:
    """Read Transpose, of any version."""
    order = list(node.attributes.get("perm") or range(len(before))[::-1])
    return Carry(node.input[0], {at: to for to, at in enumerate(order)}, (len(before), len(after)))


def _reshape(node: Node, scope: Scope, before: Shape, after: Shape) -> Carry:
    """Read Reshape, versions 5 to 25; Flatten, Squeeze and Unsqueeze, which are Reshapes, too."""
    places = {at: to for at in range(len(before)) for to in range(len(after)) if _same(before, after, at, to)}
    if node.op_type != "Reshape":
        return Carry(node.input[0], places, (len(before), len(after)))
    extents = tuple(integers_at(node, 1, scope) or ())
    # A 0 copies the extent of the input's axis of that number, which may not be the one that goes there.
    rigid = len(extents) != len(after) or any(extents[to] == 0 and at != to for at, to in places.items())
    return Carry(node.input[0], places, (len(before), len(after)), extents=extents, rigid=rigid)


def _same(before: Shape, after: Shape, at: int, to: int) -> bool:
    """Whether an axis holds the same elements before and after: as many come before or behind each of them."""
    extent = before[at]
    if not isinstance(extent, int) or extent == 1 or extent != after[to]:
        return False
    if before[:at] == after[:to] and None not in before[:at]:
        return True
    behind = before[at + 1 :], after[to + 1 :]
    if behind[0] == behind[1] and None not in behind[0]:
        return True
    known = [math.prod(n for n in extents if isinstance(n, int)) for extents in behind]
    return known[0] == known[1] and all(isinstance(n, int) for extents in behind for n in extents)


def _mean(node: Node, scope: Scope, before: Shape, after: Shape) -> Carry | None:
    """Read GlobalAveragePool, and ReduceMean, versions 1 to 18, whose axes became an input."""
    attributes = node.attributes
    axes: Sequence[int] | None = range(2, len(before))
    if node.op_type == "ReduceMean":
        axes = integers_at(node, 1, scope, attributes.get("axes"))
    if not axes:
        return None
    gone = {axis % len(before) for axis in axes}
    keeps = node.op_type != "ReduceMean" or attributes.get("keepdims", 1)
    left = [axis for axis in range(len(before)) if keeps or axis not in gone]
    places = {at: to for to, at in enumerate(left) if at not in gone}
    extents = [before[axis] for axis in gone]
    density = math.prod(n if isinstance(n, int) else _USUAL for n in extents)
    return Carry(node.input[0], places, (len(before), len(after)), density)


def pooling(lifted: Lifted) -> Carry | None:
    """Read a lifted AveragePool that makes a tensor smaller; None if it meets padding, which is no average."""
    axes = lifted.window.axes
    if lifted.window.stride == 1 or any(axis.padded for axis in axes):
        return None
    rank = len(axes) + 2
    return Carry(lifted.source, {0: 0, 1: 1}, (rank, rank), lifted.window.stride)


def _resize(node: Node, scope: Scope, before: Shape, after: Shape) -> Carry | None:
    """Read Resize, versions 10 to 19, and Upsample, 7 and 9, where each element is an average of others.

    With weights below zero (cubic) it is one as well; what rounding may change would be harder to bound, though.
    """
    attributes = node.attributes
    crops = attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    stretches = attributes.get("keep_aspect_ratio_policy", b"stretch") == b"stretch"
    if crops or not stretches or attributes.get("mode", b"nearest") not in _AVERAGING:
        return None
    rank = len(before)
    axes = [axis % rank for axis in attributes.get("axes") or range(rank)]
    factors, extents = _scales(node, scope), tuple[int, ...]()
    by_sizes = factors is None
    if factors is None:
        # How many images there are, sizes repeat, and it may be open.
        factors = [_factor(before[axis], after[axis]) if axis else 1.0 for axis in axes]
        extents = tuple(integers_at(node, _SIZES, scope) or () if axes == list(range(rank)) else ())
    if len(factors) != len(axes) or min(factors) <= 0:
        return None
    grown = dict(zip(axes, factors, strict=True))
    places = {at: at for at in range(rank) if grown.get(at, 1) == 1 and isinstance(before[at], int)}
    rigid = by_sizes and not extents and not grown.keys().isdisjoint(places.keys() - {0})
    density = 1 / math.prod(factors)
    return Carry(node.input[0], places, (rank, rank), density, extents, _SIZES, rigid, _INTERPOLATED)


def _scales(node: Node, scope: Scope) -> Sequence[float] | None:
    """By how much each axis grows, if the node is told so: by an attribute, at first, then by one of two inputs."""
    if "scales" in node.attributes:
        return list(node.attributes["scales"])
    slot = 1 if len(node.input) == 2 else _SCALES
    if len(node.input) <= slot or not node.input[slot]:
        return None
    told = constant_at(node, slot, scope)
    if told is None:
        return []
    return [float(factor) for factor in told.read().reshape(-1)] or None  # none are told where sizes are


def _factor(before: int | str | None, after: int | str | None) -> float:
    """By how much an axis grows; 0 where that is unknown."""
    return after / before if isinstance(before, int) and isinstance(after, int) else 0.0


_SCALES, _SIZES = 2, 3
"""Inputs of Resize, from version 11 on."""

_AVERAGING = (b"nearest", b"linear")
"""Modes in which no weight is below zero."""

_INTERPOLATED = 30
"""Multiply-adds: with linear interpolation, a Conv of 24 to 96 channels is about as fast before it as behind it."""

_USUAL = 7
"""An extent before the last pooling where none is declared."""

CARRIERS: Mapping[str, Callable[[Node, Scope, Shape, Shape], Carry | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "Resize": _resize,
    "Upsample": _resize,
}

GROWING = frozenset({"Resize", "Upsample"})
"""Those before which there may be fewer positions than behind them."""
