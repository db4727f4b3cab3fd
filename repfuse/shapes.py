"""The shapes of a model's tensors, inferred on a copy of its structure that holds no weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
from onnx import helper

Shape = tuple[int | str | None, ...]
"""Extents: a number, the name of a symbolic dimension, or None where nothing is known."""

_SMALL = 256
"""Elements: a smaller constant may be a shape, axes or pads, which shape inference reads."""


def infer(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of the main graph's tensors by name, where ONNX's shape inference finds them."""
    try:
        graph = onnx.shape_inference.infer_shapes(structure(model), data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, MemoryError):
        return {}  # what the model declares contradicts itself: nothing is known for sure
    entries = [*graph.input, *graph.value_info, *graph.output]
    return {entry.name: shape for entry in entries if (shape := of_value(entry)) is not None}


def of_value(entry: onnx.ValueInfoProto) -> Shape | None:
    """The shape that a value's declared type gives, None for one of unknown rank or for no tensor."""
    if not entry.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_param or None if _is_open(dim) else dim.dim_value for dim in entry.type.tensor_type.shape.dim
    )


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether an extent is not known: some exporters write -1 for that."""
    return not dim.HasField("dim_value") or dim.dim_value < 1


def structure(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which each large constant is an input of its shape."""
    copy = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    source, graph = model.graph, copy.graph
    graph.name = source.name
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    for entry in (*graph.input, *graph.output, *graph.value_info):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and _is_open(dim):
                dim.ClearField("dim_value")  # shape inference computes with what stands there
    known = {entry.name for entry in source.input}
    for tensor in source.initializer:
        _add_constant(graph, tensor, tensor.name, known)
    for node in source.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None and _large(value.dims):
            _add_constant(graph, value, node.output[0], known)
        else:
            graph.node.append(node)
    return copy


def _add_constant(graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str, known: set[str]) -> None:
    if not _large(tensor.dims):
        graph.initializer.append(tensor)
        graph.initializer[-1].name = name
    elif name not in known:
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))


def _large(dims: Iterable[int]) -> bool:
    return math.prod(dims) > _SMALL
