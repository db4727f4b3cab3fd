"""Inputs: their description, the arrays drawn for them, and what users hand over."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repfuse.errors import BadInputError
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.inputs import load_input_data, parse_input_range, parse_input_shape, resolve_inputs

F32 = TensorProto.FLOAT
DRAWN = ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "INT4", "UINT4", "BOOL"]
DRAWN += [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]


def model(*inputs, initializers=()):
    """A graph with the given inputs: (name, element type, shape). Nobody runs it."""
    entries = [helper.make_tensor_value_info(*entry) for entry in inputs]
    node = (
        helper.make_node("Identity", [entries[0].name], ["y"])
        if entries
        else helper.make_node("Foo", [], ["y"])
    )
    output = helper.make_tensor_value_info("y", F32, None)
    return helper.make_model(helper.make_graph([node], "g", entries, [output], list(initializers)))


@pytest.mark.parametrize(
    ("declared", "shape", "chosen"),
    [
        ([1, 3, 32, 48], (1, 3, 32, 48), ()),
        (["N", 3, 32, 32], (1, 3, 32, 32), (0,)),
        (["N", 3, "H", "W"], (1, 3, 224, 224), (0, 2, 3)),
        ([None, None, None, None], (1, 3, 224, 224), (0, 1, 2, 3)),
        ([2, 1, -1, 8], (2, 1, 224, 8), (2,)),
        (["N", 80, "T"], (1, 80, 64), (0, 2)),
        (["N", "L"], (1, 16), (0, 1)),
        (["N", 1, "D", "D", "D"], (1, 1, 32, 32, 32), (0, 2, 3, 4)),
        (["H", 3, "H", 4], (1, 3, 1, 4), (0, 2)),
        ([0, 4], (0, 4), ()),
        (["N"], (1,), (0,)),
        ([], (), ()),
    ],
)
def test_open_extents_are_chosen_and_named(declared, shape, chosen):
    (entry,) = resolve_inputs(model(("x", F32, declared)))
    assert (entry.shape, entry.chosen) == (shape, chosen)
    assert str(entry).count("?") == (len(chosen) + 1 if chosen else 0)
    assert make_inputs(model(("x", F32, declared)), count=1, seed=0)[0]["x"].shape == shape


def halving(times):
    """A network that halves an image, doubles it again, and joins both at each extent."""
    nodes, inner = [], ["x"]
    for number in range(times):
        pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes.append(helper.make_node("MaxPool", inner[-1:], [f"half{number}"], **pool))
        inner.append(f"half{number}")
    below = inner.pop()
    for number, beside in enumerate(reversed(inner)):
        nodes.append(helper.make_node("Resize", [below, "", "scales"], [f"twice{number}"], mode="nearest"))
        below = f"y{number}"
        nodes.append(helper.make_node("Concat", [f"twice{number}", beside], [below], axis=1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F32, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info(below, F32, None)],
        [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")],
    )
    return helper.make_model(graph)


@pytest.mark.parametrize(("times", "extent"), [(5, 224), (6, 256), (8, 256), (9, 224)])
def test_extents_are_chosen_that_a_network_can_do_with(times, extent):
    """It must be halved without a remainder. Where no choice does, running it will tell."""
    (entry,) = resolve_inputs(halving(times))
    assert entry.shape == (1, 3, extent, extent)
    assert entry.chosen == (0, 2, 3)
    (entry,) = resolve_inputs(halving(times), shapes={"x": (1, 3, 224, 224)})
    assert entry.shape == (1, 3, 224, 224)


def test_description_reads_well():
    (entry,) = resolve_inputs(model(("pixels", F32, ["N", 3, 64, 64])))
    assert str(entry) == "pixels: float32[1?, 3, 64, 64] (? = chosen, the model leaves it open)"


def test_a_symbol_has_one_value_across_inputs():
    two = model(("a", F32, ["N", 3, "H", 16]), ("b", F32, ["N", "H"]), ("c", F32, ["M", "H"]))
    shapes = {entry.name: entry.shape for entry in resolve_inputs(two)}
    assert shapes == {"a": (1, 3, 224, 16), "b": (1, 224), "c": (1, 224)}
    entries = resolve_inputs(two, shapes={"c": (4, 7)})
    assert [entry.shape for entry in entries] == [(1, 3, 7, 16), (1, 7), (4, 7)]
    assert [entry.chosen for entry in entries] == [(0,), (0,), ()]
    fed = make_inputs(two, count=1, seed=0, data={"b": np.zeros((5, 9), np.float32)})[0]
    assert {name: array.shape for name, array in fed.items()} == {
        "a": (5, 3, 9, 16),
        "b": (5, 9),
        "c": (1, 9),
    }


def test_a_question_mark_is_no_symbol():
    (entry,) = resolve_inputs(model(("x", F32, ["?", 3, "?", "?"])), shapes={"x": (1, 3, 48, 192)})
    assert entry.shape == (1, 3, 48, 192)


def test_initializers_are_not_fed():
    weight = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    overridable = model(("x", F32, [2]), ("w", F32, [2]), initializers=[weight])
    assert [entry.name for entry in resolve_inputs(overridable)] == ["x"]
    assert make_inputs(overridable, count=1, seed=0)[0].keys() == {"x"}
    with pytest.raises(BadInputError, match="no input 'w' to feed"):
        resolve_inputs(overridable, shapes={"w": (2,)})


def test_sparse_initializers_are_not_fed():
    sparse = model(("x", F32, [2]), ("w", F32, [2]))
    values, indices = (
        helper.make_tensor("w", F32, [1], [1.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [0]),
    )
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    assert [entry.name for entry in resolve_inputs(sparse)] == ["x"]


def test_a_model_without_inputs_gets_empty_feeds():
    assert make_inputs(model(), count=2, seed=0) == [{}, {}]


@pytest.mark.parametrize("kind", DRAWN)
def test_every_numeric_type_is_drawn(kind):
    number = TensorProto.DataType.Value(kind)
    one, other = (feed["x"] for feed in make_inputs(model(("x", number, [2, 3, 9, 9])), count=2, seed=1))
    assert one.dtype == helper.tensor_dtype_to_np_dtype(number)
    values = one.astype(np.float64)
    assert np.isfinite(values).all()
    assert values.std() > 0
    assert not np.array_equal(values, other.astype(np.float64))
    if "INT" in kind:
        assert values.min() >= 0
        assert values.max() <= (255 if kind == "UINT8" else 9)


def test_bytes_of_pictures_span_their_range_and_indices_stay_small():
    feed = make_inputs(
        model(("picture", TensorProto.UINT8, [1, 3, 32, 32]), ("ids", TensorProto.UINT8, [1, 500])),
        count=1,
        seed=0,
    )[0]
    assert np.ptp(feed["picture"].astype(int)) > 100
    assert feed["ids"].max() == 9


def test_float_images_have_structure():
    """Neighbouring pixels are alike, each channel has a mean and each image a contrast: white noise fails."""
    image = make_inputs(model(("x", F32, [32, 3, 64, 64])), count=1, seed=3)[0]["x"]
    steps = np.diff(image, axis=-1).std(axis=(1, 2, 3)) / image.std(axis=(1, 2, 3))
    assert (steps < 1).all()  # white noise has 1.4
    assert image.mean(axis=(2, 3)).std() > 0.45
    assert image.std(axis=(1, 2, 3)).std() > 0.15


def test_feeds_depend_on_the_seed_only():
    two = model(("a", F32, [1, 3, 8, 8]), ("b", F32, [1, 3, 8, 8]))
    one, again, longer = (make_inputs(two, count=count, seed=5) for count in (2, 2, 3))
    assert all(np.array_equal(one[i][n], again[i][n]) for i in range(2) for n in "ab")
    assert all(np.array_equal(one[i][n], longer[i][n]) for i in range(2) for n in "ab")
    assert not np.array_equal(one[0]["a"], one[0]["b"])
    assert not np.array_equal(one[0]["a"], make_inputs(two, count=1, seed=6)[0]["a"])


def test_own_data_come_first_and_are_varied_after():
    data = {"x": np.linspace(100, 102, 192, dtype=np.float32).reshape(1, 3, 8, 8), "i": np.array([[41, 42]])}
    two = model(("x", F32, ["N", 3, 8, 8]), ("i", TensorProto.INT64, ["N", 2]))
    first, second = make_inputs(two, count=2, seed=0, data=data)
    assert first["x"] is data["x"]
    assert second["i"] is data["i"]  # an index that the user gave is the only one known to be safe
    assert not np.array_equal(second["x"], data["x"])
    assert second["x"].dtype == np.float32
    assert abs(second["x"].mean() - 101) < 3


def test_what_cannot_be_drawn_must_be_given():
    text = model(("s", TensorProto.STRING, [1, 2]))
    with pytest.raises(
        BadInputError, match="'s': object values cannot be drawn; give them with --input-data"
    ):
        make_inputs(text, count=1, seed=0)
    words = np.array([["one", "two"]])
    assert make_inputs(text, count=1, seed=0, data={"s": words})[0]["s"] is words


X = np.zeros((1, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("declared", "shapes", "data", "message"),
    [
        (["N", 3, 8, 8], {"y": (1, 3, 8, 8)}, {}, "the model has no input 'y' to feed; it has 'x'"),
        (["N", 3, 8, 8], {"x": (3, 8, 8)}, {}, "input 'x': expected the shape (N, 3, 8, 8), not (3, 8, 8)"),
        (
            ["N", 3, 8, 8],
            {"x": (1, 3, 9, 8)},
            {},
            "input 'x': expected the shape (N, 3, 8, 8), not (1, 3, 9, 8)",
        ),
        (
            ["N", 3, "S", "S"],
            {"x": (1, 3, 8, 9)},
            {},
            "expected the shape (N, 3, S, S) with S = 8, not (1, 3, 8, 9)",
        ),
        ([None, 3, 8, 8], {}, {"x": X[0]}, "input 'x': expected the shape (?, 3, 8, 8), not (3, 8, 8)"),
        ([None, 3, 8, 8], {}, {"x": X.astype(np.float64)}, "input 'x': expected float32 data, not float64"),
        ([None, 3, 8, 8], {}, {"z": X}, "the model has no input 'z' to feed; it has 'x'"),
        (
            [None, 3, 8, 8],
            {"x": (2, 3, 8, 8)},
            {"x": X},
            "its data are of shape (1, 3, 8, 8), not the given (2, 3",
        ),
        (None, {}, {}, "give its shape, as in --input-shape x:1,3,224,224"),
    ],
)
def test_contradictions_are_explained(declared, shapes, data, message):
    with pytest.raises(BadInputError, match=re.escape(message)):
        make_inputs(model(("x", F32, declared)), count=1, seed=0, shapes=shapes, data=data)


def test_an_unknown_rank_comes_from_the_user():
    unranked = model(("x", F32, None))
    assert resolve_inputs(unranked, shapes={"x": (2, 5)})[0].shape == (2, 5)
    assert resolve_inputs(unranked, data={"x": X})[0].shape == X.shape


def test_inputs_that_are_no_tensors_are_refused():
    sequence = model(("x", F32, [1]))
    sequence.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", F32, [1]))
    with pytest.raises(BadInputError, match="input 'x' is no tensor"):
        resolve_inputs(sequence)
    untyped = model(("x", F32, [1]))
    untyped.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(BadInputError, match="input 'x' has no element type"):
        resolve_inputs(untyped)


def test_a_path_is_as_good_as_a_model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(("x", F32, ["N", 4])), path)
    assert resolve_inputs(path) == resolve_inputs(str(path)) == resolve_inputs(model(("x", F32, ["N", 4])))
    with pytest.raises(BadInputError, match=r"missing\.onnx: no such file"):
        resolve_inputs(tmp_path / "missing.onnx")
    path.write_bytes(b"this is no protobuf")
    with pytest.raises(BadInputError, match="not an ONNX file"):
        resolve_inputs(path)


@given(
    name=st.text(min_size=1).filter(lambda text: text.strip()),
    shape=st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
)
def test_a_shape_is_read_back(name, shape):
    assert parse_input_shape(f"{name}:{','.join(map(str, shape))}") == (name, tuple(shape))


def test_spaces_in_a_shape_do_not_matter():
    assert parse_input_shape("serving:0:1, 3, 224 ,224") == ("serving:0", (1, 3, 224, 224))


@pytest.mark.parametrize(
    "text", ["", "x", "x:", ":1,3", "1,3,224", "x:1,,3", "x:1,-3", "x:1,N", "x:0,3", "x:1.5", "x:²"]
)
def test_a_malformed_shape_is_refused(text):
    with pytest.raises(BadInputError, match=re.escape(f"'{text}': write it as name:1,3,224,224")):
        parse_input_shape(text)


def test_npz_and_npy_are_loaded(tmp_path):
    one, two = model(("x", F32, [1, 3, 8, 8])), model(("x", F32, [1]), ("z", F32, [1]))
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", x=X, z=X)
    assert np.array_equal(load_input_data(tmp_path / "x.npy", one)["x"], X)
    assert load_input_data(tmp_path / "x.npz", two).keys() == {"x", "z"}
    with pytest.raises(BadInputError, match="the model has the inputs 'x', 'z'; save an"):
        load_input_data(tmp_path / "x.npy", two)


def test_bfloat16_survives_numpy_files(tmp_path):
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    half = model(("x", TensorProto.BFLOAT16, [2]))
    np.savez(tmp_path / "x.npz", x=np.array([1.5, -2], dtype))
    feed = make_inputs(half, count=1, seed=0, data=load_input_data(tmp_path / "x.npz", half))[0]
    assert feed["x"].dtype == dtype
    assert feed["x"].astype(float).tolist() == [1.5, -2]


class Trap:
    """Complains when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("save", ["pickle", "text", "cut", "missing", "empty"])
def test_files_that_are_no_arrays_are_refused(tmp_path, save):
    path = tmp_path / "x.npz"
    if save == "pickle":
        np.savez(path, x=np.array([Trap()], object))
    elif save == "text":
        path.write_text("hello")
    elif save == "cut":
        np.savez(path, x=X)
        path.write_bytes(path.read_bytes()[:300])
    elif save == "empty":
        path.write_bytes(b"")
    with pytest.raises(BadInputError, match=r"x\.npz: cannot be read as \.npz or \.npy: \w+"):
        load_input_data(path, model(("x", F32, [1])))


RANGES = {
    "FLOAT": (-2.5, 7),
    "FLOAT16": (0, 255),
    "BFLOAT16": (-1, 1),
    "UINT8": (16, 235),
    "INT4": (-8, 7),
    "INT64": (-3, 40),
    "BOOL": (1, 1),
}


@pytest.mark.parametrize(("kind", "limits"), RANGES.items())
def test_ranges_are_kept_and_used(kind, limits):
    proto = model(("x", getattr(TensorProto, kind), [1, 3, 16, 16]))
    for feed in make_inputs(proto, count=3, seed=0, ranges={"x": limits}):
        values = feed["x"].astype(np.float64)
        assert (values.min(), values.max()) == limits
        assert feed["x"].dtype == resolve_inputs(proto)[0].dtype


def test_a_range_of_one_value_is_that_value():
    (feed,) = make_inputs(model(("x", F32, [1, 3, 4, 4])), count=1, seed=0, ranges={"x": (3, 3)})
    assert set(feed["x"].flat) == {3}


@pytest.mark.parametrize(
    ("kind", "limits", "message"),
    [
        ("UINT8", (0, 256), "input 'x': uint8 does not hold the range 0 to 256"),
        ("INT4", (-9, 0), "input 'x': int4 does not hold the range -9 to 0"),
        ("INT64", (0, 0.5), "input 'x': int64 does not hold the range 0 to 0.5"),
        ("FLOAT16", (0, 1e6), "input 'x': float16 does not hold the range 0 to 1e+06"),
        ("BOOL", (0, 2), "input 'x': bool does not hold the range 0 to 2"),
        ("STRING", (0, 1), "input 'x': object does not hold the range 0 to 1"),
    ],
)
def test_a_range_beyond_the_type_is_refused(kind, limits, message):
    with pytest.raises(BadInputError, match=re.escape(message)):
        resolve_inputs(model(("x", getattr(TensorProto, kind), [4])), ranges={"x": limits})


def test_a_range_of_an_input_that_is_not_there_is_refused():
    with pytest.raises(BadInputError, match="no input 'z'"):
        resolve_inputs(model(("x", F32, [4])), ranges={"z": (0, 1)})


def test_a_range_is_read():
    assert parse_input_range("a:b:-1.5,2e3") == ("a:b", (-1.5, 2000))


@pytest.mark.parametrize(
    "text", ["x", "x:", "x:1", "x:1,2,3", ":0,1", "x:2,1", "x:a,b", "x:0,inf", "x:nan,1"]
)
def test_a_malformed_range_is_refused(text):
    with pytest.raises(BadInputError, match=re.escape(f"input range '{text}': write it as name:0,255")):
        parse_input_range(text)
