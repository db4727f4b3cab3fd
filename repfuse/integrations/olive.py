"""A pass for Microsoft Olive; `olive.json` beside this file tells Olive of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_config, model_proto_to_olive_model
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from repfuse.errors import VerificationError
from repfuse.fusion import fuse
from repfuse.proof.verification import verify


class RepFuse(Pass):  # type: ignore[misc]
    """Collapses every group of linear branches that is exact and cheaper as one Conv, and checks the outputs."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "patterns": PassConfigParam(
                type_=list, default_value=None, description="Block families to fuse; all if not specified."
            ),
            "verify": PassConfigParam(
                type_=bool, default_value=True, description="Whether to compare all outputs before and after."
            ),
            **get_external_data_config(),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        settings: Any = config
        result = fuse(model.model_path, patterns=settings.patterns)
        if settings.verify:
            found = verify(model.model_path, result.model)
            if not found.passed:
                raise VerificationError("; ".join(found.messages))
        path = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        return model_proto_to_olive_model(result.model, path, settings)
