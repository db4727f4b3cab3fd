"""What weights do not allow is chosen again without it: a smaller cut of the same region."""

from __future__ import annotations

import numpy as np
from nets import Net
from onnx import TensorProto
from proof import counts, prove

from repfuse import FuseResult, Outcome


def of_one_value(net: Net, x: str, value: float) -> str:
    return net.node("Conv", x, net.constant(np.full((4, 4, 1, 1), value)))


def large(net: Net, x: str) -> str:
    """A sum of two branches of a small tensor, and a Conv: composed, they overflow."""
    small = net.node("Clip", x, net.constant(0.0), net.constant(1e-3))
    total = net.add(of_one_value(net, small, 300.0), of_one_value(net, small, -100.0))
    return of_one_value(net, total, 100.0)


def scaled(net: Net, x: str) -> str:
    """A scale, a shift, and a padded Conv."""
    return net.conv(net.scale("Add", net.scale("Mul", x)))


def refused(result: FuseResult) -> list[str]:
    return [each.message for each in result.remarks if each.outcome is Outcome.REFUSED]


def test_a_sum_is_merged_where_what_follows_cannot_be() -> None:
    net = Net(dtype=TensorProto.FLOAT16)
    result = prove(net.model(large(net, net.x)))
    assert counts(result.model) == {"Clip": 1, "Conv": 2}
    assert any("would overflow float16" in message for message in refused(result))


def test_branches_of_one_geometry_part_where_their_sum_overflows() -> None:
    net = Net(dtype=TensorProto.FLOAT16)
    values = (6e4, 0.5, 1e4, -2.0)
    result = prove(net.model(net.add(*(of_one_value(net, net.x, value) for value in values))))
    assert counts(result.model) == {"Conv": 2, "Add": 1}
    assert "would overflow float16" in refused(result)[0]


def test_the_other_group_of_a_join_is_merged() -> None:
    net = Net(dtype=TensorProto.FLOAT16)
    y = net.node("Relu", net.x)
    huge = [of_one_value(net, net.x, 6e4) for _ in "ab"]
    small = [of_one_value(net, y, 0.5) for _ in "ab"]
    result = prove(net.model(net.add(*huge, *small)))
    assert counts(result.model) == {"Relu": 1, "Conv": 3, "Add": 2}


def test_scales_go_where_shifts_keep_branches_apart() -> None:
    """No sum of the two is one Conv, since zero-padding means something else to each; but each of them is."""
    net = Net()
    result = prove(net.model(net.add(scaled(net, net.x), scaled(net, net.x))))
    assert counts(result.model) == {"Add": 3, "Conv": 2}
    assert any("pads with zeros tensors of different shifts" in message for message in refused(result))


def test_what_is_chosen_again_leaves_alone_what_was_made() -> None:
    net = Net(dtype=TensorProto.FLOAT16)
    last = net.node("Relu", large(net, net.node("Relu", net.repvgg(net.x))))
    result = prove(net.model(net.node("Relu", net.repvgg(last))))
    assert counts(result.model) == {"Conv": 4, "Relu": 3, "Clip": 1}
    assert len(result.edits) == 3


def test_nothing_is_chosen_again_for_weights_that_are_no_numbers() -> None:
    net = Net()
    total = net.add(of_one_value(net, net.x, np.nan), net.conv(net.x), net.conv(net.x))
    result = prove(net.model(net.conv(total, 1)))
    assert not result.changed
    assert result.remarks[0].invalid
