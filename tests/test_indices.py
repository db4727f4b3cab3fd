"""Which inputs are indices, and what is drawn for them: whatever they select from, they stay within it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from repfuse.proof.verification import verify
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.indices import index_limits
from repfuse.runtimes.inputs import resolve_inputs
from repfuse.runtimes.ort import OnnxRuntime

I64 = TensorProto.INT64


def model(nodes: Sequence[NodeProto], rows: int = 3, kind: int = I64, **extra: Any) -> ModelProto:
    """A model from indices `i` to `y`, with the table `t` of so many rows."""
    table = numpy_helper.from_array(np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32), "t")
    two = numpy_helper.from_array(np.array([2, -1]), "two")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("i", kind, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [table, two],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **extra)


def gather(indices: str = "i", table: str = "t", **attributes: Any) -> NodeProto:
    return helper.make_node("Gather", [table, indices], ["y"], **attributes)


def nested() -> list[NodeProto]:
    """The selection stands in a branch of an If."""
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y2", "y3")]
    then = helper.make_graph([helper.make_node("Gather", ["t", "i"], ["y2"])], "then", [], out[:1])
    other = helper.make_graph([helper.make_node("Gather", ["t", "i"], ["y3"])], "else", [], out[1:])
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    return [yes, helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]


FUNCTION = helper.make_function(
    "local",
    "embed",
    ["f", "g"],
    ["h"],
    [helper.make_node("Gather", ["f", "g"], ["h"])],
    [helper.make_opsetid("", 17)],
)
ROWS = 3

MODELS = {
    "at once": model([gather()]),
    "int32": model([gather()], kind=TensorProto.INT32),
    "after a Cast": model([helper.make_node("Cast", ["i"], ["c"], to=TensorProto.INT32), gather("c")]),
    "after a Reshape": model([helper.make_node("Reshape", ["i", "two"], ["r"]), gather("r")]),
    "beside others": model([helper.make_node("Concat", ["i", "i"], ["c"], axis=0), gather("c")]),
    "of elements": model([helper.make_node("GatherElements", ["t", "i"], ["y"], axis=0)]),
    "along another axis": model(
        [helper.make_node("Transpose", ["t"], ["u"], perm=[1, 0]), gather(table="u", axis=-1)]
    ),
    "in a subgraph": model(nested()),
    "in a function": model([helper.make_node("embed", ["t", "i"], ["y"], domain="local")], functions=[FUNCTION]),
    "the smaller of two": model(
        [
            helper.make_node("Concat", ["t", "t"], ["u"], axis=0),
            helper.make_node("Gather", ["u", "i"], ["a"]),
            helper.make_node("Gather", ["t", "i"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ]
    ),
}  # fmt: skip


@pytest.mark.parametrize("proto", MODELS.values(), ids=MODELS)
def test_indices_stay_within_what_they_select_from(proto: ModelProto) -> None:
    assert index_limits(proto) == {"i": ROWS}
    (entry,) = resolve_inputs(proto)
    assert str(entry).startswith(f"i: {entry.dtype}[1?, 8] in 0 to 2")
    drawn = np.concatenate([feed["i"] for feed in make_inputs(proto, count=20, seed=0)])
    assert (drawn.min(), drawn.max()) == (0, ROWS - 1)


@pytest.mark.parametrize("name", ["at once", "in a subgraph", "in a function"])
def test_they_run(name: str) -> None:
    assert verify(MODELS[name], MODELS[name], backends="ort").passed


def test_a_table_of_unknown_extent_sets_no_limit() -> None:
    proto = model([helper.make_node("Gather", ["x", "i"], ["y"])])
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", 4]))
    assert index_limits(proto) == {}


def test_what_is_computed_with_is_no_index() -> None:
    proto = model([helper.make_node("Cast", ["i"], ["f"], to=1), helper.make_node("Relu", ["f"], ["y"])])
    assert index_limits(proto) == {}
    assert resolve_inputs(proto)[0].range is None


def test_the_users_range_comes_first() -> None:
    (feed,) = make_inputs(MODELS["at once"], count=1, seed=0, ranges={"i": (1, 1)})
    assert set(feed["i"].flat) == {1}


def test_whole_tables_are_reached() -> None:
    proto = model([gather()], rows=1000)
    (feed,) = make_inputs(proto, count=1, seed=0, shapes={"i": (64, 8)})
    assert 900 < feed["i"].max() <= 999
    OnnxRuntime().load(proto, threads=1).run(feed)
