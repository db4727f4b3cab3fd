"""Backends: each runs what it is given, by the graph's own names, and explains what it cannot run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repfuse.errors import BadInputError
from repfuse.runtimes import installed
from repfuse.runtimes.backends import BackendError, fed_inputs
from repfuse.runtimes.installed import backends_named
from repfuse.runtimes.openvino import OpenVINO
from repfuse.runtimes.ort import OnnxRuntime

F32 = TensorProto.FLOAT
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
EACH = [
    pytest.param(OnnxRuntime(), id="ort"),
    pytest.param(OnnxRuntime(optimize=False), id="ort-unoptimized"),
    pytest.param(OpenVINO(), id="openvino", marks=needs_openvino),
]
each_backend = pytest.mark.parametrize("backend", EACH)


def model(nodes, inputs, outputs, initializers=(), domains=()):
    """A model of nodes, with (name, type, shape) for its inputs and outputs."""
    graph = helper.make_graph(
        [helper.make_node(*node) if isinstance(node, tuple) else node for node in nodes],
        "g",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), *domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(backend, proto, **feeds):
    return backend.load(proto, threads=1).run(feeds)


X = np.array([[1, -2], [3, -4]], np.float32)


@each_backend
def test_outputs_are_keyed_by_the_graphs_names_in_its_order(backend):
    proto = model(
        [("Relu", ["x"], ["r"]), ("Neg", ["r"], ["n"]), ("Identity", ["n"], ["i"]), ("Shape", ["x"], ["s"])],
        [("x", F32, [2, "K"])],
        [("s", TensorProto.INT64, [2]), ("i", F32, [2, "K"]), ("r", F32, [2, "K"]), ("n", F32, [2, "K"])],
    )
    out = run(backend, proto, x=X)
    assert list(out) == ["s", "i", "r", "n"]
    assert out["s"].tolist() == [2, 2]
    assert out["s"].dtype == np.int64
    np.testing.assert_array_equal(out["r"], np.maximum(X, 0))
    np.testing.assert_array_equal(out["n"], -np.maximum(X, 0))
    np.testing.assert_array_equal(out["i"], out["n"])


@each_backend
def test_inputs_are_paired_by_name_and_not_by_place(backend):
    proto = model(
        [("Sub", ["b", "a"], ["y"])], [("a", F32, [2, 2]), ("b", F32, [2, 2])], [("y", F32, [2, 2])]
    )
    np.testing.assert_array_equal(run(backend, proto, a=X, b=3 * X)["y"], 2 * X)


@each_backend
def test_an_input_that_nothing_reads_is_taken(backend):
    proto = model([("Neg", ["x"], ["y"])], [("unused", F32, [3]), ("x", F32, [2, 2])], [("y", F32, [2, 2])])
    np.testing.assert_array_equal(run(backend, proto, x=X, unused=np.zeros(3, np.float32))["y"], -X)


@each_backend
def test_an_input_behind_a_dropout_keeps_its_name(backend):
    """OpenVINO calls both the input and the output of a Dropout by the name of the output."""
    proto = model(
        [("Dropout", ["x"], ["d"]), ("Sub", ["d", "z"], ["y"])],
        [("x", F32, [2, 2]), ("z", F32, [2, 2])],
        [("d", F32, [2, 2]), ("y", F32, [2, 2]), ("x", F32, [2, 2])],
    )
    out = run(backend, proto, x=X, z=5 * X)
    np.testing.assert_array_equal(out["d"], X)
    np.testing.assert_array_equal(out["y"], -4 * X)
    np.testing.assert_array_equal(out["x"], X)


@needs_openvino
def test_inputs_that_cannot_be_told_apart_are_refused_by_openvino():
    proto = model(
        [("Dropout", ["x"], ["d"]), ("Neg", ["d"], ["y"])],
        [("unused", F32, [2, 2]), ("x", F32, [2, 2])],
        [("y", F32, [2, 2])],
    )
    with pytest.raises(BackendError, match="cannot tell which of its inputs are unused, x"):
        OpenVINO().load(proto, threads=1)


@each_backend
def test_initializers_that_are_inputs_need_no_feed(backend):
    weight = numpy_helper.from_array(X, "w")
    inputs = [("w", F32, [2, 2]), ("x", F32, [2, 2])]
    proto = model([("Add", ["x", "w"], ["y"])], inputs, [("y", F32, [2, 2])], [weight])
    assert [entry.name for entry in fed_inputs(proto.graph)] == ["x"]
    np.testing.assert_array_equal(run(backend, proto, x=X)["y"], 2 * X)


@each_backend
@pytest.mark.parametrize("array", [X.T, X[::-1], np.float32([[1, 2, 3], [4, 5, 6]])[:, ::2]])
@pytest.mark.parametrize("writeable", [True, False])
def test_the_layout_of_a_feed_does_not_matter(backend, array, writeable):
    array = array.view()
    array.flags.writeable = writeable
    proto = model(
        [("Add", ["x", "one"], ["y"])], [("x", F32, [2, 2]), ("one", F32, [])], [("y", F32, [2, 2])]
    )
    out = run(backend, proto, x=array, one=np.array(1, np.float32))["y"]
    np.testing.assert_array_equal(out, array + 1)


@each_backend
def test_a_later_run_leaves_earlier_outputs_alone(backend):
    session = backend.load(
        model([("Neg", ["x"], ["y"])], [("x", F32, [2, 2])], [("y", F32, [2, 2])]), threads=1
    )
    first = session.run({"x": X})["y"]
    session.run({"x": 7 * X})
    np.testing.assert_array_equal(first, -X)


@each_backend
@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL"])
def test_types_go_in_and_out_unchanged(backend, kind):
    number = TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    # With an input of a type that numpy has, since those that it lacks take another way into ONNX Runtime.
    proto = model(
        [("Reshape", ["x", "shape"], ["y"]), ("Neg", ["z"], ["w"])],
        [("x", number, [1, 3]), ("z", F32, [2, 2])],
        [("y", number, [3, 1]), ("w", F32, [2, 2])],
        [numpy_helper.from_array(np.array([3, 1]), "shape")],
    )
    values = np.array([[0, 1, 5]]).astype(dtype)
    out = run(backend, proto, x=values, z=X)
    assert out["y"].dtype == dtype
    assert out["y"].astype(float).tolist() == values.reshape(3, 1).astype(float).tolist()
    np.testing.assert_array_equal(out["w"], -X)


@pytest.mark.parametrize("backend", EACH[:2])
def test_strings_run_on_onnx_runtime(backend):
    text = TensorProto.STRING
    proto = model([("Identity", ["x"], ["y"])], [("x", text, [2])], [("y", text, [2])])
    assert run(backend, proto, x=np.array(["a", "bc"]))["y"].tolist() == ["a", "bc"]


@needs_openvino
def test_strings_are_refused_by_openvino():
    """Its binding may end the process on them."""
    text = TensorProto.STRING
    with pytest.raises(BackendError, match="'x' holds strings"):
        OpenVINO().load(
            model([("Identity", ["x"], ["y"])], [("x", text, [2])], [("y", text, [2])]), threads=1
        )


BAD = {
    "an unknown operator": (model([("Foo", ["x"], ["y"])], [("x", F32, [2])], [("y", F32, [2])]), "Foo"),
    "an unknown domain": (
        model(
            [helper.make_node("Foo", ["x"], ["y"], domain="mine")],
            [("x", F32, [2])],
            [("y", F32, [2])],
            domains=[("mine", 1)],
        ),
        "Foo",
    ),
    "shapes that do not fit": (
        model([("MatMul", ["x", "x"], ["y"])], [("x", F32, [2, 3])], [("y", F32, [2, 3])]),
        "(?i)matmul|incompatible",
    ),
}


@each_backend
@pytest.mark.parametrize("case", BAD)
def test_what_a_backend_cannot_run_is_explained_in_one_line(backend, case, capfd):
    proto, reason = BAD[case]
    with pytest.raises(BackendError, match=reason) as caught:
        run(
            backend,
            proto,
            x=np.zeros(proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value, np.float32),
        )
    assert str(caught.value).startswith(backend.title + ": ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the runtimes' own logs stay off the terminal


@pytest.mark.parametrize("backend", EACH[:2])
def test_a_failure_while_running_is_explained_in_one_line(backend, capfd):
    proto = model(
        [("Gather", ["x", "i"], ["y"])],
        [("x", F32, [2, 2]), ("i", TensorProto.INT64, [1])],
        [("y", F32, [1, 2])],
    )
    with pytest.raises(BackendError, match=r"Gather.*out of") as caught:
        run(backend, proto, x=X, i=np.array([9]))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@each_backend
@pytest.mark.parametrize("feeds", [{}, {"z": X}, {"x": X, "z": X}])
def test_feeds_of_other_names_are_refused(backend, feeds):
    session = backend.load(
        model([("Neg", ["x"], ["y"])], [("x", F32, [2, 2])], [("y", F32, [2, 2])]), threads=1
    )
    with pytest.raises(BackendError):
        session.run(feeds)


@each_backend
def test_a_model_may_be_a_path_with_weights_beside_it(backend, tmp_path):
    weight = numpy_helper.from_array(np.arange(4096, dtype=np.float32), "w")
    proto = model([("Add", ["x", "w"], ["y"])], [("x", F32, [4096])], [("y", F32, [4096])], [weight])
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    for source in (path, str(path)):
        out = run(backend, source, x=np.ones(4096, np.float32))["y"]
        np.testing.assert_array_equal(out, np.arange(4096, dtype=np.float32) + 1)
    with pytest.raises(BadInputError, match=r"missing\.onnx: no such file"):
        backend.load(tmp_path / "missing.onnx", threads=1)


@pytest.mark.parametrize("backend", EACH[:2])
def test_a_sequence_gives_an_array_for_each_element(backend):
    outputs = run(backend, sequence(), x=X)
    assert list(outputs) == ["y[0]", "y[1]"]
    assert all(np.array_equal(output, X) for output in outputs.values())


@needs_openvino
def test_what_is_no_tensor_is_refused_by_openvino():
    with pytest.raises(BackendError, match="'y' is no tensor"):
        run(OpenVINO(), sequence(), x=X)


def sequence():
    proto = model([("SequenceConstruct", ["x", "x"], ["y"])], [("x", F32, [2, 2])], [])
    proto.graph.output.append(helper.make_tensor_sequence_value_info("y", F32, None))
    return proto


def test_a_model_that_protobuf_cannot_serialize_is_refused(monkeypatch):
    def too_large(_):
        raise ValueError("exceeds maximum protobuf size of 2GB")

    proto = model([("Neg", ["x"], ["y"])], [("x", F32, [2, 2])], [("y", F32, [2, 2])])
    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", too_large)
    with pytest.raises(BadInputError, match="external data and give its path"):
        OnnxRuntime().load(proto, threads=1)


def test_optimizing_is_switched_off():
    """Unoptimized, ONNX Runtime keeps what it would fold otherwise; seen in how it rounds."""
    rng = np.random.default_rng(0)
    parts = {"w": (8, 4, 3, 3), "scale": (8,), "shift": (8,), "mean": (8,), "var": (8,)}
    weights = [
        numpy_helper.from_array(rng.uniform(0.1, 1, shape).astype(np.float32), n)
        for n, shape in parts.items()
    ]
    proto = model(
        [
            ("Conv", ["x", "w"], ["c"]),
            ("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"]),
        ],
        [("x", F32, [1, 4, 16, 16])],
        [("y", F32, None)],
        weights,
    )
    x = rng.standard_normal((1, 4, 16, 16)).astype(np.float32)
    fast, plain = (run(OnnxRuntime(optimize=flag), proto, x=x)["y"] for flag in (True, False))
    assert 0 < np.abs(fast - plain).max() < 1e-4
    assert OnnxRuntime().title in OnnxRuntime(optimize=False).title


def test_backends_are_found_by_name(monkeypatch):
    assert backends_named("ort") == [OnnxRuntime()]
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda _: object())
    assert backends_named("all") == [OnnxRuntime(), OpenVINO()]
    assert backends_named("openvino") == [OpenVINO()]
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda _: None)
    assert backends_named("all") == [OnnxRuntime()]
    with pytest.raises(BadInputError, match=r"pip install 'repfuse\[openvino\]'"):
        backends_named("openvino")
    with pytest.raises(BadInputError, match="no backend 'tensorrt'; choose one of ort, openvino, all"):
        backends_named("tensorrt")


def test_runtimes_are_imported_only_when_needed():
    imports = "import sys, repfuse.measures.bench, repfuse.proof.verification"
    code = f"{imports}; print({{'onnxruntime', 'openvino'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
