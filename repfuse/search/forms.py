"""Forms: the ways in which a tensor follows linearly from another one, as one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from repfuse.algebra.window import IDENTITY, Window

_KEPT = 8
"""Forms of one tensor that are carried on, half of them the nearest sources: it bounds the work for each node."""


class Form(NamedTuple):
    """One way in which a tensor follows from a source: its window, and whether a weight is on the way."""

    window: Window
    is_weighted: bool


@dataclass(frozen=True)
class CarriedForm:
    """One way in which a tensor follows from a source across ops that carry channels (see `operators.carry`).

    Attributes:
        before: The kernel if it acts on the source, and the ops on what it computes; None if that cannot be.
        behind: The kernel if it acts on what the ops make of the source; None if that cannot be.
        path: Positions of the ops.
        is_weighted: As for `Form`.
        starts_weighted: Whether a weight is before the first of the ops.
        grows: Whether there are more positions behind the ops than before them.
    """

    before: Window | None
    behind: Window | None
    path: tuple[int, ...]
    is_weighted: bool
    starts_weighted: bool
    grows: bool = False

    @property
    def choices(self) -> list[tuple[Window, bool]]:
        """The kernels that may be chosen, with whether each is behind the ops."""
        both = [(self.before, False), (self.behind, True)]
        if self.behind and not self.starts_weighted and not self.grows:  # the weight stays on its side
            both = both[1:]
        return [(window, behind) for window, behind in both if window]


ITSELF = Form(IDENTITY, is_weighted=False)
"""The bare source."""


def kept(found: Mapping[str, Form]) -> dict[str, Form]:
    """The forms by source that are carried on: those of the nearest sources, and of the farthest."""
    forms = list(found.items())
    return dict(forms if len(forms) <= _KEPT else forms[: _KEPT // 2] + forms[-_KEPT // 2 :])


def nearest(found: Mapping[str, CarriedForm]) -> dict[str, CarriedForm]:
    """The forms of the nearest sources."""
    return dict(list(found.items())[:_KEPT])
