"""Raising the operator set version: each operator that is written otherwise later, and each obstacle.

Every model holds a HardSwish spelled out, for whose sake it is raised, and behind it, as `h`, the operator in
question. ONNX Runtime, which has all versions of operators, is the oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import constant_node, draw, main_scope, model, node
from nets import Net
from onnx import NodeProto, TensorProto, helper

from repfuse import check_blocks, verify
from repfuse.errors import BadInputError
from repfuse.fusion import FuseResult, fuse
from repfuse.graph.ranks import rank_of
from repfuse.graph.view import scopes
from repfuse.remarks import Outcome
from repfuse.rewriting import opset

SWISH = [node("HardSigmoid", ["x"], ["g"], alpha=1 / 6), node("Mul", ["x", "g"], ["h"])]
SHAPE = [2, 4, 6, 5]


def after_a_swish(
    nodes: Sequence[NodeProto], constants: Mapping[str, Any] | None = None, *, version: int = 11, **how: Any
) -> onnx.ModelProto:
    return model([*SWISH, *nodes], {"x": SHAPE}, ["y"], constants, opset=version, **how)


def computed(proto: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
    return session.run(None, {"x": 3 * draw(*SHAPE).astype(np.float32)})[0]


def assert_raised(proto: onnx.ModelProto) -> FuseResult:
    result = fuse(proto)
    assert result.model.opset_import[0].version == 14
    assert [each.op_type for each in result.model.graph.node if each.op_type == "HardSwish"]
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)
    expected = computed(proto)
    np.testing.assert_allclose(computed(result.model), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    used = {name for each in result.model.graph.node for name in each.input}
    assert used.issuperset(each.name for each in result.model.graph.initializer)
    return result


WEIGHT = {"w": draw(4, 4, 3, 3)}
RAISED = [
    pytest.param([node("Relu", ["h"], ["y"])], {}, (9, 10, 11, 12, 13), id="unchanged"),
    pytest.param([node("Conv", ["h", "w"], ["y"])], WEIGHT, (9, 13), id="conv"),
    pytest.param([node("ConvTranspose", ["h", "w"], ["y"])], WEIGHT, (9, 11), id="conv-transpose"),
    pytest.param(
        [node("ConvTranspose", ["h", "w"], ["y"], output_shape=[14, 10], strides=[2, 2])],
        WEIGHT,
        (11,),
        id="conv-transpose-of-a-shape",
    ),
    pytest.param([node("Clip", ["h"], ["y"], min=-0.1, max=1.5)], {}, (9, 10), id="clip"),
    pytest.param([node("Clip", ["h"], ["y"], max=1.5)], {}, (10,), id="clip-above"),
    pytest.param([node("Clip", ["h", "", "top"], ["y"])], {"top": 1.5}, (11,), id="clip-by-inputs"),
    pytest.param([node("Pad", ["h"], ["y"], pads=[0, 0, 1, 2] * 2, value=2.5)], {}, (9, 10), id="pad"),
    pytest.param([node("Pad", ["h"], ["y"], pads=[0, 0, 1, 2] * 2, mode="edge")], {}, (10,), id="pad-edges"),
    pytest.param([node("Slice", ["h"], ["y"], starts=[1], ends=[5], axes=[2])], {}, (9,), id="slice"),
    pytest.param([node("Slice", ["h"], ["y"], starts=[0, 1], ends=[1, 3])], {}, (9,), id="slice-first-axes"),
    pytest.param([node("ReduceSum", ["h"], ["y"], axes=[1, 3], keepdims=0)], {}, (9, 11, 12), id="sum"),
    pytest.param([node("ReduceSum", ["h"], ["y"])], {}, (11,), id="sum-of-all"),
    pytest.param([node("ReduceMean", ["h"], ["y"], axes=[2])], {}, (11,), id="mean"),
    pytest.param([node("Split", ["h"], ["y", "z"], axis=1, split=[1, 3])], {}, (9, 12), id="split"),
    pytest.param([node("Split", ["h"], ["y", "z"], axis=1)], {}, (12,), id="split-in-halves"),
    pytest.param(
        [node("Unsqueeze", ["h"], ["u"], axes=[0, 5]), node("Squeeze", ["u"], ["y"], axes=[5])],
        {},
        (9, 12),
        id="squeeze",
    ),
    pytest.param([node("Softmax", ["h"], ["y"], axis=3)], {}, (9, 12), id="softmax"),
    pytest.param([node("Softmax", ["h"], ["y"], axis=1)], {}, (13,), id="softmax-of-today"),
    pytest.param([node("LogSoftmax", ["h"], ["y"], axis=-1)], {}, (11,), id="log-softmax"),
    pytest.param(
        [node("Flatten", ["h"], ["f"]), node("Softmax", ["f"], ["y"])], {}, (11,), id="softmax-by-default"
    ),
    pytest.param([node("Dropout", ["h"], ["y"], ratio=0.5)], {}, (9, 11), id="dropout"),
    pytest.param([node("Dropout", ["h"], ["y"])], {}, (11,), id="dropout-as-it-is"),
    pytest.param(
        [node("Resize", ["h", "roi", "none", "to"], ["y"], mode="nearest")],
        {"roi": np.zeros(0), "none": np.zeros(0), "to": np.array([2, 4, 9, 7])},
        (11, 12),
        id="resize",
    ),
    pytest.param(
        [node("Resize", ["h", "roi", "by"], ["y"], mode="linear")],
        {"roi": np.zeros(0), "by": np.array([1.0, 1.0, 2.0, 2.0])},
        (11, 12),
        id="resize-by-scales",
    ),
    pytest.param(
        [node("BatchNormalization", ["h", "s", "s", "m", "s"], ["n"]), node("Relu", ["n"], ["y"])],
        {"s": np.arange(1.0, 5.0), "m": draw(4)},
        (9, 13),
        id="normalization",
    ),
    pytest.param([node("AveragePool", ["h"], ["y"], kernel_shape=[2, 2])], {}, (9, 11), id="average-pool"),
    pytest.param([node("MaxPool", ["h"], ["y"], kernel_shape=[2, 2])], {}, (9, 11), id="max-pool"),
    pytest.param(
        [node("Flatten", ["h"], ["f"]), node("Gemm", ["f", "v", "b"], ["y"])],
        {"v": draw(120, 3), "b": draw(3)},
        (9, 11),
        id="gemm",
    ),
    pytest.param([node("DepthToSpace", ["h"], ["y"], blocksize=2)], {}, (9, 11), id="depth-to-space"),
    pytest.param([node("Reshape", ["h", "to"], ["y"])], {"to": np.array([0, -1])}, (9, 13), id="reshape"),
    pytest.param(
        [node("GatherND", ["h", "at"], ["y"])], {"at": np.array([[0, 1], [1, 3]])}, (11,), id="gather-nd"
    ),
    *(
        pytest.param(
            [
                node("Reshape", ["h", "to"], ["r"]),
                node(op, ["r", "w", "v"], ["", "y"], hidden_size=3, direction="reverse"),
            ],
            {"to": np.array([5, 6, 8]), "w": draw(1, gates * 3, 8), "v": draw(1, gates * 3, 3)},
            (9, 13),
            id=op.lower(),
        )
        for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4))
    ),
    pytest.param([node("ArgMin", ["h"], ["i"]), node("Cast", ["i"], ["y"], to=1)], {}, (9, 11), id="arg-min"),
    pytest.param([node("ArgMax", ["h"], ["i"]), node("Cast", ["i"], ["y"], to=1)], {}, (9, 11), id="arg-max"),
    pytest.param(
        [constant_node("c", [2.0]), node("Mul", ["h", "c"], ["y"])],
        {},
        (9, 12),
        id="constant",
    ),
]


@pytest.mark.parametrize(("nodes", "constants", "versions"), RAISED)
def test_what_a_node_computes_stays(
    nodes: list[NodeProto], constants: dict[str, Any], versions: tuple[int, ...]
) -> None:
    for version in versions:
        assert_raised(after_a_swish(nodes, constants, version=version))


def test_a_half_clip_gets_halves() -> None:
    nodes = [node("Clip", ["h"], ["y"], min=0.0, max=1.5)]
    result = fuse(after_a_swish(nodes, version=10, dtype=np.float16))
    assert {each.data_type for each in result.model.graph.initializer} == {TensorProto.FLOAT16}
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)


def test_nodes_inside_others_are_raised_as_well() -> None:
    def branch(name: str, **split: Any) -> onnx.GraphProto:
        outputs = [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)]
        return helper.make_graph(
            [node("Split", ["h"], [f"{name}.y", f"{name}.z"], axis=1, **split)], name, [], outputs
        )

    choice = node("If", ["yes"], ["y"], then_branch=branch("a", split=[1, 3]), else_branch=branch("b"))
    result = assert_raised(after_a_swish([choice], {"yes": np.array(True)}, version=11))
    (inner,) = (each for each in result.model.graph.node if each.op_type == "If")
    assert [len(attribute.g.node[0].input) for attribute in inner.attribute] in ([2, 1], [1, 2])


def test_what_a_group_adds_is_raised_as_well() -> None:
    """A normalization goes through a Squeeze into the kernel before it, and the Squeeze is written anew."""
    nodes = [
        node("Conv", ["h", "w"], ["c"]),
        node("Squeeze", ["c"], ["q"], axes=[3]),
        node("BatchNormalization", ["q", "s", "s", "s", "s"], ["n"]),
        node("Relu", ["n"], ["y"]),
    ]
    constants = {"w": draw(4, 4, 3, 5), "s": np.arange(1.0, 5.0)}
    result = assert_raised(after_a_swish(nodes, constants, version=11))
    assert "BatchNormalization" not in {each.op_type for each in result.model.graph.node}


def test_other_operator_sets_stay() -> None:
    proto = after_a_swish([node("Relu", ["h"], ["y"])])
    proto.opset_import.append(helper.make_opsetid("Paddle", 1))
    imports = fuse(proto).model.opset_import
    assert [(entry.domain, entry.version) for entry in imports] == [("", 14), ("Paddle", 1)]


def test_the_format_is_new_enough() -> None:
    assert assert_raised(after_a_swish([node("Relu", ["h"], ["y"])], ir=4)).model.ir_version == 7


DOUBLING = {"by": [1.0, 1.0, 2.0, 2.0]}
OBSTACLES = [
    pytest.param(after_a_swish([node("Relu", ["h"], ["y"])], version=8), "opset 8", id="old"),
    pytest.param(after_a_swish([node("Relu", ["h"], ["y"])], ir=3), "IR version 3", id="old-format"),
    pytest.param(after_a_swish([node("Softmax", ["h"], ["y"], axis=1)]), "Softmax -> 'y'", id="softmax"),
    pytest.param(after_a_swish([node("Softmax", ["h"], ["y"])]), "Softmax -> 'y'", id="softmax-by-default"),
    pytest.param(
        after_a_swish([node("Dropout", ["h"], ["y", "mask"])]), "Dropout -> 'y'", id="dropout-with-its-mask"
    ),
    pytest.param(
        after_a_swish([node("Resize", ["h", "by"], ["y"])], DOUBLING, version=10), "Resize", id="resize"
    ),
    pytest.param(
        after_a_swish([node("Upsample", ["h", "by"], ["y"])], DOUBLING, version=9), "Upsample", id="upsample"
    ),
    pytest.param(
        after_a_swish([node("ConvTranspose", ["h", "w"], ["y"], auto_pad="SAME_UPPER")], WEIGHT, version=10),
        "ConvTranspose",
        id="conv-transpose-with-automatic-pads",
    ),
    pytest.param(after_a_swish([node("TopK", ["h"], ["y", "i"], k=2)], version=9), "TopK -> 'y'", id="top-k"),
    pytest.param(
        after_a_swish([node("QuantizeLinear", ["x", "s"], ["q"]), node("Relu", ["h"], ["y"])], {"s": 0.5}),
        "QuantizeLinear",
        id="quantize",
    ),
    pytest.param(after_a_swish([node("NoSuchOperator", ["h"], ["y"])]), "NoSuchOperator", id="unknown"),
]


@pytest.mark.parametrize(("proto", "named"), OBSTACLES)
def test_an_obstacle_is_named(proto: onnx.ModelProto, named: str) -> None:
    assert named in opset.obstacle(proto, scopes(proto), 14)


def test_functions_are_an_obstacle() -> None:
    twice = helper.make_function(
        "here", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 11)]
    )
    nodes = [node("Twice", ["h"], ["y"], domain="here")]
    proto = after_a_swish(nodes, functions=[twice])
    assert "functions" in opset.obstacle(proto, scopes(proto), 14)
    assert not fuse(proto).changed


def test_with_an_obstacle_all_stays_and_is_told() -> None:
    proto = after_a_swish([node("Softmax", ["h"], ["y"], axis=1, name="attend")])
    result = fuse(proto)
    assert result.model == proto
    (remark,) = result.remarks
    assert (remark.outcome, remark.node) == (Outcome.KEPT, "Mul -> 'h'")
    assert "needs opset 14, and Softmax 'attend' is another operator there" in remark.message


def test_it_can_be_forbidden() -> None:
    proto = after_a_swish([node("Relu", ["h"], ["y"])])
    result = fuse(proto, keep_opset=True)
    assert result.model == proto
    assert "--keep-opset" in result.remarks[0].message


UNCHANGED = (
    "Abs Add And Cast Ceil Concat Conv Div Elu Equal Erf Exp Expand Flatten Floor Gather GlobalAveragePool Greater "
    "HardSigmoid Identity If InstanceNormalization LRN LeakyRelu Less Log Loop LpNormalization MatMul Max Mean Min "
    "Mul Neg Not OneHot Or PRelu Pow Reciprocal ReduceMax ReduceMean ReduceMin Relu Scan Shape Sigmoid Sign "
    "Softplus SpaceToDepth Sqrt Sub Sum Tanh Tile Transpose Where Xor"
)


def test_operators_that_take_what_they_took() -> None:
    """Those whose later versions differ by types, by names of types or not at all."""
    assert not [op for op in UNCHANGED.split() for version in range(9, 14) if opset._changes(op, version, 14)]


@pytest.mark.parametrize(
    ("nodes", "rank"),
    [
        pytest.param([node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3])], 4, id="transpose"),
        pytest.param([node("Transpose", ["r"], ["t"])], None, id="transpose-without-an-order"),
        pytest.param(
            [node("Transpose", ["r"], ["u"], perm=[2, 0, 1]), node("Relu", ["u"], ["t"])],
            3,
            id="behind-an-op",
        ),
        pytest.param(
            [node("Transpose", ["r"], ["u"], perm=[2, 0, 1]), node("Squeeze", ["u"], ["t"], axes=[0])],
            2,
            id="squeeze",
        ),
        pytest.param(
            [node("Transpose", ["r"], ["u"], perm=[2, 0, 1]), node("Unsqueeze", ["u"], ["t"], axes=[0, 1])],
            5,
            id="unsqueeze",
        ),
        pytest.param(
            [node("Transpose", ["r"], ["u"], perm=[2, 0, 1]), node("MatMul", ["u", "w"], ["t"])],
            3,
            id="matmul",
        ),
        pytest.param(
            [node("Transpose", ["r"], ["u"], perm=[2, 0, 1]), node("MatMul", ["u", "v"], ["t"])],
            None,
            id="matmul-by-a-vector",
        ),
        pytest.param(
            [node("Transpose", ["r"], ["u"], perm=[0, 1]), node("Add", ["u", "w"], ["t"])], 2, id="add"
        ),
        pytest.param([node("Add", ["r", "w"], ["t"])], None, id="add-to-the-unknown"),
        pytest.param([node("TopK", ["r", "zero"], ["t", "i"])], None, id="unknown-operator"),
    ],
)
def test_ranks_behind_a_reshape_to_what_is_computed(nodes: list[NodeProto], rank: int | None) -> None:
    around = [node("Reshape", ["x", "to"], ["r"]), *nodes, node("Identity", ["t"], ["y"])]
    proto = model(
        around, {"x": SHAPE}, ["y"], {"w": draw(4, 4), "v": draw(4), "zero": np.array([0])}, opset=11
    )
    proto.graph.input.append(helper.make_tensor_value_info("to", TensorProto.INT64, ["n"]))
    assert rank_of(main_scope(proto), "t") == rank


SIZED = [
    pytest.param([node("Concat", ["size", "one", "pair"], ["to"], axis=0)], 4, id="concat"),
    pytest.param(
        [
            node("Concat", ["size", "one"], ["s"], axis=0),
            node("Cast", ["s"], ["t"], to=6),
            node("Identity", ["t"], ["u"]),
            node("Cast", ["u"], ["to"], to=7),
        ],
        2,
        id="cast",
    ),
    pytest.param([node("Shape", ["x"], ["to"])], 4, id="shape"),
    pytest.param([node("Slice", ["extents", "one", "far"], ["to"])], 3, id="slice"),
    pytest.param([node("Slice", ["extents", "one", "far", "zero", "two"], ["to"])], 2, id="slice-by-twos"),
    pytest.param([node("Slice", ["extents", "open", "far"], ["to"])], None, id="slice-from-anywhere"),
    pytest.param([node("Concat", ["one", "open"], ["to"], axis=0)], None, id="concat-with-the-unknown"),
    pytest.param([node("Add", ["open", "one"], ["to"])], None, id="sum"),
]


@pytest.mark.parametrize(("nodes", "rank"), SIZED)
def test_ranks_behind_a_reshape_to_so_many_numbers(nodes: list[NodeProto], rank: int | None) -> None:
    """Some of these the graph computes, so that shape inference does not tell."""
    numbers = {"zero": [0], "one": [1], "two": [2], "far": [9], "pair": [2, -1]}
    size = [node("Shape", ["x"], ["extents"]), node("Slice", ["extents", "zero", "one"], ["size"])]
    around = [*size, *nodes, node("Reshape", ["x", "to"], ["r"]), node("Identity", ["r"], ["y"])]
    constants = {name: np.array(each) for name, each in numbers.items()}
    proto = model(around, {"x": ["a", "b", "c", "d"]}, ["y"], constants, opset=11)
    proto.graph.input.append(helper.make_tensor_value_info("open", TensorProto.INT64, ["n"]))
    assert rank_of(main_scope(proto), "r") == rank


def test_ranks_of_a_ladder_take_no_time() -> None:
    """Each tensor is used twice by the next one: as many ways back as 2 to the power of its rungs."""
    rungs = [node("Add", [f"t{i}", f"t{i}"], [f"t{i + 1}"]) for i in range(200)]
    proto = model(
        [node("Reshape", ["x", "to"], ["t0"]), *rungs, node("Identity", ["t200"], ["y"])],
        {"x": SHAPE},
        ["y"],
        opset=11,
    )
    proto.graph.input.append(helper.make_tensor_value_info("to", TensorProto.INT64, ["n"]))
    assert rank_of(main_scope(proto), "t200") is None


def test_what_is_listed_twice_is_raised_twice() -> None:
    """As `onnx.compose.merge_models` leaves it."""
    net = Net(opset=13, constants="expression", dtype=TensorProto.FLOAT)
    summed = net.repvgg(net.x)
    gate = net.node("HardSigmoid", summed, alpha=1 / 6)
    proto = net.model(net.node("Mul", summed, gate))
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    result = fuse(proto)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "HardSwish"]
    assert [entry.version for entry in result.model.opset_import] == [14, 14]
    proto.opset_import[-1].version = 12
    with pytest.raises(BadInputError, match=r"at several versions, 13, 12, .*leave one of them"):
        fuse(proto)
    assert all(check.passed and not check.skipped for check in check_blocks(proto, result))
    assert verify(proto, result.model).passed
