"""What must be fused, and to what: each row builds a network, and says which nodes are left of it.

`nets.prove` holds every result against what must always be true; above all, that it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from nets import Net
from onnx import TensorProto, helper, numpy_helper
from proof import counts, prove

ONE_CONV = {"Conv": 1}


@dataclass(frozen=True)
class Row:
    """A network: what it computes of `net.x`, what is left of it, and how `net` is set up."""

    title: str
    build: Callable[[Net, str], str]
    left: dict[str, int] = field(default_factory=lambda: ONE_CONV)
    setup: dict[str, Any] = field(default_factory=dict)


def table(*rows: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.title)


def fused_counts(row: Row, **setup: Any) -> dict[str, int]:
    net = Net(**{**row.setup, **setup})
    return counts(prove(net.model(row.build(net, net.x))).model)


def in_two_joins(n: Net, x: str) -> str:
    first, second = n.conv(x), n.conv(x, 1)
    return n.node("Sub", n.add(first, second, second), n.add(second, first, first))


@table(
    Row("a lone Conv-BN", lambda n, x: n.conv_bn(x)),
    Row("two kernels", lambda n, x: n.add(n.conv(x, 3), n.conv(x, 1))),
    Row("RepVGG", lambda n, x: n.repvgg(x)),
    Row("bare source", lambda n, x: n.add(n.conv_bn(x), x)),
    Row("bare source twice", lambda n, x: n.add(x, n.conv_bn(x), x)),
    Row("a kernel twice", lambda n, x: n.add(*[n.conv(x)] * 2, n.conv(x, 1))),
    Row("a branch in two joins", in_two_joins),
    Row("Identity nodes", lambda n, x: n.add(n.node("Identity", n.conv(x)), n.node("Identity", x))),
    Row("Dropout", lambda n, x: n.add(n.node("Dropout", n.conv(x)), x)),
    Row("MobileOne", lambda n, x: n.add(*(n.conv_bn(x) for _ in range(4)), n.conv_bn(x, 1), n.bn(x))),
    Row("twelve branches", lambda n, x: n.add(*(n.conv_bn(x, 1 + 2 * (i % 2)) for i in range(12)))),
    Row("nested branches", lambda n, x: n.add(n.bn(n.repvgg(x)), n.conv(x, 1))),
    Row("a chain as a branch", lambda n, x: n.add(n.bn(n.node("Neg", n.bn(n.conv(x)))), x)),
    Row("an average as a branch", lambda n, x: n.add(n.conv(x), n.average(x))),
    Row("an average behind a Conv", lambda n, x: n.add(n.conv(x), n.average(n.conv(x, 1, bias=False)))),
)
def test_branches(row: Row) -> None:
    assert fused_counts(row) == row.left


@table(
    Row("row, column and square", lambda n, x: n.add(n.conv(x, (1, 3)), n.conv(x, (3, 1)), n.conv(x))),
    Row("row and column", lambda n, x: n.add(n.conv(x, (1, 2)), n.conv(x, (2, 1)))),
    Row("even kernel", lambda n, x: n.add(n.conv(x, 2), n.conv(x, 1), x)),
    Row(
        "even kernels in opposite corners",
        lambda n, x: n.add(n.conv(x, 2, pads=[1, 1, 0, 0]), n.conv(x, 2, pads=[0, 0, 1, 1])),
    ),
    Row("even and dilated: the corners of a 3x3", lambda n, x: n.add(n.conv(x, 2, dilation=2), n.conv(x))),
    Row("small in large", lambda n, x: n.add(n.conv(x, 5), n.conv(x, 3))),
    Row("dilated inside a dense one", lambda n, x: n.add(n.conv(x, 5), n.conv(x, 3, dilation=2))),
    Row("dilated with a point", lambda n, x: n.add(n.conv(x, 3, dilation=2), n.conv(x, 1), x)),
    Row("stride 2", lambda n, x: n.add(n.conv(x, 3, stride=2), n.conv(x, 1, stride=2))),
    Row(
        "a stride of its own for each axis",
        lambda n, x: n.add(n.conv(x, 3, strides=[2, 1]), n.conv(x, 1, strides=[2, 1])),
    ),
    Row("a strided Slice", lambda n, x: n.add(n.conv(x, 3, stride=2), n.crop(x, 0, 0, step=2))),
    Row(
        "a point in a corner",
        lambda n, x: n.add(n.conv(x, 3, pads=[0, 0, 2, 2]), n.conv(x, 1)),
    ),
    Row(
        "asymmetric padding",
        lambda n, x: n.add(n.conv(x, 3, pads=[0, 1, 2, 1]), n.conv(x, 2, pads=[0, 1, 1, 0]), x),
    ),
    Row("padding beyond the kernel", lambda n, x: n.add(n.conv(x, 3, pads=[2] * 4), n.conv(x, 1, pads=[1] * 4))),
    Row("no padding", lambda n, x: n.add(n.conv(x, 3, pads=[0] * 4), n.conv(x, (3, 3), pads=[0] * 4))),
    Row("a cropped source", lambda n, x: n.add(n.conv(x, 3, pads=[0] * 4), n.conv(n.crop(x, 1, 1), 1))),
    Row(
        "all cropped, so that zero taps are needed",
        lambda n, x: n.add(n.conv(n.crop(x, 1, 0), 1), n.bn(n.crop(x, 1, 0))),
        setup={"channels": 1},
    ),
    Row(
        "a padded source",
        lambda n, x: n.add(
            n.conv(n.node("Pad", x, n.integers(0, 0, 1, 1, 0, 0, 1, 1)), 3, pads=[0] * 4), n.conv(x, 1)
        ),
    ),
    Row(
        "a source padded by less than nothing",
        lambda n, x: n.add(
            n.conv(n.node("Pad", x, n.integers(0, 0, -1, -1, 0, 0, -1, -1)), 1), n.conv(x, 3, pads=[0] * 4)
        ),
        setup={"dtype": TensorProto.FLOAT},
    ),
    Row(
        "SAME_UPPER, where stride 2 on an even extent puts the point in a corner",
        lambda n, x: n.add(n.conv(x, 3, stride=2, auto_pad="SAME_UPPER"), n.conv(x, 1, stride=2)),
        setup={"extents": (8, 6)},
    ),
    Row(
        "SAME_LOWER",
        lambda n, x: n.add(n.conv(x, 4, auto_pad="SAME_LOWER"), n.conv(x, 2, auto_pad="SAME_UPPER")),
    ),
    Row("VALID", lambda n, x: n.add(n.conv(x, 3, auto_pad="VALID"), n.conv(x, 3, pads=[0] * 4))),
    Row(
        "extents that agree for an even input only",
        lambda n, x: n.add(n.conv(x, 3, stride=2), n.conv(x, 2, stride=2, pads=[0] * 4)),
        setup={"extents": (8, 6)},
    ),
    Row("symbolic extents", lambda n, x: n.repvgg(x), setup={"extents": ("H", "W")}),
    Row("1-D", lambda n, x: n.repvgg(x), setup={"extents": (9,)}),
    Row("3-D", lambda n, x: n.repvgg(x), setup={"extents": (4, 5, 6)}),
    Row(
        "3-D: a plane, a line and an average",
        lambda n, x: n.add(n.conv(x, (1, 3, 3)), n.conv(x, (3, 1, 1)), n.average(x)),
        setup={"extents": (4, 5, 6)},
    ),
    Row("one row of pixels", lambda n, x: n.repvgg(x), setup={"extents": (1, 7)}),
)  # fmt: skip
def test_geometry(row: Row) -> None:
    assert fused_counts(row) == row.left


@table(
    Row("more outputs", lambda n, x: n.add(n.conv(x, 3, (4, 6)), n.conv(x, 1, (4, 6)))),
    Row("one output", lambda n, x: n.add(n.conv(x, 3, (4, 1)), n.conv(x, 1, (4, 1)))),
    Row("one channel", lambda n, x: n.repvgg(x), setup={"channels": 1}),
    Row("grouped, and an identity", lambda n, x: n.add(n.conv(x, 3, group=2), n.bn(x), x)),
    Row("depthwise", lambda n, x: n.add(n.conv_bn(x, 3, group=4), n.conv_bn(x, 1, group=4), x)),
    Row("two outputs for each input", lambda n, x: n.add(
        n.conv(x, 3, (4, 8), group=4), n.conv(x, 5, (4, 8), group=4)
    )),
    Row("groups that divide each other", lambda n, x: n.add(n.conv(x, 3, group=2), n.conv(x, 3, group=4))),
    Row(
        "groups with a common divisor",
        lambda n, x: n.add(n.conv(x, 1, group=6), n.conv(x, 1, group=4)),
        setup={"channels": 12},
    ),
)  # fmt: skip
def test_channels_and_groups(row: Row) -> None:
    net = Net(**row.setup)
    result = prove(net.model(row.build(net, net.x)))
    assert counts(result.model) == ONE_CONV


def test_the_merged_group_is_the_greatest_that_holds_all_branches() -> None:
    net = Net(channels=12)
    y = net.add(net.conv(net.x, 1, group=6), net.conv(net.x, 1, group=4), net.x)
    (conv,) = prove(net.model(y)).model.graph.node
    assert {a.name: helper.get_attribute_value(a) for a in conv.attribute}["group"] == 2


@pytest.mark.parametrize("place", range(3))
def test_what_is_merged_stands_where_its_first_branch_stood(place: int) -> None:
    """Into which Conv a runtime fuses an Add may depend on the order: another one took OpenVINO 1.4 % longer."""
    net = Net()
    others = [net.node("Relu", net.conv(net.x, bias=bias)) for bias in (False, True)]
    operands = [*others[:place], net.conv(net.x), *others[place:], net.conv(net.x, 1)]
    *_, first, second = prove(net.model(net.add(*operands))).model.graph.node
    assert (first.op_type, second.op_type) == ("Add", "Add")
    sums = [*first.input, second.input[1]]
    assert [name in others for name in sums] == [number != place for number in range(3)]


@table(
    Row("a point, then a padded kernel", lambda n, x: n.conv(n.conv(x, 1, bias=False))),
    Row("a kernel, then a point, both biased", lambda n, x: n.conv(n.conv(x), 1)),
    Row(
        "padded first, so that biases may stand anywhere",
        lambda n, x: n.conv(n.conv(x, 1, pads=[1] * 4), 3, pads=[0] * 4),
    ),
    Row("a strided point, then a padded kernel", lambda n, x: n.conv(n.conv(x, 1, bias=False, stride=2))),
    Row("a kernel, then a strided point", lambda n, x: n.conv(n.conv(x), 1, stride=2)),
    Row(
        "across each other's axes",
        lambda n, x: n.conv(n.conv(x, (1, 2), bias=False), (2, 1), pads=[1, 0, 0, 0]),
    ),
    Row(
        "each padded as far as all kernels before it reach",
        lambda n, x: n.conv(n.conv(x, (1, 2), bias=False), (1, 2), pads=[0, 0, 0, 1]),
    ),
    Row("with a scale between", lambda n, x: n.conv(n.per_channel("Mul", n.conv(x, 1, bias=False)))),
    Row("with a normalization between", lambda n, x: n.conv(n.bn(n.conv(x)), 1)),
    Row("an average, then a depthwise point", lambda n, x: n.conv(n.average(x), 1, group=4)),
    Row(
        "as a branch beside a kernel",
        lambda n, x: n.add(n.conv(x), n.bn(n.conv(n.conv(x, 1, bias=False)))),
    ),
    Row("through a wider tensor", lambda n, x: n.conv(n.conv(x, 3, (4, 16)), 1, (16, 4))),
    Row("a block, then a point", lambda n, x: n.conv(n.repvgg(x), 1)),
)
def test_sequences(row: Row) -> None:
    assert fused_counts(row) == row.left


def balanced(n: Net, a: str, b: str, c: str, d: str) -> str:
    return n.add(n.add(a, b), n.add(c, d))


def from_the_right(n: Net, a: str, b: str, c: str, d: str) -> str:
    return n.add(a, n.add(b, n.add(c, d)))


@pytest.mark.parametrize(
    "join",
    [
        pytest.param(Net.add, id="Adds from the left"),
        pytest.param(from_the_right, id="Adds from the right"),
        pytest.param(balanced, id="balanced Adds"),
        pytest.param(lambda n, *o: n.node("Sum", *o), id="Sum"),
        pytest.param(lambda n, a, *o: n.add(n.node("Sum", *o), a), id="Sum in Add"),
        pytest.param(lambda n, a, b, *o: n.node("Sum", *o, n.add(a, b)), id="Add in Sum"),
        pytest.param(lambda n, a, b, c, d: n.node("Sub", n.add(a, b), n.add(c, d)), id="Sub"),
        pytest.param(
            lambda n, a, b, c, d: n.node("Sub", a, n.node("Sub", b, n.node("Sub", c, d))), id="Sub in Sub"
        ),
        pytest.param(lambda n, a, b, c, d: n.node("Neg", n.add(a, n.node("Neg", b), c, d)), id="Neg"),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)], ids=str)
def test_joins(join: Callable[..., str], order: Sequence[int]) -> None:
    net = Net()
    branches = [net.conv_bn(net.x), net.conv_bn(net.x, 1), net.bn(net.x), net.x]
    assert counts(prove(net.model(join(net, *(branches[i] for i in order)))).model) == ONE_CONV


@table(
    Row("scalar", lambda n, x: n.scale("Mul", x)),
    Row("scalar of one axis", lambda n, x: n.scale("Div", x, 1)),
    Row("scalar of all axes", lambda n, x: n.scale("Mul", x, 1, 1, 1, 1)),
    Row("per channel", lambda n, x: n.scale("Mul", x, 4, 1, 1)),
    Row("per channel, with a batch axis", lambda n, x: n.scale("Div", x, 1, 4, 1, 1)),
    Row("constant first", lambda n, x: n.scale("Mul", x, 4, 1, 1, first=True)),
    Row("scale and shift", lambda n, x: n.scale("Add", n.scale("Mul", x, 4, 1, 1), 4, 1, 1)),
    Row("shift by a scalar", lambda n, x: n.scale("Add", x)),
    Row("subtracted", lambda n, x: n.scale("Sub", x, 1, 4, 1, 1)),
    Row("subtracted from a constant", lambda n, x: n.scale("Sub", x, 4, 1, 1, first=True)),
    Row("zero added", lambda n, x: n.node("Add", x, n.constant(0.0))),
    Row("multiplied by zero", lambda n, x: n.node("Mul", x, n.constant(0.0))),
    Row("negated", lambda n, x: n.node("Neg", x)),
    Row("a learnable affine block", lambda n, x: n.scale("Add", n.scale("Mul", n.bn(x)))),
    Row("normalized", lambda n, x: n.bn(x)),
    Row("all of them in a row", lambda n, x: n.scale("Div", n.node("Neg", n.bn(n.scale("Sub", x, 4, 1, 1))))),
)  # fmt: skip
@pytest.mark.parametrize(
    "place", ["before a kernel", "behind a kernel", "on the identity", "behind the join"]
)
def test_scales_and_shifts(row: Row, place: str) -> None:
    net = Net()
    x, affine = net.x, row.build
    match place:
        case "before a kernel":  # without padding, for which a shift would matter
            y = net.add(net.conv(affine(net, x), 3, pads=[0] * 4), net.conv(x, 3, pads=[0] * 4))
        case "behind a kernel":
            y = net.add(affine(net, net.conv(x)), net.conv(x, 1))
        case "on the identity":
            y = net.add(net.conv(x), affine(net, x))
        case _:
            y = affine(net, net.add(net.conv(x), net.conv(x, 1), x))
    assert counts(prove(net.model(y)).model) == ONE_CONV


def test_a_scale_folds_into_a_padded_kernel_behind_it() -> None:
    net = Net()
    assert counts(prove(net.model(net.conv(net.per_channel("Mul", net.x)))).model) == ONE_CONV


def test_a_ring_of_zeros_is_left_out() -> None:
    net = Net()
    model = net.model(net.add(net.conv(net.x, 3), net.conv(net.x, 1)))
    (kernel,) = (each for each in model.graph.initializer if list(each.dims)[2:] == [3, 3])
    values = numpy_helper.to_array(kernel).copy()
    values[..., [0, 2], :] = values[..., [0, 2]] = 0
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    (conv,) = prove(model).model.graph.node
    given = {each.name: helper.get_attribute_value(each) for each in conv.attribute}
    assert (given["kernel_shape"], given["pads"]) == ([1, 1], [0, 0, 0, 0])


def other(n: Net) -> str:
    """A foreign operand: an input of the join's own shape."""
    return n.input(f"z{len(n.inputs)}", n.channels, n.inputs["x"][2:])


@table(
    Row("a + b + z", lambda n, x: n.add(n.conv(x), n.conv(x, 1), other(n)), {"Conv": 1, "Add": 1}),
    Row(
        "a(x) + b(x) + c(y) + z",
        lambda n, x: n.add(n.conv(x), n.conv(x, 1), n.conv(other(n)), other(n)),
        {"Conv": 2, "Add": 2},
    ),
    Row(
        "interleaved: (a(x) + c(y)) + (z + b(x))",
        lambda n, x: balanced(n, n.conv(x), n.conv(other(n)), other(n), n.conv(x, 1)),
        {"Conv": 2, "Add": 2},
    ),
    Row(
        "subtracted: a(x) - z + b(x)",
        lambda n, x: n.add(n.node("Sub", n.conv(x), other(n)), n.conv(x, 1)),
        {"Conv": 1, "Sub": 1},
    ),
    Row(
        "subtracted from: z - (a(x) + b(x))",
        lambda n, x: n.node("Sub", other(n), n.add(n.conv(x), n.conv(x, 1))),
        {"Conv": 1, "Add": 1},
    ),
    Row(
        "subtracted from, one by one: z - a(x) - b(x)",
        lambda n, x: n.node("Sub", n.node("Sub", other(n), n.conv(x)), n.conv(x, 1)),
        {"Conv": 1, "Add": 1},
    ),
    Row(
        "in a Sum",
        lambda n, x: n.node("Sum", n.conv(x), other(n), n.conv(x, 1), n.node("Relu", x)),
        {"Conv": 1, "Relu": 1, "Add": 2},
    ),
    Row(
        "one that broadcasts: a(x) + pooled + b(x)",
        lambda n, x: n.add(n.conv(x), n.node("GlobalAveragePool", other(n)), n.conv(x, 1)),
        {"Conv": 1, "GlobalAveragePool": 1, "Add": 1},
    ),
    Row(
        "the activated source: a(x) + b(x) + relu(x)",
        lambda n, x: n.add(n.conv(x), n.node("Relu", x), n.conv(x, 1)),
        {"Conv": 1, "Relu": 1, "Add": 1},
    ),
)
def test_foreign_operands(row: Row) -> None:
    assert fused_counts(row) == row.left


def two_groups(n: Net, x: str) -> str:
    y = other(n)
    return n.add(n.conv(x), n.conv_bn(y), n.conv(x, 1), n.bn(y))


def in_a_row(n: Net, x: str) -> str:
    """Each block's output is the next one's source, and an identity in it as well."""
    for _ in range(3):
        x = n.repvgg(x)
    return x


def activated_in_a_row(n: Net, x: str) -> str:
    for _ in range(3):
        x = n.node("Relu", n.repvgg(x))
    return x


def inner_and_outer(n: Net, x: str) -> str:
    y = n.node("Relu", n.add(n.conv(x), n.conv(x, 1)))
    return n.add(x, n.conv_bn(y), n.conv_bn(y, 1))


def source_dies_elsewhere(n: Net, x: str) -> str:
    """What the first group computes on the way is the second one's source."""
    t = n.bn(n.conv(x))
    return n.add(n.node("Relu", n.add(n.conv(t), t)), n.node("Relu", n.add(n.conv(t, 1), n.bn(t))))


@table(
    Row("two groups in one join", two_groups, {"Conv": 2, "Add": 1}),
    Row("in a row", in_a_row, {"Conv": 3}),
    Row("in a row, activated", activated_in_a_row, {"Conv": 3, "Relu": 3}),
    Row(
        "a block over an inner source beside the outer one", inner_and_outer, {"Conv": 2, "Relu": 1, "Add": 1}
    ),
    Row("a source that another group computes", source_dies_elsewhere, {"Conv": 3, "Relu": 2, "Add": 1}),
)
def test_several_groups(row: Row) -> None:
    assert fused_counts(row) == row.left


def shared_weight(n: Net, x: str) -> str:
    first = n.conv(x, bias=False)
    weight = n.nodes[-1].input[1]
    second = n.node("Conv", n.node("Relu", x), weight, pads=[1] * 4)
    return n.add(n.node("Relu", n.add(first, n.node("Conv", x, weight, pads=[1] * 4))), second)


def shared_normalization(n: Net, x: str) -> str:
    n.bn(x)
    statistics = n.nodes.pop().input[1:]
    a, b = n.conv(x), n.conv(x, 1)
    return n.add(n.node("BatchNormalization", a, *statistics), n.node("BatchNormalization", b, *statistics))


@table(
    Row("a weight that a Conv elsewhere has too", shared_weight, {"Conv": 2, "Relu": 2, "Add": 1}),
    Row("statistics of two branches", shared_normalization),
)
def test_shared_constants(row: Row) -> None:
    assert fused_counts(row) == row.left
