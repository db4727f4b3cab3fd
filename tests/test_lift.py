"""Operators one by one: what each becomes, proved by running it.

A row is a node: its operator, its operands (`X` is the data; arrays are constants; strings name what `before`
computes), its version and attributes. To add an operator, add rows here and in test_lift_refused.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cases import ANY, END, NCDHW, NCHW, NCL, Case, W, X, bn, row
from graphs import Array, Shape, apply, constant_node, draw, main_scope, model, node, run
from onnx import AttributeProto, TensorProto, helper

from repfuse.algebra.window import Refusal
from repfuse.errors import BadInputError
from repfuse.families.patterns import Op
from repfuse.fusion import fuse
from repfuse.graph.view import scopes
from repfuse.operators.lift import Lifted, lift

BN_BEFORE_14: dict[str, Any] = {"oracles": "runtime"}
"""onnx 1.23's reference evaluator takes the statistics of the batch, or fails, below version 14."""
CROPPED: dict[str, Any] = {"oracles": "runtime"}
"""onnx 1.23's reference evaluator fails where a padding is negative."""
DOUBLE: dict[str, Any] = {"oracles": "reference"}
"""ONNX Runtime has neither SAME_* with dilations nor most operators in float64."""

EQUIVALENT = [
    row("plain", "Conv", X, W),
    row("bias", "Conv", X, W, draw(4)),
    row("bias-left-out", "Conv", X, W, None),
    row("version-1", "Conv", X, W, draw(4), opset=7, pads=[1, 1, 1, 1]),
    row("version-22", "Conv", X, W, draw(4), opset=22, kernel_shape=[3, 3]),
    row("strides", "Conv", X, W, draw(4), strides=[2, 3], pads=[1, 1, 1, 1]),
    row("dilations", "Conv", X, W, dilations=[2, 1], pads=[2, 1, 2, 1]),
    row("asymmetric-pads", "Conv", X, W, pads=[0, 1, 2, 0]),
    row("even-1-by-k", "Conv", X, draw(4, 3, 1, 4), pads=[0, 2, 0, 1]),
    row("groups", "Conv", X, draw(4, 2, 3, 3), shape=(1, 4, 7, 7), group=2),
    row("depthwise", "Conv", X, draw(3, 1, 3, 3), draw(3), group=3),
    row("two-outputs-for-each-input", "Conv", X, draw(6, 1, 3, 3), group=3, pads=[1, 1, 1, 1]),
    row("1-D", "Conv", X, draw(4, 3, 3), draw(4), shape=NCL, pads=[1, 1], dilations=[2]),
    row("3-D", "Conv", X, draw(4, 3, 3, 2, 1), shape=NCDHW, pads=[1, 0, 0, 1, 1, 0], strides=[2, 1, 1]),
    row("valid", "Conv", X, W, auto_pad="VALID", strides=[2, 2]),
    row("notset", "Conv", X, W, auto_pad="NOTSET", pads=[1, 1, 1, 1]),
    row("same-upper-even", "Conv", X, draw(4, 3, 2, 4), auto_pad="SAME_UPPER", declared=ANY),
    row("same-lower-even", "Conv", X, draw(4, 3, 2, 4), auto_pad="SAME_LOWER", declared=ANY),
    row("same-upper-stride", "Conv", X, W, auto_pad="SAME_UPPER", strides=[2, 2]),
    row("same-lower-stride", "Conv", X, W, auto_pad="SAME_LOWER", strides=[2, 2]),
    # The last windows end before the input does: less than no padding.
    row("same-gaps", "Conv", X, W[..., :1, :2], auto_pad="SAME_UPPER", strides=[3, 3], shape=(1, 3, 9, 9)),
    row("same-dilated", "Conv", X, W, auto_pad="SAME_UPPER", dilations=[2, 3], declared=ANY, **DOUBLE),
    row("weight-of-a-constant-node", "Conv", X, "w", before=[constant_node("w", W, np.float64)], **DOUBLE),
    row("weight-behind-identities", "Conv", X, "w", before=[node("Identity", ["v"], ["w"])], given={"v": W}),
    row(
        "weight-computed-from-constants",
        "Conv",
        X,
        "w",
        before=[node("Sqrt", ["s"], ["r"]), node("Mul", ["v", "r"], ["w"])],
        given={"v": W, "s": np.abs(draw(4, 1, 1, 1))},
    ),
    row("weight-that-is-an-input-too-before-ir-4", "Conv", X, "w", also={"w": W.shape}, given={"w": W}, ir=3),
    row("version-7", "BatchNormalization", X, *bn(), opset=7, **BN_BEFORE_14),
    row("version-9", "BatchNormalization", X, *bn(), opset=9, epsilon=0.1, **BN_BEFORE_14),
    row("version-14", "BatchNormalization", X, *bn(), opset=14),
    row("version-15", "BatchNormalization", X, *bn(), opset=15, epsilon=0.1, training_mode=0),
    row("one-channel", "BatchNormalization", X, *bn(1), shape=(2, 1, 7, 7)),
    row("1-D", "BatchNormalization", X, *bn(), shape=NCL),
    row("3-D", "BatchNormalization", X, *bn(), shape=NCDHW),
    row("variance-rounded-below-0", "BatchNormalization", X, *bn()[:3], np.full(3, -1e-4), epsilon=1e-3),
    row("scalar", "Mul", X, np.array(2.5)),
    row("scalar-first", "Mul", np.array(2.5), X),
    row("one-element", "Add", X, np.array([2.5])),
    row("one-element-of-rank-4", "Add", X, np.full((1, 1, 1, 1), 2.5)),
    row("C-1-1", "Mul", X, draw(3, 1, 1)),
    row("C-1-1-first", "Add", draw(3, 1, 1), X),
    row("1-C-1-1", "Add", X, draw(1, 3, 1, 1)),
    row("C-1", "Mul", X, draw(3, 1), shape=NCL),
    row("1-C-1-1-1", "Mul", X, draw(1, 3, 1, 1, 1), shape=NCDHW),
    row("minus-constant", "Sub", X, draw(3, 1, 1)),
    row("constant-minus", "Sub", draw(3, 1, 1), X),
    row("version-7", "Div", X, draw(3, 1, 1), opset=7),
    row("version-14", "Div", X, np.array(3.0), opset=14),
    row("of-a-constant-node", "Div", X, "two", before=[constant_node("two", 2.0, np.float64)], **DOUBLE),
    row("any", "Neg", X),
    row("any", "Identity", X),
    row("to-the-type-that-it-has", "Cast", X, to=TensorProto.DOUBLE, **DOUBLE),
    row("version-7", "Dropout", X, opset=7, ratio=0.3),
    row("version-10", "Dropout", X, opset=10),
    row("version-12-without-inputs", "Dropout", X, opset=12),
    row("version-13", "Dropout", X, np.array(0.3), np.array(False), opset=13),
    row("mask-unused", "Dropout", X, outputs=["y", "mask"]),
    row("slope-1", "LeakyRelu", X, alpha=1.0),
    row("version-7", "PRelu", X, np.ones((3, 1, 1)), opset=7),
    row("version-16", "PRelu", X, np.ones(1), opset=16),
    row("without-bounds", "Clip", X),
    row("version-7", "Clip", X, opset=7, **DOUBLE),
    row("bounds-left-out", "Clip", X, None, None),
    row("unpadded", "AveragePool", X, kernel_shape=[2, 3]),
    row("version-7", "AveragePool", X, kernel_shape=[2, 3], strides=[2, 1], opset=7),
    row("padded", "AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    row("asymmetric", "AveragePool", X, kernel_shape=[3, 3], pads=[0, 1, 2, 0], count_include_pad=1),
    row("dilated", "AveragePool", X, kernel_shape=[3, 2], dilations=[2, 3], opset=19),
    row("stride-beyond-kernel", "AveragePool", X, kernel_shape=[1, 2], strides=[3, 3]),
    row("1-D", "AveragePool", X, kernel_shape=[3], strides=[2], shape=NCL),
    row("3-D", "AveragePool", X, kernel_shape=[3, 2, 1], shape=NCDHW),
    row("ceil-that-divides", "AveragePool", X, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    row("ceil-without-stride", "AveragePool", X, kernel_shape=[3, 2], ceil_mode=1, declared=ANY),
    row("valid", "AveragePool", X, kernel_shape=[2, 2], auto_pad="VALID"),
    row("same", "AveragePool", X, kernel_shape=[2, 3], auto_pad="SAME_UPPER", count_include_pad=1),
    row("version-2", "Pad", X, opset=7, pads=[0, 0, 1, 2, 0, 0, 3, 0]),
    row(
        "version-2-with-value", "Pad", X, opset=10, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="constant", value=0.0
    ),
    row("version-11", "Pad", X, [0, 0, 1, 2, 0, 0, 3, 0], opset=11),
    row("version-13-with-value", "Pad", X, [0, 0, 1, 2, 0, 0, 3, 0], np.array(0.0), opset=13),
    row("version-18-axes", "Pad", X, [1, 2, 3, 0], None, [3, 2], opset=18),
    row("version-18-negative-axes", "Pad", X, [1, 3], None, [-1], opset=18),
    row("1-D", "Pad", X, [0, 0, 1, 0, 0, 2], shape=NCL),
    row("negative", "Pad", X, [0, 0, -1, 0, 0, 0, -2, -3], **CROPPED),
    row("negative-and-positive", "Pad", X, [0, 0, -1, 2, 0, 0, 1, -3], **CROPPED),
    row("unknown-rank-without-axes", "Pad", X, [0, 0, 1, 2, 0, 0, 3, 0], declared=ANY),
    row("version-1", "Slice", X, opset=7, starts=[1, 2], ends=[-1, 7], axes=[2, 3]),
    row("version-10", "Slice", X, [1], [6], [2], opset=10),
    row("negative-axes", "Slice", X, [1, 0], [END, -2], [-1, -2]),
    row("steps", "Slice", X, [1, 0], [END, 7], [2, 3], [2, 3]),
    row("end-of-32-bit", "Slice", X, [1], [2**31 - 1], [2], declared=ANY),
    row("negative-start", "Slice", X, [-4], [-1], [3]),
    row("start-before-the-first", "Slice", X, [-100], [5], [3]),
    row("end-beyond-the-last", "Slice", X, [2], [100], [3]),
    row("unknown-extents", "Slice", X, [1, 2], [END, -1], [2, 3], [1, 2], declared=ANY),
    row("1-D", "Slice", X, [1], [END], [2], shape=NCL),
    row("all-channels", "Slice", X, [0], [END], [1]),
    row("channels", "Slice", X, [1], [3], [1]),
    row("channels-from-behind", "Slice", X, [0], [-1], [-3]),
    row("every-other-channel", "Slice", X, [0], [3], [1], [2]),
    row("channels", "Gather", X, [2, 0, 0, -1], axis=1),
    row("channels-1-D", "Gather", X, [1], axis=-2, shape=NCL),
    row("of-constant-nodes", "Slice", X, "one", [5], [2], before=[constant_node("one", [1])]),
]


@pytest.mark.parametrize("case", EQUIVALENT)
def test_a_lifted_node_computes_what_the_node_does(case: Case) -> None:
    lifted = case.lift()
    assert lifted, lifted
    assert lifted.source == X
    kernel = lifted.kernel()
    assert kernel.window == lifted.window
    assert kernel.window.biased is bool(np.any(kernel.bias != 0))
    x = draw(*case.shape, seed=1)
    actual = apply(kernel, x)
    if "reference" in case.oracles:
        feeds = {entry.name: x for entry in case.model().graph.input}
        fed = [feeds[X], *(case.given[name] for name in case.also)]
        np.testing.assert_allclose(actual, run(case.model(), *fed), rtol=0, atol=1e-12)
    if "runtime" in case.oracles:
        serialized = case.model(np.float32).SerializeToString()
        session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
        expected = np.asarray(session.run(["y"], {X: x.astype(np.float32)})[0])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, "bfloat16"])
def test_a_weight_of_any_float_type(dtype: Any) -> None:
    """bfloat16, which numpy does not know, is widened; the others stay as they are until there is arithmetic."""
    bfloat16 = dtype == "bfloat16"
    element = TensorProto.BFLOAT16 if bfloat16 else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = model([node("Conv", [X, "w"], ["y"])], {X: NCHW}, ["y"])
    values = np.round(W * 4) / 4  # exact in each of the types
    proto.graph.initializer.append(helper.make_tensor("w", element, W.shape, values.ravel().tolist()))
    scope = main_scope(proto)
    lifted = lift(scope.nodes[0], scope)
    assert isinstance(lifted, Lifted)
    assert lifted.weight_type == element
    assert lifted.kernel().weight.dtype == (np.float32 if bfloat16 else dtype)
    np.testing.assert_array_equal(lifted.kernel().weight, values)


def test_a_weight_is_not_read_before_it_is_needed() -> None:
    proto = model([node("Conv", [X, "w"], ["y"])], {X: NCHW}, ["y"], {"w": W})
    proto.graph.initializer[0].raw_data = b""
    scope = main_scope(proto)
    lifted = lift(scope.nodes[0], scope)
    assert isinstance(lifted, Lifted)
    with pytest.raises(BadInputError, match="tensor 'w' do not fit its shape"):
        lifted.kernel()


CONV, CONV1D = draw(3, 3, 3, 3), draw(3, 3, 3)


@pytest.mark.parametrize(
    ("ops", "shape", "constant", "weight", "folded"),
    [
        pytest.param("Mul Conv", (1, 3, 7, 8), (1, 3, 1, 1), CONV, True, id="per-channel"),
        pytest.param("Mul Conv", ("n", 3, "h", "w"), (3, 1, 1), CONV, True, id="unknown-extents"),
        pytest.param("Mul Conv", ("n", "c", "h", "w"), (), CONV, True, id="scalar-of-unknown-channels"),
        pytest.param("Mul Conv", ("n", "c", "h", "w"), (3, 1, 1), CONV, False, id="unknown-channels"),
        pytest.param("Mul Conv", (1, 1, 7, 8), (1, 3, 1, 1), CONV, False, id="one-channel-becomes-three"),
        pytest.param("Mul Conv", (3, 7, 8), (1, 3, 1, 1), CONV, False, id="image-becomes-a-batch"),
        pytest.param(
            "Mul Conv", (3, 7, 8), (1, 1, 1, 1), CONV, False, id="image-becomes-a-batch-by-a-scalar"
        ),
        pytest.param("Mul Conv", (3, 9), (1, 1, 1), CONV1D, False, id="signal-becomes-a-batch-by-a-scalar"),
        pytest.param("Mul Conv", (1, 3, 3, 8), (3, 1), CONV, False, id="along-the-height"),
        pytest.param("Mul Conv", (1, 3, 7, 3), (3,), CONV, False, id="along-the-width"),
        pytest.param("Mul Conv", (3, 3, 7, 8), (3, 1, 1, 1), CONV, False, id="along-the-batch"),
        pytest.param("Mul Conv", (1, 3, 9), (3, 1), CONV1D, True, id="per-channel-1-D"),
        pytest.param("Mul Conv", (3, 3, 9), (3, 1, 1), CONV1D, False, id="along-the-batch-1-D"),
        # A Conv tells how many channels there are behind it.
        pytest.param("Conv Mul", ("n", "c", "h", "w"), (3, 1, 1), CONV, True, id="after-conv"),
        pytest.param("Conv Mul", (1, 3, 5, 8), (3, 1), CONV, False, id="after-conv-along-the-height"),
        pytest.param("Conv Mul", (1, 3, 7, 5), (3,), CONV, False, id="after-conv-along-the-width"),
        pytest.param("Conv Mul", (3, 3, 7, 8), (3, 1, 1, 1), CONV, False, id="after-conv-along-the-batch"),
        pytest.param("Conv Mul", (1, 3, 7, 8), (3, 1, 1), CONV[:1], False, id="after-conv-of-one-channel"),
        pytest.param("Conv Mul", (1, 3, 9), (1, 1, 1, 1), CONV1D, False, id="after-conv-more-axes"),
        pytest.param("Gemm Mul", (3, 8), (3, 1), draw(8, 3), False, id="after-gemm-along-the-batch"),
        pytest.param("Mul Gemm", (8, 8), (8, 1), draw(8, 3), False, id="gemm-along-the-batch"),
    ],
)
def test_constants_fold_along_the_channels_only(
    ops: str, shape: Shape, constant: Sequence[int], weight: Array, folded: bool
) -> None:
    """What axis a constant runs along follows from the ranks of both: it may be none that a Conv has."""
    first, last = ops.split()
    operand = {"Mul": "c", "Conv": "w", "Gemm": "w"}
    nodes = [node(first, [X, operand[first]], ["t"]), node(last, ["t", operand[last]], ["y"])]
    proto = model(nodes, {X: shape}, ["y"], {"c": draw(*constant), "w": weight}, dtype=np.float64)
    result = fuse(proto).model
    assert " ".join(each.op_type for each in result.graph.node) == ("Conv" if folded else ops)
    sizes = {"n": 2, "c": 3, "h": 7, "w": 8}
    x = draw(*(sizes.get(str(extent)) or int(str(extent)) for extent in shape), seed=1)
    np.testing.assert_allclose(run(result, x), run(proto, x), rtol=0, atol=1e-12)


def test_a_second_output_that_another_node_uses() -> None:
    nodes = [node("Dropout", [X], ["t", "mask"]), node("Where", ["mask", "t", X], ["y"])]
    scope = main_scope(model(nodes, {X: NCHW}, ["y"]))
    assert lift(scope.nodes[0], scope) == Refusal("has a second output that is used")


def test_attributes_that_a_functions_caller_sets() -> None:
    conv = node("Conv", ["x", "w"], ["y"])
    conv.attribute.add(name="pads", ref_attr_name="border", type=AttributeProto.INTS)
    function = helper.make_function(
        "local", "Padded", ["x", "w"], ["y"], [conv], [helper.make_opsetid("", 17)], ["border"]
    )
    proto = model(
        [node("Padded", [X, "w"], ["y"], domain="local", border=[1, 1, 1, 1])],
        {X: NCHW},
        ["y"],
        {"w": W},
        functions=[function],
    )
    _, inside = scopes(proto)
    assert lift(inside.nodes[0], inside) == Refusal("has attributes that its function's caller sets")


@pytest.mark.parametrize(
    ("case", "ops"),
    [
        (row("", "Conv", X, W, strides=[2, 1], dilations=[1, 2]), (Op("conv", (3, 3), (2, 1), (1, 2)),)),
        (row("", "Conv", X, draw(6, 1, 3, 3), group=3), (Op("conv", (3, 3), (1, 1), (1, 1), True),)),
        (row("", "BatchNormalization", X, *bn()), (Op("bn"),)),
        (row("", "Sub", X, draw(3, 1, 1)), (Op("shift"),)),
        (row("", "Sub", draw(3, 1, 1), X), (Op("neg"), Op("shift"))),
        (row("", "Div", X, draw(3, 1, 1)), (Op("scale"),)),
        (row("", "Neg", X), (Op("neg"),)),
        (row("", "Identity", X), ()),
        (row("", "AveragePool", X, kernel_shape=[2, 3]), (Op("avgpool", (2, 3), (1, 1), (1, 1)),)),
        (row("", "Pad", X, [0, 0, 1, 2, 0, 0, 3, 0]), (Op("pad", (1, 1), (1, 1), (1, 1)),)),
        (row("", "Gather", X, [1], axis=1), (Op("select"),)),
        (row("", "Slice", X, [1], [6], [2], [2]), (Op("slice", (1, 1), (2, 1), (1, 1)),)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value.values[0].op,
)
def test_what_patterns_call_it(case: Any, ops: tuple[Op, ...]) -> None:
    lifted = case.values[0].lift()
    assert isinstance(lifted, Lifted)
    assert lifted.ops == ops
