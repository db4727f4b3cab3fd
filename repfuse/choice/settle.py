"""Settling which groups are fused: what weights do not allow is chosen again, without the merge that they refuse.

Whether a merge is exact depends on geometry, but for a few things that only weights tell: values outside a border
that differ, numbers too large for a type. Then a smaller cut of the same region may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from repfuse.choice.choose import Candidate
from repfuse.choice.merges import Merge
from repfuse.remarks import Edit, Remark
from repfuse.search.groups import Groups

_ROUNDS = 4
"""How often is chosen at most."""

Fits = Callable[[Merge], bool]


@dataclass(frozen=True)
class Refused:
    """A group that was chosen and not made.

    Attributes:
        remark: Why.
        merge: What its weights do not allow; None if no part of it is to be made either.
    """

    remark: Remark
    merge: Merge | None = None


@dataclass(frozen=True)
class Settled:
    """A group, and what became of it."""

    candidate: Candidate
    outcome: Edit | Remark


def settle(
    groups: Groups,
    choose: Callable[[Fits], list[Candidate]],
    fits: Fits,
    make: Callable[[Candidate], Edit | Refused],
) -> list[Settled]:
    """Make what is chosen, in several rounds if need be.

    Args:
        groups: The graph's.
        choose: Chooses groups of those whose merges all fit.
        fits: Whether a merge may be made.
        make: Makes a group, or says why not.

    Returns:
        All groups that were chosen, in the order of the graph. What was made stays made: a later choice that is at
        odds with it is passed over.
    """
    made = _Made(groups)
    refused: dict[int, Settled] = {}
    vetoed: set[Merge] = set()
    for _ in range(_ROUNDS):
        known = len(vetoed)
        chosen = choose(lambda merge: (not vetoed or merge not in vetoed) and fits(merge))
        new = [each for each in chosen if made.allows(each) and (known or each.root not in refused)]
        # The largest first: the memory that its arithmetic takes then serves all others.
        for candidate in sorted(new, key=_size, reverse=True):
            outcome = make(candidate)
            if isinstance(outcome, Edit):
                made.add(candidate, outcome)
                continue
            refused.setdefault(candidate.root, Settled(candidate, outcome.remark))
            if outcome.merge:
                vetoed.add(outcome.merge)
        if len(vetoed) == known:
            break
    return sorted([*refused.values(), *made.settled], key=lambda each: each.candidate.root)


class _Made:
    """The groups that were made, and which others go with them."""

    def __init__(self, groups: Groups) -> None:
        self.settled: list[Settled] = []
        self._producer = groups.scope.producer
        self._roots: set[int] = set()
        self._gone: set[int] = set()
        self._needed: set[int | None] = set()

    def add(self, candidate: Candidate, edit: Edit) -> None:
        self.settled.append(Settled(candidate, edit))
        self._roots.add(candidate.root)
        self._gone |= candidate.replaced - {candidate.root}
        self._needed.update(self._needs(candidate))

    def allows(self, candidate: Candidate) -> bool:
        """Whether a group shares no node with what was made, and neither takes away what the other one needs."""
        inside = candidate.replaced - {candidate.root}
        return (
            candidate.replaced.isdisjoint(self._gone)
            and candidate.replaced.isdisjoint(self._roots)
            and inside.isdisjoint(self._needed)
            and self._gone.isdisjoint(self._needs(candidate))
        )

    def _needs(self, candidate: Candidate) -> Iterator[int | None]:
        tensors = [merge.source for merge in candidate.merges]
        return map(self._producer, [*tensors, *(operand.tensor for operand in candidate.rest)])


def _size(candidate: Candidate) -> int:
    return max(merge.window.elements for merge in candidate.merges)
