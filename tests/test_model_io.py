"""Opening and saving: what is wrong with a file is said in a sentence, and nothing is left half written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from documents import rich_model
from nets import Net
from onnx import ModelProto, TensorProto, helper, numpy_helper

from repfuse import BadInputError, check_blocks, fuse, verify
from repfuse.model import model_io, staging, wire


@pytest.fixture
def model() -> ModelProto:
    net = Net(channels=32, dtype=TensorProto.FLOAT)
    return net.model(net.repvgg(net.x))


@pytest.fixture
def file(model: ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(model: ModelProto, path: Path, data: str = "model.data") -> Path:
    """Write a model whose weights lie in a file beside it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def plain(model: ModelProto) -> ModelProto:
    """The model without the mark that its tensors once lay elsewhere."""
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model


def locate(path: Path, **entries: str) -> Path:
    """Rewrite where a model looks for its weights."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


def relu(opset: int, domain: str = "") -> bytes:
    net = Net()
    model = net.model(net.node("Relu", net.x))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid(domain, opset))
    return model.SerializeToString()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD = {
    "missing": (lambda p: p / "none.onnx", r"none\.onnx: no such file"),
    "too long a name": (lambda p: p / ("x" * 300), "x: "),
    "a folder": (lambda p: p, "is a folder; name an .onnx file"),
    "garbage": (lambda p: write(p / "m.onnx", b"\x89PNG not a model" * 20), "not an ONNX file"),
    "text": (lambda p: write(p / "m.onnx", b"a readme\n" * 50), "not an ONNX"),
    "empty": (lambda p: write(p / "m.onnx", b""), "holds no graph"),
    "half of it": (lambda p: write(p / "m.onnx", relu(17)[:-9]), "not an ONNX"),
    "no graph": (
        lambda p: write(p / "m.onnx", ModelProto(ir_version=8).SerializeToString()),
        "holds no graph",
    ),
    "a weight file": (
        lambda p: write(p / "m.onnx", numpy_helper.from_array(np.ones(9)).SerializeToString()),
        "not an ONNX",
    ),
    "opset 6": (lambda p: write(p / "m.onnx", relu(6)), "opset 6 is not supported.*7 to"),
    "opset of the future": (
        lambda p: write(p / "m.onnx", relu(10_000)),
        "opset 10000 is not supported.*newer onnx",
    ),
    "garbage called JSON": (lambda p: write(p / "m.json", b"{not json"), "not an ONNX file"),
    "garbage called text": (lambda p: write(p / "m.textproto", b"{not text"), "not an ONNX file"),
    "garbage called ONNX text": (lambda p: write(p / "m.onnxtxt", b"{not text"), "not an ONNX file"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("opened", [model_io.load, fuse], ids=["load", "fuse"])
def test_what_cannot_be_read_is_said(
    make: Callable[[Path], Path], sentence: str, opened: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=sentence):
        opened(make(tmp_path))


def test_models_in_memory_are_checked_too() -> None:
    with pytest.raises(BadInputError, match="the model: opset 6"):
        fuse(ModelProto.FromString(relu(6)))


def without_weight(model: ModelProto) -> None:
    del model.graph.node[0].input[1:]


def of_wrong_type(model: ModelProto) -> None:
    attribute = next(each for each in model.graph.node[0].attribute if each.name == "pads")
    attribute.CopyFrom(helper.make_attribute("pads", 1.5))


def in_a_circle(model: ModelProto) -> None:
    model.graph.node.extend(helper.make_node("Identity", [a], [b]) for a, b in ("pq", "qp"))
    model.graph.node[0].input[1] = "p"


def cut_short(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def not_loaded(model: ModelProto) -> None:
    onnx.external_data_helper.convert_model_to_external_data(model, location="absent.data", size_threshold=0)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")


@pytest.mark.parametrize("spoil", [without_weight, of_wrong_type, in_a_circle, cut_short, not_loaded])
def test_an_invalid_model_is_refused_with_a_sentence(
    spoil: Callable[[ModelProto], None], model: ModelProto
) -> None:
    spoil(model)
    with pytest.raises(BadInputError, match=r"not a valid ONNX model|tensor 'weight_0'|weight_1"):
        fuse(model)


def test_both_names_of_the_default_operators_will_do(tmp_path: Path) -> None:
    assert model_io.load(write(tmp_path / "m.onnx", relu(17, "ai.onnx"))).opset_import[0].version == 17


def test_what_is_saved_is_what_is_loaded(model: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    model_io.save(model, path)
    assert model_io.load(path) == model
    assert [each.name for each in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize("odd", [False, True], ids=["plain", "with what only protobuf can hand on"])
def test_saved_bytes_are_those_of_protobuf(model: ModelProto, tmp_path: Path, odd: bool) -> None:
    model = rich_model() if odd else model
    model_io.save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == model.SerializeToString()


def typed_tensors() -> list[TensorProto]:
    """Tensors that hold their values in each of the fields there are."""
    plain = [
        TensorProto(data_type=TensorProto.FLOAT, float_data=[1.0, -2.0]),
        TensorProto(data_type=TensorProto.INT32, int32_data=[1, -2]),
        TensorProto(data_type=TensorProto.INT64, int64_data=[1, -2]),
        TensorProto(data_type=TensorProto.STRING, string_data=[b"a", b"\xff"]),
        TensorProto(data_type=TensorProto.DOUBLE, double_data=[1.0, -2.0]),
        TensorProto(data_type=TensorProto.UINT64, uint64_data=[1, 2**63]),
    ]
    for index, tensor in enumerate(plain):
        tensor.name, tensor.dims[:] = f"plain_{index}", [2]
    raw = [helper.make_tensor("raw", TensorProto.FLOAT, [2], b"12345678", raw=True)]
    empty = [TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[0], raw_data=b"")]
    said = [
        TensorProto(
            name="said", data_type=TensorProto.FLOAT, dims=[1], raw_data=b"1234", doc_string="after its data"
        )
    ]
    return [*plain, *raw, *empty, *said]


def test_streamed_bytes_are_those_of_protobuf() -> None:
    model = rich_model()
    model.DiscardUnknownFields()
    model.graph.initializer.extend(typed_tensors())
    stream = io.BytesIO()
    wire.put(wire.inline(model), stream)
    assert stream.getvalue() == model.SerializeToString()
    assert ModelProto.FromString(stream.getvalue()) == model


def test_external_data_is_read(model: ModelProto, tmp_path: Path) -> None:
    path = external(model, tmp_path / "in.onnx")
    assert plain(model_io.load(path)) == model
    assert fuse(path).model == fuse(model).model


def test_external_data_is_read_beside_the_model_not_beside_us(
    model: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    external(model, tmp_path / "in.onnx")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert plain(model_io.load(Path("..") / "in.onnx")) == model


OUTSIDE = {"above": "../secret", "absolute": "/secret", "deep": "a/../../secret"}
SPOILT = {
    **{name: ({"location": place}, "outside the model's folder") for name, place in OUTSIDE.items()},
    "missing": ({"location": "none"}, "none"),
    "a folder": ({"location": "folder"}, "external data cannot be read|cannot be read"),
    "behind the end": ({"offset": "99999999"}, "external data"),
    "longer than the file": ({"length": "99999999"}, "external data"),
    "no number": ({"offset": "many"}, "external data"),
    "below zero": ({"offset": "-4"}, "external data"),
}


@pytest.mark.parametrize(("entries", "sentence"), SPOILT.values(), ids=SPOILT)
def test_external_data_that_cannot_be_had_is_said(
    entries: dict[str, str], sentence: str, model: ModelProto, tmp_path: Path
) -> None:
    inside = tmp_path / "models"
    (inside / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"0" * 100_000)
    path = locate(external(model, inside / "in.onnx"), **entries)
    with pytest.raises(BadInputError, match=sentence) as caught:
        model_io.load(path)
    assert str(path) in str(caught.value)


def test_external_data_that_was_cut_off_is_said(model: ModelProto, tmp_path: Path) -> None:
    path = external(model, tmp_path / "in.onnx")
    data = tmp_path / "model.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(BadInputError, match="external data"):
        model_io.load(path)


def test_a_model_too_large_for_one_file_keeps_its_weights_beside_it(
    model: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LARGEST", 20_000)
    before = model.SerializeToString()
    model_io.save(model, tmp_path / "out.onnx")
    assert model.SerializeToString() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert (tmp_path / "out.onnx").stat().st_size < len(before) / 2
    assert plain(model_io.load(tmp_path / "out.onnx")) == model


def test_copies_are_byte_for_byte(file: Path, tmp_path: Path) -> None:
    model_io.copy(file, tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == file.read_bytes()


def test_copies_take_external_data_along(model: ModelProto, tmp_path: Path) -> None:
    path = external(model, tmp_path / "in.onnx")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "copy.onnx"
    model_io.copy(path, target)
    assert target.read_bytes() == path.read_bytes()
    assert plain(model_io.load(target)) == model


def test_a_copy_beside_its_source_shares_external_data(model: ModelProto, tmp_path: Path) -> None:
    path = external(model, tmp_path / "in.onnx")
    model_io.copy(path, tmp_path / "copy.onnx")
    assert plain(model_io.load(tmp_path / "copy.onnx")) == model
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy.onnx", "in.onnx", "model.data"]


def test_a_copy_does_not_take_another_models_data_for_its_own(model: ModelProto, tmp_path: Path) -> None:
    path = external(model, tmp_path / "in.onnx")
    (tmp_path / "out").mkdir()
    foreign = write(tmp_path / "out" / "model.data", b"another model's weights")
    with pytest.raises(BadInputError, match=r"model\.data"):
        model_io.copy(path, tmp_path / "out" / "copy.onnx")
    assert foreign.read_bytes() == b"another model's weights"
    assert not (tmp_path / "out" / "copy.onnx").exists()


def test_copies_refuse_external_data_outside_the_models_folder(model: ModelProto, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write(tmp_path / "secret", b"0" * 100_000)
    path = locate(external(model, tmp_path / "in" / "in.onnx"), location="../secret")
    with pytest.raises(BadInputError, match="outside the model's folder"):
        model_io.copy(path, tmp_path / "out" / "copy.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_copies_of_models_with_data_below_their_folder_stand_alone(model: ModelProto, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = locate(external(model, tmp_path / "in.onnx"), location="folder/model.data")
    (tmp_path / "model.data").rename(tmp_path / "folder" / "model.data")
    (tmp_path / "out").mkdir()
    model_io.copy(path, tmp_path / "out" / "copy.onnx")
    assert model_io.load(tmp_path / "out" / "copy.onnx") == model


def test_copying_garbage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not an ONNX file"):
        model_io.copy(write(tmp_path / "in.onnx", b"\x89garbage" * 9), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


UNWRITABLE = {
    "no such folder": (lambda p: p / "none" / "out.onnx", "cannot write in"),
    "a folder": (lambda p: p, "is a folder; name a file"),
    "a file in the place of a folder": (lambda p: p / "model.onnx" / "out.onnx", "cannot write in"),
    "too long a name": (lambda p: p / ("x" * 300), "cannot"),
}


@pytest.mark.parametrize(("place", "sentence"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_cannot_be_written_is_said(
    place: Callable[[Path], Path], sentence: str, model: ModelProto, file: Path
) -> None:
    with pytest.raises(BadInputError, match=sentence):
        model_io.save(model, place(file.parent))
    assert list(file.parent.iterdir()) == [file]


class TroubleError(Exception):
    """Something that goes wrong while a file is written."""


@pytest.mark.parametrize("error", [TroubleError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", [b"the old file", None], ids=["a file is there", "no file is there"])
def test_an_error_while_writing_leaves_what_was_there(
    old: bytes | None, error: type[BaseException], tmp_path: Path
) -> None:
    target = tmp_path / "out.onnx"
    if old:
        target.write_bytes(old)
    with pytest.raises(BadInputError if error is OSError else error), staging.staged(target) as temporary:
        temporary.write_bytes(b"half of the new")
        (temporary.parent / "out.onnx.data").write_bytes(b"data")
        raise error
    assert [each.name for each in tmp_path.iterdir()] == (["out.onnx"] if old else [])
    assert not old or target.read_bytes() == old


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    with staging.staged(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
        assert temporary.name == target.name
        assert temporary.parent.parent == target.parent
    assert target.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["out.onnx"]


def test_a_new_file_can_be_read_as_other_new_files_can(tmp_path: Path, model: ModelProto) -> None:
    model_io.save(model, tmp_path / "out.onnx")
    plain = write(tmp_path / "plain", b"")
    assert (tmp_path / "out.onnx").stat().st_mode == plain.stat().st_mode


def test_a_link_is_written_through_or_replaced_but_never_broken(tmp_path: Path, model: ModelProto) -> None:
    model_io.save(model, tmp_path / "real.onnx")
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    model_io.save(model, tmp_path / "link.onnx")
    assert model_io.load(tmp_path / "link.onnx") == model
    assert model_io.load(tmp_path / "real.onnx") == model


def test_names_that_are_no_text_are_refused(model: ModelProto, tmp_path: Path) -> None:
    model.graph.name, model.graph.node[0].name = "the-graph", "the-node"
    content = model.SerializeToString()
    for name in (b"the-graph", b"the-node"):
        path = write(tmp_path / "m.onnx", content.replace(name, b"\xff" * len(name)))
        with pytest.raises(BadInputError, match="a name in it is not UTF-8"):
            fuse(path)


def test_old_models_whose_weights_are_no_inputs_are_read() -> None:
    """Before version 4 of the format they had to be, which not all exporters cared for, and no runtime does."""
    net = Net(opset=9, ir=3, dtype=TensorProto.FLOAT)
    model = net.model(net.repvgg(net.x))
    del model.graph.input[1:]
    result = fuse(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert all(check.passed and not check.skipped for check in check_blocks(model, result))
    assert verify(model, result.model).passed
