"""HardSwish as exporters spell it out becomes one node, wherever that is exact; what only looks like one stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import constant_node, draw, model, node, run
from onnx import NodeProto, helper

from repfuse.fusion import FuseResult, fuse
from repfuse.jobs.check import check
from repfuse.proof.blockcheck import check_blocks
from repfuse.remarks import Outcome

SHAPE = [1, 4, 5, 6]


def written(text: str) -> tuple[list[NodeProto], dict[str, float]]:
    """Nodes, one a line as `y = Mul x g`, numbers being constants."""
    nodes: list[NodeProto] = []
    constants: dict[str, float] = {}
    for target, _, op, *operands in filter(None, map(str.split, text.splitlines())):
        numbers = {f"{target}{i}": float(each) for i, each in enumerate(operands) if not each.isidentifier()}
        constants |= numbers
        names = [each if each.isidentifier() else f"{target}{i}" for i, each in enumerate(operands)]
        nodes.append(node(op, names, [target], name=f"{op}.{target}"))
    return nodes, constants


def between_others(text: str, **how: Any) -> onnx.ModelProto:
    nodes, constants = written(text)
    return around(nodes, constants, **how)


def around(nodes: list[NodeProto], constants: dict[str, Any], **how: Any) -> onnx.ModelProto:
    ends = node("Sqrt", ["in"], ["x"]), node("Sin", ["y"], ["out"])
    return model([ends[0], *nodes, ends[1]], {"in": SHAPE}, ["out"], constants, **how)


def ops(result: FuseResult) -> str:
    return " ".join(each.op_type for each in result.model.graph.node if each.op_type != "Constant")


GATE = "a = Add x 3\n c = Clip a 0 6\n"
BY_PADDLE = f"{GATE} m = Mul x c\n y = Div m 6"
FORMS = [
    pytest.param(BY_PADDLE, id="divided-last"),
    pytest.param(f"{GATE} m = Mul c x\n y = Mul m 0.16666667", id="times-a-sixth-last"),
    pytest.param(f"{GATE} m = Mul c x\n y = Mul 0.16666667 m", id="a-sixth-times-it"),
    pytest.param(f"{GATE} g = Div c 6\n y = Mul x g", id="gate-first"),
    pytest.param(f"{GATE} g = Mul c 0.16666667\n y = Mul g x", id="gate-first-times-a-sixth"),
    pytest.param(f"{GATE} s = Div x 6\n y = Mul s c", id="source-first"),
    pytest.param(f"{GATE} s = Mul x 0.16666667\n y = Mul c s", id="source-first-times-a-sixth"),
    pytest.param(BY_PADDLE.replace("x 3", "3 x"), id="three-first"),
]


@pytest.mark.parametrize("text", FORMS)
def test_it_becomes_one_node(text: str) -> None:
    proto = between_others(text)
    result = fuse(proto)
    assert ops(result) == "Sqrt HardSwish Sin"
    assert not result.model.graph.initializer
    (edit,) = result.edits
    assert (edit.pattern, edit.source, edit.output, edit.kernel) == ("HardSwish", "x", "y", "")
    assert len(edit.removed) == 4
    (remark,) = result.remarks
    assert remark.outcome is Outcome.REWRITTEN
    (block,) = check_blocks(proto, result)
    assert block.passed
    assert not block.skipped
    assert block.error_ulp <= 0.5
    x = (30 * draw(*SHAPE) ** 2).astype(np.float32)
    np.testing.assert_allclose(run(result.model, x), run(proto, x), rtol=0, atol=2e-4)


def test_the_form_of_torch_before_opset_14() -> None:
    nodes = [
        node("HardSigmoid", ["x"], ["g"], alpha=1 / 6, name="gate"),
        node("Mul", ["x", "g"], ["y"], name="product"),
    ]
    proto = around(nodes, {}, opset=13)
    result = fuse(proto)
    assert ops(result) == "Sqrt HardSwish Sin"
    assert result.model.opset_import[0].version == 14
    (block,) = check_blocks(proto, result)
    assert block.passed
    assert not block.skipped


@pytest.mark.parametrize("version", [9, 10])
def test_clip_with_attributes(version: int) -> None:
    nodes, constants = written(BY_PADDLE)
    nodes[1] = node("Clip", ["a"], ["c"], min=0.0, max=6.0)
    result = fuse(around(nodes, {key: constants[key] for key in ("a1", "y1")}, opset=version))
    assert ops(result) == "Sqrt HardSwish Sin"


@pytest.mark.parametrize("dims", [(), (1,)])
def test_constants_of_any_rank_that_adds_no_axis(dims: tuple[int, ...]) -> None:
    nodes, constants = written(BY_PADDLE)
    clip = {name: value for name, value in constants.items() if name[0] == "c"}
    others = {name: np.full(dims, value) for name, value in constants.items() if name[0] != "c"}
    assert ops(fuse(around(nodes, clip | others))) == "Sqrt HardSwish Sin"


def test_constants_in_nodes() -> None:
    nodes, constants = written(BY_PADDLE)
    nodes = [*(constant_node(name, value) for name, value in constants.items()), *nodes]
    assert [each.op_type for each in fuse(around(nodes, {})).model.graph.node] == ["Sqrt", "HardSwish", "Sin"]


def test_in_half_precision_a_sixth_is_the_nearest_half() -> None:
    text = f"{GATE} m = Mul x c\n y = Mul m 0.16666667"
    proto = between_others(text, dtype=np.float16)
    result = fuse(proto)
    assert ops(result) == "Sqrt HardSwish Sin"
    (block,) = check_blocks(proto, result)
    assert block.passed


NEAR_MISSES = [
    pytest.param(BY_PADDLE.replace("x 3", "x 2.5"), id="another-shift"),
    pytest.param(BY_PADDLE.replace("0 6", "0 5"), id="another-bound"),
    pytest.param(BY_PADDLE.replace("0 6", "-1 6"), id="another-lower-bound"),
    pytest.param(BY_PADDLE.replace("m 6", "m 5"), id="another-divisor"),
    pytest.param(BY_PADDLE.replace("Div m 6", "Mul m 0.1667"), id="a-sixth-roughly"),
    pytest.param(BY_PADDLE.replace("Mul x c", "Mul a c"), id="of-two-tensors"),
    pytest.param(BY_PADDLE.replace("Div m 6", "Div 6 m"), id="divided-by-it"),
    pytest.param(f"{GATE} y = Mul x c", id="without-its-factor"),
    pytest.param(f"{GATE} y = Div c 6", id="gate-alone"),
]


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_what_only_looks_like_one_stays(text: str) -> None:
    proto = between_others(text)
    assert fuse(proto).model == proto


@pytest.mark.parametrize("attributes", [{}, {"alpha": 0.2}, {"alpha": 1 / 6, "beta": 0.4}], ids=str)
def test_another_hard_sigmoid_stays(attributes: dict[str, float]) -> None:
    nodes = [node("HardSigmoid", ["x"], ["g"], **attributes), node("Mul", ["x", "g"], ["y"])]
    proto = around(nodes, {})
    assert fuse(proto).model == proto


def test_constants_for_each_channel_stay() -> None:
    nodes, constants = written(BY_PADDLE)
    proto = around(nodes, constants | {"a1": np.full((4, 1, 1), 3.0)})
    assert fuse(proto).model == proto


def test_double_precision_stays() -> None:
    """HardSwish computes with a sixth in float32."""
    proto = between_others(BY_PADDLE, dtype=np.float64)
    assert fuse(proto).model == proto


def test_a_scalar_that_constants_would_give_an_axis_stays() -> None:
    nodes, constants = written(BY_PADDLE)
    nodes = [node("ReduceMax", ["in"], ["x"], keepdims=0), *nodes, node("Sin", ["y"], ["out"])]
    proto = model(nodes, {"in": SHAPE}, ["out"], constants | {"a1": np.array([3.0])})
    assert fuse(proto).model == proto


@pytest.mark.parametrize("name", ["a", "c", "m"])
def test_what_others_use_stays(name: str) -> None:
    nodes, constants = written(BY_PADDLE)
    proto = around(nodes, constants)
    proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    assert fuse(proto).model == proto


def test_a_quantized_model_stays() -> None:
    nodes, constants = written(BY_PADDLE)
    more = [
        node("QuantizeLinear", ["y", "s"], ["q"]),
        node("DequantizeLinear", ["q", "s"], ["d"]),
        node("Sin", ["d"], ["out"]),
    ]
    proto = model(
        [node("Sqrt", ["in"], ["x"]), *nodes, *more], {"in": SHAPE}, ["out"], constants | {"s": 0.5}
    )
    assert fuse(proto).model == proto


def test_with_patterns_only_these_are_fused() -> None:
    proto = between_others(BY_PADDLE)
    assert fuse(proto, patterns=["repvgg"]).model == proto


def test_it_can_be_left_alone() -> None:
    proto = between_others(BY_PADDLE)
    assert fuse(proto, leave=fuse(proto).edits).model == proto


def test_what_is_linear_around_it_is_fused_as_ever() -> None:
    """Its own factor belongs to it; the scale behind it does not."""
    nodes, constants = written(BY_PADDLE)
    nodes = [
        node("Conv", ["in", "w"], ["u"]),
        node("Mul", ["u", "k"], ["x"]),
        *nodes,
        node("Mul", ["y", "k"], ["z"]),
        node("Conv", ["z", "w"], ["out"]),
    ]
    proto = model(nodes, {"in": [1, 4, 9, 9]}, ["out"], constants | {"w": draw(4, 4, 3, 3), "k": 0.7})
    result = fuse(proto)
    assert ops(result) == "Conv HardSwish Conv"
    blocks = check_blocks(proto, result)
    assert len(blocks) == 3
    assert all(block.passed and not block.skipped for block in blocks)


def test_a_wrong_one_is_found() -> None:
    """The block check knows nothing of how HardSwish was found."""
    proto = between_others(BY_PADDLE)
    result = fuse(proto)
    for other in (
        between_others(BY_PADDLE.replace("x 3", "x 2.9999")),
        between_others(BY_PADDLE.replace("m 6", "m 6.001")),
    ):
        (block,) = check_blocks(other, result)
        assert not block.passed


def test_checking_a_model_asks_for_branches_only(tmp_path: Any) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(between_others(BY_PADDLE), path)
    assert check(str(path)).status == "clean"
