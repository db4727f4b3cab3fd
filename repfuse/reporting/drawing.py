"""Groups as drawings: where each op of a tree of branches stands, in columns and rows.

The source stands on top, one column for each branch below it, the join at the bottom; a bare source that is added
up runs down a column of its own. Branches that are alike are drawn once, with their number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from repfuse.reporting.anatomy import Branch

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A tensor or an op.

    Attributes:
        column: Of its middle; halves where it stands above or below several branches.
        row: From 0, the sources, downwards.
        title: The operator, or the tensor's name.
        words: What else to say; may be empty.
        full: What it is called in the model, for whoever asks.
        tensor: Whether it is a tensor.
    """

    column: float
    row: int
    title: str
    words: str
    full: str
    tensor: bool = False


@dataclass(frozen=True)
class Line:
    """A way from one box to another: straight down `column`, and bent into it at both ends.

    Attributes:
        start: Column and row of the box that it leaves.
        column: Where it runs down.
        end: Column and row of the box that it reaches.
        count: How many branches like the one that ends here there are.
    """

    start: Point
    column: float
    end: Point
    count: int = 1


@dataclass(frozen=True)
class Drawing:
    """Boxes and lines on a grid.

    Attributes:
        boxes: Without overlap.
        lines: Between them.
        columns: How many there are.
        rows: How many there are.
    """

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    columns: int
    rows: int


def draw(tree: Branch) -> Drawing:
    """Lay a tree of branches out."""
    plan = _Plan()
    plan.place(_flat(tree), 0)
    return plan.drawing()


def alike(tree: Branch) -> str:
    """What a tree looks like, whatever its nodes and tensors are called."""
    parts = "+".join(map(alike, _flat(tree).parts))
    return f"({parts})" + "-".join(f"{op.kind} {op.words}" for op in tree.ops)


def _flat(tree: Branch) -> Branch:
    """A tree in which a sum of sums is one sum."""
    parts: list[Branch] = []
    for part in map(_flat, tree.parts):
        sums = part.parts and [op.kind for op in (tree.ops[0], *part.ops)] == ["Add", "Add"]
        parts += part.parts if sums else [part]
    return replace(tree, parts=tuple(parts))


class _Plan:
    """Collects what is placed; a tensor that several branches begin at is placed once, above all of them."""

    def __init__(self) -> None:
        self._boxes: list[Box] = []
        self._lines: list[Line] = []
        self._sources: dict[str, list[tuple[float, Point, int]]] = {}

    def place(self, tree: Branch, left: int) -> tuple[float, int, int]:
        """Place a tree right of column `left`; gives the middle of its end, its last row and its width."""
        first, width, row = float(left), 1, 0
        ends: list[tuple[Branch, float, int, int]] = []
        if tree.parts:
            width = 0
            for part, times in _counted(tree.parts):
                at, bottom, wide = self.place(part, left + width) if part.ops else (left + width, 0, 1)
                ends.append((part, at, bottom, times))
                row, width = max(row, bottom), width + wide
            first = left + (width - 1) / 2
        for number, op in enumerate(tree.ops, start=row + 1):
            self._boxes.append(Box(first, number, op.kind, op.words, op.label))
            if number > row + 1:
                self._lines.append(Line((first, number - 1), first, (first, number)))
        join = (first, row + 1)
        if not tree.parts:
            self._sources.setdefault(tree.source, []).append((first, join, 1))
        for part, at, bottom, times in ends:
            if part.ops:
                self._lines.append(Line((at, bottom), at, join, times))
            else:
                self._sources.setdefault(part.source, []).append((at, join, times))
        return first, row + len(tree.ops), width

    def drawing(self) -> Drawing:
        """The whole, with its sources."""
        boxes, lines = list(self._boxes), list(self._lines)
        taken: set[float] = set()
        for source, ways in self._sources.items():
            reached = [column for column, _, _ in ways]
            middle = (min(reached) + max(reached)) / 2
            while any(abs(middle - other) < 1 for other in taken):
                middle += 1
            taken.add(middle)
            boxes.append(Box(middle, 0, source, "", source, tensor=True))
            lines += [Line((middle, 0), column, end, count) for column, end, count in ways]
        columns = max(box.column for box in boxes)
        return Drawing(tuple(boxes), tuple(lines), int(columns) + 1, max(box.row for box in boxes) + 1)


def _counted(parts: Sequence[Branch]) -> Iterator[tuple[Branch, int]]:
    """Branches, of those that are alike only the first, and how many there are."""
    looks = [f"{part.source}|{alike(part)}|{_sources(part)}" for part in parts]
    counts, first = Counter(looks), dict[str, Branch]()
    for look, part in zip(reversed(looks), reversed(parts), strict=True):
        first[look] = part
    for look, count in counts.items():
        yield first[look], count


def _sources(tree: Branch) -> str:
    return ",".join([tree.source, *map(_sources, tree.parts)])


def shortened(name: str, length: int) -> str:
    """A name's end, where it tells most."""
    name = re.sub(r"\s+", " ", name)
    return name if len(name) <= length else f"…{name[1 - length :]}"
