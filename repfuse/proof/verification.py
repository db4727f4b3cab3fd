"""Do two models compute the same? Shown on real runtimes, on the same inputs.

The original is run once for each backend, and once more for each optimization level, which shows how far it
differs from itself; then any number of other models can be held against it. What the figures mean is
`proof.comparison`'s part. Runtimes run in a process of their own, since a model can crash them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repfuse.errors import BadInputError
from repfuse.model import convert
from repfuse.proof.comparison import OutputCheck, Results, compare, noise_floors
from repfuse.runtimes.backends import (
    Array,
    Backend,
    BackendError,
    Feeds,
    Loadable,
    ModelSource,
    file_or_bytes,
)
from repfuse.runtimes.child import Child, CrashError, Tell, patience
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.inputs import Range, resolve_inputs
from repfuse.runtimes.installed import backends_named
from repfuse.runtimes.ort import OnnxRuntime

if TYPE_CHECKING:
    from repfuse.model.convert import Source

FEEDS = 3
"""Inputs shown to each model: with three, one odd one does not decide what the movement is."""

_LOADED = "loaded"


@dataclass(frozen=True)
class BackendNote:
    """A backend that could not run a model, and its reason."""

    backend: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """What verifying showed.

    Attributes:
        inputs: The inputs as they were fed, in words, such as `x: float32[1, 3, 224, 224]`.
        checks: Each output on each backend that ran both models.
        failures: Backends that ran the original, but not the other model.
        skipped: Backends that could not run the original.
    """

    inputs: tuple[str, ...]
    checks: tuple[OutputCheck, ...]
    failures: tuple[BackendNote, ...]
    skipped: tuple[BackendNote, ...]

    @property
    def passed(self) -> bool:
        """Whether every output is the same on every backend that runs the original."""
        return not self.failures and all(check.passed for check in self.checks)

    @property
    def smallest_rtol(self) -> float:
        """The smallest `rtol` with which every output would pass; infinite where none would do."""
        if self.failures:
            return math.inf
        return max((check.error for check in self.checks), default=0.0)

    @property
    def messages(self) -> list[str]:
        """Every failure and every vacuous check, a sentence each."""
        failed = [f"{note.backend}: cannot run the fused model: {note.reason}" for note in self.failures]
        return failed + [check.message for check in self.checks if check.message]


class Verifier:
    """Runs the original once, and holds other models against it."""

    def __init__(
        self,
        before: ModelSource,
        *,
        backends: str = "all",
        rtol: float | None = None,
        seed: int = 0,
        threads: int = 1,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        input_data: Mapping[str, Array] | None = None,
        input_ranges: Mapping[str, Range] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Run the original; what the arguments mean and what is raised is told at `verify`."""
        self._rtol = rtol
        self._threads = threads
        self._say = on_progress or (lambda _: None)
        self._backends = backends_named(backends)
        self._child = Child()
        self._seconds: dict[Backend, float] = {}
        self._inputs = resolve_inputs(before, shapes=input_shapes, data=input_data, ranges=input_ranges)
        self._feeds = make_inputs(
            before, count=FEEDS, seed=seed, shapes=input_shapes, data=input_data, ranges=input_ranges
        )
        # ONNX Runtime first: it says which extents do not fit a model, where OpenVINO crashes.
        references: list[Backend] = [OnnxRuntime(), *self._backends, OnnxRuntime(optimize=False)]
        self._originals = {
            backend: self._run(backend, before, "original") for backend in dict.fromkeys(references)
        }
        self._skipped = tuple(
            note for backend in self._backends if isinstance(note := self._originals[backend], BackendNote)
        )
        if len(self._skipped) == len(self._backends):
            raise BadInputError(self._unrunnable(self._skipped))
        runs = (result for result in self._originals.values() if not isinstance(result, BackendNote))
        self._noise = noise_floors(list(runs))

    def verify(self, after: ModelSource) -> Verification:
        """Compare every output of another model with the original's, on every backend that runs that."""
        checks: list[OutputCheck] = []
        failures: list[BackendNote] = []
        for backend in self._backends:
            original = self._originals[backend]
            if isinstance(original, BackendNote):
                continue
            result = self._run(backend, after, "fused")
            if isinstance(result, BackendNote):
                failures.append(result)
            else:
                checks += compare(backend.title, original, result, self._noise, self._rtol)
        return Verification(tuple(map(str, self._inputs)), tuple(checks), tuple(failures), self._skipped)

    def _run(self, backend: Backend, model: ModelSource, called: str) -> Results | BackendNote:
        self._say(f"{backend.title}: {called} model")
        told: list[str] = []
        given = (backend, file_or_bytes(model), self._feeds, self._threads)
        limit = patience(self._seconds.get(backend))
        started = time.monotonic()
        try:
            results = self._child.call(_outputs, *given, tell=told.append, seconds=limit)
        except CrashError as error:
            return BackendNote(
                backend.title, f"it {error} while {'running' if told else 'loading'} the {called} model"
            )
        except BackendError as error:
            note = BackendNote(backend.title, str(error).removeprefix(f"{backend.title}: "))
        else:
            self._seconds.setdefault(backend, time.monotonic() - started)
            return results
        if called == "original" and told and any(entry.chosen for entry in self._inputs):
            raise BadInputError(self._unrunnable([note]))
        return note

    def _unrunnable(self, notes: Sequence[BackendNote]) -> str:
        reasons = "; ".join(f"{note.backend}: {note.reason}" for note in notes)
        message = f"no backend can run the model, so nothing can be verified: {reasons}"
        chosen = [entry for entry in self._inputs if entry.chosen]
        if chosen:
            asked = " ".join(
                f"--input-shape {each.name}:{','.join(map(str, each.otherwise))}" for each in chosen
            )
            message += f" (it was run with {'; '.join(map(str, chosen))}: give better extents, as in {asked})"
        return message


def _outputs(backend: Backend, model: Loadable, feeds: Sequence[Feeds], threads: int, tell: Tell) -> Results:
    """Every output for each feed; tells when the model is loaded."""
    session = backend.load(model, threads=threads)
    tell(_LOADED)
    return [session.run(feed) for feed in feeds]


def verify(
    before: Source,
    after: Source,
    *,
    backends: str = "all",
    rtol: float | None = None,
    seed: int = 0,
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_data: Mapping[str, Array] | None = None,
    input_ranges: Mapping[str, Range] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Verification:
    """Run two models on the same inputs and compare every output on every backend.

    Args:
        before: The original: its path, or of any kind that `repfuse.fuse` takes.
        after: The model that should compute the same; likewise.
        backends: `ort`, `openvino`, or `all` that are installed.
        rtol: The error to tolerate, as a share of an output's largest value (of its elements, where they are
            no floats). None: ten noise floors, at least 8 eps of the output's type; outputs that are no
            floats must be equal where the original has no noise.
        seed: Chooses the inputs.
        threads: Threads for each runtime.
        input_shapes: Shapes by input name, where the model leaves them open.
        input_data: Arrays by input name, to use instead of drawn ones.
        input_ranges: The least and the largest value by input name, for drawn ones.
        on_progress: Called with what is being run.

    Raises:
        BadInputError: No backend runs the original, or the inputs do not fit it.
    """
    verifier = Verifier(
        convert.proto(before),
        backends=backends,
        rtol=rtol,
        seed=seed,
        threads=threads,
        input_shapes=input_shapes,
        input_data=input_data,
        input_ranges=input_ranges,
        on_progress=on_progress,
    )
    return verifier.verify(convert.proto(after))
