"""Functions in a process of their own: what they give, raise and tell; how it is told that they crashed."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from repfuse.runtimes import child as module
from repfuse.runtimes.backends import BackendError
from repfuse.runtimes.child import Child, CrashError


@pytest.fixture(name="child")
def _child():
    child = Child()
    yield child
    child.end()


def told(texts, tell):
    for text in texts:
        tell(text)
    return len(texts)


def refuses(text):
    raise BackendError(text)


class OddError(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} {other}")


def is_odd():
    raise OddError("one", "other")


def prints(text):
    print(text, flush=True)
    os.write(1, text.encode())
    return os.getpid()


def says_and_aborts(text):
    os.write(2, text)
    os.abort()


def takes_signals():
    return [str(signal.getsignal(kind)) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_what_a_function_gives_and_tells_comes_back(child):
    heard = []
    assert child.call(told, ["a", "b"], tell=heard.append) == 2
    assert heard == ["a", "b"]
    assert child.call(math.hypot, 3, 4) == 5
    large = np.arange(2**20, dtype=np.float32)
    assert np.array_equal(child.call(np.negative, large), -large)


def test_it_is_one_process_other_than_this_and_hears_no_signals(child):
    assert child.call(os.getpid) == child.call(os.getpid) != os.getpid()
    assert child.call(takes_signals) == [str(signal.SIG_IGN)] * 3


def test_what_is_printed_is_no_answer(child, capfd):
    assert child.call(prints, "text") == child.call(os.getpid)
    assert capfd.readouterr() == ("", "")


def test_errors_come_back(child):
    with pytest.raises(BackendError, match=r"^no such operator$"):
        child.call(refuses, "no such operator")
    with pytest.raises(ZeroDivisionError) as caught:
        child.call(divmod, 1, 0)
    assert "divmod" in str(caught.value.__cause__) or "serve" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match=r"^OddError: one other$"):
        child.call(is_odd)
    assert child.call(abs, -1) == 1


@pytest.mark.parametrize(
    ("function", "argument", "sentence"),
    [
        (signal.raise_signal, signal.SIGSEGV, "crashed (signal 11, SIGSEGV)"),
        (signal.raise_signal, signal.SIGKILL, "crashed (signal 9, SIGKILL, as when memory runs out)"),
        (os._exit, 3, "crashed (exit code 3)"),
        (says_and_aborts, b"first\nterminate called\x1b[31m\n\n", None),
        (says_and_aborts, b"x" * 999, f"crashed (signal 6, SIGABRT; it said '{'x' * 200}')"),
    ],
)
def test_a_crash_is_a_sentence_and_the_next_call_has_a_new_process(child, function, argument, sentence):
    with pytest.raises(CrashError) as caught:
        child.call(function, argument)
    assert str(caught.value) == (sentence or "crashed (signal 6, SIGABRT; it said 'terminate called [31m')")
    assert child.call(abs, -1) == 1


def test_a_process_that_is_gone_before_it_is_asked_is_a_crash(child):
    os.kill(child.call(os.getpid), signal.SIGKILL)
    time.sleep(0.1)
    with pytest.raises(CrashError, match="SIGKILL"):
        child.call(abs, -1)


@pytest.mark.parametrize(
    ("code", "name"), [(0xC0000005, "exit code 0xc0000005"), (-99, "signal 99, unknown"), (1, "exit code 1")]
)
def test_how_a_process_ended_has_a_name(code, name):
    assert module._named(code) == name


def test_time_is_limited(child):
    with pytest.raises(CrashError, match=r"^took more than 0 s, and was stopped$"):
        child.call(time.sleep, 60, seconds=0.3)
    assert child.call(abs, -1, seconds=60) == 1


def test_how_long_is_waited_for_what_is_expected_to_take_so_long():
    assert module.patience(None) == module.PATIENCE
    assert module.patience(0.5) == 65


def test_what_interrupts_a_call_ends_the_process(child):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.call(told, ["a"], tell=interrupt)
    assert not child.end.alive
    assert child.call(abs, -1) == 1


def alive(pid):
    """Whether it runs; one that ended and that nobody waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text("ascii").rpartition(")")[2].split()[0] != "Z"


def vanishes(pid):
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_it_ends_with_its_object():
    child = Child()
    pid = child.call(os.getpid)
    assert alive(pid)
    del child
    gc.collect()
    assert vanishes(pid)


def forks():
    process = multiprocessing.get_context("fork").Process(target=os.getpid)
    process.start()
    process.join(30)
    return process.exitcode


def test_what_a_library_forks_comes_to_an_end(child):
    assert child.call(forks) == 0


SCRIPT = """
import os, time
from repfuse.runtimes.child import Child
child = Child()
print(child.call(os.getpid), flush=True)
{after}
"""


@pytest.mark.parametrize("after", ["", "child.call(time.sleep, 600)"], ids=["idle", "busy"])
def test_it_ends_with_this_process_however_that_ends_and_a_script_needs_no_guard(after, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(after=after))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        if after:
            process.kill()
        assert process.stdout.read() == ""
    assert vanishes(pid)


def test_what_lies_in_the_working_folder_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('not to be run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert Child().call(abs, -1) == 1


def test_where_python_is_part_of_another_program_functions_are_called_here(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/bin/maya")
    heard = []
    child = Child()
    assert child.call(os.getpid) == os.getpid()
    assert child.call(told, ["a"], tell=heard.append) == 1
    assert heard == ["a"]
