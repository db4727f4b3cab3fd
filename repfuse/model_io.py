"""Opening and saving ONNX files: what can go wrong with them is said here, and nothing is left half written.

Files are written into a folder of their own beside the target and moved into place when whole, so a reader
sees the old file or the new one, never a part. The writer streams: it hands the weights to the file one at a
time, since `SerializeToString` needs the whole model a second time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from repfuse.errors import BadInputError

PathLike = str | os.PathLike[str]

OLDEST_OPSET = 7
"""The first opset whose BatchNormalization has no `is_test` and whose Add broadcasts as numpy does."""

LARGEST_PROTOBUF = 2**31 - 1
"""Bytes: protobuf reads no larger message, so a larger model keeps its weights in a file beside it."""

_LENGTH_DELIMITED = 2


def load(path: PathLike) -> onnx.ModelProto:
    """Read a model and its external data.

    Raises:
        BadInputError: The file is missing, unreadable, not an ONNX model, or of an opset that repfuse does
            not know.
    """
    file = _existing(path)
    with _explained(file, "read"):
        model = onnx.load(file, load_external_data=False)
        check(model, str(file))
        try:
            onnx.load_external_data_for_model(model, str(file.parent))
        except (onnx.checker.ValidationError, ValueError) as error:
            raise BadInputError(f"{file}: its external data cannot be read: {_first_line(error)}") from error
    return model


def check(model: onnx.ModelProto, name: str) -> None:
    """Refuse what is no model that repfuse can work on. `name` is what the message calls it.

    Raises:
        BadInputError: There is no graph, or its opset is older than 7 or newer than the installed onnx knows.
    """
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise BadInputError(f"{name}: not an ONNX model (it holds no graph); export it again")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) > 1 or any(not OLDEST_OPSET <= version <= newest for version in versions):
        raise BadInputError(
            f"{name}: opset {', '.join(map(str, versions))} is not supported; repfuse with onnx "
            f"{onnx.__version__} reads {OLDEST_OPSET} to {newest} (onnx.version_converter converts, "
            "or install a newer onnx)"
        )


def save(model: onnx.ModelProto, path: PathLike) -> None:
    """Write a model, whole or not at all; weights go into `<name>.data` beside it when it is above 2 GB.

    Raises:
        BadInputError: The folder does not exist or cannot be written.
    """
    with staged(path) as temporary:
        write(model, temporary)


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to a path of which nobody knows yet (see `staged`); `model` is not changed."""
    with path.open("wb") as file:
        fits = _stream(model, file)
    if not fits:
        too_large = model.ByteSize() > LARGEST_PROTOBUF
        onnx.save(model, path, save_as_external_data=too_large, location=path.name + ".data")


def copy(source: PathLike, target: PathLike) -> None:
    """Copy a model byte for byte, with its external data files, whole or not at all.

    Raises:
        BadInputError: The source cannot be read, or the target's folder cannot be written.
    """
    file = _existing(source)
    with _explained(file, "read"), staged(target) as temporary:
        shutil.copyfile(file, temporary)
        for name in _external_files(onnx.load(file, load_external_data=False)):
            data = file.parent / name
            if data.resolve().parent != file.parent.resolve():
                raise BadInputError(f"{file}: external data '{name}' is not beside the model; move it there")
            if not (Path(target).parent / name).exists():
                shutil.copyfile(_existing(data), temporary.parent / name)


@contextlib.contextmanager
def staged(path: PathLike) -> Iterator[Path]:
    """Give a path to write at; what stands there at the end moves to `path`, on any error it vanishes.

    The path lies in a folder `.<name>.repfuse-*` beside the target (the same file system, so that moving is
    atomic) and has the target's file name, so that external data lies where the model looks for it.

    Raises:
        BadInputError: The target's folder does not exist or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise BadInputError(f"{target}: is a folder; name a file")
    try:
        folder = tempfile.mkdtemp(prefix=f".{target.name}.repfuse-", dir=target.parent)
    except OSError as error:
        raise BadInputError(f"{target}: cannot write in '{target.parent}': {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        temporary = Path(folder) / target.name
        with _explained(target, "written"):
            yield temporary
            # The model goes last: a reader who sees it finds its data in place.
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == temporary):
                file.chmod(0o666 & ~_umask())
                file.replace(target.parent / file.name)


@contextlib.contextmanager
def _explained(path: Path, verb: str) -> Iterator[None]:
    """Turn the system's and protobuf's errors into ours."""
    try:
        yield
    except DecodeError as error:
        raise BadInputError(f"{path}: not an ONNX file (it cannot be parsed); export it again") from error
    except OSError as error:
        raise BadInputError(f"{path}: cannot be {verb}: {error.strerror or error}") from error


def _existing(path: PathLike) -> Path:
    file = Path(path)
    if file.is_dir():
        raise BadInputError(f"{file}: is a folder; name an .onnx file")
    if not file.exists():
        raise BadInputError(f"{file}: no such file")
    return file


def _external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files in which a model keeps weights."""
    tensors = onnx.external_data_helper._get_all_tensors(model)
    return {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _stream(model: onnx.ModelProto, file: BinaryIO) -> bool:
    """Write `model` in protobuf's wire format, the bytes of one initializer at a time.

    Fields of a message may stand in any order, so every message is written as all of it but its large field,
    then that field. (https://protobuf.dev/programming-guides/encoding)

    Returns:
        False, and nothing is written, where that cannot be done: the model is too large for one protobuf
        message, or a newer ONNX put fields into it that only protobuf itself can hand on.
    """
    graph = model.graph
    if any(UnknownFieldSet(message) for message in (model, graph, *graph.initializer)):
        return False
    start = _without(model, "graph")
    body = _without(graph, "initializer")
    heads = [_tensor_head(tensor) for tensor in graph.initializer]
    size = len(body) + sum(len(head) + data for head, data in heads)
    if len(start) + size > LARGEST_PROTOBUF:
        return False
    file.write(start + _header(model, "graph", size) + body)
    for (head, data), tensor in zip(heads, graph.initializer, strict=True):
        file.write(head)
        if data:
            file.write(tensor.raw_data)
    return True


def _tensor_head(tensor: onnx.TensorProto) -> tuple[bytes, int]:
    """An initializer as its graph holds it, up to its `raw_data`; and how many bytes of that follow."""
    data = len(tensor.raw_data)
    inside = _without(tensor, "raw_data") + (_header(tensor, "raw_data", data) if data else b"")
    return _header(onnx.GraphProto, "initializer", len(inside) + data) + inside, data


def _without(message: Any, field: str) -> bytes:
    """Serialize a message but for one field."""
    return b"".join(_alone(message, other.name) for other, _ in message.ListFields() if other.name != field)


def _alone(message: Any, field: str) -> bytes:
    """Serialize one field of a message."""
    part = type(message)()
    value = getattr(message, field)
    if hasattr(value, "CopyFrom"):
        getattr(part, field).CopyFrom(value)
    elif isinstance(value, str | bytes | int | float):
        setattr(part, field, value)
    else:
        getattr(part, field).extend(value)
    return bytes(part.SerializeToString())


def _header(message: Any, field: str, length: int) -> bytes:
    """A field's tag and length, each as a base-128 varint."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
