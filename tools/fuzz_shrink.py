"""Cutting a failing model down: one output only, and inputs in the place of what is computed before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fuzz_graph import Case, used_by
from fuzz_oracle import Array, evaluate
from onnx import ModelProto, NodeProto, ValueInfoProto, helper


class Result(Protocol):
    """What came of an attack: `problem` is empty if nothing is wrong, else a kind and, behind a colon, the rest."""

    @property
    def problem(self) -> str:
        """What is wrong."""


def shrunk(case: Case, attack: Callable[[Case], Result]) -> Case:
    """The smallest part found of a failing case that fails in the same way.

    Args:
        case: A case that fails.
        attack: Tells what is wrong with a case; may raise.
    """

    def kind(part: Case) -> str:
        return attack(part).problem.partition(":")[0]

    way = kind(case)

    def fails(part: Case) -> bool:
        try:
            return kind(part) == way
        except Exception:  # what was cut in the wrong place cannot be run
            return False

    cutter = _Cutter(case)
    case = next(filter(fails, cutter.ends()), case)
    return next(filter(fails, cutter.starts(case)), case)


@dataclass
class _Cutter:
    """Parts of a model."""

    whole: Case

    def __post_init__(self) -> None:
        self.nodes = [node for node in self.whole.model.graph.node if node.op_type != "Constant"]
        self.values = self._values()

    def ends(self) -> Iterator[Case]:
        """The model up to each of its nodes, from the first node on."""
        return (self._part({}, [node.output[0]]) for node in self.nodes)

    def starts(self, case: Case) -> Iterator[Case]:
        """A part of the model from each of its nodes on, from the last: what that computes is fed."""
        outputs = [entry.name for entry in case.model.graph.output]
        for node in reversed(self.nodes):
            if node.output[0] not in outputs:
                yield self._part({node.output[0]: self.values[node.output[0]]}, outputs)

    def _values(self) -> Mapping[str, Array]:
        names = [node.output[0] for node in self.nodes]
        probe = ModelProto()
        probe.CopyFrom(self.whole.model)
        _set(probe.graph.output, [helper.make_empty_tensor_value_info(name) for name in names])
        return dict(zip(names, evaluate(probe, self.whole.feeds), strict=True))

    def _part(self, given: Mapping[str, Array], outputs: Sequence[str]) -> Case:
        model = ModelProto()
        model.CopyFrom(self.whole.model)
        graph = model.graph
        nodes = _needed(graph.node, set(given), outputs)
        used = {name for node in nodes for name in used_by(node)}
        kind = self.whole.model.graph.output[0].type.tensor_type.elem_type

        def entry(name: str) -> ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, self.values[name].shape)

        inputs = [each for each in graph.input if each.name in used]
        _set(graph.input, [*inputs, *map(entry, given)])
        _set(graph.output, map(entry, outputs))
        _set(graph.node, nodes)
        _set(graph.initializer, [each for each in graph.initializer if each.name in used])
        feeds = {name: value for name, value in self.whole.feeds.items() if name in used}
        return replace(self.whole, model=model, feeds={**feeds, **given})


def _needed(nodes: Sequence[NodeProto], given: set[str], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that compute `outputs` from the inputs and `given`."""
    wanted, needed = set(outputs), []
    for node in reversed(nodes):
        if wanted & (set(node.output) - given):
            needed.append(node)
            wanted.update(used_by(node))
    return needed[::-1]


def _set(field: Any, entries: Iterable[Any]) -> None:
    """Replace what a repeated field of a message holds."""
    copies = copy.deepcopy(list(entries))
    del field[:]
    field.extend(copies)
