"""Operators that compute with the elements of constants, in numpy.

Exporters leave such arithmetic behind where a network computes its weights: what normalizes them, what DBB, OREPA
and others make of several. The functions read operators as https://onnx.ai/onnx/operators describes them, from
opset 7 on. ONNX's reference implementation does the same (see `graph.evaluation`), but importing that takes as long
as fusing a small model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

Array = NDArray[Any]
Inputs = Sequence["Array | None"]
Attributes = Mapping[str, Any]
Function = Callable[[Inputs, Attributes], Array]
"""Computes what a node does of its operands, None for one that is left out, and its attributes."""

LARGEST = 2**24
"""Elements: no tensor that is larger is made, unless an operand is."""


class UnknownValueError(Exception):
    """What a node computes cannot be told here, or is too large."""


def needed(inputs: Inputs, slot: int) -> Array:
    """An operand that must be there; raises UnknownValueError where it is not."""
    given = inputs[slot]
    if given is None:
        raise UnknownValueError("an operand is missing")
    return given


def integers(inputs: Inputs, slot: int, default: Any = None) -> list[int] | None:
    """The integers at an input, or those of an attribute where the operator's version has one instead."""
    given = inputs[slot] if len(inputs) > slot else None
    found = default if given is None else given
    return None if found is None else [int(value) for value in np.asarray(found).reshape(-1)]


def bounded(shape: Sequence[int], operands: Sequence[Array] = ()) -> tuple[int, ...]:
    """A shape; raises UnknownValueError where it is too large, beside these operands."""
    if math.prod(shape) > max(LARGEST, *(each.size for each in operands), 0):
        raise UnknownValueError("too many elements")
    return tuple(shape)


def _elementwise(function: Callable[..., Any], operands: int = 2) -> Function:
    def apply(inputs: Inputs, _: Attributes) -> Array:
        given = [needed(inputs, slot) for slot in range(operands)]
        if math.prod(each.size for each in given) > LARGEST:  # most are a few numbers
            bounded(np.broadcast_shapes(*(each.shape for each in given)), given)
        return np.asarray(function(*given))

    return apply


def _reduction(function: Callable[..., Any]) -> Function:
    def apply(inputs: Inputs, attributes: Attributes) -> Array:
        data, axes = needed(inputs, 0), integers(inputs, 1, attributes.get("axes"))
        if not axes and attributes.get("noop_with_empty_axes"):
            raise UnknownValueError("reduces nothing")
        found = function(
            data, axis=tuple(axes) if axes else None, keepdims=bool(attributes.get("keepdims", 1))
        )
        return np.asarray(found, data.dtype)

    return apply


def _quotient(data: Array, divisor: Array) -> Any:
    if data.dtype.kind not in "iu":
        return np.divide(data, divisor)
    if not (np.all(data >= 0) and np.all(divisor > 0)):
        raise UnknownValueError("rounds a negative quotient, or divides by zero")
    return data // divisor


def _remainder(inputs: Inputs, attributes: Attributes) -> Array:
    fmod = attributes.get("fmod")
    data, divisor = needed(inputs, 0), needed(inputs, 1)
    if data.dtype.kind in "iu" and not np.all(divisor):
        raise UnknownValueError("divides by zero")
    return _elementwise(np.fmod if fmod else np.mod)((data, divisor), attributes)


def _norm(data: Array, **how: Any) -> Any:
    return np.sqrt(np.sum(np.square(data), **how))


def _sigmoid(data: Array) -> Any:
    small = np.exp(-np.abs(data))  # of what is not positive: nothing overflows
    return (np.where(data < 0, small, 1) / (1 + small)).astype(data.dtype)


def _einsum(inputs: Inputs, attributes: Attributes) -> Array:
    equation = attributes["equation"].decode().replace(" ", "")
    operands = [needed(inputs, slot) for slot in range(len(inputs))]
    terms, arrow, result = equation.partition("->")
    if not arrow or "." in equation:
        raise UnknownValueError("an equation that leaves something open")
    extents = {
        label: extent
        for term, operand in zip(terms.split(","), operands, strict=True)
        for label, extent in zip(term, operand.shape, strict=True)
    }
    bounded([extents[label] for label in result], operands)
    return np.asarray(np.einsum(equation, *operands, optimize=True))


def _eye_like(inputs: Inputs, attributes: Attributes) -> Array:
    like = needed(inputs, 0)
    rows, columns = like.shape
    dtype = helper.tensor_dtype_to_np_dtype(attributes["dtype"]) if "dtype" in attributes else like.dtype
    return np.eye(rows, columns, attributes.get("k", 0), dtype)


FUNCTIONS: Mapping[str, Function] = {
    "Add": _elementwise(np.add),
    "Div": _elementwise(_quotient),
    "Einsum": _einsum,
    "Equal": _elementwise(np.equal),
    "EyeLike": _eye_like,
    "Mod": _remainder,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative, 1),
    "Reciprocal": _elementwise(np.reciprocal, 1),
    "ReduceL2": _reduction(_norm),
    "ReduceSum": _reduction(np.sum),
    "Sigmoid": _elementwise(_sigmoid, 1),
    "Sqrt": _elementwise(np.sqrt, 1),
    "Sub": _elementwise(np.subtract),
    "Where": _elementwise(np.where, 3),
}
"""By operator."""
