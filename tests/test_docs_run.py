"""Every code block of the documentation is run, or says above itself why not.

Each page is run from top to bottom in a folder of its own, in which lie `model.onnx`, the example, and a model in
`models/`. A block of Python sees what the blocks above it defined. Commands of repfuse are run as they stand, but
latency is measured for a moment only, or not at all. What `pip install` installs must be an extra of the project's.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pages import BLOCKS, NOT_RUN, ROOT, Block

from repfuse.commandline.cli import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODEL = ROOT / "tests" / "models" / "repvgg_a0-narrow.ts.onnx"

QUICKLY = {"fuse": {"no_bench": True}, "bench": {"seconds": 0.0}}
"""Defaults of commands, for the tests."""

EXPECTED = {"check": {0, 3}, "bench": {0, 4}}
"""Exit codes, where a page shows what is done with a model that is not fused, or not faster."""

PROGRAM = re.compile(r"^(?:\S*python3? -m |\S*/)?repfuse(?: |$)")
INSTALLS = re.compile(r"\bpip install\b")


def folder_for(page: str, tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for name in ("model.onnx", "new.onnx", "models/repvgg.onnx"):
        shutil.copy(MODEL, tmp_path / name)
    shutil.copy(ROOT / "patterns" / "repconv.toml", tmp_path / "my_block.toml")
    for name in ("examples", "tests", "tools", "repfuse", "patterns"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run_command(command: str, where: str) -> None:
    arguments = shlex.split(PROGRAM.sub("", command))
    done = CliRunner().invoke(main, arguments, prog_name="repfuse", default_map=QUICKLY)
    assert done.exit_code in EXPECTED.get(arguments[0], {0}), f"{where}: {command}\n{done.output}"


def run_shell(block: Block, where: str) -> None:
    for command in block.commands:
        if INSTALLS.search(command):
            check_install(command)
        else:
            assert PROGRAM.match(command), f"{where}: write '*{NOT_RUN}why.*' above what is not repfuse"
            run_command(command, where)


def check_install(command: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name for group in re.findall(r"\[([\w,-]+)\]", command) for name in group.split(",")}
    assert extras <= set(project["optional-dependencies"]), command


def parse(block: Block) -> None:
    """See that a block is at least well formed."""
    match block.language:
        case "python":
            ast.parse(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "json":
            json.loads(block.text)
        case "toml":
            tomllib.loads(block.text)
        case "sh":
            subprocess.run(["bash", "-n", "-c", block.text], check=True, capture_output=True)
        case language:
            assert language == "text", language


@pytest.mark.parametrize("page", BLOCKS)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_for(page, tmp_path))
    names: dict[str, object] = {"__name__": "page"}
    for block in BLOCKS[page]:
        where = f"{page}, line {block.line}"
        parse(block)
        if block.reason:
            continue
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
        elif block.language == "sh":
            run_shell(block, where)
