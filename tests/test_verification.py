"""Verifying: what is the same passes, each way of being different is caught, and empty checks are told."""

from __future__ import annotations

import itertools
import math
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from commandline import repfuse
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repfuse.errors import BadInputError
from repfuse.proof import verification
from repfuse.proof.comparison import OutputCheck
from repfuse.proof.verification import FEEDS, verify
from repfuse.runtimes import child
from repfuse.runtimes.backends import BackendError, structure
from repfuse.runtimes.ort import OnnxRuntime, OrtSession

F32 = TensorProto.FLOAT
SHAPE = [1, 4, 16, 16]


def model(nodes, outputs, weights=None, inputs=(("x", F32, SHAPE),)):
    """Nodes are (op, inputs, outputs) or with a dict of attributes; outputs are (name, type)."""
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if node[3:] else {})) for node in nodes],
        "g",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def network(change=None, output="y", tail=(), kind=F32):
    """Conv-Relu-Conv with 3x3 kernels; `change` may edit its weights, `tail` follows it."""
    rng = np.random.default_rng(7)
    weights = {name: rng.normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32) for name in ("w", "v")}
    if change:
        change(weights)
    same = {"pads": [1, 1, 1, 1]}
    nodes = [("Conv", ["x", "w"], ["c"], same), ("Relu", ["c"], ["r"])]
    last = "before_tail" if tail else output
    return model([*nodes, ("Conv", ["r", "v"], [last], same), *tail], [(output, kind)], weights)


def branches(merged=False):
    """A 3x3 and a 1x1 Conv and an identity, added; or all three as the one Conv that they amount to."""
    rng = np.random.default_rng(3)
    dense = rng.normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32)
    point = rng.normal(0, 0.2, (4, 4, 1, 1)).astype(np.float32)
    same = {"pads": [1, 1, 1, 1]}
    if merged:
        dense[:, :, 1:2, 1:2] += point + np.eye(4, dtype=np.float32)[:, :, None, None]
        return model([("Conv", ["x", "w"], ["y"], same)], [("y", F32)], {"w": dense})
    nodes = [("Conv", ["x", "w"], ["a"], same), ("Conv", ["x", "p"], ["b"]), ("Sum", ["a", "b", "x"], ["y"])]
    return model(nodes, [("y", F32)], {"w": dense, "p": point})


def test_a_sound_merge_passes():
    result = verify(branches(), branches(merged=True))
    assert result.passed
    assert result.messages == []
    assert result.inputs == ("x: float32[1, 4, 16, 16]",)
    for check in result.checks:
        assert 0 < check.error < 1e-6
        assert check.error <= check.tolerance < 1e-5
        assert check.movement > 0.1
        assert check.error_of_movement == check.error / check.movement < 1.3e-4


def test_both_backends_are_used(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "m.onnx"
    onnx.save(branches(merged=True), path)
    steps = []
    result = verify(branches(), path, on_progress=steps.append)
    ort, openvino = (check.backend for check in result.checks)
    assert (ort.split()[0], openvino.split()[0]) == ("ONNX", "OpenVINO")
    assert steps == [
        *(f"{title}: original model" for title in (ort, openvino, OnnxRuntime(optimize=False).title)),
        *(f"{title}: fused model" for title in (ort, openvino)),
    ]


def one_weight(weights):
    weights["v"][2, 1, 0, 2] += 1e-3


def shifted(weights):
    weights["w"][:] = np.roll(weights["w"], 1, axis=3)


def transposed(weights):
    weights["w"][:] = weights["w"].transpose(0, 1, 3, 2)


def channels_swapped(weights):
    weights["v"][:] = weights["v"][[1, 0, 2, 3]]


@pytest.mark.parametrize("change", [one_weight, shifted, transposed, channels_swapped])
def test_a_wrong_weight_is_caught(change):
    result = verify(network(), network(change))
    assert not result.passed
    for check, message in zip(result.checks, result.messages, strict=True):
        assert not check.passed
        assert not check.problem
        assert check.noise_floor < 1e-6 < check.tolerance < 1e-5 < check.error
        assert message.startswith(f"{check.backend}: output 'y' differs by ")


def test_a_wrong_border_is_caught():
    """The interior is right and all of the border is off: the ring holds a bias instead of zeros."""
    bias = {"b": np.full(4, 0.05, np.float32)}
    rng = np.random.default_rng(1)
    point, dense = (rng.normal(0, 0.2, (4, 4, k, k)).astype(np.float32) for k in (1, 3))
    nodes = [("Conv", ["x", "p", "b"], ["m"]), ("Conv", ["m", "w"], ["y"], {"pads": [1, 1, 1, 1]})]
    chain = model(nodes, [("y", F32)], {"p": point, "w": dense, **bias})
    one = np.einsum("omhw,mi->oihw", dense, point[:, :, 0, 0])
    shift = np.einsum("omhw,m->o", dense, bias["b"])
    merged = model(
        [("Conv", ["x", "w", "b"], ["y"], {"pads": [1, 1, 1, 1]})], [("y", F32)], {"w": one, "b": shift}
    )
    assert not verify(chain, merged).passed
    bias["b"][:] = 0
    chain = model(nodes, [("y", F32)], {"p": point, "w": dense, **bias})
    merged = model([("Conv", ["x", "w"], ["y"], {"pads": [1, 1, 1, 1]})], [("y", F32)], {"w": one})
    assert verify(chain, merged).passed


ONE = np.ones(1, np.float32)
STRUCTURAL = {
    "another name": (network(output="z"), "(number 0) is called 'z' in the fused model"),
    "another shape": (
        network(tail=[("Squeeze", ["before_tail"], ["y"])]),
        "has the shape [4, 16, 16], where the original gives [1, 4, 16, 16]",
    ),
    "another type": (
        network(tail=[("Cast", ["before_tail"], ["y"], {"to": TensorProto.DOUBLE})], kind=TensorProto.DOUBLE),
        "is float64, where the original gives float32",
    ),
    "NaN": (
        network(tail=[("Log", ["before_tail"], ["l"]), ("Exp", ["l"], ["y"])]),
        "has NaN or infinity at other places than the original",
    ),
}


@pytest.mark.parametrize("case", STRUCTURAL)
def test_outputs_that_cannot_be_compared_fail(case):
    other, problem = STRUCTURAL[case]
    result = verify(network(), other)
    assert not result.passed
    for check in result.checks:
        assert check.problem == problem
        assert check.error == math.inf
    assert result.messages == [f"{check.backend}: output 'y' {problem}" for check in result.checks]


def two_outputs(*names):
    return model([("Neg", ["x"], ["a"]), ("Exp", ["x"], ["b"])], [(name, F32) for name in names])


@pytest.mark.parametrize(
    ("names", "problems"),
    [
        (["a", "b"], ["", ""]),
        (
            ["b", "a"],
            ["(number 0) is called 'b' in the fused model", "(number 1) is called 'a' in the fused model"],
        ),
        (["a"], ["", "(number 1) is missing in the fused model"]),
        (["a", "b", "x"], ["", "", "is no output of the original"]),
    ],
)
def test_outputs_must_have_the_same_names_in_the_same_order(names, problems):
    result = verify(two_outputs("a", "b"), two_outputs(*names), backends="ort")
    assert [check.problem for check in result.checks] == problems
    assert result.passed == (not any(problems))


def test_infinities_at_the_same_places_are_compared_apart():
    def logarithm(scale):
        nodes = [("Mul", ["x", "s"], ["m"]), ("Log", ["m"], ["l"]), ("Neg", ["l"], ["y"])]
        return model(nodes, [("y", F32)], {"s": np.float32([scale])})

    same = verify(logarithm(1), logarithm(1), backends="ort")
    assert same.passed
    assert same.checks[0].error == 0
    assert 0 < same.checks[0].movement < 2
    other = verify(logarithm(1), logarithm(1.01), backends="ort").checks[0]
    assert not other.problem  # NaN where x < 0, as in the original
    assert 1e-4 < other.error < 0.1
    assert not other.passed


def test_zeros_must_stay_zeros():
    zeros = model([("Mul", ["x", "s"], ["y"])], [("y", F32)], {"s": 0 * ONE})
    tiny = model([("Mul", ["x", "s"], ["y"])], [("y", F32)], {"s": np.float32([1e-30])})
    (check,) = verify(zeros, tiny, backends="ort").checks
    assert check.problem == "is not zero, where the original gives nothing but zeros"
    (check,) = verify(zeros, zeros, backends="ort").checks
    assert check.passed
    assert check.vacuous


def classes(shift=0.0):
    """The largest channel of each pixel, as integers; and whether the first is positive."""
    nodes = [
        ("Add", ["x", "s"], ["a"]),
        ("ArgMax", ["a"], ["class"], {"axis": 1}),
        ("Greater", ["a", "zero"], ["positive"]),
    ]
    bias = np.float32([shift, 0, 0, 0]).reshape(1, 4, 1, 1)
    outputs = [("class", TensorProto.INT64), ("positive", TensorProto.BOOL)]
    return model(nodes, outputs, {"s": bias, "zero": 0 * ONE})


def test_other_types_must_be_equal():
    same = verify(classes(), classes())
    assert same.passed
    assert {check.tolerance for check in same.checks} == {0}
    assert not any(check.vacuous for check in same.checks)
    moved = verify(classes(), classes(0.1))
    assert not any(check.passed for check in moved.checks)
    assert all(0 < check.error < 0.3 for check in moved.checks)
    assert verify(classes(), classes(0.1), rtol=0.3).passed


def test_strings_are_compared_on_onnx_runtime():
    text = TensorProto.STRING

    def constant(word):
        word = helper.make_tensor("s", text, [1], [word.encode()])
        proto = model([("Identity", ["t"], ["y"])], [("y", text)], inputs=[("t", text, [1])])
        proto.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["y"], value=word))
        return proto

    data = {"t": np.array(["in"])}
    same = verify(constant("one"), constant("one"), input_data=data)
    assert same.passed
    assert all("strings" in note.reason for note in same.skipped)  # OpenVINO, if it is there
    assert not verify(constant("one"), constant("two"), input_data=data).passed


def test_empty_outputs_pass_and_are_vacuous():
    nodes = [("Slice", ["x", "start", "end"], ["y"])]
    empty = model(nodes, [("y", F32)], {"start": np.array([0]), "end": np.array([0])})
    for check in verify(empty, empty).checks:
        assert check.passed
        assert check.vacuous


def test_empty_outputs_are_said_to_be_empty():
    nodes = [("Slice", ["x", "start", "end"], ["y"])]
    empty = model(nodes, [("y", F32)], {"start": np.array([0]), "end": np.array([0])})
    (message,) = verify(empty, empty, backends="ort").messages
    assert "is empty for these inputs, so there is nothing to compare" in message


def unusual(node, kind, scale=1.0):
    """A model whose output is no tensor."""
    weights = {"s": np.float32([scale])}
    proto = model([("Mul", ["x", "s"], ["m"])], [("y", F32)], weights)
    proto.graph.node.append(node)
    del proto.graph.output[:]
    proto.graph.output.append(kind)
    return proto


def sequence(scale=1.0, **attributes):
    node = helper.make_node("SplitToSequence", ["m"], ["y"], axis=1, **attributes)
    return unusual(node, helper.make_tensor_sequence_value_info("y", F32, None), scale)


def optional(scale=1.0):
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(F32, SHAPE))
    return unusual(helper.make_node("Optional", ["m"], ["y"]), helper.make_value_info("y", kind), scale)


@pytest.mark.parametrize(("build", "names"), [(sequence, [f"y[{n}]" for n in range(4)]), (optional, ["y"])])
def test_what_a_sequence_or_an_optional_holds_is_compared(build, names):
    same = verify(build(), build())
    assert same.passed
    assert [check.output for check in same.checks if "ONNX" in check.backend] == names
    other = verify(build(), build(1.001), backends="ort")
    assert not any(check.passed for check in other.checks)
    assert other.smallest_rtol == pytest.approx(1e-3, rel=1e-2)


def test_a_sequence_of_another_length_fails():
    assert not verify(sequence(), sequence(keepdims=0), backends="ort").passed
    result = verify(
        sequence(),
        unusual(
            helper.make_node("SequenceConstruct", ["m"], ["y"]),
            helper.make_tensor_sequence_value_info("y", F32, None),
        ),
        backends="ort",
    )
    assert {check.problem for check in result.checks} >= {"(number 3) is missing in the fused model"}


def test_what_a_map_holds_is_compared():
    """The probabilities of a classifier that scikit-learn trained: a map for each row."""

    def classifier(scale):
        nodes = [("Mul", ["x", "s"], ["m"]), ("ZipMap", ["m"], ["y"], {"classlabels_strings": ["a", "b"]})]
        proto = model(nodes, [], {"s": np.float32([scale])}, inputs=[("x", F32, [3, 2])])
        proto.graph.node[-1].domain = "ai.onnx.ml"
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
        row = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(F32, []))
        kind = helper.make_sequence_type_proto(row)
        proto.graph.output.append(helper.make_value_info("y", kind))
        return proto

    same = verify(classifier(1), classifier(1), backends="ort")
    assert same.passed
    assert [check.output for check in same.checks][:3] == ["y[0]['a']", "y[0]['b']", "y[1]['a']"]
    assert not verify(classifier(1), classifier(1.1), backends="ort").passed


def test_extents_that_were_chosen_are_named_where_nothing_runs():
    proto = model([("Reshape", ["x", "s"], ["y"])], [("y", F32)], {"s": np.array([7])}, [("x", F32, ["N"])])
    with pytest.raises(BadInputError, match=r"give better extents, as in --input-shape x:1\)"):
        verify(proto, proto, backends="ort")  # OpenVINO ends the process


def test_outputs_of_a_shape_that_depends_on_the_input_move():
    found = model([("NonZero", ["r"], ["y"])], [("y", TensorProto.INT64)])
    found.graph.node.insert(0, helper.make_node("Relu", ["x"], ["r"]))
    result = verify(found, found, backends="ort")
    assert result.passed
    assert result.checks[0].movement == 1


def test_a_model_that_ignores_its_input_is_told():
    """Its weights are wrong by a tenth, and the error is a millionth: that proves nothing, and is said."""

    def deaf(scale):
        nodes = [("Mul", ["x", "s"], ["m"]), ("Add", ["m", "one"], ["y"])]
        return model(nodes, [("y", F32)], {"s": np.float32([scale]), "one": ONE})

    result = verify(deaf(1e-8), deaf(1.1e-8))
    assert result.passed
    assert all(check.vacuous for check in result.checks)
    assert all("a wrong model could pass" in message for message in result.messages)
    assert len(result.messages) == len(result.checks)
    assert not any(check.vacuous for check in verify(deaf(1.0), deaf(1.0)).checks)


def test_noise_as_large_as_the_movement_is_told():
    """sin(1e6 x) is all rounding: the original differs from itself, so nothing can be concluded."""
    chaotic = network(tail=[("Mul", ["before_tail", "big"], ["b"]), ("Sin", ["b"], ["y"])])
    chaotic.graph.initializer.append(numpy_helper.from_array(np.float32([1e8]), "big"))
    pytest.importorskip("openvino")
    result = verify(chaotic, chaotic)
    assert all(check.noise_floor > 0.1 for check in result.checks)
    assert all(check.vacuous for check in result.checks)


def test_the_users_tolerance_counts():
    (check,) = verify(network(), network(one_weight), backends="ort", rtol=1e-2).checks
    assert check.passed
    assert check.tolerance == 1e-2
    (tight,) = verify(network(), network(one_weight), backends="ort", rtol=check.error).checks
    assert tight.passed  # the error is the smallest tolerance that passes
    (tighter,) = verify(network(), network(one_weight), backends="ort", rtol=check.error * 0.999).checks
    assert not tighter.passed


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_the_tolerance_follows_the_outputs_type(kind):
    number = TensorProto.DataType.Value(kind)
    proto = model([("Identity", ["x"], ["y"])], [("y", number)], inputs=[("x", number, SHAPE)])
    eps = {"FLOAT16": 2.0**-10, "BFLOAT16": 2.0**-7, "DOUBLE": 2.0**-52}[kind]
    result = verify(proto, proto)
    assert result.passed
    assert {check.tolerance for check in result.checks} == {8 * eps}
    assert verify(branches(), branches(), backends="ort").checks[0].tolerance >= 8 * 2.0**-23


def test_inputs_follow_the_seed_the_shapes_and_the_data():
    inputs = [("x", F32, ["N", 4, "H", "W"])]
    proto = model([("Neg", ["x"], ["y"])], [("y", F32)], inputs=inputs)
    wrong = model([("Abs", ["x"], ["y"])], [("y", F32)], inputs=inputs)
    result = verify(proto, proto, backends="ort", input_shapes={"x": (1, 4, 5, 6)})
    assert result.inputs == ("x: float32[1, 4, 5, 6]",)
    one, again, other = (
        verify(proto, wrong, backends="ort", input_shapes={"x": (1, 4, 5, 6)}, seed=seed).checks[0]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    data = {"x": -np.random.default_rng(0).random((1, 4, 5, 6), np.float32)}
    (check,) = verify(proto, proto, backends="ort", input_data=data).checks
    assert check.movement > 0.1  # own data are varied, so that movement can be measured
    data["x"][0, 0, 0, 0] = 1000  # only these data show the difference: |x| is not -x
    assert verify(proto, wrong, backends="ort", input_data=data).checks[0].error == 2
    with pytest.raises(BadInputError, match="input 'x': expected"):
        verify(proto, proto, input_data={"x": data["x"][0]})


def unknown():
    return model([("Foo", ["x"], ["y"])], [("y", F32)])


def test_a_fused_model_that_does_not_run_is_a_failure():
    result = verify(network(), unknown())
    assert not result.passed
    assert result.checks == ()
    assert result.messages
    assert all("cannot run the fused model" in message and "Foo" in message for message in result.messages)


def test_a_fused_model_with_other_inputs_is_a_failure():
    other = model([("Neg", ["z"], ["y"])], [("y", F32)], inputs=[("z", F32, SHAPE)])
    same = model([("Neg", ["x"], ["y"])], [("y", F32)])
    result = verify(same, other)
    assert not result.passed
    assert result.failures


def test_an_original_that_nothing_runs_is_bad_input():
    with pytest.raises(
        BadInputError, match=r"no backend can run the model, so nothing can be verified: .*Foo"
    ):
        verify(unknown(), unknown())


@dataclass(frozen=True)
class Stub:
    """A backend that refuses, or gives what ONNX Runtime does, times something. Processes hand it to each other."""

    title: str
    factor: float | None = None
    name: ClassVar[str] = "stub"

    def load(self, model, *, threads):
        if self.factor is None:
            raise BackendError(f"{self.title}: does not know Foo")
        return StubSession(OnnxRuntime().load(model, threads=threads), self.factor)


@dataclass(frozen=True)
class StubSession:
    session: OrtSession
    factor: float

    def run(self, feeds):
        return {name: value * np.float32(self.factor) for name, value in self.session.run(feeds).items()}


def stubbed(monkeypatch, *stubs):
    monkeypatch.setattr(verification, "backends_named", lambda _: list(stubs))
    return verify(network(), network())


def test_a_backend_that_cannot_run_the_original_is_skipped(monkeypatch):
    result = stubbed(monkeypatch, OnnxRuntime(), Stub("Other 1.0"))
    assert result.passed
    assert [(note.backend, note.reason) for note in result.skipped] == [("Other 1.0", "does not know Foo")]
    assert [check.backend for check in result.checks] == [OnnxRuntime().title]


def test_the_noise_floor_is_the_largest_difference_of_the_original_with_itself(monkeypatch):
    checks = stubbed(monkeypatch, OnnxRuntime(), Stub("Coarse 1.0", 1 + 1e-4)).checks
    assert [check.noise_floor for check in checks] == [pytest.approx(1e-4, rel=0.05)] * 2
    assert [check.tolerance for check in checks] == [pytest.approx(1e-3, rel=0.05)] * 2
    assert [check.error for check in checks] == [0, 0]


def test_runs_that_cannot_be_compared_are_no_noise(monkeypatch):
    checks = stubbed(monkeypatch, OnnxRuntime(), Stub("Broken 1.0", math.nan)).checks
    assert all(check.noise_floor < 1e-6 for check in checks)


@dataclass(frozen=True)
class Doomed:
    """A backend that crashes where a model has so many nodes, or does not come to an end."""

    title: str
    nodes: int
    loading: bool = True
    endless: bool = False
    name: ClassVar[str] = "doomed"

    def load(self, model, *, threads):
        if len(structure(model).graph.node) == self.nodes:
            if not self.loading:
                return self
            self.run({})
        return OnnxRuntime().load(model, threads=threads)

    def run(self, _):
        if self.endless:
            time.sleep(600)
        signal.raise_signal(signal.SIGSEGV)


BRANCHED, MERGED = 3, 1


def held_against(monkeypatch, *backends):
    monkeypatch.setattr(verification, "backends_named", lambda _: list(backends))
    return verify(branches(), branches(merged=True))


@pytest.mark.parametrize(("loading", "doing"), [(True, "loading"), (False, "running")])
def test_a_backend_that_crashes_on_the_original_is_skipped(monkeypatch, loading, doing):
    result = held_against(monkeypatch, OnnxRuntime(), Doomed("Doomed 1.0", BRANCHED, loading))
    assert result.passed
    reason = f"it crashed (signal 11, SIGSEGV) while {doing} the original model"
    assert [(note.backend, note.reason) for note in result.skipped] == [("Doomed 1.0", reason)]


def test_an_original_on_which_all_backends_crash_is_bad_input(monkeypatch):
    with pytest.raises(
        BadInputError, match=r"nothing can be verified: Doomed 1.0: it crashed \(signal 11, SIGSEGV\) while"
    ):
        held_against(monkeypatch, Doomed("Doomed 1.0", BRANCHED))


def test_a_backend_that_crashes_on_the_fused_model_is_a_failure(monkeypatch):
    result = held_against(monkeypatch, Doomed("Doomed 1.0", MERGED), OnnxRuntime())
    assert not result.passed
    assert result.messages == [
        "Doomed 1.0: cannot run the fused model: "
        "it crashed (signal 11, SIGSEGV) while loading the fused model"
    ]
    assert [check.passed for check in result.checks] == [True]


@pytest.mark.parametrize(
    ("nodes", "code", "sentence"),
    [
        (
            3,
            2,
            "Error: no backend can run the model, so nothing can be verified: Doomed 1.0: it crashed (signal 11",
        ),
        (
            1,
            1,
            "Error: the fused model does not match the original, so nothing was written\n  Doomed 1.0: cannot",
        ),
        (9, 0, ""),
    ],
    ids=["original", "fused", "none"],
)
def test_how_the_command_line_ends_where_a_backend_crashes(monkeypatch, tmp_path, nodes, code, sentence):
    monkeypatch.setattr(verification, "backends_named", lambda _: [Doomed("Doomed 1.0", nodes)])
    onnx.save(branches(), tmp_path / "in.onnx")
    result = repfuse(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--no-bench")
    assert result.exit_code == code
    assert result.stderr.startswith(sentence)
    assert (tmp_path / "out.onnx").exists() == (code == 0)


def test_a_backend_that_does_not_come_to_an_end_is_stopped(monkeypatch):
    monkeypatch.setattr(child, "PATIENCE", 2)
    with pytest.raises(
        BadInputError, match=r"Doomed 1.0: it took more than 2 s, and was stopped while loading the original"
    ):
        held_against(monkeypatch, Doomed("Doomed 1.0", BRANCHED, endless=True))


def test_the_fused_model_has_the_time_that_the_original_took_many_times(monkeypatch):
    monkeypatch.setattr(verification, "patience", lambda seconds: 2 if seconds else 3600)
    result = held_against(monkeypatch, Doomed("Doomed 1.0", MERGED, loading=False, endless=True))
    (note,) = result.failures
    assert note.reason.startswith("it took more than 2 s, and was stopped while ")
    assert note.reason.endswith(" the fused model")


@given(st.floats(1e-12, 1e6))
def test_the_rtol_that_is_advised_passes(error):
    message = OutputCheck("B", "y", error, 0.0, 1.0, 0.0).message
    advised = float(message.rpartition("--rtol ")[2])
    assert error * (1 - 1e-12) <= advised <= error * 1.11


def test_the_share_of_the_movement_is_defined_everywhere():
    shares = [
        OutputCheck("B", "y", error, 0.0, movement, 0.1).error_of_movement
        for error, movement in itertools.product((0.0, 0.1), (0.0, 0.5))
    ]
    assert shares == [0, 0, math.inf, 0.2]
    assert FEEDS >= 2  # below that nothing moves


def test_extents_that_do_not_fit_reach_no_other_backend():
    said = []
    open_height = model(
        [("Concat", ["x", "tall"], ["y"], {"axis": 1})],
        [("y", F32)],
        {"tall": np.zeros((1, 4, 48, 16), np.float32)},
        [("x", F32, [1, 4, "height", 16])],
    )
    with pytest.raises(BadInputError, match=r"give better extents, as in --input-shape x:1,4,"):
        verify(open_height, open_height, on_progress=said.append)
    assert said == [f"{OnnxRuntime().title}: original model"]  # OpenVINO would crash


def test_other_extents_are_proposed_where_those_that_were_chosen_do_not_fit():
    of_256 = model(
        [  # what the shape is, shape inference cannot tell
            ("NonZero", ["extents"], ["places"]),
            ("Slice", ["places", "starts", "ends"], ["shape"]),
            ("Reshape", ["shape", "flat"], ["vector"]),
            ("Expand", ["more", "vector"], ["grown"]),
            ("Concat", ["x", "grown"], ["y"], {"axis": 1}),
        ],
        [("y", F32)],
        {
            "extents": np.eye(1, 257, 256, dtype=np.float32)[0],
            "starts": np.zeros(2, np.int64),
            "ends": np.ones(2, np.int64),
            "flat": np.array([-1]),
            "more": np.zeros((1, 4, 256, 1), np.float32),
        },
        [("x", F32, [1, 4, "height", "width"])],
    )
    with pytest.raises(BadInputError, match=r"as in --input-shape x:1,4,256,256\)"):
        verify(of_256, of_256)
