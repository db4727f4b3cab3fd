"""What a model consists of: nodes, parameters, multiply-adds, bytes; told from dims, never from values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from repfuse.graph.view import Inferred, opset_of
from repfuse.model import model_io, shapes
from repfuse.model.nodes import subgraphs

FLOATS = frozenset(
    value
    for name, value in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "BFLOAT", "DOUBLE"))  # FLOAT, FLOAT16, FLOAT8E4M3FN, FLOAT4E2M1 ...
)


@dataclass(frozen=True)
class Stats:
    """The size of a model.

    Attributes:
        nodes: All nodes: of the main graph, of the bodies of If, Loop and Scan, and of model-local functions
            (each body once, however often it runs).
        operators: How many of these nodes there are of each type, most frequent first.
        parameters: Elements of all floating-point initializers and Constants: weights, biases and the
            statistics of BatchNormalization, but no integers, which are shapes, axes and indices.
        macs: Multiply-adds of Conv, ConvTranspose, Gemm and MatMul in one run, biases left out. None where
            they cannot be known: extents are symbolic, or such a node stands in a subgraph or a function.
        bytes: What the model takes on disk, external data included.
        opset: The version of ONNX's operator set that it is written in.
    """

    nodes: int
    operators: Mapping[str, int]
    parameters: int
    macs: int | None
    bytes: int
    opset: int


def measure_file(path: Path, *, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Stats:
    """Measure a model file without reading its external data.

    Args:
        path: A file that `model_io.load` accepts.
        input_shapes: Extents for the inputs of these names; multiply-adds are counted for them in place of
            those that the model declares (or leaves open).
    """
    model = model_io.structure(path)
    shapes.fix_inputs(model, input_shapes or {})
    return measure(model, size=path.stat().st_size)


def measure(model: ModelProto, *, size: int | None = None) -> Stats:
    """Measure a model, which is not changed.

    Args:
        model: Its weights may be absent or lie in external files.
        size: Bytes of the file that the model was read from; None for what it takes when serialized.
    """
    inner = [
        node
        for outer in model.graph.node
        for _, graph in subgraphs(outer.attribute)
        for node in _nodes(graph.node)
    ]
    inner += [node for function in model.functions for node in _nodes(function.node)]
    nodes = [*model.graph.node, *inner]
    tensors = [*_initializers(model.graph), *(tensor for node in nodes for tensor in _constants(node))]
    return Stats(
        nodes=len(nodes),
        operators=dict(Counter(node.op_type for node in nodes).most_common()),
        parameters=sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in FLOATS),
        macs=None if any(map(_counter, inner)) else _macs(model),
        bytes=(model.ByteSize() if size is None else size) + sum(map(_external_bytes, tensors)),
        opset=opset_of(model.opset_import),
    )


def _nodes(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for _, graph in subgraphs(node.attribute):
            yield from _nodes(graph.node)


def _initializers(graph: GraphProto) -> Iterator[TensorProto]:
    """Initializers of a graph and of the graphs inside it."""
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    for node in graph.node:
        for _, inner in subgraphs(node.attribute):
            yield from _initializers(inner)


def _constants(node: NodeProto) -> Iterator[TensorProto]:
    if node.op_type != "Constant":
        return
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        elif attribute.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
            yield TensorProto(data_type=TensorProto.FLOAT, dims=[len(attribute.floats) or 1])


def _external_bytes(tensor: TensorProto) -> int:
    return sum(int(entry.value) for entry in tensor.external_data if entry.key == "length")


def _macs(model: ModelProto) -> int | None:
    """Multiply-adds of the main graph; None where a shape that they depend on is not known."""
    known: dict[str, shapes.Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    known = {**Inferred(model).facts.shapes, **known}
    total = 0
    for node in model.graph.node:
        if count := _counter(node):
            operands = [_static(known.get(name)) for name in (*node.input[:2], node.output[0])]
            if None in operands:
                return None
            total += count(node, *(operand for operand in operands if operand is not None))
    return total


def _static(shape: shapes.Shape | None) -> tuple[int, ...] | None:
    """A shape whose extents are all known, or None."""
    extents = tuple(extent for extent in shape or () if isinstance(extent, int))
    return extents if shape is not None and len(extents) == len(shape) else None


Extents = tuple[int, ...]
Counting = Callable[[NodeProto, Extents, Extents, Extents], int]


def _conv(node: NodeProto, data: Extents, weight: Extents, out: Extents) -> int:
    """Each output reads `C_in / group * taps` inputs; weight `(C_out, C_in / group, *k)`."""
    return math.prod(out) * math.prod(weight[1:])


def _conv_transpose(node: NodeProto, data: Extents, weight: Extents, out: Extents) -> int:
    """Each input is written to `C_out / group * taps` outputs; weight `(C_in, C_out / group, *k)`."""
    return math.prod(data) * math.prod(weight[1:])


def _gemm(node: NodeProto, left: Extents, right: Extents, out: Extents) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * left[0 if transposed else 1]


def _matmul(node: NodeProto, left: Extents, right: Extents, out: Extents) -> int:
    return math.prod(out) * left[-1]


_COUNTING: Mapping[str, Counting] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _counter(node: NodeProto) -> Counting | None:
    return _COUNTING.get(node.op_type) if node.domain in ("", "ai.onnx") else None
