"""Writing a model in protobuf's wire format, the bytes of one initializer at a time.

`SerializeToString` needs the whole model in memory a second time, and longer. What is written here are the same
bytes: fields in the order of their numbers. OpenVINO tells an ONNX file by that order.
(https://protobuf.dev/programming-guides/encoding)
"""

from __future__ import annotations

from typing import Any, BinaryIO

from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import GraphProto, ModelProto, TensorProto

LARGEST = 2**31 - 1
"""Bytes: protobuf reads no larger message."""

_LENGTH_DELIMITED = 2


def write(model: ModelProto, file: BinaryIO) -> bool:
    """Write `model`, which is not changed.

    Returns:
        False, and nothing is written, where that cannot be done: the model is too large for one protobuf
        message, or a newer ONNX put fields into it that only protobuf itself can hand on.
    """
    graph = model.graph
    if any(UnknownFieldSet(message) for message in (model, graph, *graph.initializer)):
        return False
    before, after, _ = _around(model, "graph")
    start, end, _ = _around(graph, "initializer")
    tensors = [_tensor(tensor) for tensor in graph.initializer]
    size = len(start) + len(end) + sum(len(head) + data + len(tail) for head, data, tail in tensors)
    if len(before) + size + len(after) > LARGEST:
        return False
    file.write(before + _header(model, "graph", size) + start)
    for (head, data, tail), tensor in zip(tensors, graph.initializer, strict=True):
        file.write(head)
        if data:
            file.write(tensor.raw_data)
        file.write(tail)
    file.write(end + after)
    return True


def _tensor(tensor: TensorProto) -> tuple[bytes, int, bytes]:
    """An initializer as its graph holds it: what stands before its `raw_data`, their size, and what follows."""
    head, tail, raw = _around(tensor, "raw_data")
    data = len(raw or b"")
    if tensor.HasField("raw_data"):
        head += _header(tensor, "raw_data", data)
    return _header(GraphProto, "initializer", len(head) + data + len(tail)) + head, data, tail


def _around(message: Any, field: str) -> tuple[bytes, bytes, Any]:
    """Serialize the fields of a message that stand before and after one of them; and give that one's value."""
    found = None
    place = message.DESCRIPTOR.fields_by_name[field].number
    before, after = bytearray(), bytearray()
    for descriptor, value in message.ListFields():
        if descriptor.number != place:
            part = before if descriptor.number < place else after
            part += _alone(type(message), descriptor.name, value)
        else:
            found = value
    return bytes(before), bytes(after), found


def _alone(kind: Any, field: str, value: Any) -> bytes:
    """Serialize a message of one field."""
    part = kind()
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
