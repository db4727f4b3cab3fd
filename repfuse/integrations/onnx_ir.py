"""A pass for onnx_ir, which composes with its own passes and with onnxscript's optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from repfuse.fusion import FuseResult, fuse


class FusePass(ir.passes.FunctionalPass):
    """Collapses every group of linear branches that is exact and cheaper as one Conv.

    A model that is handed in is not changed.

    Attributes:
        patterns: As for `repfuse.fuse`.
        result: What fusing the last model gave: its edits and its remarks; None before the first.
    """

    def __init__(self, patterns: Sequence[str] | None = None) -> None:
        self.patterns = patterns
        self.result: FuseResult | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse a model; see `repfuse.fuse` for what it raises."""
        self.result = fuse(model, patterns=self.patterns)
        fused = self.result.like(model) if self.result.changed else model.clone()
        return ir.passes.PassResult(fused, self.result.changed)
