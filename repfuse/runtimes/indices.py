"""Which inputs of a model are indices, and into how many entries: what is drawn for them must stay in range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner

from repfuse.model import shapes

_INTEGERS = {getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}

_HANDED_ON = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that give the values of their first input (Concat: of each) in other places, or some of them."""

_SELECTING = {"Gather": 1, "GatherElements": 1, "ScatterElements": 1}
"""Operators that select entries of their first input along an attribute's axis, and which input says which."""


def index_limits(model: ModelProto) -> dict[str, int]:
    """The inputs that select from something, by name, with how many entries there are to select from.

    Args:
        model: A model; it is not changed, and its weights are not needed.
    """
    inputs = [entry for entry in model.graph.input if entry.type.tensor_type.elem_type in _INTEGERS]
    if not any(node.op_type in _SELECTING for node in _nodes_of(model)) or not inputs:
        return {}
    bare = shapes.structure(model)
    if bare.functions:
        bare = inliner.inline_local_functions(bare)
    users: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in _nodes(bare.graph):
        for position, name in enumerate(node.input):
            users.setdefault(name, []).append((node, position))
    weights: dict[str, shapes.Shape] = {t.name: tuple(t.dims) for t in bare.graph.initializer}
    extents = {**shapes.infer(bare).shapes, **weights}
    limits = {entry.name: list(_limits(entry.name, users, extents)) for entry in inputs}
    return {name: min(found) for name, found in limits.items() if found}


def _limits(
    name: str, users: dict[str, list[tuple[NodeProto, int]]], extents: dict[str, shapes.Shape]
) -> Iterator[int]:
    """How many entries there are wherever an input is used as an index."""
    pending, seen = [name], {name}
    while pending:
        for node, position in users.get(pending.pop(), ()):
            if _SELECTING.get(node.op_type) == position:
                extent = _selected(node, extents.get(node.input[0]))
                if extent:
                    yield extent
            elif node.op_type in _HANDED_ON and (position == 0 or node.op_type == "Concat"):
                pending += [output for output in node.output if output not in seen]
                seen.update(node.output)


def _selected(node: NodeProto, shape: shapes.Shape | None) -> int | None:
    """The extent that a node selects from, where it is known."""
    axis = next((helper.get_attribute_value(each) for each in node.attribute if each.name == "axis"), 0)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    extent = shape[axis]
    return extent if isinstance(extent, int) else None


def _nodes_of(model: ModelProto) -> Iterator[NodeProto]:
    yield from _nodes(model.graph)
    for function in model.functions:
        yield from _nodes(function)


def _nodes(owner: GraphProto | onnx.FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the graphs in it."""
    pending: list[Iterable[NodeProto]] = [owner.node]
    while pending:
        for node in pending.pop():
            yield node
            pending += [each.g.node for each in node.attribute if each.type == AttributeProto.GRAPH]
