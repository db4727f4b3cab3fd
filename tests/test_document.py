"""Match on a view, patch the document: what fusing does not replace stays byte for byte what it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import onnx
import pytest
from documents import UNKNOWN, rich_model
from nets import Net
from onnx import ModelProto, NodeProto, TensorProto, helper
from proof import counts, prove

from repfuse import FuseResult, fuse
from repfuse.rewriting.rewrite import FUSED_FROM


def untouched(before: ModelProto, result: FuseResult) -> None:
    """Everything but what the edits replaced is the same, byte for byte, and in the same order."""
    after = result.model
    added = {name for edit in result.edits for name in edit.added}
    removed = {name for edit in result.edits for name in edit.removed}

    def kept(nodes: Iterable[NodeProto], gone: set[str]) -> list[bytes]:
        return [
            n.SerializeToString(deterministic=True) for n in nodes if f"{n.op_type} '{n.name}'" not in gone
        ]

    assert kept(after.graph.node, added) == kept(before.graph.node, removed)
    for field in ("initializer", "value_info", "quantization_annotation"):
        old = [entry.SerializeToString() for entry in getattr(before.graph, field)]
        new = [entry.SerializeToString() for entry in getattr(after.graph, field)]
        stayed = [entry for entry in new if entry in old]
        assert stayed == [entry for entry in old if entry in new]
        assert field == "initializer" or stayed == new
    rests = []
    for model in (before, after):
        rest = ModelProto()
        rest.CopyFrom(model)
        for field in ("node", "initializer", "value_info", "quantization_annotation"):
            rest.graph.ClearField(field)
        rests.append(rest.SerializeToString(deterministic=True))
    assert rests[0] == rests[1]


def test_what_is_not_replaced_stays_as_it_was() -> None:
    model = rich_model()
    onnx.checker.check_model(model)
    before = model.SerializeToString(deterministic=True)
    result = fuse(model)
    assert model.SerializeToString(deterministic=True) == before
    assert counts(result.model)["Conv"] == 1
    untouched(model, result)
    assert result.model.SerializeToString().count(UNKNOWN) == before.count(UNKNOWN) == 4
    onnx.checker.check_model(result.model)


def test_what_is_said_of_tensors_that_are_gone_goes_too() -> None:
    graph = fuse(rich_model()).model.graph
    assert [entry.tensor_name for entry in graph.quantization_annotation] == ["relu_1"]
    assert "conv_2" not in {entry.name for entry in graph.value_info}
    assert len(graph.value_info) == 2


def test_a_new_node_tells_what_it_was_made_from() -> None:
    model = rich_model()
    old = {node.name: node for node in model.graph.node}
    (conv,) = (node for node in fuse(model).model.graph.node if node.op_type == "Conv")
    entries = {entry.key: entry.value for entry in conv.metadata_props}
    replaced = json.loads(entries.pop(FUSED_FROM))
    assert len(replaced) == 7
    assert {old[name].op_type for name in replaced} == {"Conv", "BatchNormalization", "Add"}
    expected = {entry.key: entry.value for name in replaced for entry in old[name].metadata_props}
    assert entries == expected
    assert entries["namespace"] == f"module/{replaced[-1]}"


def test_the_last_of_several_new_nodes_names_what_they_were_made_from() -> None:
    net = Net()
    total = net.add(net.repvgg(net.x), net.node("Relu", net.x))
    *_, conv, add = fuse(net.model(total)).model.graph.node
    assert (conv.op_type, add.op_type) == ("Conv", "Add")
    assert [entry.key for entry in conv.metadata_props] == []
    (entry,) = add.metadata_props
    assert (entry.key, json.loads(entry.value)[-1]) == (FUSED_FROM, total)


def test_training_information_still_refers_to_what_is_there() -> None:
    net = Net()
    model = net.model(net.repvgg(net.x))
    weight = net.nodes[0].input[1]
    step = helper.make_graph(
        [helper.make_node("Neg", [weight], ["updated"])],
        "step",
        [],
        [helper.make_tensor_value_info("updated", net.dtype, [4, 4, 3, 3])],
    )
    info = model.training_info.add(algorithm=step)
    info.update_binding.add(key=weight, value="updated")
    onnx.checker.check_model(model)
    result = fuse(model)
    assert list(result.model.training_info) == list(model.training_info)
    assert weight in {tensor.name for tensor in result.model.graph.initializer}


def test_order_stays_sorted_and_names_are_fresh() -> None:
    net = Net()
    # Three blocks, the nodes of which lie interleaved.
    large, small = ([net.conv_bn(net.x, kernel) for _ in range(3)] for kernel in (3, 1))
    outputs = [net.add(*branches) for branches in zip(large, small, strict=True)]
    taken = f"{outputs[0]}/fused_conv"
    outputs.append(net.node("Relu", net.x))
    net.nodes[-1].output[0] = outputs[-1] = taken
    model = prove(net.model(*outputs)).model
    names = [name for node in model.graph.node for name in node.output]
    names += [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    assert taken in names
    assert counts(model) == {"Conv": 3, "Relu": 1}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_names_inside_subgraphs_are_not_taken_either() -> None:
    net = Net()
    y = net.repvgg(net.x)
    inner = f"{y}/fused_conv.weight"
    body = [helper.make_node("Neg", [net.x], [inner]), helper.make_node("Relu", [inner], ["inner_y"])]
    other = [helper.make_node("Neg", [net.x], ["other_y"])]
    condition = net.true()
    z = net.node(
        "If",
        condition,
        then_branch=helper.make_graph(body, "then", [], [net.info("inner_y")]),
        else_branch=helper.make_graph(other, "else", [], [net.info("other_y")]),
    )
    model = prove(net.model(y, z)).model
    assert inner not in {tensor.name for tensor in model.graph.initializer}


def relu_only(net: Net) -> str:
    return net.node("Relu", net.x)


def residual_over_relu(net: Net) -> str:
    return net.add(net.conv(net.node("Relu", net.conv(net.x))), net.x)


def empty_graph(net: Net) -> str:
    return net.x


@pytest.mark.parametrize("build", [relu_only, residual_over_relu, empty_graph])
def test_a_model_with_nothing_to_fuse_comes_back_equal(build: Callable[[Net], str]) -> None:
    net = Net()
    model = net.model(build(net))
    annotate_lightly(model)
    result = fuse(model)
    assert not result.changed
    assert result.edits == ()
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def annotate_lightly(model: ModelProto) -> None:
    model.graph.value_info.add(name="stale")
    model.graph.initializer.add(name="unused", data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0])


def test_initializers_that_were_unused_before_are_not_ours_to_remove() -> None:
    net = Net()
    model = net.model(net.repvgg(net.x))
    annotate_lightly(model)
    result = fuse(model)
    assert result.changed
    untouched(model, result)
    assert "unused" in {tensor.name for tensor in result.model.graph.initializer}


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (fuse(rich_model()).model.SerializeToString() for _ in range(2))
    assert first == second


def test_shared_weights_stay_for_who_still_needs_them() -> None:
    net = Net()
    y = net.node("Relu", net.repvgg(net.x))
    weight = net.nodes[0].input[1]
    model = net.model(net.node("Conv", y, weight))
    result = prove(model)
    untouched(model, result)
    assert weight in {tensor.name for tensor in result.model.graph.initializer}


def test_dead_code_that_was_there_stays() -> None:
    net = Net()
    y = net.repvgg(net.x)
    net.node("Relu", net.conv(net.x))
    model = net.model(y)
    result = prove(model)
    untouched(model, result)
    assert counts(result.model) == {"Conv": 2, "Relu": 1}
