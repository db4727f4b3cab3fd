"""The main job: read, fuse, verify, measure, write, and tell about each step as it is done."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from repfuse import __version__
from repfuse.choice.plan import Plan
from repfuse.errors import BadInputError, VerificationError
from repfuse.fusion import FuseResult
from repfuse.fusion import fuse_file as fuse
from repfuse.measures import int8
from repfuse.measures.bench import benchmark
from repfuse.measures.stats import measure_file
from repfuse.measures.tuning import BUDGET, tune
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
from repfuse.runtimes.backends import Array, BackendError
from repfuse.runtimes.inputs import (
    Range,
    load_input_data,
    parse_input_range,
    parse_input_shape,
    resolve_inputs,
)
from repfuse.runtimes.installed import backends_named


@dataclass(frozen=True)
class Options:
    """What the user asked for; the flags of the command line, one for one.

    Attributes:
        source: The model to read.
        target: The file to write; None only with `dry_run`.
        patterns: Names or .toml files of the patterns to fuse; all where there are none.
        backend: `ort`, `openvino` or `all`.
        no_verify: Leave the comparison out.
        no_bench: Leave the measuring out.
        tune: Decide by measuring which groups to fuse.
        tune_cache: A file in which measurements are kept.
        tune_budget: Seconds for them.
        keep_opset: Do not raise the version of the operator set.
        keep_going: Leave blocks alone that do not match, in place of giving up.
        rtol: The largest error to accept; None for one made from the noise floor.
        threads: How many threads models run with.
        input_shapes: Such as `images:1,3,640,640`.
        input_data: An .npz or .npy file to feed models with.
        input_ranges: Such as `images:0,255`.
        seed: Of random inputs.
        external_data: Whether large tensors are written into OUT.onnx.data; None if they do not fit elsewhere.
        dry_run: Write nothing.
        json: Where to write the report as JSON.
        report: Where to write it as an HTML page.
        command: The command line, which the page shows.
        quiet: Print errors only.
        verbose: Print every remark.
    """

    source: Path
    target: Path | None = None
    patterns: tuple[str, ...] = ()
    backend: str = "all"
    no_verify: bool = False
    no_bench: bool = False
    tune: bool = False
    tune_cache: Path | None = None
    tune_budget: float = BUDGET
    keep_opset: bool = False
    keep_going: bool = False
    rtol: float | None = None
    threads: int = 1
    input_shapes: tuple[str, ...] = ()
    input_data: Path | None = None
    input_ranges: tuple[str, ...] = ()
    seed: int = 0
    external_data: bool | None = None
    dry_run: bool = False
    json: Path | None = None
    report: Path | None = None
    command: str = ""
    quiet: bool = False
    verbose: bool = False


def run(options: Options) -> None:
    """Do the job.

    Raises:
        BadInputError: Something that the user handed over cannot be used; nothing was written.
        VerificationError: The fused model does not match; nothing but reports were written.
    """
    _check_files(options)
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


def _check_files(options: Options) -> None:
    """Find out before the work begins that a file cannot be written, or would overwrite another."""
    written = {
        "the JSON report": options.json,
        "the HTML report": options.report,
        "the tuning cache": options.tune_cache,
    }
    for path in filter(None, written.values()):
        if not path.absolute().parent.is_dir():
            raise BadInputError(f"{path}: there is no folder '{path.parent}'; make it first")
    files = {"IN.onnx": options.source, "OUT.onnx": options.target, **written}
    named = [(title, file) for title, file in files.items() if file]
    for (title, file), (other_title, other) in itertools.combinations(named, 2):
        if file.resolve() == other.resolve() or (file.exists() and other.exists() and file.samefile(other)):
            raise BadInputError(f"{other}: {other_title} would overwrite {title}; give it another name")


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
        self._feeding = _Feeding.of(options)
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


@dataclass(frozen=True)
class _Feeding:
    """What models are run on, as the user gave it."""

    shapes: Mapping[str, Sequence[int]]
    data: Mapping[str, Array] | None
    ranges: Mapping[str, Range]

    @staticmethod
    def of(options: Options) -> _Feeding:
        return _Feeding(
            dict(map(parse_input_shape, options.input_shapes)),
            load_input_data(options.input_data, options.source) if options.input_data else None,
            dict(map(parse_input_range, options.input_ranges)),
        )

    @property
    def given(self) -> bool:
        return bool(self.shapes or self.data or self.ranges)

    @property
    def resolving(self) -> dict[str, Any]:
        return {"shapes": self.shapes, "data": self.data, "ranges": self.ranges}
