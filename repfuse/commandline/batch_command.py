"""`repfuse batch`: many models, on this machine or a Dask cluster, and a table of them all."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from repfuse.errors import BadInputError
from repfuse.jobs.batching import BatchRecord, batch
from repfuse.model.staging import staged
from repfuse.reporting.figures import counted, figure_table, si
from repfuse.reporting.voice import Voice

COLUMNS = ("result", "groups", "nodes", "multiply-adds", "file", "speed-up")


def run(
    sources: Sequence[str],
    out: str,
    *,
    scheduler: str | None,
    jobs: int | None,
    log: Path | None,
    summary: Path | None,
    bench: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Fuse the models, print a table, and give the exit code: the worst of all models.

    Raises:
        BadInputError: Flags do not go together, there is no such cluster, or as for `repfuse.batch`.
    """
    if bench and (scheduler or (jobs or 1) > 1):
        raise BadInputError(
            "--bench takes one model at a time, on this machine; leave --jobs and --scheduler out"
        )
    if summary and not summary.absolute().parent.is_dir():
        raise BadInputError(f"{summary}: there is no folder '{summary.parent}'; make it first")
    voice = Voice(quiet=quiet)
    with _executor(scheduler) as executor, voice.doing("Fusing") as tell:
        records = batch(
            sources,
            out,
            executor=executor,
            jobs=1 if bench else jobs,
            log=log,
            on_record=lambda record: tell(f"{record.source}: {record.status}"),
            no_bench=not bench,
            **options,
        )
    voice.say(table(records))
    if summary:
        with staged(summary) as temporary:
            temporary.write_text(markdown(records), encoding="utf-8")
    return max((record.exit_code for record in records), default=0)


@contextlib.contextmanager
def _executor(scheduler: str | None) -> Iterator[Executor | None]:
    """What hands work to a Dask cluster; None without one.

    Raises:
        BadInputError: dask.distributed is not installed, or nobody answers there.
    """
    if scheduler is None:
        yield None
        return
    try:
        from distributed import Client  # noqa: PLC0415
    except ImportError as error:
        raise BadInputError("--scheduler: needs Dask; pip install 'repfuse[dask]'") from error
    try:
        client: Any = Client(scheduler, timeout=10)  # type: ignore[no-untyped-call,unused-ignore]
    except (OSError, ValueError) as error:
        raise BadInputError(f"--scheduler {scheduler}: no scheduler answers there: {error}") from error
    with client:
        yield client.get_executor(pure=False)


def table(records: Sequence[BatchRecord]) -> RenderableType:
    """A row for each model, what went wrong, and how many there are of each kind."""
    shown = figure_table("Model", *COLUMNS)
    for record in records:
        shown.add_row(Text(record.source), *_cells(record))
    problems = (Text(f"{record.source}: {record.message}", "red") for record in records if record.message)
    return Group(shown, *problems, Text(tally(records), "bold"))


def markdown(records: Sequence[BatchRecord]) -> str:
    """The same as Markdown."""
    rows = [["model", *COLUMNS, ""], ["---"] * (len(COLUMNS) + 2)]
    rows += [[f"`{record.source}`", *_cells(record), record.message] for record in records]
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([f"### repfuse: {tally(records)}", "", *lines, ""])


def tally(records: Sequence[BatchRecord]) -> str:
    """How many models are what, in a sentence."""
    kinds = Counter(record.status for record in records)
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds))
    before = sum(record.before for record in records)
    text = f"{counted(len(records), 'model')}: {counts}"
    return f"{text}; {before} done before" if before else text


def _cells(record: BatchRecord) -> list[str]:
    if not record.report:
        return [record.status, *[""] * (len(COLUMNS) - 1)]
    report = record.report
    sizes = [size for size in (report["size"]["before"], report["size"]["after"]) if size]
    speedups = [f"{entry['ratio']:.2f}x" for entry in report["latency"]]
    return [
        record.status,
        f"{report['groups']['fused']} of {report['groups']['found']}",
        " -> ".join(str(size["nodes"]) for size in sizes),
        " -> ".join("unknown" if size["macs"] is None else si(size["macs"]) for size in sizes),
        " -> ".join(si(size["bytes"], "B") for size in sizes),
        ", ".join(speedups),
    ]
