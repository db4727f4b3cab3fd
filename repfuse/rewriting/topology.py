"""A merge as patterns see it: which ops lie on each branch, and which behind the join."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from repfuse.choice.merges import Merge
from repfuse.families.patterns import Op, Topology
from repfuse.search.groups import Groups, Operand

_MOST_BRANCHES = 64
"""Nested joins multiply paths; a group of more branches than this is described by its first ones."""

_MOST_OPS = 128
"""A branch or tail of more ops than this is described by its last ones: groups in a row may all be as long."""

_NEG = Op("neg")
_CONCAT = Op("concat")
_AFFINE = {"scale", "shift"}
_NO_OPS: tuple[Op, ...] = ()


def topology(groups: Groups, merge: Merge) -> Topology:
    """Spell a merge out as branches and a tail."""
    operands, tail = list(merge.terms), _NO_OPS
    if len(operands) == 1:
        operands, tail = _outermost_join(groups, merge)
    end = (_CONCAT,) if merge.stacked else _NO_OPS
    behind = _tail(groups, merge)
    if len(operands) == 1 and not tail:  # no join of its own
        end += behind
    else:
        tail += behind
    paths = (path for operand in operands for path in _paths(groups, operand, merge, end))
    branches = tuple(islice(paths, _MOST_BRANCHES))
    head = _shared_head(branches) if len(branches) > 1 else 0
    return Topology(tuple(branch[head:] for branch in branches), tail)


def _tail(groups: Groups, merge: Merge) -> tuple[Op, ...]:
    """The ops behind joins with other tensors."""
    ops: tuple[Op, ...] = ()
    for step in merge.tail:
        ops += (_NEG,) if step.position is None else groups.lifted[step.position].ops
    return ops


def _shared_head(branches: Sequence[tuple[Op, ...]]) -> int:
    """How many scales and shifts all branches begin with: those before the tensor that they share."""
    columns = zip(*branches, strict=False)
    return sum(1 for _ in takewhile(lambda ops: ops[0].kind in _AFFINE and len(set(ops)) == 1, columns))


def _outermost_join(groups: Groups, merge: Merge) -> tuple[list[Operand], tuple[Op, ...]]:
    """The operands of the last join on the way to a merge's only term, and the ops behind that join."""
    tensor, tail = merge.terms[0].tensor, _NO_OPS
    while tensor != merge.source:
        position = groups.scope.producer(tensor)
        assert position is not None
        if position in groups.joins:
            return list(groups.joins[position]), tail
        if position in merge.path or position in groups.carries:
            tensor = groups.passed[position].source
            continue
        if position in groups.stacks:
            break
        lifted = groups.op(tensor)
        assert lifted is not None
        tensor, tail = lifted.source, lifted.ops + tail
        if len(tail) > _MOST_OPS:
            break
    return [merge.terms[0]], ()


_Chain = tuple[tuple[Op, ...], "_Chain"] | tuple[()]
"""Ops and the chain of those behind them: branches that part share what is behind."""


def _paths(groups: Groups, operand: Operand, merge: Merge, end: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """The ops on every way from the source to an operand, and `end`. A loop: ways may be thousands of ops long."""
    pending: list[tuple[Operand, _Chain, int]] = [(operand, (end, ()), 0)]
    while pending:
        operand, after, ops = pending.pop()
        if operand.sign < 0:
            after = ((_NEG,), after)
        if operand.tensor == merge.source or ops > _MOST_OPS:
            yield _unchained(after)
            continue
        position = groups.scope.producer(operand.tensor)
        assert position is not None
        if position in groups.joins:
            pending += [(inner, after, ops) for inner in reversed(groups.joins[position])]
        elif position in merge.path or position in groups.carries:
            pending.append((Operand(groups.passed[position].source, 1), after, ops))
        elif position in groups.stacks:
            after = ((_CONCAT,), after)
            pending += [(Operand(name, 1), after, ops) for name in reversed(groups.stacks[position])]
        else:
            lifted = groups.op(operand.tensor)
            assert lifted is not None
            pending.append((Operand(lifted.source, 1), (lifted.ops, after), ops + len(lifted.ops)))


def _unchained(chain: _Chain) -> tuple[Op, ...]:
    ops: list[Op] = []
    while chain:
        first, chain = chain
        ops += first
    return tuple(ops)
