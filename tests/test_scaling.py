"""The work of the pass grows with the model, no faster: counted in calls, which are the same on any machine."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from repfuse import fuse
from repfuse.fusion import FuseResult


def model_of(lines: list[tuple[str, list[str], str]], constants: dict[str, np.ndarray]) -> ModelProto:
    """Nodes as operator, inputs and output, from `x0` to the last one's output."""
    nodes = [
        helper.make_node(
            op_type, inputs, [output], output, **({"pads": [1] * 4} if inputs[-1] == "k3" else {})
        )
        for op_type, inputs, output in lines
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in ("x0", lines[-1][2]))
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CONSTANTS = {"k3": np.ones((4, 4, 3, 3)), "k1": np.ones((4, 4, 1, 1)), "v": np.ones(4)}


def repvgg(blocks: int) -> ModelProto:
    """Three branches and a Relu, again and again."""
    lines: list[tuple[str, list[str], str]] = []
    for i in range(blocks):
        lines += [
            ("Conv", [f"x{i}", "k3"], f"a{i}"),
            ("Conv", [f"x{i}", "k1"], f"b{i}"),
            ("BatchNormalization", [f"x{i}", "v", "v", "v", "v"], f"c{i}"),
            ("Add", [f"a{i}", f"b{i}"], f"d{i}"),
            ("Add", [f"d{i}", f"c{i}"], f"e{i}"),
            ("Relu", [f"e{i}"], f"x{i + 1}"),
        ]
    return model_of(lines, CONSTANTS)


def residual(blocks: int) -> ModelProto:
    """Nothing to fuse, and a reason to find for every Add, however far back their common source is."""
    lines: list[tuple[str, list[str], str]] = []
    for i in range(blocks):
        lines += [
            ("Conv", [f"x{i}", "k3"], f"a{i}"),
            ("Relu", [f"a{i}"], f"b{i}"),
            ("Conv", [f"b{i}", "k3"], f"c{i}"),
            ("Add", [f"x{i}", f"c{i}"], f"x{i + 1}"),
        ]
    return model_of(lines, CONSTANTS)


def counted(model: ModelProto) -> tuple[int, FuseResult]:
    """How many functions are called, Python's and others, to fuse a model."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        result = fuse(model)
    finally:
        sys.setprofile(before)
    return calls, result


@pytest.mark.parametrize(("make", "fused"), [(repvgg, True), (residual, False)])
def test_the_work_grows_with_the_number_of_nodes(make: Callable[[int], ModelProto], fused: bool) -> None:
    fuse(make(2))  # what is done once is done now
    few, _ = counted(make(40))
    some, _ = counted(make(80))
    many, result = counted(make(160))
    assert len(result.edits) == (160 if fused else 0)
    assert few < some
    assert many - some == pytest.approx(2 * (some - few), rel=0.03)


def test_a_join_may_be_deeper_than_python_recurses() -> None:
    depth = 2 * sys.getrecursionlimit()
    lines = [("Conv", ["x0", "k1"], "s0")]
    for i in range(depth):
        lines += [("Conv", ["x0", "k1"], f"c{i}"), ("Add", [f"s{i}", f"c{i}"], f"s{i + 1}")]
    result = fuse(model_of(lines, CONSTANTS))
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
