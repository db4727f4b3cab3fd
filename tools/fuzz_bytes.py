"""Damage bytes of sound models and see that repfuse takes it well: exit code 0, 1 or 2, and no traceback.

    python tools/fuzz_bytes.py --count 10000 --seed 1

Each mutant is run in a child process that serves many of them; if it dies, the mutant is kept, and another child
goes on. Mutants that come out badly are written to the folder given with --keep, and the exit code is 1. The same
seed makes the same mutants.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from repfuse.commandline.cli import main as command_line

MODELS = Path(__file__).parents[1] / "tests" / "models"

GOOD = {0, 1, 2}

ROOM = 4 * 2**30
"""Bytes of address space for a child."""

NUMBERS = (
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80\x01",
    b"\xff\xff\xff\xff\x07",
    b"\xff" * 9 + b"\x01",
    b"\x80" * 9 + b"\x01",
)
"""Varints at the ends of their ranges: 0, 1, 127, 128, 2^31 - 1, -1, -2^63."""


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Damage a file at one to eight places."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        start = draw.randrange(len(out) or 1)
        size = draw.choice((1, 1, 2, 4, 16, 256))
        match draw.randrange(7):
            case 0:
                out[start : start + 1] = bytes([draw.randrange(256)])
            case 1:
                out[start : start + 1] = bytes([(out[start] if out else 0) ^ 1 << draw.randrange(8)])
            case 2:
                del out[start : start + size]
            case 3:
                out[start:start] = out[start : start + size]
            case 4:
                other = draw.randrange(len(out) or 1)
                out[start : start + size] = out[other : other + size]
            case 5:
                number = draw.choice(NUMBERS)
                out[start : start + draw.choice((0, 1, len(number)))] = number
            case 6:
                del out[start if draw.random() < 0.1 else len(out) :]
    return bytes(out)


def mutants(models: Sequence[Path], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many damaged files, with names that say how to make them again."""
    contents = [(path.stem, path.read_bytes()) for path in models]
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        name, data = draw.choice(contents)
        yield f"{name}-{seed}-{number}", mutate(data, draw)


def outcome(data: bytes, arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command line on a file; gives the exit code and what was said on standard error."""
    said = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        source = Path(folder, "in.onnx")
        source.write_bytes(data)
        try:
            command_line([str(source), str(Path(folder, "out.onnx")), *arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        left = sorted(each.name for each in Path(folder).iterdir())
    if code and left != ["in.onnx"]:
        return 70, f"left {left}"
    return code, said.getvalue()


def is_good(code: int, said: str) -> bool:
    """Whether an outcome is one that a user can do something with."""
    return code in GOOD and "Traceback" not in said and (code != 2 or said.count("Error: ") == 1)


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))


def _pool() -> futures.ProcessPoolExecutor:
    return futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_limited)


def fuzz(options: argparse.Namespace) -> int:
    """Run all mutants; gives how many came out badly."""
    arguments = ["--no-bench", "--backend", "ort", *(["--no-verify"] if options.no_verify else [])]
    codes: Counter[str] = Counter()
    bad = 0
    pool = _pool()
    models = (
        options.models or sorted(MODELS.glob("*-narrow.*.onnx"), key=lambda path: path.stat().st_size)[:8]
    )
    started = time.monotonic()
    for name, data in mutants(models, options.count, options.seed):
        try:
            code, said = pool.submit(outcome, data, arguments).result(timeout=options.timeout)
        except BrokenProcessPool:
            code, said, pool = -1, "the process died", _pool()
        except futures.TimeoutError:  # before Python 3.11 not the built-in one
            for process in pool._processes.values():
                process.kill()
            code, said, pool = -2, f"took more than {options.timeout} s", _pool()
        codes[str(code)] += 1
        if not is_good(code, said):
            bad += 1
            print(f"{name}: {code}: {said.strip().splitlines()[-1] if said.strip() else ''}", flush=True)
            if options.keep:
                options.keep.mkdir(exist_ok=True)
                (options.keep / f"{name}.onnx").write_bytes(data)
    pool.shutdown()
    shown = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
    seconds = time.monotonic() - started
    print(f"{options.count} files in {seconds:.0f} s, seed {options.seed}: exit codes {shown}; {bad} bad")
    return bad


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        type=Path,
        metavar="MODEL.onnx",
        help="what to damage (default: small test models)",
    )
    add("--count", type=int, default=1000, help="how many mutants (default 1000)")
    add("--seed", type=int, default=0, help="which mutants (default 0)")
    add("--timeout", type=float, default=60, help="seconds that one may take (default 60)")
    add("--no-verify", action="store_true", help="do not let runtimes see the files")
    add("--keep", type=Path, metavar="FOLDER", help="write mutants that come out badly there")
    sys.exit(bool(fuzz(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
