"""Kernels of tensors at which branches part, kept: groups that overlap before there need not compose them again.

In a row of ops from each of which a group parts, every group begins as the one before it did. To compose each from
its source on would take as many steps for each as there are nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from repfuse.algebra.kernel import EquivalentKernel

_KEPT = 64
"""So many are kept, the latest ones."""

_ELEMENTS = 2**16
"""A weight of more is not kept: with this, all take 32 MiB at most."""


class Weight(NamedTuple):
    """A node's weight: its type, whether it is stored quantized, and the node's position."""

    data_type: int
    quantized: bool
    position: int


Weights = frozenset[Weight]
"""The weights on a way: of each kind two at most."""


@dataclass(frozen=True)
class Milestone:
    """How a tensor follows from a source: its kernel, and the weights on the way."""

    kernel: EquivalentKernel
    weights: Weights


class Milestones:
    """The latest milestones of one graph, by source, tensor, and the carrying ops that the group passes."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, tuple[int, ...]], Milestone] = {}

    def find(self, source: str, tensor: str, *, path: tuple[int, ...]) -> Milestone | None:
        """What is kept for a tensor, if anything is."""
        return self._kept.get((source, tensor, path))

    def keep(self, source: str, tensor: str, milestone: Milestone, *, path: tuple[int, ...]) -> None:
        """Keep a milestone unless it is large, and forget the oldest one."""
        if milestone.kernel.weight.size > _ELEMENTS:
            return
        self._kept[source, tensor, path] = milestone
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]


def few(weights: Weights) -> Weights:
    """At most two weights of each kind: whether one is alone is all that is asked of them."""
    if len(weights) < 3:
        return weights
    found: dict[tuple[int, bool], list[Weight]] = {}
    for weight in sorted(weights):
        found.setdefault((weight.data_type, weight.quantized), []).append(weight)
    return frozenset(weight for alike in found.values() for weight in alike[:2])
