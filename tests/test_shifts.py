"""Scales and shifts before a padded Conv: the scale goes into its weight, the shift stays as an Add.

Whoever folds the shift, too, is right in the interior and wrong at the border; so small maps are compared whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import draw, model, node, run
from nets import Net
from onnx import NodeProto
from proof import prove

from repfuse import check_blocks, fuse
from repfuse.fusion import FuseResult
from repfuse.proof.blockcheck import LIMIT
from repfuse.remarks import Outcome

PADDED: dict[str, Any] = {"pads": [1, 1, 1, 1]}
PER_CHANNEL = draw(4, 1, 1, seed=1) + 3
BN = {name: draw(4, seed=seed) + 3 for seed, name in enumerate(("gamma", "beta", "mean", "var"))}
CONSTANTS: dict[str, Any] = {"s": 0.3, "t": 1.5, "S": PER_CHANNEL, "T": draw(4, 1, 1, seed=2), **BN}


def written(text: str) -> list[NodeProto]:
    """Nodes from text: `Mul x s` a line, each on the output of the one before, `x` standing for that."""
    nodes = []
    for number, line in enumerate(text.split("; ") if text else []):
        op, *operands = line.split()
        inputs = [f"t{number}" if each == "x" else each for each in operands]
        nodes.append(node(op, inputs, [f"t{number + 1}"]))
    return nodes


def before_conv(text: str, dtype: Any = np.float64, **attributes: Any) -> onnx.ModelProto:
    """Relu, what the text says, and a Conv; by default one padded 3x3, dense."""
    attributes = attributes or PADDED
    nodes = written(text)
    nodes.append(node("Conv", [f"t{len(nodes)}", "w", "b"], ["y"], **attributes))
    weight = draw(4, 4 // attributes.get("group", 1), 3, 3, seed=3)
    constants = {"w": weight, "b": draw(4, seed=4), **CONSTANTS}
    constants = {name: value for name, value in constants.items() if any(name in n.input for n in nodes)}
    return model([node("Relu", ["in"], ["t0"]), *nodes], {"in": [1, 4, 6, 5]}, ["y"], constants, dtype=dtype)


def ops(proto: onnx.ModelProto) -> str:
    return " ".join(each.op_type for each in proto.graph.node)


def assert_same(proto: onnx.ModelProto, result: FuseResult) -> None:
    x = draw(1, 4, 6, 5, seed=9)
    expected = run(proto, x)
    np.testing.assert_allclose(run(result.model, x), expected, rtol=0, atol=1e-11 * np.abs(expected).max())


GEOMETRY = [
    pytest.param(PADDED, id="dense"),
    pytest.param({**PADDED, "group": 4}, id="depthwise"),
    pytest.param({"pads": [2, 0, 0, 1], "group": 2, "strides": [2, 1]}, id="grouped-strided-one-sided"),
    pytest.param({"pads": [2, 2, 2, 2], "dilations": [2, 2]}, id="dilated"),
]


@pytest.mark.parametrize("attributes", GEOMETRY)
@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("Mul x s", "Conv", id="scale"),
        pytest.param("Div x S", "Conv", id="quotient-per-channel"),
        pytest.param("Neg x", "Conv", id="neg"),
        pytest.param("Mul x s; Mul S x; Neg x; Div x s", "Conv", id="scales-in-a-row"),
        pytest.param("Mul x s; Add x t", "Add Conv", id="learnable-affine-block"),
        pytest.param("Mul s x; Add t x", "Add Conv", id="operands-swapped"),
        pytest.param("Add x t; Mul x s", "Add Conv", id="shift-first"),
        pytest.param("Mul x S; Add x T", "Add Conv", id="per-channel"),
        pytest.param("Mul x s; Add x T", "Add Conv", id="scalar-and-per-channel"),
        pytest.param("Sub x t; Div x S", "Add Conv", id="normalization-of-data"),
        pytest.param("Sub t x; Mul x s", "Add Conv", id="from-a-constant"),
        pytest.param("Add x t; Sub x T; Add t x", "Add Conv", id="shifts-in-a-row"),
        pytest.param("Mul x s; Add x t; Mul x S; Sub T x; Neg x", "Add Conv", id="many"),
        pytest.param("BatchNormalization x gamma beta mean var; Mul x s", "Add Conv", id="normalization"),
        pytest.param("Add x t; Sub x t; Mul x s", "Conv", id="shifts-that-cancel"),
    ],
)
def test_before_a_padded_conv(text: str, left: str, attributes: dict[str, Any]) -> None:
    proto = before_conv(text, **attributes)
    result = fuse(proto)
    assert ops(result.model) == f"Relu {left}"
    assert_same(proto, result)
    stays = [each for each in result.remarks if "behind a shift that stays" in each.message]
    assert bool(stays) is left.startswith("Add")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("text", ["Mul x s; Add x t", "Mul x S; Add x T"])
def test_blocks_pass_in_every_type(text: str, dtype: type[np.generic]) -> None:
    proto = before_conv(text, dtype)
    result = fuse(proto)
    (check,) = check_blocks(proto, result)
    assert check.passed and not check.skipped
    assert (0 if dtype is np.float64 else 0.1) <= check.error_ulp <= LIMIT


@pytest.mark.parametrize("by", [1.001, -1.0, 0.0])
def test_a_wrong_shift_is_caught(by: float) -> None:
    proto = before_conv("Mul x S; Add x T", np.float32)
    result = fuse(proto)
    shift = next(each for each in result.model.graph.initializer if "shift" in each.name)
    values = onnx.numpy_helper.to_array(shift) * np.float32(by)
    shift.CopyFrom(onnx.numpy_helper.from_array(values, shift.name))
    (check,) = check_blocks(proto, result)
    assert not check.passed


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Add x t", id="a shift"),
        pytest.param("Sub t x", id="a shift and a sign in one node"),
        pytest.param("BatchNormalization x gamma beta mean var", id="an Add costs as much"),
    ],
)
def test_what_saves_nothing_stays(text: str) -> None:
    proto = before_conv(text)
    assert fuse(proto).model == proto


def test_a_shift_of_one_value_is_a_scalar() -> None:
    result = fuse(before_conv("Mul x s; Add x t"))
    (shift,) = (each for each in result.model.graph.initializer if "shift" in each.name)
    assert list(shift.dims) == [1]
    assert onnx.numpy_helper.to_array(shift).item() == pytest.approx(5)


def test_a_channel_of_scale_zero_is_refused() -> None:
    constants = {"zero": np.array([1.0, 0, 2, 3]).reshape(4, 1, 1), "T": draw(4, 1, 1), "w": draw(4, 4, 3, 3)}
    nodes = [
        node("Mul", ["x", "zero"], ["a"]),
        node("Add", ["a", "T"], ["c"], name="shift"),
        node("Conv", ["c", "w"], ["y"], **PADDED),
    ]
    proto = model(nodes, {"x": [1, 4, 6, 5]}, ["y"], constants)
    result = fuse(proto)
    assert result.model == proto
    (remark,) = result.remarks
    assert remark.outcome is Outcome.REFUSED
    assert "multiplied by zero and shifted" in remark.message
    # A channel that is not shifted may be multiplied by zero.
    constants["T"][1] = 0
    unshifted = model(nodes, {"x": [1, 4, 6, 5]}, ["y"], constants, dtype=np.float64)
    fused = fuse(unshifted)
    assert ops(fused.model) == "Add Conv"
    assert_same(unshifted, fused)


def test_a_shift_beyond_the_type_is_refused() -> None:
    nodes = [
        node("Mul", ["x", "s"], ["a"]),
        node("Add", ["a", "t"], ["c"]),
        node("Conv", ["c", "w"], ["y"], **PADDED),
    ]
    constants = {"s": 1e-4, "t": 10.0, "w": draw(4, 4, 3, 3)}
    proto = model(nodes, {"x": [1, 4, 6, 5]}, ["y"], constants, dtype=np.float16)
    result = fuse(proto)
    assert result.model == proto
    assert "would overflow float16" in result.remarks[0].message


def two_branches(first: str, second: str) -> onnx.ModelProto:
    """A 3x3 and a 5x5, each behind a scale and a shift of its own, added up."""
    nodes = [
        node("Mul", ["x", "s"], ["a"]),
        node("Add", ["a", first], ["b"]),
        node("Conv", ["b", "w"], ["c"], **PADDED),
        node("Mul", ["x", "s"], ["d"]),
        node("Add", ["d", second], ["e"]),
        node("Conv", ["e", "v"], ["f"], pads=[2, 2, 2, 2]),
        node("Add", ["c", "f"], ["y"], name="join"),
    ]
    constants = {"s": 0.5, "t": 1.5, "u": 2.5, "w": draw(4, 4, 3, 3), "v": draw(4, 4, 5, 5, seed=1)}
    return model(nodes, {"x": [1, 4, 6, 5]}, ["y"], constants, dtype=np.float64)


def test_branches_behind_equal_shifts_are_merged() -> None:
    proto = two_branches("t", "t")
    result = fuse(proto)
    assert ops(result.model) == "Add Conv"
    assert_same(proto, result)


def test_branches_behind_different_shifts_are_not() -> None:
    proto = two_branches("t", "u")
    result = fuse(proto)
    assert_same(proto, result)
    assert any("pads with zeros tensors of different shifts" in each.message for each in result.remarks)


def affine_block(number: int, source: str, target: str) -> tuple[list[NodeProto], dict[str, Any]]:
    """HardSwish as PaddlePaddle exports it, then PP-LCNetV3's learnable affine block."""
    constants = {f"scale{number}": 0.3 + number, f"shift{number}": 0.7 - number}
    return [
        node("Add", [source, "three"], [f"{target}.a"]),
        node("Clip", [f"{target}.a", "zero", "six"], [f"{target}.c"]),
        node("Mul", [source, f"{target}.c"], [f"{target}.m"]),
        node("Div", [f"{target}.m", "six"], [f"{target}.h"]),
        node("Mul", [f"scale{number}", f"{target}.h"], [f"{target}.s"]),
        node("Add", [f"{target}.s", f"shift{number}"], [target]),
    ], constants


def test_a_block_of_pp_ocr() -> None:
    """depthwise 3x3, affine, HardSwish, affine, 1x1, affine, HardSwish, affine, depthwise 5x5."""
    constants: dict[str, Any] = {"three": 3.0, "zero": 0.0, "six": 6.0, "k": 1.3, "l": -0.4}
    constants |= {"w": draw(4, 1, 3, 3), "p": draw(4, 4, 1, 1), "d": draw(4, 1, 5, 5), "b": draw(4)}
    (one, values_of_one), (two, values_of_two) = affine_block(1, "u", "v"), affine_block(2, "q", "r")
    nodes = [
        node("Conv", ["x", "w", "b"], ["t"], group=4, **PADDED),
        node("Mul", ["k", "t"], ["tk"]),
        node("Add", ["tk", "l"], ["u"]),
        *one,
        node("Conv", ["v", "p", "b"], ["o"]),
        node("Mul", ["k", "o"], ["ok"]),
        node("Add", ["ok", "l"], ["q"]),
        *two,
        node("Conv", ["r", "d", "b"], ["y"], group=4, pads=[2, 2, 2, 2]),
    ]
    proto = model(
        nodes, {"x": [1, 4, 6, 5]}, ["y"], constants | values_of_one | values_of_two, dtype=np.float64
    )
    result = fuse(proto)
    assert ops(result.model) == "Conv Add Clip Mul Div Conv Add Clip Mul Div Add Conv"
    assert_same(proto, result)


def test_a_scale_and_shift_go_into_all_that_is_behind_them_or_into_nothing() -> None:
    """PP-OCRv4's detector: behind HardSwish and affine stand a depthwise 5x5 of stride 2, and a 1x1."""
    constants: dict[str, Any] = {"s": 0.3, "t": 1.5, "k": 1.3, "l": -0.4, "b": draw(4)}
    constants |= {"d": draw(4, 1, 5, 5), "p": draw(2, 4, 1, 1)}
    nodes = [
        node("Relu", ["in"], ["x"]),
        node("Mul", ["x", "s"], ["xs"]),
        node("Add", ["xs", "t"], ["u"]),
        node("Conv", ["u", "d", "b"], ["v"], group=4, pads=[2, 2, 2, 2], strides=[2, 2]),
        node("Mul", ["v", "k"], ["vk"]),
        node("Add", ["vk", "l"], ["y"]),
        node("Conv", ["u", "p"], ["z"]),
    ]
    proto = model(nodes, {"in": [1, 4, 6, 5]}, ["y", "z"], constants, dtype=np.float64)
    result = fuse(proto)
    assert ops(result.model) == "Relu Add Conv Conv"
    assert_same(proto, result)


def test_what_saves_nothing_stays_behind_a_matmul() -> None:
    """Behind a MatMul along the last axis, a shift has as many channels as the Conv behind it says."""
    net = Net(2, (5, 7))
    wide = net.node("MatMul", net.x, net.constant(draw(7, 7)))
    result = prove(net.model(net.conv(net.scale("Sub", wide, first=True))))
    assert not result.changed


def test_a_crop_takes_the_border_away() -> None:
    """Behind it no tap is left that reads padding, so the shift goes in, whatever follows."""
    net = Net()
    result = prove(net.model(net.conv(net.crop(net.conv(net.bn(net.x)), 1, 1), 1)))
    assert [edit.kernel for edit in result.edits] == ["3x3 4->4"]
