"""What would be constant if there were a certain number of images, where their number is open.

A region that frames a tensor (see `search.frames`) is then run for a few numbers of images. What it does for these
it does for all of them, if nothing in it, and nothing that computes its extents and places, can tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repfuse.graph.arithmetic import Inputs, UnknownValueError
from repfuse.graph.constants import Constant, Constants
from repfuse.graph.view import Scope
from repfuse.model.nodes import Node
from repfuse.model.shapes import Shape

COUNTS = (1, 2, 3)
"""Numbers of images for which a region with a symbolic one is run."""

_FAR = 2**31 - 1
"""Exporters spell "to the end" of a Slice as this or anything larger."""


class Images:
    """What must hold of a node so that what it does for three numbers of images, it does for all.

    Nothing in a region multiplies or divides by what depends on their number, so extents and places grow with it
    or do not depend on it. Only a Slice up to a certain place does so for small numbers and not for large ones.
    """

    def __init__(self) -> None:
        self._extents: dict[str, tuple[int, ...]] = {}

    def check(self, node: Node, inputs: Inputs) -> None:
        """Check one node, for one number of images.

        Raises:
            UnknownValueError: It does not hold, as far as can be told.
        """
        if node.op_type != "Slice" or inputs[0] is None:
            return
        bounds = [abs(int(i)) for each in inputs[1:3] if each is not None for i in each.reshape(-1)]
        before = self._extents.setdefault(node.output[0], inputs[0].shape)
        if before != inputs[0].shape and any(1 < bound < _FAR for bound in bounds):
            raise UnknownValueError("which images are taken depends on their number")


class Sampled(Constants):
    """What would be constant if there were a certain number of images.

    Only operators are admitted for which each value, and each extent, is a polynomial in that number whose
    coefficients are all of one sign. So an index, which stays below that number, is a constant or the number plus
    a constant, and three numbers show which. Comparing what is negative with what is not, as exporters do to find
    the -1 of an Expand, gives False whatever the number.
    """

    _PURE: Mapping[str, tuple[int, ...]] = {
        "Add": (),
        "Cast": (),
        "Concat": (),
        "ConstantOfShape": (),
        "Equal": (),
        "Expand": (),
        "Gather": (1,),
        "Identity": (),
        "Mul": (),
        "Range": (0, 2),
        "Reshape": (),
        "Shape": (),
        "Slice": (1, 2, 3, 4),
        "Squeeze": (1,),
        "Transpose": (),
        "Unsqueeze": (1,),
        "Where": (),
    }
    """Admitted operators, and those of their operands that must not depend on the number of images."""

    def __init__(self, scope: Scope, symbol: str, count: int, images: Images) -> None:
        vars(self).update(vars(scope.constants))
        self._pure = scope.constants
        self._images = images

        def shape_of(tensor: str) -> Shape | None:
            shape = scope.shape_of(tensor)
            return shape and tuple(count if extent == symbol else extent for extent in shape)

        self._know(shape_of, scope.type_of)

    def _look_up(self, name: str) -> Constant | None:
        return self._pure.find(name) if self._pure.follows(name) else super()._look_up(name)

    def _is_leaf(self, name: str, node: Node) -> bool:
        return self._pure.follows(name) or super()._is_leaf(name, node)

    def _folds(self, node: Node) -> bool:
        pure = self._PURE.get(node.op_type, range(len(node.input)))
        operands = (node.input[slot] for slot in pure if slot < len(node.input))
        return super()._folds(node) and all(self._pure.follows(name) for name in operands if name)

    def _computed(self, node: Node, operands: Inputs) -> NDArray[Any]:
        self._images.check(node, operands)
        given = [each for each in operands if each is not None]
        if not _MONOTONE.get(node.op_type, _always)(given):
            raise UnknownValueError("a place depends on the number of images in a way of its own")
        return super()._computed(node, operands)


def _always(_: list[NDArray[Any]]) -> bool:
    return True


_MONOTONE: Mapping[str, Callable[[list[NDArray[Any]]], bool]] = {
    "Add": lambda given: all(np.all(each >= 0) for each in given),
    "Cast": lambda given: all(each.dtype.kind == "i" for each in given),
    "Equal": lambda given: (
        {bool(np.all(each < 0)) for each in given} == {False, True}
        and any(np.all(each >= 0) for each in given)
    ),
    "Range": lambda given: bool(given[0] >= 0 and given[2] == 1),
}
"""What must hold of the operands that an operator of `Sampled` has."""
