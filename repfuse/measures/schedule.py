"""What a model's activations take in memory while its nodes run in the order of the file: liveness from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from repfuse.graph.view import captured
from repfuse.model import model_io, shapes
from repfuse.model.nodes import subgraphs
from repfuse.remarks import label


@dataclass(frozen=True)
class Step:
    """One node as it runs.

    Attributes:
        node: Its label.
        bytes: What lives meanwhile: its outputs, and every tensor that it or a later node reads.
    """

    node: str
    bytes: int


@dataclass(frozen=True)
class Schedule:
    """A model's nodes in the order of the file.

    Attributes:
        steps: Each node that computes something at run time.
        unknown: Tensors of unknown type or shape, which count nothing.
    """

    steps: tuple[Step, ...]
    unknown: tuple[str, ...]

    @property
    def peak(self) -> Step | None:
        """The first of the steps that take most."""
        return max(self.steps, key=lambda step: step.bytes, default=None)


def schedule_file(path: Path, *, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Schedule:
    """The schedule of a model file, whose external data is not read.

    Args:
        path: A file that `model_io.load` accepts.
        input_shapes: Extents for the inputs of these names, in place of those that the model declares.
    """
    model = model_io.structure(path)
    shapes.fix_inputs(model, input_shapes or {})
    return schedule(model)


def schedule(model: ModelProto) -> Schedule:
    """The schedule of a model's main graph.

    Each node writes tensors of its own, which live until the last node has read them, outputs of the model until
    the end. Constants do not count, nor what nobody reads. A runtime may do better: write the sum of two tensors
    into one of them, or run nodes in another order.
    """
    constant = {tensor.name for tensor in model.graph.initializer}
    constant |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    nodes = [node for node in model.graph.node if not _constant(node, constant)]
    sizes = _sizes(model)
    last: dict[str, int] = {}
    for position, node in enumerate(nodes):
        last |= dict.fromkeys(_reads(node), position)
    last |= {value.name: len(nodes) for value in model.graph.output}
    live = {value.name for value in model.graph.input if value.name in last} - constant
    unknown = [name for name in live if name not in sizes]
    held = sum(sizes.get(name, 0) for name in live)
    steps = []
    for position, node in enumerate(nodes):
        made = [name for name in node.output if name in last]
        unknown += [name for name in made if name not in sizes]
        live.update(made)
        held += sum(sizes.get(name, 0) for name in made)
        steps.append(Step(label(node.op_type, node.name, node.output), held))
        done = {name for name in _reads(node) if name in live and last[name] <= position}
        live -= done
        held -= sum(sizes.get(name, 0) for name in done)
    return Schedule(tuple(steps), tuple(unknown))


def _constant(node: NodeProto, constant: set[str]) -> bool:
    """Whether a node computes a constant; if so, its outputs join them."""
    found = node.op_type == "Constant" or (
        bool(node.input) and constant.issuperset(filter(None, _reads(node)))
    )
    if found:
        constant.update(node.output)
    return found


def _reads(node: NodeProto) -> list[str]:
    """The tensors that a node reads, in the graphs inside it, too."""
    return [*node.input, *(name for _, graph in subgraphs(node.attribute) for name in captured(graph))]


def _sizes(model: ModelProto) -> dict[str, int]:
    """Bytes of each tensor whose type and extents are known."""
    sizes = {}
    for entry in shapes.infer_types(model):
        shape, kind = shapes.of_value(entry), entry.type.tensor_type.elem_type
        if shape is not None and kind != TensorProto.UNDEFINED:
            extents = [extent for extent in shape if isinstance(extent, int)]
            if len(extents) == len(shape):
                sizes[entry.name] = math.prod(extents) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    return sizes
