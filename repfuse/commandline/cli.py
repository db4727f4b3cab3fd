"""The command line: the commands and their flags. What each one does is the part of a module of its own.

Packages that take long to import are imported when the work begins, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repfuse import __version__
from repfuse.commandline.commands import Command, Commands, first_word, typed
from repfuse.commandline.flags import (
    BACKEND,
    CHECKING,
    FEEDING,
    FILE,
    FUSING,
    KEEP_OPSET,
    TRACE,
    VERBOSE,
    WEIGHTS,
    checking,
    fusing,
    measuring,
    running,
    tuning,
    writing,
)


@click.group(cls=Commands, default="fuse")
def main() -> None:
    """Collapse the parallel linear branches of an ONNX model into single convolutions, and prove it."""


FUSE_HELP = """
Collapse the parallel linear branches (RepVGG, MobileOne, ACNet ...) of IN.onnx into single convolutions, check on
ONNX Runtime and OpenVINO that outputs match, measure the gain, and write OUT.onnx.
"""

FUSE_EPILOG = """
Examples:
  repfuse model.onnx fused.onnx
  repfuse model.onnx --dry-run -v
  repfuse model.onnx fused.onnx --input-shape images:1,3,640,640 --backend ort
  repfuse model.onnx fused.onnx --pattern repvgg --pattern my_block.toml
  repfuse model.onnx fused.onnx -q --json report.json
  repfuse model.onnx fused.onnx --report report.html
  repfuse model.onnx fused.onnx --tune --tune-cache measured.json

Exit codes:
  0    done; also where there was nothing to fuse (OUT.onnx is a copy then)
       or --keep-going left some blocks alone
  1    the fused model does not match; nothing was written
  2    bad usage or bad input
  70   an error in repfuse itself (-v shows where)
  130  interrupted; no file was left half written
"""


@main.command(
    "fuse",
    cls=Command,
    synopsis="[OPTIONS] IN.onnx OUT.onnx",
    short_help="Fuse a model, check and measure it.",
    help=FUSE_HELP,
    epilog=FUSE_EPILOG,
)
@click.argument("source", metavar="IN.onnx", required=False, type=FILE, shell_complete=first_word)
@click.argument("target", metavar="OUT.onnx", required=False, type=FILE)
@FUSING
@fusing("--list-patterns", is_flag=True, help="List the block families that are known, and exit.")
@CHECKING
@checking(
    "--keep-going",
    is_flag=True,
    help="Leave a block alone that does not match, and write the model with the others fused.",
)
@checking("--no-bench", is_flag=True, help="Do not measure latency.")
@tuning("--tune", is_flag=True, help="Measure which groups are faster fused, and fuse only those.")
@tuning(
    "--tune-cache", type=FILE, metavar="FILE", help="Keep measurements there, and use those that it holds."
)
@tuning(
    "--tune-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=60.0,
    help="Time for these measurements, roughly (default 60).",
)
@FEEDING
@KEEP_OPSET
@WEIGHTS
@writing("--dry-run", is_flag=True, help="Do everything but write; OUT.onnx may be left out.")
@writing("--json", type=FILE, metavar="FILE", help="Write the report as JSON, too.")
@writing(
    "--report",
    type=FILE,
    metavar="FILE",
    help="Write it as an HTML page, too, with plots and drawings.",
)
@writing("-q", "--quiet", is_flag=True, help="Print errors only.")
@VERBOSE
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def fuse(ctx: click.Context, /, list_patterns: bool, **flags: Any) -> None:
    """Fuse one model: `repfuse IN.onnx OUT.onnx`."""
    if list_patterns:
        from repfuse.commandline import listing  # noqa: PLC0415

        listing.list_patterns(flags["patterns"])
        return
    if not flags["source"]:
        raise click.UsageError("name the model to read (IN.onnx)")
    if not flags["target"] and not flags["dry_run"]:
        raise click.UsageError("name the file to write (OUT.onnx), or give --dry-run")
    if flags["tune_cache"] and not flags["tune"]:
        raise click.UsageError("--tune-cache is for --tune; give both")
    from repfuse.jobs import pipeline  # noqa: PLC0415
    from repfuse.jobs.options import Options  # noqa: PLC0415

    pipeline.run(Options(command=typed(ctx), **flags))


BENCH_HELP = """
Measure whether AFTER.onnx is faster than BEFORE.onnx: both are run in turn, on the same inputs, and loaded anew
several times. Says faster, slower or same, with a 95 % interval and how sure that is, and how much memory each
one takes.
"""

BENCH_EPILOG = """
Examples:
  repfuse bench model.onnx fused.onnx
  repfuse bench a.onnx b.onnx --backend ort --threads 1 --threads 4
  repfuse bench model.onnx fused.onnx -q --require-speedup 1.05

Exit codes:
  0    done
  2    bad usage or bad input, or no backend can run both models
  4    not shown to be as fast as --require-speedup wants
  70   an error in repfuse itself (-v shows where)
  130  interrupted
"""


@main.command(
    "bench",
    cls=Command,
    synopsis="bench [OPTIONS] BEFORE.onnx AFTER.onnx",
    short_help="Measure which of two models is faster.",
    help=BENCH_HELP,
    epilog=BENCH_EPILOG,
)
@click.argument("before", metavar="BEFORE.onnx", type=FILE)
@click.argument("after", metavar="AFTER.onnx", type=FILE)
@BACKEND
@measuring(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    multiple=True,
    help="Threads to run models with. Repeatable. Default: 1, and then as many as there are processors.",
)
@measuring(
    "--seconds",
    type=click.FloatRange(min=0),
    metavar="S",
    default=3.0,
    help="Time for each backend and number of threads (default 3).",
)
@measuring(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    help="How often to time each model, in place of --seconds.",
)
@measuring(
    "--require-speedup",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="End with exit code 4 unless the lower end of each interval is at least X, such as 1.05.",
)
@FEEDING
@writing("--json", type=FILE, metavar="FILE", help="Write the report, with every time, as JSON, too.")
@writing("-q", "--quiet", is_flag=True, help="Print errors only.")
@VERBOSE
def bench(**flags: Any) -> None:
    """Compare two models: `repfuse bench BEFORE.onnx AFTER.onnx`."""
    from repfuse.jobs import versus  # noqa: PLC0415

    versus.run(versus.Options(**flags))


CHECK_HELP = """
Tell whether models were exported as they were trained, with branches in them that could be fused. Nothing is
written, and no model is run. A FILE may be a glob (quoted, ** too), a folder, or a URL.
"""

CHECK_EPILOG = """
Formats:
  text      a sentence for each model (default)
  json      everything, for programs
  github    annotations for GitHub Actions
  junit     JUnit's XML, which most CI servers show
  markdown  a table

Examples:
  repfuse check model.onnx
  repfuse check 'models/**/*.onnx' --format github --format junit:report.xml
  repfuse check model.onnx --pattern repvgg --pattern mobileone

Exit codes:
  0    all models are fused, or have nothing to fuse
  2    bad usage, or a model could not be read (the others were checked)
  3    a model is not fused
  70   an error in repfuse itself (-v shows where)
"""


@main.command(
    "check",
    cls=Command,
    synopsis="check [OPTIONS] FILE...",
    short_help="Tell whether models still hold their training branches.",
    help=CHECK_HELP,
    epilog=CHECK_EPILOG,
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@FUSING
@writing(
    "--format",
    "formats",
    metavar="NAME[:FILE]",
    multiple=True,
    default=["text"],
    help="How to print the findings, or to write them to a file: see below. Repeatable.",
)
@TRACE
@click.pass_context
def check(
    ctx: click.Context,
    files: tuple[str, ...],
    patterns: tuple[str, ...],
    formats: tuple[str, ...],
    verbose: bool,
) -> None:
    """Look at each file, and print or write the findings in each format."""
    from repfuse.jobs import check, findings  # noqa: PLC0415
    from repfuse.model import places  # noqa: PLC0415
    from repfuse.reporting import voice  # noqa: PLC0415

    outputs = findings.outputs(formats)
    found = []
    with voice.Voice().doing("Checking") as tell:
        for place in places.expand(files):
            tell(place.name)
            found.append(check.check(place.name, patterns=patterns or None))
    findings.write(found, outputs)
    ctx.exit(check.exit_code(found))


EXPLAIN_HELP = """
Show each group of branches of a model op by op: its pattern, whether it can be fused, or which node stands in the
way and why, and what it costs. Nothing is written, and the model is not run.
"""

EXPLAIN_EPILOG = """
Examples:
  repfuse explain model.onnx
  repfuse explain model.onnx --node /stage1/stage1.0/Add

Exit codes:
  0    done
  2    bad usage or bad input
  70   an error in repfuse itself (-v shows where)
"""


@main.command(
    "explain",
    cls=Command,
    synopsis="explain [OPTIONS] FILE",
    short_help="Show each group op by op, and why it is fused or not.",
    help=EXPLAIN_HELP,
    epilog=EXPLAIN_EPILOG,
)
@click.argument("source", metavar="FILE", type=FILE)
@FUSING
@fusing("--node", metavar="NAME", help="Only groups with this node, or the node that computes this tensor.")
@TRACE
def explain(source: Path, patterns: tuple[str, ...], node: str | None, verbose: bool) -> None:
    """Print the tree of a model's groups."""
    from repfuse.reporting import anatomy, voice  # noqa: PLC0415

    speaker = voice.Voice()
    with speaker.doing("Fusing") as tell:
        stories = anatomy.explain(source, patterns=patterns or None, on_progress=tell)
    speaker.say(anatomy.tree(source, anatomy.about(stories, node, source) if node else stories))


BATCH_HELP = """
Fuse many models, several at a time, and write them into a folder. What is done is recorded in OUT/batch.jsonl; the
next run skips it, unless the model or an option changed. A FILE may be a glob (quoted, ** too), a folder, or a URL.
"""

BATCH_EPILOG = """
Examples:
  repfuse batch 'models/**/*.onnx' --out fused
  repfuse batch models --out fused --jobs 4 --no-verify --summary summary.md
  repfuse batch 's3://bucket/models/*.onnx' --out s3://bucket/fused --log batch.jsonl
  repfuse batch models --out fused --scheduler tcp://10.0.0.1:8786

Exit codes, the highest that any model gives:
  0    all models are done; also those with nothing to fuse, which are copied
  1    a fused model does not match, and was not written
  2    bad usage, or a model could not be used
  70   an error in repfuse itself
  130  interrupted; call it again to go on
"""


@main.command(
    "batch",
    cls=Command,
    synopsis="batch [OPTIONS] FILE... --out FOLDER",
    short_help="Fuse many models in parallel.",
    help=BATCH_HELP,
    epilog=BATCH_EPILOG,
)
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@FUSING
@CHECKING
@FEEDING
@running(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time (default: one per processor)."
)
@running("--scheduler", metavar="ADDRESS", help="Hand the work to this Dask cluster.")
@running("--bench", is_flag=True, help="Measure latency, too, one model at a time.")
@writing("--out", metavar="FOLDER", required=True, help="Where to write: a folder, or its URL.")
@KEEP_OPSET
@WEIGHTS
@writing("--log", type=FILE, metavar="FILE", help="The record of what is done (default: OUT/batch.jsonl).")
@writing("--summary", type=FILE, metavar="FILE", help="Write the table as Markdown, too.")
@writing("-q", "--quiet", is_flag=True, help="Print errors only.")
@TRACE
@click.pass_context
def batch(ctx: click.Context, /, verbose: bool, **flags: Any) -> None:
    """Fuse all models, and end with the worst exit code."""
    from repfuse.commandline import batch_command  # noqa: PLC0415

    ctx.exit(batch_command.run(**flags))


SCHEMA_EPILOG = """
Kinds:
  fuse   what `repfuse IN.onnx OUT.onnx --json` writes
  check  what `repfuse check --format json` prints
  batch  a line of batch.jsonl
  bench  what `repfuse bench --json` writes

Exit codes:
  0    done
  2    bad usage
"""


@main.command(
    "schema",
    cls=Command,
    synopsis="schema KIND",
    short_help="Print the JSON Schema of what repfuse writes.",
    help="Print the JSON Schema of what repfuse writes as JSON.",
    epilog=SCHEMA_EPILOG,
)
@click.argument("kind", metavar="KIND", type=click.Choice(["fuse", "check", "batch", "bench"]))
def schema(kind: str) -> None:
    """Print a schema."""
    import json  # noqa: PLC0415

    from repfuse.jobs.schema import schema  # noqa: PLC0415

    click.echo(json.dumps(schema(kind), indent=2))
