"""Nodes as they were read: protobuf makes each value anew whenever it is asked for, and the pass asks often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, helper

_VALUES: dict[int, Callable[[AttributeProto], Any]] = defaultdict(
    lambda: helper.get_attribute_value,
    {
        AttributeProto.INT: attrgetter("i"),
        AttributeProto.INTS: lambda attribute: tuple(attribute.ints[:]),
        AttributeProto.FLOAT: attrgetter("f"),
        AttributeProto.STRING: attrgetter("s"),
    },
)
"""Ways to an attribute's value, by its type; those of the linear operators without onnx's own detour."""

_REFERENCE = attrgetter("ref_attr_name")


class Node:
    """What a `NodeProto` says, read once; the node itself must not be changed meanwhile.

    Attributes:
        proto: The node itself.
        op_type: Its operator.
        domain: The set that its operator is of; empty for ONNX's own.
        name: Its name.
        input: Names of its inputs, empty where one is left out.
        output: Names of its outputs likewise.
        attribute: Its attributes as they are.
        graphs: The graphs that it carries as attributes, with the attributes' names.
        refers: Whether it has attributes that its function's caller sets.
    """

    def __init__(self, proto: NodeProto) -> None:
        self.proto = proto
        self.op_type = proto.op_type
        domain = proto.domain
        self.domain = "" if domain == "ai.onnx" else domain
        self.name = proto.name
        # Protobuf slices a repeated field twice as fast as it iterates over it.
        self.input = tuple(proto.input[:])
        self.output = tuple(proto.output[:])
        self.attribute = attribute = tuple(proto.attribute[:])
        self.graphs = tuple(subgraphs(attribute)) if attribute else ()
        self.refers = any(map(_REFERENCE, attribute))

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """The values of its attributes by name; strings are bytes."""
        return {each.name: _VALUES[each.type](each) for each in self.attribute}

    def is_onnx(self, op_type: str) -> bool:
        """Whether it is of this operator of ONNX's own set."""
        return self.op_type == op_type and not self.domain


def read(protos: Iterable[NodeProto]) -> Sequence[Node]:
    """All nodes of a graph."""
    return [Node(proto) for proto in protos]


def subgraphs(attributes: Iterable[AttributeProto]) -> Iterator[tuple[str, GraphProto]]:
    """The graphs among a node's attributes, with the attributes' names."""
    for attribute in attributes:
        kind = attribute.type
        if kind == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif kind == AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                yield attribute.name, graph
