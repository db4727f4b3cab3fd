"""Where a tensor's bytes are: in the model, or in a range of a file that is read when they are asked for.

A model of many gigabytes is held as its structure. In place of a large tensor's `raw_data` stands a *note*, which
says in which file, and where in it, the bytes are. Values are read one tensor at a time (`values`); writing
copies ranges from file to file. Notes begin with bytes drawn anew in each process, so that none can be forged by a
model, and are never written: what leaves this package has its bytes (`fill`) or external data.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from repfuse.errors import BadInputError

LEAST = 8192
"""Bytes: smaller data stay in the model. Shape inference needs those of up to 256 elements."""

MARK = os.urandom(16)
"""How a note begins."""

_FIXED = struct.Struct("<QQQ")

_CHUNK = 2**20

_MOST_IN_A_BYTE = 4
"""Elements: four of two bits in an integer."""

_UNSUPPORTED = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
"""What systems say that cannot copy between two files themselves."""

_PLAIN: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.FLOAT16: "<f2",
    TensorProto.DOUBLE: "<f8",
    TensorProto.INT32: "<i4",
    TensorProto.INT64: "<i8",
}
"""Types whose raw data numpy reads as they are: several times faster than asking onnx, for hundreds of tensors."""


_NARROW = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Types of which several elements share a byte, and their bits."""


@dataclass(frozen=True)
class Range:
    """Bytes of a file.

    Attributes:
        path: The file.
        offset: Where the first byte is.
        length: How many bytes there are.
        changed: When the file was last changed, in nanoseconds; 0 for a file of our own, which may grow.
    """

    path: str
    offset: int
    length: int
    changed: int = 0

    @staticmethod
    def of(note: bytes) -> Range | None:
        """What a note says; None for bytes that are no note."""
        if not note.startswith(MARK):
            return None
        start = len(MARK) + _FIXED.size
        offset, length, changed = _FIXED.unpack(note[len(MARK) : start])
        return Range(os.fsdecode(note[start:]), offset, length, changed)

    def note(self) -> bytes:
        """The note that says this."""
        return MARK + _FIXED.pack(self.offset, self.length, self.changed) + os.fsencode(self.path)

    def read(self) -> bytes:
        """The bytes.

        Raises:
            BadInputError: The file was changed since it was first looked at.
            OSError: It cannot be read.
        """
        with self.opened() as file:
            return file.read(self.length)

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file at the first byte; raises as `read` does."""
        with open(self.path, "rb") as file:  # noqa: PTH123  (a Path costs more than the opening)
            found = os.fstat(file.fileno())
            if (
                self.changed and found.st_mtime_ns != self.changed
            ) or found.st_size < self.offset + self.length:
                raise BadInputError(f"{self.path}: was changed while it was being worked on; start again")
            file.seek(self.offset)
            yield file

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to a file, within the system where it can do that; raises as `read` does."""
        with self.opened() as source:
            target.flush()
            left = self.length
            while left and (copied := _copied_by_system(source, target, left)):
                left -= copied
            while left and (chunk := source.read(min(left, _CHUNK))):
                target.write(chunk)
                left -= len(chunk)


def _copied_by_system(source: BinaryIO, target: BinaryIO, length: int) -> int:
    """Copy some bytes from where one file stands to where another does; 0 where that is not supported."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source.fileno(), target.fileno(), min(length, 2**30))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return 0
        raise


class Spill:
    """A file for the bytes of new tensors, so that they need not be held."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def take(self, array: NDArray[np.generic]) -> TensorProto:
        """A tensor of an array's values; if they are many, they go into the file and a note into the tensor."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        # Types that have no whole bytes are packed first; a merged weight is of none of them.
        if array.nbytes < LEAST or _bits(kind) != 8 * array.itemsize or sys.byteorder != "little":
            return numpy_helper.from_array(array)
        with self._path.open("ab") as file:
            offset = file.tell()
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
        tensor = TensorProto(data_type=kind, dims=array.shape)
        tensor.raw_data = Range(str(self._path), offset, array.nbytes).note()
        return tensor


def size(tensor: TensorProto) -> int:
    """How many bytes the shape and the type of a tensor need.

    Raises:
        ValueError: They are of no known size.
    """
    dims = tensor.dims[:]
    if min(dims, default=0) < 0:
        raise ValueError(f"the shape {dims} has a negative extent")
    return -(-math.prod(dims) * _bits(tensor.data_type) // 8)  # rounded up


@cache
def _bits(kind: int) -> int:
    """How many bits an element of a `TensorProto` type takes.

    Raises:
        ValueError: It is of no known size.
    """
    if kind in (TensorProto.STRING, TensorProto.UNDEFINED) or kind not in TensorProto.DataType.values():
        raise ValueError(f"elements of type {kind} have no size")
    name = TensorProto.DataType.Name(kind)
    return _NARROW.get(name) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize


def values(tensor: TensorProto) -> NDArray[np.generic]:
    """A tensor's values, wherever they are.

    Raises:
        BadInputError: The data do not fit the tensor's shape, or their file was changed, or never looked at.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        raise BadInputError(
            f"tensor '{tensor.name}' is in a file that was not loaded: hand over the model's path"
        )
    try:
        if tensor.data_type not in _PLAIN or not tensor.HasField("raw_data"):
            return numpy_helper.to_array(filled(tensor))
        data = tensor.raw_data
        place = Range.of(data)
        return np.frombuffer(place.read() if place else data, _PLAIN[tensor.data_type]).reshape(tensor.dims)
    except OSError as error:
        raise BadInputError(f"the data of tensor '{tensor.name}' cannot be read: {error}") from error
    except (ValueError, TypeError) as error:
        raise BadInputError(misfit(tensor)) from error


def misfit(tensor: TensorProto) -> str:
    """What to say of a tensor that has more or less data than its shape needs."""
    return (
        f"the data of tensor '{tensor.name}' do not fit its shape {list(tensor.dims)}; "
        "were the model's weights stripped?"
    )


def filled(tensor: TensorProto) -> TensorProto:
    """The tensor itself, or where a note stands for its bytes a copy that has them."""
    place = Range.of(tensor.raw_data) if tensor.HasField("raw_data") else None
    if place is None:
        return tensor
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.raw_data = place.read()
    return copy


def fill(model: ModelProto) -> None:
    """Put bytes in the place of all notes."""
    _fill(tensors(model))


def fill_in(nodes: Iterable[NodeProto]) -> None:
    """Put bytes in the place of all notes that nodes and the graphs in them hold."""
    _fill(_of_nodes(nodes))


def _fill(unfilled: Iterable[TensorProto]) -> None:
    for tensor in unfilled:
        place = Range.of(tensor.raw_data)
        if place:
            tensor.raw_data = place.read()


def fits(tensor: TensorProto) -> bool:
    """Whether a tensor has as many bytes as its shape needs; where these are numbers, whether it can have.

    Raises:
        ValueError: They are of no known size.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        return True
    if not tensor.HasField("raw_data"):
        return math.prod(tensor.dims) <= _MOST_IN_A_BYTE * tensor.ByteSize()
    data = tensor.raw_data
    place = Range.of(data)
    return (place.length if place else len(data)) == size(tensor)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that a model holds: initializers and attributes, of all graphs and functions."""
    yield from _of_graph(model.graph)
    for info in model.training_info:
        yield from _of_graph(info.initialization)
        yield from _of_graph(info.algorithm)
    for function in model.functions:
        yield from _of_nodes(function.node)
        yield from _of_attributes(function.attribute_proto)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        elif attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        elif attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        yield from attribute.tensors
        for graph in attribute.graphs:
            yield from _of_graph(graph)
