"""Gemm: a kernel without spatial axes, merged as a Conv is; heads that are averaged become one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import draw, model, node, run

from repfuse import fuse

C_IN, C_OUT = 6, 5


def statistics(seed: int, channels: int) -> dict[str, Any]:
    """Scale, shift, mean and variance of a BatchNormalization, as initializers `s0` to `s3` with the seed."""
    values = [draw(channels, seed=seed + i) for i in range(4)]
    values[3] = np.abs(values[3]) + 0.5
    return {f"n{seed}_{i}": value for i, value in enumerate(values)}


def norm(source: str, seed: int, target: str) -> onnx.NodeProto:
    return node("BatchNormalization", [source, *(f"n{seed}_{i}" for i in range(4))], [target])


def gemm(source: str, weight: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return node("Gemm", [source, weight, "b"], [target], **attributes)


def prove(proto: onnx.ModelProto, left: dict[str, int]) -> None:
    """Fuse a model, and check what is left of it and that it computes the same."""
    x = draw(3, C_IN, seed=99)
    fused = fuse(proto).model
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(fused, strict_mode=True))
    assert Counter(n.op_type for n in fused.graph.node) == left
    expected = run(proto, x)
    np.testing.assert_allclose(run(fused, x), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


CONSTANTS = {
    "w": draw(C_IN, C_OUT),
    "wt": draw(C_OUT, C_IN, seed=1),
    "b": draw(C_OUT, seed=2),
    "row": draw(1, C_OUT, seed=3),
    "two": np.array(2.0),
    **statistics(10, C_IN),
    **statistics(20, C_IN),
    **statistics(30, C_OUT),
}


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([norm("x", 10, "t"), gemm("t", "w", "y")], id="BatchNormalization before"),
        pytest.param([gemm("x", "w", "t"), norm("t", 30, "y")], id="BatchNormalization behind"),
        pytest.param([gemm("x", "wt", "t", transB=1), norm("t", 30, "y")], id="transposed weight"),
        pytest.param([gemm("x", "w", "t", alpha=0.5, beta=3.0), norm("t", 30, "y")], id="alpha and beta"),
        pytest.param([node("Gemm", ["x", "w"], ["t"]), node("Div", ["t", "two"], ["y"])], id="no bias"),
        pytest.param(
            [node("Gemm", ["x", "w", "row"], ["t"]), node("Neg", ["t"], ["y"])], id="bias of one row"
        ),
        pytest.param(
            [gemm("x", "w", "t"), gemm("x", "wt", "u", transB=1), node("Add", ["t", "u"], ["y"])],
            id="parallel",
        ),
        pytest.param(
            [
                norm("x", 10, "p"),
                gemm("p", "w", "t"),
                norm("x", 20, "q"),
                gemm("q", "wt", "u", transB=1),
                node("Add", ["t", "u"], ["v"]),
                node("Div", ["v", "two"], ["y"]),
            ],
            id="RepViT's averaged heads",
        ),
    ],
)
@pytest.mark.parametrize("opset", [14, 17])
def test_one_gemm_is_left(nodes: list[onnx.NodeProto], opset: int) -> None:
    used = {name for each in nodes for name in each.input}
    constants = {name: value for name, value in CONSTANTS.items() if name in used}
    prove(model(nodes, {"x": [3, C_IN]}, ["y"], constants, opset=opset, dtype=np.float64), {"Gemm": 1})


def test_below_version_11_a_gemm_keeps_its_third_operand() -> None:
    nodes = [gemm("x", "w", "t"), gemm("x", "v", "u"), node("Add", ["t", "u"], ["y"])]
    constants = {"w": draw(C_IN, C_OUT), "v": draw(C_IN, C_OUT, seed=1), "b": np.zeros(C_OUT)}
    proto = model(nodes, {"x": [3, C_IN]}, ["y"], constants, opset=9, dtype=np.float64)
    (left,) = fuse(proto).model.graph.node
    assert len(left.input) == 3
    prove(proto, {"Gemm": 1})


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param(
            [node("Gemm", ["x", "w", "c"], ["t"]), node("Neg", ["t"], ["y"])],
            {"w": draw(C_IN, C_OUT), "c": draw(3, C_OUT)},
            id="a bias for each row",
        ),
        pytest.param(
            [gemm("x", "w", "t"), node("Relu", ["t"], ["r"]), gemm("r", "v", "y")],
            {"w": draw(C_IN, C_OUT), "v": draw(C_OUT, C_OUT), "b": draw(C_OUT)},
            id="an activation between",
        ),
        pytest.param(
            [gemm("x", "w", "t"), gemm("t", "v", "y")],
            {"w": draw(C_IN, 1), "v": draw(1, C_OUT), "b": draw(1)},
            id="through a bottleneck, where one would be larger",
        ),
    ],
)
def test_what_stays(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    proto = model(nodes, {"x": [3, C_IN]}, ["y"], constants, dtype=np.float64)
    prove(proto, Counter(n.op_type for n in nodes))
