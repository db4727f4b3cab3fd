"""Calling functions in a process of its own, so that what would end this one becomes a sentence here.

A runtime is native code, and a model can bring it to an end that no `except` sees: a segmentation fault, an abort,
a loop, the system's want of memory. The process is no sandbox: what is in it may do all that its user may do.

It is not `multiprocessing`, which imports the caller's main module once more: a script without
`if __name__ == "__main__"` would run itself. The two speak pickle over pipes. What native code prints goes
elsewhere, and its last line into the sentence.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from repfuse.errors import RepfuseError

T = TypeVar("T")

Tell = Callable[[str], None]

_START = "import sys; sys.path[:] = sys.argv[1:]; from repfuse.runtimes.child import serve; serve()"

_Calls = queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], bool]]

PATIENCE = 3600.0
"""Seconds after which what nobody knows the duration of counts as a loop."""

_SLOWER = 10
"""What is known to take so long may take so many times as long, and a minute."""

_SAID = 200
"""Characters of what it said last that are told."""


def patience(expected: float | None) -> float:
    """How many seconds to wait for what is expected to take so many; None if nobody knows."""
    return PATIENCE if expected is None else _SLOWER * expected + 60


class CrashError(RepfuseError):
    """The process ended, or was ended, before the function did; the text says how, as a verb."""


class _RemoteTracebackError(Exception):
    """Where in the other process an error arose."""


class Child:
    """A process that calls functions, one at a time; it is started when it is made, and again after a crash.

    It ends with this object, or with this process, whatever ends that. Where Python is part of another program,
    which cannot be started so, functions are called in this process.
    """

    def __init__(self) -> None:
        self._possible = re.match("python|pypy", Path(sys.executable or "").name.lower()) is not None
        if self._possible:
            self._start()

    def _start(self) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        self.end = weakref.finalize(self, _end, self._process, self._said)
        """Ends the process now."""

    def call(
        self, function: Callable[..., T], *args: Any, tell: Tell | None = None, seconds: float | None = None
    ) -> T:
        """Call a function of a module there; all that goes in and comes out is pickled.

        Args:
            function: Called with `args`.
            *args: For the function.
            tell: Called here with what the function tells there: it gets one more argument to tell with.
            seconds: When to end the process, if the function is not done yet. None to wait.

        Returns:
            What the function returns.

        Raises:
            CrashError: The process ended.
            Exception: Whatever the function raises.
        """
        if not self._possible:
            return function(*args, *([tell] if tell else []))
        if not self.end.alive:
            self._start()
        assert self._process.stdin
        assert self._process.stdout
        with _deadline(self._process, seconds) as late:
            try:
                pickle.dump((function, args, tell is not None), self._process.stdin, protocol=5)
                self._process.stdin.flush()
                while (message := pickle.load(self._process.stdout))[0] == "told":
                    if tell:
                        tell(message[1])
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise CrashError(self._how_it_ended(seconds if late.is_set() else None)) from error
            except BaseException:  # half a message may be on its way
                self.end()
                raise
        if message[0] == "raised":
            _, raised, where = message
            raise raised from (None if isinstance(raised, RepfuseError) else _RemoteTracebackError(where))
        value: T = message[1]
        return value

    def _how_it_ended(self, limit: float | None) -> str:
        """As a verb; of the time that it had, if it was ended for that."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # what came was no answer
            code = 0
        self._said.seek(0)
        lines = self._said.read()[-10_000:].decode(errors="replace").splitlines()
        self.end()
        if limit is not None:
            return f"took more than {limit:.0f} s, and was stopped"
        last = next((line for line in map(_plain, reversed(lines)) if line), "")
        return f"crashed ({_named(code)}" + (f"; it said '{last}')" if last else ")")


def _named(code: int) -> str:
    """How a process ended, by its exit code: below zero it is a signal, on Windows it may be an NTSTATUS."""
    if code >= 0:
        return f"exit code {code if code < 256 else hex(code)}"
    names = {each.value: each.name for each in signal.Signals}
    name = names.get(-code, "unknown")
    return f"signal {-code}, {name}" + (", as when memory runs out" if name == "SIGKILL" else "")


def _plain(line: str) -> str:
    """What can be told of a line: neither control characters nor more than fits."""
    return re.sub(r"\s+", " ", re.sub(r"[^\x20-\x7e]", " ", line)).strip()[:_SAID]


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[bytes], seconds: float | None) -> Iterator[threading.Event]:
    """End a process after so many seconds, and set the event."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, said):
        with contextlib.suppress(OSError):  # what was not yet written has nowhere to go
            if pipe:
                pipe.close()


def serve() -> None:
    """Call what comes through standard input, for as long as the process at its other end lives."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # for that process to heed; this one ends with it
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError):  # where the system runs out of memory, it is to end this process first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # Streams of its own: what native code prints is no answer, and what a library forks closes standard input, for
    # which it would wait for ever while another thread reads that.
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    calls: _Calls = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions, calls), daemon=True).start()

    def answer(*message: Any) -> None:
        pickle.dump(message, answers, protocol=5)
        answers.flush()

    while True:
        function, args, telling = calls.get()
        tell = [lambda text: answer("told", text)] if telling else []
        try:
            value = function(*args, *tell)
        except Exception as error:
            answer("raised", _portable(error), traceback.format_exc())
        else:
            answer("returned", value)
            del value
        del function, args


def _listen(questions: IO[bytes], calls: _Calls) -> None:
    """Take calls, and end the process when there can be no more, even while it is busy."""
    while True:
        try:
            calls.put(pickle.load(questions))
        except EOFError:
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def _portable(error: Exception) -> Exception:
    """An error that can be pickled: itself, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
