"""The ways to compute a tensor: as it is computed now, as one Conv over a source, or as a sum of several.

A `Rewrite` is one of the latter. Either the whole tensor becomes one Conv over one source; or, at a tree of joins,
operands that share a source are merged and the rest is added as before: `a(x) + b(x) + c(y) + z` becomes
`conv(x) + c(y) + z`; or a scale behind a join goes into each of the Convs before it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from repfuse.algebra import window
from repfuse.algebra.window import Layout, Window
from repfuse.choice import cost, joint
from repfuse.choice.asked import can_ask_elsewhere
from repfuse.choice.cover import Way
from repfuse.choice.merges import Merge, Part, Rewrite
from repfuse.choice.partition import Branch, partition
from repfuse.choice.spread import Spread
from repfuse.operators.carry import Carry
from repfuse.search.groups import Groups, Operand

__all__ = ["LEAST", "Merge", "Rewrite", "Ways"]

LEAST = 0.01
"""What a rewrite must save: what saves nothing is left as it is."""


_ASKING = frozenset({"Shape", "Size"})


class Ways:
    """Lists the ways in which each linear tensor of a graph may be computed, and says what they cost.

    A tensor goes by the position of the node that computes it.
    """

    def __init__(self, groups: Groups, fits: Callable[[Merge], bool]) -> None:
        self._groups = groups
        self._fits = fits
        self._conv_costs: dict[Window, float] = {}
        self._partials: dict[int, Sequence[Rewrite]] = {}

    @cached_property
    def positions(self) -> Sequence[int]:
        """Linear nodes, in the order of the graph."""
        groups = self._groups
        return [position for position in range(len(groups.scope.nodes)) if groups.is_linear(position)]

    @cached_property
    def uses(self) -> Counter[int]:
        """How often each tensor is used by linear nodes."""
        return Counter(itertools.chain.from_iterable(self._inputs.values()))

    @cached_property
    def roots(self) -> frozenset[int]:
        """Tensors that something else uses, so that they must be computed; and those that nothing uses."""
        scope, framed = self._groups.scope, self._framed
        known = framed.union(self.positions)

        def is_root(position: int) -> bool:
            outputs = scope.nodes[position].output
            users = [user for name in outputs for user in scope.consumers(name) if user not in known]
            if users:
                askers = can_ask_elsewhere(self._groups, position)
                users = [user for user in users if user not in askers]
            is_kept = not scope.kept.isdisjoint(outputs)
            if position in framed:  # what asks for its extents can be answered without it
                return is_kept or any(scope.nodes[user].op_type not in _ASKING for user in users)
            return is_kept or bool(users) or self.uses[position] == 0

        return frozenset(filter(is_root, self.positions))

    @cached_property
    def _framed(self) -> frozenset[int]:
        """Nodes that were lifted with another one, and those that only cut from them to ask for extents."""
        groups, scope = self._groups, self._groups.scope
        framed = frozenset[int]().union(*(lifted.inside for lifted in groups.lifted.values()))
        for position in self.positions if framed else ():
            users = scope.consumers(scope.nodes[position].output[0])
            inputs = {scope.producer(name) for name in groups.data_inputs(position)}
            if inputs <= framed and users and all(scope.nodes[user].op_type in _ASKING for user in users):
                framed |= {position}
        return framed

    def now(self, position: int) -> Way:
        """How a tensor is computed now."""
        lifted, carry = self._groups.lifted.get(position), self._groups.carries.get(position)
        ratio = lifted.window.stride if lifted else carry.density if carry else 1
        weighted = lifted is not None and lifted.weight_type != 0
        needs = tuple([(number, ratio) for number in self._inputs[position]])
        return Way(self._cost_now(position), needs, int(weighted))

    def way(self, position: int, rewrite: Rewrite) -> Way:
        """A rewrite as a way."""
        total, needs = self._total(rewrite, self._widths.get(position, 1))
        return Way(LEAST + total, self._needs(needs), len(rewrite.merges))

    def _total(self, part: Part, width: int) -> tuple[float, list[tuple[str, float]]]:
        """What a part of `width` channels costs, and how many positions it needs of what."""
        if isinstance(part, Operand):
            return 0.0, [(part.tensor, 1.0)]
        if isinstance(part, Merge):
            own, positions = self._merged(part)
            return own, [(part.source, positions)]
        total, needs = self._joining(part, width), []
        for each in part.parts:
            own, more = self._total(each, width)
            total += own
            needs += more
        return total, needs

    def _merged(self, merge: Merge) -> tuple[float, float]:
        """What a merge costs, with the ops that carry channels, and how many positions of its source it needs."""
        outputs, inputs = merge.window.channels or (1, 1)
        own = self._conv_cost(merge.window)
        if merge.window.layout is Layout.LAST and merge.window.biased:  # MatMul's bias is an Add
            own += cost.pointwise(outputs)
        carried, density = 0.0, 1.0
        for position in reversed(merge.path):
            carry = self._groups.passed[position]
            carried += density * _carry_cost(carry, inputs if merge.behind else outputs)
            density *= carry.density
        if density < 1 and not merge.behind:
            carried += cost.UNFUSED * outputs
        return carried + own * (1.0 if merge.behind else density), density * merge.window.stride

    def rewrites(self, position: int, price: Callable[[int | None], float]) -> list[Rewrite]:
        """The rewrites of a tensor that may pay. `price`: what one use of a tensor costs at best."""
        if self._is_inner(position):  # the outer join sees to it
            return []
        found = [rewrite for rewrite in self._wholes(position) if self._fits(rewrite.merges[0])]
        if position in self._groups.joins:
            sources = {rewrite.merges[0].source for rewrite in found}
            for rewrite in self._partial(position, price):  # its merges fit
                if len(rewrite.parts) > 1 or rewrite.merges[0].source not in sources:
                    found.append(rewrite)
        if position in self._groups.stacks:
            found += self._stacked(position, price)  # so do its
        for rewrite in self._spread(position, price):
            if all(map(self._fits, rewrite.merges)):
                found.append(rewrite)
        return found

    def _wholes(self, position: int) -> Iterator[Rewrite]:
        lifted = self._groups.lifted.get(position)
        as_it_is = lifted.source if lifted and lifted.weight_type else None
        if not self._groups.computes_one(position):
            return
        output = self._groups.output(position)
        for source, form in self._groups.forms(output).items():
            if form.is_weighted and source != as_it_is:
                yield Rewrite((Merge(source, (Operand(output, 1),), form.window),))
        for source, way in self._groups.carried(output).items():
            for geometry, behind in way.choices if way.is_weighted else ():
                yield Rewrite((Merge(source, (Operand(output, 1),), geometry, way.path, behind),))

    def _spread(self, position: int, price: Callable[[int | None], float]) -> Iterator[Rewrite]:
        """Rewrites of a scale behind a join, whose operands take it over."""

        def total(part: Part) -> float:
            own, needs = self._total(part, self._widths.get(position, 1))
            return own + sum(ratio * price(self._number(tensor)) for tensor, ratio in needs)

        return Spread(self._groups, lambda join: self._partial(join, price), total).rewrites(position)

    def _partial(self, position: int, price: Callable[[int | None], float]) -> Sequence[Rewrite]:
        """Rewrites of a tree of joins that merge some of its operands."""
        if position not in self._partials:  # a scale behind the join asks again, and prices are the same then
            operands, _ = self._groups.flattened(position)
            self._partials[position] = joint.partial(
                self._groups,
                operands,
                lambda source, indices: self._partition(operands, source, indices, price),
            )
        return self._partials[position]

    def _partition(
        self,
        operands: Sequence[Operand],
        source: str,
        indices: Iterable[int],
        price: Callable[[int | None], float],
    ) -> list[tuple[tuple[int, ...], Merge]]:
        """The merges that pay of the operands with these numbers, which follow from one source."""
        groups = self._groups
        branches = []
        for index in indices:
            form = groups.forms(operands[index].tensor)[source]
            cost_now = price(self._number(operands[index].tensor))
            branches.append(Branch(index, form.window, form.is_weighted, cost_now))
        outputs = next((branch.window.channels[0] for branch in branches if branch.window.channels), 1)
        read = price(self._number(source))

        def merged(members: tuple[int, ...], geometry: Window) -> Merge:
            return Merge(source, tuple(operands[index] for index in members), geometry)

        found = partition(
            branches,
            lambda windows: groups.sum(windows, source),
            lambda geometry: self._conv_cost(geometry) + read * geometry.stride,
            cost.pointwise(outputs, 2),
            lambda members, geometry: self._fits(merged(members, geometry)),
        )
        return [(members, merged(members, geometry)) for members, geometry in found]

    def _stacked(self, position: int, price: Callable[[int | None], float]) -> Iterator[Rewrite]:
        """A Concat of fewer operands: of those that stand side by side and share a source, one Conv each."""
        operands = self._groups.stacks[position]
        parts: list[Merge | Operand] = []
        start = 0
        while start < len(operands):
            run = self._longest_run(operands[start:], price)
            parts.append(run or Operand(operands[start], 1))
            start += len(run.terms) if run else 1
        if 1 < len(parts) < len(operands):
            yield Rewrite(tuple(parts), position)

    def _longest_run(self, operands: Sequence[str], price: Callable[[int | None], float]) -> Merge | None:
        """The Conv that saves most in place of the first of the operands and some behind it."""
        groups = self._groups
        best: tuple[float, Merge | None] = (0.0, None)
        for source, first in groups.forms(operands[0]).items():
            forms, apart = [first], price(self._number(operands[0]))
            for name in operands[1:]:
                form = groups.forms(name).get(source)
                if form is None:
                    break
                forms.append(form)
                apart += price(self._number(name))
                total = groups.stack([each.window for each in forms], source)
                if isinstance(total, Window) and any(each.is_weighted for each in forms):
                    read = price(self._number(source)) * total.stride
                    saving = apart - self._conv_cost(total) - read
                    terms = tuple(Operand(each, 1) for each in operands[: len(forms)])
                    merge = Merge(source, terms, total, stacked=True)
                    if saving > best[0] and self._fits(merge):
                        best = saving, merge
        return best[1]

    def _is_inner(self, position: int) -> bool:
        """Whether a node is a join that dissolves in the one that uses it."""
        if position not in self._groups.joins:
            return False
        output = self._groups.scope.nodes[position].output[0]
        users = self._groups.scope.consumers(output)
        return self._groups.inner_join(output) == position and users[0] in self._groups.joins

    def _cost_now(self, position: int) -> float:
        groups, channels = self._groups, self._widths.get(position, 1)
        if position in groups.joins:  # runtimes take a Sum two by two
            return (len(groups.joins[position]) - 1) * cost.pointwise(channels, 2)
        if position in groups.carries:
            return _carry_cost(groups.carries[position], channels)
        if position in groups.stacks or position in groups.splits:
            return cost.pointwise(channels)
        lifted = groups.lifted[position]
        if not lifted.ops:  # an Identity or Dropout, which runtimes remove
            return 0.0
        geometry = lifted.window
        if lifted.weight_type:
            return self._conv_cost(geometry)
        pooled = Window((channels, channels), channels, geometry.axes)
        return cost.conv(pooled) if geometry.taps > 1 else cost.pointwise(channels)

    def _joining(self, rewrite: Rewrite, width: int) -> float:
        """What it costs to put the parts of a rewrite together."""
        if rewrite.stack is not None:
            return cost.pointwise(self._widths.get(rewrite.stack, 1))
        return (len(rewrite.parts) - 1) * cost.pointwise(width, 2)

    def _conv_cost(self, geometry: Window) -> float:
        known = self._conv_costs.get(geometry)
        if known is None:
            known = self._conv_costs[geometry] = cost.conv(window.emittable(geometry))
        return known

    @cached_property
    def _widths(self) -> dict[int, int]:
        """How many channels tensors have: what computes them may say so, else what is before and what uses them.

        These differ where a MatMul has them along the last axis and a Conv along another; then the fewer count.
        """
        groups, numbers = self._groups, self._numbers
        widths, inputs, own = dict[int, int](), dict[int, list[int]](), set[int]()
        for position in self.positions:
            lifted = groups.lifted.get(position)
            widths[position] = lifted.window.channels[0] if lifted and lifted.window.channels else 0
            inputs[position] = [numbers[name] for name in groups.data_inputs(position) if name in numbers]
            if widths[position]:
                own.add(position)
            else:
                known = [widths[number] for number in inputs[position]]
                widths[position] = sum(known) if position in groups.stacks else max(known, default=0)
        for position in reversed(self.positions):
            if position in groups.stacks:  # how many are whose cannot be told
                continue
            lifted = groups.lifted.get(position)
            width = lifted.window.channels[1] if lifted and lifted.window.channels else widths[position]
            for number in inputs[position]:
                known = [each for each in (widths[number], width) if each]
                if known and number not in own:
                    widths[number] = known[0] if number in groups.stacks else min(known)
        return {position: width or 1 for position, width in widths.items()}

    def _needs(self, tensors: Iterable[tuple[str, float]]) -> tuple[tuple[int, float], ...]:
        known = self._numbers
        return tuple([(known[tensor], ratio) for tensor, ratio in tensors if tensor in known])

    @cached_property
    def _inputs(self) -> Mapping[int, Sequence[int]]:
        """Of each linear node, the linear nodes whose tensors it uses, and those that it was lifted with use."""
        known = self._numbers
        return {
            position: [known[name] for name in self._used_by(position) if name in known]
            for position in self.positions
        }

    def _used_by(self, position: int) -> Iterable[str]:
        lifted = self._groups.lifted.get(position)
        if lifted is None or not lifted.inside:
            return self._groups.data_inputs(position)
        scope = self._groups.scope
        own = [position, *(each for each in lifted.inside if not self._groups.is_linear(each))]
        return sorted({name for each in own for name in scope.nodes[each].input})

    def _number(self, tensor: str) -> int | None:
        """The linear node that computes a tensor."""
        return self._numbers.get(tensor)

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        nodes = self._groups.scope.nodes
        return {name: position for position in self.positions for name in nodes[position].output if name}


def _carry_cost(carry: Carry, channels: int) -> float:
    """A Reshape moves nothing; others read what they average."""
    whole = carry.places.keys() == set(range(carry.ranks[0])) == set(carry.places.values())
    moves = carry.density != 1 or (whole and any(at != to for at, to in carry.places.items()))
    moved = cost.pointwise(channels) * (1 + carry.density) / 2 if moves else 0.0
    return moved + carry.arithmetic * channels
