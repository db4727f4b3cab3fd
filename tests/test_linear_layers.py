"""Gemm and MatMul: kernels without spatial axes, merged as a Conv is; heads that are averaged become one.

A Gemm acts on vectors, a MatMul along the last axis of tensors of any rank.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import draw, model, node, run
from hypothesis import given
from hypothesis import strategies as st

from repfuse import fuse
from repfuse.proof.blockcheck import check_blocks

C_IN, C_OUT = 6, 5


def statistics(seed: int, channels: int) -> dict[str, Any]:
    """Scale, shift, mean and variance of a BatchNormalization, as initializers `s0` to `s3` with the seed."""
    values = [draw(channels, seed=seed + i) for i in range(4)]
    values[3] = np.abs(values[3]) + 0.5
    return {f"n{seed}_{i}": value for i, value in enumerate(values)}


def norm(source: str, seed: int, target: str) -> onnx.NodeProto:
    return node("BatchNormalization", [source, *(f"n{seed}_{i}" for i in range(4))], [target])


def gemm(source: str, weight: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return node("Gemm", [source, weight, "b"], [target], **attributes)


def prove(proto: onnx.ModelProto, left: dict[str, int]) -> None:
    """Fuse a model, and check what is left of it and that it computes the same."""
    x = draw(3, C_IN, seed=99)
    fused = fuse(proto).model
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(fused, strict_mode=True))
    assert Counter(n.op_type for n in fused.graph.node) == left
    expected = run(proto, x)
    np.testing.assert_allclose(run(fused, x), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


CONSTANTS = {
    "w": draw(C_IN, C_OUT),
    "wt": draw(C_OUT, C_IN, seed=1),
    "b": draw(C_OUT, seed=2),
    "row": draw(1, C_OUT, seed=3),
    "two": np.array(2.0),
    **statistics(10, C_IN),
    **statistics(20, C_IN),
    **statistics(30, C_OUT),
}


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([norm("x", 10, "t"), gemm("t", "w", "y")], id="BatchNormalization before"),
        pytest.param([gemm("x", "w", "t"), norm("t", 30, "y")], id="BatchNormalization behind"),
        pytest.param([gemm("x", "wt", "t", transB=1), norm("t", 30, "y")], id="transposed weight"),
        pytest.param([gemm("x", "w", "t", alpha=0.5, beta=3.0), norm("t", 30, "y")], id="alpha and beta"),
        pytest.param([node("Gemm", ["x", "w"], ["t"]), node("Div", ["t", "two"], ["y"])], id="no bias"),
        pytest.param(
            [node("Gemm", ["x", "w", "row"], ["t"]), node("Neg", ["t"], ["y"])], id="bias of one row"
        ),
        pytest.param(
            [node("Gemm", ["x", "w", "two"], ["t"]), node("Neg", ["t"], ["y"])], id="bias of one value"
        ),
        pytest.param(
            [gemm("x", "w", "t"), gemm("x", "wt", "u", transB=1), node("Add", ["t", "u"], ["y"])],
            id="parallel",
        ),
        pytest.param(
            [
                norm("x", 10, "p"),
                gemm("p", "w", "t"),
                norm("x", 20, "q"),
                gemm("q", "wt", "u", transB=1),
                node("Add", ["t", "u"], ["v"]),
                node("Div", ["v", "two"], ["y"]),
            ],
            id="RepViT's averaged heads",
        ),
    ],
)
@pytest.mark.parametrize("opset", [14, 17])
def test_one_gemm_is_left(nodes: list[onnx.NodeProto], opset: int) -> None:
    used = {name for each in nodes for name in each.input}
    constants = {name: value for name, value in CONSTANTS.items() if name in used}
    prove(model(nodes, {"x": [3, C_IN]}, ["y"], constants, opset=opset, dtype=np.float64), {"Gemm": 1})


def test_below_version_11_a_gemm_keeps_its_third_operand() -> None:
    nodes = [gemm("x", "w", "t"), gemm("x", "v", "u"), node("Add", ["t", "u"], ["y"])]
    constants = {"w": draw(C_IN, C_OUT), "v": draw(C_IN, C_OUT, seed=1), "b": np.zeros(C_OUT)}
    proto = model(nodes, {"x": [3, C_IN]}, ["y"], constants, opset=9, dtype=np.float64)
    (left,) = fuse(proto).model.graph.node
    assert len(left.input) == 3
    prove(proto, {"Gemm": 1})


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param(
            [node("Gemm", ["x", "w", "c"], ["t"]), node("Neg", ["t"], ["y"])],
            {"w": draw(C_IN, C_OUT), "c": draw(3, C_OUT)},
            id="a bias for each row",
        ),
        pytest.param(
            [gemm("x", "w", "t"), node("Relu", ["t"], ["r"]), gemm("r", "v", "y")],
            {"w": draw(C_IN, C_OUT), "v": draw(C_OUT, C_OUT), "b": draw(C_OUT)},
            id="an activation between",
        ),
        pytest.param(
            [gemm("x", "w", "t"), gemm("t", "v", "y")],
            {"w": draw(C_IN, 1), "v": draw(1, C_OUT), "b": draw(1)},
            id="through a bottleneck, where one would be larger",
        ),
    ],
)
def test_what_stays(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    proto = model(nodes, {"x": [3, C_IN]}, ["y"], constants, dtype=np.float64)
    prove(proto, Counter(n.op_type for n in nodes))


TOKENS = {1: (C_IN,), 2: (3, C_IN), 3: (2, 3, C_IN), 4: (2, 3, 2, C_IN)}
"""Shapes that a MatMul meets, by rank."""

MATRICES = {
    "w": draw(C_IN, C_OUT),
    "v": draw(C_IN, C_OUT, seed=1),
    "square": draw(C_OUT, C_OUT, seed=2),
    "in": draw(C_IN, seed=3),
    "out": draw(C_OUT, seed=4),
    "row": draw(1, C_OUT, seed=5),
    "tokens": draw(1, 1, C_OUT, seed=6),
    "two": np.array(2.0),
    "one": np.array([0.5]),
}


def prove_tokens(
    nodes: list[onnx.NodeProto],
    left: str,
    shape: tuple[int, ...] = TOKENS[3],
    *,
    declared: list[int | str] | None = None,
    constants: dict[str, Any] = MATRICES,
) -> onnx.ModelProto:
    """Fuse a model over one input `x`, compare it, block by block too, and check which operators are left."""
    used = {name for each in nodes for name in each.input}
    given = {name: value for name, value in constants.items() if name in used}
    proto = model(nodes, {"x": declared or list(shape)}, ["y"], given, dtype=np.float64)
    result = fuse(proto)
    assert " ".join(each.op_type for each in result.model.graph.node) == left
    x = draw(*shape, seed=99)
    expected = run(proto, x)
    np.testing.assert_allclose(run(result.model, x), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    checks = check_blocks(proto, result)
    assert all(check.passed and not check.skipped for check in checks), checks
    return result.model


def matmul(source: str, weight: str, target: str) -> onnx.NodeProto:
    return node("MatMul", [source, weight], [target])


@pytest.mark.parametrize("rank", TOKENS)
@pytest.mark.parametrize(
    ("nodes", "biased"),
    [
        pytest.param([node("Mul", ["x", "in"], ["t"]), matmul("t", "w", "y")], False, id="scale before"),
        pytest.param([node("Sub", ["in", "x"], ["t"]), matmul("t", "w", "y")], True, id="shift before"),
        pytest.param([matmul("x", "w", "t"), node("Div", ["t", "out"], ["y"])], False, id="quotient behind"),
        pytest.param(
            [matmul("x", "w", "t"), node("Add", ["out", "t"], ["u"]), node("Mul", ["u", "one"], ["y"])],
            True,
            id="bias, then scale",
        ),
        pytest.param(
            [matmul("x", "w", "t"), node("Neg", ["t"], ["u"]), node("Add", ["u", "out"], ["y"])],
            True,
            id="negated, then shifted",
        ),
        pytest.param([matmul("x", "w", "t"), matmul("t", "square", "y")], False, id="two in a row"),
        pytest.param(
            [matmul("x", "w", "t"), matmul("x", "v", "u"), node("Add", ["t", "u"], ["y"])],
            False,
            id="parallel",
        ),
        pytest.param(
            [
                matmul("x", "w", "t"),
                node("Add", ["t", "out"], ["a"]),
                matmul("x", "v", "u"),
                node("Add", ["u", "out"], ["b"]),
                node("Sub", ["a", "b"], ["s"]),
                node("Div", ["s", "two"], ["y"]),
            ],
            True,
            id="averaged heads",
        ),
    ],
)
def test_one_matmul_is_left(nodes: list[onnx.NodeProto], biased: bool, rank: int) -> None:
    biased = biased and nodes[-1].op_type != "Div"  # the two biases of the averaged heads cancel
    prove_tokens(nodes, "Gemm" if rank == 2 else "MatMul Add" if biased else "MatMul", TOKENS[rank])


@pytest.mark.parametrize("declared", [["n", "t", C_IN], ["n", 3, C_IN]])
def test_open_extents_do_not_matter(declared: list[int | str]) -> None:
    nodes = [matmul("x", "w", "t"), node("Mul", ["t", "tokens"], ["y"])]
    prove_tokens(nodes, "MatMul", declared=declared)


def test_a_residual_is_the_identity_matrix() -> None:
    nodes = [matmul("x", "w", "t"), node("Add", ["t", "x"], ["y"])]
    prove_tokens(nodes, "MatMul", constants={"w": draw(C_IN, C_IN)})


def test_gemm_and_matmul_together() -> None:
    nodes = [node("Gemm", ["x", "w"], ["t"]), matmul("x", "v", "u"), node("Add", ["t", "u"], ["y"])]
    prove_tokens(nodes, "Gemm", TOKENS[2])


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param(
            [norm("x", 10, "t"), matmul("t", "w", "y")],
            {**statistics(10, 6), "w": draw(6, 5)},
            id="a normalization along axis 1",
        ),
        pytest.param(
            [matmul("x", "w", "t"), node("Mul", ["t", "c"], ["y"])],
            {"w": draw(6, 5), "c": draw(6, 1)},
            id="a scale along axis 1",
        ),
        pytest.param(
            [matmul("x", "w", "t"), node("Mul", ["t", "c"], ["y"])],
            {"w": draw(6, 1), "c": draw(5)},
            id="a scale that broadcasts one channel",
        ),
        pytest.param(
            [matmul("x", "w", "t"), node("Mul", ["t", "c"], ["y"])],
            {"w": draw(6, 5), "c": draw(1, 1, 1, 5)},
            id="a scale of more axes",
        ),
        pytest.param(
            [matmul("w", "x", "t"), node("Neg", ["t"], ["y"])], {"w": draw(5, 6)}, id="from the left"
        ),
        pytest.param(
            [matmul("x", "w", "t"), node("Neg", ["t"], ["y"])], {"w": draw(2, 6, 5)}, id="a batch of matrices"
        ),
        pytest.param([matmul("x", "w", "t"), node("Neg", ["t"], ["y"])], {"w": draw(6)}, id="a vector"),
        pytest.param(
            [matmul("x", "w", "t"), matmul("t", "v", "y")],
            {"w": draw(6, 1), "v": draw(1, 6)},
            id="through a bottleneck",
        ),
        pytest.param(
            [matmul("x", "w", "t"), node("Add", ["t", "b"], ["y"])],
            {"w": draw(6, 5), "b": draw(5)},
            id="a bias alone",
        ),
    ],
)
def test_what_a_matmul_leaves(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    prove_tokens(nodes, " ".join(each.op_type for each in nodes), (2, 6, 6), constants=constants)


def test_the_product_of_two_tensors_is_attention() -> None:
    nodes = [
        node("Mul", ["x", "two"], ["s"]),
        matmul("s", "x", "t"),
        matmul("t", "w", "u"),
        node("Neg", ["u"], ["y"]),
    ]
    prove_tokens(nodes, "Mul MatMul MatMul", (2, 6, 6))


@given(st.data())
def test_a_matmul_among_scales_and_shifts_is_one_affine_map(data: st.DataObject) -> None:
    """Against the reference evaluator: any row of ops along the last axis, whatever is fused of it."""
    shape = data.draw(st.sampled_from(list(TOKENS.values())))
    width, source = shape[-1], "x"
    nodes, constants = [], {}
    for number in range(data.draw(st.integers(2, 5))):
        op = data.draw(st.sampled_from(["MatMul", "Add", "Sub", "Mul", "Div", "Neg"]))
        target = f"t{number}"
        outputs = data.draw(st.integers(1, 4)) if op == "MatMul" else width
        if op == "MatMul":
            value = draw(width, outputs, seed=number)
        else:
            forms = [(), (1,), (width,), (1, width), (1, 1, width), (1, 1, 1)]
            value = np.abs(draw(*data.draw(st.sampled_from(forms)), seed=number)) + 0.5
        operands = [source, f"c{number}"]
        if op in ("Add", "Sub", "Mul") and data.draw(st.booleans()):
            operands.reverse()
        nodes.append(node(op, operands[:1] if op == "Neg" else operands, [target]))
        constants[f"c{number}"] = value
        source, width = target, outputs
    used = {name for each in nodes for name in each.input}
    given_here = {name: value for name, value in constants.items() if name in used}
    declared = data.draw(
        st.sampled_from([list(shape), [*(f"d{i}" for i in range(len(shape) - 1)), shape[-1]]])
    )
    proto = model(nodes, {"x": declared}, [source], given_here, dtype=np.float64)
    x = draw(*shape, seed=99)
    expected = run(proto, x)
    actual = run(fuse(proto).model, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * max(1, np.abs(expected).max()))


@given(st.data())
def test_gemms_of_any_kind_are_one_affine_map(data: st.DataObject) -> None:
    """Factors, transposed weights and whatever is broadcast as a bias; and a sum of two, in either order."""
    nodes, constants, width = [], {}, C_IN
    for number in range(2):
        outputs = data.draw(st.integers(1, 4))
        turned = data.draw(st.booleans())
        weight = draw(outputs, width, seed=number) if turned else draw(width, outputs, seed=number)
        forms = [None, (), (1,), (outputs,), (1, outputs)]
        form = data.draw(st.sampled_from(forms))
        factors = {name: data.draw(st.sampled_from([1.0, -0.5, 2.0])) for name in ("alpha", "beta")}
        constants[f"w{number}"] = weight
        if form is not None:
            constants[f"c{number}"] = draw(*form, seed=number + 5)
        operands = [
            f"t{number}" if number else "x",
            f"w{number}",
            *([f"c{number}"] if form is not None else []),
        ]
        nodes.append(node("Gemm", operands, [f"t{number + 1}"], transB=int(turned), **factors))
        width = outputs
    constants["v"] = draw(C_IN, width, seed=9)
    nodes.append(node("MatMul", ["x", "v"], ["u"]))
    branches = data.draw(st.permutations(["t2", "u"]))
    nodes.append(node(data.draw(st.sampled_from(["Add", "Sub", "Sum"])), branches, ["y"]))
    proto = model(nodes, {"x": [5, C_IN]}, ["y"], constants, dtype=np.float64)
    x = draw(5, C_IN, seed=99)
    expected = run(proto, x)
    result = fuse(proto)
    assert [each.op_type for each in result.model.graph.node] == ["Gemm"]
    np.testing.assert_allclose(
        run(result.model, x), expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize("rows", [2, 3])
def test_a_bias_of_rows_is_refused_however_many_outputs_there_are(rows: int) -> None:
    """With as many rows as outputs, the number of its values does not tell."""
    nodes = [node("Gemm", ["x", "w", "c"], ["t"]), node("Neg", ["t"], ["y"])]
    constants = {"w": draw(C_IN, 2), "c": draw(rows, 1, seed=1)}
    result = fuse(model(nodes, {"x": (rows, C_IN)}, ["y"], constants))
    assert not result.changed
