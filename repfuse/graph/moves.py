"""Operators that move elements without changing them, in numpy.

Exporters spell a border out as Pad, Slice, Transpose, ScatterND ..., and where each piece goes as Shape, Gather,
Range, Expand .... Two things are asked of such nodes: the values of constant ones, thousands in one model (see
`graph.constants`), and where each element of a tensor comes from (see `search.frames`). Both are answered by
the functions here, which read operators as https://onnx.ai/onnx/operators describes them, from opset 7 on. ONNX's
reference implementation does the same, in a hundred times the time for each node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from repfuse.errors import BadInputError
from repfuse.graph import arithmetic
from repfuse.graph.arithmetic import (
    LARGEST,
    Array,
    Attributes,
    Function,
    Inputs,
    UnknownValueError,
    bounded,
    integers,
    needed,
)
from repfuse.model import storage
from repfuse.model.nodes import Node

DATA: Mapping[str, tuple[int, ...]] = {
    "Concat": (),
    "Expand": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Pad": (0, 2),
    "Reshape": (0,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Slice": (0,),
    "Squeeze": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
"""Operators that move elements: each of their output is one of these operands', or zero. Of Concat, all are."""


def data_slots(node: Node | NodeProto) -> tuple[int, ...]:
    """The operands whose elements a node moves; the others say where to. None for any other operator."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in DATA:
        return ()
    return DATA[node.op_type] or tuple(range(len(node.input)))


def evaluates(node: Node) -> bool:
    """Whether `evaluate` knows a node's operator."""
    return node.op_type in KNOWN and not node.domain


def evaluate(node: Node, inputs: Inputs) -> Array:
    """What a node computes; None stands for an operand that is left out.

    Raises:
        UnknownValueError: It cannot be told, or is too large.
    """
    try:
        with np.errstate(all="ignore"):  # a Where behind it may leave out what is not finite
            return np.asarray(_FUNCTIONS[node.op_type](inputs, node.attributes))
    except (BadInputError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UnknownValueError(f"{node.op_type} cannot be evaluated: {error}") from error


def _shape(inputs: Inputs, attributes: Attributes) -> Array:
    return np.array(needed(inputs, 0).shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _reshape(inputs: Inputs, attributes: Attributes) -> Array:
    data, wanted = needed(inputs, 0), integers(inputs, 1) or []
    if not attributes.get("allowzero"):
        wanted = [data.shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
    return data.reshape(wanted)


def _flatten(inputs: Inputs, attributes: Attributes) -> Array:
    data = needed(inputs, 0)
    axis = attributes.get("axis", 1)
    # A negative one counts from the end, where zero is the beginning.
    rows = math.prod(data.shape[: axis if axis >= 0 else data.ndim + axis])
    return data.reshape(rows, data.size // rows if rows else -1)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Array:
    axes = integers(inputs, 1, attributes.get("axes"))
    return np.squeeze(needed(inputs, 0), None if axes is None else tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Array:
    axes = integers(inputs, 1, attributes.get("axes"))
    return np.expand_dims(needed(inputs, 0), tuple(axes or ()))


def _expand(inputs: Inputs, _: Attributes) -> Array:
    data = needed(inputs, 0)
    return np.broadcast_to(data, bounded(np.broadcast_shapes(data.shape, integers(inputs, 1) or ())))


def _concat(inputs: Inputs, attributes: Attributes) -> Array:
    parts = [needed(inputs, slot) for slot in range(len(inputs))]
    bounded([sum(part.size for part in parts)])
    return np.concatenate(parts, attributes["axis"])


def _gather(inputs: Inputs, attributes: Attributes) -> Array:
    data, indices, axis = needed(inputs, 0), needed(inputs, 1), attributes.get("axis", 0)
    bounded([data.size // max(data.shape[axis], 1), indices.size])
    return np.take(data, indices, axis)


def _slice(inputs: Inputs, attributes: Attributes) -> Array:
    data = needed(inputs, 0)
    starts, ends = (integers(inputs, i, attributes.get(key)) or [] for i, key in ((1, "starts"), (2, "ends")))
    axes = integers(inputs, 3, attributes.get("axes")) or list(range(len(starts)))
    steps = integers(inputs, 4) or [1] * len(starts)
    places = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = slice(start, end, step)
    return data[tuple(places)]


def _pad(inputs: Inputs, attributes: Attributes) -> Array:
    data = needed(inputs, 0)
    if attributes.get("mode", b"constant") != b"constant":
        raise UnknownValueError("pads with what it pads")
    pads = integers(inputs, 1, attributes.get("pads")) or []
    axes = integers(inputs, 3) or list(range(len(pads) // 2))
    value = inputs[2] if len(inputs) > 2 else None
    fill = attributes.get("value", 0) if value is None else value.reshape(-1)[0]
    before, after = np.zeros(data.ndim, int), np.zeros(data.ndim, int)
    before[axes], after[axes] = pads[: len(axes)], pads[len(axes) :]
    kept = data[
        tuple(slice(max(0, -b), n - max(0, -e)) for b, e, n in zip(before, after, data.shape, strict=True))
    ]
    grown = np.full(bounded([int(n) for n in kept.shape + before.clip(0) + after.clip(0)]), fill, data.dtype)
    grown[tuple(slice(max(0, b), max(0, b) + n) for b, n in zip(before, kept.shape, strict=True))] = kept
    return grown


def _scatter_nd(inputs: Inputs, attributes: Attributes) -> Array:
    data, indices, updates = (needed(inputs, slot) for slot in range(3))
    _without_reduction(attributes)
    painted: Array = data.copy()
    painted[tuple(np.moveaxis(indices, -1, 0))] = updates
    return painted


def _scatter_elements(inputs: Inputs, attributes: Attributes) -> Array:
    data, indices, updates = (needed(inputs, slot) for slot in range(3))
    _without_reduction(attributes)
    places: list[Any] = list(np.indices(indices.shape, sparse=True))
    places[attributes.get("axis", 0)] = indices
    painted: Array = data.copy()
    painted[tuple(places)] = updates
    return painted


def _without_reduction(attributes: Attributes) -> None:
    if attributes.get("reduction", b"none") != b"none":
        raise UnknownValueError("adds to what was there")


def _range(inputs: Inputs, _: Attributes) -> Array:
    given = [needed(inputs, slot) for slot in range(3)]
    if not all(each.dtype.kind in "iu" or float(each.item()).is_integer() for each in given):
        raise UnknownValueError("a range of numbers that are not whole")
    start, limit, step = (int(each.item()) for each in given)
    bounded([max(0, math.ceil((limit - start) / step)) if step else LARGEST + 1])
    whole = np.arange(start, limit, step)
    steps = whole.astype(given[0].dtype)
    if (steps != whole).any():
        raise UnknownValueError("a range of numbers that its type has no digits for")
    return steps


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Array:
    value = storage.values(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.full(bounded(integers(inputs, 0) or ()), value.reshape(-1)[0], value.dtype)


def _cast(inputs: Inputs, attributes: Attributes) -> Array:
    return needed(inputs, 0).astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


_FUNCTIONS: Mapping[str, Function] = {
    **arithmetic.FUNCTIONS,
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda inputs, _: needed(inputs, 0),
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": lambda inputs, attributes: np.transpose(needed(inputs, 0), attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
}

KNOWN = frozenset(_FUNCTIONS)
"""Operators that `evaluate` knows."""
