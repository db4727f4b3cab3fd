"""Deriving a group's kernel: from the chosen structure to numbers, in float64, rounded once at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import helper

from repfuse.algebra import kernel
from repfuse.algebra.kernel import Array, EquivalentKernel
from repfuse.algebra.window import Layout, Refusal, Window
from repfuse.choice import cost
from repfuse.choice.merges import Behind, Merge
from repfuse.choice.spread import window_of
from repfuse.search.groups import Groups
from repfuse.search.milestones import Milestone, Weight, Weights, few

_NEGATIVE = kernel.affine(-np.ones(1), np.zeros(1))

UNDERFLOWS = Refusal("would lose precision in float16")
NOT_FINITE = Refusal("has a weight that is infinite or not a number")


@dataclass(frozen=True)
class Derived:
    """A Conv's parameters in the model's own type.

    Attributes:
        window: Its geometry, without negative padding.
        weight: Shape `(C_out, C_in / group, *kernel)`; `(C_in, C_out / group, *kernel)` for MatMul and
            ConvTranspose.
        bias: Shape `(C_out,)`; None where it is zero, but for Gemm.
        shift: What must be added to the input first; a scalar, or shape `(C_in, 1, ...)`. None for nothing.
        grown: Whether a weight among those merged was stored quantized.
        tap: Shape `(C_out, 1, 1, 1)`: a Conv of its own over the same input, whose result is added. Where it is not
            None, the tap of `weight` that reads what is at the place of the output is zero.
    """

    window: Window
    weight: Array
    bias: Array | None
    shift: Array | None
    grown: bool = False
    tap: Array | None = None


def derive(groups: Groups, merge: Merge, *, apart: bool = True) -> Derived | Refusal:
    """Compute the one Conv that a merge amounts to; `apart`: with a tap apart from it where that is faster."""
    reader = _Reader(groups, merge)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        try:
            exact = [reader.merged(merge)]
        except _BordersDifferError:
            return Refusal("pads with zeros tensors of different shifts, so its border would differ")
    weights = reader.weights(merge)
    if len({each.data_type for each in weights}) != 1:
        return Refusal("mixes weights of different types")
    data_type = next(iter(weights)).data_type
    # A weight that is alone is left as it is.
    summed = cost.summed(exact[0].window) if apart and len(weights) > 1 else None
    if summed:
        exact = [kernel.embedded(exact.pop(), summed)]
    grown = any(each.quantized for each in weights)
    if grown and len(weights) == 1:
        return Refusal(
            "would hold floats in place of a quantized weight, with no other weight merged into it"
        )
    del reader  # what it read may be as large as what it made
    rounded = _rounded(exact.pop(), data_type)
    if isinstance(rounded, Refusal):
        return rounded
    return replace(_parted(rounded) if summed else rounded, grown=grown)


def _parted(whole: Derived) -> Derived:
    """Take the tap that reads what is at the place of the output out of a Conv."""
    place: Any = (..., *(slice(at := axis.begin // axis.dilation, at + 1) for axis in whole.window.axes))
    tap, weight = whole.weight[place].copy(), whole.weight.copy()
    weight[place] = 0
    return replace(whole, weight=weight, tap=tap)


class _BordersDifferError(Exception):
    """Branches find different values outside their source."""


class _Reader:
    """Walks from a tensor back to its source, composing what it meets; shared tensors are read once."""

    def __init__(self, groups: Groups, merge: Merge) -> None:
        self._groups = groups
        source = self._source = merge.source
        self._path = merge.path
        self._known: dict[str, EquivalentKernel] = {source: kernel.identity()}
        self._weights: dict[str, Weights] = {source: frozenset()}

    def weights(self, merge: Merge) -> Weights:
        """The weights on the ways to a merge's terms, which were read."""
        return few(frozenset[Weight]().union(*(self._weights[term.tensor] for term in merge.terms)))

    def merged(self, merge: Merge) -> EquivalentKernel:
        """The sum of a merge's terms."""
        branches = [_signed(self.kernel_of(term.tensor), term.sign) for term in merge.terms]
        join = self.stack if merge.stacked else self.sum
        total = branches[0] if len(branches) == 1 else join(branches)
        total = kernel.placed(total, merge.window) if merge.path else total
        for step in merge.tail:
            total = kernel.compose(total, self._behind(step))
        return kernel.trimmed(kernel.emittable(total))

    def _behind(self, step: Behind) -> EquivalentKernel:
        """A scale behind a join, as it acts on one operand."""
        if step.position is None:
            return _NEGATIVE
        whole = self._groups.lifted[step.position].kernel()
        rows = slice(*step.rows) if step.rows and whole.window.channels else slice(None)
        bias = whole.bias[rows] * step.shifts
        return EquivalentKernel(window_of(self._groups, step), whole.weight[rows], bias)

    def kernel_of(self, tensor: str) -> EquivalentKernel:
        """The equivalent kernel from the source to `tensor`, which must have a form over that source."""
        pending = [tensor]
        while pending:
            current = pending[-1]
            position = self._groups.scope.producer(current)
            assert position is not None or current in self._known
            inputs = () if position is None else self._inputs(position)
            missing = [name for name in inputs if name not in self._known]
            if self._is_known(current):
                pending.pop()
            elif missing:
                pending += missing
            else:
                assert position is not None
                self._read(current, position, inputs)
                pending.pop()
        return self._known[tensor]

    def _is_known(self, tensor: str) -> bool:
        """Whether a tensor was read, now or for a group before this one."""
        if tensor not in self._known:
            found = self._groups.milestones.find(self._source, tensor, path=self._path)
            if found is None:
                return False
            self._known[tensor], self._weights[tensor] = found.kernel, found.weights
        return True

    def _read(self, tensor: str, position: int, inputs: Sequence[str]) -> None:
        weights = frozenset[Weight]().union(*(self._weights[name] for name in inputs))
        lifted = self._groups.op(tensor)
        if lifted and lifted.weight_type:
            weights |= {Weight(lifted.weight_type, lifted.quantized, position)}
        self._known[tensor], self._weights[tensor] = self._apply(tensor, position), few(weights)
        if len(self._groups.scope.consumers(tensor)) > 1:
            found = Milestone(self._known[tensor], self._weights[tensor])
            self._groups.milestones.keep(self._source, tensor, found, path=self._path)

    def _inputs(self, position: int) -> tuple[str, ...]:
        if position in self._groups.joins:  # all of a tree of joins at once: each sum is an array as large
            return tuple(operand.tensor for operand in self._groups.flattened(position)[0])
        return self._groups.data_inputs(position)

    def sum(self, branches: Sequence[EquivalentKernel]) -> EquivalentKernel:
        """Add up branches, whose windows are known to have a sum."""
        window = self._groups.sum([branch.window for branch in branches], self._source)
        # Sums that nest may have been found pair by pair, and not all at once.
        if isinstance(window, Refusal) or kernel.common_outside(branches) is None:
            raise _BordersDifferError
        return kernel.add(branches, window)

    def stack(self, branches: Sequence[EquivalentKernel]) -> EquivalentKernel:
        """Put branches' outputs one behind the other; their windows are known to fit."""
        window = self._groups.stack([branch.window for branch in branches], self._source)
        if isinstance(window, Refusal) or kernel.common_outside(branches) is None:
            raise _BordersDifferError
        return kernel.stack(branches, window)

    def _apply(self, tensor: str, position: int) -> EquivalentKernel:
        if position in self._path or position in self._groups.carries:
            return self._known[self._groups.passed[position].source]
        if position in self._groups.stacks:
            return self.stack([self._known[name] for name in self._groups.stacks[position]])
        lifted = self._groups.op(tensor)
        if lifted is None:
            operands, _ = self._groups.flattened(position)
            branches = [_signed(self._known[operand.tensor], operand.sign) for operand in operands]
            return self.sum(branches)
        before = self._known[lifted.source]
        behind = lifted.kernel()
        if self._path:  # where its channels lie differs from one side of a carrying op to the other
            behind = kernel.unplaced(behind)
        # The bare source needs no arithmetic, so a Conv's weight is not copied for it.
        return behind if before is self._known[self._source] else kernel.compose(before, behind)


def _signed(branch: EquivalentKernel, sign: int) -> EquivalentKernel:
    return branch if sign > 0 else kernel.compose(branch, _NEGATIVE)


def _rounded(exact: EquivalentKernel, data_type: int) -> Derived | Refusal:
    """Round a kernel to a model's type, once."""
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    if not np.isfinite(exact.outside).all():
        return Refusal(
            "is padded where a channel was multiplied by zero and shifted, so its border would differ"
        )
    with np.errstate(over="ignore"):
        outside = exact.outside.astype(dtype)
    shift = _shift(outside, len(exact.window.axes))
    with np.errstate(all="ignore"):
        exact = kernel.zero_padded(exact, outside.astype(np.float64))
    window = exact.window
    # Before version 11, Gemm has no optional operand.
    biased = bool(exact.bias.any()) or window.layout is Layout.FLAT
    if not np.isfinite(outside).all():
        return Refusal(f"would overflow {np.dtype(dtype).name}")
    with np.errstate(all="ignore"):
        weight, bias = (array.astype(dtype) for array in (exact.weight, exact.bias))
    if not all(np.isfinite(array).all() for array in (weight, bias)):
        if all(np.isfinite(array).all() for array in (exact.weight, exact.bias)):
            return Refusal(f"would overflow {np.dtype(dtype).name}")
        return NOT_FINITE
    if dtype == np.float16 and _underflows(exact, weight):
        return UNDERFLOWS
    del exact
    if window.layout is Layout.LAST or window.output_padding is not None:
        weight = kernel.outputs_first(weight, window.group)
    return Derived(window, weight, bias if biased else None, shift)


def _underflows(exact: EquivalentKernel, weight: Array) -> bool:
    """Whether rounding moves an output farther than it does where all weights are normal numbers of their type.

    Each output channel by itself: what rounding changed, as a norm over the taps, against twice what it can change
    there, and the spacing of the smallest numbers, to which the branches' outputs are rounded as well.
    """
    limits = np.finfo(weight.dtype)
    lost, size = (
        np.linalg.norm(array.reshape(len(array), -1), axis=1)
        for array in (exact.weight - weight, exact.weight)
    )
    allowed = float(limits.eps) * np.hypot(size, exact.bias) + float(limits.smallest_subnormal)
    return bool(np.any(lost > allowed))


def _shift(outside: Array, rank: int) -> Array | None:
    """What to add to a tensor so that zero takes the place of its outside value."""
    if not outside.any():
        return None
    if (outside == outside[0]).all():
        return np.asarray(-outside[:1])
    return np.asarray(-outside.reshape(-1, *(1,) * rank))
