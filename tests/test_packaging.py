"""What is built holds what is needed: patterns, types, the licence, and one version; commands complete and help."""

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from commandline import repfuse as command_line

import repfuse
from repfuse.commandline.cli import main

ROOT = Path(__file__).parents[1]


def build(kind: str, folder: Path) -> Path:
    """Build as any front end does, by the hooks of PEP 517."""
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def test_the_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
        entries = wheel.read(f"{info}/entry_points.txt").decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "repfuse").rglob("*.py")}
    patterns = {f"repfuse/families/patterns/{path.name}" for path in (ROOT / "patterns").glob("*.toml")}
    extra = {"repfuse/py.typed", f"{info}/licenses/LICENSE"}
    assert patterns and names >= modules | patterns | extra
    assert all(name.startswith(("repfuse/", info)) for name in names)
    assert (metadata["Version"], metadata["License-Expression"]) == (repfuse.__version__, "Apache-2.0")
    assert "repfuse = repfuse.commandline.cli:main" in entries


def test_the_source_distribution(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for needed in (
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "patterns/repvgg.toml",
        "action.yml",
    ):
        assert needed in names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "repfuse").rglob("*.py")} <= names


def test_the_changelog_has_this_version() -> None:
    assert f"## {repfuse.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert command_line("--version").output == f"repfuse {repfuse.__version__}\n"


# Help


@pytest.mark.parametrize("name", main.commands)
def test_the_help_of_each_command_is_whole(name: str) -> None:
    text = command_line(name, "--help").output
    command = main.commands[name]
    assert text.startswith("Usage: repfuse ")
    assert "Exit codes" in text and "\n  0    " in text
    assert "Examples:" in text or name == "schema"
    for option in (each for each in command.params if isinstance(each, click.Option)):
        assert option.help and option.opts[-1] in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_main_help_lists_the_other_commands() -> None:
    text = command_line("--help").output
    for name, command in main.commands.items():
        assert (f"  repfuse {name} " in text) == (name != "fuse")
        assert command.short_help


# Completion (`_REPFUSE_COMPLETE=bash_source repfuse`; docs/ci.md)


def completions(*words: str) -> set[str]:
    complete = BashComplete(main, {}, "repfuse", "_REPFUSE_COMPLETE")
    return {item.value for item in complete.get_completions(list(words[:-1]), words[-1])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ch"], {"check", "ch"}),  # a file's name may begin like that, too
        (["--no-"], {"--no-verify", "--no-bench"}),
        (["in.onnx", "out.onnx", "--rt"], {"--rtol"}),
        (["check", "--form"], {"--format"}),
        (["fuse", "--backend", "o"], {"ort", "openvino"}),
        (["schema", "b"], {"batch", "bench"}),
    ],
)
def test_completion(words: list[str], expected: set[str]) -> None:
    assert completions(*words) == expected


def test_the_shell_gets_a_script() -> None:
    code = "from repfuse.commandline.cli import main; main(prog_name='repfuse')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"_REPFUSE_COMPLETE": "zsh_source", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "#compdef repfuse" in done.stdout
