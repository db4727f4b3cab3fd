"""A graph that grows node by node while its values are computed along.

So the shape of every tensor is known as soon as it is there, whatever op made it, and a node that cannot run on
what it was given is not kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from fuzz_oracle import Array, evaluate
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

T = TypeVar("T", bound=Hashable)

DOMAIN = "fuzz"
"""Of model-local functions."""


class MisfitError(Exception):
    """A node cannot run on what it was given."""


class Graph:
    """Nodes so far, and what they compute.

    Attributes:
        random: Where all choices come from.
        dtype: The `TensorProto` type of all floats.
        opset: The version of the default operator set.
        values: Every tensor's value by name; floats are float64, whatever `dtype` is.
        pool: Names of tensors that later nodes may start from.
        nodes: In topological order.
    """

    def __init__(self, random: np.random.Generator, dtype: int, opset: int, ir: int) -> None:
        self.random = random
        self.dtype = dtype
        self.opset = opset
        self.ir = ir
        self.values: dict[str, Array] = {}
        self.pool: list[str] = []
        self.nodes: list[NodeProto] = []
        self.inputs: dict[str, Array] = {}
        self.initializers: dict[str, TensorProto] = {}
        self.functions: list[FunctionProto] = []
        self._count = 0

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.random.random() < probability)

    def number(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return int(self.random.integers(low, high + 1))

    def pick(self, weights: Mapping[T, float] | Sequence[T]) -> T:
        """One of several, by weight if they have weights."""
        options = list(weights)
        shares = (
            np.array([weights[o] for o in options]) if isinstance(weights, Mapping) else np.ones(len(options))
        )
        return options[self.random.choice(len(options), p=shares / shares.sum())]

    def fresh(self, stem: str) -> str:
        """A name that is not taken."""
        self._count += 1
        return f"{stem}_{self._count}"

    def input(self, value: Array) -> str:
        """Add a graph input, which is fed `value`."""
        name = self.fresh("input")
        self.inputs[name] = self.values[name] = self._rounded(value)
        return name

    def add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node of `outputs` outputs, one if that is not given.

        Returns:
            The name of its first output.

        Raises:
            MisfitError: It cannot run on these inputs, or what it gives is empty or huge.
        """
        names = [self.fresh(op_type.lower()) for _ in range(attributes.pop("outputs", 1))]
        node = helper.make_node(op_type, inputs, names, names[0], **attributes)
        self.values.update(zip(names, self._run(node), strict=True))
        self.nodes.append(node)
        return names[0]

    def constant_node(self, value: Array) -> str:
        """Add a Constant node."""
        name = self.fresh("constant")
        scalar = self.dtype == TensorProto.FLOAT and value.ndim == 0 and self.opset >= 12
        attribute = {"value_float": float(value)} if scalar else {"value": self.tensor(value)}
        self.nodes.append(helper.make_node("Constant", [], [name], name, **attribute))
        self.values[name] = self._rounded(value)
        return name

    def initializer(self, value: Array) -> str:
        """Add an initializer; an IR that wants it lists it among the inputs as well."""
        name = self.fresh("weight")
        self.initializers[name] = self.tensor(value, name)
        self.values[name] = self._rounded(value)
        if self.ir < 4:
            self.inputs[name] = self.values[name]
        return name

    def overridable(self, value: Array) -> str:
        """Add an initializer that callers may override, and that ours does: it is an input as well."""
        name = self.initializer(value)
        self.inputs[name] = self.values[name] if self.ir < 4 else self._rounded(value * 1.5)
        return name

    def integers(self, value: Sequence[int]) -> str:
        """Add a constant of int64."""
        return self._told(np.asarray(value, np.int64))

    def scales(self, value: Sequence[float]) -> str:
        """Add a constant of float32, whatever the graph's type is."""
        return self._told(np.asarray(value, np.float32))

    def _told(self, array: Array) -> str:
        name = self.fresh("told")
        self.initializers[name] = numpy_helper.from_array(array, name)
        self.values[name] = array
        if self.ir < 4:
            self.inputs[name] = array
        return name

    def tensor(self, value: Array, name: str = "") -> TensorProto:
        """A tensor of the graph's float type."""
        return numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(self.dtype)), name)

    def model(self, outputs: Sequence[str], dims: Mapping[str, Sequence[int | str]]) -> ModelProto:
        """The graph as a model.

        Args:
            outputs: Names of its outputs.
            dims: Declared extents of inputs and outputs; the true ones where there are none.
        """

        def entry(name: str) -> Any:
            value = self.values[name]
            kind = self.dtype if value.dtype.kind == "f" else helper.np_dtype_to_tensor_dtype(value.dtype)
            return helper.make_tensor_value_info(name, kind, dims.get(name, value.shape))

        graph = helper.make_graph(
            self.nodes,
            "fuzz",
            [entry(name) for name in self.inputs],
            [entry(name) for name in outputs],
            list(self.initializers.values()),
        )
        return self._model_of(graph)

    def captured(self, nodes: Sequence[NodeProto]) -> list[str]:
        """Tensors that nodes use and that come from elsewhere."""
        made = {name for node in nodes for name in node.output}
        used = dict.fromkeys(name for node in nodes for name in used_by(node))
        return [name for name in used if name not in made]

    def _run(self, node: NodeProto) -> list[Array]:
        feeds = {name: self.values[name] for name in used_by(node)}
        graph = helper.make_graph(
            [node],
            "node",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for name, v in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in node.output],
        )
        try:
            outputs = evaluate(self._model_of(graph), feeds)
        except Exception as error:  # the evaluator raises whatever its operators' code raises
            raise MisfitError(str(error)) from error
        if any(not 0 < value.size < 50_000 for value in outputs):
            raise MisfitError("the result is empty or huge")
        return outputs

    def _model_of(self, graph: GraphProto) -> ModelProto:
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(DOMAIN, 1)] if self.functions else []
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir, functions=self.functions, producer_name="fuzz"
        )

    def _rounded(self, value: npt.ArrayLike) -> Array:
        with np.errstate(all="ignore"):
            rounded = np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(self.dtype))
        wide: Array = rounded.astype(np.float64)
        return wide


@dataclass(frozen=True)
class Case:
    """A model to attack.

    Attributes:
        model: The model.
        feeds: Its inputs by name.
        scale: The largest absolute value inside it.
        at_any_cost: Whether rewrites are to be made that would not pay.
    """

    model: ModelProto
    feeds: Mapping[str, Array]
    scale: float
    at_any_cost: bool


def used_by(node: NodeProto) -> list[str]:
    """What a node reads, its subgraphs included."""
    used = [name for name in node.input if name]
    for attribute in node.attribute:
        inner = attribute.g
        made = {name for each in inner.node for name in each.output}
        made |= {entry.name for entry in inner.input} | {tensor.name for tensor in inner.initializer}
        reads = [name for each in inner.node for name in used_by(each)] + [
            entry.name for entry in inner.output
        ]
        used += [name for name in reads if name not in made]
    return list(dict.fromkeys(used))
