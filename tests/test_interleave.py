"""Running models in turn: who goes first, how long to warm up, what other processes do. Nothing here is timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from repfuse.measures import interleave
from repfuse.measures.interleave import (
    FEWEST_LOADS,
    LEAST_LOADS,
    LEAST_ROUNDS,
    LOADS,
    MOST_ROUNDS,
    MOST_WARM_UP,
    Load,
    Run,
)

Costs = Callable[[int], float]


class World:
    """A clock that only moves when a session runs, and what the sessions did."""

    def __init__(self) -> None:
        self.now = self.worked = 0.0
        self.preempted = 0
        self.log: list[str] = []

    def session(self, name: str, cost: float | Costs, disturbed: float = 0.0) -> Callable[[], FakeSession]:
        return lambda: FakeSession(self, name, cost if callable(cost) else lambda _: cost, disturbed)


class FakeSession:
    """Works for `cost(run)` seconds, and is kept waiting for `disturbed` more by another process."""

    def __init__(self, world: World, name: str, cost: Costs, disturbed: float) -> None:
        self.world, self.name, self.cost, self.disturbed, self.runs = world, name, cost, disturbed, 0
        world.log.append(name.upper())

    def run(self, feeds):
        cost = self.cost(self.runs)
        self.runs += 1
        self.world.log.append(self.name)
        self.world.now += cost + self.disturbed
        self.world.worked += cost
        self.world.preempted += self.disturbed > 0
        return {}


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(interleave.time, "perf_counter", lambda: world.now)
    monkeypatch.setattr(interleave.time, "process_time", lambda: world.worked)
    monkeypatch.setattr(interleave, "_preemptions", lambda: world.preempted)
    return world


def run(world, *sessions, **settings):
    return interleave.interleave(sessions, {}, **{"threads": 1, "seconds": 8.0} | settings)


def timed(world, loads):
    """Who ran in the timed rounds, one string for each loading."""
    per_load = [list(runs) for loading, runs in itertools.groupby(world.log, str.isupper) if not loading]
    count = len(loads[0].rounds[0])
    return ["".join(runs[count * load.warm_up :]) for load, runs in zip(loads, per_load, strict=True)]


def test_all_models_are_loaded_anew_and_run_in_every_round(world):
    loads = run(world, world.session("a", 0.05), world.session("b", 0.02), world.session("c", 0.03))
    assert len(loads) == LOADS
    for runs in (runs for load in loads for runs in load.rounds):
        assert [each.seconds for each in runs] == pytest.approx([0.05, 0.02, 0.03])
    assert sorted("".join(world.log)[:3]) == ["A", "B", "C"]


def test_who_goes_first_is_drawn_and_reversed_in_the_next_round(world):
    loads = run(world, world.session("a", 0.5), world.session("b", 0.25), rounds=80)
    for text in timed(world, loads):
        pairs = [text[i : i + 4] for i in range(0, len(text), 4)]
        assert set(pairs) <= {"abba", "baab"}
    firsts = {text[:2] for text in timed(world, loads)}
    assert firsts == {"ab", "ba"}


@pytest.mark.parametrize(
    ("cost", "loads", "rounds"),
    [(100.0, LEAST_LOADS, LEAST_ROUNDS), (1e-9, LOADS, MOST_ROUNDS)],
    ids=["slow", "fast"],
)
def test_rounds_are_bounded_both_ways(world, cost, loads, rounds):
    found = run(world, world.session("a", cost), world.session("b", cost))
    assert [len(load.rounds) for load in found] == [rounds] * loads


@pytest.mark.parametrize(
    ("within", "loads"), [(0.0, FEWEST_LOADS), (5.9 * 18, 5), (6.0 * 18, 6), (1e9, LOADS)]
)
def test_models_are_not_loaded_anew_where_that_would_take_too_long(world, within, loads):
    found = run(world, world.session("a", 1.0), world.session("b", 1.0), seconds=80.0, within=within)
    per_load = 2 * (4 + len(found[0].rounds))
    assert per_load == 18
    assert len(found) == loads


@pytest.mark.parametrize(
    ("rounds", "shares"), [(1, [1]), (4, [4]), (10, [5, 5]), (13, [7, 6]), (83, [11] * 3 + [10] * 5)]
)
def test_as_many_rounds_as_are_asked_for(world, rounds, shares):
    found = run(world, world.session("a", 100.0), world.session("b", 100.0), rounds=rounds)
    assert [len(load.rounds) for load in found] == shares


@pytest.mark.parametrize(
    ("cost", "warm_up"),
    [
        (lambda _: 1.0, 4),
        (lambda number: 5.0 if number < 6 else 1.0, 4),  # steady for long enough: no way to know better
        (lambda number: max(1.0, 5.0 - number), 8),
        (lambda number: 0.9**number, MOST_WARM_UP),
        (lambda number: 1.0 - 0.001 * number, 4),
    ],
    ids=["at once", "steady too early", "speeds up", "for ever", "hardly"],
)
def test_a_model_is_warm_when_it_does_not_speed_up_any_more(world, cost, warm_up):
    found = run(world, world.session("a", cost), world.session("b", 1.0), rounds=5)
    assert [load.warm_up for load in found] == [warm_up]


@pytest.mark.parametrize(("within", "warm_up"), [(0.0, 3), (6 * 5.5, 4), (6 * 9.5, 7), (None, MOST_WARM_UP)])
def test_a_model_is_not_warmed_up_for_longer_than_there_is_time(world, within, warm_up):
    """Here both take 1 s, and less and less."""
    found = run(world, *[world.session(name, lambda number: 0.9**number) for name in "ab"], within=within)
    assert found[0].warm_up == warm_up


def test_a_model_has_a_pace(world):
    found = interleave.pace(world.session("a", lambda number: 5.0 if number < 1 else 2.0), {})
    assert found == interleave.Pace(load=5.0, run=2.0)
    assert found.expected(2, 4) == 2 * 4 * (5 + 8 * 2)
    assert found.expected(2, 4, seconds=3, rounds=10) == 2 * 4 * (5 + 8 * 2) + 2 * 10 * 2 + 2 * 3


def test_with_one_thread_an_interrupted_run_counts_as_long_as_it_worked(world):
    loads = run(world, world.session("a", 0.5, disturbed=4.0), world.session("b", 0.25), rounds=10)
    for load in loads:
        assert load.pairs(0, 1) == [(pytest.approx(0.5), pytest.approx(0.25))] * 5
        assert load.preempted(0, 1) == 5


def test_with_more_threads_it_counts_as_it_was(world):
    (load,) = run(
        world, world.session("a", 0.5, disturbed=4.0), world.session("b", 0.25), threads=2, rounds=5
    )
    assert load.pairs(0, 1) == [(pytest.approx(4.5), pytest.approx(0.25))] * 5


@pytest.mark.parametrize(
    ("calm", "counted"), [(LEAST_ROUNDS, LEAST_ROUNDS), (LEAST_ROUNDS - 1, LEAST_ROUNDS + 1)]
)
def test_with_more_threads_calm_rounds_count_if_they_are_enough(calm, counted):
    rounds = [(Run(1.0, False), Run(1.0, False))] * calm
    disturbed = [(Run(1.0, False), Run(9.0, True))] * 2
    load = Load((*rounds, *disturbed), warm_up=3, threads=2)
    assert len(load.pairs(0, 1)) == counted
    assert load.preempted(0, 1) == 2
    assert len(Load(load.rounds, 3, threads=1).pairs(0, 1)) == calm + 2


def test_the_system_counts_preemptions():
    first = interleave._preemptions()
    assert interleave._preemptions() >= first >= 0
