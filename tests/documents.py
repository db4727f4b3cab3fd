"""A model that holds all that ONNX lets a model say besides its graph: what a careless tool loses."""

from __future__ import annotations

import numpy as np
import onnx
from nets import Net
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from proof import every_node

FOREIGN = "com.example"
UNKNOWN = b"\xba\x3e\x03new"
"""Field 999 of any message, three bytes long, as a newer ONNX might write it."""


def rich_model() -> ModelProto:
    """A block between two nodes, and all that ONNX lets a model say besides."""
    net = Net(extents=("height", "width"), dtype=TensorProto.FLOAT, opset=21, ir=10)
    t = net.node("Relu", net.x)
    merged = net.repvgg(t)
    captured = net.node("Sigmoid", merged)
    branch = [helper.make_node("Add", [captured, t], ["sum"], "sum", doc_string="captures two tensors")]
    bodies = {
        "then_branch": helper.make_graph(branch, "then", [], [net.info("sum")], doc_string="then"),
        "else_branch": helper.make_graph(
            [helper.make_node("Neg", [captured], ["negated"])], "else", [], [net.info("negated")]
        ),
    }
    condition = net.true()
    chosen = net.node("If", condition, **bodies)
    y = net.node(
        "Odd", chosen, "float8", "int4", "sparse", "unread",
        domain=FOREIGN, text=b"\xff\xfe not UTF-8",
    )  # fmt: skip
    net.nodes[-1].attribute.append(helper.make_attribute("nothing", [], attr_type=AttributeProto.INTS))
    net.functions.append(annotated_function())
    z = net.node("Twice", merged, domain="functions")
    model = helper.make_model(
        helper.make_graph(
            net.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, "height", "width"])],
            [net.info(y), net.info(z)],
            [*net.initializers.values(), *odd_tensors()],
            doc_string="a graph",
            value_info=[net.info(t), net.info(merged), net.info("conv_2")],
            sparse_initializer=[sparse_tensor()],
        ),
        ir_version=10,
        opset_imports=[helper.make_opsetid(d, v) for d, v in (("", 21), (FOREIGN, 3), ("functions", 1))],
        functions=net.functions,
        producer_name="somebody",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="a model",
    )
    annotate(model)
    return model


def annotated_function() -> onnx.FunctionProto:
    nodes = [helper.make_node("Add", ["a", "a"], ["b"], "double", doc_string="in a function")]
    function = helper.make_function(
        "functions", "Twice", ["a"], ["b"], nodes, [helper.make_opsetid("", 21)], doc_string="twice"
    )
    function.metadata_props.add(key="function", value="metadata")
    return function


def odd_tensors() -> list[TensorProto]:
    eight = np.arange(4, dtype=np.float32)
    four = helper.make_tensor("int4", TensorProto.INT4, [3], [1, -2, 3])
    texts = TensorProto(name="unread", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"])
    return [helper.make_tensor("float8", TensorProto.FLOAT8E4M3FNUZ, [4], eight), four, texts]


def sparse_tensor() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "sparse")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 3])), [5])


def annotate(model: ModelProto) -> None:
    """Metadata on all that can have some, annotations, training information, and fields of a newer ONNX."""
    for index, node in enumerate(every_node(model)):
        node.doc_string = node.doc_string or f"node {index}"
        node.metadata_props.add(key="namespace", value=f"module/{node.name or index}")
        node.metadata_props.add(key=f"only {index}", value="kept")
    for owner in (model, model.graph):
        owner.metadata_props.add(key="owner", value="metadata")
    for name in ("relu_1", "conv_2"):
        entry = model.graph.quantization_annotation.add(tensor_name=name)
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"{name}_scale")
    for message in (model, model.graph, model.graph.node[0], model.graph.initializer[-1]):
        message.MergeFromString(UNKNOWN)
