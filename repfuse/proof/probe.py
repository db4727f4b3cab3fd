"""A new op with a weight, as the block check sees it: extents and inputs that show each of its taps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from repfuse.proof.part import Array, Part, wide
from repfuse.proof.roundoff import half_ulp, to_the

PLACES = ((0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5), (1.0, 1.0))
"""Where impulses are, as shares of two axes in turn: a corner, two edges, the centre, the corner opposite."""

NOISE = (1.0, 50.0)
"""Deviations of dense noise. What only looks linear near zero does not agree on both."""


@dataclass(frozen=True)
class Probe:
    """A new op with a weight: how it moves over its source, and how its weights were rounded.

    Attributes:
        source: What it reads.
        channels: Of the source.
        group: How many groups it has.
        columns: Taps times channels: how much the reference implementation makes of each element.
        strides: For each axis, as the following are.
        reach: From the first tap to the last, both counted.
        begins: The padding before.
        ends: The padding behind.
        rows: The extents of a source that has its channels last, but for these and the batch.
        part: The node, and what adds its bias, with what was rounded off weight and bias at most in place of
            these.
        shift: What is added to the source first, in the model's own type; zero for nothing.
        weight: Of the node, in the model's own type.
    """

    source: str
    channels: int
    group: int
    columns: int
    strides: Array
    reach: Array
    begins: Array
    ends: Array
    rows: tuple[int, ...]
    part: Part
    shift: Array
    weight: Array

    @staticmethod
    def of(
        chain: Sequence[NodeProto], around: Part, shape_of: Callable[[str], Any], add: NodeProto | None
    ) -> Probe:
        """Read the nodes of `_chain`, and the Add of a shift before it, among the nodes `around` them."""
        node = chain[0]
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = around.constants[node.input[1]]
        rows: tuple[int, ...] = ()
        group = given.get("group", 1)
        if node.op_type in ("MatMul", "ConvTranspose"):  # inputs first
            weight = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
            weight = weight.reshape(-1, *weight.shape[2:])
        if node.op_type == "MatMul":
            rows = tuple(range(2, len(shape_of(node.input[0]) or ())))
        axes = weight.ndim - 2
        begins, ends = np.reshape(given.get("pads", [0] * (2 * axes)), (2, axes))
        strides = np.array(given.get("strides", [1] * axes), int)
        reach = np.array(given.get("dilations", [1] * axes), int) * (np.array(weight.shape[2:], int) - 1) + 1
        if node.op_type == "ConvTranspose":  # measured in positions of its input, each of which has all taps
            reach = -(-reach // strides)
            begins, ends, strides = 0 * begins, 0 * ends, 0 * strides + 1
        return Probe(
            source=add.input[0] if add else node.input[0],
            channels=weight.shape[1] * group,
            group=group,
            columns=math.prod(weight.shape[1:]) * group,
            strides=strides,
            reach=reach,
            begins=begins,
            ends=ends,
            rows=rows,
            part=Part(
                chain,
                {name: half_ulp(around.constants[name]) for each in chain for name in each.input[1:]},
                around.imports,
            ),
            shift=around.constants[add.input[1]] if add else np.zeros(1),
            weight=around.constants[node.input[1]],
        )

    @property
    def output(self) -> str:
        """What it computes."""
        return self.part.nodes[-1].output[0]

    def least_outputs(self) -> Array:
        """How many outputs there must be along each axis so that each tap meets the map's inside and outside."""
        extents = np.maximum(self.begins, self.reach - 1 - self.begins) + 3
        wanted = -(-(extents - self.reach + self.begins + self.ends) // self.strides) + 1  # rounded up
        return np.asarray(np.maximum(wanted, 2))

    def extents(self, outputs: Array, phase: int) -> tuple[int, ...]:
        """Of a source that gives so many outputs, and leaves over what `phase` says, differently on each axis."""
        over = (phase + np.arange(len(outputs))) % self.strides
        whole = (outputs - 1) * self.strides + self.reach - self.begins - self.ends + over
        return tuple(int(extent) for extent in np.maximum(whole, 1))

    def padded(self, shape: tuple[int, ...]) -> int:
        """How many elements a source of that shape has with its padding."""
        pads = self.begins + self.ends
        return math.prod(
            [shape[0], *(extent + int(pad) for extent, pad in zip(shape[1:], pads, strict=True))]
        )

    def inputs(self, shape: tuple[int, ...], random: np.random.Generator) -> Array:
        """Zero, an impulse in each group at each of `PLACES`, and noise, shape `(inputs, *shape)`."""
        shape = (*shape, *self.rows)
        rows = np.zeros((1 + len(PLACES) + len(NOISE), *shape))
        width = self.channels // self.group
        for number, place in enumerate(PLACES):
            position = (int(place[axis % 2] * (extent - 1)) for axis, extent in enumerate(shape[1:]))
            channels = slice(number * width // len(PLACES), None, width)
            where: Any = (1 + number, channels, *position)
            rows[where] = 1
        for number, deviation in enumerate(NOISE):
            rows[-1 - number] = random.normal(0, deviation, shape)
        return np.moveaxis(rows, 1, -1) if self.rows else rows

    def rounding(self, source: Array, power: int) -> Array:
        """The sum, over taps, of the powers of what rounding the weight may change there."""
        return self._run(to_the(power, self.part), np.abs(source + wide(self.shift)) ** power)

    def rounding_of_shift(self, source: Array) -> Array | float:
        """What rounding the shift may change at most: if it does so at each tap, in the padding or not."""
        if not np.any(self.shift):
            return 0.0
        node = self.part.nodes[0]
        constants = {name: np.zeros(self.part.constants[name].shape) for name in node.input[2:]}
        constants[node.input[1]] = abs(wide(self.weight))
        padded = source.shape[2:] + self.begins + self.ends
        rounded_off = np.broadcast_to(half_ulp(self.shift), (*source.shape[:2], *padded))
        return self._run(Part([_unpadded(node)], constants, self.part.imports), rounded_off)

    @staticmethod
    def _run(part: Part, values: Array) -> Array:
        return part.run({part.nodes[0].input[0]: values})[part.nodes[-1].output[0]]


def few(rows: Array) -> Array:
    """Of what `Probe.inputs` makes: zero, all impulses at once, the larger noise."""
    return np.stack([rows[0], rows[1 : 1 + len(PLACES)].sum(axis=0), rows[-1]])


def _unpadded(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    for attribute in list(copy.attribute):
        if attribute.name == "pads":
            copy.attribute.remove(attribute)
    return copy


def chain(node: NodeProto, added: Sequence[NodeProto], around: Part) -> list[NodeProto]:
    """A new node, and that which adds its bias, if another one does."""
    adds = [each for each in added if each.op_type == "Add" and each.input[0] in node.output]
    return [node, *(each for each in adds if each.input[1] in around.constants)]
