"""The forms of a model that `benchmark.py` sets beside each other, and how each one is made.

Each is made in a process of its own, from one file into another; imports are not counted in the time it takes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

import repfuse
from repfuse.model import model_io


@dataclass(frozen=True)
class Variant:
    """A form of a model.

    Attributes:
        name: In tables and plots.
        make: Reads the model from one path and writes it to another; None for a file that is there already.
        module: What must be imported for it; its version is stated.
        backends: Which backends can run it.
        suffix: How its file's name ends.
    """

    name: str
    make: Callable[[Path, Path], None] | None = None
    module: str = "onnx"
    backends: tuple[str, ...] = ("ort", "openvino")
    suffix: str = ".onnx"


def _onnxsim(source: Path, target: Path) -> None:
    simplified, _ = importlib.import_module("onnxsim").simplify(str(source))
    onnx.save(simplified, target)


def _onnxslim(source: Path, target: Path) -> None:
    onnx.save(importlib.import_module("onnxslim").slim(str(source)), target)


def _onnxoptimizer(source: Path, target: Path) -> None:
    optimizer: Any = importlib.import_module("onnxoptimizer")
    passes = optimizer.get_fuse_and_elimination_passes()
    onnx.save(optimizer.optimize(onnx.load(source), passes), target)


def _ort_offline(source: Path, target: Path) -> None:
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _openvino_ir(source: Path, target: Path) -> None:
    openvino: Any = importlib.import_module("openvino")
    openvino.save_model(openvino.convert_model(str(source)), str(target), compress_to_fp16=False)


def _repfuse(source: Path, target: Path) -> None:
    model_io.save(importlib.import_module("repfuse.fusion").fuse(source).model, target)


ORIGINAL = Variant("original")
DEPLOY = Variant("deploy form")
REPFUSE = Variant("repfuse", _repfuse, "repfuse.fusion")

VARIANTS = (
    ORIGINAL,
    Variant("onnxsim", _onnxsim, "onnxsim"),
    Variant("onnxslim", _onnxslim, "onnxslim"),
    Variant("onnxoptimizer", _onnxoptimizer, "onnxoptimizer"),
    Variant("ONNX Runtime, offline", _ort_offline, "onnxruntime", backends=("ort",)),
    Variant("OpenVINO IR", _openvino_ir, "openvino", backends=("openvino",), suffix=".xml"),
    DEPLOY,
    REPFUSE,
)
"""The original first: it is what the others are compared with. The deploy form is what the model's own source
makes for deployment."""


@dataclass(frozen=True)
class Made:
    """A form of a model that was made.

    Attributes:
        path: Its file; None if it could not be made.
        seconds: The best of several times to make it, reading and writing included; None for a file that was there.
        error: Why it could not be made.
    """

    path: str | None
    seconds: float | None = None
    error: str = ""


def make(variant: Variant, source: Path, folder: Path, *, times: int) -> Made:
    """Make a form of a model, unless it is there already and neither source nor maker has changed.

    Args:
        variant: Which form.
        source: The original.
        folder: Where to put it, and a note on how it was made.
        times: How often to make it, to find the best time.
    """
    assert variant.make
    target = folder / f"{variant.name.replace(' ', '_').replace(',', '')}{variant.suffix}"
    note = target.with_suffix(".json")
    origin = {"source": digest(source), "maker": version(variant)}
    if note.exists():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["origin"] == origin:
            return Made(**known["made"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        made = Made(str(target), min(_time_alone(variant, source, target) for _ in range(times)))
    except Exception as error:  # it is another tool's: any kind, or its process is gone
        made = Made(None, error=(str(error).strip() or type(error).__name__).splitlines()[0])
    note.write_text(json.dumps({"origin": origin, "made": asdict(made)}, indent=1) + "\n", encoding="utf-8")
    return made


def _time_alone(variant: Variant, source: Path, target: Path) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_time, variant, source, target).result()


def _time(variant: Variant, source: Path, target: Path) -> float:
    assert variant.make
    importlib.import_module(variant.module)
    start = time.perf_counter()
    variant.make(source, target)
    return time.perf_counter() - start


def version(variant: Variant) -> str:
    """The version of the package that makes a form; of repfuse also what its files are at this moment."""
    package = variant.module.split(".")[0]
    if package == "repfuse":
        return f"{repfuse.__version__} ({_fingerprint()})"
    return (
        str(getattr(importlib.import_module(package), "__version__", "unknown"))
        .split("-")[0]
        .removeprefix("v")
    )


def _fingerprint() -> str:
    root = Path(__file__).parents[1]
    files = sorted([*(root / "repfuse").rglob("*.py"), *(root / "patterns").glob("*.toml")])
    return hashlib.sha256(b"".join(map(Path.read_bytes, files))).hexdigest()[:8]


def digest(path: Path) -> str:
    """The first digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
