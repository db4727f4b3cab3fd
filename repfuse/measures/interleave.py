"""Running several models in turn and timing each run: loading, warming up, who goes first.

All are loaded and run in turn, so that whatever slows the machine slows them alike. Other processes on a busy
machine do worse than slow it: they take the processor in the middle of a run, for longer than the run lasts. The
system counts when that happens. With one thread, such a run counts as long as the processor worked on it; with
more, its round is left out as long as enough others remain.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from repfuse.runtimes.backends import Feeds, Session

if sys.platform != "win32":
    import resource

LOADS = 8
"""How often all models are loaded anew: where in memory a session lies makes it faster or slower by a few percent
for as long as it lives."""

LEAST_LOADS = 4
"""So many are made even if that takes longer than the budget."""

FEWEST_LOADS = 3
"""So many are made where no more would be done in time; with fewer, nothing is known of how they differ."""

LEAST_ROUNDS = 5
"""So many are made at each loading even if that takes longer than the budget."""

MOST_ROUNDS = 250
"""At each loading; more would narrow the interval below what the next loading changes."""

STEADY_ROUNDS = 3
"""A model is warm when so many rounds in a row were no faster than the fastest before them ..."""

STEADY = 0.02
"""... by this share of it."""

MOST_WARM_UP = 50
"""Rounds; a model that still speeds up then is measured as it is."""


@dataclass(frozen=True)
class Pace:
    """How long one model takes, roughly.

    Attributes:
        load: Seconds to load it and run it for the first time.
        run: Seconds of a run after that.
    """

    load: float
    run: float

    def expected(self, models: int, loads: int, *, seconds: float = 0.0, rounds: int = 0) -> float:
        """How many seconds `interleave` takes for so many models like this, or as many as it does at least."""
        least = STEADY_ROUNDS + LEAST_ROUNDS
        return models * (loads * (self.load + least * self.run) + rounds * self.run) + 2 * seconds


def pace(load: Callable[[], Session], feed: Feeds) -> Pace:
    """Load a model, and run it twice.

    Raises:
        BackendError: It cannot be loaded, or fails.
    """
    times = [time.perf_counter()]
    session = load()
    for _ in range(2):
        session.run(feed)
        times.append(time.perf_counter())
    return Pace(times[1] - times[0], times[2] - times[1])


@dataclass(frozen=True)
class Run:
    """One run of one model.

    Attributes:
        seconds: How long it took.
        preempted: Whether another process took a processor from it that it was using.
    """

    seconds: float
    preempted: bool


@dataclass(frozen=True)
class Load:
    """What was timed between loading all models and letting go of them.

    Attributes:
        rounds: A run of each model, in the order they were handed over, for each round.
        warm_up: How many rounds were run before, not counted.
        threads: Threads of each model.
    """

    rounds: tuple[tuple[Run, ...], ...]
    warm_up: int
    threads: int

    def pairs(self, first: int, second: int) -> list[tuple[float, float]]:
        """The times of two of the models, in seconds, for each round that counts."""
        pairs = [(round_[first], round_[second]) for round_ in self.rounds]
        calm = [pair for pair in pairs if not any(run.preempted for run in pair)]
        counted = calm if self.threads > 1 and len(calm) >= LEAST_ROUNDS else pairs
        return [(one.seconds, other.seconds) for one, other in counted]

    def preempted(self, first: int, second: int) -> int:
        """In how many rounds another process got in the way of one of the two."""
        return sum(round_[first].preempted or round_[second].preempted for round_ in self.rounds)


def interleave(
    loaders: Sequence[Callable[[], Session]],
    feed: Feeds,
    *,
    threads: int,
    seconds: float,
    rounds: int | None = None,
    within: float | None = None,
    on_load: Callable[[int, int], None] = lambda number, loads: None,
) -> list[Load]:
    """Load models anew several times, and each time run them in turn.

    Args:
        loaders: One for each model.
        feed: What to run all of them on.
        threads: Threads that each has.
        seconds: Time for the timed rounds of all loadings.
        rounds: How many rounds to time, in place of `seconds`.
        within: Time for all of it: models are not loaded anew if that would take longer, nor warmed up for longer
            than half of the time that the fewest loadings leave for each.
        on_load: Called with the number of the loading, from 1, and how many there will be at most.

    Raises:
        BackendError: A model cannot be loaded, or fails.
    """
    rng = np.random.default_rng(0)
    shares = [None] * LOADS if rounds is None else _shares(rounds)
    warming = math.inf if within is None else within / FEWEST_LOADS / 2
    loads: list[Load] = []
    started = time.perf_counter()
    for number, share in enumerate(shares, start=1):
        on_load(number, len(shares))
        sessions: dict[int, Session] = {}
        for index in rng.permutation(len(loaders)):
            sessions[int(index)] = loaders[index]()
        in_order = [sessions[index] for index in range(len(loaders))]
        warm_up = _warm_up(in_order, feed, threads, warming)
        loads.append(Load(_timed(in_order, feed, threads, seconds / LOADS, share, rng), warm_up, threads))
        spent = time.perf_counter() - started
        late = rounds is None and spent > 2 * seconds and number >= LEAST_LOADS
        full = within is not None and spent * (number + 1) / number > within and number >= FEWEST_LOADS
        if late or full:
            break
    return loads


def _shares(rounds: int) -> list[int]:
    """Divide rounds among loadings."""
    loads = min(LOADS, max(1, rounds // LEAST_ROUNDS))
    return [rounds // loads + (number < rounds % loads) for number in range(loads)]


def _timed(
    sessions: Sequence[Session],
    feed: Feeds,
    threads: int,
    seconds: float,
    rounds: int | None,
    rng: np.random.Generator,
) -> tuple[tuple[Run, ...], ...]:
    """Time sessions in turn. Who goes first is drawn, and reversed in the next round."""
    timed: list[tuple[Run, ...]] = []
    deadline = time.perf_counter() + seconds
    order = list(range(len(sessions)))
    for number in range(MOST_ROUNDS if rounds is None else rounds):
        if rounds is None and number >= LEAST_ROUNDS and time.perf_counter() >= deadline:
            break
        order = order[::-1] if number % 2 else [int(index) for index in rng.permutation(len(sessions))]
        runs = {index: _run(sessions[index], feed, threads) for index in order}
        timed.append(tuple(runs[index] for index in range(len(sessions))))
    return tuple(timed)


def _warm_up(sessions: Sequence[Session], feed: Feeds, threads: int, seconds: float) -> int:
    """Run sessions in turn until none speeds up any more, or for so long; give the number of rounds."""
    deadline = time.perf_counter() + seconds
    fastest = [float("inf")] * len(sessions)
    steady = 0
    for number in range(MOST_WARM_UP):
        taken = [_run(session, feed, threads).seconds for session in sessions]
        faster = any(now < (1 - STEADY) * best for now, best in zip(taken, fastest, strict=True))
        fastest = list(map(min, taken, fastest))
        steady = 0 if faster else steady + 1
        late = number + 1 >= STEADY_ROUNDS and time.perf_counter() >= deadline
        if steady == STEADY_ROUNDS or late:
            return number + 1
    return MOST_WARM_UP


def _run(session: Session, feed: Feeds, threads: int) -> Run:
    """Time one run; what the module's docstring says of runs that are interrupted is done here."""
    preemptions, worked, start = _preemptions(), time.process_time(), time.perf_counter()
    session.run(feed)
    taken, worked = time.perf_counter() - start, time.process_time() - worked
    preempted = _preemptions() > preemptions
    return Run(min(taken, worked) if preempted and threads == 1 else taken, preempted)


def _preemptions() -> int:
    """How often another process took the processor from this one while it had work; not known on Windows."""
    if sys.platform == "win32":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
