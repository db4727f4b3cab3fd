"""What paired times say: intervals, verdicts and outliers as functions of times. Nothing here is timed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repfuse.measures.ratios import Ratio, compare, outliers

seconds = st.floats(1e-6, 10)
rounds = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30)
loads = st.lists(rounds, min_size=1, max_size=5)


def drawn(
    rng: np.random.Generator, ratio: float, *, loads: int, rounds: int, between: float, within: float
) -> list[list[tuple[float, float]]]:
    """Times whose log ratios deviate by `between` from load to load and by `within` from round to round."""
    centres = np.log(ratio) + rng.normal(0, between, loads)
    return [[(float(np.exp(x)), 1.0) for x in rng.normal(centre, within, rounds)] for centre in centres]


@given(loads)
def test_the_interval_holds_the_value_and_the_confidence_is_a_share(times):
    found = compare(times)
    assert found.low <= found.value <= found.high
    assert 0 <= found.confidence <= 1


@given(loads)
def test_swapping_the_models_inverts_the_interval(times):
    swapped = compare([[(b, a) for a, b in each] for each in times])
    found = compare(times)
    assert swapped.value == pytest.approx(1 / found.value)
    assert (swapped.low, swapped.high) == (pytest.approx(1 / found.high), pytest.approx(1 / found.low))


@given(loads, st.integers(0, 100))
def test_the_order_of_rounds_does_not_matter(times, seed):
    rng = np.random.default_rng(seed)
    shuffled = [[each[i] for i in rng.permutation(len(each))] for each in times]
    assert compare(times) == compare(shuffled)


@pytest.mark.parametrize("loads", [4, 8])
@pytest.mark.parametrize(("between", "within"), [(0.0, 0.05), (0.03, 0.02), (0.02, 0.1)])
def test_the_interval_covers_about_as_often_as_it_says(loads, between, within):
    rng = np.random.default_rng(0)
    trials = [
        compare(drawn(rng, 1.3, loads=loads, rounds=20, between=between, within=within)) for _ in range(120)
    ]
    assert sum(each.low <= 1.3 <= each.high for each in trials) / len(trials) > 0.91


def test_loads_that_disagree_widen_the_interval_however_many_rounds_agree():
    alike = [[(1.0, 1.0)] * 200, [(1.0, 1.0)] * 200, [(1.0, 1.0)] * 200]
    apart = [[(1.0, 1.0)] * 200, [(1.1, 1.0)] * 200, [(1.2, 1.0)] * 200]
    assert (compare(alike).low, compare(alike).high) == (1, 1)
    assert compare(apart).low < 1.01 and compare(apart).high > 1.19


@pytest.mark.parametrize(
    ("times", "verdict", "sure"),
    [
        ([[(1.1, 1.0)] * 10] * 3, "faster", True),
        ([[(1.0, 1.1)] * 10] * 3, "slower", True),
        ([[(1.0, 1.0)] * 10] * 3, "same", True),
        ([[(0.995, 1.0), (1.005, 1.0)] * 10] * 6, "same", True),
        ([[(0.5, 1.0), (2.0, 1.0)] * 10] * 3, "same", False),
    ],
)
def test_verdict_and_confidence(times, verdict, sure):
    found = compare(times)
    assert found.verdict == verdict
    assert (found.confidence > 0.97) is sure


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.01, 1.2, "faster"),
        (0.99, 1.2, "same"),
        (0.8, 0.99, "slower"),
        (1.0, 1.1, "same"),
        (0.9, 1.0, "same"),
    ],
)
def test_the_verdict_is_whether_the_interval_excludes_one(low, high, verdict):
    assert Ratio((low + high) / 2, low, high, 1.0).verdict == verdict


@pytest.mark.parametrize("times", [[], [[]], [[(1.0, 1.0)], []]])
def test_without_times_there_is_nothing_to_compare(times):
    with pytest.raises(ValueError, match="no times"):
        compare(times)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([1.0, 1.1, 1.2, 1.1, 5.0, 1.0], [5.0]),
        ([1.0, 1.1, 1.2, 1.1, 1.0], []),
        ([1.0] * 9 + [1.001], []),
        ([1.0] * 9 + [1.2], [1.2]),
        ([3.0, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0, 1.0, 2.0], [3.0, 2.0]),
    ],
)
def test_outliers_lie_far_above_the_others(times, expected):
    assert outliers(times) == expected
