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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

_ROUNDS = 8
"""How often all choices are looked at again, at most."""

_REACH = 200
"""How many tensors a single change may touch, and how many are looked at for each Conv that a way has.

What reaches farther is not tried. It bounds the work.
"""

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
        chosen = dict(self._best)
        for part in self._entangled():
            costs = self._scaled(part)
            roots = [tensor for tensor in part if tensor in self._roots]
            starts = ({tensor: self._best[tensor] for tensor in part}, dict.fromkeys(part, 0))
            states = [_Part(self._ways, costs, start, roots) for start in starts]
            for state in states:
                state.improve()
            chosen |= min(states, key=lambda state: state.cost).chosen
        found: dict[int, int] = {}
        pending = sorted(self._roots)
        while pending:
            tensor = pending.pop()
            if tensor not in found:
                found[tensor] = chosen[tensor]
                pending += [need for need, _ in self._ways[tensor][chosen[tensor]].needs]
        return found

    def _total(self, way: Way) -> float:
        return way.cost + sum(ratio * self.price(need) for need, ratio in way.needs)

    def _frees(self, tensor: int, way: Way) -> bool:
        """Whether as many Convs go as this way has: they lead from what it needs to this tensor only."""
        stay = {need for need, _ in way.needs}
        found, lost = 0, dict[int, int]()
        pending, looked_at = [tensor], 0
        while pending and looked_at < _REACH * max(1, way.convs):
            looked_at += 1
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
        """The independent parts in which a tensor may have several users, each part in topological order."""
        parent = {tensor: tensor for tensor in self._ways}

        def find(tensor: int) -> int:
            while parent[tensor] != tensor:
                parent[tensor] = parent[parent[tensor]]
                tensor = parent[tensor]
            return tensor

        for tensor in self._ways:
            for need in self._inner(tensor):
                parent[find(need)] = find(tensor)
        parts: dict[int, list[int]] = {}
        for tensor in self._ways:
            parts.setdefault(find(tensor), []).append(tensor)
        return [part for part in parts.values() if self._is_entangled(part)]

    def _is_entangled(self, part: Sequence[int]) -> bool:
        shared = any(self._uses.get(tensor, 0) > 1 for tensor in part if tensor not in self._roots)
        several = sum(tensor in self._roots for tensor in part) > 1
        return (shared or several) and any(len(self._ways[tensor]) > 1 for tensor in part)

    def _inner(self, tensor: int) -> set[int]:
        """What a tensor may need of which it is not certain that it is computed."""
        return {need for way in self._ways[tensor] for need, _ in way.needs} - self._roots

    def _scaled(self, part: Sequence[int]) -> dict[int, list[float]]:
        """What the ways of a part's tensors cost, for each position of one and the same tensor."""
        links: dict[int, list[tuple[int, float]]] = {tensor: [] for tensor in part}
        for tensor in part:
            for need, ratio in {need for way in self._ways[tensor] for need in way.needs}:
                if need in links:
                    links[tensor].append((need, ratio))
                    links[need].append((tensor, 1 / ratio))
        positions: dict[int, float] = {}
        for start in reversed(part):
            pending = [(start, positions.get(start, 1.0))]
            while pending:
                tensor, count = pending.pop()
                if tensor not in positions:
                    positions[tensor] = count
                    pending += [(other, count * ratio) for other, ratio in links[tensor]]
        return {tensor: [way.cost * positions[tensor] for way in self._ways[tensor]] for tensor in part}


class _TooFarError(Exception):
    """A change touches more than `_REACH` tensors."""


_Change = tuple[float, int]
"""The cost that a change adds, and the Convs."""


class _Part:
    """The cover of one part: the way chosen for each tensor, and how many of the chosen ways need it."""

    def __init__(
        self,
        ways: Mapping[int, Sequence[Way]],
        costs: Mapping[int, Sequence[float]],
        chosen: dict[int, int],
        roots: Iterable[int],
    ) -> None:
        self.chosen = chosen
        self.cost = 0.0
        self._needs = {
            tensor: [[need for need, _ in way.needs if need in costs] for way in ways[tensor]]
            for tensor in costs
        }
        self._convs = {tensor: [way.convs for way in ways[tensor]] for tensor in costs}
        self._costs = costs
        self._refs = dict.fromkeys(costs, 0)
        self._users: dict[int, list[int]] = {tensor: [] for tensor in costs}
        self._undo: list[tuple[dict[int, int], int, int]] = []
        self._touched = -math.inf
        for tensor, options in self._needs.items():
            for need in dict.fromkeys(need for needs in options for need in needs):
                self._users[need].append(tensor)
        for tensor in roots:
            self.cost += self._use(tensor, 1)[0]
        self._undo.clear()

    def improve(self) -> None:
        """Go over all tensors from the outputs backwards, several times, and make what changes lower the cost."""
        for _ in range(_ROUNDS):
            before = self.cost
            for tensor in reversed(list(self._costs)):
                if self._refs[tensor] and len(self._costs[tensor]) > 1:
                    self._keep_if_cheaper(lambda tensor=tensor: self._to_best(tensor))  # type: ignore[misc]
                if self._refs[tensor] and 0 < len(self._users[tensor]) <= _MOST_USERS:
                    self._keep_if_cheaper(lambda tensor=tensor: self._do_without(tensor))  # type: ignore[misc]
            if self.cost == before:
                break

    def _keep_if_cheaper(self, change: Callable[[], _Change | None]) -> None:
        made = change()
        if made and made[0] < -_TOLERANCE and made[1] <= 0:
            self.cost += made[0]
            self._undo.clear()
        else:
            self._take_back(0)

    def _take_back(self, start: int) -> None:
        for where, tensor, value in reversed(self._undo[start:]):
            where[tensor] = value
        del self._undo[start:]

    def _to_best(self, tensor: int, avoid: int | None = None) -> _Change | None:
        """Compute a tensor in the best way other than now, and without `avoid`; None if there is none.

        A way that needs others which need `avoid` is taken only where there is no better one.
        """
        best: tuple[bool, float, int] | None = None
        uses = self._refs[tensor if avoid is None else avoid]
        for number, needs in enumerate(self._needs[tensor]):
            if number == self.chosen[tensor] or avoid in needs:
                continue
            start, self._touched = len(self._undo), 0.0
            with suppress(_TooFarError):
                cost, convs = self._switch(tensor, number)
                if convs <= 0 or avoid is not None:
                    needed = avoid is not None and self._refs[avoid] >= uses
                    found = needed, cost, number
                    best = min(best or found, found)
            self._take_back(start)
        self._touched = 0.0
        return self._switch(tensor, best[-1]) if best else None

    def _do_without(self, tensor: int) -> _Change | None:
        """Let all that need a tensor be computed otherwise: the last first, as it may then need earlier ones."""
        cost, convs = 0.0, 0
        for user in reversed(self._users[tensor]):
            if self._refs[user] and tensor in self._needs[user][self.chosen[user]]:
                change = self._to_best(user, avoid=tensor)
                if change is None:
                    return None
                cost, convs = cost + change[0], convs + change[1]
        return cost, convs

    def _switch(self, tensor: int, number: int) -> _Change:
        """Compute a tensor in another way."""
        old = self.chosen[tensor]
        self._undo.append((self.chosen, tensor, old))
        self.chosen[tensor] = number
        cost = self._costs[tensor][number] - self._costs[tensor][old]
        convs = self._convs[tensor][number] - self._convs[tensor][old]
        for count, needs in ((1, self._needs[tensor][number]), (-1, self._needs[tensor][old])):
            for need in needs:
                more, added = self._use(need, count)
                cost, convs = cost + more, convs + added
        return cost, convs

    def _use(self, tensor: int, count: int) -> _Change:
        """Count one use more or less of a tensor; it costs what then begins or ceases to be computed."""
        cost, convs = 0.0, 0
        refs, chosen, undo, touched = self._refs, self.chosen, self._undo, self._touched
        pending = [tensor]
        while pending:  # where tensors are shared in rows, most of the time passes here
            tensor = pending.pop()
            before = refs[tensor]
            after = refs[tensor] = before + count
            undo.append((refs, tensor, before))
            touched += 1
            if touched > _REACH:
                raise _TooFarError
            if not before or not after:
                number = chosen[tensor]
                cost += count * self._costs[tensor][number]
                convs += count * self._convs[tensor][number]
                pending += self._needs[tensor][number]
        self._touched = touched
        return cost, convs
