"""Shape of a tensor that goes: it is asked of a tensor further back, and what extents grow by is added."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nets import Net
from proof import counts, prove


def normalized(net: Net, y: str) -> str:
    return net.bn(y, channels=6)


def wide(net: Net, **options: object) -> str:
    """A Conv from four channels to six."""
    return net.conv(net.x, channels=(4, 6), **options)


def shape(net: Net, y: str, **attributes: int) -> str:
    return shown(net, net.node("Shape", y, **attributes))


def extent(net: Net, y: str, index: int) -> str:
    return shown(net, net.node("Gather", net.node("Shape", y), net.integers(index)))


def shown(net: Net, numbers: str) -> str:
    """What a graph may have as an output: all outputs of `Net` are alike."""
    return net.node("Reshape", net.node("Cast", numbers, to=net.dtype), net.integers(1, 1, 1, -1))


CASES: list[tuple[str, Callable[[Net], tuple[str, ...]], dict[str, int]]] = [
    (
        "its channels differ",
        lambda net: (normalized(net, y := wide(net)), shape(net, y)),
        {"Conv": 1, "Shape": 1, "Add": 1, "Cast": 1, "Reshape": 1},
    ),
    (
        "its borders are cut off",
        lambda net: (normalized(net, y := wide(net, pads=[0] * 4)), extent(net, y, 2)),
        {"Conv": 1, "Shape": 1, "Add": 1, "Gather": 1, "Cast": 1, "Reshape": 1},
    ),
    (
        "nothing that is read differs",
        lambda net: (
            normalized(net, y := wide(net)),
            extent(net, y, 0),
            extent(net, y, -1),
        ),
        {"Conv": 1, "Shape": 2, "Gather": 2, "Cast": 2, "Reshape": 2},
    ),
    (
        "it asks for some extents only",
        lambda net: (normalized(net, y := wide(net)), shape(net, y, start=-2)),
        {"Conv": 1, "Shape": 1, "Cast": 1, "Reshape": 1},
    ),
    (
        "a scale before it goes, too",
        lambda net: (normalized(net, y := net.conv(net.scale("Mul", net.x), channels=(4, 6))), shape(net, y)),
        {"Conv": 1, "Shape": 1, "Add": 1, "Cast": 1, "Reshape": 1},
    ),
]


@pytest.mark.parametrize(("build", "left"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("extents", [(7, 6), ("h", "w")], ids=["static", "dynamic"])
def test_what_is_asked_for_its_shape_goes(
    build: Callable[[Net], tuple[str, ...]], left: dict[str, int], extents: tuple[int | str, ...]
) -> None:
    net = Net(extents=extents)
    result = prove(net.model(*build(net)))
    assert counts(result.model) == left


STAYS: list[tuple[str, Callable[[Net], tuple[str, ...]]]] = [
    (
        "its extents follow from a division",
        lambda net: (normalized(net, y := wide(net, stride=2)), shape(net, y)),
    ),
    (
        "two would need an Add",
        lambda net: (normalized(net, y := wide(net)), shape(net, y), shape(net, y)),
    ),
    (
        "its number of elements is asked for",
        lambda net: (normalized(net, y := wide(net)), shown(net, net.node("Size", y))),
    ),
]


@pytest.mark.parametrize("build", [case[1] for case in STAYS], ids=[case[0] for case in STAYS])
def test_what_cannot_be_told_from_the_source_keeps_the_tensor(
    build: Callable[[Net], tuple[str, ...]],
) -> None:
    net = Net()
    assert not prove(net.model(*build(net))).changed


def test_a_source_too_far_back_is_not_taken() -> None:
    """All three would be one Conv of stride 2, from whose source the extents in between do not follow."""
    net = Net(extents=("h", "w"))
    halved = net.conv(net.x, 1, stride=2)
    y = net.conv(halved, 1)
    result = prove(net.model(net.conv(y, 1), shape(net, y)))
    assert counts(result.model) == {"Conv": 2, "Shape": 1, "Cast": 1, "Reshape": 1}
    assert any("for whose shape Shape" in each.message for each in result.remarks)
