"""The command line: the commands and their flags. What each one does is the part of a module of its own.

Packages that take long to import are imported when the work begins, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Any

import click

from repfuse import __version__
from repfuse.commands import Command, Commands
from repfuse.flags import (
    BACKEND,
    CHECKING,
    FEEDING,
    FILE,
    FUSING,
    VERBOSE,
    checking,
    fusing,
    measuring,
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

Exit codes:
  0    done; also where there was nothing to fuse (OUT.onnx is a copy then)
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
@click.argument("source", metavar="IN.onnx", required=False, type=FILE)
@click.argument("target", metavar="OUT.onnx", required=False, type=FILE)
@FUSING
@fusing("--list-patterns", is_flag=True, help="List the block families that are known, and exit.")
@CHECKING
@checking("--no-bench", is_flag=True, help="Do not measure latency.")
@FEEDING
@writing(
    "--external-data/--inline",
    default=None,
    help="Write weights into OUT.onnx.data, or all into OUT.onnx. Default: inline up to 2 GB.",
)
@writing("--dry-run", is_flag=True, help="Do everything but write; OUT.onnx may be left out.")
@writing("--json", type=FILE, metavar="FILE", help="Write the report as JSON, too.")
@writing("-q", "--quiet", is_flag=True, help="Print errors only.")
@VERBOSE
@click.version_option(__version__, message="%(prog)s %(version)s")
def fuse(list_patterns: bool, **flags: Any) -> None:
    """Fuse one model: `repfuse IN.onnx OUT.onnx`."""
    from repfuse import pipeline  # noqa: PLC0415

    if list_patterns:
        pipeline.list_patterns(flags["patterns"])
        return
    if not flags["source"]:
        raise click.UsageError("name the model to read (IN.onnx)")
    if not flags["target"] and not flags["dry_run"]:
        raise click.UsageError("name the file to write (OUT.onnx), or give --dry-run")
    pipeline.run(pipeline.Options(**flags))


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
    from repfuse import versus  # noqa: PLC0415

    versus.run(versus.Options(**flags))
