"""How much faster one model is than another, told from shapes alone: a range, since nothing is run.

Costs are those of `choice.cost`, times the elements that each op computes. How much an elementwise op costs
depends on the runtime: nothing where it is fused into the Conv before it, a pass over memory where it is not. So
the two extremes are computed, and the truth lies between them for the models that the README measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from onnx import ModelProto, NodeProto

from repfuse.choice import cost
from repfuse.graph.view import Inferred
from repfuse.model import shapes
from repfuse.model.nodes import subgraphs

Extents = tuple[int, ...]

_FREE = frozenset(
    {"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"},
)
"""Views of a tensor, which move nothing."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_MOVED_AT_MOST = 10.0
"""An element read or written where memory is slow; `cost.MOVED` is what it costs on average."""

_SURE = 0.85
"""The share of the smaller gain to promise: both models have overheads, which no count of elements shows."""


class Speedup(NamedTuple):
    """By what factor a model is faster than another, at least and at most."""

    low: float
    high: float


class Work(NamedTuple):
    """What one run of a model costs, in multiply-adds of a dense Conv.

    Attributes:
        fused: Where all elementwise ops are fused into others.
        apart: Where each op reads and writes memory that is slow.
    """

    fused: float
    apart: float


def work(model: ModelProto) -> Work | None:
    """What one run costs; None where the shapes that it depends on are not known.

    An open batch counts as one image. Weights may be absent or lie in external files.
    """
    inner = (
        node for outer in model.graph.node for _, graph in subgraphs(outer.attribute) for node in graph.node
    )
    if any(node.op_type in _WEIGHTED for node in inner) or model.functions:
        return None
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    known: dict[str, shapes.Shape] = {**Inferred(model).facts.shapes, **weights}
    fused = apart = 0.0
    for node in model.graph.node:
        if node.op_type in _FREE:
            continue
        arithmetic = _arithmetic(node, known)
        if arithmetic is None:
            return None
        operands = (name for name in (*node.input, *node.output) if name and name not in weights)
        moved = sum(math.prod(extents) for name in operands if (extents := _extents(known.get(name))))
        fused += arithmetic + (cost.MOVED * moved if node.op_type in _WEIGHTED else 0.0)
        apart += arithmetic + _MOVED_AT_MOST * moved
    return Work(fused, apart)


def speedup(before: Work | None, after: Work | None) -> Speedup | None:
    """The range in which the speed-up lies; None where one of the two is not known."""
    if before is None or after is None or not after.fused:
        return None
    least, most = sorted((before.fused / after.fused, before.apart / after.apart))
    return Speedup(max(1.0, 1.0 + _SURE * (least - 1.0)), max(1.0, most))


def _arithmetic(node: NodeProto, known: Mapping[str, shapes.Shape]) -> float | None:
    """Multiply-adds of a node, those of a depthwise Conv weighted; None where they are not known."""
    if node.op_type not in _WEIGHTED or node.domain not in ("", "ai.onnx"):
        return 0.0
    data, weight, out = (_extents(known.get(name)) for name in (*node.input[:2], node.output[0]))
    if data is None or weight is None or out is None:
        return None
    if node.op_type == "Conv":
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        factor = cost.DEPTHWISE if group > 1 and weight[1] == 1 else 1.0
        return factor * math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return float(math.prod(data) * math.prod(weight[1:]))
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return float(math.prod(out) * data[0 if transposed else -1])


def _extents(shape: shapes.Shape | None) -> Extents | None:
    """A shape, an open batch being 1; None where another extent is open."""
    if shape is None:
        return None
    first = tuple(1 if not isinstance(extent, int) else extent for extent in shape[:1])
    rest = tuple(extent for extent in shape[1:] if isinstance(extent, int))
    return first + rest if len(rest) == len(shape[1:]) else None
