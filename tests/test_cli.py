import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commandline import (
    BLOCKED,
    BRANCHED,
    FAST,
    PLAIN,
    enter_folder,
    files,
    model,
    operators,
    quick,
    repfuse,
    run,
    unchecked,
    wrong,
)

from repfuse import __version__
from repfuse.commandline.cli import main
from repfuse.jobs import pipeline
from repfuse.measures.bench import Benchmark
from repfuse.runtimes import backends


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize("command", [(), ("fuse",)], ids=["unnamed", "named"])
def test_fuses_verifies_measures_and_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    quick(monkeypatch)
    result = repfuse(*command, "in.onnx", "out.onnx", "--backend", "ort")
    assert result.exit_code == 0, result.output
    assert operators("out.onnx") == ["Conv", "Sigmoid"]
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run("out.onnx", x), run("in.onnx", x), rtol=1e-5)
    for words in ("1 group found: 1 fused", "nodes", "noise floor", "95 % interval", "Wrote out.onnx"):
        assert words in result.stdout
    assert result.stderr == ""
    assert files(folder) == ["in.onnx", "out.onnx"]


def test_an_existing_file_is_replaced(folder: Path) -> None:
    Path("out.onnx").write_text("old")
    assert repfuse("in.onnx", "out.onnx", *FAST).exit_code == 0
    assert operators("out.onnx") == ["Conv", "Sigmoid"]


def test_nothing_to_fuse_gives_a_copy(folder: Path) -> None:
    onnx.save(model(*PLAIN), "in.onnx")
    result = repfuse("in.onnx", "out.onnx", *FAST)
    assert result.exit_code == 0
    assert "Nothing to fuse: no linear branches meet" in result.stdout
    assert "Wrote out.onnx, a copy of in.onnx" in result.stdout
    assert Path("out.onnx").read_bytes() == Path("in.onnx").read_bytes()
    assert files(folder) == ["in.onnx", "out.onnx"]


def test_a_fused_model_is_fused_already(folder: Path) -> None:
    assert repfuse("in.onnx", "once.onnx", *FAST).exit_code == 0
    result = repfuse("once.onnx", "twice.onnx", *FAST)
    assert (result.exit_code, "Nothing to fuse" in result.stdout) == (0, True)
    assert Path("once.onnx").read_bytes() == Path("twice.onnx").read_bytes()


def test_refused_groups_are_explained_and_give_a_copy(folder: Path) -> None:
    onnx.save(model(*BLOCKED), "in.onnx")
    result = repfuse("in.onnx", "out.onnx", *FAST)
    assert result.exit_code == 0
    assert "1 group found: 0 fused, 1 refused" in result.stdout
    assert "Relu 'relu'" in result.stdout
    assert Path("out.onnx").read_bytes() == Path("in.onnx").read_bytes()


def test_external_data_go_along(folder: Path) -> None:
    onnx.save(model(*BRANCHED), "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (folder / "sub").mkdir()
    result = repfuse("in.onnx", "sub/out.onnx", *FAST)
    assert result.exit_code == 0, result.output
    x = np.ones((1, 4, 8, 8), np.float32)
    np.testing.assert_allclose(run("sub/out.onnx", x), run("in.onnx", x), rtol=1e-5)


def test_a_wrong_block_is_named_and_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    Path("out.onnx").write_text("old")
    result = repfuse("in.onnx", "out.onnx", *FAST, "--json", "report.json")
    assert result.exit_code == 1
    assert Path("out.onnx").read_text() == "old"
    assert files(folder) == ["in.onnx", "out.onnx", "report.json"]
    for words in (
        "Error: a fused block does not match",
        "nothing was written",
        "'s' (RepConv): weights off by",
    ):
        assert words in result.stderr
    written = json.loads(Path("report.json").read_text())
    assert (written["written"], [block["passed"] for block in written["blocks"]]) == (False, [False])


def test_a_wrong_input_shape_is_told_before_the_work_begins(folder: Path) -> None:
    result = repfuse("in.onnx", "out.onnx", *FAST, "--input-shape", "nobody:1,2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no input 'nobody'" in result.stderr


def test_each_block_is_run_by_itself(folder: Path) -> None:
    result = repfuse("in.onnx", "out.onnx", *FAST, "--json", "report.json")
    assert "1 block run alone in float64" in result.stdout
    (block,) = json.loads(Path("report.json").read_text())["blocks"]
    assert block["passed"] and block["error_ulp"] <= 0.5005
    assert "run alone" not in repfuse("in.onnx", "out.onnx", *FAST, "--no-verify").stdout


def test_a_wrong_result_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    unchecked(monkeypatch)
    Path("out.onnx").write_text("old")
    result = repfuse("in.onnx", "out.onnx", *FAST, "--json", "report.json")
    assert result.exit_code == 1
    assert Path("out.onnx").read_text() == "old"
    assert files(folder) == ["in.onnx", "out.onnx", "report.json"]
    assert "FAILED" in result.stdout
    for words in (
        "Error: the fused model does not match",
        "nothing was written",
        "ONNX Runtime",
        "'y'",
        "--rtol",
    ):
        assert words in result.stderr
    written = json.loads(Path("report.json").read_text())
    assert (written["written"], written["verification"]["passed"]) == (False, False)


def test_the_tolerance_that_is_named_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    unchecked(monkeypatch)
    rtol = repfuse("in.onnx", "out.onnx", *FAST).stderr.split("--rtol ")[1].split()[0]
    assert repfuse("in.onnx", "out.onnx", *FAST, "--rtol", rtol).exit_code == 0
    assert repfuse("in.onnx", "out.onnx", *FAST, "--rtol", str(float(rtol) / 2)).exit_code == 1


def test_no_verify_writes_whatever_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    result = repfuse("in.onnx", "out.onnx", *FAST, "--no-verify")
    assert (result.exit_code, "noise floor" in result.stdout) == (0, False)
    assert "Wrote out.onnx, not verified" in result.stdout


def test_a_wrong_result_fails_a_dry_run_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    assert repfuse("in.onnx", "--dry-run", *FAST).exit_code == 1
    assert files(folder) == ["in.onnx"]


def test_no_bench_does_not_measure(folder: Path) -> None:
    assert "95 % interval" not in repfuse("in.onnx", "out.onnx", *FAST).stdout


def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Note what verifying and measuring are called with; they run nevertheless."""
    calls: dict[str, Any] = {}

    def record(name: str) -> Callable[..., Any]:
        original = getattr(pipeline, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] = kwargs
            return original(*args, **kwargs)

        return call

    quick(monkeypatch)
    for name in ("Verifier", "benchmark"):
        monkeypatch.setattr(pipeline, name, record(name))
    return calls


def test_seed_threads_and_inputs_go_to_both_checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    np.savez("data.npz", x=np.ones((1, 4, 8, 8), np.float32))
    flags = (
        "--seed",
        "7",
        "--threads",
        "2",
        "--input-shape",
        "x:1,4,8,8",
        "--input-data",
        "data.npz",
        "--input-range",
        "x:0,255",
    )
    assert repfuse("in.onnx", "out.onnx", "--backend", "ort", *flags).exit_code == 0
    for call in (calls["Verifier"], calls["benchmark"]):
        assert (call["seed"], call["threads"], call["input_shapes"]) == (7, 2, {"x": (1, 4, 8, 8)})
        np.testing.assert_array_equal(call["input_data"]["x"], 1)
        assert call["input_ranges"] == {"x": (0, 255)}
    assert (calls["Verifier"]["backends"], calls["benchmark"]["backend"]) == ("ort", "ort")


def test_without_flags_one_thread_and_seed_0(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    assert repfuse("in.onnx", "out.onnx", "--backend", "ort").exit_code == 0
    assert {(call["seed"], call["threads"]) for call in calls.values()} == {(0, 1)}
    assert calls["Verifier"]["rtol"] is None


def test_open_extents_are_chosen_and_said(folder: Path) -> None:
    onnx.save(model(*BRANCHED, shape=("N", 4, "H", "W")), "in.onnx")
    chosen = repfuse("in.onnx", "out.onnx", *FAST)
    assert (chosen.exit_code, "Run with x: float32[1?, 4, " in chosen.stdout) == (0, True)
    given = repfuse("in.onnx", "out.onnx", *FAST, "--input-shape", "x:2,4,6,10", "--json", "report.json")
    assert (given.exit_code, "Run with" in given.stdout) == (0, False)
    size = json.loads(Path("report.json").read_text())["size"]
    pixels = 2 * 6 * 10
    assert (size["before"]["macs"], size["after"]["macs"]) == (pixels * 4 * 4 * 10, pixels * 4 * 4 * 9)


def test_the_only_input_can_be_an_npy(folder: Path) -> None:
    np.save("data.npy", np.ones((1, 4, 8, 8), np.float32))
    assert repfuse("in.onnx", "out.onnx", *FAST, "--input-data", "data.npy").exit_code == 0


def test_dry_run_writes_nothing(folder: Path) -> None:
    result = repfuse("in.onnx", "--dry-run", *FAST)
    assert (result.exit_code, "1 fused" in result.stdout) == (0, True)
    assert "Dry run: nothing was written" in result.stdout
    Path("out.onnx").write_text("old")
    assert repfuse("in.onnx", "out.onnx", "--dry-run", *FAST).exit_code == 0
    assert Path("out.onnx").read_text() == "old"
    assert files(folder) == ["in.onnx", "out.onnx"]


def test_a_pattern_selects(folder: Path) -> None:
    assert "1 x RepConv" in repfuse("in.onnx", "out.onnx", *FAST, "--pattern", "repconv").stdout
    other = repfuse("in.onnx", "out.onnx", *FAST, "--pattern", "repghost", "--pattern", "acnet")
    assert (other.exit_code, "0 fused" in other.stdout or "Nothing to fuse" in other.stdout) == (0, True)
    assert Path("out.onnx").read_bytes() == Path("in.onnx").read_bytes()


MINE = """
name = "Mine"
rank = 1
summary = "A square kernel and a pointwise one."
[[branches]]
ops = "convkxk"
[[branches]]
ops = "conv1x1"
"""


def test_a_pattern_of_ones_own(folder: Path) -> None:
    Path("mine.toml").write_text(MINE)
    assert "1 x Mine" in repfuse("in.onnx", "out.onnx", *FAST, "--pattern", "mine.toml").stdout
    listed = repfuse("--list-patterns", "--pattern", "mine.toml")
    assert (listed.exit_code, "A square kernel and a pointwise one." in listed.stdout) == (0, True)


def test_patterns_are_listed(folder: Path) -> None:
    result = repfuse("--list-patterns")
    assert result.exit_code == 0
    for words in ("repvgg", "mobileone", "arXiv:2101.03697"):
        assert words in result.stdout
    assert files(folder) == ["in.onnx"]


def test_json_has_what_was_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    Path("report.json").write_text("old")
    assert repfuse("in.onnx", "out.onnx", "--backend", "ort", "--json", "report.json").exit_code == 0
    found = json.loads(Path("report.json").read_text())
    assert (found["schema"], found["repfuse"], found["written"]) == (1, __version__, True)
    assert found["groups"] == {"found": 1, "fused": 1, "refused": 0, "rewritten": 0, "kept": 0}
    assert found["edits"][0]["pattern"] == "RepConv"
    assert found["size"]["before"]["bytes"] == Path("in.onnx").stat().st_size
    assert found["size"]["after"]["bytes"] == Path("out.onnx").stat().st_size
    assert found["verification"]["checks"][0]["output"] == "y"
    assert found["latency"][0]["rounds"] >= 10
    assert files(folder) == ["in.onnx", "out.onnx", "report.json"]


def test_json_of_a_copy_has_its_size(folder: Path) -> None:
    onnx.save(model(*PLAIN), "in.onnx")
    assert repfuse("in.onnx", "out.onnx", *FAST, "--json", "report.json").exit_code == 0
    found = json.loads(Path("report.json").read_text())
    assert found["size"]["before"]["macs"] == 4 * 8 * 8 * 4 * 9
    assert found["size"]["after"] is None


def test_quiet_prints_nothing(folder: Path) -> None:
    result = repfuse("in.onnx", "out.onnx", *FAST, "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert files(folder) == ["in.onnx", "out.onnx"]


def test_quiet_prints_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    result = repfuse("in.onnx", "out.onnx", *FAST, "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not match" in result.stderr


def test_verbose_lists_what_was_fused(folder: Path) -> None:
    assert "Add 'join': " not in repfuse("in.onnx", "out.onnx", *FAST).stdout
    assert "Add 'join': " in repfuse("in.onnx", "out.onnx", *FAST, "-v").stdout


def test_version(folder: Path) -> None:
    assert repfuse("--version").output == f"repfuse {__version__}\n"


def test_help_names_every_option_and_exit_code() -> None:
    result = repfuse("--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage: repfuse [OPTIONS] IN.onnx OUT.onnx\n")
    for parameter in main.commands["fuse"].params:
        assert parameter.param_type_name == "argument" or f"{parameter.opts[-1]} " in result.output
    for code in (0, 1, 2, 70, 130):
        assert f"\n  {code} " in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    assert repfuse("fuse", "--help").output == result.output


def test_a_slower_result_is_said_to_be_slower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Benchmark("Some Runtime", 1, 10.0, 20.0, ratio=0.5, low=0.49, high=0.51, confidence=1.0, rounds=50)
    monkeypatch.setattr(pipeline, "benchmark", lambda *_, **__: slow)
    result = repfuse("in.onnx", "out.onnx", "--backend", "ort")
    assert (result.exit_code, "Slower on Some Runtime" in result.stdout) == (0, True)


def test_a_backend_that_cannot_be_measured_is_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise backends.BackendError("Some Runtime: out of order")

    monkeypatch.setattr(pipeline, "benchmark", refuse)
    result = repfuse("in.onnx", "out.onnx", "--backend", "ort")
    assert (result.exit_code, "Some Runtime: out of order" in result.stdout) == (0, True)
