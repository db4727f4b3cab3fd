"""The passes and helpers for other toolchains, each with that toolchain's own runner."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from commandline import BLOCKED, BRANCHED, model, run
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

import repfuse
from repfuse.integrations.onnx_ir import FusePass
from repfuse.model import wire
from repfuse.runtimes.ort import OnnxRuntime

X = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)


NARROW = Path(__file__).parent / "models" / "repvgg_a0-narrow.ts.onnx"


def convolutions(path: Path) -> int:
    return sum(node.op_type == "Conv" for node in repfuse.fuse(path).model.graph.node)


def op_types(given: ir.Model) -> list[str]:
    return [node.op_type for node in given.graph]


# onnx_ir


def test_the_pass_composes_with_others() -> None:
    given = ir.from_proto(model(*BRANCHED))
    passes = ir.passes.Sequential(FusePass(), CommonSubexpressionEliminationPass())
    result = passes(given)
    assert result.modified
    assert op_types(result.model) == ["Conv", "Sigmoid"]
    assert op_types(given) == ["Conv", "Conv", "Add", "Sigmoid"]


def test_the_pass_says_that_nothing_was_modified_and_why() -> None:
    fuse = FusePass()
    given = ir.from_proto(model(*BLOCKED))
    result = fuse(given)
    assert not result.modified
    assert op_types(result.model) == op_types(given)
    assert fuse.result
    assert [remark.blocker for remark in fuse.result.remarks] == ["Relu 'relu'"]


def test_the_pass_fuses_only_the_families_that_it_is_told() -> None:
    assert not FusePass(patterns=["repvgg"])(ir.from_proto(model(*BRANCHED))).modified
    assert FusePass(patterns=["repconv"])(ir.from_proto(model(*BRANCHED))).modified


def test_the_pass_goes_before_the_optimizer_of_onnxscript() -> None:
    optimizer = pytest.importorskip("onnxscript.optimizer")
    fused = FusePass()(ir.from_proto(model(*BRANCHED))).model
    optimizer.optimize_ir(fused)
    assert op_types(fused) == ["Conv", "Sigmoid"]


# torch


def test_a_program_of_torch_comes_back_as_one() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    program = torch.onnx.ONNXProgram(ir.from_proto(model(*BRANCHED)), None)
    result = repfuse.fuse(program)
    fused = result.like(program)
    assert isinstance(fused, torch.onnx.ONNXProgram)
    assert op_types(fused.model) == ["Conv", "Sigmoid"]
    assert repfuse.verify(program, fused, backends="ort").passed


# OpenVINO


@pytest.mark.parametrize("as_file", [False, True], ids=["in memory", "by a file, as above 2 GB"])
def test_openvino_reads_the_fused_model(
    as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")
    from repfuse.integrations.openvino import read_model

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if as_file:
        monkeypatch.setattr(wire, "LARGEST", 30_000)  # less than the weights, more than the rest
    read = read_model(NARROW)
    assert sum(op.get_type_name() == "Convolution" for op in read.get_ops()) == convolutions(NARROW)
    assert list(tmp_path.iterdir()) == []
    image = np.random.default_rng(1).normal(size=read.inputs[0].shape).astype(np.float32)
    (y,) = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image).values()
    expected = OnnxRuntime().load(NARROW, threads=1).run({"input.1": image})
    np.testing.assert_allclose(y, *expected.values(), rtol=1e-3, atol=1e-4)


# Olive (it needs torch and transformers, so CI does not install it: pip install 'repfuse[olive]')


@pytest.mark.filterwarnings("ignore")
def test_olive_runs_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflows = pytest.importorskip("olive.workflows", reason="needs torch: pip install 'repfuse[olive]'")
    monkeypatch.chdir(tmp_path)
    onnx.save(model(*BRANCHED), "in.onnx")
    config = {
        "input_model": {"type": "ONNXModel", "model_path": "in.onnx"},
        "passes": {"fuse": {"type": "RepFuse", "patterns": ["repconv"]}},
        "output_dir": "out",
    }
    package = Path(repfuse.__file__).parent / "integrations" / "olive.json"
    output = workflows.run(config, package_config=str(package))
    (path,) = {each.model_path for each in output.get_output_models()}
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv", "Sigmoid"]
    np.testing.assert_allclose(run(path, X), run("in.onnx", X), atol=1e-5)


def test_the_file_for_olive_names_the_pass() -> None:
    package = Path(repfuse.__file__).parent / "integrations" / "olive.json"
    (entry,) = json.loads(package.read_text(encoding="utf-8"))["passes"].values()
    module, _, name = entry["module_path"].rpartition(".")
    source = (package.parent / f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8")
    assert f"class {name}(" in source
