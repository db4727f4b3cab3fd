"""How the command line ends: exit codes, what is left behind, what a terminal and a pipe see."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commandline import BLOCKED, FAST, enter_folder, files, model, repfuse

from repfuse.jobs import pipeline
from repfuse.model import model_io
from repfuse.reporting import voice


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "IN.onnx"),
    "no output": (("in.onnx",), "OUT.onnx"),
    "missing input": (("nope.onnx", "out.onnx"), "nope.onnx: no such file"),
    "a folder as input": ((".", "out.onnx"), "is a folder"),
    "no model": (("text.onnx", "out.onnx"), "text.onnx: not an ONNX"),
    "an empty file": (("empty.onnx", "out.onnx"), "empty.onnx: not an ONNX"),
    "missing output folder": (("in.onnx", "nope/out.onnx"), "nope"),
    "a folder as output": (("in.onnx", "sub"), "sub: is a folder"),
    "output over input": (("in.onnx", "./in.onnx"), "OUT.onnx would overwrite IN.onnx"),
    "output over input by a link": (("in.onnx", "link.onnx"), "OUT.onnx would overwrite IN.onnx"),
    "output over input by a hard link": (("in.onnx", "hard.onnx"), "OUT.onnx would overwrite IN.onnx"),
    "report over input": (("in.onnx", "out.onnx", "--json", "in.onnx"), "would overwrite IN.onnx"),
    "report over output": (("in.onnx", "out.onnx", "--json", "out.onnx"), "would overwrite OUT.onnx"),
    "missing report folder": (("in.onnx", "out.onnx", "--json", "nope/r.json"), "there is no folder 'nope'"),
    "unknown flag": (("in.onnx", "out.onnx", "--fast"), "--fast"),
    "unknown backend": (("in.onnx", "out.onnx", "--backend", "abacus"), "abacus"),
    "unknown pattern": (("in.onnx", "out.onnx", "--pattern", "repvg"), "repvgg"),
    "missing pattern file": (("in.onnx", "out.onnx", "--pattern", "nope.toml"), "nope.toml"),
    "negative tolerance": (("in.onnx", "out.onnx", "--rtol", "-1"), "--rtol"),
    "no threads": (("in.onnx", "out.onnx", "--threads", "0"), "--threads"),
    "shape without name": (("in.onnx", "out.onnx", "--input-shape", "1,2"), "name:1,3,224,224"),
    "shape of another input": (("in.onnx", "out.onnx", "--input-shape", "z:1,2"), "no input 'z'"),
    "shape against the model": (("in.onnx", "out.onnx", "--input-shape", "x:1,9,8,8"), "input 'x'"),
    "missing data": (("in.onnx", "out.onnx", "--input-data", "nope.npz"), "nope.npz"),
    "data of another type": (("in.onnx", "out.onnx", "--input-data", "double.npy"), "float32"),
    "three files": (("in.onnx", "out.onnx", "more.onnx"), "more.onnx"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_usage_and_bad_input(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    Path("text.onnx").write_text("this is no model")
    Path("empty.onnx").touch()
    Path("sub").mkdir()
    Path("link.onnx").symlink_to("in.onnx")
    os.link("in.onnx", "hard.onnx")
    np.save("double.npy", np.ones((1, 4, 8, 8)))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = repfuse(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    (error,) = (line for line in result.stderr.splitlines() if "Error: " in line)
    assert result.stderr.endswith(f"{error}\n")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert files(folder) == sorted([*(path.name for path in before), "sub"])


def failing(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline if hasattr(pipeline, step) else model_io, step, fail)


@pytest.mark.parametrize("step", ["fuse", "write", "measure_file", "Verifier", "benchmark"])
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("boom\nmore"), 70, "RuntimeError: boom (a bug in repfuse"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (SystemExit(143), 143, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_fails_nothing_is_left_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, code: int, words: str
) -> None:
    failing(monkeypatch, step, error)
    Path("out.onnx").write_text("old")
    result = repfuse("in.onnx", "out.onnx", "--backend", "ort")
    assert (result.exit_code, words in result.stderr) == (code, True)
    assert "Traceback" not in result.output
    assert Path("out.onnx").read_text() == "old"
    assert files(folder) == ["in.onnx", "out.onnx"]


def test_a_full_disk_is_no_bug_in_a_dry_run_either(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "write", OSError(28, "No space left on device"))
    result = repfuse("in.onnx", "--dry-run")
    assert (result.exit_code, result.stderr) == (2, "Error: [Errno 28] No space left on device\n")
    assert files(folder) == ["in.onnx"]


def test_verbose_shows_where_a_bug_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "fuse", RuntimeError("boom"))
    result = repfuse("in.onnx", "out.onnx", "-v")
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "in fail" in result.stderr


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(pipeline.__file__).parents[1]
    settings = {**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "cp1252", "TERM": "xterm"}
    return subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, env=settings, timeout=120
    )


def test_a_pipe_gets_plain_text(folder: Path) -> None:
    beyond = model(*BLOCKED)
    beyond.graph.node[2].name = "\N{CJK UNIFIED IDEOGRAPH-548C}/" + "long/" * 40
    onnx.save(beyond, "in.onnx")
    result = python("-m", "repfuse", "in.onnx", "out.onnx", *FAST)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert "Add '?/" + "long/" * 40 in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes there")
def test_a_reader_that_leaves_early_is_no_error_of_the_file(folder: Path) -> None:
    code = (
        "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from repfuse.commandline.cli import main;"
        "main(['in.onnx', 'out.onnx', '--no-verify', '--no-bench'])"
    )
    result = python("-c", code)
    assert result.returncode == 1
    assert "cannot be written" not in result.stderr and "Traceback" not in result.stderr
    assert files(folder) == ["in.onnx"]


AT_ONCE = (
    "import os, signal, functools;"
    "from repfuse.commandline.cli import main; from repfuse.jobs import pipeline;"
)
"""The imports of the two tests below, which would wait for seconds to measure, or disturb the tests' process."""


def test_both_backends(folder: Path) -> None:
    pytest.importorskip("openvino")
    quick = "pipeline.benchmark = functools.partial(pipeline.benchmark, seconds=0);"
    result = python("-c", AT_ONCE + quick + "main(['in.onnx', 'out.onnx'])")
    assert (result.returncode, result.stderr) == (0, "")
    first_words = [line.split(" 2")[0].split(" 1.")[0] for line in result.stdout.splitlines()]
    assert (first_words.count("ONNX Runtime"), first_words.count("OpenVINO")) == (2, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="there a process is ended without being asked")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_nothing_behind(folder: Path, name: str, code: int) -> None:
    Path("out.onnx").write_text("old")
    heard = f"signal.signal(signal.{name}, signal.default_int_handler);"  # a shell may have it ignored
    signalled = f"pipeline.Verifier = lambda *_, **__: os.kill(os.getpid(), signal.{name});"
    result = python("-c", AT_ONCE + heard + signalled + "main(['in.onnx', 'out.onnx'])")
    assert (result.returncode, "Traceback" in result.stderr) == (code, False)
    assert Path("out.onnx").read_text() == "old"
    assert files(folder) == ["in.onnx", "out.onnx"]


def test_help_does_not_wait_for_heavy_packages() -> None:
    code = (
        "import sys; from repfuse.commandline.cli import main; main(['--help'], standalone_mode=False);"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'openvino', 'rich'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.endswith("\n[]\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_in_a_terminal_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with voice.Voice().doing("Fusing") as tell:
        tell("[step] one")
    shown = terminal.getvalue()
    assert "Fusing: [step] one" in shown
    assert shown.rindex("\x1b[2K") > shown.rindex("Fusing")  # the line is cleared


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    silent = voice.Voice(quiet=True)
    with silent.doing("Fusing") as tell:
        tell("step")
    silent.say("text")
    assert capsys.readouterr() == ("", "")
