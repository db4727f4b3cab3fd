"""Each replaced block by itself: what the original's own nodes compute against what the new ones do, in float64.

Both sides are affine in the tensors that they read, so a few inputs tell whether they are one function: zero
shows the biases, impulses single taps, dense noise all of them at once. Small maps do, as long as they have both
borders, room for each tap and every stride phase. What the network does around a block plays no part, so a deep
one with random weights, which answers alike to everything, hides nothing here.

The judge shares no algebra with what it judges. The original's side is cut out of the model as it was and run by
ONNX's reference implementation. A deviation is told as the error per weight, in units in the last place (ulp), that
would account for it. Rounding every merged weight and bias once, to the nearest value of its type, makes half a
unit of each, which can cause at an output:

    y' - y = sum_i d_i x_i + d,  |d_i| <= ulp(W_i) / 2,  so  |y' - y| <= sum_i ulp(W_i) |x_i| / 2 + ulp(b) / 2

Where a shift t is added before, x stands for the sum, and |W_i| ulp(t) / 2 comes to it for each tap.

Where many weights meet dense noise that is far more than ever happens. The signs of the noise are independent of
each other and of d, so by Hoeffding's inequality `8 sqrt(sum_i (ulp(W_i) x_i / 2)^2)` is exceeded once in 4e13
times, however the d_i depend on each other; the smaller of both bounds counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, helper

from repfuse.graph.view import scopes
from repfuse.model import convert, model_io
from repfuse.proof.curve import curve_error
from repfuse.proof.part import Array, Graph, Part, UnrunnableError
from repfuse.proof.probe import NOISE, PLACES, Probe, chain, few
from repfuse.proof.roundoff import (
    ARITHMETIC,
    KERNELS,
    largest_of_rows,
    rounded_off,
    shifted_off,
    to_the,
    units,
)
from repfuse.remarks import Edit, label

if TYPE_CHECKING:
    from repfuse.fusion import FuseResult
    from repfuse.model.convert import Source

Sizes = Mapping[str, tuple[int, ...]]
"""The extents of each source, channels first, without the batch."""

LIMIT = 0.5005
"""The largest error that passes. It is 0.5 but for types that are rounded to by way of another one."""

_HOEFFDING = 8.0
"""Standard deviations, if all roundings were as large as they can be: see above."""

_STAYING = KERNELS | {"Add", "Sub", "Concat"}
"""What new nodes are, but for those that move or average elements."""

_OF_ANY_EXTENTS = {"AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Transpose", "Upsample"}
"""Those of the others that act on maps of any extents alike."""

_LARGE = 2**22
"""Elements of a map across ops that move them; of one that is larger, impulses are run at once."""

_LARGEST = 2**25
"""Elements of a Conv's columns (taps times outputs); a block that can only be run larger is skipped."""


@dataclass(frozen=True)
class BlockCheck:
    """What came of running one replaced block alone.

    Attributes:
        edit: The change that was checked.
        error_ulp: The error per weight, in units in its last place, that accounts for the largest deviation:
            at most 0.5 where all is right, since each weight is rounded once. Infinite where the two sides
            have different shapes, or the original depends on a tensor that the new nodes do not read. 0 where
            the check was skipped.
        passed: Whether both sides compute the same; also where the check was skipped.
        skipped: Why the block could not be run alone, a sentence; empty where it was.
    """

    edit: Edit
    error_ulp: float
    passed: bool
    skipped: str = ""


def check_blocks(
    before: Source, result: FuseResult, *, on_progress: Callable[[str], None] | None = None
) -> tuple[BlockCheck, ...]:
    """Run each block that was replaced alone, as it was and as it is.

    Args:
        before: The model as it was given to `repfuse.fuse`, or its path. It is not changed.
        result: What `fuse` made of it.
        on_progress: Told, in a few words, what happens next.

    Returns:
        One check for each edit, in their order.
    """
    say = on_progress or (lambda _: None)
    given = convert.proto(before)
    original = given if isinstance(given, ModelProto) else model_io.load(given)
    old, new = ({scope.label: scope for scope in scopes(model)} for model in (original, result.model))
    graphs: dict[str, tuple[Graph, Graph]] = {}
    checks = []
    for number, edit in enumerate(result.edits, 1):
        say(f"block {number} of {len(result.edits)}")
        if edit.graph not in graphs:
            sides = ((original, old[edit.graph]), (result.model, new[edit.graph]))
            graphs[edit.graph] = (Graph(*sides[0]), Graph(*sides[1]))
        checks.append(_checked(edit, *graphs[edit.graph]))
    return tuple(checks)


def _checked(edit: Edit, original: Graph, fused: Graph) -> BlockCheck:
    try:
        error = _Block(edit, original, fused).error() if edit.kernel else curve_error(edit, original, fused)
    except UnrunnableError as reason:
        return BlockCheck(edit, 0.0, passed=True, skipped=str(reason))
    return BlockCheck(edit, error, passed=error <= LIMIT)


class _Block:
    """Both sides of one edit, and inputs for them."""

    def __init__(self, edit: Edit, original: Graph, fused: Graph) -> None:
        self._output = edit.output
        self._shape_of = original.shape_of
        added = [n for n in fused.nodes if label(n.op_type, n.name, n.output) in edit.added]
        made = {name for node in added for name in node.output}
        if edit.output not in made:
            raise UnrunnableError("Another edit made do without it.")
        self._read = {name for node in added for name in node.input} - made
        # All that the new nodes do not compute and that was there before; what is left are their weights.
        inputs = {name for name in self._read if name in original and name not in original.constants}
        targets = inputs & {node.input[1] for node in added if node.op_type == "Reshape"}
        # Of what a Reshape asks for at run time, what follows from the extents of the source is no input.
        self._measures = {
            name
            for name in targets
            if all(graph.between(frozenset(inputs - targets), name) for graph in (original, fused))
        }
        self._inputs = frozenset(inputs - self._measures)
        before = original.between(self._inputs, edit.output)
        self._before = before.wide() if before else None
        self._shaken = before.shaken(np.random.default_rng(0)) if before else None
        self._moved: dict[tuple[int, ...], float] = {}
        after = fused.between(self._inputs, edit.output)
        assert after is not None
        self._after = after.wide()
        ops = {node.op_type for node in added}
        self._carries, self._of_any_extents = not ops <= _STAYING, ops <= _STAYING | _OF_ANY_EXTENTS
        pools = (node for node in added if node.op_type == "AveragePool")
        kernels = (helper.get_node_attr_value(node, "kernel_shape") for node in pools)
        self._least = max(itertools.chain.from_iterable(kernels), default=1)
        self._rounded_off = partial(rounded_off, added, after)
        self._shifted_off = partial(shifted_off, added, after)
        self._joins = [node for node in added if node.op_type in ("Add", "Sub", "Concat")]
        self._concat = next((node for node in added if node.op_type == "Concat"), None)
        shifts = {node.output[0]: node for node in added if node.op_type == "Add"}
        self._convs = [
            Probe.of(chain(node, added, after), after, original.shape_of, shifts.get(node.input[0]))
            for node in added
            if node.op_type in KERNELS
        ]
        transposed = {node.op_type == "ConvTranspose" for conv in self._convs for node in conv.part.nodes[:1]}
        if len(transposed) > 1:
            raise UnrunnableError(
                "It adds up a Conv and a ConvTranspose, for which no small extents are known."
            )

    def error(self) -> float:
        """The largest error; where small maps cannot be run or do not agree, that of the model's own extents.

        Raises:
            UnrunnableError: The original's side cannot be run.
        """
        if self._before is None:
            return math.inf
        if self._carries:
            return self._carried_error(self._rounded_off(), self._shifted_off())
        # Borders that are written out stand where the model's own extents put them.
        if self._shaken and (static := self._static_sizes()):
            return self._error(static, alone=True)
        failure = None
        try:
            error = max(map(self._error, self._small_sizes()))
        except UnrunnableError as reason:
            error, failure = math.inf, reason
        # A rewrite may hold for the one extent that the model has, and another extent is none of its concern.
        static = self._static_sizes() if error > LIMIT else None
        try:
            if static:
                return self._error(static, alone=True)
        except UnrunnableError as reason:
            failure = reason
        if error == math.inf and len(self._inputs) == 1:
            # A Reshape on the way may want the number of images, too, or by chance do without and give other axes.
            try:
                return self._carried_error(self._rounded_off(), self._shifted_off())
            except UnrunnableError as reason:
                failure = failure and reason
        if failure:
            raise failure
        return error

    def _carried_error(self, off: Part, shifts: Part | None) -> float:
        """The error where ops move or average elements, too, which hold for the extents that the model has."""
        assert self._before is not None
        if len(self._inputs) > 1:
            raise UnrunnableError("It asks for extents that do not follow from those of its source.")
        (source,) = self._inputs
        shape = [
            1 + axis + self._least
            if not isinstance(n, int) and (axis == 0 or self._measures or (axis > 1 and self._of_any_extents))
            else n
            for axis, n in enumerate(self._shape_of(source) or ())
        ]
        extents = [n for n in shape if isinstance(n, int)]
        if len(extents) == 1 or len(extents) != len(shape) or math.prod(extents) > _LARGEST:
            raise UnrunnableError("It changes the layout of a tensor whose extents are unknown, or large.")
        random = np.random.default_rng(0)
        inputs = np.zeros((1 + len(PLACES) + len(NOISE), *extents))
        for place in range(len(PLACES)):
            inputs[1 + place].flat[place * (inputs[0].size - 1) // (len(PLACES) - 1)] = 1
        for row, deviation in enumerate(NOISE, 1 + len(PLACES)):
            inputs[row] = random.normal(0, deviation, extents)
        made = math.prod(n for n in self._shape_of(self._output) or () if isinstance(n, int))
        if made > _LARGE:
            inputs = few(inputs)
        errors = []
        for values in inputs:
            values_before, values_after = (side.run({source: values}) for side in (self._before, self._after))
            # What a Reshape asks for, even where it is static, may be computed from the source's extents.
            measured = {name: values_after[name] for name in self._read & values_after.keys()}
            always, nearly = (
                to_the(power, off).run({source: np.abs(values) ** power, **measured})[self._output]
                for power in (1, 2)
            )
            if shifts:
                unfed = {source: np.zeros_like(values), **measured}
                bound = np.minimum(always, _HOEFFDING * np.sqrt(2 * nearly))  # (x + t)^2 <= 2 (x^2 + t^2)
                bound = bound + shifts.run(unfed)[self._output]
            else:
                bound = np.minimum(always, _HOEFFDING * np.sqrt(nearly))
            largest = max(np.abs(each).max(initial=0) for each in (values, *values_before.values()))
            errors.append(
                units(values_before[self._output], values_after[self._output], bound + ARITHMETIC * largest)
            )
        return max(errors)

    def _small_sizes(self) -> Iterator[Sizes]:
        """Extents that differ by axis and go through every stride phase; outputs of all sources agree."""
        outputs = np.max([conv.least_outputs() for conv in self._convs], axis=0)
        outputs += np.arange(len(outputs))
        for phase in range(max(conv.strides.max(initial=1) for conv in self._convs)):
            yield {conv.source: (conv.channels, *conv.extents(outputs, phase)) for conv in self._convs}

    def _static_sizes(self) -> Sizes | None:
        sizes = {}
        for conv in self._convs:
            extents = (self._shape_of(conv.source) or ())[2:]
            known = [extent for extent in extents if isinstance(extent, int)]
            if not known or len(known) != len(conv.strides):
                return None
            if math.prod(known) * conv.columns > _LARGEST:
                raise UnrunnableError(
                    f"It holds for an input of {known} only, which is too large to run here."
                )
            sizes[conv.source] = (conv.channels, *known)
        return sizes

    def _error(self, sizes: Sizes, *, alone: bool = False) -> float:
        if any(conv.padded(sizes[conv.source]) > _LARGEST for conv in self._convs):
            raise UnrunnableError("It needs maps that are too large to run here.")
        random = np.random.default_rng(0)
        sources = {conv.source: conv.inputs(sizes[conv.source], random) for conv in self._convs}
        largest = max(math.prod(sizes[conv.source][1:]) * conv.columns for conv in self._convs)
        rows = len(PLACES) + len(NOISE) + 1
        step = max(1, min(rows, _LARGEST // largest))
        if alone:  # what is written for one image, as some borders are; its maps are large: impulses at once
            sources = {name: few(value) for name, value in sources.items()}
            rows, step = 3, 1
        with np.errstate(all="ignore"):  # what is not finite at the end is an infinite error
            return max(
                self._error_of({name: value[i : i + step] for name, value in sources.items()}, random)
                for i in range(0, rows, step)
            )

    def _error_of(self, sources: dict[str, Array], random: np.random.Generator) -> float:
        assert self._before is not None
        others = sorted(self._inputs - sources.keys())
        like = self._stacked(sources) if others and self._concat else None
        try:
            bound = self._bound(sources)
            shapes = {name: self._beside(name, bound if like is None else like) for name in others}
            feeds = {**sources, **{name: random.normal(size=shape) for name, shape in shapes.items()}}
            actual = self._after.run(feeds)[self._output]
        except UnrunnableError:
            return math.inf
        values = self._before.run(feeds)
        expected = values[self._output]
        if expected.shape != bound.shape:
            return math.inf
        bound = bound + ARITHMETIC * largest_of_rows([*feeds.values(), *values.values()])
        error = units(expected, actual, bound)
        if self._shaken and LIMIT < error < math.inf:
            error = units(expected, actual, bound + self._unsettled(feeds, expected))
        return error

    def _unsettled(self, feeds: Mapping[str, Array], expected: Array) -> float:
        """How far outputs are unsettled, since what the original writes into tensors is rounded, too.

        A border's constant and the bias that it stands for are two roundings of one number. It is added, so it
        moves the outputs of all inputs alike.
        """
        assert self._shaken is not None
        extents = expected.shape[1:]
        if extents not in self._moved:
            moved = np.abs(self._shaken.run(feeds)[self._output] - expected)
            self._moved[extents] = _HOEFFDING * float(np.max(moved, initial=0))
        return self._moved[extents]

    def _bound(self, sources: Mapping[str, Array]) -> Array:
        """How far rounding the weights may move each output: the smaller of the module's two bounds."""
        always, nearly = (
            {conv.output: conv.rounding(sources[conv.source], power) for conv in self._convs}
            for power in (1, 2)
        )
        shifts = {
            conv.output: np.broadcast_to(
                conv.rounding_of_shift(sources[conv.source]), always[conv.output].shape
            )
            for conv in self._convs
        }
        bound = np.minimum(self._joined(always), _HOEFFDING * np.sqrt(self._joined(nearly)))
        return np.asarray(bound + self._joined(shifts))

    def _joined(self, parts: Mapping[str, Array]) -> Array:
        """What the new nodes give if those with weights give `parts`, and nothing is rounded beside them."""
        values = dict(parts)
        for node in self._joins:
            known = [values[name] for name in node.input if name in values]
            if not known or node.output[0] in values:  # a shift before a Conv, or the bias of a MatMul
                continue
            if node.op_type == "Concat":
                stacked = [
                    values[name] if name in values else np.zeros(self._beside(name, known[0]))
                    for name in node.input
                ]
                values[node.output[0]] = np.concatenate(stacked, self._axis)
            else:
                values[node.output[0]] = np.asarray(sum(known))
        return values[self._output]

    def _stacked(self, sources: Mapping[str, Array]) -> Array:
        """One of the tensors that the original computes to stand in the Concat: another one is as large."""
        assert self._before is not None
        nodes = [node for node in self._before.nodes if self._output not in node.output]
        values = Part(nodes, self._before.constants, self._before.imports).run(sources)
        concat = next(node for node in self._before.nodes if self._output in node.output)
        return next(values[name] for name in concat.input if name in values)

    def _beside(self, name: str, like: Array) -> tuple[int, ...]:
        """The shape of a tensor that is added to one, or stands beside it in the Concat."""
        if self._concat is None:
            return like.shape
        shape, known = list(like.shape), self._shape_of(name) or ()
        channels = known[self._axis] if known else None
        if not isinstance(channels, int):
            raise UnrunnableError("It stands beside a tensor of an unknown number of channels.")
        shape[self._axis] = channels
        return tuple(shape)

    @property
    def _axis(self) -> int:
        """The axis of the Concat."""
        assert self._concat is not None
        return int(helper.get_attribute_value(self._concat.attribute[0]))
