"""What an op costs, for each position of its output: enough to tell whether a rewrite pays.

Costs are counted in multiply-adds of a dense Conv. DEPTHWISE and MOVED are written by tools/fit_cost.py, which fits
them to measured blocks (tools/fit_cost.json): 97 % of those held out are told right. Only ratios
matter, so costs are per output position and need no extents: they hold for symbolic ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace

from repfuse.algebra.window import Axis, Window

DEPTHWISE = 1.5
"""A multiply-add of a depthwise Conv: it reuses less of what it reads than a dense one."""

MOVED = 2.6
"""An element read or written. Runtimes fuse an Add into the Conv before it, so it costs less than its traffic."""

UNFUSED = 30.0
"""An element that no Conv gives any more, but something behind it: OpenVINO runs activations along with a Conv.
With SiLU, moving one of 16 channels before a Resize that doubles images made a block 10 % slower."""

_SLOW_WIDTHS, _SUMMED_WIDTH = (12, 13), 13
"""OpenVINO's depthwise Conv (2026.4, AVX-512) takes two to three times as long as it should with a kernel that is
12 or 13 wide; but not with one 13 wide that adds its result to another Conv's. A Conv of one tap costs ONNX Runtime
1 to 5 % of such a kernel, which is less than a merged branch saves."""

_SLOW_CHANNELS = 48
"""Up to so many channels all widths are as fast."""

_moved = ContextVar("moved", default=MOVED)


@contextlib.contextmanager
def balance(moved: float) -> Iterator[None]:
    """Let an element moved cost so many multiply-adds for as long as the context lasts, in place of `MOVED`."""
    token = _moved.set(moved)
    try:
        yield
    finally:
        _moved.reset(token)


def conv(window: Window) -> float:
    """The cost of a Conv with this window, and of the Add that a shift takes."""
    outputs, inputs = window.channels or (1, 1)
    arithmetic = float(window.elements)
    if window.output_padding is not None:  # each input position has all taps
        arithmetic *= window.stride
    if window.depthwise:
        arithmetic *= DEPTHWISE
    moved = outputs + inputs * window.stride
    if window.shifted:  # an Add stays before it
        moved += 2 * inputs * window.stride
    return arithmetic + _moved.get() * moved


def summed(window: Window) -> Window | None:
    """The window as which a Conv is faster if one of its taps is a Conv of its own; None if it is no faster.

    It may have a column more. The tap is that which reads what is at the place of the output: both have the same
    extents, so that such a Conv needs no padding.
    """
    channels, _ = window.channels or (0, 0)
    if not window.depthwise or channels <= _SLOW_CHANNELS or len(window.axes) != 2 or window.output_padding:
        return None
    rows, columns = window.axes
    if columns.kernel not in _SLOW_WIDTHS or columns.dilation != 1 or not all(map(_centred, window.axes)):
        return None
    more = _SUMMED_WIDTH - columns.kernel
    wide = columns._replace(kernel=_SUMMED_WIDTH, end=columns.end + more)
    return replace(window, axes=(rows, wide))


def _centred(axis: Axis) -> bool:
    """Whether an output is as long as the input, and a tap reads what is at its place."""
    return (
        axis.stride == 1
        and axis.slack == 0
        and axis.begin >= 0 <= axis.end
        and axis.begin % axis.dilation == 0
    )


def pointwise(channels: int, operands: int = 1) -> float:
    """The cost of an elementwise op of that many operands: each is read once, the result written once."""
    return _moved.get() * channels * (operands + 1)
