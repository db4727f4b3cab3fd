"""Concat of channels is a stack of kernels, Split a choice of channels: what becomes of either in whole models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import Array
from nets import Net
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from repfuse import fuse
from repfuse.algebra import window
from repfuse.algebra.window import IDENTITY, Refusal
from repfuse.fusion import FuseResult
from repfuse.graph.view import scopes
from repfuse.proof.blockcheck import check_blocks
from repfuse.search.groups import Groups

SIZES = "splits into parts of sizes that are computed at run time, or do not fit"
CHANNELS = "splits something other than channels of a known number"

Build = Callable[[Net], str]


def outputs(model: ModelProto) -> list[Array]:
    """What a model computes for one random input."""
    random = np.random.default_rng(1)
    shapes = {
        entry.name: [dim.dim_value or 7 for dim in entry.type.tensor_type.shape.dim]
        for entry in model.graph.input
    }
    return ReferenceEvaluator(model).run(None, {n: random.normal(size=each) for n, each in shapes.items()})  # type: ignore[return-value]


def fused(model: ModelProto) -> FuseResult:
    """Fuse a model, and compare it as a whole and block by block, in float64."""
    result = fuse(model)
    for actual, expected in zip(outputs(result.model), outputs(model), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    checks = check_blocks(model, result)
    assert all(check.passed and not check.skipped for check in checks), checks
    assert not fuse(result.model).changed
    return result


def ops(model: ModelProto) -> str:
    return " ".join(node.op_type for node in model.graph.node)


def concat(net: Net, *operands: str, axis: int = 1) -> str:
    return net.node("Concat", *operands, axis=axis)


def split(net: Net, x: str, *sizes: int, axis: int = 1) -> list[str]:
    name = net.node("Split", x, net.integers(*sizes), axis=axis, outputs=len(sizes))
    return [name, *(f"{name}_{number}" for number in range(1, len(sizes)))]


STACKS: dict[str, tuple[Build, str]] = {
    "convs": (lambda n: concat(n, n.conv(n.x), n.conv(n.x, channels=(4, 7)), n.conv(n.x)), "Conv"),
    "negative-axis": (lambda n: concat(n, n.conv(n.x), n.conv(n.x), axis=-3), "Conv"),
    "normalized-before-and-behind": (
        lambda n: n.bn(n.scale("Mul", concat(n, n.conv_bn(n.x), n.conv_bn(n.x)), 8, 1, 1), 8),
        "Conv",
    ),
    "sums-of-branches": (lambda n: concat(n, n.repvgg(n.x), n.repvgg(n.x)), "Conv"),
    "within-a-sum": (
        lambda n: n.add(concat(n, n.conv(n.x), n.conv(n.x)), n.conv(n.x, channels=(4, 8))),
        "Conv",
    ),
    "one-with-a-tap-beside-another": (
        lambda n: concat(n, n.conv(n.x, 3, channels=(4, 12)), n.conv(n.x, 1, channels=(4, 1))),
        "Conv",
    ),
    "strided": (lambda n: concat(n, n.conv(n.x, stride=2), n.conv(n.x, stride=2)), "Conv"),
    "two-of-three": (lambda n: concat(n, n.node("Relu", n.x), n.conv(n.x), n.conv(n.x)), "Relu Conv Concat"),
    "two-sources": (
        lambda n: concat(n, n.conv(n.x), n.conv(n.x), *[n.conv(n.input("z", 4, (7, 6))) for _ in "ab"]),
        "Conv Conv Concat",
    ),
    "apart": (
        lambda n: concat(n, n.conv(n.x), n.node("Relu", n.x), n.conv(n.x)),
        "Conv Relu Conv Concat",
    ),
    # As one dense Conv they would cost more.
    "depthwise": (lambda n: concat(n, n.conv(n.x, group=4), n.conv(n.x, group=4)), "Conv Conv Concat"),
    "the-source-itself": (lambda n: concat(n, n.x, n.conv(n.x)), "Conv Concat"),
    "large-and-small": (lambda n: concat(n, n.conv(n.x, 7), n.conv(n.x, 1)), "Conv Conv Concat"),
    "used-elsewhere": (
        lambda n: n.add(concat(n, c := n.conv(n.x), n.conv(n.x)), concat(n, c, n.node("Relu", c))),
        "Conv Conv Concat Relu Concat Add",
    ),
    "of-rows": (lambda n: concat(n, n.conv(n.x), n.conv(n.x), axis=2), "Conv Conv Concat"),
    "of-images": (lambda n: concat(n, n.conv(n.x), n.conv(n.x), axis=0), "Conv Conv Concat"),
    "with-a-constant": (
        lambda n: concat(n, n.conv(n.x), n.constant(np.ones((1, 2, 7, 6)))),
        "Conv Concat",
    ),
}


@pytest.mark.parametrize(("build", "left"), STACKS.values(), ids=STACKS)
def test_concat(build: Build, left: str) -> None:
    net = Net()
    assert ops(fused(net.model(build(net))).model) == left


@pytest.mark.parametrize("extents", [(9,), (5, 4, 6), ("h", "w")])
def test_concat_at_any_rank(extents: tuple[int | str, ...]) -> None:
    net = Net(extents=extents)
    assert ops(fused(net.model(concat(net, net.conv(net.x), net.conv_bn(net.x)))).model) == "Conv"


def linear(net: Net, op_type: str, outputs: int = 3) -> str:
    weight = net.constant(net.random.normal(size=(net.inputs["x"][-1], outputs)))
    if op_type == "Gemm":
        return net.node("Gemm", net.x, weight, net.vector(outputs))
    return net.node("Add", net.node("MatMul", net.x, weight), net.vector(outputs))


@pytest.mark.parametrize(
    ("op_type", "extents", "axis", "left"),
    [
        ("Gemm", (), 1, "Gemm"),
        ("Gemm", (), -1, "Gemm"),
        ("MatMul", (6,), -1, "MatMul Add"),
        ("MatMul", (6,), 2, "MatMul Add"),
        ("MatMul", (5, 6), -1, "MatMul Add"),
        ("MatMul", (6,), 1, "MatMul Add MatMul Add Concat"),
    ],
)
def test_concat_of_rows(op_type: str, extents: tuple[int, ...], axis: int, left: str) -> None:
    net = Net(extents=extents)
    stacked = concat(net, linear(net, op_type), linear(net, op_type), axis=axis)
    assert ops(fused(net.model(stacked)).model) == left


def test_a_shift_before_padded_branches_stays() -> None:
    net = Net()
    shifted = net.bn(net.x)
    assert (
        ops(fused(net.model(concat(net, net.conv(shifted), net.conv(shifted)))).model)
        == "BatchNormalization Conv"
    )


def test_concat_for_one_extent_only() -> None:
    net = Net(extents=(8, 6))
    same = net.conv(net.x, 3, channels=(4, 12), stride=2, auto_pad="SAME_UPPER")
    result = fused(net.model(concat(net, same, net.conv(net.x, 1, channels=(4, 1), stride=2))))
    assert ops(result.model) == "Conv"
    assert "for this static input extent only" in result.edits[0].kernel


SPLITS: dict[str, tuple[Build, str]] = {
    "the-first-part": (lambda n: split(n, n.conv(n.x, channels=(4, 8)), 3, 5)[0], "Conv"),
    "the-last-part": (lambda n: split(n, n.conv_bn(n.x, channels=(4, 8)), 3, 5)[1], "Conv"),
    "parts-that-meet": (lambda n: n.add(*split(n, n.conv(n.x, 1, (4, 8)), 4, 4)), "Conv"),
    "convs-of-parts-that-meet": (
        lambda n: n.add(*(n.conv(part, channels=(2, 6)) for part in split(n, n.x, 2, 2))),
        "Conv",
    ),
    "parts-back-in-place": (lambda n: concat(n, *split(n, n.conv(n.x), 1, 3)), "Conv"),
    "parts-in-each-others-place": (lambda n: concat(n, *split(n, n.conv(n.x), 1, 3)[::-1]), "Conv"),
    "of-a-sum": (lambda n: split(n, n.repvgg(n.x), 3, 1)[0], "Conv"),
    "a-part-that-something-else-uses": (
        lambda n: n.add((p := split(n, n.conv(n.x, channels=(4, 8)), 4, 4))[0], n.node("Relu", p[1])),
        "Conv Split Relu Add",
    ),
    "of-depthwise": (lambda n: split(n, n.conv(n.x, group=4), 2, 2)[1], "Conv Split"),
    "of-rows": (lambda n: split(n, n.conv(n.x), 3, 4, axis=2)[0], "Conv Split"),
    "slice": (
        lambda n: n.node("Slice", n.conv(n.x), *(n.integers(each) for each in (1, 3, 1))),
        "Conv",
    ),
    "slice-of-depthwise": (
        lambda n: n.node("Slice", n.conv(n.x, group=4), *(n.integers(each) for each in (1, 3, 1))),
        "Conv Slice",
    ),
    "gather": (lambda n: n.node("Gather", n.conv_bn(n.x), n.integers(3, 0, 1), axis=1), "Conv"),
    "gather-of-depthwise": (
        lambda n: n.node("Gather", n.conv(n.x, group=4), n.integers(3, 0, 1), axis=1),
        "Conv Gather",
    ),
}


@pytest.mark.parametrize(("build", "left"), SPLITS.values(), ids=SPLITS)
def test_split(build: Build, left: str) -> None:
    net = Net()
    assert ops(fused(net.model(build(net))).model) == left


@pytest.mark.parametrize(
    ("opset", "attributes"),
    [
        pytest.param(11, {"split": [3, 5]}, id="sizes-as-an-attribute"),
        pytest.param(13, {}, id="equal"),
        pytest.param(18, {"num_outputs": 2}, id="a-number"),
    ],
)
def test_split_of_every_version(opset: int, attributes: dict[str, object]) -> None:
    net = Net(opset=opset)
    part = net.node("Split", net.conv(net.x, channels=(4, 8)), axis=1, outputs=2, **attributes)
    assert ops(fused(net.model(part)).model) == "Conv"


def test_equal_parts_but_the_last() -> None:
    net = Net(opset=18)
    part = net.node("Split", net.conv(net.x, channels=(4, 8)), axis=1, outputs=3, num_outputs=3)
    assert ops(fused(net.model(f"{part}_2")).model) == "Conv"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        pytest.param("y, z = Split <axis = 1> (c, sizes)", SIZES, id="sizes-computed"),
        pytest.param("y, z = Split <axis = 1> (c, three)", SIZES, id="sizes-of-others"),
        pytest.param("y, z = Split <axis = 2> (c, two)", CHANNELS, id="rows"),
        pytest.param("y, z = Split <axis = 1> (x, two)", CHANNELS, id="unknown-number"),
    ],
)
def test_refused(nodes: str, reason: str) -> None:
    graph = f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[1, C, 8, 8] x, int64[2] sizes, float[4, 4, 1, 1] w) => (float[A, B, D, E] y, float[F, G, H, I] z)
        <float[4, 4, 1, 1] v = {{{", ".join(["1"] * 16)}}}, int64[2] two = {{2, 2}}, int64[3] three = {{1, 1, 2}}>
        {{ c = Conv(x, v) {nodes} }}"""
    (scope,) = scopes(onnx.parser.parse_model(graph))
    assert Groups(scope).blocked[1].reason == reason


def test_branches_that_are_no_stack_are_told() -> None:
    net = Net(extents=("h", "w"))
    stacked = concat(net, net.conv(net.x), net.conv(net.x, pads=[0] * 4))
    scope, *_ = scopes(net.model(stacked))
    assert "output extents agree only for some input extents" in Groups(scope).blocked[2].reason


def test_a_stack_of_unknown_channels_is_refused() -> None:
    refused = window.stack([IDENTITY, IDENTITY])
    assert isinstance(refused, Refusal)
    assert refused.reason == "stacks branches of unknown channels"
