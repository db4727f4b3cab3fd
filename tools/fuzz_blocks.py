"""Random blocks: branches of linear ops over one tensor and a join, most of them fusable, many just not.

Tables say how often each op is chosen. Near misses are where a wrong rule shows: an activation, a shift before
a padded kernel, a border of another width, a tensor inside that something else uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import fuzz_ops as ops
import numpy as np
from fuzz_graph import Graph, MisfitError
from fuzz_ops import Goal


def series(graph: Graph, source: str, goal: Goal) -> str:
    """Two kernels in a row, of which one moves as the goal says, and the other keeps extents."""
    same = Goal(goal.channels, (1,) * len(goal.strides), (0,) * len(goal.slacks))
    first, second = (goal, same) if graph.chance(0.5) else (same, goal)
    value = _window(graph, source, replace(first, channels=graph.pick([1, 2, 4])))
    value = linear(graph, value) if graph.chance(0.5) else value
    return _window(graph, value, second)


def nested(graph: Graph, source: str, goal: Goal) -> str:
    """A join of branches as a branch."""
    return join(graph, [branch(graph, source, goal) for _ in range(2)])


def linear(graph: Graph, value: str) -> str:
    """A few pointwise ops that are linear, nearly always."""
    while graph.chance(0.4):
        value = graph.pick(_POINTWISE)(graph, value)
    return value


def branch(graph: Graph, source: str, goal: Goal) -> str:
    """Ops in a row."""
    if graph.chance(0.1):
        source = linear(graph, source)
    return linear(graph, _window(graph, source, goal))


def join(graph: Graph, operands: Sequence[str]) -> str:
    """Add operands up, in a tree of any form."""
    left: list[str] = [operands[i] for i in graph.random.permutation(len(operands))]
    while len(left) > 1:
        if graph.chance(0.15):
            count = graph.number(2, len(left))
            left = [graph.add("Sum", left[:count]), *left[count:]]
        else:
            first, second = (left.pop(graph.number(0, len(left) - 1)) for _ in range(2))
            left.append(graph.add(graph.pick({"Add": 5, "Sub": 1}), [first, second]))
    return left[0]


def block(graph: Graph) -> str:
    """Branches over a tensor of the pool, other operands beside them, a tail and an activation."""
    source = graph.pick(graph.pool[-3:])
    shape = graph.values[source].shape
    rank = len(shape) - 2
    if rank < 0:
        raise MisfitError("a block needs channels")
    stride = graph.pick({1: 4, 2: 1})
    strides = (stride,) * rank if graph.chance(0.8) else tuple(graph.pick([1, 2]) for _ in range(rank))
    slack = graph.pick({0: 8, -1: 1, -2: 1, 1: 1})
    slacks = (slack,) * rank if graph.chance(0.8) else tuple(graph.pick([-2, -1, 0]) for _ in range(rank))
    channels = shape[1] if graph.chance(0.6) else graph.pick([1, 2, 3, 4, 6])
    goal = Goal(channels, strides, slacks)
    # One channel broadcasts.
    goals = {goal: 30, replace(goal, channels=1): 1}
    count = graph.pick({1: 1, 2: 4, 3: 4, 4: 1, 6: 0.5})
    operands = [branch(graph, source, graph.pick(goals)) for _ in range(count)]
    while graph.chance(0.2):
        operands.append(_foreign(graph, source, goal, operands))
    value = linear(graph, join(graph, operands))
    return graph.pick(_ACTIVATIONS)(graph, value) if graph.chance(0.7) else value


def _window(graph: Graph, source: str, goal: Goal) -> str:
    if graph.values[source].ndim != len(goal.strides) + 2:
        raise MisfitError("a constant gave the tensor more dimensions")
    return graph.pick(_WINDOWS)(graph, source, goal)


def _foreign(graph: Graph, source: str, goal: Goal, operands: Sequence[str]) -> str:
    """An operand of a join that is no branch of its source, or shares an inner tensor with one."""
    kind = graph.pick(["pool", "active", "pooled", "inner", "same"])
    if kind == "pool":
        return branch(graph, graph.pick(graph.pool), goal)
    if kind == "active":
        return graph.add("Relu", [branch(graph, source, goal)])
    if kind == "pooled":
        return branch(
            graph,
            graph.add("GlobalAveragePool", [source]),
            replace(goal, strides=(1,) * len(goal.strides), slacks=(0,) * len(goal.slacks)),
        )
    inner: str = graph.pick(operands)
    return linear(graph, inner) if kind == "inner" else inner


def _hard_swish(graph: Graph, value: str) -> str:
    """A HardSwish in several nodes, in one of the ways that exporters spell it, or one that none does."""
    if graph.chance(0.3):
        return graph.add("Mul", [value, graph.add("HardSigmoid", [value], alpha=1 / 6, beta=0.5)])
    shifted = graph.add("Add", [value, graph.constant_node(np.array(3.0))])
    gate = graph.add("Relu", [shifted]) if graph.chance(0.3) else _relu6(graph, shifted)
    op_type, number = graph.pick([("Div", 6.0), ("Mul", 1 / 6)])
    last: str = graph.pick([value, gate])
    first = gate if last == value else value
    if graph.chance(0.5):
        return graph.add(op_type, [graph.add("Mul", [value, gate]), graph.constant_node(np.array(number))])
    return graph.add("Mul", [last, graph.add(op_type, [first, graph.constant_node(np.array(number))])])


def _relu6(graph: Graph, value: str) -> str:
    if graph.opset < 11:
        return graph.add("Clip", [value], min=0.0, max=6.0)
    return graph.add("Clip", [value, *(graph.constant_node(np.array(bound)) for bound in (0.0, 6.0))])


def _simple(op_type: str) -> Callable[[Graph, str], str]:
    return lambda graph, value: graph.add(op_type, [value])


_POINTWISE: dict[Callable[[Graph, str], str], float] = {
    ops.batch_norm: 8, ops.scale_or_shift: 6, _simple("Identity"): 1, _simple("Dropout"): 0.5, _simple("Neg"): 1,
    _simple("Relu"): 0.7, _simple("Abs"): 0.2,
}  # fmt: skip

_WINDOWS: dict[Callable[[Graph, str, Goal], str], float] = {
    ops.conv: 10, ops.pointwise_conv: 5, ops.bare: 4, ops.pool: 2, ops.conv_auto_pad: 2, series: 4, nested: 1,
}  # fmt: skip

_ACTIVATIONS: dict[Callable[[Graph, str], str], float] = {
    _simple("Relu"): 5, _simple("Sigmoid"): 1, _simple("LeakyRelu"): 1, _hard_swish: 2,
}  # fmt: skip
