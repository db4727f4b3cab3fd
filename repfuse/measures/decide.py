"""What measurements say: which alternative wins in a region, what to try on the whole model, what is good enough.

Numbers only: `measures.tuning` measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from repfuse.choice.plan import OWN, Place, Plan, Region, Style
from repfuse.measures.ratios import Ratio

T = TypeVar("T")

BETTER = 1.02
"""So many times faster must another alternative be to be taken in place of the cost model's own."""

NEVER_BELOW = 0.99
"""A whole model whose ratio on some backend is lower is not made."""

Ratios = Mapping[str, Ratio]
"""By the title of the backend."""


@dataclass(frozen=True)
class Decision:
    """The style to follow in a region, and whether that is certain; None to leave it as it is."""

    style: Style | None
    verdict: str
    ratios: Ratios


def decide(region: Region, found: Mapping[Style, Ratios]) -> Decision:
    """Decide by the ratios of a region's alternatives; by the cost model if there are none."""
    own = OWN if OWN in region.alternatives else None
    # Which of several that win is taken must not be certain: none is a loss, and the whole model is measured yet.
    winner = best([each for each in found.items() if verdict(each[1]) == "faster"], sure=False)
    if winner:
        return Decision(winner[0], "faster", winner[1])
    if not found or (own and own not in found):
        return Decision(own, "unmeasured", {})
    ratios = found[own] if own else next(iter(found.values()))
    said = verdict(ratios)
    return Decision(own if said == "same" else None, said, ratios)


def verdict(found: Ratios) -> str:
    """`faster` on the geometric mean and slower on none; `slower` on the mean or on one of them; else `same`."""
    if any(ratio.verdict == "slower" for ratio in found.values()):
        return "slower"
    return "faster" if _low(found) > 1 else "same"


def bearable(found: Ratios) -> bool:
    """Whether a whole model is as fast as the original on each backend."""
    return all(ratio.verdict != "slower" and ratio.value >= NEVER_BELOW for ratio in found.values())


def best(options: Sequence[tuple[T, Ratios]], *, sure: bool) -> tuple[T, Ratios] | None:
    """The first of the options, or the fastest where that makes a difference.

    Args:
        options: Each with its ratios to what all of them are to replace.
        sure: Whether it must be certain that the difference is none by chance.
    """
    found = None
    for option in options:
        if found is None or (
            _mean(option[1]) > BETTER * _mean(found[1]) and (not sure or _low(option[1]) > _mean(found[1]))
        ):
            found = option
    return found


def _low(found: Ratios) -> float:
    """The lower end of the interval of the mean."""
    # Intervals of independent measurements: half their widths add up in squares.
    below = math.hypot(*(math.log(ratio.value / ratio.low) for ratio in found.values())) / len(found)
    return _mean(found) * math.exp(-below)


def _mean(found: Ratios) -> float:
    return math.exp(math.fsum(math.log(ratio.value) for ratio in found.values()) / len(found))


def plans(regions: Sequence[Region], decisions: Sequence[Decision]) -> list[Plan]:
    """What to try on the whole model: all that did not lose, what won, what the cost model says, and nothing."""
    own = [OWN if OWN in region.alternatives else None for region in regions]
    lenient = [decision.style for decision in decisions]
    strict = [decision.style if decision.verdict == "faster" else None for decision in decisions]
    return [_plan(regions, styles) for styles in (lenient, strict, own, [None] * len(regions))]


def _plan(regions: Sequence[Region], styles: Sequence[Style | None]) -> Plan:
    made: dict[Place, Style] = {}
    left: set[Place] = set()
    for region, style in zip(regions, styles, strict=True):
        if style is None:
            left.update(region.alternatives.get(OWN, ()))
        else:
            made.update(dict.fromkeys(region.alternatives[style], style))
    return Plan(made, frozenset(left))
