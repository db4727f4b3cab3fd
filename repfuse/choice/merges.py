"""What becomes of a tensor: one Conv, or a sum or a Concat of Convs and of what stays.

A `Rewrite` is such a sum or Concat; its parts may be others. It is a plan and holds no weights: `choice.ways`
makes it, `rewriting.derive` finds the numbers, `rewriting.rewrite` the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from repfuse.algebra.window import Window
from repfuse.search.groups import Operand


@dataclass(frozen=True)
class Behind:
    """A scale and shift behind a join, as it acts on one of the operands (see `choice.spread`).

    Attributes:
        position: The node that scales; None for a change of sign.
        rows: The first of its channels that meet the operand, and the one behind the last; None for all of them.
        shifts: Whether it is this operand that takes the shift.
    """

    position: int | None
    rows: tuple[int, int] | None = None
    shifts: bool = True


@dataclass(frozen=True)
class Merge:
    """Branches that become one Conv: tensors that follow linearly from `source`, added up.

    Attributes:
        source: What it acts on.
        terms: What it computes: one tensor, or several that are added up.
        window: Its geometry.
        path: Positions of ops that carry channels (see `operators.carry`) between the source and the only term.
        behind: Whether the Conv comes behind them, not before.
        stacked: Whether the channels of the terms stand one behind the other, instead of being added up.
        tail: What scales the terms' sum from behind joins with other tensors.
    """

    source: str
    terms: tuple[Operand, ...]
    window: Window
    path: tuple[int, ...] = ()
    behind: bool = False
    stacked: bool = False
    tail: tuple[Behind, ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """A tensor as a sum, or as a Concat: of Convs, one for each merge, and of operands that stay as they are.

    Attributes:
        parts: What is added up, or stands one behind the other.
        stack: The position of the Concat that it is; None for a sum.
    """

    parts: tuple[Part, ...]
    stack: int | None = None

    @cached_property
    def merges(self) -> tuple[Merge, ...]:
        """The Convs."""
        return tuple(part for part in self._leaves() if isinstance(part, Merge))

    @cached_property
    def rest(self) -> tuple[Operand, ...]:
        """The operands that stay."""
        return tuple(part for part in self._leaves() if isinstance(part, Operand))

    def _leaves(self) -> Iterator[Merge | Operand]:
        for part in self.parts:
            if isinstance(part, Rewrite):
                yield from part._leaves()
            else:
                yield part


Part = Merge | Operand | Rewrite
