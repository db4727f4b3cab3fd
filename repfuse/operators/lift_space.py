"""Lifting the operators that move over space or select channels: AveragePool, Pad, Slice, Gather, Split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repfuse.algebra import kernel
from repfuse.algebra.window import Axis, Refusal, Window
from repfuse.graph.operands import constant_at, cropped, integers_at, spatial_axes, static_extents
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.operators.lifted import Lifted, moved, op_of, selected


def average_pool(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift AveragePool, versions 7, 10, 11, 19 and 22, where it divides by the same number everywhere."""
    attributes = node.attributes
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
    return Lifted(node.input[0], geometry, lambda: kernel.average(geometry), (op_of("avgpool", geometry),))


def _divides(axis: Axis, extent: int | None) -> bool:
    """Whether the last window of a pooling ends where its input does, so that rounding does not matter."""
    return axis.stride == 1 or (extent is not None and (extent - 1 + axis.slack) % axis.stride == 0)


def pad(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Pad with zeros; version 2 has attributes, 11 and later have inputs, 18 and later have axes."""
    attributes = node.attributes
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
    pads_of = (by_axis.get(axis, (0, 0)) for axis in range(2, rank))
    return moved(node.input[0], tuple(Axis(begin=b, end=e) for b, e in pads_of), "pad")


def slice_(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Slice of rows and columns (negative padding) or of channels; from version 10 on, bounds are inputs."""
    attributes = node.attributes
    starts, ends = (
        integers_at(node, i, scope, attributes.get(key)) for i, key in ((1, "starts"), (2, "ends"))
    )
    if starts is None or ends is None:
        return Refusal("has bounds that are computed at run time")
    axes = integers_at(node, 3, scope, attributes.get("axes", range(len(starts))))
    steps = integers_at(node, 4, scope, [1] * len(starts))
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return Refusal("has bounds that are computed at run time")
    if any(step < 1 for step in steps):
        return Refusal("selects images, or runs backwards")
    shape = scope.shape_of(node.input[0])
    if shape is None or len(shape) < 3 or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return Refusal("acts on a tensor of unknown rank")
    moves = [Axis()] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        crop = cropped(start, end, shape[axis])
        if crop is None:
            return Refusal("ends at a place that depends on an unknown extent")
        moves[axis] = Axis(stride=step, begin=-crop[0], end=-crop[1])
    images, channels, *spatial = moves
    if images != Axis():
        return Refusal("selects images, or runs backwards")
    if channels == Axis():
        return moved(node.input[0], tuple(spatial), "slice")
    count = shape[1]
    if any(axis != Axis() for axis in spatial) or not isinstance(count, int):
        return Refusal("selects channels and places at once, or channels of an unknown number")
    return selected(node.input[0], range(-channels.begin, count + channels.end, channels.stride), count)


def gather(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift Gather of channels, versions 1, 11 and 13, by a constant list of indices."""
    shape = scope.shape_of(node.input[0]) or ()
    indices = constant_at(node, 1, scope)
    axis = node.attributes.get("axis", 0)
    if len(shape) < 3 or axis % len(shape) != 1 or not isinstance(shape[1], int):
        return Refusal("gathers something other than channels of a known number")
    if indices is None or len(indices.dims) != 1 or not indices.size:
        return Refusal("gathers by indices that are computed at run time, or are no list")
    count = shape[1]
    chosen = [int(index) for index in indices.read()]
    if any(not -count <= index < count for index in chosen):
        return Refusal("gathers something other than channels of a known number")
    return selected(node.input[0], [index % count for index in chosen], count)


def split(node: Node, scope: Scope) -> dict[str, Lifted] | Refusal:
    """Lift each output of a Split of channels; sizes are an input from version 13 on."""
    attributes = node.attributes
    shape = scope.shape_of(node.input[0]) or ()
    axis = attributes.get("axis", 0)
    if len(shape) < 3 or axis % len(shape) != 1 or not isinstance(shape[1], int):
        return Refusal("splits something other than channels of a known number")
    count, parts = shape[1], len(node.output)
    largest = -(-count // parts)
    equal = [min(largest, count - number * largest) for number in range(parts)]
    sizes = integers_at(node, 1, scope, attributes.get("split", equal))
    if sizes is None or len(sizes) != parts or sum(sizes) != count or min(sizes) < 1:
        return Refusal("splits into parts of sizes that are computed at run time, or do not fit")
    bounds = np.cumsum([0, *sizes])
    return {
        name: selected(node.input[0], range(bounds[number], bounds[number + 1]), count)
        for number, name in enumerate(node.output)
        if name
    }
