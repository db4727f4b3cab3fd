"""Choosing what to fuse: the rewrites that make a graph's linear part cheapest, by the cost model."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from repfuse.choice.cover import Cover, Way
from repfuse.choice.merges import Merge, Rewrite
from repfuse.choice.ways import Ways
from repfuse.search.groups import Groups, Operand


@dataclass(frozen=True)
class Candidate:
    """A rewrite of the node at `root`.

    Attributes:
        root: The node whose output the rewrite computes.
        rewrite: What becomes of it.
        replaced: Nodes that the rewrite makes superfluous, `root` among them.
        saving: What it saves, as a share of what these nodes cost; estimated.
        apart: Whether a tap is a Conv of its own where a runtime is faster for that (see `choice.cost.summed`).
    """

    root: int
    rewrite: Rewrite
    replaced: frozenset[int]
    saving: float
    apart: bool = True

    @property
    def merges(self) -> tuple[Merge, ...]:
        """Each becomes one Conv."""
        return self.rewrite.merges

    @property
    def rest(self) -> tuple[Operand, ...]:
        """Operands that are added to them, or stand beside them in a Concat, as they are."""
        return self.rewrite.rest

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that it is computed from."""
        return (*(merge.source for merge in self.merges), *(operand.tensor for operand in self.rest))


def choose(groups: Groups, fits: Callable[[Merge], bool] = lambda _: True) -> list[Candidate]:
    """The rewrites that together make a graph cheapest, of those whose merges all fit.

    Returns:
        Candidates in the order of the graph. No node is in two of them.
    """
    ways = Ways(groups, fits)
    cover = Cover(ways.uses, ways.roots)
    rewrites: dict[int, list[Rewrite]] = {}
    options: dict[int, list[Way]] = {}
    for position in ways.positions:
        rewrites[position] = ways.rewrites(position, cover.price)
        options[position] = [ways.now(position)]
        options[position] += [ways.way(position, rewrite) for rewrite in rewrites[position]]
        cover.add(position, options[position])
    chosen = cover.solve()
    found: list[Candidate] = []
    staying = set(chosen)
    for position in sorted(chosen, reverse=True):
        if chosen[position]:
            rewrite = rewrites[position][chosen[position] - 1]
            replaced, before = _replaced(position, options, staying)
            replaced |= {inside for each in replaced for inside in _inside(groups, each)} - staying
            staying |= replaced
            saving = 1 - options[position][chosen[position]].cost / before
            found.append(Candidate(position, rewrite, frozenset(replaced), saving))
    return found[::-1]


def _replaced(
    root: int, options: Mapping[int, Sequence[Way]], staying: Container[int]
) -> tuple[set[int], float]:
    """The nodes that lead to a node and need not stay, with it, and what they cost for each of its positions."""
    replaced, total = {root}, 0.0
    pending = [(root, 1.0)]
    while pending:
        position, ratio = pending.pop()
        way = options[position][0]
        total += ratio * way.cost
        for need, each in way.needs:
            if need not in replaced and need not in staying:
                replaced.add(need)
                pending.append((need, ratio * each))
    return replaced, total


def _inside(groups: Groups, position: int) -> frozenset[int]:
    lifted = groups.lifted.get(position)
    return lifted.inside if lifted else frozenset()
