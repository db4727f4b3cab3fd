"""What measurements say: which alternative wins in a region, what to try on the whole model, what is good enough.

Numbers only: `measures.tuning` measures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from repfuse.choice.plan import OWN, Place, Plan, Region, Style
from repfuse.measures.ratios import Ratio

T = TypeVar("T")

BETTER = 1.02
"""So many times faster must another alternative be to be taken in place of the cost model's own."""

NEVER_BELOW = 0.99
"""What is not so many times as fast, on some backend, as what it is held against counts as slower."""

_OWN = 2
"""The place of the cost model's own choice among the ways to fuse a whole model."""

Ratios = Mapping[str, Ratio]
"""By the title of the backend."""


@dataclass(frozen=True)
class Decision:
    """What measuring says of a region.

    Attributes:
        style: The style to follow; None to leave the region as it is.
        verdict: Whether that is certain, as `verdict` says it; `unmeasured` where the cost model decides.
        ratios: How many times faster the region is then.
        own: What the cost model would do, but without a tap apart where that costs time; None for nothing.
    """

    style: Style | None
    verdict: str
    ratios: Ratios
    own: Style | None


def decide(region: Region, found: Mapping[Style, Ratios]) -> Decision:
    """Decide by the ratios of a region's alternatives; by the cost model if there are none."""
    held = [each for each in found.items() if verdict(each[1]) != "slower"]
    standing = dict(fair(held, functools.partial(_plain, region)))
    own = OWN if OWN in region.alternatives else None
    if own and own not in standing and own.plain in standing:
        own = own.plain
    # Which of several that win is taken must not be certain: none is a loss, and the whole model is measured yet.
    winner = best([each for each in standing.items() if verdict(each[1]) == "faster"], sure=False)
    if winner:
        return Decision(winner[0], "faster", winner[1], own)
    if not found or (own and own not in found):
        return Decision(own, "unmeasured", {}, own)
    ratios = found[own] if own else next(iter(found.values()))
    said = verdict(ratios)
    return Decision(own if said == "same" else None, said, ratios, own)


def _plain(region: Region, style: Style) -> tuple[Style, ...]:
    """What a style must be as fast as: itself, and what the cost model says, each with all taps in one Conv."""
    return tuple(_plain_of(region, each) for each in (style, OWN))


def _plain_of(region: Region, style: Style) -> Style:
    return style.plain if style.plain in region.alternatives else style


def verdict(found: Ratios) -> str:
    """`faster` on the geometric mean and slower on none; `slower` on the mean or on one of them; else `same`."""
    if any(ratio.verdict == "slower" for ratio in found.values()):
        return "slower"
    return "faster" if _low(found) > 1 else "same"


def bearable(found: Ratios) -> bool:
    """Whether a whole model is as fast as the original on each backend."""
    return all(ratio.verdict != "slower" and ratio.value >= NEVER_BELOW for ratio in found.values())


def fair(options: Sequence[tuple[T, Ratios]], plain: Callable[[T], Collection[T]]) -> list[tuple[T, Ratios]]:
    """The options that are on each backend as fast as those that are plain.

    The mean alone would buy speed on one backend with time on another that a plain merge of the branches saves.

    Args:
        options: Each with its ratios to what all of them are to replace; none is slower than that.
        plain: Gives what to hold an option against, if it is one of the options.
    """
    return [
        (option, found)
        for option, found in options
        if not any(_slower(found, each) for other, each in options if other in plain(option))
    ]


def _slower(found: Ratios, other: Ratios) -> bool:
    return any(ratio.value < NEVER_BELOW * other[title].value for title, ratio in found.items())


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


class Proposal(NamedTuple):
    """What to try on the whole model.

    Attributes:
        plan: What to fuse.
        plain: What it must be as fast as on each backend: the same, and what the cost model says, each with
            all taps in one Conv.
    """

    plan: Plan
    plain: tuple[Plan, Plan]


def proposals(regions: Sequence[Region], decisions: Sequence[Decision]) -> list[Proposal]:
    """All that did not lose, what won, what the cost model says, and nothing.

    After each comes the same with all taps of a kernel in one Conv. What is the same as one before it is left out.
    """
    ways: list[list[Style | None]] = [
        [decision.style for decision in decisions],
        [decision.style if decision.verdict == "faster" else None for decision in decisions],
        [decision.own for decision in decisions],
        [None] * len(regions),
    ]
    plain_ways = [
        [style and _plain_of(region, style) for region, style in zip(regions, way, strict=True)]
        for way in ways
    ]
    plain = [_plan(regions, way) for way in plain_ways]
    listed = [
        Proposal(plan, (same, plain[_OWN]))
        for way, same in zip(ways, plain, strict=True)
        for plan in (_plan(regions, way), same)
    ]
    return [
        each for place, each in enumerate(listed) if each.plan not in [one.plan for one in listed[:place]]
    ]


def _plan(regions: Sequence[Region], styles: Sequence[Style | None]) -> Plan:
    made: dict[Place, Style] = {}
    left: set[Place] = set()
    for region, style in zip(regions, styles, strict=True):
        if style is None:
            left.update(region.alternatives.get(OWN, ()))
        else:
            made.update(dict.fromkeys(region.alternatives[style], style))
    return Plan(made, frozenset(left))
