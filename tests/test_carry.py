"""Kernels that pass ops which move or average elements: LeViT's Linear and normalization, pooled heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Shape, draw, model, node, run
from hypothesis import given
from hypothesis import strategies as st

from repfuse import fuse
from repfuse.proof.blockcheck import check_blocks

C, D = 6, 4
CONSTANTS: dict[str, Any] = {
    "w": draw(C, D),
    "square": draw(C, C, seed=1),
    "gemm": draw(D, C, seed=2),
    "conv": draw(D, C, 1, 1, seed=3),
    "conv3": draw(D, C, 3, 3, seed=4),
    "b": draw(D, seed=5),
    "half": np.array(0.5),
    "in": draw(C, 1, 1, seed=6),
    "out": draw(D, seed=7),
    "rows": np.array([10, D]),
    "open rows": np.array([-1, D]),
    "tokens": np.array([2, 5, D]),
    "heads": np.array([2, 5, 2, D // 2]),
    "pixels": np.array([0, C, 12]),
    "row": np.array([2, D, 12]),
    "flat": np.array([2, -1]),
    **{f"c{i}": np.abs(draw(C, seed=8 + i)) + 0.5 for i in range(4)},
    **{f"d{i}": np.abs(draw(D, seed=18 + i)) + 0.5 for i in range(4)},
}


def norm(source: str, kind: str, target: str) -> onnx.NodeProto:
    return node("BatchNormalization", [source, *(f"{kind}{i}" for i in range(4))], [target])


def prove(
    nodes: list[onnx.NodeProto], shape: Shape, left: str, constants: Mapping[str, Any] = CONSTANTS
) -> onnx.ModelProto:
    used = {name for each in nodes for name in each.input}
    given_here = {name: value for name, value in constants.items() if name in used}
    proto = model(nodes, {"x": shape}, ["y"], given_here, dtype=np.float64)
    result = fuse(proto)
    assert " ".join(each.op_type for each in result.model.graph.node) == left
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)
    x = draw(*(n if isinstance(n, int) else 2 for n in shape), seed=99)
    expected = run(proto, x)
    actual = run(result.model, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    checks = check_blocks(proto, result)
    assert all(check.passed and not check.skipped for check in checks), checks
    return result.model


LEVIT = [
    node("MatMul", ["x", "w"], ["t"]),
    node("Reshape", ["t", "rows"], ["u"]),
    norm("u", "d", "v"),
    node("Reshape", ["v", "tokens"], ["y"]),
]
"""LeViT's Linear_BN (arXiv:2104.01136), as it is exported."""


@pytest.mark.parametrize(
    ("nodes", "shape", "left"),
    [
        pytest.param(LEVIT, (2, 5, C), "MatMul Add", id="LeViT"),
        pytest.param(
            [LEVIT[0], node("Reshape", ["t", "open rows"], ["u"]), *LEVIT[2:]],
            (2, 5, C),
            "MatMul Add",
            id="LeViT, open extent",
        ),
        pytest.param(
            [
                norm("x", "c", "t"),
                node("GlobalAveragePool", ["t"], ["u"]),
                node("Flatten", ["u"], ["v"]),
                node("Gemm", ["v", "gemm", "b"], ["y"], transB=1),
            ],
            ("n", C, 5, 6),
            "GlobalAveragePool Flatten Gemm",
            id="a normalization before a pooled head",
        ),
        pytest.param(
            [
                norm("x", "c", "t"),
                node("ReduceMean", ["t"], ["u"], axes=[2, 3], keepdims=0),
                node("MatMul", ["u", "w"], ["v"]),
                node("Add", ["v", "b"], ["y"]),
            ],
            ("n", C, 5, 6),
            "ReduceMean Gemm",
            id="a normalization before a mean",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv", "b"], ["t"]),
                node("AveragePool", ["t"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
            ],
            ("n", C, "h", "w"),
            "AveragePool Conv",
            id="DenseNet's transition (arXiv:1608.06993)",
        ),
        pytest.param(
            [
                norm("x", "c", "t"),
                node("Conv", ["t", "conv", "b"], ["u"]),
                norm("u", "d", "v"),
                node("AveragePool", ["v"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
            ],
            ("n", C, 7, 8),
            "AveragePool Conv",
            id="normalizations on both sides, pooled with an overlap",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv", "b"], ["t"]),
                node("Flatten", ["t"], ["u"]),
                node("Mul", ["out", "u"], ["y"]),
            ],
            ("n", C, 1, 1),
            "Conv Flatten",
            id="1x1 Conv, Flatten, scale",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv3"], ["t"], pads=[1] * 4),
                node("Transpose", ["t"], ["u"], perm=[0, 2, 3, 1]),
                node("Add", ["u", "out"], ["y"]),
            ],
            ("n", C, 5, 6),
            "Conv Transpose",
            id="Conv, channels last, shift",
        ),
        pytest.param(
            [
                node("Mul", ["x", "in"], ["t"]),
                node("Reshape", ["t", "pixels"], ["u"]),
                node("Transpose", ["u"], ["v"], perm=[0, 2, 1]),
                node("MatMul", ["v", "w"], ["y"]),
            ],
            (2, C, 3, 4),
            "Reshape Transpose MatMul",
            id="a scale, pixels to tokens, MatMul",
        ),
        pytest.param(
            [
                node("MatMul", ["x", "w"], ["t"]),
                node("Reshape", ["t", "heads"], ["u"]),
                node("Transpose", ["u"], ["v"], perm=[0, 2, 1, 3]),
                node("Mul", ["v", "half"], ["y"]),
            ],
            (2, 5, C),
            "MatMul Reshape Transpose",
            id="a projection, heads, a scalar",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv3"], ["t"]),
                node("Reshape", ["t", "row"], ["u"]),
                node("AveragePool", ["u"], ["v"], kernel_shape=[1]),
                norm("v", "d", "y"),
            ],
            (2, C, 5, 6),
            "Conv Reshape",
            id="Conv, pixels in a row, a pooling of one of them",
        ),
    ],
)
def test_the_kernel_passes(nodes: list[onnx.NodeProto], shape: Shape, left: str) -> None:
    prove(nodes, shape, left)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        pytest.param(
            [
                node("MatMul", ["x", "w"], ["t"]),
                node("Reshape", ["t", "heads"], ["u"]),
                node("Mul", ["u", "pair"], ["y"]),
            ],
            (2, 5, C),
            id="channels taken apart",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv", "b"], ["t"]),
                node(
                    "AveragePool",
                    ["t"],
                    ["y"],
                    kernel_shape=[3, 3],
                    strides=[2, 2],
                    pads=[1, 1, 1, 1],
                    count_include_pad=1,
                ),
            ],
            (2, C, 7, 8),
            id="zeros in the mean",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv", "b"], ["t"]),
                node("AveragePool", ["t"], ["y"], kernel_shape=[2, 2]),
            ],
            (2, C, 7, 8),
            id="a pooling that leaves as many pixels",
        ),
        pytest.param(
            [
                node("AveragePool", ["x"], ["t"], kernel_shape=[2, 2], strides=[2, 2]),
                node("Conv", ["t", "conv", "b"], ["y"]),
            ],
            (2, C, 6, 8),
            id="pooled before",
        ),
        pytest.param(
            [norm("x", "c", "t"), node("Flatten", ["t"], ["u"]), node("MatMul", ["u", "long"], ["y"])],
            (2, C, 3, 4),
            id="pixels among channels",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv3"], ["t"]),
                node("GlobalMaxPool", ["t"], ["u"]),
                node("Flatten", ["u"], ["v"]),
                node("Mul", ["v", "out"], ["y"]),
            ],
            (2, C, 5, 6),
            id="a maximum",
        ),
        pytest.param(
            [
                node("Conv", ["x", "conv3"], ["t"]),
                node("Transpose", ["t"], ["u"], perm=[0, 1, 3, 2]),
                node("Conv", ["u", "next3"], ["y"]),
            ],
            (2, C, 7, 7),
            id="taps on both sides",
        ),
        pytest.param(
            [norm("x", "c", "t"), node("ReduceMean", ["t"], ["u"], axes=[1]), node("Conv", ["u", "one"], ["y"])],
            (2, C, 5, 6),
            id="a mean of channels",
        ),
        pytest.param(
            [
                node("Add", ["x", "in"], ["t"]),
                node("Transpose", ["t"], ["u"], perm=[0, 1, 3, 2]),
                node("Conv", ["u", "conv3"], ["y"], pads=[1] * 4),
            ],
            (2, C, 5, 6),
            id="a shift before padding",
        ),
    ],
)  # fmt: skip
def test_what_stays(nodes: list[onnx.NodeProto], shape: Shape) -> None:
    more = {"pair": draw(2), "long": draw(C * 12, D), "next3": draw(D, D, 3, 3), "one": draw(D, 1, 1, 1)}
    prove(nodes, shape, " ".join(each.op_type for each in nodes), CONSTANTS | more)


OPS = ["MatMul", "Conv", "norm", "last", "Transpose", "Reshape", "Flatten", "Mean", "Pool"]


@given(st.data())
def test_any_row_of_ops_computes_the_same(data: st.DataObject) -> None:  # noqa: PLR0912, PLR0915
    """Against the reference evaluator: kernels, scales and shifts along any axis, among moves and means."""
    shape = list(data.draw(st.sampled_from([(2, 3, 4), (2, 3, 4, 5), (1, 4, 1, 1), (2, 6)])))
    start, source = list(shape), "x"
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}
    for number in range(data.draw(st.integers(2, 6))):
        target, rank, c = f"t{number}", len(shape), f"k{number}"
        op = data.draw(st.sampled_from(OPS))
        if op == "MatMul":
            constants[c] = draw(shape[-1], data.draw(st.sampled_from([shape[-1], 3])), seed=number)
            nodes.append(node("MatMul", [source, c], [target]))
            shape[-1] = constants[c].shape[1]
        elif op == "Conv" and rank > 2:
            constants[c] = draw(
                data.draw(st.sampled_from([shape[1], 3])), shape[1], *[1] * (rank - 2), seed=number
            )
            nodes.append(node("Conv", [source, c], [target]))
            shape[1] = constants[c].shape[0]
        elif op == "norm":
            for i in range(4):
                constants[f"{c}{i}"] = np.abs(draw(shape[1], seed=number + i)) + 0.5
            nodes.append(norm(source, c, target))
        elif op == "last":
            constants[c] = draw(shape[-1], seed=number)
            nodes.append(node(data.draw(st.sampled_from(["Add", "Mul"])), [source, c], [target]))
        elif op == "Transpose":
            order = data.draw(st.permutations(range(rank)))
            nodes.append(node("Transpose", [source], [target], perm=order))
            shape = [shape[axis] for axis in order]
        elif op == "Reshape":
            if rank > 2 and data.draw(st.booleans()):
                shape = [*shape[:-2], shape[-2] * shape[-1]]
            elif rank > 2:
                shape = [shape[0] * shape[1], *shape[2:]]
            else:
                shape = [*shape, 1, 1]
            constants[c] = np.array(shape)
            nodes.append(node("Reshape", [source, c], [target]))
        elif op == "Mean" and rank > 2:
            nodes.append(node("GlobalAveragePool", [source], [target]))
            shape[2:] = [1] * (rank - 2)
        elif op == "Pool" and rank > 2 and min(shape[2:]) > 1:
            kernel, stride = ([data.draw(st.integers(1, 2)) for _ in shape[2:]] for _ in range(2))
            nodes.append(node("AveragePool", [source], [target], kernel_shape=kernel, strides=stride))
            shape[2:] = [(n - k) // s + 1 for n, k, s in zip(shape[2:], kernel, stride, strict=True)]
        elif op == "Flatten":
            nodes.append(node("Flatten", [source], [target]))
            shape = [shape[0], int(np.prod(shape[1:]))]
        else:
            nodes.append(node("Identity", [source], [target]))
        source = target
    proto = model(nodes, {"x": start}, [source], constants, dtype=np.float64)
    x = draw(*start, seed=99)
    result = fuse(proto)
    expected, actual = run(proto, x), run(result.model, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * max(1, np.abs(expected).max()))
    assert all(check.passed for check in check_blocks(proto, result))


def test_a_pooling_larger_than_small_maps_is_checked_on_larger_ones() -> None:
    conv = node("Conv", ["x", "conv", "b"], ["t"])
    pool = node("AveragePool", ["t"], ["y"], kernel_shape=[7, 7], strides=[7, 7])
    constants = {"conv": CONSTANTS["conv"], "b": CONSTANTS["b"]}
    proto = model([conv, pool], {"x": (1, C, "h", "w")}, ["y"], constants, dtype=np.float64)
    result = fuse(proto)
    assert [each.op_type for each in result.model.graph.node] == ["AveragePool", "Conv"]
    (check,) = check_blocks(proto, result)
    assert check.passed
    assert not check.skipped


def test_a_gemm_has_no_groups() -> None:
    """A grouped Conv that moves behind a Flatten, which then moves fewer elements, is a Gemm with zeros."""
    nodes = [
        node("Conv", ["x", "w"], ["t"], group=2),
        node("Transpose", ["t"], ["u"], perm=[2, 1, 0]),
        node("Flatten", ["u"], ["v"]),
        node("Mul", ["s", "v"], ["y"]),
    ]
    constants = {"w": draw(8, 1, 1, seed=1), "s": draw(1, 8, seed=2)}
    prove(nodes, (1, 2, 5), "Transpose Flatten Gemm", constants)
