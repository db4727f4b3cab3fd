"""What runs faster than ONNX's reference implementation computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_resize import Resize as ReferenceResize

from repfuse.proof import operators
from repfuse.proof.part import Part, UnrunnableError


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Conv", {"group": 2, "strides": [2, 1], "pads": [4, 0, 1, 9]}),
        ("Conv", {"dilations": [1, 2], "pads": [9, 9, 0, 1]}),
        ("Conv", {"auto_pad": "VALID", "group": 4}),
        ("Conv", {"auto_pad": "VALID", "group": 4, "strides": [3, 2], "dilations": [1, 2], "pads": [0] * 4}),
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ],
)
def test_faster_operators_compute_what_the_reference_computes(
    op_type: str, attributes: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    feeds = {"x": random.normal(size=(2, 4, 19, 15))}
    if op_type == "Conv":
        feeds["w"] = random.normal(size=(8, 4 // attributes.get("group", 1), 11, 5))
        feeds["b"] = random.normal(size=8)
    node = helper.make_node(op_type, list(feeds), ["y"], **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_empty_tensor_value_info(n) for n in feeds], [onnx.ValueInfoProto(name="y")]
    )
    imports = [helper.make_opsetid("", 19)]
    reference: Any = ReferenceEvaluator(helper.make_model(graph, opset_imports=imports))
    actual = Part([node], {}, imports).run(feeds)["y"]
    np.testing.assert_allclose(actual, reference.run(None, feeds)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factors", [(1.0, 2.0), (2.6, 0.7)], ids=str)
@pytest.mark.parametrize(
    "coordinates",
    ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"],
)
@pytest.mark.parametrize("mode", ["linear", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("told", ["scales", "sizes"])
def test_images_are_resized_as_the_reference_does(
    factors: tuple[float, float], coordinates: str, mode: str, told: str
) -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 3, 4))
    nearest = {"mode": "nearest", "nearest_mode": mode} if mode != "linear" else {"mode": mode}
    scales = np.float32([1, 1, *factors])
    inputs = (x, None, scales) if told == "scales" else (x, None, None, (x.shape * scales).astype(np.int64))
    attributes: dict[str, Any] = {"coordinate_transformation_mode": coordinates, **nearest}
    expected: Any = ReferenceResize.eval(*inputs, **attributes)
    actual: Any = operators.Resize.eval(*inputs, **attributes)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_images_were_enlarged_by_upsample_before() -> None:
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    node = helper.make_node("Upsample", ["x", "scales"], ["y"], mode="nearest")
    part = Part([node], {"scales": np.float32([1, 1, 2, 1])}, [helper.make_opsetid("", 9)])
    np.testing.assert_array_equal(part.run({"x": x})["y"], x.repeat(2, axis=2))
    node = helper.make_node("Upsample", ["x"], ["y"], mode="linear", scales=[1.0, 1.0, 2.0, 1.0])
    between = Part([node], {}, [helper.make_opsetid("", 8)]).run({"x": x})["y"]
    np.testing.assert_array_equal(between[0, 0, :, 0], [0, 1.5, 3, 3])


def test_images_may_be_convolved_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    feeds = {"x": random.normal(size=(3, 4, 9, 7)), "w": random.normal(size=(6, 2, 3, 2))}
    imports = [helper.make_opsetid("", 19)]
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    whole = Part([node], {}, imports).run(feeds)["y"]
    monkeypatch.setattr(operators, "_COLUMNS", 1)
    np.testing.assert_allclose(Part([node], {}, imports).run(feeds)["y"], whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("opset", [7, 9, 13, 14])
def test_batch_normalization_of_every_version_is_that_of_inference(opset: int) -> None:
    random = np.random.default_rng(0)
    feeds = {"x": random.normal(size=(2, 4, 5, 3))} | {n: random.uniform(0.5, 2, 4) for n in "sbmv"}
    node = helper.make_node("BatchNormalization", list(feeds), ["y"], epsilon=0.25)
    imports = [helper.make_opsetid("", opset)]
    s, b, m, v = (feeds[name].reshape(4, 1, 1) for name in "sbmv")
    expected = (feeds["x"] - m) / np.sqrt(v + 0.25) * s + b
    np.testing.assert_allclose(Part([node], {}, imports).run(feeds)["y"], expected, rtol=1e-12)
    if opset < 14:  # where further outputs are what tells training mode
        node.output.extend(["mean", "variance"])
        with pytest.raises(UnrunnableError, match="training mode"):
            Part([node], {}, imports).run(feeds)


def test_what_follows_from_constants_is_computed_in_their_own_type() -> None:
    nodes = [
        helper.make_node("Div", ["one", "three"], ["third"]),
        helper.make_node("Mul", ["x", "third"], ["y"]),
    ]
    constants = {"one": np.float32([1]), "three": np.float32([3])}
    part = Part.of(nodes, frozenset({"x"}), constants, [helper.make_opsetid("", 17)])
    assert [node.op_type for node in part.nodes] == ["Mul"]
    third = part.wide().run({"x": np.ones(1)})["y"]
    assert third.dtype == np.float64
    assert third == float(np.float32(1) / np.float32(3)) != 1 / 3
