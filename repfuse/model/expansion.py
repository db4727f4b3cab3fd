"""How many nodes a model has once its functions are expanded: those that call others twice double at each step.

Runtimes and shape inference look into each call anew, and none of them would come to an end. This only counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from repfuse.errors import BadInputError

MOST = 2**18
"""Nodes. Of real models, the largest have some ten thousand."""

_Key = tuple[str, str, str]


def refuse_explosive(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model whose functions become too many nodes. `name` is what the message calls it.

    Raises:
        BadInputError: It has more than `MOST` nodes once they are expanded.
    """
    calls = {
        (each.domain, each.name, each.overload): [*map(_key, _all(each.node))] for each in model.functions
    }
    if not calls:
        return
    sizes: dict[_Key, int] = {}
    entered: set[_Key] = (
        set()
    )  # functions that call themselves, which ONNX's checker refuses, are counted once
    pending = list(calls)
    while pending:
        key = pending[-1]
        inner = [each for each in calls[key] if each in calls and each not in sizes and each not in entered]
        entered.add(key)
        pending += inner
        if not inner:
            sizes.setdefault(key, sum(sizes.get(each, 1) for each in calls[key]))
            pending.pop()
    if sum(sizes.get(_key(node), 1) for node in _all(model.graph.node)) > MOST:
        raise BadInputError(
            f"{name}: its functions call each other so often that it would be more than {MOST} nodes; "
            "export it with fewer"
        )


def _key(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _all(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the graphs inside them."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending += graph.node
