"""Fit the constants of repfuse/cost.py to measured blocks, and say how often they tell a gain from a loss.

The blocks are those of tools/bench_blocks.py, in several shapes, each against every alternative that repfuse knows
of (`repfuse.plan`). What was measured is in tools/fit_cost.json, with what the cost model counts: multiply-adds of
dense and of depthwise Convs, and elements moved. An alternative is a gain where it is faster by the geometric mean
over the backends; a ratio within 2 % of 1 is a tie, which counts as right either way. For the confusion table, each
block is held out in turn: it is predicted by what is fitted to all others.

    python tools/fit_cost.py                    # fit, and print the confusion table
    python tools/fit_cost.py --measure 600      # measure what is missing first, for so many seconds at most
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from bench_blocks import BLOCKS, Block, Shape

from repfuse import cost
from repfuse.backends import backends_named
from repfuse.extract import digest, types_of
from repfuse.feeds import make_inputs
from repfuse.fusion import fuse, regions_of
from repfuse.meter import Form, Meter, processor
from repfuse.plan import BALANCES, Plan

DATA = Path(__file__).with_suffix(".json")

SHAPES = ("16@56", "48@28", "64@14", "128@28", "192@7")
"""Small and large maps, few channels and many."""

TIE = 0.02
"""Ratios as near to 1 as this are ties."""

SECONDS = 0.3
"""Of timed rounds for one comparison on one backend."""


@dataclass(frozen=True)
class Work:
    """What one run does: multiply-adds of dense and of depthwise Convs, and elements read or written."""

    dense: float
    depthwise: float
    moved: float


@dataclass(frozen=True)
class Sample:
    """A block against one alternative.

    Attributes:
        block: Its title in tools/bench_blocks.py.
        shape: Such as `64@28`.
        before: The work of the block.
        after: The work of the alternative.
        ratios: How many times faster the alternative is, by backend.
    """

    block: str
    shape: str
    before: Work
    after: Work
    ratios: dict[str, float]

    @property
    def ratio(self) -> float:
        """The geometric mean over the backends."""
        return math.exp(sum(map(math.log, self.ratios.values())) / len(self.ratios))


def work(model: onnx.ModelProto) -> Work:
    """Count what the cost model counts, for a model of static shapes."""
    types = {name: shape for name, (_, shape) in types_of(model, {}).items()}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    dense = depthwise = moved = 0.0
    for node in model.graph.node:
        out = types[node.output[0]]
        data = [types[name] for name in node.input if name in types and name not in weights]
        moved += math.prod(out) + sum(map(math.prod, data))
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Conv":
            arithmetic = math.prod(out) * math.prod(weights[node.input[1]][1:])
            if attributes.get("group", 1) == out[1]:
                depthwise += arithmetic
            else:
                dense += arithmetic
        elif node.op_type == "AveragePool":
            depthwise += math.prod(out) * math.prod(attributes["kernel_shape"])
    return Work(dense, depthwise, moved)


def alternatives(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """The models that repfuse would make of it, whatever moving costs."""
    found: dict[str, onnx.ModelProto] = {}
    regions = regions_of(model)
    for balance in BALANCES:
        made = {place: balance for region in regions for place in region.alternatives.get(balance, ())}
        fused = fuse(model, plan=Plan(made)).model
        found.setdefault(digest(fused), fused)
    found.pop(digest(model), None)
    return list(found.values())


def measured(block: Block, shape: Shape, known: Sequence[Work], meter: Meter) -> list[Sample]:
    """Measure a block in one shape against all of its alternatives whose work is not known."""
    model = block.model(shape)
    others = [other for other in alternatives(model) if work(other) not in known]
    if not others:
        return []
    forms = [Form(each, digest(each)) for each in (model, *others)]
    ratios: list[dict[str, float]] = [{} for _ in others]
    for backend in backends_named("all"):
        found = meter.compare(forms, backend, lambda: make_inputs(model, count=1, seed=0)[0], seconds=SECONDS)
        for each, ratio in zip(ratios, found or (), strict=True):
            each[backend.title] = round(ratio.value, 4)
    before = work(model)
    return [
        Sample(block.title, str(shape), before, work(other), each)
        for other, each in zip(others, ratios, strict=True)
    ]


def measure(samples: list[Sample], seconds: float) -> None:
    """Add what is missing, until the time is up."""
    meter = Meter(threads=1)
    started = time.perf_counter()
    for shape, block in itertools.product(map(Shape.parse, SHAPES), BLOCKS):
        if time.perf_counter() - started > seconds:
            return
        if shape.channels % block.groups == 0:
            known = [each.after for each in samples if (each.block, each.shape) == (block.title, str(shape))]
            found = measured(block, shape, known, meter)
            samples += found
            if found:
                ratios = ", ".join(f"{each.ratio:.2f}" for each in found)
                print(f"{block.title} {shape}: {ratios}", flush=True)
                save(samples)


def save(samples: Sequence[Sample]) -> None:
    """Write the samples, one a line."""
    head = {"processor": processor(), "threads": 1}
    lines = ",\n".join(json.dumps(asdict(sample)) for sample in samples)
    DATA.write_text(f'{{"measured on": {json.dumps(head)}, "samples": [\n{lines}\n]}}\n', encoding="utf-8")


def load() -> list[Sample]:
    """Read the samples."""
    if not DATA.exists():
        return []
    entries = json.loads(DATA.read_text(encoding="utf-8"))["samples"]
    return [
        Sample(**{**entry, "before": Work(**entry["before"]), "after": Work(**entry["after"])})
        for entry in entries
    ]


Constants = tuple[float, float]
"""`DEPTHWISE` and `MOVED` of repfuse/cost.py."""

GRID = np.array(list(itertools.product(np.geomspace(0.5, 16, 41), np.geomspace(0.25, 32, 85))))
"""Constants to try: 9 % and 6 % apart."""


def gains(samples: Sequence[Sample], constants: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether the cost model expects each alternative to be faster: a row for each pair of constants."""
    saved = np.array(
        [
            [getattr(each.before, name) - getattr(each.after, name) for each in samples]
            for name in ("dense", "depthwise", "moved")
        ]
    )
    pairs = np.atleast_2d(constants)
    return np.asarray(saved[0] + pairs[:, :1] * saved[1] + pairs[:, 1:] * saved[2] > 0)


def is_tie(sample: Sample) -> bool:
    """Whether a sample counts as right either way."""
    return abs(math.log(sample.ratio)) <= math.log1p(TIE)


def right(samples: Sequence[Sample], expected: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where what was expected is so."""
    faster, ties = (
        np.array([test(each) for each in samples]) for test in (lambda one: one.ratio > 1, is_tie)
    )
    return np.asarray(ties | (expected == faster))


def fitted(samples: Sequence[Sample]) -> Constants:
    """The constants that are right most often; of those, the ones in the middle."""
    counts = right(samples, gains(samples, GRID)).sum(axis=1)
    best = np.log(GRID[counts == counts.max()])
    depthwise, moved = np.exp(best[((best - best.mean(axis=0)) ** 2).sum(axis=1).argmin()])
    return float(depthwise), float(moved)


def held_out(samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """What is expected of each sample by constants that are fitted to the samples of all other blocks."""
    expected = np.zeros(len(samples), bool)
    for title in {sample.block for sample in samples}:
        mine = np.array([sample.block == title for sample in samples])
        others = [sample for sample in samples if sample.block != title]
        own = [sample for sample in samples if sample.block == title]
        expected[mine] = gains(own, fitted(others))[0]
    return expected


def table(title: str, samples: Sequence[Sample], expected: npt.NDArray[np.bool_]) -> Iterator[str]:
    """The confusion table."""
    good = right(samples, expected)
    yield f"{title}: {good.sum()} of {len(samples)} right, {good.mean():.1%}"
    yield f"    {'expected':12}{'gain':>8}{'tie':>8}{'loss':>8}   as measured"
    for word, row in (("gain", expected), ("loss", ~expected)):
        mine = [sample for sample, here in zip(samples, row, strict=True) if here]
        ties = sum(map(is_tie, mine))
        wins = sum(sample.ratio > 1 and not is_tie(sample) for sample in mine)
        yield f"    {word:12}{wins:8}{ties:8}{len(mine) - ties - wins:8}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--measure", type=float, default=0.0, metavar="SECONDS", help="measure first")
    parser.add_argument("--wrong", action="store_true", help="list what is told wrongly by repfuse/cost.py")
    options = parser.parse_args(arguments)
    samples = load()
    if options.measure:
        measure(samples, options.measure)
    if not samples:
        sys.exit("nothing was measured yet; give --measure 600")
    depthwise, moved = fitted(samples)
    now = gains(samples, (cost.DEPTHWISE, cost.MOVED))[0]
    print(f"fitted to all: DEPTHWISE {depthwise:.2g}, MOVED {moved:.2g}")
    print(*table("fitted, each block held out in turn", samples, held_out(samples)), sep="\n")
    stated = f"repfuse/cost.py: DEPTHWISE {cost.DEPTHWISE:g}, MOVED {cost.MOVED:g}"
    print(*table(stated, samples, now), sep="\n")
    for sample, good in zip(samples, right(samples, now), strict=True):
        if options.wrong and not good:
            print(f"    wrong: {sample.block} {sample.shape}: {sample.ratio:.2f}, {sample.ratios}")


if __name__ == "__main__":
    main()
