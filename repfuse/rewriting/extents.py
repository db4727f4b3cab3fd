"""Extents that the graph computes although they are static, written out where a frame was merged.

Exporters that cannot follow a frame take the shapes behind it for unknown, and compute from them what a Reshape
further on needs. A model whose frames are merged has no more use for that.
"""

from __future__ import annotations

from collections.abc import Container

from onnx import NodeProto, TensorProto

from repfuse.graph.patch import Patch
from repfuse.model.nodes import Node
from repfuse.search.groups import Groups

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)

_MOST = 64
"""Elements: what is larger is no shape."""


def write_out(groups: Groups, replaced: Container[int], patch: Patch) -> None:
    """Give nodes that stay the integers that follow from static extents, if a frame is among what is replaced.

    Args:
        groups: The graph.
        replaced: Positions of nodes that others take the place of, or that go with them.
        patch: Takes the changed nodes.
    """
    framed = (position for position, lifted in groups.lifted.items() if lifted.inside)
    if not any(position in replaced for position in framed):
        return
    scope = groups.scope
    for position, node in enumerate(scope.nodes):
        if position in replaced or scope.constants.follows(node.output[0] if node.output else ""):
            continue
        computed = [name for name in node.input if _is_computed(groups, name)]
        if computed:
            patch.replace(scope, position, [_with_constants(groups, node, computed, patch)])


def _is_computed(groups: Groups, name: str) -> bool:
    """Whether a tensor holds a few integers that follow from extents."""
    constants = groups.scope.constants
    found = constants.find(name) if constants.measures(name) else None
    return found is not None and found.size <= _MOST and found.data_type in _INTEGERS


def _with_constants(groups: Groups, node: Node, computed: list[str], patch: Patch) -> NodeProto:
    changed = NodeProto()
    changed.CopyFrom(node.proto)
    for name in computed:
        found = groups.scope.constants.find(name)
        assert found is not None
        stand_in = patch.add_constant(groups.scope, f"{name}/static", found.read())
        changed.input[:] = [stand_in if each == name else each for each in changed.input]
    return changed
