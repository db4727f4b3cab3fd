"""Convs in sequence (transform III): merged where the border stays right and it pays, else left alone.

A wrong border leaves the interior right, so maps are small and compared whole.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Array, draw, model, node, run
from nets import Net
from proof import counts, prove

from repfuse import fuse


def chain(*convs: tuple[Array, bool, dict[str, Any]], extent: int = 7) -> onnx.ModelProto:
    """Convs one behind the other: each a weight, whether it has a bias, and its attributes."""
    constants: dict[str, Any] = {}
    nodes = []
    for i, (weight, biased, attributes) in enumerate(convs):
        constants[f"w{i}"] = weight
        if biased:
            constants[f"b{i}"] = draw(weight.shape[0], seed=50 + i)
        inputs = ["x" if i == 0 else f"t{i - 1}", f"w{i}", *([f"b{i}"] if biased else [])]
        nodes.append(node("Conv", inputs, [f"t{i}"], **attributes))
    channels = convs[0][0].shape[1] * convs[0][2].get("group", 1)
    return model(
        nodes, {"x": [1, channels, extent, extent]}, [f"t{len(convs) - 1}"], constants, dtype=np.float64
    )


def left_after_fusing(proto: onnx.ModelProto) -> int:
    """How many nodes are left; what they compute is compared on the way."""
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    x = draw(*shape, seed=99)
    fused = fuse(proto).model
    expected = run(proto, x)
    np.testing.assert_allclose(run(fused, x), expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    assert Counter(n.op_type for n in fused.graph.node).keys() == {"Conv"}
    return len(fused.graph.node)


WIDE = draw(16, 4, 1, 1, seed=1)
SQUARE = draw(4, 16, 3, 3, seed=2)
NARROW = draw(4, 16, 1, 1, seed=3)
PADDED = {"pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    "proto",
    [
        pytest.param(chain((WIDE, True, {}), (SQUARE, True, {})), id="1x1 with a bias, 3x3 without padding"),
        pytest.param(chain((WIDE, False, {}), (SQUARE, True, PADDED)), id="1x1 without a bias, padded 3x3"),
        pytest.param(
            chain((WIDE, True, PADDED), (draw(16, 16, 3, 3), True, {}), (NARROW, True, {})),
            id="padded in front: ExpandNets, SPAN",
        ),
        pytest.param(chain((draw(16, 4, 3, 3), True, PADDED), (NARROW, True, {})), id="3x3, 1x1: SESR"),
        pytest.param(
            chain(
                (draw(16, 4, 3, 3), True, {"strides": [2, 2]}), (NARROW, True, {"strides": [2, 2]}), extent=9
            ),
            id="strides multiply",
        ),
        pytest.param(
            chain((draw(8, 2, 3, 3), True, {"group": 2}), (draw(4, 2, 1, 1), True, {"group": 4})),
            id="groups of which one divides the other",
        ),
    ],
)
def test_becomes_one_conv(proto: onnx.ModelProto) -> None:
    assert left_after_fusing(proto) == 1


@pytest.mark.parametrize(
    "proto",
    [
        pytest.param(chain((WIDE, True, {}), (SQUARE, True, PADDED)), id="the border would hold the bias"),
        pytest.param(
            chain((draw(16, 4, 3, 3), False, PADDED), (SQUARE, False, PADDED)),
            id="the border would see pixels that the second Conv does not",
        ),
        pytest.param(
            chain((draw(1, 8, 1, 1), False, {}), (draw(8, 1, 1, 1), True, {})), id="a bottleneck is cheaper"
        ),
        pytest.param(
            chain((draw(8, 1, 3, 3), False, {"group": 8, **PADDED}), (draw(8, 8, 1, 1), True, {})),
            id="depthwise, then pointwise",
        ),
    ],
)
def test_stays(proto: onnx.ModelProto) -> None:
    assert left_after_fusing(proto) == 2


def test_a_long_chain_becomes_one_conv() -> None:
    convs = [(draw(3, 3, 1, 1, seed=i) / 3, True, {}) for i in range(60)]
    assert left_after_fusing(chain(*convs)) == 1


def test_an_identity_is_no_reason_to_rewrite_a_conv() -> None:
    nodes = [node("Conv", ["x", "w"], ["t"]), node("Identity", ["t"], ["u"]), node("Dropout", ["u"], ["y"])]
    proto = model(nodes, {"x": [1, 4, 7, 7]}, ["y"], {"w": SQUARE[:, :4]})
    assert fuse(proto).model == proto


def test_a_shift_in_front_does_not_keep_apart_what_is_behind_it() -> None:
    """The normalization goes into the first Conv, and the pooling, which is padded, into the second one only."""
    net = Net(4)
    grown = net.conv(net.conv_bn(net.x), 1, (4, 16), group=4, bias=False)
    assert counts(prove(net.model(net.average(grown))).model) == {"Conv": 2}
