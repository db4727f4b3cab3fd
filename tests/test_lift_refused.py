"""Operators one by one: the nodes that are no convolution, and the sentence that says why not."""

from __future__ import annotations

import numpy as np
import pytest
from cases import ANY, END, NCHW, Case, W, X, bn, refused, with_value
from graphs import constant_node, draw, node
from onnx import TensorProto

from repfuse.algebra.window import Refusal

RUN_TIME_WEIGHT = "has a weight that is computed at run time or can be overridden by a caller"
RUN_TIME_BIAS = "has a bias that is computed at run time or can be overridden by a caller"
ODD_GEOMETRY = "has strides, dilations, pads or a kernel_shape that do not fit its kernel"
ODD_WEIGHT = "has a weight, bias and group that do not fit together"
BELOW_1 = "has a stride, dilation or kernel extent below 1"
UNKNOWN_EXTENT = "has auto_pad {} and a stride, so its pads depend on an unknown extent"
BATCH_STATISTICS = "is in training mode, so its statistics are those of the batch; export in eval mode"
RUN_TIME_STATISTICS = "has statistics or parameters that are computed at run time"
NEGATIVE_VARIANCE = "has a negative variance"
NOT_LINEAR = "is not linear"
NOT_FINITE = "has a constant that is infinite or not a number"
RUN_TIME_OPERANDS = "combines tensors that are both computed at run time"
NOT_PER_CHANNEL = "has a constant that is neither a scalar nor one value for each channel"
DIVIDES = "divides by what is computed at run time, or by zero"
TRAINING = "is in training mode; export in eval mode"
BORDER = "divides by less at the border (count_include_pad is 0)"
CEIL = "rounds its output extent up (ceil_mode), so its last window is partial"
NOT_ZERO = "pads with a value other than zero"
CHANNELS = "selects images, or runs backwards"
BOTH = "selects channels and places at once, or channels of an unknown number"
NOT_CHANNELS = "gathers something other than channels of a known number"
NO_LIST = "gathers by indices that are computed at run time, or are no list"
RUN_TIME_BOUNDS = "has bounds that are computed at run time"
QUANTIZED = (
    "has a quantized weight, and a quantized input or output: fuse the float model and quantize afterwards"
)
UNKNOWN_QUANTIZED = "has a quantized weight that ONNX's reference implementation cannot evaluate"

INVALID = ("do not fit", "below 1", "does not define", "of different sizes", NEGATIVE_VARIANCE)
"""What is said only of nodes that make no sense."""

NO_FLOAT = {"w": np.ones((4, 3, 3, 3), np.int64)}
EIGHT_BIT = {"q": np.ones((4, 3, 3, 3), np.int8)}
DEQUANTIZE = [constant_node("s", 0.1), node("DequantizeLinear", ["q", "s"], ["w"])]
QUANTIZE = [node("QuantizeLinear", [X, "s"], ["qx"]), node("DequantizeLinear", ["qx", "s"], ["dx"])]
TO_INTEGERS = node("Cast", [X], ["i"], to=TensorProto.INT64)
TWO_SCALES = [constant_node("s", np.ones(2)), node("DequantizeLinear", ["q", "s"], ["w"], axis=0)]

REFUSED = [
    refused("run-time-weight", RUN_TIME_WEIGHT, "Conv", X, "w", also={"w": W.shape}),
    refused("weight-with-a-default", RUN_TIME_WEIGHT, "Conv", X, "w", also={"w": W.shape}, given={"w": W}),
    refused("run-time-bias", RUN_TIME_BIAS, "Conv", X, W, "b", also={"b": [4]}),
    refused("bias-with-a-default", RUN_TIME_BIAS, "Conv", X, W, "b", also={"b": [4]}, given={"b": draw(4)}),
    refused(
        "weight-computed-from-an-input",
        RUN_TIME_WEIGHT,
        "Conv",
        X,
        "w",
        before=[node("Mul", ["v", "s"], ["w"])],
        also={"s": []},
        given={"v": W},
    ),
    refused("integer-weight", "has a weight that is not of a float type", "Conv", X, "w", given=NO_FLOAT),
    *(
        refused(
            f"quantized-{opset}",
            QUANTIZED,
            "Conv",
            "dx",
            "w",
            before=[*DEQUANTIZE, *QUANTIZE],
            given=EIGHT_BIT,
            opset=opset,
        )
        for opset in (13, 21)
    ),
    refused(
        "scales-that-do-not-fit",
        UNKNOWN_QUANTIZED,
        "Conv",
        X,
        "w",
        before=TWO_SCALES,
        given=EIGHT_BIT,
        opset=13,
    ),
    refused("bias-of-other-size", ODD_WEIGHT, "Conv", X, W, draw(3)),
    refused("group-that-does-not-divide", ODD_WEIGHT, "Conv", X, W, group=3),
    refused("group-0", ODD_WEIGHT, "Conv", X, W, group=0),
    refused("no-axes", ODD_WEIGHT, "Conv", X, draw(4, 3)),
    refused("kernel-shape", ODD_GEOMETRY, "Conv", X, W, kernel_shape=[5, 5]),
    refused("pads-of-one-axis", ODD_GEOMETRY, "Conv", X, W, pads=[1, 1]),
    refused("strides-of-one-axis", ODD_GEOMETRY, "Conv", X, W, strides=[1]),
    refused("dilations-of-three-axes", ODD_GEOMETRY, "Conv", X, W, dilations=[1, 1, 1]),
    refused("stride-0", BELOW_1, "Conv", X, W, strides=[0, 1]),
    refused("dilation-0", BELOW_1, "Conv", X, W, dilations=[1, 0]),
    refused("unknown-auto-pad", "has an auto_pad that ONNX does not define", "Conv", X, W, auto_pad="FULL"),
    refused(
        "same-upper-of-unknown-extent",
        UNKNOWN_EXTENT.format("SAME_UPPER"),
        "Conv",
        X,
        W,
        auto_pad="SAME_UPPER",
        strides=[2, 2],
        declared=("n", 3, 7, "w"),
    ),
    refused(
        "same-lower-of-unknown-extent",
        UNKNOWN_EXTENT.format("SAME_LOWER"),
        "Conv",
        X,
        W,
        auto_pad="SAME_LOWER",
        strides=[1, 2],
        declared=ANY,
    ),
    refused("training", BATCH_STATISTICS, "BatchNormalization", X, *bn(), training_mode=1),
    refused(
        "training-with-statistics",
        BATCH_STATISTICS,
        "BatchNormalization",
        X,
        *bn(),
        training_mode=1,
        outputs=["y", "mean", "variance"],
    ),
    refused(
        "training-in-version-9",
        BATCH_STATISTICS,
        "BatchNormalization",
        X,
        *bn(),
        opset=9,
        outputs=["y", "mean", "variance", "saved_mean", "saved_variance"],
    ),
    refused("per-activation", BATCH_STATISTICS, "BatchNormalization", X, *bn(), opset=7, spatial=0),
    refused(
        "run-time-mean",
        RUN_TIME_STATISTICS,
        "BatchNormalization",
        X,
        draw(3),
        draw(3),
        "mean",
        np.ones(3),
        also={"mean": [3]},
    ),
    refused(
        "mean-of-rank-2", RUN_TIME_STATISTICS, "BatchNormalization", X, *bn()[:2], draw(3, 1), np.ones(3)
    ),
    refused(
        "sizes",
        "has statistics and parameters of different sizes",
        "BatchNormalization",
        X,
        *bn()[:3],
        np.ones(4),
    ),
    refused(
        "negative-variance", NEGATIVE_VARIANCE, "BatchNormalization", X, *bn()[:3], with_value(bn()[3], -1)
    ),
    refused("no-variance", NEGATIVE_VARIANCE, "BatchNormalization", X, *bn()[:3], np.zeros(3), epsilon=0.0),
    refused("nan-variance", NOT_FINITE, "BatchNormalization", X, *bn()[:3], with_value(bn()[3], np.nan)),
    refused("infinite-scale", NOT_FINITE, "BatchNormalization", X, with_value(draw(3), np.inf), *bn()[1:]),
    refused(
        "nan-mean", NOT_FINITE, "BatchNormalization", X, *bn()[:2], with_value(draw(3), np.nan), np.ones(3)
    ),
    refused("two-tensors", RUN_TIME_OPERANDS, "Add", X, "z", also={"z": NCHW}),
    refused("itself", RUN_TIME_OPERANDS, "Mul", X, X),
    refused("along-the-height", NOT_PER_CHANNEL, "Add", X, draw(1, 1, 7, 1)),
    refused("positions", NOT_PER_CHANNEL, "Add", X, draw(7, 8)),
    refused("channels-and-positions", NOT_PER_CHANNEL, "Add", X, draw(3, 7, 8)),
    refused("images-and-channels", NOT_PER_CHANNEL, "Add", X, draw(2, 3, 1, 1)),
    refused("nothing", NOT_PER_CHANNEL, "Add", X, draw(0)),
    refused("nan", NOT_FINITE, "Mul", X, np.array(np.nan)),
    refused("infinity", NOT_FINITE, "Add", X, with_value(draw(3, 1, 1), np.inf)),
    refused("by-zero", DIVIDES, "Div", X, with_value(draw(3, 1, 1), 0)),
    refused("of-a-constant", DIVIDES, "Div", np.array(1.0), X),
    refused("training", TRAINING, "Dropout", X, np.array(0.3), np.array(True)),
    refused("mode-given-by-a-caller", TRAINING, "Dropout", X, None, "mode", also={"mode": []}),
    refused(
        "mask-used",
        "has a second output that is used",
        "Dropout",
        X,
        outputs=["z", "y"],
    ),
    refused("slope-by-default", NOT_LINEAR, "LeakyRelu", X),
    refused("slopes-of-which-one-is-not-1", NOT_LINEAR, "PRelu", X, with_value(np.ones((3, 1, 1)), 0.5)),
    refused("slopes-of-a-caller", NOT_LINEAR, "PRelu", X, "slopes", also={"slopes": [3, 1, 1]}),
    refused("lower-bound", NOT_LINEAR, "Clip", X, np.array(0.0)),
    refused("upper-bound", NOT_LINEAR, "Clip", X, None, np.array(6.0)),
    refused("bound-of-version-7", NOT_LINEAR, "Clip", X, opset=7, max=6.0),
    refused("padded", BORDER, "AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    refused("padded-at-one-end", BORDER, "AveragePool", X, kernel_shape=[3, 3], pads=[0, 0, 0, 1]),
    refused("same", BORDER, "AveragePool", X, kernel_shape=[3, 3], auto_pad="SAME_LOWER"),
    refused("ceil", CEIL, "AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    refused(
        "ceil-of-unknown-extent",
        CEIL,
        "AveragePool",
        X,
        kernel_shape=[2, 2],
        strides=[2, 2],
        ceil_mode=1,
        declared=ANY,
    ),
    refused("strides-of-one-axis", ODD_GEOMETRY, "AveragePool", X, kernel_shape=[3, 3], strides=[2]),
    refused("reflect", "pads by reflect, not with zeros", "Pad", X, [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
    refused("edge", "pads by edge, not with zeros", "Pad", X, opset=7, pads=[0] * 8, mode="edge"),
    refused("value", NOT_ZERO, "Pad", X, [0, 0, 1, 1, 0, 0, 1, 1], np.array(0.5)),
    refused("value-nan", NOT_ZERO, "Pad", X, [0, 0, 1, 1, 0, 0, 1, 1], np.array(np.nan)),
    refused("value-attribute", NOT_ZERO, "Pad", X, opset=7, pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
    refused("run-time-value", NOT_ZERO, "Pad", X, [0, 0, 1, 1, 0, 0, 1, 1], "v", also={"v": []}),
    refused("run-time-pads", "has pads that are computed at run time", "Pad", X, "p", also={"p": [8]}),
    refused(
        "run-time-axes",
        "has axes that cannot be told",
        "Pad",
        X,
        [1, 1],
        None,
        "a",
        opset=18,
        also={"a": [1]},
    ),
    refused(
        "axes-of-unknown-rank",
        "has axes that cannot be told",
        "Pad",
        "v",
        [1, 1],
        None,
        [-1],
        opset=18,
        before=[node("Reshape", [X, "to"], ["v"])],
        also={"to": ["k"]},
    ),
    refused("channels", "pads the batch or the channels", "Pad", X, [0, 1, 0, 0, 0, 0, 0, 0]),
    refused("batch", "pads the batch or the channels", "Pad", X, [0, 0, 0, 0, 1, 0, 0, 0]),
    refused("channels-by-axis", "pads the batch or the channels", "Pad", X, [0, 1], None, [-3], opset=18),
    refused("channels-and-rows", BOTH, "Slice", X, [0, 1], [2, 5], [1, 2]),
    refused("of-unknown-channels", BOTH, "Slice", X, [1], [2**31 - 1], [1], declared=("n", "c", "h", "w")),
    refused("rows", NOT_CHANNELS, "Gather", X, [0, 1], axis=2),
    refused("vectors", NOT_CHANNELS, "Gather", X, [0, 1], axis=1, shape=(2, 3)),
    refused("beyond-the-last", NOT_CHANNELS, "Gather", X, [0, 3], axis=1),
    refused("one-channel-without-its-axis", NO_LIST, "Gather", X, np.array(1), axis=1),
    refused("run-time-indices", NO_LIST, "Gather", X, "i", axis=1, also={"i": [1]}),
    refused("batch", CHANNELS, "Slice", X, [0], [1], [0]),
    refused("batch-from-behind", CHANNELS, "Slice", X, [0], [1], [-4]),
    refused("without-axes", CHANNELS, "Slice", X, [0], [1]),
    refused("backwards", CHANNELS, "Slice", X, [-1], [0], [2], [-1]),
    refused("run-time-start", RUN_TIME_BOUNDS, "Slice", X, "s", [3], [2], also={"s": [1]}),
    refused("run-time-end", RUN_TIME_BOUNDS, "Slice", X, [1], "e", [2], also={"e": [1]}),
    refused("run-time-axis", RUN_TIME_BOUNDS, "Slice", X, [1], [3], "a", also={"a": [1]}),
    refused("run-time-step", RUN_TIME_BOUNDS, "Slice", X, [1], [3], [2], "s", also={"s": [1]}),
    refused("bounds-of-two-axes", RUN_TIME_BOUNDS, "Slice", X, [1, 1], [3], [2]),
    refused(
        "end-within-an-unknown-extent",
        "ends at a place that depends on an unknown extent",
        "Slice",
        X,
        [1],
        [5],
        [2],
        declared=ANY,
    ),
    refused(
        "start-counted-from-an-unknown-end",
        "ends at a place that depends on an unknown extent",
        "Slice",
        X,
        [-5],
        [END],
        [2],
        declared=ANY,
    ),
    refused(
        "unknown-rank",
        "acts on a tensor of unknown rank",
        "Slice",
        "v",
        [1],
        [5],
        [-1],
        before=[node("Reshape", [X, "to"], ["v"])],
        also={"to": ["k"]},
    ),
    refused("any", "is not linear", "Relu", X),
    refused("to-another-type", "is not linear", "Cast", X, to=TensorProto.FLOAT16),
    refused("of-integers", "is not linear", "Cast", "i", before=[TO_INTEGERS], to=TensorProto.INT64),
    refused("of-another-domain", "is not linear", "Conv", X, W, domain="com.example"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED)
def test_a_node_that_is_no_convolution_is_refused(case: Case, reason: str) -> None:
    found = case.lift()
    assert isinstance(found, Refusal)
    assert found.reason == reason
    broken = reason == NOT_FINITE and case.op == "BatchNormalization"
    assert found.invalid == (broken or any(part in reason for part in INVALID))
