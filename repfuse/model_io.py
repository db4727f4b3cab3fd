"""Opening and saving ONNX files: what can go wrong with them is said here, and nothing is left half written.

Files are written into a folder of their own beside the target and moved into place when whole, so a reader
sees the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from repfuse import shapes, wire
from repfuse.errors import BadInputError

PathLike = str | os.PathLike[str]

OLDEST_OPSET = 7
"""The first opset whose BatchNormalization has no `is_test` and whose Add broadcasts as numpy does."""


def load(path: PathLike) -> onnx.ModelProto:
    """Read a model and its external data.

    Raises:
        BadInputError: The file is missing, unreadable, not an ONNX model, or of an opset that repfuse does
            not know.
    """
    file = _existing(path)
    with _explained(file, "read"):
        model = _structure(file)
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


def refuse_invalid(model: onnx.ModelProto, name: str) -> None:
    """Ask ONNX's checker about a model that could not be worked on. `name` is what the message calls it.

    Raises:
        BadInputError: The checker refuses the model, too.
    """
    try:
        onnx.checker.check_model(shapes.structure(model))
    except (onnx.checker.ValidationError, ValueError, MemoryError, RecursionError) as error:
        raise BadInputError(f"{name}: not a valid ONNX model: {_first_line(error)}") from error


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
        written = wire.write(model, file)
    if not written:
        too_large = model.ByteSize() > wire.LARGEST
        if too_large:
            model = deepcopy(model)  # moving weights out of a model changes it
        onnx.save(model, path, save_as_external_data=too_large, location=path.name + ".data")


def copy(source: PathLike, target: PathLike) -> None:
    """Copy a model byte for byte, with its external data files, whole or not at all.

    Raises:
        BadInputError: The source cannot be read, or the target's folder cannot be written.
    """
    file = _existing(source)
    with _explained(file, "read"), staged(target) as temporary:
        shutil.copyfile(file, temporary)
        for name in external_files(file):
            data = file.parent / name
            if data.resolve().parent != file.parent.resolve():
                raise BadInputError(f"{file}: external data '{name}' is not beside the model; move it there")
            beside = Path(target).parent / name
            if not beside.exists():
                shutil.copyfile(_existing(data), temporary.parent / name)
            elif not beside.samefile(data):
                raise BadInputError(f"{beside}: is another model's data, it seems; choose another folder")


def external_files(path: PathLike) -> set[str]:
    """Names of the files in which a model keeps weights, as the model spells them.

    Raises:
        BadInputError: The model cannot be read.
    """
    file = _existing(path)
    with _explained(file, "read"):
        tensors = onnx.external_data_helper._get_all_tensors(_structure(file))
    return {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


@contextlib.contextmanager
def staged(path: PathLike) -> Iterator[Path]:
    """Give a path to write at; what stands there at the end moves to `path`, on any error it vanishes.

    The path lies in a folder `.<name>.repfuse-*` beside the target (the same file system, so that moving is
    atomic) and has the target's file name, so that external data lies where the model looks for it.

    Raises:
        BadInputError: The target's folder does not exist or cannot be written.
    """
    target = Path(path)
    with _explained(target, "written"):
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
    with _explained(file, "read"):
        if file.is_dir():
            raise BadInputError(f"{file}: is a folder; name an .onnx file")
        if not file.exists():
            raise BadInputError(f"{file}: no such file")
    return file


def _structure(file: Path) -> onnx.ModelProto:
    """Read a model without its external data; in protobuf's format, whatever the file is called."""
    return onnx.load(file, format="protobuf", load_external_data=False)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
