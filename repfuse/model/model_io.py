"""Opening and saving ONNX files: what can go wrong with them is said here."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from repfuse.errors import BadInputError
from repfuse.model import external, shapes, storage, wire
from repfuse.model.expansion import refuse_explosive
from repfuse.model.nodes import Node
from repfuse.model.staging import PathLike, explained, staged

OLDEST_OPSET = 7
"""The first opset whose BatchNormalization has no `is_test` and whose Add broadcasts as numpy does."""

FIRST_OVERRIDABLE_IR = 4
"""From this IR version on, an initializer need not be an input; where it is both, callers may override it."""

_PAGE = 4096
"""Bytes: where external data begin on a page of memory, runtimes need not copy them."""


def load(path: PathLike) -> onnx.ModelProto:
    """Read a model with all of its weights.

    Raises:
        BadInputError: As for `read`.
    """
    model = read(path)
    with explained(Path(path), "read"):
        storage.fill(model)
    return model


def read(path: PathLike) -> onnx.ModelProto:
    """Read a model, leaving the bytes of its large tensors where they are (see `model.storage`).

    Raises:
        BadInputError: The file is missing, unreadable, not an ONNX model, or of an opset that repfuse does
            not know; or its external data are not where they should be.
    """
    file = _existing(path)
    with explained(file, "read"):
        content = wire.read(file)
        model = onnx.ModelProto.FromString(content)
    check(model, str(file))
    if b"location" in content:  # a look at each tensor would take longer than all else
        external.note(model, file)
    return model


def structure(path: PathLike) -> onnx.ModelProto:
    """Read a model without its large tensors; in protobuf's format, whatever the file is called.

    Raises:
        BadInputError: The file is missing, unreadable, or cannot be parsed.
    """
    file = _existing(path)
    with explained(file, "read"):
        return onnx.ModelProto.FromString(wire.read(file))


def check(model: onnx.ModelProto, name: str) -> None:
    """Refuse what is no model that repfuse can work on. `name` is what the message calls it.

    Raises:
        BadInputError: There is no graph, its opset is older than 7 or newer than the installed onnx knows or
            several, or its functions become very many nodes.
    """
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise BadInputError(f"{name}: not an ONNX model (it holds no graph); export it again")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(set(versions)) > 1:
        raise BadInputError(
            f"{name}: imports ONNX's operator set at several versions, {', '.join(map(str, versions))}, so that no "
            "runtime can tell which one its nodes mean; leave one of them in opset_import"
        )
    if any(not OLDEST_OPSET <= version <= newest for version in versions):
        raise BadInputError(
            f"{name}: opset {versions[0]} is not supported; repfuse with onnx "
            f"{onnx.__version__} reads {OLDEST_OPSET} to {newest} (onnx.version_converter converts, "
            "or install a newer onnx)"
        )
    refuse_explosive(model, name)


def refuse_invalid(
    model: onnx.ModelProto, name: str, nodes: Sequence[Node], *, strictly: bool = False
) -> None:
    """Ask ONNX's checker about a model.

    Args:
        model: Its weights need not be in memory.
        name: What the message calls it.
        nodes: The main graph's nodes.
        strictly: Whether operators' types and shapes must agree, which exporters sometimes get wrong.

    Raises:
        BadInputError: Names are defined twice or used before they are computed, functions call themselves,
            operators have attributes that they should not have, a weight has more or less data than its shape
            needs ...
    """
    for tensor in model.graph.initializer:
        try:
            if not storage.fits(tensor):
                raise BadInputError(f"{name}: {storage.misfit(tensor)}")
        except ValueError as error:
            raise BadInputError(f"{name}: tensor '{tensor.name}': {error}") from error
    _refuse_odd_names(model, name, nodes)
    dense = {tensor.name for tensor in model.graph.initializer}
    for sparse in model.graph.sparse_initializer:
        if sparse.values.name in dense:
            raise BadInputError(f"{name}: not a valid ONNX model: '{sparse.values.name}' is two initializers")
    checked = shapes.structure(model, nodes)
    if model.ir_version < FIRST_OVERRIDABLE_IR:
        # The checker insists that initializers are inputs; runtimes do without.
        shapes.list_constants(checked.graph)
    for entry in (*checked.graph.input, *checked.graph.output):
        # The checker insists on shapes, and on outputs' types; runtimes do without.
        if entry.type.WhichOneof("value") in (None, "tensor_type"):
            kind = entry.type.tensor_type
            kind.elem_type = kind.elem_type or onnx.TensorProto.FLOAT
            if not strictly:
                kind.shape.SetInParent()
    try:
        onnx.checker.check_model(checked, full_check=strictly)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        MemoryError,
        RecursionError,
    ) as error:
        raise BadInputError(f"{name}: not a valid ONNX model: {_first_line(error)}") from error


def _refuse_odd_names(model: onnx.ModelProto, name: str, nodes: Sequence[Node]) -> None:
    """Refuse names that are no text: protobuf gives them as bytes, or fails."""
    graph = model.graph
    fields = (graph.input, graph.output, graph.value_info, graph.initializer)
    try:
        kinds = {type(graph.name), *(type(entry.name) for entries in fields for entry in entries)}
        for node in nodes:
            kinds.update(map(type, (node.name, node.op_type, node.domain, *node.input, *node.output)))
        odd = kinds != {str}
    except UnicodeDecodeError:
        odd = True
    if odd:
        raise BadInputError(f"{name}: not a valid ONNX model: a name in it is not UTF-8")


def save(model: onnx.ModelProto, path: PathLike, *, external_data: bool | None = None) -> None:
    """Write a model, whole or not at all; see `write`.

    Raises:
        BadInputError: The folder does not exist or cannot be written; or as for `write`.
    """
    with staged(path) as temporary:
        write(model, temporary, external_data=external_data)


def write(model: onnx.ModelProto, path: Path, *, external_data: bool | None = None) -> None:
    """Write a model to a path of which nobody knows yet (see `staged`).

    Args:
        model: It is not changed.
        path: The file to write.
        external_data: Whether large tensors go into a file of their own, `<name>.data`; None if they do not fit.

    Raises:
        BadInputError: The model is too large for one file, and `external_data` is False.
    """
    whole = [] if external_data else wire.inline(model)
    size = sum(map(wire.length, whole))
    if size > wire.LARGEST and external_data is False:
        raise BadInputError(
            f"{path.name}: would be of {size / 1e9:.1f} GB, and an ONNX file holds 2.1 at most; leave out --inline"
        )
    if external_data or size > wire.LARGEST:
        _write_beside(model, path)
    else:
        with path.open("wb") as file:
            wire.put(whole, file)


def _write_beside(model: onnx.ModelProto, path: Path) -> None:
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:

        def place(piece: wire.Piece) -> tuple[str, int]:
            _refuse_overwriting(piece, data)
            file.seek(-(-file.tell() // _PAGE) * _PAGE)
            offset = file.tell()
            wire.put([piece], file)
            return data.name, offset

        pieces = wire.external(model, place)
    if sum(map(wire.length, pieces)) > wire.LARGEST:
        raise BadInputError(f"{path.name}: is above 2.1 GB without its weights, which no ONNX file can be")
    with path.open("wb") as file:
        wire.put(pieces, file)


def _refuse_overwriting(piece: wire.Piece, data: Path) -> None:
    """`data` is in a folder beside which it will be moved: what is read must not lie there."""
    future = data.parent.parent / data.name
    if isinstance(piece, storage.Range) and future.exists() and future.samefile(piece.path):
        raise BadInputError(f"{future}: holds the weights of the model that is read; name another output")


def copy(source: PathLike, target: PathLike, *, external_data: bool | None = None) -> None:
    """Copy a model byte for byte, with its external data files, whole or not at all.

    It is read and written instead (see `write`) where `external_data` says how weights are to be kept, or where
    they are in a folder below the model's.

    Raises:
        BadInputError: The source cannot be read, or the target's folder cannot be written.
    """
    file = _existing(source)
    model = read(file)
    names = external.names(structure(file))
    if external_data is not None or any(Path(name).name != name for name in names):
        save(model, target, external_data=external_data)
        return
    with explained(file, "read"), staged(target) as temporary:
        shutil.copyfile(file, temporary)
        for name in names:
            beside = Path(target).parent / name
            if not beside.exists():
                shutil.copyfile(file.parent / name, temporary.parent / name)
            elif not beside.samefile(file.parent / name):
                raise BadInputError(f"{beside}: is another model's data, it seems; choose another folder")


def _existing(path: PathLike) -> Path:
    file = Path(path)
    with explained(file, "read"):
        if file.is_dir():
            raise BadInputError(f"{file}: is a folder; name an .onnx file")
        if not file.exists():
            raise BadInputError(f"{file}: no such file")
        if not file.is_file():
            raise BadInputError(f"{file}: is no regular file; save the model to one")
    return file


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Some of ONNX's sentences go on in the next line.
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__
