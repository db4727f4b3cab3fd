"""What paired times say: how many times faster one model is than another, and how sure that is.

Times come in rounds, each of which runs every model once, and rounds in loads, in each of which the models were
loaded anew. Rounds differ by what else the machine does; loads differ by where in memory a model happened to
lie. The interval accounts for both: it is a hierarchical bootstrap, which draws loads, and rounds within each
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8), widened for few loads as
Student's t is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repfuse.runtimes.backends import Array

Rounds = Sequence[tuple[float, float]]
"""Times of the first model and of the second, for each round of one load, in one unit."""

RESAMPLES = 4000
"""Enough for the ends of a 95 % interval to settle within a tenth of its width."""

SAME = 0.02
"""Models whose ratio is within so much of 1 count as the same: less is seldom seen again the next day."""

_STUDENT = (1.96, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)
"""Quantiles of Student's t, two-sided 95 %, by the number of loads, which is the degrees of freedom and one. A
single load shows nothing of how loads differ: rounds are all there is to go by."""

_FENCE = 3.0
"""Tukey's outer fence: what lies so many interquartile ranges above the upper quartile is an outlier."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long the first model takes as the second.

    Attributes:
        value: Geometric mean over the loads of the median ratio within a round: above 1 the second is faster.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        confidence: The share of all resamples that agree with the verdict: that lie above 1 if it is `faster`,
            below if it is `slower`, within 2 % of 1 if it is `same`.
    """

    value: float
    low: float
    high: float
    confidence: float

    @property
    def verdict(self) -> str:
        """`faster` or `slower` if the interval excludes a ratio of 1, else `same`."""
        return verdict(self.low, self.high)


def verdict(low: float, high: float) -> str:
    """What an interval of ratios says of the second model: `faster`, `slower` or `same`."""
    return "faster" if low > 1 else "slower" if high < 1 else "same"


def compare(loads: Sequence[Rounds]) -> Ratio:
    """Compare paired times. Nothing but the times decides the result, which is the same each time.

    Raises:
        ValueError: There is no load, or one without a round.
    """
    if not loads or not all(map(len, loads)):
        raise ValueError("there are no times to compare")
    logs = [np.sort(np.log([first / second for first, second in rounds])) for rounds in loads]
    middle = float(np.mean([np.median(each) for each in logs]))
    drawn = _resampled_means(logs, middle)
    low, high = np.quantile(drawn, (0.025, 0.975))
    # The median of medians may by a hair lie beyond the quantiles where all rounds are alike.
    low, high = min(float(low), middle), max(float(high), middle)
    agreeing = {
        "faster": drawn > 0,
        "slower": drawn < 0,
        "same": np.abs(np.expm1(drawn)) <= SAME,
    }[verdict(float(np.exp(low)), float(np.exp(high)))]
    return Ratio(float(np.exp(middle)), float(np.exp(low)), float(np.exp(high)), float(agreeing.mean()))


def _resampled_means(logs: Sequence[Array], middle: float) -> npt.NDArray[np.float64]:
    """Means over loads, drawn with replacement, of the medians of samples of their rounds.

    No sample is drawn for its median: the k-th smallest of n uniform numbers is distributed as
    Beta(k, n + 1 - k), and where it falls among the sorted rounds is the k-th smallest of a sample of them.
    Every draw is made twice, counted from either end, so that swapping the models inverts the result exactly.
    """
    rng = np.random.default_rng(0)
    count = len(logs)
    sizes = np.array([len(each) for each in logs])
    starts = np.cumsum(sizes) - sizes
    load = rng.integers(0, count, (RESAMPLES // 2, count))
    size, start = sizes[load], starts[load]
    place = rng.beta((size + 1) / 2, (size + 1) / 2)
    from_below = np.minimum((place * size).astype(int), size - 1)
    values = np.concatenate(logs)
    drawn = np.concatenate(
        [values[start + each].mean(axis=1) for each in (from_below, size - 1 - from_below)]
    )
    # So few loads understate how much loads differ, and a bootstrap does not make up for that.
    wider = np.sqrt(count / max(1, count - 1)) * _STUDENT[min(count, len(_STUDENT)) - 1] / 1.96
    widened: npt.NDArray[np.float64] = middle + (drawn - middle) * wider
    return widened


def outliers(times: Sequence[float]) -> list[float]:
    """Those of one model's times in one load that lie far above the others, in order."""
    lower, upper = np.quantile(times, (0.25, 0.75))
    fence = upper + _FENCE * (upper - lower)
    # Times that agree to the last digits of the clock have no spread to judge others by.
    return [time for time in times if time > max(fence, 1.05 * upper)]
