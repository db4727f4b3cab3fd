"""Models as other toolchains hold them, and back.

All work is done on `onnx.ModelProto`. A kind of model that is known is a row of `_KINDS`; its package is not
imported to find out whether a model is of it, since whoever made the model has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

from onnx import ModelProto

from repfuse.errors import BadInputError

if TYPE_CHECKING:
    import onnx_graphsurgeon
    import onnx_ir
    import torch

    Source: TypeAlias = (
        ModelProto | str | PathLike[str] | onnx_ir.Model | onnx_graphsurgeon.Graph | torch.onnx.ONNXProgram
    )
    """A model: its path, or itself in one of several kinds."""

M = TypeVar("M")


class _Kind(NamedTuple):
    """How a kind of model becomes a ModelProto, and what a ModelProto becomes in the place of such a model."""

    proto: Callable[[Any], ModelProto]
    like: Callable[[ModelProto, Any], Any]


def proto(model: Source) -> ModelProto | str | PathLike[str]:
    """A model as a ModelProto; the path of one stays a path. The model is not changed.

    Raises:
        BadInputError: It is of no kind that is known.
    """
    if isinstance(model, (ModelProto, str, PathLike)):
        return model
    return _kind(model).proto(model)


def like(result: ModelProto, model: M) -> M:
    """A ModelProto as the kind of model that `model` is; itself where that is a ModelProto or a path.

    Raises:
        BadInputError: `model` is of no kind that is known.
    """
    if isinstance(model, (ModelProto, str, PathLike)):
        return cast(M, result)
    return cast(M, _kind(model).like(result, model))


def _from_onnx_ir(model: Any) -> ModelProto:
    import onnx_ir  # noqa: PLC0415  (an extra)

    # External tensors know their folder, which a ModelProto cannot say.
    with_weights = onnx_ir.external_data.load_to_model(model.clone())
    return onnx_ir.to_proto(with_weights)


def _to_onnx_ir(result: ModelProto, _: Any) -> Any:
    import onnx_ir  # noqa: PLC0415  (an extra)

    return onnx_ir.from_proto(result)


def _from_graphsurgeon(graph: Any) -> ModelProto:
    import onnx_graphsurgeon  # noqa: PLC0415  (not needed for other kinds)

    return cast(ModelProto, onnx_graphsurgeon.export_onnx(graph))


def _to_graphsurgeon(result: ModelProto, _: Any) -> Any:
    import onnx_graphsurgeon  # noqa: PLC0415  (not needed for other kinds)

    return onnx_graphsurgeon.import_onnx(result)


def _from_program(program: Any) -> ModelProto:
    return _from_onnx_ir(program.model)


def _to_program(result: ModelProto, program: Any) -> Any:
    return type(program)(_to_onnx_ir(result, None), program.exported_program)


_KINDS: Mapping[tuple[str, str], _Kind] = {
    ("onnx_ir", "Model"): _Kind(_from_onnx_ir, _to_onnx_ir),
    ("onnx_graphsurgeon", "Graph"): _Kind(_from_graphsurgeon, _to_graphsurgeon),
    ("torch.onnx", "ONNXProgram"): _Kind(_from_program, _to_program),
}


def _kind(model: object) -> _Kind:
    for (package, name), kind in _KINDS.items():
        known = getattr(sys.modules.get(package), name, None)
        if known is not None and isinstance(model, known):
            return kind
    known_kinds = ", ".join(".".join(key) for key in _KINDS)
    raise BadInputError(
        f"a model of type {type(model).__module__}.{type(model).__name__} cannot be fused; hand over "
        f"a path, an onnx.ModelProto, or one of {known_kinds}"
    )
