"""Operators of any geometry: what each lifted node computes, against ONNX's reference evaluator in float64.

The tables of `test_lift` have the spellings; here are the numbers: groups, strides, dilations, pads, ranks 1 to 3,
and both orders of operands. Whole small maps are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import Case, X
from graphs import Array, apply, draw, main_scope, model, node, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from repfuse.algebra.window import Refusal
from repfuse.model.nodes import read
from repfuse.operators.lift_space import split
from repfuse.operators.lifted import Lifted

thoroughly = settings(max_examples=100, deadline=None, derandomize=True)

SHAPES = st.integers(1, 3).flatmap(
    lambda rank: st.tuples(st.just(2), st.sampled_from([1, 2, 4, 6]), *[st.integers(5, 8)] * rank)
)
"""Of the data, with one to three spatial axes."""


def each_axis(data: st.DataObject, shape: tuple[int, ...], least: int, most: int) -> list[int]:
    """A number for each spatial axis."""
    return data.draw(st.tuples(*[st.integers(least, most)] * (len(shape) - 2)).map(list))


def assert_same(case: Case, lifted: Lifted | Refusal) -> None:
    assert isinstance(lifted, Lifted), lifted
    x = draw(*case.shape, seed=1)
    expected = run(case.model(), x)
    np.testing.assert_allclose(apply(lifted.kernel(), x), expected, rtol=0, atol=1e-12 * size(expected))


def size(array: Array) -> float:
    return float(max(1, np.abs(array).max()))


@thoroughly
@given(SHAPES, st.data())
def test_conv(shape: tuple[int, ...], data: st.DataObject) -> None:
    group = data.draw(st.sampled_from([each for each in (1, 2, 3, 6) if shape[1] % each == 0]))
    kernel = each_axis(data, shape, 1, 3)
    attributes: dict[str, Any] = {"group": group, "strides": each_axis(data, shape, 1, 3)}
    how = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how == "NOTSET":
        attributes["pads"] = each_axis(data, shape, 0, 2) + each_axis(data, shape, 0, 2)
    else:
        attributes["auto_pad"] = how
    if not how.startswith("SAME"):
        attributes["dilations"] = each_axis(data, shape, 1, 2)
    weight = draw(group * data.draw(st.integers(1, 2)), shape[1] // group, *kernel)
    bias = [draw(len(weight), seed=2)] if data.draw(st.booleans()) else []
    case = Case("Conv", (X, weight, *bias), shape, attributes=attributes)
    assert_same(case, case.lift())


@thoroughly
@given(SHAPES, st.data())
def test_scales_and_shifts(shape: tuple[int, ...], data: st.DataObject) -> None:
    op = data.draw(st.sampled_from(["Mul", "Add", "Sub", "Div"]))
    rank = len(shape) - 2
    forms = [(), (1,), (shape[1], *[1] * rank), (1, shape[1], *[1] * rank)]
    operands = [X, np.abs(draw(*data.draw(st.sampled_from(forms)))) + 0.5]
    if op != "Div" and data.draw(st.booleans()):
        operands.reverse()
    case = Case(op, tuple(operands), shape)
    assert_same(case, case.lift())


@thoroughly
@given(SHAPES, st.floats(1e-6, 1e-2))
def test_batch_normalization(shape: tuple[int, ...], epsilon: float) -> None:
    scale, bias, mean = (draw(shape[1], seed=seed) for seed in range(3))
    statistics = (scale, bias, mean, np.abs(draw(shape[1], seed=3)) + 0.1)
    case = Case("BatchNormalization", (X, *statistics), shape, attributes={"epsilon": epsilon})
    assert_same(case, case.lift())


@thoroughly
@given(SHAPES, st.data())
def test_average_pool(shape: tuple[int, ...], data: st.DataObject) -> None:
    kernel = each_axis(data, shape, 1, 3)
    begin, end = (
        [min(pad, extent - 1) for pad, extent in zip(each_axis(data, shape, 0, 2), kernel, strict=True)]
        for _ in range(2)
    )
    attributes = {
        "kernel_shape": kernel,
        "strides": each_axis(data, shape, 1, 3),
        "pads": begin + end,
        "count_include_pad": int(any(begin + end) or data.draw(st.booleans())),
    }
    case = Case("AveragePool", (X,), shape, attributes=attributes)
    assert_same(case, case.lift())


@thoroughly
@given(SHAPES, st.data())
def test_pad(shape: tuple[int, ...], data: st.DataObject) -> None:
    begin, end = each_axis(data, shape, 0, 3), each_axis(data, shape, 0, 3)
    case = Case("Pad", (X, [0, 0, *begin, 0, 0, *end]), shape)
    assert_same(case, case.lift())


@thoroughly
@given(SHAPES, st.data())
def test_crop(shape: tuple[int, ...], data: st.DataObject) -> None:
    """Slice along all spatial axes, from either side, in steps."""
    starts = each_axis(data, shape, -3, 2)
    ends = [
        data.draw(st.sampled_from([extent, extent - 1, -1, 2**31 - 1])) if start >= 0 else 2**63 - 1
        for start, extent in zip(starts, shape[2:], strict=True)
    ]
    axes = list(range(2, len(shape)))
    case = Case("Slice", (X, starts, ends, axes, each_axis(data, shape, 1, 3)), shape)
    assert_same(case, case.lift())


@thoroughly
@given(SHAPES, st.data())
def test_channels_that_are_selected(shape: tuple[int, ...], data: st.DataObject) -> None:
    count = shape[1]
    if data.draw(st.booleans()):
        indices = data.draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=5))
        case = Case(
            "Gather",
            (X, indices),
            shape,
            attributes={"axis": data.draw(st.sampled_from([1, 1 - len(shape)]))},
        )
    else:
        start = data.draw(st.integers(0, count - 1))
        end = data.draw(st.integers(start + 1, count))
        case = Case("Slice", (X, [start], [end], [1], [data.draw(st.integers(1, 2))]), shape)
    assert_same(case, case.lift())


@thoroughly
@given(SHAPES, st.data())
def test_channels_that_are_split(shape: tuple[int, ...], data: st.DataObject) -> None:
    assume(shape[1] > 1)
    cuts = sorted(data.draw(st.sets(st.integers(1, shape[1] - 1), min_size=1, max_size=3)))
    sizes = np.diff([0, *cuts, shape[1]])
    names = [f"y{number}" for number in range(len(sizes))]
    given_sizes = {"sizes": np.array(sizes)}
    x = draw(*shape, seed=1)
    for name in names:
        proto = model(
            [node("Split", [X, "sizes"], names, axis=1)], {X: shape}, [name], given_sizes, dtype=np.float64
        )
        (read_node,) = read(proto.graph.node)
        parts = split(read_node, main_scope(proto))
        assert isinstance(parts, dict)
        np.testing.assert_array_equal(apply(parts[name].kernel(), x), run(proto, x))
