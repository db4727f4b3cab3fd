"""The algebra computes what the ops compute: both sides by ONNX's reference evaluator, in float64.

Whole small maps of 5 to 9 places are compared, never their middle: an error at the border, where padding
meets a bias or another kernel, leaves the middle right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import count
from typing import Any

import numpy as np
import pytest
from graphs import Array, apply, conv_nodes, model, node, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import NodeProto

from repfuse.algebra import kernel, window
from repfuse.algebra.kernel import EquivalentKernel
from repfuse.algebra.window import IDENTITY, Axis, Window

thoroughly = settings(max_examples=150, deadline=None, derandomize=True)

AXES = st.builds(
    Axis,
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    begin=st.integers(-2, 3),
    end=st.integers(-2, 3),
)
RANKS = st.integers(1, 3)
GROUPS = st.sampled_from([1, 2, 3, 4])
SEEDS = st.integers(0, 2**32 - 1)


def assert_same(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max()))


def weighted(geometry: Window, random: np.random.Generator) -> EquivalentKernel:
    """A kernel of this geometry with generic weights."""
    outputs, inputs = geometry.channels or (1, 1)
    taps = [axis.kernel for axis in geometry.axes]
    weight = random.normal(size=(outputs, inputs // (geometry.group or 1), *taps))
    return EquivalentKernel(geometry, weight, random.normal(size=outputs) * geometry.biased)


def fits(axis: Axis, extent: int) -> bool:
    """Whether something is left after cropping, and gives an output."""
    return extent + min(0, axis.begin) + min(0, axis.end) >= 1 and axis.outputs(extent) >= 1


def outputs_of(convs: Sequence[EquivalentKernel], x: Array) -> Array:
    """What Convs compute in sequence, as ONNX nodes."""
    nodes: list[NodeProto] = []
    constants: dict[str, Array] = {}
    channels = x.shape[1]
    for number, each in enumerate(convs):
        more, values = conv_nodes(each, f"t{number}", f"t{number + 1}", channels, x.ndim - 2)
        nodes += more
        constants |= values
        channels = each.window.channels[0] if each.window.channels else channels
    return run(model(nodes, {"t0": x.shape}, [f"t{len(convs)}"], constants, dtype=np.float64), x)


@st.composite
def single(draw: st.DrawFn) -> tuple[EquivalentKernel, Array]:
    """A kernel and an input for it."""
    axes = tuple(draw(st.lists(AXES, min_size=1, max_size=3)))
    group, per_group, multiple = draw(GROUPS), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    channels = (group * multiple, group * per_group)
    random = np.random.default_rng(draw(SEEDS))
    shape = [next(n for n in count(draw(st.integers(5, 9))) if fits(axis, n)) for axis in axes]
    return (
        weighted(Window(channels, group, axes, biased=True), random),
        random.normal(size=(2, channels[1], *shape)),
    )


@thoroughly
@given(single())
def test_the_window_says_which_input_each_tap_reads(case: tuple[EquivalentKernel, Array]) -> None:
    """The equation in the docstring of `repfuse.algebra.window`, place by place, is ONNX's Conv (and Slice)."""
    conv, x = case
    axes, group = conv.window.axes, conv.window.group
    outputs = [axis.outputs(extent) for axis, extent in zip(axes, x.shape[2:], strict=True)]
    expected = np.zeros((2, conv.weight.shape[0], *outputs)) + conv.bias.reshape(-1, *(1,) * len(axes))
    blocks = x.reshape(2, group, -1, *x.shape[2:])
    weights = conv.weight.reshape(group, -1, *conv.weight.shape[1:])
    for place in np.ndindex(*outputs):
        for tap in np.ndindex(*conv.weight.shape[2:]):
            read = [a.stride * i + a.dilation * j - a.begin for a, i, j in zip(axes, place, tap, strict=True)]
            if all(0 <= r < extent for r, extent in zip(read, x.shape[2:], strict=True)):
                source, target, weight = (..., *read), (..., *place), (..., *tap)
                product = np.einsum("ngi,goi->ngo", blocks[source], weights[weight])
                expected[target] += product.reshape(2, -1)
    assert_same(apply(conv, x), expected)


def _passing(first: Axis, second: Axis, *, biased: bool) -> tuple[Axis, Axis]:
    """Make two axes composable: `second` does not pad a shift, nor what `first` computes from the input."""
    if biased:
        return first, second._replace(begin=min(0, second.begin), end=min(0, second.end))
    begin = max(first.begin, first.reach - first.stride + 1) if second.begin > 0 else first.begin
    end = max(first.end, first.reach) if second.end > 0 else first.end
    return first._replace(begin=begin, end=end), second


@st.composite
def sequences(draw: st.DrawFn) -> tuple[EquivalentKernel, EquivalentKernel, Array]:
    """Two kernels whose composition is exact, and an input: dense, grouped, depthwise, or for any channels."""
    biased = draw(st.booleans())
    pairs = [_passing(draw(AXES), draw(AXES), biased=biased) for _ in range(draw(RANKS))]
    axes_of_first, axes_of_second = zip(*pairs, strict=True)
    groups = draw(GROUPS), draw(GROUPS)
    middle = math.lcm(*groups)
    inputs, outputs = (group * draw(st.integers(1, 2)) for group in groups)
    first = Window((middle, inputs), groups[0], axes_of_first, biased)
    second = Window((outputs, middle), groups[1], axes_of_second, draw(st.booleans()))
    if draw(st.booleans()):
        inputs, first = middle, replace(first, channels=None, group=0)
    if draw(st.booleans()):
        second = replace(second, channels=None, group=0)
    random = np.random.default_rng(draw(SEEDS))
    extents = [
        next(n for n in count(draw(st.integers(5, 9))) if fits(a, n) and fits(b, a.outputs(n)))
        for a, b in pairs
    ]
    return weighted(first, random), weighted(second, random), random.normal(size=(1, inputs, *extents))


@thoroughly
@given(sequences())
def test_compose(case: tuple[EquivalentKernel, EquivalentKernel, Array]) -> None:
    first, second, x = case
    assert_same(apply(kernel.compose(first, second), x), outputs_of([first, second], x))


@thoroughly
@given(AXES, AXES, st.booleans(), SEEDS)
def test_compose_refuses_what_no_conv_computes(a: Axis, b: Axis, biased: bool, seed: int) -> None:
    """A Conv does not know of the border between the two: it goes on with `first` where `second` pads.

    If `first` is a scale and a shift, it goes on with the value for which that gives zero.
    """
    b = b._replace(stride=1)  # else it may skip the place that differs, and is refused all the same
    random = np.random.default_rng(seed)
    first, second = weighted(Window(axes=(a,), biased=biased), random), weighted(Window(axes=(b,)), random)
    outside = -first.bias[0] / first.weight.item() if a.kernel == 1 and not a.padded else 0.0
    same = []
    # Large enough for any two kernels to fit, and one extent for each phase of the stride.
    for extent in range(56, 56 + a.stride):
        x = random.normal(size=extent)
        bounded = outputs_of([first, second], x.reshape(1, 1, -1)).ravel()
        between = _boundless(first, x, outside, range(-b.begin, len(bounded) + b.reach - b.begin))
        taps = enumerate(second.weight.ravel())
        boundless = sum(w * between[b.dilation * j :][: len(bounded)] for j, w in taps)
        same.append(np.allclose(bounded, boundless, rtol=0, atol=1e-12))
    assert all(same) is bool(window.compose(first.window, second.window))


def _boundless(conv: EquivalentKernel, x: Array, outside: float, places: range) -> Array:
    """What a 1-D kernel of one channel computes at any places, also before and beyond its outputs."""
    (axis,) = conv.window.axes
    margin = 99
    plane = np.pad(x, margin, constant_values=outside)
    starts = axis.stride * np.array(places) - axis.begin + margin
    total: Array = sum(w * plane[starts + axis.dilation * j] for j, w in enumerate(conv.weight.ravel()))
    return total + conv.bias


def test_a_bias_into_padding_is_wrong_at_the_border_only() -> None:
    """1x1 with bias, then a padded 3x3: what a composition that ignores padding gives, and why it is refused."""
    random = np.random.default_rng(0)
    point = weighted(Window((4, 3), 1, (Axis(), Axis()), biased=True), random)
    padded = weighted(Window((5, 4), 1, (Axis(3, begin=1, end=1),) * 2), random)
    with pytest.raises(ValueError, match="its border would differ"):
        kernel.compose(point, padded)
    unpadded = replace(padded.window, axes=(Axis(3), Axis(3)))
    merged = kernel.compose(point, EquivalentKernel(unpadded, padded.weight, padded.bias))
    naive = EquivalentKernel(replace(merged.window, axes=padded.window.axes), merged.weight, merged.bias)
    x = random.normal(size=(1, 3, 7, 7))
    error = np.abs(apply(naive, x) - outputs_of([point, padded], x))
    assert error[..., 1:-1, 1:-1].max() < 1e-12
    border = np.ones((7, 7), bool)
    border[1:-1, 1:-1] = False
    assert error[..., border].min() > 1e-3


@st.composite
def branches(draw: st.DrawFn, *, static: bool) -> tuple[list[EquivalentKernel], Array]:
    """Kernels whose sum is exact, and an input. `static`: for its extents, though slacks differ."""
    rank, number = draw(st.integers(1, 2 if static else 3)), draw(st.integers(1, 4))
    columns: list[list[Axis]] = []
    extents = []
    for _ in range(rank):
        stride, slack = draw(st.integers(1, 3)), draw(st.integers(-2, 1))
        extent = draw(st.integers(5, 9))
        least = slack - (extent - 1 + slack) % stride
        slacks = st.integers(least, least + stride - 1) if static else st.just(slack)
        columns.append([_of_slack(draw(AXES), stride, draw(slacks)) for _ in range(number)])
        extents.append(extent if static else next(n for n in count(extent) if n - 1 + slack >= 0))
    inputs = draw(st.sampled_from([4, 6]))
    outputs = draw(st.sampled_from([4, 6, 12]))
    groups = st.sampled_from([g for g in (1, 2, 3, 4, 6) if outputs % g == 0 == inputs % g])
    random = np.random.default_rng(draw(SEEDS))
    windows = []
    for axes in zip(*columns, strict=True):
        anything = outputs == inputs and draw(st.booleans())
        channels, group = (None, 0) if anything else ((outputs, inputs), draw(groups))
        windows.append(Window(channels, group, axes, biased=draw(st.booleans())))
    return [weighted(each, random) for each in windows], random.normal(size=(1, inputs, *extents))


def _of_slack(axis: Axis, stride: int, slack: int) -> Axis:
    return axis._replace(stride=stride, end=slack + axis.reach - axis.begin)


def sum_of(convs: Sequence[EquivalentKernel], x: Array) -> Array:
    """What Convs compute in parallel, added up."""
    total: Array = np.sum([apply(each, x) for each in convs], axis=0)
    return total


@thoroughly
@given(branches(static=False))
def test_add(case: tuple[list[EquivalentKernel], Array]) -> None:
    kernels, x = case
    for order in (kernels, kernels[::-1]):
        total = window.add([each.window for each in order])
        assert isinstance(total, Window)
        assert not total.fixed
        assert_same(apply(kernel.add(order, total), x), sum_of(kernels, x))


@thoroughly
@given(branches(static=False))
def test_stack(case: tuple[list[EquivalentKernel], Array]) -> None:
    kernels, x = case
    assume(any(each.window.channels for each in kernels))
    whole = window.stack([each.window for each in kernels])
    assert isinstance(whole, Window)
    expected = np.concatenate([apply(each, x) for each in kernels], axis=1)
    assert_same(apply(kernel.stack(kernels, whole), x), expected)


@thoroughly
@given(branches(static=True))
def test_add_for_static_extents(case: tuple[list[EquivalentKernel], Array]) -> None:
    kernels, x = case
    geometry = [each.window for each in kernels]
    total = window.add(geometry, x.shape[2:])
    assert isinstance(total, Window)
    unequal = len({tuple(axis.slack for axis in each.axes) for each in geometry}) > 1
    assert total.fixed is unequal
    assert bool(window.add(geometry)) is not unequal
    assert_same(apply(kernel.add(kernels, total), x), sum_of(kernels, x))


@thoroughly
@given(AXES, AXES)
def test_add_refuses_where_extents_differ(a: Axis, b: Axis) -> None:
    windows = [Window(axes=(a,)), Window(axes=(b,))]
    extents = range(12, 30)
    differing = [n for n in extents if a.outputs(n) != b.outputs(n)]
    assert bool(window.add(windows)) is (not differing)
    if a.stride == b.stride:
        assert [n for n in extents if not window.add(windows, [n])] == differing


@thoroughly
@given(single(), st.booleans(), st.booleans(), SEEDS)
def test_affine_before_and_after(
    case: tuple[EquivalentKernel, Array], per_channel: bool, shifting: bool, seed: int
) -> None:
    """Mul and Add on either side of a Conv; transform I of DBB is this with BatchNormalization's numbers."""
    conv, x = case
    random = np.random.default_rng(seed)
    rank = x.ndim - 2
    for before in (True, False):
        channels = conv.weight.shape[0] if not before else x.shape[1]
        scale, shift = random.normal(size=(2, channels if per_channel else 1))
        if not shifting:
            shift = np.zeros_like(shift)
        tensors = ("x", "a", "b", "y") if before else ("c", "a", "y", "c")
        source, scaled, shifted, target = tensors
        nodes, constants = conv_nodes(conv, "b" if before else "x", target, x.shape[1], rank)
        shape = (-1, *(1,) * rank)
        constants |= {"scale": scale.reshape(shape), "shift": shift.reshape(shape)}
        mul, add = node("Mul", [source, "scale"], [scaled]), node("Add", [scaled, "shift"], [shifted])
        nodes = [mul, add, *nodes] if before else [*nodes, mul, add]
        expected = run(model(nodes, {"x": x.shape}, ["y"], constants, dtype=np.float64), x)
        for axes in (0, rank):
            affine = kernel.affine(scale, shift, axes)
            pair = (affine, conv) if before else (conv, affine)
            assert_same(apply(kernel.compose(*pair), x), expected)


def affine_nodes(scale: Array, shift: Array, rank: int) -> tuple[list[NodeProto], dict[str, Array]]:
    """`a = scale * x + shift` as exporters write it, with the constants that it uses."""
    shape = (-1, *(1,) * rank)
    constants = {"a.scale": scale.reshape(shape), "a.shift": shift.reshape(shape)}
    return [
        node("Mul", ["a.scale", "x"], ["a.scaled"]),
        node("Add", ["a.scaled", "a.shift"], ["a"]),
    ], constants


SCALES = st.tuples(st.booleans(), SEEDS)
"""Whether there is one value for each channel, and the seed of the values."""


def affine(of: tuple[bool, int], channels: int) -> tuple[Array, Array]:
    per_channel, seed = of
    scale, shift = np.random.default_rng(seed).normal(size=(2, channels if per_channel else 1))
    return scale, shift


@thoroughly
@given(single(), st.lists(SCALES, min_size=2, max_size=4))
def test_scales_and_shifts_in_a_row(
    case: tuple[EquivalentKernel, Array], drawn: list[tuple[bool, int]]
) -> None:
    """However they are put together: from the source on, or from the Conv back."""
    conv, x = case
    pairs = [affine(each, x.shape[1]) for each in drawn]
    ops = [kernel.affine(*pair, x.ndim - 2) for pair in pairs]
    from_source = kernel.compose(reduce(kernel.compose, ops), conv)
    from_conv = reduce(lambda after, before: kernel.compose(before, after), [conv, *reversed(ops)])
    values = x
    for scale, shift in pairs:
        nodes, constants = affine_nodes(scale, shift, x.ndim - 2)
        values = run(model(nodes, {"x": x.shape}, ["a"], constants, dtype=np.float64), values)
    expected = apply(conv, values)
    magnitude = max(1, *(np.abs(each.outside).max() for each in (from_source, from_conv)))
    for found in (from_source, from_conv):
        assert found.window.shifted is conv.window.padded
        np.testing.assert_allclose(
            apply(found, x), expected, rtol=0, atol=1e-11 * magnitude * max(1, np.abs(expected).max())
        )


@thoroughly
@given(branches(static=False), SCALES)
def test_add_behind_one_scale_and_shift(
    case: tuple[list[EquivalentKernel], Array], drawn: tuple[bool, int]
) -> None:
    """All padded branches find the same value outside; those that are not padded find any."""
    kernels, x = case
    scale, shift = affine(drawn, x.shape[1])
    shifted = [kernel.compose(kernel.affine(scale, shift), each) for each in kernels]
    total = window.add([each.window for each in shifted])
    assert isinstance(total, Window)
    assert total.shifted is any(each.window.padded for each in kernels)
    nodes, constants = affine_nodes(scale, shift, x.ndim - 2)
    values = run(model(nodes, {"x": x.shape}, ["a"], constants, dtype=np.float64), x)
    expected = sum_of(kernels, values)
    magnitude = max(1, np.abs(expected).max(), *(np.abs(each.outside).max() for each in shifted))
    np.testing.assert_allclose(apply(kernel.add(shifted, total), x), expected, rtol=0, atol=1e-11 * magnitude)


def test_add_refuses_different_values_outside() -> None:
    conv = weighted(Window((4, 4), 1, (Axis(3, begin=1, end=1),)), np.random.default_rng(0))
    shifted = [kernel.compose(kernel.affine(np.ones(1), np.full(1, by)), conv) for by in (1.0, 2.0)]
    total = window.add([each.window for each in shifted])
    assert isinstance(total, Window)
    assert kernel.common_outside(shifted) is None
    with pytest.raises(ValueError, match="outside values differ"):
        kernel.add(shifted, total)


def test_a_scale_of_zero_has_no_value_outside_unless_any_will_do() -> None:
    conv = weighted(Window((2, 3), 1, (Axis(3, begin=1, end=1),)), np.random.default_rng(0))
    scale = np.array([2.0, 0.0, 1.0])
    with np.errstate(divide="ignore"):
        without = kernel.compose(kernel.affine(scale, np.array([1.0, 3.0, 0.0])), conv)
    assert without.outside.tolist() == [-0.5, -np.inf, 0.0]
    any_will_do = kernel.compose(kernel.affine(scale, np.array([1.0, 0.0, 0.0])), conv)
    assert any_will_do.outside.tolist() == [-0.5, 0.0, 0.0]


@thoroughly
@given(single())
def test_average(case: tuple[EquivalentKernel, Array]) -> None:
    """AveragePool where it divides by the number of taps everywhere; its padding is below the kernel's extent."""
    conv, x = case
    axes = tuple(
        axis._replace(begin=min(max(0, axis.begin), axis.reach), end=min(max(0, axis.end), axis.reach))
        for axis in conv.window.axes
    )
    assume(all(fits(axis, extent) for axis, extent in zip(axes, x.shape[2:], strict=True)))
    pool = node(
        "AveragePool",
        ["x"],
        ["y"],
        kernel_shape=[axis.kernel for axis in axes],
        strides=[axis.stride for axis in axes],
        dilations=[axis.dilation for axis in axes],
        pads=[axis.begin for axis in axes] + [axis.end for axis in axes],
        count_include_pad=1,
    )
    expected = run(model([pool], {"x": x.shape}, ["y"], opset=19, dtype=np.float64), x)
    assert_same(apply(kernel.average(Window(axes=axes)), x), expected)


@thoroughly
@given(single())
def test_emittable(case: tuple[EquivalentKernel, Array]) -> None:
    conv, x = case
    found = kernel.emittable(conv)
    assert all(axis.begin >= 0 <= axis.end for axis in found.window.axes)
    assert_same(apply(found, x), apply(conv, x))
    assert kernel.emittable(found) is found


@thoroughly
@given(single(), st.data())
def test_trimmed(case: tuple[EquivalentKernel, Array], data: st.DataObject) -> None:
    """Of rows and columns of zeros at the ends, those go that padding makes up for."""
    conv, x = case
    conv = kernel.emittable(conv)
    kept, places = [], []
    for axis in conv.window.axes:
        before = data.draw(st.integers(0, axis.kernel - 1))
        behind = data.draw(st.integers(0, axis.kernel - 1 - before))
        places.append(slice(before, axis.kernel - behind))
        before, behind = min(before, axis.begin // axis.dilation), min(behind, axis.end // axis.dilation)
        kept.append(axis.kernel - before - behind)
    hole: Any = (slice(None), slice(None), *places)
    weight = np.zeros_like(conv.weight)
    weight[hole] = conv.weight[hole]
    assume(np.all(np.any(weight, axis=(0, 1))[hole[2:]]))  # emittable() put zeros of its own there
    found = kernel.trimmed(replace(conv, weight=weight))
    assert [axis.kernel for axis in found.window.axes] == kept == list(found.weight.shape[2:])
    assert all(axis.begin >= 0 <= axis.end for axis in found.window.axes)
    assert [axis.slack for axis in found.window.axes] == [axis.slack for axis in conv.window.axes]
    assert_same(apply(found, x), apply(replace(conv, weight=weight), x))


def test_a_weight_of_zeros_is_trimmed_as_far_as_padding_goes() -> None:
    conv = EquivalentKernel(
        Window((2, 2), 1, (Axis(3, begin=1, end=1), Axis(3, begin=0, end=2))),
        np.zeros((2, 2, 3, 3)),
        np.ones(2),
    )
    assert kernel.trimmed(conv).window.axes == (Axis(), Axis())


def test_the_source_is_neutral() -> None:
    conv = weighted(Window((4, 6), 2, (Axis(3, 2, 1, 1, 0),), biased=True), np.random.default_rng(0))
    for found in (kernel.compose(kernel.identity(), conv), kernel.compose(conv, kernel.identity())):
        assert found.window == conv.window
        np.testing.assert_array_equal(found.weight, conv.weight)
        np.testing.assert_array_equal(found.bias, conv.bias)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "groups", [(1, 4), (4, 1), (1, 1), (4, 4)], ids=lambda groups: "then".join(map(str, groups))
)
@pytest.mark.parametrize("taps", [(1, 3), (3, 1), (3, 3)], ids=lambda taps: "then".join(map(str, taps)))
def test_arithmetic_is_in_float64(
    dtype: type[np.generic], groups: tuple[int, int], taps: tuple[int, int]
) -> None:
    """Weights keep the model's type until the first arithmetic, and are not rounded to it by that."""
    random = np.random.default_rng(0)
    narrow, wide = [], []
    for group, extent in zip(groups, taps, strict=True):
        drawn = weighted(Window((4, 4), group, (Axis(extent),)), random)
        stored = replace(drawn, weight=drawn.weight.astype(dtype))
        narrow.append(stored)
        wide.append(replace(stored, weight=stored.weight.astype(np.float64)))
    found = kernel.compose(*narrow)
    assert found.weight.dtype == found.bias.dtype == np.float64
    np.testing.assert_array_equal(found.weight, kernel.compose(*wide).weight)
    total = window.add([each.window for each in narrow[:1]])
    assert isinstance(total, Window)
    assert kernel.add(narrow[:1], total).weight.dtype == np.float64


def test_identity_counts_as_depthwise_in_a_sum() -> None:
    conv = weighted(Window((4, 4), 4, (Axis(3, begin=1, end=1),)), np.random.default_rng(0))
    total = window.add([conv.window, IDENTITY])
    assert isinstance(total, Window)
    assert total.group == 4
    np.testing.assert_array_equal(
        kernel.add([conv, kernel.identity()], total).weight, conv.weight + np.array([[[0, 1, 0]]])
    )


def test_a_pointwise_kernel_of_any_rank_before_a_depthwise_one() -> None:
    """Found by the fuzzer: a choice of channels has no axes of its own, and must take those of what follows."""
    swap, taps = np.array([[0.0, 1.0], [1.0, 0.0]]), np.arange(6.0).reshape(2, 1, 3)
    first = EquivalentKernel(Window((2, 2), 1), swap, np.zeros(2))
    second = EquivalentKernel(Window((2, 2), 2, (Axis(3),)), taps, np.zeros(2))
    expected = np.array([[[0, 0, 0], [0, 1, 2]], [[3, 4, 5], [0, 0, 0]]])
    np.testing.assert_array_equal(kernel.compose(first, second).weight, expected)
