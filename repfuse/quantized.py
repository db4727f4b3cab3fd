"""Models that compute on quantized values: why nothing in them is fused, said once and not at each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from repfuse.remarks import Outcome, Remark
from repfuse.view import Scope
from repfuse.window import Refusal

_QUANTIZING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
"""Beside these, all whose names begin with `QLinear`, and QGemm and QAttention of ONNX Runtime's own."""

_REASON = Refusal(
    "computes on quantized values, whose scales are those of single branches: fuse the float model and "
    "quantize afterwards"
).reason


def summarized(scope: Scope, refusals: Sequence[Remark], *, fused: bool) -> list[Remark]:
    """What was left in a graph, where one remark stands for all that quantization is to blame for.

    Args:
        scope: The graph.
        refusals: A remark for each join that was left alone.
        fused: Whether anything was fused in the graph: if so, quantization is told only where it was in the way.
    """
    found = [
        position
        for position, node in enumerate(scope.nodes)
        if _quantizes(node.op_type) and scope.constants.find(node.input[0]) is None
    ]
    names = {scope.name(position) for position in found}
    others = [remark for remark in refusals if remark.blocker not in names]
    if not found or (fused and len(others) == len(refusals)):
        return list(refusals)
    counts = Counter(scope.nodes[position].op_type for position in found)
    listed = ", ".join(f"{count} {op_type}" for op_type, count in sorted(counts.items()))
    first = scope.name(found[0])
    return [Remark(Outcome.REFUSED, first, f"{_REASON} (there are {listed})", first, scope.label), *others]


def _quantizes(op_type: str) -> bool:
    return op_type in _QUANTIZING or op_type.startswith("QLinear") or op_type in ("QGemm", "QAttention")
