"""A read-only view of each graph in a model: who makes a tensor, who uses it, what is constant.

It is only looked at; `graph.patch` edits the model itself.

The main graph, the bodies of If, Loop and Scan, and model-local functions are all graphs: each is a `Scope`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import onnx
from onnx import FunctionProto, GraphProto, ModelProto

from repfuse.graph.constants import Constants
from repfuse.model import shapes
from repfuse.model.model_io import FIRST_OVERRIDABLE_IR
from repfuse.model.nodes import Node, read, subgraphs
from repfuse.remarks import label


@dataclass(frozen=True)
class Scope:
    """One graph of a model, as repfuse searches it. Nodes are named by their position.

    Attributes:
        label: Empty for the main graph, else where the graph is, in words.
        proto: The graph or function itself.
        nodes: Its nodes, in the model's order (which ONNX wants topologically sorted).
        opset: The version of the default operator set.
        constants: What is constant.
        kept: Tensors that must stay: the graph's outputs, what subgraphs capture and what training uses.
        around: The enclosing graph's scope, None at the top.
        shape_of: Gives a tensor's shape, None where it is unknown.
        type_of: Gives a tensor's `TensorProto` type, 0 where it is unknown.
        trained: Tensors to which the model's training information refers.
    """

    label: str
    proto: GraphProto | FunctionProto
    nodes: Sequence[Node]
    opset: int
    constants: Constants
    kept: frozenset[str]
    around: Scope | None
    shape_of: Callable[[str], shapes.Shape | None]
    type_of: Callable[[str], int]
    trained: frozenset[str] = frozenset()

    @cached_property
    def producer(self) -> Callable[[str], int | None]:
        """Gives the position of the node that computes a tensor; None for an input or a constant."""
        return self.constants.producers.get  # as it is: nothing is asked more often

    def consumers(self, tensor: str) -> Sequence[int]:
        """Positions of the nodes that use a tensor, one for each use."""
        return self._consumers.get(tensor, ())

    def name(self, position: int) -> str:
        """A node's name for people."""
        node = self.nodes[position]
        return label(node.op_type, node.name, node.output)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(_names(self.proto.output))

    @cached_property
    def own_names(self) -> frozenset[str]:
        """Names of the graph's inputs and initializers."""
        names = set(_names(self.proto.input))
        if isinstance(self.proto, GraphProto):
            names |= _defined(self.proto)
        return frozenset(names)

    @cached_property
    def operators(self) -> frozenset[str]:
        """What operators the graph's nodes are of."""
        return frozenset(node.op_type for node in self.nodes)

    @property
    def names(self) -> frozenset[str]:
        """Names of the graph's tensors and nodes."""
        tensors = self.own_names.union(self.constants.producers, self._consumers)
        return tensors.union(node.name for node in self.nodes)

    @cached_property
    def _consumers(self) -> Mapping[str, Sequence[int]]:
        found: dict[str, list[int]] = {}
        for position, node in enumerate(self.nodes):
            for name in node.input:
                found.setdefault(name, []).append(position)
        found.pop("", None)
        return found


def scopes(model: ModelProto) -> list[Scope]:
    """Every graph of a model: the main graph first, then what is inside it, then its functions."""
    pure = _pure(model)
    main = _scope(model.graph, "", None, pure, Inferred(model, pure))
    trained = frozenset(_trained(model))
    main = replace(main, kept=main.kept | trained, trained=trained)
    found = [main, *_inside(main)]
    for function in model.functions:
        scope = _function_scope(function)
        found += [scope, *_inside(scope)]
    return found


class _Known(Protocol):
    """What is known of a graph's tensors: as `shapes.Facts`, which it may find out when it is asked."""

    def shape_of(self, tensor: str) -> shapes.Shape | None: ...

    def type_of(self, tensor: str) -> int: ...


class Inferred:
    """What is known of the main graph's tensors, inferred when it is asked for the first time."""

    def __init__(self, model: ModelProto, pure: Constants | None = None) -> None:
        """`pure`: what is constant in the main graph whatever shapes are, where that was found out already."""
        self._model = model
        self._pure = pure or _pure(model)

    def shape_of(self, tensor: str) -> shapes.Shape | None:
        """A tensor's shape, None where it is unknown."""
        return self.facts.shape_of(tensor)

    def type_of(self, tensor: str) -> int:
        """A tensor's `TensorProto` type, 0 where it is unknown."""
        return self.facts.type_of(tensor)

    @cached_property
    def facts(self) -> shapes.Facts:
        """All that is found."""

        def integers(tensor: str) -> Sequence[int] | None:
            constant = self._pure.find(tensor)
            return [int(value) for value in constant.read().reshape(-1)] if constant else None

        return shapes.infer(self._model, integers, self._pure.nodes)

    def further(self) -> Inferred:
        """What is known where extents are computed from those that were found here."""
        return Inferred(self._model, self._pure.knowing(self.shape_of, self.type_of))


def _trained(model: ModelProto) -> Iterator[str]:
    """Names of the main graph's tensors that the model's training information refers to."""
    for info in model.training_info:
        yield from captured(info.initialization) | captured(info.algorithm)
        for binding in (*info.initialization_binding, *info.update_binding):
            yield from (binding.key, binding.value)


def captured(graph: GraphProto) -> set[str]:
    """Names that a graph uses and does not define, so that they come from around it."""
    defined = set(_names(graph.input)) | _defined(graph)
    used = {entry.name for entry in graph.output}
    for node in graph.node:
        used.update(node.input)
        defined.update(node.output)
        for _, inner in subgraphs(node.attribute):
            used |= captured(inner)
    return used - defined


def _defined(graph: GraphProto) -> set[str]:
    """Names of a graph's initializers."""
    return {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}


def _names(entries: Iterable[onnx.ValueInfoProto | str]) -> Iterator[str]:
    """Names of inputs or outputs: a graph has values, a function has plain names."""
    return (entry if isinstance(entry, str) else entry.name for entry in entries)


def _scope(
    proto: GraphProto | FunctionProto, name: str, around: Scope | None, pure: Constants, known: _Known
) -> Scope:
    nodes = pure.nodes
    return Scope(
        label=name,
        proto=proto,
        nodes=nodes,
        opset=opset_of(pure.opset_imports),
        constants=pure.knowing(known.shape_of, known.type_of),
        kept=frozenset(_names(proto.output)).union(
            *(captured(graph) for node in nodes for _, graph in node.graphs)
        ),
        around=around,
        shape_of=known.shape_of,
        type_of=known.type_of,
    )


def _pure(model: ModelProto) -> Constants:
    """What is constant in the main graph whatever shapes are."""
    inputs = {entry.name for entry in model.graph.input}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    if model.ir_version < FIRST_OVERRIDABLE_IR:
        inputs -= initializers.keys()
    return Constants(
        read(model.graph.node),
        initializers,
        opset_imports=model.opset_import,
        variables=frozenset(inputs),
    )


def _function_scope(function: FunctionProto) -> Scope:
    pure = Constants(
        read(function.node), {}, opset_imports=function.opset_import, variables=frozenset(function.input)
    )
    return _scope(function, f"function {function.domain}:{function.name}", None, pure, shapes.NOTHING)


def _inside(scope: Scope) -> Iterator[Scope]:
    for position, node in enumerate(scope.nodes):
        for attribute, graph in node.graphs:
            name = " > ".join(filter(None, (scope.label, f"{scope.name(position)} {attribute}")))
            pure = Constants(
                read(graph.node),
                {tensor.name: tensor for tensor in graph.initializer},
                opset_imports=scope.constants.opset_imports,
                variables=frozenset(_names(graph.input)),
                around=scope.constants,
            )
            inner = _scope(graph, name, scope, pure, shapes.declared(graph))
            yield inner
            yield from _inside(inner)


def opset_of(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    """The version of ONNX's own operator set, 0 where there is none."""
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 0)
