"""An edit that merges nothing, run alone before and after: a function of each element, as HardSwish is."""

from __future__ import annotations

import math

import numpy as np

from repfuse.proof.part import Graph
from repfuse.proof.roundoff import ARITHMETIC, units
from repfuse.remarks import Edit

_WIDE, _SAMPLES, _FAR = 8.0, 2**12 + 1, 1000.0
"""Where both are compared: at so many places from -8 to 8, and far out."""

_EPSILON = 2.0**-23
"""Of float32, of which attributes are."""


def curve_error(edit: Edit, original: Graph, fused: Graph) -> float:
    """The largest error: in units in the last place of the function's one constant that is rounded, 1/6.

    Infinite where either side needs more than the edit's source.
    """
    before, after = (graph.between(frozenset({edit.source}), edit.output) for graph in (original, fused))
    if before is None or after is None:
        return math.inf
    kinds = {values.dtype for side in (before, after) for values in side.constants.values()}
    unit = max([float(np.finfo(kind).eps) for kind in kinds if kind.kind == "f"], default=_EPSILON)
    x = np.concatenate([np.linspace(-_WIDE, _WIDE, _SAMPLES), [-_FAR, _FAR]]).reshape(-1, 1, 1, 1)
    expected, actual = (side.wide().run({edit.source: x})[edit.output] for side in (before, after))
    return units(expected, actual, unit / 2 * np.abs(x) * (np.abs(x) / 6 + 0.5) + ARITHMETIC * _FAR)
