"""Parts of a graph, cut out of a model and run in float64 by ONNX's reference implementation.

Nothing here knows what repfuse makes of a node: this is what the judge of its work runs (see `proof.blockcheck`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, OperatorSetIdProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from repfuse.graph.constants import as_cast
from repfuse.graph.evaluation import lacking
from repfuse.graph.moves import data_slots
from repfuse.graph.view import Scope
from repfuse.model import storage
from repfuse.model.model_io import FIRST_OVERRIDABLE_IR
from repfuse.proof.operators import faster

Array = NDArray[Any]


class UnrunnableError(Exception):
    """A block cannot be run alone; the text says why."""


class Graph:
    """The nodes and constants that a graph sees: its own, and those of the graphs around it."""

    def __init__(self, model: ModelProto, scope: Scope) -> None:
        lineage = [scope]
        while (around := lineage[0].around) is not None:
            lineage.insert(0, around)
        proto: Any = lineage[0].proto
        self.imports: Sequence[OperatorSetIdProto] = (
            model.opset_import if proto is model.graph else proto.opset_import
        )
        self.shape_of = scope.shape_of
        self.nodes = [_typed(node.proto, each) for each in lineage for node in each.nodes]
        self._producers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self._initializers: dict[str, TensorProto] = {
            tensor.name: tensor for each in lineage for tensor in getattr(each.proto, "initializer", ())
        }
        self._names = self._producers.keys() | {name for each in lineage for name in each.own_names}
        if model.ir_version >= FIRST_OVERRIDABLE_IR:  # callers may override these, so they are no constants
            for entry in model.graph.input:
                self._initializers.pop(entry.name, None)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._names

    @functools.cached_property
    def constants(self) -> frozenset[str]:
        """Tensors that follow from constants alone; of others' extents those are known that are static."""
        known = {"", *self._initializers}
        for node in self.nodes:
            if known.issuperset(node.input) or (node.op_type == "Shape" and self._extents(node) is not None):
                known.update(node.output)
        return frozenset(known)

    def between(self, inputs: frozenset[str], output: str) -> Part | None:
        """The part that computes `output` from `inputs` and constants; None if it needs more than these.

        Where only the extents of another tensor are needed, these are taken for a single image.
        """
        needed: set[int] = set()
        constants: dict[str, Array] = {}
        if not self._collect(inputs, output, needed, constants):
            return None
        nodes = [self.nodes[position] for position in sorted(needed)]
        return Part.of(nodes, inputs, constants, self.imports)

    def _collect(
        self, inputs: frozenset[str], output: str, needed: set[int], constants: dict[str, Array]
    ) -> bool:
        """Add what computes `output`; say whether that can be done, and leave all as it was if not."""
        found: set[int] = set()
        known: dict[str, Array] = {}
        pending, measured = [output], set()
        while pending:
            name = pending.pop()
            position = self._producers.get(name)
            if name in inputs or not name or position in found or position in needed:
                continue
            node = self.nodes[position] if position is not None else None
            if position is None or node is None:
                if name not in self._initializers:
                    return False
                known[name] = storage.values(self._initializers[name])
            elif (value := _value_of(node)) is not None:
                known[name] = storage.values(value)
            elif node.op_type == "Shape":
                measured.add(position)
            else:
                found.add(position)
                pending += node.input
        needed |= found
        constants |= known
        for position in sorted(measured - needed):
            node = self.nodes[position]
            if self._collect(inputs, node.input[0], needed, constants):
                needed.add(position)
            elif (extents := self._extents(node)) is not None:
                constants[node.output[0]] = extents
            else:
                return False
        return True

    def _extents(self, node: NodeProto) -> Array | None:
        """What a Shape node gives for a single image, if all else is static."""
        shape = self.shape_of(node.input[0])
        if not shape or not all(isinstance(extent, int) for extent in shape[1:]):
            return None
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        whole: Array = np.array([1, *shape[1:]], np.int64)
        return whole[bounds.get("start", 0) : bounds.get("end")]


def _typed(node: NodeProto, scope: Scope) -> NodeProto:
    """A CastLike as the Cast that it is, since of its second operand only the type is needed.

    And a Cast to the type that its operand has as an Identity: here, values are in float64.
    """
    if node.op_type not in ("Cast", "CastLike") or node.domain not in ("", "ai.onnx"):
        return node
    cast = node if node.op_type == "Cast" else as_cast(node, scope.type_of(node.input[1]))
    to = next((attribute.i for attribute in cast.attribute if attribute.name == "to"), 0)
    if not to or scope.type_of(cast.input[0]) != to:
        return cast
    return helper.make_node("Identity", cast.input, cast.output, cast.name)


def _value_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node."""
    tensors = (a.t for a in node.attribute if a.name == "value" and a.HasField("t"))
    return next(tensors, None) if node.op_type == "Constant" else None


@dataclass(frozen=True)
class Part:
    """Nodes to run and the constants that they read, these in the model's own type.

    Attributes:
        plain: Whether ONNX's own operators run them, which add in another order than those below.
    """

    nodes: Sequence[NodeProto]
    constants: Mapping[str, Array]
    imports: Sequence[OperatorSetIdProto]
    plain: bool = False
    _made: dict[tuple[str, ...], ReferenceEvaluator] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(
        nodes: Sequence[NodeProto],
        inputs: frozenset[str],
        constants: Mapping[str, Array],
        imports: Sequence[OperatorSetIdProto],
    ) -> Part:
        """Evaluate what follows from constants alone, in the model's own type, as a runtime would.

        And as `graph.constants` does, to the last bit: computed weights may be long sums.
        """
        live: list[NodeProto] = []
        fixed: list[NodeProto] = []
        moving = set(inputs)
        for node in nodes:
            if moving.intersection(node.input):
                live.append(node)
                moving.update(node.output)
            else:
                fixed.append(node)
        known = {**constants, **Part(fixed, constants, imports, plain=True).run({})} if fixed else constants
        read = {name for node in live for name in node.input}
        return Part(live, {name: value for name, value in known.items() if name in read}, imports)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What each node computes; in float64, if that is what `feeds` are.

        Raises:
            UnrunnableError: The reference implementation cannot run a node.
        """
        known = {**self.constants, **feeds}
        outputs = [name for node in self.nodes for name in node.output if name]
        try:
            evaluator = self._evaluator(tuple(known), tuple(outputs))
            with np.errstate(all="ignore"):
                values: list[Any] = list(evaluator.run(None, known))
        except Exception as error:  # whatever its operators' Python code raises
            lines = str(error).splitlines() or [type(error).__name__]
            raise UnrunnableError(
                f"ONNX's reference implementation cannot run it alone: {lines[0]}"
            ) from error
        return dict(zip(outputs, values, strict=True))

    def _evaluator(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> ReferenceEvaluator:
        """Made once: that takes longer than to run small nodes, of which there may be hundreds."""
        if inputs not in self._made:
            graph = helper.make_graph(
                self.nodes,
                "block",
                [helper.make_empty_tensor_value_info(name) for name in inputs],
                [helper.make_empty_tensor_value_info(name) for name in outputs],
            )
            model = helper.make_model(graph, opset_imports=self.imports)
            version = next(entry.version for entry in self.imports if entry.domain in ("", "ai.onnx"))
            operators = ([] if self.plain else faster(version)) + lacking(version)
            self._made[inputs] = ReferenceEvaluator(model, new_ops=operators)
        return self._made[inputs]

    def wide(self) -> Part:
        """The same with its constants in float64."""
        return Part(self.nodes, {name: wide(value) for name, value in self.constants.items()}, self.imports)

    def shaken(self, random: np.random.Generator) -> Part | None:
        """The same with what its nodes write into tensors moved, up or down, by the last place of the largest.

        Such a constant (a border's, say) was rounded apart from the one that it stands for. None if there is none.
        """
        written = {
            name
            for node in self.nodes
            for slot in data_slots(node)
            if (name := node.input[slot] if slot < len(node.input) else "") in self.constants
            and self.constants[name].dtype.name in _BITS
            and np.any(wide(self.constants[name]))
        }

        def moved(values: Array) -> Array:
            unit = 2.0 ** (1 - _BITS[values.dtype.name]) * np.abs(wide(values)).max()
            return np.asarray(wide(values) + unit * random.choice([-1.0, 1.0], values.shape))

        if not written:
            return None
        constants = {
            name: moved(value) if name in written else wide(value) for name, value in self.constants.items()
        }
        return Part(self.nodes, constants, self.imports)


_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""Of each type's significand."""


def wide(values: Array) -> Array:
    """Floats, of whatever width, in float64; bfloat16 is of a kind that numpy does not know."""
    return values.astype(np.float64) if values.dtype.kind in "fV" else values
