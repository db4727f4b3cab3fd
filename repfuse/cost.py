"""What an op costs, for each position of its output: enough to tell whether a rewrite pays.

One unit is one multiply-add of a dense Conv. The weights of the other terms were measured on blocks of many
shapes with ONNX Runtime and OpenVINO on one thread: a depthwise multiply-add costs more than a dense one,
since it reuses less; moving an element in or out costs as much as many of either, which is why a lone
BatchNormalization or Add is dear beside its arithmetic.

Only ratios matter, so costs are per output position and need no extents: they hold for symbolic ones.
"""

from __future__ import annotations

from repfuse.window import Window

DEPTHWISE = 2.0
"""Units for a multiply-add of a depthwise Conv."""

MOVED = 16.0
"""Units for an element read or written."""


def conv(window: Window) -> float:
    """The cost of a Conv with this window."""
    outputs, inputs = window.channels or (1, 1)
    multiply_adds = outputs * (inputs // (window.group or 1)) * window.taps
    each = DEPTHWISE if window.depthwise else 1.0
    return each * multiply_adds + MOVED * (outputs + inputs * window.stride)


def pointwise(channels: int, operands: int = 1) -> float:
    """The cost of an elementwise op of that many operands: each is read once, the result written once."""
    return MOVED * channels * (operands + 1)
