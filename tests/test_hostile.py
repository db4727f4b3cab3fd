"""Hostile files: whatever a model is, there is one clear line or a sound result, in bounded memory and time."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from commandline import FAST, repfuse
from hostile import CASES, doubling, recursive_function
from rich.text import Text

from repfuse.errors import BadInputError, VerificationError
from repfuse.model.expansion import refuse_explosive
from repfuse.reporting.voice import Voice

ROOM = 3 * 2**30
"""Bytes of address space that each case may take beyond what is there already."""

OLD_RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32)

TROUBLES_OLD_RUNTIMES = {"subgraphs 32 deep", "input of extent 0"}
"""ONNX Runtime 1.23 to 1.26 takes for ever to load the one and refuses the other; 1.32 runs both."""

PAGE = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.fixture
def bounded() -> Iterator[None]:
    """Little memory, and little time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, hard))
    started = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - started < 20


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("bounded")
def test_hostile_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if OLD_RUNTIME and name in TROUBLES_OLD_RUNTIMES:
        pytest.skip("needs ONNX Runtime 1.32")
    make, sentence = CASES[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    result = repfuse("in.onnx", "out.onnx", *FAST)
    assert "Traceback" not in result.output
    if sentence is None:
        assert (result.exit_code, result.stderr) == (0, "")
        assert sorted(folder.iterdir()) == sorted([*before, folder / "out.onnx"])
    else:
        assert (result.exit_code, sorted(folder.iterdir())) == (2, before)
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert sentence in line
        assert len(line) < 1100
        assert line.isprintable()


def test_the_page_lists_every_case_and_what_comes_of_it() -> None:
    listed = re.findall(r"^\| ([^|]*) \| (\d) \|", PAGE, re.M)
    assert sorted((name, 2 if sentence else 0) for name, (_, sentence) in CASES.items()) == sorted(
        (name, int(code)) for names, code in listed for name in names.split("; ")
    )


def test_what_is_printed_holds_no_escape_sequences_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    Voice().say(Text("name \x1b[31m\u202e\nof a node"), Text("Gerät 你好"))
    assert capsys.readouterr().out == "name \\x1b[31m\\u202e\nof a node\nGerät 你好\n"


def test_errors_are_text_that_a_terminal_shows() -> None:
    assert str(BadInputError("one\ntwo\x1b")) == r"one\ntwo\x1b"
    assert str(VerificationError("one\n  two\x1b")) == "one\n  two\\x1b"
    assert len(str(BadInputError("x" * 9999))) == 1005


def test_functions_are_counted_where_they_are_called() -> None:
    refuse_explosive(doubling(18)(), "m")
    with pytest.raises(
        BadInputError, match=r"^m: its functions call each other so often that it would be more than"
    ):
        refuse_explosive(doubling(19)(), "m")
    refuse_explosive(recursive_function(), "m")
