"""Fit the constants of repfuse/choice/cost.py to measured blocks, and say how often they tell a gain from a loss.

The blocks are those of tools/bench_blocks.py, in several shapes, each against other forms of it: what repfuse makes
of it at any balance, all of it in one Conv, and what it would make if Convs cost what chance says. So forms that
any sane model rejects are among them. What was measured is in tools/fit_cost.json, with what the cost model counts:
multiply-adds of dense and of depthwise Convs, and elements moved. A form is a gain where it is faster by the
geometric mean over the backends; a ratio within 3 % of 1 is a tie, which counts as right either way. For the
confusion table, each block is held out in turn in all of its shapes, and predicted by what is fitted to all others.

    python tools/fit_cost.py                    # fit, and print the confusion table
    python tools/fit_cost.py --measure 3600     # measure what is missing first, for so many seconds at most
    python tools/fit_cost.py --write            # put the constants into repfuse/choice/cost.py
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
from bench_blocks import BLOCKS, CHAINS, Block, Chain, Shape, fuse_all

from repfuse.algebra.window import Window
from repfuse.choice import cost
from repfuse.choice.plan import BALANCES, Style, followed
from repfuse.fusion import fuse, regions_of
from repfuse.measures.extract import digest, types_of
from repfuse.measures.meter import Form, Meter, processor
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.installed import backends_named

DATA = Path(__file__).with_suffix(".json")

SHAPES = ("64@14", "48@28", "16@56", "192@7", "128@28", "32@64")
"""Small and large maps, few channels and many."""

TIE = 0.03
"""Ratios as near to 1 as this are ties."""

SECONDS = 0.4
"""Of timed rounds for one block on one backend."""

FORMS = 6
"""So many other forms of a block at most."""

DRAWS = 30
"""How often Convs are given prices by chance, to find them."""

HEAVIEST = 10
"""A form with so many times the multiply-adds tells nothing; nor does one ..."""

MOST = 2e9
"""... with so many, which takes long."""


@dataclass(frozen=True)
class Work:
    """What one run does: multiply-adds of dense and of depthwise Convs, and elements read or written."""

    dense: float
    depthwise: float
    moved: float

    @property
    def arithmetic(self) -> float:
        """All multiply-adds."""
        return self.dense + self.depthwise


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
    """Other forms of it: sane ones first."""
    own = digest(model)
    most = min(MOST, HEAVIEST * work(model).arithmetic)
    found: dict[str, onnx.ModelProto] = {}
    for form in _forms(model):
        if len(found) == FORMS:
            break
        if digest(form) != own and work(form).arithmetic <= most:
            found.setdefault(digest(form), form)
    return list(found.values())


def _forms(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    regions = regions_of(model)
    for balance in BALANCES:
        yield fuse(model, plan=followed(regions, Style(balance))).model
    yield fuse_all(model).model
    for seed in range(DRAWS):
        with mock.patch.object(cost, "conv", lambda window, seed=seed: _price(window, seed)):
            yield fuse(model).model


def _price(window: Window, seed: int) -> float:
    """What a Conv costs by chance: 1 to a million, and the same wherever it stands."""
    drawn = hashlib.sha256(f"{seed} {window}".encode()).digest()
    return float(10 ** (6 * int.from_bytes(drawn[:4], "big") / 2**32))


def measured(block: Block | Chain, shape: Shape, meter: Meter) -> list[Sample]:
    """Measure a block in one shape against other forms of it."""
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
    started = time.perf_counter()
    blocks: tuple[Block | Chain, ...] = (*BLOCKS, *CHAINS)
    for shape, block in itertools.product(map(Shape.parse, SHAPES), blocks):
        if time.perf_counter() - started > seconds:
            return
        known = any((each.block, each.shape) == (block.title, str(shape)) for each in samples)
        if not known and shape.channels % getattr(block, "groups", 1) == 0:
            found = measured(block, shape, meter)
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
"""`DEPTHWISE` and `MOVED` of repfuse/choice/cost.py."""

GRID = np.array(list(itertools.product(np.geomspace(1, 16, 33), np.geomspace(0.25, 32, 57))))
"""Constants to try, 9 % apart. A multiply-add of a depthwise Conv costs no less than one of a dense Conv."""

NEAR = 1.25
"""Constants whose wrong decisions cost up to so many times as much as those of the best are as good."""


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
    """The constants whose wrong decisions cost least, in logarithms of ratios: of those, the middle ones."""
    logarithms = np.log([each.ratio for each in samples])
    lost = ((gains(samples, GRID) != (logarithms > 0)) * np.abs(logarithms)).sum(axis=1)
    good = GRID[lost <= NEAR * lost.min()]
    best = np.log(good)
    depthwise, moved = good[((best - best.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return float(f"{depthwise:.2g}"), float(f"{moved:.2g}")


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
    """How often what is expected is so, and the confusion table."""
    good = right(samples, expected)
    yield f"{title}: {good.sum()} of {len(samples)} right, {good.mean():.1%}"
    yield f"    {'expected':12}{'gain':>8}{'tie':>8}{'loss':>8}   as measured"
    for word, row in (("gain", expected), ("loss", ~expected)):
        mine = [sample for sample, here in zip(samples, row, strict=True) if here]
        ties = sum(map(is_tie, mine))
        wins = sum(sample.ratio > 1 and not is_tie(sample) for sample in mine)
        yield f"    {word:12}{wins:8}{ties:8}{len(mine) - ties - wins:8}"


def write(constants: Constants) -> None:
    """Put constants into repfuse/choice/cost.py."""
    path = Path(cost.__file__)
    text = path.read_text(encoding="utf-8")
    for name, value in zip(("DEPTHWISE", "MOVED"), constants, strict=True):
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M)
    path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--measure", type=float, default=0.0, metavar="SECONDS", help="measure first")
    parser.add_argument("--write", action="store_true", help="put the constants into repfuse/choice/cost.py")
    parser.add_argument(
        "--wrong", action="store_true", help="list what is told wrongly by repfuse/choice/cost.py"
    )
    options = parser.parse_args(arguments)
    samples = load()
    if options.measure:
        measure(samples, options.measure)
    if not samples:
        sys.exit("nothing was measured yet; give --measure 600")
    constants = fitted(samples)
    if options.write:
        write(constants)
    stated = constants if options.write else (cost.DEPTHWISE, cost.MOVED)
    now = gains(samples, stated)[0]
    print("fitted to all: DEPTHWISE {:g}, MOVED {:g}".format(*constants))
    faster = sum(each.ratio > 1 for each in samples)
    print(f"{len(samples)} forms of {len({each.block for each in samples})} blocks, {faster} of them faster")
    print(*table("fitted, each block held out in turn", samples, held_out(samples)), sep="\n")
    fewer = gains(samples, (1.0, 0.0))[0]
    for title, guess in (("always a gain", np.ones(len(samples), bool)), ("fewer multiply-adds", fewer)):
        print(next(table(title, samples, guess)))
    print(
        *table("repfuse/choice/cost.py: DEPTHWISE {:g}, MOVED {:g}".format(*stated), samples, now), sep="\n"
    )
    for sample, good in zip(samples, right(samples, now), strict=True):
        if options.wrong and not good:
            print(f"    wrong: {sample.block} {sample.shape}: {sample.ratio:.2f}, {sample.ratios}")


if __name__ == "__main__":
    main()
