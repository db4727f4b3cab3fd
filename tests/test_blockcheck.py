"""Blocks run alone: what repfuse makes passes, and whatever is done to it is seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import weights
from blocks import build, fold_bn
from nets import Net
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from repfuse.families.patterns import Example, Pattern, load_patterns
from repfuse.fusion import FuseResult, fuse
from repfuse.proof import blockcheck, roundoff
from repfuse.proof.blockcheck import LIMIT, BlockCheck, check_blocks

Array = npt.NDArray[Any]

NARROW = sorted((Path(__file__).parent / "models").glob("*-narrow.*.onnx"))
PATTERNS = {pattern.slug: pattern for pattern in load_patterns()}
EXAMPLES = [
    pytest.param(pattern, form(example), id=f"{pattern.slug}-{index}-{form.__name__}")
    for pattern in PATTERNS.values()
    for index, example in enumerate(pattern.examples)
    for form in (replace, fold_bn)
]


def errors(checks: tuple[BlockCheck, ...]) -> list[float]:
    """What the errors of blocks are, all of which were run."""
    assert checks
    assert not [check.skipped for check in checks if check.skipped]
    assert all(check.passed == (check.error_ulp <= LIMIT) for check in checks)
    return [check.error_ulp for check in checks]


def checked(model: ModelProto) -> list[float]:
    return errors(check_blocks(model, fuse(model)))


@pytest.mark.parametrize(("pattern", "example"), EXAMPLES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_examples_pass_in_every_type(pattern: Pattern, example: Example, dtype: type[np.generic]) -> None:
    model = build(pattern, example, dtype=dtype)
    result = fuse(model)
    if not result.changed:  # what folding left of it is a Conv already, or cheaper as it is
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
        return
    for error in errors(check_blocks(model, result)):
        # Weights were rounded, and that is what errors are measured in.
        assert (0 if dtype is np.float64 else 0.1) <= error <= LIMIT


@pytest.mark.parametrize("path", NARROW, ids=lambda path: path.name)
def test_models_pass(path: Path) -> None:
    assert max(checked(weights.load(path))) <= LIMIT


# What may be wrong with a merged Conv. Each changes the node, its weight or its bias, or says False where there
# is no such mistake to make.
Mutation = Callable[[NodeProto, Array, Array], tuple[Array, Array] | bool]


def attribute(node: NodeProto, name: str) -> onnx.AttributeProto:
    return next(each for each in node.attribute if each.name == name)


def tap_shifted(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    return weight.shape[-1] > 1 and (np.roll(weight, 1, axis=-1), bias)


def transposed(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    square = weight.ndim == 4 and weight.shape[-1] == weight.shape[-2] > 1
    return square and (weight.swapaxes(-1, -2), bias)


def outputs_swapped(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    return len(weight) > 1 and (swapped(weight, 0), bias)


def inputs_swapped(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    return weight.shape[1] > 1 and (swapped(weight, 1), bias)


def swapped(weight: Array, axis: int) -> Array:
    """Two channels in each other's place; all others as they were."""
    order = np.arange(weight.shape[axis])
    order[[0, -1]] = order[[-1, 0]]
    return weight.take(order, axis)


def regrouped(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    if weight.shape[1] % 2 or len(weight) % 2:
        return False
    attribute(node, "group").i *= 2
    return weight[:, : weight.shape[1] // 2], bias


def moved(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    pads = attribute(node, "pads").ints
    if not pads[-1]:
        return False
    pads[len(pads) // 2 - 1] += 1
    pads[-1] -= 1
    return weight, bias


def padded(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    attribute(node, "pads").ints[-1] += attribute(node, "strides").ints[-1]
    return weight, bias


def bias_dropped(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    return bool(bias.any()) and (weight, np.zeros_like(bias))


def one_bias_off(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    changed = bias.copy()
    changed[-1] *= 1.01
    return bool(bias[-1]) and (weight, changed)


def one_tap_lost(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    changed = weight.copy()
    changed.flat[np.abs(weight).argmax()] = 0
    return changed, bias


def scaled(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    # 1.0001 is no other number than 1 in float16.
    return weight * {"float16": 1.01, "float32": 1.0001, "float64": 1.0001}[weight.dtype.name], bias


def scaled_by_a_few_ulp(node: NodeProto, weight: Array, bias: Array) -> tuple[Array, Array] | bool:
    # Of float64, that is what running it loses.
    return weight.dtype != np.float64 and (weight * (1 + 8 * np.finfo(weight.dtype).eps), bias)


MUTATIONS: list[Mutation] = [
    tap_shifted,
    transposed,
    outputs_swapped,
    inputs_swapped,
    regrouped,
    moved,
    padded,
    bias_dropped,
    one_bias_off,
    one_tap_lost,
    scaled,
    scaled_by_a_few_ulp,
]

GEOMETRIC = (regrouped, moved, padded)
"""Mistakes in attributes that a Gemm does not have."""


def mutant(result: FuseResult, mutation: Mutation, number: int = 0) -> FuseResult | None:
    """The result with a mistake in a merged op with a weight; None where it cannot be made."""
    model = copy.deepcopy(result.model)
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    node = [n for n in model.graph.node if n.op_type in kinds and "fused" in n.name][number]
    if node.op_type in ("Gemm", "MatMul") and mutation in GEOMETRIC:
        return None
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    behind = (n for n in model.graph.node if "fused_bias" in n.name and n.input[0] == node.output[0])
    names = [*node.input[1:], *(n.input[1] for n in behind)]
    weight = numpy_helper.to_array(tensors[names[0]])
    bias = numpy_helper.to_array(tensors[names[1]]) if len(names) > 1 else np.zeros(len(weight))
    found = mutation(node, weight, bias)
    if isinstance(found, bool):
        return None
    for name, old, new in zip(names, (weight, bias), found, strict=False):
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new, old.dtype), name))
    return replace(result, model=model)


@pytest.mark.parametrize(("pattern", "example"), EXAMPLES[::2])
def test_every_mutant_is_caught(pattern: Pattern, example: Example) -> None:
    # At open extents: where a map is smaller than a kernel, there are taps that no input ever meets.
    assert_all_caught(build(pattern, example, extents=("d", "h", "w")[: example.dims]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("example", PATTERNS["repvgg"].examples, ids=lambda example: example.title)
def test_every_mutant_of_other_types_is_caught(example: Example, dtype: type[np.generic]) -> None:
    assert_all_caught(build(PATTERNS["repvgg"], example, dtype=dtype))


def test_every_mutant_of_a_gemm_is_caught() -> None:
    net = Net(dtype=TensorProto.FLOAT, extents=())
    branches = [
        net.node("Gemm", net.x, net.constant(net.random.normal(size=(4, 4))), net.vector(), transB=transposed)
        for transposed in (0, 1)
    ]
    assert_all_caught(net.model(net.add(*branches, net.node("Mul", net.x, net.vector()))))


def two_matmuls(net: Net) -> str:
    weights = (net.constant(net.random.normal(size=(net.inputs["x"][-1], 5))) for _ in "ab")
    return net.add(*(net.node("Add", net.node("MatMul", net.x, weight), net.vector(5)) for weight in weights))


def two_transposed(net: Net) -> str:
    weights = (net.constant(net.random.normal(size=(4, 3, 3, 3))) for _ in "ab")
    branches = [net.node("ConvTranspose", net.x, each, net.vector(3), strides=[2, 2]) for each in weights]
    return net.bn(net.add(*branches), 3)


def stacked(net: Net) -> str:
    return net.node("Concat", net.conv_bn(net.x), net.conv(net.x), axis=1)


def stacked_in_part(net: Net) -> str:
    return net.node("Concat", net.node("Relu", net.x), net.conv_bn(net.x), net.conv(net.x), axis=1)


def met_again(net: Net) -> str:
    part = net.node("Split", net.x, axis=1, outputs=2)
    return net.add(*(net.conv(each, channels=(2, 6)) for each in (part, f"{part}_1")))


def behind_a_shift(net: Net) -> str:
    return net.repvgg(net.scale("Add", net.scale("Mul", net.x, 4, 1, 1), 4, 1, 1))


def across_a_pooling(net: Net) -> str:
    return net.conv(net.node("GlobalAveragePool", net.bn(net.x)), 1, channels=(4, 5))


def across_a_pooling_behind_a_shift(net: Net) -> str:
    shifted = net.scale("Add", net.scale("Mul", net.x, 4, 1, 1), 4, 1, 1)
    return net.bn(net.node("GlobalAveragePool", net.conv(shifted)))


@pytest.mark.parametrize(
    "build",
    [
        two_transposed,
        stacked,
        stacked_in_part,
        met_again,
        behind_a_shift,
        across_a_pooling,
        across_a_pooling_behind_a_shift,
    ],
    ids=lambda build: build.__name__,
)
def test_every_mutant_of_other_kinds_is_caught(build: Callable[[Net], str]) -> None:
    net = Net(dtype=TensorProto.FLOAT)
    assert_all_caught(net.model(build(net)))


@pytest.mark.parametrize("seed", range(8))
def test_a_shift_that_is_rounded_as_well_is_no_error(seed: int) -> None:
    """What is rounded off it counts at every tap in the padding, and passes the pooling with all else."""
    net = Net(dtype=TensorProto.FLOAT)
    net.random = np.random.default_rng(seed)
    model = net.model(across_a_pooling_behind_a_shift(net))
    result = fuse(model)
    assert ", behind a shift that stays" in result.edits[0].kernel
    assert max(errors(check_blocks(model, result))) <= LIMIT


def channels_last(net: Net) -> str:
    """As Keras exports Conv and normalization: turned around, and each layer ends in a Cast that does nothing."""

    def cast(x: str) -> str:
        return net.node("Cast", x, to=net.dtype)

    y = cast(net.node("Transpose", net.conv(net.x), perm=[0, 2, 3, 1]))
    for op_type in ("Sub", "Mul", "Add"):
        y = net.node(op_type, y, net.constant(net.random.uniform(0.5, 1, size=(1, 1, 1, 4))))
    return net.node("Relu", cast(y))


def test_every_mutant_channels_last_is_caught_whatever_the_extents() -> None:
    net = Net(dtype=TensorProto.FLOAT, extents=("H", "W"))
    assert_all_caught(net.model(channels_last(net)))


@pytest.mark.parametrize("build", [across_a_pooling, channels_last], ids=lambda build: build.__name__)
def test_every_mutant_is_caught_with_impulses_at_once(
    build: Callable[[Net], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large maps are run, whose runs take seconds each."""
    monkeypatch.setattr(blockcheck, "_LARGE", 0)
    net = Net(dtype=TensorProto.FLOAT)
    assert_all_caught(net.model(build(net)))


def test_every_mutant_across_a_pooling_is_caught_whatever_the_extents() -> None:
    net = Net(dtype=TensorProto.FLOAT, extents=("H", "W"))
    assert_all_caught(net.model(across_a_pooling(net)))


@pytest.mark.parametrize("tokens", ["T", 6], ids=["open", "static"])
def test_every_mutant_across_heads_is_caught(tokens: str | int) -> None:
    """As transformers export them: how many images and tokens there are is asked for, and told to the Reshape."""
    net = Net(dtype=TensorProto.FLOAT, extents=(tokens,))
    rows = net.node("Transpose", net.x, perm=[0, 2, 1])
    query = net.node(
        "Add", net.node("MatMul", rows, net.constant(net.random.normal(size=(4, 6)))), net.vector(6)
    )
    asked = [net.node("Gather", net.node("Shape", query), net.integers(axis), axis=0) for axis in (0, 1)]
    heads = net.node("Reshape", query, net.node("Concat", *asked, net.integers(2, 3), axis=0))
    scaled = net.node("Mul", net.node("Transpose", heads, perm=[0, 2, 1, 3]), net.constant(0.5))
    assert_all_caught(net.model(net.node("ReduceMax", scaled, axes=[3], keepdims=0)))


def test_every_mutant_of_a_matmul_is_caught() -> None:
    net = Net(dtype=TensorProto.FLOAT, extents=(6,))
    assert_all_caught(net.model(two_matmuls(net)))


def assert_all_caught(model: ModelProto) -> None:
    result = fuse(model)
    wrong = {mutation.__name__: mutant(result, mutation) for mutation in MUTATIONS}
    missed = [
        name for name, each in wrong.items() if each and max(errors(check_blocks(model, each))) <= LIMIT
    ]
    assert not missed
    assert len(wrong) - list(wrong.values()).count(None) >= 5


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_every_kind_of_mutant_can_be_made(mutation: Mutation) -> None:
    model = build(PATTERNS["repvgg"], PATTERNS["repvgg"].examples[0])
    assert mutant(fuse(model), mutation)


def test_the_bad_block_is_named() -> None:
    model = build(PATTERNS["repvgg"], PATTERNS["repvgg"].examples[0], repeat=3)
    wrong = mutant(fuse(model), one_tap_lost, number=1)
    assert wrong
    steps: list[str] = []
    checks = check_blocks(model, wrong, on_progress=steps.append)
    assert [check.edit for check in checks] == list(wrong.edits)
    assert [check.passed for check in checks] == [True, False, True]
    assert steps == ["block 1 of 3", "block 2 of 3", "block 3 of 3"]


def test_a_wide_block_of_float16_hides_no_lost_tap() -> None:
    example = Example("wide", ("conv3x3 bn", "conv1x1 bn"), "", channels=(256, 8))
    model = build(PATTERNS["repvgg"], example, dtype=np.float16)
    result = fuse(model)
    wrong = mutant(result, one_tap_lost)
    assert wrong
    assert errors(check_blocks(model, result))[0] <= LIMIT < errors(check_blocks(model, wrong))[0]


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18])
@pytest.mark.parametrize("constants", ["initializer", "node", "expression"])
def test_operators_of_every_version(opset: int, constants: str) -> None:
    net = Net(opset=opset, ir=3 if opset == 7 else 8, constants=constants, dtype=TensorProto.FLOAT)
    total = net.add(net.conv_bn(net.x), net.average(net.bn(net.x)), net.node("Dropout", net.x))
    assert max(checked(net.model(total))) <= LIMIT


def test_bfloat16() -> None:
    net = Net(dtype=TensorProto.BFLOAT16, opset=22)
    model = net.model(net.repvgg(net.x))
    result = fuse(model)
    wrong = mutant(result, one_tap_lost)
    assert wrong
    assert errors(check_blocks(model, result))[0] <= LIMIT < errors(check_blocks(model, wrong))[0]


def same_upper(extents: tuple[int, int] = (8, 6)) -> ModelProto:
    net = Net(extents=extents, dtype=TensorProto.FLOAT)
    total = net.add(
        net.conv(net.x, 3, stride=2, auto_pad="SAME_UPPER"), net.conv(net.x, 1, stride=2, pads=[0] * 4)
    )
    return net.model(total)


def test_what_holds_for_the_static_extent_only_is_run_at_that() -> None:
    model = same_upper()
    result = fuse(model)
    assert "static" in result.edits[0].kernel
    assert errors(check_blocks(model, result))[0] <= LIMIT
    assert errors(check_blocks(same_upper((9, 7)), result))[0] == math.inf
    wrong = mutant(result, one_tap_lost)
    assert wrong and errors(check_blocks(model, wrong))[0] > LIMIT


def test_a_static_extent_that_is_too_large_is_skipped() -> None:
    model = same_upper((4000, 4000))
    (check,) = check_blocks(model, fuse(model))
    assert check.passed
    assert check.skipped == "It holds for an input of [4000, 4000] only, which is too large to run here."


def test_what_is_added_to_a_merged_conv_counts() -> None:
    net = Net(dtype=TensorProto.FLOAT)
    other = net.input("other", net.channels, (7, 6))
    part = net.node("Sub", net.conv(net.x), net.node("Relu", other))
    model = net.model(net.add(part, net.conv(net.x, 1)))
    result = fuse(model)
    assert errors(check_blocks(model, result))[0] <= LIMIT
    last = next(node for node in result.model.graph.node if node.op_type == "Sub")
    last.op_type = "Add"
    added = (*result.edits[0].added[:-1], result.edits[0].added[-1].replace("Sub", "Add"))
    assert (
        errors(check_blocks(model, replace(result, edits=(replace(result.edits[0], added=added),))))[0]
        > LIMIT
    )


def test_a_kernel_that_the_graph_computes_is_computed_alike() -> None:
    """OREPA's large kernels are kernels convolved with each other: sums so long that their order can be seen."""
    net = Net(16, dtype=TensorProto.FLOAT)
    kernel = net.constant(net.random.normal(size=(16, 16, 3, 3)))
    for _ in range(3):
        kernel = net.conv(kernel, channels=(16, 16), bias=False, pads=[2] * 4)
    computed = net.node("Transpose", kernel, perm=[1, 0, 2, 3])
    y = net.bn(net.node("Conv", net.x, computed, pads=[4] * 4))
    assert checked(net.model(y))[0] <= LIMIT


def test_a_weight_that_callers_may_override_is_no_constant() -> None:
    net = Net()
    model = net.model(net.repvgg(net.x))
    result = fuse(model)
    tensor = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert errors(check_blocks(model, result)) == [math.inf]


def test_a_relu_between_is_not_overlooked() -> None:
    net = Net()
    model = net.model(net.repvgg(net.x))
    result = fuse(model)
    relu = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    relu.CopyFrom(helper.make_node("Relu", relu.input[:1], relu.output))
    assert errors(check_blocks(model, result))[0] > 1000


def test_what_cannot_be_run_alone_is_skipped() -> None:
    net = Net()
    cropped = net.node("Pad", net.x, net.integers(0, 0, -1, -1, 0, 0, -1, -1))
    model = net.model(net.add(net.conv(cropped, 1), net.conv(net.x, 3, pads=[0] * 4)))
    (check,) = check_blocks(model, fuse(model))
    assert check.passed
    assert check.skipped.startswith("ONNX's reference implementation cannot run it alone: ")


def test_functions_are_graphs() -> None:
    net = Net(constants="node")
    body = net.repvgg(net.x)
    function = helper.make_function("local", "block", ["x"], [body], net.nodes, [helper.make_opsetid("", 17)])
    outer = Net()
    outer.functions.append(function)
    model = outer.model(outer.node("block", outer.x, domain="local"))
    result = fuse(model)
    assert [check.edit.graph for check in check_blocks(model, result)] == ["function local:block"]
    assert errors(check_blocks(model, result))[0] <= LIMIT
    node = next(n for n in result.model.functions[0].node if n.op_type == "Conv")
    attribute(node, "pads").ints[:] = [0, 2, 2, 0]
    assert errors(check_blocks(model, result))[0] > LIMIT


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_half_an_ulp_is_half_the_distance_to_the_next_number(dtype: type[np.generic]) -> None:
    kind = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    powers = [2.0**e for e in (-9, -1, 0, 1, 7)]
    values = np.array([0, *powers, *(-1.5 * p for p in powers), kind.smallest_normal], dtype)
    unsigned = abs(values.astype(np.float64)).astype(dtype)
    following = (unsigned.view(f"u{unsigned.itemsize}") + 1).view(dtype).astype(np.float64)
    halves = (following - unsigned.astype(np.float64)) / 2
    assert np.array_equal(roundoff.half_ulp(values), halves)
