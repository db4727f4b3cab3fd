"""Protobuf's wire format: models are read and written without their large tensors passing through protobuf.

Reading takes the bytes of large tensors out of a file and puts notes (see `model.storage`) in their place before
protobuf parses the rest; writing puts ranges of files in the place of notes after protobuf has serialized the
rest. All other bytes are handed on as they are. (https://protobuf.dev/programming-guides/encoding)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import ModelProto, TensorProto

from repfuse.model.storage import LEAST, MARK, Range

LARGEST = 2**31 - 1
"""Bytes: protobuf reads no larger message."""

_DEEPEST = 100
"""Messages inside messages: protobuf reads no deeper."""

_DELIMITED = 2
_WIDTHS = {1: 8, 5: 4}
_RAW_DATA = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def _messages_inside(descriptor: Any, known: dict[str, dict[int, str]]) -> dict[str, dict[int, str]]:
    """Of each message, by name, which of its fields hold messages, and what they are called."""
    if descriptor.name not in known:
        inner = {field.number: field.message_type for field in descriptor.fields if field.message_type}
        known[descriptor.name] = {number: kind.name for number, kind in inner.items()}
        for kind in inner.values():
            _messages_inside(kind, known)
    return known


_INSIDE = _messages_inside(ModelProto.DESCRIPTOR, {})

Piece = bytes | Range | TensorProto
"""Bytes; or those of a range of a file; or a tensor's `raw_data`."""

Replace = Callable[[int, int], list[Piece] | None]
"""Gives what to put in the place of the tensor between two positions; None to leave it."""


def read(path: str | os.PathLike[str]) -> bytes:
    """Read a model with notes in the place of large tensors' bytes; external data are not looked at.

    Raises:
        DecodeError: The file holds no such message.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        found = os.fstat(file.fileno())
        if not found.st_size:
            return b""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            name = str(Path(path).absolute())

            def noted(start: int, stop: int) -> list[Piece] | None:
                for number, _, value, end in _delimited(content, start, stop):
                    if number == _RAW_DATA and end - value >= LEAST:
                        note = Range(name, value, end - value, found.st_mtime_ns).note()
                        head = content[start:value].removesuffix(_varint(end - value))
                        return [head + _varint(len(note)) + note + content[end:stop]]
                return None

            pieces = _rebuilt(content, 0, len(content), lambda start, stop: stop - start >= LEAST, noted)
            return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def inline(model: ModelProto) -> list[Piece]:
    """What to write, one after the other, for a model in one file."""
    content, lent = _noted(model)

    def whole(start: int, stop: int) -> list[Piece] | None:
        for number, _, value, end in _delimited(content, start, stop):
            if number == _RAW_DATA and (data := _data(content[value:end], lent)):
                head = content[start:value].removesuffix(_varint(end - value))
                return [head + _varint(length(data)), data, content[end:stop]]
        return None

    return _rebuilt(content, 0, len(content), lambda start, stop: content.find(MARK, start, stop) >= 0, whole)


def external(model: ModelProto, place: Callable[[Piece], tuple[str, int]]) -> list[Piece]:
    """The same for a model whose large tensors are in another file.

    Args:
        model: It is not changed.
        place: Is given the bytes of each of them; says the name of the file and the offset where they will be.
    """
    content, lent = _noted(model)

    def moved(start: int, stop: int) -> list[Piece] | None:
        tensor = TensorProto.FromString(content[start:stop])
        data = _data(tensor.raw_data, lent)
        if data is None:
            return None
        location, offset = place(data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", offset), ("length", length(data))):
            tensor.external_data.add(key=key, value=str(value))
        return [tensor.SerializeToString()]

    return _rebuilt(content, 0, len(content), lambda start, stop: content.find(MARK, start, stop) >= 0, moved)


def put(pieces: Iterable[Piece], file: BinaryIO) -> None:
    """Write pieces one after the other.

    Raises:
        BadInputError: A file was changed since it was read.
        OSError: One cannot be read, or this one not written.
    """
    for piece in pieces:
        if isinstance(piece, Range):
            piece.copy_to(file)
        else:
            file.write(piece.raw_data if isinstance(piece, TensorProto) else piece)


def length(piece: Piece) -> int:
    """How many bytes a piece stands for."""
    if isinstance(piece, TensorProto):
        return len(piece.raw_data)
    return piece.length if isinstance(piece, Range) else len(piece)


def _data(note: bytes, lent: list[TensorProto]) -> Range | TensorProto | None:
    place = Range.of(note)
    return place if place is None or place.path else lent[place.offset]


def _noted(model: ModelProto) -> tuple[bytes, list[TensorProto]]:
    """Serialize a model with notes for all large initializers.

    Returns:
        The bytes; and the tensors that are in memory, to which a note without a file refers by number.
    """
    lent: list[TensorProto] = []
    graph = model.graph
    # What a newer ONNX put into these only protobuf itself can hand on.
    if any(UnknownFieldSet(message) for message in (model, graph, *graph.initializer)):
        return model.SerializeToString(), lent
    try:
        structure = ModelProto()
        _copy(model, structure, "graph")
    except UnicodeDecodeError:  # so does it with what is no text
        return model.SerializeToString(), lent
    if model.HasField("graph"):
        _copy(graph, structure.graph, "initializer")
        for tensor in graph.initializer:
            data = tensor.raw_data
            if len(data) < LEAST or data.startswith(MARK):
                structure.graph.initializer.append(tensor)
            else:
                stand_in = structure.graph.initializer.add()
                _copy(tensor, stand_in, "raw_data")
                stand_in.raw_data = Range("", len(lent), len(data)).note()
                lent.append(tensor)
    return structure.SerializeToString(), lent


def _copy(message: Any, copy: Any, without: str) -> None:
    """Copy all fields of a message but one to another message."""
    for descriptor, value in message.ListFields():
        if descriptor.name == without:
            continue
        if hasattr(value, "CopyFrom"):
            getattr(copy, descriptor.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(copy, descriptor.name, value)
        else:
            getattr(copy, descriptor.name).extend(value)


def _rebuilt(
    content: bytes | mmap.mmap,
    start: int,
    stop: int,
    wanted: Callable[[int, int], bool],
    replace: Replace,
    kind: str = "ModelProto",
    depth: int = 0,
) -> list[Piece]:
    """A message with some of the tensors in it replaced, and the lengths of all around them adapted.

    Args:
        content: Holds the message.
        start: Where it begins.
        stop: Where it ends.
        wanted: Says of a message between two positions whether to look into it.
        replace: Called for each tensor that is wanted.
        kind: What the message is.
        depth: How many messages there are around it.

    Raises:
        DecodeError: This is no such message.
    """
    if depth > _DEEPEST:
        raise DecodeError("messages are nested too deeply")
    pieces: list[Piece] = []
    inside = _INSIDE[kind]
    kept = start
    for number, after_tag, value, end in _delimited(content, start, stop):
        inner = inside.get(number)
        if inner is None or not wanted(value, end):
            continue
        if inner == "TensorProto":
            new = replace(value, end)
        else:
            new = _rebuilt(content, value, end, wanted, replace, inner, depth + 1)
        if new is not None:
            pieces += [content[kept:after_tag] + _varint(sum(map(length, new))), *new]
            kept = end
    return [*pieces, content[kept:stop]]


def _delimited(content: bytes | mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message that have a length.

    Yields:
        A field's number; and positions: behind its tag, where its value begins, and where that ends.
    """
    at = start
    while at < stop:
        tag, after_tag = content[at], at + 1
        if tag > 0x7F:
            tag, after_tag = _number(content, at, stop)
        wire_type = tag & 7
        if wire_type == _DELIMITED:
            size, value = _number(content, after_tag, stop)
            at = value + size
            if at > stop:
                raise DecodeError("a field is longer than its message")
            yield tag >> 3, after_tag, value, at
        elif wire_type == 0:
            _, at = _number(content, after_tag, stop)
        elif wire_type in _WIDTHS:
            at = after_tag + _WIDTHS[wire_type]
        else:
            raise DecodeError("a field is of no known type")
    if at > stop:
        raise DecodeError("a message is cut short")


def _number(content: bytes | mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """Read a base-128 varint; gives it and the position behind it."""
    if at < stop and content[at] < 0x80:  # most are this short
        return content[at], at + 1
    value = shift = 0
    while at < stop and shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DecodeError("a number is cut short")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
