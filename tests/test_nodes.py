"""Nodes are read once, and say what their protos say."""

from __future__ import annotations

from onnx import AttributeProto, TensorProto, helper

from repfuse.model.nodes import Node, read


def test_a_node_says_what_its_proto_says() -> None:
    proto = helper.make_node("Conv", ["x", "w", ""], ["y"], "first", pads=[1, 1], group=2, auto_pad="VALID")
    node = Node(proto)
    assert (node.proto, node.op_type, node.domain, node.name) == (proto, "Conv", "", "first")
    assert (node.input, node.output) == (("x", "w", ""), ("y",))
    assert node.attributes == {"pads": (1, 1), "group": 2, "auto_pad": b"VALID"}
    assert not node.graphs
    assert not node.refers


def test_both_names_of_the_operators_of_onnx_are_one() -> None:
    nodes = read(
        helper.make_node("Add", ["a", "b"], ["c"], domain=domain) for domain in ("", "ai.onnx", "my")
    )
    assert [node.domain for node in nodes] == ["", "", "my"]
    assert [node.is_onnx("Add") for node in nodes] == [True, True, False]


def test_the_graphs_in_a_node_are_found_with_their_attributes_names() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    bodies = {name: helper.make_graph([], name, [], [x]) for name in ("then_branch", "else_branch")}
    found = Node(helper.make_node("If", ["c"], ["y"], **bodies)).graphs
    assert {name: graph.name for name, graph in found} == {name: name for name in bodies}


def test_a_node_tells_of_attributes_that_the_caller_of_its_function_sets() -> None:
    proto = helper.make_node("LeakyRelu", ["x"], ["y"])
    proto.attribute.append(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope"))
    assert Node(proto).refers
