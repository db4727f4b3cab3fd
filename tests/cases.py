"""Rows of the tables of operators: one node, lifted out of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from graphs import Array, Shape, draw, main_scope, model, node
from onnx import ModelProto, NodeProto

from repfuse.algebra.window import Refusal
from repfuse.operators.lift import Lifted, lift

X = "x"
END = 2**63 - 1
NCHW, NCL, NCDHW = (2, 3, 7, 8), (2, 3, 9), (1, 3, 5, 6, 7)
ANY = ("n", 3, "h", "w")
W = draw(4, 3, 3, 3)

Operand = Array | Sequence[int] | str | None


@dataclass(frozen=True)
class Case:
    """A model whose last node is lifted.

    Attributes:
        op: The operator.
        operands: Of the node; `X` is the data, other names are from `before`, `also` or `given`, None is left out.
        shape: Of the data.
        declared: The data's shape as the model declares it, where that says less.
        opset: The operator set.
        ir: The format's version.
        attributes: Of the node.
        outputs: Of the node; the first is the model's output.
        before: Nodes before it.
        also: Further inputs of the model, by name, with their shapes.
        given: Further constants.
        oracles: What can run it: the reference evaluator, ONNX Runtime, or both.
    """

    op: str
    operands: tuple[Operand, ...]
    shape: Sequence[int] = NCHW
    declared: Shape | None = None
    opset: int = 17
    ir: int = 8
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ("y",)
    before: Sequence[NodeProto] = ()
    also: Mapping[str, Shape] = field(default_factory=dict)
    given: Mapping[str, Array] = field(default_factory=dict)
    oracles: str = "reference, runtime"

    def model(self, dtype: type[np.generic] = np.float64) -> ModelProto:
        names = [each if isinstance(each, str) else f"c{i}" for i, each in enumerate(self.operands)]
        names = ["" if each is None else name for each, name in zip(self.operands, names, strict=True)]
        constants: dict[str, Any] = dict(self.given)
        constants |= {
            name: each
            for each, name in zip(self.operands, names, strict=True)
            if each is not None and not isinstance(each, str)
        }
        last = node(self.op, names, list(self.outputs), **self.attributes)
        inputs = {X: self.declared or self.shape, **self.also}
        return model(
            [*self.before, last], inputs, ["y"], constants, opset=self.opset, ir=self.ir, dtype=dtype
        )

    def lift(self) -> Lifted | Refusal:
        scope = main_scope(self.model())
        return lift(scope.nodes[-1], scope)


def row(name: str, op: str, *operands: Operand, **options: Any) -> Any:
    """A row of a table: options are fields of `Case`, all others are attributes of the node."""
    fields = {key: options.pop(key) for key in list(options) if key in Case.__dataclass_fields__}
    return pytest.param(Case(op, operands, attributes=options, **fields), id=f"{op}-{name}")


def refused(name: str, reason: str, op: str, *operands: Operand, **options: Any) -> Any:
    """A row of a table of refusals."""
    case = row(name, op, *operands, **options)
    return pytest.param(*case.values, reason, id=case.id)


def bn(channels: int = 3) -> tuple[Array, Array, Array, Array]:
    """Scale, bias, mean and variance."""
    return draw(channels), draw(channels, seed=1), draw(channels, seed=2), np.abs(draw(channels)) + 0.1


def with_value(array: Array, value: float) -> Array:
    """The array with its first element replaced."""
    changed: Array = array.copy()
    changed.flat[0] = value
    return changed
