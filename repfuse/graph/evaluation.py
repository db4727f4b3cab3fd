"""Evaluating constant expressions with ONNX's own reference implementation, within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_constant_of_shape import ConstantOfShape
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19
from onnx.reference.ops.op_expand import Expand
from onnx.reference.ops.op_range import Range
from onnx.reference.ops.op_tile import Tile

_LARGEST = 2**28
"""Elements: nothing that is larger is made."""

_SHAPE = 256
"""Elements: a smaller constant may be a shape."""


class DequantizeLinear(DequantizeLinear_19):
    """Versions 10 and 13, which the reference implementation lacks: version 19 only has more types."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, x: Any, x_scale: Any, x_zero_point: Any = None, axis: int = 1, **_: Any
    ) -> Any:
        return super()._run(x, x_scale, x_zero_point, axis)  # the rest are defaults of later versions


def lacking(version: int) -> list[type[OpRun]]:
    """Operators that the reference implementation lacks for an operator set below 19."""
    return [DequantizeLinear] if version < 19 else []


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.generic]:
    """What a model computes: its only output.

    Raises:
        MemoryError: A tensor on the way is too large.
        Exception: Whatever the operators' Python code raises.
    """
    _refuse_growth(model, feeds)
    version = next((entry.version for entry in model.opset_import), 0)
    operators = _LIMITED + lacking(version)
    with np.errstate(all="ignore"):  # a Where behind it may leave out what is not finite
        outputs: list[Any] = list(ReferenceEvaluator(model, new_ops=operators).run(None, dict(feeds)))
    value = np.asarray(outputs[0])
    _refuse_size(value.size)
    return value


def _refuse_growth(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> None:
    """Raise MemoryError where a tensor on the way is known to become too large, before it does."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    small = {name: value for name, value in feeds.items() if value.size <= _SHAPE}
    known.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in small.items())
    try:
        inferred = onnx.shape_inference.infer_shapes(known)
    except onnx.shape_inference.InferenceError:
        return  # it cannot be told; what cannot be computed either is found out soon
    for entry in inferred.graph.value_info:
        extents = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        _refuse_size(math.prod(extents))


def _refuse_size(elements: Any) -> None:
    if elements > _LARGEST:
        raise MemoryError(f"a constant of {elements} elements")


def _limited(operator: Any, elements: Callable[..., Any]) -> type[OpRun]:
    """A reference implementation that refuses to make more than `elements` of its inputs."""

    def run(self: Any, *inputs: Any, **given: Any) -> Any:
        _refuse_size(elements(*inputs))
        return operator._run(self, *inputs, **given)

    return type(operator.__name__, (operator,), {"op_domain": "", "_run": run})


_LIMITED = [
    _limited(ConstantOfShape, lambda shape: math.prod(map(int, shape))),
    _limited(Expand, lambda data, shape: math.prod(map(int, shape))),
    _limited(Range, lambda start, end, step: abs((float(end) - float(start)) / float(step)) if step else 0),
    _limited(Tile, lambda data, repeats: data.size * math.prod(map(int, repeats))),
]
"""Operators whose outputs are as large as numbers in a file say."""
