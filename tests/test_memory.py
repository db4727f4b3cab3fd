"""How much memory running takes: what a profile says, and what a process of its own finds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest

from repfuse.measures import memory
from repfuse.measures.memory import Memory, activations_of, measure_memory
from repfuse.runtimes.backends import BackendError

MIB = 2**20


def event(ts, in_use, delta, cat="Node"):
    return {
        "cat": cat,
        "ts": ts,
        "args": {"mem_bytes_requested_in_use": str(in_use), "mem_requested_in_use_delta": str(delta)},
    }


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], None),
        ([{"cat": "Node", "ts": 1, "args": {}}], None),
        ([event(1, 1100, 100), event(2, 1300, 200), event(3, 1050, -250)], 300),
        ([event(3, 1050, -250), event(1, 1100, 100), event(2, 1300, 200)], 300),
        ([event(1, 1100, 100), event(2, 9000, 0, cat="Session")], 100),
    ],
)
def test_activations_are_what_is_in_use_beyond_what_was_before(events, expected):
    assert activations_of(events) == expected


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x -> Sigmoid -> a -> Sigmoid -> b; Concat [a, b] -> y: 4 MiB each for a and b, 8 for y."""
    nodes = [
        graphs.node("Sigmoid", ["x"], ["a"]),
        graphs.node("Tanh", ["a"], ["b"]),
        graphs.node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    path = tmp_path_factory.mktemp("memory") / "chain.onnx"
    onnx.save(graphs.model(nodes, {"x": (1, 1, 1024, 1024)}, ["y"], {}), path)
    return path


FEEDS = {"x": np.ones((1, 1, 1024, 1024), np.float32)}


def test_onnx_runtime_tells_what_activations_take(chain):
    found = measure_memory(chain, FEEDS, backend="ort")
    if found.activations is not None:  # by an older version
        assert found.activations == 16 * MIB
        assert found.activations_unoptimized == 16 * MIB
    if sys.platform == "linux":
        assert 14 * MIB < found.process < 100 * MIB


def test_openvino_tells_nothing_of_activations(chain):
    pytest.importorskip("openvino")
    found = measure_memory(chain, FEEDS, backend="openvino")
    assert isinstance(found, Memory)
    assert found.activations is None
    assert found.process is None or found.process > 8 * MIB


def test_the_reason_of_a_failure_comes_from_the_other_process(chain):
    with pytest.raises(BackendError, match=r"^ONNX Runtime .*'?z'?"):
        measure_memory(chain, {"z": FEEDS["x"]}, backend="ort")


def abort(*_):
    os.abort()


def test_a_process_that_dies_is_an_error(chain, monkeypatch):
    monkeypatch.setattr(memory, "_measure_here", abort)
    with pytest.raises(BackendError, match=r"chain\.onnx takes failed: it crashed \(signal 6, SIGABRT\)"):
        measure_memory(chain, FEEDS, backend="ort")
