"""What an op costs, for each position of its output: enough to tell whether a rewrite pays.

Costs are counted in multiply-adds of a dense Conv. The constants below are such that the blocks of
tools/bench_blocks.py, measured on ONNX Runtime and OpenVINO, are decided as their latency says. Only ratios
matter, so costs are per output position and need no extents: they hold for symbolic ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from repfuse.window import Window

DEPTHWISE = 2.0
"""A multiply-add of a depthwise Conv: it reuses less of what it reads than a dense one."""

MOVED = 1.5
"""An element read or written. Runtimes fuse an Add into the Conv before it, so it costs less than its traffic; and
an estimate may err, so what a rewrite moves less must be worth twice what it computes more."""

SLOW_ALONE = 13
"""The kernel extent that OpenVINO's depthwise Conv (2026.4, AVX-512) runs 2.4 times slower when no Add follows."""

_SLOW_ALONE_FACTOR = 2.4
_SLOW_ALONE_CHANNELS = 48
"""Up to so many channels it runs as fast as others do."""


_moved = ContextVar("moved", default=MOVED)


@contextlib.contextmanager
def balance(moved: float) -> Iterator[None]:
    """Let an element moved cost so many multiply-adds for as long as the context lasts, in place of `MOVED`."""
    token = _moved.set(moved)
    try:
        yield
    finally:
        _moved.reset(token)


def conv(window: Window, *, alone: bool = False) -> float:
    """The cost of a Conv with this window, and of the Add that a shift takes; `alone` where no Add follows it."""
    outputs, inputs = window.channels or (1, 1)
    arithmetic = float(window.elements)
    if window.output_padding is not None:  # each input position has all taps
        arithmetic *= window.stride
    if window.depthwise:
        arithmetic *= DEPTHWISE
        if alone and slow_alone(window):
            arithmetic *= _SLOW_ALONE_FACTOR
    moved = outputs + inputs * window.stride
    if window.shifted:  # an Add stays before it
        moved += 2 * inputs * window.stride
    return arithmetic + _moved.get() * moved


def slow_alone(window: Window) -> bool:
    """Whether a runtime is known to be slow on this Conv where no Add follows it."""
    channels, _ = window.channels or (0, 0)
    many = channels > _SLOW_ALONE_CHANNELS
    return many and window.depthwise and [axis.kernel for axis in window.axes] == [SLOW_ALONE] * 2


def pointwise(channels: int, operands: int = 1) -> float:
    """The cost of an elementwise op of that many operands: each is read once, the result written once."""
    return _moved.get() * channels * (operands + 1)
