"""Quantization: of values, where nothing is fused, which is said once and not at each node; and of weights alone.

A weight that is stored quantized, in a graph whose values are floats, is what DequantizeLinear makes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from repfuse.algebra.window import Refusal
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.remarks import Outcome, Remark

_QUANTIZING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
"""Beside these, all whose names begin with `QLinear`, and QGemm and QAttention of ONNX Runtime's own."""

_REASON = Refusal(
    "computes on quantized values, whose scales are those of single branches: fuse the float model and "
    "quantize afterwards"
).reason


_REARRANGING = {"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def stores_quantized(node: Node, scope: Scope) -> bool | Refusal:
    """Whether the weight of a Conv, ConvTranspose, Gemm or MatMul is stored quantized.

    Returns:
        False for a weight of floats; a refusal where the node's input or output is quantized, too.
    """
    if not _is_dequantized(node.input[1], scope):
        return False
    behind = (scope.nodes[position].op_type for position in scope.consumers(node.output[0]))
    if _is_dequantized(node.input[0], scope) or any(map(_quantizes, behind)):
        return Refusal(
            "has a quantized weight, and a quantized input or output: fuse the float model and quantize afterwards"
        )
    if scope.constants.follows(node.input[1]) and scope.constants.find(node.input[1]) is None:
        return Refusal("has a quantized weight that ONNX's reference implementation cannot evaluate")
    return True


def _is_dequantized(name: str, scope: Scope) -> bool:
    """Whether a tensor comes out of a DequantizeLinear, perhaps rearranged on the way."""
    position = scope.producer(name)
    while position is not None and scope.nodes[position].op_type in _REARRANGING:
        position = scope.producer(scope.nodes[position].input[0])
    return position is not None and scope.nodes[position].op_type == "DequantizeLinear"


def summarized(scope: Scope, refusals: Sequence[Remark], *, fused: bool) -> list[Remark]:
    """What was left in a graph, where one remark stands for all that quantization is to blame for.

    Args:
        scope: The graph.
        refusals: A remark for each join that was left alone.
        fused: Whether anything was fused in the graph: if so, quantization is told only where it was in the way.
    """
    found = quantizes_values(scope)
    names = {scope.name(position) for position in found}
    others = [remark for remark in refusals if remark.blocker not in names]
    if not found or (fused and len(others) == len(refusals)):
        return list(refusals)
    counts = Counter(scope.nodes[position].op_type for position in found)
    listed = ", ".join(f"{count} {op_type}" for op_type, count in sorted(counts.items()))
    first = scope.name(found[0])
    return [Remark(Outcome.REFUSED, first, f"{_REASON} (there are {listed})", first, scope.label), *others]


def quantizes_values(scope: Scope) -> list[int]:
    """The nodes of a graph that quantize values, or compute on quantized ones."""
    quantizing = set(filter(_quantizes, scope.operators))
    return [
        position
        for position, node in enumerate(scope.nodes)
        if node.op_type in quantizing and scope.constants.find(node.input[0]) is None
    ]


def _quantizes(op_type: str) -> bool:
    return op_type in _QUANTIZING or op_type.startswith("QLinear") or op_type in ("QGemm", "QAttention")
