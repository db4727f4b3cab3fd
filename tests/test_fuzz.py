"""The fuzzer passes sound code, and finds an error that is put into it."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from proof import total

from repfuse.algebra import window

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
fuzz = importlib.import_module("fuzz")
fuzz_draw = importlib.import_module("fuzz_draw")


def run(*options: str) -> Result:
    return CliRunner().invoke(fuzz.main, options)


SECONDS = os.environ.get("REPFUSE_FUZZ_SECONDS", "10")
"""How long to fuzz in a run of the tests; CI takes a minute."""


def test_sound_code_passes() -> None:
    result = run("--graphs", "100000", "--seconds", SECONDS, "--seed", "0")
    assert result.exit_code == 0, result.output
    counts = {
        what: int(count) for count, what in (line.split(maxsplit=1) for line in result.output.splitlines())
    }
    assert counts["drawn"] > 20
    assert counts["fused"] > counts["drawn"] / 2
    assert counts["failed"] == 0


def test_an_error_is_found_named_and_cut_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding that is harmless to no one: what makes a border wrong is the finest error there is."""
    monkeypatch.setattr(window.Axis, "padded", property(lambda axis: axis.begin > 0))
    result = run("--graphs", "80", "--seed", "0", "--save", str(tmp_path))
    assert result.exit_code == 1
    seeds = [int(line.split()[1].rstrip(":")) for line in result.output.splitlines() if "mismatch" in line]
    assert seeds
    assert run("--graphs", "1", "--seed", str(seeds[0])).exit_code == 1
    smaller = onnx.load(tmp_path / f"{seeds[0]}.onnx")
    onnx.checker.check_model(smaller)
    assert total(smaller) < total(fuzz_draw.draw(seeds[0]).model)


def test_the_same_seed_draws_the_same_model() -> None:
    first, again, other = (fuzz_draw.draw(seed) for seed in (5, 5, 6))
    assert first.model == again.model
    assert first.model != other.model


def test_what_shows_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "LEAST_FUSED", 1.01)
    assert run("--graphs", "10").exit_code == 1
