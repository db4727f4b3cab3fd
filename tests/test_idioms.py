"""Subgraphs that runtimes run as one kernel stay whole; what only looks like one is folded.

Each is written as exporters write it, one node a line, between two convolutions: `x` comes out of the first,
`y` goes into the second, numbers are constants.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import constant_node, draw, main_scope, model, node, run
from onnx import NodeProto

from repfuse.fusion import fuse
from repfuse.graph import idioms
from repfuse.graph.idioms import IDIOMS, idiom_nodes

CURVES = {
    "erf": """
    d = Div x 1.4142135
    v = Erf d
""",
    "erf-of-product": """
    d = Mul x 0.70710677
    v = Erf d
""",
    "tanh-of-power": """
    c = Pow x 3
    k = Mul c 0.044715
    a = Add x k
    m = Mul a 0.7978846
    v = Tanh m
""",
    "tanh-by-torchscript": """
    s = Mul x x
    c = Mul x s
    k = Mul 0.044715 c
    a = Add x k
    m = Mul 0.7978846 a
    v = Tanh m
""",
    "tanh-of-products": """
    k = Mul x 0.044715
    s = Mul k x
    c = Mul s x
    a = Add x c
    m = Mul a 0.7978846
    v = Tanh m
""",
    "tanh-fast": """
    u = Mul x 0.7978846
    k = Mul x 0.044715
    s = Mul k x
    a = Add s 1
    m = Mul u a
    v = Tanh m
""",
}
"""The inner part of a GELU, `0.5 * x * (1 + v)`, exact or approximate, by torch's exporters and by hand."""

FACTOR_LAST = """
    o = Add v 1
    p = Mul x o
    y = Mul p 0.5
"""
FACTOR_FIRST = """
    h = Mul x 0.5
    o = Add v 1
    y = Mul h o
"""
GATE_FIRST = """
    o = Add v 1
    g = Mul o 0.5
    y = Mul x g
"""
GELU = CURVES["erf"] + FACTOR_LAST
QUICK_GELU = """
    s = Mul x 1.702
    g = Sigmoid s
    y = Mul x g
"""
HARD_SWISH_BEFORE_ITS_FACTOR = """
    a = Add x 3
    c = Clip a 0 6
    y = Mul x c
"""
HARD_SWISH = HARD_SWISH_BEFORE_ITS_FACTOR.replace("y =", "m =") + "y = Div m 6"
HARD_SWISH_GATE_FIRST = """
    a = Add x 3
    c = Clip a 0 6
    g = Div c 6
    y = Mul x g
"""
HARD_SWISH_BY_HARD_SIGMOID = """
    g = HardSigmoid x
    y = Mul x g
"""
HARD_SIGMOID = """
    a = Add x 3
    c = Clip a 0 6
    y = Div c 6
"""
CENTRED = """
    e = ReduceMean x
    d = Sub x e
"""
DEVIATIONS = {
    "power": """
    q = Pow d 2
    v = ReduceMean q
""",
    "product": """
    q = Mul d d
    v = ReduceMean q
""",
}
NORMAL = """
    a = Add v 0.00001
    s = Sqrt a
    n = Div d s
"""
SCALED, SHIFTED = "    y = Mul n 0.7\n", "    g = Mul n 0.7\n    y = Add g 0.3\n"
ROOT_MEAN_SQUARE = """
    q = Pow x 2
    v = ReduceMean q
    a = Add v 0.00001
    s = Sqrt a
"""
ROOT_MEAN_SQUARES = {
    "divided": "    n = Div x s\n    y = Mul n 0.7\n",
    "times-reciprocal": "    r = Reciprocal s\n    n = Mul x r\n    y = Mul n 0.7\n",
    "times-quotient": "    r = Div 1 s\n    n = Mul x r\n    y = Mul n 0.7\n",
}

WHOLE = [
    *(
        pytest.param("a GELU", curve + order, id=f"gelu-{name}-{number}")
        for name, curve in CURVES.items()
        for number, order in enumerate((FACTOR_LAST, FACTOR_FIRST, GATE_FIRST))
    ),
    pytest.param("a QuickGELU", QUICK_GELU, id="quick-gelu"),
    pytest.param("a HardSwish", HARD_SWISH_BEFORE_ITS_FACTOR, id="hard-swish-before-its-factor"),
    pytest.param("a HardSwish", HARD_SWISH_GATE_FIRST, id="hard-swish-gate-first"),
    pytest.param("a HardSwish", HARD_SWISH, id="hard-swish"),
    pytest.param("a HardSwish", HARD_SWISH_BY_HARD_SIGMOID, id="hard-swish-by-hard-sigmoid"),
    pytest.param("a HardSigmoid", HARD_SIGMOID, id="hard-sigmoid"),
    *(
        pytest.param(
            "a LayerNormalization", CENTRED + deviation + NORMAL + end, id=f"layer-norm-{name}-{number}"
        )
        for name, deviation in DEVIATIONS.items()
        for number, end in enumerate((SCALED, SHIFTED))
    ),
    *(
        pytest.param(
            "a root mean square normalization", ROOT_MEAN_SQUARE + end, id=f"root-mean-square-{name}"
        )
        for name, end in ROOT_MEAN_SQUARES.items()
    ),
]

W = draw(4, 4, 3, 3)


def written(
    text: str, *, opset: int, swapped: bool, as_nodes: bool
) -> tuple[list[NodeProto], dict[str, float]]:
    """The nodes of a text and its constants; operands of Add and Mul in the other order if `swapped`."""
    nodes: list[NodeProto] = []
    constants: dict[str, float] = {}
    for target, _, op, *operands in filter(None, map(str.split, text.splitlines())):
        numbers = {f"{target}{i}": float(each) for i, each in enumerate(operands) if not each.isidentifier()}
        names = [each if each.isidentifier() else f"{target}{i}" for i, each in enumerate(operands)]
        if op == "Clip" and opset < 11:
            low, high = numbers.values()
            nodes.append(node("Clip", names[:1], [target], min=low, max=high))
            continue
        if as_nodes:
            nodes += [constant_node(name, value) for name, value in numbers.items()]
        else:
            constants |= numbers
        nodes.append(node(op, names[::-1] if swapped and op in ("Add", "Mul") else names, [target]))
    return nodes, constants


def between_convs(
    text: str, *, opset: int = 17, swapped: bool = False, as_nodes: bool = False
) -> onnx.ModelProto:
    nodes, constants = written(text, opset=opset, swapped=swapped, as_nodes=as_nodes)
    ends = node("Conv", ["in", "w"], ["x"], name="first"), node("Conv", ["y", "w"], ["out"], name="last")
    return model(
        [ends[0], *nodes, ends[1]], {"in": [1, 4, 9, 9]}, ["out"], {"w": W, **constants}, opset=opset
    )


def ops(proto: onnx.ModelProto) -> list[str]:
    return [each.op_type for each in proto.graph.node]


@pytest.mark.parametrize(("name", "text"), WHOLE)
@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
@pytest.mark.parametrize("as_nodes", [False, True], ids=["initializers", "constant-nodes"])
@pytest.mark.parametrize("opset", [7, 17])
def test_an_idiom_stays_whole(
    name: str, text: str, opset: int, swapped: bool, as_nodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "Erf" in text and opset < 9:
        opset = 9
    proto = between_convs(text, opset=opset, swapped=swapped, as_nodes=as_nodes)
    found = idiom_nodes(main_scope(proto))
    nodes = proto.graph.node
    assert [nodes[position].output[0] for position in sorted(found)] == [
        each.output[0] for each in nodes if each.op_type not in ("Conv", "Constant")
    ]
    last = next(position for position, each in enumerate(nodes) if each.output[0] == "y")
    assert found[last] == name
    monkeypatch.setattr("repfuse.rewriting.hard_swish.hard_swishes", lambda _: iter(()))
    assert ops(fuse(proto).model) == ops(proto)


@pytest.mark.parametrize(("name", "text"), WHOLE)
def test_without_the_table_a_last_factor_would_be_folded(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are safe as long as nobody finds a way to fold them: they are protected all the same."""
    proto = between_convs(text)
    monkeypatch.setattr("repfuse.graph.idioms.IDIOMS", ())
    monkeypatch.setattr("repfuse.rewriting.hard_swish.hard_swishes", lambda _: iter(()))
    ends_with_a_factor = any(not each.isidentifier() for each in text.split()[-2:])
    assert (ops(fuse(proto).model) != ops(proto)) is ends_with_a_factor, name


@pytest.mark.parametrize("row", range(len(IDIOMS)), ids=lambda row: f"{IDIOMS[row][0][2:]}-{row}")
def test_each_row_of_the_table_finds_an_idiom(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repfuse.graph.idioms.IDIOMS", IDIOMS[row : row + 1])
    scopes = [main_scope(between_convs(str(each.values[1]))) for each in WHOLE]
    found = [idiom_nodes(scope).get(len(scope.nodes) - 2) for scope in scopes]
    assert IDIOMS[row][0] in found


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("y = Mul x 0.5", "", id="scalar"),
        pytest.param("r = Relu x\n y = Mul r 0.5", "Relu", id="scalar-behind-relu"),
        pytest.param("s = Sigmoid x\n m = Mul x s\n y = Mul m 0.5", "Sigmoid Mul", id="scalar-behind-silu"),
        pytest.param(
            GELU.replace("y =", "z =") + "y = Mul z 2",
            "Div Erf Add Mul Mul",
            id="scalar-behind-gelu",
        ),
        pytest.param("s = Mul x 1.702\n y = Sigmoid s", "Sigmoid", id="quick-gelu-without-its-product"),
        pytest.param("a = Add x 3\n y = Clip a 0 6", "Clip", id="hard-sigmoid-without-its-quotient"),
        pytest.param("e = Erf x\n a = Add e 1\n y = Mul a 0.5", "Erf", id="gelu-without-its-product"),
        pytest.param(
            "t = Tanh x\n a = Add t 1\n p = Mul x a\n y = Mul p 0.5", "Tanh Add Mul", id="gated-tanh"
        ),
        pytest.param(
            GELU.replace("p = Mul x o", "n = Relu x\n p = Mul n o"),
            "Div Erf Add Relu Mul",
            id="gelu-of-two-tensors",
        ),
        pytest.param(
            HARD_SWISH.replace("c = Clip a 0 6", "c = Relu a"),
            "Add Relu Mul",
            id="hard-swish-without-its-bound",
        ),
        pytest.param(
            HARD_SWISH.replace("a = Add x 3", "r = Relu x\n a = Add x r"),
            "Relu Add Clip Mul",
            id="hard-swish-without-its-constant",
        ),
    ],
)
def test_a_near_miss_is_folded(text: str, left: str) -> None:
    proto = between_convs(text)
    result = fuse(proto).model
    assert " ".join(ops(result)[1:-1]) == left
    x = draw(1, 4, 9, 9).astype(np.float32)
    expected = run(proto, x)
    np.testing.assert_allclose(run(result, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_idioms_are_tried_only_if_the_graph_has_all_their_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(idioms, "matched", lambda _scope, _tensor, idiom: tried.append(str(idiom)))
    assert not idiom_nodes(main_scope(between_convs(CURVES["erf"] + FACTOR_LAST)))
    assert tried
    assert all("Erf" in idiom for idiom in tried)
