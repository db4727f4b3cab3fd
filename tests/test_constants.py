"""What counts as constant: its values, what is left alone, and what is not read before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from graphs import Array, constant_node, draw, main_scope, model, node, run
from nets import Net
from onnx import AttributeProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from proof import counts, prove

from repfuse.errors import BadInputError
from repfuse.graph.constants import Constant
from repfuse.graph.view import scopes

W = np.abs(draw(4, 3, 1, 1)) + 1


def of(nodes: Sequence[NodeProto], given: Mapping[str, Any] | None = None, **options: Any) -> Constant | None:
    """The constant `w` of a model that adds it to its input `x`."""
    proto = model([*nodes, node("Add", ["x", "w"], ["y"])], {"x": [1]}, ["y"], given, **options)
    return main_scope(proto).constants.find("w")


def value(**attributes: Any) -> NodeProto:
    return node("Constant", [], ["w"], **attributes)


@pytest.mark.parametrize(
    ("nodes", "given", "expected"),
    [
        pytest.param([], {"w": W.astype("f")}, W.astype("f"), id="initializer"),
        pytest.param([constant_node("w", W)], {}, W.astype("f"), id="value"),
        pytest.param([constant_node("w", [2, 3])], {}, np.array([2, 3]), id="value-of-integers"),
        pytest.param([value(value_float=2.5)], {}, np.float32(2.5), id="value-float"),
        pytest.param([value(value_floats=[1.5, 2.5])], {}, np.array([1.5, 2.5], "f"), id="value-floats"),
        pytest.param([value(value_int=2)], {}, np.int64(2), id="value-int"),
        pytest.param([value(value_ints=[2, 3])], {}, np.array([2, 3]), id="value-ints"),
    ],
)
def test_a_constant_has_its_shape_type_and_values(
    nodes: Sequence[NodeProto], given: Mapping[str, Any], expected: Array
) -> None:
    found = of(nodes, given)
    assert found is not None
    assert found.dims == expected.shape
    assert found.size == expected.size
    assert found.data_type == helper.np_dtype_to_tensor_dtype(expected.dtype)
    assert found.read().dtype == expected.dtype
    np.testing.assert_array_equal(found.read(), expected)


def chain(length: int) -> list[NodeProto]:
    """`w = -(-(... v))`."""
    names = ["v", *(f"t{i}" for i in range(length - 1)), "w"]
    return [node("Neg", [a], [b]) for a, b in pairwise(names)]


def doublings(number: int) -> list[NodeProto]:
    """`w = 2 ** number * v`, each step the sum of the one before with itself: 2 ** number paths lead to it."""
    names = ["v", *(f"t{i}" for i in range(number - 1)), "w"]
    return [node("Add", [a, a], [b]) for a, b in pairwise(names)]


EXPRESSIONS = [
    pytest.param([node("Identity", ["v"], ["t"]), node("Identity", ["t"], ["w"])], id="identities"),
    pytest.param(
        [
            constant_node("epsilon", 1e-5),
            node("Add", ["v", "epsilon"], ["a"]),
            node("Sqrt", ["a"], ["b"]),
            node("Div", ["v", "b"], ["w"]),
        ],
        id="batch-normalization-folded",
    ),
    pytest.param(
        [
            constant_node("pads", [0, 0, 1, 1, 0, 0, 1, 1]),
            node("Cast", ["v"], ["a"], to=TensorProto.DOUBLE),
            node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
            node("Pad", ["b", "pads"], ["w"]),
        ],
        id="1x1-padded-to-3x3",
    ),
    pytest.param(
        [
            constant_node("axes", [2, 3]),
            node("Squeeze", ["v", "axes"], ["a"]),
            node("Einsum", ["a", "a"], ["b"], equation="oi,pi->op"),
            node("Unsqueeze", ["b", "axes"], ["w"]),
        ],
        id="einsum",
    ),
    pytest.param([node("Split", ["v"], ["w", "rest"], num_outputs=2)], id="one-output-of-two"),
    # Whatever the order in which parts are met.
    pytest.param(
        [node("Exp", ["v"], ["a"]), node("Sqrt", ["a"], ["b"]), node("Max", ["a", "b"], ["w"])],
        id="part-used-twice",
    ),
    pytest.param(
        [node("Exp", ["v"], ["a"]), node("Sqrt", ["a"], ["b"]), node("Max", ["b", "a"], ["w"])],
        id="part-used-twice-swapped",
    ),
    pytest.param(doublings(60), id="doublings"),
    pytest.param(chain(2001), id="deeper-than-python-recurses"),
]


@pytest.mark.parametrize("nodes", EXPRESSIONS)
def test_an_expression_of_constants_is_constant(nodes: Sequence[NodeProto]) -> None:
    found = of(nodes, {"v": W}, opset=18)
    assert found is not None
    expected = run(model(nodes, {}, ["w"], {"v": W}, opset=18))
    assert found.dims == expected.shape
    assert found.data_type == TensorProto.FLOAT
    np.testing.assert_array_equal(found.read(), expected)


def branch(*nodes: NodeProto) -> Any:
    """A subgraph that gives `o`."""
    return helper.make_graph(
        nodes, "branch", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    )


COPY = branch(node("Identity", ["v"], ["o"]))
TWO = branch(constant_node("o", 2.0))


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("Identity", ["x"], ["w"])], id="input"),
        pytest.param([node("Mul", ["x", "v"], ["w"])], id="expression-of-an-input"),
        pytest.param([node("RandomNormal", [], ["w"], shape=[4])], id="RandomNormal"),
        pytest.param([node("RandomUniform", [], ["w"], shape=[4])], id="RandomUniform"),
        pytest.param([node("RandomNormalLike", ["v"], ["w"])], id="RandomNormalLike"),
        pytest.param([node("RandomUniformLike", ["v"], ["w"])], id="RandomUniformLike"),
        pytest.param([node("Bernoulli", ["v"], ["w"])], id="Bernoulli"),
        pytest.param(
            [node("Bernoulli", ["v"], ["a"]), node("Mul", ["v", "a"], ["w"])], id="expression-of-chance"
        ),
        pytest.param(
            [constant_node("c", True), node("If", ["c"], ["w"], then_branch=TWO, else_branch=TWO)],
            id="subgraphs",
        ),
        pytest.param(
            [constant_node("s", np.ones(3)), node("BatchNormalization", ["v", "s", "s", "s", "s"], ["w"])],
            id="BatchNormalization",  # which the reference evaluator has wrong below version 14
        ),
        pytest.param([node("Neg", ["v"], ["w"], domain="com.example")], id="another-domain"),
        pytest.param([node("Identity", ["v"], ["w"], domain="com.example")], id="identity-of-another-domain"),
        pytest.param(
            [node("Constant", [], ["w"], domain="com.example", value_float=2.0)],
            id="constant-of-another-domain",
        ),
        pytest.param([value(value_string="text")], id="string"),
        pytest.param([node("Reshape", ["v", "v"], ["w"])], id="what-cannot-be-evaluated"),
        pytest.param([node("NoSuchOperator", ["v"], ["w"])], id="what-does-not-exist"),
    ],
)
def test_what_is_not_constant(nodes: Sequence[NodeProto]) -> None:
    assert of(nodes, {"v": W}) is None


@pytest.mark.parametrize("like", ["x", "t", "v", "c"])
def test_cast_like_needs_the_type_only_of_what_the_other_is(like: str) -> None:
    nodes = [
        constant_node("half", 0.5),
        node("Neg", ["x"], ["t"]),
        constant_node("c", np.ones(3)),
        node("CastLike", ["half", like], ["w"]),
    ]
    found = of(nodes, {"v": W})
    assert found is not None
    assert found.data_type == TensorProto.FLOAT
    assert found.read() == np.float32(0.5)


def test_cast_like_what_has_a_type_that_is_unknown() -> None:
    nodes = [
        constant_node("half", 0.5),
        node("Unknown", ["x"], ["t"], domain="com.example"),
        node("CastLike", ["half", "t"], ["w"]),
    ]
    assert of(nodes) is None


@pytest.mark.parametrize(
    ("shape", "bounds", "expected"),
    [
        pytest.param([2, 3], {}, [2, 3], id="static"),
        pytest.param(["n", 3], {}, None, id="symbolic"),
        pytest.param(["n", 3], {"start": 1}, [3], id="static-from-the-start"),
        pytest.param([2, "m"], {"end": -1}, [2], id="static-up-to-the-end"),
        pytest.param(["n", 3], {"end": 1}, None, id="symbolic-up-to-the-end"),
    ],
)
def test_the_shape_of_a_tensor(
    shape: Sequence[int | str], bounds: Mapping[str, int], expected: Sequence[int] | None
) -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("Shape", ["y"], ["s"], **bounds), node("Neg", ["s"], ["w"])]
    constants = main_scope(model(nodes, {"x": shape}, ["w"])).constants
    for name, sign in (("s", 1), ("w", -1)):
        found = constants.find(name)
        assert constants.follows(name) == (expected is not None)
        assert (None if found is None else found.read().tolist()) == (
            None if expected is None else [sign * extent for extent in expected]
        )


def test_names_that_nothing_computes() -> None:
    constants = main_scope(model([node("Neg", ["x"], ["y"])], {"x": [1]}, ["y"])).constants
    assert constants.find("") is constants.find("x") is constants.find("nowhere") is None


@pytest.mark.parametrize(("ir", "constant"), [(3, True), (4, False), (8, False)])
def test_an_initializer_that_is_an_input_too_may_be_overridden_from_ir_4_on(ir: int, constant: bool) -> None:
    nodes = [node("Neg", ["v"], ["w"]), node("Add", ["x", "w"], ["y"])]
    proto = model(nodes, {"x": [1], "v": W.shape}, ["y"], {"v": W}, ir=ir)
    constants = main_scope(proto).constants
    assert (constants.find("v") is not None) is constant
    assert (constants.find("w") is not None) is constant


def test_a_subgraph_sees_the_constants_around_it() -> None:
    inner = branch(
        node("Neg", ["v"], ["a"]),
        constant_node("two", 2.0),
        node("Mul", ["a", "two"], ["b"]),
        node("Add", ["b", "x"], ["o"]),
    )
    proto = model(
        [node("If", ["c"], ["y"], then_branch=inner, else_branch=COPY)],
        {"x": [1]},
        ["y"],
        {"c": np.array(True), "v": W},
    )
    main, *inside = scopes(proto)
    then = next(scope for scope in inside if "then_branch" in scope.label)
    for scope, name, expected in [(main, "v", W), (then, "v", W), (then, "b", -2 * W)]:
        found = scope.constants.find(name)
        assert found is not None
        np.testing.assert_array_equal(found.read(), expected.astype("f"))
    assert then.constants.find("x") is None
    assert main.constants.find("b") is None


def test_attributes_that_a_functions_caller_sets_are_not_constant() -> None:
    own, set_by_caller = constant_node("own", 2.0), node("Constant", [], ["set"])
    set_by_caller.attribute.add(name="value_float", ref_attr_name="factor", type=AttributeProto.FLOAT)
    softmax = node("Softmax", ["own"], ["soft"])
    softmax.attribute.add(name="axis", ref_attr_name="axis", type=AttributeProto.INT)
    body = [own, set_by_caller, softmax, node("Sum", ["x", "own", "set", "soft"], ["y"])]
    function = helper.make_function(
        "local", "Scaled", ["x"], ["y"], body, [helper.make_opsetid("", 17)], ["factor", "axis"]
    )
    call = node("Scaled", ["x"], ["y"], domain="local", factor=2.0, axis=0)
    _, inside = scopes(model([call], {"x": [1]}, ["y"], functions=[function]))
    found = {name: inside.constants.find(name) is not None for name in ("own", "set", "soft", "x")}
    assert found == {"own": True, "set": False, "soft": False, "x": False}


def test_values_are_read_when_they_are_asked_for() -> None:
    """A tensor's shape is known without its data, which may be in a file that is large."""
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": [1]}, ["y"], {"w": W})
    proto.graph.initializer[0].raw_data = b""
    found = main_scope(proto).constants.find("w")
    assert found is not None
    assert found.dims == W.shape
    with pytest.raises(BadInputError, match=r"tensor 'w' do not fit its shape \[4, 3, 1, 1\]"):
        found.read()


def test_only_what_is_asked_for_is_evaluated_and_it_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = []

    class Spy(ReferenceEvaluator):
        def __init__(self, proto: Any, **given: Any) -> None:
            evaluated.append([each.op_type for each in proto.graph.node])
            super().__init__(proto, **given)

    monkeypatch.setattr("repfuse.graph.evaluation.ReferenceEvaluator", Spy)
    nodes = [
        node("Sqrt", ["v"], ["a"]),
        node("Exp", ["v"], ["never"]),
        node("Tanh", ["a"], ["w"]),
        node("Sum", ["x", "w", "never"], ["y"]),
    ]
    constants = main_scope(model(nodes, {"x": [1]}, ["y"], {"v": W})).constants
    constants.find("v")
    constants.find("x")
    assert not evaluated
    found = constants.find("w")
    assert found is not None
    assert evaluated == [["Sqrt", "Tanh"]]
    assert constants.find("w") is found
    assert evaluated == [["Sqrt", "Tanh"]]


def normalized_as_onnxoptimizer_does(net: Net, kernel: int) -> str:
    """A Conv into which its `fuse_bn_into_conv` put a BatchNormalization: the graph computes weight and bias."""
    scale, shift, mean = (net.vector() for _ in range(3))
    variance, bias = net.vector(low=0.5, high=2.0), net.constant(np.zeros(net.channels))
    epsilon = net.node("Cast", net.constant(1e-5), to=net.dtype)
    factor = net.node("Div", scale, net.node("Sqrt", net.node("Add", variance, epsilon)))
    weight = net.constant(net.random.normal(size=(net.channels, net.channels, kernel, kernel)))
    weight = net.node("Mul", weight, net.node("Unsqueeze", factor, net.integers(1, 2, 3)))
    moved = net.node("Mul", net.node("Sub", net.node("Cast", bias, to=net.dtype), mean), factor)
    return net.node("Conv", net.x, weight, net.node("Add", moved, shift), pads=[kernel // 2] * 4)


def test_what_onnxoptimizer_leaves_of_a_normalization_is_evaluated() -> None:
    net = Net(dtype=TensorProto.FLOAT)
    branches = [normalized_as_onnxoptimizer_does(net, kernel) for kernel in (3, 1)]
    result = prove(net.model(net.add(*branches, net.bn(net.x))))
    assert counts(result.model) == {"Conv": 1}


def test_what_divides_zero_by_zero_on_the_way_is_evaluated_without_a_word() -> None:
    """As a windowed sinc, whose middle is put in place afterwards."""
    sinc = [
        node("Sin", ["t"], ["s"]),
        node("Div", ["s", "t"], ["d"]),
        node("Equal", ["t", "zero"], ["middle"]),
        node("Where", ["middle", "one", "d"], ["w"]),
    ]
    found = of(sinc, {"t": np.array([-1.0, 0, 1]), "zero": np.array(0.0), "one": np.array(1.0)})
    assert found is not None
    np.testing.assert_allclose(found.read(), [np.sin(1), 1, np.sin(1)], rtol=1e-6)
