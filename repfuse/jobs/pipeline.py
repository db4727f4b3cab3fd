"""The main job: read, fuse, verify, measure, write, and tell about each step as it is done."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from repfuse import __version__
from repfuse.choice.plan import Plan
from repfuse.errors import BadInputError, VerificationError
from repfuse.fusion import FuseResult
from repfuse.fusion import fuse_file as fuse
from repfuse.jobs.options import Feeding, Options, check_files
from repfuse.measures import int8
from repfuse.measures.bench import benchmark
from repfuse.measures.stats import measure_file
from repfuse.measures.tuning import tune
from repfuse.model import model_io
from repfuse.model.staging import staged
from repfuse.model.storage import Spill
from repfuse.proof.blockcheck import check_blocks
from repfuse.proof.culprit import BadBlock, first_culprit
from repfuse.proof.verification import Verifier
from repfuse.remarks import Edit, refuse_invalid
from repfuse.reporting import report
from repfuse.reporting.details import Details
from repfuse.reporting.report import Report
from repfuse.reporting.voice import Tell, Voice
from repfuse.runtimes.backends import BackendError
from repfuse.runtimes.inputs import resolve_inputs
from repfuse.runtimes.installed import backends_named


def run(options: Options) -> None:
    """Do the job.

    Raises:
        BadInputError: Something that the user handed over cannot be used; nothing was written.
        VerificationError: The fused model does not match; nothing but reports were written.
    """
    check_files(options)
    page = _page() if options.report else None
    found = Report(options.source, options.target)
    details = Details() if options.report else None
    failure = None
    try:
        _Job(options, found, details, Voice(quiet=options.quiet)).run()
    except VerificationError as error:
        failure = error
    if options.json:
        with staged(options.json) as temporary:
            text = json.dumps(report.as_dict(found, __version__), indent=2, allow_nan=False)
            temporary.write_text(f"{text}\n", "utf-8")
    if options.report and details and page:
        for path in (
            (options.source, options.target) if found.written and options.target else (options.source,)
        ):
            details.hash(path)
        text = page.page(found, details, command=options.command, failure=str(failure or ""))
        with staged(options.report) as temporary:
            temporary.write_text(text, "utf-8")
    if failure:
        raise failure


def _page() -> ModuleType:
    """The module that makes the page, which needs packages of an extra."""
    try:
        return importlib.import_module("repfuse.reporting.page")
    except ModuleNotFoundError as error:
        raise BadInputError(f"--report: needs {error.name}; pip install 'repfuse[report]'") from error


class _MismatchError(Exception):
    """Blocks that do not match; raised, so that what was written for them vanishes."""

    def __init__(self, bad_blocks: list[BadBlock]) -> None:
        super().__init__()
        self.bad_blocks = bad_blocks


class _Job:
    """One run; `found` is filled in step by step."""

    def __init__(self, options: Options, found: Report, details: Details | None, voice: Voice) -> None:
        self._options = options
        self._found = found
        self._details = details
        self._voice = voice
        self._feeding = Feeding.of(options)
        self._left: list[Edit] = []
        self._plan: Plan | None = None
        self._verifier: Verifier | None = None

    def run(self) -> None:
        """Do all but the reports."""
        options, found = self._options, self._found
        if self._feeding.given:  # a mistake in them is told before the work begins
            resolve_inputs(options.source, **self._feeding.resolving)
        if options.tune:
            self._tune()
        while bad := self._mismatches():
            found.bad_blocks += bad
            if not options.keep_going:
                raise VerificationError(report.failure(found))
            self._note(*(f"Left alone: {report.bad_block(each)}" for each in bad))
            self._left += [each.edit for each in bad]
        if not found.edits:
            found.before = measure_file(options.source, input_shapes=self._feeding.shapes)
            if options.target and not options.dry_run:
                model_io.copy(options.source, options.target, external_data=options.external_data)
        found.written = not options.dry_run
        self._voice.say("", report.ending(found))

    def _tune(self) -> None:
        """Find out by measuring what to fuse, and tell."""
        options, found = self._options, self._found
        with self._voice.doing("Tuning") as tell:
            tuning = tune(
                options.source,
                patterns=options.patterns or None,
                backend=options.backend,
                keep_opset=options.keep_opset,
                budget=options.tune_budget,
                cache=options.tune_cache,
                on_progress=tell,
                **self._running,
            )
        self._plan, found.trials = tuning.plan, tuning.trials
        self._voice.say(report.tuning(tuning), "")

    def _mismatches(self) -> list[BadBlock]:
        """Make an attempt, whose model is kept only if there is nothing that does not match."""
        try:
            with _destination(self._options) as fused:
                self._attempt(fused)
        except _MismatchError as mismatch:
            return mismatch.bad_blocks
        return []

    def _attempt(self, fused: Path) -> None:
        """Fuse all but what was left alone, check, and measure.

        Raises:
            _MismatchError: The model must not be written.
        """
        options, found = self._options, self._found
        with self._voice.doing("Fusing") as tell:
            self._write_fused(fused, tell)
        self._voice.say(report.groups(found.edits, found.remarks, verbose=options.verbose))
        if found.blocks:
            self._voice.say("", report.blocks(found.blocks))
        bad = [
            BadBlock(each.edit, report.off_by(each), options.keep_going)
            for each in found.blocks
            if not each.passed
        ]
        if bad:
            raise _MismatchError(bad)
        if not found.edits:
            return
        self._compare_sizes(fused)
        if not options.no_verify and not self._verified(fused):
            raise _MismatchError([self._culprit(fused)])
        if not options.no_bench:
            self._bench(fused)

    def _write_fused(self, fused: Path, tell: Tell) -> None:
        """Fuse, run each block by itself, and write the model; what follows reads it from the file."""
        options, found = self._options, self._found
        with self._fused(fused, self._left, tell) as result:
            refuse_invalid(str(options.source), result.remarks)
            found.edits, found.remarks, found.blocks = result.edits, result.remarks, ()
            if result.changed and not options.no_verify:
                found.blocks = check_blocks(model_io.read(options.source), result, on_progress=tell)
            if result.changed:
                tell("writing")
                self._write(result, fused)

    @contextlib.contextmanager
    def _fused(self, fused: Path, leave: Sequence[Edit], tell: Tell | None = None) -> Iterator[FuseResult]:
        """A fused model, whose weights are in a file beside `fused` for as long as the context lasts."""
        options = self._options
        with tempfile.TemporaryDirectory(dir=fused.parent) as folder:
            spill = Spill(Path(folder, "weights"))
            patterns = options.patterns or None
            yield fuse(
                options.source,
                spill,
                patterns=patterns,
                leave=leave,
                plan=self._plan,
                keep_opset=options.keep_opset,
                on_progress=tell,
            )

    def _write(self, result: FuseResult, fused: Path) -> None:
        model_io.write(result.model, fused, external_data=self._options.external_data)

    def _compare_sizes(self, fused: Path) -> None:
        options, found = self._options, self._found
        runs = not (options.no_verify and options.no_bench)
        inputs = resolve_inputs(options.source, **self._feeding.resolving) if runs else []
        chosen = [each for each in inputs if each.chosen]
        if not self._left:
            self._note(*(f"Run with {each}" for each in chosen))
        shapes = {**self._feeding.shapes, **{each.name: each.shape for each in chosen}}
        found.before, found.after = (
            measure_file(path, input_shapes=shapes) for path in (options.source, fused)
        )
        self._voice.say("", report.sizes(found.before, found.after))
        if options.json or options.report:
            self._look_closely(fused, shapes)

    def _look_closely(self, fused: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        """Gather what is written into reports and not printed."""
        options, found = self._options, self._found
        with self._voice.doing("Looking at blocks"):
            model = model_io.read(fused)
            found.quantization = int8.compare(model_io.read(options.source), model, found.edits)
            if self._details:
                result = FuseResult(model, tuple(found.edits), tuple(found.remarks))
                self._details.gather(options.source, fused, result, shapes)

    def _verified(self, fused: Path) -> bool:
        """Compare the outputs of the whole model, and tell."""
        options = self._options
        with self._voice.doing("Verifying") as tell:
            if not self._verifier:
                self._verifier = Verifier(
                    options.source,
                    backends=options.backend,
                    rtol=options.rtol,
                    on_progress=tell,
                    **self._running,
                )
            verification = self._verifier.verify(fused)
        self._found.verification = verification
        self._voice.say("", report.errors(verification))
        return verification.passed

    def _culprit(self, fused: Path) -> BadBlock:
        """The first edit with which the whole model does not match any more."""
        edits = self._found.edits
        assert self._verifier
        verify = self._verifier.verify
        with self._voice.doing("Searching for the block that does not match") as tell:

            def fails(some: Sequence[Edit]) -> bool:
                tell(f"with {len(some)} of {len(edits)}")
                kept = set(some)
                leave = [*self._left, *(edit for edit in edits if edit not in kept)]
                with self._fused(fused, leave) as result:
                    self._write(result, fused)
                return not verify(fused).passed

            edit = first_culprit(edits, fails)
        reason = "the outputs match with the blocks before it, and no longer with it"
        return BadBlock(edit, reason, self._options.keep_going)

    def _bench(self, fused: Path) -> None:
        found = self._found
        skipped = {note.backend for note in found.verification.skipped} if found.verification else set()
        for backend in backends_named(self._options.backend):
            if backend.title in skipped:
                continue
            try:
                with self._voice.doing(f"Measuring latency on {backend.title}"):
                    result = benchmark(self._options.source, fused, backend=backend.name, **self._running)
                found.benchmarks.append(result)
            except BackendError as error:
                self._note(f"Latency was not measured everywhere: {error}")
        if found.benchmarks:
            self._voice.say("", report.latency(found.benchmarks))

    @property
    def _running(self) -> dict[str, Any]:
        """What verifying and measuring run models with."""
        feeding = {f"input_{name}": value for name, value in self._feeding.resolving.items()}
        return {"threads": self._options.threads, "seed": self._options.seed, **feeding}

    def _note(self, *texts: str) -> None:
        for text in texts:
            self._found.notes.append(text)
            self._voice.say(report.note(text))


@contextlib.contextmanager
def _destination(options: Options) -> Iterator[Path]:
    """Where the fused model is built: beside the target, or for a dry run wherever temporary files go."""
    if options.target and not options.dry_run:
        with staged(options.target) as path:
            yield path
    else:
        with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
            yield Path(folder, "fused.onnx")
