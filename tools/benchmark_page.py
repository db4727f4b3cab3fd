"""The page of `benchmark.py`: tables in Markdown and a plot for each backend, between two marks of a page.

What stands outside the marks is written by hand, and stays.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark_variants import DEPLOY, ORIGINAL, REPFUSE, VARIANTS

from repfuse.reporting.figures import si

BEGIN = "<!-- made by tools/benchmark.py -->"
END = "<!-- end of what was made -->"

CLOSE = 1e-3
"""A form whose outputs deviate by more than this share computes something else, and is marked."""

COLOURS = ("#888888", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377", "#ee6677", "#000000")
"""Paul Tol's bright scheme, for the variants in their order: told apart by the colour-blind, too."""


def write(page: Path, found: dict[str, Any]) -> None:
    """Put tables and plots into a page, in place of what a former run put there.

    Raises:
        ValueError: The page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no marks '{BEGIN}' and '{END}' to write between")
    plots = {title: page.with_name(f"{page.stem}-{_slug(title)}.svg") for title in _backends(found)}
    for title, path in plots.items():
        plot(path, title, found)
    body = "\n".join(_body(found, {title: path.name for title, path in plots.items()}))
    page.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")


def _backends(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(title for model in found["models"].values() for title in model["results"]))


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", re.sub(r"[\d.]+", "", title).strip().lower())


def _body(found: dict[str, Any], plots: dict[str, str]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found["versions"].items()))
    count = found["threads"]
    yield "*Not run by the tests: needs torch, and takes an hour.*\n"
    yield f"```sh\n{found['command']}\n```\n"
    yield (
        f"{len(found['models'])} models on {_processor()}, {count} thread{'s' * (count > 1)}; {versions}. Python "
        f"{platform.python_version()}. Ratios are those of the original's latency to that of the form: above 1 the "
        "form is faster. Behind each stands its 95 % interval. In "
        f"{100 * _interrupted(found):.0f} % of the rounds another process got in the way.\n"
    )
    for title, name in plots.items():
        yield f"![Speed-up of each form of each model on {title}; the tables below hold the figures]({name})\n"
    yield from _deploy_table(found)
    for model, entry in found["models"].items():
        yield from _model_table(model, entry)
    if found["pass"]:
        yield from _pass_table(found["pass"])


def _interrupted(found: dict[str, Any]) -> float:
    """The share of rounds in which another process got in the way of one of two forms."""
    pairs = [
        latency
        for entry in found["models"].values()
        for result in entry["results"].values()
        for latency in result["latency"].values()
    ]
    return float(sum(each["preempted"] for each in pairs) / max(1, sum(each["rounds"] for each in pairs)))


def _deploy_table(found: dict[str, Any]) -> Iterator[str]:
    backends = _backends(found)
    yield "## repfuse beside the deploy form\n"
    yield "The ratio of the deploy form's latency to that of what repfuse makes; above 1 repfuse's is faster.\n"
    yield f"| model | nodes, deploy form | nodes, repfuse | {' | '.join(backends)} |"
    yield f"|---|---|---|{'---|' * len(backends)}"
    for model, entry in found["models"].items():
        nodes = [str(entry["size"].get(name, {}).get("nodes", "-")) for name in (DEPLOY.name, REPFUSE.name)]
        ratios = [_ratio(entry["results"][title]["beside_deploy"], verdict=True) for title in backends]
        yield f"| {model} | {' | '.join([*nodes, *ratios])} |"
    yield ""


def _model_table(model: str, entry: dict[str, Any]) -> Iterator[str]:
    yield f"## {model}\n"
    heads = ["form", "nodes", "file", "made in"]
    for title in entry["results"]:
        heads += [title, "process"] + (["activations"] if _has_activations(entry["results"][title]) else [])
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    notes = []
    for variant in VARIANTS:
        name = variant.name
        made = entry["made"][name]
        if made["error"]:
            notes.append(f"{name} could not be made: {made['error']}")
            continue
        sizes = entry["size"][name]
        cells = [name, str(sizes["nodes"] or "-"), si(sizes["bytes"], "B")]
        cells.append("-" if made["seconds"] is None else f"{made['seconds']:.3g} s")
        for title, result in entry["results"].items():
            cells += _cells(result, name)
            if name in result["errors"]:
                notes.append(f"{name} does not run there: {result['errors'][name]}")
            if result["deviation"].get(name, 0) > CLOSE:
                notes.append(
                    f"{name} deviates on {title} by {result['deviation'][name]:.2g} of the largest value"
                )
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from (f"- {note}" for note in notes)
    if notes:
        yield ""


def _has_activations(result: dict[str, Any]) -> bool:
    return any(each and each["activations"] is not None for each in result["memory"].values())


def _cells(result: dict[str, Any], name: str) -> list[str]:
    """Latency and memory of a form on one backend."""
    memory = result["memory"].get(name) or {}
    latency = result["latency"].get(name)
    shown = f"{latency['before_ms']:.3g} ms" if latency and name == ORIGINAL.name else _ratio(latency)
    keys = ["process", *(["activations"] if _has_activations(result) else [])]
    return [shown, *("-" if memory.get(key) is None else si(memory[key], "B") for key in keys)]


def _ratio(latency: dict[str, Any] | None, *, verdict: bool = False) -> str:
    if latency is None:
        return "-"
    text = f"{latency['ratio']:.2f} ({latency['low']:.2f} to {latency['high']:.2f})"
    return f"{text} {latency['verdict']}" if verdict else text


def _pass_table(models: dict[str, Any]) -> Iterator[str]:
    yield "## The pass itself\n"
    yield (
        "Reading, fusing and writing, each in new processes: best times, in multiples of `onnx.load` and "
        "`onnx.save`, and the peak of memory in multiples of the file (`tools/bench_pass.py`).\n"
    )
    yield "| model | file | command | time | ratio | memory |"
    yield "|---|---|---|---|---|---|"
    for model, rows in models.items():
        for row in rows:
            fresh = row["fresh"]
            memory = "-" if row["multiple"] is None else f"{row['multiple']:.2f}"
            cells = [model, si(row["size"], "B"), row["command"], f"{1000 * fresh['best']:.0f} ms"]
            yield f"| {' | '.join([*cells, format(fresh['ratio'], '.2f'), memory])} |"
    yield ""


def _processor() -> str:
    """The processor as the system calls it, and how many of it there are."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = re.findall(r"^model name\s*: (.*)$", text, re.M)
    family = re.findall(r"^cpu family\s*: (.*)$", text, re.M)
    if not names:
        return platform.processor() or platform.machine()
    return f"{len(names)} x {names[0]} (family {family[0]})" if family else f"{len(names)} x {names[0]}"


def plot(path: Path, title: str, found: dict[str, Any]) -> None:
    """Draw the ratios of all forms of all models on one backend, with their intervals, as SVG."""
    import matplotlib as mpl  # noqa: PLC0415  (only the tool needs it)
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "repfuse", "font.size": 9})
    models = list(found["models"])
    shown = [each for each in VARIANTS if each is not ORIGINAL]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.75 * len(models)))
    for place, variant in enumerate(shown):
        points = [
            (row + 0.8 * (place / (len(shown) - 1) - 0.5), latency)
            for row, model in enumerate(models)
            if (latency := found["models"][model]["results"][title]["latency"].get(variant.name))
        ]
        if points:
            ratios = [each["ratio"] for _, each in points]
            errors = [
                [each["ratio"] - each["low"] for _, each in points],
                [each["high"] - each["ratio"] for _, each in points],
            ]
            axes.errorbar(
                ratios,
                [row for row, _ in points],
                xerr=errors,
                fmt="o",
                markersize=5 if variant is REPFUSE else 4,
                color=COLOURS[VARIANTS.index(variant)],
                label=variant.name,
            )
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [0.5, 0.7, 1, 1.2, 1.5, 2, 3, 4, 6, 8, 12]
    low, high = axes.get_xlim()
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(inside, [f"{tick:g}x" for tick in inside], minor=False)
    axes.minorticks_off()
    axes.set_yticks(range(len(models)), models)
    axes.invert_yaxis()
    for row in range(len(models) - 1):
        axes.axhline(row + 0.5, color="#dddddd", linewidth=0.5)
    axes.set_xlabel(f"speed-up over the original, {title}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=4, frameon=False)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
    plt.close(figure)
