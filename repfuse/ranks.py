"""How many axes a tensor has, where ONNX's shape inference does not tell.

It gives up on all that follows a Reshape to a computed shape, though a Transpose soon says in its `perm` how
many axes there are. So one looks back to there.
"""

from __future__ import annotations

from collections.abc import Sequence

from repfuse.view import Scope

_DEPTH = 32
"""Nodes on the way back."""

_SAME = frozenset(
    {"Cast", "Clip", "Dropout", "Identity", "Neg", "Relu", "Sigmoid", "Slice", "Softmax", "Sqrt", "Tanh"}
)
_BROADCASTING = frozenset({"Add", "Div", "MatMul", "Mul", "Pow", "Sub"})
"""What has as many axes as its operand with the most; of MatMul's both have two at least."""


def rank_of(scope: Scope, tensor: str) -> int | None:
    """The number of a tensor's axes, None where it is unknown."""
    return _Ranks(scope).of(tensor, _DEPTH)


class _Ranks:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._known: dict[str, int | None] = {}

    def of(self, tensor: str, depth: int) -> int | None:
        if tensor not in self._known:
            self._known[tensor] = self._find(tensor, depth)
        return self._known[tensor]

    def _find(self, tensor: str, depth: int) -> int | None:
        scope = self._scope
        shape = scope.shape_of(tensor)
        if shape is not None:
            return len(shape)
        position = scope.producer(tensor)
        if position is None or not depth:
            constant = scope.constants.find(tensor)
            return len(constant.dims) if constant else None
        node = scope.nodes[position]
        if node.op_type == "Transpose" and "perm" in node.attributes:
            return len(node.attributes["perm"])
        if node.op_type in _SAME:
            return self.of(node.input[0], depth - 1)
        if node.op_type in ("Squeeze", "Unsqueeze") and "axes" in node.attributes:
            rank = self.of(node.input[0], depth - 1)
            more = len(node.attributes["axes"]) * (1 if node.op_type == "Unsqueeze" else -1)
            return None if rank is None else rank + more
        if node.op_type in _BROADCASTING:
            return self._broadcast(
                [self.of(name, depth - 1) for name in node.input], node.op_type == "MatMul"
            )
        return None

    @staticmethod
    def _broadcast(ranks: Sequence[int | None], matrices: bool) -> int | None:
        known = [rank for rank in ranks if rank is not None]
        if len(known) < len(ranks) or (matrices and min(known) < 2):
            return None
        return max(known)
