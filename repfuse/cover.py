"""The cheapest cover: of the ways to compute each tensor, one for each that is needed, so that all cost least.

A tensor that several others need is computed once, so the choice is a covering problem on a directed acyclic graph.
Where no tensor inside is shared, dynamic programming from the inputs on is exact. Elsewhere it shares the cost of a
tensor out among its users, which is an estimate; from there on, single choices are changed as long as that
lowers the true cost. Technology mapping of circuits has the same problem and this answer to it: area flow and
exact local area, in "Improvements to technology mapping for LUT-based FPGAs" (Mishchenko, Chatterjee, Brayton,
https://doi.org/10.1109/TCAD.2006.887925).

Knows nothing of Convs but how many of them a way has: a change may not make more of them than it removes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

_ROUNDS = 8
"""How often all choices are looked at again, at most."""

_REACH = 200
"""How many tensors a single change may touch; what reaches farther is not tried. It bounds the work."""

_MOST_USERS = 16
"""A tensor that more others could use is not tried to be made superfluous."""

_TOLERANCE = 1e-6


class Way(NamedTuple):
    """One way to compute a tensor.

    Attributes:
        cost: What it costs for each position of the tensor, without what it needs.
        needs: Other tensors that must be computed for it, and how many positions of each there are for one of this.
        convs: How many Convs it has.
    """

    cost: float
    needs: tuple[tuple[int, float], ...]
    convs: int = 0


class Cover:
    """Collects the ways in topological order, then finds the cheapest cover.

    Tensors have numbers. Only those are numbered between which there is a choice; all others are there anyway.
    """

    def __init__(self, uses: Mapping[int, int], roots: Collection[int]) -> None:
        """`uses`: how many others use each tensor as things are; `roots`: tensors that must be computed."""
        self._uses = uses
        self._roots = frozenset(roots)
        self._ways: dict[int, Sequence[Way]] = {}
        self._best: dict[int, int] = {}
        self._flow: dict[int, float] = {}

    def add(self, tensor: int, ways: Sequence[Way]) -> None:
        """Add a tensor, after those that it needs; the first way is how it is computed now."""
        self._ways[tensor] = ways
        best = 0
        flow = self._total(ways[0])
        for number, way in enumerate(ways[1:], 1):
            total = self._total(way)
            if total < flow - _TOLERANCE and self._frees(tensor, way):
                best, flow = number, total
        self._best[tensor], self._flow[tensor] = best, flow

    def price(self, tensor: int | None) -> float:
        """What one use of a tensor costs: its share, or nothing where the tensor is there anyway."""
        if tensor is None or tensor in self._roots or tensor not in self._flow:
            return 0.0
        return self._flow[tensor] / max(1, self._uses.get(tensor, 0))

    def solve(self) -> dict[int, int]:
        """The number of the way chosen for each tensor that is computed."""
        state = _State(self._ways, dict(self._best), self._roots)
        for part in self._entangled():
            for _ in range(_ROUNDS):
                if not state.improve(part):
                    break
        return {tensor: state.chosen[tensor] for tensor, count in state.refs.items() if count}

    def _total(self, way: Way) -> float:
        return way.cost + sum(ratio * self.price(need) for need, ratio in way.needs)

    def _frees(self, tensor: int, way: Way) -> bool:
        """Whether as many Convs go as this way has: they lead from what it needs to this tensor only."""
        stay = {need for need, _ in way.needs}
        found, lost = 0, dict[int, int]()
        pending = [tensor]
        while pending and len(lost) < _REACH:
            now = self._ways[pending.pop()][0]
            found += now.convs
            if found >= way.convs:
                return True
            for need, _ in now.needs:
                lost[need] = lost.get(need, 0) + 1
                if lost[need] == self._uses.get(need, 0) and need not in stay and need not in self._roots:
                    pending.append(need)
        return False

    def _entangled(self) -> list[list[int]]:
        """Tensors with several ways, in parts that are independent of each other, where sharing may matter."""
        parent: dict[int, int] = {}

        def find(tensor: int) -> int:
            while parent.setdefault(tensor, tensor) != tensor:
                parent[tensor] = parent[parent[tensor]]
                tensor = parent[tensor]
            return tensor

        for tensor, ways in self._ways.items():
            for way in ways:
                for need, _ in way.needs:
                    if need not in self._roots:
                        parent[find(need)] = find(tensor)
        parts: dict[int, list[int]] = {}
        shared = set()
        roots: dict[int, int] = {}
        for tensor, ways in self._ways.items():
            part = find(tensor)
            roots[part] = roots.get(part, 0) + (tensor in self._roots)
            if roots[part] > 1 or (tensor not in self._roots and self._uses.get(tensor, 0) > 1):
                shared.add(part)
            if len(ways) > 1 or tensor not in self._roots:
                parts.setdefault(part, []).append(tensor)
        return [
            tensors
            for part, tensors in parts.items()
            if part in shared and any(len(self._ways[tensor]) > 1 for tensor in tensors)
        ]


class _TooFarError(Exception):
    """A change touches more than `_REACH` tensors."""


class _Change(NamedTuple):
    cost: float = 0.0
    convs: int = 0

    @property
    def pays(self) -> bool:
        return self.cost < -_TOLERANCE and self.convs <= 0

    def plus(self, other: _Change, times: float = 1.0) -> _Change:
        return _Change(self.cost + times * other.cost, self.convs + other.convs)


class _State:
    """A cover: the way chosen for each tensor, and how many of the chosen ways need it."""

    def __init__(
        self, ways: Mapping[int, Sequence[Way]], chosen: dict[int, int], roots: Collection[int]
    ) -> None:
        self.chosen = chosen
        self.refs: dict[int, int] = dict.fromkeys(ways, 0)
        self._ways = ways
        self._users: dict[int, list[int]] = {}
        self._undo: list[tuple[dict[int, int], int, int]] = []
        self._touched = -math.inf
        for tensor in ways:
            for need in {need for way in ways[tensor] for need, _ in way.needs}:
                self._users.setdefault(need, []).append(tensor)
        for tensor in sorted(roots):
            self._use(tensor, 1.0, 1)
        self._undo.clear()

    def improve(self, part: Sequence[int]) -> bool:
        """Go over a part from the outputs backwards, and make every change that lowers the cost."""
        improved = False
        for tensor in reversed(part):
            if self.refs[tensor] and len(self._ways[tensor]) > 1:
                improved |= self._kept(lambda tensor=tensor: self._to_best(tensor))  # type: ignore[misc]
            if self.refs[tensor] and len(self._users.get(tensor, ())) <= _MOST_USERS:
                improved |= self._kept(lambda tensor=tensor: self._do_without(tensor))  # type: ignore[misc]
        return improved

    def _kept(self, change: Callable[[], _Change | None]) -> bool:
        """Make a change, and keep it if it pays."""
        start = len(self._undo)
        made = change()
        if made is not None and made.pays:
            self._undo.clear()
            return True
        self._take_back(start)
        return False

    def _take_back(self, start: int) -> None:
        while len(self._undo) > start:
            where, tensor, value = self._undo.pop()
            where[tensor] = value

    def _set(self, where: dict[int, int], tensor: int, value: int) -> None:
        self._undo.append((where, tensor, where[tensor]))
        where[tensor] = value

    def _to_best(self, tensor: int, avoid: int | None = None) -> _Change | None:
        """Compute a tensor in the best way other than now, and without `avoid`; None if there is none."""
        best: tuple[float, int] | None = None
        for number, way in enumerate(self._ways[tensor]):
            if number == self.chosen[tensor] or any(need == avoid for need, _ in way.needs):
                continue
            start, self._touched = len(self._undo), 0.0
            with suppress(_TooFarError):
                change = self._switch(tensor, number)
                if change.convs <= 0 or avoid is not None:
                    best = min(best or (change.cost, number), (change.cost, number))
            self._take_back(start)
        self._touched = 0.0
        return self._switch(tensor, best[1]) if best else None

    def _do_without(self, tensor: int) -> _Change | None:
        """Let all that need a tensor be computed otherwise."""
        total = _Change()
        for user in self._users.get(tensor, ()):
            ratio = dict(self._ways[user][self.chosen[user]].needs).get(tensor)
            if not self.refs[user] or ratio is None:
                continue
            change = self._to_best(user, avoid=tensor)
            if change is None:
                return None
            total = total.plus(change, 1 / ratio)
        return total

    def _switch(self, tensor: int, number: int) -> _Change:
        """Compute a tensor in another way."""
        old, new = self._ways[tensor][self.chosen[tensor]], self._ways[tensor][number]
        self._set(self.chosen, tensor, number)
        total = _Change(new.cost - old.cost, new.convs - old.convs)
        for need, ratio in new.needs:
            total = total.plus(self._use(need, ratio, 1))
        for need, ratio in old.needs:
            total = total.plus(self._use(need, ratio, -1))
        return total

    def _use(self, tensor: int, ratio: float, count: int) -> _Change:
        """Count one use more or less of a tensor; it costs what then begins or ceases to be computed."""
        total = _Change()
        pending = [(tensor, ratio)]
        while pending:
            tensor, ratio = pending.pop()
            before = self.refs[tensor]
            self._set(self.refs, tensor, before + count)
            self._touched += 1
            if self._touched > _REACH:
                raise _TooFarError
            if 0 in (before, before + count):
                way = self._ways[tensor][self.chosen[tensor]]
                total = total.plus(_Change(count * way.cost, count * way.convs), ratio)
                pending += [(need, ratio * each) for need, each in way.needs]
        return total
