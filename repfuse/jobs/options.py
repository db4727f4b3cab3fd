"""What the main job was asked to do, and what models are to be run on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repfuse.errors import BadInputError
from repfuse.measures.tuning import BUDGET
from repfuse.runtimes.backends import Array
from repfuse.runtimes.inputs import Range, load_input_data, parse_input_range, parse_input_shape


@dataclass(frozen=True)
class Options:
    """What the user asked for; the flags of the command line, one for one.

    Attributes:
        source: The model to read.
        target: The file to write; None only with `dry_run`.
        patterns: Names or .toml files of the patterns to fuse; all where there are none.
        backend: `ort`, `openvino` or `all`.
        no_verify: Leave the comparison out.
        no_bench: Leave the measuring out.
        tune: Decide by measuring which groups to fuse.
        tune_cache: A file in which measurements are kept.
        tune_budget: Seconds for them.
        keep_opset: Do not raise the version of the operator set.
        keep_going: Leave blocks alone that do not match, in place of giving up.
        rtol: The largest error to accept; None for one made from the noise floor.
        threads: How many threads models run with.
        input_shapes: Such as `images:1,3,640,640`.
        input_data: An .npz or .npy file to feed models with.
        input_ranges: Such as `images:0,255`.
        seed: Of random inputs.
        external_data: Whether large tensors are written into OUT.onnx.data; None if they do not fit elsewhere.
        dry_run: Write nothing.
        json: Where to write the report as JSON.
        report: Where to write it as an HTML page.
        command: The command line, which the page shows.
        quiet: Print errors only.
        verbose: Print every remark.
    """

    source: Path
    target: Path | None = None
    patterns: tuple[str, ...] = ()
    backend: str = "all"
    no_verify: bool = False
    no_bench: bool = False
    tune: bool = False
    tune_cache: Path | None = None
    tune_budget: float = BUDGET
    keep_opset: bool = False
    keep_going: bool = False
    rtol: float | None = None
    threads: int = 1
    input_shapes: tuple[str, ...] = ()
    input_data: Path | None = None
    input_ranges: tuple[str, ...] = ()
    seed: int = 0
    external_data: bool | None = None
    dry_run: bool = False
    json: Path | None = None
    report: Path | None = None
    command: str = ""
    quiet: bool = False
    verbose: bool = False


def check_files(options: Options) -> None:
    """Find out before the work begins that a file cannot be written, or would overwrite another.

    Raises:
        BadInputError: So it is.
    """
    written = {
        "the JSON report": options.json,
        "the HTML report": options.report,
        "the tuning cache": options.tune_cache,
    }
    for path in filter(None, written.values()):
        if not path.absolute().parent.is_dir():
            raise BadInputError(f"{path}: there is no folder '{path.parent}'; make it first")
    files = {"IN.onnx": options.source, "OUT.onnx": options.target, **written}
    named = [(title, file) for title, file in files.items() if file]
    for (title, file), (other_title, other) in itertools.combinations(named, 2):
        if file.resolve() == other.resolve() or (file.exists() and other.exists() and file.samefile(other)):
            raise BadInputError(f"{other}: {other_title} would overwrite {title}; give it another name")


@dataclass(frozen=True)
class Feeding:
    """What models are run on, as the user gave it: shapes, arrays, and the ranges of drawn numbers, by input."""

    shapes: Mapping[str, Sequence[int]]
    data: Mapping[str, Array] | None
    ranges: Mapping[str, Range]

    @staticmethod
    def of(options: Options) -> Feeding:
        """What the options say.

        Raises:
            BadInputError: One of them is malformed, or the file cannot be read.
        """
        return Feeding(
            dict(map(parse_input_shape, options.input_shapes)),
            load_input_data(options.input_data, options.source) if options.input_data else None,
            dict(map(parse_input_range, options.input_ranges)),
        )

    @property
    def given(self) -> bool:
        """Whether the user gave anything."""
        return bool(self.shapes or self.data or self.ranges)

    @property
    def resolving(self) -> dict[str, Any]:
        """As arguments of `runtimes.inputs.resolve_inputs`."""
        return {"shapes": self.shapes, "data": self.data, "ranges": self.ranges}
