"""Merging operands of a join that share several sources: which source goes first, and what is left for others.

An operand may follow from several sources, and can be merged once. Sources that share no operand are independent of
each other, so a join of thousands of sources is no harder than as many joins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from repfuse.choice.merges import Merge, Rewrite
from repfuse.search.groups import Groups, Operand

_STARTS = 8
"""So many sources are tried as the first one, of those that have operands in common."""

Indices = tuple[int, ...]
"""Which operands, by number."""

Partition = Callable[[str, Indices], Sequence[tuple[Indices, Merge]]]
"""The merges of operands that follow from one source: which, and what becomes of them."""


def partial(groups: Groups, operands: Sequence[Operand], partition: Partition) -> list[Rewrite]:
    """Rewrites of a join that merge some of its operands: each time those of another source come first."""
    shared: dict[str, list[int]] = {}
    for index, operand in enumerate(operands):
        for source in groups.forms(operand.tensor):
            shared.setdefault(source, []).append(index)
    shared = {source: indices for source, indices in shared.items() if len(indices) > 1}
    choices = [
        found for sources in _apart(shared) if (found := _choices({s: shared[s] for s in sources}, partition))
    ]
    rewrites: dict[Rewrite, None] = {}
    for number in range(max(map(len, choices), default=0)):
        chosen = [found[min(number, len(found) - 1)] for found in choices]
        taken = {index for each in chosen for indices, _ in each for index in indices}
        # In the order that there was: into which Conv a runtime fuses an Add may depend on it.
        parts: dict[int, Merge | Operand] = {i: each for i, each in enumerate(operands) if i not in taken}
        parts |= {min(indices): merge for each in chosen for indices, merge in each}
        rewrites[Rewrite(tuple(parts[index] for index in sorted(parts)))] = None
    return list(rewrites)


def _apart(shared: dict[str, list[int]]) -> Iterable[list[str]]:
    """The sources in sets that have no operand in common."""
    home: dict[str, str] = {source: source for source in shared}

    def find(source: str) -> str:
        while home[source] != source:
            home[source] = home[home[source]]
            source = home[source]
        return source

    last: dict[int, str] = {}
    for source, indices in shared.items():
        for index in indices:
            if index in last:
                home[find(source)] = find(last[index])
            last[index] = source
    sets: dict[str, list[str]] = {}
    for source in shared:
        sets.setdefault(find(source), []).append(source)
    return sets.values()


def _choices(shared: dict[str, list[int]], partition: Partition) -> list[list[tuple[Indices, Merge]]]:
    """What may be merged together, for each source that comes first."""
    known: dict[tuple[str, Indices], Sequence[tuple[Indices, Merge]]] = {}
    choices = []
    for first in list(shared)[:_STARTS]:
        taken: set[int] = set()
        merges: list[tuple[Indices, Merge]] = []
        for source in [first, *shared]:
            left = tuple(index for index in shared[source] if index not in taken)
            if len(left) > 1 and (merges or source == first):
                if (source, left) not in known:
                    known[source, left] = partition(source, left)
                merges += known[source, left]
                taken.update(index for indices, _ in known[source, left] for index in indices)
        if merges:
            choices.append(merges)
    return choices
