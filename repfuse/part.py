"""Parts of a graph, cut out of a model and run in float64 by ONNX's reference implementation.

Nothing here knows what repfuse makes of a node: this is what the judge of its work runs (see `repfuse.blockcheck`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, OperatorSetIdProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_average_pool import AveragePool_19
from onnx.reference.ops.op_conv import Conv as ReferenceConv

from repfuse import storage
from repfuse.view import FIRST_OVERRIDABLE_IR, Scope

Array = NDArray[Any]

_MANY_TAPS = 49
"""Up to so many, the reference implementation makes a matrix of each Conv's columns."""


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
        self.nodes = [node for each in lineage for node in each.nodes]
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

    def between(self, inputs: frozenset[str], output: str) -> Part | None:
        """The part that computes `output` from `inputs` and constants; None if it needs more than these."""
        needed: set[int] = set()
        constants: dict[str, Array] = {}
        pending = [output]
        while pending:
            name = pending.pop()
            position = self._producers.get(name)
            if name in inputs or not name or position in needed:
                continue
            if position is not None:
                node = self.nodes[position]
                value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
                if node.op_type == "Constant" and value is not None:
                    constants[name] = storage.values(value)
                else:
                    needed.add(position)
                    pending += node.input
            elif name in self._initializers:
                constants[name] = storage.values(self._initializers[name])
            else:
                return None
        nodes = [self.nodes[position] for position in sorted(needed)]
        return Part.of(nodes, inputs, constants, self.imports)


@dataclass(frozen=True)
class Part:
    """Nodes to run and the constants that they read, these in the model's own type."""

    nodes: Sequence[NodeProto]
    constants: Mapping[str, Array]
    imports: Sequence[OperatorSetIdProto]

    @staticmethod
    def of(
        nodes: Sequence[NodeProto],
        inputs: frozenset[str],
        constants: Mapping[str, Array],
        imports: Sequence[OperatorSetIdProto],
    ) -> Part:
        """Evaluate what follows from constants alone, in the model's own type, as a runtime would."""
        live: list[NodeProto] = []
        fixed: list[NodeProto] = []
        moving = set(inputs)
        for node in nodes:
            if moving.intersection(node.input):
                live.append(node)
                moving.update(node.output)
            else:
                fixed.append(node)
        known = {**constants, **Part(fixed, constants, imports).run({})} if fixed else constants
        read = {name for node in live for name in node.input}
        return Part(live, {name: value for name, value in known.items() if name in read}, imports)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What each node computes; in float64, if that is what `feeds` are.

        Raises:
            UnrunnableError: The reference implementation cannot run a node.
        """
        known = {**self.constants, **feeds}
        outputs = [name for node in self.nodes for name in node.output if name]
        graph = helper.make_graph(
            self.nodes,
            "block",
            [helper.make_empty_tensor_value_info(name) for name in known],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
        )
        model = helper.make_model(graph, opset_imports=self.imports)
        version = next(entry.version for entry in self.imports if entry.domain in ("", "ai.onnx"))
        try:
            evaluator = ReferenceEvaluator(model, new_ops=_OPS[: None if version < 14 else -1])
            with np.errstate(all="ignore"):
                values: list[Any] = list(evaluator.run(None, known))
        except Exception as error:  # whatever its operators' Python code raises
            lines = str(error).splitlines() or [type(error).__name__]
            raise UnrunnableError(
                f"ONNX's reference implementation cannot run it alone: {lines[0]}"
            ) from error
        return dict(zip(outputs, values, strict=True))

    def wide(self) -> Part:
        """The same with its constants in float64."""
        return Part(self.nodes, {name: wide(value) for name, value in self.constants.items()}, self.imports)


def wide(values: Array) -> Array:
    """Floats, of whatever width, in float64; bfloat16 is of a kind that numpy does not know."""
    return values.astype(np.float64) if values.dtype.kind in "fV" else values


class Conv(ReferenceConv):
    """The reference implementation, and tap by tap where its matrix of columns would fill the memory."""

    def _run(  # type: ignore[override]
        self, x: Array, w: Array, b: Array | None = None, **geometry: Any
    ) -> tuple[Array]:
        taps = w.shape[2:]
        if math.prod(taps) <= _MANY_TAPS or geometry["auto_pad"] not in (None, "NOTSET", "VALID"):
            return super()._run(x, w, b, **geometry)  # type: ignore[no-any-return, no-untyped-call]
        ones = [1] * len(taps)
        strides, dilations = geometry["strides"] or ones, geometry["dilations"] or ones
        pads = (
            geometry["pads"] if geometry["pads"] and geometry["auto_pad"] != "VALID" else [0, 0] * len(taps)
        )
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[: len(taps)], pads[len(taps) :], strict=True)])
        spare = np.subtract(padded.shape[2:], np.multiply(dilations, np.subtract(taps, 1)) + 1)
        outputs = spare // strides + 1
        weight = w.reshape(geometry["group"], -1, *w.shape[1:])
        total: Array = np.zeros((len(x), *weight.shape[:2], outputs.prod()))
        for tap in np.ndindex(taps):
            steps = zip(np.multiply(tap, dilations), outputs, strides, strict=True)
            window: Any = (..., *(slice(i, i + (n - 1) * s + 1, s) for i, n, s in steps))
            place: Any = (..., *tap)
            total += weight[place] @ padded[window].reshape(len(x), len(weight), w.shape[1], -1)
        total = total.reshape(len(x), len(w), *outputs)
        return (total if b is None else total + b.reshape(-1, *ones),)


class AveragePool(AveragePool_19):
    """As a Conv with ones: the reference implementation takes each element by itself, in seconds."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:  # type: ignore[override]
        if given["ceil_mode"]:
            return super()._run(x, **given)  # type: ignore[no-any-return, no-untyped-call]
        kernel = given["kernel_shape"]
        names = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
        geometry = {name: given[name] for name in names if given[name]}
        maps = x.reshape(-1, 1, *x.shape[2:])

        def summed(values: Any) -> Array:
            weight: Any = np.ones((1, 1, *kernel))
            return np.asarray(ReferenceConv.eval(values, weight, **geometry))

        sums = summed(maps)
        counts = math.prod(kernel) if given["count_include_pad"] else summed(np.ones_like(maps[:1]))
        return ((sums / counts).reshape(*x.shape[:2], *sums.shape[2:]),)


class BatchNormalization(OpRun):
    """Inference, for operators before version 14: there the reference takes the statistics of the batch."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float, **_: Any
    ) -> tuple[Array]:
        if any(self.output[1:]):
            raise ValueError("BatchNormalization in training mode")
        factor = scale / np.sqrt(variance + epsilon)
        shape = (-1, *[1] * (x.ndim - 2))
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape),)


_OPS: list[type[OpRun]] = [Conv, AveragePool, BatchNormalization]
