"""Whatever ends the program, and whenever: there is the old file or the new one, and nothing else."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import FAST, repfuse
from nets import Net
from onnx import TensorProto

from repfuse.jobs import pipeline
from repfuse.model import model_io

ROOT = Path(pipeline.__file__).parents[1]

# A process that imports everything once and forks: each child works in a loop until it is ended at some moment.
LOOP = """
import os, random, signal, sys, time
from pathlib import Path
from repfuse.model import model_io
from repfuse.commandline.cli import main

how, times, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
models = [model_io.load("a.onnx"), model_io.load("b.onnx")]
target = Path("out.onnx")
ours = {"a.onnx", "b.onnx", "out.onnx", "out.onnx.data"}


def save():
    for number in range(10_000):
        model_io.save(models[number % 2], target, external_data=True)


def run():
    sys.stdout = sys.stderr = open(os.devnull, "w")
    for number in range(10_000):
        try:
            main(["ab"[number % 2] + ".onnx", "out.onnx", "--no-verify", "--no-bench", "--external-data"])
        except SystemExit as end:
            if end.code:
                raise


if how == "end":  # what is imported late, is imported before anything forks
    main(["b.onnx", "out.onnx", "--no-verify", "--no-bench", "-q"], standalone_mode=False)
model_io.save(models[0], target, external_data=True)
kinds = [signal.SIGKILL] if how == "kill" else [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
for kind in (signal.SIGINT, signal.SIGHUP):  # which nohup, or a shell's `&`, may have ignored
    signal.signal(kind, signal.default_int_handler if kind == signal.SIGINT else signal.SIG_DFL)
for number in range(times):
    child = os.fork()
    if not child:
        try:
            save() if how == "kill" else run()
        finally:
            sys.exit()  # through all that is registered for the end
    time.sleep(draw.uniform(0.001, 0.15 if how == "kill" else 0.6))
    os.kill(child, draw.choice(kinds))
    os.waitpid(child, 0)
    found = model_io.load(target)  # whole, whatever it is
    if how == "kill":
        assert found in models
    else:
        assert set(os.listdir()) <= ours, (number, os.listdir())
left = set(os.listdir()) - ours
assert all(name.startswith(".out.onnx.repfuse-") for name in left), left
print(len(left))
"""


def net_model(seed: int) -> bytes:
    net = Net(channels=48, dtype=TensorProto.FLOAT)
    net.random.bit_generator.advance(seed)  # type: ignore[attr-defined]
    return net.model(net.repvgg(net.repvgg(net.x))).SerializeToString()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("a.onnx").write_bytes(net_model(0))
    Path("b.onnx").write_bytes(net_model(1000))
    yield tmp_path


@pytest.mark.parametrize("step", range(6))
def test_interrupted_while_data_are_exchanged(
    step: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [model_io.load("a.onnx"), model_io.load("b.onnx")]
    model_io.save(models[0], "out.onnx", external_data=True)
    left = step

    def interrupted(original: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1 and step % 2:
                raise KeyboardInterrupt
            result = original(*args)
            if left == -1:
                raise KeyboardInterrupt
            return result

        return call

    monkeypatch.setattr(Path, "replace", interrupted(Path.replace))
    monkeypatch.setattr(os, "link", interrupted(os.link))
    with contextlib.suppress(KeyboardInterrupt):
        model_io.save(models[1], "out.onnx", external_data=True)
    assert model_io.load("out.onnx") in models
    assert sorted(os.listdir()) == ["a.onnx", "b.onnx", "out.onnx", "out.onnx.data"]  # noqa: PTH208


TIMES = int(os.environ.get("REPFUSE_KILLS", "12"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there processes cannot be forked")
@pytest.mark.parametrize("how", ["kill", "end"])
def test_ended_at_any_moment(how: str, folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOOP, how, str(TIMES if how == "kill" else TIMES // 2), "0"],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    left = int(result.stdout.split()[-1])
    assert how == "kill" or left == 0


@pytest.mark.parametrize("old", [True, False], ids=["a file is there", "no file is there"])
@pytest.mark.parametrize("flag", ["--inline", "--external-data"])
def test_a_full_disk(flag: str, old: bool, folder: Path) -> None:
    if old:
        Path("out.onnx").write_text("old")
    before = sorted(folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        result = repfuse("a.onnx", "out.onnx", *FAST, flag)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 2
    assert result.stderr == "Error: out.onnx: cannot be written: File too large\n"
    assert sorted(folder.iterdir()) == before
    assert not old or Path("out.onnx").read_text() == "old"


def test_the_outputs_folder_vanishes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sub").mkdir()
    write = model_io.write

    def vanishing(*args: object, **given: object) -> None:
        Path("sub").rename("elsewhere")
        write(*args, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(model_io, "write", vanishing)
    result = repfuse("a.onnx", "sub/out.onnx", *FAST)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: sub/out.onnx: cannot be written: No such file")
    assert not Path("elsewhere", "out.onnx").exists()


DIFFERENT = [
    {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    {"PYTHONHASHSEED": "1", "OPENBLAS_NUM_THREADS": "4", "OMP_NUM_THREADS": "4"},
]


def test_the_same_bytes_whatever_the_hash_seed_and_the_threads(tmp_path: Path) -> None:
    net = Net(channels=160, dtype=TensorProto.FLOAT)
    wide = net.model(net.repvgg(net.repvgg(net.x)))
    (tmp_path / "wide.onnx").write_bytes(wide.SerializeToString())
    sources = [tmp_path / "wide.onnx", *sorted((ROOT / "tests" / "models").glob("*-narrow.*.onnx"))[::4]]
    code = (
        "import sys; from repfuse.commandline.cli import main\n"
        "for source in sys.argv[2:]:\n"
        "    main([source, sys.argv[1] + '/' + source.split('/')[-1], '--no-verify', '--no-bench', '-q'],"
        " standalone_mode=False)"
    )
    results = []
    for number, settings in enumerate(DIFFERENT):
        out = tmp_path / str(number)
        out.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(out), *map(str, sources)],
            check=True, env={**os.environ, "PYTHONPATH": str(ROOT), **settings}, timeout=300,
        )  # fmt: skip
        results.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(results[0]) == len(sources)
    assert results[0] == results[1]
