"""What is carried to another shape, scaled there and carried back is scaled, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import draw, model, node
from onnx import TensorProto, helper
from proof import counts, prove

from repfuse import check_blocks, fuse

C, N = 4, 6
NORM = [1 + draw(C) ** 2, draw(C, seed=1), draw(C, seed=2), 1 + draw(C, seed=4) ** 2]
BN = ["scale", "shift", "mean", "variance"]
CONSTANTS: dict[str, Any] = {
    **dict(zip(BN, NORM, strict=True)),
    "weight": draw(C, C, seed=5),
    "alpha": np.array([0.7]),
    "tokens": np.array([-1, N, C]),
    "others": np.array([-1, C, N]),
}
ROWS = [node("Flatten", ["t"], ["rows"], axis=2), node("BatchNormalization", ["rows", *BN], ["normal"])]


def built(
    nodes: Sequence[onnx.NodeProto], dims: Sequence[int | str] = (2, N, C), output: str = "y"
) -> onnx.ModelProto:
    used = {name for each in nodes for name in each.input}
    constants = {name: value for name, value in CONSTANTS.items() if name in used}
    proto = model(list(nodes), {"x": list(dims)}, [output], constants)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 3))
    return proto


def left(nodes: Sequence[onnx.NodeProto], *dims: int | str) -> dict[str, int]:
    return dict(counts(prove(built(nodes, dims or (2, N, C))).model))


MATMUL = [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "weight"], ["t"])]
MERGED = {"Relu": 1, "MatMul": 1, "Add": 1}


@pytest.mark.parametrize("dims", [(2, N, C), ("n", N, C), ("n", "tokens", C)])
def test_tokens_normalized_as_rows(dims: tuple[int | str, ...]) -> None:
    """LeViT's Linear_BN."""
    shape = node("Shape", ["t"], ["extents"])
    assert left([*MATMUL, *ROWS, shape, node("Reshape", ["normal", "extents"], ["y"])], *dims) == MERGED


def test_a_shape_that_is_written_out() -> None:
    assert left([*MATMUL, *ROWS, node("Reshape", ["normal", "tokens"], ["y"])]) == MERGED


@pytest.mark.parametrize("tokens", range(4, 20))
def test_shapes_that_are_written_out_with_the_number_of_rows(tokens: int) -> None:
    """Whatever number of rows the block check likes to run a block on, it must not mistake one for the other."""
    nodes = [
        *MATMUL,
        node("Reshape", ["t", "flat"], ["rows"]),
        node("BatchNormalization", ["rows", *BN], ["normal"]),
        node("Reshape", ["normal", "whole"], ["y"]),
    ]
    proto = built(nodes, (1, tokens, C))
    for name, extents in (("flat", [tokens, C]), ("whole", [1, tokens, C])):
        proto.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(extents)], extents))
    assert counts(prove(proto).model) == MERGED
    assert all(check.passed and not check.skipped for check in check_blocks(proto, fuse(proto)))


def test_a_sum_between_two_transposes() -> None:
    """SLAB's PRepBN in front of a linear layer."""
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        node("BatchNormalization", ["t", *BN], ["normal"]),
        node("Mul", ["alpha", "t"], ["scaled"]),
        node("Sub", ["normal", "scaled"], ["total"]),
        node("Transpose", ["total"], ["back"], perm=[0, 2, 1]),
        node("MatMul", ["back", "weight"], ["y"]),
    ]
    assert left(nodes, "n", "tokens", C) == MERGED


def test_three_axes_must_go_back_to_where_they_were() -> None:
    def there_and(perm: Sequence[int]) -> dict[str, int]:
        nodes = [
            *MATMUL,
            node("Transpose", ["t"], ["turned"], perm=[2, 0, 1]),
            node("Mul", ["turned", "alpha"], ["scaled"]),
            node("Transpose", ["scaled"], ["y"], perm=list(perm)),
        ]
        return left(nodes)

    assert there_and([1, 2, 0]) == {"Relu": 1, "MatMul": 1}
    assert there_and([2, 1, 0])["Transpose"] == 2


def test_another_shape_is_no_way_back() -> None:
    found = left([*MATMUL, *ROWS, node("Reshape", ["normal", "others"], ["y"])])
    assert found["Reshape"] == 1


def test_a_layer_on_the_way_stays_there() -> None:
    nodes = [
        *MATMUL,
        node("Flatten", ["t"], ["rows"], axis=2),
        node("MatMul", ["rows", "weight"], ["mixed"]),
        node("Relu", ["mixed"], ["normal"]),
        node("Reshape", ["normal", "tokens"], ["y"]),
    ]
    assert left(nodes)["Reshape"] == 1


def test_what_something_else_asks_for_its_extents_is_not_computed_twice() -> None:
    """The MatMul would have to stay for its shape alone."""
    nodes = [
        *MATMUL,
        *ROWS,
        node("Shape", ["t"], ["extents"]),
        node("Reshape", ["normal", "extents"], ["y"]),
        node("ConstantOfShape", ["extents"], ["zeros"]),
    ]

    def merged(*dims: int | str) -> onnx.ModelProto:
        proto = built(nodes, dims)
        zeros = helper.make_tensor_value_info("zeros", TensorProto.FLOAT, [None] * 3)
        proto.graph.output.append(zeros)
        return fuse(proto).model

    assert counts(merged("n", "tokens", C))["MatMul"] == 1
    assert counts(merged(2, N, C))["MatMul"] == 1
