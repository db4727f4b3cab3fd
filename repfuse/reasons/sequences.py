"""Linear sequences that were left alone: ops in a row with a weight among them, and why they are not one Conv.

A sequence is told of once, from its first op to its last, as the graph is after fusing: what a group became is one
op of it. Where ops part, the first way goes on and the others begin there, so that each two neighbours are in one
sequence, and all of them together are as long as the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from repfuse.algebra import window
from repfuse.algebra.window import IDENTITY, Refusal, Window
from repfuse.choice.choose import Candidate
from repfuse.choice.merges import Merge, Rewrite
from repfuse.reasons.savings import Savings
from repfuse.remarks import LITTLE, Outcome, Remark
from repfuse.rewriting.rewrite import describe
from repfuse.search.groups import Groups, Operand

OF_NO_PATTERN = Refusal("is of no pattern that was asked for").reason
"""What is said of a merge that `fuse` was not asked for."""

Reason = tuple[str, str]
"""A sentence, and the node that is to blame; empty where no single one is."""

_CALLER = "the graph's caller or a subgraph"

_MOVES = frozenset({"pad", "slice", "select"})
"""Ops that a sequence neither begins nor ends with: they compute nothing."""

_FAR = 64
"""How many nodes may lie between two ops that compute something; it bounds the work for each."""

_SEVERAL = 2
"""So many weights make a sequence worth telling of where nothing but the cost keeps it apart."""

_LISTED = 3
"""So many Convs are described one by one."""


def outside_user(groups: Groups, tensor: str, inside: Collection[int]) -> Reason | None:
    """A sentence if something other than the nodes `inside` needs a tensor that would go, and the label of that."""
    users = [position for position in groups.scope.consumers(tensor) if position not in inside]
    if tensor in groups.scope.kept:
        user, name = _CALLER, ""
    elif users:
        user = name = groups.scope.name(users[0])
    else:
        return None
    return f"would add work: '{tensor}' must stay, since {user} uses it as well", name


class _Link(NamedTuple):
    """A node of a sequence.

    Attributes:
        position: The node's.
        source: What it acts on.
        window: Its geometry; None for an op that carries channels.
        computes: Whether it does more than move elements.
        weighted: Whether it is a Conv or the like.
        inside: The nodes that it stands for.
        made: Whether it is a Conv in place of what was fused.
        part: That Conv, if it is one of several parts of what became of the node.
    """

    position: int
    source: str
    window: Window | None
    computes: bool
    weighted: bool
    inside: Collection[int]
    made: bool = False
    part: Merge | None = None


def left(
    groups: Groups,
    made: Sequence[Candidate],
    gone: Collection[int],
    fits: Callable[[Merge], bool],
    savings: Savings,
) -> Iterator[tuple[int, Remark]]:
    """A remark for each sequence that stays, with the position of its last node.

    It has two weights; or one, if something other than the cost keeps the ops beside it apart.

    Args:
        groups: The graph.
        made: What was fused.
        gone: Nodes that are in no sequence: those that were fused, and those of groups that were left for
            reasons of their own.
        fits: As for `reasons.explain.refusals`.
        savings: What merging would save.
    """
    for row in _Links(groups, made, gone).rows():
        told = _Sequence(groups, row, fits, savings).remark()
        if told:
            yield row[-1].position, told


class _Links:
    """The nodes of a graph, after fusing, that act on one tensor and are linear."""

    def __init__(self, groups: Groups, made: Sequence[Candidate], gone: Collection[int]) -> None:
        self._groups = groups
        self._made = {candidate.root: candidate for candidate in made}
        self._gone = gone

    def rows(self) -> list[list[_Link]]:
        """The sequences, each from the first node that computes something to the last one."""
        last: dict[str, _Link | None] = {}
        before: dict[int, _Link | None] = {}
        begins: dict[int, int] = {}
        parts: list[tuple[int, _Link]] = []
        moves: dict[str, int] = {}

        def begin(earlier: _Link) -> int:
            start = begins.pop(earlier.position, None)
            return self._weighted(earlier, before) if start is None else start

        for position, node in enumerate(self._groups.scope.nodes):
            for part in self._parts(position):
                if earlier := last.get(part.source):
                    parts.append((begin(earlier), part))
            for name in node.output:
                link = self.link(name) if name else None
                if link is None:
                    continue
                last[name] = link
                if not link.computes:
                    moves[name] = 1 + moves.get(link.source, 0)
                    last[name] = last.get(link.source) if moves[name] <= _FAR else None
                    continue
                if position in before:  # another output of the same node
                    continue
                earlier = before[position] = last.get(link.source)
                if earlier:
                    begins[position] = begin(earlier)
        rows = [self._between(start, self._groups.output(end)) for end, start in begins.items()]
        return rows + [[*self._between(start, part.source), part] for start, part in parts]

    def _weighted(self, link: _Link, before: Mapping[int, _Link | None]) -> int:
        """Where a sequence begins that parts from another one: with the last weight, if it is near."""
        start = link.position
        for _ in range(_FAR):
            if link.weighted:
                return link.position
            earlier = before[link.position]
            if earlier is None:
                break
            link = earlier
        return start

    def _between(self, start: int, tensor: str) -> list[_Link]:
        """The nodes from one to that which computes a tensor, in order."""
        found: list[_Link] = []
        while not found or found[-1].position != start:
            link = self.link(tensor)
            assert link
            found.append(link)
            tensor = link.source
        return found[::-1]

    def _parts(self, position: int) -> Iterator[_Link]:
        """The Convs of what became of a node, if that is a sum or Concat."""
        candidate = self._made.get(position)
        if candidate and len(candidate.rewrite.parts) > 1:
            for merge in candidate.merges:
                if not merge.path:
                    inside = candidate.replaced
                    yield _Link(position, merge.source, merge.window, True, True, inside, True, merge)

    def link(self, tensor: str) -> _Link | None:
        """What computes a tensor, if it acts on one other tensor."""
        groups = self._groups
        position = groups.scope.producer(tensor)
        if position is None:
            return None
        candidate = self._made.get(position)
        if candidate and len(candidate.rewrite.parts) == 1 and not candidate.merges[0].path:
            (merge,) = candidate.merges
            return _Link(position, merge.source, merge.window, True, True, candidate.replaced, made=True)
        if candidate or position in self._gone:
            return None
        if position in groups.carries:
            return _Link(position, groups.carries[position].source, None, False, False, (position,))
        lifted = groups.op(tensor)
        if lifted is None:
            return None
        computes = any(op.kind not in _MOVES for op in lifted.ops)
        weighted = bool(lifted.weight_type)
        return _Link(position, lifted.source, lifted.window, computes, weighted, (position,))


class _Sequence:
    """Nodes in a row, and what they would be as one."""

    def __init__(
        self, groups: Groups, links: Sequence[_Link], fits: Callable[[Merge], bool], savings: Savings
    ) -> None:
        self._groups = groups
        self._links = links
        self._fits = fits
        self._savings = savings
        last = links[-1]
        self._now = Rewrite((last.part,)) if last.part else None
        self._end = last.part or Merge(last.source, (Operand(groups.output(last.position), 1),), IDENTITY)

    def remark(self) -> Remark | None:
        """Why the sequence stays; None if there is nothing to tell."""
        if not any(link.weighted for link in self._links):
            return None
        name, last = self._groups.scope.name, self._links[-1].position
        blocker = self._blocker()
        merge = self._merge(exactly=blocker is None)
        far = len(self._links) + _FAR
        saving = self._savings.of(last, Rewrite((merge,)), now=self._now, far=far) if merge else None
        reason = blocker or (merge and self._why_not_chosen(merge, saving))
        if not reason:
            return None
        told = f"follows {self._called(self._links[0])} linearly: {reason[0]}", reason[1]
        nodes = tuple(name(link.position) for link in self._links)
        return Remark(Outcome.KEPT, name(last), *told, self._groups.scope.label, nodes=nodes, saving=saving)

    def _blocker(self) -> Reason | None:
        """The first node that keeps the sequence from being one Conv, if any does."""
        total = IDENTITY
        for link in self._links:
            if link.window is None:
                if self._carried() is None:
                    return self._blame(link, self._groups.blocked[link.position])
                return None
            composed = window.compose(total, link.window)
            if isinstance(composed, Refusal):
                return self._blame(link, composed)
            total = composed
        return None

    def _blame(self, link: _Link, refusal: Refusal) -> Reason:
        sentence = f"{self._called(link)} {refusal.reason}"
        return sentence, self._groups.scope.name(link.position)

    def _called(self, link: _Link) -> str:
        """What a sentence calls a node."""
        name = self._groups.scope.name(link.position)
        if link.made:
            return f"{'a' if link.part else 'the'} Conv in place of {name}"
        return name

    def _merge(self, *, exactly: bool) -> Merge | None:
        """The Conv that the sequence would be; if not `exactly`, one of its extents; None if there is none."""
        if any(link.window is None for link in self._links):
            return self._carried() if exactly else None
        total = IDENTITY
        for link in self._links:
            assert link.window
            composed = window.compose(total, link.window if exactly else _unpadded(link.window))
            if isinstance(composed, Refusal):
                return None
            total = composed
        return replace(self._end, source=self._links[0].source, window=total)

    def _carried(self) -> Merge | None:
        """The Conv before or behind ops that carry channels, if there may be one."""
        source, (output, *others) = self._links[0].source, self._end.terms
        way = None if others else self._groups.carried(output.tensor).get(source)
        if way is None or not way.choices:
            return None
        geometry, behind = way.choices[0]
        return replace(self._end, source=source, window=geometry, path=way.path, behind=behind)

    def _why_not_chosen(self, merge: Merge, saving: float | None) -> Reason | None:
        """Why one Conv was not made where there could be one."""
        weights = [link.window for link in self._links if link.weighted and link.window]
        pays = saving is not None and saving >= LITTLE
        if len(weights) < _SEVERAL and not pays and not merge.window.shifted:
            return None
        if not self._fits(merge):
            return OF_NO_PATTERN, ""
        if pays and (reason := self._outside_user()):
            return reason
        if len(weights) < _SEVERAL:
            return "would not pay: a shift would stay, since the border is padded with zeros behind it", ""
        more = [f"{len(weights) - _LISTED} more"] if len(weights) > _LISTED else []
        listed = " then ".join([*map(describe, weights[:_LISTED]), *more])
        return f"would not pay: {listed} would become {describe(merge.window)}", ""

    def _outside_user(self) -> Reason | None:
        """Who needs a tensor between the nodes."""
        for link, following in zip(self._links, self._links[1:], strict=False):
            for tensor in self._groups.scope.nodes[link.position].output:
                if reason := outside_user(self._groups, tensor, following.inside):
                    return reason
        return None


def _unpadded(given: Window) -> Window:
    """A window without the padding that may forbid composing it; its cost is the same."""
    axes = (axis._replace(begin=min(axis.begin, 0), end=min(axis.end, 0)) for axis in given.axes)
    return replace(given, axes=tuple(axes), shifted=False)
