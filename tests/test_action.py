"""The GitHub action and the pre-commit hook: their steps run as GitHub and pre-commit run them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from commandline import BRANCHED, PLAIN, model

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"]}
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
WORKFLOWS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)]

pytestmark = pytest.mark.skipif(not shutil.which("bash") or sys.platform == "win32", reason="needs bash")


class Runner:
    """Runs the action's steps in a folder of models, as a runner of GitHub does."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        defaults = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()}
        self.inputs = defaults | inputs
        self.folder = folder
        self.output = folder / "output"
        self.summary = folder / "summary"
        self.temp = folder / "runner temp"
        installed = self.temp / "repfuse" / "bin"
        installed.mkdir(parents=True, exist_ok=True)
        for name, arguments in {
            "repfuse": "-m repfuse",
            "python": "",
        }.items():  # what the first step installs
            script = installed / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            script.chmod(0o755)

    def run(self, step: str) -> subprocess.CompletedProcess[str]:
        given = {key: self._filled(str(value)) for key, value in STEPS[step].get("env", {}).items()}
        github = {
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_ACTION_PATH": str(ROOT),
            "RUNNER_TEMP": str(self.temp),
            "PYTHONPATH": str(ROOT),
        }
        script = self._filled(STEPS[step]["run"])
        return subprocess.run(  # as GitHub calls bash
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=os.environ | github | given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: self.inputs[found[1]], text)

    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.output.read_text().splitlines())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my models").mkdir()
    onnx.save(model(*BRANCHED), str(tmp_path / "my models" / "a.onnx"))
    onnx.save(model(*PLAIN), str(tmp_path / "my models" / "plain.onnx"))
    return tmp_path


def test_check_fails_annotates_and_sums_up(folder: Path) -> None:
    runner = Runner(folder, models="my models/*.onnx\n")
    done = runner.run("check")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(
        "::warning file=my models/a.onnx,title=repfuse::1 RepConv block is not fused"
    )
    outputs = runner.outputs()
    assert outputs["unfused"] == "1"
    assert json.loads(Path(outputs["report"]).read_text())["unfused"] == 1
    assert "<testsuite " in Path(outputs["junit"]).read_text()
    assert "| `my models/a.onnx` | :warning: | 1 x RepConv |" in runner.summary.read_text()


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"models": "my models/plain.onnx"}, 0),
        ({"models": "my models/a.onnx\n\nmy models/plain.onnx\n"}, 3),
        ({"models": "my models/a.onnx", "fail": "false"}, 0),
        ({"models": "my models/a.onnx", "out": "fused"}, 0),
        ({"models": "no/such/*.onnx", "fail": "false"}, 2),
    ],
)
def test_when_the_check_fails(folder: Path, inputs: dict[str, str], code: int) -> None:
    assert Runner(folder, **inputs).run("check").returncode == code


def test_fuse_writes_and_sums_up(folder: Path) -> None:
    arguments = "--backend ort --jobs 1"
    runner = Runner(folder, models="my models/*.onnx", out="fused models", arguments=arguments)
    done = runner.run("fuse")
    assert done.returncode == 0, done.stderr
    assert len(onnx.load(folder / "fused models" / "a.onnx").graph.node) == 2
    assert runner.summary.read_text().startswith("### repfuse: 2 models: 1 copied, 1 fused")
    assert len((folder / runner.outputs()["records"]).read_text().splitlines()) == 2


def test_the_action_is_whole() -> None:
    assert ACTION["runs"]["using"] == "composite"
    used = set(re.findall(r"inputs\.(\w+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == set(ACTION["inputs"])
    assert all(step["shell"] == "bash" for step in STEPS.values())
    for entry in ACTION["outputs"].values():
        step, name = re.findall(r"steps\.(\w+)\.outputs\.(\w+)", entry["value"])[0]
        assert f"{name}=" in STEPS[step]["run"]


def test_the_page_describes_the_action() -> None:
    listed = re.findall(
        r"`(\w+)`", "".join(line.split("|")[1] for line in PAGE.splitlines() if line[:3] == "| `")
    )
    assert set(listed) == set(ACTION["inputs"]) | set(ACTION["outputs"])


def test_the_workflow_of_the_page_uses_what_there_is() -> None:
    workflow, hooks, _ = WORKFLOWS
    (step,) = [step for step in workflow["jobs"]["models"]["steps"] if "repfuse" in step["uses"]]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert [hook["id"] for hook in hooks["repos"][0]["hooks"]] == [HOOK["id"]]


def test_the_hook(folder: Path) -> None:
    def run(*files: str) -> int:
        command: list[Any] = [sys.executable, "-m", *shlex.split(HOOK["entry"]), *files]
        return subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=60).returncode

    assert re.search(HOOK["files"], "my models/a.onnx") and not re.search(HOOK["files"], "a.onnx.data")
    assert (run("my models/plain.onnx"), run("my models/a.onnx", "my models/plain.onnx")) == (0, 3)
