"""Edits: new nodes in the place of old ones, spliced into the model itself.

The model that was loaded is the document, and it is changed as little as possible: a replacement takes the
place of the last node that it replaces and keeps that node's output name; what became dead through the edits is
removed when all of them are known, never before, since what one edit makes dead may be another's source. All
else stays byte for byte what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from repfuse.graph.view import Scope
from repfuse.model.model_io import FIRST_OVERRIDABLE_IR
from repfuse.model.nodes import Node
from repfuse.model.storage import Spill


@dataclass
class _Changes:
    """What happens to one graph.

    Attributes:
        nodes: What takes the place of the node at a position.
        added: Names of the constants that these use.
        constants: Those of them that are Constant nodes.
        dead: Positions of nodes that go.
    """

    nodes: dict[int, list[NodeProto]] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    constants: list[NodeProto] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)


class Patch:
    """Collects the edits of a model and applies them at once."""

    def __init__(self, model: ModelProto, scopes: Sequence[Scope], spill: Spill | None = None) -> None:
        """`scopes`: all graphs of `model`. No node is changed before `apply`. `spill` takes large constants."""
        self._model = model
        self._scopes = scopes
        self._spill = spill
        self._changes = {id(scope): _Changes() for scope in scopes}
        self._names = {name for scope in scopes for name in scope.names}
        self._numbers: dict[str, int] = {}

    def fresh(self, stem: str) -> str:
        """A name that nothing in the model has, made from `stem`."""
        name = stem
        while name in self._names:
            self._numbers[stem] = self._numbers.get(stem, 1) + 1
            name = f"{stem}_{self._numbers[stem]}"
        self._names.add(name)
        return name

    def add_constant(self, scope: Scope, stem: str, values: NDArray[np.generic]) -> str:
        """Add a constant to a graph; its name is returned.

        An initializer goes into the model at once, not to be held twice: all of them are as large as the model.
        """
        tensor = self._spill.take(values) if self._spill else numpy_helper.from_array(values)
        tensor.name = self.fresh(stem)
        changes, graph = self._changes[id(scope)], scope.proto
        changes.added.add(tensor.name)
        old = self._model.ir_version < FIRST_OVERRIDABLE_IR  # initializers must be inputs, too
        if not isinstance(graph, GraphProto) or (old and scope.around is not None):
            changes.constants.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
            return tensor.name
        graph.initializer.append(tensor)
        if old:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        return tensor.name

    def replacement(self, scope: Scope, position: int) -> Sequence[NodeProto] | None:
        """What was put in the place of a node, which may still be changed; None where it is to stay."""
        return self._changes[id(scope)].nodes.get(position)

    def replace(self, scope: Scope, position: int, nodes: Sequence[NodeProto]) -> None:
        """Put nodes in the place of one; the last of them computes the output that it computed."""
        self._changes[id(scope)].nodes[position] = list(nodes)

    def apply(self) -> None:
        """Change the model, and remove what that made dead: nodes, initializers, and what is said of them."""
        orphans = self._orphans()
        for scope in self._scopes:
            self._apply_to(scope, orphans[id(scope)])

    def _orphans(self) -> dict[int, set[str]]:
        """Tensors that lose their last use through the edits, by graph; their producers go into `dead`."""
        uses = _uses(self._scopes)
        orphans: dict[int, set[str]] = {id(scope): set() for scope in self._scopes}
        pending: list[tuple[Scope, str]] = []
        for scope in self._scopes:
            for position, nodes in self._changes[id(scope)].nodes.items():
                for name in (name for node in nodes for name in node.input):
                    uses[id(_home(scope, name))][name] += 1
                pending += [(scope, name) for name in scope.nodes[position].input]
        while pending:
            scope, name = pending.pop()
            home = scope if scope.around is None else _home(scope, name)
            left = uses[id(home)]
            left[name] -= 1
            if left[name] > 0 or not name:
                continue
            orphans[id(home)].add(name)
            producer, changes = home.producer(name), self._changes[id(home)]
            if producer is None or producer in changes.dead:
                continue
            if not any(left[output] for output in home.nodes[producer].output if output):
                # A replacement goes, too, where a later one made do without it.
                gone: Sequence[Node | NodeProto] = changes.nodes.pop(producer, [])
                changes.dead.add(producer)
                for node in gone or [home.nodes[producer]]:
                    pending += [(home, name) for name in node.input]
        return orphans

    def _apply_to(self, scope: Scope, orphans: set[str]) -> None:
        changes, proto = self._changes[id(scope)], scope.proto
        vanished = {
            name for name in orphans if scope.producer(name) is None or scope.producer(name) in changes.dead
        }
        used = {name for nodes in changes.nodes.values() for node in nodes for name in node.input}
        vanished |= changes.added - used
        if isinstance(proto, GraphProto):
            self._remove_initializers(scope, proto, vanished)
            _remove(proto.quantization_annotation, lambda entry: entry.tensor_name in vanished)
        if changes.nodes:
            first = min(changes.nodes)
            constants = [node for node in changes.constants if node.output[0] in used]
            changes.nodes[first] = constants + changes.nodes[first]
        _remove(proto.value_info, lambda entry: entry.name in vanished)
        _splice(proto.node, changes)

    def _remove_initializers(self, scope: Scope, graph: GraphProto, orphans: set[str]) -> None:
        orphaned = {tensor.name for tensor in graph.initializer if tensor.name in orphans}
        _remove(graph.initializer, lambda tensor: tensor.name in orphaned)
        if scope.around is None and self._model.ir_version < FIRST_OVERRIDABLE_IR:
            _remove(graph.input, lambda entry: entry.name in orphaned)


def _home(scope: Scope, name: str) -> Scope:
    """The graph in which a name that `scope` uses is defined."""
    current = scope
    while current.around is not None and not _defines(current, name):
        current = current.around
    return current


def _defines(scope: Scope, name: str) -> bool:
    return scope.producer(name) is not None or name in scope.own_names


def _uses(scopes: Iterable[Scope]) -> dict[int, Counter[str]]:
    """How often each tensor is used, by the graph that defines it: in nodes, and as an output of a graph."""
    scopes = list(scopes)
    uses: dict[int, Counter[str]] = {id(scope): Counter() for scope in scopes}
    for scope in scopes:
        names = [*scope.outputs, *(name for node in scope.nodes for name in node.input)]
        if scope.around is None:
            uses[id(scope)].update(names)
        else:
            for name in names:
                uses[id(_home(scope, name))][name] += 1
        uses[id(scope)].update(scope.trained)
    return uses


def _remove(entries: Any, unwanted: Callable[[Any], bool]) -> None:
    """Delete from a repeated field, without copying what stays."""
    _reorder(entries, [None if unwanted(entry) else 0 for entry in entries])


def _splice(nodes: Any, changes: _Changes) -> None:
    """Put new nodes in the places of old ones, and remove the dead."""
    places: list[int | None] = list(range(len(nodes)))
    for position in changes.dead:
        places[position] = None
    for position, new in changes.nodes.items():
        places[position] = None
        nodes.extend(new)
        places += [position] * len(new)
    _reorder(nodes, places)


def _reorder(entries: Any, places: Sequence[int | None]) -> None:
    """Sort a repeated field, whose entries without a place go.

    They are moved, not copied. To delete or insert one after the other would each time move all that follow.
    """
    keys = iter([len(places) if place is None else place for place in places])
    entries.sort(key=lambda _: next(keys))
    del entries[len(places) - places.count(None) :]
