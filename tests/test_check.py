"""`repfuse check`: which models still hold their training branches, in every format."""

import json
import re
import subprocess
import sys
from pathlib import Path

import junitparser
import onnx
import pytest
import weights
from commandline import BRANCHED, CONV1, CONV3, PLAIN, SIGMOID, enter_folder, model, repfuse
from onnx import helper
from test_docs import FIGURES, README, ROOT, rows

import repfuse as package
from repfuse.jobs import findings
from repfuse.jobs.check import Finding, check
from repfuse.measures import estimate
from repfuse.measures.estimate import Work, speedup, work


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """in.onnx has branches, sub/plain.onnx has none, sub/text.onnx is no model."""
    folder = enter_folder(tmp_path, monkeypatch)
    (folder / "sub" / "deep").mkdir(parents=True)
    onnx.save(model(*PLAIN), "sub/plain.onnx")
    (folder / "sub" / "deep" / "text.onnx").write_text("no model")
    return folder


# Exit codes


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (["sub/plain.onnx"], 0),
        (["in.onnx"], 3),
        (["in.onnx", "sub/plain.onnx"], 3),
        (["in.onnx", "sub/deep/text.onnx"], 2),
        (["no_such.onnx"], 2),
        (["sub/*.onnx"], 0),
        (["**/*.onnx"], 2),
        (["sub"], 2),
        (["nothing/*.onnx"], 2),
        (["in.onnx", "--format", "pdf"], 2),
        (["in.onnx", "--format", "json:no/such/folder.json"], 2),
        (["in.onnx", "--pattern", "mobileone"], 0),
        ([], 2),
    ],
)
def test_exit_codes(folder: Path, files: list[str], code: int) -> None:
    result = repfuse("check", *files)
    assert (result.exit_code, "Traceback" in result.output) == (code, False), result.output


def test_what_fused_is_clean(folder: Path) -> None:
    assert repfuse("in.onnx", "fused.onnx", "--no-verify", "--no-bench").exit_code == 0
    assert repfuse("check", "fused.onnx").exit_code == 0


def test_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    repfuse("check", "in.onnx", "sub")
    assert sorted(folder.rglob("*")) == before


def test_no_runtime_is_imported(folder: Path) -> None:
    code = (
        "import sys; from repfuse.commandline.cli import main; main(['check', 'in.onnx'], standalone_mode=False);"
        "print({'onnxruntime', 'openvino', 'fsspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("\nset()\n"), done.stderr


# Sentences


def test_the_sentence_of_an_unfused_model(folder: Path) -> None:
    (line,) = repfuse("check", "in.onnx").output.splitlines()
    assert line.startswith("in.onnx: 1 RepConv block is not fused: this model would run about 1.")
    assert (
        line.endswith(
            " times as fast (an estimate), with 2 nodes in place of 4 and 9216 multiply-adds in place of 10.24 k;"
            " run repfuse on it before deploying"
        )
        or "9.216 k multiply-adds in place of 10.24 k" in line
    )


def test_all_files_are_told_and_counted(folder: Path) -> None:
    lines = repfuse("check", "**/*.onnx").output.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["in.onnx", "sub/deep/text.onnx", "sub/plain.onnx"]
    assert lines[1].startswith("sub/deep/text.onnx: not an ONNX file")
    assert lines[-1] == "3 models checked: 1 not fused, 1 could not be checked"


@pytest.mark.parametrize("shape", [("n", 4, "h", "w"), ("n", 4, 8, 8)])
def test_an_open_shape_gets_no_estimate_but_an_open_batch_does(
    folder: Path, shape: tuple[int | str, ...]
) -> None:
    onnx.save(model(*BRANCHED, shape=shape), "in.onnx")
    found = check("in.onnx")
    assert (found.speedup is None) == ("h" in shape)
    assert "2 nodes in place of 4" in found.message


# The estimate


def test_speedup_is_a_range_around_one_or_above() -> None:
    assert speedup(Work(100, 300), Work(100, 200)) == (1.0, 1.5)
    low, high = speedup(Work(200, 300), Work(100, 100)) or (0, 0)
    assert (1.8 < low < 2.0, high) == (True, 3.0)
    assert speedup(None, Work(1, 1)) is None


def test_work_counts_what_a_conv_computes_and_moves() -> None:
    found = work(model(CONV3, helper.make_node("Relu", ["a"], ["y"])))
    assert found
    arithmetic, elements = 4 * 4 * 9 * 64, 4 * 64
    assert found.fused == arithmetic + estimate.cost.MOVED * 2 * elements
    assert found.apart == arithmetic + estimate._MOVED_AT_MOST * 4 * elements


def test_work_in_a_subgraph_is_not_known() -> None:
    inner = model(CONV3, CONV1, SIGMOID).graph
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    assert work(model(*PLAIN, node)) is None


MEASURED = {
    row[0]: [float(ratio) for cell in row[3:] for ratio in re.findall(r"\*\*([\d.]+)x", cell)]
    for row in rows(README)
    if row[0] in FIGURES
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_holds_what_the_readme_measured(name: str) -> None:
    path = ROOT / (name if name.startswith("examples/") else f"tests/models/{name}.ts.onnx")
    before = weights.load(path) if not name.startswith("examples/") else onnx.load(path)
    found = speedup(work(before), work(package.fuse(before).model))
    assert found and MEASURED[name]
    for ratio in MEASURED[name]:
        assert found.low - 0.02 <= ratio <= found.high + 0.02, found


# Formats


def test_json(folder: Path) -> None:
    document = json.loads(repfuse("check", "**/*.onnx", "--format", "json").output)
    statuses = [(entry["path"], entry["status"]) for entry in document["models"]]
    assert statuses == [("in.onnx", "unfused"), ("sub/deep/text.onnx", "error"), ("sub/plain.onnx", "clean")]
    first = document["models"][0]
    assert (first["blocks"], len(first["edits"])) == ({"RepConv": 1}, 1)
    assert (first["size"]["before"]["nodes"], first["size"]["after"]["nodes"]) == (4, 2)
    assert document["unfused"] == 1


ODD = Finding("a,b:c%\n.onnx", error="50 %:\r\nbroken, it seems")


def test_github_escapes_what_commands_are_made_of() -> None:
    # https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts
    line, last = findings.github([ODD]).splitlines()
    assert line == "::error file=a%2Cb%3Ac%25%0A.onnx,title=repfuse::50 %25:%0D%0Abroken, it seems"
    assert last == "1 model checked: 0 not fused, 1 could not be checked"


def test_github_is_silent_about_clean_models(folder: Path) -> None:
    lines = repfuse("check", "in.onnx", "sub/plain.onnx", "--format", "github").output.splitlines()
    assert [line[:24] for line in lines] == ["::warning file=in.onnx,t", "2 models checked: 1 not "]


def test_junit_is_what_a_reader_of_junit_reads(folder: Path) -> None:
    repfuse("check", "**/*.onnx", "--format", "junit:report.xml")
    report = junitparser.JUnitXml.fromfile("report.xml")
    (suite,) = report
    assert (report.tests, report.failures, report.errors) == (3, 1, 1)
    assert (suite.tests, suite.failures, suite.errors) == (3, 1, 1)
    results = {case.name: [type(result).__name__ for result in case.result] for case in suite}
    assert results == {"in.onnx": ["Failure"], "sub/deep/text.onnx": ["Error"], "sub/plain.onnx": []}
    assert {case.classname for case in suite} == {"repfuse.jobs.check"}


def test_junit_survives_names_that_xml_cannot_write() -> None:
    odd = Finding('\x00<&".onnx', error="\x1b[31m ]]> \ud800")
    (suite,) = junitparser.JUnitXml.fromstring(findings.junit([odd]).encode())
    (case,) = suite
    assert (case.name, case.result[0].message) == ('?<&".onnx', "?[31m ]]> ?")


def test_markdown_is_one_table(folder: Path) -> None:
    text = repfuse("check", "**/*.onnx", "--format", "markdown").output
    table = rows(text)
    assert [row[0] for row in table] == ["`in.onnx`", "`sub/deep/text.onnx`", "`sub/plain.onnx`"]
    assert {len(row) for row in table} == {6}
    assert table[0][2:5] == ["1 x RepConv", "4 -> 2", "10.24 k -> 9.216 k"]


def test_markdown_cells_hold_pipes() -> None:
    last = findings.markdown([Finding("a|b.onnx", error="x|y")]).splitlines()[-1]
    assert last == "| `a\\|b.onnx` | :x: | x\\|y |  |  |  |"


def test_several_formats_at_once(folder: Path) -> None:
    result = repfuse("check", "in.onnx", "--format", "text", "--format", "json:report.json")
    assert result.output.startswith("in.onnx: 1 RepConv block")
    assert json.loads(Path("report.json").read_text())["unfused"] == 1
