"""Kernels that a runtime is slow on have a tap apart: only where that pays, and without changing anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nets import Net
from onnx import NodeProto
from proof import prove

from repfuse import fuse
from repfuse.algebra.window import Axis, Layout, Window
from repfuse.choice import cost
from repfuse.remarks import Outcome
from repfuse.rewriting.rewrite import STANDS

MANY = 64
"""Channels."""


def depthwise(width: int, channels: int = MANY, **column: int) -> Window:
    axes = (Axis(3, begin=1, end=1), Axis(width, **{"begin": width // 2, "end": (width - 1) // 2} | column))
    return Window((channels, channels), channels, axes)


@pytest.mark.parametrize("width", [12, 13])
def test_of_a_slow_width_a_tap_is_apart(width: int) -> None:
    window = cost.summed(depthwise(width))
    assert window
    assert window.axes == (Axis(3, begin=1, end=1), Axis(13, begin=6, end=6))


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(depthwise(11), id="narrower"),
        pytest.param(depthwise(14), id="wider"),
        pytest.param(depthwise(13, channels=48), id="few-channels"),
        pytest.param(depthwise(13, dilation=2), id="dilated"),
        pytest.param(depthwise(13, stride=2), id="strided"),
        pytest.param(depthwise(13, begin=0, end=0), id="unpadded"),
        pytest.param(depthwise(13, begin=13, end=-1), id="shifted"),
        pytest.param(Window((MANY, MANY), 1, depthwise(13).axes), id="dense"),
        pytest.param(Window((MANY, MANY), MANY, (Axis(13, begin=6, end=6),)), id="one-axis"),
        pytest.param(
            Window((MANY, MANY), MANY, depthwise(13).axes, output_padding=(0, 0)), id="ConvTranspose"
        ),
        pytest.param(Window((MANY, MANY), MANY, layout=Layout.SECOND), id="pointwise"),
    ],
)
def test_others_stay_as_they_are(window: Window) -> None:
    assert cost.summed(window) is None


def two(n: Net, x: str) -> str:
    return n.add(n.conv(x, 13, group=MANY), n.conv(x, 5, group=MANY))


def even(n: Net, x: str) -> str:
    wide = n.conv(x, (13, 12), pads=(6, 6, 6, 5), group=MANY)
    return n.add(wide, n.conv(x, 5, group=MANY))


def tall(n: Net, x: str) -> str:
    return n.add(n.conv(x, (13, 3), group=MANY), n.conv(x, (5, 3), group=MANY))


def normalized(n: Net, x: str) -> str:
    return n.conv_bn(x, 13, group=MANY)


def beside_one_tap(n: Net, x: str) -> str:
    return n.add(n.conv(x, 13, group=MANY), n.conv(x, 1, group=MANY))


PARTED = ["Conv 1x1", "Conv 13x13", "Add"]


@pytest.mark.parametrize(
    ("build", "left"),
    [
        pytest.param(two, PARTED, id="merged"),
        pytest.param(even, PARTED, id="even"),
        pytest.param(tall, ["Conv 13x3"], id="tall"),
        pytest.param(normalized, ["Conv 13x13"], id="alone"),
    ],
)
def test_a_tap_of_what_was_merged_is_apart(build: Callable[[Net, str], str], left: list[str]) -> None:
    net = Net(MANY, (15, 16))
    fused = prove(net.model(build(net, net.x))).model
    assert list(map(described, fused.graph.node)) == left
    assert not fuse(fused).changed


def test_a_kernel_beside_one_tap_stays_as_it_is() -> None:
    net = Net(MANY, (15, 16))
    result = fuse(net.model(beside_one_tap(net, net.x)))
    assert not result.changed
    (remark,) = result.remarks
    assert (remark.outcome, remark.message) == (Outcome.KEPT, STANDS)


def described(node: NodeProto) -> str:
    shapes = [each.ints for each in node.attribute if each.name == "kernel_shape"]
    return " ".join([node.op_type, *("x".join(map(str, shape)) for shape in shapes)])
