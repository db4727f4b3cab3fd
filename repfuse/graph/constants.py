"""What is constant in a graph, and its values: initializers, Constant nodes, and expressions of them.

Values are read when they are asked for, one tensor at a time. Expressions (weights that the graph computes
from constants, as onnxoptimizer and OREPA leave them) are evaluated with ONNX's own reference implementation;
those of what `graph.moves` knows with that, since exporters write thousands. The Shape of a tensor is constant
where its extents are static; CastLike needs no more of its second operand than its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from repfuse.errors import BadInputError
from repfuse.graph import moves
from repfuse.model import storage
from repfuse.model.nodes import Node
from repfuse.model.shapes import Shape

_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
_DOUBTFUL = {"BatchNormalization"}
"""Below operator version 14 the reference implementation takes the statistics of the batch."""

_CASTS = {"Cast", "Constant", "Identity"}
"""Operators that leave values what they are, if maybe of another type."""

_REMEMBERED = 2**12
"""Elements: what an expression computes on the way is kept up to this size, since other expressions need it too."""

_VALUES: dict[str, type] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Attributes of Constant (operator version 12) that hold numbers, and the type that each gives."""


class Constant(NamedTuple):
    """A constant tensor: its shape, its `TensorProto` type, and a way to its values."""

    dims: tuple[int, ...]
    data_type: int
    read: Callable[[], NDArray[np.generic]]

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.dims)


class Constants:
    """The constants of one graph, by tensor name; what is not here is looked up in the graph around it.

    Attributes:
        nodes: The graph's nodes.
        producers: The position of the node that computes a tensor.
        opset_imports: The operator set of ONNX's own that nodes are of.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        initializers: Mapping[str, TensorProto],
        *,
        opset_imports: Sequence[onnx.OperatorSetIdProto],
        variables: frozenset[str] = frozenset(),
        around: Constants | None = None,
    ) -> None:
        """Look at a graph of whose tensors' shapes and types nothing is known.

        Args:
            nodes: The graph's nodes.
            initializers: Its initializers by name.
            opset_imports: The operator sets that its nodes are of.
            variables: Its inputs: an initializer of such a name may be overridden, so it is no constant.
            around: The constants of the enclosing graph.
        """
        self.nodes = nodes
        self.producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
        self.opset_imports = [entry for entry in opset_imports if entry.domain in ("", "ai.onnx")]
        self._initializers = initializers
        self._variables = variables
        self._around = around
        self._know(lambda _: None, lambda _: TensorProto.UNDEFINED)

    def _know(self, shape_of: Callable[[str], Shape | None], type_of: Callable[[str], int]) -> None:
        self._shape_of = shape_of
        self._type_of = type_of
        self._casts: dict[str, Node] = {}
        self._found: dict[str, Constant | None] = {}
        self._measured: dict[str, Constant | None] = {}
        self._foldable: dict[str, bool] = {}
        self._measureless: set[str] = set()
        self._values: dict[str, NDArray[Any]] = {}

    def knowing(self, shape_of: Callable[[str], Shape | None], type_of: Callable[[str], int]) -> Constants:
        """The constants of the same graph, of whose tensors more is known.

        Args:
            shape_of: Gives a tensor's shape, None where it is unknown.
            type_of: Gives a tensor's `TensorProto` type, 0 where it is unknown.
        """
        other = copy(self)
        other._know(shape_of, type_of)
        return other

    def find(self, name: str) -> Constant | None:
        """The constant of that name, None if there is none: a variable, or what cannot be evaluated."""
        if name not in self._found:
            self._found[name] = self._look_up(name)
        return self._found[name]

    def _look_up(self, name: str) -> Constant | None:
        if name in self._variables or not name:
            return None
        if name in self._initializers:
            return _of_tensor(self._initializers[name])
        node = self._producer(name)
        if node is None:
            return self._around.find(name) if self._around else None
        if node.is_onnx("Constant"):
            return _of_constant_node(node)
        if node.is_onnx("Identity"):
            return self.find(node.input[0])
        if node.is_onnx("Shape") and (extents := self._extents(node)):
            return extents
        return self._of_expression(name) if self.follows(name) else None

    def _extents(self, node: Node) -> Constant | None:
        """The value of a Shape node whose tensor has static extents; from version 15 on it has bounds."""
        name = node.output[0]
        if name not in self._measured:
            bounds, shape = node.attributes, self._shape_of(node.input[0])
            dims = (None,) if shape is None else shape[bounds.get("start", 0) : bounds.get("end")]
            known = all(isinstance(extent, int) for extent in dims)
            self._measured[name] = _of_array(np.array(dims, np.int64)) if known else None
        return self._measured[name]

    def _is_leaf(self, name: str, node: Node) -> bool:
        """Whether a tensor that a node computes is what expressions begin with."""
        if node.domain or node.op_type not in ("Constant", "Shape"):
            return name in self._initializers
        return node.op_type == "Constant" or self._extents(node) is not None

    def _producer(self, name: str) -> Node | None:
        position = self.producers.get(name)
        if position is None:
            return None
        node = self.nodes[position]
        if node.op_type != "CastLike" or node.domain:
            return node
        if name not in self._casts:
            self._casts[name] = Node(as_cast(node.proto, self._type_of(node.input[1])))
        return self._casts[name]

    def follows(self, name: str) -> bool:
        """Whether a tensor follows from constants alone; it is not evaluated. A loop: expressions may be deep."""
        known = self._foldable
        if name in known:
            return known[name]
        pending: list[tuple[str, Iterator[str]]] = [(name, iter((name,)))]
        while pending:
            current, operands = pending[-1]
            for operand in operands:
                if operand not in known:
                    node = self._producer(operand)
                    if node is None or self._is_leaf(operand, node):
                        known[operand] = self.find(operand) is not None
                    else:
                        known[operand] = False  # until all of its operands are known; a cycle stays so
                        if self._folds(node):
                            pending.append((operand, filter(None, node.input)))
                            break
                if not known[operand]:
                    return False  # nor does any that is pending: each waits for the next one
            else:
                known[current] = True
                pending.pop()
        return True

    def computes(self, name: str) -> bool:
        """Whether the graph computes a constant, and does more than to move the elements of another one."""
        if self._producer(name) is None or name in self._initializers or not self.follows(name):
            return False
        nodes, _ = self._expression(name, {})
        return any(node.op_type not in _CASTS and not moves.data_slots(node) for node in nodes)

    def measures(self, name: str) -> bool:
        """Whether a tensor that follows from constants follows from the extents of one that does not."""
        known = self._measureless
        pending, seen = [name] if name not in known else [], {name}
        while pending:
            current = pending.pop()
            node = self._producer(current)
            if node is None or current in self._initializers:
                continue
            if node.is_onnx("Shape") and not self.follows(node.input[0]):
                return self.follows(name)
            pending += [each for each in node.input if each not in seen and each not in known]
            seen.update(node.input)
        known |= seen
        return False

    def _folds(self, node: Node) -> bool:
        """Whether a node of constant operands is constant."""
        return _deterministic(node)

    def _of_expression(self, name: str) -> Constant | None:
        try:
            value = self._evaluate(name)
        except BadInputError:
            raise
        except Exception:  # the evaluator raises whatever its operators' Python code raises
            return None
        if value.size <= _REMEMBERED:
            return _of_array(value)
        data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        return Constant(value.shape, data_type, lambda: self._evaluate(name))

    def _evaluate(self, name: str) -> NDArray[np.generic]:
        nodes, leaves = self._expression(name, self._values)
        if all(map(moves.evaluates, nodes)):
            return self._moved(name, nodes, leaves)
        from repfuse.graph import evaluation  # noqa: PLC0415  (importing that takes as long as all else together)

        inputs = [helper.make_tensor_value_info(n, leaf.data_type, leaf.dims) for n, leaf in leaves.items()]
        graph = helper.make_graph(
            [node.proto for node in nodes], "expression", inputs, [helper.make_empty_tensor_value_info(name)]
        )
        feeds = {n: leaf.read() for n, leaf in leaves.items()}
        return evaluation.evaluate(helper.make_model(graph, opset_imports=self.opset_imports), feeds)

    def _moved(self, name: str, nodes: Sequence[Node], leaves: Mapping[str, Constant]) -> NDArray[np.generic]:
        values = {n: leaf.read() for n, leaf in leaves.items()}
        for node in nodes:
            value = self._computed(node, [values[i] if i else None for i in node.input])
            values[node.output[0]] = value
            if value.size <= _REMEMBERED:
                self._values[node.output[0]] = value
        return values[name]

    def _computed(self, node: Node, operands: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
        return moves.evaluate(node, operands)

    def _expression(
        self, name: str, values: Mapping[str, NDArray[Any]]
    ) -> tuple[list[Node], dict[str, Constant]]:
        """The nodes that compute a tensor, in order, and the constants that they start from.

        Args:
            name: The tensor.
            values: Tensors that are known; what computes these is left out.
        """
        needed: dict[int, Node] = {}
        leaves: dict[str, Constant] = {}
        pending = [name]
        while pending:
            current = pending.pop()
            node = self._producer(current)
            if current in values and current != name:
                leaves[current] = _of_array(values[current])
            elif node is None or self._is_leaf(current, node):
                leaf = self.find(current)
                assert leaf is not None
                leaves[current] = leaf
            elif (position := self.producers[current]) not in needed:
                needed[position] = node
                pending.extend(i for i in node.input if i)
        return [needed[position] for position in sorted(needed)], leaves


def as_cast(node: onnx.NodeProto, data_type: int) -> onnx.NodeProto:
    """The Cast that a CastLike is, where the type that it asks another tensor for is known; else the node."""
    if not data_type:
        return node
    cast = helper.make_node("Cast", node.input[:1], node.output, node.name, to=data_type)
    cast.attribute.extend(node.attribute)
    return cast


def _deterministic(node: Node) -> bool:
    return (
        not node.domain
        and node.op_type not in _RANDOM
        and node.op_type not in _DOUBTFUL
        and not node.graphs
        and not node.refers
    )


def _of_tensor(tensor: TensorProto) -> Constant:
    return Constant(tuple(tensor.dims[:]), tensor.data_type, lambda: storage.values(tensor))


def _of_constant_node(node: Node) -> Constant | None:
    if len(node.attribute) != 1 or node.refers:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        return _of_tensor(attribute.t)
    if attribute.name not in _VALUES:
        return None
    return _of_array(np.asarray(helper.get_attribute_value(attribute), dtype=_VALUES[attribute.name]))


def _of_array(value: NDArray[Any]) -> Constant:
    return Constant(value.shape, helper.np_dtype_to_tensor_dtype(value.dtype), lambda: value)
