"""What a merge that is not made would save, by the cost model that decides: a share of what is there now."""

from __future__ import annotations

from collections.abc import Sequence

from repfuse.choice.choose import Candidate
from repfuse.choice.cover import Way
from repfuse.choice.merges import Rewrite
from repfuse.choice.ways import Ways
from repfuse.search.groups import Groups

FAR = 500
"""How many nodes may lie between a join and the source of its branches; it bounds the work for each join."""

_ABSURD = 2**40
"""Taps, and positions read for each output, beyond which nobody asks what a kernel would cost."""


class Savings:
    """What the rewrites of one graph's nodes would save that are not made."""

    def __init__(self, groups: Groups, made: Sequence[Candidate]) -> None:
        self._scope = groups.scope
        self._ways = Ways(groups, lambda _: True)
        self._made = {candidate.root: candidate.rewrite for candidate in made}

    def of(self, root: int, rewrite: Rewrite, *, now: Rewrite | None = None, far: int = FAR) -> float | None:
        """What a rewrite would save if all that leads to it could go, as a share of what that costs.

        Args:
            root: The node whose output it would compute.
            rewrite: It may be inexact, or needed by others in between.
            now: The part of what is there now whose place it would take; None for all that computes the root.
            far: How many nodes there may be.

        Returns:
            The share, negative where the rewrite costs more; None where there are more nodes, or the kernel is
            beyond all measure.
        """
        if any(merge.window.taps > _ABSURD or merge.window.stride > _ABSURD for merge in rewrite.merges):
            return None
        before = self._before(root, rewrite, self._ways.way(root, now) if now else self._now(root), far)
        return 1 - self._ways.way(root, rewrite).cost / before if before else None

    def _before(self, root: int, rewrite: Rewrite, now: Way, far: int) -> float | None:
        """What the nodes cost that lead from the sources of a rewrite to its root, for each of its positions."""
        starts = [*(merge.source for merge in rewrite.merges), *(each.tensor for each in rewrite.rest)]
        seen = {self._scope.producer(tensor) for tensor in starts} | {root}
        total, pending, visited = 0.0, [(root, 1.0)], 0
        while pending:
            position, ratio = pending.pop()
            visited += 1
            if visited > far:
                return None
            way = now if position == root else self._now(position)
            total += ratio * way.cost
            for need, each in way.needs:
                if need not in seen:
                    seen.add(need)
                    pending.append((need, ratio * each))
        return total

    def _now(self, position: int) -> Way:
        rewrite = self._made.get(position)
        return self._ways.way(position, rewrite) if rewrite else self._ways.now(position)
