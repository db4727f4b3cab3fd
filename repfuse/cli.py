"""The command line: what the flags are. What they do is `repfuse.pipeline`'s part.

Packages that take long to import are imported when the work begins, so that `--help` answers at once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from repfuse import __version__
from repfuse.commands import Command, Commands, Option

HELP = """
Collapse the parallel linear branches (RepVGG, MobileOne, ACNet ...) of IN.onnx into single convolutions, check on
ONNX Runtime and OpenVINO that outputs match, measure the gain, and write OUT.onnx.
"""

EPILOG = """
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

FILE = click.Path(path_type=Path)

_fusing = partial(click.option, cls=Option, section="Fusing")
_checking = partial(click.option, cls=Option, section="Checking")
_feeding = partial(click.option, cls=Option, section="Inputs for the checks")
_writing = partial(click.option, cls=Option, section="Output")


@click.group(cls=Commands, default="fuse")
def main() -> None:
    """Collapse the parallel linear branches of an ONNX model into single convolutions, and prove it."""


@main.command("fuse", cls=Command, synopsis="[OPTIONS] IN.onnx OUT.onnx", help=HELP, epilog=EPILOG)
@click.argument("source", metavar="IN.onnx", required=False, type=FILE)
@click.argument("target", metavar="OUT.onnx", required=False, type=FILE)
@_fusing(
    "--pattern",
    "patterns",
    metavar="NAME|FILE",
    multiple=True,
    help="Fuse only what this pattern describes: one of --list-patterns, or a .toml file of your own. Repeatable.",
)
@_fusing("--list-patterns", is_flag=True, help="List the block families that are known, and exit.")
@_checking(
    "--backend",
    type=click.Choice(["ort", "openvino", "all"]),
    default="all",
    metavar="NAME",
    help="Where to compare and measure: ort (ONNX Runtime), openvino, or all that are installed (default).",
)
@_checking("--no-verify", is_flag=True, help="Write the result without comparing its outputs.")
@_checking("--no-bench", is_flag=True, help="Do not measure latency.")
@_checking(
    "--rtol",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Largest error to accept, relative to an output's largest value. "
    "Default: ten times what the original differs from itself across backends.",
)
@_checking(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    help="Threads to run models with (default 1).",
)
@_feeding(
    "--input-shape",
    "input_shapes",
    metavar="NAME:N,N,..",
    multiple=True,
    help="The shape of an input, such as images:1,3,640,640, where the model leaves it open. Repeatable.",
)
@_feeding(
    "--input-data",
    type=FILE,
    metavar="FILE",
    help="Inputs to run on: an .npz with an array for each, or an .npy for the only one.",
)
@_feeding(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, help="Seed of random inputs (default 0)."
)
@_writing("--dry-run", is_flag=True, help="Do everything but write; OUT.onnx may be left out.")
@_writing("--json", type=FILE, metavar="FILE", help="Write the report as JSON, too.")
@_writing("-q", "--quiet", is_flag=True, help="Print errors only.")
@_writing("-v", "--verbose", is_flag=True, help="Print every remark, and where an unexpected error arose.")
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
