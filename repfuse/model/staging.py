"""Files that are written whole or not at all, whatever ends the program.

Files are written into a folder of their own beside the target and moved into place when whole, so a reader sees
the old file or the new one, never a part. Only what ends a process at once (SIGKILL) leaves that folder
behind; it is called `.<target>.repfuse-*`, and may be removed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from repfuse.errors import BadInputError
from repfuse.model import storage, wire

PathLike = str | os.PathLike[str]

_NEEDED = "needed"
"""A file in the folder while the model at the target looks for its data in there."""


@contextlib.contextmanager
def staged(path: PathLike) -> Iterator[Path]:
    """Give a path to write at; what stands there at the end, if anything, moves to `path`; on errors it vanishes.

    The path lies in a folder `.<name>.repfuse-*` beside the target (the same file system, so that moving is
    atomic) and has the target's file name, so that external data lies where the model looks for it.

    Raises:
        BadInputError: The target's folder does not exist or cannot be written.
    """
    target = Path(path)
    with explained(target, "written"):
        if target.is_dir():
            raise BadInputError(f"{target}: is a folder; name a file")
    folder = target.parent / f".{target.name}.repfuse-{os.urandom(4).hex()}"
    # Before there is anything to remove, so that there is no moment at which an interrupt could leave it behind.
    remove = atexit.register(partial(_remove, folder))
    try:
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise BadInputError(f"{target}: cannot write in '{target.parent}': {error.strerror}") from error
        with explained(target, "written"):
            yield folder / target.name
            _land(folder, target)
    finally:
        remove()
        atexit.unregister(remove)


@contextlib.contextmanager
def explained(path: Path, verb: str) -> Iterator[None]:
    """Turn the system's and protobuf's errors into ours."""
    try:
        yield
    except DecodeError as error:
        raise BadInputError(f"{path}: not an ONNX file (it cannot be parsed); export it again") from error
    except BrokenPipeError:  # of standard output, such as `repfuse ... | head`: not this file's fault
        raise
    except OSError as error:
        raise BadInputError(f"{path}: cannot be {verb}: {error.strerror or error}") from error


def _land(folder: Path, target: Path) -> None:
    """Move a model, or another file, to where it belongs, and the data beside it.

    At each moment there is a whole model at the target: where its data take the place of other data, a model
    that looks for them in `folder` stands there until they are in place.
    """
    model = folder / target.name
    if not model.exists():
        return
    data = sorted(file for file in folder.iterdir() if file.is_file() and file != model)
    for file in (model, *data):
        file.chmod(0o666 & ~_umask())
    if any((target.parent / file.name).exists() for file in data):
        _exchange(folder, target, data)
    else:
        for file in data:
            file.replace(target.parent / file.name)
        model.replace(target)


def _exchange(folder: Path, target: Path, data: Sequence[Path]) -> None:
    """Put a model and its data in the place of another."""
    folder.chmod(0o777 & ~_umask())
    bridge = _looking_into(folder, folder / target.name)
    needed = folder / _NEEDED
    needed.touch()
    try:
        bridge.replace(target)
        _finish(folder, target, data)
    except BaseException:
        if bridge.exists():
            needed.unlink()
        else:
            _finish(folder, target, data)  # what was begun must be done, or the model would look in vain
        raise


def _finish(folder: Path, target: Path, data: Sequence[Path]) -> None:
    """Take the steps that are left, from any of them on."""
    for file in data:
        second = file.with_name(f"{file.name}.2")
        second.unlink(missing_ok=True)
        try:
            os.link(file, second)
        except OSError:  # no file system of Linux, but some that it can mount
            shutil.copyfile(file, second)
        second.replace(target.parent / file.name)
    if (folder / target.name).exists():
        (folder / target.name).replace(target)
    (folder / _NEEDED).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove the folder, but where the model at the target looks for its data in it."""
    if not (folder / _NEEDED).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _looking_into(folder: Path, model: Path) -> Path:
    """A copy of a model that is beside `folder` and looks for its data in there."""
    bridge = ModelProto.FromString(wire.read(model))
    for tensor in storage.tensors(bridge):
        for entry in tensor.external_data:
            if tensor.data_location == TensorProto.EXTERNAL and entry.key == "location":
                entry.value = f"{folder.name}/{entry.value}"
    path = folder / f"{model.name}.1"
    with path.open("wb") as file:
        wire.put(wire.inline(bridge), file)
    path.chmod(model.stat().st_mode)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
