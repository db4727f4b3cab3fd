"""The main job: read, fuse, verify, measure, write, and tell about each step as it is done."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repfuse import __version__, model_io, report
from repfuse.backends import Array, BackendError, backends_named
from repfuse.bench import benchmark
from repfuse.blockcheck import check_blocks
from repfuse.errors import BadInputError, VerificationError
from repfuse.fusion import fuse_file as fuse
from repfuse.inputs import load_input_data, parse_input_shape, resolve_inputs
from repfuse.patterns import load_patterns
from repfuse.report import Report
from repfuse.staging import staged
from repfuse.stats import measure_file
from repfuse.storage import Spill
from repfuse.verification import verify
from repfuse.voice import Tell, Voice


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
        rtol: The largest error to accept; None for one made from the noise floor.
        threads: How many threads models run with.
        input_shapes: Such as `images:1,3,640,640`.
        input_data: An .npz or .npy file to feed models with.
        seed: Of random inputs.
        external_data: Whether large tensors are written into OUT.onnx.data; None if they do not fit elsewhere.
        dry_run: Write nothing.
        json: Where to write the report.
        quiet: Print errors only.
        verbose: Print every remark.
    """

    source: Path
    target: Path | None = None
    patterns: tuple[str, ...] = ()
    backend: str = "all"
    no_verify: bool = False
    no_bench: bool = False
    rtol: float | None = None
    threads: int = 1
    input_shapes: tuple[str, ...] = ()
    input_data: Path | None = None
    seed: int = 0
    external_data: bool | None = None
    dry_run: bool = False
    json: Path | None = None
    quiet: bool = False
    verbose: bool = False


def list_patterns(names: Sequence[str]) -> None:
    """Print the patterns that come with repfuse, and those of the .toml files among `names`.

    Raises:
        BadInputError: A file is no pattern.
    """
    Voice().say(report.patterns(load_patterns([name for name in names if name.endswith(".toml")])))


def run(options: Options) -> None:
    """Do the job.

    Raises:
        BadInputError: Something that the user handed over cannot be used; nothing was written.
        VerificationError: The fused model does not match; nothing but the JSON report was written.
    """
    _check_files(options)
    found = Report(options.source, options.target)
    failure = None
    try:
        _fuse(options, found, Voice(quiet=options.quiet))
    except VerificationError as error:
        failure = error
    if options.json:
        with staged(options.json) as temporary:
            text = json.dumps(report.as_dict(found, __version__), indent=2, allow_nan=False)
            temporary.write_text(f"{text}\n", "utf-8")
    if failure:
        raise failure


def _check_files(options: Options) -> None:
    """Find out before the work begins that a file cannot be written, or would overwrite another."""
    if options.json and not options.json.absolute().parent.is_dir():
        raise BadInputError(f"{options.json}: there is no folder '{options.json.parent}'; make it first")
    files = {"IN.onnx": options.source, "OUT.onnx": options.target, "the JSON report": options.json}
    named = [(title, file) for title, file in files.items() if file]
    for (title, file), (other_title, other) in itertools.combinations(named, 2):
        if file.resolve() == other.resolve() or (file.exists() and other.exists() and file.samefile(other)):
            raise BadInputError(f"{other}: {other_title} would overwrite {title}; give it another name")


def _fuse(options: Options, found: Report, voice: Voice) -> None:
    """Do all but the JSON report; `found` is filled in step by step."""
    feeding = _Feeding.of(options)
    if feeding.shapes or feeding.data:  # a mistake in them is told before the work begins
        resolve_inputs(options.source, shapes=feeding.shapes, data=feeding.data)
    with _destination(options) as fused:
        with voice.doing("Fusing") as tell:
            changed = _write_fused(options, found, fused, tell)
        voice.say(report.groups(found.edits, found.remarks, verbose=options.verbose))
        if found.blocks:
            voice.say("", report.blocks(found.blocks))
            if not all(block.passed for block in found.blocks):
                raise VerificationError(report.bad_blocks(found.blocks))
        if changed:
            _check(options, feeding, found, fused, voice)
        else:
            found.before = measure_file(options.source, input_shapes=feeding.shapes)
            if options.target and not options.dry_run:
                model_io.copy(options.source, options.target, external_data=options.external_data)
    found.written = not options.dry_run
    voice.say("", report.ending(found))


@contextlib.contextmanager
def _destination(options: Options) -> Iterator[Path]:
    """Where the fused model is built: beside the target, or for a dry run wherever temporary files go."""
    if options.target and not options.dry_run:
        with staged(options.target) as path:
            yield path
    else:
        with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
            yield Path(folder, "fused.onnx")


def _write_fused(options: Options, found: Report, fused: Path, tell: Tell) -> bool:
    """Fuse, run each block by itself, and write the model; what follows reads it from the file.

    Returns:
        Whether anything was fused; if not, nothing is written.
    """
    with tempfile.TemporaryDirectory(dir=fused.parent) as folder:
        spill = Spill(Path(folder, "weights"))
        result = fuse(options.source, spill, patterns=options.patterns or None, on_progress=tell)
        found.edits, found.remarks = result.edits, result.remarks
        if result.changed and not options.no_verify:
            found.blocks = check_blocks(model_io.read(options.source), result, on_progress=tell)
        if result.changed:
            tell("writing")
            model_io.write(result.model, fused, external_data=options.external_data)
    return result.changed


@dataclass(frozen=True)
class _Feeding:
    """What models are run on, as the user gave it."""

    shapes: Mapping[str, Sequence[int]]
    data: Mapping[str, Array] | None

    @staticmethod
    def of(options: Options) -> _Feeding:
        data = load_input_data(options.input_data, options.source) if options.input_data else None
        return _Feeding(dict(map(parse_input_shape, options.input_shapes)), data)


def _check(options: Options, feeding: _Feeding, found: Report, fused: Path, voice: Voice) -> None:
    """Compare the fused model with the original: sizes, outputs, latencies."""
    runs = not (options.no_verify and options.no_bench)
    inputs = resolve_inputs(options.source, shapes=feeding.shapes, data=feeding.data) if runs else []
    chosen = [each for each in inputs if each.chosen]
    _note(found, voice, *(f"Run with {each}" for each in chosen))
    shapes = dict(feeding.shapes) | {each.name: each.shape for each in chosen}
    found.before, found.after = (measure_file(path, input_shapes=shapes) for path in (options.source, fused))
    voice.say("", report.sizes(found.before, found.after))
    settings: dict[str, Any] = {
        "threads": options.threads,
        "seed": options.seed,
        "input_shapes": feeding.shapes,
        "input_data": feeding.data,
    }
    if not options.no_verify:
        _verify(options, settings, found, fused, voice)
    if not options.no_bench:
        _bench(options, settings, found, fused, voice)


def _verify(options: Options, settings: Mapping[str, Any], found: Report, fused: Path, voice: Voice) -> None:
    with voice.doing("Verifying") as tell:
        verification = verify(
            options.source, fused, backends=options.backend, rtol=options.rtol, on_progress=tell, **settings
        )
    found.verification = verification
    voice.say("", report.errors(verification))
    if not verification.passed:
        raise VerificationError(report.failure(verification))


def _bench(options: Options, settings: Mapping[str, Any], found: Report, fused: Path, voice: Voice) -> None:
    skipped = {note.backend for note in found.verification.skipped} if found.verification else set()
    for backend in backends_named(options.backend):
        if backend.title in skipped:
            continue
        try:
            with voice.doing(f"Measuring latency on {backend.title}"):
                result = benchmark(options.source, fused, backend=backend.name, **settings)
            found.benchmarks.append(result)
        except BackendError as error:
            _note(found, voice, f"Latency was not measured everywhere: {error}")
    if found.benchmarks:
        voice.say("", report.latency(found.benchmarks))


def _note(found: Report, voice: Voice, *texts: str) -> None:
    for text in texts:
        found.notes.append(text)
        voice.say(report.note(text))
