"""Forms run in a process of their own: what crashes a runtime is a form that lost, and no more."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper

from repfuse.measures import meter as module
from repfuse.measures.extract import digest
from repfuse.measures.interleave import Load, Run
from repfuse.measures.meter import Form, Meter
from repfuse.runtimes.backends import Loadable, Session
from repfuse.runtimes.ort import OnnxRuntime


@dataclass(frozen=True)
class Doomed:
    """A backend that crashes on models of so many nodes, or hangs; ONNX Runtime otherwise."""

    nodes: int
    hangs: bool = False
    name: ClassVar[str] = "doomed"
    title: ClassVar[str] = "Doomed 1.0"

    def load(self, model: Loadable, *, threads: int) -> Session:
        assert isinstance(model, bytes)
        if len(onnx.load_from_string(model).graph.node) == self.nodes:
            time.sleep(600) if self.hangs else os.abort()
        return OnnxRuntime().load(model, threads=threads)


@pytest.mark.parametrize(
    ("nodes", "runs"),
    [
        pytest.param(99, [True, True], id="none"),
        pytest.param(2, [False, True], id="one"),
        pytest.param(3, None, id="the original"),
    ],
)
def test_a_form_that_crashes_the_runtime_loses(nodes: int, runs: list[bool] | None) -> None:
    models = [chain(length) for length in (3, 2, 1)]
    forms = [Form(model, digest(model)) for model in models]
    feed = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    found = Meter(threads=1).compare(forms, Doomed(nodes), lambda: feed, seconds=0.05)
    assert (found and [ratio.value > 0 for ratio in found]) == runs


def test_a_form_that_the_runtime_hangs_on_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []

    def patience(expected: float | None) -> float:
        waited.append(expected)
        return 2.0

    monkeypatch.setattr(module, "patience", patience)
    models = [chain(length) for length in (3, 2, 1)]
    forms = [Form(model, digest(model)) for model in models]
    feed = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    meter = Meter(threads=1)
    assert meter.pace(forms[0], Doomed(2, hangs=True), lambda: feed)
    found = meter.compare(forms, Doomed(2, hangs=True), lambda: feed, seconds=0.05)
    assert found
    assert [ratio.value > 0 for ratio in found] == [False, True]
    nobody_knows, *known = waited
    assert nobody_knows is None
    assert all(each and 0.1 < each < 60 for each in known)


def test_a_model_that_the_runtime_hangs_on_has_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "patience", lambda _: 1.0)
    feed = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    assert Meter(threads=1).pace(Form(chain(2), ""), Doomed(2, hangs=True), lambda: feed) is None


class Scripted:
    """In the place of the other process: the second form's share of the first one's time, for each call."""

    def __init__(self, *shares: Sequence[float]) -> None:
        self.shares = list(shares)

    def call(self, *_: object, **__: object) -> list[Load]:
        loads = self.shares.pop(0)
        return [Load(((Run(1.0, False), Run(share, False)),) * 5, 0, 1) for share in loads]


CLEAR, DOUBTFUL = (0.8, 0.81, 0.79, 0.8), (0.8, 1.2, 0.7, 1.2)


@pytest.mark.parametrize(
    ("shares", "limit", "seconds", "left"),
    [
        pytest.param([CLEAR] * 5, 0.99, 100.0, 4, id="clear"),
        pytest.param([DOUBTFUL, CLEAR, CLEAR, CLEAR, CLEAR], 0.99, 100.0, 2, id="clear in the end"),
        pytest.param([DOUBTFUL] * 5, 0.99, 100.0, 1, id="never clear"),
        pytest.param([DOUBTFUL] * 5, 0.99, 0.0, 4, id="late"),
        pytest.param([DOUBTFUL] * 5, None, 100.0, 4, id="of no consequence"),
    ],
)
def test_what_is_not_certain_is_measured_again(
    shares: list[Sequence[float]], limit: float | None, seconds: float, left: int
) -> None:
    meter, script = Meter(threads=1), Scripted(*shares)
    meter._child = script  # type: ignore[assignment]
    forms = [Form(chain(length), str(length)) for length in (2, 1)]
    found = meter.compare(forms, OnnxRuntime(), dict, seconds=1.0, limit=limit, within=seconds)
    assert found
    assert len(script.shares) == left
    assert meter.measured == 1


def chain(length: int) -> onnx.ModelProto:
    names = ["x", *(f"t{number}" for number in range(length))]
    nodes = [helper.make_node("Relu", [names[at]], [names[at + 1]]) for at in range(length)]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 8, 8])
        for name in (names[0], names[-1])
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
