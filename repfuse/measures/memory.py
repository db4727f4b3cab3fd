"""How much memory running a model takes: measured in a process of its own, which ends with it.

Two figures. What the process grows by, at its peak, while a model is loaded and run: its weights in the runtime's
layout, what loading it left behind, activations. And what activations alone take: only ONNX Runtime tells, whose
profile says, in recent versions (1.32 does), how many bytes nodes have asked for and not yet given back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repfuse.runtimes.backends import BackendError, Feeds, Session
from repfuse.runtimes.child import Child, CrashError, patience
from repfuse.runtimes.installed import backends_named
from repfuse.runtimes.ort import OnnxRuntime

RUNS = 3
"""What is allocated in the first run may be rearranged in the second, and stays as it is from then on."""


@dataclass(frozen=True)
class Memory:
    """What running a model takes, in bytes.

    Attributes:
        process: How much the resident set of a process grows, at its peak, while it loads the model and runs it.
            None if not on Linux.
        activations: The most that nodes' outputs take at one time. None where the runtime does not tell.
        activations_unoptimized: The same with the runtime's own rewriting of the graph switched off, which among
            other things lets the sum of two branches take the place of one of them.
    """

    process: int | None
    activations: int | None
    activations_unoptimized: int | None


def measure_memory(model: Path, feeds: Feeds, *, backend: str, threads: int = 1) -> Memory:
    """Load and run a model in a process of its own.

    Args:
        model: Its file.
        feeds: What to run it on.
        backend: `ort` or `openvino`.
        threads: Threads for the runtime.

    Raises:
        BackendError: The backend cannot run the model, or the process ended before it was done.
    """
    try:
        given = (str(model.absolute()), dict(feeds), backend, threads)
        return Child().call(_measure_here, *given, seconds=patience(None))
    except CrashError as error:
        raise BackendError(f"measuring the memory that {model.name} takes failed: it {error}") from error


def _measure_here(model: str, feeds: Feeds, backend: str, threads: int) -> Memory:
    (runtime,) = backends_named(backend)
    _ = runtime.title  # which imports the runtime
    before = _reset_peak()
    session: Session | None = runtime.load(model, threads=threads)
    for _ in range(RUNS):
        assert session
        session.run(feeds)
    process = None if before is None else _resident("VmHWM") - before
    session = None
    if not isinstance(runtime, OnnxRuntime):
        return Memory(process, None, None)
    return Memory(process, *(_ort_activations(model, feeds, threads, optimize) for optimize in (True, False)))


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


def _ort_activations(model: str, feeds: Feeds, threads: int, optimize: bool) -> int | None:
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        runtime = OnnxRuntime(optimize, Path(folder, "profile"))
        session = runtime.load(model, threads=threads)
        session.run(feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return activations_of(events)


def activations_of(events: Iterable[Mapping[str, Any]]) -> int | None:
    """The most bytes in use after any node of a profile, less what was in use before the first.

    Args:
        events: The entries of a profile of ONNX Runtime, of one run.

    Returns:
        None if the profile does not speak of memory, as that of an older version.
    """
    counted = [
        (int(arguments["mem_bytes_requested_in_use"]), int(arguments["mem_requested_in_use_delta"]))
        for event in sorted(events, key=lambda event: int(event["ts"]))
        if event.get("cat") == "Node" and "mem_bytes_requested_in_use" in (arguments := event["args"])
    ]
    if not counted:
        return None
    first, delta = counted[0]
    return max(in_use for in_use, _ in counted) - (first - delta)
