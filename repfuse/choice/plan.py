"""What to fuse, where that is not left to the cost model: the alternatives that there are, and a choice of them.

How much an element moved costs beside a multiply-add is a property of a processor and a runtime. A choice that is
cheapest for one such balance is an alternative to that for another: where moving is dear, everything is merged that
may be; where it is cheap, only what computes no more than before. Whether a kernel is faster with a tap apart from
it (see `choice.cost.summed`) is another such property. Candidates of different balances that replace a node in
common form a region. Regions are independent of each other: in each, one style is followed, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from repfuse.algebra.window import Refusal
from repfuse.choice import cost
from repfuse.choice.choose import Candidate, choose
from repfuse.choice.merges import Merge
from repfuse.search.groups import Groups

BALANCES = (cost.MOVED, 4 * cost.MOVED, 16 * cost.MOVED, cost.MOVED / 4)
"""What an element moved costs; the first is what the cost model holds for true."""


class Style(NamedTuple):
    """How the groups of a region are chosen and written.

    Attributes:
        balance: What an element moved costs, which tells what is cheapest.
        apart: Whether a tap is a Conv of its own where a runtime is faster for that.
    """

    balance: float
    apart: bool = True

    @property
    def plain(self) -> Style:
        """The same with all taps of a kernel in one Conv."""
        return self._replace(apart=False)


OWN = Style(BALANCES[0])
"""What the pass does when nothing was measured."""

SLOWER = Refusal("was left alone: fusing it was not measured to be faster").reason
"""What the remark says of a group that would be fused if its latency had not been measured."""

Place = tuple[str, str]
"""What tells one group from all others: its graph, and the tensor that it computes."""

Fits = Callable[[Merge], bool]


@dataclass(frozen=True)
class Plan:
    """Which groups to fuse.

    Attributes:
        made: The groups to fuse, each in a style.
        left: Groups that the cost model would fuse and that are to be left alone.
    """

    made: Mapping[Place, Style] = field(default_factory=dict)
    left: frozenset[Place] = frozenset()

    def choose(self, groups: Groups, fits: Fits) -> list[Candidate]:
        """The candidates to make, and those to leave alone, in the order of the graph."""
        found: dict[int, Candidate] = {}
        for balance in dict.fromkeys((OWN.balance, *(style.balance for style in self.made.values()))):
            for candidate in _choice(groups, fits, balance):
                place = place_of(groups, candidate)
                style = self.made.get(place, OWN if place in self.left else None)
                if style and style.balance == balance:
                    found[candidate.root] = replace(candidate, apart=style.apart)
        return [found[root] for root in sorted(found)]


@dataclass(frozen=True)
class Region:
    """A part of a graph in which one thing or another may be done.

    Attributes:
        graph: The graph that holds it.
        inputs: Tensors that its nodes read, or what may take their place, and that are no constants.
        outputs: Tensors that it computes for others.
        computed: All tensors that its nodes compute; those that are no outputs may be gone.
        alternatives: Groups that may be fused, by the style in which that is done; the cost model's own choice is
            that of `OWN`, and absent where it is to leave all as it is.
    """

    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    computed: frozenset[str]
    alternatives: Mapping[Style, tuple[Place, ...]]


def regions(groups: Groups, fits: Fits) -> list[Region]:
    """The regions of a graph, in its order, with what may be done in each."""
    choices = {balance: _choice(groups, fits, balance) for balance in BALANCES}
    found = []
    for nodes in _united(each for choice in choices.values() for each in _together(groups, choice)):
        alternatives: dict[Style, tuple[Place, ...]] = {}
        known: set[tuple[object, ...]] = set()
        read: dict[str, None] = {}
        for balance, choice in choices.items():
            inside = [each for each in choice if each.root in nodes]
            what = tuple((each.root, each.rewrite) for each in inside)
            if inside and what not in known:
                known.add(what)
                read.update(dict.fromkeys(name for each in inside for name in each.reads))
                places = tuple(place_of(groups, each) for each in inside)
                alternatives.update(dict.fromkeys(_styles(balance, inside), places))
        found.append(_region(groups, nodes, read, alternatives))
    return found


def followed(regions: Iterable[Region], style: Style) -> Plan:
    """The plan to follow one style in all regions."""
    return Plan({place: style for region in regions for place in region.alternatives.get(style, ())})


def place_of(groups: Groups, candidate: Candidate) -> Place:
    """Where a candidate is."""
    return groups.scope.label, groups.output(candidate.root)


def _choice(groups: Groups, fits: Fits, balance: float) -> list[Candidate]:
    with cost.balance(balance):
        return choose(groups, fits)


def _together(groups: Groups, choice: Sequence[Candidate]) -> Iterator[frozenset[int]]:
    """What each candidate replaces, with what others do whose inner tensors it reads: these go only with both."""
    scope = groups.scope
    owners = {node: each.replaced for each in choice for node in each.replaced - {each.root}}
    for each in choice:
        read = {scope.producer(name) for node in each.replaced for name in scope.nodes[node].input}
        yield each.replaced.union(*(owners[node] for node in read if node in owners))


def _styles(balance: float, candidates: Sequence[Candidate]) -> Iterator[Style]:
    """The styles in which that choice can be written."""
    windows = [merge.window for candidate in candidates for merge in candidate.merges]
    yield Style(balance)
    if any(map(cost.summed, windows)):
        yield Style(balance).plain


def _united(sets: Iterable[frozenset[int]]) -> list[frozenset[int]]:
    """Unions of those sets that have an element in common, by their last elements."""
    home: dict[int, set[int]] = {}
    for each in sets:
        union = set(each).union(*(home[node] for node in each if node in home))
        home.update(dict.fromkeys(union, union))
    return sorted({id(union): frozenset(union) for union in home.values()}.values(), key=max)


def _region(
    groups: Groups,
    nodes: frozenset[int],
    reading: Iterable[str],
    alternatives: Mapping[Style, tuple[Place, ...]],
) -> Region:
    """The region of those nodes; `reading`: what its alternatives read."""
    scope = groups.scope
    computed = [name for position in sorted(nodes) for name in scope.nodes[position].output if name]
    read = [name for position in sorted(nodes) for name in scope.nodes[position].input if name]
    outside = dict.fromkeys(
        name for name in (*read, *reading) if name not in set(computed) and not _constant(groups, name)
    )
    used = [name for name in computed if name in scope.kept or not nodes.issuperset(scope.consumers(name))]
    return Region(scope.label, tuple(outside), tuple(used), frozenset(computed), alternatives)


def _constant(groups: Groups, tensor: str) -> bool:
    return groups.scope.constants.find(tensor) is not None
