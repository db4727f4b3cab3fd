"""Borders, however they are spelled: what is one Conv with padding, and what is not and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import weights
from graphs import Array, draw, model, node
from onnx import TensorProto, helper, numpy_helper
from proof import counts, evaluate, prove, refusal

from repfuse import fuse
from repfuse.proof.blockcheck import check_blocks

C, H, W = 4, 7, 6
BIAS = draw(C, seed=3)
SCALE, SHIFT, MEAN, VARIANCE = 1 + draw(C) ** 2, draw(C, seed=1), draw(C, seed=2), 1 + draw(C, seed=4) ** 2
OF_ZERO = SHIFT - MEAN * SCALE / np.sqrt(VARIANCE + 1e-5)


@dataclass
class Net:
    """Nodes and constants so far; `x` has a symbolic number of images where `batch` is a name."""

    batch: int | str | None = 1
    extents: tuple[int | str, ...] = (H, W)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, npt.ArrayLike] = field(default_factory=dict)

    def __call__(self, op_type: str, *operands: Any, name: str = "", **attributes: Any) -> str:
        """Add a node; operands that are no names become constants."""
        names = [each if isinstance(each, str) else self.constant(each) for each in operands]
        output = name or f"{op_type}_{len(self.nodes)}"
        self.nodes.append(node(op_type, names, [output], name=output, **attributes))
        return output

    def constant(self, value: npt.ArrayLike) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def conv(
        self, source: str, k: int = 1, bias: Array | None = None, outputs: int = C, **options: Any
    ) -> str:
        weight = draw(outputs, C, k, k, seed=len(self.nodes) + 10)
        return self("Conv", source, weight, *([] if bias is None else [bias]), **options)

    def model(self, output: str) -> onnx.ModelProto:
        proto = model(self.nodes, {"x": [self.batch, C, *self.extents]}, [output], self.constants)
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 4))
        return proto


def biased_conv(net: Net, x: str) -> tuple[str, Array]:
    return net.conv(x, bias=BIAS), BIAS


def normalized(net: Net, x: str) -> tuple[str, Array]:
    return net("BatchNormalization", net.conv(x), SCALE, SHIFT, MEAN, VARIANCE), OF_ZERO


def shifted(net: Net, x: str) -> tuple[str, Array]:
    return net("Add", net.conv(x), BIAS.reshape(C, 1, 1)), BIAS


def pads(p: int) -> Array:
    return np.array([0, 0, p, p, 0, 0, p, p])


def painted_row_by_row(net: Net, y: str, c: Array, p: int) -> str:
    """As the dynamo exporter writes slices that are assigned to: axis by axis, each one brought to the front."""
    y = net("Pad", y, pads(p))
    for axis, perm, across in ((2, [2, 1, 0, 3], W + 2 * p), (3, [3, 1, 2, 0], H + 2 * p)):
        for rows in (np.arange(p), np.arange(-p, 0)):
            updates = np.broadcast_to(c.reshape(1, C, 1, 1), (p, C, 1, across))
            updates = updates if axis == 2 else updates.swapaxes(2, 3)
            front = net("Transpose", y, perm=perm)
            y = net("Transpose", net("ScatterND", front, rows.reshape(-1, 1), updates), perm=perm)
    return net("Identity", y)


def painted_place_by_place(net: Net, y: str, c: Array, p: int) -> str:
    """As the TorchScript exporter writes them: every place by itself, worked out from the tensor's shape."""
    y = net("Pad", y, pads(p))
    for axis, begin, end in ((2, 0, p), (2, -p, 2**63 - 1), (3, 0, p), (3, -p, 2**63 - 1)):
        shape = net("Shape", y)
        ranges = [
            net("Range", np.array(0), net("Gather", shape, np.array(number)), np.array(1))
            for number in range(4)
        ]
        slab = net("Slice", y, np.array([begin]), np.array([end]), np.array([axis]))
        ranges[axis] = net("Slice", ranges[axis], np.array([begin]), np.array([end]))
        columns = [
            net("Reshape", each, np.array([-1, *[1] * (3 - number)])) for number, each in enumerate(ranges)
        ]
        total = net("Add", net("Add", net("Add", columns[0], columns[1]), columns[2]), columns[3])
        extents = net("Shape", total)
        minus = net("Mul", net("ConstantOfShape", net("Shape", extents), value=one()), np.array(-1))
        wanted = net("Where", net("Equal", extents, minus), np.array(1), extents)
        places = [net("Unsqueeze", net("Expand", column, wanted), np.array([-1])) for column in columns]
        updates = net("Expand", c.reshape(C, 1, 1), net("Shape", slab))
        y = net("ScatterND", y, net("Concat", *places, axis=-1), updates)
    return y


def one() -> TensorProto:
    return numpy_helper.from_array(np.array([1], np.int64))


def set_around(net: Net, y: str, c: Array, p: int) -> str:
    """As PaddlePaddle's version of the block is: pieces of a constant map set around the tensor."""
    for axis, shape in ((2, (1, C, p, W)), (3, (1, C, H + 2 * p, p))):
        piece = net("Expand", c.reshape(1, C, 1, 1), np.array(shape))
        y = net("Concat", piece, y, piece, axis=axis)
    return y


def masked(net: Net, y: str, c: Array, p: int) -> str:
    inside = np.pad(np.ones((H, W), bool), p)
    return net("Where", inside, net("Pad", y, pads(p)), c.reshape(C, 1, 1))


def element_by_element(net: Net, y: str, c: Array, p: int) -> str:
    y = net("Pad", y, pads(p))
    for axis, extent in ((2, H), (3, W)):
        rows = np.array([*range(p), *range(extent + p, extent + 2 * p)])
        shape = [1, C, H + 2 * p, W + 2 * p]
        shape[axis] = 2 * p
        places = np.broadcast_to(rows.reshape(-1, *[1] * (3 - axis)), shape)
        y = net("ScatterElements", y, places, np.broadcast_to(c.reshape(C, 1, 1), shape), axis=axis)
    return y


BEFORE = [biased_conv, normalized, shifted]
SPELLINGS = [painted_row_by_row, painted_place_by_place, set_around, masked, element_by_element]
PERMITTING = [painted_place_by_place, masked]
"""Spellings that do not say how many images there are."""


def block(net: Net, frame: Callable[..., str], before: Callable[..., tuple[str, Array]], p: int) -> str:
    """DBB's third branch beside a Conv."""
    x = net("Relu", "x")
    y, c = before(net, x)
    k = 2 * p + 1
    framed = net.conv(frame(net, y, c, p), k, strides=[2, 2])
    return net("Add", net.conv(x, k, strides=[2, 2], pads=[p] * 4), framed, name="join")


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("before", BEFORE, ids=lambda each: each.__name__)
@pytest.mark.parametrize("frame", SPELLINGS, ids=lambda each: each.__name__)
def test_a_border_that_holds_what_the_op_before_it_makes_of_zero(
    frame: Callable[..., str], before: Callable[..., tuple[str, Array]], p: int
) -> None:
    net = Net()
    proto = net.model(block(net, frame, before, p))
    result = prove(proto)
    assert counts(result.model) == {"Relu": 1, "Conv": 1}
    assert {node.op_type for node in result.model.graph.node} == {"Relu", "Conv"}
    assert all(check.passed and not check.skipped for check in check_blocks(proto, result))


@pytest.mark.parametrize("frame", PERMITTING, ids=lambda each: each.__name__)
def test_any_number_of_images(frame: Callable[..., str]) -> None:
    net = Net(batch="n")
    proto = net.model(block(net, frame, biased_conv, 1))
    result = prove(proto)
    assert counts(result.model) == {"Relu": 1, "Conv": 1}
    assert all(check.passed and not check.skipped for check in check_blocks(proto, result))
    for images in (1, 2, 5):
        given = {"x": draw(images, C, H, W).astype(np.float32)}
        before, after = (evaluate(each, given)[0] for each in (proto, result.model))
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exporter", ["dy", "ts"])
def test_exported_blocks(exporter: str) -> None:
    folder = Path(__file__).parent / "models"
    deploy = json.loads((folder / "expected.json").read_text())[f"dbb-narrow.{exporter}"]["deploy"]
    result = prove(weights.load(folder / f"dbb-narrow.{exporter}.onnx"))
    left = counts(result.model)
    assert (left["Conv"], left.get("BatchNormalization", 0)) == (deploy["Conv"], 0)
    assert sum(left.values()) <= deploy["nodes"]
    assert {edit.pattern for edit in result.edits} == {"DBB"}


def test_a_border_of_zeros_is_padding() -> None:
    net = Net()
    x = net("Relu", "x")
    framed = set_around(net, net.conv(x), np.zeros(C), 1)
    result = prove(net.model(net("Add", net.conv(framed, 3), net.conv(x), name="join")))
    assert counts(result.model) == {"Relu": 1, "Conv": 1}


def test_a_crop_that_is_spelled_out() -> None:
    net = Net()
    x = net("Relu", "x")
    y = net(
        "Transpose", net("Gather", net("Transpose", x, perm=[2, 1, 0, 3]), np.arange(1, H)), perm=[2, 1, 0, 3]
    )
    y = net("Concat", y, np.zeros((1, C, 1, W)), axis=2)
    result = prove(net.model(net("Add", net.conv(y), net.conv(x), name="join")))
    assert counts(result.model) == {"Relu": 1, "Conv": 1}


def test_constants_that_are_apart_by_their_rounding() -> None:
    net = Net()
    proto = net.model(block(net, masked, biased_conv, 1))
    moved = np.nextafter(BIAS.astype(np.float32), np.inf).reshape(C, 1, 1)
    where = next(n for n in proto.graph.node if n.op_type == "Where")
    border = next(t for t in proto.graph.initializer if t.name == where.input[2])
    border.CopyFrom(numpy_helper.from_array(moved, border.name))
    result = prove(proto)
    assert counts(result.model) == {"Relu": 1, "Conv": 1}
    assert all(check.passed for check in check_blocks(proto, result))


# What is no frame, or not one that a Conv could be, and why. Each makes a tensor of `y`, whose constant part is
# `c`, that a Conv of 3x3 reads.
Refused = Callable[[Net, str, Array], str]


def other_value(net: Net, y: str, c: Array) -> str:
    return set_around(net, y, c + 1, 1)


def not_a_number(net: Net, y: str, c: Array) -> str:
    return set_around(net, y, c * np.nan, 1)


def one_corner_off(net: Net, y: str, c: Array) -> str:
    framed = set_around(net, y, c, 1)
    return net("ScatterND", framed, np.array([[0, 1, 0, 0]]), np.array([c[1] + 1]))


def one_pixel_inside(net: Net, y: str, c: Array) -> str:
    framed = set_around(net, y, c, 1)
    return net("ScatterND", framed, np.array([[0, 1, 3, 3]]), c[1:2])


def turned(net: Net, y: str, c: Array) -> str:
    return net(
        "Slice", set_around(net, y, c, 1), np.array([-1]), np.array([-99]), np.array([2]), np.array([-1])
    )


def channels_swapped(net: Net, y: str, c: Array) -> str:
    return net("Gather", set_around(net, y, c, 1), np.array([1, 0, 2, 3]), axis=1)


def stretched(net: Net, y: str, c: Array) -> str:
    twice = net("Gather", y, np.arange(H).repeat(2), axis=2)
    return net("Concat", np.zeros((1, C, 1, W)), twice, axis=2)


def added_to(net: Net, y: str, c: Array) -> str:
    padded = net("Pad", y, pads(1))
    return net("ScatterND", padded, np.array([[0, 0, 0, 0]]), np.array([1.0]), reduction="add")


def at_a_place_of_run_time(net: Net, y: str, c: Array) -> str:
    place = net("Cast", net("ReduceMax", "x", keepdims=0), to=7)
    places = net("Reshape", net("Mul", place, np.array([0, 0, 0, 0])), np.array([1, 4]))
    return net("ScatterND", net("Pad", y, pads(1)), places, np.array([0.5]))


OTHER_VALUE = "pads with a value that is not what the op before it makes of zero, so its border would differ"
OTHER_PLACE = "moves elements in a way that is neither padding nor cropping"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (other_value, OTHER_VALUE),
        (not_a_number, OTHER_PLACE),
        (one_corner_off, OTHER_PLACE),
        (one_pixel_inside, OTHER_PLACE),
        (turned, OTHER_PLACE),
        (channels_swapped, OTHER_PLACE),
        (stretched, OTHER_PLACE),
        (added_to, "moves elements to places that cannot be told; export with static extents"),
        (at_a_place_of_run_time, "moves elements to places that cannot be told; export with static extents"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_is_refused(frame: Refused, reason: str) -> None:
    net = Net()
    x = net("Relu", "x")
    y, c = biased_conv(net, x)
    framed = net.conv(frame(net, y, c), 3)
    proto = net.model(net("Add", net.conv(x, 3, pads=[1] * 4), framed, name="join"))
    assert reason in refusal(fuse(proto), "join").message


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Net(extents=("h", W)), "frames a tensor of unknown extents; export with static extents"),
        (
            Net(extents=(2**12, 2**12)),
            "frames a tensor that is too large to be followed; export with smaller extents",
        ),
    ],
    ids=["height", "large"],
)
def test_extents_that_are_not_known_or_too_large(net: Net, reason: str) -> None:
    x = net("Relu", "x")
    y, c = biased_conv(net, x)
    framed = net("ScatterND", net("Pad", y, pads(1)), np.array([[0, 0, 0, 0]]), c[:1])
    proto = net.model(net("Add", net.conv(x, 3, pads=[1] * 4), net.conv(framed, 3), name="join"))
    assert reason in refusal(fuse(proto), "join").message


def test_what_something_else_uses_stays_in_front_of_its_border() -> None:
    net = Net()
    x = net("Relu", "x")
    y, c = biased_conv(net, x)
    framed = net.conv(masked(net, y, c, 1), 3)
    joined = net("Add", net.conv(x, 3, pads=[1] * 4), framed, name="join")
    result = prove(net.model(net("Mul", joined, net("Sigmoid", y))))
    assert counts(result.model) == {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Mul": 1}
    (edit,) = result.edits
    assert not any(f"'{y}'" in removed for removed in edit.removed)


def test_a_kernel_beside_what_it_has_a_border_around() -> None:
    """FMEN's RRRB: wide, a kernel of it with its bias as border and a skip over both, narrow, a skip over all."""
    net = Net()
    x = net("Relu", "x")
    y, c = biased_conv(net, x)
    kernel = net.conv(masked(net, y, c, 1), 3)
    result = prove(net.model(net("Add", net.conv(net("Add", kernel, y), 1), x, name="join")))
    assert counts(result.model) == {"Conv": 1, "Relu": 1}


def only_five_images(net: Net, y: str) -> str:
    return net("Slice", y, np.array([0]), np.array([5]), np.array([0]))


def painted_if_there_are_four(net: Net, y: str) -> str:
    """The corner of the last image is at n - 1, and at 2 if there are four."""
    n = net("Gather", net("Shape", y), np.array([0]))
    last = net("Where", net("Equal", n, np.array([4])), np.array([2]), np.array([-1]))
    place = net("Reshape", net("Concat", last, np.array([0, 0, 0]), axis=0), np.array([1, 4]))
    return net("ScatterND", y, place, BIAS[:1])


def painted_at_n_less_four(net: Net, y: str) -> str:
    n = net("Gather", net("Shape", y), np.array([0]))
    place = net("Concat", net("Add", n, np.array([-4])), np.array([0, 0, 0]), axis=0)
    return net("ScatterND", y, net("Reshape", place, np.array([1, 4])), BIAS[:1])


@pytest.mark.parametrize(
    "after", [only_five_images, painted_if_there_are_four, painted_at_n_less_four], ids=lambda f: f.__name__
)
def test_what_depends_on_the_number_of_images(after: Callable[[Net, str], str]) -> None:
    net = Net(batch="n")
    x = net("Relu", "x")
    y, c = biased_conv(net, x)
    framed = net.conv(after(net, masked(net, y, c, 1)), 3)
    proto = net.model(net("Add", net.conv(x, 3, pads=[1] * 4), framed, name="join"))
    assert "places that cannot be told" in refusal(fuse(proto), "join").message


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repfuse.search.frames._WORK", 3 * C * H * W)
    net = Net()
    x = net("Relu", "x")
    total = net.conv(x, 3, pads=[1] * 4)
    for _ in range(4):
        y, c = biased_conv(net, x)
        total = net("Add", total, net.conv(masked(net, y, c, 1), 3))
    result = fuse(net.model(total))
    assert any("too large to be followed" in remark.message for remark in result.remarks)
