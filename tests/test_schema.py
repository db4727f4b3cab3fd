"""The JSON Schemas hold for what every kind of run writes, and name every key of it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from commandline import BLOCKED, BRANCHED, FAST, PLAIN, enter_folder, model, repfuse, unchecked, wrong

from repfuse.jobs.batching import batch
from repfuse.jobs.schema import KINDS, schema


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


def closed(part: Any) -> Any:
    """The schema with no room for keys that it does not name."""
    if isinstance(part, list):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    extra = {"additionalProperties": False} if "properties" in part else {}
    return {key: closed(each) for key, each in part.items()} | extra


def validate(kind: str, document: Any) -> None:
    jsonschema.validate(document, closed(schema(kind)), cls=jsonschema.Draft202012Validator)


def report() -> Any:
    return json.loads(Path("report.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_schemas(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    result = repfuse("schema", kind)
    assert (result.exit_code, json.loads(result.output)) == (0, schema(kind))


@pytest.mark.parametrize(
    ("nodes", "flags"),
    [
        (BRANCHED, ["out.onnx", *FAST]),
        (BRANCHED, ["out.onnx", *FAST, "--no-verify"]),
        (BRANCHED, ["--dry-run", *FAST]),
        (BRANCHED, ["out.onnx", "--backend", "ort", "--no-verify"]),
        (BLOCKED, ["out.onnx", *FAST]),
        (PLAIN, ["out.onnx", *FAST]),
    ],
)
def test_reports(folder: Path, nodes: Any, flags: list[str]) -> None:
    onnx.save(model(*nodes), "in.onnx")
    assert repfuse("in.onnx", *flags, "--json", "report.json").exit_code == 0
    validate("fuse", report())


@pytest.mark.parametrize("blocks", [True, False])
def test_reports_of_what_does_not_match(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, blocks: bool
) -> None:
    wrong(monkeypatch)
    if not blocks:
        unchecked(monkeypatch)
    assert repfuse("in.onnx", "out.onnx", *FAST, "--json", "report.json").exit_code == 1
    validate("fuse", report())


def test_findings(folder: Path) -> None:
    onnx.save(model(*PLAIN), "plain.onnx")
    onnx.save(model(*BRANCHED, shape=("n", 4, "h", "w")), "open.onnx")
    result = repfuse("check", "*.onnx", "no_such.onnx", "--format", "json")
    validate("check", json.loads(result.output))


def test_records(folder: Path) -> None:
    Path("text.onnx").write_text("no model")
    onnx.save(model(*PLAIN), "plain.onnx")
    with ThreadPoolExecutor(1) as executor:
        batch(["*.onnx"], "out", executor=executor, backend="ort")
    for line in Path("out/batch.jsonl").read_text().splitlines():
        validate("batch", json.loads(line))


def test_comparisons(folder: Path) -> None:
    flags = ("--backend", "ort", "--threads", "1", "--rounds", "2", "--json", "report.json")
    result = repfuse("bench", "in.onnx", "in.onnx", *flags)
    assert result.exit_code == 0, result.output
    validate("bench", report())


def test_a_wrong_report_is_told(folder: Path) -> None:
    repfuse("in.onnx", "out.onnx", *FAST, "--no-verify", "--json", "report.json")
    for change in ({"written": "yes"}, {"schema": 0}, {"unknown": 1}, {"edits": [{"pattern": "x"}]}):
        with pytest.raises(jsonschema.ValidationError):
            validate("fuse", report() | change)


def test_attributes_are_described() -> None:
    edit = schema("fuse")["properties"]["edits"]["items"]["properties"]
    text = "The tensor that the replaced branches shared."
    assert edit["source"]["description"] == text
