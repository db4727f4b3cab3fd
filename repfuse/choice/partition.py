"""Partitions of a join's operands: which of them to merge into one Conv each, and which to add as before.

Merging all operands that share a source may cost more than it saves: a 51x5 and a 5x51 make a 51x51. Operands of
one geometry always go together, for a kernel costs no more for being a sum. Between the few geometries that are
left, every partition is compared; between many, the two sets that save most are united until none saves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repfuse.algebra.window import Refusal, Window

_FEW = 5
"""Up to so many geometries all partitions are compared: there are 52 of five."""

_MOST = 150
"""Of more geometries than this only the first are compared with each other; the rest stays apart."""


@dataclass(frozen=True)
class Branch:
    """One operand that follows from the source.

    Attributes:
        index: Which operand it is.
        window: Its window.
        weighted: Whether a weight is on its way.
        cost: What computing it costs as it is.
    """

    index: int
    window: Window
    weighted: bool
    cost: float


@dataclass(frozen=True, eq=False)
class _Set:
    """Branches that may become one Conv; `cost` is the lower one of that Conv and of computing them apart."""

    branches: tuple[Branch, ...]
    window: Window | None
    apart: float
    cost: float
    fits: bool = True

    @property
    def merges(self) -> bool:
        return self.window is not None and self.cost < self.apart


def partition(
    branches: Sequence[Branch],
    total: Callable[[Sequence[Window]], Window | Refusal],
    conv: Callable[[Window], float],
    adding: float,
    fits: Callable[[tuple[int, ...], Window], bool] = lambda *_: True,
) -> list[tuple[tuple[int, ...], Window]]:
    """The merges of the cheapest partition: the operands of each, in order, and its window.

    Args:
        branches: The operands that share the source.
        total: The sum of windows.
        conv: What a Conv with a window costs.
        adding: What adding one more operand costs.
        fits: Whether these operands may be merged.
    """

    def united(sets: Sequence[_Set]) -> _Set:
        if len(sets) == 1:
            return sets[0]
        members = tuple(branch for each in sets for branch in each.branches)
        windows = list(dict.fromkeys(branch.window for branch in members))
        apart = sum(each.apart for each in sets) + adding * (len(sets) - 1)
        window = total(windows) if any(branch.weighted for branch in members) and len(members) > 1 else None
        if not isinstance(window, Window):
            return _Set(members, None, apart, apart)
        if not fits(tuple(sorted(branch.index for branch in members)), window):
            return _Set(members, None, apart, apart, fits=False)
        return _Set(members, window, apart, min(conv(window), apart))

    alike: dict[Window, list[_Set]] = {}
    for branch in branches:
        alike.setdefault(branch.window, []).append(_Set((branch,), None, branch.cost, branch.cost))
    sets: list[_Set] = []
    for each in alike.values():
        union = united(each)
        sets += [union] if union.fits or len(each) > _FEW else each
    whole = united(sets)
    if whole.window and _is_cheapest(whole, conv, adding):
        found = [whole]
    elif len(sets) <= _FEW:
        found = _best_of_all(sets, united, adding)
    else:
        found = _agglomerated(sets, united, adding)
    return [
        (tuple(sorted(branch.index for branch in each.branches)), each.window)
        for each in found
        if each.window is not None and each.merges
    ]


def _is_cheapest(whole: _Set, conv: Callable[[Window], float], adding: float) -> bool:
    """Whether all in one Conv cost no more than one branch does, so that no other partition need be looked at.

    One of its sets would hold that branch, and cost as much, since a union is no smaller than what is in it.
    """
    return any(
        whole.cost <= conv(branch.window) and whole.cost <= branch.cost + adding for branch in whole.branches
    )


def _best_of_all(sets: list[_Set], united: Callable[[Sequence[_Set]], _Set], adding: float) -> list[_Set]:
    """The cheapest partition: for each collection of sets, the union that holds its first one is varied."""
    best: dict[int, tuple[float, list[_Set]]] = {0: (0.0, [])}
    unions = {
        members: united([each for number, each in enumerate(sets) if members >> number & 1])
        for members in range(1, 1 << len(sets))
    }
    for collection in range(1, 1 << len(sets)):
        first = collection & -collection
        options = []
        for members, union in unions.items():
            if members & first and not members & ~collection:
                cost, rest = best[collection & ~members]
                options.append((cost + union.cost + adding, [union, *rest]))
        best[collection] = min(options, key=lambda option: option[0])
    return best[(1 << len(sets)) - 1][1]


def _agglomerated(sets: list[_Set], united: Callable[[Sequence[_Set]], _Set], adding: float) -> list[_Set]:
    """Unite the two sets that save most, until none saves anything."""
    apart, sets = sets[_MOST:], sets[:_MOST]

    def saved(a: _Set, b: _Set) -> tuple[float, _Set]:
        union = united([a, b])
        return a.cost + b.cost + adding - union.cost, union

    pairs = {(a, b): saved(a, b) for number, a in enumerate(sets) for b in sets[number + 1 :]}
    while pairs:
        (a, b), (saving, union) = max(pairs.items(), key=lambda pair: pair[1][0])
        if saving <= 0 or not union.merges:
            break
        sets = [union if each is a else each for each in sets if each is not b]
        pairs = {pair: value for pair, value in pairs.items() if not {a, b} & set(pair)}
        pairs |= {(each, union): saved(each, union) for each in sets if each is not union}
    return sets + apart
