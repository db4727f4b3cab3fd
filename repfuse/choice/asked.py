"""What asks for the shape of a tensor that goes: it can ask for that of a tensor further back.

Exporters write `x.reshape_as(y)` as a Reshape to what Shape says of `y`. If that were a use of `y`, it would
have to stay, and with it all that leads to it. But where a linear op has no stride, it adds a constant to each
extent, so

    Shape(y) = Shape(x) + (0, C_out - C_in, slack_1, slack_2, ...)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from onnx import NodeProto, helper

from repfuse.algebra.window import Layout, Refusal, Window
from repfuse.graph.operands import integers_at
from repfuse.graph.patch import Patch
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.search.groups import Groups


def can_ask_elsewhere(groups: Groups, position: int) -> Collection[int]:
    """The nodes that only ask for the shape of what a linear op computes, and might ask for another one's.

    At most one of them takes an Add: more would add more nodes than a rewrite is sure to save.
    """
    lifted, scope = groups.lifted.get(position), groups.scope
    if "Shape" not in scope.operators:
        return ()
    askers = [each for name in scope.nodes[position].output for each in scope.consumers(name)]
    askers = [each for each in askers if _asks(scope.nodes[each])] if lifted else []
    more = _difference(groups, lifted.source, lifted.window) if lifted and askers else None
    if more is None or sum(_needs_add(scope, each, more) for each in askers) > 1:
        return ()
    return askers


def ask_elsewhere(
    groups: Groups, root: int, replaced: Collection[int], sources: Sequence[str], patch: Patch
) -> Refusal | None:
    """Let what asks for the shapes of tensors that go ask for those of others.

    Args:
        groups: The graph.
        root: The node whose output stays.
        replaced: The nodes that go, and `root`.
        sources: The others: each tensor that goes follows from one of them.
        patch: Takes the changed nodes.

    Returns:
        Why that cannot be; then nothing is changed.
    """
    scope = groups.scope
    if "Shape" not in scope.operators:
        return None
    lifted = [groups.lifted[position] for position in replaced if position in groups.lifted]
    framed = frozenset[int]().union(*(each.inside for each in lifted))
    changed: dict[int, list[NodeProto]] = {}
    for position in sorted(set(replaced) - {root}):
        before = {scope.producer(name) for name in groups.data_inputs(position)}
        if position in framed or before <= framed:  # `rewriting.extents` sees to what stays of these
            continue
        for asker in can_ask_elsewhere(groups, position):
            node = scope.nodes[asker]
            found = _source(groups, node.input[0], sources)
            if found is None:
                return Refusal(
                    f"cannot do without '{node.input[0]}', for whose shape {scope.name(asker)} asks"
                )
            changed[asker] = _shape(groups, *found, asker, patch)
    for asker, nodes in changed.items():
        patch.replace(scope, asker, nodes)
    return None


def _asks(node: Node) -> bool:
    return node.is_onnx("Shape")


def _source(groups: Groups, tensor: str, sources: Sequence[str]) -> tuple[str, list[int]] | None:
    """The first source whose shape tells that of a tensor, and by how much extents grow."""
    forms = groups.forms(tensor)
    for source in sources:
        more = _difference(groups, source, forms[source].window) if source in forms else None
        if more is not None:
            return source, more
    return None


def _difference(groups: Groups, source: str, window: Window) -> list[int] | None:
    """By how much extents grow from a source to what follows from it; None if that depends on the extents."""
    shape = groups.scope.shape_of(source)
    if shape is None or window.output_padding is not None or any(axis.stride > 1 for axis in window.axes):
        return None
    more = [0] * len(shape)
    if window.channels:
        more[1 if window.layout is Layout.SECOND else -1] = window.channels[0] - window.channels[1]
    for number, axis in enumerate(window.axes, 2):
        more[number] = axis.slack
    return more


def _given(asker: Node, more: Sequence[int]) -> Sequence[int]:
    """Of all extents those that Shape gives: from version 15 on, it may be some."""
    attributes = asker.attributes
    return more[attributes.get("start", 0) : attributes.get("end", len(more))]


def _needs_add(scope: Scope, asker: int, more: Sequence[int]) -> bool:
    """Whether something reads an extent that grows."""
    node = scope.nodes[asker]
    given = _given(node, more)
    if node.output[0] in scope.kept:
        return any(given)
    read = [_read(scope.nodes[user], scope, given) for user in scope.consumers(node.output[0])]
    return any(any(each) for each in read)


def _read(user: Node, scope: Scope, extents: Sequence[int]) -> Sequence[int]:
    """Of all extents those that a node picks, where it is a Gather; else all."""
    indices = integers_at(user, 1, scope) if user.op_type == "Gather" else None
    if indices is None or not all(-len(extents) <= index < len(extents) for index in indices):
        return extents
    return [extents[index] for index in indices]


def _shape(groups: Groups, source: str, more: Sequence[int], asker: int, patch: Patch) -> list[NodeProto]:
    """A Shape of `source`, and the Add of what extents have more, where that matters."""
    old = groups.scope.nodes[asker]
    node = NodeProto()
    node.CopyFrom(old.proto)
    node.input[0] = source
    if not _needs_add(groups.scope, asker, more):
        return [node]
    node.name = node.output[0] = patch.fresh(f"{old.name or old.output[0]}/source")
    grown = np.array(_given(old, more), np.int64)
    constant = patch.add_constant(groups.scope, f"{node.name}.more", grown)
    return [node, helper.make_node("Add", [node.output[0], constant], old.output, name=old.name)]
