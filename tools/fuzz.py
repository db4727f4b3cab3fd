"""Attack the pass: fuse random models, and compare what they compute with what they computed before.

    python tools/fuzz.py --graphs 1000 --seed 0

Every model has a seed of its own, from `--seed` on, so that `--graphs 1 --seed S` draws a failing one again;
with `--save DIR` each failing model is written there, cut down to the part that fails. The tool exits with 1 if
any failed, or if so few models had anything fused that the rest shows nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
import numpy as np
import onnx
import onnxruntime
from fuzz_draw import draw
from fuzz_graph import Case
from fuzz_oracle import Array, evaluate
from fuzz_shrink import shrunk
from onnx import TensorProto, helper

from repfuse import fuse
from repfuse.choice import cost

EPS: dict[int, float] = {
    TensorProto.DOUBLE: 2.0**-52,
    TensorProto.FLOAT: 2.0**-23,
    TensorProto.FLOAT16: 2.0**-10,
    TensorProto.BFLOAT16: 2.0**-7,
}
"""Relative spacing of numbers of a type."""

MARGIN = 30
"""An output may be off by this many eps of the largest value in the model: weights are rounded once more."""

RUNTIME_MARGIN = 300
"""As `MARGIN` on ONNX Runtime, which also rounds each sum, in both models."""

LEAST_FUSED = 0.5
"""The least share of models in which something must be fused."""


class InvalidModelError(Exception):
    """The drawn model itself is not one that ONNX accepts."""


@dataclass(frozen=True)
class Outcome:
    """What came of fusing: whether anything was fused, whether a second run finds more, and what is wrong."""

    changed: bool = False
    again: bool = False
    problem: str = ""


def attack(case: Case) -> Outcome:
    """Fuse a model twice, and compare each result with the original.

    Raises:
        InvalidModelError: The model could not be run before either.
    """
    expected = _original(case)
    before = case.model.SerializeToString(deterministic=True)
    try:
        with warnings.catch_warnings(), _costs(case):
            warnings.simplefilter("error")
            first = fuse(case.model)
            second = fuse(first.model)
    except Exception as error:
        return Outcome(problem=f"crash: {type(error).__name__}: {_line(error)}")
    checks = {
        "the input was changed": before != case.model.SerializeToString(deterministic=True),
        "nothing was fused, yet the model was changed": not first.changed and first.model != case.model,
        "an edit has no remark": len(first.edits) > len(first.remarks),
    }
    problem = next((what for what, holds in checks.items() if holds), "")
    problem = problem or _difference(case, first.model, expected) or _difference(case, second.model, expected)
    return Outcome(first.changed, second.changed and not case.at_any_cost, problem)


def _costs(case: Case) -> contextlib.AbstractContextManager[object]:
    """Make every rewrite pay where the case asks for it: what costs too much must be exact all the same.

    So must a tap apart from its kernel, for which the kernels that are drawn are too small.
    """
    if not case.at_any_cost:
        return contextlib.nullcontext()
    return mock.patch.multiple(
        cost, conv=lambda window: 1.0, UNFUSED=0, _SLOW_CHANNELS=0, _SLOW_WIDTHS=(2, 3), _SUMMED_WIDTH=3
    )


def _original(case: Case) -> list[Array]:
    try:
        _check(case.model)
        return evaluate(case.model, case.feeds)
    except Exception as error:
        raise InvalidModelError(_line(error)) from error


def _check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)


def _difference(case: Case, fused: onnx.ModelProto, expected: list[Array]) -> str:
    try:
        _check(fused)
        actual = evaluate(fused, case.feeds)
    except Exception as error:
        return f"invalid: {_line(error)}"
    dtype = case.model.graph.output[0].type.tensor_type.elem_type
    tolerance = MARGIN * EPS[dtype] * case.scale
    # A merged kernel has zero taps where a branch had none, and zero times infinity is not a number.
    if not all(np.isfinite(each).all() for each in expected):
        return ""
    for entry, a, b in zip(case.model.graph.output, expected, actual, strict=True):
        if a.shape != b.shape:
            return f"mismatch: '{entry.name}' had shape {a.shape} and has {b.shape}"
        with np.errstate(invalid="ignore"):
            if not np.allclose(a, b, rtol=0, atol=tolerance):
                return f"mismatch: '{entry.name}' is off by {np.abs(a - b).max():.2g}; tolerated is {tolerance:.2g}"
    return _runtime_complaint(case, fused, expected) if dtype == TensorProto.FLOAT else ""


def _runtime_complaint(case: Case, fused: onnx.ModelProto, expected: list[Array]) -> str:
    """Why ONNX Runtime does not run the fused model, or what it computes otherwise; empty if nothing."""
    tolerance = RUNTIME_MARGIN * EPS[TensorProto.FLOAT] * case.scale
    before = _run(case.model, case.feeds)
    if isinstance(before, str):
        return ""
    if not all(np.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(expected, before, strict=True)):
        return ""  # it computes the original otherwise than ONNX says
    after = _run(fused, case.feeds)
    if isinstance(after, str):
        return f"ONNX Runtime: {after}"
    for entry, a, b in zip(case.model.graph.output, before, after, strict=True):
        if a.shape != b.shape or (
            np.isfinite(a).all() and not np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
        ):
            return f"mismatch on ONNX Runtime: '{entry.name}'"
    return ""


def _run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array] | str:
    """A model's outputs on ONNX Runtime, or why there are none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Beyond basic, ONNX Runtime 1.32 itself breaks models in which it adds something to a Conv that is an output.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    types = {
        entry.name: helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        for entry in model.graph.input
    }
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        names = [entry.name for entry in session.get_inputs()]
        outputs = session.run(None, {name: feeds[name].astype(types[name]) for name in names})
    except Exception as error:  # each of its errors is a class of its own
        return _line(error) or type(error).__name__
    return [np.asarray(output) for output in outputs]


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]


@click.command()
@click.option("--graphs", default=1000, show_default=True, help="How many models to draw.")
@click.option("--seed", default=0, show_default=True, help="The seed of the first one.")
@click.option("--seconds", type=float, help="Stop after so long, however many are left.")
@click.option("--save", type=click.Path(path_type=Path, file_okay=False), help="Folder for failing models.")
def main(graphs: int, seed: int, seconds: float | None, save: Path | None) -> None:
    """Fuse random models and compare what they compute."""
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + (np.inf if seconds is None else seconds)
    for each in range(seed, seed + graphs):
        if time.monotonic() > deadline:
            break
        case = draw(each)
        try:
            outcome = attack(case)
        except InvalidModelError:
            counts["not accepted by ONNX as drawn"] += 1
            continue
        counts["drawn"] += 1
        counts["fused"] += outcome.changed
        counts["of which a second run finds more"] += outcome.again
        counts["failed"] += bool(outcome.problem)
        if outcome.problem:
            click.echo(f"seed {each}: {outcome.problem}")
            if save:
                save.mkdir(parents=True, exist_ok=True)
                onnx.save(shrunk(case, attack).model, save / f"{each}.onnx")
    for what, count in counts.most_common():
        click.echo(f"{count:6} {what}")
    sys.exit(counts["failed"] > 0 or counts["fused"] < LEAST_FUSED * counts["drawn"])


if __name__ == "__main__":
    main()
