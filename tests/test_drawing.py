"""Where boxes and lines of a group stand."""

import itertools

import pytest

from repfuse.reporting.anatomy import Branch, Op
from repfuse.reporting.drawing import Drawing, alike, draw, shortened


def chain(source: str, *ops: str) -> Branch:
    """`Conv 1x1` is an op and its words."""
    return Branch(source, tuple(map(op, ops)), (), frozenset())


def op(text: str) -> Op:
    kind, _, words = text.partition(" ")
    return Op(kind, f"{kind} '/{kind}'", words)


def joined(*parts: Branch, ops: tuple[str, ...] = ("Add",)) -> Branch:
    return Branch("", tuple(map(op, ops)), parts, frozenset())


REPVGG = joined(chain("x", "Conv 3x3"), chain("x", "Conv 1x1"), chain("x", "BatchNormalization"))
NESTED = joined(joined(chain("x", "Conv 3x3"), chain("x", "Conv 1x1")), chain("x", "BatchNormalization"))
RESIDUAL = joined(chain("x", "Conv 1x1", "Conv 3x3"), chain("x"))
TWO_SOURCES = joined(chain("x", "Conv 3x3"), chain("z", "Conv 1x1"))
MANY = joined(*(chain("x", "Conv 3x3") for _ in range(4)), chain("x", "Conv 1x1"))
BEHIND = joined(joined(chain("x", "Conv 3x3"), chain("x", "Conv 1x1"), ops=("Add", "Relu")), chain("x"))
ALL = {
    "repvgg": REPVGG,
    "nested": NESTED,
    "residual": RESIDUAL,
    "sources": TWO_SOURCES,
    "many": MANY,
    "behind": BEHIND,
    "chain": chain("x", "Conv 1x1", "BatchNormalization"),
}


def places(drawing: Drawing) -> dict[str, tuple[float, int]]:
    return {f"{box.title} {box.words}".strip(): (box.column, box.row) for box in drawing.boxes}


def test_branches_stand_side_by_side_below_their_source_and_above_their_join() -> None:
    assert places(draw(REPVGG)) == {
        "x": (1, 0),
        "Conv 3x3": (0, 1),
        "Conv 1x1": (1, 1),
        "BatchNormalization": (2, 1),
        "Add": (1, 2),
    }


def test_a_sum_of_sums_is_one_sum() -> None:
    assert draw(NESTED) == draw(REPVGG)


def test_a_bare_source_runs_down_a_column_of_its_own() -> None:
    drawing = draw(RESIDUAL)
    (bare,) = (line for line in drawing.lines if line.start[1] == 0 and line.end == (0.5, 3))
    assert bare.column == 1
    assert places(drawing)["Add"] == (0.5, 3)


def test_branches_that_are_alike_are_drawn_once_with_their_number() -> None:
    drawing = draw(MANY)
    assert places(drawing).keys() == {"x", "Conv 3x3", "Conv 1x1", "Add"}
    assert sorted(line.count for line in drawing.lines) == [1, 1, 1, 4]


def test_an_op_behind_an_inner_join_keeps_it_apart() -> None:
    assert [box.title for box in draw(BEHIND).boxes].count("Add") == 2


@pytest.mark.parametrize("name", ALL)
def test_nothing_overlaps_and_lines_run_downwards(name: str) -> None:
    drawing = draw(ALL[name])
    for one, other in itertools.combinations(drawing.boxes, 2):
        assert one.row != other.row or abs(one.column - other.column) >= 1
    ends = {(box.column, box.row) for box in drawing.boxes}
    for line in drawing.lines:
        assert {line.start, line.end} <= ends
        assert line.start[1] < line.end[1]
        between = {row for column, row in ends if column == line.column}
        assert not between & set(range(int(line.start[1]) + 1, int(line.end[1])))
    assert all(0 <= box.column < drawing.columns and box.row < drawing.rows for box in drawing.boxes)


def test_groups_look_alike_whatever_they_are_called() -> None:
    assert alike(REPVGG) == alike(NESTED)
    assert alike(chain("x", "Conv 1x1")) == alike(chain("y", "Conv 1x1"))
    assert alike(chain("x", "Conv 1x1")) != alike(chain("x", "Conv 3x3"))


def test_names_keep_their_ends() -> None:
    assert shortened("/stage/block/Add", 20) == "/stage/block/Add"
    assert shortened("/stage/block/Add_output_0", 10) == "…_output_0"
