from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repfuse.measures.stats import measure, measure_file


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')


MACS = {
    "conv: each of 6x8x8 outputs reads 4x3x3 inputs": (
        "(float[1,4,8,8] x, float[6,4,3,3] w, float[6] b) => (float[1,6,8,8] y) "
        "{ y = Conv<pads=[1,1,1,1]>(x, w, b) }",
        6 * 8 * 8 * 4 * 3 * 3,
    ),
    "grouped conv with stride: 4x4 outputs, 2 input channels each": (
        "(float[2,4,8,8] x, float[6,2,3,3] w) => (float[2,6,4,4] y) "
        "{ y = Conv<pads=[1,1,1,1], strides=[2,2], group=2>(x, w) }",
        2 * 6 * 4 * 4 * 2 * 3 * 3,
    ),
    "conv over one axis": (
        "(float[1,4,10] x, float[5,4,3] w) => (float[1,5,8] y) { y = Conv(x, w) }",
        5 * 8 * 4 * 3,
    ),
    "transposed conv: each of 4x8x8 inputs is written to 6x2x2 places": (
        "(float[1,4,8,8] x, float[4,6,2,2] w) => (float[1,6,16,16] y) "
        "{ y = ConvTranspose<strides=[2,2]>(x, w) }",
        4 * 8 * 8 * 6 * 2 * 2,
    ),
    "gemm": ("(float[3,5] x, float[7,5] w) => (float[3,7] y) { y = Gemm<transB=1>(x, w) }", 3 * 7 * 5),
    "gemm of a transposed left operand": (
        "(float[5,3] x, float[5,7] w) => (float[3,7] y) { y = Gemm<transA=1>(x, w) }",
        3 * 7 * 5,
    ),
    "matmul of batches": (
        "(float[2,3,4,5] x, float[2,3,5,6] w) => (float[2,3,4,6] y) { y = MatMul(x, w) }",
        2 * 3 * 4 * 6 * 5,
    ),
    "extents that the model leaves to inference": (
        "(float[1,4,8,8] x, float[6,4,3,3] w, float[2,6,3,3] v) => (y) { h = Conv(x, w) y = Conv(h, v) }",
        6 * 6 * 6 * 4 * 9 + 2 * 4 * 4 * 6 * 9,
    ),
    "extents that the graph computes from others": (
        "(float[1,4,8,8] x, float[4,7] w) => (y) { s = Shape(x) two = Constant<value_ints=[2]>() "
        "n = Gather(s, two) m = Mul(n, n) one = Constant<value_ints=[1]>() "
        "four = Constant<value_ints=[4]>() to = Concat<axis=0>(one, m, four) z = Reshape(x, to) "
        "y = MatMul(z, w) }",
        64 * 4 * 7,
    ),
    "nothing to count": ("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }", 0),
    "another domain's Conv is not ours": (
        "(float[1,4] x, float[4,4] w) => (float[1,4] y) { y = other.Conv(x, w) }",
        0,
    ),
    "symbolic extents": (
        "(float[1,4,H,W] x, float[6,4,3,3] w) => (float[1,6,H,W] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
        None,
    ),
    "a symbolic batch that nothing multiplies by": (
        "(float[N,4] x, float[1,5] a, float[5,7] w) => (float[1,7] y) { y = MatMul(a, w) z = Relu(x) }",
        5 * 7,
    ),
}


@pytest.mark.parametrize(("text", "macs"), MACS.values(), ids=MACS)
def test_multiply_adds(text: str, macs: int | None) -> None:
    model = parse(text)
    model.opset_import.append(helper.make_opsetid("other", 1))
    assert measure(model).macs == macs


OPEN = MACS["symbolic extents"][0]


def test_given_shapes_close_what_the_model_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(parse(OPEN), path)
    assert measure_file(path).macs is None
    assert measure_file(path, input_shapes={"x": (1, 4, 5, 7)}).macs == 6 * 5 * 7 * 4 * 9


def test_given_shapes_win_over_those_that_were_inferred_before(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = parse(OPEN.replace("y = Conv<pads=[1,1,1,1]>(x", "h = Relu(x) y = Conv<pads=[1,1,1,1]>(h"))
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 4, 32, 32]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 32, 32]))
    onnx.save(model, path)
    assert measure_file(path, input_shapes={"x": (1, 4, 5, 7)}).macs == 6 * 5 * 7 * 4 * 9


def weighted() -> onnx.ModelProto:
    """A Conv whose weight is an initializer and whose bias is a Constant, behind a Reshape that needs its shape."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.zeros(6, np.float32))),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["pair"], value_floats=[0.5, 0.25]),
        helper.make_node("Constant", [], ["number"], value_int=3),
        helper.make_node("Conv", ["image", "w", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.ones((6, 4, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.array([1, 4, 8, 8]), "shape"),
            numpy_helper.from_array(np.ones(5, np.float16), "halves"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_parameters_are_the_floats_wherever_they_stand() -> None:
    stats = measure(weighted())
    assert stats.parameters == 6 * 4 * 3 * 3 + 5 + 6 + 1 + 2
    assert stats.macs == 6 * 6 * 6 * 4 * 9


def test_nodes_by_operator_the_most_frequent_first() -> None:
    stats = measure(weighted())
    assert stats.nodes == 6
    assert list(stats.operators.items()) == [("Constant", 4), ("Reshape", 1), ("Conv", 1)]


def test_the_model_is_not_changed() -> None:
    model = weighted()
    before = model.SerializeToString()
    measure(model)
    assert model.SerializeToString() == before


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(weighted(), path)
    assert measure_file(path).bytes == path.stat().st_size == measure(weighted()).bytes


def test_external_data_count_and_need_not_be_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(weighted(), path, save_as_external_data=True, location="weights", size_threshold=100)
    inside, outside = path.stat().st_size, (tmp_path / "weights").stat().st_size
    (tmp_path / "weights").unlink()
    stats = measure_file(path)
    assert outside >= 6 * 4 * 9 * 4
    assert stats.bytes == inside + outside
    assert (stats.parameters, stats.macs) == (measure(weighted()).parameters, measure(weighted()).macs)


def with_branch(op_type: str) -> onnx.ModelProto:
    """An If whose branches hold one node and one weight each."""

    def body(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node(op_type, ["x", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [2, 2])],
            [numpy_helper.from_array(np.ones((2, 2), np.float32), f"{name}_w")],
        )

    branches: dict[str, Any] = {"then_branch": body("yes"), "else_branch": body("no")}
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_subgraphs_hold_nodes_and_parameters_too() -> None:
    stats = measure(with_branch("Add"))
    assert (stats.nodes, stats.parameters, stats.macs) == (3, 8, 0)
    assert stats.operators == {"Add": 2, "If": 1}


def test_multiply_adds_of_a_subgraph_cannot_be_known() -> None:
    assert measure(with_branch("MatMul")).macs is None


def test_functions_hold_nodes_too() -> None:
    model = parse("(float[2,2] x) => (float[2,2] y) { y = mine.f(x) }")
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(
        helper.make_function(
            "mine",
            "f",
            ["a"],
            ["b"],
            [helper.make_node("MatMul", ["a", "a"], ["b"])],
            [helper.make_opsetid("", 17)],
        )
    )
    stats = measure(model)
    assert (stats.nodes, stats.macs) == (2, None)
