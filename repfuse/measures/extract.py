"""Cutting a part out of a model as a model of its own that runs as fast as it did in its place.

How fast an op runs depends on types and extents, not on what weights hold; so weights are drawn, and need not be
read. Scalars stay, since runtimes recognize a GELU by them, and so do integers, which say what goes where. What
follows a part element by element comes along, since runtimes run it together with the op before it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from repfuse.graph.view import Inferred
from repfuse.measures.stats import FLOATS
from repfuse.model import shapes, storage

Type = tuple[int, tuple[int, ...]]
"""Of a tensor: that of its elements, and its extents."""

_ELEMENTWISE = frozenset(
    {
        "Add",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mul",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sub",
        "Swish",
        "Tanh",
    }
)
"""Operators that runtimes run together with a Conv before them."""

_ROUNDS = 8
"""So often are types inferred at most: where the graph computes extents from extents, each time shows more."""

_FOLLOWING = 5
"""So many of them in a row come along; a GELU is five."""


def static(model: ModelProto, extents: Mapping[str, Sequence[int]]) -> ModelProto:
    """The structure of a model, whose large constants are inputs, for inputs of these extents."""
    copy = shapes.structure(model)
    shapes.fix_inputs(copy, extents)
    return copy


def types_of(model: ModelProto, extents: Mapping[str, Sequence[int]]) -> dict[str, Type]:
    """The types of the main graph's tensors, as far as they are static, for inputs of these extents."""
    inferred = Inferred(static(model, extents))
    found = _static_types(inferred)
    for _ in range(_ROUNDS):
        inferred = inferred.further()
        known = len(found)
        found.update(_static_types(inferred))  # which leaves out what was only there to compute extents
        if len(found) == known:
            break
    return found


def _static_types(inferred: Inferred) -> dict[str, Type]:
    facts = inferred.facts
    found = {}
    for name, shape in facts.shapes.items():
        known = tuple(extent for extent in shape if isinstance(extent, int))
        if len(known) == len(shape):
            found[name] = (facts.type_of(name), known)
    return found


class Source:
    """A model that parts are cut out of; its weights may be absent."""

    def __init__(self, model: ModelProto, types: Mapping[str, Type]) -> None:
        """`types`: of the tensors at which the model may be cut."""
        self._model = model
        self._types = types

    @cached_property
    def _producers(self) -> Mapping[str, int]:
        nodes = self._model.graph.node
        return {name: position for position, node in enumerate(nodes) for name in node.output if name}

    def computes(self, tensor: str) -> bool:
        """Whether some node computes a tensor."""
        return tensor in self._producers

    @cached_property
    def _consumers(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for position, node in enumerate(self._model.graph.node):
            for name in node.input:
                found.setdefault(name, []).append(position)
        return found

    @cached_property
    def _initializers(self) -> Mapping[str, TensorProto]:
        return {tensor.name: tensor for tensor in self._model.graph.initializer}

    def followers(
        self, outputs: Sequence[str], others: Collection[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What follows element by element.

        Args:
            outputs: Tensors that a part computes.
            others: Tensors that parts compute, in front of which to stop.

        Returns:
            The tensors at which to cut in place of `outputs`; and what is read on the way that the part does not
            compute, such as a residual.
        """
        ends = list(outputs)
        inside, read = set(outputs), dict[str, None]()
        for _ in range(_FOLLOWING):
            step: dict[str, None] = {}
            for end in ends:
                users = self._elementwise(end, others)
                made = [name for user in users for name in user.output]
                inside.update(made)
                read.update(dict.fromkeys(name for user in users for name in user.input if name))
                step.update(dict.fromkeys(made or [end]))
            ends = list(step)
        beside = (name for name in read if name not in inside and not self._is_constant(name))
        return tuple(ends), tuple(beside)

    def _elementwise(self, tensor: str, others: Collection[str]) -> list[NodeProto]:
        """The nodes that read a tensor; none where one of them cannot come along."""
        graph = self._model.graph
        users = [graph.node[position] for position in self._consumers.get(tensor, ())]
        fits = all(user.op_type in _ELEMENTWISE and not user.domain for user in users)
        is_output = any(entry.name == tensor for entry in graph.output)
        stops = any(name in others for user in users for name in user.output)
        return users if fits and not is_output and not stops else []

    def _is_constant(self, tensor: str) -> bool:
        position = self._producers.get(tensor)
        if position is None:
            return tensor in self._initializers
        return self._model.graph.node[position].op_type == "Constant"

    def cut(self, inputs: Collection[str], outputs: Sequence[str]) -> ModelProto | None:
        """The part that computes `outputs`, cut off at `inputs`; None where one is missing, or a type is.

        It takes all of `inputs`, so that the same part of another model can be fed alike. What else it needs and
        does not compute from constants becomes an input as well.
        """
        graph = self._model.graph
        nodes: set[int] = set()
        constants: dict[str, TensorProto] = {}
        fed = dict.fromkeys(inputs)
        pending, seen = list(outputs), set[str]()
        while pending:
            name = pending.pop()
            if not name or name in seen:
                continue
            seen.add(name)
            position = self._producers.get(name)
            if name in fed or (position is None and name not in self._initializers):
                fed[name] = None
            elif position is None:
                constants[name] = self._initializers[name]
            else:
                nodes.add(position)
                pending += graph.node[position].input
        known = [name in self._types for name in (*fed, *outputs)]
        if (
            not all(known)
            or not fed.keys().isdisjoint(outputs)
            or not fed
            or any(_has_graph(graph.node[position]) for position in nodes)
        ):
            return None
        made = helper.make_graph(
            [_drawn_node(graph.node[position]) for position in sorted(nodes)],
            "part",
            [helper.make_tensor_value_info(name, *self._types[name]) for name in sorted(fed)],
            [helper.make_tensor_value_info(name, *self._types[name]) for name in outputs],
            [_drawn(tensor) for _, tensor in sorted(constants.items())],
        )
        imports = self._model.opset_import
        return helper.make_model(
            made,
            opset_imports=imports,
            ir_version=max(4, self._model.ir_version),
            functions=self._model.functions,
        )


def _has_graph(node: NodeProto) -> bool:
    """Whether a node holds graphs, which may read tensors from around them."""
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _drawn_node(node: NodeProto) -> NodeProto:
    if node.op_type != "Constant" or len(node.attribute) != 1 or not node.attribute[0].HasField("t"):
        return node
    return helper.make_node("Constant", [], node.output, node.name, value=_drawn(node.attribute[0].t))


def _drawn(tensor: TensorProto) -> TensorProto:
    """A tensor with other values, such that products stay about as large as what is multiplied."""
    if not is_drawn(tensor):
        return storage.filled(tensor)
    random = np.random.default_rng(0)
    values: Any
    if len(tensor.dims) == 1:  # a variance must be positive
        values = random.uniform(0.5, 1.5, tensor.dims)
    else:
        values = random.standard_normal(tensor.dims, np.float32) / math.sqrt(math.prod(tensor.dims[1:]) or 1)
    typed: Any = values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return numpy_helper.from_array(typed, tensor.name)


def is_drawn(tensor: TensorProto) -> bool:
    """Whether a tensor's values have no part in how fast a model runs, as far as its structure tells."""
    return tensor.data_type in FLOATS and math.prod(tensor.dims) > 1


def digest(model: ModelProto) -> str:
    """The same for models that compute the same way: whatever their tensors are called and their weights hold."""
    hashed = hashlib.sha256()
    numbers: dict[str, int] = {"": -1}

    def tell(*words: object) -> None:
        hashed.update(repr(words).encode())

    def number(names: Sequence[str]) -> list[int]:
        return [numbers.setdefault(name, len(numbers)) for name in names]

    graph = model.graph
    tell([(entry.domain, entry.version) for entry in model.opset_import])
    constants = {tensor.name: tensor for tensor in graph.initializer}
    declared = {entry.name: _declared(entry) for entry in graph.input}
    for node in graph.node:
        tell(node.op_type, node.domain, number(node.input), number(node.output))
        for name in node.input:
            if name in constants:
                tell(*_content(constants.pop(name)))
            elif name in declared:
                tell(declared.pop(name))
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            if attribute.HasField("t"):
                tell(attribute.name, *_content(attribute.t))
            else:
                tell(attribute.name, attribute.SerializeToString(deterministic=True))
    tell(number([entry.name for entry in graph.output]))
    tell([function.SerializeToString(deterministic=True) for function in model.functions])
    return hashed.hexdigest()


def _declared(entry: onnx.ValueInfoProto) -> tuple[object, ...]:
    return entry.type.tensor_type.elem_type, shapes.of_value(entry)


def _content(tensor: TensorProto) -> tuple[object, ...]:
    content = b"" if is_drawn(tensor) else storage.values(tensor).tobytes()
    return tensor.data_type, tuple(tensor.dims), content
