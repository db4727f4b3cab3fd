"""Kernels that are kept for groups that overlap: the same numbers as if each were made anew."""

import numpy as np
import pytest
from onnx import numpy_helper
from test_scaling import CONSTANTS, Lines, model_of, parting

from repfuse import fuse
from repfuse.algebra import kernel
from repfuse.choice.merges import Merge
from repfuse.graph.view import scopes
from repfuse.rewriting.derive import derive
from repfuse.rewriting.topology import topology
from repfuse.search.groups import Groups, Operand
from repfuse.search.milestones import Milestone, Milestones, Weight, few


def merge_at(groups: Groups, tensor: str) -> Merge:
    return Merge("x0", (Operand(tensor, 1),), groups.forms(tensor)["x0"].window)


def test_a_kernel_is_the_same_whether_or_not_another_was_made_before() -> None:
    generator = np.random.default_rng(0)
    model = parting(6)
    drawn = generator.normal(size=(4, 4, 1, 1)).astype(np.float32)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(drawn, "k1"))
    (scope,) = scopes(model)
    warm = Groups(scope)
    for block in range(6):
        anew = Groups(scope)
        expected = derive(anew, merge_at(anew, f"a{block}"))
        found = derive(warm, merge_at(warm, f"a{block}"))
        np.testing.assert_array_equal(found.weight, expected.weight)
        assert found.window == expected.window
    assert warm.milestones.find("x0", "x5", path=())
    assert not warm.milestones.find("x0", "x5", path=(1,))


def test_a_weight_that_a_milestone_has_is_counted_once() -> None:
    lines: Lines = [
        ("Conv", ["x0", "k1"], "c"),
        ("Relu", ["c"], "r"),
        ("Mul", ["c", "half"], "m"),
        ("Add", ["c", "m"], "y"),
    ]
    (scope,) = scopes(model_of(lines, {**CONSTANTS, "half": np.full(1, 0.5)}))
    groups = Groups(scope)
    first, again = (derive(groups, merge_at(groups, "y")) for _ in range(2))
    assert first.window == again.window
    np.testing.assert_array_equal(first.weight, again.weight)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_each_type_two_weights_are_told(count: int) -> None:
    weights = frozenset(Weight(kind, False, position) for kind in (1, 10) for position in range(count))
    assert len(few(weights)) == 2 * min(count, 2)
    assert few(weights) <= weights


def test_the_latest_small_ones_are_kept() -> None:
    kept = Milestones()
    small = Milestone(kernel.identity(), frozenset())
    for number in range(100):
        kept.keep("x", str(number), small, path=())
    assert kept.find("x", "99", path=()) is small
    assert kept.find("x", "0", path=()) is None
    large = Milestone(kernel.affine(np.ones(2**17), np.zeros(2**17)), frozenset())
    kept.keep("x", "large", large, path=())
    assert kept.find("x", "large", path=()) is None


@pytest.mark.parametrize("joined", [False, True])
def test_a_long_branch_is_described_by_its_last_ops(joined: bool) -> None:
    lines: Lines = [("Conv", [f"x{i}", "k1"], f"x{i + 1}") for i in range(500)]
    lines += [("Add", ["x500", "x0"], "y")] if joined else []
    (scope,) = scopes(model_of(lines, CONSTANTS))
    groups = Groups(scope)
    spelled = topology(groups, merge_at(groups, "y" if joined else "x500"))
    assert max(map(len, spelled.branches)) < 150
    assert fuse(model_of(lines, CONSTANTS)).changed
