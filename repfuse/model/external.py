"""External data: where a model's tensors say that their bytes are, checked before anything is read there.

A model file comes from anywhere, and must not make a program read other files than its own: what is named lies in
the model's folder or below it, links followed, and is as long as the tensor's shape needs.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto

from repfuse.errors import BadInputError
from repfuse.model.storage import LEAST, Range, size, tensors

_MOST_DIGITS = 20
"""Of an offset or a length."""


def note(model: ModelProto, file: Path) -> None:
    """Put a note (see `model.storage`) into each tensor of a model whose bytes are in another file.

    Args:
        model: Is changed.
        file: It was read from there.

    Raises:
        BadInputError: Bytes are outside the model's folder, are not there, or are not as many as they should be.
    """
    folder = _Folder(file)
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            place = folder.find(tensor)
            tensor.raw_data = place.note() if place.length >= LEAST else place.read()
            tensor.ClearField("data_location")
            del tensor.external_data[:]


def names(model: ModelProto) -> list[str]:
    """The files in which a model whose structure was read keeps tensors, as it calls them."""
    found = (_entries(tensor) for tensor in tensors(model) if tensor.data_location == TensorProto.EXTERNAL)
    return sorted({entries.get("location", "") for entries in found})


@dataclass(frozen=True)
class _Found:
    path: str
    size: int
    changed: int


class _Folder:
    """The files that a model may keep data in."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._files: dict[str, _Found] = {}

    def find(self, tensor: TensorProto) -> Range:
        """Where a tensor's bytes are."""
        entries = _entries(tensor)
        try:
            file = self._file(entries.get("location", ""))
            offset, length = _natural(entries.get("offset", "0")), size(tensor)
            given = _natural(entries.get("length", str(length)))
            if given != length:
                raise ValueError(f"it gives {given} bytes, and its shape {list(tensor.dims)} needs {length}")
            if offset + length > file.size:
                raise ValueError(f"it ends behind the end of '{entries.get('location')}' ({file.size} bytes)")
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadInputError(
                f"{self._model}: the external data of tensor '{tensor.name}' cannot be read: {reason}"
            ) from error
        return Range(file.path, offset, length, file.changed)

    def _file(self, location: str) -> _Found:
        if location not in self._files:
            self._files[location] = self._checked(location)
        return self._files[location]

    def _checked(self, location: str) -> _Found:
        folder = self._model.parent.resolve()
        if not location or "\0" in location:
            raise ValueError("it does not name a file")
        file = (folder / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise ValueError(f"'{location}' is outside the model's folder; move it there")
        try:
            found = os.stat(file)  # noqa: PTH116  (says the same)
        except OSError as error:
            raise ValueError(f"'{location}': {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"'{location}' is no file")
        return _Found(str(file), found.st_size, found.st_mtime_ns)


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ValueError(f"'{text[:40]}' is no offset or length")
    return int(text)
