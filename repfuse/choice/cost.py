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

from repfuse.algebra.window import Window

DEPTHWISE = 1.5
"""A multiply-add of a depthwise Conv: it reuses less of what it reads than a dense one."""

MOVED = 2.8
"""An element read or written. Runtimes fuse an Add into the Conv before it, so it costs less than its traffic."""

_SLOW_WIDTHS, _FAST_WIDTH = (12, 13), 14
"""OpenVINO's depthwise Conv (2026.4, AVX-512) is 1.9 to 2.4 times as fast with a kernel that is 14 wide as with one
that is 12 or 13 wide. A column of zeros costs ONNX Runtime 6 to 17 %, which is less than a merged branch saves."""

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


def fastest(window: Window) -> Window:
    """The same window, with columns of zero taps at its end where a runtime is faster for them."""
    channels, _ = window.channels or (0, 0)
    if not window.depthwise or channels <= _SLOW_CHANNELS or len(window.axes) != 2 or window.output_padding:
        return window
    rows, columns = window.axes
    if columns.kernel not in _SLOW_WIDTHS or (columns.stride, columns.dilation) != (1, 1):
        return window
    more = _FAST_WIDTH - columns.kernel
    wide = columns._replace(kernel=_FAST_WIDTH, end=columns.end + more)
    return replace(window, axes=(rows, wide))


def pointwise(channels: int, operands: int = 1) -> float:
    """The cost of an elementwise op of that many operands: each is read once, the result written once."""
    return _moved.get() * channels * (operands + 1)
