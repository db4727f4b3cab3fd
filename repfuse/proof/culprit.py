"""Which edit makes a model wrong? Found by bisection: with the first half of the edits, the first quarter ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repfuse.remarks import Edit


@dataclass(frozen=True)
class BadBlock:
    """An edit that must not be made.

    Attributes:
        edit: The edit.
        reason: What is wrong with it, as a person would say it.
        left_alone: Whether the model was written without it.
    """

    edit: Edit
    reason: str
    left_alone: bool


def first_culprit(edits: Sequence[Edit], fails: Callable[[Sequence[Edit]], bool]) -> Edit:
    """The first edit with which a model fails, though with all edits before it, it does not.

    Args:
        edits: All of them, in their order; with these the model fails, with none of them it is the original.
        fails: Whether the model with these edits only is wrong. Called as often as `edits` can be halved.
    """
    good, bad = 0, len(edits)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fails(edits[:middle]):
            bad = middle
        else:
            good = middle
    return edits[bad - 1]
