"""Scales behind joins of tensors of different sources, spread over the kernels that compute these.

A scale and shift for each channel is linear, so it may be moved before an Add, and its parts before a Concat:

    s (A x + B y + c) + t = (s A) x + (s B) y + (s c + t)
    s [A x; B y] + t = [s1 A x + t1; s2 B y + t2]

It goes only if every operand has a weight that takes it; the shift of a sum goes with one of them. Joins may nest,
and scales may stand between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from repfuse.algebra import window
from repfuse.algebra.window import Layout, Refusal, Window
from repfuse.choice.merges import Behind, Merge, Part, Rewrite
from repfuse.search.groups import Groups, Operand

_DEPTH = 8
"""Through how many joins and scales one is moved at most. It bounds the work."""


class Spread:
    """Finds for the last scale behind a join what computes the same without it."""

    def __init__(
        self,
        groups: Groups,
        partial: Callable[[int], Iterable[Rewrite]],
        cost: Callable[[Part], float],
    ) -> None:
        """`partial`: rewrites of a join in which operands are merged; `cost`: of a part, with what it needs."""
        self._groups = groups
        self._partial = partial
        self._cost = cost
        self._parts: dict[tuple[str, int], Part | None] = {}

    def rewrites(self, position: int) -> Iterator[Rewrite]:
        """What a scale may become with all that it is spread over: sums or Concats, if any."""
        output = self._groups.scope.nodes[position].output[0]
        if self._scales(position) and not (self._is_inside(output) and self._scales(self._user(output))):
            yield from self._scaled(position, _DEPTH)

    def _part(self, tensor: str, depth: int) -> Part | None:
        """The cheapest way to compute a tensor by weights alone, if any."""
        if (tensor, depth) not in self._parts:
            found: list[Part] = [*self._wholes(tensor), *self._apart(tensor, depth)]
            self._parts[tensor, depth] = min(found, key=self._cost, default=None)
        return self._parts[tensor, depth]

    def _wholes(self, tensor: str) -> Iterator[Merge]:
        for source, form in self._groups.forms(tensor).items():
            if form.is_weighted:
                yield Merge(source, (Operand(tensor, 1),), form.window)

    def _apart(self, tensor: str, depth: int) -> Iterator[Rewrite]:
        """The ways to compute what one op uses by several weights."""
        position = self._groups.scope.producer(tensor)
        if position is None or not depth or not self._is_inside(tensor):
            return
        if self._scales(position):
            yield from self._scaled(position, depth)
        elif position in self._groups.joins:
            yield from self._sums(position, depth)
        elif position in self._groups.stacks:
            parts = [self._part(name, depth - 1) for name in self._groups.stacks[position]]
            if known := _all(parts):
                yield Rewrite(known, position)

    def _scaled(self, position: int, depth: int) -> Iterator[Rewrite]:
        for inner in self._apart(self._groups.lifted[position].source, depth - 1):
            if isinstance(scaled := self._pushed(inner, Behind(position)), Rewrite):
                yield scaled

    def _sums(self, position: int, depth: int) -> Iterator[Rewrite]:
        operands, _ = self._groups.flattened(position)
        for rewrite in [*self._partial(position), Rewrite(operands)]:
            parts = [
                self._signed(part, depth) if isinstance(part, Operand) else part for part in rewrite.parts
            ]
            known = _all(parts)
            if known and len({_place(_first(part).window) for part in known}) == 1:
                yield Rewrite(known)

    def _signed(self, operand: Operand, depth: int) -> Part | None:
        part = self._part(operand.tensor, depth - 1)
        return part if part is None or operand.sign > 0 else self._pushed(part, Behind(None))

    def _pushed(self, part: Part, step: Behind) -> Part | None:
        """A part with one more scale behind it; None if that does not fit."""
        if isinstance(part, Rewrite):
            steps = self._steps(part, step)
            parts = [self._pushed(each, own) for each, own in zip(part.parts, steps, strict=False)]
            known = _all(parts) if len(steps) == len(parts) else None
            return replace(part, parts=known) if known else None
        assert isinstance(part, Merge)
        geometry = window.compose(part.window, window_of(self._groups, step))
        if isinstance(geometry, Refusal):
            return None
        return replace(part, window=geometry, tail=(*part.tail, step))

    def _steps(self, whole: Rewrite, step: Behind) -> Sequence[Behind]:
        """What a scale is to each part of a sum or Concat; none if it does not fit."""
        if whole.stack is None:  # a Conv that has a bias takes the shift at no cost
            biased = [_first(part).window.biased for part in whole.parts]
            takes = biased.index(True) if any(biased) else 0
            return [
                replace(step, shifts=step.shifts and number == takes) for number in range(len(whole.parts))
            ]
        geometry = window_of(self._groups, step)
        if geometry.channels is None:
            return [step] * len(whole.parts)
        widths = [_width(part) for part in whole.parts]
        if sum(widths) != geometry.channels[0] or geometry.layout not in self._groups.layouts(whole.stack):
            return []
        start = step.rows[0] if step.rows else 0
        steps = []
        for width in widths:
            steps.append(replace(step, rows=(start, start + width)))
            start += width
        return steps

    def _scales(self, position: int) -> bool:
        """Whether a node scales and shifts channels."""
        lifted = self._groups.lifted.get(position)
        if lifted is None or lifted.weight_type or lifted.inside:
            return False
        return lifted.window.depthwise and lifted.window.pointwise

    def _is_inside(self, tensor: str) -> bool:
        """Whether one linear op uses a tensor and nothing else does."""
        scope = self._groups.scope
        return len(scope.consumers(tensor)) == 1 and tensor not in scope.kept

    def _user(self, tensor: str) -> int:
        return self._groups.scope.consumers(tensor)[0]


def window_of(groups: Groups, step: Behind) -> Window:
    """The window of a scale as it acts on one operand."""
    if step.position is None:
        return Window()
    geometry = groups.lifted[step.position].window
    biased = geometry.biased and step.shifts
    if step.rows is None or geometry.channels is None:
        return replace(geometry, biased=biased)
    count = step.rows[1] - step.rows[0]
    return replace(geometry, channels=(count, count), group=count, biased=biased)


def _all(parts: Sequence[Part | None]) -> tuple[Part, ...] | None:
    known = tuple(part for part in parts if part is not None)
    return known if len(known) == len(parts) else None


def _first(part: Part) -> Merge:
    while isinstance(part, Rewrite):
        part = part.parts[0]
    assert isinstance(part, Merge)
    return part


def _width(part: Part) -> int:
    """How many channels a part has."""
    if isinstance(part, Rewrite) and part.stack is not None:
        return sum(map(_width, part.parts))
    channels = _first(part).window.channels
    return channels[0] if channels else 0


def _place(geometry: Window) -> tuple[Layout, int]:
    """Where channels are: tensors that an Add broadcasts may have theirs on axes that do not meet."""
    return geometry.layout, len(geometry.axes)
