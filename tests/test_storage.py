"""Weights that stay in files: what is read, written and fused is what it would be with all of it in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from commandline import FAST, repfuse
from google.protobuf.message import DecodeError
from nets import Net
from onnx import ModelProto, TensorProto, helper, numpy_helper

from repfuse import BadInputError, fuse
from repfuse.fusion import fuse_file
from repfuse.model import model_io, staging, storage, wire
from repfuse.model.storage import LEAST, MARK, Range, Spill

FIXTURES = sorted((Path(__file__).parent / "models").glob("*-narrow.*.onnx"))

BIG = np.random.default_rng(0).normal(size=(64, 64, 3, 3)).astype(np.float32)


def net_model(channels: int = 64, seed: int = 0) -> ModelProto:
    net = Net(channels=channels, dtype=TensorProto.FLOAT)
    net.random = np.random.default_rng(seed)
    return net.model(net.repvgg(net.x))


def everywhere() -> ModelProto:
    """A model with a large tensor in each place where there can be one; `y` is the sum of all of them."""

    def constant(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(BIG, name))

    empty: list[onnx.ValueInfoProto] = []
    branch = helper.make_graph(
        [helper.make_node("Add", ["inner", "initial"], ["z"])],
        "branch",
        empty,
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, BIG.shape)],
        [numpy_helper.from_array(BIG, "inner")],
    )
    function = helper.make_function(
        "own", "f", ["p"], ["q"], [constant("c"), helper.make_node("Add", ["p", "c"], ["q"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(
        [
            constant("outer"),
            helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch),
            helper.make_node("f", ["chosen"], ["called"], domain="own"),
            helper.make_node("Sum", ["x", "outer", "called"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, BIG.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, BIG.shape)],
        [numpy_helper.from_array(BIG, "initial"), numpy_helper.from_array(np.array(True), "yes")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[function])


MODELS: dict[str, Callable[[], ModelProto]] = {
    **{path.stem: lambda path=path: onnx.load(path) for path in FIXTURES[::6]},
    "everywhere": everywhere,
    "small": lambda: net_model(channels=2),
}

each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder; no note is in any file in there afterwards."""
    yield tmp_path
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or MARK not in file.read_bytes(), file


@each_model
def test_a_model_goes_through_unchanged_in_any_form(make: Callable[[], ModelProto], folder: Path) -> None:
    model = make()
    content = model.SerializeToString()
    source = folder / "in.onnx"
    source.write_bytes(content)
    model_io.save(model_io.read(source), folder / "inline.onnx", external_data=False)
    model_io.save(model_io.read(source), folder / "apart.onnx", external_data=True)
    model_io.save(model, folder / "from-memory.onnx", external_data=True)
    model_io.save(model_io.read(folder / "apart.onnx"), folder / "back.onnx", external_data=False)
    assert model.SerializeToString() == content
    assert model_io.load(source) == model
    assert (folder / "inline.onnx").read_bytes() == content
    assert (folder / "back.onnx").read_bytes() == content
    assert model_io.load(folder / "apart.onnx") == model
    assert model_io.load(folder / "from-memory.onnx") == model


def test_what_is_written_apart_is_where_runtimes_find_it(folder: Path) -> None:
    (folder / "in.onnx").write_bytes(everywhere().SerializeToString())
    model_io.save(model_io.read(folder / "in.onnx"), folder / "out.onnx", external_data=True)
    assert (folder / "out.onnx").stat().st_size < 10_000
    session = onnxruntime.InferenceSession(str(folder / "out.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": BIG})
    assert np.allclose(y, 5 * BIG)
    onnx.checker.check_model(str(folder / "out.onnx"), full_check=True)


def test_only_large_tensors_are_written_apart_and_begin_on_pages(folder: Path) -> None:
    model_io.save(net_model(), folder / "out.onnx", external_data=True)
    written = onnx.load(folder / "out.onnx", load_external_data=False)
    for tensor in written.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert bool(entries) == (storage.values(numpy_zero(tensor)).nbytes >= LEAST)
        assert not entries or int(entries["offset"]) % 4096 == 0
        assert not entries or entries["location"] == "out.onnx.data"


def numpy_zero(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(np.zeros(tensor.dims, np.float32))


@each_model
def test_reading_leaves_large_weights_where_they_are(make: Callable[[], ModelProto], folder: Path) -> None:
    model = make()
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    read = model_io.read(folder / "in.onnx")
    assert all(len(tensor.raw_data) < LEAST for tensor in storage.tensors(read))
    for mine, theirs in zip(storage.tensors(read), storage.tensors(model), strict=True):
        if theirs.data_type != TensorProto.STRING:
            assert storage.values(mine).tobytes() == numpy_helper.to_array(theirs).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "int4", "float8_e4m3fn"])
def test_values_of_every_width_are_read_from_files(dtype: str, folder: Path) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.arange(20_001).__mod__(7).astype(kind)
    tensor = numpy_helper.from_array(array, "w")
    spilt = Spill(folder / "spill").take(array)
    assert bool(Range.of(spilt.raw_data)) == (len(tensor.raw_data) >= array.nbytes)
    assert np.array_equal(storage.values(spilt), array)
    model = everywhere()
    model.graph.initializer.append(tensor)
    model_io.save(model, folder / "out.onnx", external_data=True)
    assert model_io.load(folder / "out.onnx").graph.initializer[-1] == tensor


@pytest.mark.parametrize("path", FIXTURES[::5], ids=lambda path: path.stem)
def test_fusing_is_the_same_with_weights_on_disk(path: Path, folder: Path) -> None:
    result = fuse_file(path, Spill(folder / "spill"))
    model_io.save(result.model, folder / "out.onnx")
    assert (folder / "out.onnx").read_bytes() == fuse(onnx.load(path)).model.SerializeToString()
    (folder / "spill").unlink(missing_ok=True)


def test_a_file_that_changes_in_between_is_noticed(folder: Path) -> None:
    source = folder / "in.onnx"
    source.write_bytes(net_model().SerializeToString())
    model = model_io.read(source)
    source.write_bytes(net_model(seed=1).SerializeToString())
    os.utime(source, ns=(1, 1))
    with pytest.raises(BadInputError, match=r"in\.onnx: was changed while"):
        model_io.save(model, folder / "out.onnx")
    with pytest.raises(BadInputError, match=r"in\.onnx: was changed while"):
        storage.fill(model)
    assert [each.name for each in folder.iterdir()] == ["in.onnx"]


def test_the_weights_of_what_is_read_are_not_overwritten(folder: Path) -> None:
    model_io.save(net_model(), folder / "out.onnx", external_data=True)
    (folder / "out.onnx").rename(folder / "in.onnx")
    before = (folder / "out.onnx.data").read_bytes()
    with pytest.raises(BadInputError, match=r"out\.onnx\.data: holds the weights of the model that is read"):
        model_io.save(model_io.read(folder / "in.onnx"), folder / "out.onnx", external_data=True)
    assert (folder / "out.onnx.data").read_bytes() == before


def test_there_is_a_whole_model_at_each_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = net_model(seed=0), net_model(seed=1)
    target = folder / "out.onnx"
    model_io.save(old, target, external_data=True)
    seen = []
    replace = Path.replace

    def watched(self: Path, where: Path) -> Path:
        moved = replace(self, where)
        seen.append(model_io.load(target) == new)
        return moved

    monkeypatch.setattr(Path, "replace", watched)
    model_io.save(new, target, external_data=True)
    assert seen == [True, True, True]
    assert sorted(each.name for each in folder.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert model_io.load(target) == new
    assert (folder / "out.onnx.data").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def nested(depth: int) -> bytes:
    """A graph in an attribute in a node in a graph ..., so large that each is looked into."""
    message = b"x" * LEAST
    for _ in range(depth // 3):
        for field in (6, 5, 1):  # attribute, node, graph
            message = bytes([field << 3 | 2]) + wire._varint(len(message)) + message
    return bytes([7 << 3 | 2]) + wire._varint(len(message)) + message


NO_MODEL = {
    "a length behind the end": b"\x3a\x7fxx",
    "no end of a number": b"\x3a" + b"\xff" * 20,
    "a number cut short": b"\x08\x80",
    "eight bytes cut short": b"\x09abc",
    "a group": b"\x0b\x0c",
    "too deep": nested(180),
}


@pytest.mark.parametrize("content", NO_MODEL.values(), ids=NO_MODEL)
def test_what_is_no_message_is_refused(content: bytes, folder: Path) -> None:
    (folder / "in.onnx").write_bytes(content)
    with pytest.raises(DecodeError):
        wire.read(folder / "in.onnx")
    with pytest.raises(BadInputError, match="not an ONNX file"):
        model_io.read(folder / "in.onnx")


def test_flags_say_where_weights_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("in.onnx").write_bytes(net_model().SerializeToString())
    assert repfuse("in.onnx", "inline.onnx", *FAST).exit_code == 0
    assert repfuse("in.onnx", "apart.onnx", *FAST, "--external-data").exit_code == 0
    assert repfuse("apart.onnx", "again.onnx", *FAST, "--external-data").exit_code == 0  # nothing to fuse
    assert repfuse("apart.onnx", "back.onnx", *FAST, "--inline").exit_code == 0
    found = sorted(each.name for each in folder.iterdir())
    data = ["again.onnx.data", "apart.onnx.data"]
    assert found == sorted([*data, "again.onnx", "apart.onnx", "back.onnx", "in.onnx", "inline.onnx"])
    assert Path("back.onnx").read_bytes() == Path("inline.onnx").read_bytes()


def test_too_much_for_one_file_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LARGEST", 20_000)
    with pytest.raises(BadInputError, match=r"out\.onnx: would be .* leave out --inline"):
        model_io.save(net_model(), folder / "out.onnx", external_data=False)
    monkeypatch.setattr(wire, "LARGEST", 200)
    with pytest.raises(BadInputError, match=r"out\.onnx: is above 2\.1 GB without its weights"):
        model_io.save(net_model(), folder / "out.onnx")
    assert list(folder.iterdir()) == []


def test_nothing_is_left_of_a_folder_that_vanished(folder: Path) -> None:
    (folder / "sub").mkdir()
    with (
        pytest.raises(BadInputError, match=r"out\.onnx: cannot be written: No such file"),
        staging.staged(folder / "sub" / "out.onnx") as temporary,
    ):
        temporary.parent.rmdir()
        (folder / "sub").rmdir()
        model_io.write(net_model(), temporary)
    assert list(folder.iterdir()) == []
