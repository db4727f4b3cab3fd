"""Half precision: a fused block is no farther from the truth than the block was, or it is refused.

The truth is what the model's own weights give in float64. A runtime is imitated that computes each node exactly and
rounds its result to the type, as runtimes with a wide accumulator do.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
from blocks import build, fold_bn
from graphs import Array, model, node
from nets import Net
from onnx import ModelProto, TensorProto, numpy_helper
from proof import TOLERANCE, difference

from repfuse import fuse
from repfuse.families.patterns import load_patterns
from repfuse.proof.part import Part, wide

HALF = {"float16": (np.dtype(np.float16), 17), "bfloat16": (np.dtype(ml_dtypes.bfloat16), 22)}


def output(proto: ModelProto, feeds: Mapping[str, Array], rounded: np.dtype[np.generic] | None) -> Array:
    """A model's output, with each tensor rounded to a type on the way; in float64 all along if that is None."""
    known = {tensor.name: wide(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
    known.update({name: wide(value) for name, value in feeds.items()})
    for each in proto.graph.node:
        inputs = {name: known[name] for name in each.input if name}
        for name, value in Part([each], {}, proto.opset_import).run(inputs).items():
            known[name] = wide(value.astype(rounded)) if rounded else value
    return known[proto.graph.output[0].name]


def errors(proto: ModelProto, dtype: np.dtype[np.generic], seed: int) -> list[tuple[float, float]] | None:
    """The mean and the largest error before fusing and after; None where nothing is fused."""
    result = fuse(proto)
    if not result.changed:
        return None
    (entry,) = proto.graph.input
    shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    feeds = {entry.name: np.random.default_rng(seed).normal(size=shape).astype(dtype)}
    truth = output(proto, feeds, None)
    apart = [np.abs(output(each, feeds, dtype) - truth) for each in (proto, result.model)]
    return [(float(each.mean()), float(each.max())) for each in apart]


@pytest.mark.parametrize("kind", HALF)
def test_blocks_are_no_farther_from_the_truth_than_before(kind: str) -> None:
    """In one block it may be: `x + conv(x)` needs 1 + w in one weight. Over all, fusing saves roundings.

    Rounding the merged weights moves an output about as far as rounding the output itself, once, so the error grows
    by the root of 2 at most: where the block rounded little else before, all branches but one being small.
    """
    dtype, opset = HALF[kind]
    blocks = [
        build(pattern, form(example), dtype=dtype, opset=opset)
        for pattern in load_patterns()
        for example in pattern.examples
        for form in (lambda example: example, fold_bn)
    ]
    draws = [[found for seed in range(3) if (found := errors(block, dtype, seed))] for block in blocks]
    means = np.array([np.mean(found, axis=0) for found in draws if found])
    assert len(means) > 100
    ratios = means[:, 1] / means[:, 0]  # each block: of the mean error, of the largest one
    assert np.all(np.exp(np.log(ratios).mean(axis=0)) < 0.9)
    assert np.all(ratios[:, 0] < np.sqrt(2))
    assert np.mean(ratios[:, 0] > 1.1) < 0.1


def tiny(scale: float, shift: float = 0.0, kind: type[np.generic] = np.float16) -> ModelProto:
    """Two branches, each a Conv and a normalization that makes it that small."""
    random = np.random.default_rng(0)
    constants: dict[str, Array] = {f"w{k}": random.normal(0, 0.05, (8, 8, k, k)) for k in (1, 3)}
    constants |= {"s": np.full(8, scale), "b": np.full(8, shift), "m": np.zeros(8), "v": np.ones(8)}
    nodes = [
        node("Conv", ["x", "w3"], ["c3"], pads=[1, 1, 1, 1]),
        node("Conv", ["x", "w1"], ["c1"]),
        *(node("BatchNormalization", [f"c{k}", "s", "b", "m", "v"], [f"b{k}"]) for k in (1, 3)),
        node("Add", ["b1", "b3"], ["y"]),
    ]
    return model(nodes, {"x": (1, 8, 6, 6)}, ["y"], constants, dtype=kind)


def test_weights_that_half_precision_has_no_digits_for_are_refused() -> None:
    result = fuse(tiny(1e-5))
    assert not result.changed
    (remark,) = result.remarks
    assert remark.message == "its merged weight would lose precision in float16"
    assert remark.saving is not None
    assert 0.2 < remark.saving < 0.8


def test_it_is_right_to_refuse_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repfuse.rewriting.derive._underflows", lambda *_: False)
    found = errors(tiny(1e-5), np.dtype(np.float16), 0)
    assert found
    (mean, _), (fused_mean, _) = found
    assert fused_mean > 2 * mean


@pytest.mark.parametrize(
    "proto",
    [tiny(1.0), tiny(1e-2), tiny(1e-5, shift=0.5), tiny(1e-12), tiny(1e-5, kind=np.float32)],
    ids=["normal", "small", "beside a bias", "pruned", "float32"],
)
def test_where_nothing_is_lost_that_was_there_they_are_fused(proto: ModelProto) -> None:
    dtype = np.dtype(np.float16 if proto.graph.input[0].type.tensor_type.elem_type != 1 else np.float32)
    found = errors(proto, dtype, 0)
    assert found
    (mean, _), (fused_mean, _) = found
    assert fused_mean <= 1.3 * mean


@pytest.mark.parametrize("first", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_each_block_of_a_mixed_model_keeps_its_own_type(first: int) -> None:
    second = TensorProto.FLOAT16 if first == TensorProto.FLOAT else TensorProto.FLOAT
    net = Net(dtype=first)
    value = net.node("Cast", net.node("Relu", net.repvgg(net.x)), to=second)
    net.dtype = second
    value = net.node("Cast", net.node("Relu", net.repvgg(value)), to=first)
    net.dtype = first
    proto = net.model(value)
    result = fuse(proto)
    assert len(result.edits) == 2
    assert difference(proto, result.model) < TOLERANCE[TensorProto.FLOAT16]
    types = [tensor.data_type for tensor in result.model.graph.initializer if ".weight" in tensor.name]
    assert sorted(types) == sorted([first, second])
