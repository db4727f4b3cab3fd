"""Deciding what to fuse by measuring: each group, and each alternative to it, alone; then the whole model.

A region of the graph (see `choice.plan`) is cut out, as it is and as each alternative makes it, and these forms
are run in turn on each backend. An alternative wins where it is faster, by the geometric mean over the backends and
with 95 % confidence, and slower on none. What is lost in the noise, or for which there is no time, is for the cost
model to say. In the end the whole model says whether all of that together is faster, or what won, or neither.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from repfuse.choice.plan import Place, Plan, Region, Style, followed
from repfuse.fusion import FuseResult, fuse_file, regions_of
from repfuse.measures.confirm import Whole
from repfuse.measures.decide import Ratios, decide, proposals
from repfuse.measures.extract import Source, digest, static, types_of
from repfuse.measures.meter import Form, Meter
from repfuse.measures.ratios import Ratio
from repfuse.model import model_io
from repfuse.model.storage import Spill
from repfuse.runtimes.backends import Array, Backend, ModelSource
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.inputs import Range, resolve_inputs
from repfuse.runtimes.installed import backends_named

BUDGET = 60.0
"""Seconds."""

_WHOLE = 0.3
"""The share of the budget for the whole model ..."""

_WHOLE_AT_MOST = 0.5
"""... or more, up to so much, if it takes that to measure the model at all."""

_LOADING = 2.0
"""How many times as long as its timed rounds a measurement takes, roughly."""

_SECONDS = (0.1, 2.0)
"""Of timed rounds in a measurement, at least and at most."""


@dataclass(frozen=True)
class Trial:
    """What was found out about one region.

    Attributes:
        graph: The graph that holds it; empty for the main graph.
        outputs: The tensors that it computes.
        ratios: By the backend's title, how many times faster the best alternative is; empty where it was not
            measured.
        verdict: `faster`, `slower` or `same`; `unmeasured` where the cost model decided.
        fused: Whether something in it is to be fused.
        unsplit: Whether in what is fused no tap is a Conv of its own where `choice.cost.summed` would have that.
    """

    graph: str
    outputs: tuple[str, ...]
    ratios: Ratios
    verdict: str
    fused: bool
    unsplit: bool = False


@dataclass(frozen=True)
class Tuning:
    """What measuring found out.

    Attributes:
        plan: What to fuse: for `repfuse.fuse(plan=...)`.
        trials: What was found out about each region, in the order of the graph.
        ratios: How many times faster the whole model is with this plan, by the backend's title; empty where
            nothing is to be fused.
        measured: How many comparisons were run; the others were known.
    """

    plan: Plan
    trials: tuple[Trial, ...]
    ratios: Ratios
    measured: int


def tune(
    model: ModelSource,
    *,
    patterns: Sequence[str] | None = None,
    backend: str = "all",
    threads: int = 1,
    seed: int = 0,
    keep_opset: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_data: Mapping[str, Array] | None = None,
    input_ranges: Mapping[str, Range] | None = None,
    budget: float = BUDGET,
    cache: Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Tuning:
    """Find out by measuring which groups of a model are faster fused.

    Args:
        model: The model, or its path. It is not changed.
        patterns: As for `repfuse.fuse`.
        backend: `ort`, `openvino` or `all`.
        threads: Threads for the runtimes.
        seed: Of drawn inputs.
        keep_opset: As for `repfuse.fuse`.
        input_shapes: Shapes by input name, where the model leaves them open.
        input_data: Arrays by input name, for the whole model.
        input_ranges: The least and the largest value by input name.
        budget: Seconds for measuring, roughly; what there is no time for is left to the cost model.
        cache: A file in which measurements are kept. With the same measurements the result is the same.
        on_progress: Told, in a few words, what happens next.

    Raises:
        BadInputError: The model, inputs or the cache cannot be used, or there is no such backend.
    """
    meter = Meter(threads=threads, file=cache)
    feeding = {"shapes": input_shapes, "data": input_data, "ranges": input_ranges}
    with tempfile.TemporaryDirectory(prefix="repfuse-tune-") as folder:
        path = Path(folder, "model.onnx")
        if isinstance(model, ModelProto):
            model_io.save(model, path)
        else:
            path = Path(model)
        fuse = functools.partial(fuse_file, path, patterns=patterns, keep_opset=keep_opset)
        search = _Search(path, patterns, fuse, backends_named(backend), meter, Path(folder), on_progress)
        return search.run(feeding, seed, budget)


@dataclass(frozen=True)
class _Option:
    """One alternative in a region, cut out."""

    style: Style
    form: Form


_Piece = tuple[Form, list[_Option]]
"""A region cut out: as it is, and its alternatives."""


class _Search:
    def __init__(
        self,
        path: Path,
        patterns: Sequence[str] | None,
        fuse: Callable[..., FuseResult],
        backends: Sequence[Backend],
        meter: Meter,
        folder: Path,
        on_progress: Callable[[str], None] | None,
    ) -> None:
        self._path = path
        self._patterns = patterns
        self._fuse = fuse
        self._backends = backends
        self._meter = meter
        self._folder = folder
        self._say = on_progress or (lambda _: None)
        self._plans = 0

    def run(self, feeding: Mapping[str, Any], seed: int, budget: float) -> Tuning:
        self._say("finding groups")
        regions = regions_of(model_io.read(self._path), patterns=self._patterns)
        bare = self._made(Plan())
        if not regions and not bare.changed:
            return Tuning(Plan(), (), {}, 0)
        inputs = resolve_inputs(self._path, **feeding)
        extents = {entry.name: entry.shape for entry in inputs}
        pieces = self._pieces(regions, bare, extents)

        def feed() -> dict[str, Array]:
            return make_inputs(self._path, count=1, seed=seed, **feeding)[0]

        whole = Whole(self._form(self._path, extents), self._backends, self._meter, feed)
        end = time.perf_counter() + budget
        ratios = self._measured(pieces, whole, budget)
        left = max(_WHOLE * budget, end - time.perf_counter())
        decisions = [decide(region, found) for region, found in zip(regions, ratios, strict=True)]
        tried = proposals(regions, decisions)
        always = {(edit.graph, edit.output) for edit in bare.edits}
        nothing = Plan(
            left=frozenset(always.union(*(set(each.plan.made) | each.plan.left for each in tried)))
        )
        self._say("measuring the whole model")
        forms = [self._written(proposal.plan, extents) for proposal in tried]
        plan, confirmed = whole.taken(tried, forms, left) or (nothing, {})
        trials = []
        for region, decision in zip(regions, decisions, strict=True):
            made = [plan.made[place] for place in _places(region) if place in plan.made]
            unsplit = not all(style.apart for style in made)
            trials.append(
                Trial(region.graph, region.outputs, decision.ratios, decision.verdict, bool(made), unsplit)
            )
        return Tuning(plan, tuple(trials), confirmed, self._meter.measured)

    def _made(self, plan: Plan) -> FuseResult:
        """The model as a plan makes it; its weights lie in a file."""
        self._plans += 1
        return self._fuse(Spill(self._folder / f"{self._plans}.weights"), plan=plan)

    def _pieces(
        self, regions: Sequence[Region], bare: FuseResult, extents: Mapping[str, Sequence[int]]
    ) -> list[_Piece | None]:
        """Each region cut out, as it is and as its alternatives make it; None where that cannot be done.

        `bare`: the model without any group fused. What is rewritten whatever the plan is in all forms.
        """
        types = types_of(model_io.read(self._path), extents)
        before = Source(bare.model, types)
        after = {
            style: Source(self._made(followed(regions, style)).model, types)
            for style in dict.fromkeys(style for region in regions for style in region.alternatives)
        }
        computed = frozenset[str]().union(*(region.computed for region in regions))
        pieces: list[_Piece | None] = []
        for region in regions:
            pieces.append(None)
            if region.graph:
                continue
            ends, beside = before.followers(region.outputs, computed)
            inputs = dict.fromkeys((*region.inputs, *beside))
            # One that an alternative does without has readers that only ask for its shape, and ask another for it.
            sources = (before, *(after[style] for style in region.alternatives))
            ends = tuple(end for end in ends if all(source.computes(end) for source in sources))
            form = _form(before, inputs, ends)
            known = {form.digest} if form else set()
            options = []
            for style in region.alternatives:
                made = _form(after[style], inputs, ends)
                if form and made and _fed(made) == _fed(form) and made.digest not in known:
                    known.add(made.digest)
                    options.append(_Option(style, made))
            if form and options:
                pieces[-1] = form, options
        return pieces

    def _measured(
        self,
        pieces: Sequence[_Piece | None],
        whole: Whole,
        budget: float,
    ) -> list[dict[Style, Ratios]]:
        """For each region the ratios of its alternatives, by their style; none where there was no time."""
        keyed = {tuple(form.digest for form in _forms(piece)): piece for piece in pieces if piece}
        counts = Counter(tuple(form.digest for form in _forms(piece)) for piece in pieces if piece)
        jobs = [  # what stands often is measured first: there is the most to be gained
            (keyed[key], backend)
            for key, _ in counts.most_common()
            for backend in self._backends
            if not self._meter.knows(_forms(keyed[key]), backend)
        ]
        if jobs:
            budget -= max(_WHOLE * budget, min(whole.least(), _WHOLE_AT_MOST * budget))
        end = time.perf_counter() + budget
        for number, (piece, backend) in enumerate(jobs):
            left = end - time.perf_counter()
            if left < 0:
                break
            # What takes longer than was expected leaves less time for each of the others.
            seconds = min(max(left / (len(jobs) - number) / _LOADING, _SECONDS[0]), _SECONDS[1])
            self._say(f"{number + 1} of {len(jobs)}, at most {left:.0f} s left")
            self._compare(piece, backend, seconds)
        return [self._known(piece) if piece else {} for piece in pieces]

    def _compare(self, piece: _Piece, backend: Backend, seconds: float) -> list[Ratio] | None:
        before = piece[0].model
        return self._meter.compare(
            _forms(piece), backend, lambda: make_inputs(before, count=1, seed=0)[0], seconds=seconds
        )

    def _known(self, piece: _Piece) -> dict[Style, Ratios]:
        """What is known of a region's alternatives; nothing if some backend's measurement is missing."""
        if not all(self._meter.knows(_forms(piece), backend) for backend in self._backends):
            return {}
        found: dict[Style, dict[str, Ratio]] = {option.style: {} for option in piece[1]}
        for backend in self._backends:
            for option, ratio in zip(piece[1], self._compare(piece, backend, 0.0) or (), strict=False):
                found[option.style][backend.title] = ratio
        return {style: each for style, each in found.items() if each}

    def _written(self, plan: Plan, extents: Mapping[str, Sequence[int]]) -> Form | None:
        """The model as a plan makes it, in a file; None where it is as it was."""
        result = self._made(plan)
        if not result.changed:
            return None
        target = self._folder / f"plan-{self._plans}.onnx"
        model_io.write(result.model, target)
        return self._form(target, extents)

    def _form(self, path: Path, extents: Mapping[str, Sequence[int]]) -> Form:
        return Form(path, digest(static(model_io.read(path), extents)))


def _places(region: Region) -> set[Place]:
    return {place for places in region.alternatives.values() for place in places}


def _forms(piece: _Piece) -> list[Form]:
    return [piece[0], *(option.form for option in piece[1])]


def _form(source: Source, inputs: Collection[str], outputs: Sequence[str]) -> Form | None:
    model = source.cut(inputs, outputs)
    return Form(model, digest(model)) if model else None


def _fed(form: Form) -> list[str]:
    assert isinstance(form.model, ModelProto)
    return [entry.name for entry in form.model.graph.input]
