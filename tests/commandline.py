"""For tests of the command line: small models, a folder to work in, and a way to call it."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from repfuse import fusion
from repfuse.commandline.cli import main
from repfuse.jobs import pipeline
from repfuse.measures import bench


def model(*nodes: onnx.NodeProto, shape: tuple[int | str, ...] = (1, 4, 8, 8)) -> onnx.ModelProto:
    """A model from `x` to `y` with the weights `w1` (1x1) and `w3` (3x3)."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(rng.normal(0, 0.2, (4, 4, k, k)).astype(np.float32), f"w{k}")
            for k in (1, 3)
            if any(f"w{k}" in node.input for node in nodes)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CONV3 = helper.make_node("Conv", ["x", "w3"], ["a"], "conv3", pads=[1, 1, 1, 1])
CONV1 = helper.make_node("Conv", ["x", "w1"], ["b"], "conv1")
RELU = helper.make_node("Relu", ["a"], ["b"], "relu")
ADD = helper.make_node("Add", ["a", "b"], ["s"], "join")
SIGMOID = helper.make_node("Sigmoid", ["s"], ["y"], "end")

BRANCHED = (CONV3, CONV1, ADD, SIGMOID)
"""RepConv: 3x3 + 1x1."""

BLOCKED = (CONV3, RELU, ADD, SIGMOID)
"""A Relu stands in one branch."""

PLAIN = (CONV3, helper.make_node("Relu", ["a"], ["y"], "relu"))


def enter_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with `in.onnx`; temporary files go into another one beside it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "here")
    onnx.save(model(*BRANCHED), "in.onnx")
    return tmp_path / "here"


def repfuse(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments], prog_name="repfuse")


FAST = ("--backend", "ort", "--no-bench")


def files(folder: Path) -> list[str]:
    """Everything that lies in the folder, and what was left among the temporary files."""
    left = [path.name for path in Path(tempfile.gettempdir()).iterdir()]
    return sorted(path.name for path in folder.iterdir()) + left


def run(path: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def operators(path: str) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for a moment only."""
    original = bench.benchmark
    monkeypatch.setattr(pipeline, "benchmark", lambda *args, **kwargs: original(*args, seconds=0, **kwargs))


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fusing spoil a weight."""
    original = fusion.fuse_file

    def spoil(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        weight = result.model.graph.initializer[0]
        values = numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        return result

    monkeypatch.setattr(pipeline, "fuse", spoil)


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no block be run by itself, so that the outputs of the whole model must show what is wrong."""
    monkeypatch.setattr(pipeline, "check_blocks", lambda *_, **__: ())
