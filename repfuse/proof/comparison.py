"""How far apart two models' outputs are, and what that distance means.

Every figure of an output is a share of the largest absolute value that the original gives there, over all inputs:

    error        max |before - after|
    noise floor  max |before - before| between optimization levels and backends: what rounding alone does
    movement     max |before(x1) - before(x2)| between inputs: how much there is to see

Where what is tolerated comes near the movement (the output hardly reacts to the input, or rounding alone
moves it as much), a wrong model passes as well: such a check is called vacuous. Where outputs are no floats,
each figure is the share of elements that differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repfuse.runtimes.backends import Array

NOISE_MARGIN = 10
"""The tolerance is this many noise floors: sound merges differ by one or two, wrong ones by thousands."""

LEAST_EPS = 8
"""The tolerance is never below this many eps of the output's type: small models may show no noise at all."""

VACUOUS = 10
"""An output must move by this many tolerances, or the check says little."""

Results = list[dict[str, Array]]
"""Outputs by name, for each feed."""


@dataclass(frozen=True)
class OutputCheck:
    """One output on one backend. All figures are shares of the output's largest absolute value.

    Attributes:
        backend: The backend's title.
        output: The output's name in the original.
        error: How far the models differ, which is also the smallest tolerance that passes; infinite if there
            is a problem.
        noise_floor: How far the original differs from itself across optimization levels and backends.
        movement: How far the original's output moves between the inputs.
        tolerance: The largest error that passes.
        elements: How many values were compared, in one run of all inputs.
        problem: Why no error can be computed: a name, shape, dtype or a NaN that differs. Else empty.
    """

    backend: str
    output: str
    error: float
    noise_floor: float
    movement: float
    tolerance: float
    elements: int = 1
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the output is the same in both models."""
        return not self.problem and self.error <= self.tolerance

    @property
    def error_of_movement(self) -> float:
        """The error as a share of the movement: what sound merges keep below 1.3e-4."""
        return 0.0 if self.error == 0 else self.error / self.movement if self.movement else math.inf

    @property
    def vacuous(self) -> bool:
        """Whether the output moves so little that passing says little."""
        return self.movement <= VACUOUS * self.tolerance

    @property
    def message(self) -> str:
        """What there is to say about this check, as a sentence; empty if it passed and shows something."""
        where = f"{self.backend}: output '{self.output}'"
        if self.problem:
            return f"{where} {self.problem}"
        if not self.passed:
            return (
                f"{where} differs by {self.error:.2g} of its largest value, tolerated is {self.tolerance:.2g}"
                f" (noise floor {self.noise_floor:.2g}), and it would pass with --rtol {_above(self.error)}"
            )
        if not self.elements:
            return (
                f"{where} is empty for these inputs, so there is nothing to compare; give inputs of your own"
            )
        if self.vacuous:
            return (
                f"{where} moves by {self.movement:.2g} between inputs, and {self.tolerance:.2g} is tolerated "
                f"(noise floor {self.noise_floor:.2g}): a wrong model could pass; give inputs of your own "
                "with --input-data"
            )
        return ""


def noise_floors(runs: Sequence[Results]) -> dict[str, float]:
    """How far runs of one model differ, by output; runs that cannot be compared do not count."""
    floors: dict[str, float] = {}
    for one, other in itertools.combinations(runs, 2):
        for name in set(_names(one)) & set(_names(other)):
            mine, theirs = _of(one, name), _of(other, name)
            if not _problem(mine, theirs):
                floors[name] = max(floors.get(name, 0.0), _error(mine, theirs))
    return floors


def compare(
    backend: str, before: Results, after: Results, noise: Mapping[str, float], rtol: float | None
) -> list[OutputCheck]:
    """Check every output of a model against the original's, in their order."""
    checks = []
    for index, (name, found) in enumerate(itertools.zip_longest(_names(before), _names(after))):
        if name != found:
            checks.append(_misnamed(backend, index, name, found))
            continue
        mine, theirs = _of(before, name), _of(after, name)
        floor = noise.get(name, 0.0)
        problem = _problem(mine, theirs)
        checks.append(
            OutputCheck(
                backend,
                name,
                error=math.inf if problem else _error(mine, theirs),
                noise_floor=floor,
                movement=_movement(mine),
                tolerance=_tolerance(mine[0].dtype, floor) if rtol is None else rtol,
                elements=sum(output.size for output in mine),
                problem=problem,
            )
        )
    return checks


def _misnamed(backend: str, index: int, name: str | None, found: str | None) -> OutputCheck:
    there = f"is called '{found}' in the fused model" if found else "is missing in the fused model"
    problem = f"(number {index}) {there}" if name else "is no output of the original"
    return OutputCheck(backend, name or found or "", math.inf, 0.0, 0.0, 0.0, problem=problem)


def _names(results: Results) -> list[str]:
    """The outputs that there are for any feed: a sequence may be longer for one than for another."""
    return list(dict.fromkeys(name for outputs in results for name in outputs))


def _of(results: Results, name: str) -> list[Array]:
    kind = next(outputs[name].dtype for outputs in results if name in outputs)
    return [outputs.get(name, np.zeros(0, kind)) for outputs in results]


def _tolerance(dtype: np.dtype[Any], noise_floor: float) -> float:
    return max(LEAST_EPS * _eps(dtype), NOISE_MARGIN * noise_floor)


def _eps(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next number of a float type, 0 for other types."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).eps)
    if "float" in dtype.name:
        import ml_dtypes  # noqa: PLC0415  (comes with onnx; only its types get here)

        return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    return 0.0


def _problem(before: Sequence[Array], after: Sequence[Array]) -> str:
    """What makes two runs of an output incomparable, as the end of a sentence; empty if nothing does."""
    for mine, theirs in zip(before, after, strict=True):
        if mine.dtype != theirs.dtype:
            return f"is {theirs.dtype.name}, where the original gives {mine.dtype.name}"
        if mine.shape != theirs.shape:
            return f"has the shape {list(theirs.shape)}, where the original gives {list(mine.shape)}"
        if _is_float(mine) and not np.array_equal(_not_finite(mine), _not_finite(theirs), equal_nan=True):
            return "has NaN or infinity at other places than the original"
    if _scale(before) == 0 and _scale(after) > 0:
        return "is not zero, where the original gives nothing but zeros"
    return ""


def _error(before: Sequence[Array], after: Sequence[Array]) -> float:
    """How far two comparable runs of an output differ."""
    return _share(max(map(_apart, before, after)), _scale(before))


def _movement(outputs: Sequence[Array]) -> float:
    """How far an output moves between feeds; one that changes its shape moves wholly."""
    if len({output.shape for output in outputs}) > 1:
        return 1.0
    return _share(max(_apart(*pair) for pair in itertools.combinations(outputs, 2)), _scale(outputs))


def _apart(one: Array, other: Array) -> float:
    """The largest difference between finite floats; for other types the share of elements that differ."""
    if _is_float(one):
        return _largest(one.astype(np.float64) - other.astype(np.float64))
    return float(np.mean(one != other)) if one.size else 0.0


def _scale(outputs: Sequence[Array]) -> float:
    """What a difference is a share of: the largest absolute value, or 1 where they are shares already."""
    return max(_largest(output.astype(np.float64)) for output in outputs) if _is_float(outputs[0]) else 1.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _largest(values: npt.NDArray[np.float64]) -> float:
    """The largest absolute value, leaving out what is not finite."""
    return float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0))


def _not_finite(array: Array) -> npt.NDArray[np.float64]:
    """NaN and the infinities where they stand, zero elsewhere."""
    wide = array.astype(np.float64)
    return np.where(np.isfinite(wide), 0.0, wide)


def _is_float(array: Array) -> bool:
    return "float" in array.dtype.name


def _above(error: float) -> str:
    """Round up to two digits, so that what is printed passes."""
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    return f"{math.ceil(error / unit) * unit:.2g}"
