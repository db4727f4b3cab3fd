"""Measuring two models on a backend, and what becomes of the times. How long anything takes is not tested."""

from __future__ import annotations

import itertools
import os
import re
import time
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import TensorProto, helper

from repfuse.errors import BadInputError
from repfuse.measures import bench
from repfuse.measures.bench import all_threads, benchmark, summarize
from repfuse.measures.interleave import LEAST_LOADS, LEAST_ROUNDS, Load, Run
from repfuse.runtimes.backends import BackendError, structure
from repfuse.runtimes.ort import OnnxRuntime


def load(before, after, *, disturbed=()):
    rounds = [
        (Run(first, number in disturbed), Run(second, False))
        for number, (first, second) in enumerate(zip(before, after, strict=True))
    ]
    return Load(tuple(rounds), warm_up=4, threads=1)


def test_pairing_cancels_a_machine_that_slows_down():
    """Ten times slower at the end than at the start, the ratio is still seen exactly."""
    slowness = np.linspace(1, 10, 30)
    result = summarize([load(0.003 * slowness, 0.002 * slowness)], backend="B")
    assert (result.before_ms, result.after_ms) == (pytest.approx(16.5), pytest.approx(11.0))
    assert [result.ratio, result.low, result.high] == [pytest.approx(1.5)] * 3
    assert (result.backend, result.threads, result.rounds, result.warm_up) == ("B", 1, 30, 4)
    assert (result.verdict, result.confidence) == ("faster", 1)


def test_one_disturbed_round_changes_nothing_and_is_shown():
    before = [0.010] * 20
    before[7] = 3.0
    result = summarize([load(before, [0.010] * 20, disturbed=[7])])
    assert (result.ratio, result.verdict) == (1, "same")
    assert (result.outliers_ms, result.preempted) == ((3000.0,), 1)
    assert result.times_ms[0][7] == (3000.0, 10.0)


def test_the_first_of_many_models_is_compared_with_any_other():
    runs = tuple(Run(seconds, False) for seconds in (0.6, 0.3, 0.2))
    result = summarize([Load((runs,) * 6, warm_up=1, threads=2)] * 3, second=2)
    assert (result.ratio, result.after_ms, result.threads) == (pytest.approx(3), pytest.approx(200), 2)


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
    assert result.rounds >= LEAST_LOADS * LEAST_ROUNDS
    assert len(result.times_ms) >= LEAST_LOADS
    assert 0 < result.low <= result.ratio <= result.high
    assert result.before_ms > 0 < result.after_ms
    assert steps[0] == f"{result.backend}: measuring latency (1 of 8)"
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


def test_rounds_may_be_counted_instead():
    assert benchmark(model(1), model(3), rounds=7, input_shapes={"t0": (2, 8)}).rounds == 7


def test_there_is_a_processor():
    assert all_threads() >= 1


@dataclass(frozen=True)
class Doomed(OnnxRuntime):
    """A backend that crashes on models of so many nodes, or hangs; ONNX Runtime otherwise."""

    title = "Doomed 1.0"
    nodes: int = 1
    hangs: bool = False

    def load(self, model, *, threads):
        if len(structure(model).graph.node) != self.nodes:
            return super().load(model, threads=threads)
        return time.sleep(600) if self.hangs else os.abort()


@pytest.mark.parametrize(
    ("nodes", "hangs", "message"),
    [
        (1, False, "it crashed (signal 6, SIGABRT) while the first model was measured"),
        (3, False, "it crashed (signal 6, SIGABRT) while both models were measured"),
        (1, True, "it took more than 3 s, and was stopped while the first model was measured"),
        (3, True, "it took more than 2 s, and was stopped while both models were measured"),
    ],
)
def test_a_backend_that_crashes_or_hangs_is_an_error(monkeypatch, nodes, hangs, message):
    monkeypatch.setattr(bench, "backends_named", lambda _: [Doomed(nodes=nodes, hangs=hangs)])
    monkeypatch.setattr(bench, "patience", lambda expected: 3 if expected is None else 2)
    with pytest.raises(BackendError, match=rf"^{re.escape(f'Doomed 1.0: {message}')}$"):
        benchmark(model(1), model(3), rounds=1, input_shapes={"t0": (2, 8)})
