"""Why a join was left alone: one remark for each, which names the node that stands in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from repfuse.choose import Candidate
from repfuse.groups import WEIGHTED, Groups, Operand
from repfuse.merges import Merge, Rewrite
from repfuse.remarks import Outcome, Remark
from repfuse.savings import Savings
from repfuse.sequences import OF_NO_PATTERN, Reason, left, outside_user
from repfuse.window import Refusal

_SEARCHED = 32
"""How many nodes back from an operand a tensor that the operands of a join share is looked for."""

_NAMED = 3
"""How many ends of branches a remark names."""


def refusals(
    groups: Groups,
    chosen: Sequence[Candidate],
    made: Sequence[Candidate],
    fits: Callable[[Merge], bool] = lambda _: True,
) -> list[Remark]:
    """A remark for each join that stays, for each linear sequence that does, and for each node that makes no sense.

    A join is refused if its operands share a source in some way, with a weight on the way. One of which only some
    operands were merged has a remark, too, if another operand follows from their source.

    Args:
        groups: The graph.
        chosen: What was to be fused.
        made: What was fused of that; the others have their remarks already.
        fits: Whether a merge is of a kind that was asked for.
    """
    savings = Savings(groups, made)
    gone = {position for candidate in chosen for position in candidate.replaced}
    found = [
        *_invalid(groups),
        *_partial_joins(groups, made, fits, savings),
        *_joins(groups, gone, fits, savings),
        *left(groups, made, gone, fits, savings),
    ]
    return [remark for _, remark in sorted(found, key=lambda each: (not each[1].invalid, each[0]))]


Found = Iterator[tuple[int, Remark]]
"""Remarks, each with the position of its node."""


def _invalid(groups: Groups) -> Found:
    name = groups.scope.name
    for at, refusal in groups.blocked.items():
        if refusal.invalid:
            message = f"{name(at)} {refusal.reason}"
            yield at, Remark(Outcome.REFUSED, name(at), message, name(at), groups.scope.label, invalid=True)


def _partial_joins(
    groups: Groups, made: Sequence[Candidate], fits: Callable[[Merge], bool], savings: Savings
) -> Found:
    for candidate in made:
        root = candidate.root
        if not candidate.rest or root not in groups.joins:
            continue
        if reason := _left_out(groups, candidate):
            yield root, _remark(groups, Outcome.REFUSED, root, reason)
        for merge in candidate.merges:
            others = [each for each in candidate.rest if merge.source in groups.forms(each.tensor)]
            if others:
                operands = [*merge.terms, *others]
                (sentence, blocker), whole = _why_not_merged(groups, merge.source, operands, fits)
                rest = [part for part in candidate.rewrite.parts if part not in (merge, *others)]
                saving = savings.of(root, Rewrite((whole, *rest))) if whole else None
                reason = f"merged in part only: {sentence}", blocker
                yield root, _remark(groups, Outcome.KEPT, root, reason, saving)


def _joins(groups: Groups, gone: set[int], fits: Callable[[Merge], bool], savings: Savings) -> Found:
    inside = set(gone)
    for position in sorted(groups.joins.keys() - gone, reverse=True):
        if position in inside:
            continue
        operands, joins = groups.flattened(position)
        inside.update(joins)
        shared = _shared_source(groups, operands)
        if shared:
            reason, merge = _why_not_merged(groups, *shared, fits)
            rest = [operand for operand in operands if operand not in shared[1]]
            saving = savings.of(position, Rewrite((merge, *rest))) if merge else None
            yield position, _remark(groups, Outcome.REFUSED, position, reason, saving)
        elif blocked := _obstacle(groups, operands, of=operands):
            yield position, _remark(groups, Outcome.REFUSED, position, blocked)
        else:
            yield position, _remark(groups, Outcome.KEPT, position, _apart(groups, operands))


def _remark(
    groups: Groups, outcome: Outcome, position: int, reason: Reason, saving: float | None = None
) -> Remark:
    return Remark(outcome, groups.scope.name(position), *reason, groups.scope.label, saving=saving)


def _left_out(groups: Groups, candidate: Candidate) -> Reason | None:
    """Why an operand that follows from the source of merged ones was not merged with them."""
    merged = [term for merge in candidate.merges for term in merge.terms]
    reason = _obstacle(groups, [*candidate.rest, merged[0]], of=candidate.rest)
    return (f"merged in part only: {reason[0]}", reason[1]) if reason else None


def _apart(groups: Groups, operands: Sequence[Operand]) -> Reason:
    """Why the operands of a join are no group: where each of them ends to be linear."""
    ends = dict.fromkeys(list(groups.forms(operand.tensor))[-1] for operand in operands)
    if len(ends) == 1:
        return f"has no weight on the way from '{next(iter(ends))}', from which all its operands follow", ""
    makers = {end: groups.scope.producer(end) for end in ends}
    names = {end: f"'{end}'" if at is None else groups.scope.name(at) for end, at in makers.items()}
    blocker = next((names[end] for end, at in makers.items() if at is not None), "")
    listed = ", ".join(list(names.values())[:_NAMED])
    listed += f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"its operands follow from different tensors, those of {listed}", blocker


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
) -> tuple[Reason, Merge | None]:
    """Why branches of one source stay, and the merge of them if there is one."""
    windows = [groups.forms(operand.tensor)[source].window for operand in operands]
    total = groups.sum(windows, source)
    if isinstance(total, Refusal):
        return (f"cannot be merged: {total.reason}", ""), None
    merge = Merge(source, tuple(operands), total)
    if not fits(merge):
        return (OF_NO_PATTERN, ""), merge
    for operand in operands:
        if operand.tensor != source and (reason := outside_user(groups, operand.tensor, groups.joins)):
            return reason, merge
    taps = " + ".join(str(each.taps) for each in windows)
    return (f"would not pay: {taps} taps would become {total.taps}, group {total.group}", ""), merge


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
