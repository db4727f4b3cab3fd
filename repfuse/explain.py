"""Why a join was left alone: one refusal for each, which names the node that stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repfuse import cost
from repfuse.choose import Candidate
from repfuse.groups import Groups, Operand
from repfuse.remarks import Outcome, Remark
from repfuse.window import Refusal

_SEARCHED = 64
"""How many nodes back from a join a tensor that its operands share is looked for."""


def refusals(groups: Groups, chosen: Sequence[Candidate]) -> list[Remark]:
    """A remark for each join whose operands share a source in some way, a Conv among them, and that stays."""
    gone = {position for candidate in chosen for position in candidate.replaced}
    inner: set[int] = set()
    remarks = []
    for position in sorted(groups.joins, reverse=True):
        if position in gone or position in inner:
            continue
        operands, joins = groups.flattened(position)
        inner.update(joins)
        found = _reason(groups, operands)
        if found:
            message, blocker = found
            node = groups.scope.name(position)
            remarks.append(Remark(Outcome.REFUSED, node, message, blocker, groups.scope.label))
    return remarks[::-1]


def _reason(groups: Groups, operands: Sequence[Operand]) -> tuple[str, str] | None:
    """Why the operands of a join cannot be merged, and the node that is to blame; None if they are no group."""
    shared = _shared_source(groups, operands)
    if shared is not None:
        source, mine = shared
        return _why_not_merged(groups, source, mine)
    for position, reason in _obstacles(groups, operands):
        name = groups.scope.name(position)
        return f"{name} {reason}; it stands between a branch and the join", name
    return None


def _shared_source(groups: Groups, operands: Sequence[Operand]) -> tuple[str, list[Operand]] | None:
    """The first source from which several operands follow linearly, one of them through a Conv."""
    for first in operands:
        for source in groups.forms(first.tensor):
            mine = [operand for operand in operands if source in groups.forms(operand.tensor)]
            if len(mine) > 1 and any(groups.forms(operand.tensor)[source].is_weighted for operand in mine):
                return source, mine
    return None


def _why_not_merged(groups: Groups, source: str, operands: Sequence[Operand]) -> tuple[str, str]:
    windows = [groups.forms(operand.tensor)[source].window for operand in operands]
    total = groups.sum(windows, source)
    if isinstance(total, Refusal):
        return f"cannot be merged: {total.reason}", ""
    for operand in operands:
        user = _outside_user(groups, operand, source)
        if user:
            return f"would add work: '{operand.tensor}' must stay, since {user} uses it as well", user
    taps = " + ".join(str(each.taps) for each in windows)
    if cost.slow_alone(total):
        return "would be slower: a depthwise 13x13 Conv runs slowly on OpenVINO where no Add follows it", ""
    return f"would not pay: {taps} taps would become {total.taps}, group {total.group}", ""


def _outside_user(groups: Groups, operand: Operand, source: str) -> str:
    """Who else uses an operand that would otherwise go."""
    if operand.tensor == source:
        return ""
    if operand.tensor in groups.scope.kept:
        return "the graph's caller or a subgraph"
    users = [position for position in groups.scope.consumers(operand.tensor) if position not in groups.joins]
    return groups.scope.name(users[0]) if users else ""


def _obstacles(groups: Groups, operands: Sequence[Operand]) -> Iterator[tuple[int, str]]:
    """Nodes at which an operand stops being linear, though behind them is what another operand follows from."""
    if not any(_is_weighted(groups, operand) for operand in operands):
        return
    for operand in operands:
        others = {s for other in operands if other is not operand for s in groups.forms(other.tensor)}
        obstacle = _end_of_chain(groups, operand.tensor)
        if obstacle is not None and _descends(groups, obstacle[0], others):
            yield obstacle


def _is_weighted(groups: Groups, operand: Operand) -> bool:
    return any(form.is_weighted for form in groups.forms(operand.tensor).values())


def _end_of_chain(groups: Groups, tensor: str) -> tuple[int, str] | None:
    """The node behind the farthest source of a tensor, and why the chain ends there."""
    farthest = list(groups.forms(tensor))[-1]
    position = groups.scope.producer(farthest)
    if position is None:
        return None
    if position in groups.blocked:
        return position, groups.blocked[position].reason
    if groups.is_linear(position):
        return position, "computes a tensor from which the next op of the branch cannot be merged"
    return position, "is not linear"


def _descends(groups: Groups, position: int, ancestors: set[str]) -> bool:
    """Whether a node follows from one of the tensors, within a bounded number of nodes."""
    pending, seen = [position], {position}
    while pending and len(seen) < _SEARCHED:
        for name in groups.scope.nodes[pending.pop(0)].input:
            if name in ancestors:
                return True
            producer = groups.scope.producer(name)
            if producer is not None and producer not in seen:
                seen.add(producer)
                pending.append(producer)
    return False
