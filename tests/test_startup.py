"""What must not be imported before it is needed, so that the command answers at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from commandline import model
from onnx import helper

HEAVY = ("onnxruntime", "openvino", "onnx", "onnx_graphsurgeon", "numpy", "rich", "google.protobuf")

ASK = """
import sys
from click.testing import CliRunner
from repfuse.commandline.cli import main
result = CliRunner().invoke(main, sys.argv[1:], prog_name="repfuse")
assert result.exit_code == 0, result.output
print(*sys.modules)
"""


def imported(*arguments: str) -> set[str]:
    """The modules that are there after the command has run in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["bench", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported(*arguments) & {*HEAVY} == set()


def test_listing_patterns_imports_nothing_heavy() -> None:
    assert imported("--list-patterns") & {*HEAVY} - {"rich"} == set()


def test_checking_imports_neither_a_runtime_nor_the_reference_implementation(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(helper.make_node("Relu", ["x"], ["y"], "relu")), path)
    assert imported("check", str(path)) & {"onnxruntime", "openvino", "onnx.reference"} == set()


def test_importing_repfuse_imports_nothing_heavy() -> None:
    source = "import sys, repfuse; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {*HEAVY} == set()
