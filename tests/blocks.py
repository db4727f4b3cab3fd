"""Real ONNX graphs from the examples in pattern files: Relu, the block, Relu, with random sane weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from repfuse.families.patterns import Example, Op, Pattern, Topology


def topology(*branches: str, tail: str = "", dims: int = 2) -> Topology:
    """A topology in the words of examples, such as `topology("conv3x3 bn", "bn")`."""
    return Example("", branches, tail, dims=dims).topology()


def fold_bn(example: Example) -> Example:
    """The example as exporters write it that fold each BatchNormalization into the Conv before it.

    They leave one behind a kernel that the graph computes.
    """

    def folded(branch: str) -> str:
        words = branch.split()
        return " ".join(
            word
            for before, word in zip(["", *words], words, strict=False)
            if not (word == "bn" and "conv" in before and "computed" not in before)
        )

    return replace(example, branches=tuple(map(folded, example.branches)))


def build(
    pattern: Pattern,
    example: Example,
    *,
    seed: int = 0,
    dtype: npt.DTypeLike = np.float32,
    opset: int = 17,
    extents: Sequence[int | str] | None = None,
    batch: int | str = 1,
    join: str = "Add",
    constants: str = "initializer",
    repeat: int = 1,
) -> onnx.ModelProto:
    """Build a model of an example.

    Args:
        pattern: Names the graph.
        example: The block; `fold_bn(example)` and `dataclasses.replace` give variants of it.
        seed: Of the weights and BatchNormalization statistics.
        dtype: float16, float32 or float64, of everything.
        opset: 13 or newer.
        extents: Of the input's spatial axes, numbers or names; None for small odd numbers.
        batch: Of the input, a number or a name.
        join: `Add` for a chain of two-operand Adds, `Sum` for one Sum.
        constants: `initializer` or `node`: where weights are held.
        repeat: How many blocks there are in a row, each followed by Relu. C_in and C_out must be equal
            where there is more than one.

    Returns:
        A checked model with input `x` `(batch, C_in, *extents)` and output `y`.
    """
    graph = _Graph(np.random.default_rng(seed), np.dtype(dtype), constants)
    value = graph.node("Relu", ["x"])
    for index in range(repeat):
        value = graph.node(
            "Relu", [_block(graph, example, value, join)], "y" if index == repeat - 1 else None
        )
    shape = [batch, example.channels[0], *(extents or (11, 9, 7)[: example.dims])]
    elem_type = helper.np_dtype_to_tensor_dtype(graph.dtype)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            pattern.slug,
            [helper.make_tensor_value_info("x", elem_type, shape)],
            [helper.make_tensor_value_info("y", elem_type, None)],
            graph.initializers,
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="repfuse tests",
    )
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    del model.graph.value_info[:]  # as most exporters write it
    return model


class _Graph:
    """Nodes and constants so far, and the random numbers for more."""

    def __init__(self, random: np.random.Generator, dtype: np.dtype[np.generic], constants: str) -> None:
        self.random = random
        self.dtype = dtype
        self.constants = constants
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, op_type: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}"
        node = helper.make_node(op_type, inputs, [output or f"{name}_out"], name=name, **attributes)
        self.nodes.append(node)
        return str(node.output[0])

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        array = np.asarray(value, dtype or self.dtype)
        if self.constants == "node":
            return self.node("Constant", [], value=numpy_helper.from_array(array))
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


@dataclass(frozen=True)
class _Step:
    """One op with all its numbers: `padding` is `(begin, end)` x axes, negative where it crops."""

    op: Op
    padding: npt.NDArray[np.int64]
    channels: tuple[int, int]
    group: int
    stride: int
    biased: bool

    @property
    def geometry(self) -> dict[str, Any]:
        kernel = self.op.kernel
        return {
            "kernel_shape": list(kernel),
            "strides": [self.stride] * len(kernel),
            "pads": self.padding.ravel().tolist(),
        }


def _block(graph: _Graph, example: Example, source: str, join: str) -> str:
    topology = example.topology()
    terms: list[tuple[str, str]] = []
    for ops in topology.branches:
        # What a Sub subtracts needs no Neg of its own; the first operand and those of a Sum do.
        subtracted = join == "Add" and bool(terms) and ops[-1:] == (Op("neg"),)
        steps = _steps(example, ops[:-1] if subtracted else ops)
        terms.append(("Sub" if subtracted else "Add", _chain(graph, source, steps)))
    total = terms[0][1]
    if join == "Sum":
        total = graph.node("Sum", [value for _, value in terms])
    else:
        for op_type, value in terms[1:]:
            total = graph.node(op_type, [total, value])
    tail = replace(example, channels=(example.channels[1],) * 2, stride=1, crop=0)
    return _chain(graph, total, _steps(tail, topology.tail))


def _steps(example: Example, ops: tuple[Op, ...]) -> Iterator[_Step]:
    """Give the ops of a branch their numbers: the last kernel strides, a conv changes the channels."""
    windows = [index for index, op in enumerate(ops) if op.kernel]
    if example.stride > 1 and not windows:
        raise ValueError(f"'{example.title}': a branch without a kernel cannot have a stride")
    # A bias in front of a padded kernel would not be a convolution's at the border.
    padded_first = ops[:1] == (Op("pad"),)
    channels = example.channels[0]
    for index, (op, padding) in enumerate(zip(ops, _paddings(example, ops), strict=True)):
        outputs = example.channels[1] if op.kind == "conv" else channels
        yield _Step(
            op,
            padding,
            (channels, outputs),
            group=channels if op.depthwise else example.groups,
            stride=example.stride if index in windows[-1:] else 1,
            biased=(padded_first or index in windows[-1:]) and ops[index + 1 : index + 2] != (Op("bn"),),
        )
        channels = outputs


def _paddings(example: Example, ops: tuple[Op, ...]) -> list[npt.NDArray[np.int64]]:
    """What each op adds around its input, so that all branches have outputs of one extent.

    Each kernel keeps the extent but for the example's crop, which the branch's first one makes. A `pad` takes
    over the padding of all kernels behind it, a `slice` the cropping of the next.
    """
    paddings = [np.zeros((2, example.dims), np.int64) for _ in ops]
    crop = example.crop
    for index, op in enumerate(ops):
        if op.kernel:
            whole = np.multiply(op.dilation, np.subtract(op.kernel, 1)) - 2 * crop
            paddings[index] = np.stack([whole // 2, whole - whole // 2])
            crop = 0
    for index, op in enumerate(ops):
        if op.kind == "slice":
            paddings[index] = np.minimum(paddings[index + 1], 0)
            paddings[index + 1] = np.maximum(paddings[index + 1], 0)
        elif op.kind == "pad":
            paddings[index] = np.sum(paddings[index + 1 :], axis=0)
            paddings[index + 1 :] = [np.zeros_like(padding) for padding in paddings[index + 1 :]]
    return paddings


def _chain(graph: _Graph, value: str, steps: Iterable[_Step]) -> str:
    for step in steps:
        value = _EMIT[step.op.kind](graph, value, step)
    return value


def _kernel(graph: _Graph, shape: tuple[int, ...], deviation: float) -> str:
    return graph.constant(graph.random.normal(0, deviation * math.prod(shape[1:]) ** -0.5, shape))


def _conv(graph: _Graph, value: str, step: _Step) -> str:
    shape = (step.channels[1], step.channels[0] // step.group, *step.op.kernel)
    operands = [_kernel(graph, shape, 1.0)]
    if step.op.computed:  # each term scaled for each output channel, as OREPA has it
        scales = [
            graph.constant(graph.random.uniform(0.5, 1.5, (shape[0], *[1] * (len(shape) - 1)))) for _ in "ab"
        ]
        terms = zip((*operands, _kernel(graph, shape, 0.5)), scales, strict=True)
        operands = [graph.node("Add", [graph.node("Mul", list(term)) for term in terms])]
    if step.biased:
        operands.append(graph.constant(graph.random.normal(0, 0.3, shape[0])))
    return graph.node(
        "Conv", [value, *operands], dilations=list(step.op.dilation), group=step.group, **step.geometry
    )


def _avgpool(graph: _Graph, value: str, step: _Step) -> str:
    return graph.node("AveragePool", [value], count_include_pad=1, **step.geometry)


def _pad(graph: _Graph, value: str, step: _Step) -> str:
    begin, end = step.padding.tolist()
    return graph.node("Pad", [value, graph.constant([0, 0, *begin, 0, 0, *end], np.int64)])


def _slice(graph: _Graph, value: str, step: _Step) -> str:
    starts, ends = -step.padding[0], np.where(step.padding[1] < 0, step.padding[1], np.iinfo(np.int64).max)
    axes = range(2, 2 + len(starts))
    return graph.node("Slice", [value, *(graph.constant(each, np.int64) for each in (starts, ends, axes))])


def _bn(graph: _Graph, value: str, step: _Step) -> str:
    bounds = {"scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-0.5, 0.5), "variance": (0.5, 2.0)}
    operands = [graph.constant(graph.random.uniform(*each, step.channels[1])) for each in bounds.values()]
    return graph.node("BatchNormalization", [value, *operands])


def _neg(graph: _Graph, value: str, step: _Step) -> str:
    return graph.node("Neg", [value])


def _scale_or_shift(graph: _Graph, value: str, step: _Step) -> str:
    """One of the spellings that exporters have: a constant of any shape on either side, or the inverse op."""
    channels, axes = step.channels[1], (1,) * step.padding.shape[1]
    shapes: list[tuple[int, ...]] = [(1, channels, *axes), (channels, *axes), (1,), ()]
    shape = shapes[graph.random.integers(len(shapes))]
    operands = [value, graph.constant(graph.random.uniform(0.5, 1.5, shape))]
    commuting, inverse = {"scale": ("Mul", "Div"), "shift": ("Add", "Sub")}[step.op.kind]
    spellings = [(commuting, operands), (commuting, operands[::-1]), (inverse, operands)]
    return graph.node(*spellings[graph.random.integers(len(spellings))])


_EMIT: dict[str, Callable[[_Graph, str, _Step], str]] = {
    "conv": _conv,
    "avgpool": _avgpool,
    "pad": _pad,
    "slice": _slice,
    "bn": _bn,
    "neg": _neg,
    "scale": _scale_or_shift,
    "shift": _scale_or_shift,
}
