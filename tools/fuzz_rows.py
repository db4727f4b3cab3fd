"""Random rows of ops, without a join: kernels along axis 1 and along the last, among what moves and averages."""

from __future__ import annotations

import math
from collections.abc import Callable

import fuzz_ops as ops
from fuzz_graph import Graph, MisfitError


def row(graph: Graph) -> str:
    """A few ops in a row over a tensor of the pool, often with an activation at the end."""
    value: str = graph.pick(graph.pool[-3:])
    for _ in range(graph.number(2, 6)):
        if graph.values[value].ndim < 2:
            raise MisfitError("nothing but a batch is left")
        value = graph.pick(_OPS)(graph, value)
    return graph.add("Relu", [value]) if graph.chance(0.5) else value


def _matmul(graph: Graph, value: str) -> str:
    inputs = graph.values[value].shape[-1]
    outputs = inputs if graph.chance(0.5) else graph.pick([1, 2, 3, 5])
    weight = graph.random.normal(0, 1 / math.sqrt(inputs), (inputs, outputs))
    if graph.chance(0.03) and graph.values[value].shape[-2] == inputs:
        return graph.add("MatMul", [ops.constant(graph, weight.T), value])
    return graph.add("MatMul", [value, ops.constant(graph, weight)])


def _along_last(graph: Graph, value: str) -> str:
    count = graph.values[value].shape[-1]
    shape = graph.pick({(count,): 4, (1, count): 1, (1, 1, count): 1, (): 2, (count, 1): 0.2})
    vector = graph.random.uniform(0.5, 1.5, shape)
    operands = [value, ops.constant(graph, vector)]
    return graph.add(graph.pick(["Add", "Sub", "Mul", "Div"]), operands)


def _pointwise_conv(graph: Graph, value: str) -> str:
    shape = graph.values[value].shape
    if len(shape) < 3:
        raise MisfitError("a vector has no pixels")
    goal = ops.Goal(graph.pick([shape[1], 2, 4]), (1,) * (len(shape) - 2), (0,) * (len(shape) - 2))
    return graph.pick([ops.pointwise_conv, ops.conv])(graph, value, goal)


def _transposed_conv(graph: Graph, value: str) -> str:
    shape = graph.values[value].shape
    rank = len(shape) - 2
    if rank not in (1, 2) or max(shape[2:]) > 9:
        raise MisfitError("not for the evaluator, or too large")
    kernel = [graph.number(1, 3) for _ in range(rank)]
    outputs = graph.pick([1, 2, 4])
    weight = graph.random.normal(0, 1 / math.sqrt(shape[1]), (shape[1], outputs, *kernel))
    operands = [ops.constant(graph, weight)]
    if graph.chance(0.4):
        operands.append(ops.constant(graph, graph.random.normal(0, 0.5, outputs)))
    strides = [graph.number(1, 2) for _ in range(rank)]
    return graph.add("ConvTranspose", [value, *operands], strides=strides)


def _transpose(graph: Graph, value: str) -> str:
    rank = graph.values[value].ndim
    order = (
        [int(axis) for axis in graph.random.permutation(rank)]
        if graph.chance(0.3)
        else [0, *range(2, rank), 1]
    )
    return graph.add("Transpose", [value], perm=order)


def _reshape(graph: Graph, value: str) -> str:
    shape = list(graph.values[value].shape)
    forms = [[shape[0], shape[1], -1], [-1, shape[-1]], [shape[0], -1], [0, 0, -1]]
    forms += [[*shape[:-1], 2, shape[-1] // 2]] if shape[-1] % 2 == 0 else []
    forms += [[*shape, 1, 1]] if len(shape) == 2 else []
    return graph.add("Reshape", [value, graph.integers(graph.pick(forms))])


def _mean(graph: Graph, value: str) -> str:
    rank = graph.values[value].ndim
    if rank > 2 and graph.chance(0.6):
        return graph.add("GlobalAveragePool", [value])
    if graph.opset >= 18:
        raise MisfitError("axes are an input")
    return graph.add("ReduceMean", [value], axes=[graph.number(1, rank - 1)], keepdims=graph.number(0, 1))


def _pool(graph: Graph, value: str) -> str:
    shape = graph.values[value].shape
    if len(shape) < 3 or min(shape[2:]) < 2:
        raise MisfitError("there are no neighbours")
    kernel, strides = ([graph.number(1, 2) for _ in shape[2:]] for _ in range(2))
    pads = [int(graph.chance(0.1)) if extent > 1 else 0 for extent in [*kernel, *kernel]]
    counted = int(graph.chance(0.5))
    return graph.add(
        "AveragePool", [value], kernel_shape=kernel, strides=strides, pads=pads, count_include_pad=counted
    )


def _resize(graph: Graph, value: str) -> str:
    shape = graph.values[value].shape
    if graph.opset < 11 or len(shape) < 3:
        raise MisfitError("not for the evaluator, or a vector")
    factors = [graph.pick({1.0: 1, 2.0: 4, 1.5: 1, 0.5: 1}) for _ in shape[2:]]
    grown = [1.0, *factors, 1.0] if graph.chance(0.3) else [1.0, 2.0 if graph.chance(0.05) else 1.0, *factors]
    if graph.chance(0.5):
        told = ["", graph.scales(grown)]
    else:
        told = ["", "", graph.integers([int(n * factor) for n, factor in zip(shape, grown, strict=True)])]
    modes = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    attributes = {"mode": graph.pick({"linear": 3, "nearest": 3, "cubic": 1})}
    return graph.add("Resize", [value, *told], coordinate_transformation_mode=graph.pick(modes), **attributes)


def _flatten(graph: Graph, value: str) -> str:
    return graph.add("Flatten", [value])


_OPS: dict[Callable[[Graph, str], str], float] = {
    _matmul: 5, _along_last: 4, _pointwise_conv: 4, _transposed_conv: 2, ops.batch_norm: 4, ops.scale_or_shift: 3,
    _transpose: 2, _reshape: 2, _mean: 1, _flatten: 1, _pool: 1, _resize: 2,
}  # fmt: skip
