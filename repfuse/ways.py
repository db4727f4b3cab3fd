"""The ways to compute a tensor: as it is computed now, as one Conv over a source, or as a sum of several.

A `Rewrite` is one of the latter. Either the whole tensor becomes one Conv over one source; or, at a tree of joins,
operands that share a source are merged and the rest is added as before: `a(x) + b(x) + c(y) + z` becomes
`conv(x) + c(y) + z`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from repfuse import cost, window
from repfuse.cover import Way
from repfuse.groups import Groups, Operand
from repfuse.partition import Branch, partition
from repfuse.window import Window

LEAST = 0.01
"""What a rewrite must save: what saves nothing is left as it is."""


@dataclass(frozen=True)
class Merge:
    """Branches that become one Conv: tensors that follow linearly from `source`, added up."""

    source: str
    terms: tuple[Operand, ...]
    window: Window


@dataclass(frozen=True)
class Rewrite:
    """A tensor as a sum: of Convs, one for each of `merges`, and of `rest`, operands that stay as they are."""

    merges: tuple[Merge, ...]
    rest: tuple[Operand, ...] = ()


class Ways:
    """Lists the ways in which each linear tensor of a graph may be computed, and says what they cost.

    A tensor goes by the position of the node that computes it.
    """

    def __init__(self, groups: Groups, fits: Callable[[Merge], bool]) -> None:
        self._groups = groups
        self._fits = fits
        self._conv_costs: dict[tuple[Window, bool], float] = {}

    @cached_property
    def positions(self) -> Sequence[int]:
        """Linear nodes, in the order of the graph."""
        return sorted(self._groups.lifted.keys() | self._groups.joins.keys())

    @cached_property
    def uses(self) -> Counter[int]:
        """How often each tensor is used by linear nodes."""
        return Counter(
            producer
            for position in self.positions
            for tensor in self._groups.data_inputs(position)
            if (producer := self._number(tensor)) is not None
        )

    @cached_property
    def roots(self) -> frozenset[int]:
        """Tensors that something else uses, so that they must be computed; and those that nothing uses."""
        scope = self._groups.scope
        return frozenset(
            position
            for position in self.positions
            if (output := scope.nodes[position].output[0]) in scope.kept
            or self.uses[position] == 0
            or len(scope.consumers(output)) > self.uses[position]
        )

    def now(self, position: int) -> Way:
        """How a tensor is computed now."""
        lifted = self._groups.lifted.get(position)
        inputs = self._groups.data_inputs(position)
        ratio = lifted.window.stride if lifted else 1
        weighted = lifted is not None and lifted.weight_type != 0
        return Way(self._cost_now(position), self._needs((name, ratio) for name in inputs), int(weighted))

    def way(self, position: int, rewrite: Rewrite) -> Way:
        """A rewrite as a way."""
        needs = [(merge.source, merge.window.stride) for merge in rewrite.merges]
        needs += [(operand.tensor, 1) for operand in rewrite.rest]
        alone = len(needs) == 1 and self._is_alone(position)
        total = LEAST + (len(needs) - 1) * self._adding(position)
        total += sum(self._conv_cost(merge.window, alone) for merge in rewrite.merges)
        return Way(total, self._needs(needs), len(rewrite.merges))

    def rewrites(self, position: int, price: Callable[[int | None], float]) -> list[Rewrite]:
        """The rewrites of a tensor that may pay. `price`: what one use of a tensor costs at best."""
        found = list(self._wholes(position))
        if position in self._groups.joins and not self._is_inner(position):
            sources = {rewrite.merges[0].source for rewrite in found}
            for rewrite in self._partial(position, price):
                if rewrite.rest or len(rewrite.merges) > 1 or rewrite.merges[0].source not in sources:
                    found.append(rewrite)
        return [rewrite for rewrite in found if all(map(self._fits, rewrite.merges))]

    def _wholes(self, position: int) -> Iterator[Rewrite]:
        lifted = self._groups.lifted.get(position)
        as_it_is = lifted.source if lifted and lifted.weight_type else None
        output = self._groups.scope.nodes[position].output[0]
        for source, form in self._groups.forms(output).items():
            if form.is_weighted and source != as_it_is:
                yield Rewrite((Merge(source, (Operand(output, 1),), form.window),))

    def _partial(self, position: int, price: Callable[[int | None], float]) -> Iterator[Rewrite]:
        """Rewrites of a tree of joins that merge some of its operands, beginning with those of each source."""
        operands, _ = self._groups.flattened(position)
        found: dict[Rewrite, None] = {}
        for first in self._shared(operands):
            merges, rest = self._partition(operands, first, price)
            for source in self._shared(rest) if merges else ():
                more, rest = self._partition(rest, source, price)
                merges += more
            if merges:
                found[Rewrite(merges, rest)] = None
        yield from found

    def _shared(self, operands: Sequence[Operand]) -> list[str]:
        """Sources that more than one of the operands follow from."""
        counts = Counter(source for operand in operands for source in self._groups.forms(operand.tensor))
        return [source for source, count in counts.items() if count > 1]

    def _partition(
        self, operands: Sequence[Operand], source: str, price: Callable[[int | None], float]
    ) -> tuple[tuple[Merge, ...], tuple[Operand, ...]]:
        """The merges of one source that pay, and the operands that stay as they are."""
        groups = self._groups
        branches = [
            Branch(index, form.window, form.is_weighted, price(self._number(operand.tensor)))
            for index, operand in enumerate(operands)
            if (form := groups.forms(operand.tensor).get(source))
        ]
        outputs = next((branch.window.channels[0] for branch in branches if branch.window.channels), 1)
        read = price(self._number(source))
        found = partition(
            branches,
            lambda windows: groups.sum(windows, source),
            lambda geometry: self._conv_cost(geometry, False) + read * geometry.stride,
            cost.pointwise(outputs, 2),
        )
        merges = [
            Merge(source, tuple(operands[index] for index in indices), geometry)
            for indices, geometry in found
        ]
        inside = {index for indices, _ in found for index in indices}
        return tuple(merges), tuple(o for index, o in enumerate(operands) if index not in inside)

    def _is_inner(self, position: int) -> bool:
        """Whether a join dissolves in the one that uses it."""
        output = self._groups.scope.nodes[position].output[0]
        users = self._groups.scope.consumers(output)
        return self._groups.inner_join(output) == position and users[0] in self._groups.joins

    def _is_alone(self, position: int) -> bool:
        """Whether no join follows a tensor, at once or after what a runtime folds into the Conv before it."""
        groups = self._groups
        while True:
            users = groups.scope.consumers(groups.scope.nodes[position].output[0])
            if any(user in groups.joins for user in users):
                return False
            if len(users) != 1 or users[0] not in groups.lifted or groups.lifted[users[0]].window.axes:
                return True
            position = users[0]

    def _cost_now(self, position: int) -> float:
        lifted = self._groups.lifted.get(position)
        if lifted is None:
            return cost.pointwise(self._widths.get(position, 1), len(self._groups.joins[position]))
        if not lifted.ops:  # an Identity or Dropout, which runtimes remove
            return 0.0
        geometry = lifted.window
        if lifted.weight_type:
            return self._conv_cost(geometry, cost.slow_alone(geometry) and self._is_alone(position))
        channels = self._widths.get(position, 1)
        pooled = Window((channels, channels), channels, geometry.axes)
        return cost.conv(pooled) if geometry.taps > 1 else cost.pointwise(channels)

    def _adding(self, position: int) -> float:
        return cost.pointwise(self._widths.get(position, 1), 2)

    def _conv_cost(self, geometry: Window, alone: bool) -> float:
        known = self._conv_costs.get((geometry, alone))
        if known is None:
            known = self._conv_costs[geometry, alone] = cost.conv(window.emittable(geometry), alone=alone)
        return known

    @cached_property
    def _widths(self) -> dict[int, int]:
        """How many channels tensors have: what computes them may say so, else what uses them."""
        groups, widths = self._groups, dict[int, int]()
        for position in self.positions:
            lifted = groups.lifted.get(position)
            if lifted and lifted.window.channels:
                widths[position] = lifted.window.channels[0]
            else:
                known = (
                    widths.get(n, 0) for n, _ in self._needs((t, 1) for t in groups.data_inputs(position))
                )
                widths[position] = max(known, default=0)
        for position in reversed(self.positions):
            lifted = groups.lifted.get(position)
            width = lifted.window.channels[1] if lifted and lifted.window.channels else widths[position]
            for number, _ in self._needs((tensor, 1) for tensor in groups.data_inputs(position)):
                widths[number] = widths[number] or width
        return {position: width or 1 for position, width in widths.items()}

    def _needs(
        self, tensors: Iterator[tuple[str, int]] | Sequence[tuple[str, int]]
    ) -> tuple[tuple[int, float], ...]:
        return tuple(
            (number, float(ratio))
            for tensor, ratio in tensors
            if (number := self._number(tensor)) is not None
        )

    def _number(self, tensor: str) -> int | None:
        """The linear node that computes a tensor."""
        producer = self._groups.scope.producer(tensor)
        return producer if producer is not None and self._groups.is_linear(producer) else None
