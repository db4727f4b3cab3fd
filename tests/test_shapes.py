"""What shape inference is asked, and when it is kept from following the elements of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import model, node

from repfuse.model import shapes

ELEMENTS = 2**21
"""So long a vector is not followed."""


@pytest.mark.parametrize(
    ("op_type", "operands", "extents", "follows"),
    [
        pytest.param("Expand", ["x", "numbers"], [7], [True], id="short"),
        pytest.param("Expand", ["x", "numbers"], [ELEMENTS], [False, False], id="long"),
        pytest.param("ConstantOfShape", ["numbers"], [3, 4], [True], id="of a shape"),
        pytest.param("Pad", ["x", "numbers"], [0, ELEMENTS], [False, False], id="padded"),
        pytest.param("Tile", ["x", "numbers"], [2], [False, True], id="which depends on what is repeated"),
    ],
)
def test_elements_are_followed_if_no_vector_is_long(
    monkeypatch: pytest.MonkeyPatch,
    op_type: str,
    operands: list[str],
    extents: list[int],
    follows: list[bool],
) -> None:
    asked: list[bool] = []
    infer = onnx.shape_inference.infer_shapes

    def spy(proto: onnx.ModelProto, data_prop: bool = False, **given: Any) -> onnx.ModelProto:
        asked.append(data_prop)
        return infer(proto, data_prop=data_prop, **given)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", spy)
    numbers = np.array(extents, np.int64)
    made = model([node(op_type, operands, ["y"])], {"x": [1]}, ["y"], {"numbers": numbers})
    shape = shapes.infer(made).shape_of("y")
    assert shape is not None
    assert shape[-1] in (extents[-1], extents[-1] + 1)
    assert asked == follows
