"""A pointwise Conv goes before the Resize that makes images larger, where it has a quarter of the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Array, Shape, draw, model, node
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from repfuse import FuseResult, fuse
from repfuse.proof.blockcheck import check_blocks
from repfuse.proof.operators import Resize

C, D = 64, 48
CONSTANTS: dict[str, Any] = {
    "conv": draw(D, C, 1, 1),
    "square": draw(C, C, 1, 1),
    "wide": draw(4 * C, C, 1, 1),
    "narrow": draw(8, 8, 1, 1),
    "twofold": draw(D, 2 * C, 1, 1),
    "matrix": draw(C, D),
    "b": draw(D, seed=1),
    "in": draw(C, 1, 1, seed=2),
    "sizes": np.array([1, C, 10, 12]),
    "spatial": np.array([10, 12]),
    "one": np.array([1]),
    "zero": np.array([0]),
    "two": np.array([2]),
}
IMAGES: Shape = (1, C, 5, 6)
CONV = node("Conv", ["t", "conv", "b"], ["y"])


def told(name: str, *numbers: float) -> onnx.NodeProto:
    """A Constant of single precision: the other constants here are of double precision."""
    return node("Constant", [], [name], value_floats=[float(number) for number in numbers])


def resize(*inputs: str, **attributes: Any) -> onnx.NodeProto:
    return node("Resize", [*inputs], ["t"], mode=attributes.pop("mode", "linear"), **attributes)


def run(proto: onnx.ModelProto, x: Array) -> Array:
    """With the Resize that `test_part` compares with ONNX's own, which takes minutes before onnx 1.22."""
    outputs: Any = ReferenceEvaluator(proto, new_ops=[Resize]).run(None, {"x": x})
    return np.asarray(outputs[0])


def proved(nodes: Sequence[onnx.NodeProto], shape: Shape, opset: int = 17) -> FuseResult:
    used = {name for each in nodes for name in each.input}
    constants = {name: value for name, value in CONSTANTS.items() if name in used}
    proto = model(nodes, {"x": shape}, ["y"], constants, opset=opset, dtype=np.float64)
    result = fuse(proto)
    x = draw(*(n if isinstance(n, int) else 3 for n in shape), seed=9)
    expected, actual = run(proto, x), run(result.model, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    checks = check_blocks(proto, result)
    assert all(check.passed and not check.skipped for check in checks), checks
    return result


def ops(result: FuseResult) -> str:
    return " ".join(each.op_type for each in result.model.graph.node if each.op_type != "Constant")


TWICE = told("s", 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("nodes", "shape", "left"),
    [
        pytest.param([TWICE, resize("x", "", "s"), CONV], ("n", C, "h", "w"), "Conv Resize", id="scales"),
        pytest.param(
            [TWICE, resize("x", "", "s", mode="nearest"), CONV], IMAGES, "Conv Resize", id="the nearest"
        ),
        pytest.param([resize("x", "", "", "sizes"), CONV], IMAGES, "Conv Resize", id="sizes"),
        pytest.param(
            [
                node("Shape", ["x"], ["shape"]),
                node("Slice", ["shape", "zero", "two"], ["images"]),
                node("Concat", ["images", "spatial"], ["computed"], axis=0),
                resize("x", "", "", "computed"),
                node("Conv", ["t", "square"], ["y"]),
            ],
            ("n", C, 5, 6),
            "Shape Slice Concat Conv Resize",
            id="sizes computed, as many channels",
        ),
        pytest.param(
            [node("Mul", ["x", "in"], ["m"]), TWICE, resize("m", "", "s"), CONV],
            IMAGES,
            "Conv Resize",
            id="a scale before it",
        ),
        pytest.param(
            [node("Conv", ["x", "square"], ["c"]), TWICE, resize("c", "", "s"), CONV],
            IMAGES,
            "Conv Resize",
            id="two Convs, around it",
        ),
        pytest.param(
            [told("s", 1, 2, 2, 1), resize("x", "", "s"), node("MatMul", ["t", "matrix"], ["y"])],
            (1, 5, 6, C),
            "MatMul Resize",
            id="channels last",
        ),
    ],
)
def test_the_kernel_goes_before_it(nodes: list[onnx.NodeProto], shape: Shape, left: str) -> None:
    assert ops(proved(nodes, shape)) == left


@pytest.mark.parametrize(
    ("opset", "nodes"),
    [
        (8, [node("Upsample", ["x"], ["t"], scales=[1.0, 1.0, 2.0, 2.0])]),
        (9, [told("s", 1, 1, 2, 2), node("Upsample", ["x", "s"], ["t"], mode="linear")]),
        (10, [told("s", 1, 1, 2, 2), node("Resize", ["x", "s"], ["t"], mode="linear")]),
        (18, [told("s", 2, 2), node("Resize", ["x", "", "s"], ["t"], mode="linear", axes=[2, 3])]),
        (18, [node("Resize", ["x", "", "", "spatial"], ["t"], mode="linear", axes=[2, 3])]),
    ],
)
def test_of_every_version(opset: int, nodes: list[onnx.NodeProto]) -> None:
    """Before version 11 the reference evaluator has no such operator, so the shape of the result must do."""
    for each in nodes:
        if each.op_type == "Constant" and opset < 12:
            values = np.array(onnx.helper.get_node_attr_value(each, "value_floats"), np.float32)
            each.CopyFrom(node("Constant", [], each.output, value=onnx.numpy_helper.from_array(values)))
    constants = {name: CONSTANTS[name] for name in ("conv", "b")} | (
        {"spatial": CONSTANTS["spatial"]} if "spatial" in nodes[-1].input else {}
    )
    result = fuse(model([*nodes, CONV], {"x": IMAGES}, ["y"], constants, opset=opset))
    assert ops(result) == f"Conv {nodes[-1].op_type}"
    assert result.model.graph.node[-1].attribute == nodes[-1].attribute
    shapes = onnx.shape_inference.infer_shapes(result.model, strict_mode=True).graph.output[0]
    assert [dim.dim_value for dim in shapes.type.tensor_type.shape.dim] == [1, D, 10, 12]


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        pytest.param([TWICE, resize("x", "", "s", mode="cubic"), CONV], IMAGES, id="weights below zero"),
        pytest.param(
            [
                TWICE,
                told("roi", 0, 0, 0, 0, 1, 1, 1.2, 1.2),
                resize("x", "roi", "s", coordinate_transformation_mode="tf_crop_and_resize"),
                CONV,
            ],
            IMAGES,
            id="a value from outside",
        ),
        pytest.param(
            [told("s", 1, 2, 2, 2), resize("x", "", "s"), node("Conv", ["t", "twofold"], ["y"])],
            IMAGES,
            id="more channels",
        ),
        pytest.param(
            [TWICE, resize("x", "", "s"), node("Conv", ["t", "wide"], ["y"])],
            (1, C, 3, 4),
            id="many more channels to interpolate",
        ),
        pytest.param(
            [TWICE, resize("x", "", "s"), node("Conv", ["t", "narrow"], ["y"])],
            (1, 8, 5, 6),
            id="few channels, whose activation the Conv computes as well",
        ),
        pytest.param(
            [told("s", 1, 1, 0.5, 0.5), resize("x", "", "s"), CONV], (1, C, 6, 8), id="smaller images"
        ),
        pytest.param(
            [
                node("Shape", ["x"], ["shape"]),
                node("Slice", ["shape", "zero", "two"], ["images"]),
                node("Concat", ["images", "spatial"], ["computed"], axis=0),
                resize("x", "", "", "computed"),
                CONV,
            ],
            ("n", C, 5, 6),
            id="sizes computed, other channels",
        ),
        pytest.param(
            [TWICE, resize("x", "", "s"), node("Relu", ["t"], ["r"]), node("Conv", ["r", "conv"], ["y"])],
            IMAGES,
            id="an activation between",
        ),
    ],
)
def test_what_stays(nodes: list[onnx.NodeProto], shape: Shape) -> None:
    assert not proved(nodes, shape).changed


def test_what_something_else_uses_larger_stays() -> None:
    other = node("GlobalMaxPool", ["t"], ["other"])
    nodes = [TWICE, resize("x", "", "s"), node("Conv", ["t", "conv", "b"], ["c"]), other]
    used = [CONSTANTS["conv"], CONSTANTS["b"]]
    proto = model(nodes, {"x": IMAGES}, ["c", "other"], dict(zip(["conv", "b"], used, strict=True)))
    assert not fuse(proto).changed


@given(st.data())
def test_any_resize_computes_the_same(data: st.DataObject) -> None:
    """Every mode, at places that meet no pixel and borders that are repeated."""
    coordinates = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
    attributes: dict[str, Any] = {
        "mode": data.draw(st.sampled_from(["nearest", "linear"])),
        "coordinate_transformation_mode": data.draw(st.sampled_from(coordinates)),
    }
    if attributes["mode"] == "nearest":
        roundings = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        attributes["nearest_mode"] = data.draw(st.sampled_from(roundings))
    factors = data.draw(st.tuples(*[st.sampled_from([1.0, 1.5, 2.0, 2.4])] * 2))
    nodes = [told("s", 1, 1, *factors), resize("x", "", "s", **attributes), CONV]
    assert proved(nodes, IMAGES, opset=19).changed == (factors != (1, 1))
