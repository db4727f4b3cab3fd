"""Arrays to feed a model with.

Two models can agree on white noise and differ on pictures, since a deep network averages noise away. So float
inputs get image-like arrays: blobs of several sizes, each image with a contrast and a colour cast of its own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from repfuse.errors import BadInputError
from repfuse.runtimes.backends import Array, ModelSource
from repfuse.runtimes.inputs import Input, Range, resolve_inputs, typed

_LARGEST = 2**28
"""Elements: a larger input is not drawn, since it is a mistake, or to be had from the user."""

_LARGEST_INDEX = 9
"""Integer inputs are mostly indices or tokens: small ones are within nearly any table."""

_LARGEST_NARROW = {"int4": 7, "int2": 1, "uint2": 3}


def make_inputs(
    model: ModelSource,
    *,
    count: int,
    seed: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Array] | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> list[dict[str, Array]]:
    """Make `count` feeds, each a dict from input name to array; one seed gives the same feeds everywhere.

    Floats (and uint8 of rank 3 and more) are image-like, stretched to the range where there is one; other
    integers lie in the range, or in 0..9; booleans are tossed.
    Arrays in `data` are fed as they are in the first feed. The others keep them too, but for floats, which
    are drawn anew with the same mean and deviation: otherwise all feeds would be one.

    Raises:
        BadInputError: As for `resolve_inputs`; or there is no way to draw an input's type (strings, complex
            numbers), so it must be in `data`.
    """
    inputs = resolve_inputs(model, shapes=shapes, data=data, ranges=ranges)
    return [
        {entry.name: _feed(entry, data or {}, number, seed) for entry in inputs} for number in range(count)
    ]


def _feed(entry: Input, data: Mapping[str, Array], number: int, seed: int) -> Array:
    """An array for one input of the feed of that number."""
    own = typed(entry, data[entry.name]) if entry.name in data else None
    if own is not None and (number == 0 or "float" not in entry.dtype.name):
        return own
    if math.prod(entry.shape) > _LARGEST:
        raise BadInputError(
            f"input '{entry.name}': {list(entry.shape)} is too large to be drawn; give a smaller one with "
            "--input-shape, if the model allows it, or your own with --input-data"
        )
    drawn = _draw(entry, np.random.default_rng([seed, number, zlib.crc32(entry.name.encode())]))
    return drawn if own is None else _alike(own, drawn)


def _alike(own: Array, drawn: Array) -> Array:
    """Give what was drawn the mean and deviation of the user's array."""
    values = own.astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return own
    alike: Array = (drawn.astype(np.float64) * values.std() + values.mean()).astype(own.dtype)
    return alike


def _draw(entry: Input, rng: np.random.Generator) -> Array:
    """Random values of an input's type; those that numpy lacks can only be told by their names."""
    kind = entry.dtype.name
    if "float" in kind or (kind == "uint8" and len(entry.shape) >= 3):
        images = _images(entry.shape, rng)
        if entry.range:
            images = _within(images, *entry.range)
        elif kind == "uint8":
            images = np.clip(128 + 50 * images, 0, 255)
        return images.astype(entry.dtype)
    if "int" in kind or kind == "bool":
        low, high = entry.range or (0, 1 if kind == "bool" else _LARGEST_NARROW.get(kind, _LARGEST_INDEX))
        return rng.integers(int(low), int(high), entry.shape, endpoint=True).astype(entry.dtype)
    raise BadInputError(f"input '{entry.name}': {kind} values cannot be drawn; give them with --input-data")


def _within(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Stretch values so that the least is `low` and the largest `high`."""
    least, largest = values.min(initial=np.inf), values.max(initial=-np.inf)
    if not largest > least:
        return np.full_like(values, (low + high) / 2)
    stretched: npt.NDArray[np.float64] = low + (values - least) / (largest - least) * (high - low)
    return stretched.clip(low, high)


def _images(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Blobs of several sizes and noise; each image has its own contrast, each channel its own brightness.

    The shape is `(images, channels, *extents)`; with fewer axes it is `(images, extent)`, one channel.
    """
    few = (1, 1, *shape)[-2:]
    images, channels, *extents = shape if len(shape) > 2 else (few[0], 1, few[1])
    image = (images, *[1] * (len(extents) + 1))
    channel = (images, channels, *[1] * len(extents))
    out = rng.normal(0, 0.3, (images, channels, *extents))
    for cells in (2, 4, 8, 16, 32):
        blobs = rng.standard_normal((images, channels, *[min(cells, extent) for extent in extents]))
        for axis, extent in enumerate(extents, start=2):
            blobs = _stretched(blobs, axis, extent)
        out += blobs * rng.uniform(0.2, 0.8, image)
    out = out * rng.uniform(0.5, 1.5, image) + rng.normal(0, 0.5, channel)
    return out.reshape(shape)


def _stretched(array: npt.NDArray[np.float64], axis: int, extent: int) -> npt.NDArray[np.float64]:
    """Interpolate along one axis to a larger extent."""
    places = np.linspace(0, array.shape[axis] - 1, extent)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    part = (places - low).reshape([-1 if other == axis else 1 for other in range(array.ndim)])
    between: npt.NDArray[np.float64] = array.take(low, axis) * (1 - part) + array.take(high, axis) * part
    return between
