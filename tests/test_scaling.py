"""The work of the pass grows with the model, no faster: counted in calls, which are the same on any machine."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from repfuse import fuse
from repfuse.fusion import FuseResult

SLACK = 1.05
"""So much faster may calls grow than nodes, since some are sorted; Python 3.13 counts a little more for that."""

Lines = list[tuple[str, list[str], str]]


def model_of(lines: Lines, constants: dict[str, np.ndarray]) -> ModelProto:
    """Nodes as operator, inputs and output, from `x0` to the last one's output."""
    attributes: dict[str, dict[str, Any]] = {"k3": {"pads": [1] * 4}, "Concat": {"axis": 1}}
    nodes = [
        helper.make_node(
            op_type, inputs, [output], output, **attributes.get(inputs[-1], attributes.get(op_type, {}))
        )
        for op_type, inputs, output in lines
    ]
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info(lines[-1][2], TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CONSTANTS = {"k3": np.ones((4, 4, 3, 3)), "k1": np.full((4, 4, 1, 1), 0.25), "v": np.ones(4)}


def repvgg(blocks: int) -> ModelProto:
    """Three branches and a Relu, again and again."""
    lines: Lines = []
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
    lines: Lines = []
    for i in range(blocks):
        lines += [
            ("Conv", [f"x{i}", "k3"], f"a{i}"),
            ("Relu", [f"a{i}"], f"b{i}"),
            ("Conv", [f"b{i}", "k3"], f"c{i}"),
            ("Add", [f"x{i}", f"c{i}"], f"x{i + 1}"),
        ]
    return model_of(lines, CONSTANTS)


def dense(layers: int) -> ModelProto:
    """Blocks of eight Concats that nest, each tensor with a normalization, and a Conv between the blocks."""
    lines: Lines = []
    constants, channels, last = dict(CONSTANTS), 4, "x0"
    for i in range(layers):
        if i % 8 == 0:
            lines.append(("Conv", [last, f"w{channels}"], f"t{i}"))
            constants[f"w{channels}"] = np.ones((4, channels, 1, 1))
            channels, last = 4, f"t{i}"
        constants |= {f"v{channels}": np.ones(channels), f"w{channels}": np.ones((4, channels, 1, 1))}
        lines += [
            ("BatchNormalization", [last, *[f"v{channels}"] * 4], f"b{i}"),
            ("Relu", [f"b{i}"], f"r{i}"),
            ("Conv", [f"r{i}", f"w{channels}"], f"c{i}"),
            ("Concat", [last, f"c{i}"], f"j{i}"),
        ]
        channels, last = channels + 4, f"j{i}"
    return model_of(lines, constants)


def row(convs: int) -> ModelProto:
    """Pointwise Convs in a row."""
    return model_of([("Conv", [f"x{i}", "k1"], f"x{i + 1}") for i in range(convs)], CONSTANTS)


def deep(joins: int) -> ModelProto:
    """Joins that nest, of branches of one source."""
    lines: Lines = [("Conv", ["x0", "k1"], "s0")]
    for i in range(joins):
        lines += [("Conv", ["x0", "k1"], f"c{i}"), ("Add", [f"s{i}", f"c{i}"], f"s{i + 1}")]
    return model_of(lines, CONSTANTS)


def sources(count: int) -> tuple[Lines, list[str]]:
    """So many tensors, one behind the other, from none of which another one follows linearly."""
    names = [f"r{i}" for i in range(count)]
    return [("Relu", [before], name) for before, name in zip(["x0", *names], names, strict=False)], names


def wide(count: int) -> ModelProto:
    """A sum of branches of many sources, one of each."""
    lines, names = sources(count)
    lines += [("Conv", [name, "k1"], f"c{name}") for name in names]
    return model_of([*lines, ("Sum", [f"c{name}" for name in names], "y")], CONSTANTS)


def wide_in_pairs(count: int) -> ModelProto:
    """A sum of branches of many sources, two of each."""
    lines, names = sources(count)
    lines += [("Conv", [name, kernel], f"{kernel}{name}") for name in names for kernel in ("k1", "k3")]
    operands = [f"{kernel}{name}" for name in names for kernel in ("k1", "k3")]
    return model_of([*lines, ("Sum", operands, "y")], CONSTANTS)


def wide_and_scaled(count: int) -> ModelProto:
    """A sum of many sources, and a scale behind it."""
    lines, names = sources(count)
    lines += [("Conv", [name, "k1"], f"c{name}") for name in names]
    total = f"c{names[0]}"
    for name in names[1:]:
        lines.append(("Add", [total, f"c{name}"], f"s{name}"))
        total = f"s{name}"
    return model_of([*lines, ("BatchNormalization", [total, *"vvvv"], "y")], CONSTANTS)


def wide_behind_rows(count: int) -> ModelProto:
    """A sum of many sources and a scale behind it, and before each of its Convs another one, which stays."""
    lines, names = sources(count)
    for name in names:
        lines += [("Conv", [name, "k3"], f"a{name}"), ("Conv", [f"a{name}", "k3"], f"c{name}")]
    lines.append(("Sum", [f"c{name}" for name in names], "s"))
    return model_of([*lines, ("BatchNormalization", ["s", *"vvvv"], "y")], CONSTANTS)


def scales_between(joins: int) -> ModelProto:
    """Sums of two sources with scales between them."""
    lines, names = sources(joins + 1)
    lines.append(("Conv", [names[0], "k1"], "s0"))
    for i, name in enumerate(names[1:]):
        lines += [
            ("BatchNormalization", [f"s{i}", *"vvvv"], f"b{i}"),
            ("Conv", [name, "k1"], f"c{i}"),
            ("Add", [f"b{i}", f"c{i}"], f"s{i + 1}"),
        ]
    return model_of(lines, CONSTANTS)


def rows(blocks: int) -> ModelProto:
    """Convs in a row that stay, from each of which another row parts."""
    lines: list[tuple[str, list[str], str]] = []
    for i in range(blocks):
        lines += [
            ("Conv", [f"x{i}", "k3"], f"x{i + 1}"),
            ("Conv", [f"x{i + 1}", "k3"], f"a{i}"),
            ("Relu", [f"a{i}"], f"b{i}"),
        ]
    return model_of(lines, CONSTANTS)


def parting(blocks: int) -> ModelProto:
    """Pointwise Convs in a row, from each of which a sum with the input parts: each becomes a Conv of the input."""
    lines: Lines = []
    for i in range(blocks):
        lines += [
            ("Conv", [f"x{i}", "k1"], f"x{i + 1}"),
            ("Add", [f"x{i + 1}", "x0"], f"a{i}"),
            ("Relu", [f"a{i}"], f"b{i}"),
        ]
    return model_of(lines, CONSTANTS)


def fan(branches: int) -> ModelProto:
    """Branches of one tensor that meet nowhere."""
    lines: Lines = []
    for i in range(branches):
        lines += [("Conv", ["x0", "k3"], f"c{i}"), ("Relu", [f"c{i}"], f"r{i}")]
    return model_of(lines, CONSTANTS)


def used_twice(identities: int) -> ModelProto:
    """Identities in a row behind a Conv, each with another user."""
    lines: Lines = [("Conv", ["x0", "k1"], "i0")]
    for i in range(identities):
        lines += [("Identity", [f"i{i}"], f"i{i + 1}"), ("Relu", [f"i{i + 1}"], f"r{i}")]
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


@pytest.mark.parametrize(
    ("make", "edits"),
    [
        (repvgg, 80),
        (residual, 0),
        (dense, 0),
        (row, 1),
        (deep, 1),
        (wide, 0),
        (wide_in_pairs, 1),
        (wide_and_scaled, 1),
        (wide_behind_rows, 1),
        (scales_between, 1),
        (rows, 0),
        (fan, 0),
    ],
)
def test_the_work_grows_with_the_number_of_nodes(make: Callable[[int], ModelProto], edits: int) -> None:
    fuse(make(20))  # what is done once is done now
    few, _ = counted(make(20))
    some, _ = counted(make(40))
    many, result = counted(make(80))
    assert len(result.edits) == edits
    assert few < some
    assert many - some < SLACK * 2 * (some - few)


@pytest.mark.parametrize(
    ("make", "most"), [(repvgg, 540), (residual, 345), (dense, 420), (rows, 330), (deep, 390)]
)
def test_a_node_takes_few_calls(make: Callable[[int], ModelProto], most: int) -> None:
    """Of Python functions and others. What is asked of each node again costs more than any arithmetic."""
    fuse(make(20))
    few, many = make(40), make(80)
    calls = counted(many)[0] - counted(few)[0]
    assert calls < most * (len(many.graph.node) - len(few.graph.node))


@pytest.mark.parametrize(("make", "edits"), [(parting, 800), (used_twice, 0)])
def test_a_change_of_the_cover_reaches_only_so_far(make: Callable[[int], ModelProto], edits: int) -> None:
    fuse(make(20))
    few, _ = counted(make(200))  # shorter rows are within reach of a single change
    some, _ = counted(make(400))
    many, result = counted(make(800))
    assert len(result.edits) == edits
    assert many - some < SLACK * 2 * (some - few)


def test_unpadded_kernels_in_a_row_do_not_grow_without_end() -> None:
    kernels = {"w": np.ones((4, 4, 3, 3))}
    lines: Lines = [("Conv", [f"x{i}", "w"], f"x{i + 1}") for i in range(200)]
    model = model_of(lines, kernels)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 500
    assert not fuse(model).changed


def test_a_join_may_be_deeper_than_python_recurses() -> None:
    depth = 2 * sys.getrecursionlimit()
    lines = [("Conv", ["x0", "k1"], "s0")]
    for i in range(depth):
        lines += [("Conv", ["x0", "k1"], f"c{i}"), ("Add", [f"s{i}", f"c{i}"], f"s{i + 1}")]
    result = fuse(model_of(lines, CONSTANTS))
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]


def test_a_scale_is_spread_over_any_number_of_branches() -> None:
    """The metadata of one node names all that were replaced: on each, they would be longer than the model."""
    half, whole = (fuse(wide_and_scaled(count)).model for count in (300, 600))
    assert {node.op_type for node in whole.graph.node} == {"Relu", "Conv", "Add"}
    assert whole.ByteSize() < 2.1 * half.ByteSize()
