"""Expressions: what each letter fits, and how branches are given to the forms of a pattern."""

from __future__ import annotations

import itertools
import sys
from random import Random

import pytest
from blocks import topology
from hypothesis import given, settings
from hypothesis import strategies as st

from repfuse.families.expression import Expression
from repfuse.families.patterns import Branch, Op, Pattern, Topology, load_patterns, match

PATTERNS = load_patterns()


def matched(*branches: str, tail: str = "", dims: int = 2) -> str | None:
    pattern = match(PATTERNS, topology(*branches, tail=tail, dims=dims))
    return pattern.slug if pattern else None


EXPRESSIONS = [
    # expression, branches that fit, branches that do not
    ("identity", ["identity"], ["bn", "conv3x3"]),
    ("bn", ["bn", "scale shift"], ["identity", "scale", "bn bn"]),
    ("bn?", ["identity", "bn"], ["scale", "bn bn"]),
    ("scale", ["scale", "scale shift", "shift scale"], ["shift", "bn", "scale scale"]),
    ("scale shift", ["scale shift", "scale shift shift"], ["scale", "shift scale"]),
    ("neg", ["neg"], ["identity", "scale"]),
    ("pad avgpool", ["pad avgpool3x3"], ["avgpool3x3", "avgpool3x3 pad"]),
    ("slice* conv", ["conv3x3", "slice slice conv3x3"], ["slice", "conv3x3 slice"]),
    ("conv", ["conv1x1", "dwconv3x3", "conv1x5", "conv3x3d2"], ["identity", "conv1x1 conv1x1"]),
    ("dwconv", ["dwconv3x3", "dwconv3x3d2"], ["conv3x3"]),
    ("dilatedconv", ["conv3x3d2", "dwconv3x3d2"], ["conv3x3", "conv1x1d2"]),
    ("dilateddwconvkxk", ["dwconv3x3d2"], ["conv3x3d2", "dwconv3x3"]),
    ("conv1x1", ["conv1x1", "dwconv1x1"], ["conv3x3", "conv11x11", "conv1x11", "conv11x1"]),
    ("convkxk", ["conv3x3", "conv11x11", "conv1x11", "conv11x1"], ["conv1x1"]),
    ("conv3x3", ["conv3x3"], ["conv33x33", "conv3x1", "conv13x3"]),
    ("conv1xk", ["conv1x3", "conv1x11"], ["conv1x1", "conv3x1", "conv11x1", "conv11x11"]),
    ("convkx1", ["conv3x1", "conv11x1"], ["conv1x1", "conv1x3", "conv11x11"]),
    ("conv51x5", ["conv51x5"], ["conv5x51", "conv51x51", "conv5x5"]),
    ("conv bn|bn conv", ["conv3x3 bn", "bn conv3x3"], ["conv3x3", "bn"]),
    ("(bn | scale)+ neg", ["bn neg", "scale bn neg"], ["neg", "bn"]),
    ("any*", ["identity", "conv3x3 bn neg shift pad"], []),
    ("any", ["bn", "conv3x3", "neg", "shift bn shift"], ["identity", "bn neg"]),
    ("(bn*)+ (scale?)* neg", ["neg", "bn neg", "scale scale neg"], ["neg bn"]),
    ("(bn | ) neg", ["neg", "bn neg"], ["bn", "bn bn neg"]),
]


@pytest.mark.parametrize(("text", "fitting", "others"), EXPRESSIONS, ids=[row[0] for row in EXPRESSIONS])
def test_expressions(text: str, fitting: list[str], others: list[str]) -> None:
    expression = Expression.parse(text)
    assert [
        branch for branch in [*fitting, *others] if expression.fits(topology(branch).spelled[0][0])
    ] == fitting


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_square_extents_fit_in_any_number_of_dimensions(dims: int) -> None:
    assert matched("conv3x3 bn", "conv1x1 bn", "bn", dims=dims) == "repvgg"
    assert matched("dwconv7x7 bn", "dwconv3x3 bn", dims=dims) == "yolov10"


def test_an_op_that_no_expression_can_name_is_any_op() -> None:
    assert match(PATTERNS, Topology(((Op("gather"),), ()))) is PATTERNS[-1]


def test_a_transposed_conv_is_a_conv_of_no_extents() -> None:
    transposed = Topology(((Op("bn"), Op("convtranspose")),)).spelled[0][0]
    expressions = ["bn conv", "any any", "bn conv1x1", "bn convkxk", "bn dwconv", "bn"]
    assert [text for text in expressions if Expression.parse(text).fits(transposed)] == expressions[:2]


LOOK_ALIKES = [
    (["conv3x3", "conv3x3", "conv1x1", "bn"], "", "mobileone"),
    (["conv3x3", "conv1x1", "bn"], "", "repvgg"),
    (["conv3x3", "conv1x1"], "", "repconv"),
    (["conv3x3", "conv1x1", "identity"], "", "csla"),
    (["conv3x3", "conv1x1", "identity"], "bn", "qarepvgg"),
    (["dwconv3x3", "dwconv1x1", "identity"], "bn", "repvit"),
    (["conv1x1", "conv1x1"], "", "mobileone"),
    (["conv1x1", "bn"], "", "mobileone_pointwise"),
    (["dwconv3x3", "bn"], "", "repghost"),
    (["dwconv3x3", "identity"], "", "residual_depthwise"),
    (["conv3x3", "identity"], "", "residual"),
    (["dwconv5x5", "dwconv5x5", "dwconv1x1"], "", "mobileone"),
    (["dwconv5x5", "dwconv3x3", "dwconv1x1"], "", "lcnetv2"),
    (["dwconv7x7", "dwconv3x3"], "", "yolov10"),
    (["dwconv9x9", "dwconv3x3"], "", "replknet"),
    (["dwconv9x9", "dwconv3x3d2"], "", "unireplknet"),
    (["conv7x7", "conv3x3"], "", "parallel_kernels"),
    (["conv3x3", "conv3x3d2", "bn"], "", "parallel_kernels"),
    (["conv3x3d2", "conv3x3d2", "conv1x1d2", "bn"], "", "mobileone"),
    (["conv3x3", "conv1x3", "conv3x1"], "", "acnet"),
    (["conv3x3", "conv1x3"], "", "parallel_kernels"),
    (["conv3x3 bn", "conv3x3 bn", "conv1x1 bn"], "scale shift", "lcnetv3"),
    (["conv3x3"], "", "linear"),
    (["conv3x3 bn"], "", "conv_bn"),
    (["conv3x3 conv3x3"], "", "deep_stem"),
    (["conv1x1 conv3x3"], "", "linear"),
    (["conv1x3", "conv1x1", "bn"], "", "fast"),
    (["computedconv3x3 bn"], "", "computed_kernel"),
    (["computedconv3x3 bn", "computedconv1x1 bn", "bn"], "", "repvgg"),
    (["dwconv3x3 bn", "dwconv1x3 dwconv3x1 bn", "dwconv2x2d2 bn"], "", "repnext"),
    (["dwconv7x7d3 bn", "dwconv5x5d3 bn", "dwconv3x3d3 bn"], "", "unireplknet"),
]


@pytest.mark.parametrize(("branches", "tail", "slug"), LOOK_ALIKES)
def test_look_alikes(branches: list[str], tail: str, slug: str) -> None:
    assert matched(*branches, tail=tail) == slug


BRANCHES = [
    "identity",
    "bn",
    "bn neg",
    "conv1x1",
    "conv3x3 bn",
    "dwconv3x3",
    "dwconv5x5 bn",
    "conv3x3d2",
    "scale",
]
TAILS = ["", "bn", "scale shift"]
FORMS = ["any*", "conv any*", "convkxk bn?", "convKxK bn?", "dwconv bn?", "bn?", "bn neg", "identity"]
COUNTS = [(0, 1), (1, 1), (1, 2), (0, sys.maxsize), (1, sys.maxsize), (2, sys.maxsize)]


@given(st.lists(st.sampled_from(BRANCHES), min_size=1, max_size=7), st.sampled_from(TAILS), st.randoms())
def test_the_order_of_branches_does_not_matter(branches: list[str], tail: str, random: Random) -> None:
    shuffled = random.sample(branches, len(branches))
    assert matched(*branches, tail=tail) == matched(*shuffled, tail=tail)
    assert matched(*branches, tail=tail) is not None


@given(
    st.lists(st.sampled_from(BRANCHES), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(FORMS), st.sampled_from(COUNTS)), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_fits_is_what_trying_every_assignment_finds(
    branches: list[str], forms: list[tuple[str, tuple[int, int]]]
) -> None:
    pattern = Pattern(
        "x",
        "X",
        0,
        "",
        tuple(Branch(Expression.parse(ops), *count) for ops, count in forms),
        Expression.parse(""),
    )
    group = topology(*branches)
    texts = group.spelled[0]
    found = any(
        all(form.ops.fits(text) for text, form in zip(texts, choice, strict=True))
        and all(form.least <= sum(form is each for each in choice) <= form.most for form in pattern.branches)
        for choice in itertools.product(pattern.branches, repeat=len(texts))
    )
    assert pattern.fits(group) == found


def test_many_branches_that_fit_many_forms_are_matched_at_once() -> None:
    forms = [*(Branch(Expression.parse("conv any*"), 1, sys.maxsize) for _ in range(6))]
    pattern = Pattern("x", "X", 0, "", tuple(forms), Expression.parse(""))
    assert pattern.fits(topology(*["conv3x3"] * 200))
    assert not pattern.fits(topology(*["conv3x3"] * 200, "bn"))
