"""What is no group of branches and stays: linear sequences, and joins of what follows from different tensors.

Each has a remark that says why, and what merging would have saved.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from nets import Net
from proof import prove

from repfuse import FuseResult, Outcome, Remark, fuse


def kept(result: FuseResult) -> list[Remark]:
    return [remark for remark in result.remarks if remark.outcome is Outcome.KEPT]


@dataclass(frozen=True)
class Row:
    """A network of which something stays.

    Attributes:
        title: What of it.
        build: Gives the outputs.
        blocker: The type of the node to blame; empty where it is none.
        message: A pattern that the message matches.
        saving: Between which shares what merging would save lies; None if nothing can be said.
    """

    title: str
    build: Callable[[Net, str], tuple[str, ...]]
    blocker: str
    message: str
    saving: tuple[float, float] | None


def table(*rows: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.title)


def depthwise(n: Net, x: str, kernel: int = 3, **options: bool) -> str:
    return n.conv(x, kernel, group=n.channels, **options)


def pointwise(n: Net, x: str, inputs: int, outputs: int, *, bias: bool = True) -> str:
    return n.conv(x, 1, channels=(inputs, outputs), bias=bias)


def _row(*makers: Callable[[Net, str], str]) -> Callable[[Net, str], tuple[str, ...]]:
    """Ops one behind the other."""

    def build(n: Net, x: str) -> tuple[str, ...]:
        for make in makers:
            x = make(n, x)
        return (x,)

    return build


def _used_twice(n: Net, x: str) -> tuple[str, ...]:
    middle = pointwise(n, x, 16, 12)
    return n.node("Relu", middle), pointwise(n, middle, 12, 16)


def _used_by_the_caller(n: Net, x: str) -> tuple[str, ...]:
    middle = pointwise(n, x, 16, 12)
    return middle, pointwise(n, middle, 12, 16)


def _part_of_it_is_used_twice(n: Net, x: str) -> tuple[str, ...]:
    middle = pointwise(n, x, 16, 24)
    first = n.node("Split", middle, n.integers(12, 12), axis=1, outputs=2)
    return n.node("Relu", f"{first}_1"), pointwise(n, first, 12, 16)


ROWS = (
    Row(
        "a 1x1 with a bias, then a padded 3x3",
        _row(lambda n, x: pointwise(n, x, 16, 64), lambda n, x: n.conv(x, 3, channels=(64, 8))),
        "Conv",
        "linearly: Conv 'conv_2' pads with zeros a tensor to which a shift was added, so its border",
        (0.5, 0.9),
    ),
    Row(
        "a padded 3x3, then a padded 3x3",
        _row(lambda n, x: n.conv(x), lambda n, x: n.conv(x)),
        "Conv",
        "follows Conv 'conv_1' linearly: Conv 'conv_2' pads with zeros what an op before it computes",
        (-0.5, -0.2),
    ),
    Row(
        "a depthwise 3x3, then a 1x1",
        _row(depthwise, lambda n, x: pointwise(n, x, 16, 16)),
        "",
        "linearly: would not pay: 3x3 16->16, depthwise then 1x1 16->16 would become 3x3 16->16$",
        (-5, -2),
    ),
    Row(
        "a linear bottleneck",
        _row(lambda n, x: pointwise(n, x, 16, 2), lambda n, x: pointwise(n, x, 2, 16)),
        "",
        "linearly: would not pay: 1x1 16->2 then 1x1 2->16 would become 1x1 16->16$",
        (-2, -1),
    ),
    Row(
        "many Convs in a row are told of once",
        _row(*[lambda n, x: depthwise(n, x, bias=False), lambda n, x: pointwise(n, x, 16, 16)] * 3),
        "Conv",
        "follows Conv 'conv_1' linearly: Conv 'conv_3' pads",
        (-50, -5),
    ),
    Row(
        "a tensor between them has another user",
        _used_twice,
        "Relu",
        "linearly: would add work: 'conv_1' must stay, since Relu 'relu_2' uses it as well",
        (0.2, 0.7),
    ),
    Row(
        "a tensor between them is an output",
        _used_by_the_caller,
        "",
        "linearly: would add work: 'conv_1' must stay, since the graph's caller or a subgraph uses it",
        (0.2, 0.7),
    ),
    Row(
        "a part of a tensor between them has another user",
        _part_of_it_is_used_twice,
        "Relu",
        "linearly: would add work: 'split_2_1' must stay",
        (0.2, 0.7),
    ),
    Row(
        "an op that averages elements, and kernels with taps on both sides",
        _row(
            lambda n, x: n.conv(x),
            lambda n, x: n.node("GlobalAveragePool", x),
            lambda n, x: n.conv(x),
        ),
        "GlobalAveragePool",
        "linearly: GlobalAveragePool 'globalaveragepool_2' moves or averages elements",
        None,
    ),
    Row(
        "one Conv, and an AveragePool whose border would differ",
        _row(lambda n, x: n.conv(x), lambda n, x: n.average(x)),
        "AveragePool",
        "linearly: AveragePool 'averagepool_2' pads with zeros what an op before it",
        (-5, 0.5),
    ),
    Row(
        "a normalization before a padded Conv, whose shift would stay",
        _row(lambda n, x: n.bn(x), lambda n, x: n.conv(x)),
        "",
        "follows BatchNormalization .* linearly: would not pay: a shift would stay, since the border",
        (-0.1, 0.005),
    ),
    Row(
        "what a group became, then a padded Conv",
        _row(
            lambda n, x: n.add(n.conv(x), n.conv(x, 1)),
            lambda n, x: n.conv(x),
        ),
        "Conv",
        "follows the Conv in place of Add 'add_3' linearly: Conv 'conv_4' pads with zeros",
        (-0.5, -0.2),
    ),
    Row(
        "a sum of two inputs' Convs",
        lambda n, x: (n.add(n.conv(x), n.conv(n.input("z", 16, (7, 6)))),),
        "",
        "its operands follow from different tensors, those of 'x', 'z'$",
        None,
    ),
    Row(
        "a sum of what many nodes make",
        lambda n, x: (
            n.node("Sum", n.conv(x), *(n.node("Relu", n.input(f"z{i}", 16, (7, 6))) for i in range(4))),
        ),
        "Relu",
        "those of 'x', Relu 'relu_2', Relu 'relu_3' and 2 more$",
        None,
    ),
    Row(
        "what is left of a sum",
        lambda n, x: (n.add(n.conv(x), n.conv(x, 1), n.node("Relu", n.input("z", 16, (7, 6)))),),
        "Relu",
        "^merged in part only: its operands follow from different tensors, those of 'x', Relu 'relu_3'$",
        None,
    ),
    Row(
        "what is left of a sum before a scale",
        lambda n, x: (n.bn(n.add(n.conv(x), n.conv(n.input("z", 16, (7, 6))))),),
        "",
        "^merged in part only: its operands follow from different tensors, those of 'x', 'z'$",
        None,
    ),
    Row(
        "a Concat of two inputs' Convs",
        lambda n, x: (n.node("Concat", n.conv(x), n.conv(n.input("z", 16, (7, 6))), axis=1),),
        "",
        "^its operands follow from different tensors, those of 'x', 'z'$",
        None,
    ),
    Row(
        "a Concat of a 1x1 and a depthwise Conv",
        lambda n, x: (n.node("Concat", n.conv(x, 1), n.node("Relu", x), n.conv(x, 1), depthwise(n, x, 7), axis=1),),
        "",
        "^would not pay: 1 \\+ 49 taps would become 49, group 1$",
        (-20, -5),
    ),
    Row(
        "a Concat of Convs of different strides",
        lambda n, x: (n.node("Concat", n.conv(x, stride=2), n.conv(x, 6, pads=[1] * 4), axis=1),),
        "",
        "^cannot be merged: its branches have strides",
        None,
    ),
    Row(
        "a Concat of a Conv and what an activation ends",
        lambda n, x: (n.node("Concat", n.conv(x), n.conv(n.node("Relu", x)), axis=1),),
        "Relu",
        "^Relu 'relu_2' is not linear; it stands between a branch and the join$",
        None,
    ),
    Row(
        "a Concat of a tensor and another one's Conv, of which some are stacked",
        lambda n, x: (n.node("Concat", n.conv(x), n.conv(x), n.conv(n.input("z", 16, (7, 6))), axis=1),),
        "",
        "^merged in part only: its operands follow from different tensors, those of 'x', 'z'$",
        None,
    ),
    Row(
        "a sum without a weight",
        lambda n, x: (n.node("Relu", n.add(n.scale("Mul", x), x)), n.conv(x)),
        "",
        "has no weight on the way from 'x', from which all its operands follow$",
        None,
    ),
)  # fmt: skip


@table(*ROWS)
def test_what_stays_has_a_remark(row: Row) -> None:
    net = Net(16)
    result = prove(net.model(*row.build(net, net.x)))
    (remark,) = kept(result)
    assert not [each for each in result.remarks if each.outcome is Outcome.REFUSED]
    assert re.search(row.message, remark.message), remark.message
    assert remark.blocker.split(" ")[0] == row.blocker
    assert remark.blocker in remark.message
    if row.saving is None:
        assert remark.saving is None
    else:
        assert remark.saving is not None
        assert row.saving[0] < remark.saving < row.saving[1]


def test_a_sequence_lists_its_nodes() -> None:
    net = Net(16)
    (remark,) = kept(fuse(net.model(pointwise(net, depthwise(net, net.x), 16, 16))))
    assert remark.nodes == ("Conv 'conv_1'", "Conv 'conv_2'")
    assert remark.node == "Conv 'conv_2'"


def test_what_stands_before_the_convs_of_a_sum() -> None:
    """Of a sum there is a Conv for each source; each may end a sequence."""
    net = Net(16)
    first, other = net.conv(net.x), net.input("z", 16, (7, 6))
    total = net.add(net.conv(first), net.conv(first, 1), net.conv(other, 1, bias=False))
    part, sequence = kept(prove(net.model(total)))
    assert part.message.endswith("follow from different tensors, those of Conv 'conv_1', 'z'")
    assert sequence.nodes == ("Conv 'conv_1'", "Add 'add_6'")
    assert sequence.message == (
        "follows Conv 'conv_1' linearly: a Conv in place of Add 'add_6' pads with zeros "
        "what an op before it computes from across the border"
    )
    assert sequence.saving is not None
    assert -1 < sequence.saving < 0


def test_sequences_that_part_are_told_of_from_where_they_part() -> None:
    net = Net(16)
    first = depthwise(net, net.x)
    second = net.conv(first)
    ends = [net.node("Relu", net.conv(second)) for _ in range(2)]
    found = kept(fuse(net.model(*ends)))
    assert [remark.nodes for remark in found] == [
        ("Conv 'conv_1'", "Conv 'conv_2'", "Conv 'conv_3'"),
        ("Conv 'conv_2'", "Conv 'conv_5'"),
    ]


def test_a_sequence_that_was_not_asked_for() -> None:
    net = Net(16)
    model = net.model(pointwise(net, pointwise(net, net.x, 16, 64), 64, 8))
    assert fuse(model).changed
    (remark,) = kept(fuse(model, patterns=["repvgg"]))
    assert remark.message.endswith("linearly: is of no pattern that was asked for")
    assert "; but for that, merging would save" in remark.sentence


def test_what_was_left_as_asked_is_in_no_sequence() -> None:
    net = Net(16)
    joined = net.add(net.conv(net.x), net.conv(net.x, 1))
    model = net.model(net.conv(joined))
    (edit,) = fuse(model).edits
    result = fuse(model, leave=[edit])
    assert not kept(result)
    (remark,) = result.remarks
    assert remark.message == "was left alone, as was asked"
    assert remark.saving is not None
    assert 0 < remark.saving < 1


def test_a_branch_that_would_not_pay_beside_merged_ones() -> None:
    """SLaK: strips beside a small square; all of them as one would be a large square."""
    net = Net(16, extents=(64, 64))
    strips = [net.conv(net.x, kernel, group=16) for kernel in ((51, 5), (5, 51), (5, 5))]
    (remark,) = kept(fuse(net.model(net.add(*strips))))
    assert remark.message.startswith(
        "merged in part only: would not pay: 255 + 255 + 25 taps would become 2601"
    )
    assert remark.saving is not None
    assert remark.saving < -1


def test_a_refused_join_says_what_merging_would_cost() -> None:
    net = Net(64, extents=(16, 16))
    model = net.model(net.add(net.conv(net.x, 1), net.conv(net.x, 7, group=64)))
    (remark,) = fuse(model).remarks
    assert remark.outcome is Outcome.REFUSED
    assert remark.message.startswith("would not pay: 1 + 49 taps would become 49, group 1")
    assert remark.saving is not None
    assert remark.saving < -10


def test_a_join_too_far_from_its_source_is_not_measured() -> None:
    net = Net(64, extents=(16, 16))
    far = net.x
    for _ in range(600):
        far = net.node("Identity", far)
    (remark,) = fuse(net.model(net.add(net.conv(far, 1), net.conv(net.x, 7, group=64)))).remarks
    assert "would not pay" in remark.message
    assert remark.saving is None


@pytest.mark.parametrize(
    ("saving", "words"),
    [
        (None, "m"),
        (0.123, "m; but for that, merging would save 12 %"),
        (0.001, "m; merging would save nothing"),
        (-0.004, "m; merging would save nothing"),
        (-0.066, "m; merging would cost 1.07 times as much"),
        (-2.14, "m; merging would cost 3.1 times as much"),
        (-41.9, "m; merging would cost 43 times as much"),
    ],
)
def test_a_saving_in_words(saving: float | None, words: str) -> None:
    assert Remark(Outcome.KEPT, "n", "m", saving=saving).sentence == words
