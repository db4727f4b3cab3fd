"""Measuring: the statistics as functions of times, and the order of runs. Nothing here is timed."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from repfuse import bench
from repfuse.backends import BackendError
from repfuse.bench import Benchmark, benchmark, measure, median_interval, summarize
from repfuse.errors import BadInputError

seconds = st.floats(1e-6, 10)
rounds = st.lists(st.tuples(seconds, seconds), min_size=6, max_size=60)


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=200))
def test_the_interval_holds_the_median_and_two_of_the_values(values):
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high
    assert {low, high} <= set(values)


@pytest.mark.parametrize("count", [6, 7, 10, 25, 60, 101])
def test_the_interval_is_the_narrowest_with_enough_confidence(count):
    """Of `count` fair coins, so many show heads too rarely: that is how often the interval misses."""
    low, _ = median_interval(range(count))
    missing = [2 * sum(math.comb(count, heads) for heads in range(k)) / 2**count for k in (low + 1, low + 2)]
    assert missing[0] <= 0.05 < missing[1]


@pytest.mark.parametrize(("count", "ends"), [(6, (0, 5)), (10, (1, 8)), (20, (5, 14)), (100, (39, 60))])
def test_the_interval_agrees_with_published_tables(count, ends):
    """Conover, Practical Nonparametric Statistics, table A3: ranks 1 and 6, 2 and 9, 6 and 15, 40 and 61."""
    assert median_interval(range(count)) == ends


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials = [median_interval(list(rng.lognormal(0, 1, 15))) for _ in range(2000)]
    covered = sum(low <= 1 <= high for low, high in trials) / len(trials)
    assert 0.95 <= covered < 0.985  # exactly 0.9648


@pytest.mark.parametrize("count", range(6))
def test_too_few_values_have_no_interval(count):
    with pytest.raises(ValueError, match=f"{count} values are too few"):
        median_interval([1.0] * count)


@given(rounds)
def test_swapping_the_models_inverts_the_interval(pairs):
    before, after = zip(*pairs, strict=True)
    one, other = summarize(before, after), summarize(after, before)
    assert (one.before_ms, one.after_ms) == (other.after_ms, other.before_ms)
    assert one.low == pytest.approx(1 / other.high)
    assert one.high == pytest.approx(1 / other.low)
    assert {one.verdict, other.verdict} in ({"same"}, {"faster", "slower"})


@given(rounds, st.integers(0, 100))
def test_the_order_of_rounds_does_not_matter_but_their_pairing_does(pairs, seed):
    shuffled = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    assert summarize(*zip(*pairs, strict=True)) == summarize(*zip(*shuffled, strict=True))


def test_pairing_cancels_a_machine_that_slows_down():
    """Ten times slower at the end than at the start, the ratio is still seen exactly."""
    slowness = np.linspace(1, 10, 30)
    result = summarize(0.003 * slowness, 0.002 * slowness, backend="B", threads=2)
    assert result == Benchmark(
        "B", 2, pytest.approx(16.5), pytest.approx(11.0), *[pytest.approx(1.5)] * 3, 30
    )
    assert result.verdict == "faster"


def test_one_disturbed_round_changes_nothing():
    before, after = [0.010] * 20, [0.010] * 20
    before[7] = 3.0
    assert summarize(before, after).ratio == 1
    assert summarize(before, after).verdict == "same"


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
    assert Benchmark("B", 1, 1.0, 1.0, (low + high) / 2, low, high, 10).verdict == verdict


def test_unpaired_times_are_refused():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        summarize([1.0] * 10, [1.0] * 9)


class FakeSession:
    """Takes a fixed time on a clock that only moves when a session runs."""

    def __init__(self, name, cost, clock, log):
        self.name, self.cost, self.clock, self.log = name, cost, clock, log

    def run(self, feeds):
        self.log.append(self.name)
        self.clock[0] += self.cost
        return {}


@pytest.fixture
def fakes(monkeypatch):
    clock, log = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    return lambda first, second: (
        FakeSession("a", first, clock, log),
        FakeSession("b", second, clock, log),
        log,
    )


def test_models_run_in_turn_and_swap_who_is_first(fakes):
    first, second, log = fakes(0.5, 0.25)
    before, after = measure(first, second, {}, seconds=9)
    assert len(before) == len(after) == 12
    assert before == [0.5] * 12
    assert after == [0.25] * 12
    assert "".join(log[2 * bench.WARM_UP_RUNS :]) == "abba" * 6
    assert set(log[: 2 * bench.WARM_UP_RUNS]) == {"a", "b"}


@pytest.mark.parametrize(("cost", "count"), [(100.0, bench.LEAST_ROUNDS), (1e-9, bench.MOST_ROUNDS)])
def test_rounds_are_bounded_both_ways(fakes, cost, count):
    first, second, _ = fakes(cost, cost)
    assert len(measure(first, second, {}, seconds=3)[0]) == count


def model(repeats, op="Relu"):
    names = [f"t{i}" for i in range(repeats + 1)]
    graph = helper.make_graph(
        [helper.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)],
        "g",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["N", 8])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_real_models_are_measured(backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    steps = []
    shapes = {"t0": (2, 8)}
    result = benchmark(
        model(1), model(3), backend=backend, seconds=0.05, input_shapes=shapes, on_progress=steps.append
    )
    assert result.rounds >= bench.LEAST_ROUNDS
    assert 0 < result.low <= result.ratio <= result.high
    assert result.before_ms > 0 < result.after_ms
    assert steps == [f"{result.backend}: measuring latency"]
    assert result.threads == 1


def test_own_data_are_fed():
    with pytest.raises(BadInputError, match="expected float32 data, not float64"):
        benchmark(model(1), model(1), input_data={"t0": np.zeros((1, 8))}, seconds=0)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(BackendError, match="Foo"):
        benchmark(model(1), model(1, op="Foo"), seconds=0)
    with pytest.raises(BadInputError, match="name it: ort or openvino"):
        benchmark(model(1), model(1), backend="all", seconds=0)
    with pytest.raises(BadInputError, match="no backend 'cuda'"):
        benchmark(model(1), model(1), backend="cuda", seconds=0)
