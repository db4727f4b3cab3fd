"""Measure single blocks of many families: whether what repfuse decides pays, on each backend.

Each block stands three times in a row, with Relu between, as an exporter writes it that folds BatchNormalization
into the Conv before it. It is timed against what repfuse makes of it; and, where that is something else, against
what it would be with every group merged into one Conv, whatever that costs. The constants of
repfuse/choice/cost.py are such that few rows are flagged:

    slower    the fused block is slower than the original
    missed    merging all would have been clearly faster than what repfuse decided, and slower on no backend

    python tools/bench_blocks.py                           # every block in its own shapes: some minutes
    python tools/bench_blocks.py slak unirep --shape 64@28  # blocks whose title holds a word; 64 channels, 28x28

Timings of one row vary by a few per cent from process to process: repeat what looks odd.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repfuse.choice import cost
from repfuse.families.expression import Expression
from repfuse.families.patterns import Example, Pattern
from repfuse.fusion import FuseResult, fuse
from repfuse.measures.bench import Benchmark, benchmark
from repfuse.runtimes.installed import backends_named

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from blocks import build, fold_bn  # the tests' builder of blocks

SLOWER = 0.98
"""A fused block whose ratio is below this, with confidence, should have been left alone."""

MISSED = 1.05
"""So many times faster than what was decided, with confidence, must merging all be to be called missed."""

REPEAT = 3


@dataclass(frozen=True)
class Shape:
    """Of a block's input: `(1, channels, extent, extent)`."""

    channels: int
    extent: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a shape written as `64@28`.

        Raises:
            ValueError: It is not so written.
        """
        channels, extent = map(int, text.split("@"))
        if min(channels, extent) < 1:
            raise ValueError(text)
        return cls(channels, extent)

    def __str__(self) -> str:
        return f"{self.channels}@{self.extent}"


@dataclass(frozen=True)
class Block:
    """A row of the table: a block as in the examples of patterns, and the shapes to measure it in."""

    title: str
    shapes: str
    branches: tuple[str, ...]
    tail: str = ""
    stride: int = 1
    groups: int = 1

    def model(self, shape: Shape) -> onnx.ModelProto:
        """The block, three times in a row."""
        example = Example(
            self.title, self.branches, self.tail, (shape.channels,) * 2, self.groups, self.stride
        )
        nameless = Pattern("block", "", 0, "", (), Expression.parse(""))
        return build(nameless, fold_bn(example), extents=(shape.extent,) * 2, repeat=REPEAT)


@dataclass(frozen=True)
class Chain:
    """A row of the table: Convs one after the other, without anything between them.

    Attributes:
        title: In the table.
        shapes: To measure it in.
        convs: Of each Conv its kernel, as in the examples of patterns, and how many channels it gives, as a share
            of the block's; the last one gives 1.
    """

    title: str
    shapes: str
    convs: tuple[tuple[str, float], ...]

    def model(self, shape: Shape) -> onnx.ModelProto:
        """The chain, three times in a row, padded such that it keeps the extent."""
        random = np.random.default_rng(0)
        nodes, channels = [helper.make_node("Relu", ["x"], ["y0"])], shape.channels
        weights: list[TensorProto] = []
        for kind, share in self.convs * REPEAT:
            (op,) = Example("", (kind,)).topology().branches[0]
            inputs, channels = channels, round(share * shape.channels)
            group = inputs if op.depthwise else 1
            extents = (channels, inputs // group, *op.kernel)
            values = random.normal(0, math.prod(extents[1:]) ** -0.5, extents).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
            made = [f"y{len(nodes)}"]
            pads = [extent // 2 for extent in op.kernel] * 2
            operands = [*nodes[-1].output, weights[-1].name]
            nodes.append(helper.make_node("Conv", operands, made, group=group, pads=pads))
            if len(weights) % len(self.convs) == 0:
                nodes.append(helper.make_node("Relu", made, [f"y{len(nodes)}"]))
        extents = (1, shape.channels, shape.extent, shape.extent)
        ends = ("x", nodes[-1].output[0])
        typed = [helper.make_tensor_value_info(name, TensorProto.FLOAT, extents) for name in ends]
        graph = helper.make_graph(nodes, "chain", typed[:1], typed[1:], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


_UNIREP_13 = ("dwconv13x13", "dwconv5x5", "dwconv7x7d2", "dwconv3x3d3", "dwconv3x3d4", "dwconv3x3d5")

BLOCKS = (
    Block("RepVGG", "48@56 96@28 192@14", ("conv3x3", "conv1x1", "bn")),
    Block("RepVGG, stride 2", "48@56 96@28", ("conv3x3", "conv1x1"), stride=2),
    Block("RepVGG, group 4", "128@28", ("conv3x3", "conv1x1", "bn"), groups=4),
    Block("QARepVGG", "64@28", ("conv3x3", "conv1x1", "identity"), tail="bn"),
    Block("ACNet", "64@28 256@14", ("conv3x3", "conv1x3", "conv3x1")),
    Block("DBB", "64@28", ("conv3x3", "conv1x1", "conv1x1 conv3x3", "conv1x1 avgpool3x3")),
    Block("MobileOne depthwise", "64@56 256@14", (*["dwconv3x3"] * 4, "dwconv1x1", "bn")),
    Block("MobileOne pointwise", "64@56 256@14", (*["conv1x1"] * 4, "bn")),
    Block("RepMixer", "48@56 192@14", ("identity", "dwconv3x3 scale", "dwconv1x1 scale", "bn neg scale")),
    Block("RepViT", "48@56 192@14", ("dwconv3x3", "dwconv1x1", "identity"), tail="bn"),
    Block("iFormer", "64@28", ("dwconv7x7", "dwconv3x3", "dwconv1x1", "identity"), tail="bn"),
    Block("YOLOv10", "128@20", ("dwconv7x7", "dwconv3x3")),
    Block("LCNetV2", "128@28", ("dwconv5x5", "dwconv3x3", "dwconv1x1")),
    Block("LCNetV2, stride 2", "128@56", ("dwconv5x5", "dwconv3x3"), stride=2),
    Block("UniRepLKNet 7", "96@28", ("dwconv7x7", "dwconv5x5", "dwconv3x3d2", "dwconv3x3d3"), tail="bn"),
    Block("UniRepLKNet 13", "96@14 256@14", _UNIREP_13, tail="bn"),
    Block("RepLKNet 13+5", "96@28", ("dwconv13x13", "dwconv5x5")),
    Block("RepLKNet 31+5", "96@28", ("dwconv31x31", "dwconv5x5")),
    Block("SLaK", "96@14", ("dwconv51x5", "dwconv5x51", "dwconv5x5")),
    Block("PKINet", "128@28", ("identity", "dwconv5x5", "dwconv7x7", "dwconv9x9", "dwconv11x11")),
    Block(
        "PKINet-v2",
        "64@64 256@32",
        ("dwconv1x19 dwconv19x1", "dwconv7x7d3", "dwconv5x5d3", "dwconv3x3d3", "dwconv3x3"),
    ),
    Block("MSCA", "64@28", ("identity", *(f"dwconv1x{k} dwconv{k}x1" for k in (7, 11, 21)))),
    Block("RSBB", "16@80 32@40 64@20", ("conv3x3", "conv3x3d2", "bn")),
    Block("residual dense 1x1", "128@28", ("conv1x1", "identity")),
    Block("residual dense 3x3", "64@28", ("conv3x3", "identity")),
    Block("residual depthwise 3x3", "128@28", ("dwconv3x3", "identity")),
    Block("residual depthwise 7x7", "128@28", ("dwconv7x7", "identity")),
    Block("depthwise 3, 5 and 7", "64@32", ("dwconv3x3", "dwconv5x5", "dwconv7x7")),
    Block("depthwise strips of 3", "64@32", ("dwconv1x3", "dwconv3x1")),
    Block("depthwise 3x3 and strips of 5", "64@28", ("dwconv3x3", "dwconv1x5", "dwconv5x1")),
    Block("depthwise 3x3 and strips of 7", "64@28", ("dwconv3x3", "dwconv1x7", "dwconv7x1")),
    Block("depthwise strips of 5", "64@32", ("dwconv1x5", "dwconv5x1")),
    Block("depthwise strips of 7", "64@32", ("dwconv1x7", "dwconv7x1")),
    Block("depthwise strips of 11", "64@32", ("dwconv1x11", "dwconv11x1")),
    Block("dense strips of 5", "64@32", ("conv1x5", "conv5x1")),
    Block("dense strips of 7", "64@32", ("conv1x7", "conv7x1")),
    Block("dense strips of 11", "64@32", ("conv1x11", "conv11x1")),
    Block("depthwise 3x3, and dilated by 2", "64@32", ("dwconv3x3", "dwconv3x3d2")),
    Block("depthwise 3x3, and dilated by 3", "64@32", ("dwconv3x3", "dwconv3x3d3")),
    Block("depthwise 3x3, and dilated by 5", "64@32", ("dwconv3x3", "dwconv3x3d5")),
    Block("dense 3x3, and dilated by 2", "64@32", ("conv3x3", "conv3x3d2")),
    Block("dense 3x3, and dilated by 3", "64@32", ("conv3x3", "conv3x3d3")),
    Block("dense 1x1, and 3x3 dilated by 2", "64@32", ("conv1x1", "conv3x3d2")),
    Block("depthwise 5x5, and 3x3 dilated by 3", "64@32", ("dwconv5x5", "dwconv3x3d3")),
    Block("depthwise 3x3, dilated by 2 and by 3", "64@32", ("dwconv3x3", "dwconv3x3d2", "dwconv3x3d3")),
    Block("dense 3x3 and strips of 5", "64@28", ("conv3x3", "conv1x5", "conv5x1")),
    Block("dense 3x3 and strips of 7", "64@28", ("conv3x3", "conv1x7", "conv7x1")),
    Block("dense 1, 3 and 5", "64@28", ("conv1x1", "conv3x3", "conv5x5")),
    Block("dense 3x3 and 7x7, stride 4", "64@56", ("conv3x3", "conv7x7"), stride=4),
    Block("residual depthwise separable", "4@80 64@28", ("pad dwconv3x3 conv1x1", "identity")),
    Block("dense 1x1 and depthwise 3x3", "4@80 64@28", ("conv1x1", "dwconv3x3")),
    Block("dense 3x3 and depthwise 3x3", "64@28", ("conv3x3", "dwconv3x3")),
    Block("dense 3x3 and depthwise 7x7", "64@28", ("conv3x3", "dwconv7x7")),
    Block("dense 1x1 and depthwise 1x1", "64@28", ("conv1x1", "dwconv1x1")),
    Block("dense 1x1 and depthwise 5x5", "64@28", ("conv1x1", "dwconv5x5")),
    Block("dense 3x3 and depthwise 5x5", "64@28", ("conv3x3", "dwconv5x5")),
)

CHAINS = (
    Chain("1x1 to a quarter, 1x1", "64@28", (("conv1x1", 1 / 4), ("conv1x1", 1))),
    Chain("1x1 to a half, 1x1", "64@28", (("conv1x1", 1 / 2), ("conv1x1", 1))),
    Chain("1x1 to twice, 1x1", "64@28", (("conv1x1", 2), ("conv1x1", 1))),
    Chain("1x1, 1x1", "64@28", (("conv1x1", 1), ("conv1x1", 1))),
    Chain("1x1 to a quarter, 3x3", "64@28", (("conv1x1", 1 / 4), ("conv3x3", 1))),
    Chain("1x1 to a half, 3x3", "64@28", (("conv1x1", 1 / 2), ("conv3x3", 1))),
    Chain("1x1, 3x3", "64@28", (("conv1x1", 1), ("conv3x3", 1))),
    Chain("1x1 to twice, 3x3", "64@28", (("conv1x1", 2), ("conv3x3", 1))),
    Chain("3x3 to a quarter, 1x1", "64@28", (("conv3x3", 1 / 4), ("conv1x1", 1))),
    Chain("3x3, 1x1", "64@28", (("conv3x3", 1), ("conv1x1", 1))),
    Chain("3x3 to twice, 1x1", "64@28", (("conv3x3", 2), ("conv1x1", 1))),
    Chain("depthwise 3x3, 1x1", "64@28", (("dwconv3x3", 1), ("conv1x1", 1))),
    Chain("depthwise 5x5, 1x1", "64@28", (("dwconv5x5", 1), ("conv1x1", 1))),
    Chain("1x1, depthwise 3x3", "64@28", (("conv1x1", 1), ("dwconv3x3", 1))),
    Chain("1x1, 5x5", "64@28", (("conv1x1", 1), ("conv5x5", 1))),
    Chain("1x1 to a quarter, 5x5", "64@28", (("conv1x1", 1 / 4), ("conv5x5", 1))),
    Chain("depthwise 1x1, 3x3", "64@28", (("dwconv1x1", 1), ("conv3x3", 1))),
    Chain("1x1, depthwise 3x3, 1x1", "64@28", (("conv1x1", 2), ("dwconv3x3", 2), ("conv1x1", 1))),
    Chain("dense 1x3, 3x1", "64@28", (("conv1x3", 1), ("conv3x1", 1))),
    Chain("dense 1x5, 5x1", "64@28", (("conv1x5", 1), ("conv5x1", 1))),
    Chain("dense 1x7, 7x1", "64@28", (("conv1x7", 1), ("conv7x1", 1))),
    Chain("depthwise 1x3, 3x1", "64@28", (("dwconv1x3", 1), ("dwconv3x1", 1))),
    Chain("depthwise 1x5, 5x1", "64@28", (("dwconv1x5", 1), ("dwconv5x1", 1))),
    Chain("depthwise 1x7, 7x1", "64@28", (("dwconv1x7", 1), ("dwconv7x1", 1))),
    Chain("depthwise 1x11, 11x1", "64@28", (("dwconv1x11", 1), ("dwconv11x1", 1))),
    Chain("depthwise 1x21, 21x1", "64@28", (("dwconv1x21", 1), ("dwconv21x1", 1))),
    Chain("depthwise 1x1, 5x5", "64@28", (("dwconv1x1", 1), ("dwconv5x5", 1))),
)
"""Some become one Conv that does less, others one that does more."""


@dataclass(frozen=True)
class Result:
    """What a backend made of a decision.

    Attributes:
        backend: Its title.
        decided: The fused block against the original; None where repfuse left it alone.
        whole: All merged against the original; None where that is what repfuse decided.
    """

    backend: str
    decided: Benchmark | None
    whole: Benchmark | None

    @property
    def interval(self) -> tuple[float, float]:
        """That of the ratio that was decided."""
        return (self.decided.low, self.decided.high) if self.decided else (1.0, 1.0)


@dataclass(frozen=True)
class Row:
    """What was decided for a block in one shape, and what that gave.

    Attributes:
        block: Its title.
        shape: Such as `64@28`.
        nodes: Nodes before and after.
        kernel: The Convs that repfuse made of one block; empty if it left it alone.
        results: One for each backend.
    """

    block: str
    shape: str
    nodes: tuple[int, int]
    kernel: str
    results: tuple[Result, ...]

    @property
    def flag(self) -> str:
        """What is wrong with the decision, in a word; empty if nothing is. It must do for all backends."""
        if any(each.interval[1] < SLOWER for each in self.results):
            return "slower"
        wholes = [(each.whole, *each.interval) for each in self.results if each.whole]
        better = any(whole.low > MISSED * high for whole, _, high in wholes)
        worse = any(whole.high < low for whole, low, _ in wholes)
        return "missed" if better and not worse else ""


def fuse_all(model: onnx.ModelProto) -> FuseResult:
    """Fuse a model as if anything were better than what it is: all of a group, before a part of it."""
    with mock.patch.object(cost, "conv", lambda window: 1.0):
        return fuse(model)


def measure(block: Block, shape: Shape, *, threads: int, seconds: float) -> Row:
    """Measure a block on each backend that is installed; `seconds` for each comparison."""
    model = block.model(shape)
    decided, whole = fuse(model), fuse_all(model)

    def compare(result: FuseResult, backend: str) -> Benchmark:
        return benchmark(model, result.model, backend=backend, threads=threads, seconds=seconds)

    results = [
        Result(
            backend.title,
            compare(decided, backend.name) if decided.changed else None,
            compare(whole, backend.name) if whole.model != decided.model else None,
        )
        for backend in backends_named("all")
    ]
    return Row(
        block.title,
        str(shape),
        (len(model.graph.node), len(decided.model.graph.node)),
        decided.edits[0].kernel if decided.edits else "",
        tuple(results),
    )


def _lines(row: Row) -> Iterator[str]:
    before, after = row.nodes
    start = f"{row.block:32}{row.shape:>8}  {f'{before} -> {after}':10}"
    end = f"{row.flag:8}{row.kernel or 'left alone'}"
    for result in row.results:
        decided, whole = (
            f"{each.ratio:5.2f} [{each.low:.2f} {each.high:.2f}]" if each else ""
            for each in (result.decided, result.whole)
        )
        yield f"{start:52}{result.backend:23}{decided:20}{whole:20}{end}".rstrip()
        start = end = ""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="WORD",
        help="measure blocks whose title holds one of these (default: all)",
    )
    add(
        "--shape",
        nargs="+",
        type=Shape.parse,
        default=[],
        metavar="C@N",
        help="channels and extent, in place of each block's own",
    )
    add("--threads", type=int, default=1, help="threads for the runtimes (default: 1)")
    add("--seconds", type=float, default=1.0, help="time for each comparison (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _options(arguments)
    words = [word.lower() for word in options.words]
    chosen = [block for block in BLOCKS if not words or any(word in block.title.lower() for word in words)]
    if not chosen:
        titles = "; ".join(block.title for block in BLOCKS)
        sys.exit(f"no block is called '{' '.join(options.words)}'; there are: {titles}")
    print(
        f"{'block':32}{'shape':>8}  {'nodes':10}{'backend':23}{'decided':20}{'all merged':20}{'flag':8}kernel"
    )
    rows: list[Row] = []
    for block in chosen:
        for shape in options.shape or map(Shape.parse, block.shapes.split()):
            row = measure(block, shape, threads=options.threads, seconds=options.seconds)
            print(*_lines(row), sep="\n", flush=True)
            rows.append(row)
    flagged = sum(bool(row.flag) for row in rows)
    print(f"{len(rows)} rows, {flagged} flagged")
    if options.json:
        records = [asdict(row) | {"flag": row.flag} for row in rows]
        options.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
