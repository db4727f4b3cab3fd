"""Measuring how much faster one form of a model is than another, once: what was measured can be kept in a file.

Models run in a process of their own: what crashes a runtime ends that one, and not the search. A runtime that hangs
is ended with it, after much longer than what is measured takes.

A measurement is known by what it depends on: the structure of the forms, not their weights; the runtime and its
version; threads; and the processor. Equal blocks of a network, and of the next one, are measured once.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from repfuse.errors import BadInputError
from repfuse.measures import ratios
from repfuse.measures.bench import paced, timed
from repfuse.measures.interleave import LOADS, Load, Pace
from repfuse.measures.ratios import Ratio
from repfuse.model.staging import staged
from repfuse.runtimes.backends import Backend, BackendError, Feeds, ModelSource, file_or_bytes
from repfuse.runtimes.child import Child, CrashError, patience

_Measured = tuple[float, float, float, float]
"""The fields of a Ratio, as they are kept."""

_ATTEMPTS = 4
"""So often is measured at most what may lie on either side of a limit: on a busy machine, nothing gets certain."""

_FORMAT = 1
"""Of the file. Another format is not read."""


@dataclass(frozen=True)
class Form:
    """A model to measure, and what tells its structure from others (see `measures.extract.digest`)."""

    model: ModelSource
    digest: str


class Meter:
    """Measures on one machine with so many threads, and remembers.

    Attributes:
        measured: How many comparisons were run, not remembered.
    """

    def __init__(self, *, threads: int, file: Path | None = None) -> None:
        """`file`: where measurements are kept; made if it is not there.

        Raises:
            BadInputError: There is such a file, and it holds no measurements.
        """
        self._threads = threads
        self._file = file
        self._known: dict[str, Any] = _read(file) if file and file.exists() else {}
        self._processor = processor()
        self._paces: dict[Backend, Pace | None] = {}
        self.measured = 0

    def pace(self, form: Form, backend: Backend, feed: Callable[[], Feeds]) -> Pace | None:
        """How long a form takes, as it was found out at the first call; None where the backend cannot run it.

        What is compared afterwards on that backend may not take much longer, so that what hangs is ended.
        """
        if backend not in self._paces:
            given = (backend, file_or_bytes(form.model), feed(), self._threads)
            try:
                self._paces[backend] = self._child.call(paced, *given, seconds=patience(None))
            except (BackendError, CrashError):
                self._paces[backend] = None
        return self._paces[backend]

    def knows(self, forms: Sequence[Form], backend: Backend) -> bool:
        """Whether a comparison need not be run."""
        return self._key(forms, backend) in self._known

    def compare(
        self,
        forms: Sequence[Form],
        backend: Backend,
        feed: Callable[[], Feeds],
        *,
        seconds: float,
        limit: float | None = None,
        within: float | None = None,
    ) -> list[Ratio] | None:
        """How many times as long the first form takes as each of the others.

        Args:
            forms: Two or more.
            backend: Where to run them.
            feed: Makes what to run them on.
            seconds: Time for the timed rounds. Loading comes on top.
            limit: A ratio that matters. As long as some form may lie on either side of it, all are measured again,
                a few times, if there is time for that.
            within: Time for all of it, loading as well; what takes longer is measured as little as makes sense.

        Returns:
            A ratio for each form but the first: zero for one that the backend crashes or hangs on, or refuses. None
            where it does so with the first.
        """
        key = self._key(forms, backend)
        if key not in self._known:
            self._known[key] = {
                "backend": backend.title,
                "threads": self._threads,
                "processor": self._processor,
                "forms": [form.digest for form in forms],
                "ratios": self._measure(forms, backend, feed(), seconds, limit, within),
            }
            self.measured += 1
            self._save()
        found = self._known[key]["ratios"]
        return None if found is None else [Ratio(*each) for each in found]

    def _measure(
        self,
        forms: Sequence[Form],
        backend: Backend,
        feed: Feeds,
        seconds: float,
        limit: float | None,
        within: float | None,
    ) -> list[_Measured] | None:
        def run(some: Sequence[Form]) -> list[Load] | None:
            models = [file_or_bytes(form.model) for form in some]
            given = (backend, models, feed, self._threads, seconds, None, within)
            pace = self._paces.get(backend)
            limit = patience(pace.expected(len(some), LOADS, seconds=seconds) if pace else None)
            try:
                return self._child.call(timed, *given, seconds=limit)
            except (BackendError, CrashError):
                return None

        loads: list[Load] = []
        started = time.perf_counter()
        for attempt in range(1, _ATTEMPTS + 1):
            loads += run(forms) or []
            found = [_compared(loads, number) for number in range(1, len(forms))] if loads else []
            late = (time.perf_counter() - started) * (attempt + 1) / attempt > (within or 0)
            if limit is None or late or not any(low < limit < high for _, low, high, _ in found):
                break
        if loads:
            return found
        if not run(forms[:1]):
            return None
        pairs = [run((forms[0], form)) for form in forms[1:]]
        return [_compared(pair, 1) if pair else (0.0, 0.0, 0.0, 1.0) for pair in pairs]

    @cached_property
    def _child(self) -> Child:
        """The process that models run in."""
        return Child()

    def _key(self, forms: Sequence[Form], backend: Backend) -> str:
        parts = [backend.title, self._threads, self._processor, *(form.digest for form in forms)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _save(self) -> None:
        """Write all at once, after each measurement, so that none is lost if the next is broken off."""
        if self._file:
            with staged(self._file) as temporary:
                content = {"format": _FORMAT, "measurements": self._known}
                temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _compared(loads: Sequence[Load], number: int) -> _Measured:
    ratio = ratios.compare([load.pairs(0, number) for load in loads])
    return ratio.value, ratio.low, ratio.high, ratio.confidence


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
        found: dict[str, Any] = content["measurements"]
        sound = content["format"] == _FORMAT and all(map(_is_sound, found.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{file}: holds no measurements that can be read; remove it ({error})") from error
    if not sound:
        raise BadInputError(f"{file}: holds no measurements that can be read; remove it")
    return found


def _is_sound(entry: Any) -> bool:
    found = entry["ratios"]
    return found is None or all(len(each) == 4 and all(value >= 0 for value in each) for each in found)


def processor() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
