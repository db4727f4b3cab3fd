"""How many axes a tensor has, where ONNX's shape inference does not tell.

It gives up on all that follows a Reshape to a computed shape, though that is put together of as many numbers as
there are axes, or a Transpose soon says in its `perm` how many these are. So one looks back to there.
"""

from __future__ import annotations

from collections.abc import Sequence

from repfuse.graph.operands import integers_at
from repfuse.graph.view import Scope

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
        if node.op_type == "Reshape":
            return self._length(node.input[1], depth - 1)
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

    def _length(self, vector: str, depth: int) -> int | None:
        """How many elements a vector has."""
        scope = self._scope
        constant = scope.constants.find(vector)
        position = scope.producer(vector)
        if constant is not None or position is None or depth < 1:
            return constant.size if constant else None
        node = scope.nodes[position]
        if node.op_type == "Shape" and not node.attribute:
            return self.of(node.input[0], depth - 1)
        if node.op_type in ("Cast", "Identity"):
            return self._length(node.input[0], depth - 1)
        if node.op_type == "Concat":
            parts = [self._length(name, depth - 1) for name in node.input]
            known = [part for part in parts if part is not None]
            return sum(known) if len(known) == len(parts) else None
        if node.op_type == "Slice":
            length = self._length(node.input[0], depth - 1)
            starts, ends = (integers_at(node, slot, scope) for slot in (1, 2))
            steps = integers_at(node, 4, scope, [1])
            if length is None or not (starts and ends and steps):
                return None
            return len(range(length)[starts[0] : ends[0] : steps[0]])
        return None

    @staticmethod
    def _broadcast(ranks: Sequence[int | None], matrices: bool) -> int | None:
        known = [rank for rank in ranks if rank is not None]
        if len(known) < len(ranks) or (matrices and min(known) < 2):
            return None
        return max(known)
