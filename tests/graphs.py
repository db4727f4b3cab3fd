"""Small models for tests; what they and equivalent kernels compute by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.helper import make_node as node
from onnx.reference import ReferenceEvaluator

from repfuse.algebra import window
from repfuse.algebra.kernel import EquivalentKernel, zero_padded
from repfuse.graph.view import Scope, scopes

__all__ = ["apply", "constant_node", "conv_nodes", "draw", "main_scope", "model", "node", "run", "tensor"]

Array = npt.NDArray[Any]
Shape = Sequence[int | str | None]


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    constants: Mapping[str, npt.ArrayLike] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    dtype: npt.DTypeLike = np.float32,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model of a few nodes.

    Args:
        nodes: In topological order; `node` makes them.
        inputs: The shape of each input by name.
        outputs: Names of outputs, whose shapes are not declared.
        constants: Initializers by name. One that is also an input has a default that callers override.
        opset: The version of the default operator set.
        ir: The version of the format.
        dtype: The type of inputs, outputs and whatever constants are of a float type.
        functions: Model-local functions; their domains are imported.
    """
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [tensor(name, value, dtype) for name, value in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1) for domain in sorted({f.domain for f in functions})]
    return helper.make_model(graph, ir_version=ir, opset_imports=imports, functions=functions)


def tensor(name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> TensorProto:
    """An initializer; values of a float type become `dtype`."""
    array = np.asarray(value)
    return numpy_helper.from_array(array.astype(dtype) if array.dtype.kind == "f" else array, name)


def constant_node(name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> NodeProto:
    """A Constant node that computes `name`."""
    return node("Constant", [], [name], value=tensor(name, value, dtype))


def draw(*shape: int, seed: int = 0) -> Array:
    """Normally distributed numbers in float64: generic, so that what may differ does."""
    return np.random.default_rng(seed).normal(size=shape)


def run(proto: onnx.ModelProto, *feeds: Array) -> Array:
    """What a model's first output is for its inputs, in their order, by ONNX's reference evaluator."""
    names = [entry.name for entry in proto.graph.input]
    outputs: Any = ReferenceEvaluator(proto).run(None, dict(zip(names, feeds, strict=True)))
    return np.asarray(outputs[0])


def main_scope(proto: onnx.ModelProto) -> Scope:
    """A model's main graph, as repfuse searches it."""
    return scopes(proto)[0]


def conv_nodes(
    kernel: EquivalentKernel, source: str, target: str, channels: int, rank: int
) -> tuple[list[NodeProto], dict[str, Array]]:
    """A kernel as an Add, where zero is not what it finds outside, a Slice, where it crops, and a Conv.

    Returns the constants that these use, too.

    Args:
        kernel: The kernel.
        source: The tensor that it acts on.
        target: The tensor to compute.
        channels: How many channels the source has.
        rank: How many spatial axes the source has.
    """
    nodes = []
    constants = {}
    if kernel.window.shifted:
        constants[f"{target}.shift"] = -kernel.outside.reshape(-1, *(1,) * rank)
        nodes.append(node("Add", [source, f"{target}.shift"], [f"{target}.shifted"]))
        source = f"{target}.shifted"
        kernel = zero_padded(kernel, kernel.outside)
    axes = window.with_rank(kernel.window, rank).axes
    outputs, _ = kernel.window.channels or (channels, channels)
    group = kernel.window.group or channels
    taps = [axis.kernel for axis in axes]
    weight = kernel.weight.reshape(*kernel.weight.shape[:2], *taps)
    weight = np.broadcast_to(weight, (outputs, channels // group, *taps))
    constants |= {f"{target}.weight": weight, f"{target}.bias": np.broadcast_to(kernel.bias, (outputs,))}
    if any(min(axis.begin, axis.end) < 0 for axis in axes):
        constants[f"{target}.starts"] = np.array([max(0, -axis.begin) for axis in axes])
        constants[f"{target}.ends"] = np.array([axis.end if axis.end < 0 else 2**63 - 1 for axis in axes])
        constants[f"{target}.axes"] = np.arange(2, rank + 2)
        bounds = [f"{target}.{name}" for name in ("starts", "ends", "axes")]
        nodes.append(node("Slice", [source, *bounds], [f"{target}.cropped"]))
        source = f"{target}.cropped"
    conv = node(
        "Conv",
        [source, f"{target}.weight", f"{target}.bias"],
        [target],
        strides=[axis.stride for axis in axes],
        dilations=[axis.dilation for axis in axes],
        pads=[max(0, axis.begin) for axis in axes] + [max(0, axis.end) for axis in axes],
        group=group,
    )
    return [*nodes, conv], constants


def apply(kernel: EquivalentKernel, x: Array) -> Array:
    """What a kernel computes, in float64."""
    nodes, constants = conv_nodes(kernel, "x", "y", x.shape[1], x.ndim - 2)
    return run(model(nodes, {"x": x.shape}, ["y"], constants, dtype=np.float64), x)
