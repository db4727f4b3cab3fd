"""Frames: a tensor with a border around it, however the graph spells that.

DBB pads what it normalizes with the value that normalizing makes of zero (its BNAndPad). Exporters write that as
Pad and four ScatterND, with Slice, Transpose, Reshape and Expand around them: none of these is a convolution, all
of them together are an identity with padding. So they are looked at together. Each of these operators moves
elements and changes none (`graph.moves.DATA`); so if each element of the tensor at the beginning gets a number
of its own, and each element of the constants too, then running the nodes once on the numbers tells for every
element of the result where it comes from. That is no sample: it holds for whatever values there are.

If the result is the tensor in its own order, and around it one constant for each channel, it is a frame. With the
pointwise op before it, whose constant part the border must hold, it is one linear op:

    W (x padded with zeros) + b = (W x + b) framed with b

Extents must be static. The number of images need not be: see `search.sampled`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from repfuse.algebra import kernel, window
from repfuse.algebra.kernel import Array, EquivalentKernel
from repfuse.algebra.window import Axis, Refusal, Window
from repfuse.graph import moves
from repfuse.graph.arithmetic import LARGEST, UnknownValueError
from repfuse.graph.constants import Constant, Constants
from repfuse.graph.operands import FLOATS, values_of
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.operators.lifted import Lifted, moved, op_of
from repfuse.search.sampled import COUNTS, Images, Sampled

_PAINTS = frozenset({"Concat", "ScatterElements", "ScatterND", "Where"})
"""What makes a region worth a look; what has none of these is lifted node by node, if at all."""

_MOST_NODES = 256
"""Nodes of one region."""

_WORK = 2**28
"""Elements looked at in one graph; whatever comes then is refused."""

_ROUNDINGS = 4
"""How many units in the last place of the largest one the constants of border and interior may be apart. Exporters
compute both, in the model's type, from the same statistics: `beta - mean * gamma / sqrt(variance + epsilon)`."""

_UNIT: Mapping[int, float] = {
    TensorProto.FLOAT16: 2.0**-10,
    TensorProto.BFLOAT16: 2.0**-7,
    TensorProto.FLOAT: 2.0**-23,
    TensorProto.DOUBLE: 2.0**-52,
}

Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class _Region:
    """Nodes that move elements of one tensor and of constants.

    Attributes:
        root: The tensor.
        nodes: Their positions, ascending.
    """

    root: str
    nodes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Frame:
    """A tensor with padding or cropping, on each spatial axis, and what the padding holds.

    Attributes:
        axes: Identities that pad or crop.
        border: One value for each channel, float64.
        unit: The relative spacing of the border's type.
    """

    axes: tuple[Axis, ...]
    border: Array
    unit: float

    def agrees(self, other: _Frame) -> bool:
        return self.axes == other.axes and np.array_equal(self.border, other.border)


class Frames:
    """Finds the regions of one graph that frame a tensor.

    Attributes:
        refused: Why nodes that move elements are no part of a frame, by position.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.refused: dict[int, Refusal] = {}
        self._work = _WORK
        self._sampled: dict[str, list[tuple[int, Constants, Images]]] = {}

    def lift(
        self, position: int, lifted: Mapping[int, Lifted], blocked: Mapping[int, Refusal]
    ) -> Lifted | None:
        """Lift the region that ends with a node, together with what it frames.

        Args:
            position: The node.
            lifted: The linear nodes before it.
            blocked: Why others before it are not linear.

        Returns:
            The region as one linear op; None if it is none.
        """
        node = self._scope.nodes[position]
        if not moves.data_slots(node) or not self._ends_at(node):
            return None
        region = self._region(node.output[0], blocked)
        if region is None:
            return None
        frame = self._frame(region, node.output[0])
        found = frame if isinstance(frame, Refusal) else self._lifted(region, frame, lifted)
        if isinstance(found, Refusal):
            self.refused.update(dict.fromkeys(region.nodes, found))
            return None
        return found

    def _ends_at(self, node: Node) -> bool:
        """Whether something else than a region's own nodes uses what a node moves."""
        users = (self._scope.nodes[user] for user in self._scope.consumers(node.output[0]))
        return any(user.op_type != "Shape" and not moves.data_slots(user) for user in users)

    def _region(self, tensor: str, blocked: Mapping[int, Refusal]) -> _Region | None:
        """The nodes that a tensor comes from and that move elements, if those of one tensor only."""
        nodes: set[int] = set()
        roots: set[str] = set()
        pending = [tensor]
        while pending:
            name = pending.pop()
            position = self._scope.producer(name)
            if position in nodes or not name or name in roots:
                continue
            node = self._scope.nodes[position] if position is not None else None
            if node is not None and position is not None and (slots := moves.data_slots(node)):
                nodes.add(position)
                pending += [node.input[slot] for slot in slots if slot < len(node.input)]
            elif not self._scope.constants.follows(name):
                roots.add(name)
            if len(roots) > 1 or len(nodes) > _MOST_NODES:
                return None
        if not roots or not any(self._paints(position, blocked) for position in nodes):
            return None
        return _Region(roots.pop(), tuple(sorted(nodes)))

    def _paints(self, position: int, blocked: Mapping[int, Refusal]) -> bool:
        op_type = self._scope.nodes[position].op_type
        return op_type in _PAINTS or (op_type == "Pad" and position in blocked)

    def _frame(self, region: _Region, tensor: str) -> _Frame | Refusal:
        """What a region makes of its root."""
        shape = self._scope.shape_of(region.root) or ()
        extents = [extent for extent in shape[1:] if isinstance(extent, int)]
        if len(shape) < 3 or len(extents) < len(shape) - 1:
            return Refusal("frames a tensor of unknown extents; export with static extents")
        frames = []
        for count, constants, images in self._samples(shape[0]):
            self._work -= len(region.nodes) * count * math.prod(extents)
            if count * math.prod(extents) > LARGEST or self._work < 0:
                return Refusal(
                    "frames a tensor that is too large to be followed; export with smaller extents"
                )
            try:
                run = _Run(self._scope, constants, images)
                frame = run.frame(region, tensor, (count, *extents))
            except UnknownValueError:
                return Refusal("moves elements to places that cannot be told; export with static extents")
            if isinstance(frame, Refusal):
                return frame
            frames.append(frame)
        if not all(frame.agrees(frames[0]) for frame in frames):
            return Refusal("moves elements in a way that is neither padding nor cropping")
        return frames[0]

    def _samples(self, images: int | str | None) -> list[tuple[int, Constants, Images]]:
        """Numbers of images for which a region is to be run, and what is constant then."""
        if isinstance(images, int):
            return [(images, self._scope.constants, Images())]
        symbol = images or ""
        if symbol not in self._sampled:
            rule = Images()
            self._sampled[symbol] = [
                (count, Sampled(self._scope, symbol, count, rule), rule) for count in COUNTS
            ]
        return self._sampled[symbol]

    def _lifted(self, region: _Region, frame: _Frame, lifted: Mapping[int, Lifted]) -> Lifted | Refusal:
        """The frame, with the op before it where the border holds other than zeros."""
        inside = frozenset(region.nodes)
        if not np.any(frame.border) or not any(axis.padded for axis in frame.axes):
            made = moved(region.root, frame.axes, "pad")
            return replace(made, window=replace(made.window, fixed=True), inside=inside)
        position = self._scope.producer(region.root)
        before = lifted.get(position) if position is not None else None
        border = Refusal(
            "pads with a value that is not what the op before it makes of zero, so its border would differ"
        )
        if position is None or before is None or region.root in self._scope.kept:
            return border
        unpadded = replace(before.window, biased=False)
        composed = window.compose(unpadded, Window(axes=frame.axes))
        if isinstance(composed, Refusal) or composed.shifted:
            return border
        bias = before.kernel().bias
        apart = np.abs(frame.border - bias).max()
        if not apart <= _ROUNDINGS * frame.unit * np.abs(bias).max():
            return border
        geometry = replace(composed, biased=True, fixed=True)
        padding = moved("", frame.axes, "pad")

        def read() -> EquivalentKernel:
            exact = before.kernel()
            linear = EquivalentKernel(unpadded, exact.weight, np.zeros_like(exact.bias))
            weight = kernel.compose(linear, padding.kernel()).weight
            return EquivalentKernel(geometry, weight, exact.bias)

        return replace(
            before,
            window=geometry,
            kernel=read,
            ops=(*before.ops, op_of("pad", padding.window)),
            inside=inside | before.inside | {position},
        )


class _Run:
    """Runs a region on numbers: 0 is padding, from 1 on elements of the root, below 0 elements of constants."""

    def __init__(self, scope: Scope, constants: Constants, images: Images) -> None:
        self._scope = scope
        self._constants = constants
        self._images = images
        self._painted: list[Array] = [np.zeros(1)]
        self._numbered = 1
        self._unit = 0.0

    def frame(self, region: _Region, tensor: str, shape: tuple[int, ...]) -> _Frame | Refusal:
        """What comes out, for a root of a static shape.

        Raises:
            UnknownValueError: It cannot be told.
        """
        root: Numbers = np.arange(1, math.prod(shape) + 1, dtype=np.int32).reshape(shape)
        known: dict[str, Any] = {region.root: root}
        uses = Counter(name for position in region.nodes for name in self._scope.nodes[position].input)
        for position in region.nodes:
            node = self._scope.nodes[position]
            slots = moves.data_slots(node)
            inputs = [self._operand(known, name, slot in slots) for slot, name in enumerate(node.input)]
            for name in node.input:
                uses[name] -= 1
                if not uses[name]:
                    known.pop(name, None)
            self._images.check(node, inputs)
            known[node.output[0]] = moves.evaluate(node, inputs)
        return self._recognized(known[tensor], root)

    def _operand(self, known: dict[str, Any], name: str, is_data: bool) -> Array | None:
        if not name:
            return None
        if name in known and is_data:
            return known[name]  # type: ignore[no-any-return]
        constant = self._constants.find(name)
        if constant is None:
            raise UnknownValueError("a place is computed at run time")
        if is_data:
            known[name] = self._numbers(constant)
            return known[name]  # type: ignore[no-any-return]
        return constant.read()

    def _numbers(self, constant: Constant) -> Numbers:
        if constant.data_type not in FLOATS or constant.size > LARGEST:
            raise UnknownValueError("a constant is of another type, or too large")
        self._unit = max(self._unit, _UNIT[constant.data_type])
        self._painted.append(values_of(constant).astype(np.float64).reshape(-1))
        first, self._numbered = self._numbered, self._numbered + constant.size
        return -np.arange(first, self._numbered, dtype=np.int32).reshape(constant.dims)

    def _recognized(self, numbers: Numbers, root: Numbers) -> _Frame | Refusal:
        other = Refusal("moves elements in a way that is neither padding nor cropping")
        if numbers.ndim != root.ndim or numbers.shape[:2] != root.shape[:2]:
            return other
        inside = numbers > 0
        if not inside.any():
            return other
        first = np.unravel_index(int(inside.argmax()), numbers.shape)
        origin = np.unravel_index(int(numbers[first]) - 1, root.shape)
        begins = [int(a - b) for a, b in zip(first, origin, strict=True)]
        ends = [n - m - b for n, m, b in zip(numbers.shape, root.shape, begins, strict=True)]
        box = tuple(
            slice(max(b, 0), n - max(e, 0)) for b, e, n in zip(begins, ends, numbers.shape, strict=True)
        )
        source = tuple(
            slice(max(-b, 0), m - max(-e, 0)) for b, e, m in zip(begins, ends, root.shape, strict=True)
        )
        if not np.array_equal(numbers[box], root[source]) or np.count_nonzero(inside) != numbers[box].size:
            return other
        border = None if any((*begins[:2], *ends[:2])) else self._border(numbers, box[2:])
        if border is None:
            return other
        axes = tuple(Axis(begin=b, end=e) for b, e in zip(begins[2:], ends[2:], strict=True))
        return _Frame(axes, border, self._unit)

    def _border(self, numbers: Numbers, box: tuple[slice, ...]) -> Array | None:
        """The one value that each channel holds around a box, None if there are several."""
        outside = np.ones(numbers.shape[2:], bool)
        outside[box] = False
        values = np.concatenate(self._painted)[-numbers[:, :, outside]]
        if not values.size:
            return np.zeros(numbers.shape[1])
        border: Array = values[0, :, 0]
        # They differ, too, where one is not a number.
        return border if np.array_equal(values, np.broadcast_to(border[:, None], values.shape)) else None
