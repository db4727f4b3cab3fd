"""Holding a fused model against everything that must be true of any fused model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from graphs import Array
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from repfuse import FuseResult, Outcome, Remark, fuse

TOLERANCE: dict[int, float] = {
    TensorProto.DOUBLE: 1e-11,
    TensorProto.FLOAT: 1e-5,
    TensorProto.FLOAT16: 6e-3,
    TensorProto.BFLOAT16: 5e-2,
}
"""How far outputs may be apart, as a share of the largest, by type: a few times its spacing."""


def prove(model: ModelProto, **options: Any) -> FuseResult:
    """Fuse a model, and check all that is true of every fused model.

    It is valid, it computes the same, it is no larger, its inputs and outputs are the same, none of its
    initializers is unused, nothing is left to fuse, every change has a remark, and what was handed over is as
    it was.
    """
    before = model.SerializeToString(deterministic=True)
    result = fuse(model, **options)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result.model, full_check=True)
    assert _interface(result.model) == _interface(model)
    assert not _unused(result.model) - _unused(model)
    assert total(result.model) <= total(model)
    assert result.changed or result.model == model
    again = fuse(result.model, **options)
    assert not again.changed, again.edits
    fused = [remark for remark in result.remarks if remark.outcome is Outcome.FUSED]
    assert len(fused) == len(result.edits)
    assert difference(model, result.model) < TOLERANCE[_dtype(model)]
    return result


def counts(model: ModelProto) -> dict[str, int]:
    """How many nodes there are of each type, in all graphs, without constants."""
    constants = ("Constant",)
    return dict(Counter(node.op_type for node in every_node(model) if node.op_type not in constants))


def total(model: ModelProto) -> int:
    return sum(counts(model).values())


def every_node(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of the main graph, of subgraphs and of functions."""
    owners: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    for owner in owners:
        yield from _nodes(owner)


def graphs_of(node: NodeProto) -> Iterator[GraphProto]:
    return (attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH)


def feeds(model: ModelProto, seed: int = 0) -> dict[str, Array]:
    """Random values for a model's inputs; an input that has a default is left out, a named extent is 6."""
    random = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, Array] = {}
    for entry in model.graph.input:
        if entry.name not in defaults:
            tensor = entry.type.tensor_type
            shape = [dim.dim_value or 6 for dim in tensor.shape.dim]
            found[entry.name] = random.normal(size=shape).astype(
                helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            )
    return found


def evaluate(model: ModelProto, values: Mapping[str, Array]) -> list[Array]:
    """A float32 model's outputs by ONNX Runtime, another one's by ONNX's reference evaluator.

    The one has no other types, and the other is wrong about BatchNormalization below opset 14 (it takes the
    statistics of the batch) and about Pad by less than nothing.
    """
    if _dtype(model) == TensorProto.FLOAT:
        return list(session(model).run(None, dict(values)))
    with np.errstate(all="ignore"):
        outputs: list[Any] = list(ReferenceEvaluator(model).run(None, dict(values)))
    return [np.asarray(output) for output in outputs]


def session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def difference(before: ModelProto, after: ModelProto) -> float:
    """How far two models' outputs are apart at most, as a share of the largest value of each."""
    values = feeds(before)
    # In float64, since bfloat16 has no arithmetic of its own.
    pairs = zip(evaluate(before, values), evaluate(after, values), strict=True)
    wide = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    assert all(a.shape == b.shape for a, b in wide)
    return max(_apart(a, b) for a, b in wide)


def _apart(a: Array, b: Array) -> float:
    finite = np.isfinite(a)
    assert np.array_equal(a[~finite], b[~finite], equal_nan=True)
    largest = np.abs(a[finite]).max(initial=0.0) or 1.0
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0) / largest)


def refusal(result: FuseResult, node: str) -> Remark:
    """The one remark that says why the join at `node` (its name, or the tensor it computes) was left."""
    found = [r for r in result.remarks if r.outcome is Outcome.REFUSED and f"'{node}'" in r.node]
    assert len(found) == 1, result.remarks
    return found[0]


def _interface(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """Outputs, and the inputs that callers must feed or may."""
    defaults = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    return [*model.graph.output, *(entry for entry in model.graph.input if entry.name not in defaults)]


def _nodes(owner: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    for node in owner.node:
        yield node
        for graph in graphs_of(node):
            yield from _nodes(graph)


def _unused(model: ModelProto) -> set[str]:
    used = {name for node in every_node(model) for name in node.input}
    used |= {entry.name for entry in model.graph.output}
    owners = [model.graph, *(graph for node in every_node(model) for graph in graphs_of(node))]
    return {tensor.name for owner in owners for tensor in owner.initializer} - used


def _dtype(model: ModelProto) -> int:
    return model.graph.output[0].type.tensor_type.elem_type
