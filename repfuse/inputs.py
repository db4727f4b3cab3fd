"""What to show a model: its inputs, and arrays to feed them with.

Two models can agree on white noise and differ on pictures, since a deep network averages noise away. So float
inputs get image-like arrays: blobs of several sizes, each image with a contrast and a colour cast of its own.
Where a shape leaves an extent open, one is chosen, and `Input` says which.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from repfuse.backends import Array, ModelSource, fed_inputs, structure
from repfuse.errors import BadInputError

Dim = int | str | None
"""An extent as a model declares it: a number, a symbol, or nothing."""

# What an open extent becomes, by rank: the first axis, the second, the others. Images of 224 fit any network
# that halves them five times; sequences and volumes are kept small.
_OPEN_EXTENTS = {2: (1, 16), 3: (1, 64, 64), 4: (1, 3, 224, 224), 5: (1, 3, 32, 32, 32)}

_LARGEST_INDEX = 9
"""Integer inputs are mostly indices or tokens: small ones are within any table."""

_LARGEST_NARROW = {"int4": 7, "int2": 1, "uint2": 3}


@dataclass(frozen=True)
class Input:
    """An input of a model, with a shape to feed it with.

    Attributes:
        name: Its name in the graph.
        dtype: The numpy type of its elements (`ml_dtypes` for those that numpy lacks).
        shape: The extents, all known.
        chosen: The axes whose extent neither the model nor the user gave, so that it was chosen here.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chosen: tuple[int, ...] = ()

    def __str__(self) -> str:
        extents = ", ".join(
            f"{extent}?" if axis in self.chosen else str(extent) for axis, extent in enumerate(self.shape)
        )
        guess = " (? = chosen, the model leaves it open)" if self.chosen else ""
        return f"{self.name}: {self.dtype.name}[{extents}]{guess}"


def resolve_inputs(
    model: ModelSource,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Array] | None = None,
) -> list[Input]:
    """Describe every input that must be fed, with a shape for each.

    A symbol has one value wherever it stands; `shapes` and `data` come first, then what is usual there.

    Args:
        model: The model, or its path.
        shapes: Shapes by input name, for inputs whose shape is not wholly known.
        data: Arrays by input name; their shapes count as given.

    Raises:
        BadInputError: A name, rank, extent or dtype in `shapes` or `data` contradicts the model or another,
            an input is no tensor, or its rank is unknown and no shape is given.
    """
    entries = {entry.name: entry for entry in fed_inputs(structure(model).graph)}
    given = _given_shapes(entries, shapes or {}, data or {})
    declared = {name: _declared_shape(entry, given.get(name)) for name, entry in entries.items()}
    symbols: dict[str, int] = {}
    for name, shape in given.items():
        _bind(name, declared[name], shape, symbols)
    guesses = dict(symbols)
    inputs = [
        Input(name, _dtype(entries[name]), given[name])
        if name in given
        else _guessed(name, _dtype(entries[name]), dims, symbols, guesses)
        for name, dims in declared.items()
    ]
    for entry in inputs:
        if data and entry.name in data:
            _typed(entry, data[entry.name])
    return inputs


def make_inputs(
    model: ModelSource,
    *,
    count: int,
    seed: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Array] | None = None,
) -> list[dict[str, Array]]:
    """Make `count` feeds, each a dict from input name to array; one seed gives the same feeds everywhere.

    Floats (and uint8 of rank 3 and more) are image-like, other integers lie in 0..9, booleans are tossed.
    Arrays in `data` are fed as they are in the first feed. The others keep them too, but for floats, which
    are drawn anew with the same mean and deviation: otherwise all feeds would be one.

    Raises:
        BadInputError: As for `resolve_inputs`; or there is no way to draw an input's type (strings, complex
            numbers), so it must be in `data`.
    """
    inputs = resolve_inputs(model, shapes=shapes, data=data)
    return [
        {entry.name: _feed(entry, data or {}, number, seed) for entry in inputs} for number in range(count)
    ]


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read a shape such as `name:1,3,224,224`; the name may hold colons itself.

    Raises:
        BadInputError: The text is not of that form, or an extent is not a positive number.
    """
    name, colon, extents = text.rpartition(":")
    numbers = [extent.strip() for extent in extents.split(",")]
    if not (colon and name and all(number.isdecimal() and int(number) > 0 for number in numbers)):
        raise BadInputError(f"input shape '{text}': write it as name:1,3,224,224, with positive extents")
    return name, tuple(map(int, numbers))


def load_input_data(path: str | os.PathLike[str], model: ModelSource) -> dict[str, Array]:
    """Read arrays to feed: an .npz whose keys are input names, or an .npy for a model's only input.

    Raises:
        BadInputError: The file cannot be read or holds pickled objects, or it is an .npy and the model has
            several inputs.
    """
    try:
        with Path(path).open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                return dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        )
        raise BadInputError(f"{path}: cannot be read as .npz or .npy: {reason}") from error
    names = [entry.name for entry in fed_inputs(structure(model).graph)]
    if len(names) != 1:
        raise BadInputError(
            f"{path}: the model has the inputs {_listed(names)}; save an .npz with one array for each name"
        )
    return {names[0]: loaded}


def _given_shapes(
    entries: Mapping[str, object], shapes: Mapping[str, Sequence[int]], data: Mapping[str, Array]
) -> dict[str, tuple[int, ...]]:
    """The shapes that the user gave, in numbers or by an array."""
    given: dict[str, tuple[int, ...]] = {}
    for name, shape in (*shapes.items(), *((name, array.shape) for name, array in data.items())):
        if name not in entries:
            raise BadInputError(f"the model has no input '{name}' to feed; it has {_listed(entries)}")
        if given.setdefault(name, tuple(shape)) != tuple(shape):
            raise BadInputError(
                f"input '{name}': its data are of shape {_shown(shape)}, not the given {_shown(given[name])}"
            )
    return given


def _declared_shape(entry: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> tuple[Dim, ...]:
    """What the model says of an input's shape; only its rank may come from the user."""
    if not entry.type.HasField("tensor_type"):
        raise BadInputError(
            f"input '{entry.name}' is no tensor (a sequence, map or optional), so it cannot be fed"
        )
    kind = entry.type.tensor_type
    if kind.HasField("shape"):
        return tuple(_dim(dim) for dim in kind.shape.dim)
    if given is None:
        raise BadInputError(
            f"input '{entry.name}': the model does not say how many axes it has; give its shape, "
            f"as in --input-shape {entry.name}:1,3,224,224"
        )
    return (None,) * len(given)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    # Some exporters write -1 for an extent that they do not know.
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return dim.dim_value
    return dim.dim_param.strip("?") or None  # "?" is no symbol: exporters call all they do not know so


def _bind(name: str, declared: Sequence[Dim], given: Sequence[int], symbols: dict[str, int]) -> None:
    """Check a given shape against the declared one, and remember what it makes of the symbols."""
    if len(declared) != len(given):
        raise BadInputError(f"input '{name}': expected the shape {_shown(declared)}, not {_shown(given)}")
    for dim, extent in zip(declared, given, strict=True):
        expected = symbols.setdefault(dim, extent) if isinstance(dim, str) else dim
        if expected not in (None, extent):
            reason = f" with {dim} = {expected}" if isinstance(dim, str) else ""
            raise BadInputError(
                f"input '{name}': expected the shape {_shown(declared)}{reason}, not {_shown(given)}"
            )


def _guessed(
    name: str,
    dtype: np.dtype[Any],
    declared: Sequence[Dim],
    symbols: Mapping[str, int],
    guesses: dict[str, int],
) -> Input:
    """Fill in the extents that are open; what is guessed for a symbol holds for later inputs too."""
    usual = _OPEN_EXTENTS.get(len(declared), (1,) * len(declared))
    shape = tuple(
        dim if isinstance(dim, int) else guesses.setdefault(dim, guess) if dim else guess
        for dim, guess in zip(declared, usual, strict=True)
    )
    chosen = (axis for axis, dim in enumerate(declared) if not isinstance(dim, int) and dim not in symbols)
    return Input(name, dtype, shape, tuple(chosen))


def _dtype(entry: onnx.ValueInfoProto) -> np.dtype[Any]:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
    except KeyError as error:
        raise BadInputError(f"input '{entry.name}' has no element type; export the model again") from error


def _typed(entry: Input, array: Array) -> Array:
    """The user's array, if it has the input's type; numpy saves a type that it lacks as plain bytes."""
    if array.dtype == entry.dtype or (entry.dtype == object and array.dtype.kind in "OU"):
        return array
    if array.dtype.kind == "V" and entry.dtype.kind == "V" and array.dtype.itemsize == entry.dtype.itemsize:
        return array.view(entry.dtype)
    raise BadInputError(f"input '{entry.name}': expected {entry.dtype.name} data, not {array.dtype.name}")


def _feed(entry: Input, data: Mapping[str, Array], number: int, seed: int) -> Array:
    """An array for one input of the feed of that number."""
    own = _typed(entry, data[entry.name]) if entry.name in data else None
    if own is not None and (number == 0 or "float" not in entry.dtype.name):
        return own
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
    if "float" in kind:
        return _images(entry.shape, rng).astype(entry.dtype)
    if kind == "uint8" and len(entry.shape) >= 3:
        return np.clip(128 + 50 * _images(entry.shape, rng), 0, 255).astype(entry.dtype)
    if "int" in kind:
        largest = _LARGEST_NARROW.get(kind, _LARGEST_INDEX)
        return rng.integers(0, largest, entry.shape, endpoint=True).astype(entry.dtype)
    if kind == "bool":
        return rng.integers(0, 2, entry.shape).astype(entry.dtype)
    raise BadInputError(f"input '{entry.name}': {kind} values cannot be drawn; give them with --input-data")


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


def _shown(shape: Sequence[Dim]) -> str:
    return f"({', '.join('?' if dim is None else str(dim) for dim in shape)})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
