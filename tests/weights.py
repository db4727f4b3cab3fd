"""Fixtures whose weights were left out, and drawing them again.

`tools/export_zoo.py --strip` leaves a model its whole graph, and of each large float tensor only how it was
distributed. `load` draws the tensors again, with a seed, so that a small file gives the same full-size model
everywhere. A deep network with random weights tends to give one answer whatever it is shown, and then any two
models agree; so the drawn model is conditioned: node by node, on image-like inputs, Conv and Gemm are
rescaled and BatchNormalization gets the statistics of its data, until each channel's mean is near 0 and its
deviation near 1.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

STRIPPED = "stripped_weights"
Array = npt.NDArray[Any]


def load(path: str | os.PathLike[str], seed: int = 0) -> onnx.ModelProto:
    """Load a model, with its weights drawn again if they were left out."""
    model = onnx.load(path)
    for entry in [e for e in model.metadata_props if e.key == STRIPPED]:
        _draw(model, json.loads(entry.value), seed)
        model.metadata_props.remove(entry)
        _Conditioner(model, np.random.default_rng(seed)).run()
    return model


def images(count: int, shape: Sequence[int], seed: int = 0) -> Array:
    """Draw images (count, *shape) of float32; `shape` is channels, height, width.

    Blobs of several sizes, each image with its own contrast and colour cast: white noise looks alike to a
    deep network after pooling.
    """
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    total = rng.normal(0, 0.3, (count, *shape))
    for cells in (2, 4, 8, 16, 32):
        rows, columns = min(cells, height), min(cells, width)
        coarse = rng.normal(0, 1, (count, channels, rows, columns)) * rng.uniform(0.2, 0.8, (count, 1, 1, 1))
        total += _stretch(height, rows) @ coarse @ _stretch(width, columns).T
    total *= rng.uniform(0.5, 1.5, (count, 1, 1, 1))
    return (total + rng.normal(0, 0.5, (count, channels, 1, 1))).astype(np.float32)


def _stretch(extent: int, cells: int) -> Array:
    """The matrix (extent, cells) of linear interpolation."""
    places = np.linspace(0, cells - 1, extent)[:, None]
    hats: Array = np.maximum(0, 1 - np.abs(places - np.arange(cells)))
    return hats


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _draw(model: onnx.ModelProto, facts: dict[str, list[float]], seed: int) -> None:
    for name, tensor in _tensors(model.graph):
        if name in facts:
            mean, std, low, high = facts[name]
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            drawn = np.clip(rng.normal(mean, std, tuple(tensor.dims)), low, high)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.raw_data = numpy_helper.from_array(drawn.astype(dtype)).raw_data


@dataclass
class _Conditioner:
    """Runs a model node by node on a few images, and sets each node's weights before going on.

    For models with static shapes and without subgraphs.
    """

    model: onnx.ModelProto
    rng: np.random.Generator
    constants: dict[str, onnx.TensorProto] = field(init=False)
    uses: Counter[str] = field(init=False)
    values: list[dict[str, Array]] = field(init=False)  # every tensor's value so far, for each image

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.constants = dict(_tensors(graph))
        self.uses = Counter(name for node in graph.node for name in node.input)
        shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
        known = {name: numpy_helper.to_array(tensor) for name, tensor in self.constants.items()}
        self.values = [{**known, graph.input[0].name: image[None]} for image in images(3, shape[1:], seed=7)]

    def run(self) -> None:
        for node in self.model.graph.node:
            if node.op_type == "BatchNormalization":
                mean, std = self._statistics(node.input[0])
                self._write(node.input[3], mean)
                self._write(node.input[4], std**2)
            if node.op_type != "Constant":
                self._compute(node)
            if node.op_type in ("Conv", "Gemm") and self._owns(node.input[1]):
                self._rescale(node)
                self._compute(node)

    def _owns(self, name: str) -> bool:
        """Whether a tensor is a constant that one node alone reads."""
        return name in self.constants and self.uses[name] == 1

    def _rescale(self, node: onnx.NodeProto) -> None:
        mean, std = self._statistics(node.output[0])
        weight = self.values[0][node.input[1]]
        columns = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        self._write(node.input[1], weight / (std if columns else std.reshape(-1, *[1] * (weight.ndim - 1))))
        if len(node.input) > 2 and self._owns(node.input[2]):
            self._write(node.input[2], (self.values[0][node.input[2]] - mean) / std)

    def _statistics(self, name: str) -> tuple[Array, Array]:
        """Mean and deviation of each channel, jittered, the mean below what it is.

        So channels come out a little above zero: centred ones make rounding errors grow with each ReLU.
        """
        y = np.stack([each[name] for each in self.values]).astype(np.float64)
        axes = (0, 1, *range(3, y.ndim))
        mean, std = y.mean(axes), y.std(axes)
        if y.size < 100 * std.size:  # too few values for statistics of each channel
            mean, std = np.full_like(mean, y.mean()), np.full_like(std, y.std())
        std = np.maximum(std, 0.3 * std.mean() + 1e-6) * self.rng.uniform(0.8, 1.25, std.size)
        return mean + self.rng.normal(-0.3, 0.1, std.size) * std, std

    def _write(self, name: str, array: Array) -> None:
        tensor = self.constants[name]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype), tensor.name))
        for each in self.values:
            each[name] = numpy_helper.to_array(tensor)

    def _compute(self, node: onnx.NodeProto) -> None:
        names = list(dict.fromkeys(name for name in node.input if name))
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in ((n, self.values[0][n]) for n in names)
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "node", inputs, outputs)
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=10)
        session = run_session(model, optimize=False)
        for each in self.values:
            each.update(zip(node.output, session.run(None, {n: each[n] for n in names}), strict=True))


def run_session(model: onnx.ModelProto, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """Open a model on ONNX Runtime's CPU backend, with one thread and without chatter."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
