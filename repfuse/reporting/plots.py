"""Plots as SVG text that takes its colours from the page it stands in; figures in, text out.

matplotlib draws. Each colour it is given stands for one of the page's custom properties (`--ink`, `--before` ...),
which follow the reader's light or dark theme.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from repfuse.measures.bench import Benchmark
from repfuse.measures.schedule import Schedule
from repfuse.proof.comparison import OutputCheck

INK, LINE, BEFORE, AFTER = "#010203", "#010204", "#010205", "#010206"
_THEME = {INK: "var(--ink)", LINE: "var(--line)", BEFORE: "var(--before)", AFTER: "var(--after)"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, and is as sharp as the page
    "svg.hashsalt": "repfuse",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}

WIDTH = 4.6
"""Inches, at 72 units each: small enough for its text to be legible on a phone, where it shrinks a little."""

DOTS = 250
"""Times of a model that are drawn, evenly out of all."""

POINTS = 800
"""Of a schedule; of more steps, the largest of each stretch is drawn."""


def latency(benchmark: Benchmark) -> str:
    """Times of both models, and their quartiles."""

    def draw(axes: Axes) -> None:
        pairs = [pair for load in benchmark.times_ms for pair in load]
        for row, (colour, times) in enumerate(zip((BEFORE, AFTER), zip(*pairs, strict=True), strict=True)):
            dots = times[:: -(-len(times) // DOTS)]
            heights = [row + 0.13 + 0.25 * ((0.618034 * number) % 1) for number in range(len(dots))]
            axes.plot(dots, heights, ".", color=colour, markersize=3, alpha=0.6)
            axes.boxplot(
                times,
                positions=[row - 0.12],
                orientation="horizontal",
                widths=0.3,
                showfliers=False,
                manage_ticks=False,
                medianprops={"color": colour, "linewidth": 2},
                boxprops={"color": colour},
                whiskerprops={"color": colour},
                capprops={"color": colour},
            )
        axes.set_yticks([0, 1], ["before", "after"])
        axes.set_ylim(1.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0, right=1.25 * sorted(max(pair) for pair in pairs)[len(pairs) * 19 // 20])
        axes.set_xlabel("milliseconds")

    return _drawn([draw], height=1.7)


def activations(before: Schedule, after: Schedule) -> str:
    """The bytes that live while each node runs: one model above the other, on one scale."""

    def draw_one(title: str, colour: str, found: Schedule, top: float) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            places, sizes = _thinned([step.bytes / 1e6 for step in found.steps])
            axes.fill_between(places, sizes, step="mid", color=colour, alpha=0.35, linewidth=0)
            axes.step(places, sizes, where="mid", color=colour, linewidth=1)
            axes.set_xlim(left=0, right=max(1, len(found.steps) - 1))
            axes.set_ylim(bottom=0, top=1.08 * top)
            axes.set_ylabel("MB")
            axes.set_xlabel(f"node, {title}")

        return draw

    top = max(found.peak.bytes for found in (before, after) if found.peak) / 1e6 or 1
    panels = [draw_one("before", BEFORE, before, top), draw_one("after", AFTER, after, top)]
    return _drawn(panels, height=3.4)


def errors(checks: Sequence[OutputCheck]) -> str:
    """Each output's error, the noise floor and the tolerance, on a logarithmic scale."""
    figures = [value for check in checks for value in (check.error, check.noise_floor) if value > 0]
    least = min(figures, default=1e-9)
    most = max([least, *figures, *(check.tolerance for check in checks)])

    def draw(axes: Axes) -> None:
        for row, check in enumerate(checks):
            axes.plot(
                [least / 2, check.tolerance], [row, row], color=LINE, linewidth=5, solid_capstyle="butt"
            )
            for value, marker, colour in ((check.noise_floor, "|", INK), (check.error, "o", AFTER)):
                axes.plot(
                    max(value, least / 2), row, marker, color=colour, markersize=10 if marker == "|" else 5
                )
        axes.set_xscale("log")
        axes.set_xlim(10 ** math.floor(math.log10(least / 2)), 10 ** math.ceil(math.log10(most * 1.1)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(checks)), [_short(check.output) for check in checks])
        axes.set_ylim(len(checks) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of the output's largest value")

    return _drawn([draw], height=0.75 + 0.28 * len(checks))


def _short(name: str) -> str:
    name = name if len(name) <= 16 else f"…{name[-15:]}"
    return name.replace("$", r"\$")  # which would begin a formula


def _thinned(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Places and values; of very many only the largest of each stretch."""
    stretch = -(-len(values) // POINTS) or 1
    places = range(0, len(values), stretch)
    return list(places), [max(values[place : place + stretch]) for place in places]


def _drawn(panels: Sequence[Callable[[Axes], None]], height: float) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        for axes, draw in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_a_page(buffer.getvalue())


def _for_a_page(svg: str) -> str:
    """The `<svg>` element alone, coloured by the page, with ids that no other one on the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    prefix = f"plot{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'((?<=\s)id="|xlink:href="#|url\(#)', rf"\1{prefix}", svg)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
