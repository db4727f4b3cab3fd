"""Weights that are stored quantized in a float graph: merged with others exactly, or left as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from nets import Net
from onnx import TensorProto, helper, numpy_helper
from proof import counts, prove, refusal

from repfuse.proof.blockcheck import LIMIT, check_blocks

PER_TENSOR: dict[str, Any] = {}
PER_CHANNEL = {"axis": 0}
BLOCKED = {"axis": 1, "block_size": 2}


class QuantizedNet(Net):
    """A net of float32 with weights of another type."""

    def __init__(self, opset: int, kind: int = TensorProto.INT8, layout: dict[str, Any] = PER_TENSOR) -> None:
        super().__init__(dtype=TensorProto.FLOAT, opset=opset, ir=10 if opset > 18 else 8)
        self._kind = kind
        self._layout = layout

    def stored(self, *shape: int) -> str:
        """A DequantizeLinear of a weight."""
        scales: list[int] = []
        if self._layout:
            axis, size = self._layout["axis"], self._layout.get("block_size", 0)
            scales = (
                [-(-n // size) if i == axis else n for i, n in enumerate(shape)] if size else [shape[axis]]
            )
        operands = [self._quantized(0, 8, shape), self.constant(self.random.uniform(0.02, 0.1, scales))]
        if self._kind != TensorProto.FLOAT8E4M3FN:
            operands.append(self._quantized(0, 4, scales))
        return self.node("DequantizeLinear", *operands, **self._layout)

    def _quantized(self, low: int, high: int, shape: Any) -> str:
        name = f"quantized_{len(self.initializers)}"
        values = self.random.integers(low, high, shape)
        values = np.asarray(values, np.float32).astype(helper.tensor_dtype_to_np_dtype(self._kind))
        self.initializers[name] = numpy_helper.from_array(values, name)
        return name

    def branches(self, x: str) -> str:
        """RepVGG's."""
        three = self.node("Conv", x, self.stored(4, 4, 3, 3), pads=[1] * 4)
        return self.add(self.bn(three), self.bn(self.node("Conv", x, self.stored(4, 4, 1, 1))), self.bn(x))


@pytest.mark.parametrize(
    ("opset", "kind", "layout"),
    [
        (10, "INT8", PER_TENSOR),
        (10, "UINT8", PER_TENSOR),
        (13, "INT8", PER_CHANNEL),
        (17, "UINT8", PER_CHANNEL),
        (19, "INT8", PER_CHANNEL),
        (19, "FLOAT8E4M3FN", PER_CHANNEL),
        (21, "INT4", PER_CHANNEL),
        (21, "UINT4", BLOCKED),
        (21, "INT8", BLOCKED),
        (23, "INT8", PER_TENSOR),
    ],
)
def test_branches_of_quantized_weights_become_one_conv(opset: int, kind: str, layout: dict[str, Any]) -> None:
    net = QuantizedNet(opset, getattr(TensorProto, kind), layout)
    model = net.model(net.branches(net.x))
    result = prove(model)
    assert counts(result.model) == {"Conv": 1}
    (edit,) = result.edits
    assert edit.pattern == "RepVGG"
    assert edit.kernel == "3x3 4->4, with floats in place of quantized weights"
    (check,) = check_blocks(model, result)
    assert check.error_ulp is not None
    assert check.error_ulp <= LIMIT


def test_a_quantized_weight_is_merged_with_one_of_floats() -> None:
    net = QuantizedNet(17)
    y = net.add(net.node("Conv", net.x, net.stored(4, 4, 3, 3), pads=[1] * 4), net.conv(net.x, 1))
    assert counts(prove(net.model(y)).model) == {"Conv": 1}


def test_a_quantized_bias_is_merged() -> None:
    net = QuantizedNet(17)
    y = net.add(net.node("Conv", net.x, net.stored(4, 4, 1, 1), net.stored(4)), net.conv(net.x))
    assert counts(prove(net.model(y)).model) == {"Conv": 1}


@pytest.mark.parametrize("op_type", ["Gemm", "MatMul", "ConvTranspose"])
def test_other_operators_have_quantized_weights(op_type: str) -> None:
    net = QuantizedNet(17, layout=PER_CHANNEL)
    if op_type == "Gemm":
        rows = net.node("Flatten", net.node("GlobalAveragePool", net.x))
        y = net.add(*(net.node("Gemm", rows, net.stored(3, 4), transB=1) for _ in range(2)))
        y = net.node("Reshape", y, net.integers(1, 3, 1, 1))
    elif op_type == "MatMul":
        y = net.add(*(net.node("MatMul", net.x, net.stored(6, 5)) for _ in range(2)))
    else:
        pointwise = net.node("Conv", net.x, net.stored(4, 4, 1, 1))
        y = net.node("ConvTranspose", pointwise, net.stored(4, 2, 2, 2), strides=[2, 2])
    after = counts(prove(net.model(y)).model)
    assert after[op_type] == 1
    assert not after.keys() & {"Add", "Conv", "DequantizeLinear"}


def test_a_weight_is_not_made_larger_for_a_scale_alone() -> None:
    net = QuantizedNet(17)
    y = net.bn(net.node("Conv", net.x, net.stored(4, 4, 3, 3), pads=[1] * 4))
    result = prove(net.model(y))
    assert not result.changed
    assert "no other weight merged into it" in refusal(result, y).message


def test_nor_for_an_identity() -> None:
    net = QuantizedNet(17)
    result = prove(net.model(net.add(net.node("Conv", net.x, net.stored(4, 4, 1, 1)), net.x)))
    assert not result.changed


def test_one_that_is_alone_stays_where_others_are_merged() -> None:
    net = QuantizedNet(17)
    alone = net.node("Conv", net.node("Relu", net.branches(net.x)), net.stored(4, 4, 1, 1))
    model = net.model(net.bn(net.node("Relu", net.bn(alone))))
    result = prove(model)
    assert {"Conv": 2, "DequantizeLinear": 1}.items() <= counts(result.model).items()
    stored = {
        each.name: each for each in result.model.graph.initializer if each.data_type == TensorProto.INT8
    }
    assert stored == {name: each for name, each in _initializers(model).items() if name in stored}
    assert len(stored) == 2


@pytest.mark.parametrize("behind", [False, True])
def test_branches_of_quantized_values_stay(behind: bool) -> None:
    net = QuantizedNet(17)
    scale = net.constant(0.05)
    zero = net.node("Constant", value=numpy_helper.from_array(np.array(0, np.int8)))

    def rounded(x: str) -> str:
        return net.node("DequantizeLinear", net.node("QuantizeLinear", x, scale, zero), scale, zero)

    def branch(x: str, extent: int) -> str:
        y = net.node("Conv", x, net.stored(4, 4, extent, extent), pads=[extent // 2] * 4)
        return rounded(y) if behind else y

    x = net.x if behind else rounded(net.x)
    result = prove(net.model(net.add(branch(x, 3), branch(x, 1))))
    assert not result.changed
    assert any("computes on quantized values" in remark.message for remark in result.remarks)


def _initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {each.name: each for each in model.graph.initializer}
