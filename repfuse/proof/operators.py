"""ONNX's operators in float64, where the reference implementation takes seconds or mistakes something.

Like the rest of the judge (see `proof.blockcheck`), these share no algebra with what they judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_average_pool import AveragePool_19
from onnx.reference.ops.op_conv import Conv as ReferenceConv
from onnx.reference.ops.op_resize import Resize as ReferenceResize

Array = NDArray[Any]


def faster(version: int) -> list[type[OpRun]]:
    """Those that take the place of the reference implementation's at a version of the operator set."""
    operators: list[type[OpRun]] = [Conv, ConvTranspose, AveragePool, ScatterND, Resize, Upsample]
    return [*operators, BatchNormalization] if version < _PLAIN_BATCH_NORMALIZATION else operators


_PLAIN_BATCH_NORMALIZATION = 14
"""Before this version the reference implementation takes the statistics of the batch."""


class Conv(ReferenceConv):
    """Columns of several images at once: the reference implementation goes through images and groups one by one."""

    def _run(  # type: ignore[override]
        self, x: Array, w: Array, b: Array | None = None, **geometry: Any
    ) -> tuple[Array]:
        taps = w.shape[2:]
        if x.dtype.kind != "f":
            return super()._run(x, w, b, **geometry)  # type: ignore[no-any-return, no-untyped-call]
        ones = [1] * len(taps)
        strides, dilations = geometry["strides"] or ones, geometry["dilations"] or ones
        reach = np.multiply(dilations, np.subtract(taps, 1)) + 1
        pads = _pads(geometry, x.shape[2:], strides, reach)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[: len(taps)], pads[len(taps) :], strict=True)])
        outputs = np.subtract(padded.shape[2:], reach) // strides + 1
        windows = []
        for tap in np.ndindex(taps):
            steps = zip(np.multiply(tap, dilations), outputs, strides, strict=True)
            windows.append((..., *(slice(i, i + (n - 1) * s + 1, s) for i, n, s in steps)))
        convolved = _depthwise if w.shape[1] == 1 else _dense
        total = convolved(padded, w.reshape(geometry["group"] or 1, -1, w.shape[1], len(windows)), windows)
        total = total.reshape(len(x), len(w), *outputs)
        return (total if b is None else total + b.reshape(-1, *ones),)


def _pads(
    geometry: Mapping[str, Any], extents: Sequence[int], strides: Sequence[int], reach: Array
) -> list[int]:
    """The padding before each axis, then that behind each; onnx 1.19's own mistakes some of what is left to it."""
    mode = geometry["auto_pad"] or "NOTSET"
    if mode == "NOTSET" and geometry["pads"]:
        return list(geometry["pads"])
    if mode in ("NOTSET", "VALID"):
        return [0] * (2 * len(extents))
    outputs = -np.floor_divide(np.negative(extents), strides)  # rounded up
    total = np.maximum((outputs - 1) * strides + reach - extents, 0)
    less, more = total // 2, total - total // 2
    return [*less, *more] if mode == "SAME_UPPER" else [*more, *less]


def _dense(maps: Array, weight: Array, windows: Sequence[Any]) -> Array:
    """A product of matrices for each group and a few images: taps are columns, in the order of the weight's."""
    group, _, width, taps = weight.shape
    matrix = weight.reshape(group, -1, width * taps)
    step = max(1, _COLUMNS // (taps * maps[0].size))
    total = []
    for first in range(0, len(maps), step):
        channels = maps[first : first + step].swapaxes(0, 1)
        columns = np.stack([channels[window] for window in windows], 1)
        product = matrix @ columns.reshape(group, width * taps, -1)
        total.append(product.reshape(-1, channels.shape[1], math.prod(columns.shape[3:])).swapaxes(0, 1))
    return np.concatenate(total)


def _depthwise(maps: Array, weight: Array, windows: Sequence[Any]) -> Array:
    """Tap by tap."""
    total: Any = 0.0
    for tap, window in enumerate(windows):
        channels = maps[window].reshape(len(maps), len(weight), 1, -1)
        total = total + weight[..., tap] * channels
    return np.asarray(total)


_COLUMNS = 2**21
"""Elements of columns that are made at once, so that they stay near the processor."""


class ConvTranspose(OpRun):
    """Tap by tap; the reference implementation mistakes the weights of groups (onnx 1.23)."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **geometry: Any) -> tuple[Array]:
        if geometry["output_shape"] or geometry["auto_pad"] not in (None, "NOTSET"):
            raise ValueError("ConvTranspose with auto_pad or output_shape")
        taps, group = w.shape[2:], geometry["group"] or 1
        ones = [1] * len(taps)
        strides, dilations = geometry["strides"] or ones, geometry["dilations"] or ones
        pads = geometry["pads"] or [0, 0] * len(taps)
        appended = geometry["output_padding"] or [0] * len(taps)
        maps = x.reshape(len(x), group, -1, math.prod(x.shape[2:]))
        weight = w.reshape(group, -1, *w.shape[1:])
        whole = (
            np.multiply(strides, np.subtract(x.shape[2:], 1))
            + np.multiply(dilations, np.subtract(taps, 1))
            + 1
        )
        total = np.zeros((len(x), group * w.shape[1], *(whole + appended)))
        for tap in np.ndindex(taps):
            starts = np.multiply(tap, dilations)
            steps = zip(starts, x.shape[2:], strides, strict=True)
            place: Any = (..., *(slice(i, i + (n - 1) * s + 1, s) for i, n, s in steps))
            at: Any = (..., *tap)
            total[place] += (weight[at].swapaxes(1, 2) @ maps).reshape(len(x), -1, *x.shape[2:])
        begins, ends = pads[: len(taps)], pads[len(taps) :]
        inside: Any = (..., *(slice(i, n - j) for i, j, n in zip(begins, ends, total.shape[2:], strict=True)))
        total = total[inside]
        return (total if b is None else total + b.reshape(-1, *ones),)


class AveragePool(AveragePool_19):
    """As a Conv with ones: the reference implementation takes each element by itself, in seconds."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:  # type: ignore[override]
        if given["ceil_mode"]:
            return super()._run(x, **given)  # type: ignore[no-any-return, no-untyped-call]
        kernel = given["kernel_shape"]
        names = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
        geometry = {name: given[name] for name in names if given[name]}
        maps = x.reshape(-1, 1, *x.shape[2:])

        def summed(values: Any) -> Array:
            weight: Any = np.ones((1, 1, *kernel))
            return np.asarray(Conv.eval(values, weight, **geometry))

        sums = summed(maps)
        counts = math.prod(kernel) if given["count_include_pad"] else summed(np.ones_like(maps[:1]))
        return ((sums / counts).reshape(*x.shape[:2], *sums.shape[2:]),)


class ScatterND(OpRun):
    """Without reduction all places at once: the reference implementation takes each by itself."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, updates: Array, reduction: str = "none") -> tuple[Array]:
        if reduction not in (None, "none"):
            raise ValueError(f"ScatterND with {reduction}")
        painted = data.copy()
        painted[tuple(np.moveaxis(indices, -1, 0))] = updates
        return (painted,)


class BatchNormalization(OpRun):
    """Inference, for operators before version 14: there the reference takes the statistics of the batch."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float, **_: Any
    ) -> tuple[Array]:
        if any(self.output[1:]):
            raise ValueError("BatchNormalization in training mode")
        factor = scale / np.sqrt(variance + epsilon)
        shape = (-1, *[1] * (x.ndim - 2))
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape),)


class Resize(ReferenceResize):
    """Axis by axis: before onnx 1.22 the reference implementation takes each element by itself, in minutes."""

    op_domain = ""

    def _run(self, x: Array, *told: Array | None, **given: Any) -> tuple[Array]:  # type: ignore[override]
        # Version 10 has fewer attributes, and of what tells extents only scales.
        coordinates = _COORDINATES.get(given.get("coordinate_transformation_mode", "asymmetric"))
        averages = given["mode"] in ("nearest", "linear") and not given.get("antialias")
        stretches = given.get("keep_aspect_ratio_policy") in (None, "stretch")
        if coordinates is None or not averages or not stretches:
            return super()._run(x, *told, **given)  # type: ignore[no-any-return, arg-type]
        scales, sizes = (*told[-1:], None) if len(told) == 1 else (*told[1:], None)[:2]
        axes = [axis % x.ndim for axis in given.get("axes") or range(x.ndim)]
        nearest = None if given["mode"] == "linear" else given.get("nearest_mode", "floor")
        for number, axis in enumerate(axes):
            extent = x.shape[axis]
            if sizes is None:
                assert scales is not None
                factor = float(scales[number])
                after = math.floor(factor * extent)
            else:
                after = int(sizes[number])
                factor = after / extent
            if factor != 1:
                x = _interpolated(x, axis, coordinates(np.arange(after), extent, factor), nearest)
        return (x,)


class Upsample(OpRun):
    """As Resize was at first."""

    op_domain = ""

    def _run(self, x: Array, scales: Array | None = None, **given: Any) -> tuple[Array]:
        nearest = "floor" if given["mode"] == "nearest" else None
        for axis, factor in enumerate(map(float, given["scales"] if scales is None else scales)):
            x = _interpolated(x, axis, np.arange(math.floor(factor * x.shape[axis])) / factor, nearest)
        return (x,)


def _symmetric(at: Array, extent: int, factor: float) -> Array:
    """The middle of what is drawn stands where the middle was, even where its extent was rounded."""
    return extent / 2 * (1 - len(at) / (factor * extent)) + (at + 0.5) / factor - 0.5


def _corners(at: Array, extent: int, factor: float) -> Array:
    last = factor * extent - 1
    return np.asarray(at * ((extent - 1) / last if last else 0.0))


_COORDINATES: dict[str, Callable[[Array, int, float], Array]] = {
    "half_pixel": lambda at, extent, factor: (at + 0.5) / factor - 0.5,
    "pytorch_half_pixel": lambda at, extent, factor: (at + 0.5) / factor - 0.5 if len(at) > 1 else at * 0.0,
    "asymmetric": lambda at, extent, factor: at / factor,
    "align_corners": _corners,
    "half_pixel_symmetric": _symmetric,
}
"""Where the positions of an output stand in an input, by the input's extent and the factor that it grows by."""

_ROUNDED: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _interpolated(x: Array, axis: int, places: Array, nearest: str | None) -> Array:
    """The values at places along an axis, of the nearest elements or between two; the outer ones are repeated."""
    last = x.shape[axis] - 1

    def taken(at: Array) -> Array:
        return np.asarray(np.take(x, np.clip(at, 0, last).astype(int), axis))

    if nearest:
        return taken(_ROUNDED[nearest](places))
    left = np.floor(places)
    share = (places - left).reshape(-1, *[1] * (x.ndim - 1 - axis))
    return np.asarray(taken(left) * (1 - share) + taken(left + 1) * share)
