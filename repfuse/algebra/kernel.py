"""Equivalent kernels and the transforms on them, in float64: the algebra of structural reparameterization.

Whatever is linear and shift-equivariant is a convolution, a BatchNormalization or the bare source too. Each
op becomes an `EquivalentKernel`; ops in sequence are composed, branches are added. Whether that is exact is
decided on windows (`algebra.window`); here are the numbers. Pure functions on arrays, which know no ONNX.

The transforms are numbered as in DBB (arXiv:2103.13425, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repfuse.algebra import window as geometry
from repfuse.algebra.window import IDENTITY, Axis, Layout, Refusal, Window

Array = NDArray[Any]
Tap = tuple[int, ...]


@dataclass(frozen=True)
class EquivalentKernel:
    """What a linear op, a branch or a group amounts to: `y = weight * x + bias`, x padded with `outside`.

    Attributes:
        window: The geometry.
        weight: Shape `(C_out, C_in / group, *kernel)`; `(1, 1, *kernel)` where the window treats all channels
            alike. Of any float type: the first arithmetic done with it makes it float64.
        bias: Shape `(C_out,)`, or `(1,)` where the window treats all channels alike; float64.
        outside: What taps find outside the input; shape `(C_in,)`, or `(1,)` where it is one for all channels;
            float64, zero where the window is not `shifted`. Infinite where no value would do.
    """

    window: Window
    weight: Array
    bias: Array
    outside: Array = field(default_factory=lambda: np.zeros(1))


def identity() -> EquivalentKernel:
    """The bare source."""
    return EquivalentKernel(IDENTITY, np.ones((1, 1)), np.zeros(1))


def affine(scale: Array, shift: Array, rank: int = 0, layout: Layout = Layout.ANY) -> EquivalentKernel:
    """`scale * x + shift`, for all channels alike (shape `(1,)`) or per channel (shape `(C,)`).

    Args:
        scale: Factors.
        shift: Summands, of the same shape.
        rank: How many spatial axes the tensor has; 0 for any number.
        layout: Which axis holds the channels, if it matters and is not axis 1.
    """
    count = scale.size
    channels = (count, count) if count > 1 else None
    window = Window(
        channels,
        count if channels else 0,
        (Axis(),) * rank,
        biased=bool(shift.any()),
        layout=layout if channels else Layout.ANY,
    )
    weight = scale.astype(np.float64).reshape(count, 1, *(1,) * rank)
    return EquivalentKernel(window, weight, shift.astype(np.float64).reshape(count))


def average(window: Window) -> EquivalentKernel:
    """Average pooling that divides by the number of taps everywhere (transform V)."""
    extents = [axis.kernel for axis in window.axes]
    return EquivalentKernel(window, np.full((1, 1, *extents), 1 / math.prod(extents)), np.zeros(1))


def compose(first: EquivalentKernel, second: EquivalentKernel) -> EquivalentKernel:
    """`second` applied to what `first` computes (transform III; transform I where one of them is pointwise).

    `W[o, i, t + stride_first * u] = sum over m of W_second[o, m, u] * W_first[m, i, t]`, and
    `b[o] = b_second[o] + sum over m and u of W_second[o, m, u] * b_first[m]`. The outside value is that of
    `first`; or, if a scale and a shift come first, the value that they map to the one of `second`.

    Raises:
        ValueError: `window.compose` refuses the two.
    """
    window = _exact(geometry.compose(first.window, second.window))
    outside = _outside(first, second) if window.shifted else np.zeros(1)
    if second.window.pointwise and second.window.depthwise:
        scale = second.weight.astype(np.float64).reshape(-1)
        weight = first.weight * _column(scale, first.weight.ndim)
        return _kernel(window, weight, first.bias * scale + second.bias, outside)
    first, second = _with_channels(first, second)
    if first.window.pointwise and first.window.depthwise:
        weight = second.weight * _per_input(first.weight.astype(np.float64).reshape(-1), second)
    else:
        rank = len(window.axes)
        first, second = (placed(each, geometry.with_rank(each.window, rank)) for each in (first, second))
        weight = (_spread if second.window.depthwise else _convolve)(first, second, window)
    return _kernel(window, weight, second.bias + _sum_of_shifts(first.bias, second), outside)


def add(kernels: Sequence[EquivalentKernel], window: Window) -> EquivalentKernel:
    """The sum of parallel kernels (transforms II and VI): `W = sum W_b`, `b = sum b_b`, taps aligned.

    Args:
        kernels: The branches.
        window: The sum's geometry, which `window.add` gives.

    Raises:
        ValueError: Padded branches find different values outside.
    """
    outside = common_outside(kernels)
    if outside is None:
        raise ValueError("the outside values differ")
    outputs, inputs = window.channels or (1, 1)
    shape = (outputs, inputs // (window.group or 1), *(axis.kernel for axis in window.axes))
    rest = list(kernels)
    # The first branch as large as the sum is copied: writing zeros to add it to them would take longer.
    full = next((i for i, each in enumerate(rest) if _covers(each.window, window)), None)
    weight = np.zeros(shape) if full is None else rest.pop(full).weight.astype(np.float64).reshape(shape)
    for kernel in rest:
        _accumulate(weight, window, kernel)
    bias = sum((kernel.bias for kernel in kernels), np.zeros(outputs))
    return EquivalentKernel(window, weight, bias, outside)


def stack(kernels: Sequence[EquivalentKernel], window: Window) -> EquivalentKernel:
    """Parallel kernels with their outputs one behind the other (transform IV): `W = [W_1; W_2; ...]`.

    Args:
        kernels: The branches.
        window: Their geometry together, which `window.stack` gives.

    Raises:
        ValueError: Padded branches find different values outside.
    """
    outside = common_outside(kernels)
    if outside is None:
        raise ValueError("the outside values differ")
    _, inputs = window.channels or (1, 1)
    weights, biases = [], []
    for each in kernels:
        count, _ = each.window.channels or (inputs, inputs)
        rows = embedded(each, replace(window, channels=(count, inputs)))
        weights.append(rows.weight)
        biases.append(np.broadcast_to(rows.bias, (count,)))
    return EquivalentKernel(window, np.concatenate(weights), np.concatenate(biases), outside)


def common_outside(kernels: Sequence[EquivalentKernel]) -> Array | None:
    """The outside value of all kernels that read it; None where they differ by more than float64 rounds."""
    values = [kernel.outside for kernel in kernels if kernel.window.padded]
    if not any(value.any() for value in values):
        return np.zeros(1)
    if not all(np.allclose(value, values[0], rtol=2.0**-44, atol=0) for value in values):
        return None
    return max(values, key=np.size, default=np.zeros(1))


def zero_padded(kernel: EquivalentKernel, outside: Array) -> EquivalentKernel:
    """The kernel on `x - outside`, where its own outside value is zero: a Conv, as ONNX has it.

    Args:
        kernel: A kernel.
        outside: Its outside value, as the subtraction has it: rounded, perhaps. In the interior the bias makes
            up for the rounding.
    """
    window = replace(kernel.window, shifted=False) if kernel.window.shifted else kernel.window
    return EquivalentKernel(window, kernel.weight, kernel.bias + _sum_of_shifts(outside, kernel))


def _covers(part: Window, whole: Window) -> bool:
    return (part.channels, part.group, part.axes) == (whole.channels, whole.group, whole.axes)


def emittable(kernel: EquivalentKernel) -> EquivalentKernel:
    """The same kernel as an operator has it (see `window.emittable`)."""
    window = geometry.emittable(kernel.window)
    return kernel if window == kernel.window else embedded(kernel, window)


def trimmed(kernel: EquivalentKernel) -> EquivalentKernel:
    """The same kernel without rows and columns of zeros at its ends, as far as these only read padding.

    Args:
        kernel: A kernel without negative padding; this has none either.
    """
    if kernel.window.output_padding is not None:
        return kernel
    axes, kept = [], []
    for number, axis in enumerate(kernel.window.axes):
        others = (each for each in range(kernel.weight.ndim) if each != number + 2)
        lines = kernel.weight.transpose(number + 2, *others)
        before = _zeros(lines[: axis.begin // axis.dilation], axis.kernel - 1)
        behind = _zeros(lines[::-1][: axis.end // axis.dilation], axis.kernel - 1 - before)
        kept.append(slice(before, axis.kernel - behind))
        extent = axis.kernel - before - behind
        axes.append(
            axis._replace(
                kernel=extent,
                dilation=axis.dilation if extent > 1 else 1,
                begin=axis.begin - before * axis.dilation,
                end=axis.end - behind * axis.dilation,
            )
        )
    if tuple(axes) == kernel.window.axes:
        return kernel
    places: Any = (slice(None), slice(None), *kept)
    return replace(kernel, window=replace(kernel.window, axes=tuple(axes)), weight=kernel.weight[places])


def _zeros(lines: Array, most: int) -> int:
    """How many of the first lines hold zeros only; no more than `most` are counted."""
    # One output's share of a line tells nearly always: strided as it is, the whole one takes long to read.
    used = (number for number, line in enumerate(lines[:most]) if line[:1].any() or line.any())
    return next(used, min(len(lines), most))


def unplaced(kernel: EquivalentKernel) -> EquivalentKernel:
    """A pointwise kernel for tensors of any rank and layout; any other kernel as it is."""
    if not kernel.window.pointwise:
        return kernel
    layout = Layout.SECOND if kernel.window.channels else Layout.ANY
    return placed(kernel, replace(kernel.window, axes=(), layout=layout))


def placed(kernel: EquivalentKernel, window: Window) -> EquivalentKernel:
    """The same numbers for another rank and layout."""
    taps = [axis.kernel for axis in window.axes]
    return replace(kernel, window=window, weight=kernel.weight.reshape(*kernel.weight.shape[:2], *taps))


def outputs_first(weight: Array, group: int) -> Array:
    """The weight of a ConvTranspose, `(C_in, C_out / group, *kernel)`, as `(C_out, C_in / group, *kernel)`.

    Its own inverse: called with the latter, it gives the former.
    """
    rows, columns, *taps = weight.shape
    blocks = weight.reshape(group, rows // group, columns, *taps).swapaxes(1, 2)
    swapped: Array = blocks.reshape(group * columns, rows // group, *taps)
    return swapped


def _exact(window: Window | Refusal) -> Window:
    if isinstance(window, Refusal):
        raise ValueError(window.reason)
    return window


def _outside(first: EquivalentKernel, second: EquivalentKernel) -> Array:
    """The outside value of a composition whose window is shifted."""
    if first.window.padded:
        return first.outside
    # The x for which `scale * x + shift` is what `second` finds; any x will do where that is so for all.
    rest, scale = np.broadcast_arrays(
        second.outside - first.bias, first.weight.astype(np.float64).reshape(-1)
    )
    value = np.zeros(rest.shape)
    np.divide(rest, scale, out=value, where=rest != 0)
    return value


def _kernel(window: Window, weight: Array, bias: Array, outside: Array) -> EquivalentKernel:
    """Put arrays in the shapes that the window asks for: axes of a pointwise op may still be missing."""
    outputs, inputs = window.channels or (1, 1)
    shape = (outputs, inputs // (window.group or 1), *(axis.kernel for axis in window.axes))
    return EquivalentKernel(window, weight.reshape(shape), np.broadcast_to(bias, (outputs,)), outside)


def _column(vector: Array, ndim: int) -> Array:
    """Lay a vector along the first of `ndim` axes."""
    return vector.reshape((-1,) + (1,) * (ndim - 1))


def _per_input(vector: Array, kernel: EquivalentKernel) -> Array:
    """Lay one value for each input channel so that it multiplies `kernel.weight`."""
    outputs, inputs = kernel.window.channels or (1, 1)
    group = kernel.window.group or 1
    blocks = np.broadcast_to(vector, (inputs,)).reshape(group, 1, inputs // group)
    rows = np.broadcast_to(blocks, (group, outputs // group, inputs // group))
    return rows.reshape((outputs, inputs // group) + (1,) * (kernel.weight.ndim - 2))


def _sum_of_shifts(shift: Array, kernel: EquivalentKernel) -> Array:
    """What a constant `shift` of each input channel becomes behind `kernel`."""
    if not shift.any():  # most often: to sum a large kernel up takes long
        return np.zeros(1)
    outputs, inputs = kernel.window.channels or (1, 1)
    group = kernel.window.group or 1
    rows = kernel.weight.astype(np.float64, copy=False).reshape(group, outputs // group, -1)
    values = np.broadcast_to(shift, (inputs,)).reshape(group, inputs // group, 1)
    # Matrix products are several times faster than sums of few taps.
    total: Array = rows @ values.repeat(kernel.window.taps, axis=1)
    return total.reshape(outputs)


def _with_channels(
    first: EquivalentKernel, second: EquivalentKernel
) -> tuple[EquivalentKernel, EquivalentKernel]:
    """Spell an op that treats all channels alike out for the number of channels that the other one has."""
    if first.window.channels:
        return first, _for_channels(second, first.window.channels[0])
    if second.window.channels:
        return _for_channels(first, second.window.channels[1]), second
    return first, second


def _for_channels(kernel: EquivalentKernel, count: int) -> EquivalentKernel:
    if kernel.window.channels:
        return kernel
    old = kernel.window
    window = replace(old, channels=(count, count), group=count)
    weight = np.broadcast_to(kernel.weight, (count, 1, *kernel.weight.shape[2:]))
    return EquivalentKernel(window, weight, np.broadcast_to(kernel.bias, (count,)), kernel.outside)


def embedded(kernel: EquivalentKernel, window: Window) -> EquivalentKernel:
    """Write a kernel out in a larger window: fewer groups, more taps."""
    outputs, inputs = window.channels or (1, 1)
    weight = np.zeros((outputs, inputs // (window.group or 1), *(axis.kernel for axis in window.axes)))
    _accumulate(weight, window, kernel)
    return EquivalentKernel(window, weight, kernel.bias, kernel.outside)


def _accumulate(total: Array, window: Window, kernel: EquivalentKernel) -> None:
    """Add a kernel's weight to `total`, whose geometry is `window`, in place."""
    if window.channels:
        kernel = _for_channels(kernel, window.channels[1])
    axes = geometry.with_rank(kernel.window, len(window.axes)).axes
    places = (..., *(_places(axis, whole) for axis, whole in zip(axes, window.axes, strict=True)))
    group = window.group or 1
    copies = (kernel.window.group or 1) // group
    outputs, inputs = total.shape[0] // group // copies, total.shape[1] // copies
    taps = [axis.kernel for axis in axes]
    blocks = total.reshape(group, copies, outputs, copies, inputs, *total.shape[2:])
    # A finer grouping fills the diagonal blocks only; einsum gives a view of them.
    diagonal: Any = np.einsum("gcoci...->gcoi...", blocks) if copies > 1 else blocks[:, :, :, 0]
    diagonal[places] += kernel.weight.reshape(group, copies, outputs, inputs, *taps)


def _places(axis: Axis, whole: Axis) -> slice:
    """Where the taps of `axis` stand among those of `whole`."""
    start = (whole.begin - axis.begin) // whole.dilation
    step = max(1, axis.dilation // whole.dilation) if axis.kernel > 1 else 1
    return slice(start, start + (axis.kernel - 1) * step + 1, step)


def _convolve(first: EquivalentKernel, second: EquivalentKernel, window: Window) -> Array:
    """The weight of a composition, tap by tap: for each pair of taps one matrix product for each group."""
    group = window.group or 1
    inner, outer = _taps_first(first, group), _taps_first(second, group)
    rank = len(window.axes)
    taps = [axis.kernel for axis in window.axes]
    out = np.zeros((*taps, group, outer.shape[rank + 1], inner.shape[rank + 2]))
    for t, u, place in _pairs_of_taps(first.window, second.window, window):
        out[place] += outer[u] @ inner[t]
    return np.moveaxis(out, range(rank), range(-rank, 0)).reshape(-1, out.shape[-1], *taps)


def _spread(first: EquivalentKernel, second: EquivalentKernel, window: Window) -> Array:
    """As `_convolve` where `second` is depthwise (a pooling, say): it scales each output of `first` by itself."""
    inner: Any = first.weight.astype(np.float64, copy=False)
    outer: Any = second.weight
    out: Any = np.zeros((*inner.shape[:2], *(axis.kernel for axis in window.axes)))
    for t, u, place in _pairs_of_taps(first.window, second.window, window):
        here, factors, values = (..., *place), (slice(None), slice(None), *u), (..., *t)
        out[here] += outer[factors] * inner[values]
    return np.asarray(out)


def _pairs_of_taps(first: Window, second: Window, window: Window) -> Iterator[tuple[Tap, Tap, Tap]]:
    """Each tap of `first` with each of `second`, and where both together stand in their composition."""
    axes = list(zip(first.axes, second.axes, window.axes, strict=True))
    for u in np.ndindex(*(b.kernel for _, b, _ in axes)):
        for t in np.ndindex(*(a.kernel for a, _, _ in axes)):
            steps = zip(axes, t, u, strict=True)
            yield (
                t,
                u,
                tuple(
                    (a.dilation * i + a.stride * b.dilation * j) // w.dilation for (a, b, w), i, j in steps
                ),
            )


def _taps_first(kernel: EquivalentKernel, group: int) -> Array:
    """A kernel's weight as `(*kernel, group, C_out / group, C_in / group)`; `group` divides its own."""
    outputs, inputs = kernel.window.channels or (1, 1)
    old = kernel.window
    whole = kernel if old.group == group else embedded(kernel, replace(old, group=group))
    weight = whole.weight.astype(np.float64, copy=False)
    blocks = weight.reshape(group, outputs // group, inputs // group, *weight.shape[2:])
    return np.moveaxis(blocks, range(3, blocks.ndim), range(blocks.ndim - 3))
