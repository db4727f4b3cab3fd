"""HardSwish that exporters spell out, written as the operator that it is.

Before version 14 of the operator set there is no HardSwish, so it exports as Add, Clip, Mul and Div (PaddlePaddle)
or as HardSigmoid and Mul (PyTorch). ONNX Runtime, which keeps tensors blocked by channels from Conv to Conv, has to
bring them back in order for the first of these; OpenVINO does not know the second one, which then takes several
passes. HardSwish as an operator is one pass on both. Its definition (operator version 14) is

    HardSwish(x) = x max(0, min(1, x / 6 + 0.5)) = x clip(x + 3, 0, 6) / 6
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnx import ModelProto, helper

from repfuse.algebra.window import Refusal
from repfuse.graph.idioms import Expression, X, matched
from repfuse.graph.patch import Patch
from repfuse.graph.quantized import quantizes_values
from repfuse.graph.view import Scope
from repfuse.remarks import Edit, Outcome, Remark, label
from repfuse.rewriting import opset
from repfuse.rewriting.rewrite import take_over_metadata

NAME = "HardSwish"
VERSION = 14
"""The operator set that has it."""

_CLIPS = (
    ("Clip", ("Add", X, 3.0), 0.0, 6.0),
    ("Clip", ("Add", X, 3.0), {"min": 0.0, "max": 6.0}),  # before operator version 11
)
_SIXTHS = (("Div", 6.0), ("Mul", 1 / 6))
_FORMS: tuple[Expression, ...] = (
    *((op, ("Mul", X, clip), number) for clip in _CLIPS for op, number in _SIXTHS),
    *(("Mul", X, (op, clip, number)) for clip in _CLIPS for op, number in _SIXTHS),
    *(("Mul", (op, X, number), clip) for clip in _CLIPS for op, number in _SIXTHS),
    ("Mul", X, ("HardSigmoid", X, {"alpha": 1 / 6, "beta": 0.5})),
)
_MARKS = {"Clip", "HardSigmoid"}


def hard_swishes(scope: Scope) -> Iterator[tuple[int, str, frozenset[int]]]:
    """Each HardSwish of a graph: its last node, what it acts on, and all nodes that nothing else needs."""
    if scope.operators.isdisjoint(_MARKS) or quantizes_values(scope):
        return
    for position, node in enumerate(scope.nodes):
        if node.op_type in ("Div", "Mul"):
            found = (matched(scope, node.output[0], form) for form in _FORMS)
            for x, nodes in filter(None, found):
                if _is_alone(scope, nodes - {position}, nodes) and _keeps_shape(scope, x, nodes):
                    yield position, x, nodes
                    break


def write(
    model: ModelProto,
    graphs: Sequence[Scope],
    wanted: Callable[[str, str], bool],
    *,
    keep_opset: bool,
) -> list[Edit | Remark]:
    """Write each HardSwish as one node, for which the model's operator set is raised if need be.

    Args:
        model: The model, which is changed.
        graphs: All its graphs; they are to be looked at anew where it was changed.
        wanted: Whether the HardSwish that computes a tensor is to be written; told the graph's label and it.
        keep_opset: Whether the version of the operator set must stay.

    Returns:
        A record for each; or one remark for the first, where there is an obstacle.
    """
    found = [(scope, *each) for scope in graphs for each in hard_swishes(scope)]
    found = [each for each in found if wanted(each[0].label, each[0].nodes[each[1]].output[0])]
    if not found:
        return []
    old = any(scope.opset < VERSION for scope, *_ in found)
    reason = "--keep-opset was given" if keep_opset else opset.obstacle(model, graphs, VERSION)
    if old and reason:
        scope, position, *_ = found[0]
        why = Refusal(f"is a HardSwish in several nodes: as one it needs opset {VERSION}, and {reason}")
        return [Remark(Outcome.KEPT, scope.name(position), why.reason, graph=scope.label)]
    patch = Patch(model, graphs)
    edits: list[Edit | Remark] = [_written(*each, patch) for each in found]
    if old:
        opset.raise_to(VERSION, model, graphs, patch)
    patch.apply()
    return edits


def _written(scope: Scope, position: int, x: str, nodes: frozenset[int], patch: Patch) -> Edit:
    output = scope.nodes[position].output[0]
    name = patch.fresh(f"{scope.nodes[position].name or output}/hard_swish")
    node = helper.make_node(NAME, [x], [output], name=name)
    take_over_metadata([node], [scope.nodes[each] for each in sorted(nodes)])
    patch.replace(scope, position, [node])
    return Edit(
        pattern=NAME,
        graph=scope.label,
        source=x,
        output=output,
        removed=tuple(scope.name(each) for each in sorted(nodes)),
        added=(label(NAME, name, [output]),),
        kernel="",
    )


def _is_alone(scope: Scope, inside: frozenset[int], nodes: frozenset[int]) -> bool:
    """Whether nothing but other nodes of a HardSwish needs what its inner nodes compute."""
    names = [name for position in inside for name in scope.nodes[position].output]
    return all(nodes.issuperset(scope.consumers(name)) and name not in scope.kept for name in names)


def _keeps_shape(scope: Scope, x: str, nodes: frozenset[int]) -> bool:
    """Whether the constants do not add an axis: those of shape (1,) would, if `x` had none."""
    inputs = (name for each in nodes for name in scope.nodes[each].input if name)
    constants = filter(None, map(scope.constants.find, inputs))
    return not any(constant.dims for constant in constants) or bool(scope.shape_of(x))
