"""A block that goes wrong is found, by itself or by bisection, and can be left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from blocks import build
from click.testing import Result
from commandline import FAST, enter_folder, files, operators, repfuse, unchecked

from repfuse import Edit, fuse
from repfuse.families.patterns import load_patterns
from repfuse.fusion import LEFT
from repfuse.proof.culprit import first_culprit
from repfuse.rewriting import rewrite
from repfuse.rewriting.derive import Derived

REPVGG = next(pattern for pattern in load_patterns() if pattern.slug == "repvgg")
BLOCKS = 6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model of several blocks."""
    folder = enter_folder(tmp_path, monkeypatch)
    onnx.save(build(REPVGG, REPVGG.examples[0], repeat=BLOCKS), "in.onnx")
    return folder


def edits() -> tuple[Edit, ...]:
    return fuse("in.onnx").edits


def spoil(monkeypatch: pytest.MonkeyPatch, *wrong: Edit) -> None:
    """Derive a wrong weight for these blocks."""
    original = rewrite.derive
    sources = {edit.source for edit in wrong}

    def derive(groups: Any, merge: Any, **how: Any) -> Any:
        found = original(groups, merge, **how)
        if merge.source in sources:
            assert isinstance(found, Derived)
            return replace(found, weight=found.weight * np.float32(1.01))
        return found

    monkeypatch.setattr(rewrite, "derive", derive)


def outputs_named(result: Result) -> list[str]:
    return [bad["edit"]["output"] for bad in json.loads(Path("report.json").read_text("utf-8"))["bad_blocks"]]


RUN = ("in.onnx", "out.onnx", *FAST, "--json", "report.json")


@pytest.mark.parametrize("number", range(BLOCKS))
def test_the_first_bad_block_is_found_by_bisection(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bad = edits()[number]
    unchecked(monkeypatch)
    spoil(monkeypatch, bad)
    result = repfuse(*RUN)
    assert result.exit_code == 1
    assert f"the first bad block is '{bad.output}' (RepVGG)" in result.stderr
    assert "nothing was written" in result.stderr
    assert outputs_named(result) == [bad.output]
    assert files(folder) == ["in.onnx", "report.json"]


def test_bad_blocks_are_named_without_running_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = edits()[1], edits()[4]
    spoil(monkeypatch, *bad)
    result = repfuse(*RUN)
    assert result.exit_code == 1
    assert "Outputs" not in result.stdout
    assert all(f"'{each.output}' (RepVGG): weights off by" in result.stderr for each in bad)
    assert outputs_named(result) == [each.output for each in bad]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "as a whole"])
def test_keep_going_leaves_bad_blocks_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    bad = edits()[1], edits()[4]
    if not alone:
        unchecked(monkeypatch)
    spoil(monkeypatch, *bad)
    result = repfuse(*RUN, "--keep-going")
    assert (result.exit_code, result.stderr) == (0, "")
    for each in bad:
        assert f"Left alone: '{each.output}' (RepVGG): " in result.stdout
        assert f"'{each.removed[-1].split(chr(39))[1]}': {LEFT}" in result.stdout
    report = json.loads(Path("report.json").read_text("utf-8"))
    assert [each["left_alone"] for each in report["bad_blocks"]] == [True, True]
    assert (report["written"], report["groups"]["fused"]) == (True, BLOCKS - 2)
    assert report["verification"]["passed"]
    assert outputs_named(result) == [each.output for each in bad]
    left = operators("in.onnx").count("Conv") // BLOCKS
    assert operators("out.onnx").count("Conv") == BLOCKS - 2 + 2 * left


def test_where_every_block_is_bad_the_output_is_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, *edits())
    result = repfuse(*RUN, "--keep-going")
    assert (result.exit_code, "Wrote out.onnx, a copy of in.onnx" in result.stdout) == (0, True)
    assert Path("out.onnx").read_bytes() == Path("in.onnx").read_bytes()


def test_fuse_leaves_what_it_is_told_to(folder: Path) -> None:
    every = edits()
    result = fuse("in.onnx", leave=every[2:4])
    assert result.edits == every[:2] + every[4:]
    assert [remark.message for remark in result.remarks].count(LEFT) == 2
    none = fuse("in.onnx", leave=every)
    assert not none.changed
    assert none.model == onnx.load("in.onnx")


def test_bisection_asks_as_often_as_the_edits_can_be_halved() -> None:
    every = [Edit("", "", "", str(number), (), (), "") for number in range(100)]

    def failing_from(first: int, asked: list[int]) -> Callable[[Any], bool]:
        def fails(some: Any) -> bool:
            asked.append(len(some))
            return len(some) > first

        return fails

    for first in range(100):
        asked: list[int] = []
        assert first_culprit(every, failing_from(first, asked)) is every[first]
        assert len(asked) <= 7
