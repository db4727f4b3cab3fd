"""Activation memory over the schedule: small graphs whose bytes can be added up by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from repfuse.measures.schedule import schedule, schedule_file

ROOT = Path(__file__).parents[1]
X = 2 * 5 * 4
"""Bytes of a float32 tensor of 2 x 5."""


def node(op_type: str, inputs: str, output: str) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], output)


def built(nodes: Sequence[NodeProto], *, rows: int | str = 2) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 5]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((2, 5), np.float32), "w")
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


RELU = node("Relu", "x", "a")

CASES = {
    "in a row": ([RELU, node("Relu", "a", "b"), node("Relu", "b", "y")], [2, 2, 2]),
    "a residual keeps its source": ([RELU, node("Relu", "a", "b"), node("Add", "x b", "y")], [2, 3, 3]),
    "branches": (
        [RELU, node("Neg", "x", "b"), node("Abs", "x", "c"), node("Sum", "a b c", "y")],
        [2, 3, 4, 4],
    ),
    "a weight does not count": ([node("Add", "x w", "a"), node("Relu", "a", "y")], [2, 2]),
    "what is computed from weights neither": (
        [node("Neg", "w", "v"), node("Add", "x v", "y")],
        [2],
    ),
    "an input that is read last lives long": (
        [RELU, node("Neg", "a", "b"), node("Neg", "b", "c"), node("Add", "c x", "y")],
        [2, 3, 3, 3],
    ),
    "what nobody reads does not count": ([RELU, node("Neg", "x", "y")], [1, 2]),
}


@pytest.mark.parametrize("name", CASES)
def test_live_tensors(name: str) -> None:
    nodes, tensors = CASES[name]
    found = schedule(built(nodes))
    assert [step.bytes / X for step in found.steps] == tensors
    assert found.unknown == ()
    assert found.peak and found.peak.bytes == max(tensors) * X


def test_the_first_of_the_largest_steps_is_the_peak() -> None:
    peak = schedule(built(CASES["branches"][0])).peak
    assert peak and peak.node == "Abs 'c'"


def test_an_output_lives_to_the_end() -> None:
    model = built([RELU, node("Neg", "a", "b"), node("Neg", "b", "y")])
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 5]))
    assert [step.bytes / X for step in schedule(model).steps] == [2, 2, 3]


def test_a_tensor_that_a_branch_of_an_if_reads_lives_until_then() -> None:
    def body(op_type: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{op_type}_out", TensorProto.FLOAT, [2, 5])
        return helper.make_graph([node(op_type, "a", f"{op_type}_out")], op_type, [], [out])

    choice = helper.make_node("If", ["flag"], ["y"], then_branch=body("Relu"), else_branch=body("Neg"))
    model = built([RELU, node("Neg", "x", "b"), node("Neg", "b", "c"), choice])
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    flag = 1
    assert [step.bytes for step in schedule(model).steps] == [
        2 * X + flag,
        3 * X + flag,
        2 * X + flag,
        2 * X + flag,
    ]


def test_extents_that_the_model_leaves_open_are_given(tmp_path: Path) -> None:
    onnx.save(built([node("Relu", "x", "y")], rows="n"), tmp_path / "open.onnx")
    assert schedule_file(tmp_path / "open.onnx").unknown == ("x", "y")
    given = schedule_file(tmp_path / "open.onnx", input_shapes={"x": (7, 5)})
    assert [step.bytes for step in given.steps] == [2 * 7 * 5 * 4]


def test_half_precision_takes_half() -> None:
    model = built([node("Relu", "x", "y")])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert [step.bytes for step in schedule(model).steps] == [X]


def test_a_mobileone_needs_less_when_it_is_fused(tmp_path: Path) -> None:
    import repfuse

    result = repfuse.fuse(ROOT / "examples" / "mobileone.onnx")
    before = schedule_file(ROOT / "examples" / "mobileone.onnx").peak
    after = schedule(result.model).peak
    # The stem: its input (3 channels of 224 x 224), two branches and their sum (16 channels of 112 x 112); and
    # fused, the output of the Conv and what the Relu makes of it.
    stem = 16 * 112 * 112 * 4
    assert before and before.bytes == 3 * stem
    assert after and after.bytes == 2 * stem
