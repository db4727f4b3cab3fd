"""How well weights survive int8, by hand and on real blocks."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import repfuse
from repfuse.measures.int8 import BAD, LEVELS, BlockNoise, WeightNoise, compare, noise
from repfuse.remarks import Edit


def test_a_step_for_each_channel() -> None:
    weight = np.array([[127.0, 1.3], [12.7, 0.13]])  # steps of 1 and of 0.1
    lost = 0.3**2 + 0.03**2
    assert noise([weight]).per_channel == pytest.approx(10 * math.log10(np.sum(weight**2) / lost))


def test_a_step_for_each_tensor() -> None:
    weight = np.array([[127.0, 1.3], [12.7, 0.13]])
    lost = 0.3**2 + 0.3**2 + 0.13**2  # 12.7 becomes 13, 0.13 becomes 0
    assert noise([weight]).per_tensor == pytest.approx(10 * math.log10(np.sum(weight**2) / lost))


def test_ranges_of_channels() -> None:
    found = noise([np.array([[1.0, -3.0], [0.0, 0.0], [0.5, 0.25]]), np.array([[7.0]])])
    assert (found.least, found.largest) == (0.5, 7.0)


def test_what_lies_on_the_grid_loses_nothing() -> None:
    assert noise([np.arange(-LEVELS, LEVELS + 1.0)[None]]).per_channel == math.inf
    assert noise([np.zeros((2, 3))]).per_channel == math.inf
    assert noise([]) == WeightNoise(math.inf, math.inf, 0, 0)


def test_rounding_noise_is_uniform() -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (64, 4096))
    step = 1 / LEVELS
    assert noise([weight]).per_channel == pytest.approx(10 * math.log10((1 / 3) / (step**2 / 12)), abs=0.05)


EDIT = Edit("RepVGG", "", "x", "y", (), (), "")


@pytest.mark.parametrize(
    ("before", "after", "bad"),
    [
        (42, 26, True),
        (42, BAD + 0.1, False),
        (BAD - 1, BAD - 2, False),
        (26, 42, False),
        (math.inf, 26, True),
        (math.inf, math.inf, False),
    ],
)
def test_what_is_bad_is_low_and_was_better(before: float, after: float, bad: bool) -> None:
    sides = [WeightNoise(each, each, 0, 1) for each in (before, after)]
    assert BlockNoise(EDIT, *sides).bad is bad


def block(scale: float) -> onnx.ModelProto:
    """3x3 and a BatchNormalization of the source: RepVGG without its 1x1; `scale` is the identity's."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(0, 0.01, (64, 64, 3, 3)),
        "s": np.linspace(1, 4, 64),
        "i": np.full(64, scale),
        "z": np.zeros(64),
        "o": np.ones(64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "s", "z", "z", "o"], ["b"], "norm", epsilon=0.0),
        helper.make_node("BatchNormalization", ["x", "i", "z", "z", "o"], ["c"], "identity", epsilon=0.0),
        helper.make_node("Add", ["b", "c"], ["y"], "join"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 8, 8]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_normalization_is_folded_in_before() -> None:
    model = block(1)
    result = repfuse.fuse(model)
    (found,) = compare(model, result.model, result.edits)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    folded = noise([weights["w"].astype(np.float64) * weights["s"].astype(np.float64).reshape(-1, 1, 1, 1)])
    assert found.before.per_channel == pytest.approx(folded.per_channel)
    assert found.before.per_tensor == pytest.approx(folded.per_tensor)
    assert found.before.per_tensor < noise([weights["w"]]).per_tensor  # which would be the noise without it
    merged = next(t for t in result.model.graph.initializer if t.dims[2:] == [3, 3])
    assert found.after == noise([numpy_helper.to_array(merged)])


@pytest.mark.parametrize(("scale", "bad"), [(0.01, False), (1, True)])
def test_a_large_identity_makes_a_kernel_bad(scale: float, bad: bool) -> None:
    model = block(scale)
    result = repfuse.fuse(model)
    (found,) = compare(model, result.model, result.edits)
    assert found.bad is bad
    assert (found.lost > 10) is bad
