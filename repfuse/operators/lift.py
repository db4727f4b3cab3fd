"""Which operators are linear: a table from operator to the function that lifts one node out of ONNX.

Lifting a node gives a `Lifted`: the tensor it acts on, its window, and a way to its equivalent kernel; or
a `Refusal` that says why the node is not linear. To add an operator, write one function in the
module of its family and one row of `LIFTERS`.

Operators are read as https://onnx.ai/onnx/operators describes them, from opset 7 on; where versions differ in
more than types, the function says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from repfuse.algebra.window import Refusal
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.operators import lift_affine, lift_space, lift_weights
from repfuse.operators.lifted import Lifted

__all__ = ["LIFTERS", "Lifted", "lift"]

Lifter = Callable[[Node, Scope], "Lifted | Refusal"]


def lift(node: Node, scope: Scope) -> Lifted | Refusal:
    """Lift a node, or say why it is not linear."""
    lifter = LIFTERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if lifter is None:
        return Refusal("is not linear")
    if node.refers:
        return Refusal("has attributes that its function's caller sets")
    if any(scope.consumers(name) or name in scope.kept for name in node.output[1:] if name):
        return Refusal("has a second output that is used")
    return lifter(node, scope)


LIFTERS: Mapping[str, Lifter] = {
    "Conv": lift_weights.conv,
    "ConvTranspose": lift_weights.conv_transpose,
    "Gemm": lift_weights.gemm,
    "MatMul": lift_weights.matmul,
    "BatchNormalization": lift_affine.batch_normalization,
    "Add": lift_affine.scale_or_shift,
    "Sub": lift_affine.scale_or_shift,
    "Mul": lift_affine.scale_or_shift,
    "Div": lift_affine.scale_or_shift,
    "Neg": lift_affine.neg,
    "Identity": lift_affine.identity,
    "Cast": lift_affine.cast,
    "Dropout": lift_affine.dropout,
    "LeakyRelu": lift_affine.leaky_relu,
    "PRelu": lift_affine.prelu,
    "Clip": lift_affine.clip,
    "AveragePool": lift_space.average_pool,
    "Pad": lift_space.pad,
    "Slice": lift_space.slice_,
    "Gather": lift_space.gather,
}
