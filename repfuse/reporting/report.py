"""What people read: the results of a run as sentences and tables, and as a dict for JSON.

Pure functions. The text is ASCII but for the names that a model brings along, so it reads alike in a terminal, a
file and a log.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from repfuse.measures.bench import Benchmark
from repfuse.measures.int8 import BlockNoise
from repfuse.measures.stats import Stats
from repfuse.measures.tuning import Trial, Tuning
from repfuse.proof.blockcheck import BlockCheck
from repfuse.proof.comparison import OutputCheck
from repfuse.proof.culprit import BadBlock
from repfuse.proof.verification import Verification
from repfuse.remarks import Edit, Outcome, Remark, by_outcome
from repfuse.reporting.figures import Row, changed_by, counted, figure_table, milliseconds, si, two_columns
from repfuse.reporting.plain import as_plain

SCHEMA = 1
"""Version of the JSON report. It grows when a key goes or changes its meaning, not when one is added."""

ALLOWED = 0.5
"""What rounding a weight once changes at most, in units in its last place (ulp)."""

FEW = 2
"""How many remarks that are alike are listed before the rest is only counted."""

FEW_OUTPUTS = 6
"""How many outputs of one backend are listed: failures before others, large errors before small ones."""


@dataclasses.dataclass
class Report:
    """What a run found out, filled in as it goes.

    Attributes:
        source: The model that was read.
        target: The file to write; None for a dry run that names none.
        edits: What was changed.
        remarks: What was found: fused, or refused and why.
        before: The size of the original.
        after: The size of the fused model; None where nothing was fused.
        trials: What measuring said of each place where something may be fused; empty without `--tune`.
        blocks: How each rewritten block compares, run by itself; empty where they were not run.
        bad_blocks: What does not match, and was left alone or kept the model from being written.
        verification: How the outputs compare; None where they were not compared.
        benchmarks: Latencies, one entry for each backend.
        quantization: How well weights would survive int8, by block; only for reports that are written.
        notes: What else a reader ought to know, in sentences.
        written: Whether `target` was written.
    """

    source: Path
    target: Path | None
    edits: Sequence[Edit] = ()
    remarks: Sequence[Remark] = ()
    before: Stats | None = None
    after: Stats | None = None
    trials: Sequence[Trial] = ()
    blocks: Sequence[BlockCheck] = ()
    bad_blocks: list[BadBlock] = dataclasses.field(default_factory=list)
    verification: Verification | None = None
    benchmarks: list[Benchmark] = dataclasses.field(default_factory=list)
    quantization: Sequence[BlockNoise] = ()
    notes: list[str] = dataclasses.field(default_factory=list)
    written: bool = False


def groups(edits: Sequence[Edit], remarks: Sequence[Remark], *, verbose: bool) -> RenderableType:
    """How many groups were found, what was fused, what was refused and why.

    Args:
        edits: What was changed.
        remarks: What was found.
        verbose: List every remark; else the first few refusals of each kind, and nothing of what is no group.
    """
    fused, refused, rewritten, kept = (by_outcome(remarks, outcome) for outcome in Outcome)
    nothing = "Nothing to fuse: no linear branches meet in this model (fused already, or never branched)."
    head = Text(group_count(remarks), "bold") if fused or refused else Text(nothing)
    families = Counter((bool(edit.kernel), edit.pattern) for edit in edits).most_common()
    rows = [("fused" if merged else "rewritten", f"{count} x {name}") for (merged, name), count in families]
    if verbose:
        rows += map(_row, fused + rewritten)
    rows += _few_of_each_kind(refused, len(refused) if verbose else FEW)
    if verbose:
        rows += map(_row, kept)
    return Group(head, Padding(two_columns(rows), (0, 0, 0, 2))) if rows else head


def group_count(remarks: Sequence[Remark]) -> str:
    """How many groups there are, and what became of them, in a few words."""
    fused, refused = (len(by_outcome(remarks, each)) for each in (Outcome.FUSED, Outcome.REFUSED))
    return f"{counted(fused + refused, 'group')} found: {fused} fused, {refused} refused"


def tuning(found: Tuning) -> RenderableType:
    """How many places were measured, what that said, and which are slower fused."""
    if not found.trials and not found.measured:
        return Text("Tuned: there is nothing to measure")
    verdicts = Counter(trial.verdict for trial in found.trials)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    rows = [
        ("slower", f"'{trial.outputs[0]}': {_ratios(trial)}")
        for trial in found.trials
        if trial.verdict == "slower" and trial.outputs
    ]
    if unsplit := sum(trial.unsplit for trial in found.trials):
        rows.append(("unsplit", f"{counted(unsplit, 'place')} with no tap apart, which costs time here"))
    if not found.ratios and not found.plan.made:
        rows.append(("original", "the whole model was not measured to be as fast with any of that"))
    head = f"Tuned: {counted(len(found.trials), 'place')} where something may be fused: {told}"
    measured = f"{counted(found.measured, 'comparison')} run"
    return Group(Text(f"{head} ({measured})"), Padding(two_columns(rows), (0, 0, 0, 2)))


def _ratios(trial: Trial) -> str:
    return ", ".join(f"{ratio.value:.3f}x on {backend}" for backend, ratio in trial.ratios.items())


def sizes(before: Stats, after: Stats) -> RenderableType:
    """A table of what the model consists of, before and after."""
    table = figure_table("Size", "before", "after", "change")
    for row in size_rows(before, after):
        table.add_row(*row)
    return table


def size_rows(before: Stats, after: Stats) -> list[Sequence[str]]:
    """What it shows: title, before, after, change."""
    counts: list[tuple[str, int | None, int | None, Callable[[int], str]]] = [
        ("nodes", before.nodes, after.nodes, str),
        ("parameters", before.parameters, after.parameters, si),
        ("multiply-adds", before.macs, after.macs, si),
        ("file", before.bytes, after.bytes, partial(si, unit="B")),
    ]
    rows: list[Sequence[str]] = []
    if before.opset != after.opset:
        rows.append(("opset", str(before.opset), str(after.opset), ""))
    for title, old, new, shown in counts:
        figures = ("unknown" if count is None else shown(count) for count in (old, new))
        rows.append((title, *figures, changed_by(old, new) if old and new is not None else ""))
    return rows


def errors(verification: Verification) -> RenderableType:
    """A table of each output's error on each backend beside what an error means there, and what to heed."""
    caption = "error: share of the largest value; noise floor: the original against itself"
    table = figure_table("Outputs", "error", "noise floor", "of movement", "tolerance", "")
    for backend in dict.fromkeys(check.backend for check in verification.checks):
        checks = [check for check in verification.checks if check.backend == backend]
        table.add_row(backend)
        worst = sorted(checks, key=lambda check: (check.passed, -check.error))[:FEW_OUTPUTS]
        for check in (check for check in checks if check in worst):
            table.add_row(*_error_row(check))
        if len(checks) > len(worst):
            table.add_row(f"  and {len(checks) - len(worst)} more, none worse")
    return Group(table, Text(caption, "dim"), *map(note, warnings(verification)))


def warnings(verification: Verification) -> list[str]:
    """What to heed where outputs match, in sentences."""
    found = [check.message for check in verification.checks if check.passed and check.message]
    return found + [
        f"{note.backend} cannot run the original, so it was skipped: {note.reason}"
        for note in verification.skipped
    ]


def latency(benchmarks: Sequence[Benchmark]) -> RenderableType:
    """A table of latencies on each backend, and in words where the fused model is slower, or no faster."""
    threads = max(benchmark.threads for benchmark in benchmarks)
    table = figure_table(
        f"Latency, {counted(threads, 'thread')}", "before", "after", "speed-up", "95 % interval"
    )
    for each in benchmarks:
        table.add_row(
            each.backend,
            milliseconds(each.before_ms),
            milliseconds(each.after_ms),
            Text(f"{each.ratio:.2f}x", {"faster": "green", "slower": "bold red"}.get(each.verdict, "")),
            f"{each.low:.2f} to {each.high:.2f}",
        )
    return Group(table, *(note(text) for each in benchmarks if (text := _caveat(each))))


def note(text: str) -> RenderableType:
    """Something else to heed."""
    return Text(text, "yellow")


def blocks(checks: Sequence[BlockCheck]) -> RenderableType:
    """How the rewritten blocks compare with the original ones, each run by itself, and which is the worst."""
    return Group(*map(Text, block_lines(checks)))


def block_lines(checks: Sequence[BlockCheck]) -> list[str]:
    """The same, a line each."""
    run = [check for check in checks if not check.skipped]
    lines = []
    if run:
        worst = max(run, key=lambda check: check.error_ulp)
        text = f"{counted(len(run), 'block')} run alone in float64, before and after: weights off by"
        lines.append(f"{text} {worst.error_ulp:.2f} ulp at most (rounding allows {ALLOWED})")
        lines += [f"  worst in '{worst.edit.output}'"] if len(run) > 1 else []
    for reason, count in Counter(check.skipped for check in checks if check.skipped).items():
        lines.append(f"{counted(count, 'block')} not run alone: {reason}")
    return lines


def off_by(check: BlockCheck) -> str:
    """How wrong a block is."""
    return f"weights off by {check.error_ulp:.2g} ulp, rounding allows {ALLOWED}"


def bad_block(bad: BadBlock) -> str:
    """A block that does not match, and why."""
    place = f" in {bad.edit.graph}" if bad.edit.graph else ""
    return f"'{bad.edit.output}'{place} ({bad.edit.pattern}): {bad.reason}"


def failure(report: Report) -> str:
    """Why nothing was written: the bad blocks, and each output or backend that does not match."""
    if all(block.passed for block in report.blocks):
        lines = ["the fused model does not match the original, so nothing was written"]
        found = report.verification
        if found:
            lines += [f"{each.backend}: cannot run the fused model: {each.reason}" for each in found.failures]
            lines += [check.message for check in found.checks if not check.passed]
        lines += [f"the first bad block is {bad_block(each)}" for each in report.bad_blocks]
    else:
        lines = ["a fused block does not match the original one, so nothing was written; please report this"]
        lines += map(bad_block, report.bad_blocks)
    return "\n  ".join([*lines, "--keep-going writes the model without what does not match"])


def ending(report: Report) -> RenderableType:
    """What became of the file to write."""
    if not report.written:
        return Text("Dry run: nothing was written")
    if not report.edits:
        return Text(f"Wrote {report.target}, a copy of {report.source}")
    return Text(f"Wrote {report.target}" + ("" if report.verification else ", not verified"))


def as_dict(report: Report, version: str) -> dict[str, Any]:
    """Everything that was printed, of plain types: what `--json` writes.

    Args:
        report: The results.
        version: The version of repfuse that made them.
    """
    outcomes = Counter(remark.outcome for remark in report.remarks)
    checks = report.verification.checks if report.verification else ()
    plain: dict[str, Any] = as_plain(
        {
            "schema": SCHEMA,
            "repfuse": version,
            "input": str(report.source),
            "output": report.target and str(report.target),
            "written": report.written,
            "groups": {
                "found": outcomes[Outcome.FUSED] + outcomes[Outcome.REFUSED],
                "fused": outcomes[Outcome.FUSED],
                "refused": outcomes[Outcome.REFUSED],
                "rewritten": outcomes[Outcome.REWRITTEN],
                "kept": outcomes[Outcome.KEPT],
            },
            "edits": report.edits,
            "remarks": report.remarks,
            "size": {"before": report.before, "after": report.after},
            "trials": report.trials,
            "blocks": report.blocks,
            "bad_blocks": report.bad_blocks,
            "verification": report.verification,
            "latency": report.benchmarks,
            "quantization": report.quantization,
            "notes": report.notes,
        }
    )
    for entry, block in zip(plain["quantization"], report.quantization, strict=True):
        entry.update(as_plain({"lost": block.lost, "bad": block.bad}))
    if report.verification:
        plain["verification"].update(
            as_plain(
                {"passed": report.verification.passed, "smallest_rtol": report.verification.smallest_rtol}
            )
        )
        for entry, check in zip(plain["verification"]["checks"], checks, strict=True):
            entry.update(passed=check.passed, vacuous=check.vacuous)
    for entry, benchmark in zip(plain["latency"], report.benchmarks, strict=True):
        entry["verdict"] = benchmark.verdict
    return plain


def _few_of_each_kind(remarks: Sequence[Remark], limit: int) -> Iterator[Row]:
    """Remarks, but of those that say the same of different nodes the first ones and the number of the others."""
    for some in alike(remarks):
        yield from map(_row, some[:limit])
        if len(some) > limit:
            yield "", f"and {len(some) - limit} more alike (-v lists all)"


def alike(remarks: Sequence[Remark]) -> list[list[Remark]]:
    """Remarks that say the same of different nodes, together."""
    kinds: dict[str, list[Remark]] = {}
    for remark in remarks:
        kinds.setdefault(re.sub(r"'[^']*'|\d+", "_", remark.message), []).append(remark)
    return list(kinds.values())


def _row(remark: Remark) -> Row:
    place = f" in {remark.graph}" if remark.graph else ""
    return remark.outcome.value, f"{remark.node}{place}: {remark.sentence}"


def _error_row(check: OutputCheck) -> Sequence[RenderableType]:
    figures = (check.error, check.noise_floor, check.error_of_movement, check.tolerance)
    verdict = Text("ok", "green") if check.passed else Text("FAILED", "bold red")
    return (Text(f"  {check.output}"), *(f"{figure:.1e}" for figure in figures), verdict)


def _caveat(benchmark: Benchmark) -> str:
    """What a reader must not miss in a row of latencies; empty where the fused model is faster."""
    if benchmark.verdict == "slower":
        return (
            f"Slower on {benchmark.backend}: the fused model takes {1 / benchmark.ratio:.2f} times as long there; "
            "for this backend keep the original"
        )
    return f"No measurable difference on {benchmark.backend}" if benchmark.verdict == "same" else ""
