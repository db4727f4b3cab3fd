"""Quantized models, as ONNX Runtime makes them, come out as they went in, with one remark that says why."""

from __future__ import annotations

import functools
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import weights
from commandline import FAST, enter_folder, repfuse
from graphs import Array
from nets import Net
from onnx import TensorProto, numpy_helper
from onnxruntime import quantization
from proof import counts, prove

from repfuse import Outcome

MODEL = Path(__file__).parent / "models" / "repvgg_a0-narrow.ts.onnx"
KINDS = {
    "QDQ": ("DequantizeLinear", "QuantizeLinear"),
    "QOperator": ("QLinearConv", "QLinearAdd"),
    "dynamic": ("ConvInteger", "DynamicQuantizeLinear"),
}


class Samples(quantization.CalibrationDataReader):
    """Two pictures to calibrate with."""

    def __init__(self, model: onnx.ModelProto) -> None:
        (entry,) = model.graph.input
        shape = [dim.dim_value or 1 for dim in entry.type.tensor_type.shape.dim]
        self._rest = [{entry.name: image[None]} for image in weights.images(2, shape[1:], seed=1)]

    def get_next(self) -> dict[str, Array] | None:
        return self._rest.pop() if self._rest else None


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> functools.partial[Path]:
    folder = tmp_path_factory.mktemp("quantized")
    model = weights.load(MODEL)
    onnx.save(model, folder / "float.onnx")

    @functools.cache
    def make(kind: str) -> Path:
        source, target = folder / "float.onnx", folder / f"{kind}.onnx"
        logging.disable(logging.WARNING)  # it recommends to prepare the model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "dynamic":
                quantization.quantize_dynamic(source, target)
            else:
                form = quantization.QuantFormat[kind]
                quantization.quantize_static(source, target, Samples(model), quant_format=form)
        logging.disable(logging.NOTSET)
        return target

    return functools.partial(make)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_is_left_alone_with_one_remark(
    quantized: functools.partial[Path], kind: str
) -> None:
    if kind == "dynamic" and onnxruntime.__version__.startswith(("1.20", "1.21", "1.22", "1.23")):
        pytest.skip("ONNX Runtime before 1.24 cannot run what it makes of this")
    model = onnx.load(quantized(kind))
    assert set(KINDS[kind]) <= counts(model).keys()
    result = prove(model)
    assert not result.changed
    (remark,) = result.remarks
    assert remark.outcome is Outcome.REFUSED
    assert "computes on quantized values" in remark.message
    assert "fuse the float model and quantize afterwards" in remark.message
    for op_type in KINDS[kind]:
        assert f"{counts(model)[op_type]} {op_type}" in remark.message or op_type == "DequantizeLinear"
    assert f"'{remark.blocker.split(chr(39))[1]}'" in remark.node


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_copies_it_byte_for_byte(
    quantized: functools.partial[Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_folder(tmp_path, monkeypatch)
    source = quantized(kind)
    result = repfuse(str(source), "out.onnx", *FAST)
    assert (result.exit_code, result.stdout.count("quantized values")) == (0, 1)
    assert Path("out.onnx").read_bytes() == source.read_bytes()


def test_what_is_float_beside_it_is_fused_and_told_apart() -> None:
    """The stem is quantized, the rest is not."""
    net = Net(dtype=TensorProto.FLOAT)
    net.initializers["zero"] = numpy_helper.from_array(np.array(128, np.uint8), "zero")
    scale = net.constant(np.array(0.05))
    value = net.node("DequantizeLinear", net.node("QuantizeLinear", net.x, scale, "zero"), scale, "zero")
    result = prove(net.model(net.repvgg(value)))
    assert result.changed
    assert [remark.outcome for remark in result.remarks] == [Outcome.FUSED]
