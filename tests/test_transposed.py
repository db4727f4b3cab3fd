"""ConvTranspose: merged like a Conv with what is pointwise, and with its like; a shift before it stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import Array, draw, model, node
from hypothesis import given
from hypothesis import strategies as st

from repfuse import fuse
from repfuse.proof.blockcheck import check_blocks

C_IN, C_OUT = 4, 6
CONSTANTS: dict[str, Any] = {
    "w": draw(C_IN, C_OUT, 3, 3),
    "v": draw(C_IN, C_OUT, 3, 3, seed=1),
    "grouped": draw(C_IN, C_OUT // 2, 3, 3, seed=2),
    "two": draw(C_IN, C_OUT, 2, 2, seed=2),
    "conv": draw(C_OUT, C_IN, 3, 3, seed=2),
    "b": draw(C_OUT, seed=3),
    "in": draw(C_IN, 1, 1, seed=4),
    "out": draw(1, C_OUT, 1, 1, seed=5),
    "mix": draw(C_IN, C_IN, 1, 1, seed=6),
    "remix": draw(C_OUT, C_OUT, 1, 1, seed=7),
    **{f"n{i}": np.abs(draw(C_OUT, seed=8 + i)) + 0.5 for i in range(4)},
}


def transposed(source: str, weight: str, target: str, *bias: str, **attributes: Any) -> onnx.NodeProto:
    return node("ConvTranspose", [source, weight, *bias], [target], **{"strides": [2, 2], **attributes})


def on_runtime(proto: onnx.ModelProto, x: Array) -> Array:
    """What ONNX Runtime computes: onnx 1.23's reference evaluator mistakes groups and output_shape."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x.astype(np.float32)})[0])


def prove(nodes: list[onnx.NodeProto], left: str) -> None:
    """Fuse a model over one input `x`, and compare it as a whole, and block by block in float64."""
    used = {name for each in nodes for name in each.input}
    given_here = {name: value for name, value in CONSTANTS.items() if name in used}
    proto = model(nodes, {"x": ["n", C_IN, "h", "w"]}, ["y"], given_here)
    result = fuse(proto)
    assert " ".join(each.op_type for each in result.model.graph.node) == left
    x = draw(2, C_IN, 5, 6, seed=99)
    expected = on_runtime(proto, x)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(on_runtime(result.model, x), expected, rtol=0, atol=tolerance)
    checks = check_blocks(proto, result)
    assert all(check.passed and not check.skipped for check in checks), checks


GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"pads": [1, 0, 1, 1], "output_padding": [1, 0]},
    {"strides": [3, 1], "dilations": [2, 1]},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["plain", "padded", "dilated"])
@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(
            [
                transposed("x", "w", "t", "b"),
                node("BatchNormalization", ["t", "n0", "n1", "n2", "n3"], ["y"]),
            ],
            id="PP-OCR's head: a normalization behind",
        ),
        pytest.param([transposed("x", "w", "t"), node("Sub", ["out", "t"], ["y"])], id="a shift behind"),
        pytest.param([node("Mul", ["in", "x"], ["t"]), transposed("t", "w", "y", "b")], id="a scale before"),
        pytest.param(
            [node("Conv", ["x", "mix"], ["t"]), transposed("t", "w", "y", "b")], id="a pointwise Conv before"
        ),
        pytest.param(
            [transposed("x", "w", "t", "b"), node("Conv", ["t", "remix", "b"], ["y"])],
            id="a pointwise Conv behind",
        ),
        pytest.param(
            [
                transposed("x", "w", "t", "b"),
                transposed("x", "grouped", "u", group=2),
                node("Sub", ["t", "u"], ["y"]),
            ],
            id="parallel, one of them in groups",
        ),
        pytest.param(
            [transposed("x", "grouped", "t", group=2), node("Mul", ["t", "out"], ["y"])],
            id="in groups, with a scale behind",
        ),
    ],
)
def test_one_is_left(nodes: list[onnx.NodeProto], geometry: dict[str, Any]) -> None:
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    for each in nodes:
        if each.op_type == "ConvTranspose" and geometry:
            given_here = {a.name: onnx.helper.get_attribute_value(a) for a in each.attribute} | geometry
            del each.attribute[:]
            each.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in given_here.items())
    prove(nodes, "ConvTranspose")


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("Add", ["x", "in"], ["t"]), transposed("t", "w", "y")], id="a shift before"),
        pytest.param(
            [transposed("x", "w", "t"), node("Conv", ["t", "remix3"], ["y"])], id="a Conv with taps behind"
        ),
        pytest.param(
            [transposed("x", "w", "t", output_shape=[9, 9]), node("Neg", ["t"], ["y"])], id="a shape"
        ),
        pytest.param(
            [
                transposed("x", "w", "t", pads=[1, 1, 1, 1], output_padding=[1, 1]),
                transposed("x", "two", "u"),
                node("Add", ["t", "u"], ["y"]),
            ],
            id="parallel, of another extent",
        ),
        pytest.param(
            [
                transposed("x", "w", "t", strides=[1, 1], pads=[1] * 4),
                node("Conv", ["x", "conv"], ["u"], pads=[1] * 4),
                node("Add", ["t", "u"], ["y"]),
            ],
            id="parallel to a Conv",
        ),
    ],
)
def test_what_stays(nodes: list[onnx.NodeProto], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONSTANTS, "remix3", draw(C_OUT, C_OUT, 3, 3))
    prove(nodes, " ".join(each.op_type for each in nodes))


@given(st.data())
def test_any_geometry_between_pointwise_ops(data: st.DataObject) -> None:
    """Axes, groups, strides, dilations, pads and what is appended."""
    rank, group = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2]))
    extents, strides, dilations = (
        data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)) for _ in range(3)
    )
    pads = data.draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
    appended = [data.draw(st.integers(0, max(0, stride - 1))) for stride in strides]
    axes = (1,) * rank
    constants = {
        "s": draw(C_IN, *axes),
        "w": draw(C_IN, C_OUT // group, *extents, seed=1),
        "b": draw(C_OUT, seed=2),
        "v": draw(C_OUT, C_OUT, *axes, seed=3),
        "t": draw(1, C_OUT, *axes, seed=4),
    }
    geometry = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": appended}
    nodes = [
        node("Div", ["x", "s"], ["p"]),
        node("ConvTranspose", ["p", "w", "b"], ["q"], group=group, **geometry),
        node("Conv", ["q", "v"], ["r"]),
        node("Add", ["r", "t"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, C_IN, *[4] * rank]}, ["y"], constants)
    result = fuse(proto)
    assert result.changed
    x = draw(1, C_IN, *[4] * rank, seed=99)
    expected = on_runtime(proto, x)
    tolerance = 1e-4 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(on_runtime(result.model, x), expected, rtol=0, atol=tolerance)
    assert all(check.passed and not check.skipped for check in check_blocks(proto, result))
