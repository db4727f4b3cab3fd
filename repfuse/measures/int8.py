"""What fusing does to later quantization: how well weights survive int8, before and after.

Weights are taken as quantizers see them, with the scales behind them (BatchNormalization) folded in, and rounded
to symmetric int8, with one step for each output channel or one for the whole tensor: `step = max|w| / 127`. The
signal-to-quantization-noise ratio is `10 log10(sum w^2 / sum (w - rounded)^2)`, in dB. QARepVGG (arXiv:2212.01593)
found that merging may widen a kernel's range so far that a network does not survive it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from repfuse.algebra.kernel import Array
from repfuse.graph.view import scopes
from repfuse.remarks import Edit
from repfuse.search.groups import Groups

LEVELS = 127
"""Of symmetric int8, on either side of zero."""

BAD = 30.0
"""dB of one step for each channel, below which a kernel quantizes badly: see docs/quantization.md."""

NOTABLE = 3.0
"""dB: a kernel that loses less is as good or as bad as its branches were."""


@dataclass(frozen=True)
class WeightNoise:
    """How well some weights survive int8.

    Attributes:
        per_channel: Their signal-to-noise ratio with a step for each output channel, in dB; infinite where
            nothing is lost.
        per_tensor: The same with one step for each tensor.
        least: The smallest range (largest absolute value) of an output channel that has one.
        largest: The largest range of an output channel.
    """

    per_channel: float
    per_tensor: float
    least: float
    largest: float


@dataclass(frozen=True)
class BlockNoise:
    """A block's weights before and after.

    Attributes:
        edit: The change.
        before: Those of its branches together, scales folded in.
        after: Those of what took its place.
    """

    edit: Edit
    before: WeightNoise
    after: WeightNoise

    @property
    def lost(self) -> float:
        """What fusing costs with a step for each channel, in dB; negative where it gains."""
        return 0.0 if self.before == self.after else self.before.per_channel - self.after.per_channel

    @property
    def bad(self) -> bool:
        """Whether the fused kernel quantizes badly, and notably worse than its branches."""
        return self.after.per_channel < BAD and self.lost > NOTABLE


def compare(before: ModelProto, after: ModelProto, edits: Sequence[Edit]) -> list[BlockNoise]:
    """Measure each block's weights; a block without weights on both sides is left out.

    Args:
        before: The original.
        after: The fused model.
        edits: What was changed.
    """
    old, new = (
        {scope.label: _Weights(Groups(scope)) for scope in scopes(model)} for model in (before, after)
    )
    found = []
    for edit in edits:
        sides = [noise(old[edit.graph].of(edit.removed)), noise(new[edit.graph].of(edit.added))]
        if all(side.largest for side in sides):
            found.append(BlockNoise(edit, *sides))
    return found


def noise(weights: Sequence[Array]) -> WeightNoise:
    """Measure weights together, each of shape `(C_out, ...)`."""
    rows = [weight.reshape(len(weight), -1).astype(np.float64) for weight in weights]
    ranges = np.concatenate([np.abs(each).max(axis=1) for each in rows] or [np.zeros(1)])
    used = ranges[ranges > 0]
    signal = sum(float(np.sum(each**2)) for each in rows)
    per_channel, per_tensor = (
        sum(_lost(each, np.abs(each).max(axis=axis, keepdims=True)) for each in rows) for axis in (1, None)
    )
    return WeightNoise(
        _decibels(signal, per_channel),
        _decibels(signal, per_tensor),
        float(used.min(initial=np.inf)) if used.size else 0.0,
        float(ranges.max()),
    )


def _lost(rows: Array, ranges: Array) -> float:
    """What rounding to int8 changes, as a sum of squares."""
    step = np.where(ranges > 0, ranges, 1) / LEVELS
    return float(np.sum((rows - np.round(rows / step) * step) ** 2))


def _decibels(signal: float, lost: float) -> float:
    return 10 * math.log10(signal / lost) if signal and lost else math.inf


class _Weights:
    """The weights of one graph's nodes."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        scope = groups.scope
        self._positions = {scope.name(position): position for position in groups.lifted}

    def of(self, names: Sequence[str]) -> list[Array]:
        """The weight of each of these nodes that has one, with the scales behind it folded in."""
        positions = {self._positions[name] for name in names if name in self._positions}
        return [
            weight
            for position in sorted(positions)
            for weight in self._scaled(position, frozenset(positions))
        ]

    def _scaled(self, position: int, inside: frozenset[int]) -> Iterator[Array]:
        lifted = self._groups.lifted[position]
        if not lifted.weight_type:
            return
        weight = lifted.kernel().weight.astype(np.float64)
        for scale in self._scales(position, inside):
            weight = weight * np.broadcast_to(scale, len(weight)).reshape(-1, *[1] * (weight.ndim - 1))
        yield weight

    def _scales(self, position: int, inside: frozenset[int]) -> Iterator[Array]:
        """What multiplies a node's outputs, channel by channel, as long as nothing else reads them."""
        scope = self._groups.scope
        while len(following := list(scope.consumers(scope.nodes[position].output[0]))) == 1:
            (position,) = following
            lifted = self._groups.lifted.get(position)
            if position not in inside or lifted is None or lifted.weight_type:
                return
            if not (lifted.window.pointwise and lifted.window.depthwise):
                return
            yield lifted.kernel().weight.reshape(-1)
