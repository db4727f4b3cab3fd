"""Subgraphs that runtimes recognise and run as one kernel, so that no node of theirs may be folded away.

A GELU exports as Div, Erf, Add, Mul, Mul. Folding its last scalar into the next Conv is exact, and hides the
GELU from ONNX Runtime and OpenVINO: repvit_m0_9 then ran at 0.90 of its speed where it gains 1.11.

Each idiom is an expression over `X` (the tensor it acts on) and `C` (any constant, as a number stands for that
one); operands of Add and Mul may come in either order. To protect another one, add a row to `IDIOMS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from onnx import defs

from repfuse.graph.view import Scope
from repfuse.model.nodes import Node

Expression = str | float | tuple[Any, ...]
"""`X`, `C`, a number, or an operator (`|` between alternatives) with its operands, which are expressions, and at
the end the attributes that it must have, if that matters."""

X, C = "X", "C"

_ERF = ("Erf", ("Div|Mul", X, C))
_CUBES = (("Pow", X, C), ("Mul", X, ("Mul", X, X)))
_TANHS = (
    *(("Tanh", ("Mul", ("Add", X, ("Mul", cube, C)), C)) for cube in _CUBES),
    ("Tanh", ("Mul", ("Add", X, ("Mul", ("Mul", ("Mul", X, C), X), X)), C)),
    ("Tanh", ("Mul", ("Mul", X, C), ("Add", ("Mul", ("Mul", X, C), X), C))),
)
_GATE = ("Clip", ("Add", X, C), C, C)


def _gelus(curve: Expression) -> Iterator[tuple[Any, ...]]:
    """`0.5 * x * (1 + curve)` in the orders in which it is exported."""
    gate = ("Add", curve, C)
    yield ("Mul", ("Mul", X, gate), C)
    yield ("Mul", ("Mul", X, C), gate)
    yield ("Mul", X, ("Mul", gate, C))


_CENTRED = ("Sub", X, ("ReduceMean", X))
_NORMALIZED = tuple(
    ("Div", _CENTRED, ("Sqrt", ("Add", ("ReduceMean", square), C)))
    for square in (("Pow", _CENTRED, C), ("Mul", _CENTRED, _CENTRED))
)
_ROOT_MEAN_SQUARE = ("Sqrt", ("Add", ("ReduceMean", ("Pow", X, C)), C))

IDIOMS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    *(("a GELU", gelu) for curve in (_ERF, *_TANHS) for gelu in _gelus(curve)),
    ("a QuickGELU", ("Mul", X, ("Sigmoid", ("Mul", X, C)))),
    ("a HardSwish", ("Div|Mul", ("Mul", X, _GATE), C)),
    ("a HardSwish", ("Mul", X, ("Div|Mul", _GATE, C))),
    ("a HardSwish", ("Mul", X, _GATE)),  # and a factor that is elsewhere
    ("a HardSwish", ("Mul", X, ("HardSigmoid", X))),
    ("a HardSigmoid", ("Div|Mul", _GATE, C)),
    *(("a LayerNormalization", ("Add", ("Mul", normal, C), C)) for normal in _NORMALIZED),
    *(("a LayerNormalization", ("Mul", normal, C)) for normal in _NORMALIZED),
    ("a root mean square normalization", ("Mul", ("Div", X, _ROOT_MEAN_SQUARE), C)),
    ("a root mean square normalization", ("Mul", ("Mul", X, ("Reciprocal", _ROOT_MEAN_SQUARE)), C)),
    ("a root mean square normalization", ("Mul", ("Mul", X, ("Div", C, _ROOT_MEAN_SQUARE)), C)),
)
"""Longer idioms stand before those they contain."""

_COMMUTATIVE = {"Add", "Mul"}

Match = tuple[str, frozenset[int]]
"""What `X` stands for, empty while that is open; and the nodes."""


def idiom_nodes(scope: Scope) -> Mapping[int, str]:
    """The nodes of a graph that belong to an idiom, by position, with the idiom's name."""
    by_last: dict[str, list[tuple[str, tuple[Any, ...], Sequence[frozenset[str]]]]] = {}
    for name, idiom in IDIOMS:
        for operator in _operators(idiom[0]) if _may_occur(idiom, scope.operators) else ():
            by_last.setdefault(operator, []).append((name, idiom, _needs(idiom)))
    found: dict[int, str] = {}
    for node in scope.nodes:
        if node.op_type not in by_last:
            continue
        makers = [scope.nodes[at].op_type for at in map(scope.producer, node.input) if at is not None]
        for name, idiom, needs in by_last[node.op_type]:
            if any(need.isdisjoint(makers) for need in needs):  # as it is nearly always
                continue
            match = matched(scope, node.output[0], idiom)
            if match:
                found.update({member: found.get(member, name) for member in match[1]})
                break
    return found


def _may_occur(expression: Expression, operators: frozenset[str]) -> bool:
    """Whether all operators of an expression are among these."""
    if not isinstance(expression, tuple):
        return True
    known = not operators.isdisjoint(_operators(expression[0]))
    return known and all(_may_occur(each, operators) for each in expression[1:])


def _needs(idiom: tuple[Any, ...]) -> Sequence[frozenset[str]]:
    """The operators of which one each must compute an operand of an idiom's last node."""
    return [_operators(operand[0]) for operand in idiom[1:] if isinstance(operand, tuple)]


def matched(scope: Scope, tensor: str, expression: Expression) -> Match | None:
    """What `X` is and which nodes compute a tensor, if it is what an expression says."""
    return next(_matches(scope, tensor, expression, ""), None)


@cache
def _operators(alternatives: str) -> frozenset[str]:
    return frozenset(alternatives.split("|"))


def _matches(scope: Scope, tensor: str, expression: Expression, x: str) -> Iterator[Match]:
    """Ways in which a tensor is an expression, given what `X` stands for."""
    if expression == C:
        if not tensor or scope.constants.find(tensor) is not None:
            yield x, frozenset()
        return
    if isinstance(expression, float):
        if _is_number(scope, tensor, expression):
            yield x, frozenset()
        return
    if expression == X:
        if x in ("", tensor):
            yield tensor, frozenset()
        return
    position = scope.producer(tensor)
    if position is None:
        return
    node = scope.nodes[position]
    if node.op_type not in _operators(expression[0]):
        return
    operands = tuple(each for each in expression[1:] if not isinstance(each, Mapping))
    if any(not _has(node, scope, each) for each in expression[1:] if isinstance(each, Mapping)):
        return
    for order in permutations(operands) if node.op_type in _COMMUTATIVE else [operands]:
        for bound, nodes in _match_all(scope, node.input, order, x):
            yield bound, nodes | {position}


def _match_all(
    scope: Scope, tensors: tuple[str, ...], expressions: tuple[Any, ...], x: str
) -> Iterator[Match]:
    if not expressions:
        yield x, frozenset()
        return
    first, others = (
        (tensors[0], tensors[1:]) if tensors else ("", ())
    )  # an operand left out counts as a constant: its default
    for bound, nodes in _matches(scope, first, expressions[0], x):
        for final, more in _match_all(scope, others, expressions[1:], bound):
            yield final, nodes | more


def _is_number(scope: Scope, tensor: str, number: float) -> bool:
    """Whether a tensor is one number, as near as its type comes to it: a float of at most 32 bits."""
    constant = scope.constants.find(tensor) if tensor else None
    if constant is None or constant.size != 1 or len(constant.dims) > 1:
        return False
    value = constant.read().reshape(())
    return value.dtype.kind == "f" and value.itemsize <= 4 and bool(value == value.dtype.type(number))


def _has(node: Node, scope: Scope, attributes: Mapping[str, float]) -> bool:
    """Whether a node has attributes, or where it does not name them their defaults, of these values."""
    known = defs.get_schema(node.op_type, scope.opset).attributes
    return all(
        name in known and node.attributes.get(name, known[name].default_value.f) == np.float32(value)
        for name, value in attributes.items()
    )
