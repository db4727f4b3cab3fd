"""How a linear op moves over its input: extents and channels, without the weights.

A `Window` is the geometry of an equivalent kernel. Here, and only here, it is decided whether two linear ops
in sequence, or several in parallel, are one convolution: that depends on extents alone, so whole graphs can
be searched without reading a weight. Pure arithmetic on integers; it knows neither ONNX nor numpy.

On each axis, tap `j` of output `i` reads input position `stride * i + dilation * j - begin`; outside the
input it reads the *outside value*, one for each channel: zero, but where a scale and a shift stand before
zero-padding. `begin` and `end` may be negative: then the op crops. With `slack = begin + end -
dilation * (kernel - 1)` an input of extent `N` gives `floor((N - 1 + slack) / stride) + 1` outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be done: a falsy value that carries a sentence.

    Attributes:
        reason: The sentence, to be read after a node's name.
        extents_would_help: Whether it might be done if the source's static extents were known.
        invalid: Whether the node makes no sense by ONNX's definition, or computes no numbers, whatever it is fed.
    """

    reason: str
    extents_would_help: bool = False
    invalid: bool = False

    def __bool__(self) -> Literal[False]:
        return False


class Axis(NamedTuple):
    """One spatial axis of a window. Extents and positions count elements of the input."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0

    @property
    def reach(self) -> int:
        """The distance between the first tap and the last."""
        return self.dilation * (self.kernel - 1)

    @property
    def slack(self) -> int:
        """How many outputs there are beyond one for each input, before the stride."""
        return self.begin + self.end - self.reach

    @property
    def padded(self) -> bool:
        """Whether some tap reads outside the input."""
        return self.begin > 0 or self.end > 0

    def outputs(self, extent: int) -> int:
        """The extent of the output for an input of `extent`."""
        return (extent - 1 + self.slack) // self.stride + 1


class Layout(Enum):
    """Which axis of a tensor holds the channels that an op tells apart; all that is no spatial axis is batch."""

    ANY = "any axis"
    """It treats all elements alike, so this is for others to say."""
    SECOND = "axis 1"
    """As for Conv and BatchNormalization: spatial axes follow."""
    LAST = "the last axis"
    """As for MatMul, at any rank: there are no spatial axes."""
    FLAT = "the last of two axes"
    """As for Gemm: rank 2, where the last axis is axis 1."""

    __hash__ = object.__hash__  # sets of them are made often, and Enum's own is written in Python


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of an equivalent kernel.

    Attributes:
        channels: `(C_out, C_in)`; None for an op that treats all channels alike, however many there are
            (a scalar scale, a pooling, the bare source).
        group: As in Conv; 0 where `channels` is None.
        axes: The spatial axes; empty for a pointwise op, which works at any rank.
        biased: Whether the constant part may be other than zero.
        fixed: Whether this holds only for the static input extent that the model declares.
        layout: Where the channels are.
        shifted: Whether the outside value may be other than zero; only of a padded window.
        output_padding: Of a ConvTranspose, how many outputs it appends on each axis; None for any other op. Its
            axes are those of the Conv whose transpose it is.
    """

    channels: tuple[int, int] | None = None
    group: int = 0
    axes: tuple[Axis, ...] = ()
    biased: bool = False
    fixed: bool = False
    layout: Layout = Layout.ANY
    shifted: bool = False
    output_padding: tuple[int, ...] | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.layout is Layout.ANY and (self.channels or self.axes):
            object.__setattr__(self, "layout", Layout.SECOND)
        # They are looked up ten times as often as made. (Of numbers: these hash alike in every process.)
        object.__setattr__(self, "_hash", hash((self.channels or (), self.group, self.axes, self.biased)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads the input channel of its own number only."""
        return self.channels is None or (self.channels[0] == self.channels[1] == self.group)

    @property
    def pointwise(self) -> bool:
        """Whether each output reads one input position, that of its own number."""
        return self.output_padding is None and self.axes.count(_POINT) == len(self.axes)

    @property
    def padded(self) -> bool:
        """Whether some tap reads outside the input on any axis."""
        return any(axis.padded for axis in self.axes)

    @property
    def taps(self) -> int:
        """How many positions each output reads."""
        return math.prod(axis.kernel for axis in self.axes)

    @property
    def elements(self) -> int:
        """How many elements its weight has."""
        outputs, inputs = self.channels or (1, 1)
        return outputs * (inputs // (self.group or 1)) * self.taps

    @property
    def stride(self) -> float:
        """How many input positions there are for each output position."""
        steps = math.prod(axis.stride for axis in self.axes)
        return steps if self.output_padding is None else 1 / steps


_POINT = Axis()
IDENTITY = Window()
"""The bare source."""


@lru_cache(2**12)  # networks repeat their blocks
def compose(first: Window, second: Window) -> Window | Refusal:
    """`second` applied to what `first` computes, as one window: transform III of DBB (arXiv:2103.13425).

    Padding between the two must be harmless: where `second` reads outside the tensor between them it finds its
    outside value, while the composed window takes there what `first` would compute outside. So all taps of
    `first` for such a place must lie outside the input as well, and what they find there must give that value:
    zero gives zero, if `first` has no constant part. If `first` is a scale and a shift for each channel, which
    never reads outside, some value gives it, and becomes the outside value of the composed window.

    Returns:
        The window, or why there is none.
    """
    if first is IDENTITY:
        return second
    pair = _same_rank((first, second))
    if isinstance(pair, Refusal):
        return pair
    first, second = pair
    if first.channels and second.channels and first.channels[0] != second.channels[1]:
        return Refusal(f"broadcasts {first.channels[0]} channels against {second.channels[1]}")
    if first.output_padding is not None or second.output_padding is not None:
        return _compose_transposed(first, second)
    for a, b in zip(first.axes, second.axes, strict=True):
        if (a.reach - a.begin >= a.stride and b.begin > 0) or (a.reach > a.end and b.end > 0):
            return Refusal("pads with zeros what an op before it computes from across the border")
    shifted = first.shifted
    if second.padded and (first.biased or first.shifted or second.shifted):
        if first.padded or not first.depthwise or first.taps > 1:
            return Refusal("pads with zeros a tensor to which a shift was added, so its border would differ")
        shifted = True
    axes = tuple(_compose_axis(a, b) for a, b in zip(first.axes, second.axes, strict=True))
    return Window(
        *_chained(first, second),
        axes=axes,
        biased=first.biased or second.biased,
        fixed=first.fixed or second.fixed,
        layout=first.layout,
        shifted=shifted and any(axis.padded for axis in axes),  # a crop may take all of the padding away
    )


def add(windows: Sequence[Window], extents: Sequence[int | None] = ()) -> Window | Refusal:
    """The sum of parallel windows over one source (transforms II and VI of DBB).

    Strides must agree, and so must the output extents: for every input extent where slacks are equal, else
    for the static `extents` of the source. Kernels are aligned by the input positions that their taps read,
    and the sum is their bounding box on the coarsest grid that holds all taps. Padded windows must find one
    value outside: all of them zero, or all of them another one, which is compared when weights are read.

    Args:
        windows: At least one.
        extents: The source's spatial extents, None for an unknown one; empty if none is known.

    Returns:
        The window, or why there is none.
    """
    if not extents and all(window == windows[0] for window in windows):
        return windows[0]
    alike = _same_rank(windows)
    if isinstance(alike, Refusal):
        return alike
    channels = _common_channels(alike)
    if isinstance(channels, Refusal):
        return channels
    return _aligned(alike, extents, channels, math.gcd(*(window.group for window in alike)))


def stack(windows: Sequence[Window], extents: Sequence[int | None] = ()) -> Window | Refusal:
    """Parallel windows over one source with their outputs one behind the other (transform IV of DBB).

    Taps are aligned as in a sum. An output channel may read any input channel, so there is one group.

    Args:
        windows: At least one, of which one must tell the number of input channels.
        extents: As for `add`.

    Returns:
        The window, or why there is none.
    """
    alike = _same_rank(windows)
    if isinstance(alike, Refusal):
        return alike
    inputs = {window.channels[1] for window in alike if window.channels}
    if len(inputs) != 1:
        return Refusal(f"stacks branches of {' and '.join(map(str, sorted(inputs))) or 'unknown'} channels")
    (count,) = inputs
    outputs = sum(window.channels[0] if window.channels else count for window in alike)
    return _aligned(alike, extents, (outputs, count), 1)


def emittable(window: Window) -> Window:
    """The same window as an operator has it, with zeros for what there is not.

    Conv has no negative padding, Gemm and MatMul have no groups.
    """
    if window.layout in (Layout.FLAT, Layout.LAST) and window.group > 1:
        window = replace(window, group=1)
    if window.output_padding is not None or all(axis.begin >= 0 <= axis.end for axis in window.axes):
        return window
    axes = []
    for axis in window.axes:
        before = max(0, -(axis.begin // axis.dilation)) if axis.begin < 0 else 0
        after = max(0, -(axis.end // axis.dilation)) if axis.end < 0 else 0
        axes.append(
            axis._replace(
                kernel=axis.kernel + before + after,
                begin=axis.begin + before * axis.dilation,
                end=axis.end + after * axis.dilation,
            )
        )
    return replace(window, axes=tuple(axes))


@lru_cache(2**12)
def with_rank(window: Window, rank: int) -> Window:
    """A pointwise window for any rank given `rank` spatial axes; any other window as it is."""
    if window.axes or window.layout not in (Layout.ANY, Layout.SECOND):
        return window
    return replace(window, axes=(_POINT,) * rank, layout=Layout.SECOND)


def _aligned(
    alike: Sequence[Window], extents: Sequence[int | None], channels: tuple[int, int] | None, group: int
) -> Window | Refusal:
    """The window of these channels that holds the taps of all of some windows of one rank."""
    biased = any(window.biased for window in alike)
    if any(window.output_padding is not None for window in alike):
        if len({(window.axes, window.output_padding) for window in alike}) > 1:
            return Refusal("joins a ConvTranspose with what is none, or has another geometry")
        return replace(alike[0], channels=channels, group=group, biased=biased)
    rank = len(alike[0].axes)
    known = extents if extents and rank else [None] * rank
    if len(known) != rank:
        return Refusal(f"joins kernels of {rank} axes on a tensor of {len(known)}")
    axes: list[Axis] = []
    fixed = any(window.fixed for window in alike)
    for number, column in enumerate(zip(*(window.axes for window in alike), strict=True)):
        axis = _add_axes(column, known[number])
        if isinstance(axis, Refusal):
            return axis
        axes.append(axis)
        fixed = fixed or len({a.slack for a in column}) > 1
    outside = {window.shifted for window in alike if window.padded}
    if len(outside) > 1:
        return Refusal("pads with zeros tensors of different shifts, so its border would differ")
    return Window(channels, group, tuple(axes), biased, fixed, alike[0].layout, True in outside)


def _same_rank(windows: Sequence[Window]) -> tuple[Window, ...] | Refusal:
    """Windows for tensors of one rank and one layout: those that fit several are made to fit the others."""
    layouts = {window.layout for window in windows} - {Layout.ANY}
    ranks = {len(window.axes) for window in windows if window.axes or window.layout is Layout.FLAT}
    if len(ranks) > 1:
        return Refusal(f"joins kernels of {' and '.join(map(str, sorted(ranks)))} axes")
    if Layout.FLAT in layouts:
        return tuple(replace(window, layout=Layout.FLAT) for window in windows)
    if len(layouts) > 1:
        return Refusal("joins an op along axis 1 with one along the last axis")
    if Layout.LAST in layouts:
        return tuple(replace(window, layout=Layout.LAST) for window in windows)
    return tuple(with_rank(window, *ranks) for window in windows) if ranks else tuple(windows)


def _chained(first: Window, second: Window) -> tuple[tuple[int, int] | None, int]:
    """Channels and group of a composition. A block of the gcd's size is closed under both maps."""
    if first.channels is None:
        return second.channels, second.group
    if second.channels is None:
        return first.channels, math.gcd(first.group, first.channels[0])
    return (second.channels[0], first.channels[1]), math.gcd(first.group, second.group)


def _compose_transposed(first: Window, second: Window) -> Window | Refusal:
    """A ConvTranspose before or behind a pointwise op. Its taps overlap, so it spreads a shift unevenly."""
    if not (first.pointwise or second.pointwise):
        return Refusal("stands in a row with a ConvTranspose, and neither of them is pointwise")
    if first.biased and second.output_padding is not None:
        return Refusal(
            "is a ConvTranspose of a tensor to which a shift was added, which its taps spread unevenly"
        )
    transposed = second if first.pointwise else first
    channels, group = _chained(first, second)
    return replace(transposed, channels=channels, group=group, biased=first.biased or second.biased)


def _common_channels(windows: Sequence[Window]) -> tuple[int, int] | Refusal | None:
    pairs = {window.channels for window in windows if window.channels}
    if len(pairs) > 1:
        counts = " and ".join(f"{a} channels from {b}" for a, b in sorted(pairs))
        return Refusal(f"its branches compute {counts}: the Add would broadcast")
    pair = next(iter(pairs), None)
    if pair and pair[0] != pair[1] and any(window.channels is None for window in windows):
        return Refusal(f"adds a tensor of {pair[1]} channels as it is to one of {pair[0]}")
    return pair


def _compose_axis(a: Axis, b: Axis) -> Axis:
    steps = ([a.dilation] if a.kernel > 1 else []) + ([a.stride * b.dilation] if b.kernel > 1 else [])
    dilation = math.gcd(*steps) or 1
    reach = a.reach + a.stride * b.reach
    return Axis(
        kernel=reach // dilation + 1,
        stride=a.stride * b.stride,
        dilation=dilation,
        begin=a.begin + a.stride * b.begin,
        end=a.end + a.stride * b.end,
    )


def _add_axes(column: tuple[Axis, ...], extent: int | None) -> Axis | Refusal:
    first = column[0]
    if column.count(first) == len(column):
        return first
    strides = sorted({axis.stride for axis in column})
    if len(strides) > 1:
        return Refusal(f"its branches have strides {' and '.join(map(str, strides))}")
    slacks = sorted({axis.slack for axis in column})
    if len(slacks) > 1:
        if extent is None:
            return Refusal(
                "its branches' output extents agree only for some input extents (pads_begin + pads_end - "
                f"dilation * (kernel - 1) is {' and '.join(map(str, slacks))}); export with static extents",
                extents_would_help=True,
            )
        if len({axis.outputs(extent) for axis in column}) > 1:
            return Refusal(f"its branches' output extents differ for an input extent of {extent}")
    steps = [axis.dilation for axis in column if axis.kernel > 1]
    steps += [abs(axis.begin - first.begin) for axis in column]
    dilation = math.gcd(*steps) or 1
    begin = max(axis.begin for axis in column)
    reach = max(axis.reach - axis.begin for axis in column) + begin
    slack = slacks[0] if len(slacks) == 1 else _fitting_slack(column[0], extent, begin, reach)
    return Axis(reach // dilation + 1, strides[0], dilation, begin, slack + reach - begin)


def _fitting_slack(axis: Axis, extent: int | None, begin: int, reach: int) -> int:
    """The least slack with an end padding of at least 0 that gives as many outputs as `axis` does."""
    assert extent is not None
    least = (axis.outputs(extent) - 1) * axis.stride - (extent - 1)
    return min(max(least, begin - reach), least + axis.stride - 1)
