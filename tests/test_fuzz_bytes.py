"""A slice of what tools/fuzz_bytes.py does: damaged files are refused, or harmless."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from fuzz_bytes import MODELS, is_good, mutants, outcome

SMALL = sorted(MODELS.glob("*-narrow.*.onnx"), key=lambda path: path.stat().st_size)[:3]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(seed: int) -> None:
    codes = set()
    for name, data in mutants(SMALL, 20, seed):
        code, said = outcome(data, ["--no-verify", "--no-bench"])
        assert is_good(code, said), (name, code, said)
        codes.add(code)
    assert codes == {0, 2}


def test_one_seed_makes_the_same_mutants() -> None:
    assert list(mutants(SMALL, 5, 3)) == list(mutants(SMALL, 5, 3))
    assert list(mutants(SMALL, 5, 3)) != list(mutants(SMALL, 5, 4))


def test_what_is_bad_is_told() -> None:
    assert is_good(2, "Error: in.onnx: not an ONNX file\n")
    assert not is_good(70, "Error: TypeError")
    assert not is_good(2, "Traceback\nError: x")
    assert not is_good(2, "")
