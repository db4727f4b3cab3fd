"""What is exact and yet not fused: it would add work, is no kernel, or is of a kind that was not asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from nets import Net
from onnx import TensorProto, helper, numpy_helper
from proof import counts, prove, refusal
from test_refusals import Row, refused, table


@pytest.mark.parametrize("use", ["a node", "the caller", "a subgraph"])
def test_a_tensor_inside_that_is_used_outside_stays(use: str) -> None:
    net = Net()
    inner = net.conv(net.x)
    y = net.add(inner, net.x)
    outputs = [y]
    match use:
        case "a node":
            outputs.append(net.node("Relu", inner))
        case "the caller":
            outputs.append(inner)
        case _:
            bodies = {
                name: helper.make_graph(
                    [helper.make_node("Neg", [inner], [f"{name}_y"])], name, [], [net.info(f"{name}_y")]
                )
                for name in ("then_branch", "else_branch")
            }
            condition = net.true()
            outputs.append(net.node("If", condition, **bodies))
    result = prove(net.model(*outputs))
    assert not result.changed
    remark = refusal(result, y)
    assert remark.blocker == ("Relu 'relu_3'" if use == "a node" else "")
    assert f"'{inner}' must stay" in remark.message


def test_a_join_inside_that_is_used_outside_stays_whole() -> None:
    """To merge a(x) and b(x) of `(a(x) + z) + b(x)` would be to compute a(x) twice."""
    net = Net()
    inner = net.add(net.conv(net.x, 1), net.node("Relu", net.x))
    y = net.add(inner, net.conv(net.x))
    model = net.model(y, net.node("Sigmoid", inner))
    assert not prove(model).changed


def test_a_tensor_inside_that_is_used_outside_may_be_computed_beside() -> None:
    """Where the work that goes is worth more than what must stay."""
    net = Net()
    inner = net.conv(net.x, 1)
    y = net.add(net.conv(net.x), inner, net.conv(net.x), net.average(net.x))
    assert counts(prove(net.model(y, net.node("Relu", inner))).model) == {"Conv": 2, "Relu": 1}


@table(
    Row(
        "a dense point and a depthwise kernel",
        lambda n, x: n.add(n.conv(x, 1), n.conv(x, 3, group=64)),
        "",
        r"1 \+ 9 taps would become 9, group 1",
        {"channels": 64},
    ),
    Row(
        "large strips: a cross would become a square",
        lambda n, x: n.add(n.conv(x, (1, 11), group=4), n.conv(x, (11, 1), group=4)),
        "",
        r"11 \+ 11 taps would become 121",
    ),
)
def test_what_costs_more_than_it_saves_is_left(row: Row) -> None:
    refused(row)


def test_of_three_kernels_only_those_are_merged_that_pay() -> None:
    """SLaK: 51x5, 5x51 and 5x5. All of them make a 51x51."""
    net = Net()
    y = net.add(*(net.conv(net.x, kernel, group=4) for kernel in ((51, 5), (5, 51), (5, 5))))
    result = prove(net.model(y))
    assert counts(result.model) == {"Conv": 2, "Add": 1}
    shapes = {tuple(tensor.dims[2:]) for tensor in result.model.graph.initializer if len(tensor.dims) > 1}
    assert shapes == {(51, 5), (5, 51)}


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda n, x: n.bn(x), id="a lone normalization"),
        pytest.param(lambda n, x: n.add(n.bn(x), n.scale("Mul", x)), id="normalized and scaled"),
        pytest.param(lambda n, x: n.node("Sub", n.average(x), x), id="an average less the source"),
        pytest.param(lambda n, x: n.node("Sub", n.average(x, count_include_pad=0), x), id="PoolFormer"),
        pytest.param(lambda n, x: n.add(x, x), id="the source twice"),
        pytest.param(lambda n, x: n.add(x, n.input("z", 4, (7, 6))), id="two inputs"),
        pytest.param(lambda n, x: n.node("Relu", n.add(n.node("Identity", x), x)), id="an identity"),
    ],
)
@pytest.mark.parametrize("beside", ["nothing", "a Conv elsewhere"])
def test_never_a_conv_where_there_was_none(build: Callable[[Net, str], str], beside: str) -> None:
    net = Net()
    x = net.x if beside == "nothing" else net.node("Relu", net.conv(net.x))
    model = net.model(build(net, x))
    assert prove(model).model == model


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(
            lambda n, x: n.conv(n.conv(x, 1, (64, 8)), 1, (8, 64)), id="MobileNetV2: a linear bottleneck"
        ),
        pytest.param(lambda n, x: n.conv(n.conv(x, 3, group=64), 1), id="depthwise, then pointwise"),
        pytest.param(lambda n, x: n.conv(n.conv(x, 1), 3, group=64), id="LightConv"),
    ],
)
def test_sequences_that_would_cost_more_are_left(build: Callable[[Net, str], str]) -> None:
    net = Net(channels=64, extents=(5, 5))
    assert not prove(net.model(build(net, net.x))).changed


def test_a_group_of_another_family_is_left() -> None:
    net = Net()
    y = net.repvgg(net.x)
    model = net.model(y)
    assert prove(model, patterns=["repvgg"]).changed
    result = prove(model, patterns=["mobileone", "acnet"])
    assert not result.changed
    assert "pattern" in refusal(result, y).message


def quantized(n: Net, x: str) -> str:
    """Two kernels as a quantizer leaves them: float operators between DequantizeLinear nodes."""
    scale = n.constant(0.02)
    zero = n.node("Constant", value=numpy_helper.from_array(np.array(0, np.int8)))

    def kernel(extent: int) -> str:
        values = n.random.integers(-90, 90, (4, 4, extent, extent)).astype(np.int8)
        weight = n.node("Constant", value=numpy_helper.from_array(values))
        return n.node("DequantizeLinear", weight, scale, zero)

    source = n.node("DequantizeLinear", n.node("QuantizeLinear", x, scale, zero), scale, zero)
    return n.add(n.node("Conv", source, kernel(3), pads=[1] * 4), n.node("Conv", source, kernel(1)))


def test_quantized_models_are_left() -> None:
    net = Net(dtype=TensorProto.FLOAT)
    y = quantized(net, net.x)
    result = prove(net.model(y))
    assert not result.changed
    remark = refusal(result, y)
    assert remark.blocker.startswith("Conv ")
    assert "fuse the float model and quantize afterwards" in remark.message


def test_a_lone_pair_is_refused_by_what_blocks_the_nearest_branch() -> None:
    """Each join of a network has a remark of its own."""
    net = Net()
    first = net.add(net.conv(net.node("Relu", net.conv(net.x))), net.x)
    second = net.add(net.conv(first), net.average(first, count_include_pad=0))
    result = prove(net.model(second))
    assert refusal(result, first).blocker.startswith("Relu")
    assert refusal(result, second).blocker.startswith("AveragePool")
