"""What fusing does to later int8 quantization: makes the figures of docs/quantization.md.

Each model is quantized by ONNX Runtime's static quantization (QDQ, int8 activations and weights), as it is and
fused, with a step for each channel and with one for each tensor; outputs are held against the float original's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

import repfuse
from repfuse.measures.int8 import LEVELS, compare
from repfuse.runtimes.backends import Array
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.ort import OnnxRuntime

Feeds = Mapping[str, Array]


class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands inputs out one by one."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Any:
        """The next inputs; None when there are no more."""
        return next(self._feeds, None)


def quantized(model: Path, folder: Path, feeds: Sequence[Feeds], *, per_channel: bool) -> Path:
    """Quantize a model statically."""
    ready, made = folder / f"{model.stem}.ready.onnx", folder / f"{model.stem}.{per_channel}.onnx"
    quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(ready),
        str(made),
        Calibration(feeds),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return made


def rounded(model: Path, folder: Path, *, per_channel: bool) -> Path:
    """Round the weights of each Conv to int8, as a quantizer would, and leave all else in float."""
    ready, made = folder / f"{model.stem}.ready.onnx", folder / f"{model.stem}.{per_channel}.rounded.onnx"
    quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)  # which folds normalization in
    whole = onnx.load(ready)
    weights = {node.input[1] for node in whole.graph.node if node.op_type == "Conv"}
    for tensor in whole.graph.initializer:
        if tensor.name in weights:
            values = onnx.numpy_helper.to_array(tensor)
            axes = tuple(range(1, values.ndim)) if per_channel else None
            step = np.maximum(np.abs(values).max(axis=axes, keepdims=True), 1e-30) / LEVELS
            tensor.CopyFrom(onnx.numpy_helper.from_array((np.round(values / step) * step), tensor.name))
    onnx.save(whole, made)
    return made


def outputs(model: Path, feeds: Sequence[Feeds]) -> Array:
    """All of a model's outputs on all inputs, one row for each, less what all inputs have in common."""
    session = OnnxRuntime().load(model, threads=1)
    rows = np.stack([np.concatenate([each.ravel() for each in session.run(feed).values()]) for feed in feeds])
    return np.asarray(rows - rows.mean(axis=0), np.float64)


def ratio(signal: Array, other: Array) -> float:
    """The signal-to-noise ratio of `other`, in dB."""
    lost = float(np.sum((signal - other) ** 2))
    return 10 * math.log10(float(np.sum(signal**2)) / lost) if lost else math.inf


def weight_lines(model: Path, result: repfuse.FuseResult) -> Iterator[str]:
    """How well weights survive."""
    noises = compare(onnx.load(model), result.model, result.edits)
    if not noises:
        return
    sides = [
        [(each.per_channel, each.per_tensor) for each in side]
        for side in zip(*((n.before, n.after) for n in noises), strict=True)
    ]
    for number, title in enumerate(("channel", "tensor")):
        before, after = ([each[number] for each in side] for side in sides)
        yield row(
            model,
            f"weights of blocks, a step for each {title}: median",
            map(statistics.median, (before, after)),
        )
        yield row(model, f"weights of blocks, a step for each {title}: worst", map(min, (before, after)))
    yield f"| {model.stem} | blocks that quantize badly | | {sum(n.bad for n in noises)} of {len(noises)} |"


def output_lines(model: Path, result: repfuse.FuseResult, count: int, folder: Path) -> Iterator[str]:
    """How well outputs survive, and what becomes of a model that is quantized first."""
    feeds = make_inputs(model, count=2 * count, seed=0)
    calibration, held_out = feeds[:count], feeds[count:]
    fused = folder / "fused.onnx"
    onnx.save(result.model, fused)
    signal = outputs(model, held_out)
    for per_channel, title in ((True, "channel"), (False, "tensor")):
        made = [rounded(path, folder, per_channel=per_channel) for path in (model, fused)]
        figures = (ratio(signal, outputs(path, held_out)) for path in made)
        yield row(model, f"outputs, weights alone in int8, a step for each {title}", figures)
        made = [quantized(path, folder, calibration, per_channel=per_channel) for path in (model, fused)]
        yield row(
            model,
            f"outputs, all in int8, a step for each {title}",
            (ratio(signal, outputs(path, held_out)) for path in made),
        )
        speed = repfuse.benchmark(*made, backend="ort")
        yield f"| {model.stem} | int8, a step for each {title}: speed-up by fusing | | {speed.ratio:.2f}x |"
        again = repfuse.fuse(made[0])
        same = again.model.SerializeToString() == onnx.load(made[0]).SerializeToString()
        left = "unchanged" if same else "changed"
        yield f"| {model.stem} | int8 first, then repfuse | | {len(again.edits)} fused, {left} |"


def row(model: Path, what: str, figures: Any) -> str:
    before, after = figures
    return f"| {model.stem} | {what} | {before:.1f} dB | {after:.1f} dB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx", help="float models, not fused")
    parser.add_argument(
        "--count", type=int, default=8, help="inputs to calibrate with, and as many to compare on"
    )
    parser.add_argument("--weights", action="store_true", help="measure weights only, and run nothing")
    arguments = parser.parse_args()
    print("| model | | before | after |\n|---|---|---|---|")
    for model in arguments.models:
        result = repfuse.fuse(model)
        print(*weight_lines(model, result), sep="\n", flush=True)
        if not arguments.weights:
            with tempfile.TemporaryDirectory() as folder:
                for line in output_lines(model, result, arguments.count, Path(folder)):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
