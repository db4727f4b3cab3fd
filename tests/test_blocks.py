"""The graphs that examples in pattern files stand for: real, runnable, and what they say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from blocks import build, fold_bn
from onnx.reference import ReferenceEvaluator

from repfuse.families.patterns import Example, Pattern, load_patterns

BY_SLUG = {pattern.slug: pattern for pattern in load_patterns()}
EXAMPLES = [
    pytest.param(pattern, form(example), id=f"{pattern.slug}-{index}-{form.__name__}")
    for pattern in BY_SLUG.values()
    for index, example in enumerate(pattern.examples)
    for form in (replace, fold_bn)
]


def feed(model: onnx.ModelProto, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    tensor = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value or 9 for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return {"x": np.random.default_rng(seed).normal(size=shape).astype(dtype)}


def run(model: onnx.ModelProto, seed: int = 0) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed(model, seed))[0])


@pytest.mark.parametrize(("pattern", "example"), EXAMPLES)
def test_examples_build_and_run(pattern: Pattern, example: Example) -> None:
    model = build(pattern, example)
    topology = example.topology()
    kinds = Counter(op.kind for ops in (*topology.branches, topology.tail) for op in ops)
    nodes = Counter(node.op_type for node in model.graph.node)
    assert (nodes["Conv"], nodes["BatchNormalization"]) == (kinds["conv"], kinds["bn"])
    assert (nodes["AveragePool"], nodes["Pad"], nodes["Slice"]) == (
        kinds["avgpool"],
        kinds["pad"],
        kinds["slice"],
    )
    joins = len(topology.branches) - 1
    # A Sub is a join and a negation in one.
    computed = sum(op.computed for ops in topology.branches for op in ops)  # Mul, Mul and Add
    assert nodes.total() == kinds.total() + joins + 2 + 3 * computed - nodes["Sub"] * (kinds["neg"] > 0)
    first, second = run(model, 0), run(model, 1)
    extents = [-(-(extent - 2 * example.crop) // example.stride) for extent in feed(model)["x"].shape[2:]]
    assert first.shape == (1, example.channels[1], *extents)
    assert np.isfinite(first).all()
    assert 0.1 < first.std() < 5
    assert np.abs(first - second).max() > 0.1


SMALL = BY_SLUG["repvgg"].examples[0]


def block(**options: Any) -> onnx.ModelProto:
    return build(BY_SLUG["repvgg"], SMALL, **options)


def test_spellings_of_the_same_block_agree() -> None:
    expected = run(block())
    np.testing.assert_array_equal(run(block(constants="node")), expected)
    np.testing.assert_allclose(run(block(join="Sum")), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(block(dtype=np.float16)), expected, rtol=0, atol=0.05)
    exact = block(dtype=np.float64)
    evaluator: Any = ReferenceEvaluator(exact)
    np.testing.assert_allclose(evaluator.run(None, feed(exact))[0], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(run(block(seed=1)) - expected).max() > 0.1
    assert not block(constants="node").graph.initializer


def test_a_subtracted_branch_is_the_second_operand_of_a_sub_or_negated() -> None:
    pattern = BY_SLUG["parallel_kernels"]
    example = replace(SMALL, branches=("conv3x3 bn", "conv1x1 bn neg"))
    assert [n.op_type for n in build(pattern, example).graph.node].count("Sub") == 1
    np.testing.assert_allclose(
        run(build(pattern, example, join="Sum")), run(build(pattern, example)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_opsets(opset: int) -> None:
    model = block(opset=opset)
    assert model.opset_import[0].version == opset
    np.testing.assert_allclose(run(model), run(block()), rtol=1e-5, atol=1e-6)


def test_symbolic_extents_and_several_blocks() -> None:
    model = block(batch="n", extents=("h", "w"), repeat=3)
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims][:2] == ["n", 8]
    assert run(model).shape == (9, 8, 9, 9)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 6


def test_a_stride_needs_a_kernel_in_every_branch() -> None:
    with pytest.raises(ValueError, match="cannot have a stride"):
        build(BY_SLUG["repvgg"], replace(SMALL, stride=2))
