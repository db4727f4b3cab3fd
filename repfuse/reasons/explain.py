"""Why a sum or Concat was left alone: one remark for each, which names the node that stands in the way."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from repfuse.algebra.window import Refusal
from repfuse.choice.choose import Candidate
from repfuse.choice.merges import Merge, Part, Rewrite
from repfuse.reasons.savings import Savings
from repfuse.reasons.sequences import OF_NO_PATTERN, Reason, left, outside_user
from repfuse.remarks import Outcome, Remark
from repfuse.search.groups import WEIGHTED, Groups, Operand

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

    A sum is refused if its operands share a source in some way, with a weight on the way. A sum or Concat of which
    something is left behind the Convs has a remark, too.

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
        *_joins(groups, made, gone, fits, savings),
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


def _joins(
    groups: Groups,
    made: Sequence[Candidate],
    gone: Collection[int],
    fits: Callable[[Merge], bool],
    savings: Savings,
) -> Found:
    for position, whole in _wholes(groups, made, gone):
        told = _judged(groups, whole, fits)
        outcome = Outcome.REFUSED if told.is_group and whole.stack is None else Outcome.KEPT
        reason = told.reason
        if whole.merges:
            reason = f"merged in part only: {reason[0]}", reason[1]
        saving = savings.of(position, told.instead) if told.instead else None
        name, graph = groups.scope.name(position), groups.scope.label
        yield position, Remark(outcome, name, *reason, graph, saving=saving)


def _wholes(
    groups: Groups, made: Sequence[Candidate], gone: Collection[int]
) -> Iterator[tuple[int, Rewrite]]:
    """The sums and Concats that are there after fusing, each with its last node; not those inside others."""
    for candidate in made:
        if len(candidate.rewrite.parts) > 1:
            yield candidate.root, candidate.rewrite
    inside = set(gone)
    for position in sorted(groups.joins.keys() - gone, reverse=True):
        if position not in inside:
            operands, joins = groups.flattened(position)
            inside.update(joins)
            yield position, Rewrite(operands)
    for position in groups.stacks.keys() - gone:
        yield position, Rewrite(tuple(Operand(name, 1) for name in groups.stacks[position]), position)


class _Told(NamedTuple):
    """Why the parts of a sum or Concat are not one Conv.

    Attributes:
        reason: The sentence.
        is_group: Whether there are branches of one source among them that are no part of any Conv.
        instead: What might be there instead; None if there is nothing to compare with.
    """

    reason: Reason
    is_group: bool
    instead: Rewrite | None = None


def _judged(groups: Groups, whole: Rewrite, fits: Callable[[Merge], bool]) -> _Told:
    parts = [_operands(part) for part in whole.parts]
    if shared := _shared_source(groups, parts, side_by_side=whole.stack is not None):
        source, numbers = shared
        mine = [operand for number in numbers for operand in parts[number]]
        reason, merge = _why_not_merged(groups, source, mine, fits, stacked=whole.stack is not None)
        rest = [part for number, part in enumerate(whole.parts) if number not in numbers]
        return _Told(reason, not whole.merges, Rewrite((merge, *rest), whole.stack) if merge else None)
    firsts = [part[0] for part in parts]
    if blocked := _obstacle(groups, firsts, of=whole.rest or firsts):
        return _Told(blocked, True)
    return _Told(_apart(groups, [end for part in whole.parts for end in _ends(groups, part)]), False)


def _operands(part: Part) -> tuple[Operand, ...]:
    """What a part adds up, or puts one behind the other."""
    if isinstance(part, Rewrite):
        return tuple(operand for each in part.parts for operand in _operands(each))
    return part.terms if isinstance(part, Merge) else (part,)


def _ends(groups: Groups, part: Part) -> list[str]:
    """What a part acts on, as far back as it is linear."""
    if isinstance(part, Rewrite):
        return [end for each in part.parts for end in _ends(groups, each)]
    return [part.source if isinstance(part, Merge) else list(groups.forms(part.tensor))[-1]]


def _apart(groups: Groups, ends: Sequence[str]) -> Reason:
    """Why the operands of a join are no group: where each of them ends to be linear."""
    makers = {end: groups.scope.producer(end) for end in ends}
    if len(makers) == 1:
        return f"has no weight on the way from '{ends[0]}', from which all its operands follow", ""
    names = {end: f"'{end}'" if at is None else groups.scope.name(at) for end, at in makers.items()}
    blocker = next((names[end] for end, at in makers.items() if at is not None), "")
    listed = ", ".join(list(names.values())[:_NAMED])
    listed += f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"its operands follow from different tensors, those of {listed}", blocker


def _shared_source(
    groups: Groups, parts: Sequence[Sequence[Operand]], *, side_by_side: bool
) -> tuple[str, list[int]] | None:
    """The first source from which several parts follow linearly, one through a weight; and which parts."""
    shared: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        first, *others = (groups.forms(operand.tensor) for operand in part)
        for source in first:
            if all(source in each for each in others):
                shared.setdefault(source, []).append(number)
    for source, numbers in shared.items():
        mine = _longest_run(numbers) if side_by_side else numbers
        forms = [groups.forms(operand.tensor)[source] for number in mine for operand in parts[number]]
        if len(mine) > 1 and any(form.is_weighted for form in forms):
            return source, mine
    return None


def _longest_run(numbers: Sequence[int]) -> list[int]:
    """Those that follow on one another."""
    runs = itertools.groupby(enumerate(numbers), key=lambda each: each[1] - each[0])
    return max(([number for _, number in run] for _, run in runs), key=len)


def _why_not_merged(
    groups: Groups, source: str, operands: Sequence[Operand], fits: Callable[[Merge], bool], *, stacked: bool
) -> tuple[Reason, Merge | None]:
    """Why branches of one source stay, and the merge of them if there is one."""
    windows = [groups.forms(operand.tensor)[source].window for operand in operands]
    total = (groups.stack if stacked else groups.sum)(windows, source)
    if isinstance(total, Refusal):
        return (f"cannot be merged: {total.reason}", ""), None
    merge = Merge(source, tuple(operands), total, stacked=stacked)
    if not fits(merge):
        return (OF_NO_PATTERN, ""), merge
    inside = groups.stacks if stacked else groups.joins
    for operand in operands:
        if operand.tensor != source and (reason := outside_user(groups, operand.tensor, inside)):
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
