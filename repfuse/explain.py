"""Why a join was left alone: one refusal for each, which names the node that stands in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from repfuse.choose import Candidate
from repfuse.groups import WEIGHTED, Groups, Operand
from repfuse.remarks import Outcome, Remark
from repfuse.ways import Merge
from repfuse.window import Refusal

_SEARCHED = 32
"""How many nodes back from an operand a tensor that the operands of a join share is looked for."""


def refusals(
    groups: Groups, chosen: Sequence[Candidate], fits: Callable[[Merge], bool] = lambda _: True
) -> list[Remark]:
    """A remark for each join whose operands share a source in some way, with a weight on the way, and that stays.

    A join of which only some operands were merged has one, too, if another operand follows from their source; and
    so has each node that makes no sense.
    """
    label, name = groups.scope.label, groups.scope.name
    invalid = [
        Remark(Outcome.REFUSED, name(at), f"{name(at)} {refusal.reason}", name(at), label, invalid=True)
        for at, refusal in sorted(groups.blocked.items())
        if refusal.invalid
    ]
    partial = (each for each in chosen if each.rest and each.root in groups.joins)
    found = [(each.root, _left_out(groups, each)) for each in partial]
    gone = {position for candidate in chosen for position in candidate.replaced}
    for position in sorted(groups.joins.keys() - gone, reverse=True):
        if position not in gone:
            operands, joins = groups.flattened(position)
            gone.update(joins)
            found.append((position, _reason(groups, operands, fits)))
    return invalid + [
        Remark(Outcome.REFUSED, name(position), *reason, label)
        for position, reason in sorted(found, key=lambda each: each[0])
        if reason
    ]


Reason = tuple[str, str]
"""A sentence, and the node that is to blame; empty where no single one is."""


def _left_out(groups: Groups, candidate: Candidate) -> Reason | None:
    """Why an operand that follows from the source of merged ones was not merged with them."""
    merged = [term for merge in candidate.merges for term in merge.terms]
    reason = _obstacle(groups, [*candidate.rest, merged[0]], of=candidate.rest)
    return (f"merged in part only: {reason[0]}", reason[1]) if reason else None


def _reason(groups: Groups, operands: Sequence[Operand], fits: Callable[[Merge], bool]) -> Reason | None:
    """Why the operands of a join were not merged; None if they are no group."""
    shared = _shared_source(groups, operands)
    if shared is not None:
        return _why_not_merged(groups, *shared, fits)
    return _obstacle(groups, operands, of=operands)


def _shared_source(groups: Groups, operands: Sequence[Operand]) -> tuple[str, list[Operand]] | None:
    """The first source from which several operands follow linearly, one of them through a weight."""
    shared: dict[str, list[Operand]] = {}
    for operand in operands:
        for source in groups.forms(operand.tensor):
            shared.setdefault(source, []).append(operand)
    for source, mine in shared.items():
        if len(mine) > 1 and any(groups.forms(operand.tensor)[source].is_weighted for operand in mine):
            return source, mine
    return None


def _why_not_merged(
    groups: Groups, source: str, operands: Sequence[Operand], fits: Callable[[Merge], bool]
) -> Reason:
    windows = [groups.forms(operand.tensor)[source].window for operand in operands]
    total = groups.sum(windows, source)
    if isinstance(total, Refusal):
        return f"cannot be merged: {total.reason}", ""
    if not fits(Merge(source, tuple(operands), total)):
        return "is of no pattern that was asked for", ""
    for operand in operands:
        user = _outside_user(groups, operand, source)
        if user:
            name = user if user != _CALLER else ""
            return f"would add work: '{operand.tensor}' must stay, since {user} uses it as well", name
    taps = " + ".join(str(each.taps) for each in windows)
    return f"would not pay: {taps} taps would become {total.taps}, group {total.group}", ""


_CALLER = "the graph's caller or a subgraph"


def _outside_user(groups: Groups, operand: Operand, source: str) -> str:
    """Who else uses an operand that would otherwise go."""
    if operand.tensor == source:
        return ""
    if operand.tensor in groups.scope.kept:
        return _CALLER
    users = [position for position in groups.scope.consumers(operand.tensor) if position not in groups.joins]
    return groups.scope.name(users[0]) if users else ""


def _obstacle(groups: Groups, operands: Sequence[Operand], *, of: Sequence[Operand]) -> Reason | None:
    """The node at which one `of` the operands stops being linear, if from before it another operand follows."""
    origins = {operand.tensor: _origins(groups, operand.tensor) for operand in operands}
    weighted = any(form.is_weighted for operand in operands for form in groups.forms(operand.tensor).values())
    times = Counter(name for found in origins.values() for name in found)
    for operand in of:
        mine = origins[operand.tensor]
        end = _end_of_chain(groups, operand.tensor)
        if end is None or times[operand.tensor] > 1 or all(times[name] < 2 for name in mine):
            continue
        position, reason = end
        outputs = groups.scope.nodes[position].output
        if any(times[name] > (name in mine) for name in outputs):  # that node stands before the branches
            continue
        if weighted or any(origin is not None for origin in mine.values()):
            name = groups.scope.name(position)
            return f"{name} {reason}; it stands between a branch and the join", name
    return None


def _end_of_chain(groups: Groups, tensor: str) -> tuple[int, str] | None:
    """The node that keeps the next tensor from being a source of this one, and why."""
    farthest = list(groups.forms(tensor))[-1]
    position = groups.scope.producer(farthest)
    if position is not None and groups.is_linear(position) and position not in groups.carries:
        # That node is linear, so one between here and there cannot be merged with it.
        position = _blocked_between(groups, tensor, farthest)
    if position is None:
        return None
    return position, groups.blocked.get(position, Refusal("is not linear")).reason


def _blocked_between(groups: Groups, tensor: str, source: str) -> int | None:
    """The blocked node nearest to `source` on the way to a tensor."""
    found = None
    start = groups.scope.producer(source) or 0
    pending, seen = [tensor], {tensor, source}
    while pending:
        position = groups.scope.producer(pending.pop(0))
        if position is not None and position >= start:  # nodes are sorted: what is before is not on the way
            found = position if position in groups.blocked else found
            inputs = [name for name in groups.data_inputs(position) if name not in seen]
            seen.update(inputs)
            pending += inputs
    return found


def _origins(groups: Groups, tensor: str) -> dict[str, int | None]:
    """Tensors that one follows from, within a bounded number of nodes, each with a weighted node that uses it."""
    origins: dict[str, int | None] = {tensor: None}
    pending, weighted = [tensor], None
    for name in pending:
        position = groups.scope.producer(name)
        if position is None or len(pending) > _SEARCHED:
            continue
        node = groups.scope.nodes[position]
        weighted = position if node.op_type in WEIGHTED else weighted
        for source in node.input:
            if source and source not in origins and groups.scope.constants.find(source) is None:
                origins[source] = weighted
                pending.append(source)
    return origins
