"""The shapes and types of a model's tensors, inferred on a copy of its structure that holds no weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
from onnx import helper

from repfuse.model import storage
from repfuse.model.nodes import Node, read

Shape = tuple[int | str | None, ...]
"""Extents: a number, the name of a symbolic dimension, or None where nothing is known."""

Integers = Callable[[str], "Sequence[int] | None"]
"""Gives the value of a constant that the graph computes, None where there is none."""

_SMALL = 256
"""Elements: a smaller constant may be a shape, axes or pads, which shape inference reads."""

CONTAINERS = {"If", "Loop", "Scan", "SequenceMap"}
"""Operators whose nodes hold graphs."""

_GROWING = {"Expand", "Tile", "ConstantOfShape", "Range", "Pad", "Resize", "Upsample", "OneHot"}
"""Operators whose outputs are as large as numbers in a file say."""

_EXTENTS = {"Expand": 1, "ConstantOfShape": 0, "Pad": 1}
"""Of some of these, the operand that holds the numbers."""

_LONG = 2**20
"""Elements."""


class Facts:
    """What is known of a graph's tensors without running it, by their names; read when it is asked for."""

    def __init__(
        self, entries: Iterable[onnx.ValueInfoProto] = (), constants: Iterable[onnx.TensorProto] = ()
    ) -> None:
        """Take what entries say, and of constants the types."""
        self._entries = {entry.name: entry for entry in entries}
        self._constants = {tensor.name: tensor for tensor in constants}
        self._shapes: dict[str, Shape | None] = {}

    def shape_of(self, tensor: str) -> Shape | None:
        """A tensor's shape, None where it is unknown."""
        if tensor not in self._shapes and tensor in self._entries:
            self._shapes[tensor] = of_value(self._entries[tensor])
        return self._shapes.get(tensor)

    def type_of(self, tensor: str) -> int:
        """A tensor's `TensorProto` type, 0 where it is unknown."""
        if tensor in self._entries:
            return self._entries[tensor].type.tensor_type.elem_type
        known = self._constants.get(tensor)
        return onnx.TensorProto.UNDEFINED if known is None else known.data_type

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of all tensors whose rank is known."""
        return {name: shape for name in self._entries if (shape := self.shape_of(name)) is not None}


def declared(graph: onnx.GraphProto) -> Facts:
    """What a graph says of its tensors by itself."""
    return Facts(_entries(graph), graph.initializer)


NOTHING = Facts()
"""What is known of a graph that nobody has looked at."""


def infer(
    model: onnx.ModelProto, integers: Integers = lambda _: None, nodes: Sequence[Node] | None = None
) -> Facts:
    """What ONNX's shape inference finds of the main graph's tensors.

    Args:
        model: The model.
        integers: Gives the value of a constant that the graph computes, None where there is none.
        nodes: The graph's nodes, where they were read already.
    """
    return Facts(infer_types(model, integers, nodes), model.graph.initializer)


def infer_types(
    model: onnx.ModelProto, integers: Integers = lambda _: None, nodes: Sequence[Node] | None = None
) -> Sequence[onnx.ValueInfoProto]:
    """The main graph's tensors with their types and shapes, as `infer` finds them."""
    nodes = read(model.graph.node) if nodes is None else nodes
    try:
        simplified = _Simplified(model.graph, integers, nodes)
        copy = structure(model, simplified.nodes, simplified.written)
        graph = onnx.shape_inference.infer_shapes(copy, data_prop=not _has_long_vectors(copy)).graph
    except (onnx.shape_inference.InferenceError, ValueError, MemoryError):
        return []  # what the model declares contradicts itself: nothing is known for sure
    return _entries(graph)


def _entries(graph: onnx.GraphProto) -> Sequence[onnx.ValueInfoProto]:
    return [*graph.input, *graph.value_info, *graph.output]


def fix_inputs(model: onnx.ModelProto, extents: Mapping[str, Sequence[int]]) -> None:
    """Give inputs other shapes than the model declares (or leaves open).

    Args:
        model: It is changed; what it says of shapes behind its inputs is removed, since that was found for others.
        extents: Shapes by the inputs' names.
    """
    if not extents:
        return
    for value in model.graph.input:
        if value.name in extents:
            value.type.tensor_type.ClearField("shape")
            for extent in extents[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = extent
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def contradicts(model: onnx.ModelProto, extents: Mapping[str, Sequence[int]]) -> bool:
    """Whether operators cannot do with what inputs of these shapes, by name, become on the way to them."""
    copy = structure(model)
    fix_inputs(copy, extents)
    try:
        onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=not _has_long_vectors(copy))
    except (onnx.shape_inference.InferenceError, ValueError, MemoryError):
        return True
    return False


def _has_long_vectors(model: onnx.ModelProto) -> bool:
    """Whether operators make vectors as long as a number says: propagating data makes a symbol of each element."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    growing = (node for node in model.graph.node if node.op_type in _GROWING)
    if all(_is_told_little(node, constants) for node in growing):
        return False
    known = declared(onnx.shape_inference.infer_shapes(model).graph)
    return any(
        isinstance(shape[0], int) and shape[0] > _LONG for shape in known.shapes.values() if len(shape) == 1
    )


def _is_told_little(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether an operator makes no long vector of short ones, by the numbers that it is given."""
    slot = _EXTENTS.get(node.op_type, len(node.input))
    numbers = constants.get(node.input[slot]) if slot < len(node.input) else None
    return numbers is not None and bool(np.max(storage.values(numbers), initial=0) <= _LONG)


def of_value(entry: onnx.ValueInfoProto) -> Shape | None:
    """The shape that a value's declared type gives, None for one of unknown rank or for no tensor."""
    if not entry.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_param or None if _is_open(dim) else dim.dim_value for dim in entry.type.tensor_type.shape.dim
    )


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether an extent is not known: some exporters write -1 for that."""
    return not dim.HasField("dim_value") or dim.dim_value < 1


def structure(
    model: onnx.ModelProto,
    nodes: Sequence[Node] | None = None,
    written: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> onnx.ModelProto:
    """A copy of the model in which each large constant is an input of its shape.

    Args:
        model: The model.
        nodes: What to put in the place of the main graph's nodes, where they were read already or are others.
        written: Vectors of integers that these need, by name.
    """
    copy = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    source, graph = model.graph, copy.graph
    nodes = read(source.node) if nodes is None else nodes
    graph.name = source.name
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    for entry in (*graph.input, *graph.output, *graph.value_info):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_value < 1:
                dim.ClearField("dim_value")  # shape inference computes with what stands there
    known = {entry.name for entry in source.input}
    for tensor in source.initializer:
        _add_constant(graph, tensor, tensor.name, known)
    for name, values in written.items():
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
    for sparse in source.sparse_initializer:
        if sparse.values.name not in known:
            _add_input(graph, sparse.values.name, sparse.values.data_type, sparse.dims)
    kept = []
    for node in nodes:
        if node.op_type == "Constant" and _is_large(node):
            _add_constant(graph, node.attribute[0].t, node.output[0], known)
        else:
            kept.append(node)
    graph.node.extend([node.proto for node in kept])
    # What is inside other nodes is rarely large, and has no inputs that could take its place.
    holders = (at for at, node in enumerate(kept) if node.domain or node.op_type in CONTAINERS)
    storage.fill_in(graph.node[at] for at in holders)
    storage.fill_in(node for function in copy.functions for node in function.node)
    return copy


def list_constants(graph: onnx.GraphProto) -> None:
    """Make each initializer an input, too, unless it is one."""
    known = {entry.name for entry in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in known:
            _add_input(graph, tensor.name, tensor.data_type, tensor.dims)


def _is_large(node: Node) -> bool:
    first = node.attribute[0] if len(node.attribute) == 1 else None
    return first is not None and first.name == "value" and _large(first.t.dims)


class _Simplified:
    """The nodes that shape inference needs, with the integers that the graph computes written out.

    Inference follows little of such arithmetic. Nor need it know where a scatter goes, which may be nine tenths
    of the nodes: its output is shaped like what it scatters into.

    Attributes:
        nodes: In the graph's order.
        written: Integers by the name that stands for them.
    """

    def __init__(self, graph: onnx.GraphProto, integers: Integers, nodes: Sequence[Node]) -> None:
        self.nodes: list[Node] = []
        self.written: dict[str, Sequence[int]] = {}
        self._integers = integers
        producers = {name: node.op_type for node in nodes for name in node.output}
        self._computed = {name for name, op_type in producers.items() if op_type != "Constant"}
        used = {entry.name for entry in graph.output}
        # A tensor of which only the shape is used is wanted, too; what computes with shapes is not.
        measured = (node.input[0] for node in nodes if node.op_type == "Shape" and node.input)
        used.update(name for name in measured if producers.get(name) in _MOVING)
        whole = any(node.graphs for node in nodes)
        for node in reversed(nodes):
            if whole or not used.isdisjoint(node.output):
                simple = self._simple(node)
                used.update(simple.input)
                self.nodes.append(simple)
        self.nodes.reverse()

    def _simple(self, node: Node) -> Node:
        if node.domain:
            return node
        if node.op_type in ("ScatterND", "ScatterElements"):
            return Node(helper.make_node("Identity", node.input[:1], node.output))
        inputs = list(node.input)
        for slot in _INTEGERS.get(node.op_type, ()):
            if slot < len(inputs) and inputs[slot] in self._computed:
                inputs[slot] = self._write(inputs[slot])
        if inputs == list(node.input):
            return node
        written = onnx.NodeProto()
        written.CopyFrom(node.proto)
        written.input[:] = inputs
        return Node(written)

    def _write(self, name: str) -> str:
        stand_in = f"{name}/written_out"
        if stand_in not in self.written:
            found = self._integers(name)
            if found is None:
                return name
            self.written[stand_in] = found
        return stand_in


_MOVING = frozenset({"Identity", "Pad", "Reshape", "ScatterElements", "ScatterND", "Slice", "Transpose"})

_INTEGERS = {"Expand": (1,), "Pad": (1, 3), "Reshape": (1,), "Slice": (1, 2, 3, 4), "Unsqueeze": (1,)}
"""Operands that say what shape an output has."""


def _add_constant(graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str, known: set[str]) -> None:
    if not _large(tensor.dims):
        graph.initializer.append(tensor)
        graph.initializer[-1].name = name
    elif name not in known:
        _add_input(graph, name, tensor.data_type, tensor.dims)


def _add_input(graph: onnx.GraphProto, name: str, data_type: int, dims: Iterable[int]) -> None:
    kind = graph.input.add(name=name).type.tensor_type
    kind.elem_type = data_type
    kind.shape.SetInParent()
    for extent in dims:
        kind.shape.dim.add(dim_value=extent)


def _large(dims: Iterable[int]) -> bool:
    return math.prod(dims) > _SMALL
