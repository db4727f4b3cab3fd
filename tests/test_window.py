"""The rules by which linear ops are one convolution, as tables. On one axis where axes do not matter.

An axis reads `Axis(kernel, stride, dilation, begin, end)`; negative paddings crop. That the rules are right
is proved elsewhere (test_kernel.py computes both sides); here is what they say.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from repfuse.algebra.window import IDENTITY, Axis, Layout, Refusal, Window, add, compose, emittable, with_rank

POINT = Axis()
PAD = Axis(begin=1, end=1)
CROP = Axis(begin=-1, end=-1)
SAME3 = Axis(3, begin=1, end=1)
SAME5 = Axis(5, begin=2, end=2)
VALID3 = Axis(3)
CAUSAL3 = Axis(3, begin=2)
FULL3 = Axis(3, begin=2, end=2)


def on(*axes: Axis, **others: Any) -> Window:
    """A window, that treats all channels alike unless told otherwise."""
    return Window(axes=axes, **others)


def channels(outputs: int, inputs: int, group: int = 1) -> Window:
    """A 1x1 Conv."""
    return Window((outputs, inputs), group, (POINT, POINT))


@pytest.mark.parametrize(
    ("axis", "slack", "outputs"),
    [
        pytest.param(POINT, 0, {1: 1, 7: 7}, id="1"),
        pytest.param(SAME3, 0, {1: 1, 7: 7}, id="3-same"),
        pytest.param(VALID3, -2, {3: 1, 7: 5}, id="3-valid"),
        pytest.param(Axis(3, 2, 1, 1, 1), 0, {7: 4, 8: 4}, id="3-stride-2"),
        pytest.param(Axis(3, 2, 1, 0, 1), -1, {7: 3, 8: 4}, id="3-stride-2-same-upper"),
        pytest.param(Axis(2, begin=0, end=1), 0, {7: 7}, id="2-same-upper"),
        pytest.param(Axis(3, 1, 2, 2, 2), 0, {7: 7}, id="3-dilation-2"),
        pytest.param(Axis(3, 1, 2), -4, {5: 1, 7: 3}, id="3-dilation-2-valid"),
        pytest.param(CROP, -2, {7: 5}, id="crop"),
        pytest.param(Axis(1, 2, 1, -1, 0), -1, {7: 3, 8: 4}, id="every-second-from-1"),
        pytest.param(Axis(1, 3, 1, 2, 2), 4, {7: 4}, id="padding-is-read"),
    ],
)
def test_slack_tells_the_output_extent(axis: Axis, slack: int, outputs: dict[int, int]) -> None:
    assert axis.slack == slack
    assert {extent: axis.outputs(extent) for extent in outputs} == outputs
    for extent in range(5, 14):
        # Those outputs whose last tap reads no farther than the padding goes.
        fitting = next(i for i in count() if axis.stride * i + axis.reach - axis.begin >= extent + axis.end)
        assert axis.outputs(extent) == fitting


@pytest.mark.parametrize(
    ("axis", "padded"),
    [(POINT, False), (SAME3, True), (CAUSAL3, True), (Axis(2, end=1), True), (VALID3, False), (CROP, False)],
)
def test_an_axis_is_padded_if_a_tap_reads_outside(axis: Axis, padded: bool) -> None:
    assert axis.padded is padded


@pytest.mark.parametrize(
    ("window", "depthwise", "pointwise", "taps", "stride"),
    [
        pytest.param(IDENTITY, True, True, 1, 1, id="identity"),
        pytest.param(channels(8, 8, 8), True, True, 1, 1, id="scale-per-channel"),
        pytest.param(channels(8, 8), False, True, 1, 1, id="1x1"),
        pytest.param(channels(16, 8, 8), False, True, 1, 1, id="two-outputs-for-each-input"),
        pytest.param(on(SAME3, SAME5), True, False, 15, 1, id="pooling-3x5"),
        pytest.param(on(Axis(stride=2), Axis(stride=3)), True, False, 1, 6, id="strided-identity"),
        pytest.param(on(CROP), True, False, 1, 1, id="crop"),
    ],
)
def test_properties(window: Window, depthwise: bool, pointwise: bool, taps: int, stride: int) -> None:
    assert (window.depthwise, window.pointwise, window.taps, window.stride) == (
        depthwise,
        pointwise,
        taps,
        stride,
    )


def test_a_refusal_is_false_and_carries_its_reason() -> None:
    assert not Refusal("says why")
    assert Refusal("says why").reason == "says why"
    assert not Refusal("says why").extents_would_help


ACROSS = "pads with zeros what an op before it computes from across the border"
SHIFTED = "pads with zeros a tensor to which a shift was added, so its border would differ"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(POINT, SAME3, SAME3, id="1-then-3"),
        pytest.param(SAME3, POINT, SAME3, id="3-then-1"),
        pytest.param(VALID3, VALID3, Axis(5), id="3-then-3"),
        pytest.param(SAME3, VALID3, Axis(5, begin=1, end=1), id="padded-3-then-3"),
        pytest.param(SAME3, SAME3, ACROSS, id="padded-3-then-padded-3"),
        pytest.param(VALID3, SAME3, ACROSS, id="3-then-padded-3"),
        pytest.param(Axis(2), Axis(2), Axis(3), id="2-then-2"),
        pytest.param(Axis(2, end=1), Axis(2, begin=1), ACROSS, id="2-upper-then-2-lower"),
        pytest.param(Axis(2, end=1), Axis(2, end=1), Axis(3, end=2), id="2-upper-then-2-upper"),
        # What lies wholly in the padding is zero before and after.
        pytest.param(CAUSAL3, CAUSAL3, Axis(5, begin=4), id="causal-then-causal"),
        pytest.param(CAUSAL3, Axis(3, end=2), ACROSS, id="causal-then-anticausal"),
        pytest.param(Axis(3, end=2), CAUSAL3, ACROSS, id="anticausal-then-causal"),
        pytest.param(FULL3, SAME3, Axis(5, begin=3, end=3), id="full-then-padded"),
        # Pad and Slice are kernels of one tap.
        pytest.param(PAD, VALID3, SAME3, id="pad-then-3"),
        pytest.param(PAD, SAME3, FULL3, id="pad-then-padded-3"),
        pytest.param(PAD, CROP, POINT, id="pad-then-crop"),
        pytest.param(CROP, PAD, ACROSS, id="crop-then-pad"),
        pytest.param(SAME3, CROP, VALID3, id="padded-3-then-crop"),
        pytest.param(CROP, VALID3, Axis(3, begin=-1, end=-1), id="crop-then-3"),
        pytest.param(CROP, SAME3, ACROSS, id="crop-then-padded-3"),
        pytest.param(Axis(begin=-1), Axis(3, end=2), Axis(3, begin=-1, end=2), id="crop-here-pad-there"),
        # Strides multiply; the second op's taps are so many inputs apart.
        pytest.param(VALID3, Axis(stride=2), Axis(3, 2), id="3-then-every-second"),
        pytest.param(Axis(stride=2), SAME3, Axis(3, 2, 2, 2, 2), id="every-second-then-padded-3"),
        pytest.param(Axis(3, 2), Axis(2), Axis(5, 2), id="3-stride-2-then-2"),
        pytest.param(Axis(2, 2), Axis(2, 2), Axis(4, 4), id="2-stride-2-then-2-stride-2"),
        pytest.param(Axis(2, 2), Axis(2, begin=1), Axis(4, 2, 1, 2, 0), id="patches-then-causal"),
        pytest.param(Axis(2, 2), Axis(2, end=1), ACROSS, id="patches-then-anticausal"),
        pytest.param(Axis(3, 2), Axis(2, begin=1), ACROSS, id="overlapping-patches-then-causal"),
        pytest.param(Axis(stride=2), Axis(stride=3), Axis(stride=6), id="sixth-of-second-of-third"),
        # The grid is the coarsest that holds all taps.
        pytest.param(Axis(2, 1, 2), Axis(2, 1, 4), Axis(4, 1, 2), id="dilations-2-and-4"),
        pytest.param(Axis(3, 1, 2), Axis(2), Axis(6), id="dilations-2-and-1"),
        pytest.param(Axis(3, 1, 2), POINT, Axis(3, 1, 2), id="dilation-2-and-1-tap"),
        pytest.param(Axis(1, 1, 5), Axis(3, 1, 2), Axis(3, 1, 2), id="dilation-of-1-tap-does-not-count"),
        pytest.param(Axis(2, 3), Axis(2, 1, 2), Axis(8, 3), id="stride-3-and-dilation-2"),
    ],
)
def test_compose_axes(first: Axis, second: Axis, expected: Axis | str) -> None:
    found = compose(on(first), on(second))
    if isinstance(expected, str):
        assert found == Refusal(expected)
    else:
        assert found == on(expected)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(POINT, SAME3, SHIFTED, id="shift-into-padded-3"),
        pytest.param(POINT, CAUSAL3, SHIFTED, id="shift-into-padding-on-one-side"),
        pytest.param(POINT, PAD, SHIFTED, id="shift-into-pad"),
        pytest.param(POINT, VALID3, VALID3, id="shift-into-3"),
        pytest.param(SAME3, CROP, VALID3, id="shift-into-crop"),
        pytest.param(SAME3, POINT, SAME3, id="padded-3-with-bias-into-1"),
    ],
)
def test_a_shift_stops_at_padding(first: Axis, second: Axis, expected: Axis | str) -> None:
    shifting = on(first, channels=(4, 4), group=2, biased=True)
    if isinstance(expected, str):
        assert compose(shifting, on(second)) == Refusal(expected)
        assert compose(shifting, on(second, biased=True)) == Refusal(expected)
    else:
        assert compose(shifting, on(second)) == on(expected, channels=(4, 4), group=2, biased=True)
    # The other way about it does no harm.
    assert compose(on(POINT), on(second, biased=True)) == on(second, biased=True)


@pytest.mark.parametrize("depthwise", [{}, {"channels": (4, 4), "group": 4}], ids=["scalar", "per-channel"])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(POINT, SAME3, SAME3, id="into-padded-3"),
        pytest.param(POINT, CAUSAL3, CAUSAL3, id="into-padding-on-one-side"),
        pytest.param(POINT, PAD, PAD, id="into-pad"),
        pytest.param(Axis(stride=2), SAME3, Axis(3, 2, 2, 2, 2), id="with-stride-into-padded-3"),
        pytest.param(POINT, VALID3, None, id="into-3"),
        pytest.param(VALID3, VALID3, None, id="3-into-3"),
        pytest.param(PAD, VALID3, None, id="pad-with-shift-behind-it-into-3"),
        pytest.param(CROP, SAME3, ACROSS, id="crop-into-padded-3"),
        pytest.param(Axis(3, 3), Axis(begin=1), SHIFTED, id="patches-into-padding"),
        pytest.param(Axis(2, 3), Axis(begin=1), SHIFTED, id="patches-of-two-into-padding"),
        pytest.param(PAD, PAD, SHIFTED, id="pad-with-shift-behind-it-into-pad"),
    ],
)
def test_a_scale_and_a_shift_move_the_outside_value(
    first: Axis, second: Axis, expected: Axis | str | None, depthwise: dict[str, Any]
) -> None:
    found = compose(on(first, biased=True, **depthwise), on(second))
    if isinstance(expected, str):
        assert found == Refusal(expected)
    else:
        assert isinstance(found, Window)
        assert found.shifted is (expected is not None)
        assert expected is None or found == on(expected, biased=True, shifted=True, **depthwise)


def test_an_outside_value_is_kept_behind_what_is_not_padded() -> None:
    shifted = on(SAME3, biased=True, shifted=True)
    assert compose(shifted, on(VALID3)) == on(Axis(5, begin=1, end=1), biased=True, shifted=True)
    assert compose(shifted, on(POINT, biased=True)) == shifted
    assert compose(on(POINT), shifted) == shifted
    assert compose(shifted, on(CROP)) == on(VALID3, biased=True)  # nothing reads the value any more
    assert compose(shifted, on(PAD)) == Refusal(ACROSS)
    assert compose(on(PAD, biased=False, shifted=True), on(PAD)) == Refusal(SHIFTED)
    assert compose(on(POINT, channels=(4, 4), group=1), shifted) == Refusal(SHIFTED)


def test_branches_must_find_one_value_outside() -> None:
    shifted, zero = on(SAME3, shifted=True), on(Axis(5, begin=2, end=2))
    assert add([shifted, on(POINT)]) == shifted
    assert add([shifted, on(Axis(5, begin=2, end=2), shifted=True)]) == replace(zero, shifted=True)
    reason = "pads with zeros tensors of different shifts, so its border would differ"
    assert add([shifted, zero]) == Refusal(reason)


def test_each_axis_counts() -> None:
    """1x7 into 7x1, as InceptionNext and Inception-v3 have it: each is padded where the other has one tap."""
    row, column = on(POINT, Axis(7, begin=3, end=3)), on(Axis(7, begin=3, end=3), POINT)
    assert compose(row, column) == on(*(Axis(7, begin=3, end=3),) * 2)
    assert compose(row, row) == Refusal(ACROSS)


@pytest.mark.parametrize(
    ("first", "second", "shape", "group"),
    [
        pytest.param(channels(8, 3), channels(16, 8), (16, 3), 1, id="dense-dense"),
        pytest.param(channels(8, 8, 8), channels(16, 8), (16, 8), 1, id="depthwise-dense"),
        pytest.param(channels(8, 8, 8), channels(8, 8, 8), (8, 8), 8, id="depthwise-depthwise"),
        pytest.param(channels(12, 12, 4), channels(12, 12, 6), (12, 12), 2, id="groups-4-and-6"),
        pytest.param(channels(12, 12, 3), channels(12, 12, 4), (12, 12), 1, id="groups-3-and-4"),
        pytest.param(channels(16, 8, 8), channels(16, 16, 16), (16, 8), 8, id="multiplied-then-depthwise"),
        pytest.param(channels(16, 8, 4), channels(4, 16, 2), (4, 8), 2, id="groups-4-and-2"),
        pytest.param(IDENTITY, channels(16, 8, 4), (16, 8), 4, id="source"),
        pytest.param(channels(16, 8, 4), IDENTITY, (16, 8), 4, id="identity"),
        pytest.param(on(POINT, POINT), channels(8, 8, 8), (8, 8), 8, id="pooling-then-depthwise"),
        pytest.param(channels(16, 8, 8), on(POINT, POINT), (16, 8), 8, id="multiplied-then-pooling"),
        pytest.param(on(POINT, POINT), IDENTITY, None, 0, id="pooling-then-identity"),
    ],
)
def test_compose_channels(first: Window, second: Window, shape: tuple[int, int] | None, group: int) -> None:
    assert compose(first, second) == Window(shape, group, (POINT, POINT))


def test_compose_refuses_what_does_not_fit() -> None:
    assert compose(channels(1, 8), channels(64, 64, 64)) == Refusal("broadcasts 1 channels against 64")
    assert compose(on(SAME3), on(SAME3, SAME3)) == Refusal("joins kernels of 1 and 2 axes")


def test_a_pointwise_op_works_at_any_rank() -> None:
    scale = Window((8, 8), 8)
    volume = Window((8, 8), 1, (SAME3, SAME3, SAME3))
    assert compose(scale, volume) == volume
    assert compose(volume, scale) == volume
    assert compose(scale, scale) == scale
    assert with_rank(scale, 2) == channels(8, 8, 8)
    assert with_rank(volume, 2) == volume


def test_a_gemm_has_no_axes_whatever_it_meets() -> None:
    gemm, scale = Window((8, 8), 1, layout=Layout.FLAT), Window((8, 8), 8)
    assert compose(gemm, scale) == compose(scale, gemm) == add([gemm, scale]) == add([scale, gemm]) == gemm
    assert compose(gemm, gemm) == add([gemm, IDENTITY]) == gemm
    assert with_rank(gemm, 2) == gemm
    for other in (on(SAME3), on(POINT)):
        refusal = Refusal("joins kernels of 0 and 1 axes")
        assert compose(gemm, other) == compose(other, gemm) == add([gemm, other]) == refusal


SOME_EXTENTS = (
    "its branches' output extents agree only for some input extents (pads_begin + pads_end - "
    "dilation * (kernel - 1) is {}); export with static extents"
)
UPPER3 = Axis(3, 2, begin=0, end=1)
"""What SAME_UPPER makes of a 3 of stride 2 where the input extent is even."""


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        pytest.param([SAME3], SAME3, id="one-branch"),
        pytest.param([SAME3, SAME3], SAME3, id="3+3"),
        pytest.param([POINT, POINT], POINT, id="1+1"),
        pytest.param([SAME3, POINT], SAME3, id="3+1"),
        pytest.param([POINT, SAME3, SAME5], SAME5, id="1+3+5"),
        pytest.param([Axis(3, 2, 1, 1, 1), Axis(1, 2)], Axis(3, 2, 1, 1, 1), id="3+1-stride-2"),
        # A crop is what an unpadded kernel takes off.
        pytest.param([VALID3, CROP], VALID3, id="3-valid+crop"),
        pytest.param([VALID3, Axis(begin=-2)], VALID3, id="3-valid+its-last-tap"),
        pytest.param([CROP, CROP], CROP, id="crop+crop"),
        # Kernels are aligned by what their taps read, wherever their centres are.
        pytest.param([Axis(2, end=1), POINT], Axis(2, end=1), id="2-upper+1"),
        pytest.param([Axis(2, end=1), Axis(2, begin=1)], SAME3, id="2-upper+2-lower"),
        pytest.param([CAUSAL3, POINT], CAUSAL3, id="causal+1"),
        pytest.param([CAUSAL3, Axis(3, end=2)], SAME5, id="causal+anticausal"),
        pytest.param([Axis(4, begin=1, end=2), SAME3], Axis(4, begin=1, end=2), id="4+3"),
        # The grid is the coarsest that holds all taps.
        pytest.param([Axis(3, 1, 2, 2, 2), POINT], Axis(3, 1, 2, 2, 2), id="dilation-2+1"),
        pytest.param([Axis(3, 1, 2, 2, 2), SAME3], SAME5, id="dilation-2+dilation-1"),
        pytest.param([Axis(3, 1, 4, 4, 4), Axis(3, 1, 2, 2, 2)], Axis(5, 1, 2, 4, 4), id="dilation-4+2"),
        pytest.param([Axis(3, 1, 3, 3, 3), Axis(3, 1, 2, 2, 2)], Axis(7, begin=3, end=3), id="dilation-3+2"),
        pytest.param([Axis(3, 1, 2, 2, 2), Axis(begin=1, end=-1)], SAME5, id="dilation-2+off-the-grid"),
        pytest.param([Axis(begin=2, end=-2), POINT], Axis(2, 1, 2, 2, 0), id="shifted-by-2+1"),
    ],
)
def test_add_axes(branches: list[Axis], expected: Axis) -> None:
    windows = [on(axis) for axis in branches]
    assert add(windows) == on(expected)
    assert add(windows[::-1]) == on(expected)


def test_the_sum_is_the_bounding_box_of_its_branches() -> None:
    """ACNet: 3x3 + 1x3 + 3x1. SLaK: 51x5 + 5x51, which makes a 51x51."""
    row, column = on(POINT, SAME3), on(SAME3, POINT)
    assert add([row, column]) == add([row, column, on(SAME3, SAME3)]) == on(SAME3, SAME3)
    long = Axis(51, begin=25, end=25)
    assert add([on(long, SAME5), on(SAME5, long)]) == on(long, long)


@pytest.mark.parametrize(
    ("branches", "slacks", "extent", "expected"),
    [
        # Both halve an even extent. Only that of an odd extent is symmetric, and agrees with a plain 1x1.
        pytest.param([UPPER3, Axis(1, 2)], "-1 and 0", 8, UPPER3, id="same-upper-3+1"),
        pytest.param([UPPER3, Axis(1, 2)], "-1 and 0", 9, None, id="same-upper-3+1-odd"),
        pytest.param(
            [Axis(3, 2, 1, 1, 1), Axis(2, 2)], "-1 and 0", 8, Axis(3, 2, 1, 1, 0), id="3-stride-2+patches"
        ),
        pytest.param([Axis(1, 2), Axis(1, 2, 1, -1)], "-1 and 0", 8, Axis(2, 2), id="even+odd-places"),
        pytest.param([Axis(1, 2), Axis(1, 2, 1, -1)], "-1 and 0", 9, None, id="even+odd-places-odd"),
        # Padding that no tap reaches is left out.
        pytest.param([Axis(1, 3), Axis(1, 3, end=1)], "0 and 1", 8, Axis(1, 3), id="idle-padding"),
        pytest.param([SAME3, VALID3], "-2 and 0", 9, None, id="same+valid"),
    ],
)
def test_unequal_slacks_need_a_static_extent(
    branches: list[Axis], slacks: str, extent: int, expected: Axis | None
) -> None:
    windows = [on(axis) for axis in branches]
    unknown = Refusal(SOME_EXTENTS.format(slacks), extents_would_help=True)
    assert add(windows) == add(windows, [None]) == unknown
    for order in (windows, windows[::-1]):
        if expected is None:
            assert add(order, [extent]) == Refusal(
                f"its branches' output extents differ for an input extent of {extent}"
            )
        else:
            assert add(order, [extent]) == on(expected, fixed=True)


def test_a_sum_for_a_static_extent_stays_so() -> None:
    static = add([on(POINT, UPPER3), on(POINT, Axis(1, 2))], [None, 8])
    assert static == on(POINT, UPPER3, fixed=True)
    assert isinstance(static, Window)
    assert add([static, on(SAME3, UPPER3)]) == on(SAME3, UPPER3, fixed=True)
    assert compose(static, IDENTITY) == compose(IDENTITY, static) == static


@pytest.mark.parametrize(
    ("branches", "shape", "group"),
    [
        pytest.param([channels(8, 8), IDENTITY], (8, 8), 1, id="dense+identity"),
        pytest.param([channels(8, 8, 2), IDENTITY], (8, 8), 2, id="grouped+identity"),
        pytest.param([channels(8, 8, 8), IDENTITY], (8, 8), 8, id="depthwise+identity"),
        pytest.param([channels(8, 8, 8), channels(8, 8)], (8, 8), 1, id="depthwise+dense"),
        pytest.param([channels(12, 12, 4), channels(12, 12, 6)], (12, 12), 2, id="groups-4+6"),
        pytest.param([channels(12, 12, 3), channels(12, 12, 4)], (12, 12), 1, id="groups-3+4"),
        pytest.param([channels(16, 8, 8), channels(16, 8, 4)], (16, 8), 4, id="multiplied+grouped"),
        pytest.param([channels(16, 8), channels(16, 8)], (16, 8), 1, id="widening"),
        pytest.param([on(POINT, POINT), IDENTITY], None, 0, id="pooling+identity"),
    ],
)
def test_add_channels(branches: list[Window], shape: tuple[int, int] | None, group: int) -> None:
    assert add(branches) == add(branches[::-1]) == Window(shape, group, (POINT, POINT))


@pytest.mark.parametrize(
    ("branches", "extents", "reason"),
    [
        pytest.param(
            [on(SAME3), on(Axis(3, 2, 1, 1, 1))],
            [9],
            "its branches have strides 1 and 2",
            id="strides",
        ),
        pytest.param(
            [channels(1, 8), channels(64, 8)],
            [],
            "its branches compute 1 channels from 8 and 64 channels from 8: the Add would broadcast",
            id="broadcast",
        ),
        pytest.param(
            [channels(64, 3), IDENTITY],
            [],
            "adds a tensor of 3 channels as it is to one of 64",
            id="identity-of-other-width",
        ),
        pytest.param([on(SAME3), on(SAME3, SAME3)], [], "joins kernels of 1 and 2 axes", id="ranks"),
        pytest.param(
            [on(SAME3, SAME3)], [9], "joins kernels of 2 axes on a tensor of 1", id="rank-of-the-source"
        ),
    ],
)
def test_add_refuses(branches: list[Window], extents: list[int], reason: str) -> None:
    assert add(branches, extents) == Refusal(reason)


def test_one_shift_makes_the_sum_shift() -> None:
    assert add([on(SAME3), on(SAME3, biased=True)]) == on(SAME3, biased=True)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        pytest.param(SAME3, SAME3, id="padded"),
        pytest.param(CROP, VALID3, id="crop"),
        pytest.param(Axis(begin=-2), VALID3, id="crop-at-the-begin"),
        pytest.param(Axis(begin=1, end=-1), Axis(2, begin=1), id="shifted"),
        pytest.param(Axis(3, begin=-1, end=1), Axis(4, end=1), id="3-crop-and-pad"),
        # Zero taps stand on the grid; where that takes off too much, padding gives back.
        pytest.param(Axis(3, 1, 2, -2, -4), Axis(6, 1, 2), id="on-the-grid"),
        pytest.param(Axis(3, 1, 2, -1, -3), Axis(6, 1, 2, 1, 1), id="off-the-grid"),
        pytest.param(Axis(1, 2, 1, -1), Axis(2, 2), id="stride-2"),
    ],
)
def test_emittable_windows_do_not_crop(axis: Axis, expected: Axis) -> None:
    assert emittable(on(axis, biased=True)) == on(expected, biased=True)
    assert expected.slack == axis.slack


@pytest.mark.parametrize("layout", [Layout.FLAT, Layout.LAST])
def test_emittable_windows_of_linear_layers_have_no_groups(layout: Layout) -> None:
    assert emittable(Window((4, 2), 2, layout=layout)) == Window((4, 2), 1, layout=layout)
