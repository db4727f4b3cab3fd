"""Measuring which of two models is faster, and how sure that is.

Both are loaded and run in turn, so that whatever slows the machine slows both. Each round gives one
ratio of two neighbouring times; the median of these has an interval that needs no assumption about their
distribution (order statistics: the number of ratios below the true median is binomial with p = 1/2).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from repfuse.backends import Array, Feeds, ModelSource, Session, backends_named
from repfuse.errors import BadInputError
from repfuse.inputs import make_inputs

LEAST_ROUNDS = 10
"""Measured at each loading even if that takes longer than the budget; fewer than 6 have no 95 % interval."""

MOST_ROUNDS = 2000
"""More would narrow the interval below what repeating the whole measurement changes."""

LOADS = 3
"""How often both models are loaded anew, if that does not take longer than measuring: where in memory a session
lies makes it faster or slower by a few percent for as long as it lives."""

WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Benchmark:
    """How long two models take, on one backend.

    Attributes:
        backend: The backend's title.
        threads: Threads that it used.
        before_ms: Median latency of the first model, in milliseconds.
        after_ms: Median latency of the second model, in milliseconds.
        ratio: Median of before / after within a round: above 1 the second is faster.
        low: Lower end of the 95 % interval of `ratio`.
        high: Upper end of it.
        rounds: How often each was timed.
    """

    backend: str
    threads: int
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def verdict(self) -> str:
        """`faster` or `slower` if the interval excludes a ratio of 1, else `same`."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "same"


def benchmark(
    before: ModelSource,
    after: ModelSource,
    *,
    backend: str = "ort",
    threads: int = 1,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_data: Mapping[str, Array] | None = None,
    seconds: float = 3.0,
    on_progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Time two models against each other on one backend.

    Args:
        before: The original, or its path.
        after: The model that should be faster, or its path.
        backend: `ort` or `openvino`.
        threads: Threads for the runtime.
        seed: Chooses the input; it is the same for both.
        input_shapes: Shapes by input name, where the model leaves them open.
        input_data: Arrays by input name, to use instead of drawn ones.
        seconds: Time to measure for, in all. Slow models take longer: ten rounds are made at each loading.
        on_progress: Called with what is being run.

    Raises:
        BadInputError: There is no such backend, or the inputs do not fit the model.
        BackendError: The backend cannot run one of the models.
    """
    if backend == "all":
        raise BadInputError("one backend is measured at a time; name it: ort or openvino")
    (runtime,) = backends_named(backend)
    (feed,) = make_inputs(before, count=1, seed=seed, shapes=input_shapes, data=input_data)
    if on_progress:
        on_progress(f"{runtime.title}: measuring latency")
    slow: list[float] = []
    fast: list[float] = []
    started = time.perf_counter()
    for number in range(LOADS):
        swapped = number % 2 == 1
        sessions = [
            runtime.load(model, threads=threads)
            for model in ((after, before) if swapped else (before, after))
        ]
        original, fused = reversed(sessions) if swapped else sessions
        times = measure(original, fused, feed, seconds=seconds / LOADS)
        slow += times[0]
        fast += times[1]
        if time.perf_counter() - started > 2 * seconds:
            break
    return summarize(slow, fast, backend=runtime.title, threads=threads)


def measure(
    before: Session, after: Session, feed: Feeds, *, seconds: float
) -> tuple[list[float], list[float]]:
    """Time two sessions in turn, the second first in every other round.

    Returns:
        Seconds of each run of the first session and of the second, in the order of the rounds.

    Raises:
        BackendError: A session fails.
    """
    for _ in range(WARM_UP_RUNS):
        before.run(feed)
        after.run(feed)
    times: dict[bool, list[float]] = {False: [], True: []}
    deadline = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() >= deadline:
            break
        first = number % 2 == 1
        for second in (first, not first):
            times[second].append(_time(after if second else before, feed))
    return times[False], times[True]


def summarize(
    before: Sequence[float], after: Sequence[float], *, backend: str = "", threads: int = 1
) -> Benchmark:
    """Compare paired times, in seconds; nothing but the times decides the result.

    Raises:
        ValueError: The sequences differ in length or hold less than six times.
    """
    ratios = [slow / fast for slow, fast in zip(before, after, strict=True)]
    low, high = median_interval(ratios)
    return Benchmark(
        backend=backend,
        threads=threads,
        before_ms=1000 * statistics.median(before),
        after_ms=1000 * statistics.median(after),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        rounds=len(ratios),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval that holds the median of the values' distribution with at least 95 % confidence.

    It runs from the k-th smallest value to the k-th largest, with the largest k for which the chance
    2 * P(Binomial(n, 1/2) < k) of missing is at most 5 %. Exact, for any continuous distribution.

    Raises:
        ValueError: There are less than six values: no such k exists.
    """
    count = len(values)
    # Of 2**count equally likely outcomes, so many (2.5 %) may miss on one side, and so many do.
    allowed = 2**count // 40
    k, ways, missed = 0, 1, 0
    while missed + ways <= allowed:
        missed += ways
        ways = ways * (count - k) // (k + 1)
        k += 1
    if k == 0:
        raise ValueError(f"{count} values are too few for a 95 % interval of their median")
    ordered = sorted(values)
    return ordered[k - 1], ordered[count - k]


def _time(session: Session, feed: Feeds) -> float:
    start = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - start
