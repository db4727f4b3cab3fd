"""Fused models for OpenVINO, handed over in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import openvino

from repfuse.fusion import fuse
from repfuse.model import model_io, wire

if TYPE_CHECKING:
    from repfuse.model.convert import Source


def read_model(
    model: Source, *, patterns: Sequence[str] | None = None, core: openvino.Core | None = None
) -> openvino.Model:
    """Fuse a model and read it into OpenVINO, as `openvino.Core.read_model` does without fusing.

    Args:
        model: As for `repfuse.fuse`.
        patterns: As for `repfuse.fuse`.
        core: What is to read; a new one if None.

    Returns:
        The fused model. Only one of more than 2 GB, for which ONNX has no form in memory, is written to a
        temporary file on the way.

    Raises:
        BadInputError: As for `repfuse.fuse`.
    """
    result = fuse(model, patterns=patterns).model
    core = core or openvino.Core()
    if sum(map(wire.length, wire.inline(result))) <= wire.LARGEST:
        return core.read_model(result.SerializeToString())
    core.set_property({"ENABLE_MMAP": False})  # the file is gone when the model is used
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fused.onnx"
        model_io.save(result, path, external_data=True)
        return core.read_model(path)
