"""Random ops: each function adds one to a graph, with numbers of its own choice, most of them linear.

What makes an op not linear (a constant that broadcasts, statistics of the batch, a border that is not zero) is
as likely as not in one of thirty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fuzz_graph import Graph, MisfitError
from fuzz_oracle import Array


@dataclass(frozen=True)
class Goal:
    """What a branch must give so that it can be joined: channels, and per axis stride and slack.

    Slack is how many outputs there are beyond one for each input: `begin + end - dilation * (kernel - 1)`.
    """

    channels: int
    strides: tuple[int, ...]
    slacks: tuple[int, ...]


def constant(graph: Graph, value: Array) -> str:
    """Add a constant in one of the forms that models hold constants in."""
    return graph.pick(_FORMS)(graph, value)


def scale_or_shift(graph: Graph, source: str) -> str:
    """Combine a tensor with a constant: a scalar, one value for each channel, or a shape that fits otherwise."""
    shape = graph.values[source].shape
    count, axes = shape[1], (1,) * (len(shape) - 2)
    shapes = {
        (): 3, (1,): 2, (1,) * len(shape): 1, (1, count, *axes): 6, (count, *axes): 4,
        (1, count): 0.2, (count, 1): 0.3, shape[-1:]: 0.3, (1, 1, *shape[2:]): 0.2, (*shape[:1], 1, *axes): 0.2,
        (1, 3, *axes): 0.3, (1, *axes, *axes): 0.1, shape: 0.2,
    }  # fmt: skip
    factor = graph.pick({1.0: 80, -1.0: 20, 0.0: 0.5, np.inf: 0.3, np.nan: 0.3})
    value = np.asarray(graph.random.uniform(0.5, 1.5, graph.pick(shapes)) * factor)
    operands = [source, constant(graph, value)]
    # What is divided by a tensor may be as large as it likes, and so may the error.
    op_type, swapped = graph.pick(
        [("Add", 0), ("Add", 1), ("Sub", 0), ("Sub", 1), ("Mul", 0), ("Mul", 1), ("Div", 0)]
    )
    return graph.add(op_type, operands[::-1] if swapped else operands)


def batch_norm(graph: Graph, source: str) -> str:
    """Normalize: training is rare, and so is a variance below zero."""
    count = graph.values[source].shape[1]
    ranges = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (-0.3 if graph.chance(0.02) else 0.5, 2.0))
    operands = [constant(graph, graph.random.uniform(*each, size=(count,))) for each in ranges]
    # Below opset 14, the evaluator takes the batch's statistics, unless they have no momentum.
    attributes: dict[str, Any] = {"momentum": 1.0} if graph.opset < 14 else {}
    if graph.opset < 9:
        raise MisfitError("the evaluator cannot run it")
    if graph.opset >= 14 and graph.chance(0.02):
        return graph.add("BatchNormalization", [source, *operands], outputs=3, training_mode=1)
    return graph.add("BatchNormalization", [source, *operands], **attributes)


def conv(graph: Graph, source: str, goal: Goal) -> str:
    """A Conv of any kernel that reaches the goal."""
    kernel = [graph.pick({1: 4, 2: 2, 3: 5, 4: 1, 5: 2}) for _ in goal.strides]
    if graph.chance(0.4):
        kernel = kernel[:1] * len(kernel)
    dilations = [graph.pick({1: 6, 2: 2, 3: 1}) for _ in kernel]
    source, pads = _padding(graph, source, _reach(kernel, dilations), goal)
    return _conv(graph, source, goal, kernel, dilations=dilations, pads=pads)


def conv_auto_pad(graph: Graph, source: str, goal: Goal) -> str:
    """A Conv that leaves its padding to the runtime."""
    kernel = [graph.pick([1, 2, 3]) for _ in goal.strides]
    mode = "VALID" if any(goal.slacks) else graph.pick(["SAME_UPPER", "SAME_LOWER"])
    if mode == "VALID":
        kernel = [max(1, 1 - slack) for slack in goal.slacks]
    return _conv(graph, source, goal, kernel, auto_pad=mode)


def pointwise_conv(graph: Graph, source: str, goal: Goal) -> str:
    """A Conv of one tap, whose padding is another op's, or its own."""
    source, pads = _padding(graph, source, [0] * len(goal.slacks), goal)
    return _conv(graph, source, goal, [1] * len(goal.strides), pads=pads)


def pool(graph: Graph, source: str, goal: Goal) -> str:
    """An average, which mostly counts the padding."""
    kernel = [graph.pick([1, 2, 3]) for _ in goal.strides]
    if not kernel:
        raise MisfitError("a vector has no neighbours")
    source = _with_channels(graph, source, goal)
    source, pads = _padding(graph, source, _reach(kernel, [1] * len(kernel)), goal)
    # With padding, ONNX's shape inference and its evaluator disagree about ceil_mode.
    attributes: dict[str, Any] = (
        {"ceil_mode": 1} if graph.opset >= 10 and not any(pads) and graph.chance(0.1) else {}
    )
    return graph.add(
        "AveragePool",
        [source],
        kernel_shape=kernel,
        strides=goal.strides,
        pads=pads,
        count_include_pad=int(graph.chance(0.9)),
        **attributes,
    )


def bare(graph: Graph, source: str, goal: Goal) -> str:
    """The source itself, padded or cropped as the goal wants it."""
    source = _with_channels(graph, source, goal)
    source, pads = _padding(graph, source, [0] * len(goal.slacks), goal)
    source = _pad(graph, source, pads) if any(pads) else source
    steps = goal.strides
    return source if set(steps) <= {1} else _slice(graph, source, [0] * len(steps), [0] * len(steps), steps)


def _reach(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(extent - 1) * step for extent, step in zip(kernel, dilations, strict=True)]


def _padding(graph: Graph, source: str, reach: Sequence[int], goal: Goal) -> tuple[str, list[int]]:
    """How a kernel must pad so that the goal is met. What would be negative is cropped from the source."""
    totals = [slack + each for slack, each in zip(goal.slacks, reach, strict=True)]
    begins = [t // 2 if graph.chance(0.8) else graph.number(min(t, 0), max(t, 0)) for t in totals]
    ends = [total - begin for total, begin in zip(totals, begins, strict=True)]
    if ends and graph.chance(0.04):
        ends[-1] += 1
    pads = [*begins, *ends]
    if any(pad < 0 for pad in pads):
        source = _cropped(graph, source, [max(0, -pad) for pad in pads])
        pads = [max(0, pad) for pad in pads]
    elif any(pads) and graph.chance(0.1):
        source, pads = _pad(graph, source, pads), [0] * len(pads)
    return source, pads


def _cropped(graph: Graph, source: str, crops: Sequence[int]) -> str:
    if graph.chance(0.3):
        return _pad(graph, source, [-crop for crop in crops])
    rank = len(crops) // 2
    return _slice(graph, source, crops[:rank], crops[rank:], [1] * rank)


def _pad(graph: Graph, source: str, pads: Sequence[int]) -> str:
    rank = len(pads) // 2
    whole = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
    mode = graph.pick({"constant": 20, "edge": 1}) if min(pads) >= 0 else "constant"
    if graph.opset < 11:
        return graph.add("Pad", [source], pads=whole, mode=mode)
    if graph.opset >= 18 and graph.chance(0.5):
        axes = graph.integers(graph.pick([range(2, rank + 2), range(-rank, 0)]))
        return graph.add("Pad", [source, graph.integers(pads), "", axes], mode=mode)
    value = [constant(graph, np.array(graph.pick({0.0: 5, 1.0: 1})))] if graph.chance(0.3) else []
    return graph.add("Pad", [source, graph.integers(whole), *value], mode=mode)


def _slice(
    graph: Graph, source: str, begins: Sequence[int], ends: Sequence[int], steps: Sequence[int]
) -> str:
    shape = graph.values[source].shape[2:]
    stops = [
        extent - end if graph.chance(0.2) else -end or 2**31 - 1
        for extent, end in zip(shape, ends, strict=True)
    ]
    axes = graph.pick([range(2, len(shape) + 2), range(-len(shape), 0)])
    if graph.opset < 10:
        if max(steps) > 1:
            raise MisfitError("this version of Slice has no steps")
        return graph.add("Slice", [source], starts=begins, ends=stops, axes=list(axes))
    return graph.add("Slice", [source, *(graph.integers(each) for each in (begins, stops, axes, steps))])


def _conv(graph: Graph, source: str, goal: Goal, kernel: Sequence[int], **attributes: Any) -> str:
    """A Conv; for vectors, a Gemm."""
    if not kernel:
        return _gemm(graph, source, goal)
    inputs, outputs = graph.values[source].shape[1], goal.channels
    whole = math.gcd(inputs, outputs)
    group = graph.pick({1: 3, whole: 2, **{g: 0.5 for g in range(2, whole) if whole % g == 0}})
    weight = graph.random.normal(
        0, 1 / math.sqrt(math.prod(kernel) * inputs / group), (outputs, inputs // group, *kernel)
    )
    operands = [constant(graph, weight)]
    if graph.chance(0.4):
        operands.append(constant(graph, graph.random.normal(0, 0.5, outputs)))
    elif graph.chance(0.1):
        operands.append("")
    if graph.chance(0.7):
        attributes["kernel_shape"] = kernel
    return graph.add("Conv", [source, *operands], strides=goal.strides, group=group, **attributes)


def _gemm(graph: Graph, source: str, goal: Goal) -> str:
    shape = (graph.values[source].shape[1], goal.channels)
    transposed = graph.chance(0.7)
    weight = graph.random.normal(0, 1 / math.sqrt(shape[0]), shape[::-1] if transposed else shape)
    operands = [constant(graph, weight)]
    if graph.opset < 11 or graph.chance(0.6):
        forms = {(goal.channels,): 6, (1, goal.channels): 2, (): 1, (1,): 1, (shape[0], 1): 0.3}
        operands.append(constant(graph, graph.random.normal(0, 0.5, graph.pick(forms))))
    attributes: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if graph.chance(0.2) else {}
    return graph.add("Gemm", [source, *operands], transB=int(transposed), **attributes)


def _with_channels(graph: Graph, source: str, goal: Goal) -> str:
    """As many channels as the goal has; one channel broadcasts, so that may be left."""
    rank = len(goal.strides)
    channels = graph.values[source].shape[1]
    if channels == goal.channels or (channels == 1 and graph.chance(0.3)):
        return source
    return _conv(graph, source, Goal(goal.channels, (1,) * rank, ()), [1] * rank)


def _computed(graph: Graph, value: Array) -> str:
    """A constant that the graph computes from others."""
    match graph.pick(["Identity", "Mul", "Neg", "Reshape", *(["Transpose"] if value.ndim else [])]):
        case "Mul":
            return graph.add("Mul", [graph.initializer(value / 2), graph.constant_node(np.array(2.0))])
        case "Neg":
            return graph.add("Neg", [constant(graph, -value)])
        case "Reshape":
            flat = graph.initializer(value.reshape(-1))
            return graph.add("Reshape", [flat, graph.integers(value.shape)])
        case "Transpose":
            return graph.add("Transpose", [graph.initializer(value.T)], perm=range(value.ndim)[::-1])
    return graph.add("Identity", [constant(graph, value)])


def _shared(graph: Graph, value: Array) -> str:
    """A constant that another node has too, if one fits."""
    alike = [
        name
        for name in graph.initializers
        if graph.values[name].shape == value.shape and graph.values[name].dtype.kind == "f"
    ]
    return graph.pick(alike) if alike else graph.initializer(value)


_FORMS: dict[Callable[[Graph, Array], str], float] = {
    Graph.initializer: 12,
    Graph.constant_node: 2,
    _computed: 1,
    _shared: 1,
    Graph.overridable: 0.1,
    Graph.input: 0.1,
}
