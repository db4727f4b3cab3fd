"""What a model computes, in float64: ONNX's reference evaluator on a copy of the model whose floats are widened."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def evaluate(model: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a model in float64.

    Args:
        model: Is not changed.
        feeds: Inputs by name; floats of any width.

    Returns:
        Its outputs, in their order.
    """
    wide = {name: _wide_array(value) for name, value in feeds.items()}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        outputs: list[Any] = list(ReferenceEvaluator(widened(model)).run(None, wide))
    return [np.asarray(output) for output in outputs]


def widened(model: ModelProto) -> ModelProto:
    """A copy of a model in which every float, of whatever width, is a float64."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _widen_graph(copy.graph)
    for function in copy.functions:
        _widen_nodes(function.node)
        _widen_types(function.value_info)
    return copy


def _wide_array(value: Array) -> Array:
    # bfloat16 comes from another package than numpy, so it is of no kind that numpy knows.
    return value.astype(np.float64) if value.dtype.kind in "fV" else value


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    _widen_types((*graph.input, *graph.output, *graph.value_info))
    _widen_nodes(graph.node)


def _widen_types(entries: Iterable[ValueInfoProto]) -> None:
    for entry in entries:
        if entry.type.tensor_type.elem_type in FLOATS:
            entry.type.tensor_type.elem_type = TensorProto.DOUBLE


def _widen_nodes(nodes: Iterable[NodeProto]) -> None:
    for node, attribute in _attributes(nodes):
        if attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif attribute.type == AttributeProto.GRAPH:
            _widen_graph(attribute.g)
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = np.asarray(helper.get_attribute_value(attribute), np.float64)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))


def _attributes(nodes: Iterable[NodeProto]) -> Iterator[tuple[NodeProto, AttributeProto]]:
    return ((node, attribute) for node in nodes for attribute in node.attribute)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        value = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
