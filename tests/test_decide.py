"""What measurements say: what is faster wins, what may be noise changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from repfuse.choice.plan import BALANCES, OWN, Region, Style
from repfuse.measures.decide import Decision, Ratios, best, decide, proposals
from repfuse.measures.ratios import Ratio

PLACE = ("", "y")
OTHER = Style(BALANCES[1])
PLAIN = Style(BALANCES[0], apart=False)


def measured(*values: float, width: float = 0.01) -> Ratios:
    """One ratio for each backend."""
    return {
        f"backend {number}": Ratio(value, value * (1 - width), value * (1 + width), 1.0)
        for number, value in enumerate(values)
    }


@pytest.mark.parametrize(
    ("values", "width", "chosen"),
    [
        pytest.param([1.1, 1.2], 0.01, 1, id="clearly faster"),
        pytest.param([1.1, 1.11], 0.001, 0, id="faster by 1 %"),
        pytest.param([1.1, 1.2], 0.2, 0, id="within the noise"),
        pytest.param([1.1, 1.2, 1.3], 0.01, 2, id="the fastest"),
        pytest.param([1.2, 1.1], 0.01, 0, id="the first"),
    ],
)
def test_the_first_stays_unless_another_is_clearly_faster(
    values: Sequence[float], width: float, chosen: int
) -> None:
    options = [(number, measured(value, width=width)) for number, value in enumerate(values)]
    found = best(options, sure=True)
    assert found
    assert found[0] == chosen
    likely = best(options, sure=False)
    assert likely
    assert likely[0] == (1 if width == 0.2 else chosen)


def test_of_nothing_there_is_no_best() -> None:
    assert best([], sure=True) is None


@pytest.mark.parametrize(
    ("found", "style", "verdict"),
    [
        pytest.param({}, OWN, "unmeasured", id="not measured"),
        pytest.param({OWN: measured(1.2)}, OWN, "faster", id="faster"),
        pytest.param({OWN: measured(1.001)}, OWN, "same", id="same"),
        pytest.param({OWN: measured(0.9)}, None, "slower", id="slower"),
        pytest.param({OWN: measured(0.9), OTHER: measured(1.2)}, OTHER, "faster", id="another is faster"),
        pytest.param({OWN: measured(1.1), PLAIN: measured(1.2)}, PLAIN, "faster", id="plain is faster"),
        pytest.param({OWN: measured(1.2), PLAIN: measured(1.2)}, OWN, "faster", id="both alike"),
        pytest.param(
            {OWN: measured(1.2, 2.4), PLAIN: measured(1.25, 1.2)},
            PLAIN,
            "faster",
            id="a tap apart costs time on one",
        ),
        pytest.param(
            {OWN: measured(0.97, 2.4, width=0.1), PLAIN: measured(1.0, 1.0)}, PLAIN, "same", id="the same"
        ),
        pytest.param(
            {OWN: measured(1.1, 2.4), PLAIN: measured(0.9, 1.2)}, OWN, "faster", id="slower in one Conv"
        ),
        pytest.param(
            {OWN: measured(1.2, 1.2), PLAIN: measured(1.2, 1.2), OTHER: measured(1.1, 2.0)},
            OWN,
            "faster",
            id="another is slower on one",
        ),
        pytest.param(
            {OWN: measured(1.0, 1.0), PLAIN: measured(1.2, 1.1), OTHER: measured(1.2, 2.0)},
            OTHER,
            "faster",
            id="another is slower on none",
        ),
        pytest.param({OWN: measured(1.5, 0.9)}, None, "slower", id="slower on one backend"),
        pytest.param(
            {OWN: measured(1.2), OTHER: {"x": Ratio(0.0, 0.0, 0.0, 1.0)}}, OWN, "faster", id="crashes"
        ),
        pytest.param({OTHER: measured(0.9)}, OWN, "unmeasured", id="another was measured only"),
        pytest.param({OWN: {"x": Ratio(0.0, 0.0, 0.0, 1.0)}}, None, "slower", id="all crash"),
    ],
)
def test_what_becomes_of_a_region(found: dict[Style, Ratios], style: Style | None, verdict: str) -> None:
    region = Region("", ("x",), ("y",), frozenset({"y"}), dict.fromkeys((OWN, OTHER, PLAIN), (PLACE,)))
    decision = decide(region, found)
    assert (decision.style, decision.verdict) == (style, verdict)


@pytest.mark.parametrize(
    ("value", "style", "verdict"), [(1.2, OTHER, "faster"), (1.001, None, "same"), (0.9, None, "slower")]
)
def test_what_the_cost_model_leaves_alone_is_made_where_that_is_faster(
    value: float, style: Style | None, verdict: str
) -> None:
    region = Region("", ("x",), ("y",), frozenset({"y"}), {OTHER: (PLACE,)})
    assert decide(region, {OTHER: measured(value)}) == Decision(style, verdict, measured(value), None)


def test_what_is_tried_is_held_against_what_is_plain() -> None:
    wide = Region("", ("x",), ("y",), frozenset({"y"}), dict.fromkeys((OWN, PLAIN, OTHER), (PLACE,)))
    other = Region("", ("y",), ("z",), frozenset({"z"}), {OWN: (("", "z"),)})
    decisions = [Decision(OTHER, "faster", {}, OWN), Decision(OWN, "same", {}, OWN)]
    tried = proposals([wide, other], decisions)
    styles = [tuple(proposal.plan.made.get(("", name)) for name in "yz") for proposal in tried]
    assert styles == [(OTHER, OWN), (OTHER, None), (OWN, OWN), (PLAIN, OWN), (None, None)]
    plans = [proposal.plan for proposal in tried]
    assert [[plans.index(plan) for plan in proposal.plain] for proposal in tried] == [
        [0, 3],
        [1, 3],
        [3, 3],
        [3, 3],
        [4, 3],
    ]


def test_taps_apart_that_cost_time_are_no_part_of_the_cost_models_choice() -> None:
    region = Region("", ("x",), ("y",), frozenset({"y"}), dict.fromkeys((OWN, PLAIN), (PLACE,)))
    decision = decide(region, {OWN: measured(1.2, 2.4), PLAIN: measured(1.25, 1.2)})
    (plain, nothing) = proposals([region], [decision])
    assert (plain.plan.made, nothing.plan.made) == ({PLACE: PLAIN}, {})
