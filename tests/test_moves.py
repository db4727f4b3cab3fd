"""Operators that move elements, and those that compute with them, do what ONNX's reference evaluator says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from graphs import Array, draw, model, node, run
from onnx import NodeProto, numpy_helper

from repfuse.graph import moves
from repfuse.graph.arithmetic import UnknownValueError
from repfuse.model.nodes import Node

X = draw(2, 3, 4)
I64 = np.int64


def row(op_type: str, *operands: Any, opset: int = 18, **attributes: Any) -> Any:
    text = " ".join(f"{name}={value}" for name, value in attributes.items() if not hasattr(value, "dims"))
    shown = [list(o.shape) if getattr(o, "ndim", 0) > 1 else np.asarray(o).tolist() for o in operands]
    return pytest.param(op_type, operands, opset, attributes, id=f"{op_type} {shown} {text}")


def ints(*values: int) -> Array:
    return np.array(values, I64)


CASES = [
    row("Add", ints(1, 2), ints(3)),
    row("Cast", ints(1, 2), to=6),
    row("Concat", X, X[:1], axis=0),
    row("Concat", X, X, axis=-1),
    row("ConstantOfShape", ints(2, 3), value=numpy_helper.from_array(ints(7))),
    row("ConstantOfShape", ints(2)),
    row("Div", X, X[:, :1]),
    row("Div", ints(7, 6, 0), ints(2)),
    row("Einsum", X, draw(4, 5), equation="abc,cd->dab"),
    row("Einsum", X, draw(3), equation=" abc , b -> ac "),
    row("Equal", ints(1, 2), ints(1)),
    row("EyeLike", X[0], k=1),
    row("EyeLike", X[0], dtype=1),
    row("Expand", X[:, :1], ints(3, 1)),
    row("Flatten", X),
    row("Flatten", X, axis=0),
    row("Flatten", X, axis=-1),
    row("Gather", X, ints(2, 0, -1), axis=1),
    row("Gather", ints(5, 6, 7), np.array(1)),
    row("Identity", X),
    row("Mod", ints(-7, 7, 6), ints(3, -4, 3)),
    row("Mod", ints(-7, 7, 6), ints(3, -4, 3), fmod=1),
    row("Mod", X, X[:1] + 2, fmod=1),
    row("Mul", ints(1, 2), ints(-1)),
    row("Neg", X),
    row("Pad", X, ints(0, 1, 2, 0, 0, 1)),
    row("Pad", X, ints(1, 2), np.array(3.0), ints(2), mode="constant"),
    row("Range", np.array(2), np.array(9), np.array(3)),
    row("Range", np.array(9.0), np.array(-2.0), np.array(-3.0)),
    row("Reciprocal", X),
    row("ReduceL2", X, ints(1, -1)),
    row("ReduceL2", X, opset=13, axes=[0], keepdims=0),
    row("ReduceSum", X),
    row("ReduceSum", X, ints(0), keepdims=0),
    row("ReduceSum", X, opset=11, axes=[2]),
    row("Reshape", X, ints(0, -1)),
    row("Reshape", np.zeros((0, 3)), ints(3, 0), allowzero=1),
    row("ScatterElements", X, np.array([[[1, 0, 2, 2]]]), draw(1, 1, 4, seed=1), axis=1),
    row("ScatterND", X, np.array([[0, 1], [1, 2]]), draw(2, 4, seed=1)),
    row("ScatterND", X, np.array([[[-1]]]), draw(1, 1, 3, 4, seed=1)),
    row("Shape", X),
    row("Shape", X, start=1, end=-1),
    row("Sigmoid", 100 * X),
    row("Slice", X, ints(1), ints(2**63 - 1), ints(-1)),
    row("Slice", X, ints(-1, 0), ints(-(2**63), 1), ints(2, 0), ints(-1, 1)),
    row("Sqrt", np.abs(X)),
    row("Squeeze", X[:1], ints(0)),
    row("Squeeze", X[:1]),
    row("Squeeze", X[:1], opset=11, axes=[0]),
    row("Sub", ints(1, 2), ints(3)),
    row("Transpose", X),
    row("Transpose", X, perm=[1, 0, 2]),
    row("Unsqueeze", X, ints(0, -1)),
    row("Unsqueeze", X, opset=11, axes=[1]),
    row("Where", X > 0, X, np.zeros(4)),
]


def made(op_type: str, operands: tuple[Any, ...], attributes: Mapping[str, Any]) -> NodeProto:
    return node(op_type, [f"i{k}" for k in range(len(operands))], ["y"], **attributes)


@pytest.mark.parametrize(("op_type", "operands", "opset", "attributes"), CASES)
def test_every_operator(
    op_type: str, operands: tuple[Any, ...], opset: int, attributes: dict[str, Any]
) -> None:
    one = made(op_type, operands, attributes)
    given = {f"i{k}": np.asarray(value) for k, value in enumerate(operands)}
    expected = run(model([one], {}, ["y"], given, opset=opset, dtype=np.float64))
    actual = moves.evaluate(Node(one), list(given.values()))
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_no_operator_is_left_out() -> None:
    assert {case.values[0] for case in CASES} == moves.KNOWN


def test_padding_by_less_than_nothing() -> None:
    # ONNX's reference evaluator cannot do that.
    pad = node("Pad", ["x", "pads"], ["y"])
    cropped = moves.evaluate(Node(pad), [X, ints(0, -1, 2, 0, 0, -1)])
    np.testing.assert_array_equal(cropped, np.pad(X, [(0, 0), (0, 0), (2, 0)])[:, 1:, :-1])


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes"),
    [
        pytest.param("ConstantOfShape", [ints(2**40)], {}, id="ConstantOfShape"),
        pytest.param("Expand", [X, ints(2**30, 1, 1, 1)], {}, id="Expand"),
        pytest.param("Pad", [X, ints(0, 0, 2**40, 0, 0, 0)], {}, id="Pad"),
        pytest.param("Range", [ints(0), ints(2**40), ints(1)], {}, id="Range"),
        pytest.param("Range", [ints(0), ints(2), ints(0)], {}, id="Range without a step"),
        pytest.param("Range", [np.float32(v) for v in (0, 1, 0.1)], {}, id="Range of tenths"),
        pytest.param("Range", [np.float32(v) for v in (0, np.inf, 1)], {}, id="Range without an end"),
        pytest.param(
            "Range", [np.float16(v) for v in (2040, 2060, 1)], {}, id="Range beyond its type's digits"
        ),
        pytest.param("Gather", [X, np.zeros((2**22, 1), I64)], {}, id="Gather"),
        pytest.param("Add", [np.zeros((2**13, 1)), np.zeros(2**13)], {}, id="Add"),
        pytest.param("Einsum", [np.zeros(2**13), np.zeros(2**13)], {"equation": "a,b->ab"}, id="Einsum"),
    ],
)
def test_too_large(op_type: str, operands: list[Array], attributes: dict[str, Any]) -> None:
    with pytest.raises(UnknownValueError):
        moves.evaluate(Node(made(op_type, tuple(operands), attributes)), operands)


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes"),
    [
        pytest.param("ScatterND", [X, ints(0), X[0]], {"reduction": "add"}, id="a scatter that adds"),
        pytest.param("ScatterElements", [X, np.zeros((1, 1, 1), I64), X], {"reduction": "max"}, id="maximum"),
        pytest.param("Pad", [X, ints(0, 0, 1, 0, 0, 1)], {"mode": "reflect"}, id="reflection"),
        pytest.param("ScatterND", [X, ints(5), X[0]], {}, id="a place outside"),
        pytest.param("Reshape", [X, ints(5, 5)], {}, id="a shape of another size"),
        pytest.param("Slice", [X, None, ints(1)], {}, id="a missing operand"),
        pytest.param("Div", [ints(-7), ints(2)], {}, id="a quotient that runtimes round in different ways"),
        pytest.param("Div", [ints(7), ints(0)], {}, id="a whole number divided by zero"),
        pytest.param("Mod", [ints(7), ints(0)], {}, id="a remainder of division by zero"),
        pytest.param("Einsum", [X], {"equation": "...->..."}, id="an equation that leaves axes open"),
        pytest.param("Einsum", [X, X], {"equation": "abc->abc"}, id="an equation of fewer operands"),
        pytest.param("ReduceSum", [X], {"noop_with_empty_axes": 1}, id="a sum over no axes"),
    ],
)
def test_what_cannot_be_told(op_type: str, operands: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(UnknownValueError):
        moves.evaluate(Node(made(op_type, tuple(operands), attributes)), operands)
