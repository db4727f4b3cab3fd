"""Set repfuse beside other tools, on real models, and write docs/benchmarks.md with its plots.

For each model of the zoo, as its exporter writes it in train form: what onnxsim, onnxslim, onnxoptimizer, ONNX
Runtime's offline optimization and OpenVINO's conversion make of it, the deploy form of the model's own source, and
what repfuse makes of it. All of them run in turn on each backend, so that only ratios count.

    pip install '.[openvino,bench]' torch torchvision timm onnxscript
    python tools/benchmark.py WORK_DIR              # everything; the better part of an hour
    python tools/benchmark.py WORK_DIR --quick      # three models, to see that it works

WORK_DIR keeps exports, models and results: what was done before is not done again unless a model, a tool or
repfuse has changed since. `--python` names an interpreter that has torch, if this one does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_pass
import benchmark_page
import numpy as np
from benchmark_variants import DEPLOY, ORIGINAL, REPFUSE, VARIANTS, Made, Variant, digest, make, version

from repfuse.measures import stats
from repfuse.measures.bench import summarize
from repfuse.measures.interleave import interleave
from repfuse.measures.memory import measure_memory
from repfuse.runtimes.backends import Backend, BackendError, Feeds, Session, structure
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.installed import backends_named
from repfuse.runtimes.openvino import OpenVINO

ROOT = Path(__file__).parents[1]

TIMM = (
    "repvgg_a0",
    "repvgg_b1g4",
    "mobileone_s0",
    "mobileone_s4",
    "fastvit_t8",
    "repvit_m0_9",
    "repghostnet_100",
    "densenet121",
)
BLOCKS = ("acnet", "csla", "qarepvgg", "repconv_yolov7", "repconv_yolov9", "replknet", "unireplknet", "dbb")
QUICK = ("repvgg_a0", "mobileone_s0", "unireplknet")
PASS = ("repvgg_a0", "mobileone_s0", "mobileone_s4", "fastvit_t8", "repvgg_b1g4")
"""Models that the pass itself is timed on, beside `onnx.load` and `onnx.save`."""

FLAVOUR = "ts"


@dataclass(frozen=True)
class Files:
    """Where everything is kept."""

    work: Path

    def original(self, model: str) -> Path:
        """A model as it was exported in train form."""
        return self.work / "zoo" / f"{model}.{FLAVOUR}.onnx"

    def deploy(self, model: str) -> Path:
        """The same in the deploy form of its source."""
        return self.work / "zoo" / "deploy" / f"{model}.{FLAVOUR}.onnx"

    def made(self, model: str) -> Path:
        """The folder of what tools make of it."""
        return self.work / "made" / model

    def result(self, model: str, title: str) -> Path:
        """What was found out about it."""
        return self.work / "results" / f"{model}.{title}.json"


def export(files: Files, model: str, python: str) -> None:
    """Export a model in both forms, unless they are there."""
    if files.original(model).exists() and files.deploy(model).exists():
        return
    tool = Path(__file__).with_name("export_zoo.py")
    command = [python, str(tool), str(files.work / "zoo"), "--deploy", "--flavour", FLAVOUR, "--model", model]
    subprocess.run(command, check=True)


def make_all(files: Files, model: str, *, times: int) -> dict[str, Made]:
    """Every form of a model, by the variant's name."""
    there = {ORIGINAL: files.original(model), DEPLOY: files.deploy(model)}
    return {
        each.name: Made(str(there[each]))
        if each in there
        else make(each, files.original(model), files.made(model), times=times)
        for each in VARIANTS
    }


def remembered(path: Path, key: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """What a file says was found under this key; if it says nothing, what is found now, and is then kept there."""
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["key"] == key:
            return known["found"]
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": key, "found": found}, indent=1) + "\n", encoding="utf-8")
    return found


def compare(
    files: Files, model: str, made: dict[str, Made], backend: Backend, *, threads: int, seconds: float
) -> Any:
    """Run all forms of a model in turn on one backend; found results are plain dicts, for JSON."""
    runnable = {
        each.name: Path(path)
        for each in VARIANTS
        if _runs_on(each, backend) and (path := made[each.name].path)
    }
    key = {name: digest(path) for name, path in runnable.items()}
    settings = {"threads": threads, "seconds": seconds, "backend": backend.title}
    return remembered(
        files.result(model, f"{backend.name}.{threads}"),
        {"files": key, **settings},
        lambda: _compare(runnable, backend, threads, seconds),
    )


def _runs_on(variant: Variant, backend: Backend) -> bool:
    return backend.name in variant.backends


def _compare(paths: dict[str, Path], backend: Backend, threads: int, seconds: float) -> dict[str, Any]:
    original = paths[ORIGINAL.name]
    (feed,) = make_inputs(original, count=1, seed=0)
    loaders: dict[str, Callable[[], Session]] = {}
    found: dict[str, Any] = {"errors": {}, "deviation": {}, "memory": {}}
    expected: dict[str, Any] = {}
    for name, path in paths.items():
        loader = _loader(path, original, backend, threads)
        try:
            outputs = loader().run(feed)
        except BackendError as error:
            found["errors"][name] = str(error)
            continue
        loaders[name] = loader
        expected = expected or outputs
        found["deviation"][name] = _deviation(list(expected.values()), list(outputs.values()))
        found["memory"][name] = _memory(path, feed, backend, threads)
    names = list(loaders)
    loads = interleave(list(loaders.values()), feed, threads=threads, seconds=seconds)

    def ratio(first: str, second: str) -> dict[str, Any]:
        result = summarize(loads, backend=backend.title, first=names.index(first), second=names.index(second))
        plain = asdict(result) | {"verdict": result.verdict, "outliers": len(result.outliers_ms)}
        return {key: value for key, value in plain.items() if key not in ("times_ms", "outliers_ms")}

    found["latency"] = {name: ratio(ORIGINAL.name, name) for name in names}
    found["beside_deploy"] = (
        ratio(DEPLOY.name, REPFUSE.name) if {DEPLOY.name, REPFUSE.name} <= {*names} else None
    )
    return found


def _loader(path: Path, original: Path, backend: Backend, threads: int) -> Callable[[], Session]:
    if path.suffix == ".xml" and isinstance(backend, OpenVINO):
        graph = structure(original).graph
        return lambda: backend.load_as(str(path), graph, threads=threads)
    return lambda: backend.load(path, threads=threads)


def _deviation(expected: Sequence[Any], actual: Sequence[Any]) -> float:
    """The largest error of any output, as a share of its largest value."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
        for a, b in zip(expected, actual, strict=True)
    )


def _memory(path: Path, feed: Feeds, backend: Backend, threads: int) -> dict[str, Any] | None:
    if path.suffix != ".onnx":
        return None
    return asdict(measure_memory(path, feed, backend=backend.name, threads=threads))


def size(path: Path) -> dict[str, Any]:
    """Nodes and bytes of a form; the nodes of OpenVINO's own format are not counted."""
    if path.suffix == ".xml":
        return {"nodes": None, "bytes": path.stat().st_size + path.with_suffix(".bin").stat().st_size}
    measured = stats.measure_file(path)
    return {"nodes": measured.nodes, "bytes": measured.bytes}


def measure_pass(files: Files, model: str, *, rounds: int) -> Any:
    """Time the pass on a model, beside load and save and other tools."""
    source = files.original(model)
    key = {"file": digest(source), "rounds": rounds, "repfuse": version(REPFUSE)}
    return remembered(
        files.result(model, "pass"), key, lambda: [asdict(row) for row in bench_pass.measure(source, rounds)]
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do what is not done yet, and give everything that was found, of plain types."""
    files = Files(options.work_dir)
    backends = backends_named("all")
    found: dict[str, Any] = {"models": {}, "pass": {}}
    for number, model in enumerate(options.model, start=1):
        print(f"{model} ({number} of {len(options.model)})", flush=True)
        export(files, model, options.python)
        made = make_all(files, model, times=options.times)
        found["models"][model] = {
            "made": {name: asdict(each) for name, each in made.items()},
            "size": {name: size(Path(each.path)) for name, each in made.items() if each.path},
            "results": {
                backend.title: compare(
                    files, model, made, backend, threads=options.threads, seconds=options.seconds
                )
                for backend in backends
            },
        }
    for model in options.model:
        if model in PASS:
            print(f"{model}: the pass itself", flush=True)
            found["pass"][model] = measure_pass(files, model, rounds=options.times)
    makers = {each.module.split(".")[0]: version(each) for each in VARIANTS if each.make}
    return found | {"versions": makers, "threads": options.threads, "command": _command(options)}


def _command(options: argparse.Namespace) -> str:
    """The command that finds the same again, on any machine."""
    models = "" if options.model == [*TIMM, *BLOCKS] else f" \\\n    --model {' '.join(options.model)}"
    figures = f"--seconds {options.seconds:g} --times {options.times} --threads {options.threads}"
    return f"python tools/benchmark.py work {figures}{models}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("work_dir", type=Path, metavar="WORK_DIR", help="where exports, models and results are kept")
    add("--model", nargs="+", metavar="NAME", help="models of the zoo (default: all that are worth it)")
    add("--quick", action="store_true", help="three models, one second each")
    add("--seconds", type=float, help="time for each model on each backend (default: 12)")
    add("--threads", type=int, default=1, help="threads for the runtimes (default: 1)")
    add("--times", type=int, help="how often each tool is timed (default: 3)")
    add(
        "--python",
        default=sys.executable,
        help="an interpreter that has torch, for exports (default: this one)",
    )
    add("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page to write into")
    options = parser.parse_args(arguments)
    options.model = options.model or list(QUICK if options.quick else TIMM + BLOCKS)
    if options.seconds is None:
        options.seconds = 1.0 if options.quick else 12.0
    if options.times is None:
        options.times = 1 if options.quick else 3
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _options(arguments)
    benchmark_page.write(options.page, run(options))
    print(f"wrote {options.page}")


if __name__ == "__main__":
    main()
