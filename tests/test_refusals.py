"""What must not be fused, and what is said of it: each row holds a rule of exactness, or a look-alike of a block.

`nets.prove` shows that the result computes the same, so that nothing inexact was done. Beside that, the nodes
are left as they were, and the remark names the node to blame and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from nets import Net
from onnx import TensorProto
from proof import counts, prove, refusal

from repfuse import fuse


@dataclass(frozen=True)
class Row:
    """A network whose join is left alone, and why.

    Attributes:
        title: The rule.
        build: Gives the output, which is the join's or follows from it.
        blocker: The type of the node to blame; empty where it is none alone.
        reason: A pattern that the message matches.
        setup: Of the network.
    """

    title: str
    build: Callable[[Net, str], str]
    blocker: str
    reason: str
    setup: dict[str, Any] = field(default_factory=dict)


def table(*rows: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.title)


def refused(row: Row) -> None:
    net = Net(**row.setup)
    model = net.model(row.build(net, net.x))
    result = prove(model)
    assert not result.changed
    join = next(node for node in reversed(model.graph.node) if node.op_type in ("Add", "Sub", "Sum"))
    remark = refusal(result, join.name)
    assert remark.blocker.split(" ")[0] == row.blocker
    assert remark.blocker in remark.message
    assert re.search(row.reason, remark.message), remark.message


def run_time(slot: int) -> Callable[[Net, str], str]:
    """Two kernels, one of which has an operand that is an input."""

    def build(n: Net, x: str) -> str:
        n.inputs["operand"] = [(4, 4, 3, 3), (4,)][slot - 1]
        y = n.conv(x)
        n.nodes[-1].input[slot] = "operand"
        return n.add(y, n.conv(x, 1))

    return build


def overridable(op_type: str, slot: int) -> Callable[[Net, str], str]:
    """Two branches, one of which has a constant that is an input's default."""

    def build(n: Net, x: str) -> str:
        first = n.conv(x) if op_type == "Conv" else n.bn(x)
        n.overridable.append(n.nodes[-1].input[slot])
        return n.add(first, n.conv(x, 1))

    return build


@table(
    Row("a weight that is an input", run_time(1), "Conv", "weight that is computed at run time"),
    Row("a bias that is an input", run_time(2), "Conv", "bias that is computed at run time"),
    Row("a weight that callers override", overridable("Conv", 1), "Conv", "overridden by a caller"),
    Row("a bias that callers override", overridable("Conv", 2), "Conv", "overridden by a caller"),
    Row(
        "statistics that callers override",
        overridable("BatchNormalization", 3),
        "BatchNormalization",
        "run time",
    ),
    Row(
        "a factor that is computed",
        lambda n, x: n.add(n.node("Mul", n.conv(x), n.node("GlobalAveragePool", x)), x),
        "Mul",
        "computed at run time",
    ),
)
def test_operands_must_be_constant(row: Row) -> None:
    refused(row)


@table(
    Row(
        "extents that agree for some inputs only",
        lambda n, x: n.add(n.conv(x, 3, stride=2), n.conv(x, 2, stride=2, pads=[0] * 4)),
        "",
        "agree only for some input extents .* is -1 and 0",
        {"extents": ("H", "W")},
    ),
    Row(
        "one of them covers the whole input",
        lambda n, x: n.add(n.conv(x), n.conv(x, (7, 6), pads=[0] * 4)),
        "",
        "output extents differ for an input extent of 7",
    ),
    Row(
        "strides, though the extents agree",
        lambda n, x: n.add(n.conv(x, 3, stride=2), n.conv(x, 4, pads=[0] * 4)),
        "",
        "strides 1 and 2",
        {"extents": (7, 7)},
    ),
    Row(
        "SAME_UPPER with a stride, of an unknown extent",
        lambda n, x: n.add(n.conv(x, 3, stride=2, auto_pad="SAME_UPPER"), n.conv(x, 1, stride=2)),
        "Conv",
        "auto_pad SAME_UPPER and a stride",
        {"extents": ("H", "W")},
    ),
)
def test_extents_must_agree(row: Row) -> None:
    refused(row)


def test_an_extent_below_one_is_unknown() -> None:
    """Some exporters write a dynamic extent as -1."""
    net = Net(extents=("H", "W"))
    y = net.add(net.conv(net.x, 3, stride=2, auto_pad="SAME_UPPER"), net.conv(net.x, 1, stride=2))
    model = net.model(y)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = -1
    result = fuse(model)
    assert not result.changed
    assert "unknown extent" in refusal(result, y).message


@table(
    Row(
        "one output channel and the source",
        lambda n, x: n.add(x, n.conv(x, 1, (4, 1))),
        "",
        "a tensor of 4 channels as it is to one of 1",
    ),
    Row(
        "one output channel and several",
        lambda n, x: n.add(n.conv(x), n.conv(x, 1, (4, 1))),
        "",
        "the Add would broadcast",
    ),
    Row(
        "a source of one channel and several outputs",
        lambda n, x: n.add(x, n.conv(x, 3, (1, 4))),
        "",
        "a tensor of 1 channels as it is to one of 4",
        {"channels": 1},
    ),
    Row(
        "a pooled map",
        lambda n, x: n.add(n.conv(x), n.conv(n.node("GlobalAveragePool", x), 1)),
        "GlobalAveragePool",
        "moves or averages elements",
    ),
    Row(
        "a factor for each column",
        lambda n, x: n.add(n.conv(x), n.scale("Mul", x, 6)),
        "",
        "joins an op along axis 1 with one along the last axis",
    ),
    Row(
        "a summand for each pixel",
        lambda n, x: n.add(n.conv(x), n.scale("Add", n.conv(x, 1), 1, 4, 7, 6)),
        "Add",
        "neither a scalar nor one value for each channel",
    ),
)
def test_nothing_may_broadcast(row: Row) -> None:
    refused(row)


def test_a_constant_that_makes_channels_of_one_stays_before_its_kernel() -> None:
    net = Net(channels=1)
    model = net.model(net.conv(net.scale("Mul", net.x, 1, 3, 1, 1), 3, (3, 4)))
    assert not prove(model).changed


@table(
    Row(
        "an average that leaves the padding out",
        lambda n, x: n.add(n.conv(x), n.average(x, count_include_pad=0)),
        "AveragePool",
        "divides by less at the border",
    ),
    Row(
        "an average that leaves the padding out, which is at the end only",
        lambda n, x: n.add(n.conv(x), n.average(x, 2, pads=[0, 0, 1, 1], count_include_pad=0)),
        "AveragePool",
        "divides by less at the border",
    ),
    Row(
        "an average whose last window is partial",
        lambda n, x: n.add(
            n.average(x, 2, pads=[0] * 4, strides=[2, 2], ceil_mode=1), n.conv(x, 3, stride=2)
        ),
        "AveragePool",
        "ceil_mode",
        {"extents": (7, 7)},
    ),
    Row(
        "padding with the border's values",
        lambda n, x: n.add(n.conv(padded(n, x, mode="edge"), 3, pads=[0] * 4), n.conv(x, 1)),
        "Pad",
        "pads by edge",
    ),
    Row(
        "padding with ones",
        lambda n, x: n.add(n.conv(padded(n, x, n.constant(1.0)), 3, pads=[0] * 4), n.conv(x, 1)),
        "Pad",
        "a value other than zero",
    ),
    Row(
        "a shift before a padded kernel",
        lambda n, x: n.add(n.conv(n.conv(x, 1)), n.conv(x, 1)),
        "Conv",
        "pads with zeros a tensor to which a shift was added",
    ),
    Row(
        "a padded kernel before a padded kernel",
        lambda n, x: n.add(n.conv(n.conv(x, bias=False)), n.conv(x, 1)),
        "Conv",
        "pads with zeros what an op before it computes from across the border",
    ),
    Row(
        "a shift before a kernel that is padded at the end only",
        lambda n, x: n.add(n.conv(n.conv(x, 1), 2), n.conv(x, 1)),
        "Conv",
        "pads with zeros a tensor to which a shift was added",
    ),
    Row(
        "a padded kernel before one that is padded at the end only",
        lambda n, x: n.add(n.conv(n.conv(x, bias=False), 2), n.conv(x, 1)),
        "Conv",
        "pads with zeros what an op before it computes from across the border",
    ),
    Row(
        "a cropped source before a padded kernel",
        lambda n, x: n.add(n.conv(n.crop(x, 1, 0), 2, pads=[1, 1, 0, 0]), n.crop(n.conv(x, 1), 1, 0)),
        "Conv",
        "pads with zeros what an op before it computes from across the border",
    ),
    Row(
        "SegNeXt: biased strips in sequence",
        lambda n, x: n.add(x, n.conv(n.conv(x, (1, 7), group=4), (7, 1), group=4)),
        "Conv",
        "pads with zeros a tensor to which a shift was added",
    ),
)
def test_borders_must_be_exact(row: Row) -> None:
    refused(row)


def padded(n: Net, x: str, *value: str, **attributes: Any) -> str:
    return n.node("Pad", x, n.integers(0, 0, 1, 1, 0, 0, 1, 1), *value, **attributes)


def training(n: Net, x: str) -> str:
    operands = [n.vector(None, 0.5, 1.5) for _ in range(4)]
    return n.node("BatchNormalization", x, *operands, outputs=3, training_mode=1)


def spoilt(slot: int, value: float) -> Callable[[Net, str], str]:
    """A BatchNormalization with one odd value among its operands: scale, bias, mean and variance."""

    def build(n: Net, x: str) -> str:
        operands = [n.random.uniform(0.5, 1.5, 4) for _ in range(4)]
        operands[slot][1] = value
        return n.add(n.conv(x), n.node("BatchNormalization", x, *map(n.constant, operands)))

    return build


def spoilt_weight(value: float) -> Callable[[Net, str], str]:
    def build(n: Net, x: str) -> str:
        weight = n.random.normal(size=(4, 4, 3, 3))
        weight[0, 0, 1, 1] = value
        return n.add(n.node("Conv", x, n.constant(weight), pads=[1] * 4), n.conv_bn(x, 1))

    return build


@table(
    Row(
        "statistics of the batch",
        lambda n, x: n.add(n.conv(x), training(n, x)),
        "BatchNormalization",
        "training mode",
    ),
    Row("a negative variance", spoilt(3, -0.5), "BatchNormalization", "negative variance"),
    Row("a mean that is not a number", spoilt(2, np.nan), "BatchNormalization", "infinite or not a number"),
    Row("an infinite scale", spoilt(0, np.inf), "BatchNormalization", "infinite or not a number"),
    Row(
        "division by zero",
        lambda n, x: n.add(n.conv(x), n.node("Div", x, n.constant([[[1.0]], [[0.0]], [[1.0]], [[1.0]]]))),
        "Div",
        "by zero",
    ),
    Row(
        "division of a constant",
        lambda n, x: n.add(n.conv(x), n.scale("Div", x, first=True)),
        "Div",
        "divides by what is computed at run time",
    ),
)
def test_constants_must_be_sound(row: Row) -> None:
    refused(row)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused_without_a_warning(value: float) -> None:
    net = Net(dtype=TensorProto.FLOAT)
    result = prove(net.model(spoilt_weight(value)(net, net.x)))
    remark = refusal(result, "add_4")
    assert remark.blocker == "Conv 'conv_1'"
    assert "infinite or not a number" in remark.message


def test_what_would_overflow_is_refused() -> None:
    net = Net(dtype=TensorProto.FLOAT16)
    weight = net.constant(np.full((4, 4, 1, 1), 6e4))
    y = net.add(*(net.node("Conv", net.x, weight) for _ in range(3)))
    result = prove(net.model(y))
    assert not result.changed
    assert "overflow float16" in refusal(result, y).message


def test_large_float64_weights_are_no_overflow() -> None:
    net = Net()
    y = net.add(net.node("Conv", net.x, net.constant(np.full((4, 4, 1, 1), 1e200))), net.conv(net.x))
    assert counts(prove(net.model(y)).model) == {"Conv": 1}


def test_a_dropout_whose_mask_is_used_stays() -> None:
    net = Net()
    kept = net.node("Dropout", net.conv(net.x), outputs=2)
    y = net.add(kept, net.conv(net.x, 1))
    result = prove(net.model(y, net.node("Cast", f"{kept}_1", to=net.dtype)))
    assert not result.changed
    assert "Dropout 'dropout_2' has a second output that is used" in refusal(result, y).message


@table(
    Row(
        "ResNet: a residual over ReLU",
        lambda n, x: n.node("Relu", n.add(n.conv(n.node("Relu", n.conv(x))), x)),
        "Relu",
        "not linear",
    ),
    Row(
        "an activated branch beside a linear one",
        lambda n, x: n.add(n.conv(x), n.node("Sigmoid", n.conv(x, 1))),
        "Sigmoid",
        "not linear",
    ),
    Row(
        "normalized behind an activation",
        lambda n, x: n.add(n.conv(x), n.bn(n.node("Relu", n.conv(x, 1)))),
        "Relu",
        "not linear",
    ),
    Row(
        "only the activated branch has a kernel",
        lambda n, x: n.add(n.node("Relu", n.conv(x)), x),
        "Relu",
        "not linear",
    ),
    Row(
        "CSPRep: two activated branches",
        lambda n, x: n.add(n.node("Relu", n.conv(x)), n.node("Relu", n.conv(x, 1))),
        "Relu",
        "not linear",
    ),
    Row(
        "transposed",
        lambda n, x: n.add(
            n.node("ConvTranspose", x, n.constant(n.random.normal(size=(4, 4, 3, 3))), pads=[1] * 4), n.conv(x)
        ),
        "",
        "joins a ConvTranspose with what is none",
    ),
    Row(
        "dropout in training mode",
        lambda n, x: n.add(n.conv(x), n.node("Dropout", x, n.constant(0.0), n.true())),
        "Dropout",
        "training mode",
    ),
    Row(
        "another type",
        lambda n, x: n.add(n.conv(x), n.node("Cast", n.node("Cast", x, to=1), to=TensorProto.DOUBLE)),
        "Cast",
        "not linear",
    ),
    Row(
        "moved to places that are not known before it runs",
        lambda n, x: n.add(n.conv(x), n.node("Reshape", n.conv(x, 1), n.node("Shape", n.bn(x)))),
        "Reshape",
        "moves or averages elements",
        {"extents": ("H", "W")},
    ),
)  # fmt: skip
def test_every_op_on_the_way_must_be_linear(row: Row) -> None:
    refused(row)
