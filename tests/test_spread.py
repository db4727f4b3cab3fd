"""A scale behind a join goes into the kernels before it, if all of them can take it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto, TensorProto
from proof import prove

from repfuse import fuse
from repfuse.proof.blockcheck import check_blocks

Build = Callable[[Net], str]


def y(net: Net, channels: int = 4) -> str:
    return "y" if "y" in net.inputs else net.input("y", channels, net.inputs["x"][2:])


def two(net: Net, kernel: int = 3, *, bias: bool = True) -> str:
    """The sum of Convs of two sources."""
    return net.add(net.conv(net.x, kernel, bias=bias), net.conv(y(net), 1, bias=bias))


def stack(net: Net, *operands: str, axis: int = 1) -> str:
    return net.node("Concat", *operands, axis=axis)


def pair(net: Net) -> str:
    """Convs of two sources, of 4 and 3 channels, one behind the other."""
    return stack(net, net.conv(net.x), net.conv(y(net), 1, channels=(4, 3)))


def transposed(net: Net, x: str, *, group: int = 1) -> str:
    weight = net.constant(net.random.normal(size=(4, 4 // group, 2, 2)))
    return net.node("ConvTranspose", x, weight, strides=[2, 2], group=group)


def relu(net: Net, x: str) -> str:
    return net.node("Relu", x)


def matmul(net: Net, x: str, outputs: int = 5) -> str:
    return net.node("MatMul", x, net.constant(net.random.normal(size=(net.inputs["x"][-1], outputs))))


def ops(model: ModelProto) -> str:
    return " ".join(node.op_type for node in model.graph.node)


def spread(model: ModelProto) -> str:
    """The ops that are left, of a model whose fused form was proven, as a whole and block by block."""
    result = prove(model)
    checks = check_blocks(model, result)
    assert all(check.passed and not check.skipped for check in checks), checks
    return ops(result.model)


def csp(net: Net) -> str:
    """BottleneckCSP of early YOLOv5: two bare Convs side by side, normalized together."""
    inner = relu(net, net.conv_bn(relu(net, net.conv_bn(net.x, 1)), 3))
    both = stack(net, net.conv(inner, 1, bias=False), net.conv(net.x, 1, bias=False))
    return net.node("LeakyRelu", net.bn(both, 8))


SUMS: dict[str, Build] = {
    "normalized": lambda n: n.bn(two(n)),
    "normalized-without-biases": lambda n: n.bn(two(n, bias=False)),
    "per-channel": lambda n: n.per_channel("Mul", two(n)),
    "scalar": lambda n: n.scale("Div", two(n)),
    "shift": lambda n: n.per_channel("Add", two(n)),
    "negative": lambda n: n.node("Neg", two(n)),
    "subtracted-from": lambda n: n.scale("Sub", two(n), first=True),
    "several-in-a-row": lambda n: n.bn(n.scale("Mul", n.per_channel("Sub", two(n)))),
    "difference": lambda n: n.bn(n.node("Sub", n.conv(n.x), n.conv(y(n)))),
    "normalized-before-and-behind": lambda n: n.bn(n.add(n.conv_bn(n.x), n.conv_bn(y(n)))),
    "three-of-two-sources": lambda n: n.bn(n.add(n.conv(n.x), n.conv(y(n)), n.conv(n.x, 1))),
    "branches-on-both-sides": lambda n: n.bn(n.add(n.repvgg(n.x), n.repvgg(y(n)))),
    "scale-within": lambda n: n.bn(n.add(n.per_channel("Mul", n.conv(n.x)), n.conv(y(n)))),
    "depthwise": lambda n: n.bn(n.add(n.conv(n.x, group=4), n.conv(y(n), 5, group=4))),
    "identity-between": lambda n: n.bn(n.node("Identity", two(n))),
    "with-an-output-behind": lambda n: relu(n, n.bn(two(n))),
    "all-in-one-node": lambda n: n.bn(n.node("Sum", n.conv(n.x), n.conv(y(n)), n.conv(n.x, 1))),
}


@pytest.mark.parametrize("build", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("constants", ["initializer", "expression"])
def test_behind_a_sum(build: Build, constants: str) -> None:
    net = Net(constants=constants)
    assert spread(net.model(build(net))).removesuffix(" Relu") == "Conv Conv Add"


def test_behind_a_sum_of_many_sources_in_one_node() -> None:
    net = Net()
    joined = net.node("Sum", *(net.conv(source, 1) for source in (net.x, y(net), relu(net, net.x))))
    assert spread(net.model(net.bn(joined))) == "Relu Conv Conv Conv Add Add"


def test_behind_a_sum_of_branches_that_all_begin_with_a_conv() -> None:
    """Each of them may take that Conv over, which then goes: one alone would gain nothing."""
    net = Net(1, (9,))
    first = net.conv(net.x, 1, (1, 2), bias=False)
    deep = net.conv(first, 4, (2, 2), group=2, bias=False, pads=[2, 1])
    branches = [net.conv(deep, 3, (2, 2)), *(net.conv(first, 1, (2, 2)) for _ in range(2))]
    assert spread(net.model(net.scale("Mul", net.node("Sum", *branches)))) == "Conv Conv Conv Add"


CONCATS: dict[str, tuple[Build, str]] = {
    "normalized": (lambda n: n.bn(pair(n), 7), "Conv Conv Concat"),
    "per-channel": (lambda n: n.scale("Mul", pair(n), 7, 1, 1), "Conv Conv Concat"),
    "scalar": (lambda n: n.scale("Mul", pair(n)), "Conv Conv Concat"),
    "scalar-shift": (lambda n: n.scale("Add", pair(n)), "Conv Conv Concat"),
    "shift": (lambda n: n.scale("Add", pair(n), 7, 1, 1), "Conv Conv Concat"),
    "of-rows": (
        lambda n: n.scale("Mul", stack(n, n.conv(n.x), n.conv(y(n)), axis=2)),
        "Conv Conv Concat Mul",
    ),
    "depthwise-of-one-source": (
        lambda n: n.bn(stack(n, n.conv(n.x, group=4), n.conv(n.x, group=4)), 8),
        "Conv Conv Concat",
    ),
    "of-sums": (
        lambda n: n.bn(stack(n, two(n), n.conv(relu(n, n.x))), 8),
        "Conv Conv Add Relu Conv Concat",
    ),
    "in-a-sum": (
        lambda n: n.bn(n.add(pair(n), n.conv(relu(n, n.x), channels=(4, 7))), 7),
        "Conv Conv Concat Relu Conv Add",
    ),
    "scaled-within": (
        lambda n: n.bn(stack(n, n.bn(two(n)), n.conv(relu(n, n.x))), 8),
        "Conv Conv Add Relu Conv Concat",
    ),
    "csp": (csp, "Conv Relu Conv Relu Conv Conv Concat LeakyRelu"),
    "of-one-twice": (
        lambda n: n.bn(stack(n, pair(n), n.conv(relu(n, n.x))), 11),
        "Conv Conv Concat Relu Conv Concat",
    ),
}


@pytest.mark.parametrize(("build", "left"), CONCATS.values(), ids=CONCATS)
def test_behind_a_concat(build: Build, left: str) -> None:
    net = Net()
    assert sorted(spread(net.model(build(net))).split()) == sorted(left.split())


@pytest.mark.parametrize("extents", [(9,), (5, 4, 6), ("h", "w")])
@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.FLOAT])
def test_at_any_rank(extents: tuple[int | str, ...], dtype: int) -> None:
    net = Net(extents=extents, dtype=dtype)
    assert spread(net.model(net.bn(two(net)))) == "Conv Conv Add"


def test_transposed() -> None:
    net = Net()
    joined = net.add(transposed(net, net.x), transposed(net, y(net)))
    assert spread(net.model(net.bn(joined))) == "ConvTranspose ConvTranspose Add"


def test_one_operand_takes_the_shift_of_a_sum() -> None:
    net = Net()
    result = fuse(net.model(net.per_channel("Add", two(net, bias=False))))
    assert sorted(len(node.input) for node in result.model.graph.node) == [2, 2, 3]


@pytest.mark.parametrize("op_type", ["Mul", "Add"])
def test_matrices(op_type: str) -> None:
    """A MatMul has no bias, so a shift behind it would only move to where one operand is added."""
    net = Net(extents=(8,))
    joined = net.add(matmul(net, net.x), matmul(net, y(net)))
    left = spread(net.model(net.scale(op_type, joined, 5)))
    assert left == ("MatMul MatMul Add" if op_type == "Mul" else "MatMul MatMul Add Add")


KEPT: dict[str, Build] = {
    "an-operand-without-weight": lambda n: n.bn(n.add(n.conv(n.x), y(n))),
    "a-nonlinear-operand": lambda n: n.bn(n.add(n.conv(n.x), relu(n, n.conv(y(n))))),
    "a-nonlinear-part": lambda n: n.bn(stack(n, n.conv(n.x), relu(n, y(n))), 8),
    "an-input-among-the-parts": lambda n: n.bn(stack(n, n.conv(n.x), y(n)), 8),
    "an-operand-used-elsewhere": lambda n: n.add(n.bn(n.add(a := n.conv(n.x), n.conv(y(n)))), relu(n, a)),
    "a-sum-used-elsewhere": lambda n: n.add(n.bn(a := two(n)), relu(n, a)),
    "along-another-axis": lambda n: n.scale("Mul", pair(n), 6),
    "idiom": lambda n: n.node("Mul", a := two(n), n.node("Sigmoid", n.scale("Mul", a))),
}


@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_what_cannot_take_it_stays(build: Build) -> None:
    net = Net()
    model = net.model(build(net))
    assert not prove(model).changed


def test_an_output_between_stays() -> None:
    net = Net()
    joined = two(net)
    assert not prove(net.model(joined, net.bn(joined))).changed


def test_operands_that_an_add_broadcasts_have_their_channels_on_one_axis() -> None:
    """Along axis 1 of the sum and of the first operand; the second one has its outputs on the last axis."""
    net = Net(channels=5, extents=(7, 5))
    matrix = net.input("m", 5, ())
    gemm = net.node("Gemm", matrix, net.constant(net.random.normal(size=(5, 5))))
    assert not prove(net.model(net.bn(net.add(net.conv(net.x), gemm)))).changed


def test_a_map_of_one_pixel_may_be_broadcast() -> None:
    net = Net()
    small = net.conv(net.input("s", 4, (1, 1)), 1)
    assert spread(net.model(net.bn(net.add(net.conv(net.x), small)))) == "Conv Conv Add"


def test_a_single_channel_is_not_broadcast_to_the_channels_of_a_scale() -> None:
    net = Net()
    joined = net.add(net.conv(net.x), net.conv(y(net), channels=(4, 1)))
    assert not prove(net.model(net.bn(joined))).changed


def test_weights_that_would_overflow_stay() -> None:
    net = Net(dtype=TensorProto.FLOAT16)
    huge = net.constant(np.full((4, 1, 1), 6e4))
    large = [net.constant(np.full((4, 4, 1, 1), 2.0)) for _ in "ab"]
    joined = net.add(*(net.node("Conv", x, weight) for x, weight in zip((net.x, y(net)), large, strict=True)))
    result = fuse(net.model(net.node("Mul", joined, huge)))
    assert not result.changed
    assert "would overflow float16" in result.remarks[0].message


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_a_scale_goes_into_kernels_of_any_geometry(data: st.DataObject) -> None:
    """Behind a sum, a difference or a Concat of Convs of two sources, in either order."""
    rank, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    net = Net(4, (6,) * rank)
    operands = []
    for source in (net.x, y(net)):
        kernel = data.draw(st.tuples(*[st.integers(1, 3)] * rank))
        dilation, group = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2, 4]))
        reach = [dilation * (each - 1) for each in kernel]
        begin = [data.draw(st.integers(0, each)) for each in reach]
        pads = [*begin, *(each - before for each, before in zip(reach, begin, strict=True))]
        options = {"dilation": dilation, "group": group, "stride": stride, "pads": pads}
        operands.append(net.conv(source, kernel, bias=data.draw(st.booleans()), **options))
    join = data.draw(st.sampled_from(["Add", "Sub", "Sum", "Concat"]))
    attributes = {"axis": 1} if join == "Concat" else {}
    joined = net.node(join, *data.draw(st.permutations(operands)), **attributes)
    width = 8 if join == "Concat" else 4
    scale = data.draw(st.sampled_from(["Mul", "Add", "Sub", "Div", "BatchNormalization", "Neg"]))
    if scale == "BatchNormalization":
        behind = net.bn(joined, width)
    elif scale == "Neg":
        behind = net.node("Neg", joined)
    else:
        shape = data.draw(st.sampled_from([(), (width, *[1] * rank)]))
        behind = net.scale(scale, joined, *shape, first=scale != "Div" and data.draw(st.booleans()))
    left = "Concat" if join == "Concat" else "Add"
    assert sorted(spread(net.model(behind)).split()) == [left, "Conv", "Conv"]
