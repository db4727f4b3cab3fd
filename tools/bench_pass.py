"""Measure the pass itself: how long reading, fusing and writing a model takes, and how much memory.

`onnx.load` and `onnx.save` are the yardstick, and other tools that rewrite ONNX files stand beside it:

    pip install onnxsim onnxslim    # optional
    python tools/bench_pass.py MODEL.onnx ... --json FILE

Neither verifying nor measuring latency is part of it. Imports are not counted. Each command runs in turn,

- fresh: once in each of several new processes, as from a command line;
- warm: several times in this process, after a run that is not counted.

The two differ in more than caches. Freeing large blocks teaches glibc's malloc to keep them, so that load and
save may take a third of their time if something large was freed before; the aim is judged on fresh processes.
Ratios are those of the best times, since whatever else the machine does only adds to them. Memory is the peak of
the resident set in a fresh process, above what is resident after imports; only Linux tells a process that.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from repfuse.errors import BadInputError
from repfuse.fusion import fuse_file
from repfuse.measures import stats
from repfuse.model import model_io
from repfuse.model.storage import Spill

AIM_TIME = 1.3
"""The pass should take at most so many times as long as load and save."""

AIM_MEMORY = 2.5
"""The pass should need at most so many times the model's size on disk."""

MIB = 2**20


@dataclass(frozen=True)
class Command:
    """Something that reads a model from one path and writes it to another.

    Attributes:
        name: In the table.
        run: Does it.
        module: What must be installed and imported for it.
    """

    name: str
    run: Callable[[Path, Path], None]
    module: str = "onnx"


@dataclass(frozen=True)
class Times:
    """How long several runs took, in seconds; `ratio` is that of `best` to the yardstick's."""

    best: float
    median: float
    ratio: float

    @classmethod
    def of(cls, seconds: Sequence[float], yardstick: Sequence[float]) -> Times:
        """Sum up runs of a command and of the yardstick."""
        return cls(min(seconds), statistics.median(seconds), min(seconds) / min(yardstick))


@dataclass(frozen=True)
class Row:
    """What one command needs for one model.

    Attributes:
        model: The model's file name.
        size: Bytes of the model on disk, external data included.
        command: The command's name.
        fresh: Times in processes of their own.
        warm: Times in one process.
        peak: Bytes at the peak of a fresh process, above what is there after imports; None if not on Linux.
        multiple: The same in sizes of the model.
    """

    model: str
    size: int
    command: str
    fresh: Times
    warm: Times
    peak: float | None
    multiple: float | None


def _load_save(source: Path, target: Path) -> None:
    onnx.save(onnx.load(source), target)


def _repfuse(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model_io.save(fuse_file(source, Spill(Path(folder, "weights"))).model, target)


def _onnxsim(source: Path, target: Path) -> None:
    simplified, _ = importlib.import_module("onnxsim").simplify(str(source))
    onnx.save(simplified, target)


def _onnxslim(source: Path, target: Path) -> None:
    onnx.save(importlib.import_module("onnxslim").slim(str(source)), target)


YARDSTICK = Command("load + save", _load_save)
PASS = Command("repfuse", _repfuse, "repfuse.fusion")
OTHERS = (Command("onnxsim", _onnxsim, "onnxsim"), Command("onnxslim", _onnxslim, "onnxslim"))
COMMANDS = {command.name: command for command in (YARDSTICK, PASS, *OTHERS)}


def in_turn(commands: Sequence[Command], rounds: int) -> Iterator[Command]:
    """Each command once in each round; every round begins with another one."""
    for number in range(rounds):
        start = number % len(commands)
        yield from (*commands[start:], *commands[:start])


def run_warm(commands: Sequence[Command], source: Path, rounds: int) -> dict[str, list[float]]:
    """Run commands in this process.

    Returns:
        Seconds of each round by command.
    """
    times: dict[str, list[float]] = {command.name: [] for command in commands}
    with tempfile.TemporaryDirectory() as folder:
        for command in in_turn(commands, rounds + 1):
            times[command.name].append(_time(command, source, Path(folder, "out.onnx")))
    return {name: seconds[1:] for name, seconds in times.items()}


def run_fresh(command: Command, source: Path) -> tuple[float, int | None]:
    """Run a command in a process of its own.

    Returns:
        Seconds, and bytes at the peak above what is there after imports (None if not on Linux).
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run_alone, command.name, source).result()


def _run_alone(name: str, source: Path) -> tuple[float, int | None]:
    command = COMMANDS[name]
    importlib.import_module(command.module)
    with tempfile.TemporaryDirectory() as folder:
        before = _reset_peak()
        taken = _time(command, source, Path(folder, "out.onnx"))
        return taken, None if before is None else _resident("VmHWM") - before


def _time(command: Command, source: Path, target: Path) -> float:
    start = time.perf_counter()
    command.run(source, target)
    return time.perf_counter() - start


def _reset_peak() -> int | None:
    """Forget the peak so far; give the bytes that are resident now, None where that cannot be done."""
    # getrusage will not do: its peak is that of the process's whole life, and of the one that started it.
    control = Path("/proc/self/clear_refs")
    if not control.exists():
        return None
    control.write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


def measure(source: Path, rounds: int) -> list[Row]:
    """Measure all commands that are installed, and do not fail, on one model.

    Raises:
        BadInputError: The model cannot be read.
    """
    size = model_size(source)
    others = [command for command in OTHERS if _is_installed(command) and _works(command, source)]
    commands = [YARDSTICK, PASS, *others]
    fresh: dict[str, list[float]] = {command.name: [] for command in commands}
    peaks: dict[str, list[int]] = {command.name: [] for command in commands}
    for command in in_turn(commands, rounds):
        taken, highest = run_fresh(command, source)
        fresh[command.name].append(taken)
        peaks[command.name] += [] if highest is None else [highest]
    warm = run_warm(commands, source, rounds)
    rows = []
    for name in warm:
        peak = statistics.median(peaks[name]) if peaks[name] else None
        row = Row(
            model=source.name,
            size=size,
            command=name,
            fresh=Times.of(fresh[name], fresh[YARDSTICK.name]),
            warm=Times.of(warm[name], warm[YARDSTICK.name]),
            peak=peak,
            multiple=None if peak is None else peak / size,
        )
        rows.append(row)
    return rows


def model_size(source: Path) -> int:
    """Bytes of a model on disk, external data included.

    Raises:
        BadInputError: The model cannot be read.
    """
    model_io.read(source)
    return stats.measure_file(source).bytes


def _is_installed(command: Command) -> bool:
    return importlib.util.find_spec(command.module) is not None


def _works(command: Command, source: Path) -> bool:
    try:
        run_fresh(command, source)
    except Exception as error:  # it is another tool's: any kind, or its process is gone
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"{command.name} is left out for {source.name}: it fails ({reason})")
        return False
    return True


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows of one model as text."""
    times = f"{'best':>10}{'median':>10}{'ratio':>7}"
    yield f"{rows[0].model}, {rows[0].size / MIB:.1f} MiB"
    yield f"  {'':12}{'fresh processes':^27}{'one warm process':^27}{'memory':^18}"
    yield f"  {'':12}{times}{times}{'peak':>10}{'x file':>8}"
    for row in rows:
        cells = "".join(
            f"{1000 * each.best:7.1f} ms{1000 * each.median:7.1f} ms{each.ratio:7.2f}"
            for each in (row.fresh, row.warm)
        )
        memory = f"{'-':>10}{'-':>8}" if row.peak is None else f"{row.peak / MIB:6.1f} MiB{row.multiple:8.2f}"
        yield f"  {row.command:12}{cells}{memory}{_verdict(row)}"


def _verdict(row: Row) -> str:
    if row.command != PASS.name:
        return ""
    judged = {"time": (row.fresh.ratio, AIM_TIME), "memory": (row.multiple or 0.0, AIM_MEMORY)}
    missed = [f"{what} above {aim:g}" for what, (value, aim) in judged.items() if value > aim]
    return f"   {', '.join(missed) or 'as aimed'}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL.onnx")
    add("--rounds", type=int, default=5, help="how often each command runs, fresh and warm (default: 5)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, in seconds and bytes")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _options(arguments)
    print(f"Aims for repfuse: fresh ratio at most {AIM_TIME:g}, memory at most {AIM_MEMORY:g} x file")
    for command in OTHERS:
        if not _is_installed(command):
            print(f"{command.name} is left out: it is not installed")
    rows: list[Row] = []
    for source in options.models:
        try:
            found = measure(source, options.rounds)
        except BadInputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        print("", *_table(found), sep="\n", flush=True)
        rows += found
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
