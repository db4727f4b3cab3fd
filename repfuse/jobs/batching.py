"""Many models: each is fused, checked and written by a worker, and recorded in a file of JSON lines.

What the records show as done is skipped by the next run, so a batch that was stopped goes on where it was. Work is
handed to any `concurrent.futures.Executor`; the records are written by the caller alone, one for each model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from repfuse import __version__
from repfuse.errors import BadInputError, RepfuseError, VerificationError
from repfuse.model import external, model_io, places
from repfuse.reporting.plain import as_plain

SCHEMA = 1
"""Version of a record; like that of `reporting.report`."""

LOG = "batch.jsonl"
"""What the records are called in the output folder."""

INTERNAL_ERROR = 70


@dataclass(frozen=True)
class BatchRecord:
    """What became of one model.

    Attributes:
        source: The model, a path or URL.
        target: Where the fused one was written, or would have been.
        status: `fused`; `copied` where there was nothing to fuse; `mismatch` where the fused model does not compute
            the same; or `error`.
        message: What went wrong, in a sentence; empty where nothing did.
        exit_code: What the command line would have ended with for this model.
        key: A hash of what the result depends on: the model's content, the options and repfuse's version.
        seconds: How long it took.
        report: What `repfuse --json` writes; None where there was an error.
        schema: Version of the record's form.
        before: Whether an earlier run did this one.
    """

    source: str
    target: str
    status: str
    message: str = ""
    exit_code: int = 0
    key: str = ""
    seconds: float = 0.0
    report: Mapping[str, Any] | None = None
    schema: int = SCHEMA
    before: bool = False

    @property
    def done(self) -> bool:
        """Whether the target was written."""
        return self.exit_code == 0


@dataclass(frozen=True)
class _Job:
    source: str
    target: str
    options: Mapping[str, Any]
    known: BatchRecord | None


def batch(
    sources: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    jobs: int | None = None,
    log: str | os.PathLike[str] | None = None,
    on_record: Callable[[BatchRecord], None] | None = None,
    **options: Any,
) -> list[BatchRecord]:
    """Fuse many models, in parallel; whatever an earlier run has done already is skipped.

    Args:
        sources: Paths, globs, folders or URLs that fsspec knows.
        out: The folder to write to, or its URL; models keep their paths below a glob's fixed part.
        executor: Where to do the work; None for `jobs` processes of this machine.
        jobs: How many processes; None for one for each processor.
        log: The file of JSON lines; None for `batch.jsonl` in `out`.
        on_record: Told of each model as soon as it is done, also of those that were done before.
        options: As the fields of `jobs.options.Options`: `patterns`, `backend`, `no_verify`, `rtol` ... Latency
            is measured with `no_bench=False` only, since models that run side by side disturb each other.

    Returns:
        A record for each model, in the order of `sources`.

    Raises:
        BadInputError: There is no such model, two would be written to one place, or the log cannot be written.
    """
    records = _Log(Path(log) if log is not None else _default_log(str(out)))
    work = _jobs(sources, str(out), {"no_bench": True, **options}, records.known)
    found: dict[str, BatchRecord] = {}
    for record in _run(work, executor, jobs):
        if not record.before:
            records.add(record)
        found[record.source] = record
        if on_record:
            on_record(record)
    return [found[job.source] for job in work]


def _default_log(out: str) -> Path:
    if places.is_url(out):
        raise BadInputError(f"{out}: is a URL; name a file of this machine for the records (--log)")
    Path(out).mkdir(parents=True, exist_ok=True)
    return Path(out, LOG)


def _jobs(
    sources: Iterable[str | os.PathLike[str]],
    out: str,
    options: Mapping[str, Any],
    known: Mapping[str, BatchRecord],
) -> list[_Job]:
    """A job for each model that is not itself the result of another."""
    jobs: dict[str, _Job] = {}
    for place in places.expand(map(str, sources)):
        if _is_result(place, out):
            continue
        target = places.join(out, place.relative)
        if target in jobs:
            raise BadInputError(
                f"{place.name}: {jobs[target].source} would be written to {target}, too; "
                "give them different names, or name the folder above both"
            )
        jobs[target] = _Job(place.name, target, options, known.get(place.name))
    return list(jobs.values())


def _is_result(place: places.Place, out: str) -> bool:
    """Whether a glob found what an earlier run wrote, as `models/**` finds `models/fused/a.onnx`."""
    if places.is_url(place.name) or places.is_url(out):
        return place.name.startswith(f"{out.rstrip('/')}/")
    folder, name = Path(out).resolve(), Path(place.name).resolve()
    root = name.parents[len(Path(place.relative).parts) - 1]
    return name.is_relative_to(folder) and not root.is_relative_to(folder)


def _run(jobs: Sequence[_Job], executor: Executor | None, processes: int | None) -> Iterator[BatchRecord]:
    """The jobs' records as they come; a job whose process died is tried again, in a process of its own."""
    if executor is not None:
        yield from _gather(jobs, executor, None)
        return
    broken: list[_Job] = []
    with _pool(processes or os.cpu_count() or 1) as pool:
        yield from _gather(jobs, pool, broken)
    for job in broken:
        with _pool(1) as pool:
            yield from _gather([job], pool, None)


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[Executor]:
    """Processes that share nothing with this one, which may have threads; stopped early, they begin no more."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _gather(jobs: Sequence[_Job], executor: Executor, broken: list[_Job] | None) -> Iterator[BatchRecord]:
    """Hand jobs to an executor; those that died with their process go to `broken`, if there is such a list."""
    futures = {executor.submit(_fuse_one, job): job for job in jobs}
    for future in as_completed(futures):
        job = futures[future]
        try:
            record = future.result()
        except BrokenExecutor:
            if broken is not None:
                broken.append(job)
                continue
            record = _failed(job, "the process that worked on it died (of too little memory, perhaps)", 2)
        except Exception as error:
            record = _failed(job, f"its worker failed: {type(error).__name__}: {error}", INTERNAL_ERROR)
        yield record


def _fuse_one(job: _Job) -> BatchRecord:
    """Do one job: this is what runs in a worker."""
    start = time.monotonic()
    try:
        with places.local(job.source) as source:
            key = _key(source, job.options)
            if job.known and job.known.done and job.known.key == key and places.exists(job.target):
                return replace(job.known, before=True)
            with places.target(job.target) as target:
                report, failure = _report(source, target, job.options)
                report |= {"input": job.source, "output": job.target}
    except RepfuseError as error:
        return _failed(job, str(error), error.exit_code)
    except OSError as error:
        return _failed(job, str(error), RepfuseError.exit_code)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(job, f"{reason} (a bug in repfuse; please report it)", INTERNAL_ERROR)
    status = "mismatch" if failure else "fused" if report["edits"] else "copied"
    code = VerificationError.exit_code if failure else 0
    seconds = round(time.monotonic() - start, 3)
    return BatchRecord(job.source, job.target, status, failure, code, key, seconds, report)


def _report(source: Path, target: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Run the main job on a model; its report, and how the result fails to match, if it does."""
    # The caller of `batch` needs none of what these import.
    from repfuse.jobs import pipeline  # noqa: PLC0415
    from repfuse.jobs.options import Options  # noqa: PLC0415

    failure = ""
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        written = Path(folder, "report.json")
        try:
            pipeline.run(Options(source=source, target=target, json=written, quiet=True, **options))
        except VerificationError as error:
            failure = str(error)
        report: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    return report, failure


def _failed(job: _Job, message: str, code: int) -> BatchRecord:
    return BatchRecord(job.source, job.target, "error", message.removeprefix(f"{job.source}: "), code)


def _key(model: Path, options: Mapping[str, Any]) -> str:
    """A hash of a model with its external data, of the options, and of repfuse's version."""
    content = hashlib.sha256(json.dumps([__version__, as_plain(options)], default=str).encode())
    for path in (model, *(model.parent / name for name in external.names(model_io.structure(model)))):
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                content.update(part)
    return content.hexdigest()


class _Log:
    """The records of this and earlier runs, in a file of JSON lines; of one model the last one counts.

    Attributes:
        known: The records of earlier runs by source.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, BatchRecord] = {}
        try:
            self.known = {record.source: record for record in self._read()}
        except OSError as error:
            raise BadInputError(f"{path}: cannot be used for records: {error.strerror}") from error

    def add(self, record: BatchRecord) -> None:
        """Append a record; it is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> Iterator[BatchRecord]:
        """The records in the file; a line that was cut short, when a run was killed, is removed."""
        self._path.touch()
        with self._path.open("rb+") as file:
            whole = 0
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(whole)
                    return
                whole += len(line)
                with contextlib.suppress(ValueError, TypeError):  # another version's record: done again
                    yield BatchRecord(**json.loads(line))
