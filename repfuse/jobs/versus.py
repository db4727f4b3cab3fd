"""The `bench` command: which of two files is faster, on each backend and with few threads and many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from repfuse import __version__
from repfuse.errors import BadInputError, SpeedupError
from repfuse.measures.bench import Benchmark, all_threads, benchmark
from repfuse.measures.memory import Memory, measure_memory
from repfuse.model.staging import staged
from repfuse.reporting.figures import changed_by, counted, figure_table, milliseconds, si
from repfuse.reporting.plain import as_plain
from repfuse.reporting.voice import Voice
from repfuse.runtimes.backends import Backend, BackendError, Feeds, fed_inputs, structure
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.inputs import load_input_data, parse_input_range, parse_input_shape
from repfuse.runtimes.installed import backends_named

SCHEMA = 1
"""Version of the JSON report. It grows when a key goes or changes its meaning, not when one is added."""

COLOURS = {"faster": "green", "slower": "bold red"}


@dataclass(frozen=True)
class Options:
    """What the user asked for; the flags of the command line, one for one.

    Attributes:
        before: The first model.
        after: The second one, which is to be faster.
        backend: `ort`, `openvino` or `all`.
        threads: How many threads to measure with, one after the other; empty for one, and then all.
        seconds: Time for each comparison.
        rounds: Rounds of each comparison, in place of `seconds`.
        input_shapes: Such as `images:1,3,640,640`.
        input_data: An .npz or .npy file to feed models with.
        input_ranges: Such as `images:0,255`.
        seed: Of random inputs.
        require_speedup: What the lower end of each interval must reach; None to require nothing.
        json: Where to write the report.
        quiet: Print errors only.
        verbose: Whether to say where an unexpected error arose; heeded by the command line.
    """

    before: Path
    after: Path
    backend: str
    threads: tuple[int, ...]
    seconds: float
    rounds: int | None
    input_shapes: tuple[str, ...]
    input_data: Path | None
    input_ranges: tuple[str, ...]
    seed: int
    require_speedup: float | None
    json: Path | None
    quiet: bool
    verbose: bool


@dataclass(frozen=True)
class MemoryRow:
    """What running each of both models takes on one backend."""

    backend: str
    before: Memory
    after: Memory


@dataclass
class Comparison:
    """What was measured, filled in as it goes.

    Attributes:
        latency: An entry for each backend and number of threads.
        memory: An entry for each backend.
        notes: What else a reader ought to know, in sentences.
    """

    latency: list[Benchmark] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def short_of(self, required: float) -> list[Benchmark]:
        """What does not show, with 95 % confidence, that the second model is so many times faster."""
        return [each for each in self.latency if each.low < required]


def run(options: Options) -> None:
    """Measure, print, and write the JSON report.

    Raises:
        BadInputError: The models cannot be compared, or an input does not fit them.
        BackendError: No backend that was asked for can run both models.
        SpeedupError: The second model is not as much faster as is required; the report was written.
    """
    if options.json and not options.json.absolute().parent.is_dir():
        raise BadInputError(f"{options.json}: there is no folder '{options.json.parent}'; make it first")
    voice = Voice(quiet=options.quiet)
    found = _measure(options, voice)
    voice.say(*_tables(found))
    short = found.short_of(options.require_speedup or 0)
    if options.json:
        with staged(options.json) as temporary:
            text = json.dumps(as_dict(options, found), indent=2, allow_nan=False)
            temporary.write_text(f"{text}\n", "utf-8")
    if short:
        raise SpeedupError(_shortfall(options, short))


def _measure(options: Options, voice: Voice) -> Comparison:
    data = load_input_data(options.input_data, options.before) if options.input_data else None
    shapes = dict(map(parse_input_shape, options.input_shapes))
    ranges = dict(map(parse_input_range, options.input_ranges))
    _check_inputs(options.before, options.after)
    threads = options.threads or tuple(sorted({1, all_threads()}))
    found = Comparison()
    failures: list[BackendError] = []
    for backend in backends_named(options.backend):
        try:
            with voice.doing("Measuring") as tell:
                for count in threads:
                    tell(f"{backend.title}, {counted(count, 'thread')}")
                    found.latency.append(
                        benchmark(
                            options.before,
                            options.after,
                            backend=backend.name,
                            threads=count,
                            seed=options.seed,
                            input_shapes=shapes,
                            input_data=data,
                            input_ranges=ranges,
                            seconds=options.seconds,
                            rounds=options.rounds,
                        )
                    )
                tell(f"{backend.title}, memory")
                (feed,) = make_inputs(
                    options.before, count=1, seed=options.seed, shapes=shapes, data=data, ranges=ranges
                )
                found.memory.append(_memory(options, backend, feed))
        except BackendError as error:
            failures.append(error)
            found.notes.append(f"Not measured everywhere: {error}")
    if failures and not found.latency:
        raise failures[0]
    return found


def _memory(options: Options, backend: Backend, feeds: Feeds) -> MemoryRow:
    before, after = (
        measure_memory(path, feeds, backend=backend.name) for path in (options.before, options.after)
    )
    return MemoryRow(backend.title, before, after)


def _check_inputs(before: Path, after: Path) -> None:
    """Refuse models that cannot be run on the same inputs."""
    taken = [
        {entry.name: entry.type.tensor_type.elem_type for entry in fed_inputs(structure(path).graph)}
        for path in (before, after)
    ]
    if taken[0] != taken[1]:
        names = [", ".join(f"'{name}'" for name in each) or "none" for each in taken]
        raise BadInputError(
            f"{after} takes other inputs than {before} ({names[1]} instead of {names[0]}, or of another type); "
            "only models of the same inputs can be compared"
        )


def _tables(found: Comparison) -> list[RenderableType]:
    parts: list[RenderableType] = [_latency(found.latency), Text(), _measuring(found.latency)]
    if found.memory:
        parts += [Text(), _memory_table(found.memory)]
    parts += [Text(note, "yellow") for note in found.notes]
    return parts


def _latency(rows: Sequence[Benchmark]) -> RenderableType:
    table = figure_table("Latency", "threads", "before", "after", "speed-up", "95 % interval", "")
    for row in rows:
        table.add_row(
            row.backend,
            str(row.threads),
            milliseconds(row.before_ms),
            milliseconds(row.after_ms),
            f"{row.ratio:.3f}x",
            f"{row.low:.3f} to {row.high:.3f}",
            Text(_said(row), COLOURS.get(row.verdict, "")),
        )
    caption = "same: within 2 %; where the percentage is low, the interval is too wide to tell"
    return Group(table, Text(caption, "dim"))


def _said(row: Benchmark) -> str:
    """The verdict and how sure it is; where the interval is too wide to tell, its confidence is low."""
    confidence = "above 99.9" if row.confidence > 0.999 else f"{100 * row.confidence:.1f}"
    return f"{row.verdict} ({confidence} %)"


def _measuring(rows: Sequence[Benchmark]) -> RenderableType:
    table = figure_table("Measured", "threads", "rounds", "loadings", "warm-up", "interrupted", "outliers")
    for row in rows:
        worst = f", up to {milliseconds(max(row.outliers_ms))}" if row.outliers_ms else ""
        table.add_row(
            row.backend,
            str(row.threads),
            str(row.rounds),
            str(len(row.times_ms)),
            counted(row.warm_up, "round"),
            str(row.preempted),
            f"{len(row.outliers_ms)}{worst}",
        )
    return table


def _memory_table(rows: Sequence[MemoryRow]) -> RenderableType:
    table = figure_table("Peak memory", "before", "after", "change")
    for row in rows:
        for title, before, after in (
            ("process", row.before.process, row.after.process),
            ("activations", row.before.activations, row.after.activations),
            (
                "activations, not optimizing",
                row.before.activations_unoptimized,
                row.after.activations_unoptimized,
            ),
        ):
            if before is not None and after is not None:
                figures = si(before, "B"), si(after, "B"), changed_by(before, after) if before else ""
                table.add_row(f"{row.backend}, {title}", *figures)
    return Group(table, Text("process: what it grows by while the model is loaded and run", "dim"))


def _shortfall(options: Options, short: Sequence[Benchmark]) -> str:
    required = (
        f"{options.after} is not shown to be {options.require_speedup:g} times as fast as {options.before}"
    )
    reasons = (
        f"{row.backend}, {counted(row.threads, 'thread')}: {row.ratio:.3f}x, {row.low:.3f} to {row.high:.3f}"
        for row in short
    )
    return "\n  ".join([required, *reasons])


def as_dict(options: Options, found: Comparison) -> dict[str, Any]:
    """Everything that was printed, and every time, of plain types: what `--json` writes."""
    required = options.require_speedup
    plain: dict[str, Any] = as_plain(
        {
            "schema": SCHEMA,
            "repfuse": __version__,
            "before": str(options.before),
            "after": str(options.after),
            "required_speedup": required,
            "passed": not found.short_of(required or 0),
            "latency": found.latency,
            "memory": found.memory,
            "notes": found.notes,
        }
    )
    for entry, row in zip(plain["latency"], found.latency, strict=True):
        entry["verdict"] = row.verdict
    return plain
