"""The flags that several commands have, each in its section of the help.

A command takes a section by a decorator: `@FUSING`, `@CHECKING`, `@FEEDING`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from repfuse.commandline.commands import Option

Decorator = Callable[[Any], Any]

FILE = click.Path(path_type=Path)

fusing = partial(click.option, cls=Option, section="Fusing")
checking = partial(click.option, cls=Option, section="Checking")
measuring = partial(click.option, cls=Option, section="Measuring")
tuning = partial(click.option, cls=Option, section="Tuning")
feeding = partial(click.option, cls=Option, section="Inputs for the checks")
running = partial(click.option, cls=Option, section="Running")
writing = partial(click.option, cls=Option, section="Output")


def together(*flags: Decorator) -> Decorator:
    """One decorator for several, shown in this order."""

    def decorate(command: Any) -> Any:
        for flag in reversed(flags):
            command = flag(command)
        return command

    return decorate


FUSING = fusing(
    "--pattern",
    "patterns",
    metavar="NAME|FILE",
    multiple=True,
    help="Fuse only what this pattern describes: one of --list-patterns, or a .toml file of your own. Repeatable.",
)

BACKEND = checking(
    "--backend",
    type=click.Choice(["ort", "openvino", "all"]),
    default="all",
    metavar="NAME",
    help="Where to compare and measure: ort (ONNX Runtime), openvino, or all that are installed (default).",
)
THREADS = checking(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    help="Threads to run models with (default 1).",
)

CHECKING = together(
    BACKEND,
    checking("--no-verify", is_flag=True, help="Write the result without comparing its outputs."),
    checking(
        "--rtol",
        type=click.FloatRange(min=0),
        metavar="X",
        help="Largest error to accept, relative to an output's largest value. "
        "Default: ten times what the original differs from itself across backends.",
    ),
    THREADS,
)

FEEDING = together(
    feeding(
        "--input-shape",
        "input_shapes",
        metavar="NAME:N,N,..",
        multiple=True,
        help="The shape of an input, such as images:1,3,640,640, where the model leaves it open. Repeatable.",
    ),
    feeding(
        "--input-data",
        type=FILE,
        metavar="FILE",
        help="Inputs to run on: an .npz with an array for each, or an .npy for the only one.",
    ),
    feeding(
        "--input-range",
        "input_ranges",
        metavar="NAME:LO,HI",
        multiple=True,
        help="The least and the largest value to draw for an input, such as images:0,255. Repeatable.",
    ),
    feeding(
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        help="Seed of random inputs (default 0).",
    ),
)

KEEP_OPSET = writing(
    "--keep-opset",
    is_flag=True,
    help="Do not raise the opset, which is done where it makes a HardSwish of several nodes one (opset 14).",
)
WEIGHTS = writing(
    "--external-data/--inline",
    default=None,
    help="Write weights into OUT.onnx.data, or all into OUT.onnx. Default: inline up to 2 GB.",
)

VERBOSE = writing(
    "-v", "--verbose", is_flag=True, help="Print every remark, and where an unexpected error arose."
)
TRACE = writing("-v", "--verbose", is_flag=True, help="Print where an unexpected error arose.")
