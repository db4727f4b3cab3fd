"""Choosing what to fuse: the merges that pay by the cost model, largest first from the outputs backwards.

A `Candidate` replaces the nodes that compute one tensor. Either the whole of it becomes one Conv over one
source; or, at a tree of joins, operands that share a source are merged and the rest is added as before:
`a(x) + b(x) + c(y) + z` becomes `conv(x) + c(y) + z`. Where merging all branches of a source costs more than
it saves (a 51x5 and a 5x51 make a 51x51), a partition of them is sought that pays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from repfuse import cost, window
from repfuse.carry import Carry
from repfuse.cost import Cost
from repfuse.groups import Form, Groups, Operand
from repfuse.lifted import Lifted
from repfuse.window import Layout, Refusal, Window

_ROUNDING = 1e-3
"""A saving below this is none: the op that a kernel passes costs the same before and after, but for rounding."""


@dataclass(frozen=True)
class Merge:
    """Branches that become one Conv: tensors that follow linearly from `source`, added up.

    Attributes:
        source: What it acts on.
        terms: What it computes: one tensor, or several that are added up.
        window: Its geometry.
        path: Positions of ops that carry channels (see `repfuse.carry`) between the source and the only term.
        behind: Whether the Conv comes behind them, not before.
    """

    source: str
    terms: tuple[Operand, ...]
    window: Window
    path: tuple[int, ...] = ()
    behind: bool = False


@dataclass(frozen=True)
class Candidate:
    """A rewrite of the node at `root`.

    Attributes:
        root: The node whose output the rewrite computes.
        merges: Each becomes one Conv.
        rest: Operands that are added to them as they are.
        replaced: Nodes that the rewrite makes superfluous, `root` among them.
        saving: Cost before less cost after, as `repfuse.cost` counts it.
        grows: Whether there is more arithmetic after than before.
    """

    root: int
    merges: tuple[Merge, ...]
    rest: tuple[Operand, ...]
    replaced: frozenset[int]
    saving: float
    grows: bool


def choose(groups: Groups, fits: Callable[[Merge], bool] = lambda _: True) -> list[Candidate]:
    """The rewrites that pay and whose merges all fit, in the order of the graph; no node is in two of them."""
    chooser = _Chooser(groups, fits)
    chosen: list[Candidate] = []
    while found := chooser.sweep():  # one rewrite may free what another one then saves
        chosen += found
    return sorted(chosen, key=lambda each: each.root)


class _Chooser:
    """Counts the uses that are left of each tensor while rewrites are taken."""

    def __init__(self, groups: Groups, fits: Callable[[Merge], bool]) -> None:
        self.groups = groups
        self.fits = fits
        self.gone: set[int] = set()
        self._added: Counter[str] = Counter()

    def sweep(self) -> list[Candidate]:
        """Take the best rewrite of each node that is left, from the outputs backwards."""
        taken = []
        for position in range(len(self.groups.scope.nodes) - 1, -1, -1):
            if position not in self.gone and self.groups.is_linear(position):
                best = self.best(position)
                if best is not None:
                    self.take(best)
                    taken.append(best)
        return taken

    def best(self, position: int) -> Candidate | None:
        """The rewrite of one node, or of the join behind it, that saves most; None where none saves anything."""
        whole = self._best_of(self._wholes(position))
        if whole is not None and not whole.grows:
            return whole
        # Where all branches together grow into a larger kernel, merging some of them may save more; the tail
        # then stays behind the join.
        join = self._join_behind(position) if whole else position
        partial = self._best_of(self._partial(join)) if join in self.groups.joins else None
        return max((each for each in (whole, partial) if each), key=lambda each: each.saving, default=None)

    def _best_of(self, candidates: Iterable[Candidate]) -> Candidate | None:
        paying = [each for each in candidates if each.saving > 0]
        paying.sort(key=lambda each: -each.saving)
        return next((each for each in paying if all(self.fits(merge) for merge in each.merges)), None)

    def take(self, candidate: Candidate) -> None:
        """Make a rewrite final: its nodes are gone, its sources have one use more."""
        self.gone |= candidate.replaced
        self._added.update(merge.source for merge in candidate.merges)
        self._added.update(operand.tensor for operand in candidate.rest)

    def _wholes(self, position: int) -> Iterable[Candidate]:
        output = self.groups.scope.nodes[position].output[0]
        for source, form in self.groups.forms(output).items():
            if form.is_weighted:
                merge = Merge(source, (Operand(output, 1),), form.window)
                yield self._candidate(position, (merge,), ())
        for source, way in self.groups.carried(output).items():
            for geometry, behind in way.choices if way.is_weighted else ():
                merge = Merge(source, (Operand(output, 1),), geometry, way.path, behind)
                found = self._candidate(position, (merge,), ())
                if found.saving > _ROUNDING:
                    yield found

    def _join_behind(self, position: int) -> int:
        """The nearest join, or Conv, that a node follows from through its tail."""
        while (lifted := self.groups.lifted.get(position)) and not lifted.weight_type:
            producer = self.groups.scope.producer(lifted.source)
            if producer is None:
                break
            position = producer
        return position

    def _partial(self, position: int) -> Iterable[Candidate]:
        """Rewrites of a tree of joins that merge some of its operands, beginning with those of each source."""
        operands, _ = self.groups.flattened(position)
        for first in self._shared(operands):
            merges, rest = self._partition(operands, first)
            if not merges:
                continue
            for source in self._shared(rest):
                more, rest = self._partition(rest, source)
                merges += more
            yield self._candidate(position, merges, rest)

    def _shared(self, operands: Sequence[Operand]) -> list[str]:
        """Sources that more than one of the operands follow from."""
        counts = Counter(source for operand in operands for source in self.groups.forms(operand.tensor))
        return [source for source, count in counts.items() if count > 1]

    def _partition(
        self, operands: Sequence[Operand], source: str
    ) -> tuple[tuple[Merge, ...], tuple[Operand, ...]]:
        """The merges of one source that pay, and the operands that stay as they are."""
        forms = [(operand, self.groups.forms(operand.tensor).get(source)) for operand in operands]
        known = (form.window.channels for _, form in forms if form and form.window.channels)
        outputs, _ = next(known, (1, 1))
        clusters = [
            _Cluster((operand,), form, self._own_cost(operand, source, outputs))
            for operand, form in forms
            if form
        ]
        clusters = self._agglomerated(clusters, source, others=len(operands) - len(clusters))
        merged = [cluster for cluster in clusters if len(cluster.operands) > 1]
        merges = tuple(Merge(source, cluster.operands, cluster.form.window) for cluster in merged)
        inside = {id(operand) for cluster in merged for operand in cluster.operands}
        return merges, tuple(operand for operand in operands if id(operand) not in inside)

    def _agglomerated(self, clusters: list[_Cluster], source: str, others: int) -> list[_Cluster]:
        """Merge the two clusters that save most, until none saves anything."""
        while True:
            alone = len(clusters) + others == 2
            pairs = [(a, b) for i, a in enumerate(clusters) for b in clusters[i + 1 :]]
            unions = [(union, a, b) for a, b in pairs if (union := self._union(a, b, source, alone=alone))]
            best = max(unions, key=lambda each: _saved_by(*each), default=None)
            if best is None or _saved_by(*best) <= 0:
                return clusters
            union, a, b = best
            clusters = [union if c is a else c for c in clusters if c is not b]

    def _union(self, a: _Cluster, b: _Cluster, source: str, *, alone: bool) -> _Cluster | None:
        total = self.groups.sum([a.form.window, b.form.window], source)
        if isinstance(total, Refusal) or not (a.form.is_weighted or b.form.is_weighted):
            return None
        return _Cluster(
            a.operands + b.operands, Form(total, is_weighted=True), _conv_cost(total, alone=alone)
        )

    def _own_cost(self, operand: Operand, source: str, channels: int) -> Cost:
        """What the nodes between a source and one operand cost, as far as nothing else needs them."""
        producer = self.groups.scope.producer(operand.tensor)
        if producer is None or operand.tensor == source or self._uses(operand.tensor) > 1:
            return Cost()
        return self._superfluous([producer], frozenset({source}), channels).cost

    def _candidate(self, position: int, merges: tuple[Merge, ...], rest: tuple[Operand, ...]) -> Candidate:
        outputs, _ = merges[0].window.channels or (1, 1)
        partial = len(merges) > 1 or rest or len(merges[0].terms) > 1
        dead = self.groups.flattened(position)[1] if partial else (position,)
        needed = frozenset({merge.source for merge in merges} | {operand.tensor for operand in rest})
        gone = self._superfluous(dead, needed, outputs)
        parts = len(merges) + len(rest)
        after = Cost().plus(cost.pointwise(outputs, 2), parts - 1)
        for merge in merges:
            after = after.plus(self._merged_cost(merge, alone=parts == 1))
        # A Conv where there was none, or in place of an elementwise op that stays, is not what fusing is for.
        saving = cost.saving(gone.cost, after) if gone.weighted >= len(merges) else -1.0
        grows = after.arithmetic > gone.cost.arithmetic
        return Candidate(position, merges, rest, frozenset(gone.nodes), saving, grows)

    def _merged_cost(self, merge: Merge, *, alone: bool) -> Cost:
        """The cost of a Conv, and of the ops that carry channels before or behind it."""
        outputs, inputs = merge.window.channels or (1, 1)
        own = _conv_cost(merge.window, alone=alone)
        if merge.window.layout is Layout.LAST and merge.window.biased:  # MatMul's bias is an Add
            own = own.plus(cost.pointwise(outputs))
        total, density = Cost(), 1.0
        for position in reversed(merge.path):
            carry = self.groups.carries[position]
            total = total.plus(_carry_cost(carry, inputs if merge.behind else outputs), density)
            density *= carry.density
        return total.plus(own, 1.0 if merge.behind else density)

    def _superfluous(self, dead: Sequence[int], needed: frozenset[str], channels: int) -> _Superfluous:
        """What goes if the nodes `dead` go and of the tensors between only `needed` ones must stay."""
        scope, groups = self.groups.scope, self.groups
        found = _Superfluous(set(dead))
        lost: Counter[str] = Counter()
        pending = [(position, 1.0, channels) for position in dead]
        while pending:
            position, density, width = pending.pop()
            lifted = groups.lifted.get(position)
            inputs = groups.data_inputs(position)
            found.weighted += lifted is not None and lifted.weight_type != 0
            carry = groups.carries.get(position)
            own = _carry_cost(carry, width) if carry else _node_cost(lifted, width, len(inputs))
            found.cost = found.cost.plus(own, density)
            density *= carry.density if carry else 1.0
            if lifted:
                found.nodes |= lifted.inside
                density *= lifted.window.stride
                width = lifted.window.channels[1] if lifted.window.channels else width
            for tensor in inputs:
                lost[tensor] += 1
                producer = scope.producer(tensor)
                if (
                    producer is not None
                    and producer not in found.nodes
                    and producer not in self.gone
                    and tensor not in needed
                    and groups.is_linear(producer)
                    and lost[tensor] >= self._uses(tensor)
                ):
                    found.nodes.add(producer)
                    pending.append((producer, density, width))
        return found

    def _uses(self, tensor: str) -> int:
        scope = self.groups.scope
        left = sum(position not in self.gone for position in scope.consumers(tensor))
        return left + self._added[tensor] + (tensor in scope.kept)


@dataclass
class _Superfluous:
    """Nodes that go, their cost for each position of the last output, and how many have weights."""

    nodes: set[int]
    cost: Cost = field(default_factory=Cost)
    weighted: int = 0


@dataclass(frozen=True, eq=False)
class _Cluster:
    """Operands of a join that may become one Conv, and what they cost as they are now or as that Conv."""

    operands: tuple[Operand, ...]
    form: Form
    cost: Cost


def _saved_by(union: _Cluster, a: _Cluster, b: _Cluster) -> float:
    outputs, _ = union.form.window.channels or (1, 1)
    return cost.saving(a.cost.plus(b.cost).plus(cost.pointwise(outputs, 2)), union.cost)


def _conv_cost(geometry: Window, *, alone: bool) -> Cost:
    return cost.conv(window.emittable(geometry), alone=alone)


def _carry_cost(carry: Carry, channels: int) -> Cost:
    """A Reshape moves nothing; others read what they average."""
    whole = carry.places.keys() == set(range(carry.ranks[0])) == set(carry.places.values())
    moves = carry.density > 1 or (whole and any(at != to for at, to in carry.places.items()))
    return Cost().plus(cost.pointwise(channels), (1 + carry.density) / 2) if moves else Cost()


def _node_cost(lifted: Lifted | None, channels: int, operands: int) -> Cost:
    if lifted is None:
        return cost.pointwise(channels, operands)
    geometry = lifted.window
    if not lifted.ops:  # an Identity or Dropout, which runtimes remove
        return Cost()
    if lifted.weight_type:
        return cost.conv(geometry)
    pooled = Window((channels, channels), channels, geometry.axes)
    return cost.conv(pooled) if geometry.taps > 1 else cost.pointwise(channels)
