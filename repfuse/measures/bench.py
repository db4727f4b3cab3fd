"""Which of two models is faster on a backend, and how sure that is.

Both run in one process, which is not this one: whatever this one does and holds has no part in the figures.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repfuse.errors import BadInputError
from repfuse.measures import ratios
from repfuse.measures.interleave import LOADS, Load, Pace, interleave, pace
from repfuse.model import convert
from repfuse.runtimes.backends import Array, Backend, BackendError, Feeds, Loadable, file_or_bytes
from repfuse.runtimes.child import Child, CrashError, Tell, patience
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.inputs import Range
from repfuse.runtimes.installed import backends_named

if TYPE_CHECKING:
    from repfuse.model.convert import Source


@dataclass(frozen=True)
class Benchmark:
    """How long two models take, on one backend.

    Attributes:
        backend: The backend's title.
        threads: Threads that it used.
        before_ms: Median latency of the first model, in milliseconds.
        after_ms: Median latency of the second model, in milliseconds.
        ratio: Before / after within a round: above 1 the second is faster. The median of a load's rounds,
            averaged over the loads.
        low: Lower end of the 95 % interval of `ratio`, by bootstrap.
        high: Upper end of it.
        confidence: How sure `verdict` is, from 0 to 1: the share of resamples that agree with it.
        rounds: How often each was timed.
        preempted: In how many of these rounds another process got in the way.
        warm_up: The most rounds that it took, after a loading, until times were steady.
        times_ms: Latencies of both models in each round that counts, by loading.
        outliers_ms: Those that lie far above the others of their model. They are counted in; medians resist.
    """

    backend: str
    threads: int
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float
    confidence: float
    rounds: int
    preempted: int = 0
    warm_up: int = 0
    times_ms: tuple[tuple[tuple[float, float], ...], ...] = ()
    outliers_ms: tuple[float, ...] = ()

    @property
    def verdict(self) -> str:
        """`faster` or `slower` if the interval excludes a ratio of 1, else `same`."""
        return ratios.verdict(self.low, self.high)


def benchmark(
    before: Source,
    after: Source,
    *,
    backend: str = "ort",
    threads: int = 1,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_data: Mapping[str, Array] | None = None,
    input_ranges: Mapping[str, Range] | None = None,
    seconds: float = 3.0,
    rounds: int | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Time two models against each other on one backend.

    Args:
        before: The original: its path, or of any kind that `repfuse.fuse` takes.
        after: The model that should be faster; likewise.
        backend: `ort` or `openvino`.
        threads: Threads for the runtime.
        seed: Chooses the input; it is the same for both.
        input_shapes: Shapes by input name, where the model leaves them open.
        input_data: Arrays by input name, to use instead of drawn ones.
        input_ranges: The least and the largest value by input name, for drawn ones.
        seconds: Time to measure for, in all. Slow models take longer: at least four loadings of five rounds.
        rounds: How often to time each model, in all, however long that takes; takes the place of `seconds`.
        on_progress: Called with what is being run.

    Raises:
        BadInputError: There is no such backend, or the inputs do not fit the model.
        BackendError: The backend cannot run one of the models, crashes, or does not come to an end.
    """
    if backend == "all":
        raise BadInputError("one backend is measured at a time; name it: ort or openvino")
    (runtime,) = backends_named(backend)
    original, other = convert.proto(before), convert.proto(after)
    (feed,) = make_inputs(
        original, count=1, seed=seed, shapes=input_shapes, data=input_data, ranges=input_ranges
    )

    models = (file_or_bytes(original), file_or_bytes(other))
    say = on_progress or (lambda _: None)
    child = Child()
    measured = "the first model was"
    try:
        one = child.call(paced, runtime, models[0], feed, threads, seconds=patience(None))
        measured = "both models were"
        limit = patience(one.expected(len(models), LOADS, seconds=seconds, rounds=rounds or 0))
        given = (runtime, models, feed, threads, seconds, rounds, None)
        loads = child.call(timed, *given, tell=say, seconds=limit)
    except CrashError as error:
        raise BackendError(f"{runtime.title}: it {error} while {measured} measured") from error
    return summarize(loads, backend=runtime.title)


def paced(runtime: Backend, model: Loadable, feed: Feeds, threads: int) -> Pace:
    """Find out how long a model takes, in this process: a function of a module, for another process to call."""
    return pace(functools.partial(runtime.load, model, threads=threads), feed)


def timed(
    runtime: Backend,
    models: Sequence[Loadable],
    feed: Feeds,
    threads: int,
    seconds: float,
    rounds: int | None,
    within: float | None,
    tell: Tell = lambda _: None,
) -> list[Load]:
    """Time models in this process, in turn: likewise; what is given is told at `interleave`."""
    return interleave(
        [functools.partial(runtime.load, model, threads=threads) for model in models],
        feed,
        threads=threads,
        seconds=seconds,
        rounds=rounds,
        within=within,
        on_load=lambda number, loads: tell(f"{runtime.title}: measuring latency ({number} of {loads})"),
    )


def all_threads() -> int:
    """As many threads as there are processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def summarize(loads: Sequence[Load], *, backend: str = "", first: int = 0, second: int = 1) -> Benchmark:
    """Compare two of the models of each load; nothing but the times decides the result.

    Args:
        loads: What was timed.
        backend: The backend's title.
        first: Which model counts as before, from 0.
        second: Which one counts as after.

    Raises:
        ValueError: There is no load, or one without a round.
    """
    pairs = [load.pairs(first, second) for load in loads]
    found = ratios.compare(pairs)
    before, after = zip(*(pair for load in pairs for pair in load), strict=True)
    columns = [column for load in pairs for column in zip(*load, strict=True)]
    return Benchmark(
        backend=backend,
        threads=loads[0].threads,
        before_ms=1000 * statistics.median(before),
        after_ms=1000 * statistics.median(after),
        ratio=found.value,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        rounds=sum(len(load.rounds) for load in loads),
        preempted=sum(load.preempted(first, second) for load in loads),
        warm_up=max(load.warm_up for load in loads),
        times_ms=tuple(tuple((1000 * one, 1000 * other) for one, other in load) for load in pairs),
        outliers_ms=tuple(1000 * time for column in columns for time in ratios.outliers(column)),
    )
