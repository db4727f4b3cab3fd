"""Fit the constants of repfuse/cost.py to measured blocks, and say how often they tell a gain from a loss.

The blocks are those of tools/bench_blocks.py, in several shapes, each against every alternative that repfuse knows
of (`repfuse.plan`). What was measured is in tools/fit_cost.json, with what the cost model counts: multiply-adds of
dense and of depthwise Convs, and elements moved. An alternative is a gain where it is faster by the geometric mean
over the backends; a ratio within 2 % of 1 is a tie, which counts as right either way. Each third block is held out.

    python tools/fit_cost.py                    # fit, and print the confusion table of what was held out
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

HELD_OUT = 3
"""Every block whose number this divides is not fitted to."""


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


def measured(block: Block, shape: Shape, meter: Meter) -> list[Sample]:
    """Measure a block in one shape against all of its alternatives."""
    model = block.model(shape)
    others = alternatives(model)
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
    done = {(sample.block, sample.shape) for sample in samples}
    started = time.perf_counter()
    for shape, block in itertools.product(map(Shape.parse, SHAPES), BLOCKS):
        if time.perf_counter() - started > seconds:
            return
        if (block.title, str(shape)) not in done and shape.channels % block.groups == 0:
            found = measured(block, shape, meter)
            samples += found
            print(f"{block.title} {shape}: " + ", ".join(f"{each.ratio:.2f}" for each in found), flush=True)
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


def gains(sample: Sample, depthwise: float, moved: float) -> bool:
    """Whether the cost model, with these constants, expects the alternative to be faster."""
    before, after = (
        each.dense + depthwise * each.depthwise + moved * each.moved for each in (sample.before, sample.after)
    )
    return after < before


def right(sample: Sample, depthwise: float, moved: float) -> bool:
    """Whether that is so; a tie is either."""
    return abs(math.log(sample.ratio)) <= math.log1p(TIE) or gains(sample, depthwise, moved) == (
        sample.ratio > 1
    )


def fitted(samples: Sequence[Sample]) -> tuple[float, float]:
    """The constants that are right most often, in the middle of those that are; `DEPTHWISE` and `MOVED`."""
    grid = list(itertools.product(np.geomspace(0.5, 16, 41), np.geomspace(0.1, 40, 61)))
    counts = [sum(right(sample, *each) for sample in samples) for each in grid]
    best = np.log([each for each, count in zip(grid, counts, strict=True) if count == max(counts)])
    middle = best[np.argmin(((best - best.mean(axis=0)) ** 2).sum(axis=1))]
    return float(np.exp(middle[0])), float(np.exp(middle[1]))


def table(samples: Sequence[Sample], depthwise: float, moved: float) -> Iterator[str]:
    """The confusion table."""
    yield f"{'':12}{'gain':>8}{'tie':>8}{'loss':>8}   as measured"
    for expected in (True, False):
        mine = [sample for sample in samples if gains(sample, depthwise, moved) == expected]
        ties = [sample for sample in mine if abs(math.log(sample.ratio)) <= math.log1p(TIE)]
        wins = [sample for sample in mine if sample not in ties and sample.ratio > 1]
        losses = len(mine) - len(ties) - len(wins)
        yield f"{'gain' if expected else 'loss':12}{len(wins):8}{len(ties):8}{losses:8}"
    good = sum(right(sample, depthwise, moved) for sample in samples)
    yield f"right: {good} of {len(samples)}, {good / max(1, len(samples)):.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--measure", type=float, default=0.0, metavar="SECONDS", help="measure first")
    parser.add_argument("--wrong", action="store_true", help="list what is told wrongly")
    options = parser.parse_args(arguments)
    samples = load()
    if options.measure:
        measure(samples, options.measure)
    if not samples:
        sys.exit("nothing was measured yet; give --measure 600")
    held = {block.title for number, block in enumerate(BLOCKS) if number % HELD_OUT == 0}
    known = [sample for sample in samples if sample.block not in held]
    unknown = [sample for sample in samples if sample.block in held]
    best = fitted(known)
    for title, constants in (("fitted", best), ("repfuse/cost.py", (cost.DEPTHWISE, cost.MOVED))):
        print(f"{title}: DEPTHWISE {constants[0]:.2f}, MOVED {constants[1]:.2f}")
        for name, some in (("fitted to", known), ("held out", unknown)):
            print(f"  {name}", *(f"    {line}" for line in table(some, *constants)), sep="\n")
        if options.wrong:
            for sample in samples:
                if not right(sample, *constants):
                    print(f"    wrong: {sample.block} {sample.shape}: {sample.ratio:.2f}, {sample.ratios}")


if __name__ == "__main__":
    main()
