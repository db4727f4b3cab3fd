"""Kernels that a runtime is slow on get columns of zeros: only where that pays, and without changing anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nets import Net
from proof import prove

from repfuse.algebra.window import Axis, Layout, Window
from repfuse.choice import cost

MANY = 64
"""Channels."""


def depthwise(width: int, channels: int = MANY, **column: int) -> Window:
    axes = (Axis(3, begin=1, end=1), Axis(width, begin=width // 2, end=width // 2, **column))
    return Window((channels, channels), channels, axes)


@pytest.mark.parametrize("width", [12, 13])
def test_a_slow_width_is_widened_at_its_end(width: int) -> None:
    row, column = cost.fastest(depthwise(width)).axes
    assert row == Axis(3, begin=1, end=1)
    assert column == Axis(14, begin=width // 2, end=width // 2 + 14 - width)


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(depthwise(11), id="narrower"),
        pytest.param(depthwise(14), id="wider"),
        pytest.param(depthwise(13, channels=48), id="few-channels"),
        pytest.param(depthwise(13, dilation=2), id="dilated"),
        pytest.param(depthwise(13, stride=2), id="strided"),
        pytest.param(Window((MANY, MANY), 1, depthwise(13).axes), id="dense"),
        pytest.param(Window((MANY, MANY), MANY, (Axis(13, begin=6, end=6),)), id="one-axis"),
        pytest.param(
            Window((MANY, MANY), MANY, depthwise(13).axes, output_padding=(0, 0)), id="ConvTranspose"
        ),
        pytest.param(Window((MANY, MANY), MANY, layout=Layout.SECOND), id="pointwise"),
    ],
)
def test_others_stay_as_they_are(window: Window) -> None:
    assert cost.fastest(window) == window


def two(n: Net, x: str) -> str:
    return n.add(n.conv(x, 13, group=MANY), n.conv(x, 5, group=MANY))


def tall(n: Net, x: str) -> str:
    return n.add(n.conv(x, (13, 3), group=MANY), n.conv(x, (5, 3), group=MANY))


def normalized(n: Net, x: str) -> str:
    return n.conv_bn(x, 13, group=MANY)


@pytest.mark.parametrize(
    ("build", "kernel"),
    [
        pytest.param(two, (13, 14), id="merged"),
        pytest.param(tall, (13, 3), id="tall"),
        pytest.param(normalized, (13, 13), id="alone"),
    ],
)
def test_only_what_was_merged_is_widened(build: Callable[[Net, str], str], kernel: tuple[int, int]) -> None:
    net = Net(MANY, (15, 16))
    (node,) = prove(net.model(build(net, net.x))).model.graph.node
    shape = next(each.ints for each in node.attribute if each.name == "kernel_shape")
    assert tuple(shape) == kernel
