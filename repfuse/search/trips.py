"""Round trips: a tensor carried to another shape, scaled and shifted there, and carried back.

LeViT normalizes tokens as rows of one batch: MatMul, Flatten, BatchNormalization, and a Reshape to what it was.
SLAB normalizes along the channels, between two Transposes. The ops at both ends undo each other, so

    back(a carry(x) + b) = a x + b

along the axis that held the channels before. All of it is one linear op, which a kernel before or behind can take.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from repfuse.algebra import kernel
from repfuse.algebra.kernel import EquivalentKernel
from repfuse.algebra.window import Refusal, Window
from repfuse.families.patterns import Op
from repfuse.operators.carry import carry
from repfuse.operators.lifted import Lifted

if TYPE_CHECKING:
    from repfuse.search.groups import Groups

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""What keeps elements in their order."""


def round_trip(groups: Groups, position: int) -> Lifted | None:
    """Lift all between a tensor and the op that carries it back, if nothing there has a weight."""
    scope = groups.scope
    tensor = scope.nodes[position].input[0]
    for start, form in groups.forms(tensor).items():
        first = scope.producer(start)
        if first is None or form.is_weighted or not _undoes(groups, first, position):
            continue
        there = groups.carries.get(first) or carry(scope.nodes[first], scope)
        window = there.back(form.window) if there else None
        between = _between(groups, start, tensor)
        if there and window and between and between <= {*groups.lifted, *groups.joins}:
            read = partial(_placed, groups, start, tensor, between, window)
            inside = between | {first} | _asked(groups, there.source, first, position)
            return Lifted(there.source, window, read, (Op("bn"),), inside=inside)
    return None


def _asked(groups: Groups, source: str, first: int, last: int) -> frozenset[int]:
    """The op before the trip, which need not stay if only the op at the end of it asks for extents.

    That is, of all nodes but the first: what else uses what it computes would keep it anyway.
    """
    scope = groups.scope
    position = scope.producer(source)
    if position is None or not (position in groups.lifted or position in groups.joins):
        return frozenset()
    answers = [scope.nodes[user].output[0] for user in scope.consumers(source) if user != first]
    ends = all(set(scope.consumers(name)) <= {last} and name not in scope.kept for name in answers)
    return frozenset({position} if ends else ())


def _undoes(groups: Groups, first: int, last: int) -> bool:
    """Whether an op that carries channels puts every element back to where another one took it from."""
    scope = groups.scope
    there, back = scope.nodes[first], scope.nodes[last]
    if there.op_type == back.op_type == "Transpose":
        orders = [node.attributes.get("perm") for node in (there, back)]
        shape = scope.shape_of(there.input[0])
        rank = range(len(shape or ()))
        one, two = (list(order or rank[::-1]) for order in orders)
        return bool(rank) and [one[axis] for axis in two] == list(rank)
    if not {there.op_type, back.op_type} <= _RESHAPES:
        return False
    if back.op_type == "Reshape" and _is_shape_of(groups, back.input[1], there.input[0]):
        return True
    before, after = scope.shape_of(there.input[0]), scope.shape_of(back.output[0])
    return before is not None and None not in before and before == after


def _is_shape_of(groups: Groups, shape: str, tensor: str) -> bool:
    """Whether a tensor is the whole shape of another one."""
    position = groups.scope.producer(shape)
    node = groups.scope.nodes[position] if position is not None else None
    return node is not None and node.op_type == "Shape" and node.input[0] == tensor and not node.attribute


def _between(groups: Groups, start: str, tensor: str) -> frozenset[int]:
    """The nodes that lead from one tensor to another one, which follows from it alone."""
    found: set[int] = set()
    pending = [tensor]
    while pending:
        name = pending.pop()
        position = groups.scope.producer(name)
        if name != start and position is not None and position not in found:
            found.add(position)
            pending += groups.data_inputs(position)
    return frozenset(found)


def _placed(
    groups: Groups, start: str, tensor: str, between: frozenset[int], window: Window
) -> EquivalentKernel:
    """The scale and shift, for the axis that holds the channels before the trip."""
    known = {start: kernel.identity()}
    for position in sorted(between):
        (output,) = groups.scope.nodes[position].output[:1]
        if position in groups.lifted:
            lifted = groups.lifted[position]
            known[output] = kernel.compose(known[lifted.source], lifted.kernel())
            continue
        signs = {sign: kernel.affine(np.full(1, sign), np.zeros(1)) for sign in (1, -1)}
        terms = [
            kernel.compose(known[operand.tensor], signs[operand.sign]) for operand in groups.joins[position]
        ]
        total = groups.sum([term.window for term in terms], start)
        assert not isinstance(total, Refusal)
        known[output] = kernel.add(terms, total)
    return kernel.placed(known[tensor], window)
