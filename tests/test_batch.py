"""`repfuse batch` and `repfuse.batch`: many models, in parallel, resumed where they were stopped."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import onnx
import pytest
from commandline import BRANCHED, PLAIN, enter_folder, model, operators, wrong
from commandline import repfuse as command_line

import repfuse
from repfuse import BadInputError
from repfuse.jobs import batching
from repfuse.jobs.batching import BatchRecord, batch
from repfuse.model import places

QUICK: dict[str, Any] = {"backend": "ort", "no_verify": True}


class AtOnce(Executor):
    """Does the work in place; a process would have to import everything first."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Dying(AtOnce):
    """An executor whose processes die."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("died"))
        return future


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models that can be fused, one that cannot, and one that is none."""
    folder = enter_folder(tmp_path, monkeypatch)
    Path("models/deep").mkdir(parents=True)
    onnx.save(model(*BRANCHED), "models/a.onnx")
    onnx.save(model(*BRANCHED), "models/deep/a.onnx")
    onnx.save(model(*PLAIN), "models/plain.onnx")
    Path("models/text.onnx").write_text("no model")
    return folder


def lines(path: str = "out/batch.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def statuses(records: list[BatchRecord]) -> dict[str, str]:
    return {record.source: record.status for record in records}


EVERYTHING = {
    "models/a.onnx": "fused",
    "models/deep/a.onnx": "fused",
    "models/plain.onnx": "copied",
    "models/text.onnx": "error",
}


# What becomes of each model


def test_each_model_is_fused_and_recorded(folder: Path) -> None:
    records = batch(["models/**/*.onnx"], "out", executor=AtOnce(), **QUICK)
    assert statuses(records) == EVERYTHING
    assert operators("out/a.onnx") == operators("out/deep/a.onnx") == ["Conv", "Sigmoid"]
    assert Path("out/plain.onnx").read_bytes() == Path("models/plain.onnx").read_bytes()
    assert not Path("out/text.onnx").exists()
    assert {line["source"]: line["status"] for line in lines()} == EVERYTHING
    assert records[0].report and records[0].report["groups"] == {
        "found": 1,
        "fused": 1,
        "refused": 0,
        "rewritten": 0,
        "kept": 0,
    }
    assert records[3].message.startswith("not an ONNX file")


def test_the_command_uses_processes_and_prints_a_table(folder: Path) -> None:
    result = command_line(
        "batch", "models", "--out", "out", "--jobs", "2", "--backend", "ort", "--summary", "summary.md"
    )
    assert result.exit_code == 2  # of the file that is no model
    text = result.output.splitlines()
    assert [line.split()[:2] for line in text[1:5]] == [list(item) for item in EVERYTHING.items()]
    assert text[-1] == "4 models: 1 copied, 1 error, 2 fused"
    assert "4 -> 2" in text[1]
    assert text[5].startswith("models/text.onnx: not an ONNX file")
    assert Path("summary.md").read_text().startswith("### repfuse: 4 models: 1 copied")
    assert Path("summary.md").read_text().count("\n| `models/") == 4


def test_what_does_not_match_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    (record,) = batch(["models/a.onnx"], "out", executor=AtOnce(), backend="ort")
    assert (record.status, record.exit_code, Path("out/a.onnx").exists()) == ("mismatch", 1, False)
    assert "does not match" in record.message
    assert record.report and record.report["written"] is False


def test_an_error_in_repfuse_is_the_models_error_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("repfuse.jobs.pipeline.run", fail)
    (record,) = batch(["models/a.onnx"], "out", executor=AtOnce(), **QUICK)
    assert (record.status, record.exit_code) == ("error", 70)
    assert "ZeroDivisionError: oh" in record.message


# Resuming


def test_what_is_done_is_skipped(folder: Path) -> None:
    batch(["models"], "out", executor=AtOnce(), **QUICK)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.onnx")}
    again = batch(["models"], "out", executor=AtOnce(), **QUICK)
    assert statuses(again) == EVERYTHING
    assert [record.before for record in again] == [True, True, True, False]  # what failed is tried again
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.onnx")} == before
    assert len(lines()) == 5


@pytest.mark.parametrize("change", ["model", "options", "target", "version"])
def test_what_changed_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    options = dict(QUICK)
    batch(["models/a.onnx"], "out", executor=AtOnce(), **options)
    if change == "model":
        onnx.save(model(*PLAIN), "models/a.onnx")
    if change == "options":
        options["patterns"] = ("mobileone",)
    if change == "target":
        Path("out/a.onnx").unlink()
    if change == "version":
        monkeypatch.setattr(batching, "__version__", "99")
    (record,) = batch(["models/a.onnx"], "out", executor=AtOnce(), **options)
    assert not record.before
    assert len(lines()) == 2
    assert Path("out/a.onnx").exists()


def test_a_change_of_external_data_is_seen(folder: Path) -> None:
    onnx.save(model(*BRANCHED), "models/a.onnx", save_as_external_data=True, location="w", size_threshold=0)
    batch(["models/a.onnx"], "out", executor=AtOnce(), **QUICK)
    data = bytearray(Path("models/w").read_bytes())
    data[3] ^= 1
    Path("models/w").write_bytes(bytes(data))
    (record,) = batch(["models/a.onnx"], "out", executor=AtOnce(), **QUICK)
    assert not record.before


def test_a_record_that_was_cut_short_is_made_again(folder: Path) -> None:
    batch(["models/a.onnx", "models/plain.onnx"], "out", executor=AtOnce(), **QUICK)
    log = Path("out/batch.jsonl")
    log.write_bytes(log.read_bytes()[:-20])
    again = batch(["models/a.onnx", "models/plain.onnx"], "out", executor=AtOnce(), **QUICK)
    assert sorted(record.before for record in again) == [False, True]
    assert len(lines()) == 2


def test_a_line_that_is_no_record_is_passed_over(folder: Path) -> None:
    Path("out").mkdir()
    Path("out/batch.jsonl").write_text('{"other": 1}\nnot json\n')
    assert statuses(batch(["models/a.onnx"], "out", executor=AtOnce(), **QUICK)) == {"models/a.onnx": "fused"}


# Executors


def test_any_executor_will_do(folder: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        assert statuses(batch(["models"], "out", executor=executor, **QUICK)) == EVERYTHING


def test_a_process_that_died_is_told(folder: Path) -> None:
    (record,) = batch(["models/a.onnx"], "out", executor=Dying(), **QUICK)
    assert (record.status, record.exit_code) == ("error", 2)
    assert "died" in record.message


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_process_that_dies_takes_no_other_model_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_fuse_one", die_on_plain)
    records = batch(["models"], "out", jobs=2, **QUICK)
    assert statuses(records) == EVERYTHING | {"models/plain.onnx": "error"}
    assert "died" in records[2].message


def die_on_plain(job: batching._Job) -> BatchRecord:
    if "plain" in job.source:
        os.kill(os.getpid(), signal.SIGKILL)
    return batching._fuse_one(job)


def test_a_dask_cluster_loses_nothing_when_a_worker_is_killed(folder: Path) -> None:
    distributed = pytest.importorskip("distributed")
    names = [f"models/{number}.onnx" for number in range(12)]
    for name in names:
        onnx.save(model(*BRANCHED), name)
    killed = threading.Event()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)

        def kill_one(_: BatchRecord) -> None:
            busy = [address for address, tasks in client.processing().items() if tasks]
            if busy and not killed.is_set():
                os.kill(pids[busy[0]], signal.SIGKILL)
                killed.set()

        records = batch(names, "out", executor=client.get_executor(pure=False), on_record=kill_one, **QUICK)
    assert killed.is_set()
    assert statuses(records) == dict.fromkeys(names, "fused")
    assert sorted(line["source"] for line in lines()) == sorted(names)  # nothing lost, nothing twice
    assert all(operators(f"out/{number}.onnx") == ["Conv", "Sigmoid"] for number in range(12))


def test_the_command_hands_the_work_to_a_cluster(folder: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
    ) as cluster:
        where = ("--scheduler", cluster.scheduler_address)
        result = command_line("batch", "models/a.onnx", "--out", "out", "--no-verify", *where)
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "1 model: 1 fused")


# URLs


def test_urls_in_memory(folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    onnx.save(model(*BRANCHED), "models/a.onnx", save_as_external_data=True, location="w", size_threshold=0)
    memory.put("models", "/bucket/models", recursive=True)
    arguments = (["memory://bucket/models/**/*.onnx"], "memory://bucket/fused")
    records = batch(*arguments, log="log.jsonl", executor=AtOnce(), **QUICK)
    assert [record.status for record in records] == list(EVERYTHING.values())
    written = {name for name in memory.find("/bucket/fused") if name.endswith(".onnx")}
    assert written == {f"/bucket/fused/{name}" for name in ("a.onnx", "deep/a.onnx", "plain.onnx")}
    memory.get("/bucket/fused/a.onnx", "a.onnx")
    assert operators("a.onnx") == ["Conv", "Sigmoid"]
    again = batch(*arguments, log="log.jsonl", executor=AtOnce(), **QUICK)
    assert [record.before for record in again] == [True, True, True, False]
    report = records[0].report
    assert report and (report["input"], report["output"]) == (records[0].source, records[0].target)


def test_urls_of_files(folder: Path) -> None:
    pytest.importorskip("fsspec")
    records = batch(
        [f"file://{folder}/models/*.onnx"], f"file://{folder}/out", log="log", executor=AtOnce(), **QUICK
    )
    assert [record.status for record in records] == ["fused", "copied", "error"]
    assert operators("out/a.onnx") == ["Conv", "Sigmoid"]


def test_a_url_can_be_checked(folder: Path) -> None:
    pytest.importorskip("fsspec")
    result = command_line("check", f"file://{folder}/models/a.onnx")
    assert (result.exit_code, "1 RepConv block is not fused" in result.output) == (3, True)


# Bad usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models/a.onnx"], "Missing option '--out'"),
        (["nowhere/*.onnx", "--out", "out"], "there is no model here"),
        (["models/a.onnx", "models/deep/a.onnx", "--out", "out"], "would be written to out/a.onnx, too"),
        (["models/a.onnx", "--out", "memory://out"], "name a file of this machine for the records"),
        (["models/a.onnx", "--out", "nosuch://out", "--log", "log"], "no such file system"),
        (["nosuch://a.onnx", "--out", "out"], "no such file system"),
        (["models", "--out", "out", "--bench", "--jobs", "2"], "--bench takes one model at a time"),
        (["models", "--out", "out", "--summary", "no/such.md"], "there is no folder 'no'"),
        (["models", "--out", "out", "--log", "no/such.jsonl"], "cannot be used for records"),
        (["models/a.onnx", "--out", "models"], "would overwrite"),
    ],
)
def test_bad_usage(folder: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_pool", lambda _: AtOnce())
    result = command_line("batch", *arguments)
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert words in result.output


def test_a_scheduler_that_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    result = command_line("batch", "models", "--out", "out", "--scheduler", "tcp://127.0.0.1:1")
    assert (result.exit_code, "no scheduler answers there" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("distributed", ["models", "--out", "out", "--scheduler", "tcp://127.0.0.1:1"], "repfuse[dask]"),
        ("fsspec.core", ["s3://bucket/a.onnx", "--out", "out"], "repfuse[fsspec]"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str, arguments: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = command_line("batch", *arguments)
    assert (result.exit_code, extra in result.output) == (2, True)


# Places


def test_results_of_an_earlier_run_are_no_models(folder: Path) -> None:
    first = batch(["models/**/*.onnx"], "models/fused", executor=AtOnce(), **QUICK)
    again = batch(["models/**/*.onnx"], "models/fused", executor=AtOnce(), **QUICK)
    assert statuses(again) == statuses(first) == EVERYTHING


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("models/a.onnx", {"models/a.onnx": "a.onnx"}),
        ("models/deep", {"models/deep/a.onnx": "a.onnx"}),
        ("models/*/a.onnx", {"models/deep/a.onnx": "deep/a.onnx"}),
        ("models/**/a.onnx", {"models/a.onnx": "a.onnx", "models/deep/a.onnx": "deep/a.onnx"}),
        ("./models/dee?/*.onnx", {"./models/deep/a.onnx": "deep/a.onnx"}),
        ("no_such.onnx", {"no_such.onnx": "no_such.onnx"}),
    ],
)
def test_what_a_pattern_stands_for(folder: Path, pattern: str, expected: dict[str, str]) -> None:
    assert dict(places.expand([pattern])) == expected


def test_a_name_with_brackets_is_a_name_if_there_is_such_a_file(folder: Path) -> None:
    onnx.save(model(*PLAIN), "models/a[1].onnx")
    assert [place.name for place in places.expand(["models/a[1].onnx"])] == ["models/a[1].onnx"]


def test_nothing_matches(folder: Path) -> None:
    with pytest.raises(BadInputError, match="no model here"):
        repfuse.batch(["models/*.pt"], "out")
