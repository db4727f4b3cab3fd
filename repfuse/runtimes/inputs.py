"""What a model must be fed: the name, type, shape and range of each input, by the model and by the user's word.

Where a shape leaves an extent open, one is chosen, and `Input` says which. Values are drawn by `runtimes.feeds`.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from repfuse.errors import BadInputError
from repfuse.model.shapes import contradicts
from repfuse.runtimes.backends import Array, ModelSource, fed_inputs, structure
from repfuse.runtimes.indices import index_limits

Dim = int | str | None
"""An extent as a model declares it: a number, a symbol, or nothing."""

Range = tuple[float, float]
"""The least and the largest value of an input."""

# What an open extent becomes, by rank: the first axis, the second, the others. Images of 224 fit any network
# that halves them five times; sequences and volumes are kept small.
_OPEN_EXTENTS = {2: (1, 16), 3: (1, 64, 64), 4: (1, 3, 224, 224), 5: (1, 3, 32, 32, 32)}

_OTHERWISE = {224: 256}
"""What to try where those do not fit: some networks halve images more often."""

_MOST_AXES = 64
"""Of numpy's arrays."""


@dataclass(frozen=True)
class Input:
    """An input of a model, with a shape to feed it with.

    Attributes:
        name: Its name in the graph.
        dtype: The numpy type of its elements (`ml_dtypes` for those that numpy lacks).
        shape: The extents, all known.
        chosen: The axes whose extent neither the model nor the user gave, so that it was chosen here.
        range: The least and the largest value that may be drawn, by the user's word or, of an index, by what
            it selects from; None for any.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chosen: tuple[int, ...] = ()
    range: Range | None = None

    @property
    def otherwise(self) -> tuple[int, ...]:
        """A shape to try where a network cannot do with what was chosen."""
        return tuple(
            _OTHERWISE.get(extent, extent) if axis in self.chosen else extent
            for axis, extent in enumerate(self.shape)
        )

    def __str__(self) -> str:
        extents = ", ".join(
            f"{extent}?" if axis in self.chosen else str(extent) for axis, extent in enumerate(self.shape)
        )
        limits = f" in {self.range[0]:g} to {self.range[1]:g}" if self.range else ""
        guess = " (? = chosen, the model leaves it open)" if self.chosen else ""
        return f"{self.name}: {self.dtype.name}[{extents}]{limits}{guess}"


def resolve_inputs(
    model: ModelSource,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Array] | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> list[Input]:
    """Describe every input that must be fed, with a shape for each.

    A symbol has one value wherever it stands; `shapes` and `data` come first, then what is usual there.

    Args:
        model: The model, or its path.
        shapes: Shapes by input name, for inputs whose shape is not wholly known.
        data: Arrays by input name; their shapes count as given.
        ranges: The least and the largest value by input name.

    Raises:
        BadInputError: A name, rank, extent or dtype in `shapes` or `data` contradicts the model or another,
            a range is of no input or its type does not hold it, an input is no tensor, has more axes than numpy
            knows, or its rank is unknown and no shape is given.
    """
    proto = structure(model)
    entries = {entry.name: entry for entry in fed_inputs(proto.graph)}
    for name, declaration in entries.items():
        if len(declaration.type.tensor_type.shape.dim) > _MOST_AXES:
            raise BadInputError(f"input '{name}' has more than {_MOST_AXES} axes, so it cannot be fed")
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
            typed(entry, data[entry.name])
    for name in ranges or {}:
        _known(name, entries)
    limits = index_limits(proto)
    return [_ranged(entry, ranges or {}, limits) for entry in _fitting(proto, inputs)]


def _fitting(proto: onnx.ModelProto, inputs: list[Input]) -> list[Input]:
    """Inputs of other extents, where the network contradicts those that were chosen and not these."""
    others = [replace(entry, shape=entry.otherwise) for entry in inputs]
    if others == inputs:
        return inputs
    chosen, instead = ({entry.name: entry.shape for entry in some} for some in (inputs, others))
    return others if contradicts(proto, chosen) and not contradicts(proto, instead) else inputs


def _ranged(entry: Input, ranges: Mapping[str, Range], limits: Mapping[str, int]) -> Input:
    """An input with the range that the user gave, or that its use as an index leaves."""
    if entry.name in ranges:
        low, high = ranges[entry.name]
        if not (_holds(entry.dtype, low) and _holds(entry.dtype, high)):
            raise BadInputError(
                f"input '{entry.name}': {entry.dtype.name} does not hold the range {low:g} to {high:g}"
            )
        return replace(entry, range=(low, high))
    if entry.name in limits:
        return replace(entry, range=(0, max(0, limits[entry.name] - 1)))
    return entry


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "b":
        return value in (0, 1)
    if "float" in dtype.name:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float64(value).astype(dtype).astype(np.float64)))
    if "int" not in dtype.name:
        return False
    import ml_dtypes  # noqa: PLC0415  (comes with onnx; it knows numpy's types as well)

    limits: Any = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return bool(value == int(value) and limits.min <= value <= limits.max)


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


def parse_input_range(text: str) -> tuple[str, Range]:
    """Read a range such as `name:0,255`; the name may hold colons itself.

    Raises:
        BadInputError: The text is not of that form, or a bound is not finite, or the first is the larger one.
    """
    name, _, bounds = text.rpartition(":")
    try:
        low, high = (float(bound) for bound in bounds.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (name and math.isfinite(low) and math.isfinite(high) and low <= high):
        raise BadInputError(f"input range '{text}': write it as name:0,255, the least value first")
    return name, (low, high)


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
        _known(name, entries)
        if given.setdefault(name, tuple(shape)) != tuple(shape):
            raise BadInputError(
                f"input '{name}': its data are of shape {_shown(shape)}, not the given {_shown(given[name])}"
            )
    return given


def _known(name: str, entries: Mapping[str, object]) -> None:
    if name not in entries:
        raise BadInputError(f"the model has no input '{name}' to feed; it has {_listed(entries)}")


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


def typed(entry: Input, array: Array) -> Array:
    """The user's array, if it has the input's type; numpy saves a type that it lacks as plain bytes.

    Raises:
        BadInputError: It has another type.
    """
    if array.dtype == entry.dtype or (entry.dtype == object and array.dtype.kind in "OU"):
        return array
    if array.dtype.kind == "V" and entry.dtype.kind == "V" and array.dtype.itemsize == entry.dtype.itemsize:
        return array.view(entry.dtype)
    raise BadInputError(f"input '{entry.name}': expected {entry.dtype.name} data, not {array.dtype.name}")


def _shown(shape: Sequence[Dim]) -> str:
    return f"({', '.join('?' if dim is None else str(dim) for dim in shape)})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
