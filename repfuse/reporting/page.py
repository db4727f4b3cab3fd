"""The report as an HTML page: one file without script that fetches nothing. The template is `page.html`.

Pure but for the clock and the versions of what is installed: results in, text out.
"""

from __future__ import annotations

import datetime
import math
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from repfuse import __version__
from repfuse.measures.bench import Benchmark
from repfuse.measures.int8 import BAD, NOTABLE, BlockNoise, WeightNoise
from repfuse.measures.schedule import Schedule
from repfuse.proof.blockcheck import BlockCheck
from repfuse.proof.comparison import OutputCheck
from repfuse.remarks import Outcome, Remark, by_outcome
from repfuse.reporting import plots, report
from repfuse.reporting.details import Details, Group
from repfuse.reporting.drawing import Box, Drawing, Line, alike, draw, shortened
from repfuse.reporting.figures import changed_by, counted, milliseconds, si
from repfuse.reporting.report import Report

SAMPLES = 3
"""Groups of a pattern that are drawn: those that look different, most frequent first."""

PLOTTED = 12
"""Outputs of a backend that are plotted: those with the largest errors."""

HEAVIEST = 5
"""Nodes of each model that are listed for the memory that they need."""

_PACKAGES = ("onnx", "onnxruntime", "openvino", "numpy")

Table = list[Sequence[str]]


def page(found: Report, details: Details, *, command: str, failure: str = "") -> str:
    """The page.

    Args:
        found: What the run found out.
        details: What was gathered for the page alone.
        command: The command line.
        failure: Why nothing was written; empty where all is well.
    """
    environment = Environment(
        loader=PackageLoader("repfuse.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    checks = found.verification.checks if found.verification else ()
    return environment.get_template("page.html").render(
        title=f"repfuse: {found.source.name}",
        version=__version__,
        verdict={"bad": bool(failure), "text": failure or _verdict(found)},
        notes=found.notes,
        summary=f"{report.group_count(found.remarks)}.",
        families=Counter(edit.pattern for edit in found.edits).most_common(),
        sizes=report.size_rows(found.before, found.after) if found.before and found.after else [],
        latency=_latency(found.benchmarks),
        errors=[_errors(name, list(some)) for name, some in _by_backend(checks).items()],
        warnings=report.warnings(found.verification) if found.verification else [],
        blocks=_blocks(found.blocks),
        activations=_activations(details.before, details.after),
        quantization=_quantization(found.quantization),
        drawings=_drawings(details.groups),
        refused=_remarks(found.remarks, Outcome.REFUSED, "group"),
        kept=_remarks(found.remarks, Outcome.KEPT, "place"),
        provenance=_provenance(found, details, command),
    )


def _verdict(found: Report) -> str:
    if not found.edits:
        return "Nothing was fused; the output is a copy of the input."
    merged = sum(bool(edit.kernel) for edit in found.edits)
    parts = [f"{counted(merged, 'group')} fused"] if merged else []
    for each in found.benchmarks:
        parts.append(f"{each.ratio:.2f} times as fast on {each.backend}")
    if found.verification:
        parts.append("outputs match")
    else:
        parts.append("outputs were not compared")
    return ", ".join(parts) + "."


def _latency(benchmarks: Sequence[Benchmark]) -> Mapping[str, Any] | None:
    if not benchmarks:
        return None
    rows = [
        (
            f"{each.backend}, {counted(each.threads, 'thread')}",
            milliseconds(each.before_ms),
            milliseconds(each.after_ms),
            f"{each.ratio:.2f}x",
            f"{each.low:.2f} to {each.high:.2f}",
            each.verdict,
        )
        for each in benchmarks
    ]
    return {"rows": rows, "backends": [_distribution(each) for each in benchmarks if each.times_ms]}


def _distribution(benchmark: Benchmark) -> Mapping[str, Any]:
    columns = list(zip(*(pair for load in benchmark.times_ms for pair in load), strict=True))
    before, after = (statistics.median(times) for times in columns)
    return {
        "title": benchmark.backend,
        "svg": Markup(plots.latency(benchmark)),
        "text": f"Latency on {benchmark.backend} in {counted(benchmark.rounds, 'round')}: "
        f"median {milliseconds(before)} before, {milliseconds(after)} after.",
        "rows": [
            (name, *_quantiles(times)) for name, times in zip(("before", "after"), columns, strict=True)
        ],
    }


def _quantiles(times: Sequence[float]) -> list[str]:
    ranked = sorted(times)
    return [f"{ranked[round(share * (len(ranked) - 1))]:.3g}" for share in (0, 0.25, 0.5, 0.75, 0.95, 1)]


def _by_backend(checks: Iterable[OutputCheck]) -> dict[str, list[OutputCheck]]:
    found: dict[str, list[OutputCheck]] = {}
    for check in checks:
        found.setdefault(check.backend, []).append(check)
    return found


def _errors(backend: str, checks: list[OutputCheck]) -> Mapping[str, Any]:
    worst = sorted(checks, key=lambda check: (check.passed, -check.error))
    shown = [check for check in worst if not check.problem][:PLOTTED]
    failed = sum(not check.passed for check in checks)
    return {
        "title": backend,
        "svg": Markup(plots.errors(shown)) if shown else "",
        "text": f"Errors on {backend} (dots), the noise floor (strokes) and what is tolerated (bars); "
        + (
            f"{failed} of {counted(len(checks), 'output')} failed." if failed else "all within the tolerance."
        ),
        "rows": [
            (
                check.output,
                *(
                    f"{figure:.1e}"
                    for figure in (check.error, check.noise_floor, check.error_of_movement, check.tolerance)
                ),
                "ok" if check.passed else "FAILED",
            )
            for check in worst
        ],
    }


def _blocks(checks: Sequence[BlockCheck]) -> Mapping[str, Any] | None:
    if not checks:
        return None
    return {
        "text": " ".join(report.block_lines(checks)) + ".",
        "rows": [
            (
                each.edit.output,
                each.edit.pattern,
                "not run" if each.skipped else f"{each.error_ulp:.2f}",
                each.skipped or ("ok" if each.passed else "FAILED"),
            )
            for each in sorted(checks, key=lambda each: (each.passed, -each.error_ulp))
        ],
    }


def _activations(before: Schedule | None, after: Schedule | None) -> Mapping[str, Any] | None:
    if not (before and after and before.peak and after.peak and before.peak.bytes and after.peak.bytes):
        return None
    old, new = before.peak.bytes, after.peak.bytes
    means = [statistics.mean(step.bytes for step in each.steps) for each in (before, after)]
    unknown = len({*before.unknown, *after.unknown})
    rows = [
        ("peak", si(old, "B"), si(new, "B"), changed_by(old, new)),
        ("mean over nodes", *(si(round(mean), "B") for mean in means), changed_by(*map(round, means))),
        ("nodes that run", str(len(before.steps)), str(len(after.steps)), ""),
    ]
    return {
        "svg": Markup(plots.activations(before, after)),
        "text": "Memory of activations while each node runs: "
        f"at most {si(old, 'B')} before, at {before.peak.node}; "
        f"at most {si(new, 'B')} after, at {after.peak.node}.",
        "rows": rows,
        "unknown": f"{counted(unknown, 'tensor')} of unknown shape left out." if unknown else "",
        "steps": [
            (step.node, name, si(step.bytes, "B"))
            for name, each in (("before", before), ("after", after))
            for step in sorted(each.steps, key=lambda step: -step.bytes)[:HEAVIEST]
        ],
    }


def _quantization(blocks: Sequence[BlockNoise]) -> Mapping[str, Any] | None:
    if not blocks:
        return None
    bad = sum(block.bad for block in blocks)
    sides = [[block.before for block in blocks], [block.after for block in blocks]]
    steps: Mapping[str, Callable[[WeightNoise], float]] = {
        "a step for each channel": lambda each: each.per_channel,
        "a step for each tensor": lambda each: each.per_tensor,
    }
    rows: Table = []
    for title, figure in steps.items():
        for name, pick in (("median", statistics.median), ("worst", min)):
            rows.append((f"{title}: {name}", *(_decibels(pick(map(figure, side))) for side in sides)))
    text = (
        f"{counted(bad, 'block')} of {len(blocks)} would quantize badly: below {BAD:.0f} dB with a step for each "
        f"channel, and worse than the branches by more than {NOTABLE:.0f} dB. Leave the worst of them in float, or "
        "train with quantization or with QARepVGG's blocks."
        if bad
        else f"No block loses more than {NOTABLE:.0f} dB and ends below {BAD:.0f} dB with a step for each channel."
    )
    return {
        "text": text,
        "rows": rows,
        "blocks": [
            (
                block.edit.output,
                *(
                    _decibels(figure(side))
                    for figure in steps.values()
                    for side in (block.before, block.after)
                ),
                *(f"{side.least:.2g} to {side.largest:.2g}" for side in (block.before, block.after)),
                "quantizes badly" if block.bad else "",
            )
            for block in sorted(blocks, key=lambda block: block.after.per_channel)
        ],
    }


def _decibels(figure: float) -> str:
    return f"{figure:.1f} dB" if math.isfinite(figure) else "exact"


def _drawings(groups: Sequence[Group]) -> list[Mapping[str, Any]]:
    patterns: dict[str, list[Group]] = {}
    for group in groups:
        patterns.setdefault(group.edit.pattern, []).append(group)
    found: list[Mapping[str, Any]] = []
    for pattern, some in sorted(patterns.items(), key=lambda item: -len(item[1])):
        looks = Counter(_look(group) for group in some)
        first = {_look(group): group for group in reversed(some)}
        samples = [_sample(first[look], count) for look, count in looks.most_common(SAMPLES)]
        rows = [
            (
                each.edit.output,
                str(len(each.edit.removed)),
                " and ".join(each.edit.added),
                each.edit.kernel,
            )
            for each in some
        ]
        title = f"{pattern}: {counted(len(some), 'group')}"
        found.append({"title": title, "samples": samples, "rows": rows, "all": f"All groups of {pattern}"})
    return found


def _look(group: Group) -> str:
    return f"{alike(group.before)}>{alike(group.after)}"


def _sample(group: Group, count: int) -> Mapping[str, Any]:
    edit = group.edit
    return {
        "summary": (f"{count} groups like " if count > 1 else "") + f"'{edit.output}'",
        "before": _placed(draw(group.before)),
        "before_text": f"Graph before: {_told(group.before.text, len(edit.removed))}",
        "after": _placed(draw(group.after), new=True),
        "after_text": f"Graph after: {_told(group.after.text, len(edit.added), edit.kernel)}",
    }


def _told(text: str, nodes: int, kernel: str = "") -> str:
    return ", ".join(filter(None, (counted(nodes, "node"), text, kernel)))


BOX, GAP, MARGIN = (132, 48), (12, 34), 8
"""Width and height of a box and of the gaps between boxes, in pixels; the border around a drawing."""

LETTERS = 20
"""That fit into a box."""


def _placed(drawing: Drawing, *, new: bool = False) -> Mapping[str, Any]:
    """A drawing in pixels."""

    def x(column: float) -> float:
        return MARGIN + column * (BOX[0] + GAP[0])

    def y(row: float) -> float:
        return MARGIN + row * (BOX[1] + GAP[1])

    def box(each: Box) -> Mapping[str, Any]:
        words = [shortened(each.title, LETTERS), *_lines(each.words)]
        top = y(each.row) + BOX[1] / 2 + 4 - 7 * (len(words) - 1)
        texts = [{"text": text, "y": top + 14 * number} for number, text in enumerate(words)]
        kind = "tensor" if each.tensor else "new" if new else "op"
        return {"x": x(each.column), "y": y(each.row), "texts": texts, "full": each.full, "kind": kind}

    def line(each: Line) -> Mapping[str, Any]:
        middle = BOX[0] / 2
        (start, row), (end, last) = each.start, each.end
        top, bottom, lane = y(row) + BOX[1], y(last), x(each.column) + middle
        half = GAP[1] / 2
        path = (
            f"M{x(start) + middle} {top} C{x(start) + middle} {top + half} {lane} {top + half} {lane} "
            f"{top + GAP[1]} L{lane} {bottom - GAP[1]} C{lane} {bottom - half} {x(end) + middle} {bottom - half} "
            f"{x(end) + middle} {bottom}"
            if last - row > 1
            else f"M{x(start) + middle} {top} C{x(start) + middle} {top + half} {x(end) + middle} {bottom - half} "
            f"{x(end) + middle} {bottom}"
        )
        at = x(each.column) + middle
        return {"path": path, "count": each.count, "x": at, "y": bottom - GAP[1] + 14}

    return {
        "width": 2 * MARGIN + drawing.columns * (BOX[0] + GAP[0]) - GAP[0],
        "height": 2 * MARGIN + drawing.rows * (BOX[1] + GAP[1]) - GAP[1],
        "box_width": BOX[0],
        "box_height": BOX[1],
        "boxes": [box(each) for each in drawing.boxes],
        "lines": [line(each) for each in drawing.lines],
    }


def _lines(words: str) -> list[str]:
    """What else a box says, at most two lines."""
    if len(words) <= LETTERS + 1:
        return [words] if words else []
    first, _, rest = words.partition(", ")
    return [each if len(each) <= LETTERS + 1 else f"{each[:LETTERS]}…" for each in (first, rest) if each]


def _remarks(remarks: Sequence[Remark], outcome: Outcome, what: str) -> list[Mapping[str, Any]]:
    """Remarks of one outcome, those that say the same of different nodes together."""
    kinds = report.alike(by_outcome(remarks, outcome))
    return [
        {
            "title": f"{counted(len(some), what)}: {some[0].sentence}"
            + (" (for one)" if len(some) > 1 else ""),
            "rows": [
                (f"{each.node}{f' in {each.graph}' if each.graph else ''}", each.sentence) for each in some
            ],
        }
        for some in sorted(kinds, key=lambda some: -len(some))
    ]


def _provenance(found: Report, details: Details, command: str) -> list[tuple[str, str]]:
    rows = [("command", command), ("input", str(found.source))]
    rows += [(f"SHA-256 of {name}", digest) for name, digest in details.hashes.items()]
    if found.target:
        rows.append(("output", f"{found.target}{'' if found.written else ' (not written)'}"))
    if found.verification:
        rows += [("fed with", each) for each in found.verification.inputs]
    rows.append(("repfuse", __version__))
    rows += [(name, installed) for name in _PACKAGES if (installed := _version(name))]
    rows += [("Python", platform.python_version()), ("machine", f"{platform.system()} {platform.machine()}")]
    return [*rows, ("made", datetime.datetime.now(datetime.timezone.utc).isoformat(" ", "seconds"))]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
