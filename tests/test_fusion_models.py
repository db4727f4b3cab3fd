"""Whatever form a model holds a group in, it is fused: constants, opsets, types, subgraphs, functions, families."""

from __future__ import annotations

import onnx
import pytest
from blocks import build, fold_bn
from nets import Net
from onnx import TensorProto, helper
from proof import counts, feeds, prove, session
from test_fusion import ONE_CONV, Row, activated_in_a_row, table

from repfuse.families.patterns import Example, Pattern, load_patterns

NEWEST = onnx.defs.onnx_opset_version()


@pytest.mark.parametrize("constants", ["initializer", "node", "expression"])
def test_where_constants_are_held(constants: str) -> None:
    net = Net(constants=constants)
    result = prove(net.model(net.scale("Mul", net.repvgg(net.x), 4, 1, 1)))
    assert counts(result.model) == ONE_CONV
    assert len(result.model.graph.node) == 1
    assert len(result.model.graph.initializer) == 2


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_opsets(opset: int) -> None:
    # The evaluator is wrong about the old BatchNormalization; runtimes lag behind the newest opsets.
    dtype = TensorProto.FLOAT if opset < 14 else TensorProto.DOUBLE
    ir = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    net = Net(dtype=dtype, opset=opset, ir=ir)
    y = net.node("Relu", net.repvgg(net.x))
    assert counts(prove(net.model(net.add(net.conv(y), net.average(y), net.node("Dropout", y)))).model) == {
        "Conv": 2,
        "Relu": 1,
    }


@pytest.mark.parametrize(
    ("dtype", "opset"),
    [
        (TensorProto.FLOAT, 17),
        (TensorProto.FLOAT16, 17),
        (TensorProto.DOUBLE, 17),
        (TensorProto.BFLOAT16, 22),
    ],
    ids=lambda value: TensorProto.DataType.Name(value) if value < 17 else str(value),
)
def test_types(dtype: int, opset: int) -> None:
    net = Net(dtype=dtype, opset=opset, ir=10)
    result = prove(net.model(net.per_channel("Mul", net.repvgg(net.x))))
    assert counts(result.model) == ONE_CONV
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {dtype}


@pytest.mark.parametrize("opset", [7, 9])
def test_initializers_that_the_format_lists_among_the_inputs(opset: int) -> None:
    net = Net(dtype=TensorProto.FLOAT, opset=opset, ir=3)
    model = prove(net.model(net.repvgg(net.x))).model
    assert counts(model) == ONE_CONV
    names = [tensor.name for tensor in model.graph.initializer]
    assert [entry.name for entry in model.graph.input] == ["x", *names]


def in_if(net: Net, x: str) -> str:
    """A block in a branch of an If; it captures its source and its weights."""
    start = len(net.nodes)
    y = net.repvgg(x)
    body = net.nodes[start:]
    del net.nodes[start:]
    then = helper.make_graph(body, "then", [], [net.info(y)])
    other = helper.make_graph([helper.make_node("Neg", [x], ["negated"])], "else", [], [net.info("negated")])
    condition = net.true()
    return net.node("If", condition, then_branch=then, else_branch=other)


def in_loop(net: Net, x: str) -> str:
    """A block in the body of a Loop, applied three times."""
    start = len(net.nodes)
    y = net.repvgg("state")
    body = [*net.nodes[start:], helper.make_node("Identity", ["going"], ["keep"])]
    del net.nodes[start:]
    scalars = [("step", TensorProto.INT64), ("going", TensorProto.BOOL)]
    graph = helper.make_graph(
        body,
        "body",
        [*(helper.make_tensor_value_info(name, kind, []) for name, kind in scalars), net.info("state")],
        [helper.make_tensor_value_info("keep", TensorProto.BOOL, []), net.info(y)],
    )
    condition = net.true()
    return net.node("Loop", net.integers(3), condition, x, body=graph)


def in_function(net: Net, x: str) -> str:
    """A block in a model-local function, which holds its weights as Constant nodes, called twice."""
    net.constants = "node"
    start = len(net.nodes)
    y = net.repvgg("source")
    body = net.nodes[start:]
    del net.nodes[start:]
    opsets = [helper.make_opsetid("", net.opset)]
    net.functions.append(helper.make_function("blocks", "RepVGG", ["source"], [y], body, opsets))
    return net.node("RepVGG", net.node("RepVGG", x, domain="blocks"), domain="blocks")


@table(
    Row("If", in_if, {"If": 1, "Conv": 1, "Neg": 1}),
    Row("Loop", in_loop, {"Loop": 1, "Conv": 1, "Identity": 1}),
    Row("function", in_function, {"RepVGG": 2, "Conv": 1}),
    Row("If, before there were overridable initializers", in_if, {"If": 1, "Conv": 1, "Neg": 1}, {"ir": 3}),
)
def test_graphs_inside(row: Row) -> None:
    net = Net(**row.setup)
    net.node("Conv", net.x, net.constant([[[[1.0]]] * 4] * 4))  # what nothing uses stays
    model = net.model(row.build(net, net.x))
    result = prove(model)
    assert counts(result.model) == {**row.left, "Conv": row.left["Conv"] + 1}
    assert [edit.graph != "" for edit in result.edits] == [True]


def test_a_group_over_a_tensor_that_a_subgraph_captures_keeps_it() -> None:
    net = Net()
    t = net.node("Relu", net.x)
    y = net.add(net.repvgg(t), in_if(net, t))
    assert counts(prove(net.model(y)).model) == {"Relu": 1, "Conv": 2, "If": 1, "Neg": 1, "Add": 1}


def test_runtimes_are_not_warned(capfd: pytest.CaptureFixture[str]) -> None:
    net = Net(dtype=TensorProto.FLOAT)
    model = prove(net.model(in_if(net, activated_in_a_row(net, net.x)))).model
    session(model).run(None, feeds(model))
    assert capfd.readouterr().err == ""


PATTERNS = load_patterns()
LEFT = {
    **dict.fromkeys(("parallel_kernels-0", "parallel_kernels-0-folded"), 2),
    **dict.fromkeys(("parallel_kernels-1", "parallel_kernels-1-folded"), 2),
    **dict.fromkeys(("parallel_kernels-2", "parallel_kernels-2-folded"), 2),
    **dict.fromkeys(("pkinet_v2-0", "pkinet_v2-0-folded"), 4),
}
"""Examples of which more than one Conv is left, since one would cost more than it saves."""


EXAMPLES = [
    pytest.param(pattern, form, LEFT.get(f"{pattern.slug}-{i}{suffix}", 1), id=f"{pattern.slug}-{i}{suffix}")
    for pattern in PATTERNS
    for i, example in enumerate(pattern.examples)
    for suffix, form in (("", example), ("-folded", fold_bn(example)))
]


@pytest.mark.parametrize(("pattern", "example", "left"), EXAMPLES)
def test_every_example_of_every_pattern(pattern: Pattern, example: Example, left: int) -> None:
    large = max(op.kernel[0] for ops in example.topology().branches for op in ops if op.kernel) > 11
    result = prove(build(pattern, example, dtype="float32" if large else "float64"))
    assert counts(result.model)["Conv"] == left
    if left == 1:
        assert counts(result.model) == {"Conv": 1, "Relu": 2}
        assert {edit.pattern for edit in result.edits} <= {pattern.name}  # a lone Conv is left as it is


def test_a_kernel_is_computed_if_more_is_done_than_to_move_it() -> None:
    def named(kernel: str) -> str:
        conv = net.node("Conv", net.x, kernel, pads=[1] * 4)
        return prove(net.model(net.bn(conv))).edits[-1].pattern

    net = Net(dtype=TensorProto.FLOAT)
    weight = net.constant(net.random.normal(size=(4, 4, 3, 3)))
    doubled = net.node("Mul", weight, net.constant(2.0))
    assert named(doubled) == "Computed kernel"
    assert named(net.node("Transpose", doubled, perm=[1, 0, 2, 3])) == "Computed kernel"
    moved = net.node("Transpose", net.node("Identity", weight), perm=[1, 0, 2, 3])
    assert named(net.node("Cast", moved, to=TensorProto.FLOAT)) == "Conv-BN"
