"""`repfuse bench`: what it says of two files, in text and JSON, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from commandline import BRANCHED, CONV1, CONV3, enter_folder, files, model, repfuse
from onnx import helper

from repfuse.jobs import versus
from repfuse.measures.bench import Benchmark, all_threads
from repfuse.measures.memory import Memory
from repfuse.runtimes.backends import BackendError

SHORT = ("--rounds", "1")


def measured(low, high, threads=1, backend="Some Runtime 1.0", confidence=0.9996):
    return Benchmark(
        backend, threads, 20.0, 10.0, (low + high) / 2, low, high, confidence, rounds=40, preempted=7,
        warm_up=6, times_ms=(((20.0, 10.0),) * 20,) * 2, outliers_ms=(31.4, 27.0),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    here = enter_folder(tmp_path, monkeypatch)
    onnx.save(model(*BRANCHED), "other.onnx")
    return here


@pytest.fixture
def results(folder, monkeypatch):
    """Fill this with what is to be found; the models are not run."""
    found: list[Benchmark] = []
    remaining = iter(found)
    monkeypatch.setattr(versus, "benchmark", lambda *_, **__: next(remaining))
    monkeypatch.setattr(versus, "measure_memory", lambda *_, **__: Memory(2_000_000, None, None))
    return found


def bench(*flags):
    return repfuse("bench", "in.onnx", "other.onnx", "--backend", "ort", *flags)


def test_two_files_are_measured(folder):
    result = bench(*SHORT, "--threads", "1", "--json", "report.json")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("ONNX Runtime", "speed-up", "95 % interval", "warm-up", "outliers", "Peak memory"):
        assert words in result.stdout
    report = json.loads(Path("report.json").read_text())
    (latency,) = report["latency"]
    assert (report["schema"], report["before"], report["after"]) == (1, "in.onnx", "other.onnx")
    assert latency["verdict"] in ("faster", "same", "slower")
    assert [len(latency["times_ms"]), len(latency["times_ms"][0]), latency["rounds"]] == [1, 1, 1]
    assert report["memory"][0].keys() == {"backend", "before", "after"}
    assert files(folder) == ["in.onnx", "other.onnx", "report.json"]


def test_one_thread_and_all_of_them_unless_told(results):
    results += [measured(1.5, 1.6, threads=count) for count in (1, 2)]
    assert bench().exit_code == 0
    assert len(results) >= len({1, all_threads()})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (measured(1.5, 1.6), "faster (above 99.9 %)"),
        (measured(0.5, 0.6, confidence=0.981), "slower (98.1 %)"),
        (measured(0.99, 1.01, confidence=0.93), "same (93.0 %)"),
    ],
)
def test_the_verdict_is_said_with_its_confidence(results, row, said):
    results.append(row)
    lines = bench("--threads", "1").stdout.splitlines()
    assert any(said in line and "20.0 ms" in line and "10.0 ms" in line for line in lines)
    assert any("2, up to 31.4 ms" in line and "6 rounds" in line for line in lines)
    assert any(line.split()[-4:] == ["MB", "2", "MB", "+0.0", "%"][-4:] for line in lines)


@pytest.mark.parametrize(("required", "code"), [("1.05", 0), ("1.5", 0), ("1.51", 4), ("1.55", 4)])
def test_a_speedup_may_be_required(results, required, code):
    results.append(measured(1.5, 1.6))
    result = bench("--threads", "1", "--require-speedup", required, "-q", "--json", "report.json")
    assert (result.exit_code, result.stdout) == (code, "")
    assert ("not shown to be" in result.stderr) is bool(code)
    assert json.loads(Path("report.json").read_text())["passed"] is (code == 0)


def test_every_measurement_must_reach_it_and_those_that_do_not_are_named(results):
    results += [measured(1.5, 1.6), measured(1.0, 1.2, threads=3)]
    result = bench("--threads", "1", "--threads", "3", "--require-speedup", "1.05")
    assert result.exit_code == 4
    assert "Some Runtime 1.0, 3 threads: 1.100x, 1.000 to 1.200" in result.stderr
    assert "1 thread:" not in result.stderr


def test_models_of_other_inputs_cannot_be_compared(folder):
    onnx.save(model(CONV3, CONV1, *BRANCHED[2:], shape=(1, 4, 9, 9)), "other.onnx")
    renamed = onnx.load("other.onnx")
    renamed.graph.input[0].name = "z"
    onnx.save(renamed, "other.onnx")
    result = bench(*SHORT)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "other.onnx takes other inputs than in.onnx ('z' instead of 'x'" in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rounds", "0"), "--rounds"),
        (("--require-speedup", "0"), "--require-speedup"),
        (("--json", "none/report.json"), "there is no folder 'none'"),
        (("--input-shape", "nobody:1,2"), "no input 'nobody'"),
    ],
)
def test_bad_usage(folder, flags, words):
    result = bench(*SHORT, *flags)
    assert (result.exit_code, words in result.stderr) == (2, True)


def test_a_file_that_is_not_there(folder):
    result = repfuse("bench", "in.onnx", "nowhere.onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nowhere.onnx" in result.stderr


def test_a_backend_that_cannot_run_a_model_is_noted_and_if_none_can_it_is_an_error(folder, monkeypatch):
    foreign = helper.make_node("Odd", ["x"], ["y"], domain="com.example")
    strange = model(foreign)
    strange.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(strange, "other.onnx")
    result = bench(*SHORT)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Odd" in result.stderr

    def one_fails(*_, backend, **__):
        if backend == "openvino":
            raise BackendError("OpenVINO: out of order")
        return measured(1.5, 1.6)

    monkeypatch.setattr(versus, "benchmark", one_fails)
    monkeypatch.setattr(versus, "measure_memory", lambda *_, **__: Memory(None, None, None))
    runtimes = versus.backends_named("ort")
    monkeypatch.setattr(versus, "backends_named", lambda _: [*runtimes, versus_openvino()])
    result = repfuse("bench", "in.onnx", "other.onnx", "--threads", "1")
    assert result.exit_code == 0
    assert "Not measured everywhere: OpenVINO: out of order" in result.stdout


def versus_openvino():
    class OpenVINO:
        name, title = "openvino", "OpenVINO"

    return OpenVINO()


def test_the_help_names_every_option_and_exit_code():
    result = repfuse("bench", "--help")
    assert result.output.startswith("Usage: repfuse bench [OPTIONS] BEFORE.onnx AFTER.onnx\n")
    for flag in ("--backend", "--threads", "--seconds", "--rounds", "--require-speedup", "--input-shape"):
        assert f"  {flag} " in result.output
    for code in (0, 2, 4, 70, 130):
        assert f"\n  {code} " in result.output
    assert "repfuse bench" in repfuse("--help").output
