"""Forms run in a process of their own: what crashes a runtime is a form that lost, and no more."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper

from repfuse.backends import Loadable, OnnxRuntime, Session
from repfuse.extract import digest
from repfuse.meter import Form, Meter


@dataclass(frozen=True)
class Doomed:
    """A backend that crashes on models of so many nodes; ONNX Runtime otherwise."""

    nodes: int
    name: ClassVar[str] = "doomed"
    title: ClassVar[str] = "Doomed 1.0"

    def load(self, model: Loadable, *, threads: int) -> Session:
        assert isinstance(model, bytes)
        if len(onnx.load_from_string(model).graph.node) == self.nodes:
            os.abort()
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


def chain(length: int) -> onnx.ModelProto:
    names = ["x", *(f"t{number}" for number in range(length))]
    nodes = [helper.make_node("Relu", [names[at]], [names[at + 1]]) for at in range(length)]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 8, 8])
        for name in (names[0], names[-1])
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
