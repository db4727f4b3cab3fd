"""What the zoo does to the ONNX files it has exported: count, strip, and remove this machine's paths."""

from __future__ import annotations

import json
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

STRIPPED = "stripped_weights"
"""The metadata key under which a stripped model keeps {tensor name: [mean, deviation, minimum, maximum]}."""

_KEPT = 64  # tensors of so few elements (shapes, axes, scalars) keep their data
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
_COUNTED = ("Conv", "BatchNormalization", "Add")


def count(model: onnx.ModelProto) -> dict[str, int]:
    """Count the nodes of the main graph (Constant and Identity aside), and those of three operators."""
    types = Counter(node.op_type for node in model.graph.node if node.op_type not in ("Constant", "Identity"))
    return {"nodes": types.total(), **{name: types[name] for name in _COUNTED}}


def anonymize(model: onnx.ModelProto) -> None:
    """Cut this machine's folders out of the stack traces that exporters leave in nodes, in place."""
    folders = [sysconfig.get_path(k) + "/" for k in ("purelib", "stdlib")] + [f"{Path(__file__).parents[1]}/"]
    for node in model.graph.node:
        for entry in node.metadata_props:
            for folder in folders:
                entry.value = entry.value.replace(folder, "")


def weights(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Name every tensor that a graph holds, by the name that nodes read it by."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def strip(model: onnx.ModelProto) -> None:
    """Remove the data of every large float tensor, in place, and note how it was distributed."""
    facts = {}
    for name, tensor in weights(model.graph):
        if tensor.data_type in _FLOATS and np.prod(tensor.dims, dtype=int) > _KEPT:
            x = numpy_helper.to_array(tensor).astype(np.float64)
            facts[name] = [float(f"{v:.6g}") for v in (x.mean(), x.std(), x.min(), x.max())]
            for field in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(field)
    model.metadata_props.add(key=STRIPPED, value=json.dumps(facts, separators=(",", ":")))
