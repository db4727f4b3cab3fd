"""Models of other toolchains go in and come out: the same bytes of weights, the same outputs."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from commandline import BLOCKED, BRANCHED, model
from onnx.reference import ReferenceEvaluator

import repfuse
from repfuse.model import convert

KINDS = {"onnx_ir": ir.from_proto, "onnx_graphsurgeon": gs.import_onnx, "onnx": lambda proto: proto}


def outputs(proto: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    (y,) = ReferenceEvaluator(proto).run(None, {"x": x})
    return y


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_fused_and_comes_back_as_it_is(kind: str) -> None:
    original = model(*BRANCHED)
    given = KINDS[kind](original)
    before = convert.proto(given).SerializeToString()
    result = repfuse.fuse(given)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Sigmoid"]
    assert convert.proto(given).SerializeToString() == before  # what was handed in is as it was
    back = result.like(given)
    assert type(back) is type(given)
    np.testing.assert_allclose(outputs(convert.proto(back)), outputs(original), atol=1e-6)


def test_a_path_gives_a_modelproto(tmp_path: Path) -> None:
    onnx.save(model(*BRANCHED), tmp_path / "in.onnx")
    result = repfuse.fuse(tmp_path / "in.onnx")
    assert result.like(tmp_path / "in.onnx") is result.model


def test_external_data_of_onnx_ir_is_found_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model(*BRANCHED)
    ir.save(ir.from_proto(original), tmp_path / "in.onnx", external_data="in.data", size_threshold_bytes=0)
    given = ir.load(tmp_path / "in.onnx")
    monkeypatch.chdir("/")
    result = repfuse.fuse(given)
    assert result.changed
    assert isinstance(given.graph.initializers["w3"].const_value, ir.ExternalTensor)
    np.testing.assert_allclose(outputs(result.model), outputs(original), atol=1e-6)


def test_remarks_are_those_of_the_modelproto() -> None:
    proto = model(*BLOCKED)
    result = repfuse.fuse(ir.from_proto(proto))
    assert not result.changed
    assert result.remarks == repfuse.fuse(proto).remarks


@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_check_blocks_take_each_kind(kind: str) -> None:
    given = KINDS[kind](model(*BRANCHED))
    result = repfuse.fuse(given)
    assert repfuse.verify(given, result.like(given), backends="ort").passed
    assert [block.passed for block in repfuse.check_blocks(given, result)] == [True]


def test_other_kinds_are_refused() -> None:
    openvino = pytest.importorskip("openvino")
    with pytest.raises(repfuse.BadInputError, match=r"Model cannot be fused; hand over a path, an onnx"):
        repfuse.fuse(openvino.Model([], []))
    with pytest.raises(repfuse.BadInputError, match=r"of type builtins\.int cannot be fused"):
        convert.like(model(*BRANCHED), 3)
